use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::low_rank::LowRank;
use luthier::ops::matmul::MatMul;

pub fn cases() -> Vec<Case> {
    // the last ones are large enough for one pass over dout, in both kernels, beside other adapters
    let sizes = [
        ([1, 1, 1], [0, 0]), ([2, 4, 2], [2, 4]), ([5, 7, 3], [1, 2]), ([65, 34, 8], [0, 8]), ([130, 126, 16], [16, 0]),
        ([3, 514, 24], [0, 0]), ([257, 40, 64], [0, 0]), ([257, 1032, 16], [0, 32]), ([34, 8200, 8], [40, 0]), ([1040, 264, 16], [8, 8]),
    ];
    let case = |(sizes, pads): &([u32; 3], [u32; 2])| {
        let [N, O, R] = *sizes;
        let case = Case::new(Op::low_rank_backward, LowRank { N, O, R, ld_dt: R + pads[0], ld_t: R + pads[1], scale: 0.5 });
        case.mixed(Bf16, &[("db", F32)]).mixed(F16, &[("db", F32)])
    };
    sizes.iter().map(case).collect()
}

/// Those of t·bᵀ.
pub fn gradients() -> Vec<Gradient> {
    let of = |[N, O, R]: [u32; 3], [pad_dt, pad_t]: [u32; 2]| {
        let forward = MatMul { I: N, J: O, Q: R, ld_out: O, ld_a: R + pad_t, ld_b: R, alpha: 1.0 };
        let backward = LowRank { N, O, R, ld_dt: R + pad_dt, ld_t: R + pad_t, scale: 1.0 };
        Gradient::new(Op::matmul_nt, forward, Op::low_rank_backward, backward).called(&[("dt", "da"), ("t", "a")])
    };
    vec![of([1, 1, 1], [0, 0]), of([3, 5, 7], [0, 0]), of([4, 6, 2], [1, 3])]
}
