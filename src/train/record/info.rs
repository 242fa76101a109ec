//! `run.json`: what a run was, where, and how it ended. Written whole when a run begins, at its checkpoints and when it ends.
use super::super::config::{Method, TrainConfig};
use super::super::disk;
use super::host::{Git, Host};
use super::time;
use crate::backend::Backend;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::model::Model;
use serde::{Deserialize, Serialize};
use std::path::Path;

pub const FILE: &str = "run.json";

/// Keys that a file of another version lacks are empty, and keys that this one does not know are passed over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// The version.
    pub luthier: String,
    pub status: Status,
    /// Why it did not finish.
    pub error: Option<String>,
    pub command: Vec<String>,
    pub git: Option<Git>,
    pub host: Host,
    pub device: Device,
    pub model: ModelInfo,
    pub data: DataInfo,
    pub total_steps: u64,
    pub global_step: u64,
    pub num_input_tokens_seen: u64,
    /// RFC 3339, of the first start and the last end.
    pub started: String,
    pub ended: Option<String>,
    /// While it ran, all starts together.
    pub seconds: f64,
    /// Bytes on the device, at most.
    pub memory_peak: u64,
    /// The checkpoints that it went on from.
    pub resumed_from: Vec<String>,
    /// TensorBoard's file in `logging_dir`.
    pub events: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Or killed: the file cannot know.
    #[default]
    Running,
    Finished,
    /// By the user; saved, resumable.
    Interrupted,
    /// By itself, before harm.
    Stopped,
    Failed,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Running => "running",
            Status::Finished => "finished",
            Status::Interrupted => "interrupted",
            Status::Stopped => "stopped",
            Status::Failed => "failed",
        }
    }

    /// Of a run that ended so.
    pub(super) fn of<T>(ended: &Result<T>) -> Status {
        match ended {
            Ok(_) => Status::Finished,
            Err(Error::Interrupted(_)) => Status::Interrupted,
            Err(Error::Stopped(_)) => Status::Stopped,
            Err(_) => Status::Failed,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    pub backend: String,
    pub name: String,
    pub driver: Option<String>,
    /// Bytes.
    pub memory: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelInfo {
    pub name: String,
    pub model_type: String,
    /// `sft` or `pretrain`, with what is trained: `full`, `lora`, `dora`, and `qlora` or `qdora` on a packed base.
    pub method: String,
    pub dtype: String,
    pub parameters: u64,
    pub trainable_parameters: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataInfo {
    pub records: usize,
    pub train_examples: usize,
    pub eval_examples: usize,
    pub tokens: usize,
    /// Tokens that the loss counts.
    pub targets: usize,
    /// Tokens of the train examples: shortest, median, mean, 90th percentile, longest.
    pub lengths: [f64; 5],
    /// The share of an epoch's computed tokens that are no padding.
    pub fill: f64,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finding {
    pub warning: bool,
    pub text: String,
}

impl RunInfo {
    /// Of a run that begins now. `fill`: see [`DataInfo`].
    pub(in crate::train) fn new(
        config: &TrainConfig,
        b: &dyn Backend,
        model: &Model,
        data: &Dataset,
        fill: f64,
    ) -> RunInfo {
        RunInfo {
            luthier: env!("CARGO_PKG_VERSION").to_string(),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            git: Git::here(),
            host: Host::here(),
            device: Device {
                backend: b.name().to_string(),
                name: b.device(),
                driver: b.driver(),
                memory: b.memory().total,
            },
            model: ModelInfo {
                name: config.model_name_or_path.to_string_lossy().into_owned(),
                model_type: model.spec.model_type.clone(),
                method: method(config, model),
                dtype: config.dtype.name().to_string(),
                parameters: model.all_parameters(),
                trainable_parameters: model.trainable_parameters() as u64,
            },
            data: DataInfo::new(data, fill),
            started: time::utc(time::now() as u64),
            ..RunInfo::default()
        }
    }

    /// `None`: the file is not there.
    pub fn read(dir: &Path) -> Result<Option<RunInfo>> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| Error::content(&path, format!("line {}", e.line()), format!("not a run's facts: {e}"))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::read(&path)(e)),
        }
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::Bug(e.to_string()))?;
        disk::publish(&dir.join(FILE), |file| disk::write(file, &text))
    }
}

fn method(config: &TrainConfig, model: &Model) -> String {
    let packed = config.load_in_4bit
        || config.load_in_8bit
        || model.linears().any(|l| l.fp8().is_none() && !l.weight.quantized().is_empty());
    let trained = match &model.lora {
        None => "full",
        Some(lora) if lora.use_dora && packed => "qdora",
        Some(lora) if lora.use_dora => "dora",
        Some(_) if packed => "qlora",
        Some(_) => "lora",
    };
    let what = match config.method {
        Method::Sft => "sft",
        Method::Pretrain => "pretrain",
    };
    format!("{what} {trained}")
}

impl DataInfo {
    fn new(data: &Dataset, fill: f64) -> DataInfo {
        let report = &data.report;
        let findings = report.findings.iter();
        DataInfo {
            records: report.records,
            train_examples: data.train.len(),
            eval_examples: data.eval.len(),
            tokens: report.tokens,
            targets: report.targets,
            lengths: lengths(data.train.lengths()),
            fill,
            findings: findings.map(|f| Finding { warning: f.finding.is_warning(), text: f.to_string() }).collect(),
        }
    }
}

/// Shortest, median, mean, 90th percentile, longest.
fn lengths(mut lengths: Vec<usize>) -> [f64; 5] {
    lengths.sort();
    let at = |share: f64| lengths.get((lengths.len().saturating_sub(1) as f64 * share).round() as usize);
    let at = |share: f64| at(share).map_or(0.0, |n| *n as f64);
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
    [at(0.0), at(0.5), mean, at(0.9), at(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_other_versions_too() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(RunInfo::read(dir.path()).unwrap(), None);
        let info = RunInfo { status: Status::Stopped, error: Some("NaN".into()), total_steps: 9, ..RunInfo::default() };
        info.write(dir.path()).unwrap();
        assert_eq!(RunInfo::read(dir.path()).unwrap(), Some(info));
        std::fs::write(dir.path().join(FILE), r#"{"luthier": "9.9", "device": {"name": "x"}, "new": [1]}"#).unwrap();
        let read = RunInfo::read(dir.path()).unwrap().unwrap();
        assert_eq!((read.luthier.as_str(), read.device.name.as_str(), read.status), ("9.9", "x", Status::Running));
        std::fs::write(dir.path().join(FILE), "{\n\"luthier\": 3}").unwrap();
        let e = RunInfo::read(dir.path()).unwrap_err();
        assert!(e.to_string().contains("run.json: line 2: not a run's facts"), "{e}");
    }

    #[test]
    fn lengths_of_examples() {
        assert_eq!(lengths(vec![4, 1, 2, 3, 10]), [1.0, 3.0, 4.0, 10.0, 10.0]);
        assert_eq!(lengths(vec![]), [0.0; 5]);
    }
}
