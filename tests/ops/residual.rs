use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::residual::Residual;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, P) in [1, 2, 3, 63, 64, 65, 255, 257, 1021, 4096, 70_001].into_iter().enumerate() {
        let p = Residual { P, scale: if i % 2 == 0 { 1.0 } else { 0.22 } };
        cases.push(Case::new(Op::residual_forward, p).mixed(Bf16, &[("out", F32), ("a", F32)]));
        cases.push(Case::new(Op::residual_backward, p).mixed(F16, &[("dinp", F32)]).mixed(Bf16, &[("dout", F32)]));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |P, branch| {
        let p = Residual { P, scale: if branch == "db" { 0.22 } else { 1.0 } };
        Gradient::new(Op::residual_forward, p, Op::residual_backward, p).called(&[("dinp", branch)])
    };
    vec![of(1, "da"), of(1, "db"), of(17, "da"), of(17, "db")]
}
