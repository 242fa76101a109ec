//! The heads of multi-head latent attention, put together from what its projections give and taken apart again: copies.
//! DeepSeek-AI 2024, arXiv:2405.04434.
//!
//! ```text
//! query   q[n,h,:]   = [turning part of inp[n,h,:] | its U other channels | zeros]
//! kv      k[n,h,:]   = [rope[n,:], the same for every head | U channels of kv[n,h,:] | zeros]
//!         v[n,h,:]   = [the Y others of kv[n,h,:] | zeros]
//! output  out[n,h,:] = the first Y channels of att[n,h,:]
//! ```
//! A head of q has its A turning channels last, here they come first, where RoPE wants them: a product of two heads does not
//! depend on the order of their channels. All of q, k and v have heads of D channels, so that one attention serves; zeros add nothing to a product.
use super::params;
use crate::dtype::Real;

params! {
    Latent { N: u32, H: u32, D: u32, A: u32, U: u32, Y: u32 }
    wants |p| p.A + p.U <= p.D && p.Y <= p.D, "a head of D channels must hold A + U and Y of them";
}

fn sizes(p: &Latent) -> [usize; 6] {
    [p.N, p.H, p.D, p.A, p.U, p.Y].map(|x| x as usize)
}

pub fn latent_query_forward<R: Real>(q: &mut [R], inp: &[R], p: &Latent) {
    let [N, H, D, A, U, _] = sizes(p);
    q.fill(R::from(0.0));
    for i in 0..N * H {
        let (q, inp) = (&mut q[i * D..][..D], &inp[i * (U + A)..][..U + A]);
        q[..A].copy_from_slice(&inp[U..]);
        q[A..][..U].copy_from_slice(&inp[..U]);
    }
}

pub fn latent_query_backward<R: Real>(dinp: &mut [R], dq: &[R], p: &Latent) {
    let [N, H, D, A, U, _] = sizes(p);
    for i in 0..N * H {
        let (dinp, dq) = (&mut dinp[i * (U + A)..][..U + A], &dq[i * D..][..D]);
        dinp[U..].copy_from_slice(&dq[..A]);
        dinp[..U].copy_from_slice(&dq[A..][..U]);
    }
}

pub fn latent_kv_forward<R: Real>(k: &mut [R], v: &mut [R], kv: &[R], rope: &[R], p: &Latent) {
    let [N, H, D, A, U, Y] = sizes(p);
    k.fill(R::from(0.0));
    v.fill(R::from(0.0));
    for i in 0..N * H {
        let (k, v, kv) = (&mut k[i * D..][..D], &mut v[i * D..][..D], &kv[i * (U + Y)..][..U + Y]);
        k[..A].copy_from_slice(&rope[i / H * A..][..A]);
        k[A..][..U].copy_from_slice(&kv[..U]);
        v[..Y].copy_from_slice(&kv[U..]);
    }
}

pub fn latent_kv_backward<R: Real>(dkv: &mut [R], drope: &mut [R], dk: &[R], dv: &[R], p: &Latent) {
    let [N, H, D, A, U, Y] = sizes(p);
    for i in 0..N * H {
        let dkv = &mut dkv[i * (U + Y)..][..U + Y];
        dkv[..U].copy_from_slice(&dk[i * D + A..][..U]);
        dkv[U..].copy_from_slice(&dv[i * D..][..Y]);
    }
    for n in 0..N {
        for d in 0..A {
            drope[n * A + d] = (0..H).map(|h| dk[(n * H + h) * D + d]).sum();
        }
    }
}

pub fn latent_output_forward<R: Real>(out: &mut [R], att: &[R], p: &Latent) {
    let [N, H, D, _, _, Y] = sizes(p);
    for i in 0..N * H {
        out[i * Y..][..Y].copy_from_slice(&att[i * D..][..Y]);
    }
}

pub fn latent_output_backward<R: Real>(datt: &mut [R], dout: &[R], p: &Latent) {
    let [N, H, D, _, _, Y] = sizes(p);
    datt.fill(R::from(0.0));
    for i in 0..N * H {
        datt[i * D..][..Y].copy_from_slice(&dout[i * Y..][..Y]);
    }
}
