//! MXFP4: 4-bit floats with a power of two per block of 32. OCP Microscaling Formats 1.0, sections 5.3.3 (E2M1) and 5.4.1 (E8M0).
//!
//! out[i] = LEVELS[code i]·2^(scales[i/32] − 127); a scale of 255 is NaN
//! Two codes a byte, the first in the low half; a code is sign, two bits of exponent, one of mantissa. Every out is exact in f32
//! and bf16 (a scale of 0 is a subnormal there, which a GPU may take for 0).
use super::params;
use crate::dtype::Real;

params! { Mxfp4 { P: u32 } }

/// Values that share a scale.
pub const BLOCK: usize = 32;

/// Of the codes without their sign.
pub const LEVELS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn level<R: Real>(code: u8) -> R {
    let size = R::from(LEVELS[(code & 7) as usize]);
    if code & 8 == 0 { size } else { -size }
}

/// 2^(byte − 127): the byte is an f32's exponent; 0 stands for 2^−127, which is a subnormal.
fn scale<R: Real>(byte: u8) -> R {
    R::from(match byte {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits((byte as u32) << 23),
    })
}

pub fn mxfp4_dequantize<R: Real>(out: &mut [R], codes: &[u8], scales: &[u8], p: &Mxfp4) {
    for i in 0..p.P as usize {
        let code = codes[i / 2] >> (4 * (i % 2));
        out[i] = level::<R>(code) * scale(scales[i / BLOCK]);
    }
}
