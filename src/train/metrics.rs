//! What a run says of itself: `metrics.jsonl`, one JSON object a line, and the `Reporter` that the loop talks to.
use super::disk;
use crate::error::{Error, Result};
use crate::io::hub::Event;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

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

/// An answer to one of the evaluation's prompts.
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

/// `metrics.jsonl` of a run, or another file of lines that have a `step`.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens the file to go on after step `done`: later lines, and one that a crash cut short, are taken away.
    pub fn open(output_dir: &Path, done: u64) -> Result<MetricsFile> {
        Self::named(output_dir, FILE, done)
    }

    /// The same for `samples.jsonl`.
    pub fn samples(output_dir: &Path, done: u64) -> Result<MetricsFile> {
        Self::named(output_dir, SAMPLES, done)
    }

    fn named(output_dir: &Path, name: &str, done: u64) -> Result<MetricsFile> {
        let path = output_dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let kept = kept(&path, &text, done)?;
                if kept != text {
                    disk::publish(&path, |temporary| disk::write(temporary, kept.as_bytes()))?;
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::read(&path)(e)),
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::write(&path))?;
        Ok(MetricsFile { path, file })
    }

    pub fn step(&mut self, step: &StepMetrics) -> Result<()> {
        self.line(step)
    }

    pub fn eval(&mut self, eval: &EvalMetrics) -> Result<()> {
        self.line(eval)
    }

    pub fn sample(&mut self, sample: &SampleLine) -> Result<()> {
        self.line(sample)
    }

    /// Puts the lines on disk: before a checkpoint, so that none of its steps lacks its line.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::write(&self.path))
    }

    /// One call writes the whole line, so that a reader that follows the file sees no halves.
    fn line(&mut self, what: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(what).map_err(|e| Error::Bug(e.to_string()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(Error::write(&self.path))
    }
}

/// The lines of the steps up to `done`.
fn kept(path: &Path, text: &str, done: u64) -> Result<String> {
    let mut kept = String::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if !line.ends_with('\n') {
            break;
        }
        let json: Option<serde_json::Value> = serde_json::from_str(line).ok();
        let step = json.as_ref().and_then(|json| json["step"].as_u64()).ok_or_else(|| {
            let at = format!("line {}", i + 1);
            Error::content(path, at, "not a line of metrics (a JSON object with a `step`): repair or remove the file")
        })?;
        if step <= done {
            kept.push_str(line);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepMetrics {
        StepMetrics { step, loss: 0.5, ..StepMetrics::default() }
    }

    fn steps(dir: &Path) -> Vec<u64> {
        let text = fs::read_to_string(dir.join(FILE)).unwrap();
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap();
        text.lines().map(step).collect()
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        for n in 1..=5 {
            file.step(&step(n)).unwrap();
        }
        file.eval(&EvalMetrics { step: 5, ..EvalMetrics::default() }).unwrap();
        let mut file = MetricsFile::open(dir.path(), 3).unwrap();
        assert_eq!(steps(dir.path()), [1, 2, 3]);
        file.step(&step(4)).unwrap();
        file.sync().unwrap();
        assert_eq!(steps(dir.path()), [1, 2, 3, 4]);
        MetricsFile::open(dir.path(), 0).unwrap();
        assert!(steps(dir.path()).is_empty());
    }

    #[test]
    fn a_torn_last_line_goes_and_a_foreign_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"ste").unwrap();
        MetricsFile::open(dir.path(), 9).unwrap();
        assert_eq!(steps(dir.path()), [1, 2]);
        fs::write(&path, "{\"step\":1}\nhello\n").unwrap();
        let e = MetricsFile::open(dir.path(), 9).unwrap_err().to_string();
        assert!(e.contains("metrics.jsonl: line 2: not a line of metrics"), "{e}");
    }

    #[test]
    fn a_loss_that_is_no_number_is_still_json() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        file.step(&StepMetrics { loss: f64::NAN, ..step(1) }).unwrap();
        assert_eq!(steps(dir.path()), [1]);
    }
}
