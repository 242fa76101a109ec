use super::*;
use luthier::ops::sgd::{Sgd, sgd_step_momentum};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, P) in [1, 2, 255, 256, 257, 1021, 4100, 70_001].into_iter().enumerate() {
        let p = Sgd { P, lr: 0.1, decay: 0.01, momentum: 0.9, rest: 0.7, nesterov: i as u32 % 2 };
        cases.push(Case::new(Op::sgd_step, p));
        cases.push(Case::new(Op::sgd_step_momentum, p));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

/// m is 1, then 0.5 + 0.5·1; nesterov looks half a momentum further.
#[test]
fn momentum_gathers() {
    let p = Sgd { P: 1, lr: 1.0, decay: 0.0, momentum: 0.5, rest: 1.0, nesterov: 0 };
    let run = |nesterov: u32| {
        let (mut weight, mut m) = ([0.0f64], [0.0]);
        for _ in 0..2 {
            sgd_step_momentum(&mut weight, &mut m, &[2.0], &[0.5], &Sgd { nesterov, ..p });
        }
        (weight[0], m[0])
    };
    assert_eq!(run(0), (-2.5, 1.5));
    assert_eq!(run(1), (-(1.5 + 1.75), 1.5));
}
