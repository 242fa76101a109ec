use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::matmul::MatMul;

const OPS: [Op; 6] =
    [Op::matmul_nt, Op::matmul_nt_add, Op::matmul_nn, Op::matmul_nn_add, Op::matmul_tn, Op::matmul_tn_add];

/// Rows of a and b as the op lays them out, then each stride its row plus a pad.
fn params(op: Op, [I, J, Q]: [u32; 3], pads: [u32; 3], alpha: f32) -> MatMul {
    let a = if matches!(op, Op::matmul_tn | Op::matmul_tn_add) { I } else { Q };
    let b = if matches!(op, Op::matmul_nt | Op::matmul_nt_add) { Q } else { J };
    MatMul { I, J, Q, ld_out: J + pads[0], ld_a: a + pads[1], ld_b: b + pads[2], alpha }
}

const SHAPES: &[([u32; 3], [u32; 3], f32)] = &[
    ([1, 1, 1], [0, 0, 0], 1.0),
    ([1, 2, 4], [0, 0, 0], -2.0),
    ([2, 4, 2], [2, 4, 6], 1.0),
    ([7, 13, 5], [1, 2, 3], 0.5),
    ([63, 65, 17], [0, 0, 0], 1.0),
    ([64, 64, 16], [0, 0, 0], 1.0),
    ([66, 62, 34], [2, 2, 2], 0.25),
    ([127, 129, 33], [0, 0, 0], 1.0),
    ([130, 126, 66], [4, 2, 6], 1.0),
    ([128, 128, 128], [0, 0, 0], 1.0),
    ([256, 256, 64], [0, 0, 0], 1.0),
    ([256, 128, 256], [64, 64, 64], 1.0),
    ([1, 512, 256], [0, 0, 0], 1.0),
    ([3, 257, 255], [0, 0, 0], 1.0),
    // thin products of an adapter: few columns or rows and a long sum, or a short sum
    ([40, 8, 2048], [0, 0, 0], 1.0),
    ([8, 40, 2048], [0, 8, 0], 2.0),
    ([8, 320, 66], [0, 0, 0], 1.0),
    ([320, 258, 8], [0, 0, 0], 2.0),
    ([16, 16, 5000], [0, 0, 0], 1.0),
    // and so many rows or columns that they have kernels of their own
    ([544, 24, 520], [0, 8, 8], 0.5),
    ([48, 576, 600], [0, 0, 0], 1.0),
    ([544, 528, 40], [8, 0, 8], 2.0),
    // few rows: of many outputs, and up to 64 of few
    ([5, 640, 256], [2, 8, 8], 0.5),
    ([64, 48, 1152], [0, 0, 8], 1.0),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for op in OPS {
        for (shape, pads, alpha) in SHAPES {
            let case = Case::new(op, params(op, *shape, *pads, *alpha));
            let case = case.mixed(Bf16, &[("out", F32)]).mixed(F16, &[("out", F32)]);
            // inputs of two types are rare, and every combination is another kernel to compile
            let rare = [[2, 4, 2], [130, 126, 66]].contains(shape);
            cases.push(if rare { case.mixed(Bf16, &[("b", F32), ("out", F32)]).mixed(F32, &[("b", Bf16)]) } else { case });
        }
        // a vocabulary may be odd: rows end in half a word
        let odd = |I, J, Q| {
            let mut p = params(op, [I, J, Q], [0; 3], 1.0);
            [&mut p.ld_out, &mut p.ld_a, &mut p.ld_b].into_iter().for_each(|ld| *ld = ld.next_multiple_of(2) + 2);
            Case::new(op, p).odd_rows().mixed(Bf16, &[("out", F32)])
        };
        cases.extend([odd(5, 127, 16), odd(9, 64, 131), odd(33, 65, 67)]);
    }
    cases
}

/// nt against its own two gradients: da = alpha·dout·b is nn, db = alpha·doutᵀ·a is tn.
pub fn gradients() -> Vec<Gradient> {
    let mut gradients = Vec::new();
    for ([I, J, Q], pads) in [([1, 1, 1], [0; 3]), ([3, 5, 7], [0; 3]), ([4, 2, 9], [1, 2, 3])] {
        let forward = params(Op::matmul_nt, [I, J, Q], pads, 0.5);
        for nn in [Op::matmul_nn, Op::matmul_nn_add] {
            let gradient = Gradient::new(Op::matmul_nt, forward, nn, params(nn, [I, Q, J], pads, 0.5));
            gradients.push(gradient.called(&[("out", "da"), ("a", "dout")]));
        }
        for tn in [Op::matmul_tn, Op::matmul_tn_add] {
            let gradient = Gradient::new(Op::matmul_nt, forward, tn, params(tn, [J, Q, I], pads, 0.5));
            gradients.push(gradient.called(&[("out", "db"), ("a", "dout"), ("b", "a")]));
        }
    }
    gradients
}
