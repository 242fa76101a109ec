//! Which evaluation was the best, and when to stop waiting for a better one: transformers' rules (`EarlyStoppingCallback`).
use super::config::{BestMetric, TrainConfig};
use super::metrics::EvalMetrics;
use serde::{Deserialize, Deserializer, Serialize};

/// Part of a checkpoint, so that a run that goes on decides the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Best {
    /// Of `metric_for_best_model`.
    #[serde(rename = "best_metric", deserialize_with = "exactly")]
    pub metric: Option<f64>,
    #[serde(rename = "best_global_step")]
    pub global_step: Option<u64>,
    /// Evaluations since one was better than the best before it, by more than the threshold.
    #[serde(rename = "early_stopping_patience_counter")]
    pub patience_counter: u64,
}

/// serde_json's own reading of a float may be off in the last place.
fn exactly<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    let text: Option<Box<serde_json::value::RawValue>> = Deserialize::deserialize(from)?;
    text.map(|text| text.get().parse().map_err(serde::de::Error::custom)).transpose()
}

impl Best {
    /// Takes in an evaluation. `true`: it is the best so far. What is no number is never better.
    pub fn see(&mut self, config: &TrainConfig, eval: &EvalMetrics) -> bool {
        let now = match config.metric_for_best_model {
            BestMetric::Loss => eval.eval_loss,
            BestMetric::Perplexity => eval.eval_perplexity,
        };
        let better = |than: f64| if config.greater_is_better { now > than } else { now < than };
        // the threshold counts from the best so far, of which even the smallest step beyond is the new best
        let far = |best: f64| better(best) && (now - best).abs() > config.early_stopping_threshold;
        self.patience_counter = if self.metric.is_none_or(far) { 0 } else { self.patience_counter + 1 };
        let best = now.is_finite() && self.metric.is_none_or(better);
        if best {
            (self.metric, self.global_step) = (Some(now), Some(eval.step));
        }
        best
    }

    /// Nothing better came for long enough.
    pub fn is_over(&self, config: &TrainConfig) -> bool {
        config.early_stopping_patience.is_some_and(|patience| self.patience_counter >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// eval_loss, whether it is the best so far, and the counter: as transformers' 5.23 `EarlyStoppingCallback` has them.
    type Course = &'static [(f64, bool, u64)];
    const PLAIN: Course = &[
        (f64::NAN, false, 0),
        (2.083, true, 0),
        (1.477, true, 0),
        (1.5, false, 1),
        (1.46, true, 0),
        (1.45, true, 0),
        (f64::NAN, false, 1),
        (1.3, true, 0),
    ];
    /// With a threshold of 0.05.
    const BY_FAR: Course = &[
        (1.912, true, 0),
        (1.983, false, 1),
        (1.863, true, 2),
        (1.641, true, 0),
        (1.599, true, 1),
        (1.488, true, 0),
        (1.5, false, 1),
        (1.46, true, 2),
        (1.45, true, 3),
        (f64::NAN, false, 4),
        (1.3, true, 0),
    ];
    const GREATER: Course = &[(2.109, true, 0), (2.007, false, 1), (1.3, false, 2)];

    fn config(lines: &str) -> TrainConfig {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.toml");
        let needed = "model_name_or_path = 'm'\ndataset = 'd'\neval_dataset = 'e'\noutput_dir = 'o'\n";
        std::fs::write(&file, format!("{needed}{lines}")).unwrap();
        crate::train::config::load(&file, &[]).unwrap()
    }

    #[test]
    fn as_transformers_decides() {
        for (lines, course) in
            [("", PLAIN), ("early_stopping_threshold = 0.05", BY_FAR), ("greater_is_better = true", GREATER)]
        {
            let config = config(&format!("{lines}\nearly_stopping_patience = 4"));
            let mut best = Best::default();
            for (i, (eval_loss, new, counter)) in course.iter().enumerate() {
                let step = i as u64 + 1;
                let eval = EvalMetrics { step, eval_loss: *eval_loss, ..EvalMetrics::default() };
                assert_eq!((best.see(&config, &eval), best.patience_counter), (*new, *counter), "{lines} {step}");
                assert_eq!(best.is_over(&config), *counter >= 4);
                // a checkpoint in between changes nothing
                best = serde_json::from_slice(&serde_json::to_vec(&best).unwrap()).unwrap();
            }
        }
        let mut best = Best { metric: Some(0.1 + 0.2), ..Best::default() };
        best = serde_json::from_slice(&serde_json::to_vec_pretty(&best).unwrap()).unwrap();
        assert_eq!(best.metric.map(f64::to_bits), Some((0.1f64 + 0.2).to_bits()));
    }
}
