//! What a run says of itself: the lines of `metrics.jsonl`, one JSON object each, and the `Reporter` that the loop talks to.
use crate::io::hub::Event;
use serde::Serialize;
use std::path::Path;

pub const FILE: &str = "metrics.jsonl";
pub const SAMPLES: &str = "samples.jsonl";

/// A step. Loss and norm are this step's; tokens per second count from the last line on.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Steps done, from 1.
    pub step: u64,
    /// Passes over the data done, with a fraction.
    pub epoch: f64,
    /// Mean −log p over the counted labels, in nats.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Of the run up to here, padding left out.
    pub num_input_tokens_seen: u64,
    pub tokens_per_second: f64,
    /// Bytes on the device, at most so far.
    pub memory: u64,
    /// The routers' balance loss, where it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_loss: Option<f64>,
    /// In float16: what the loss was multiplied by for the backward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
}

/// An evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EvalMetrics {
    pub step: u64,
    pub epoch: f64,
    /// Mean −log p over the counted labels, in nats.
    pub eval_loss: f64,
    /// exp(eval_loss).
    pub eval_perplexity: f64,
    /// Seconds.
    pub eval_runtime: f64,
}

/// What the model answered to a prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SampleLine {
    pub step: u64,
    pub prompt: String,
    pub text: String,
    /// What the record has there.
    pub reference: String,
}

/// What the loop tells as it goes. The library itself never prints.
pub trait Reporter {
    /// Before the first step: it starts after step `done` of `total`.
    fn start(&mut self, done: u64, total: u64);
    /// After every step, logged or not.
    fn step(&mut self, step: &StepMetrics);
    fn eval(&mut self, eval: &EvalMetrics);
    /// A text that the model made.
    fn sample(&mut self, prompt: &str, text: &str);
    /// A checkpoint or a result is on disk.
    fn saved(&mut self, path: &Path);
    /// Anything else worth a line: what was loaded, what was skipped, a warning.
    fn message(&mut self, text: &str);
    /// The base model's files, where they come from the Hub.
    fn download(&mut self, _: Event) {}
    /// Asked after every step: `true` makes the loop save a checkpoint now.
    fn wants_checkpoint(&mut self) -> bool {
        false
    }
    /// Asked after every step, and on the way of a download: `true` makes the loop save and end with `Error::Interrupted`.
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// Says nothing.
impl Reporter for () {
    fn start(&mut self, _: u64, _: u64) {}
    fn step(&mut self, _: &StepMetrics) {}
    fn eval(&mut self, _: &EvalMetrics) {}
    fn sample(&mut self, _: &str, _: &str) {}
    fn saved(&mut self, _: &Path) {}
    fn message(&mut self, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_no_number_is_still_json() {
        let step = StepMetrics { step: 1, loss: f64::NAN, ..StepMetrics::default() };
        let line: serde_json::Value = serde_json::from_str(&serde_json::to_string(&step).unwrap()).unwrap();
        assert_eq!((line["step"].as_u64(), line["loss"].is_null()), (Some(1), true));
    }
}
