//! `luthier bench generate`: answers of a decoder with random weights to random prompts, in steps as the engine takes them.
use super::super::{out, say};
use super::weights;
use clap::Args;
use luthier::backend::{Backend, pick};
use luthier::dtype::DType;
use luthier::infer::{Engine, Options, Prefixes, Request, Sampling};
use luthier::model::lora::LoraConfig;
use luthier::model::paged::{PAGE, Pool};
use luthier::model::{LoadOptions, Model};
use luthier::rng::Rng;
use luthier::{Error, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time generation on random weights and prompts; no token ends an answer.
#[derive(Args)]
pub struct Generate {
    /// 1b, 8b, 70b (Llama 3), qwen3-1.7b; or a config.json.
    #[arg(long, default_value = "8b")]
    shape: String,
    /// A folder for the random weights; one that is there already is used as it is. It holds the model's size.
    #[arg(long)]
    weights: PathBuf,
    /// The base: NF4, bfloat16, 8 bits, each with an adapter; or bfloat16 alone.
    #[arg(long, default_value = "qlora", value_parser = ["qlora", "lora", "lora-8bit", "full"])]
    method: String,
    /// Answers that go on together.
    #[arg(long, default_value_t = 1, value_parser = super::at_least(1))]
    batch: usize,
    #[arg(long, default_value_t = 128, value_parser = super::at_least(1))]
    prompt_tokens: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 128, value_parser = super::at_least(1))]
    new_tokens: usize,
    /// All answers are to one prompt, whose keys and values they share.
    #[arg(long)]
    shared_prompt: bool,
    /// Rank of the adapter, on every linear layer; 0: none.
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// 0: always the likeliest token.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Tokens of a step, at most: prompts come in such pieces.
    #[arg(long, default_value_t = 512, value_parser = super::at_least(1))]
    step_tokens: usize,
    /// The first makes kernels and buffers.
    #[arg(long, default_value_t = 2, value_parser = super::at_least(1))]
    rounds: usize,
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

/// Tokens, and the steps that made them.
#[derive(Default)]
struct Part {
    tokens: u64,
    steps: u32,
    time: Duration,
}

impl Part {
    fn add(&mut self, tokens: u64, time: Duration) {
        (self.tokens, self.steps, self.time) = (self.tokens + tokens, self.steps + 1, self.time + time);
    }
    /// Tokens a second, and milliseconds a step; nothing of no steps.
    fn rates(&self) -> [String; 2] {
        if self.steps == 0 {
            return ["-", "-"].map(String::from);
        }
        let seconds = self.time.as_secs_f64();
        [format!("{:.0}", self.tokens as f64 / seconds), format!("{:.3}", seconds * 1e3 / self.steps as f64)]
    }
}

impl Generate {
    pub fn run(self) -> Result<()> {
        let (backend, which) = pick::pick(&self.backend)?;
        backend.set_deterministic(false);
        say!("{which}");
        let b: &dyn Backend = &*backend;
        weights::make(&self.weights, &self.shape, &self.method)?;
        let lora = LoraConfig { r: self.rank, lora_alpha: 2.0 * self.rank as f64, ..LoraConfig::default() };
        let lora = (self.method != "full" && self.rank > 0).then_some(lora);
        let loading = Instant::now();
        let model = Model::load(b, &self.weights, &LoadOptions { lora, ..LoadOptions::frozen(DType::Bf16) })?;
        b.sync()?;
        say!("loaded in {:.1} s", loading.elapsed().as_secs_f64());
        let length = self.prompt_tokens + self.new_tokens;
        let page = Pool::page_bytes(&model.spec, model.dtype);
        let options = Options {
            max_sequences: self.batch,
            max_step_tokens: self.step_tokens.max(self.batch),
            max_length: Some(length),
            kv_cache: Some(self.pages() as u64 * page),
            prefixes: if self.shared_prompt { Prefixes::Shared } else { Prefixes::Apart },
        };
        let mut engine = Engine::lend(b, &model, &options)?;
        out(&format!(
            "{:>5} {:>13} {:>13} {:>9} {:>10} {:>9} {:>13}\n",
            "round", "prompt tok/s", "decode tok/s", "ms/step", "all tok/s", "peak GiB", "cache pages"
        ))?;
        for round in 0..self.rounds {
            self.round(b, &mut engine, round)?;
        }
        if self.shared_prompt {
            let apart = self.batch * length.div_ceil(PAGE);
            out(&format!(
                "apart, the cache would have {apart} pages of {PAGE} tokens, {:.2} GiB\n",
                gib(apart as u64 * page)
            ))?;
        }
        Ok(())
    }

    /// What all sequences take at their longest.
    fn pages(&self) -> usize {
        let whole = (self.prompt_tokens + self.new_tokens).div_ceil(PAGE);
        // a prompt's last token is computed for each, with the page that it is in
        let common = if self.shared_prompt { (self.prompt_tokens - 1) / PAGE } else { 0 };
        common + self.batch * (whole - common)
    }

    fn requests(&self, V: usize, round: usize) -> Vec<Request> {
        let sampling = |seed| Sampling {
            max_new_tokens: self.new_tokens,
            temperature: self.temperature,
            seed,
            ..Sampling::default()
        };
        let prompts = if self.shared_prompt { 1 } else { self.batch };
        let request = |i: usize| {
            let mut rng = Rng::stream(11, (round * prompts + i) as u64);
            let prompt = (0..self.prompt_tokens).map(|_| rng.below(V) as u32).collect();
            Request { n: self.batch / prompts, ..Request::new(prompt, sampling(i as u64), vec![]) }
        };
        (0..prompts).map(request).collect()
    }

    fn round(&self, b: &dyn Backend, engine: &mut Engine, round: usize) -> Result<()> {
        engine.clear_prefixes();
        let V = engine.model().spec.V;
        for request in self.requests(V, round) {
            engine.add(request)?;
        }
        let (mut prompts, mut decode, mut all, mut pages) = (Part::default(), Part::default(), Part::default(), 0);
        while engine.is_busy() {
            let (before, start) = (engine.stats(), Instant::now());
            let tokens = engine.step()?.iter().filter(|event| event.token.is_some()).count();
            let (after, time) = (engine.stats(), start.elapsed());
            all.add(tokens as u64, time);
            pages = pages.max(after.pages_used);
            match after.prompt_tokens - before.prompt_tokens {
                0 if tokens == self.batch => decode.add(tokens as u64, time),
                0 => {}
                read => prompts.add(read, time),
            }
        }
        if all.tokens != (self.batch * self.new_tokens) as u64 {
            return Err(Error::Bug(format!("{} tokens came of {} answers", all.tokens, self.batch)));
        }
        let ([prompt, _], [rate, ms], [whole, _]) = (prompts.rates(), decode.rates(), all.rates());
        let peak = gib(b.memory().peak);
        out(&format!("{:>5} {prompt:>13} {rate:>13} {ms:>9} {whole:>10} {peak:>9.2} {pages:>13}\n", round + 1))
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
