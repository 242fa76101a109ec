//! RoPE as a config describes it: frequencies, and the op's table. Su et al. 2021, arXiv:2104.09864.

/// Rotary positions: angle of (position t, pair d) = t·inv_freq[d].
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    Default,
    /// Positions divided by a factor.
    Linear {
        factor: f64,
    },
    /// NTK-aware: sequences longer than `trained` get a larger theta, the shorter ones none.
    Dynamic {
        factor: f64,
        trained: usize,
    },
    /// Llama 3.1: low frequencies divided by a factor, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Yarn(Yarn),
    /// Divisors per pair: `short` for sequences of up to `original` tokens, `long` beyond. Ding et al. 2024, arXiv:2402.13753.
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original: usize,
        attention_factor: f64,
    },
}

/// Pairs that turn more than `fast` times within `original` positions are kept, those below `slow` divided by `factor`, a ramp
/// over the pairs between. Peng et al. 2023, arXiv:2309.00071.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub fast: f64,
    pub slow: f64,
    pub original: f64,
    pub ends: RampEnds,
    pub attention_factor: f64,
}

/// Where YaRN's ramp begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RampEnds {
    /// At whole pairs (`truncate`, the default).
    Whole,
    Exact,
}

impl Yarn {
    /// inv_freq `f` of pair `d` of `A/2`.
    fn scaled(&self, f: f64, d: usize, A: usize, theta: f64) -> f64 {
        let turning =
            |turns: f64| A as f64 * (self.original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
        let (low, high) = (turning(self.fast), turning(self.slow));
        let (low, high) = match self.ends {
            RampEnds::Whole => (low.floor(), high.ceil()),
            RampEnds::Exact => (low, high),
        };
        let (low, high) = (low.max(0.0), high.min(A as f64 - 1.0));
        let width = if low == high { 0.001 } else { high - low };
        let divided = ((d as f64 - low) / width).clamp(0.0, 1.0);
        f / self.factor * divided + f * (1.0 - divided)
    }
}

/// What a sequence's length does to its angles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Short,
    /// All long sequences have the same other angles.
    Long,
    /// A sequence of so many tokens has angles of its own.
    Own(usize),
}

impl Rope {
    /// The angles of a sequence of so many tokens.
    pub fn reach(&self, tokens: usize) -> Reach {
        match self.scaling {
            RopeScaling::LongRope { original, .. } if tokens > original => Reach::Long,
            RopeScaling::Dynamic { trained, .. } if tokens > trained => Reach::Own(tokens),
            _ => Reach::Short,
        }
    }

    /// Radians per position of each of the A/2 pairs.
    pub fn inv_freq(&self, A: usize, reach: Reach) -> Vec<f64> {
        let theta = self.theta_of(A, reach);
        let plain = |d: usize| theta.powf(-2.0 * d as f64 / A as f64);
        (0..A / 2).map(|d| self.scaled(plain(d), d, A, reach)).collect()
    }

    /// NTK-aware: theta·(factor·tokens/trained − (factor − 1))^(A/(A − 2)).
    fn theta_of(&self, A: usize, reach: Reach) -> f64 {
        match (&self.scaling, reach) {
            (RopeScaling::Dynamic { factor, trained }, Reach::Own(tokens)) => {
                let stretch = factor * tokens as f64 / *trained as f64 - (factor - 1.0);
                self.theta * stretch.powf(A as f64 / (A as f64 - 2.0))
            }
            _ => self.theta,
        }
    }

