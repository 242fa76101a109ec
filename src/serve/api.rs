//! OpenAI's requests, checked and turned into the engine's; and its errors.
use super::voice::Voice;
use crate::error::Error;
use crate::infer::{AdapterId, Request, Sampling};
use crate::rng::Rng;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What a client is told that went wrong.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub kind: &'static str,
    pub code: Option<&'static str>,
    pub param: Option<&'static str>,
    pub message: String,
}

impl Refusal {
    pub fn new(status: u16, code: Option<&'static str>, message: impl Into<String>) -> Refusal {
        let kind = match status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        Refusal { status, kind, code, param: None, message: message.into() }
    }
    pub fn bad(param: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { param: Some(param), ..Refusal::new(400, None, message) }
    }
    /// The client's mistake, or ours.
    pub fn of(e: Error) -> Refusal {
        let status = match e {
            Error::Usage(_) | Error::Content { .. } | Error::Read { .. } => 400,
            Error::Device { .. } => 503,
            _ => 500,
        };
        Refusal::new(status, None, e.to_string())
    }
    pub fn body(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code } })
    }
}

/// A value, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    ManyIds(Vec<Vec<u32>>),
}

/// Chat: whether and how many; completions: how many.
#[derive(Deserialize)]
#[serde(untagged)]
enum Logprobs {
    Wanted(bool),
    Count(usize),
}

#[derive(Deserialize, Default)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Both endpoints' bodies; what it does not know is left alone.
#[derive(Deserialize)]
pub struct Body {
    pub model: String,
    messages: Option<Vec<Map<String, Value>>>,
    tools: Option<Value>,
    response_format: Option<Value>,
    prompt: Option<Prompt>,
    echo: Option<bool>,
    suffix: Option<Value>,
    best_of: Option<usize>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    n: Option<usize>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<Logprobs>,
    top_logprobs: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
}

/// How an answer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Whole,
    Stream { usage: bool },
}

/// A body, understood.
pub struct Job {
    pub endpoint: Endpoint,
    pub manner: Manner,
    pub requests: Vec<Request>,
    pub stops: Vec<String>,
    pub logprobs: Option<usize>,
    /// What stands before each answer's text, by request.
    pub echo: Vec<String>,
}

/// What one request may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Answers in all.
    pub n: usize,
    pub stops: usize,
    pub logprobs: usize,
    pub max_length: usize,
}

impl Body {
    pub fn parse(bytes: &[u8]) -> Result<Body, Refusal> {
        serde_json::from_slice(bytes).map_err(|e| Refusal::new(400, None, format!("bad JSON: {e}")))
    }

