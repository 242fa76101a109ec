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
    fn host_is_apart(&self) -> bool {
        false
    }
}

/// Allocations are multiples of 256 bytes; beside them there is the workspace of cuBLASLt, and what cuDNN's attention sums in. What
/// cuDNN's engines want besides, and its tables of sequences, only cuDNN knows: some MiB that no plan has.
pub struct CudaRules {
    pub workspace: u64,
    /// cuDNN runs attention where it can.
    pub cudnn: bool,
}

impl CudaRules {
    /// What NVIDIA advises for Hopper.
    pub const WORKSPACE: usize = 32 << 20;
    /// Shorter sequences are not for cuDNN.
    pub const LONG: u32 = 512;
    /// Of a device that is not here: with all that may be there.
    pub const FULL: CudaRules = CudaRules { workspace: Self::WORKSPACE as u64, cudnn: true };
}

/// Bytes that cuDNN's backward sums in: dq in f32, and dk and dv of each query head where heads share keys.
fn cudnn_sums(launch: &Launch) -> u64 {
    let Some(Some(dq)) = launch.args().first() else { return 0 };
    if launch.op() != Op::attention_backward || dq.dtype().size() != 2 {
        return 0;
    }
    let p: Attention = bytemuck::pod_read_unaligned(launch.params());
    if p.softcap != 0.0 || p.N != p.T || !p.D.is_multiple_of(16) || p.D > 256 || p.N < CudaRules::LONG {
        return 0;
    }
    let one = p.N.next_multiple_of(128) as u64 * (p.H * p.D) as u64;
    one * 4 + if p.H > p.K { 2 * one * 2 } else { 0 }
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
        Ok([if self.cudnn { cudnn_sums(launch) as usize / 4 } else { 0 }, 0])
    }
    fn turns(&self) -> usize {
        2
    }
    fn workspace(&self) -> u64 {
        self.workspace
    }
}
