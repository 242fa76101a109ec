//! RoPE: rotary position embedding. Su et al. 2021, arXiv:2104.09864.
//!
//! forward   (a, b)  ->  (a·cos − b·sin, b·cos + a·sin),  angle of (position, d), d < A/2
//!           (a, b) = (x[d], x[d + A/2]): halves, as GPT-NeoX and Llama; (x[2d], x[2d + 1]): interleaved, as GPT-J, GLM and Cohere
//! backward  the rotation by the negative angle
//! A <= D channels of a head turn, the others stay (`partial_rotary_factor`).
//! The table comes from the host in f64 precision: row t is cos(t, 0..A/2) then sin(t, 0..A/2); sin and cos in shaders are
//! not accurate. Scaled RoPE (llama3, linear, …) is another table, not another op.
use super::params;
use crate::dtype::Real;

params! {
    Rope { N: u32, H: u32, D: u32, A: u32, T: u32, ld_x: u32, interleaved: u32 }
    wants |p| p.D.is_multiple_of(2), "RoPE rotates pairs: the head size D must be even";
    wants |p| p.A.is_multiple_of(2) && p.A <= p.D, "A, the channels that turn, must be even and at most D";
    wants |p| p.interleaved <= 1, "interleaved is 1, or 0 for halves";
}

fn rotate<R: Real>(x: &mut [R], table: &[R], positions: &[u32], p: &Rope, sign: R) {
    let (H, D, A, half) = (p.H as usize, p.D as usize, p.A as usize, p.A as usize / 2);
    for n in 0..p.N as usize {
        let (cos, sin) = table[positions[n] as usize * A..][..A].split_at(half);
        for h in 0..H {
            let x = &mut x[n * p.ld_x as usize + h * D..][..A];
            for d in 0..half {
                let (i, j) = if p.interleaved == 1 { (2 * d, 2 * d + 1) } else { (d, d + half) };
                let (a, b, s) = (x[i], x[j], sin[d] * sign);
                (x[i], x[j]) = (a * cos[d] - b * s, b * cos[d] + a * s);
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
