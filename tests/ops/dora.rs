use super::*;
use crate::values::Values;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::dora::{Dora, DoraNorm};

/// A square norm is no sum of noise: wa∘b is positive, and gram an outer product.
fn possible(values: &mut Values) {
    let b = values["b"].floats().to_vec();
    let wa = values.get_mut("wa").unwrap().floats_mut();
    wa.iter_mut().zip(b).for_each(|(wa, b)| *wa = wa.abs().copysign(b));
    let gram = values.get_mut("gram").unwrap().floats_mut();
    let R = gram.len().isqrt();
    let v = gram[..R].to_vec();
    (0..R * R).for_each(|i| gram[i] = v[i / R] * v[i % R]);
}

/// As a sum of squares is.
fn positive_norm(values: &mut Values) {
    values.get_mut("norm").unwrap().floats_mut().iter_mut().for_each(|x| *x = x.abs() + 0.1);
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (O, C, R) in [(1, 1, 1), (3, 2, 2), (5, 23, 8), (67, 64, 8), (64, 257, 16), (3, 4098, 24), (34, 514, 136), (2, 8194, 8)] {
        let norm = Case::new(Op::dora_norm, DoraNorm { O, C, R, scale: 0.5 }).with("possible", possible);
        cases.push(norm.mixed(Bf16, &[("wa", F32), ("gram", F32)]).mixed(F32, &[("b", F16)]));
    }
    for (N, O) in [(1, 1), (1, 2), (5, 7), (3, 64), (2, 130), (257, 34), (65, 257), (600, 128), (4, 4098)] {
        let p = Dora { N, O };
        cases.push(Case::new(Op::dora_forward, p).with("positive", positive_norm));
        let backward = Case::new(Op::dora_backward, p).with("positive", positive_norm);
        cases.push(backward.mixed(F32, &[("dout", Bf16)]).mixed(Bf16, &[("dinp", F32)]));
        let weight = Case::new(Op::dora_backward_weight, p).with("positive", positive_norm);
        cases.push(weight.mixed(F16, &[("inp", F32)]));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, O| {
        let p = Dora { N, O };
        let inputs = Gradient::new(Op::dora_forward, p, Op::dora_backward, p).called(&[("dinp", "dout")]);
        let weights = Gradient::new(Op::dora_forward, p, Op::dora_backward_weight, p).found("inp", "out");
        [inputs.with("positive", positive_norm), weights.with("positive", positive_norm)]
    };
    [of(1, 1), of(5, 7), of(3, 4)].into_iter().flatten().collect()
}
