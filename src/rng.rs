//! Random numbers that stay the same for ever: a seed and a name give a stream, on every machine and version.

/// SplitMix64. Steele et al. 2014, doi:10.1145/2660193.2660195.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }
    /// Each pair of seed and stream has its own sequence.
    pub fn stream(seed: u64, stream: u64) -> Rng {
        let mut rng = Rng(seed);
        Rng(rng.bits() ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }
    /// A stream of its own for each name (FNV-1a).
    pub fn named(seed: u64, name: &str) -> Rng {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
        let mut rng = Rng(seed ^ hash);
        Rng(rng.bits())
    }
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In [0, 1), 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }
    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }
    /// In 0..n; the bias of the remainder is below 2⁻³² for any n that fits memory.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.bits() as u128 * n as u128) >> 64) as usize
    }
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_pinned() {
        // The first three are Vigna's published values for seed 1234567.
        let mut rng = Rng(1234567);
        assert_eq!(
            [rng.bits(), rng.bits(), rng.bits()],
            [6457827717110365317, 3203168211198807973, 9817491932198370423]
        );
        let mut list: Vec<u32> = (0..8).collect();
        Rng::stream(42, 1).shuffle(&mut list);
        let mut sorted = list.clone();
        sorted.sort();
        assert_eq!(sorted, (0..8).collect::<Vec<_>>());
        assert_ne!(list, sorted);
    }

    #[test]
    fn streams_are_fixed_and_normal() {
        assert_eq!(Rng::new(1).bits(), 0x910a_2dec_8902_5cc1);
        let mut rng = Rng::named(7, "x");
        let x: Vec<f64> = (0..20000).map(|_| rng.normal() as f64).collect();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
    }
}
