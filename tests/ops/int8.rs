use super::*;
use luthier::ops::int8::{Int8, int8_dequantize, int8_quantize};
use values::{Data, Values};

/// A row of zeros, one of tiny values, one with an outlier, and one of exact ties.
fn hard(C: u32) -> impl Fn(&mut Values) + Send + Sync {
    move |values| {
        let Some(Data::Float(x)) = values.get_mut("inp") else { panic!("inp is float") };
        for (o, row) in x.chunks_mut(C as usize).enumerate() {
            match o {
                1 => row.fill(0.0),
                2 => row.iter_mut().for_each(|x| *x *= 1e-3),
                3 => row[0] = -40.0,
                4 => row.iter_mut().enumerate().for_each(|(c, x)| *x = if c == 0 { 127.0 } else { c as f64 % 100.0 + 0.5 }),
                _ => {}
            }
        }
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [(1, 1), (1, 2), (3, 7), (7, 36), (6, 52), (5, 64), (17, 33), (300, 130), (127, 257), (2, 2048), (6, 4099)];
    for (O, C) in shapes {
        cases.push(Case::new(Op::int8_quantize, Int8 { O, C }).with("hard", hard(C)));
        cases.push(Case::new(Op::int8_dequantize, Int8 { O, C }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

#[test]
fn codes_in_units_of_the_rows_scale_come_back_exactly() {
    let p = Int8 { O: 2, C: 255 };
    let inp: Vec<f64> = (0..510).map(|i| (i % 255) as f64 - 127.0).map(|q| q * 0.25).collect();
    let (mut codes, mut scb, mut out) = (vec![0u8; 510], vec![f64::NAN; 2], vec![f64::NAN; 510]);
    int8_quantize(&mut codes, &mut scb, &inp, &p);
    int8_dequantize(&mut out, &codes, &scb, &p);
    assert_eq!((out, scb), (inp, vec![31.75; 2]));
    assert_eq!(codes[..3], [129, 130, 131], "two's complement");
}
