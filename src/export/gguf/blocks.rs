//! Values into ggml's blocks of 32: the layouts of `ops/gguf.rs`, with the codes that ggml's reference picks.
//!
//! ```text
//! q4_0, q5_0   d = v/−8 (−16), v the value farthest from 0;  q = ⌊x/d + 8.5⌋ (16.5), at most 15 (31)
//! q4_1, q5_1   d = (max − min)/15 (31), m = min;             q = ⌊(x − m)/d + 0.5⌋
//! q8_0         d = max|x|/127;                               q = x/d, rounded away from 0
//! ```
//! Codes go by the exact d, which is rounded to f16 when it is stored.
use super::kblocks;
use crate::ops::gguf::Packed;
use half::f16;
use rayon::prelude::*;

/// Blocks that one thread makes at a time.
const AT_ONCE: usize = 256;

/// Whole blocks of finite values.
pub fn quantize(format: Packed, values: &[f32]) -> Vec<u8> {
    match format {
        Packed::Q4_0 => each::<32>(values, |x, out| symmetric(x, 8, out)),
        Packed::Q4_1 => each::<32>(values, |x, out| with_minimum(x, 15, out)),
        Packed::Q5_0 => each::<32>(values, |x, out| symmetric(x, 16, out)),
        Packed::Q5_1 => each::<32>(values, |x, out| with_minimum(x, 31, out)),
        Packed::Q8_0 => each::<32>(values, q8_0),
        Packed::Q4K => each::<256>(values, kblocks::q4_k),
        Packed::Q5K => each::<256>(values, kblocks::q5_k),
        Packed::Q6K => each::<256>(values, kblocks::q6_k),
    }
}

fn each<const LEN: usize>(values: &[f32], block: impl Fn(&[f32; LEN], &mut Vec<u8>) + Sync) -> Vec<u8> {
    let many = |chunk: &[[f32; LEN]]| {
        let mut out = Vec::new();
        chunk.iter().for_each(|x| block(x, &mut out));
        out
    };
    values.as_chunks::<LEN>().0.par_chunks(AT_ONCE).flat_map_iter(many).collect()
}

pub(super) fn half(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// A fifth bit of each code, then nibbles: codes 0 to 15 in the low halves of 16 bytes, 16 to 31 in the high ones.
fn put_codes(codes: &[u8; 32], five_bits: bool, out: &mut Vec<u8>) {
    if five_bits {
        let high = codes.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4) << i);
        out.extend(high.to_le_bytes());
    }
    out.extend((0..16).map(|i| codes[i] & 15 | (codes[i + 16] & 15) << 4));
}

/// Codes around `middle`: 8 of four bits, 16 of five.
fn symmetric(x: &[f32; 32], middle: i32, out: &mut Vec<u8>) {
    // the first of those that are as far
    let far = x.iter().fold(0.0f32, |far, v| if v.abs() > far.abs() { *v } else { far });
    let d = far / -(middle as f32);
    let (id, shift, most) = (inverse(d), middle as f32 + 0.5, (2 * middle - 1) as u8);
    out.extend(half(d));
    put_codes(&x.map(|v| ((v * id + shift) as u8).min(most)), middle == 16, out);
}

fn with_minimum(x: &[f32; 32], most: u8, out: &mut Vec<u8>) {
    let min = x.iter().fold(f32::MAX, |m, v| if *v < m { *v } else { m });
    let max = x.iter().fold(-f32::MAX, |m, v| if *v > m { *v } else { m });
    let d = (max - min) / f32::from(most);
    let id = inverse(d);
    out.extend([half(d), half(min)].concat());
    put_codes(&x.map(|v| (((v - min) * id + 0.5) as u8).min(most)), most == 31, out);
}

fn q8_0(x: &[f32; 32], out: &mut Vec<u8>) {
    let d = x.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    let id = inverse(d);
    out.extend(half(d));
    out.extend(x.map(|v| (v * id).round() as i8 as u8));
}
