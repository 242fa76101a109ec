//! Mean cross-entropy of the labels that count, over all micro-batches of a step: pretraining and SFT.
//!
//! loss = −Σ logp / counted,  coef = ∂loss/∂logp = −1/counted where a label counts
use crate::ops::logprob::IGNORE;

/// `counted`: labels that count in the whole step, not in this micro-batch.
pub fn coef(labels: &[u32], counted: usize) -> Vec<f32> {
    let each = -1.0 / counted.max(1) as f64;
    labels.iter().map(|l| if *l == IGNORE { 0.0 } else { each as f32 }).collect()
}

/// This micro-batch's share of the step's loss; ignored labels have logp 0.
pub fn loss(logp: &[f32], counted: usize) -> f64 {
    -logp.iter().map(|x| *x as f64).sum::<f64>() / counted.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_mean_over_all_micro_batches() {
        let (a, b) = ([-1.0, 0.0, -2.0], [-6.0]);
        assert_eq!(loss(&a, 3) + loss(&b, 3), 3.0);
        assert_eq!(coef(&[5, IGNORE], 2), [-0.5, 0.0]);
    }
}
