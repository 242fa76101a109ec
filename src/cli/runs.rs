//! `luthier runs`: which runs there are, how they went, and what makes them differ.
use super::{data::clean, out, tui::picture};
use clap::{Args, Subcommand, ValueEnum};
use luthier::train::report::compare::{self, Summary};
use luthier::train::report::folder::Folder;
use luthier::train::report::{self, words};
use luthier::{Error, Result};
use serde::Serialize;
use std::cmp::Ordering;
use std::path::PathBuf;

/// List runs, compare them, or write a run's report again.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Runs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Args)]
struct List {
    /// Folders of runs, searched three deep.
    #[arg(default_value = "runs")]
    dirs: Vec<PathBuf>,
    /// What goes by, the least first; unknown values last.
    #[arg(long, value_enum, default_value_t = Sort::Date)]
    sort: Sort,
    /// The largest first.
    #[arg(long)]
    reverse: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sort {
    Date,
    Name,
    Status,
    Model,
    Steps,
    Loss,
    EvalLoss,
    TokensPerSecond,
}

#[derive(Subcommand)]
enum Command {
    /// Show what several runs did differently, and what came of it.
    Compare {
        /// The runs' folders.
        #[arg(required = true, num_args = 2..)]
        dirs: Vec<PathBuf>,
        /// Write the losses over one another: a picture (.svg, .png), or a page (.html) with the table.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write report.html, loss.svg and loss.png of runs again, from what their folders hold.
    Report {
        /// The runs' folders.
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
    },
    /// Draw what --ui tui showed of a run after a step, as SVG: for documentation.
    #[command(hide = true)]
    Frame {
        dir: PathBuf,
        #[arg(long)]
        step: u64,
    },
}

impl Runs {
    pub fn run(self) -> Result<()> {
        match self.command {
            None => self.list.run(),
            Some(Command::Compare { dirs, out, json }) => compared(&dirs, out, json),
            Some(Command::Frame { dir, step }) => out(&picture::picture(&Folder::read(&dir)?, step)?),
            Some(Command::Report { dirs }) => {
                for file in dirs.iter().map(|dir| report::write(dir)).collect::<Result<Vec<_>>>()?.concat() {
                    out(&format!("{}\n", file.display()))?;
                }
                Ok(())
            }
        }
    }
}

impl List {
    fn run(&self) -> Result<()> {
        let mut runs = Vec::new();
        for dir in &self.dirs {
            for path in compare::find(dir)? {
                match Folder::read(&path) {
                    Ok(run) => runs.push(Summary::of(&run)),
                    // one that is damaged must not hide the others
                    Err(e) => super::say!("skipped: {e}"),
                }
            }
        }
        runs.sort_by(|a, b| {
            let order = self.sort.order(a, b);
            if self.reverse { order.reverse() } else { order }
        });
        if self.json {
            return json(&runs);
        }
        if runs.is_empty() {
            let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
            return out(&format!("no runs in {}\n", dirs.join(", ")));
        }
        let head = ["run", "status", "model", "method", "steps", "loss", "eval loss", "tokens/s", "started"];
        out(&table(std::iter::once(head.map(String::from).to_vec()).chain(runs.iter().map(row)).collect()))
    }
}

impl Sort {
    fn order(self, a: &Summary, b: &Summary) -> Ordering {
        let known = |x: Option<f64>| x.unwrap_or(f64::INFINITY);
        let by_name = || a.path.cmp(&b.path);
        let order = match self {
            Sort::Date => a.started.cmp(&b.started),
            Sort::Name => Ordering::Equal,
            Sort::Status => a.status.cmp(b.status),
            Sort::Model => a.model.cmp(&b.model),
            Sort::Steps => a.step.cmp(&b.step),
            Sort::Loss => known(a.loss).total_cmp(&known(b.loss)),
            Sort::EvalLoss => known(a.eval_loss).total_cmp(&known(b.eval_loss)),
            Sort::TokensPerSecond => known(a.tokens_per_second).total_cmp(&known(b.tokens_per_second)),
        };
        order.then_with(by_name)
    }
}

fn row(run: &Summary) -> Vec<String> {
    let loss = |loss: Option<f64>| loss.map_or("-".into(), |loss| format!("{loss:.4}"));
    vec![
        run.path.display().to_string(),
        run.status.to_string(),
        run.model.clone(),
        run.method.clone(),
        format!("{}/{}", run.step, run.total_steps),
        loss(run.loss),
        loss(run.eval_loss),
        run.tokens_per_second.map_or("-".into(), |x| words::grouped(x.round() as u64)),
        run.started.clone(),
    ]
}

fn compared(dirs: &[PathBuf], file: Option<PathBuf>, as_json: bool) -> Result<()> {
    let runs = dirs.iter().map(|dir| Folder::read(dir)).collect::<Result<Vec<_>>>()?;
    let comparison = compare::compare(&runs);
    match as_json {
        true => json(&comparison)?,
        false => {
            let head = std::iter::once(String::new()).chain(dirs.iter().map(|dir| dir.display().to_string())).collect();
            let rows = comparison.rows().into_iter().map(|(name, values)| [vec![name], values].concat());
            out(&table(std::iter::once(head).chain(rows).collect()))?;
        }
    }
    if let Some(file) = file {
        super::say!("{}", compare::write(&runs, &file)?.display());
    }
    Ok(())
}

fn json(what: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(what).map_err(|e| Error::Bug(e.to_string()))?;
    out(&(text + "\n"))
}

/// Columns as wide as their widest cell; the cells may come from anywhere.
fn table(rows: Vec<Vec<String>>) -> String {
    let safe = |cell: &String| clean(cell).replace(['\n', '\t'], " ");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(safe).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, wide)| format!("{cell:wide$}")).collect();
        cells.join("  ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_reaches_the_terminal_raw() {
        let row = |cells: [&str; 2]| cells.map(String::from).to_vec();
        let text = table(vec![row(["run", "loss"]), row(["a\u{1b}[31m\nb", "1.0"]), row(["ü", ""])]);
        assert_eq!(text, "run            loss\na\\u{1b}[31m b  1.0\nü\n");
    }
}
