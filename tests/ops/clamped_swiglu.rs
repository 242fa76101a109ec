use super::*;
use luthier::ops::clamped_swiglu::ClampedSwiGlu;
use values::{Data, Values};

/// Values on both sides of the limits, and gates far below, where nothing is clamped.
fn wide(values: &mut Values) {
    let Some(Data::Float(x)) = values.get_mut("gate_up") else { panic!("gate_up is float") };
    x.iter_mut().enumerate().for_each(|(i, x)| *x *= if i % 5 == 0 { 30.0 } else { 9.0 });
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (M, F) in [(1, 1), (1, 2), (7, 13), (64, 52), (65, 80), (33, 255), (5, 514), (12, 2050), (130, 768), (3, 4098)] {
        for (alpha, limit) in [(1.702, 7.0), (1.0, 0.5)] {
            let p = ClampedSwiGlu { M, F, alpha, limit };
            cases.extend([Op::clamped_swiglu_forward, Op::clamped_swiglu_backward].map(|op| Case::new(op, p)));
        }
        let p = ClampedSwiGlu { M, F, alpha: 1.702, limit: 7.0 };
        let both = [Op::clamped_swiglu_forward, Op::clamped_swiglu_backward];
        cases.extend(both.map(|op| Case::new(op, p).with("beyond the limits", wide)));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |M, F, limit| {
        let p = ClampedSwiGlu { M, F, alpha: 1.702, limit };
        Gradient::new(Op::clamped_swiglu_forward, p, Op::clamped_swiglu_backward, p)
    };
    vec![of(1, 1, 7.0), of(5, 7, 7.0), of(8, 4, 0.5)]
}

/// At the limits themselves the gradient passes, as torch.clamp's does.
#[test]
fn the_limits_belong_to_the_inside() {
    let p = ClampedSwiGlu { M: 1, F: 3, alpha: 1.0, limit: 2.0 };
    let (mut dout, mut gate_up, mut dweights) = (vec![1.0f64; 3], vec![2.0, -2.0, 2.5, 2.5, -9.0, -2.5], vec![0.0]);
    luthier::ops::clamped_swiglu::clamped_swiglu_backward(&mut dout, &mut gate_up, &mut dweights, &[1.0], &[0], &p);
    let moved: Vec<bool> = gate_up.iter().map(|x| *x != 0.0).collect();
    assert_eq!(moved, [true, true, false, false, true, false], "{gate_up:?}");
}
