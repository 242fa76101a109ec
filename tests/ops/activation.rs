use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::activation::{Activation, GELU, RELU, RELU2, SIGMOID};
use values::Values;

/// (act, slope, cubic): silu, gelu by tanh, quick gelu, gelu, relu, relu².
pub const ACTS: [(u32, f32, f32); 6] =
    [(SIGMOID, 1.0, 0.0), (SIGMOID, 1.595_769, 0.071_354_8), (SIGMOID, 1.702, 0.0), (GELU, 0.0, 0.0), (RELU, 0.0, 0.0), (RELU2, 0.0, 0.0)];

fn stretch(values: &mut Values, factor: f64) {
    values.get_mut("inp").unwrap().floats_mut().iter_mut().for_each(|x| *x *= factor);
}

/// Far to both sides, where the activation saturates; gelu does so earlier, and the rounding of its exponent shows beyond that.
fn wide(act: u32, cubic: f32) -> fn(&mut Values) {
    if cubic > 0.0 || act == GELU { |values| stretch(values, 2.0) } else { |values| stretch(values, 12.0) }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (N, F) in [(1, 1), (1, 2), (7, 13), (2, 129), (5, 130), (64, 256), (3, 4098), (257, 6)] {
        for (act, slope, cubic) in ACTS {
            let p = Activation { N, F, act, slope, cubic };
            cases.push(Case::new(Op::activation_forward, p).mixed(Bf16, &[("out", F32)]));
            let backward = Case::new(Op::activation_backward, p).mixed(F16, &[("dout", F32)]);
            // of a few values, all may be where f16 has few digits
            if N * F > 8 {
                cases.push(Case::new(Op::activation_forward, p).with("wide", wide(act, cubic)));
                cases.push(backward.with("wide", wide(act, cubic)));
            } else {
                cases.push(backward);
            }
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |(act, slope, cubic), N, F| {
        let p = Activation { N, F, act, slope, cubic };
        Gradient::new(Op::activation_forward, p, Op::activation_backward, p)
    };
    ACTS.into_iter().flat_map(|act| [of(act, 1, 1), of(act, 4, 13), of(act, 3, 6).with("wide", wide(act.0, act.2))]).collect()
}
