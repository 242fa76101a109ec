//! Weights in ggml's block formats, as GGUF files hold them: read-only, packed on the device, dequantized into a scratch.
//!
//! ```text
//! block of 32      bytes                                   value i of the block (q: 4 bits, a byte's low halves first)
//!   q4_0           d f16 · q [16]                          d·(q − 8)
//!   q4_1           d f16 · m f16 · q [16]                  d·q + m
//!   q5_0           d f16 · h u32 · q [16]                  d·((q | bit i of h · 16) − 16)
//!   q5_1           d f16 · m f16 · h u32 · q [16]          d·(q | bit i of h · 16) + m
//!   q8_0           d f16 · q i8 [32]                       d·q
//! block of 256     8 parts of 32 with a 6-bit scale s and minimum m each, or 16 of 16 with a scale
//!   q4_k           d f16 · e f16 · sm [12] · q [128]       d·s·q − e·m
//!   q5_k           d f16 · e f16 · sm [12] · h [32] · q [128]   d·s·(q | bit part of h · 16) − e·m
//!   q6_k           q [128] · h [64] · s i8 [16] · d f16    d·s·((q | 2 bits of h · 16) − 32)
//! ```
//! The layouts are those of ggml's `ggml-common.h`; "k" formats: Kawrakow 2023, llama.cpp pull request 1684.
use super::{Op, Slice, params};
use crate::dtype::Real;
pub use crate::io::gguf::Packed;

params! {
    /// Formats with blocks of 32.
    Blocks32 { P: u32 }
    wants |p| p.P.is_multiple_of(32), "P must be whole blocks of 32";
}
params! {
    /// Formats with blocks of 256.
    Blocks256 { P: u32 }
    wants |p| p.P.is_multiple_of(256), "P must be whole blocks of 256";
}

params! {
    /// O rows of C values, from row `first` on, of a weight of P bytes in a format by its place in [`Packed::ALL`].
    ThinGguf { N: u32, O: u32, C: u32, P: u32, first: u32, format: u32 }
    wants |p| (p.format as usize) < Packed::ALL.len(), "the format is one of those that have an op";
    wants |p| p.packed().is_some_and(|format| p.C > 0 && (p.C as usize).is_multiple_of(format.block().0)), "rows are whole blocks";
    wants |p| p.row().is_some_and(|row| (p.P as u64).is_multiple_of(row) && (p.first as u64 + p.O as u64) * row <= p.P as u64),
        "the rows from `first` on lie within the weight";
}

impl ThinGguf {
    fn packed(&self) -> Option<Packed> {
        Packed::ALL.get(self.format as usize).map(|(packed, _)| *packed)
    }
    /// Bytes of a row.
    fn row(&self) -> Option<u64> {
        let (len, bytes) = self.packed()?.block();
        Some(self.C as u64 / len as u64 * bytes as u64)
    }
}

fn half<R: Real>(bytes: &[u8], at: usize) -> R {
    R::from(half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32())
}

fn real<R: Real>(x: i32) -> R {
    R::from(x as f32)
}

/// out[i] = decode(block, i) in blocks of `LEN` values and `BYTES` bytes.
fn each<R: Real, const LEN: usize, const BYTES: usize>(
    out: &mut [R],
    blocks: &[u8],
    P: u32,
    decode: impl Fn(&[u8; BYTES], &mut [R; LEN]),
) {
    let outs = out[..P as usize].as_chunks_mut::<LEN>().0;
    outs.iter_mut().zip(blocks.as_chunks::<BYTES>().0).for_each(|(out, block)| decode(block, out));
}

/// The 4 bits of value i of a block of 32: low halves of 16 bytes, then their high halves.
fn nibble(q: &[u8], i: usize) -> i32 {
    (q[i % 16] >> (i / 16 * 4) & 15) as i32
}

pub fn q4_0_dequantize<R: Real>(out: &mut [R], blocks: &[u8], p: &Blocks32) {
    each::<R, 32, 18>(out, blocks, p.P, |block, out| {
        let d: R = half(block, 0);
        for i in 0..32 {
            out[i] = d * real(nibble(&block[2..], i) - 8);
        }
    });
}

pub fn q4_1_dequantize<R: Real>(out: &mut [R], blocks: &[u8], p: &Blocks32) {
    each::<R, 32, 20>(out, blocks, p.P, |block, out| {
        let (d, m): (R, R) = (half(block, 0), half(block, 2));
        for i in 0..32 {
            out[i] = d * real(nibble(&block[4..], i)) + m;
        }
    });
}

/// The fifth bit of value i of a block of 32, at its place.
fn fifth(h: &[u8], i: usize) -> i32 {
    ((h[i / 8] >> (i % 8) & 1) << 4) as i32
}

pub fn q5_0_dequantize<R: Real>(out: &mut [R], blocks: &[u8], p: &Blocks32) {
    each::<R, 32, 22>(out, blocks, p.P, |block, out| {
        let d: R = half(block, 0);
        for i in 0..32 {
            out[i] = d * real((nibble(&block[6..], i) | fifth(&block[2..], i)) - 16);
        }
    });
}

