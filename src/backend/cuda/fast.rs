//! What runs faster than an op's plain kernel: products by cuBLASLt, attention and products by group on tensor cores.
use super::Cuda;
use super::source::Variant;
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
        Op::attention_forward | Op::attention_backward => match attention(cuda, launch, pointers) {
            Some(variant) => cuda.run_kernel(launch, Some(variant), pointers).map(|()| true),
            None => Ok(false),
        },
        Op::grouped_nt | Op::grouped_nt_add | Op::grouped_nn | Op::grouped_nn_add | Op::grouped_tn_add => {
            let fits = grouped_fits(cuda, launch, pointers);
            if fits {
                cuda.run_kernel(launch, Some(GROUPED), pointers)?;
            }
            Ok(fits)
        }
        _ => Ok(false),
    }
}

/// Products by group on tensor cores.
pub const GROUPED: Variant =
    Variant { name: "mma", text: include_str!("../../../kernels/fast/grouped.cu"), constants: &[] };

/// Wants sm_80, one 16-bit type read, the same or f32 written, and rows that start at multiples of 16 bytes.
fn grouped_fits(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> bool {
    let p: Grouped = bytemuck::pod_read_unaligned(launch.params());
    let &[Some(out), Some(a), Some(b), _] = launch.args() else { return false };
    let types = a.dtype().size() == 2 && a.dtype() == b.dtype() && [a.dtype(), DType::F32].contains(&out.dtype());
    let aligned = pointers[..3].iter().all(|p| p % 16 == 0) && p.J % 8 == 0 && p.Q % 8 == 0;
    types && aligned && cuda.device.capability.0 >= 8
}

const ATTENTION: &str = include_str!("../../../kernels/fast/attention.cu");

/// Tensor-core attention by head size: `HEAD` is a constant of the kernel.
pub const ATTENTION_VARIANTS: &[(u32, Variant)] = &[
    (64, Variant { name: "mma64", text: ATTENTION, constants: &[("HEAD", 64)] }),
    (80, Variant { name: "mma80", text: ATTENTION, constants: &[("HEAD", 80)] }),
    (96, Variant { name: "mma96", text: ATTENTION, constants: &[("HEAD", 96)] }),
    (128, Variant { name: "mma128", text: ATTENTION, constants: &[("HEAD", 128)] }),
    (192, Variant { name: "mma192", text: ATTENTION, constants: &[("HEAD", 192)] }),
    (256, Variant { name: "mma256", text: ATTENTION, constants: &[("HEAD", 256)] }),
];

/// Wants sm_80, one 16-bit type, a positive scale (it takes the maximum before scaling), no softcap, and rows and heads that start at
/// multiples of 16 bytes.
fn attention(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Option<Variant> {
    let p: Attention = bytemuck::pod_read_unaligned(launch.params());
    let spec = launch.op().spec();
    let mut types = spec.args.iter().zip(launch.args()).filter(|(arg, _)| arg.elem == crate::ops::Elem::Float);
    let first = types.next()?.1.as_ref()?.dtype();
    let one_type = first.size() == 2 && types.all(|(_, buf)| buf.is_some_and(|b| b.dtype() == first));
    let aligned = pointers.iter().all(|p| p % 16 == 0) && [p.ld_q, p.ld_k, p.ld_v].iter().all(|ld| ld % 8 == 0);
    let variant = ATTENTION_VARIANTS.iter().find(|(head, _)| *head == p.D).map(|(_, v)| *v);
    variant.filter(|_| one_type && aligned && p.scale > 0.0 && p.softcap == 0.0 && cuda.device.capability.0 >= 8)
}
