use super::activation::ACTS;
use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::activation::GELU;
use luthier::ops::swiglu::SwiGlu;
use values::Values;

fn stretch(values: &mut Values, factor: f64) {
    values.get_mut("gate").unwrap().floats_mut().iter_mut().for_each(|x| *x *= factor);
}

/// Gates far to both sides, where the activation saturates; gelu does so earlier, and beyond that the rounding of its
/// exponent shows in values near 0.
fn wide(act: u32, cubic: f32) -> fn(&mut Values) {
    if cubic > 0.0 || act == GELU { |values| stretch(values, 2.0) } else { |values| stretch(values, 12.0) }
}

pub fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 0, 0), (1, 2, 0, 0), (7, 13, 0, 0), (2, 129, 3, 1), (5, 130, 2, 6), (64, 256, 256, 256), (3, 4098, 0, 0), (257, 6, 4, 0)];
    let mut cases = Vec::new();
    for (N, F, gate, up) in shapes {
        for (act, slope, cubic) in ACTS {
            let p = SwiGlu { N, F, ld_gate: F + gate, ld_up: F + up, act, slope, cubic };
            cases.push(Case::new(Op::swiglu_forward, p).mixed(Bf16, &[("out", F32)]).with("wide", wide(act, cubic)));
            cases.push(Case::new(Op::swiglu_backward, p).mixed(F16, &[("dout", F32)]).with("wide", wide(act, cubic)));
        }
    }
    // gate and up packed side by side, as one product leaves them
    cases.push(Case::new(Op::swiglu_forward, SwiGlu { N: 9, F: 64, ld_gate: 128, ld_up: 128, act: 0, slope: 1.0, cubic: 0.0 }));
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |(act, slope, cubic), N, F, ld_gate, ld_up| {
        let p = SwiGlu { N, F, ld_gate, ld_up, act, slope, cubic };
        Gradient::new(Op::swiglu_forward, p, Op::swiglu_backward, p)
    };
    ACTS.into_iter().flat_map(|act| [of(act, 1, 1, 1, 1), of(act, 4, 13, 13, 14), of(act, 3, 5, 7, 5).with("wide", wide(act.0, act.2))]).collect()
}
