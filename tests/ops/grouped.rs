use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::grouped::Grouped;

const OPS: [Op; 5] = [Op::grouped_nt, Op::grouped_nt_add, Op::grouped_nn, Op::grouped_nn_add, Op::grouped_tn_add];

/// M, E, J, Q.
const SHAPES: &[([u32; 4], f32)] = &[
    ([1, 1, 1, 1], 1.0),
    ([1, 3, 2, 4], -2.0),
    ([7, 4, 6, 10], 1.0),
    ([5, 2, 13, 7], 0.5),
    ([64, 2, 64, 16], 1.0),
    ([65, 3, 63, 33], 1.0),
    ([129, 6, 66, 34], 0.25),
    ([96, 6, 80, 48], 1.0),
    ([200, 5, 130, 62], 1.0),
    ([40, 64, 8, 66], 1.0),
    ([300, 128, 34, 36], 1.0),
    ([256, 4, 128, 128], 1.0),
    ([700, 3, 72, 40], 1.0),
    // thin products of an adapter
    ([90, 5, 8, 130], 2.0),
    ([90, 5, 130, 8], 2.0),
    // beside the tensor cores' tiles: rows of whole 16 bytes, sides that end within a tile
    ([300, 5, 136, 72], 1.0),
    ([40, 3, 8, 24], 1.0),
    ([389, 3, 8, 264], 0.5),
    // long sums and full tiles
    ([512, 2, 256, 256], 1.0),
    ([70, 2, 68, 2048], 1.0),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for op in OPS {
        for ([M, E, J, Q], alpha) in SHAPES {
            let case = Case::new(op, Grouped { M: *M, E: *E, J: *J, Q: *Q, alpha: *alpha });
            cases.push(case.mixed(Bf16, &[("out", F32)]).mixed(F16, &[("out", F32)]));
        }
    }
    cases
}

/// nt against its own two gradients: da is nn, db is tn.
pub fn gradients() -> Vec<Gradient> {
    let mut gradients = Vec::new();
    for [M, E, J, Q] in [[1, 1, 1, 1], [6, 3, 2, 5], [9, 4, 3, 2]] {
        let forward = Grouped { M, E, J, Q, alpha: 0.5 };
        for nn in [Op::grouped_nn, Op::grouped_nn_add] {
            let gradient = Gradient::new(Op::grouped_nt, forward, nn, Grouped { J: Q, Q: J, ..forward });
            gradients.push(gradient.called(&[("out", "da"), ("a", "dout")]));
        }
        let gradient = Gradient::new(Op::grouped_nt, forward, Op::grouped_tn_add, forward);
        gradients.push(gradient.called(&[("out", "db"), ("a", "dout"), ("b", "a")]));
    }
    gradients
}
