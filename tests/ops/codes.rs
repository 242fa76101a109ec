//! Quantization codes: equal, but for the neighbour where the value lies within a few ulp of the midpoint between two levels.
//!
//! A quantizer q is monotone, so that is `q(x − slack) <= code <= q(x + slack)`.
use crate::values::Values;
use luthier::ops::adamw::{AdamW, adamw_step};
use luthier::ops::fp8::Fp8Quantize;
use luthier::ops::lion::{Lion, lion_step};
use luthier::ops::{Op, dyn8, fp8, nf4};

/// 4 units in the last place, relative: the quotient by absmax is rounded once or twice.
const SLACK: f64 = 4.0 / (1u64 << 23) as f64;

/// `Ok(0)`, or which code is wrong.
pub fn compare(op: Op, arg: &str, got: &[u8], inputs: &Values, params: &[u8]) -> Result<f64, String> {
    match (op, arg) {
        (Op::nf4_quantize, "codes") => compare_nf4(got, inputs["inp"].floats()),
        (Op::dyn8_quantize, "codes") => {
            let (x, map) = (inputs["inp"].floats(), inputs["map"].floats());
            let scaled = scaled(x, dyn8::BLOCK).map(|x| (x, x.abs() * SLACK));
            check(got, scaled, |x| nearest(map, x))
        }
        (Op::int8_quantize, "codes") => {
            let C = Op::int8_quantize.extents(params).0[1];
            let scaled = scaled(inputs["inp"].floats(), C).map(|x| (x * 127.0, x.abs() * 127.0 * SLACK));
            // as unsigned numbers in the order of the signed ones
            let got: Vec<u8> = got.iter().map(|code| code ^ 128).collect();
            check(&got, scaled, |x| (x.round_ties_even() + 128.0) as u8)
        }
        (Op::fp8_quantize, "codes") => compare_fp8(got, inputs, bytemuck::pod_read_unaligned(params)),
        (Op::fp8_transpose, "out") => {
            let dims = Op::fp8_transpose.extents(params).0;
            let (N, C, inp) = (dims[0], dims[1], inputs["inp"].bytes());
            let wrong = got.iter().enumerate().position(|(i, code)| inp[i % N * C + i / N] != *code);
            wrong.map_or(Ok(0.0), |i| Err(format!("[{i}] is not that of its row and column")))
        }
        (Op::rows_gather, "out") => {
            let C = Op::rows_gather.extents(params).0[2];
            let row = |id: &u32| &inputs["weight"].bytes()[*id as usize * C..][..C];
            let wrong = inputs["ids"].u32s().iter().zip(got.chunks(C)).position(|(id, got)| row(id) != got);
            wrong.map_or(Ok(0.0), |n| Err(format!("row {n} is not that of its id")))
        }
        (Op::adamw_step_8bit, "m" | "v") => compare_adamw(arg, got, inputs, bytemuck::pod_read_unaligned(params)),
        (Op::lion_step_8bit, "m") => compare_lion(got, inputs, bytemuck::pod_read_unaligned(params)),
        _ => Err("is written, and tests/ops/codes.rs does not know by which quantizer".into()),
    }
}

/// x over the largest magnitude of its block, at f64; 0 in a block of zeros.
fn scaled(x: &[f64], block: usize) -> impl Iterator<Item = f64> {
    x.chunks(block).flat_map(|block| {
        let absmax = block.iter().fold(0f64, |m, x| m.max(x.abs()));
        block.iter().map(move |x| if absmax == 0.0 { 0.0 } else { x / absmax })
    })
}

fn check(got: &[u8], scaled: impl Iterator<Item = (f64, f64)>, q: impl Fn(f64) -> u8) -> Result<f64, String> {
    for (i, (code, (x, slack))) in got.iter().zip(scaled).enumerate() {
        let (low, high) = (q(x - slack), q(x + slack));
        if !(low <= *code && *code <= high) {
            return Err(format!("[{i}] is code {code}, but {x} has {low}..={high}"));
        }
    }
    Ok(0.0)
}

