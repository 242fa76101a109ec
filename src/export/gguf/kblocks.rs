//! Values into ggml's blocks of 256, whose parts' scales (and minima) are searched for the smallest weighed error.
//!
//! ```text
//! q4_k, q5_k  of each part of 32, weights w = √(mean x²) + |x|: among some steps around the full range the scale and the
//!             minimum that Σ w·(s·q + m − x)² is least with, m ≤ 0; both in 6 bits, then codes anew by what these stand for
//! q6_k        of each part of 16, weights w = x²: among 19 scales around −32/(value farthest from 0) the one that
//!             (Σ w·x·q)²/Σ w·q² is greatest with; in 8 bits, then codes anew
//! ```
//! The search and its order of sums are those of ggml's reference quantizers, so that files are the same bit for bit.
use super::blocks::half;
use half::f16;

/// Parts whose largest value is below it are zeros.
const TINY: f32 = 1e-15;

/// The nearest whole number; of two the even one.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// What a part of 32 is searched with.
struct Search {
    /// The largest code.
    most: i32,
    /// The first scale tried is that of so many codes more than `most`; each next of 0.1 more.
    first: f32,
    steps: i32,
}

/// x ≈ scale·q − min.
struct Line {
    scale: f32,
    min: f32,
    /// q, as whole numbers.
    codes: Vec<f32>,
}

