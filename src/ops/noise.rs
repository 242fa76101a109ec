//! Uniform noise on the embeddings of a training step: NEFTune. Jain et al. 2023, arXiv:2310.05914.
//!
//! forward   x[n,c] += magnitude[n]·u,  u uniform in [-1, 1): a hash of (n·C + c, seed, stream), as dropout's masks are
//! The gradient of x is that of what it becomes.
use super::dropout::random;
use super::params;
use crate::dtype::Real;

params! { Noise { N: u32, C: u32, seed: u32, stream: u32 } }

pub fn noise_forward<R: Real>(x: &mut [R], magnitude: &[R], p: &Noise) {
    for i in 0..p.N as usize * p.C as usize {
        // 24 bits, which f32 holds exactly
        let u = (random(i as u32, p.seed, p.stream) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        x[i] += magnitude[i / p.C as usize] * R::from(u);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_uniform_and_each_row_has_its_own_magnitude() {
        let (N, C) = (4, 4096);
        let magnitude = [1.0f64, 0.0, 0.5, 2.0];
        let noise = |seed| {
            let mut x = vec![0.0f64; N * C];
            noise_forward(&mut x, &magnitude, &Noise { N: N as u32, C: C as u32, seed, stream: 0 });
            x
        };
        let x = noise(3);
        for (row, m) in x.chunks(C).zip(magnitude) {
            let mean = row.iter().sum::<f64>() / C as f64;
            let square = row.iter().map(|x| x * x).sum::<f64>() / C as f64;
            // five standard deviations of the mean of C values, and of C squares
            assert!(mean.abs() <= 5.0 * m / (3.0 * C as f64).sqrt(), "{mean} at {m}");
            assert!((square - m * m / 3.0).abs() <= 5.0 * m * m * (4.0 / 45.0 / C as f64).sqrt(), "{square} at {m}");
            assert!(row.iter().all(|x| x.abs() <= m));
        }
        let (y, products) = (noise(4), |y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>());
        let alike = products(&y) / products(&x);
        assert!(alike.abs() < 0.05, "another seed is other noise: {alike}");
    }
}
