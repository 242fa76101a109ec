//! Both gradients of an adapter's second product in one pass over what they read: `kernels/fast/low_rank.cu`, where the device and
//! the sizes are such that it pays; else two products.
use super::source::Variant;
use super::{Cuda, fast};
use crate::backend::{Buf, CudaRules, Launch};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Op;
use crate::ops::low_rank::LowRank;
use crate::ops::matmul::MatMul;

const TEXT: &str = include_str!("../../../kernels/fast/low_rank.cu");

/// A kernel, and from how many outputs on it is the one.
#[derive(Clone, Copy, Debug)]
pub struct Joined {
    pub least: u32,
    /// Columns of a block, rows that it takes at a time, and blocks that run at once.
    pub stripe: u32,
    pub rows: u32,
    pub blocks: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    pub variant: Variant,
}

/// Blocks that keep a large device busy.
const BLOCKS: u32 = 132;

/// The widest first.
pub const JOINED: [Joined; 2] = [
    joined(8192, "joined16", &[("WARPS", 16), ("ROWS", 16), ("STAGES", 4), ("BLOCKS", BLOCKS)]),
    joined(0, "joined8", &[("WARPS", 8), ("ROWS", 32), ("STAGES", 3), ("BLOCKS", BLOCKS)]),
];

const fn joined(least: u32, name: &'static str, constants: &'static [(&'static str, u32)]) -> Joined {
    let [warps, rows, stages, blocks] = [constants[0].1, constants[1].1, constants[2].1, constants[3].1];
    let stripe = 64 * warps;
    let shared = 2 * stages * rows * (stripe + 32) + 128 * warps * rows;
    Joined { least, stripe, rows, blocks, shared, variant: Variant { name, text: TEXT, constants } }
}

impl Joined {
    /// Bytes of the parts that blocks leave to be added up.
    pub fn parts(&self, N: usize, O: usize) -> usize {
        let (stripes, rows) = (O.div_ceil(self.stripe as usize), self.rows as usize);
        let stretches = (self.blocks as usize / stripes.max(1)).max(1);
        64 * (stripes * N.div_ceil(rows) * rows + stretches * O)
    }
    /// Rows that a call may have for its parts to fit the workspace; 0: none.
    fn most_rows(&self, O: usize) -> usize {
        let rest = CudaRules::WORKSPACE.saturating_sub(self.parts(0, O));
        let row = 64 * O.div_ceil(self.stripe as usize);
        rest / row.max(1) / self.rows as usize * self.rows as usize
    }
}

/// Values of ∂L/∂Y from which on one pass is faster than two products that read it.
const LARGE: u64 = 1 << 18;

/// Whether one pass may be the faster one here.
pub(super) fn is_there(cuda: &Cuda) -> bool {
    cuda.blas.borrow().is_some() && JOINED.iter().any(|joined| runs(cuda, joined))
}

fn runs(cuda: &Cuda, joined: &Joined) -> bool {
    cuda.device.capability.0 >= 8 && joined.shared <= cuda.device.shared
}

/// Wants one 16-bit type but for db, ranks up to 16, and rows that start at multiples of 16 bytes.
fn fitting(cuda: &Cuda, launch: &Launch, pointers: &[u64], p: &LowRank) -> Option<&'static Joined> {
    let mut types = [0, 2, 3, 4].iter().map(|i| launch.args()[*i].map_or(DType::F32, Buf::dtype));
    let first = types.next().filter(|dtype| dtype.is_float() && dtype.size() == 2)?;
    let aligned = pointers.iter().all(|p| p % 16 == 0) && [p.O, p.R, p.ld_t].iter().all(|n| n % 8 == 0);
    let large = p.N as u64 * p.O as u64 >= LARGE;
    let joined = JOINED.iter().find(|joined| p.O >= joined.least && runs(cuda, joined))?;
    let fits = types.all(|dtype| dtype == first) && aligned && large && p.R <= 16;
    (fits && joined.most_rows(p.O as usize) > 0).then_some(joined)
}

/// Queues it, whichever way.
pub(super) fn run(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Result<()> {
    let p: LowRank = bytemuck::pod_read_unaligned(launch.params());
    let Some(joined) = fitting(cuda, launch, pointers, &p) else { return products(cuda, launch, &p) };
    let workspace = cuda.blas.borrow().as_ref().map_or(0, |blas| blas.workspace());
    let most = joined.most_rows(p.O as usize);
    for first in (0..p.N as usize).step_by(most) {
        let part = LowRank { N: most.min(p.N as usize - first) as u32, ..p };
        let args = rows(launch, &part, first);
        let args = args.each_ref().map(Option::as_ref);
        let part = Launch::new(launch.op(), &args, bytemuck::bytes_of(&part))?;
        let at = args.iter().flatten().map(|buf| cuda.ptr(buf)).chain([workspace]);
        cuda.run_kernel(&part, Some(joined.variant), &at.collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The arguments for p.N rows from `first` on.
fn rows(launch: &Launch, p: &LowRank, first: usize) -> [Option<Buf>; 5] {
    let [N, O, ld_dt, ld_t] = [p.N, p.O, p.ld_dt, p.ld_t].map(|x| x as usize);
    let of = |i: usize, ld: usize| launch.args()[i].map(|buf| buf.view(first * ld, N * ld));
    let whole = |i: usize| launch.args()[i].map(|buf| buf.view(0, buf.len()));
    [of(0, ld_dt), whole(1), of(2, O), whole(3), of(4, ld_t)]
}

/// As two products.
fn products(cuda: &Cuda, launch: &Launch, p: &LowRank) -> Result<()> {
    let [dt, db, dout, b, t] = [0, 1, 2, 3, 4].map(|i| launch.args()[i]);
    let (N, O, R) = (p.N, p.O, p.R);
    let nn = MatMul { I: N, J: R, Q: O, ld_out: p.ld_dt, ld_a: O, ld_b: R, alpha: p.scale };
    let tn = MatMul { I: O, J: R, Q: N, ld_out: R, ld_a: O, ld_b: p.ld_t, alpha: 1.0 };
    for (op, args, p) in [(Op::matmul_nn, [dt, dout, b], nn), (Op::matmul_tn_add, [db, dout, t], tn)] {
        let launch = Launch::new(op, &args, bytemuck::bytes_of(&p))?;
        let pointers = args.map(|buf| buf.map_or(0, |buf| cuda.ptr(buf)));
        if !fast::run(cuda, &launch, &pointers)? {
            cuda.run_kernel(&launch, None, &pointers)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_call_fit_the_workspace_and_so_many_rows_are_whole_tiles() {
        for joined in &JOINED {
            for O in [8, 1024, 4096, 14336, 128_256] {
                let most = joined.most_rows(O);
                assert!(most >= 1024 && most.is_multiple_of(joined.rows as usize), "{O}: {most}");
                assert!(joined.parts(most, O) <= CudaRules::WORKSPACE, "{O}");
                assert!(joined.parts(most + joined.rows as usize, O) > CudaRules::WORKSPACE, "{O}");
            }
            assert!(
                joined.most_rows(1 << 20) == 0 || joined.parts(joined.rows as usize, 1 << 20) <= CudaRules::WORKSPACE
            );
        }
    }
}
