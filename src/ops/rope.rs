//! RoPE: rotary position embedding on halves (GPT-NeoX style, as Llama). Su et al. 2021, arXiv:2104.09864.
//!
//! forward   (a, b) = (x[d], x[d + A/2])  ->  (a·cos − b·sin, b·cos + a·sin),  angle of (position, d)
//! backward  the rotation by the negative angle
//! A <= D channels of a head turn, the others stay (`partial_rotary_factor`).
//! The table comes from the host in f64 precision: row t is cos(t, 0..A/2) then sin(t, 0..A/2); sin and cos in shaders are
//! not accurate. Scaled RoPE (llama3, linear, …) is another table, not another op.
use super::params;
use crate::dtype::Real;

params! {
    Rope { N: u32, H: u32, D: u32, A: u32, T: u32, ld_x: u32 }
    wants |p| p.D.is_multiple_of(2), "RoPE rotates pairs: the head size D must be even";
    wants |p| p.A.is_multiple_of(2) && p.A <= p.D, "A, the channels that turn, must be even and at most D";
}

fn rotate<R: Real>(x: &mut [R], table: &[R], positions: &[u32], p: &Rope, sign: R) {
    let (H, D, A, half) = (p.H as usize, p.D as usize, p.A as usize, p.A as usize / 2);
    for n in 0..p.N as usize {
        let (cos, sin) = table[positions[n] as usize * A..][..A].split_at(half);
        for h in 0..H {
            let (a, b) = x[n * p.ld_x as usize + h * D..][..A].split_at_mut(half);
            for d in 0..half {
                let s = sin[d] * sign;
                (a[d], b[d]) = (a[d] * cos[d] - b[d] * s, b[d] * cos[d] + a[d] * s);
            }
        }
    }
}

pub fn rope_forward<R: Real>(x: &mut [R], table: &[R], positions: &[u32], p: &Rope) {
    rotate(x, table, positions, p, R::from(1.0))
}

pub fn rope_backward<R: Real>(dx: &mut [R], table: &[R], positions: &[u32], p: &Rope) {
    rotate(dx, table, positions, p, R::from(-1.0))
}
