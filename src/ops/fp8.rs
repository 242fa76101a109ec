//! Rows in e4m3, 8-bit floats with a scale a row, as tensor cores multiply them. Micikevicius et al. 2022, arXiv:2209.05433.
//!
//! quantize    scales[n] = max |inp[n,:]·by|/448,  codes[n,c] = e4m3(inp[n,c]·by[c]/scales[n])
//! dequantize  out[n,c] = value(codes[n,c])·scales[n]
//! transpose   out[c,n] = inp[n,c]
//! e4m3: a sign, 4 bits of exponent (bias 7), 3 of mantissa; subnormal below 2⁻⁶, at most 448, no infinities, NaN is 0x7f. Rounding
//! is to nearest, ties to even, and stops at 448.
use super::params;
use crate::dtype::Real;

params! { Fp8Quantize { N: u32, C: u32, /// 1 where there is one.
by: u32 } }
params! { Fp8 { N: u32, C: u32 } }

/// The greatest value.
pub const MOST: f32 = 448.0;
/// What the largest of a row counts as at least: a row of zeros has a scale, too.
pub const LEAST: f32 = 1e-30;

/// The nearest code.
pub fn encode(x: f32) -> u8 {
    let (a, sign) = (x.abs(), (x.to_bits() >> 24) as u8 & 0x80);
    let bits = a.to_bits();
    let code = match a {
        _ if a.is_nan() => 0x7f,
        _ if a >= MOST => 0x7e,
        // steps of 2⁻⁹, up to the first that is normal
        _ if a < 2f32.powi(-6) => (a * 512.0).round_ties_even() as u8,
        // 20 bits of mantissa go; the exponent's bias falls from 127 to 7
        _ => ((bits - (120 << 23) + 0x7ffff + (bits >> 20 & 1)) >> 20) as u8,
    };
    code | sign
}

/// What a code stands for.
pub fn value(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let x = match magnitude {
        0x7f => f32::NAN,
        0..8 => magnitude as f32 / 512.0,
        _ => f32::from_bits((magnitude << 20) + (120 << 23)),
    };
    if code & 0x80 == 0 { x } else { -x }
}

pub fn fp8_quantize<R: Real>(codes: &mut [u8], scales: &mut [R], inp: &[R], by: Option<&[R]>, p: &Fp8Quantize) {
    let C = p.C as usize;
    let by = |c: usize| by.map_or(R::from(1.0), |by| by[c]);
    for (n, row) in inp.chunks(C).take(p.N as usize).enumerate() {
        let most = (0..C).map(|c| (row[c] * by(c)).abs()).fold(R::from(LEAST), |m, x| if x > m { x } else { m });
        scales[n] = most / R::from(MOST);
        let inverse = 1.0 / scales[n].to_f32();
        for c in 0..C {
            codes[n * C + c] = encode((row[c] * by(c)).to_f32() * inverse);
        }
    }
}

pub fn fp8_dequantize<R: Real>(out: &mut [R], codes: &[u8], scales: &[R], p: &Fp8) {
    let C = p.C as usize;
    for n in 0..p.N as usize {
        for i in n * C..(n + 1) * C {
            out[i] = R::from(value(codes[i])) * scales[n];
        }
    }
}

pub fn fp8_transpose<R: Real>(out: &mut [u8], inp: &[u8], p: &Fp8) {
    let (N, C) = (p.N as usize, p.C as usize);
    for n in 0..N {
        for c in 0..C {
            out[c * N + n] = inp[n * C + c];
        }
    }
}
