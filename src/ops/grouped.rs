//! Matrix products by group: rows offsets[e] <= m < offsets[e+1] meet expert e's own matrix. Every sum is f32.
//!
//! nt   out[m,j] = alpha·Σ_q a[m,q]·b[e,j,q]       forward of an expert's linear layer
//! nn   out[m,j] = alpha·Σ_q a[m,q]·b[e,q,j]       its input gradient
//! tn   out[e,j,q] = alpha·Σ_m a[m,j]·b[m,q]       its weight gradient
//! `offsets` rise from 0 to M and are read on the device: the host never waits for the routing.
//! Fast paths: the gemm crate (cpu), register tiles (wgpu), tensor cores (cuda).
use super::params;
use crate::dtype::Real;

params! { Grouped { M: u32, E: u32, J: u32, Q: u32, alpha: f32 } }

/// out[m,j] for all rows of all groups, `b(e, q, j)` the group's matrix.
fn product<R: Real>(
    out: &mut [R],
    a: &[R],
    offsets: &[u32],
    p: &Grouped,
    add: bool,
    b: impl Fn(usize, usize, usize) -> R,
) {
    let (J, Q) = (p.J as usize, p.Q as usize);
    for e in 0..p.E as usize {
        for m in offsets[e] as usize..offsets[e + 1] as usize {
            for j in 0..J {
                let sum = (0..Q).map(|q| a[m * Q + q] * b(e, q, j)).sum::<R>() * R::from(p.alpha);
                out[m * J + j] = if add { out[m * J + j] + sum } else { sum };
            }
        }
    }
}

fn nt<R: Real>(out: &mut [R], a: &[R], b: &[R], offsets: &[u32], p: &Grouped, add: bool) {
    let (J, Q) = (p.J as usize, p.Q as usize);
    product(out, a, offsets, p, add, |e, q, j| b[(e * J + j) * Q + q]);
}

fn nn<R: Real>(out: &mut [R], a: &[R], b: &[R], offsets: &[u32], p: &Grouped, add: bool) {
    let (J, Q) = (p.J as usize, p.Q as usize);
    product(out, a, offsets, p, add, |e, q, j| b[(e * Q + q) * J + j]);
}

pub fn grouped_nt<R: Real>(out: &mut [R], a: &[R], b: &[R], offsets: &[u32], p: &Grouped) {
    nt(out, a, b, offsets, p, false)
}
pub fn grouped_nt_add<R: Real>(out: &mut [R], a: &[R], b: &[R], offsets: &[u32], p: &Grouped) {
    nt(out, a, b, offsets, p, true)
}
pub fn grouped_nn<R: Real>(out: &mut [R], a: &[R], b: &[R], offsets: &[u32], p: &Grouped) {
    nn(out, a, b, offsets, p, false)
}
pub fn grouped_nn_add<R: Real>(out: &mut [R], a: &[R], b: &[R], offsets: &[u32], p: &Grouped) {
    nn(out, a, b, offsets, p, true)
}

pub fn grouped_tn_add<R: Real>(out: &mut [R], a: &[R], b: &[R], offsets: &[u32], p: &Grouped) {
    let (J, Q) = (p.J as usize, p.Q as usize);
    for e in 0..p.E as usize {
        let rows = offsets[e] as usize..offsets[e + 1] as usize;
        for j in 0..J {
            for q in 0..Q {
                let sum = rows.clone().map(|m| a[m * J + j] * b[m * Q + q]).sum::<R>();
                out[(e * J + j) * Q + q] += sum * R::from(p.alpha);
            }
        }
    }
}