pub fn q5_1_dequantize<R: Real>(out: &mut [R], blocks: &[u8], p: &Blocks32) {
    each::<R, 32, 24>(out, blocks, p.P, |block, out| {
        let (d, m): (R, R) = (half(block, 0), half(block, 2));
        for i in 0..32 {
            out[i] = d * real(nibble(&block[8..], i) | fifth(&block[4..], i)) + m;
        }
    });
}

pub fn q8_0_dequantize<R: Real>(out: &mut [R], blocks: &[u8], p: &Blocks32) {
    each::<R, 32, 34>(out, blocks, p.P, |block, out| {
        let d: R = half(block, 0);
        for i in 0..32 {
            out[i] = d * real(block[2 + i] as i8 as i32);
        }
    });
}

/// Scale and minimum of part s < 8 from 12 bytes: 6 bits each, those of the last four split between two bytes.
fn scale_min(sm: &[u8], s: usize) -> (i32, i32) {
    let (scale, min) = match s {
        ..4 => (sm[s] & 63, sm[s + 4] & 63),
        _ => (sm[s + 4] & 15 | sm[s - 4] >> 6 << 4, sm[s + 4] >> 4 | sm[s] >> 6 << 4),
    };
    (scale as i32, min as i32)
}

pub fn q4_k_dequantize<R: Real>(out: &mut [R], blocks: &[u8], p: &Blocks256) {
    each::<R, 256, 144>(out, blocks, p.P, |block, out| {
        let (d, e): (R, R) = (half(block, 0), half(block, 2));
        for i in 0..256 {
            let s = i / 32;
            let (scale, min) = scale_min(&block[4..], s);
            // two parts share 32 bytes: the low halves, then the high ones
            let q = block[16 + s / 2 * 32 + i % 32] >> (s % 2 * 4) & 15;
            out[i] = d * real(scale) * real(q as i32) - e * real(min);
        }
    });
}

pub fn q5_k_dequantize<R: Real>(out: &mut [R], blocks: &[u8], p: &Blocks256) {
    each::<R, 256, 176>(out, blocks, p.P, |block, out| {
        let (d, e): (R, R) = (half(block, 0), half(block, 2));
        for i in 0..256 {
            let s = i / 32;
            let (scale, min) = scale_min(&block[4..], s);
            let q = block[48 + s / 2 * 32 + i % 32] >> (s % 2 * 4) & 15 | (block[16 + i % 32] >> s & 1) << 4;
            out[i] = d * real(scale) * real(q as i32) - e * real(min);
        }
    });
}

pub fn q6_k_dequantize<R: Real>(out: &mut [R], blocks: &[u8], p: &Blocks256) {
    each::<R, 256, 210>(out, blocks, p.P, |block, out| {
        let d: R = half(block, 208);
        for i in 0..256 {
            // halves of 128, quarters of 32 in them: two quarters share the low halves of 64 bytes, two the high ones
            let (n, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = block[n * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
            let high = block[128 + n * 32 + l] >> (quarter * 2) & 3;
            let scale = block[192 + i / 16] as i8;
            out[i] = d * real(scale as i32) * real((low | high << 4) as i32 - 32);
        }
    });
}

/// out[n,o] = Σ_c inp[n,c]·W[first + o,c], W dequantized a row at a time.
pub fn thin_gguf<R: Real>(out: &mut [R], inp: &[R], blocks: &[u8], p: &ThinGguf) {
    let [N, O, C] = [p.N, p.O, p.C].map(|x| x as usize);
    let (Some(format), Some(bytes)) = (p.packed(), p.row()) else { return };
    let (mut row, bytes) = (vec![R::from(0.0); C], bytes as usize);
    for o in 0..O {
        format.values(&mut row, &blocks[(p.first as usize + o) * bytes..][..bytes]);
        for n in 0..N {
            out[n * O + o] = inp[n * C..][..C].iter().zip(&row).map(|(x, w)| *x * *w).sum();
        }
    }
}

impl Packed {
    pub fn op(self) -> Op {
        match self {
            Packed::Q4_0 => Op::q4_0_dequantize,
            Packed::Q4_1 => Op::q4_1_dequantize,
            Packed::Q5_0 => Op::q5_0_dequantize,
            Packed::Q5_1 => Op::q5_1_dequantize,
            Packed::Q8_0 => Op::q8_0_dequantize,
            Packed::Q4K => Op::q4_k_dequantize,
            Packed::Q5K => Op::q5_k_dequantize,
            Packed::Q6K => Op::q6_k_dequantize,
        }
    }
    fn values<R: Real>(self, out: &mut [R], blocks: &[u8]) {
        // the params of all formats are alike
        let p = Blocks32 { P: out.len() as u32 };
        self.op().reference([Slice::FloatMut(out), Slice::U8(blocks)], bytemuck::bytes_of(&p));
    }

    /// The values of whole blocks, on the host.
    pub fn decode(self, blocks: &[u8], P: usize) -> Vec<f32> {
        let mut out = vec![0.0; P];
        self.values::<f32>(&mut out, blocks);
        out
    }
}
