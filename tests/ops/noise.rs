use super::*;
use luthier::ops::noise::Noise;

pub fn cases() -> Vec<Case> {
    let shapes = [(1, 1), (1, 2), (2, 1), (3, 5), (7, 64), (65, 66), (5, 511), (4, 1026), (257, 34), (2, 4098)];
    shapes.map(|(N, C)| Case::new(Op::noise_forward, Noise { N, C, seed: 0x9e37_79b9, stream: N })).into()
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
