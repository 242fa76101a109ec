//! A tiny model, some sums to learn, runs of them in this process, and a backend that fails as it is told.
use luthier::backend::{Backend, Launch};
use luthier::dtype::DType;
use luthier::error::{Error, Result};
use luthier::io::safetensors::Tensors;
use luthier::ops::Op;
use luthier::train::metrics::{EvalMetrics, Reporter, StepMetrics};
use luthier::train::{config, run};
use std::cell::Cell;
use std::path::{Path, PathBuf};

pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let shape = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 4096, "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
        Bench::of(shape)
    }
    pub fn of(shape: &str) -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        std::fs::write(bench.at("config.json"), shape).unwrap();
        luthier::export::init::init(&bench.at("config.json"), &bench.at("model"), DType::F32, None, 1).unwrap();
        luthier::export::folder::copy_companions("assets/base".as_ref(), &bench.at("model")).unwrap();
        let sum = |i: usize| format!(r#"{{"prompt":"{i} + 1 = ","completion":"{}"}}"#, i + 1);
        let lines = |range: std::ops::Range<usize>| range.map(sum).collect::<Vec<_>>().join("\n");
        std::fs::write(bench.at("train.jsonl"), lines(0..24)).unwrap();
        std::fs::write(bench.at("eval.jsonl"), lines(24..32)).unwrap();
        let config = format!(
            "model_name_or_path = {:?}\ndataset = {:?}\neval_dataset = {:?}\nmax_length = 16\n\
             per_device_train_batch_size = 2\nmax_steps = 8\nlearning_rate = 1e-2\nlogging_steps = 1\nsave_steps = 1\n\
             eval_steps = 4\neval_sample_tokens = 4\nsave_total_limit = 20\ndtype = \"float32\"\nbackend = \"cpu\"\n",
            bench.at("model"),
            bench.at("train.jsonl"),
            bench.at("eval.jsonl"),
        );
        std::fs::write(bench.at("run.toml"), config).unwrap();
        bench
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A run into `out` under these keys.
    pub fn run(&self, b: &dyn Backend, out: &str, keys: &[&str], log: &mut Log) -> Result<Option<f64>> {
        let mut over = vec![format!("output_dir={:?}", self.at(out))];
        over.extend(keys.iter().map(|key| key.to_string()));
        run::train(&config::load(&self.at("run.toml"), &over)?, b, log)
    }

    /// The lines of a file of a run.
    pub fn lines(&self, file: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.at(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Everything that was trained, as a checkpoint or a result has it.
    pub fn weights(&self, folder: &str) -> Vec<u8> {
        std::fs::read(self.at(folder).join("model.safetensors")).unwrap()
    }

    pub fn checkpoints(&self, out: &str) -> Vec<u64> {
        let names = std::fs::read_dir(self.at(out)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut steps: Vec<u64> = names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).collect();
        steps.sort();
        steps
    }
}

/// The floats of a file that are not finite, by name.
pub fn not_finite(file: &Path) -> Vec<String> {
    let tensors = Tensors::open(&[file.to_path_buf()]).unwrap();
    let bad = |name: &&str| tensors.get(name).unwrap().to_f32().is_some_and(|x| !x.iter().all(|x| x.is_finite()));
    tensors.names().filter(bad).map(str::to_string).collect()
}

/// What a run told.
#[derive(Default)]
pub struct Log {
    pub steps: Vec<StepMetrics>,
    pub evals: Vec<EvalMetrics>,
    pub samples: usize,
    pub messages: Vec<String>,
    /// Interrupt after this step.
    pub stop: Option<u64>,
}

impl Reporter for Log {
    fn start(&mut self, _: u64, _: u64) {}
    fn step(&mut self, step: &StepMetrics) {
        self.steps.push(step.clone());
    }
    fn eval(&mut self, eval: &EvalMetrics) {
        self.evals.push(eval.clone());
    }
    fn sample(&mut self, _: &str, _: &str) {
        self.samples += 1;
    }
    fn saved(&mut self, _: &Path) {}
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_string());
    }
    fn is_interrupted(&self) -> bool {
        self.stop.is_some_and(|stop| self.steps.last().is_some_and(|step| step.step >= stop))
    }
}

impl Log {
    pub fn says(&self, part: &str) -> bool {
        self.messages.iter().any(|message| message.contains(part))
    }
}

/// A backend whose nth run of an op, from the first backward on, leaves a value that is no number at the start of one of its
/// arguments.
pub struct Faulty<'b> {
    inner: &'b dyn Backend,
    op: Op,
    argument: usize,
    value: f32,
    left: Cell<usize>,
    trains: Cell<bool>,
}

impl<'b> Faulty<'b> {
    pub fn new(inner: &'b dyn Backend, op: Op, argument: usize, value: f32, nth: usize) -> Faulty<'b> {
        Faulty { inner, op, argument, value, left: Cell::new(nth + 1), trains: Cell::new(false) }
    }
    pub fn has_failed(&self) -> bool {
        self.left.get() == 0
    }
}

impl Backend for Faulty<'_> {
    luthier::pass_on! { inner: name device alloc free upload download copy sync memory available rules has_low_rank charge
    host_alloc host_free to_host from_host rows_from_host host_upload host_download }
    fn launch(&self, launch: &Launch) -> Result<()> {
        self.inner.launch(launch)?;
        self.trains.set(self.trains.get() || launch.op() == Op::logprob_backward);
        if launch.op() != self.op || self.left.get() == 0 || !self.trains.get() {
            return Ok(());
        }
        self.left.set(self.left.get() - 1);
        if self.left.get() > 0 {
            return Ok(());
        }
        let buf = launch.args()[self.argument].ok_or_else(|| Error::Bug("no such argument".into()))?;
        let mut start = buf.view(0, buf.len().min(2));
        self.inner.upload_f32(&mut start, &vec![self.value; buf.len().min(2)])
    }
}
