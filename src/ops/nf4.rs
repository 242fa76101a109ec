//! NF4: 4-bit levels at the quantiles of a normal distribution, scaled per block of 64. Dettmers et al. 2023, arXiv:2305.14314.
//!
//! quantize    absmax[b] = max |inp| over block b,  code[i] = the level nearest to inp[i]/absmax
//! dequantize  out[i] = LEVELS[code[i]]·absmax[i/64]
//! double      absmax[b] = map[qabsmax[b]]·nested[b/256] + offset: the scales themselves in 8 bits (see `dyn8`)
//! Two codes a byte, the first in the high half: bitsandbytes' layout, bit for bit.
use super::{dyn8, params};
use crate::dtype::Real;
use rayon::prelude::*;

params! { Nf4 { P: u32 } }
params! { Nf4Double { P: u32, /** mean of the scales */ offset: f32 } }

/// Values that share a scale.
pub const BLOCK: usize = 64;

/// bitsandbytes' table.
#[allow(clippy::excessive_precision, reason = "its own digits")]
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// Where one level's half of the way to the next ends; a value above `MIDPOINTS[i]` is at least level i + 1.
#[allow(clippy::excessive_precision, reason = "its own digits")]
pub const MIDPOINTS: [f32; 15] = [
    -0.8480964004993439,
    -0.6106329262256622,
    -0.4599952697753906,
    -0.33967943489551544,
    -0.23460738360881805,
    -0.13791173323988914,
    -0.045525018125772476,
    0.03979014977812767,
    0.1202552504837513,
    0.2035212516784668,
    0.2920137718319893,
    0.3893125355243683,
    0.5016634166240692,
    0.6427869200706482,
    0.8614784181118011,
];

fn level<R: Real>(byte: u8, i: usize) -> R {
    R::from(LEVELS[if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 } as usize])
}

pub fn nf4_quantize<R: Real>(codes: &mut [u8], absmax: &mut [R], inp: &[R], p: &Nf4) {
    codes.fill(0);
    for (b, block) in inp[..p.P as usize].chunks(BLOCK).enumerate() {
        absmax[b] = block.iter().fold(R::from(0.0), |m, x| if x.abs() > m { x.abs() } else { m });
        // 1/absmax first and in f32, as bitsandbytes does: another rounding would move values across a midpoint
        let scale = 1.0 / absmax[b].to_f32();
        for (i, x) in block.iter().enumerate().map(|(i, x)| (b * BLOCK + i, x.to_f32() * scale)) {
            let code = MIDPOINTS.iter().filter(|mid| x > **mid).count() as u8;
            codes[i / 2] |= if i % 2 == 0 { code << 4 } else { code };
        }
    }
}

pub fn nf4_dequantize<R: Real>(out: &mut [R], codes: &[u8], absmax: &[R], p: &Nf4) {
    for i in 0..p.P as usize {
        out[i] = level::<R>(codes[i / 2], i) * absmax[i / BLOCK];
    }
}

pub fn nf4_dequantize_double<R: Real>(
    out: &mut [R],
    codes: &[u8],
    qabsmax: &[u8],
    nested: &[R],
    map: &[R],
    p: &Nf4Double,
) {
    for i in 0..p.P as usize {
        let b = i / BLOCK;
        let absmax = map[qabsmax[b] as usize] * nested[b / dyn8::BLOCK] + R::from(p.offset);
        out[i] = level::<R>(codes[i / 2], i) * absmax;
    }
}

/// Double quantization of a weight's scales: their codes, the scales of those codes, and the mean that was taken off first.
pub fn double_quantize(absmax: &[f32]) -> (Vec<u8>, Vec<f32>, f32) {
    /// Scales that one thread takes at a time: whole blocks.
    const PART: usize = 64 * dyn8::BLOCK;
    let offset = (absmax.iter().map(|x| *x as f64).sum::<f64>() / absmax.len() as f64) as f32;
    let centred: Vec<f32> = absmax.iter().map(|x| x - offset).collect();
    let (mut codes, mut nested) = (vec![0; absmax.len()], vec![0.0; absmax.len().div_ceil(dyn8::BLOCK)]);
    let map = dyn8::dynamic_map(true);
    let parts = codes.par_chunks_mut(PART).zip(nested.par_chunks_mut(PART / dyn8::BLOCK)).zip(centred.par_chunks(PART));
    parts.for_each(|((codes, nested), centred)| {
        dyn8::dyn8_quantize(codes, nested, centred, &map, &dyn8::Dyn8 { P: centred.len() as u32 });
    });
    (codes, nested, offset)
}
