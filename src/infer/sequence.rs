//! What is asked of an engine, and a sequence on its way.
use super::pages::{self, Key, Pages};
use crate::error::{Error, Result};
use crate::model::paged::PAGE;
use crate::rng::Rng;
use std::collections::BTreeMap;

pub type RequestId = u64;
/// 0: the model alone.
pub type AdapterId = u64;

/// How tokens are chosen; the order is penalties, temperature, top_k, top_p, min_p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    pub max_new_tokens: usize,
    /// 0: always the likeliest token.
    pub temperature: f32,
    /// The same seed gives the same tokens, whatever runs beside.
    pub seed: u64,
    /// Of the likeliest so many; 0: all.
    pub top_k: usize,
    /// Of the likeliest that together have this probability; 1: all.
    pub top_p: f32,
    /// Of those at least this times as likely as the likeliest; 0: all.
    pub min_p: f32,
    /// Logits of tokens of prompt and answer are divided by it (negative ones multiplied); 1: none.
    pub repetition_penalty: f32,
    /// Taken off a token's logit for each time that it is in the answer.
    pub frequency_penalty: f32,
    /// Taken off the logit of each token in the answer.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// `Some(k)`: the k likeliest tokens of each step with their log-probabilities.
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            max_new_tokens: 256,
            temperature: 0.0,
            seed: 0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

impl Sampling {
    /// The first setting that cannot be.
    pub fn check(&self, V: usize) -> Result<()> {
        let within = |name: &str, value: f32, least: f32, most: f32| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(Error::Usage(format!("{name} must be from {least} to {most}, got {value}"))),
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        for (token, bias) in &self.logit_bias {
            within("logit_bias", *bias, -100.0, 100.0)?;
            if *token as usize >= V {
                let what = format!("logit_bias names token {token}, but the vocabulary has {V}");
                return Err(Error::Usage(what));
            }
        }
        Ok(())
    }
}

/// One prompt, and how it goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub sampling: Sampling,
    /// Tokens that end it, and that are not part of the answer.
    pub stop: Vec<u32>,
    /// Answers, each with a seed of its own.
    pub n: usize,
    pub adapter: AdapterId,
}

impl Request {
    pub fn new(prompt: Vec<u32>, sampling: Sampling, stop: Vec<u32>) -> Request {
        Request { prompt, sampling, stop, n: 1, adapter: 0 }
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token came.
    Stop,
    /// It reached its limit, or the model's.
    Length,
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Its log-probability under the model's own distribution, where log-probabilities were asked for; else after penalties and biases.
    pub logprob: f32,
    /// The likeliest tokens under the model's own distribution, where they were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Something happened to answer `index` of a request: a token, an end, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub request: RequestId,
    pub index: usize,
    pub token: Option<Token>,
    pub finish: Option<Finish>,
}

/// One answer on its way.
pub(super) struct Sequence {
    pub request: RequestId,
    pub index: usize,
    pub adapter: AdapterId,
    pub sampling: Sampling,
    pub stop: Vec<u32>,
    /// The prompt, then the answer.
    pub tokens: Vec<u32>,
    pub prompt: usize,
    /// Tokens in all, at most.
    pub limit: usize,
    /// Tokens whose keys and values lie in the pages.
    pub computed: usize,
    pub pages: Vec<u32>,
    /// Keys of the first pages.
    pub keys: Vec<Key>,
    /// Tokens that were found in known pages, for the statistics.
    pub found: usize,
    /// How often each token is in the answer, and 0 for those of the prompt alone; only where a penalty needs it.
    counts: BTreeMap<u32, u32>,
    /// Further answers to the same prompt, which begin when this one's prompt can be shared.
    pub siblings: Vec<Sequence>,
}

impl Sequence {
    pub fn new(request: &Request, id: RequestId, index: usize, limit: usize) -> Sequence {
        let mut sampling = request.sampling.clone();
        if index > 0 {
            sampling.seed = Rng::stream(sampling.seed, index as u64).bits();
        }
        let repeats = sampling.repetition_penalty != 1.0;
        let seen = request.prompt.iter().filter(|_| repeats);
        Sequence {
            request: id,
            index,
            adapter: request.adapter,
            counts: seen.map(|id| (*id, 0)).collect(),
            sampling,
            stop: request.stop.clone(),
            tokens: request.prompt.clone(),
            prompt: request.prompt.len(),
            limit,
            computed: 0,
            pages: Vec::new(),
            keys: Vec::new(),
            found: 0,
            siblings: Vec::new(),
        }
    }

    /// Tokens that are known, but not computed.
    pub fn missing(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Everything of it has to be computed again.
    pub fn restart(&mut self, pages: &mut Pages) {
        pages.leave(&mut self.pages);
        self.computed = 0;
    }

    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        let s = &self.sampling;
        if s.repetition_penalty != 1.0 || s.frequency_penalty != 0.0 || s.presence_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// (token, factor, more) of every logit that is changed.
    pub fn adjust(&self) -> Vec<(u32, f32, f32)> {
        let s = &self.sampling;
        let penalty = |count: u32| {
            let presence = if count > 0 { s.presence_penalty } else { 0.0 };
            -(s.frequency_penalty * count as f32 + presence)
        };
        let mut all: BTreeMap<u32, (f32, f32)> =
            self.counts.iter().map(|(id, count)| (*id, (s.repetition_penalty, penalty(*count)))).collect();
        for (id, bias) in &s.logit_bias {
            all.entry(*id).or_insert((1.0, 0.0)).1 += bias;
        }
        all.into_iter().map(|(id, (factor, more))| (id, factor, more)).collect()
    }

    /// The random words of its next token.
    pub fn words(&self) -> [u32; 2] {
        let bits = Rng::stream(self.sampling.seed, self.tokens.len() as u64).bits();
        [bits as u32, (bits >> 32) as u32]
    }

    /// The key of full page `i`, whose tokens are known.
    pub fn key(&mut self, i: usize) -> Key {
        while self.keys.len() <= i {
            let at = self.keys.len();
            let tokens = &self.tokens[at * PAGE..(at + 1) * PAGE];
            self.keys.push(pages::key(self.keys.last().copied(), self.adapter, tokens));
        }
        self.keys[i]
    }
}
