//! A file of JSON objects, one a line, each of a step; a resumed run goes on in it with each step once.
use super::super::disk;
use crate::error::{Error, Result};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens the file to go on after step `done`: later lines, and one that a crash cut short, are taken away. A run that
    /// starts at step 0 finds it empty.
    pub fn open(path: PathBuf, done: u64) -> Result<Lines> {
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
        Ok(Lines { path, file })
    }

    /// One call writes the whole line, so that a reader that follows the file sees no halves.
    pub fn line(&mut self, what: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(what).map_err(|e| Error::Bug(e.to_string()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(disk::full(&self.path, text.len() as u64))
    }

    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::write(&self.path))
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
        if step <= done && done > 0 {
            kept.push_str(line);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, done: u64) -> Lines {
        Lines::open(dir.join("metrics.jsonl"), done).unwrap()
    }

    fn line(step: u64) -> serde_json::Value {
        serde_json::json!({ "step": step, "loss": 0.5 })
    }

    fn steps(dir: &Path) -> Vec<u64> {
        let text = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap();
        text.lines().map(step).collect()
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = open(dir.path(), 0);
        for n in [0, 1, 2, 3, 4, 5, 5] {
            file.line(&line(n)).unwrap();
        }
        let mut file = open(dir.path(), 3);
        assert_eq!(steps(dir.path()), [0, 1, 2, 3]);
        file.line(&line(4)).unwrap();
        file.sync().unwrap();
        assert_eq!(steps(dir.path()), [0, 1, 2, 3, 4]);
        open(dir.path(), 0);
        assert!(steps(dir.path()).is_empty(), "a run from step 0 on writes its evaluation at 0 itself");
    }

    #[test]
    fn a_torn_last_line_goes_and_a_foreign_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"ste").unwrap();
        open(dir.path(), 9);
        assert_eq!(steps(dir.path()), [1, 2]);
        fs::write(&path, "{\"step\":1}\nhello\n").unwrap();
        let e = Lines::open(path, 9).unwrap_err().to_string();
        assert!(e.contains("metrics.jsonl: line 2: not a line of metrics"), "{e}");
    }
}
