//! Dynamic loss scaling, which float16 needs: small gradients would be 0 in it, so the loss is multiplied by a scale that is
//! as great as it can be. torch.amp.GradScaler's rule: an overflow halves the scale, and the step is left out; 2000 steps
//! without one double it. Micikevicius et al. 2018, arXiv:1710.03740.
use serde::{Deserialize, Serialize};

const FIRST: f64 = 65536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
/// Steps in a row without an overflow until the scale grows.
const INTERVAL: u64 = 2000;

/// Part of a checkpoint. The scale is a power of two: scaling and its undoing round nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    pub scale: f64,
    /// Steps since the scale changed.
    pub growth_tracker: u64,
    /// Steps of the run that were left out: the optimizer and the schedule have not seen them.
    pub skipped_steps: u64,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale { scale: FIRST, growth_tracker: 0, skipped_steps: 0 }
    }
}

impl LossScale {
    /// After a step that was taken.
    pub fn good(&mut self) {
        self.growth_tracker += 1;
        if self.growth_tracker == INTERVAL {
            self.growth_tracker = 0;
            // beyond f32 the loss itself would overflow
            if self.scale * GROWTH <= f32::MAX as f64 {
                self.scale *= GROWTH;
            }
        }
    }

    /// After a step that was left out. `false`: the scale is below 1, so what overflows is not the scaling's fault.
    pub fn overflow(&mut self) -> bool {
        self.scale *= BACKOFF;
        self.growth_tracker = 0;
        self.skipped_steps += 1;
        self.scale >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of good steps, each ended by an overflow, and what torch.amp.GradScaler("cpu") of torch 2.15 says after each.
    const TORCH: &[(u64, f64, u64)] =
        &[(0, 32768.0, 0), (0, 16384.0, 0), (1999, 8192.0, 0), (2000, 8192.0, 0), (4001, 16384.0, 0), (7, 8192.0, 0)];

    #[test]
    fn as_torchs_scaler() {
        let mut scale = LossScale::default();
        for (good, want, tracker) in TORCH {
            (0..*good).for_each(|_| scale.good());
            assert!(scale.overflow());
            assert_eq!((scale.scale, scale.growth_tracker), (*want, *tracker));
        }
        (0..2001).for_each(|_| scale.good());
        assert_eq!((scale.scale, scale.growth_tracker, scale.skipped_steps), (16384.0, 1, 6));
        let left = (0..).take_while(|_| scale.overflow()).count();
        assert_eq!((left, scale.scale), (14, 0.5));
    }
}
