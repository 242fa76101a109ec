use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::rmsnorm::{RmsNorm, RmsNormResidual};

pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1), (1, 2), (5, 23), (7, 64), (3, 257), (64, 255), (65, 126), (127, 128), (2, 4099), (3, 4098), (513, 66), (300, 2),
        (17, 8192), (5, 1288), (9, 4096), (2, 16384),
    ];
    let mut cases = Vec::new();
    for (N, C) in shapes {
        let p = RmsNorm { N, C, eps: 1e-5, shift: (C % 2) as f32 };
        cases.push(Case::new(Op::rmsnorm_forward, p).mixed(Bf16, &[("weight", F32)]).mixed(Bf16, &[("inp", F32), ("weight", F32)]));
        let sum = RmsNormResidual { N, C, eps: 1e-5, shift: (C % 2) as f32, scale: if N % 3 == 0 { 1.0 } else { 0.375 } };
        cases.push(Case::new(Op::rmsnorm_residual_forward, sum).mixed(Bf16, &[("weight", F32)]));
        let backward = Case::new(Op::rmsnorm_backward, p).mixed(F16, &[("weight", F32)]);
        cases.push(backward.mixed(F32, &[("dout", Bf16)]).mixed(Bf16, &[("dinp", F32), ("weight", F32)]));
        cases.push(Case::new(Op::rmsnorm_backward_weight, p).mixed(Bf16, &[("inp", F32)]));
    }
    // rows so small that eps decides
    let tiny = Case::new(Op::rmsnorm_forward, RmsNorm { N: 3, C: 66, eps: 1e-6, shift: 0.0 });
    cases.push(tiny.with("tiny", |values| {
        values.get_mut("inp").unwrap().floats_mut().iter_mut().for_each(|x| *x *= 1e-3);
    }));
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let mut gradients = Vec::new();
    for (N, C) in [(1, 2), (4, 7), (3, 32)] {
        let p = RmsNorm { N, C, eps: 1e-5, shift: (C % 2) as f32 };
        gradients.push(Gradient::new(Op::rmsnorm_forward, p, Op::rmsnorm_backward, p));
        gradients.push(Gradient::new(Op::rmsnorm_forward, p, Op::rmsnorm_backward_weight, p));
    }
    gradients
}
