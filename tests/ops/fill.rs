use super::*;
use luthier::ops::fill::Fill;

pub fn cases() -> Vec<Case> {
    let of = |(P, value)| Case::new(Op::fill_forward, Fill { P, value });
    [(1, 0.0), (2, 1.0), (3, -0.3), (64, 1e-3), (257, 7.0), (70_001, 0.1)].map(of).into()
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
