use super::*;
use luthier::ops::rows::Rows;

pub fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 1), (1, 5, 2), (7, 11, 13), (65, 10, 34), (257, 127, 210), (3, 50, 4098), (130, 300, 1024), (5, 9, 18)];
    shapes.map(|(N, V, C)| Case::new(Op::rows_gather, Rows { N, V, C })).into()
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
