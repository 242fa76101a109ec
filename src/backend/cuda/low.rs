//! Adapters' thin products on tensor cores, where cuBLASLt's tiles are mostly empty: few columns, a short inner length, or the
//! gradient of something thin.
use super::Cuda;
use super::source::Variant;
use crate::backend::Launch;
use crate::dtype::DType;
use crate::ops::Op;
use crate::ops::matmul::MatMul;

macro_rules! text {
    ($file:literal) => {
        concat!(include_str!("../../../kernels/shared/tensor.cuh"), include_str!($file))
    };
}

/// Few columns.
pub const NARROW: Variant = Variant { name: "narrow", text: text!("../../../kernels/fast/narrow.cu"), constants: &[] };
/// A short inner length.
pub const WIDEN: Variant = Variant { name: "widen", text: text!("../../../kernels/fast/widen.cu"), constants: &[] };
/// Few rows or few columns of a gradient.
pub const GRADIENT: Variant =
    Variant { name: "gradient", text: text!("../../../kernels/fast/gradient.cu"), constants: &[] };

/// The most that is thin.
const THIN: u32 = 64;
/// The least that is long.
const LONG: u32 = 512;

/// The kernel for a product, if it is thin. Wants sm_80, one 16-bit type read, the same or f32 written, and rows that start at
/// multiples of 16 bytes.
pub(super) fn variant(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Option<Variant> {
    let p: MatMul = bytemuck::pod_read_unaligned(launch.params());
    let &[Some(out), Some(a), Some(b)] = launch.args() else { return None };
    let types = a.dtype().size() == 2 && a.dtype() == b.dtype() && [a.dtype(), DType::F32].contains(&out.dtype());
    let aligned = pointers[1..].iter().all(|p| p % 16 == 0) && p.ld_a % 8 == 0 && p.ld_b % 8 == 0;
    if !types || !aligned || cuda.device.capability.0 < 8 {
        return None;
    }
    let whole_out = pointers[0] % 16 == 0 && p.ld_out % 8 == 0;
    match launch.op() {
        Op::matmul_tn_add => {
            let (thin, wide) = (p.I.min(p.J), p.I.max(p.J));
            let fits = p.I % 8 == 0 && p.J % 8 == 0 && thin <= THIN && wide >= LONG && p.Q >= LONG;
            fits.then_some(GRADIENT)
        }
        Op::matmul_tn => None,
        _ if p.Q % 8 != 0 || p.I < LONG => None,
        // chunks of b are of its columns in nn
        op if p.J <= THIN && p.Q >= LONG => {
            let nt = matches!(op, Op::matmul_nt | Op::matmul_nt_add);
            (nt || p.J % 8 == 0).then_some(NARROW)
        }
        _ if p.Q <= THIN && p.J >= LONG => (p.J % 8 == 0 && whole_out).then_some(WIDEN),
        _ => None,
    }
}
