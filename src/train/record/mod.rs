//! What a run leaves to be looked at: `run.json` (what, where, how it ended), `metrics.jsonl`, `samples.jsonl`, and the event
//! files of TensorBoard. A resumed run goes on in the same files, and each step is in them once.
pub mod host;
pub mod info;
mod lines;
mod protobuf;
mod tensorboard;
pub mod time;
use super::config::{Tracker, TrainConfig};
use super::metrics::{self, EvalMetrics, SampleLine, StepMetrics};
use super::report;
use crate::error::{Error, Result};
use info::RunInfo;
use lines::Lines;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;
use tensorboard::Events;

pub(super) struct Record {
    dir: PathBuf,
    metrics: Lines,
    samples: Lines,
    events: Option<Events>,
    info: RunInfo,
    /// Seconds that the run had taken when it was resumed.
    before: f64,
    since: Instant,
}

impl Record {
    /// Of a run that goes on after step `done` of `info.total_steps`, from the checkpoint `from`.
    pub fn open(config: &TrainConfig, mut info: RunInfo, done: u64, from: Option<String>) -> Result<Record> {
        let dir = config.output_dir.clone();
        // a file that is damaged loses the run's history, not the run
        let earlier = RunInfo::read(&dir).ok().flatten().unwrap_or_default();
        let events = events(config, &info, &earlier, done)?;
        info.events = events.as_ref().map(Events::name);
        if done > 0 && !earlier.started.is_empty() {
            (info.started, info.seconds, info.resumed_from) = (earlier.started, earlier.seconds, earlier.resumed_from);
        }
        info.resumed_from.extend(from);
        info.global_step = done;
        info.write(&dir)?;
        Ok(Record {
            metrics: Lines::open(dir.join(metrics::FILE), done)?,
            samples: Lines::open(dir.join(metrics::SAMPLES), done)?,
            events,
            before: info.seconds,
            since: Instant::now(),
            dir,
            info,
        })
    }

    /// After every step, logged or not.
    pub fn reached(&mut self, step: &StepMetrics) {
        self.info.global_step = step.step;
        self.info.num_input_tokens_seen = step.num_input_tokens_seen;
        self.info.memory_peak = self.info.memory_peak.max(step.memory);
    }

    pub fn step(&mut self, step: &StepMetrics) -> Result<()> {
        self.metrics.line(step)?;
        self.scalars(step.step, step)
    }

    pub fn eval(&mut self, eval: &EvalMetrics) -> Result<()> {
        self.metrics.line(eval)?;
        self.scalars(eval.step, eval)
    }

    pub fn sample(&mut self, sample: &SampleLine) -> Result<()> {
        self.samples.line(sample)?;
        match &mut self.events {
            Some(events) => events.text(sample.step, "samples", &format!("> {}\n\n{}", sample.prompt, sample.text)),
            None => Ok(()),
        }
    }

    /// Every number of a line, under transformers' tags.
    fn scalars(&mut self, step: u64, line: &impl Serialize) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let line = serde_json::to_value(line).map_err(|e| Error::Bug(e.to_string()))?;
        let tagged = |(key, value): (&String, &serde_json::Value)| Some((tag(key)?, value.as_f64()?));
        let scalars: Vec<_> = line.as_object().into_iter().flatten().filter_map(tagged).collect();
        events.scalars(step, &scalars)
    }

    /// Puts everything on disk: before a checkpoint, so that none of its steps lacks its line.
    pub fn sync(&mut self) -> Result<()> {
        self.metrics.sync()?;
        self.samples.sync()?;
        self.events.as_ref().map_or(Ok(()), Events::sync)?;
        self.info.seconds = self.before + self.since.elapsed().as_secs_f64();
        self.info.write(&self.dir)
    }

    /// Says how the run ended, and draws it.
    pub fn end<T>(mut self, ended: &Result<T>) -> Result<()> {
        self.info.status = info::Status::of(ended);
        self.info.error = ended.as_ref().err().map(Error::to_string);
        self.info.ended = Some(time::utc(time::now() as u64));
        self.sync()?;
        report::write(&self.dir).map(|_| ())
    }
}

/// TensorBoard's file: the run's own where it goes on, a new one where it begins.
fn events(config: &TrainConfig, info: &RunInfo, earlier: &RunInfo, done: u64) -> Result<Option<Events>> {
    if !config.report_to.0.contains(&Tracker::TensorBoard) {
        return Ok(None);
    }
    let dir = config.logging_dir.clone().unwrap_or_else(|| config.output_dir.join("tensorboard"));
    // only a name, never a way out of the folder
    let own = earlier.events.as_ref().filter(|name| name.contains("tfevents") && !name.contains(['/', '\\', ':']));
    if let Some(own) = own.map(|name| dir.join(name)) {
        if done == 0 {
            if own.is_file() {
                std::fs::remove_file(&own).map_err(Error::write(&own))?;
            }
        } else if let Some(events) = Events::resume(own, done)? {
            return Ok(Some(events));
        }
    }
    let mut events = Events::create(&dir, info.host.name.as_deref())?;
    events.text(0, "args", &config.to_toml()?)?;
    Ok(Some(events))
}

/// As transformers' `rewrite_logs`: `eval_loss` is `eval/loss`, anything else `train/…`.
fn tag(key: &str) -> Option<String> {
    match key.strip_prefix("eval_") {
        _ if key == "step" => None,
        Some(rest) => Some(format!("eval/{rest}")),
        None => Some(format!("train/{key}")),
    }
}

#[cfg(test)]
mod tests {
    use super::tag;

    #[test]
    fn tags_are_those_of_transformers() {
        let tags: Vec<_> = ["loss", "eval_loss", "learning_rate", "step"].into_iter().map(tag).collect();
        let want = [Some("train/loss"), Some("eval/loss"), Some("train/learning_rate"), None];
        assert_eq!(tags, want.map(|t| t.map(str::to_string)));
    }
}
