//! 8-bit weights with one scale a row, as bitsandbytes' LLM.int8() stores them. Dettmers et al. 2022, arXiv:2208.07339.
//!
//! quantize    scb[o] = max |inp[o,:]|,  codes[o,c] = round(inp[o,c]·127/scb[o]), ties to even
//! dequantize  out[o,c] = codes[o,c]·scb[o]/127
//! Codes are signed, in two's complement; a row of zeros has codes 0.
use super::params;
use crate::dtype::Real;

params! { Int8 { O: u32, C: u32 } }

pub fn int8_quantize<R: Real>(codes: &mut [u8], scb: &mut [R], inp: &[R], p: &Int8) {
    let C = p.C as usize;
    for (o, row) in inp.chunks(C).take(p.O as usize).enumerate() {
        scb[o] = row.iter().fold(R::from(0.0), |m, x| if x.abs() > m { x.abs() } else { m });
        let absmax = scb[o].to_f32();
        let scale = if absmax > 0.0 { 127.0 / absmax } else { 0.0 };
        for (code, x) in codes[o * C..].iter_mut().zip(row) {
            *code = (x.to_f32() * scale).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        }
    }
}

pub fn int8_dequantize<R: Real>(out: &mut [R], codes: &[u8], scb: &[R], p: &Int8) {
    let C = p.C as usize;
    for o in 0..p.O as usize {
        for i in o * C..(o + 1) * C {
            out[i] = R::from(codes[i] as i8 as f32) * scb[o] / R::from(127.0);
        }
    }
}
