use super::*;
use luthier::ops::adamw::{AdamW, Chance, adamw_step};

/// Without decay and eps, as if before the first step.
fn first() -> AdamW {
    AdamW::new(3, 1, 0.1, (0.9, 0.999), 0.0, 0.0)
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for P in [1, 2, 255, 256, 257, 1021, 4100, 70_001] {
        let p = AdamW::new(P, 3, 1e-3, (0.9, 0.999), 1e-8, 0.01);
        for op in [Op::adamw_step, Op::adamw_step_8bit] {
            cases.push(Case::new(op, p).held_apart());
            let p = p.by_chance(Chance { seed: 7, stream: 1, first: 8192 });
            cases.push(Case::new(op, p).rounded_by_chance());
        }
        cases.push(Case::new(Op::adamw_step_8bit, AdamW { eps: 1e-6, decay: 0.0, ..p }).with("from zero", |values| {
            for (codes, absmax, zero) in [("m", "absmax1", 127), ("v", "absmax2", 0)] {
                let len = values[codes].bytes().len();
                values.insert(codes, values::Data::U8(vec![zero; len]));
                values.get_mut(absmax).unwrap().floats_mut().fill(0.0);
            }
            // a gradient may be zero for a whole block
            values.get_mut("grad").unwrap().floats_mut().iter_mut().take(256).for_each(|g| *g = 0.0);
        }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

/// From zero moments m̂/√v̂ = sign(grad), whatever the gradient's size.
#[test]
fn the_first_step_moves_each_weight_by_lr() {
    let (mut weight, mut m, mut v) = ([1.0f64; 3], [0.0; 3], [0.0; 3]);
    adamw_step(&mut weight, &mut m, &mut v, &[4.0, -2e-3, 100.0], &[0.5], &first());
    let err = limits::nmse(&weight, &[0.9, 1.1, 0.9]);
    assert!(err <= 1e-9, "{weight:?}");
}
