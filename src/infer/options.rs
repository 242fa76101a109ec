//! How large an engine is.
use super::pages::pages_of;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::paged::{PAGE, Pool};

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Sequences that go on at the same time; others wait.
    pub max_sequences: usize,
    /// Tokens of a step, at most: long prompts come in such pieces, so that the others go on meanwhile.
    pub max_step_tokens: usize,
    /// Tokens of a sequence, prompt and answer; `None`: what the model was made for, as far as the cache reaches.
    pub max_length: Option<usize>,
    /// Bytes for keys and values; `None`: most of what the device has left.
    pub kv_cache: Option<u64>,
    pub prefixes: Prefixes,
}

/// Whether what was computed for one request serves others that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefixes {
    Shared,
    Apart,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_sequences: 64,
            max_step_tokens: 512,
            max_length: None,
            kv_cache: None,
            prefixes: Prefixes::Shared,
        }
    }
}

/// Where the device does not say what it has.
const UNKNOWN: u64 = 2 << 30;
/// For activations and whatever else is on the device, of what it has in all.
const RESERVED: f64 = 0.1;
/// Bytes of one buffer, at most: what WebGPU binds.
const LARGEST: u64 = (1 << 31) - (1 << 16);

impl Options {
    /// Tokens of a sequence, and pages of the pool.
    pub(super) fn sizes(&self, b: &dyn Backend, model: &Model) -> Result<(usize, usize)> {
        let (s, page) = (&model.spec, Pool::page_bytes(&model.spec, model.dtype));
        if self.max_sequences == 0 || self.max_step_tokens < self.max_sequences {
            let what = "an engine wants at least one sequence, and as many tokens a step as sequences";
            return Err(Error::Usage(format!(
                "{what}: got {} sequences, {} tokens",
                self.max_sequences, self.max_step_tokens
            )));
        }
        let memory = b.memory();
        let left = memory.total.map(|total| ((total as f64 * (1.0 - RESERVED)) as u64).saturating_sub(memory.used));
        let bytes = self.kv_cache.or(left).unwrap_or(UNKNOWN);
        let longest = self.max_length.unwrap_or(s.max_positions);
        // more than all sequences at their longest is of use to known prefixes alone
        let most = if self.kv_cache.is_some() { usize::MAX } else { 2 * self.max_sequences * (pages_of(longest) + 1) };
        let layer = page / (2 * s.layers as u64);
        let pages = ((bytes / page) as usize).min(most).min((LARGEST / layer) as usize) + 1;
        let room = (pages - 1) * PAGE;
        let length = longest.min(room);
        if length < 2 || self.max_length.is_some_and(|wanted| wanted > room) {
            let wanted = pages_of(longest.max(2)) as u64 * page;
            return Err(Error::Usage(format!(
                "the cache of keys and values has {} MiB; a sequence of {longest} tokens wants {} MiB: \
                 give it more (--kv-cache), or take shorter sequences (--max-length)",
                ((pages as u64 - 1) * page) >> 20,
                (wanted >> 20) + 1
            )));
        }
        Ok((length, pages))
    }
}

impl Options {
    /// For one prompt alone.
    pub(super) fn single(model: &Model, prompt: usize, sampling: &super::Sampling) -> Options {
        // beyond its positions a model makes no sense, but a prompt that is there has an answer of one token
        let most = model.spec.max_positions.max(prompt + 1) - prompt;
        let length = prompt + sampling.max_new_tokens.min(most);
        let kv_cache = pages_of(length.max(2)) as u64 * Pool::page_bytes(&model.spec, model.dtype);
        Options {
            max_sequences: 1,
            max_length: Some(length.max(2)),
            kv_cache: Some(kv_cache),
            prefixes: Prefixes::Apart,
            ..Options::default()
        }
    }
}