    /// `seed` is for a request without one of its own.
    pub fn job(
        self,
        endpoint: Endpoint,
        voice: &Voice,
        adapter: AdapterId,
        limits: Limits,
        seed: u64,
    ) -> Result<Job, Refusal> {
        self.refuse_unsupported(endpoint)?;
        let n = self.n.unwrap_or(1);
        let stops = match &self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop.clone()],
            Some(OneOrMany::Many(stops)) => stops.clone(),
        };
        if stops.len() > limits.stops {
            return Err(Refusal::bad("stop", format!("at most {} stop strings", limits.stops)));
        }
        let logprobs = self.logprobs(endpoint, limits)?;
        let count = match &self.prompt {
            Some(Prompt::Texts(texts)) => texts.len(),
            Some(Prompt::ManyIds(ids)) => ids.len(),
            _ => 1,
        };
        // before anything is encoded
        if n == 0 || n.saturating_mul(count) > limits.n {
            return Err(Refusal::bad("n", format!("1 to {} answers at a time", limits.n)));
        }
        let prompts = self.prompts(endpoint, voice)?;
        if prompts.is_empty() {
            return Err(Refusal::bad("prompt", "is empty"));
        }
        let echo = match self.echo {
            Some(true) => prompts
                .iter()
                .map(|ids| voice.tokenizer.decode(ids, true).map_err(Refusal::of))
                .collect::<Result<_, _>>()?,
            _ => Vec::new(),
        };
        let sampling = self.sampling(endpoint, logprobs, limits, seed)?;
        let mut stop = self.stop_token_ids.clone().unwrap_or_default();
        if self.ignore_eos != Some(true) {
            stop.extend(voice.tokenizer.eos_ids());
        }
        let request = |(index, prompt): (u64, Vec<u32>)| {
            // equal prompts get answers of their own, unless a seed is asked for; siblings' streams begin at 0
            let seed =
                if self.seed.is_some() { sampling.seed } else { Rng::stream(sampling.seed, (1 << 32) + index).bits() };
            let sampling = Sampling { seed, ..sampling.clone() };
            Request { n, adapter, ..Request::new(prompt, sampling, stop.clone()) }
        };
        let usage = self.stream_options.as_ref().is_some_and(|options| options.include_usage);
        let manner = if self.stream == Some(true) { Manner::Stream { usage } } else { Manner::Whole };
        Ok(Job { endpoint, manner, requests: (0..).zip(prompts).map(request).collect(), stops, logprobs, echo })
    }

    fn refuse_unsupported(&self, endpoint: Endpoint) -> Result<(), Refusal> {
        if self.response_format.as_ref().is_some_and(|format| format["type"] != "text") {
            return Err(Refusal::bad("response_format", "only {\"type\": \"text\"} is supported"));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_null()) {
            return Err(Refusal::bad("suffix", "is not supported"));
        }
        if self.best_of.is_some_and(|best| best != self.n.unwrap_or(1)) {
            return Err(Refusal::bad("best_of", "is supported only where it equals n"));
        }
        if self.echo == Some(true) && (endpoint == Endpoint::Chat || self.logprobs.is_some()) {
            return Err(Refusal::bad("echo", "is supported for completions without logprobs"));
        }
        Ok(())
    }

    fn logprobs(&self, endpoint: Endpoint, limits: Limits) -> Result<Option<usize>, Refusal> {
        let count = match (endpoint, &self.logprobs) {
            (_, None | Some(Logprobs::Wanted(false))) if self.top_logprobs.is_none_or(|k| k == 0) => None,
            (Endpoint::Chat, Some(Logprobs::Wanted(true))) => Some(self.top_logprobs.unwrap_or(0)),
            (Endpoint::Completions, Some(Logprobs::Count(count))) => Some(*count),
            (Endpoint::Completions, Some(Logprobs::Wanted(true))) => Some(1),
            (Endpoint::Chat, _) => return Err(Refusal::bad("top_logprobs", "wants logprobs to be true")),
            _ => return Err(Refusal::bad("logprobs", "must be a number")),
        };
        match count {
            Some(count) if count > limits.logprobs => {
                Err(Refusal::bad("logprobs", format!("at most {} of each token", limits.logprobs)))
            }
            count => Ok(count),
        }
    }

    fn prompts(&self, endpoint: Endpoint, voice: &Voice) -> Result<Vec<Vec<u32>>, Refusal> {
        let encode = |text: &String| voice.tokenizer.encode(text, true).map_err(Refusal::of);
        if endpoint == Endpoint::Chat {
            let messages = self.messages.as_ref().filter(|messages| !messages.is_empty());
            let messages = messages.ok_or_else(|| Refusal::bad("messages", "must be a list of messages"))?;
            let messages = messages.iter().cloned().map(plain).collect();
            let ids = voice.chat(messages, self.tools.clone().filter(|tools| !tools.is_null()));
            return ids.map(|ids| vec![ids]).map_err(|e| Refusal { param: Some("messages"), ..Refusal::of(e) });
        }
        match &self.prompt {
            None => Err(Refusal::bad("prompt", "is wanted")),
            Some(Prompt::Text(text)) => Ok(vec![encode(text)?]),
            Some(Prompt::Ids(ids)) => Ok(vec![ids.clone()]),
            Some(Prompt::Texts(texts)) => texts.iter().map(encode).collect(),
            Some(Prompt::ManyIds(ids)) => Ok(ids.clone()),
        }
    }

    fn sampling(
        &self,
        endpoint: Endpoint,
        logprobs: Option<usize>,
        limits: Limits,
        seed: u64,
    ) -> Result<Sampling, Refusal> {
        let default = if endpoint == Endpoint::Chat { limits.max_length } else { 16 };
        let max_new_tokens = self.max_completion_tokens.or(self.max_tokens).unwrap_or(default);
        if max_new_tokens == 0 {
            return Err(Refusal::bad("max_tokens", "must be at least 1"));
        }
        let bias = |(id, bias): (&String, &f32)| match id.parse() {
            Ok(id) => Ok((id, *bias)),
            Err(_) => Err(Refusal::bad("logit_bias", format!("{id:?} is no token's number"))),
        };
        let logit_bias = self.logit_bias.iter().flatten().map(bias).collect::<Result<_, _>>()?;
        Ok(Sampling {
            max_new_tokens,
            temperature: self.temperature.unwrap_or(1.0),
            seed: self.seed.map_or(seed, |seed| seed as u64),
            top_k: self.top_k.unwrap_or(0).max(0) as usize,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            logit_bias,
            logprobs,
        })
    }
}

/// Content in parts of text as one text, which is what templates read.
fn plain(mut message: Map<String, Value>) -> Map<String, Value> {
    let texts: Option<Vec<&str>> = match message.get("content") {
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| part["text"].as_str().filter(|_| part["type"] == "text")).collect()
        }
        _ => None,
    };
    if let Some(text) = texts.map(|texts| texts.concat()) {
        message.insert("content".into(), text.into());
    }
    message
}
