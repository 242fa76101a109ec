use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::bias::{Bias, BiasBackward};

pub fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 1), (1, 2, 2), (5, 7, 8), (3, 64, 64), (2, 66, 130), (257, 30, 34), (65, 257, 259), (600, 128, 128), (4, 4098, 4100)];
    let mut cases = Vec::new();
    for (N, O, ld) in shapes {
        let forward = Case::new(Op::bias_forward, Bias { N, O, ld_out: ld });
        cases.push(forward.mixed(Bf16, &[("bias", F32)]).mixed(F32, &[("bias", F16)]));
        cases.push(Case::new(Op::bias_backward, BiasBackward { N, O, ld_dout: ld }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, O, ld_out, ld_dout| {
        Gradient::new(Op::bias_forward, Bias { N, O, ld_out }, Op::bias_backward, BiasBackward { N, O, ld_dout })
    };
    vec![of(1, 1, 1, 1), of(5, 7, 8, 7), of(3, 4, 4, 9)]
}
