use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::swiglu::SwiGlu;
use values::Values;

/// Gates far to both sides: silu saturates.
fn wide(values: &mut Values) {
    values.get_mut("gate").unwrap().floats_mut().iter_mut().for_each(|x| *x *= 12.0);
}

pub fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 0, 0), (1, 2, 0, 0), (7, 13, 0, 0), (2, 129, 3, 1), (5, 130, 2, 6), (64, 256, 256, 256), (3, 4098, 0, 0), (257, 6, 4, 0)];
    let mut cases = Vec::new();
    for (N, F, gate, up) in shapes {
        let p = SwiGlu { N, F, ld_gate: F + gate, ld_up: F + up };
        cases.push(Case::new(Op::swiglu_forward, p).mixed(Bf16, &[("out", F32)]).with("wide", wide));
        cases.push(Case::new(Op::swiglu_backward, p).mixed(F16, &[("dout", F32)]).with("wide", wide));
    }
    // gate and up packed side by side, as one product leaves them
    cases.push(Case::new(Op::swiglu_forward, SwiGlu { N: 9, F: 64, ld_gate: 128, ld_up: 128 }));
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, F, ld_gate, ld_up| {
        let p = SwiGlu { N, F, ld_gate, ld_up };
        Gradient::new(Op::swiglu_forward, p, Op::swiglu_backward, p)
    };
    vec![of(1, 1, 1, 1), of(4, 13, 13, 14), of(3, 5, 7, 5).with("wide", wide)]
}
