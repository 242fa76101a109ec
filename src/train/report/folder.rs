//! A run's folder, read back: its facts, its curves, its samples, its checkpoints. Nothing of it is trusted.
use super::super::record::info;
use super::super::record::info::{RunInfo, Status};
use super::super::{checkpoint, metrics};
use super::figure::Points;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub const CONFIG: &str = "config.toml";

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Sample {
    pub step: u64,
    pub prompt: String,
    pub text: String,
    /// What the record has there.
    #[serde(default)]
    pub reference: String,
}

/// What is to be seen of a run.
#[derive(Clone, Debug)]
pub struct Folder {
    pub path: PathBuf,
    pub info: RunInfo,
    pub state: State,
    /// The config as it was resolved, as text and as `lora.r` = 8.
    pub config: String,
    pub keys: BTreeMap<String, String>,
    /// Every number of `metrics.jsonl` by its name.
    pub curves: BTreeMap<String, Points>,
    pub samples: Vec<Sample>,
    /// Names, the newest last.
    pub checkpoints: Vec<String>,
}

/// How a run is, as far as its folder says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    As(Status),
    /// It says that it runs, but no process holds its folder.
    Killed,
    /// Of a version without `run.json`.
    Unknown,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::As(status) => status.name(),
            State::Killed => "killed",
            State::Unknown => "unknown",
        }
    }
}

/// Whether a folder is a run's.
pub fn is_run(dir: &Path) -> bool {
    dir.join(info::FILE).is_file() || (dir.join(metrics::FILE).is_file() && dir.join(CONFIG).is_file())
}

impl Folder {
    pub fn read(dir: &Path) -> Result<Folder> {
        if !is_run(dir) {
            let what = format!("not a run's folder: it has no {}", info::FILE);
            return Err(Error::Read {
                file: dir.to_path_buf(),
                source: std::io::Error::new(ErrorKind::NotFound, what),
            });
        }
        let found = RunInfo::read(dir)?;
        let config = text(&dir.join(CONFIG))?;
        let table: toml::Table = config.parse().map_err(|e: toml::de::Error| {
            Error::content(dir.join(CONFIG), "", format!("is not valid TOML: {}", e.message()))
        })?;
        let mut keys = BTreeMap::new();
        flatten(&mut keys, "", &table);
        Ok(Folder {
            path: dir.to_path_buf(),
            state: state(dir, &found),
            info: found.unwrap_or_default(),
            config,
            keys,
            curves: curves(&dir.join(metrics::FILE))?,
            samples: samples(&dir.join(metrics::SAMPLES))?,
            checkpoints: checkpoint::names(dir)?,
        })
    }

    /// The folder's last name.
    pub fn name(&self) -> String {
        let whole = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
    }

    /// The values of `name` over the steps; empty where there are none.
    pub fn curve(&self, name: &str) -> &[(f64, f64)] {
        self.curves.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn last(&self, name: &str) -> Option<f64> {
        self.curve(name).last().map(|(_, value)| *value)
    }

    /// The step and value of the least.
    pub fn least(&self, name: &str) -> Option<(u64, f64)> {
        let finite = self.curve(name).iter().filter(|(_, value)| value.is_finite());
        finite.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(step, value)| (*step as u64, *value))
    }

    /// The mean over the later half of the run, which the start does not slow.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let all = self.curve("tokens_per_second");
        let late = &all[all.len() / 2..];
        (!late.is_empty()).then(|| late.iter().map(|(_, value)| value).sum::<f64>() / late.len() as f64)
    }

    /// The last step that is known.
    pub fn step(&self) -> u64 {
        let logged = self.curve("loss").last().map_or(0, |(step, _)| *step as u64);
        self.info.global_step.max(logged)
    }
}

/// A file that may be absent.
fn text(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| Error::content(path, "", "is not UTF-8 text")),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Error::read(path)(e)),
    }
}

fn state(dir: &Path, info: &Option<RunInfo>) -> State {
    match info {
        None => State::Unknown,
        Some(info) if info.status == Status::Running && !is_held(dir) => State::Killed,
        Some(info) => State::As(info.status),
    }
}

