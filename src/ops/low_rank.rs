//! Both gradients of an adapter's second product Y += T·Bᵀ, of which each wants all of ∂L/∂Y: a backend that reads it once is half
//! done (`Backend::has_low_rank`); elsewhere it is `matmul_nn` and `matmul_tn_add`. Hu et al. 2021, arXiv:2106.09685.
//!
//! dt[n,r] = scale·Σ_O dout[n,o]·b[o,r],  db[o,r] += Σ_N dout[n,o]·t[n,r]
//! With T = scale·X·Aᵀ, dt is the gradient of X·Aᵀ.
use super::{params, sum};
use crate::dtype::Real;

params! { LowRank { N: u32, O: u32, R: u32, ld_dt: u32, ld_t: u32, scale: f32 } }

pub fn low_rank_backward<R: Real>(dt: &mut [R], db: &mut [R], dout: &[R], b: &[R], t: &[R], p: &LowRank) {
    let [N, O, rank, ld_dt, ld_t] = [p.N, p.O, p.R, p.ld_dt, p.ld_t].map(|x| x as usize);
    for n in 0..N {
        for r in 0..rank {
            dt[n * ld_dt + r] = R::from(p.scale) * sum((0..O).map(|o| dout[n * O + o] * b[o * rank + r]));
        }
    }
    for o in 0..O {
        for r in 0..rank {
            db[o * rank + r] += sum((0..N).map(|n| dout[n * O + o] * t[n * ld_t + r]));
        }
    }
}
