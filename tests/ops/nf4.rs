use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::nf4::{Nf4, Nf4Double};
use values::{Data, Values};

/// A block of zeros, one of tiny values, an outlier, and the levels and midpoints themselves.
fn hard(values: &mut Values) {
    let Some(Data::Float(x)) = values.get_mut("inp") else { panic!("inp is float") };
    for (i, x) in x.iter_mut().enumerate() {
        match i / 64 {
            1 => *x = 0.0,
            2 => *x *= 1e-3,
            3 if i % 64 == 5 => *x = 40.0,
            4 => *x = luthier::ops::nf4::LEVELS[i % 16] as f64,
            5 => *x = if i % 64 == 0 { 1.0 } else { luthier::ops::nf4::MIDPOINTS[i % 15] as f64 },
            _ => {}
        }
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for P in [1, 2, 7, 63, 64, 65, 128, 1021, 4096, 16_385, 70_001] {
        cases.push(Case::new(Op::nf4_quantize, Nf4 { P }).with("hard", hard));
        cases.push(Case::new(Op::nf4_dequantize, Nf4 { P }));
        cases.push(Case::new(Op::nf4_dequantize_double, Nf4Double { P, offset: 0.25 }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

#[test]
fn a_level_in_a_block_of_its_own_scale_comes_back_exactly() {
    let p = Nf4 { P: 128 };
    for absmax in [1.0f64, 0.75, 3.0] {
        let inp: Vec<f64> = (0..128).map(|i| luthier::ops::nf4::LEVELS[i * 7 % 16] as f64 * absmax).collect();
        let (mut codes, mut scales, mut out) = (vec![0u8; 64], vec![f64::NAN; 2], vec![f64::NAN; 128]);
        luthier::ops::nf4::nf4_quantize(&mut codes, &mut scales, &inp, &p);
        luthier::ops::nf4::nf4_dequantize(&mut out, &codes, &scales, &p);
        assert_eq!((out, scales), (inp, vec![absmax; 2]));
    }
}

#[test]
fn storages_of_quantization_are_the_inputs_own() {
    let storages = Case::new(Op::nf4_quantize, Nf4 { P: 3 }).storages();
    let of_inp: Vec<_> = storages.iter().map(|s| s[2]).collect();
    assert_eq!(of_inp, [F32, F16, Bf16]);
}
