//! What runs faster than an op's plain kernel: products by cuBLASLt, attention by cuDNN, attention and products by group on
//! tensor cores, norms of long rows in registers.
use super::source::Variant;
use super::{Cuda, cudnn};
use crate::backend::Launch;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::attention::Attention;
use crate::ops::grouped::Grouped;

/// Queues the op if it has a fast path here; `false`: run the plain kernel.
pub(super) fn run(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Result<bool> {
    match launch.op() {
        Op::matmul_nt | Op::matmul_nt_add | Op::matmul_nn | Op::matmul_nn_add | Op::matmul_tn | Op::matmul_tn_add => {
            let &[out, a, b] = pointers else { return Err(Error::Bug("a product has three buffers".into())) };
            let dtypes = [0, 1, 2].map(|i| launch.args()[i].map_or(DType::F32, |buf| buf.dtype()));
            let p = bytemuck::pod_read_unaligned(launch.params());
            cuda.blas
                .borrow_mut()
                .as_mut()
                .map_or(Ok(false), |blas| blas.run(&cuda.device, launch.op(), dtypes, [out, a, b], &p))
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
            let fits = thin_fits(cuda, launch, pointers);
            if fits {
                cuda.run_kernel(launch, Some(THIN), pointers)?;
            }
            Ok(fits)
        }
        Op::rmsnorm_forward | Op::rmsnorm_backward => match long_rows(launch, pointers) {
            Some(variant) => cuda.run_kernel(launch, Some(variant), pointers).map(|()| true),
            None => Ok(false),
        },
        _ => Ok(false),
    }
}

const ROWS: &str = include_str!("../../../kernels/fast/rmsnorm.cu");

/// RMSNorm of long rows in registers, by the longest: `THREADS` of a row and 16-byte loads of a thread are constants of the kernel.
pub const LONG_ROWS: &[(u32, Variant)] = &[
    (2048, Variant { name: "warp8", text: ROWS, constants: &[("THREADS", 32), ("KEEP", 8)] }),
    (4096, Variant { name: "warp16", text: ROWS, constants: &[("THREADS", 32), ("KEEP", 16)] }),
    (8192, Variant { name: "block8", text: ROWS, constants: &[("THREADS", 128), ("KEEP", 8)] }),
    (16384, Variant { name: "block16", text: ROWS, constants: &[("THREADS", 128), ("KEEP", 16)] }),
];
/// Shorter rows fill no warp.
const SHORT: u32 = 1024;
/// The backward holds two rows, of which longer ones leave a multiprocessor too few warps.
const LONGEST_BACKWARD: u32 = 2048;

/// Wants one 16-bit type, and rows that start at multiples of 16 bytes.
fn long_rows(launch: &Launch, pointers: &[u64]) -> Option<Variant> {
    let C = launch.op().extents(launch.params()).0[1] as u32;
    let most = if launch.op() == Op::rmsnorm_backward { LONGEST_BACKWARD } else { u32::MAX };
    let fits = C > SHORT && C <= most && C.is_multiple_of(8) && pointers.iter().all(|p| p % 16 == 0);
    one_half_type(launch).filter(|_| fits)?;
    LONG_ROWS.iter().find(|(longest, _)| C <= *longest).map(|(_, variant)| *variant)
}

/// Whether memory that is nobody's argument is written, which others of this kind write, too.
pub(super) fn uses_workspace(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> bool {
    match launch.op() {
        Op::matmul_nt | Op::matmul_nt_add | Op::matmul_nn | Op::matmul_nn_add | Op::matmul_tn | Op::matmul_tn_add => {
            let dtypes = [0, 1, 2].map(|i| launch.args()[i].map_or(DType::F32, |buf| buf.dtype()));
            let (p, at) = (bytemuck::pod_read_unaligned(launch.params()), [0, 1, 2].map(|i| pointers[i]));
            cuda.blas.borrow().as_ref().is_some_and(|blas| blas.uses_workspace(launch.op(), dtypes, at, &p))
        }
        Op::attention_forward | Op::attention_backward => true,
        _ => false,
    }
}

/// Products of few rows with packed weights on tensor cores.
pub const THIN: Variant = Variant { name: "mma", text: include_str!("../../../kernels/fast/thin.cu"), constants: &[] };

/// Wants sm_80, a 16-bit type, up to 64 rows of whole steps, and inp and codes that start at multiples of 16 bytes.
fn thin_fits(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> bool {
    let [N, _, C] = [0, 1, 2].map(|i| u32::from_ne_bytes([0, 1, 2, 3].map(|k| launch.params()[4 * i + k])));
    let inp = launch.args()[1].map_or(DType::F32, |buf| buf.dtype());
    let aligned = pointers[1..3].iter().all(|p| p % 16 == 0);
    inp.size() == 2 && N <= 64 && C.is_multiple_of(128) && aligned && cuda.device.capability.0 >= 8
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
