use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::dropout::Dropout;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for P in [1, 2, 3, 63, 64, 65, 511, 513, 1021, 4096, 70_001] {
        // of one element, a kept one: nothing can be said about an error in units of 0
        let p = Dropout::new(P, if P == 1 { 0.0 } else { 0.3 }, 0x9e37_79b9, P as u32);
        cases.push(Case::new(Op::dropout_forward, p).mixed(Bf16, &[("out", F32)]));
        cases.push(Case::new(Op::dropout_backward, p).mixed(F16, &[("dinp", F32)]).mixed(Bf16, &[("dout", F32)]));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |P, rate| {
        let p = Dropout::new(P, rate, 1, 2);
        Gradient::new(Op::dropout_forward, p, Op::dropout_backward, p)
    };
    vec![of(1, 0.0), of(17, 0.5)]
}
