//! `luthier data preview`: what a config's data becomes, before anything is trained on it.
use super::{download, out};
use clap::{Args, Subcommand};
use luthier::Result;
use luthier::data::{self, BatchOptions, Dataset, EpochPlan, ExampleRef, Examples, Packing, Tokenizer};
use luthier::export::peft;
use luthier::io::hub::Kind;
use luthier::model::arch;
use luthier::train;
use luthier::train::config::{self, TrainConfig};
use luthier::train::{batch_options, data_options};
use std::io::IsTerminal;
use std::path::PathBuf;

/// Padding above this share of all computed tokens is worth a word.
const MUCH_PADDING: f64 = 0.25;

/// Look at data before training on it.
#[derive(Args)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Preview(Preview),
}

/// Show examples as the model will see them, which of their tokens are trained, how rows fill, and what looks wrong.
#[derive(Args)]
struct Preview {
    /// The run: a TOML or YAML file, as `train` takes it. Only its data and the model's tokenizer are opened; a model
    /// that is named on the Hub is fetched.
    config: PathBuf,
    /// Keys that go over the file's, as in packing=true.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Examples to show, spread over the data.
    #[arg(long, default_value_t = 3)]
    samples: usize,
}

impl Data {
    pub fn run(self) -> Result<()> {
        let Command::Preview(preview) = self.command;
        preview.run()
    }
}

impl Preview {
    fn run(self) -> Result<()> {
        let mut config = config::load(&self.config, &self.overrides)?;
        config.model_name_or_path = download::resolve(&config.model_name_or_path, Kind::Model)?;
        let base = &config.model_name_or_path;
        // the model's config is opened for an adapter only
        let vocab = match &config.adapter {
            Some(adapter) => peft::vocab(adapter, &arch::read_spec(base)?)?,
            None => 0,
        };
        let (tokenizer, _) = train::tokenizer(&config, base, Tokenizer::load(base)?, vocab)?;
        let mut options = data_options(&config);
        let pretrain = options.pretrain;
        for source in options.sources.iter_mut().chain(&mut options.eval_sources) {
            download::fetch(source, pretrain)?;
        }
        let data = data::load(&options, &tokenizer)?;
        out(&summary(&config, &data, &tokenizer))?;
        let paint = Paint::choose();
        let (n, shown) = (data.train.len(), self.samples.min(data.train.len()));
        for i in 0..shown {
            let at = i * n / shown;
            out(&sample(data.train.get(at), at, &tokenizer, &paint)?)?;
        }
        Ok(())
    }
}

fn summary(config: &TrainConfig, data: &Dataset, tokenizer: &Tokenizer) -> String {
    let r = &data.report;
    let percent = 100.0 * r.targets as f64 / r.tokens.max(1) as f64;
    let mut text = format!(
        "records   {} of {} files: {} examples to train on, {} to evaluate on\n\
         tokens    {}, of which {} are trained ({percent:.1} %)\n{}",
        r.records,
        r.files,
        data.train.len(),
        data.eval.len(),
        r.tokens,
        r.targets,
        lengths(&data.train, config.max_length)
    );
    let options = batch_options(config, tokenizer, true);
    text += &rows(&data.train, &options);
    for note in &data.notes {
        text += &format!("note      {}\n", clean(note));
    }
    for found in r.findings.iter() {
        let what = if found.finding.is_warning() { "warning" } else { "note" };
        text += &format!("{what:9} {}\n", clean(&found.to_string()));
    }
    text
}

fn lengths(examples: &Examples, max_length: usize) -> String {
    let mut lengths = examples.lengths();
    lengths.sort();
    let at = |share: f64| lengths[((lengths.len() - 1) as f64 * share).round() as usize];
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    format!(
        "lengths   shortest {}, median {}, mean {mean:.0}, 90 % up to {}, longest {} (max_length {max_length})\n",
        at(0.0),
        at(0.5),
        at(0.9),
        at(1.0)
    )
}

/// How full the rows of an epoch are, and what the other way would give.
fn rows(examples: &Examples, options: &BatchOptions) -> String {
    let lengths = examples.lengths();
    let plan = |packing| EpochPlan::new(&lengths, &BatchOptions { packing, ..options.clone() }, 0);
    let line = |plan: &EpochPlan| {
        format!("{} rows of {}, {:.1} % full", plan.rows.len(), options.max_length, 100.0 * plan.fill())
    };
    let own = plan(options.packing);
    if options.packing != Packing::Off {
        return format!("packed    {}; {} batches an epoch\n", line(&own), own.len());
    }
    let packed = plan(Packing::Bfd);
    let mut text = format!("unpacked  {}; {} batches an epoch\n", line(&own), own.len());
    if 1.0 - own.fill() > MUCH_PADDING && packed.rows.len() < own.rows.len() {
        text += &format!(
            "warning   {:.0} % of what is computed is padding: with packing = true there are {}\n",
            100.0 * (1.0 - own.fill()),
            line(&packed)
        );
    }
    text
}

/// How trained text and the rest are told apart.
struct Paint {
    trained: (&'static str, &'static str),
    rest: (&'static str, &'static str),
}

impl Paint {
    /// Colours on a terminal that may have them (no-color.org), brackets elsewhere.
    fn choose() -> Paint {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        match colour {
            true => Paint { trained: ("\x1b[32m", "\x1b[0m"), rest: ("\x1b[2m", "\x1b[0m") },
            false => Paint { trained: ("⟦", "⟧"), rest: ("", "") },
        }
    }
}

fn sample(example: ExampleRef, index: usize, tokenizer: &Tokenizer, paint: &Paint) -> Result<String> {
    let mut out = format!("\n── example {index}: {} tokens, {} trained ──\n", example.len(), example.targets());
    let mut stream = tokenizer.stream(false);
    let mut runs: Vec<(bool, String)> = vec![];
    for (id, trained) in example.ids().zip(example.trained()) {
        let text = stream.push(id)?;
        match runs.last_mut().filter(|(kind, _)| *kind == trained) {
            Some((_, run)) => run.push_str(&text),
            None => runs.push((trained, text)),
        }
    }
    let rest = stream.finish()?;
    if let Some((_, run)) = runs.last_mut() {
        run.push_str(&rest);
    }
    for (trained, text) in &runs {
        let (open, close) = if *trained { paint.trained } else { paint.rest };
        out += &format!("{open}{}{close}", clean(text));
    }
    out.push('\n');
    Ok(out)
}

/// Text of a file, made safe for a terminal.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}
