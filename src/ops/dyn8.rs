//! Block-wise 8-bit quantization onto a map of 256 rising levels in [−1, 1]. Dettmers et al. 2021, arXiv:2110.02861.
//!
//! quantize    absmax[b] = max |inp| over block b of 256,  codes[i] = the level nearest to inp[i]/absmax
//! dequantize  out[i] = map[codes[i]]·absmax[i/256]
//! The maps are bitsandbytes' "dynamic" ones: a varying number of exponent bits, the rest a linear fraction.
use super::params;
use crate::dtype::Real;

params! { Dyn8 { P: u32 } }

/// Values that share a scale.
pub const BLOCK: usize = 256;

/// The dynamic map: signed for first moments and NF4 scales, unsigned for second moments.
pub fn dynamic_map(signed: bool) -> [f32; 256] {
    let mut levels = vec![0.0f32, 1.0];
    for exponent in 0..7i32 {
        let items = if signed { (1usize << exponent) + 1 } else { (1usize << (exponent + 1)) + 1 };
        let boundaries = linspace(0.1, 1.0, items);
        for pair in boundaries.windows(2) {
            let level = 10f64.powi(exponent - 6) as f32 * ((pair[0] + pair[1]) / 2.0);
            levels.push(level);
            if signed {
                levels.push(-level);
            }
        }
    }
    levels.resize(256, 0.0);
    levels.sort_by(f32::total_cmp);
    levels.try_into().expect("256 levels")
}

/// torch.linspace in float32: from the start up to the middle, from the end back to it.
fn linspace(start: f32, end: f32, items: usize) -> Vec<f32> {
    let step = (end - start) / (items - 1) as f32;
    let at = |i: usize| {
        if i < items / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((items - 1 - i) as f32, end) }
    };
    (0..items).map(at).collect()
}

/// The nearest level's index; a tie goes down.
pub(crate) fn nearest(map: &[f32], x: f32) -> u8 {
    let above = map.partition_point(|level| *level < x).clamp(1, 255);
    let mid = (map[above - 1] + map[above]) * 0.5;
    (if x > mid { above } else { above - 1 }) as u8
}

/// The same for what must not change its sign by rounding: the neighbour on its own side of zero where it would.
pub(crate) fn nearest_signed(map: &[f32], x: f32) -> u8 {
    match nearest(map, x) {
        code if (map[code as usize] < 0.0) == (x < 0.0) => code,
        code if x > 0.0 => code + 1,
        code => code.saturating_sub(1),
    }
}

pub fn dyn8_quantize<R: Real>(codes: &mut [u8], absmax: &mut [R], inp: &[R], map: &[R], p: &Dyn8) {
    let map: Vec<f32> = map.iter().map(|x| x.to_f32()).collect();
    for (b, block) in inp[..p.P as usize].chunks(BLOCK).enumerate() {
        absmax[b] = block.iter().fold(R::from(0.0), |m, x| if x.abs() > m { x.abs() } else { m });
        // a block of zeros has no scale: 0·1/tiny stays 0
        let scale = 1.0 / absmax[b].to_f32().max(f32::MIN_POSITIVE);
        for (i, x) in block.iter().enumerate() {
            codes[b * BLOCK + i] = nearest(&map, x.to_f32() * scale);
        }
    }
}

pub fn dyn8_dequantize<R: Real>(out: &mut [R], codes: &[u8], absmax: &[R], map: &[R], p: &Dyn8) {
    for i in 0..p.P as usize {
        out[i] = map[codes[i] as usize] * absmax[i / BLOCK];
    }
}
