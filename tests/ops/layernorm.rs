use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::layernorm::LayerNorm;

/// (N, H, C)
const SHAPES: [(u32, u32, u32); 16] = [
    (1, 1, 2), (5, 1, 23), (7, 1, 64), (3, 1, 257), (64, 1, 255), (65, 1, 126), (127, 1, 128), (2, 1, 4099), (3, 1, 4098), (513, 1, 66),
    (300, 1, 2), (17, 1, 8192), (1, 3, 2), (9, 5, 6), (33, 4, 64), (3, 2, 1030),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, (N, H, C)) in SHAPES.into_iter().enumerate() {
        let p = LayerNorm { N, H, C, eps: 1e-5, bias: (i % 2) as u32 };
        let forward = Case::new(Op::layernorm_forward, p).mixed(Bf16, &[("weight", F32), ("bias", F32)]);
        cases.push(forward.mixed(Bf16, &[("inp", F32), ("weight", F32)]));
        // rows far from zero: the variance is that of what is left
        let far = Case::new(Op::layernorm_forward, LayerNorm { bias: 1 - p.bias, ..p });
        cases.extend((C > 2).then(|| far.with("far", |values| {
            values.get_mut("inp").unwrap().floats_mut().iter_mut().for_each(|x| *x = *x * 4.0 + 9.0);
        })));
        let backward = Case::new(Op::layernorm_backward, p).mixed(F16, &[("weight", F32)]);
        cases.push(backward.mixed(F32, &[("dout", Bf16)]).mixed(Bf16, &[("dinp", F32), ("weight", F32)]));
        cases.push(Case::new(Op::layernorm_backward_weight, p).mixed(Bf16, &[("inp", F32)]));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let mut gradients = Vec::new();
    for (N, H, C) in [(1, 1, 2), (4, 1, 7), (3, 1, 32), (4, 3, 6)] {
        let p = LayerNorm { N, H, C, eps: 1e-5, bias: N % 2 };
        gradients.push(Gradient::new(Op::layernorm_forward, p, Op::layernorm_backward, p));
        gradients.push(Gradient::new(Op::layernorm_forward, p, Op::layernorm_backward_weight, p));
    }
    gradients
}
