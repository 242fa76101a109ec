use super::*;
use luthier::ops::mxfp4::{BLOCK, LEVELS, Mxfp4, mxfp4_dequantize};
use values::{Data, Values};

/// Scales whose values every float type holds.
fn moderate(values: &mut Values) {
    let Some(Data::U8(x)) = values.get_mut("scales") else { panic!("scales are bytes") };
    x.iter_mut().for_each(|x| *x = 118 + *x % 22);
}

pub fn cases() -> Vec<Case> {
    let of = |P| Case::new(Op::mxfp4_dequantize, Mxfp4 { P }).with("moderate", moderate);
    [1, 2, 7, 31, 32, 33, 64, 1021, 4096, 8200, 16_385, 70_001].map(of).into()
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

/// The standard's tables: S.E.M with bias 1 and subnormal 0.5; scales 2^-127 to 2^127, and NaN.
#[test]
fn values_are_those_of_the_standard() {
    for code in 0..16u8 {
        let (e, m) = ((code >> 1 & 3) as i32, (code & 1) as f64);
        let size = if e == 0 { m / 2.0 } else { 2f64.powi(e - 1) * (1.0 + m / 2.0) };
        let want = if code & 8 == 0 { size } else { -size };
        for scale in 0..255u8 {
            // first in the low half
            let mut out = [f64::NAN; 2];
            mxfp4_dequantize(&mut out, &[code | (15 - code) << 4], &[scale], &Mxfp4 { P: 2 });
            assert_eq!(out[0], want * 2f64.powi(scale as i32 - 127), "{code} {scale}");
            assert_eq!(out[1].abs(), LEVELS[(15 - code) as usize % 8] as f64 * 2f64.powi(scale as i32 - 127));
        }
    }
    let (mut out, P) = (vec![0.0f64; 2 * BLOCK], 2 * BLOCK as u32);
    mxfp4_dequantize(&mut out, &[0x22; BLOCK], &[255, 128], &Mxfp4 { P });
    assert!(out[..BLOCK].iter().all(|x| x.is_nan()) && out[BLOCK..].iter().all(|x| *x == 2.0));
}
