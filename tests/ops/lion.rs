use super::*;
use luthier::ops::adamw::Chance;
use luthier::ops::lion::{Lion, lion_step};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for P in [1, 2, 255, 256, 257, 1021, 4100, 70_001] {
        let p = Lion::new(P, 1e-3, (0.9, 0.99), 0.1);
        for op in [Op::lion_step, Op::lion_step_8bit] {
            cases.push(Case::new(op, p).held_apart());
            let p = p.by_chance(Chance { seed: 7, stream: 1, first: 8192 });
            cases.push(Case::new(op, p).rounded_by_chance());
        }
        cases.push(Case::new(Op::lion_step_8bit, Lion { decay: 0.0, ..p }).with("from zero", |values| {
            let len = values["m"].bytes().len();
            values.insert("m", values::Data::U8(vec![0; len]));
            values.get_mut("absmax").unwrap().floats_mut().fill(0.0);
            // a gradient may be zero for a whole block: then nothing moves
            values.get_mut("grad").unwrap().floats_mut().iter_mut().take(256).for_each(|g| *g = 0.0);
        }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

/// Whatever the gradient's size; not at all without one.
#[test]
fn every_weight_moves_by_lr() {
    let (mut weight, mut m) = ([1.0f64; 3], [0.0; 3]);
    lion_step(&mut weight, &mut m, &[4.0, -2e-3, 0.0], &[0.5], &Lion::new(3, 0.25, (0.5, 0.75), 0.0));
    assert_eq!((weight, m), ([0.75, 1.25, 1.0], [0.5, -2.5e-4, 0.0]));
}
