use super::*;
use luthier::dtype::DType::{Bf16, F32};
use luthier::ops::balance::{Balance, BalanceBackward};
use values::{Data, Values};

/// Tokens that count or do not.
pub fn masked(values: &mut Values) {
    let Some(Data::Float(mask)) = values.get_mut("mask") else { panic!("the mask is f32") };
    mask.iter_mut().enumerate().for_each(|(n, x)| *x = if n % 5 == 3 { 0.0 } else { 1.0 });
}

const SHAPES: [(u32, u32); 9] = [(1, 1), (1, 2), (3, 4), (7, 5), (65, 6), (63, 33), (257, 64), (9, 130), (1030, 16)];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (N, E) in SHAPES {
        cases.push(Case::new(Op::balance_forward, Balance { N, E }).with("masked", masked));
        // of one expert the gradient is 0, and what is left of it rounding
        let backward = Case::new(Op::balance_backward, BalanceBackward { N, E, scale: 0.25 }).with("masked", masked);
        cases.push(backward.mixed(Bf16, &[("dlogits", F32)]));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, E| {
        let backward = BalanceBackward { N, E, scale: 1.0 };
        Gradient::new(Op::balance_forward, Balance { N, E }, Op::balance_backward, backward)
    };
    vec![of(1, 1), of(3, 4), of(5, 7).with("masked", masked), of(2, 33)]
}
