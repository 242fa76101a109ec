//! Activations of an MLP without a gate, and what gated ones are made of.
//!
//! forward   out = act(inp),   act(x) = x·s(x)
//! backward  dinp = dout·act′(inp);  in place, and dout becomes out: the next product's weight gradient wants it again
//!
//! | `act` | s(x) | act′(x) |
//! |---|---|---|
//! | [`SIGMOID`] | σ(x·(slope + cubic·x²)) | s·(1 + x·(1 − s)·(slope + 3·cubic·x²)) |
//! | [`GELU`] | Φ(x), the normal distribution function | Φ(x) + x·φ(x) |
//! | [`RELU`] | 1 where x > 0, else 0 | s |
//! | [`RELU2`] | max(x, 0) | 2·s |
//!
//! SIGMOID with slope 1, cubic 0 is silu; with √(8/π) and 0.044715·√(8/π) gelu by its tanh formula, as (1 + tanh u)/2 = σ(2u).
//! Hendrycks & Gimpel 2016, arXiv:1606.08415; So et al. 2021, arXiv:2109.08668 (relu²).
use super::params;
use crate::dtype::Real;

pub const SIGMOID: u32 = 0;
pub const GELU: u32 = 1;
pub const RELU: u32 = 2;
pub const RELU2: u32 = 3;

params! {
    Activation { N: u32, F: u32, act: u32, slope: f32, cubic: f32 }
    wants |p| p.act <= RELU2, "`act` is one of four activations";
}

pub fn activation_forward<R: Real>(out: &mut [R], inp: &[R], p: &Activation) {
    for i in 0..p.N as usize * p.F as usize {
        out[i] = inp[i] * gating(inp[i], p.act, p.slope, p.cubic).0;
    }
}

pub fn activation_backward<R: Real>(dout: &mut [R], inp: &mut [R], p: &Activation) {
    for i in 0..p.N as usize * p.F as usize {
        let (dy, x) = (dout[i], inp[i]);
        let (s, slope) = gating(x, p.act, p.slope, p.cubic);
        dout[i] = x * s;
        inp[i] = dy * slope;
    }
}

/// s(x) and act′(x).
pub(super) fn gating<R: Real>(x: R, act: u32, slope: f32, cubic: f32) -> (R, R) {
    let (zero, one) = (R::from(0.0), R::from(1.0));
    let positive = x > zero;
    match act {
        GELU => {
            let density = (-x * x * R::from(0.5)).exp() * R::from(0.398_942_3);
            let s = x.normal_cdf();
            (s, s + x * density)
        }
        RELU => {
            if positive {
                (one, one)
            } else {
                (zero, zero)
            }
        }
        RELU2 => {
            if positive {
                (x, x + x)
            } else {
                (zero, zero)
            }
        }
        _ => {
            let (slope, bow) = (R::from(slope), R::from(cubic) * x * x);
            let s = one / (one + (-x * (slope + bow)).exp());
            (s, s * (one + x * (one - s) * (slope + R::from(3.0) * bow)))
        }
    }
}
