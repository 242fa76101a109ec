//! Runs in one line each, and several beside one another: what their configs say differently, and what came of it.
use super::folder::{Folder, is_run};
use super::svg::{self, escaped};
use super::words::{bytes, duration, grouped};
use super::{curves, html, put};
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Runs may be so many folders below the one that is searched.
const DEPTH: usize = 3;

#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub name: String,
    pub path: PathBuf,
    pub status: &'static str,
    pub model: String,
    pub method: String,
    pub backend: String,
    pub device: String,
    pub step: u64,
    pub total_steps: u64,
    pub loss: Option<f64>,
    /// The least, and the step that had it.
    pub eval_loss: Option<f64>,
    pub eval_step: Option<u64>,
    pub tokens_per_second: Option<f64>,
    /// Bytes.
    pub memory_peak: u64,
    pub seconds: f64,
    pub started: String,
}

impl Summary {
    pub fn of(run: &Folder) -> Summary {
        let (info, least) = (&run.info, run.least("eval_loss"));
        let key = |name: &str| run.keys.get(name).cloned().unwrap_or_default();
        let model = if info.model.name.is_empty() { key("model_name_or_path") } else { info.model.name.clone() };
        Summary {
            name: run.name(),
            path: run.path.clone(),
            status: run.state.name(),
            model,
            method: if info.model.method.is_empty() { key("method") } else { info.model.method.clone() },
            backend: info.device.backend.clone(),
            device: info.device.name.clone(),
            step: run.step(),
            total_steps: info.total_steps,
            loss: run.last("loss").filter(|loss| loss.is_finite()),
            eval_loss: least.map(|(_, loss)| loss),
            eval_step: least.map(|(step, _)| step),
            tokens_per_second: run.tokens_per_second(),
            memory_peak: info.memory_peak,
            seconds: info.seconds,
            started: info.started.clone(),
        }
    }
}

/// The folders of runs at `dir` and below it, sorted; links are not followed.
pub fn find(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    search(dir, DEPTH, &mut found)?;
    found.sort();
    Ok(found)
}

fn search(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if is_run(dir) {
        found.push(dir.to_path_buf());
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(dir).map_err(Error::read(dir))? {
        let entry = entry.map_err(Error::read(dir))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            search(&entry.path(), depth - 1, found)?;
        }
    }
    Ok(())
}

/// Several runs: `None` where one lacks what others have.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub runs: Vec<Summary>,
    /// The keys of the configs that are not the same in all.
    pub config: BTreeMap<String, Vec<Option<String>>>,
}

/// What tells runs apart by definition, and says nothing of why.
const PLACES: &[&str] = &["output_dir", "logging_dir"];

pub fn compare(runs: &[Folder]) -> Comparison {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.keys.keys()).collect();
    let row = |key: &String| {
        let values: Vec<Option<String>> = runs.iter().map(|run| run.keys.get(key).cloned()).collect();
        let same = values.windows(2).all(|pair| pair[0] == pair[1]);
        (!same && !PLACES.contains(&key.as_str())).then(|| (key.clone(), values))
    };
    Comparison { runs: runs.iter().map(Summary::of).collect(), config: keys.into_iter().filter_map(row).collect() }
}

impl Comparison {
    /// A name and each run's value, for people.
    pub fn rows(&self) -> Vec<(String, Vec<String>)> {
        fn shown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
            value.map_or_else(|| "-".into(), show)
        }
        type Column = fn(&Summary) -> String;
        let columns: [(&str, Column); 10] = [
            ("status", |run| run.status.into()),
            ("model", |run| run.model.clone()),
            ("method", |run| run.method.clone()),
            ("device", |run| run.device.clone()),
            ("steps", |run| format!("{}/{}", run.step, run.total_steps)),
            ("last loss", |run| shown(run.loss, |x| format!("{x:.4}"))),
            ("best eval loss", |run| shown(run.eval_loss.zip(run.eval_step), |(x, step)| format!("{x:.4} at {step}"))),
            ("tokens/s", |run| shown(run.tokens_per_second, |x| grouped(x.round() as u64))),
            ("memory", |run| bytes(run.memory_peak)),
            ("time", |run| duration(run.seconds)),
        ];
        let column = |(name, show): (&str, Column)| (name.to_string(), self.runs.iter().map(show).collect());
        let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let keys = self.config.iter().map(|(key, values)| (key.clone(), values.iter().map(said).collect()));
        columns.into_iter().map(column).chain(keys).collect()
    }
}

/// Writes the curves over one another: a picture where `out` ends in `.svg`, a page with the table elsewhere.
pub fn write(runs: &[Folder], out: &Path) -> Result<PathBuf> {
    let overlay = curves::overlay(runs);
    if out.extension().is_some_and(|end| end == "svg") {
        return put(out, svg::document(&overlay).as_bytes());
    }
    if out.extension().is_some_and(|end| end == "png") {
        return put(out, &super::png::encode(&overlay)?);
    }
    let comparison = compare(runs);
    let cells = |tag: &str, cells: &[String]| {
        let cell = |text: &String| format!("<{tag}>{}</{tag}>", escaped(text));
        cells.iter().map(cell).collect::<String>()
    };
    let names: Vec<String> = comparison.runs.iter().map(|run| run.name.clone()).collect();
    let row = |(name, values): (String, Vec<String>)| {
        format!("<tr><th>{}</th>{}</tr>\n", escaped(&name), cells("td", &values))
    };
    let rows = comparison.rows().into_iter().map(row).collect::<String>();
    let table = format!("<table class=\"runs\">\n<tr><th></th>{}</tr>\n{rows}</table>\n", cells("th", &names));
    let body = format!("<header><h1>Runs compared</h1></header>\n{}{table}", html::framed(&overlay));
    put(out, html::document("Runs compared", &body).as_bytes())
}