/// Whether a process trains in the folder.
fn is_held(dir: &Path) -> bool {
    let lock = File::open(dir.join(checkpoint::LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn flatten(keys: &mut BTreeMap<String, String>, before: &str, table: &toml::Table) {
    for (key, value) in table {
        let name = format!("{before}{key}");
        match value {
            toml::Value::Table(inner) => flatten(keys, &format!("{name}."), inner),
            toml::Value::String(text) => drop(keys.insert(name, text.clone())),
            other => drop(keys.insert(name, other.to_string())),
        }
    }
}

/// The whole lines of a file as JSON; the last one of a run that is going on may be half written.
fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = text(path)?;
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let line = |(i, line): (usize, &str)| {
        let at = format!("line {}", i + 1);
        serde_json::from_str(line).map_err(|e| Error::content(path, at, format!("is no JSON: {e}")))
    };
    whole.lines().enumerate().map(line).collect()
}

fn curves(path: &Path) -> Result<BTreeMap<String, Points>> {
    let mut curves: BTreeMap<String, Points> = BTreeMap::new();
    for line in lines(path)? {
        let Some((step, keys)) = line["step"].as_u64().zip(line.as_object()) else { continue };
        for (key, value) in keys.iter().filter(|(key, _)| *key != "step") {
            // null is how JSON has a number that is none
            let value = if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
            if let Some(value) = value {
                curves.entry(key.clone()).or_default().push((step as f64, value));
            }
        }
    }
    Ok(curves)
}

/// Each prompt once a step: a run that was resumed there made it again.
fn samples(path: &Path) -> Result<Vec<Sample>> {
    let mut samples: Vec<Sample> = Vec::new();
    for line in lines(path)? {
        let Ok(sample) = serde_json::from_value::<Sample>(line) else { continue };
        samples.retain(|other| (other.step, &other.prompt) != (sample.step, &sample.prompt));
        samples.push(sample);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_another_kind_is_refused_and_a_young_run_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let e = Folder::read(dir.path()).unwrap_err();
        assert_eq!((e.exit_code(), e.to_string().contains("not a run's folder")), (74, true), "{e}");
        fs::write(at(info::FILE), r#"{"status": "running", "total_steps": 9}"#).unwrap();
        fs::write(at(CONFIG), "learning_rate = 0.5\nname = \"x\"\n[lora]\nr = 4\n").unwrap();
        let lines =
            "{\"step\":0,\"eval_loss\":3.5}\n{\"step\":1,\"loss\":2.0}\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"lo";
        fs::write(at(metrics::FILE), lines).unwrap();
        let sample = |text: &str| format!("{{\"step\":0,\"prompt\":\"p\",\"text\":{text:?}}}\n");
        fs::write(at(metrics::SAMPLES), sample("a") + &sample("b")).unwrap();
        fs::create_dir(at("checkpoint-10")).unwrap();
        fs::create_dir(at("checkpoint-9")).unwrap();
        let run = Folder::read(dir.path()).unwrap();
        assert_eq!((run.state, run.step(), run.info.total_steps), (State::Killed, 2, 9));
        assert_eq!(run.keys.get("lora.r").map(String::as_str), Some("4"));
        assert_eq!(
            (run.curve("loss").len(), run.least("loss"), run.least("eval_loss")),
            (2, Some((1, 2.0)), Some((0, 3.5)))
        );
        assert_eq!(run.samples.iter().map(|s| s.text.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(run.checkpoints, ["checkpoint-9", "checkpoint-10"]);
    }

    #[test]
    fn a_run_that_goes_on_is_told_from_one_that_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(info::FILE), r#"{"status": "running"}"#).unwrap();
        let held = checkpoint::RunDir::open(dir.path()).unwrap();
        assert_eq!(Folder::read(dir.path()).unwrap().state, State::As(Status::Running));
        drop(held);
        assert_eq!(Folder::read(dir.path()).unwrap().state, State::Killed);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(info::FILE), "{}").unwrap();
        fs::write(dir.path().join(metrics::FILE), "{\"step\":1}\nhello\n").unwrap();
        let e = Folder::read(dir.path()).unwrap_err();
        assert!(e.to_string().contains("metrics.jsonl: line 2: is no JSON"), "{e}");
    }
}
