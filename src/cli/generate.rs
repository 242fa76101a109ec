//! `luthier generate`: prompts in, text out as it comes.
use super::out;
use super::place::{self, Place};
use clap::Args;
use luthier::error::{Error, Result};
use luthier::infer::text::Text;
use luthier::infer::{Engine, Event, Finish, Request, RequestId, Sampling};
use luthier::serve::Voice;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Continue prompts with a model.
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    place: Place,
    /// An adapter for it: a folder as PEFT writes it, or its name on the Hub.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What the user says; with --raw, the text to continue.
    #[arg(long, required_unless_present = "prompts")]
    prompt: Option<String>,
    /// Many prompts instead, run together: JSON Lines with `prompt` (a text) or `messages` in each.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// Continue the prompt as it is, without the model's chat template.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    sampling: Choice,
    /// Answers to each prompt.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    n: u16,
    /// The log-probability of each token, and of the K likeliest; with --json.
    #[arg(long, value_name = "K", requires = "json")]
    logprobs: Option<usize>,
    /// One JSON object a line for each answer: index, text, finish_reason, tokens.
    #[arg(long)]
    json: bool,
}

/// How tokens are chosen, on the command line.
#[derive(Args, Clone)]
pub struct Choice {
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: usize,
    /// 0: always the likeliest token.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Only the K likeliest tokens; 0: all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Only tokens at least this times as likely as the likeliest.
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Above 1, tokens that were there become less likely.
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f32,
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// End before this text comes; may be given several times.
    #[arg(long)]
    pub stop: Vec<String>,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

impl Choice {
    pub fn sampling(&self) -> Sampling {
        Sampling {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            seed: self.seed,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

/// One answer as it grows.
struct Answer<'t> {
    text: Text<'t>,
    said: String,
    tokens: Vec<Value>,
}

impl Generate {
    pub fn run(mut self) -> Result<()> {
        let adapter = self.adapter.take().map(|path| place::adapter(&path)).transpose()?;
        let place = self.place.resolve()?;
        let voice = Voice::load(&place.model, adapter.as_deref())?;
        let prompts = self.ids(&voice)?;
        let (backend, which) = place.pick()?;
        super::say!("{which}");
        let model = place.load(&*backend, adapter.as_deref())?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let options = place.options(&model, longest + self.sampling.max_new_tokens, prompts.len() * self.n as usize)?;
        let mut engine = Engine::new(&*backend, model, &options)?;
        let sampling = Sampling { logprobs: self.logprobs, ..self.sampling.sampling() };
        let mut rows: BTreeMap<RequestId, usize> = BTreeMap::new();
        for (row, prompt) in prompts.into_iter().enumerate() {
            let stop = voice.tokenizer.eos_ids().to_vec();
            let request = Request { n: self.n as usize, ..Request::new(prompt, sampling.clone(), stop) };
            rows.insert(engine.add(request)?, row);
        }
        let one = rows.len() == 1 && self.n == 1;
        let mut answers: BTreeMap<(RequestId, usize), Answer> = BTreeMap::new();
        while engine.is_busy() {
            for event in engine.step()? {
                let key = (event.request, event.index);
                let fresh = || Answer { text: voice.text(&self.sampling.stop), said: String::new(), tokens: vec![] };
                let answer = answers.entry(key).or_insert_with(fresh);
                let more = answer.take(&event, &voice, self.logprobs.is_some())?;
                if one && !self.json {
                    out(&more)?;
                }
                let stopped = answer.text.ended() && event.finish.is_none();
                if stopped {
                    engine.cancel(event.request, Some(event.index));
                }
                let finish = event.finish.or(stopped.then_some(Finish::Stop));
                if let (Some(finish), Some(answer)) = (finish, finish.and_then(|_| answers.remove(&key))) {
                    self.show(rows[&event.request], event.index, answer, finish, one)?;
                }
            }
        }
        Ok(())
    }

    fn show(&self, row: usize, index: usize, answer: Answer, finish: Finish, one: bool) -> Result<()> {
        if self.json {
            let reason = if finish == Finish::Stop { "stop" } else { "length" };
            let mut line = json!({ "prompt": row, "index": index, "text": answer.said, "finish_reason": reason });
            if self.logprobs.is_some() {
                line["logprobs"] = answer.tokens.into();
            }
            return out(&format!("{line}\n"));
        }
        match one {
            true => out("\n"),
            false => out(&format!("[{row}.{index}] {}\n", answer.said)),
        }
    }

    /// The prompts as the model wants them.
    fn ids(&self, voice: &Voice) -> Result<Vec<Vec<u32>>> {
        let Some(file) = &self.prompts else {
            return Ok(vec![voice.prompt(&json!({ "prompt": self.prompt }), self.raw).map_err(Error::Usage)?]);
        };
        let text = std::fs::read_to_string(file).map_err(Error::read(file))?;
        let mut all = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |what: String| Error::content(file, format!("line {}", i + 1), what);
            let line: Value = serde_json::from_str(line).map_err(|e| wrong(format!("bad JSON: {e}")))?;
            all.push(voice.prompt(&line, self.raw).map_err(wrong)?);
        }
        match all.is_empty() {
            true => Err(Error::content(file, "", "has no prompts")),
            false => Ok(all),
        }
    }
}

impl Answer<'_> {
    /// The text that an event adds.
    fn take(&mut self, event: &Event, voice: &Voice, logprobs: bool) -> Result<String> {
        let mut more = String::new();
        if let Some(token) = &event.token {
            more += &self.text.push(token.id)?;
            if logprobs {
                let name = |id: u32| voice.tokenizer.id_to_token(id).unwrap_or_default();
                let top: Vec<Value> = token
                    .top
                    .iter()
                    .map(|(id, logprob)| json!({ "id": id, "token": name(*id), "logprob": logprob }))
                    .collect();
                let (id, logprob) = (token.id, token.logprob);
                self.tokens.push(json!({ "id": id, "token": name(id), "logprob": logprob, "top_logprobs": top }));
            }
        }
        if event.finish.is_some() {
            more += &self.text.finish()?;
        }
        self.said += &more;
        Ok(more)
    }
}
