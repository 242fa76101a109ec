use super::*;
use luthier::ops::routed_swiglu::RoutedSwiGlu;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (M, F) in [(1, 1), (1, 2), (7, 13), (64, 52), (65, 80), (33, 255), (5, 514), (12, 2050), (130, 768), (3, 4098)] {
        let p = RoutedSwiGlu { M, F };
        cases.extend([Case::new(Op::routed_swiglu_forward, p), Case::new(Op::routed_swiglu_backward, p)]);
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |M, F| {
        let p = RoutedSwiGlu { M, F };
        Gradient::new(Op::routed_swiglu_forward, p, Op::routed_swiglu_backward, p)
    };
    vec![of(1, 1), of(5, 7), of(8, 4)]
}
