use super::*;
use luthier::ops::thin::{Thin, ThinDouble};
use values::Data;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // rows of inp, outputs, inner length, rows of the weight in all, the first of them
    let sizes = [
        (1, 1, 1, 1, 0), (1, 2, 64, 5, 3), (3, 66, 130, 70, 2), (8, 16, 128, 16, 0), (9, 34, 256, 40, 6), (1, 100, 1152, 100, 0),
        (17, 18, 384, 50, 32), (33, 20, 128, 20, 0), (64, 48, 256, 48, 0), (5, 7, 96, 9, 1), (2, 30, 1030, 31, 1),
    ];
    for (N, O, C, all, first) in sizes {
        let p = Thin { N, O, C, P: all * C, first };
        cases.push(Case::new(Op::thin_nf4, p));
        cases.push(Case::new(Op::thin_int8, p).with("scales", |values| {
            let Some(Data::Float(scb)) = values.get_mut("scb") else { panic!("scb is f32") };
            scb.iter_mut().for_each(|x| *x = x.abs() + 0.01);
        }));
        cases.push(Case::new(Op::thin_nf4_double, ThinDouble { N, O, C, P: all * C, first, offset: 0.25 }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
