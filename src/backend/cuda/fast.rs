//! What runs faster than an op's plain kernel: products by cuBLASLt, attention by cuDNN, attention and products by group on
//! tensor cores, norms of long rows in registers.
use super::source::Variant;
use super::{Cuda, cudnn, low_rank, scaled};
use crate::backend::Launch;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::attention::Attention;
use crate::ops::fp8::Fp8Quantize;
use crate::ops::fp8_matmul::Fp8MatMul;
use crate::ops::grouped::Grouped;
use crate::ops::matmul::MatMul;

/// Queues the op if it has a fast path here; `false`: run the plain kernel.
pub(super) fn run(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Result<bool> {
    match launch.op() {
        Op::matmul_nt | Op::matmul_nt_add | Op::matmul_nn | Op::matmul_nn_add | Op::matmul_tn | Op::matmul_tn_add => {
            let &[out, a, b] = pointers else { return Err(Error::Bug("a product has three buffers".into())) };
            let dtypes = [0, 1, 2].map(|i| launch.args()[i].map_or(DType::F32, |buf| buf.dtype()));
            let p = bytemuck::pod_read_unaligned(launch.params());
            let few = dense_variant(cuda, dtypes, [out, a, b], &p).filter(|_| launch.op() == Op::matmul_nt);
            if let Some(variant) = few {
                return cuda.run_kernel(launch, Some(variant), pointers).map(|()| true);
            }
            cuda.blas
                .borrow_mut()
                .as_mut()
                .map_or(Ok(false), |blas| blas.run(&cuda.device, launch.op(), dtypes, [out, a, b], None, &p))
        }
        Op::low_rank_backward => low_rank::run(cuda, launch, pointers).map(|()| true),
        Op::fp8_quantize => {
            let Fp8Quantize { C, .. } = bytemuck::pod_read_unaligned(launch.params());
            if C <= SHORT_ROWS {
                cuda.run_kernel(launch, Some(FP8_SHORT), pointers)?;
            }
            Ok(C <= SHORT_ROWS)
        }
        Op::fp8_matmul | Op::fp8_matmul_add => {
            if fp8(cuda, launch, pointers)? {
                return Ok(true);
            }
            let fits = fp8_fits(cuda, launch, pointers);
            if fits {
                cuda.run_kernel(launch, Some(FP8), pointers)?;
            }
            Ok(fits)
        }
        Op::attention_forward | Op::attention_backward => {
            if cudnn::run(cuda, launch, pointers)? {
                return Ok(true);
            }
            match attention(cuda, launch, pointers) {
                Some(variant) => cuda.run_kernel(launch, Some(variant), pointers).map(|()| true),
                None => Ok(false),
            }
        }
        Op::grouped_nt | Op::grouped_nt_add | Op::grouped_nn | Op::grouped_nn_add | Op::grouped_tn_add => {
            let fits = grouped_fits(cuda, launch, pointers);
            if fits {
                cuda.run_kernel(launch, Some(GROUPED), pointers)?;
            }
            Ok(fits)
        }
        Op::thin_nf4 | Op::thin_nf4_double | Op::thin_int8 => {
            let variant = thin_variant(cuda, launch, pointers);
            variant.map_or(Ok(false), |v| cuda.run_kernel(launch, Some(v), pointers).map(|()| true))
        }
        Op::rmsnorm_forward | Op::rmsnorm_residual_forward | Op::rmsnorm_backward => {
            match long_rows(launch, pointers) {
                Some(variant) => cuda.run_kernel(launch, Some(variant), pointers).map(|()| true),
                None => Ok(false),
            }
        }
        _ => Ok(false),
    }
}

const ROWS: &str = include_str!("../../../kernels/fast/rmsnorm.cu");

/// RMSNorm of long rows in registers, by the longest: `THREADS` of a row and 16-byte loads of a thread are constants of the kernel. The
/// forward and the norm of a sum have the same threads, and so the same order of sums: either may make again what the other made.
pub const LONG_ROWS: &[(u32, Variant)] = &[
    (2048, Variant { name: "warp8", text: ROWS, constants: &[("THREADS", 32), ("KEEP", 8)] }),
    (4096, Variant { name: "block4", text: ROWS, constants: &[("THREADS", 128), ("KEEP", 4)] }),
    (8192, Variant { name: "block8", text: ROWS, constants: &[("THREADS", 128), ("KEEP", 8)] }),
    (16384, Variant { name: "block16", text: ROWS, constants: &[("THREADS", 128), ("KEEP", 16)] }),
];
/// Shorter rows fill no warp.
const SHORT: u32 = 1024;
/// The backward holds two rows, of which longer ones leave a multiprocessor too few warps.
pub const LONG_ROWS_BACKWARD: &[(u32, Variant)] = &[LONG_ROWS[0], LONG_ROWS[1]];

/// Wants one 16-bit type, and rows that start at multiples of 16 bytes.
fn long_rows(launch: &Launch, pointers: &[u64]) -> Option<Variant> {
    let C = launch.op().extents(launch.params()).0[1] as u32;
    let known = if launch.op() == Op::rmsnorm_backward { LONG_ROWS_BACKWARD } else { LONG_ROWS };
    let fits = C > SHORT && C.is_multiple_of(8) && pointers.iter().all(|p| p % 16 == 0);
    one_half_type(launch).filter(|_| fits)?;
    known.iter().find(|(longest, _)| C <= *longest).map(|(_, variant)| *variant)
}

/// Short rows into e4m3, by smaller threads.
pub const FP8_SHORT: Variant =
    Variant { name: "short", text: include_str!("../../../kernels/fp8.cu"), constants: &[("KEPT", 2)] };
/// What fits into them.
const SHORT_ROWS: u32 = 4096;

/// Products of rows in e4m3 on tensor cores of any kind that takes them.
pub const FP8: Variant =
    Variant { name: "e4m3", text: include_str!("../../../kernels/fast/grouped.cu"), constants: &[("FP8", 1)] };

/// Wants sm_89, sums of whole sixteens, pairs of outputs, and rows that start at multiples of 16 bytes.
fn fp8_fits(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> bool {
    let p: Fp8MatMul = bytemuck::pod_read_unaligned(launch.params());
    let aligned = [0, 1, 3].iter().all(|i| pointers[*i].is_multiple_of(16));
    aligned && p.Q.is_multiple_of(16) && p.J.is_multiple_of(2) && cuda.device.capability >= (8, 9)
}

/// By cuBLASLt, which says itself whether it can scale rows on this device: on Hopper.
fn fp8(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Result<bool> {
    let &[out, a, a_scales, b, b_scales] = pointers else { return Err(Error::Bug("a product of scaled rows".into())) };
    let Fp8MatMul { I, J, Q } = bytemuck::pod_read_unaligned(launch.params());
    let mut blas = cuda.blas.borrow_mut();
    let Some(blas) = blas.as_mut().filter(|_| scaled::fits([I, J, Q], pointers)) else { return Ok(false) };
    let dtypes = [launch.args()[0].map_or(DType::F32, |out| out.dtype()), DType::U8, DType::U8];
    let p = MatMul { I, J, Q, ld_out: J, ld_a: Q, ld_b: Q, alpha: 1.0 };
    blas.run(&cuda.device, launch.op(), dtypes, [out, a, b], Some([b_scales, a_scales]), &p)
}

/// Whether memory that is nobody's argument is written, which others of this kind write, too.
pub(super) fn uses_workspace(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> bool {
    match launch.op() {
        Op::matmul_nt | Op::matmul_nt_add | Op::matmul_nn | Op::matmul_nn_add | Op::matmul_tn | Op::matmul_tn_add => {
            let dtypes = [0, 1, 2].map(|i| launch.args()[i].map_or(DType::F32, |buf| buf.dtype()));
            let (p, at) = (bytemuck::pod_read_unaligned(launch.params()), [0, 1, 2].map(|i| pointers[i]));
            if launch.op() == Op::matmul_nt && dense_variant(cuda, dtypes, at, &p).is_some() {
                return false;
            }
            cuda.blas.borrow().as_ref().is_some_and(|blas| blas.uses_workspace(launch.op(), dtypes, at, &p))
        }
        Op::attention_forward
        | Op::attention_backward
        | Op::fp8_matmul
        | Op::fp8_matmul_add
        | Op::low_rank_backward => true,
        _ => false,
    }
}

/// Products of few rows on tensor cores, with packed weights or such as they are multiplied.
#[derive(Clone, Copy, Debug)]
pub struct Few {
    /// For up to so many rows.
    pub rows: u32,
    /// Groups of 16 outputs that a block makes.
    pub groups: u32,
    pub variant: Variant,
}

pub const THIN: [Few; 6] = [
    few("mma8", &[("TILES", 1), ("GROUPS", 1), ("WARPS", 8), ("DENSE", 0)]),
    few("mma16", &[("TILES", 2), ("GROUPS", 1), ("WARPS", 8), ("DENSE", 0)]),
    few("mma16_2", &[("TILES", 2), ("GROUPS", 2), ("WARPS", 8), ("DENSE", 0)]),
    few("mma32_2", &[("TILES", 4), ("GROUPS", 2), ("WARPS", 8), ("DENSE", 0)]),
    few("mma64_2", &[("TILES", 8), ("GROUPS", 2), ("WARPS", 8), ("DENSE", 0)]),
    few("mma64_4", &[("TILES", 8), ("GROUPS", 4), ("WARPS", 8), ("DENSE", 0)]),
];
/// Of products with few outputs: as many warps as there are turns of the inner length.
pub const DENSE_NARROW: [Few; 4] = [
    few("narrow8", &[("TILES", 1), ("GROUPS", 1), ("WARPS", 16), ("DENSE", 1)]),
    few("narrow16", &[("TILES", 2), ("GROUPS", 1), ("WARPS", 16), ("DENSE", 1)]),
    few("narrow32", &[("TILES", 4), ("GROUPS", 1), ("WARPS", 16), ("DENSE", 1)]),
    few("narrow64", &[("TILES", 8), ("GROUPS", 1), ("WARPS", 8), ("DENSE", 1)]),
];
/// Of those with many.
pub const DENSE_WIDE: Few = few("wide8", &[("TILES", 1), ("GROUPS", 1), ("WARPS", 8), ("DENSE", 1)]);

const fn few(name: &'static str, constants: &'static [(&'static str, u32)]) -> Few {
    let text = include_str!("../../../kernels/fast/thin.cu");
    Few { rows: 8 * constants[0].1, groups: constants[1].1, variant: Variant { name, text, constants } }
}

/// Wants sm_80, a 16-bit type, up to 64 rows of whole steps, and inp and codes that start at multiples of 16 bytes.
fn thin_variant(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Option<Variant> {
    let [N, O, C] = [0, 1, 2].map(|i| u32::from_ne_bytes([0, 1, 2, 3].map(|k| launch.params()[4 * i + k])));
    let inp = launch.args()[1].map_or(DType::F32, |buf| buf.dtype());
    let aligned = pointers[1..3].iter().all(|p| p % 16 == 0);
    let fits = inp.size() == 2 && C.is_multiple_of(128) && aligned && cuda.device.capability.0 >= 8;
    let least = THIN.iter().find(|few| fits && N <= few.rows)?;
    // inp is read O/(16·groups) times, from the L2 cache; some hundred blocks keep a large device busy
    let alike = THIN.iter().rev().filter(|few| few.rows == least.rows);
    Some(alike.into_iter().find(|few| few.groups <= O / 2048).unwrap_or(least).variant)
}

/// Outputs up to which a product is narrow.
const NARROW: u32 = 512;

/// Wants sm_80, one 16-bit type read, few rows of whole steps, and rows that start at multiples of 16 bytes.
fn dense_variant(cuda: &Cuda, [_, a, b]: [DType; 3], pointers: [u64; 3], p: &MatMul) -> Option<Variant> {
    let aligned = pointers[1..].iter().all(|p| p % 16 == 0) && p.ld_a.is_multiple_of(8) && p.ld_b.is_multiple_of(8);
    let fits = a == b && a.size() == 2 && p.Q.is_multiple_of(128) && aligned && cuda.device.capability.0 >= 8;
    let known = if p.J <= NARROW { &DENSE_NARROW[..] } else { &[DENSE_WIDE] };
    known.iter().find(|few| fits && p.I > 0 && p.Q > 0 && p.I <= few.rows).map(|few| few.variant)
}

/// Products by group on tensor cores.
pub const GROUPED: Variant =
    Variant { name: "mma", text: include_str!("../../../kernels/fast/grouped.cu"), constants: &[] };

/// Wants sm_80, one 16-bit type read, the same or f32 written, and rows that start at multiples of 16 bytes.
fn grouped_fits(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> bool {
    let p: Grouped = bytemuck::pod_read_unaligned(launch.params());
    let &[Some(out), Some(a), Some(b), _] = launch.args() else { return false };
    let types = a.dtype().size() == 2 && a.dtype() == b.dtype() && [a.dtype(), DType::F32].contains(&out.dtype());
    let aligned = pointers[..3].iter().all(|p| p % 16 == 0) && p.J.is_multiple_of(8) && p.Q.is_multiple_of(8);
    types && aligned && cuda.device.capability.0 >= 8
}

const ATTENTION: &str = include_str!("../../../kernels/fast/attention.cu");

/// Tensor-core attention by head size and whether scores are capped: `HEAD` and `SOFTCAP` are constants of the kernel.
pub const ATTENTION_VARIANTS: &[(u32, Scores, Variant)] = &[
    variant("mma64", Scores::Plain, &[("HEAD", 64), ("SOFTCAP", 0)]),
    variant("mma80", Scores::Plain, &[("HEAD", 80), ("SOFTCAP", 0)]),
    variant("mma96", Scores::Plain, &[("HEAD", 96), ("SOFTCAP", 0)]),
    variant("mma128", Scores::Plain, &[("HEAD", 128), ("SOFTCAP", 0)]),
    variant("mma192", Scores::Plain, &[("HEAD", 192), ("SOFTCAP", 0)]),
    variant("mma256", Scores::Plain, &[("HEAD", 256), ("SOFTCAP", 0)]),
    variant("mma64_capped", Scores::Capped, &[("HEAD", 64), ("SOFTCAP", 1)]),
    variant("mma128_capped", Scores::Capped, &[("HEAD", 128), ("SOFTCAP", 1)]),
    variant("mma256_capped", Scores::Capped, &[("HEAD", 256), ("SOFTCAP", 1)]),
];

/// Whether attention scores go through a softcap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    Plain,
    Capped,
}

const fn variant(
    name: &'static str,
    scores: Scores,
    constants: &'static [(&'static str, u32)],
) -> (u32, Scores, Variant) {
    (constants[0].1, scores, Variant { name, text: ATTENTION, constants })
}

/// Wants sm_80, one 16-bit type, a positive scale (it takes the maximum before scaling), and rows and heads that start at
/// multiples of 16 bytes.
fn attention(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Option<Variant> {
    let p: Attention = bytemuck::pod_read_unaligned(launch.params());
    let aligned = pointers.iter().all(|p| p % 16 == 0) && [p.ld_q, p.ld_k, p.ld_v].iter().all(|ld| ld % 8 == 0);
    let scores = if p.softcap == 0.0 { Scores::Plain } else { Scores::Capped };
    let variant = ATTENTION_VARIANTS.iter().find(|(head, s, _)| *head == p.D && *s == scores).map(|(.., v)| *v);
    let fits = aligned && p.scale > 0.0 && cuda.device.capability.0 >= 8;
    variant.filter(|_| fits && one_half_type(launch).is_some())
}

/// The 16-bit type of all arguments that have a choice.
pub(super) fn one_half_type(launch: &Launch) -> Option<DType> {
    let spec = launch.op().spec();
    let mut types = spec.args.iter().zip(launch.args()).filter(|(arg, _)| arg.elem == crate::ops::Elem::Float);
    let first = types.next()?.1.as_ref()?.dtype();
    (first.size() == 2 && types.all(|(_, buf)| buf.is_some_and(|b| b.dtype() == first))).then_some(first)
}
