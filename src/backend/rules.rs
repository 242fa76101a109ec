//! The memory rules of backends that need no device to state them.
use super::Launch;
use super::dry::Rules;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Op;
use crate::ops::attention::Attention;

/// Floats are held as f32, in words of 8 bytes.
pub struct CpuRules;

impl Rules for CpuRules {
    fn name(&self) -> &'static str {
        "cpu"
    }
    fn width(&self, dtype: DType) -> usize {
        if dtype.is_float() { 4 } else { dtype.size() }
    }
    fn bytes(&self, len: usize, dtype: DType) -> u64 {
        (len * self.width(dtype)).next_multiple_of(8) as u64
    }
    fn host_bytes(&self, len: usize, dtype: DType) -> u64 {
        self.bytes(len, dtype)
    }
}

/// Allocations are multiples of 256 bytes; beside them there are the workspaces of cuBLASLt and of cuDNN.
pub struct CudaRules {
    pub workspace: u64,
    pub attention: CudaAttention,
}

/// Which attention a run may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaAttention {
    /// Our own kernels, which take nothing.
    Own,
    /// cuDNN's for long sequences.
    Cudnn,
}

impl CudaRules {
    /// What NVIDIA advises for Hopper.
    pub const WORKSPACE: usize = 32 << 20;
    /// Sequences from here on are worth a plan of cuDNN's: a plan costs a second, and below our own kernels are as good.
    pub const LONG: u32 = 512;

    /// Bytes that cuDNN's backward takes at most: dq in f32, and dk and dv of each query head where heads share them; tiles
    /// may reach over the last token. And the little that its engines take for themselves.
    pub fn attention_backward(p: &Attention) -> usize {
        const LITTLE: usize = 1 << 20;
        let heads = if p.H == p.K { 0 } else { 2 * (p.ld_k + p.ld_v) * (p.H / p.K) };
        p.N.next_multiple_of(128) as usize * (4 * p.ld_q + heads) as usize + LITTLE
    }
    /// Where cuDNN may run the backward, as far as it can be known without the mask.
    fn is_for_cudnn(&self, p: &Attention, dtype: DType) -> bool {
        let sizes = p.N == p.T && p.N >= CudaRules::LONG && p.D.is_multiple_of(8);
        self.attention == CudaAttention::Cudnn && dtype.size() == 2 && sizes && p.softcap == 0.0
    }
}

impl Rules for CudaRules {
    fn name(&self) -> &'static str {
        "cuda"
    }
    fn bytes(&self, len: usize, dtype: DType) -> u64 {
        (len * dtype.size()).next_multiple_of(256).max(256) as u64
    }
    fn host_bytes(&self, len: usize, dtype: DType) -> u64 {
        (len * dtype.size()).max(1) as u64
    }
    fn scratch(&self, launch: &Launch) -> Result<[usize; 2]> {
        let (Op::attention_backward, Some(Some(dq))) = (launch.op(), launch.args().first()) else { return Ok([0; 2]) };
        let p: Attention = bytemuck::pod_read_unaligned(launch.params());
        let bytes = if self.is_for_cudnn(&p, dq.dtype()) { CudaRules::attention_backward(&p) } else { 0 };
        Ok([bytes.div_ceil(4), 0])
    }
    fn workspace(&self) -> u64 {
        self.workspace
    }
}

#[cfg(test)]
mod tests {
    use super::super::Backend;
    use super::super::dry::Dry;
    use super::*;
    use std::rc::Rc;

    /// Of a rehearsal of attention's backward over N tokens.
    fn workspace(attention: CudaAttention, N: u32, dtype: DType) -> u64 {
        let (H, K, D) = (32, 8, 128);
        let p = Attention { N, T: N, H, K, D, ld_q: H * D, ld_k: K * D, ld_v: K * D, scale: 0.1, softcap: 0.0 };
        let b: &dyn Backend = &Dry::new(Rc::new(CudaRules { workspace: 0, attention }), None);
        let alloc = |width: u32, dtype| b.alloc((N * width) as usize, dtype).unwrap();
        let [mut dq, dout, out, q] = [(); 4].map(|()| alloc(H * D, dtype));
        let [mut dk, mut dv, k, v] = [(); 4].map(|()| alloc(K * D, dtype));
        let [mut dot, lse] = [(); 2].map(|()| alloc(H, DType::F32));
        let [span, reach] = [(); 2].map(|()| alloc(2, DType::U32));
        let before = b.memory().used;
        for _ in 0..2 {
            b.attention_backward(&mut dq, &mut dk, &mut dv, &mut dot, &dout, &out, &lse, &q, &k, &v, &span, &reach, &p)
                .unwrap();
        }
        b.memory().used - before
    }

    #[test]
    fn cudnn_takes_eight_bytes_a_channel_of_long_backwards_once() {
        let whole = (1000u64.next_multiple_of(128) * 32 * 128 * 8) + (1 << 20);
        assert_eq!(workspace(CudaAttention::Cudnn, 1000, DType::Bf16), whole);
        assert_eq!(workspace(CudaAttention::Cudnn, 1000, DType::F32), 0);
        assert_eq!(workspace(CudaAttention::Cudnn, 100, DType::Bf16), 0);
        assert_eq!(workspace(CudaAttention::Own, 1000, DType::Bf16), 0);
    }
}