    fn scaled(&self, f: f64, d: usize, A: usize, reach: Reach) -> f64 {
        match &self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let turns = original * f / std::f64::consts::TAU;
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - smooth) * f / factor + smooth * f
            }
            RopeScaling::Yarn(yarn) => yarn.scaled(f, d, A, self.theta),
            RopeScaling::LongRope { short, long, .. } => f / if reach == Reach::Long { long[d] } else { short[d] },
        }
    }

    /// What cos and sin are multiplied by, so that attention scores keep their size.
    fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(Yarn { attention_factor, .. }) | RopeScaling::LongRope { attention_factor, .. } => {
                *attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// The op's table: per position cos of the A/2 angles, then sin. Where the length matters, the rows of long sequences follow
    /// those of short ones. Frequencies and angles are rounded to f32, as the models were trained with: at large positions an
    /// exact angle would be another one.
    pub fn table(&self, positions: usize, A: usize) -> Vec<f32> {
        let mut table = self.rows(0..positions, A, Reach::Short);
        if matches!(self.scaling, RopeScaling::LongRope { .. }) {
            table.extend(self.rows(0..positions, A, Reach::Long));
        }
        table
    }

    /// Those of some positions.
    pub fn rows(&self, positions: impl IntoIterator<Item = usize>, A: usize, reach: Reach) -> Vec<f32> {
        let freq: Vec<f32> = self.inv_freq(A, reach).into_iter().map(|f| f as f32).collect();
        let factor = self.attention_factor();
        let row = |t: usize| {
            let angles: Vec<f64> = freq.iter().map(|f| (t as f32 * f) as f64).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32 * factor).collect();
            cos.into_iter().chain(angles.into_iter().map(move |a| a.sin() as f32 * factor))
        };
        positions.into_iter().flat_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let plain = Rope { theta: 500000.0, scaling: RopeScaling::Default }.inv_freq(128, Reach::Short);
        let scaled = Rope { theta: 500000.0, scaling }.inv_freq(128, Reach::Short);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-12);
        assert!(plain.iter().zip(&scaled).all(|(p, s)| *s <= *p && *s >= p / 8.0));
    }

    /// The ramp of theta 10000, 128 channels, 4096 positions: 128·ln(4096/(32·2π))/(2·ln 10000) = 20.9, and 45.03 for 1 turn.
    #[test]
    fn yarn_ramps_between_whole_pairs() {
        let yarn =
            Yarn { factor: 4.0, fast: 32.0, slow: 1.0, original: 4096.0, ends: RampEnds::Whole, attention_factor: 1.5 };
        let rope = |scaling| Rope { theta: 10000.0, scaling };
        let plain = rope(RopeScaling::Default).inv_freq(128, Reach::Short);
        let scaled = rope(RopeScaling::Yarn(yarn.clone())).inv_freq(128, Reach::Short);
        let ratio = |d: usize| scaled[d] / plain[d];
        assert_eq!((ratio(20), ratio(46)), (1.0, 0.25));
        assert!((ratio(33) - (1.0 - 0.75 * 13.0 / 26.0)).abs() < 1e-12, "{}", ratio(33));
        assert_eq!(rope(RopeScaling::Yarn(yarn)).table(1, 128)[0], 1.5);
    }

    #[test]
    fn long_sequences_read_the_second_half() {
        let scaling =
            RopeScaling::LongRope { short: vec![1.0; 2], long: vec![2.0; 2], original: 8, attention_factor: 1.0 };
        let rope = Rope { theta: 10000.0, scaling };
        assert_eq!((rope.reach(8), rope.reach(9)), (Reach::Short, Reach::Long));
        let table = rope.table(3, 4);
        assert_eq!(table[4..8], table[3 * 4 + 2 * 4..][..4], "position 2 at half the speed is position 1");
    }

    #[test]
    fn dynamic_angles_slow_with_the_length() {
        let rope = Rope { theta: 10000.0, scaling: RopeScaling::Dynamic { factor: 2.0, trained: 8 } };
        assert_eq!((rope.reach(8), rope.reach(12)), (Reach::Short, Reach::Own(12)));
        let (short, long) = (rope.inv_freq(4, Reach::Short), rope.inv_freq(4, Reach::Own(12)));
        // theta·(2·12/8 − 1)^(4/2) = 4·theta, and the second of two pairs has its root
        assert!((short[0], short[1] / long[1]) == (1.0, 2.0), "{short:?} {long:?}");
    }

    #[test]
    fn the_table_is_cos_then_sin() {
        let table = Rope { theta: 10000.0, scaling: RopeScaling::Default }.table(3, 4);
        assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
        assert!((table[2 * 4] - 2f32.cos()).abs() < 1e-7 && (table[2 * 4 + 2] - 2f32.sin()).abs() < 1e-7);
    }
}
