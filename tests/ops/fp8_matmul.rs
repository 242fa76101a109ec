use super::*;
use luthier::dtype::DType::{Bf16, F32};
use luthier::ops::fp8_matmul::Fp8MatMul;
use values::{Data, Values};

/// Codes of values up to 8 or so, as rows have them: none of NaN.
fn numbers(values: &mut Values) {
    for name in ["a", "b"] {
        let Some(Data::U8(codes)) = values.get_mut(name) else { panic!("codes are bytes") };
        codes.iter_mut().for_each(|code| *code = (*code & 0x80) | ((*code & 0x7f) % 0x50));
    }
    for name in ["a_scales", "b_scales"] {
        values.get_mut(name).expect("scales").floats_mut().iter_mut().for_each(|x| *x = x.abs() + 0.01);
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [
        (1, 2, 1), (1, 16, 16), (2, 4, 2), (7, 14, 5), (16, 16, 16), (63, 66, 17), (64, 64, 16), (66, 62, 34), (128, 130, 66),
        (5, 48, 80), (130, 198, 96), (70, 34, 1040), (33, 144, 128), (256, 256, 64), (96, 32, 2048),
    ];
    for (I, J, Q) in sizes {
        for op in [Op::fp8_matmul, Op::fp8_matmul_add] {
            let case = Case::new(op, Fp8MatMul { I, J, Q }).with("numbers", numbers);
            cases.push(if J % 16 == 0 { case.mixed(Bf16, &[("out", F32)]) } else { case });
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
