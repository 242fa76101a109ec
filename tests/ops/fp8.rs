use super::*;
use luthier::ops::fp8::{Fp8, Fp8Quantize, LEAST, MOST, encode, fp8_dequantize, fp8_quantize, value};
use values::{Data, Values};

/// A row of zeros, one of tiny values, one with an outlier that makes the others subnormal, and one of exact ties.
fn hard(C: u32) -> impl Fn(&mut Values) + Send + Sync {
    move |values| {
        let Some(Data::Float(x)) = values.get_mut("inp") else { panic!("inp is float") };
        for (n, row) in x.chunks_mut(C as usize).enumerate() {
            match n {
                1 => row.fill(0.0),
                2 => row.iter_mut().for_each(|x| *x *= 1e-3),
                3 => row[0] = -20000.0,
                4 => row.iter_mut().enumerate().for_each(|(c, x)| *x = if c == 0 { 448.0 } else { (c % 200) as f64 + 0.5 }),
                5 => row.iter_mut().enumerate().for_each(|(c, x)| *x = if c == 0 { 448.0 } else { (c % 33) as f64 / 1024.0 }),
                _ => {}
            }
        }
    }
}

/// Codes of numbers.
fn numbers(name: &'static str) -> impl Fn(&mut Values) + Send + Sync {
    move |values| {
        let Some(Data::U8(codes)) = values.get_mut(name) else { panic!("codes are bytes") };
        codes.iter_mut().filter(|code| **code & 0x7f == 0x7f).for_each(|code| *code ^= 1);
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [(1, 1), (1, 2), (3, 7), (7, 36), (6, 52), (9, 64), (17, 33), (300, 130), (127, 257), (2, 2048), (6, 4099), (2, 18440)];
    for (N, C) in shapes {
        for by in [0, 1] {
            cases.push(Case::new(Op::fp8_quantize, Fp8Quantize { N, C, by }).with("hard", hard(C)));
        }
        cases.push(Case::new(Op::fp8_dequantize, Fp8 { N, C }).with("numbers", numbers("codes")));
        cases.push(Case::new(Op::fp8_transpose, Fp8 { N, C }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

/// Every code stands for itself, and what lies between two goes to the nearer one, or to the even one.
#[test]
fn codes_are_the_nearest() {
    for code in 0..=255u8 {
        let x = value(code);
        assert_eq!((x.is_nan(), code & 0x7f == 0x7f), (code & 0x7f == 0x7f, x.is_nan()), "{code:#x}");
        if !x.is_nan() {
            assert_eq!(encode(x), code, "{x}");
        }
    }
    for code in 0..0x7e {
        let (low, high) = (value(code), value(code + 1));
        assert!(low < high);
        let middle = (low + high) / 2.0;
        assert_eq!(encode(middle), code + code % 2, "{middle}");
        assert_eq!([encode(middle.next_down()), encode(middle.next_up())], [code, code + 1], "{middle}");
        assert_eq!(encode(-middle), 0x80 | (code + code % 2));
    }
    assert_eq!([0.0, 2f32.powi(-9), 2f32.powi(-6), 1.0, MOST].map(encode), [0, 1, 8, 0x38, 0x7e]);
    assert_eq!([1e9, f32::INFINITY, f32::NEG_INFINITY, f32::NAN].map(encode), [0x7e, 0x7e, 0xfe, 0x7f]);
    assert_eq!([-0.0, -1e-9].map(encode), [0x80, 0x80]);
}

#[test]
fn what_codes_can_say_comes_back_exactly() {
    let values: Vec<f64> = (0..=0x7e).chain(0x80..=0xfe).map(|code| f64::from(value(code)) * 0.25).collect();
    let C = values.len() as u32;
    let (mut codes, mut scales, mut out) = (vec![0u8; C as usize], vec![f64::NAN], vec![f64::NAN; C as usize]);
    fp8_quantize(&mut codes, &mut scales, &values, None, &Fp8Quantize { N: 1, C, by: 0 });
    fp8_dequantize(&mut out, &codes, &scales, &Fp8 { N: 1, C });
    assert_eq!((out, scales), (values.clone(), vec![0.25]));
    // twice as much by halves
    let (twice, half): (Vec<f64>, _) = (values.iter().map(|x| x * 2.0).collect(), vec![0.5; C as usize]);
    let (mut again, mut scales) = (vec![0u8; C as usize], vec![f64::NAN]);
    fp8_quantize(&mut again, &mut scales, &twice, Some(&half), &Fp8Quantize { N: 1, C, by: 1 });
    assert_eq!((again, scales), (codes, vec![0.25]));
}

#[test]
fn a_row_of_zeros_is_zeros() {
    let (mut codes, mut scales) = (vec![9u8; 3], vec![f64::NAN]);
    fp8_quantize(&mut codes, &mut scales, &[0.0, 0.0, 0.0], None, &Fp8Quantize { N: 1, C: 3, by: 0 });
    assert_eq!(codes, [0, 0, 0]);
    assert_eq!(scales, [f64::from(LEAST) / f64::from(MOST)]);
}