/// Scale, minimum and codes of one part.
fn line(x: &[f32], search: &Search) -> Line {
    let mean = (x.iter().fold(0.0f32, |sum, v| sum + v * v) / x.len() as f32).sqrt();
    let w: Vec<f32> = x.iter().map(|v| mean + v.abs()).collect();
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (w[0], w[0] * x[0]);
    for (v, w) in x.iter().zip(&w).skip(1) {
        min = if *v < min { *v } else { min };
        max = if *v > max { *v } else { max };
        sum_w += w;
        sum_x += w * v;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max == min {
        return Line { scale: 0.0, min: -min, codes: vec![0.0; x.len()] };
    }
    let most = search.most as f32;
    let codes_of = |iscale: f32, min: f32| -> Vec<f32> {
        x.iter().map(|v| nearest(iscale * (v - min)).clamp(0, search.most) as f32).collect()
    };
    let error = |scale: f32, min: f32, q: &[f32]| {
        let terms = x.iter().zip(&w).zip(q);
        terms.fold(0.0f32, |sum, ((v, w), q)| {
            let diff = scale * q + min - v;
            sum + w * (diff * diff)
        })
    };
    let iscale = most / (max - min);
    let mut scale = 1.0 / iscale;
    let mut codes = codes_of(iscale, min);
    let mut best = error(scale, min, &codes);
    for step in 0..=search.steps {
        // from the best minimum so far
        let q = codes_of((search.first + 0.1 * step as f32 + most) / (max - min), min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((v, w), q) in x.iter().zip(&w).zip(&q) {
            sum_l += w * q;
            sum_l2 += w * q * q;
            sum_xl += w * q * v;
        }
        let det = sum_w * sum_l2 - sum_l * sum_l;
        if !(det > 0.0) {
            continue;
        }
        let mut s = (sum_w * sum_xl - sum_x * sum_l) / det;
        let mut m = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        if m > 0.0 {
            (m, s) = (0.0, sum_xl / sum_l2);
        }
        let now = error(s, m, &q);
        if now < best {
            (best, scale, min, codes) = (now, s, m, q);
        }
    }
    Line { scale, min: -min, codes }
}

/// d, e, the 12 bytes of 6-bit scales and minima, and 256 codes.
fn parts(x: &[f32; 256], search: &Search) -> ([u8; 16], [u8; 256]) {
    let lines: Vec<Line> = x.chunks(32).map(|part| line(part, search)).collect();
    let largest = |of: fn(&Line) -> f32| lines.iter().map(of).fold(0.0f32, |m, v| if v > m { v } else { m });
    let (scale, min) = (largest(|l| l.scale), largest(|l| l.min));
    let inverse = |x: f32| if x > 0.0 { 63.0 / x } else { 0.0 };
    let six_bits = |inverse: f32, value: f32| (nearest(inverse * value) as u8).min(63);
    let (d, e) = (f16::from_f32(scale / 63.0), f16::from_f32(min / 63.0));
    let (mut head, mut codes) = ([0; 16], [0; 256]);
    head[..2].copy_from_slice(&d.to_le_bytes());
    head[2..4].copy_from_slice(&e.to_le_bytes());
    for (s, line) in lines.iter().enumerate() {
        let (scale, min) = (six_bits(inverse(scale), line.scale), six_bits(inverse(min), line.min));
        put_six_bits(&mut head[4..], s, scale, min);
        let (step, low) = (d.to_f32() * f32::from(scale), e.to_f32() * f32::from(min));
        for i in 0..32 {
            // without a scale codes stand for nothing, and stay as they are
            let again = || nearest((x[s * 32 + i] + low) / step).clamp(0, search.most) as u8;
            codes[s * 32 + i] = if step == 0.0 { line.codes[i] as u8 } else { again() };
        }
    }
    (head, codes)
}

/// Part s of 8: the last four are split between two bytes each, whose own parts have come before.
fn put_six_bits(bytes: &mut [u8], s: usize, scale: u8, min: u8) {
    match s {
        ..4 => (bytes[s], bytes[s + 4]) = (scale, min),
        _ => {
            bytes[s + 4] = scale & 15 | (min & 15) << 4;
            bytes[s - 4] |= scale >> 4 << 6;
            bytes[s] |= min >> 4 << 6;
        }
    }
}

/// Two parts share 32 bytes: the low halves, then the high ones.
fn put_nibbles(codes: &[u8; 256], out: &mut Vec<u8>) {
    for pair in codes.chunks(64) {
        out.extend((0..32).map(|i| pair[i] & 15 | (pair[i + 32] & 15) << 4));
    }
}

pub(super) fn q4_k(x: &[f32; 256], out: &mut Vec<u8>) {
    let (head, codes) = parts(x, &Search { most: 15, first: -1.0, steps: 20 });
    out.extend(head);
    put_nibbles(&codes, out);
}

pub(super) fn q5_k(x: &[f32; 256], out: &mut Vec<u8>) {
    let (head, codes) = parts(x, &Search { most: 31, first: -0.5, steps: 15 });
    out.extend(head);
    out.extend((0..32).map(|i| (0..8).fold(0, |bits, part| bits | codes[part * 32 + i] >> 4 << part)));
    put_nibbles(&codes, out);
}

/// Scale and codes (around 0) of a part of 16.
fn scale(x: &[f32]) -> (f32, [i32; 16]) {
    let far = x.iter().fold(0.0f32, |far, v| if v.abs() > far.abs() { *v } else { far });
    if far.abs() < TINY {
        return (0.0, [-32; 16]);
    }
    let at = |iscale: f32| {
        let (mut sum_lx, mut sum_l2, mut q) = (0.0f32, 0.0f32, [0; 16]);
        for (v, q) in x.iter().zip(&mut q) {
            *q = nearest(iscale * v).clamp(-32, 31);
            let (w, l) = (v * v, *q as f32);
            sum_lx += w * v * l;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2, q)
    };
    let (sum_lx, sum_l2, mut codes) = at(-32.0 / far);
    let mut scale = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for step in (-9..=9).filter(|step| *step != 0) {
        let (sum_lx, sum_l2, q) = at(-(32.0 + 0.1 * step as f32) / far);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            (scale, codes) = (sum_lx / sum_l2, q);
            best = scale * sum_lx;
        }
    }
    (scale, codes)
}

pub(super) fn q6_k(x: &[f32; 256], out: &mut Vec<u8>) {
    let parts: Vec<(f32, [i32; 16])> = x.chunks(16).map(scale).collect();
    let far = parts.iter().fold(0.0f32, |far, (s, _)| if s.abs() > far.abs() { *s } else { far });
    if far.abs() < TINY {
        return out.extend([0; 210]);
    }
    let iscale = -128.0 / far;
    let d = f16::from_f32(1.0 / iscale);
    let scales: Vec<i8> = parts.iter().map(|(s, _)| nearest(iscale * s).min(127) as i8).collect();
    let mut codes = [0u8; 256];
    for (i, code) in codes.iter_mut().enumerate() {
        let step = d.to_f32() * f32::from(scales[i / 16]);
        let q = if step == 0.0 { parts[i / 16].1[i % 16] } else { nearest(x[i] / step).clamp(-32, 31) };
        *code = (q + 32) as u8;
    }
    for four in codes.chunks(128) {
        out.extend((0..64).map(|i| four[i] & 15 | (four[i + 64] & 15) << 4));
    }
    for four in codes.chunks(128) {
        out.extend((0..32).map(|i| (0..4).fold(0, |bits, q| bits | four[q * 32 + i] >> 4 << (2 * q))));
    }
    out.extend(scales.iter().map(|s| *s as u8));
    out.extend(half(1.0 / iscale));
}
