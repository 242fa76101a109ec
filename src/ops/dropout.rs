//! Dropout whose mask is a function of its seeds and the element's index: nothing is stored, the backward draws it again, and a
//! run that resumes has the same one. Srivastava et al. 2014, jmlr.org/papers/v15/srivastava14a.html.
//!
//! forward   out[i] = scale·inp[i] where random(i, seed, stream) >= drop, else 0;   drop = rate·2³², scale = 1/(1 − rate)
//! backward  dinp[i] += scale·dout[i] where out[i] was kept
//! random is the first word of pcg3d: Jarzynski & Olano 2020, "Hash Functions for GPU Rendering", jcgt.org/published/0009/03/02.
use super::params;
use crate::dtype::Real;

params! { Dropout { P: u32, seed: u32, stream: u32, drop: u32, scale: f32 } }

impl Dropout {
    /// For P elements, `rate` of them dropped: at least 0 and less than 1.
    pub fn new(P: usize, rate: f64, seed: u32, stream: u32) -> Dropout {
        let drop = (rate * (1u64 << 32) as f64) as u32;
        Dropout { P: P as u32, seed, stream, drop, scale: (1.0 / (1.0 - rate)) as f32 }
    }
    fn keeps(&self, i: usize) -> bool {
        random(i as u32, self.seed, self.stream) >= self.drop
    }
}

pub(crate) fn random(i: u32, seed: u32, stream: u32) -> u32 {
    let [mut x, mut y, mut z] = [i, seed, stream].map(|v| v.wrapping_mul(1664525).wrapping_add(1013904223));
    let stir = |x: &mut u32, y: &mut u32, z: &mut u32| {
        *x = x.wrapping_add(y.wrapping_mul(*z));
        *y = y.wrapping_add(z.wrapping_mul(*x));
        *z = z.wrapping_add(x.wrapping_mul(*y));
    };
    stir(&mut x, &mut y, &mut z);
    [x, y, z] = [x, y, z].map(|v| v ^ v >> 16);
    stir(&mut x, &mut y, &mut z);
    x
}

pub fn dropout_forward<R: Real>(out: &mut [R], inp: &[R], p: &Dropout) {
    for i in 0..p.P as usize {
        out[i] = if p.keeps(i) { R::from(p.scale) * inp[i] } else { R::from(0.0) };
    }
}

pub fn dropout_backward<R: Real>(dinp: &mut [R], dout: &[R], p: &Dropout) {
    for i in (0..p.P as usize).filter(|i| p.keeps(*i)) {
        dinp[i] += R::from(p.scale) * dout[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 2¹⁶ draws, how many p keeps, and how many q keeps with it.
    fn kept(p: &Dropout, q: &Dropout, offset: usize) -> (f64, f64) {
        let n = 1 << 16;
        let both = (0..n).filter(|i| p.keeps(*i) && q.keeps(i + offset)).count();
        ((0..n).filter(|i| p.keeps(*i)).count() as f64 / n as f64, both as f64 / n as f64)
    }

    #[test]
    fn as_many_are_dropped_as_asked_and_independently() {
        for (rate, seed) in [(0.05, 1u32), (0.5, 2), (0.9, u32::MAX)] {
            let p = Dropout::new(1 << 16, rate, seed, 7);
            let keep = 1.0 - rate;
            for (q, offset) in [
                (Dropout::new(0, rate, seed, 7), 1),
                (Dropout::new(0, rate, seed, 7), 64),
                (Dropout::new(0, rate, seed.wrapping_add(1), 7), 0),
                (Dropout::new(0, rate, seed, 8), 0),
            ] {
                let (one, both) = kept(&p, &q, offset);
                // five standard deviations
                let far = |got: f64, want: f64| (got - want).abs() > 5.0 * (want * (1.0 - want) / 65536.0).sqrt();
                assert!(!far(one, keep) && !far(both, keep * keep), "{p:?} {q:?} {offset}: {one} {both}");
            }
        }
        assert!((0..1000).all(|i| Dropout::new(1000, 0.0, 3, 4).keeps(i)));
    }
}