fn compare_nf4(packed: &[u8], x: &[f64]) -> Result<f64, String> {
    let mut got: Vec<u8> = packed.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
    if got.split_off(x.len()).iter().any(|rest| *rest != 0) {
        return Err("ends in half a byte that is not 0".into());
    }
    let q = |x: f64| nf4::MIDPOINTS.iter().filter(|mid| x > **mid as f64).count() as u8;
    // bitsandbytes divides a block of zeros by 0, and NaN is above no midpoint
    let zeros: Vec<bool> = x.chunks(nf4::BLOCK).map(|b| b.iter().all(|x| *x == 0.0)).collect();
    let scaled =
        scaled(x, nf4::BLOCK).enumerate().map(|(i, x)| (if zeros[i / nf4::BLOCK] { -1.0 } else { x }, x.abs() * SLACK));
    check(&got, scaled, q)
}

/// In the order of their values: a code of a negative number counts down, and both zeros are one.
fn compare_fp8(got: &[u8], inputs: &Values, p: Fp8Quantize) -> Result<f64, String> {
    let C = p.C as usize;
    let order = |code: u8| if code & 0x80 == 0 { 128 + code } else { 128 - (code & 0x7f) };
    let by = (p.by == 1).then(|| inputs["by"].floats());
    let inp = inputs["inp"].floats().iter().enumerate();
    let x: Vec<f64> = inp.map(|(i, x)| x * by.map_or(1.0, |by| by[i % C])).collect();
    // of the quotient by the greatest: the product with `by`, the scale, its inverse and the product with it are rounded
    let scaled = scaled(&x, C).map(|x| (x * f64::from(fp8::MOST), x.abs() * f64::from(fp8::MOST) * 2.0 * SLACK));
    let got: Vec<u8> = got.iter().map(|code| order(*code)).collect();
    check(&got, scaled, |x| order(fp8::encode(x as f32)))
}

fn nearest(map: &[f64], x: f64) -> u8 {
    (1..map.len()).filter(|i| x > (map[i - 1] + map[*i]) / 2.0).count() as u8
}

/// The moments before rounding come from `adamw_step` at f64 on what the codes stand for.
fn compare_adamw(arg: &str, got: &[u8], inputs: &Values, p: AdamW) -> Result<f64, String> {
    let x = |name: &str| inputs[name].floats().to_vec();
    let (m0, v0) = (decode(inputs, "m", "map1", "absmax1"), decode(inputs, "v", "map2", "absmax2"));
    let (mut m, mut v) = (m0.clone(), v0.clone());
    adamw_step(&mut x("weight"), &mut m, &mut v, &x("grad"), &x("scale"), &p);
    if arg == "v" {
        let map = x("map2");
        // a sum of positive terms, about eight roundings in all
        return check(got, scaled(&v, dyn8::BLOCK).map(|x| (x, 2.0 * SLACK * x)), |x| nearest(&map, x));
    }
    check_mean(got, &m, &m0, p.beta1, &x("map1"))
}

/// What the codes of `name` stand for.
fn decode(inputs: &Values, name: &str, map: &str, absmax: &str) -> Vec<f64> {
    let (map, absmax) = (inputs[map].floats(), inputs[absmax].floats());
    inputs[name].bytes().iter().enumerate().map(|(i, c)| map[*c as usize] * absmax[i / dyn8::BLOCK]).collect()
}

/// m = beta·m0 + .., which never changes its sign by rounding.
fn check_mean(got: &[u8], m: &[f64], m0: &[f64], beta: f32, map: &[f64]) -> Result<f64, String> {
    // where the two terms of m nearly cancel, the roundings of both stay
    let size = |i: usize| (beta as f64 * m0[i]).abs() + (m[i] - beta as f64 * m0[i]).abs();
    let scaled = scaled(m, dyn8::BLOCK)
        .enumerate()
        .map(|(i, x)| (x, if x == 0.0 { 0.0 } else { 2.0 * SLACK * size(i) * (x / m[i]) }));
    check(got, scaled, |x| match nearest(map, x) {
        code if (map[code as usize] < 0.0) == (x < 0.0) => code,
        code if x > 0.0 => code + 1,
        code => code.saturating_sub(1),
    })
}

/// The same for Lion's momentum.
fn compare_lion(got: &[u8], inputs: &Values, p: Lion) -> Result<f64, String> {
    let x = |name: &str| inputs[name].floats().to_vec();
    let m0 = decode(inputs, "m", "map", "absmax");
    let mut m = m0.clone();
    lion_step(&mut x("weight"), &mut m, &x("grad"), &x("scale"), &p);
    check_mean(got, &m, &m0, p.beta2, &x("map"))
}
