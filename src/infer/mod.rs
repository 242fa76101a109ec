//! Text from a model: an engine that runs many sequences at once on a paged cache of keys and values.
//!
//! Each [`Engine::step`] takes the next token of every sequence that goes on and a piece of the prompts that wait, runs them as
//! one batch, and draws the next tokens on the device. Sequences join and leave at every step (continuous batching: Yu et al.
//! 2022, Orca, OSDI 2022; paged cache: Kwon et al. 2023, arXiv:2309.06180).
use crate::backend::Backend;
use crate::error::Result;
use crate::model::Model;

mod adapters;
mod engine;
mod options;
mod pages;
mod plan;
mod sequence;
pub mod text;
pub use engine::{Engine, Stats};
pub use options::{Options, Prefixes};
pub use sequence::{AdapterId, Event, Finish, Request, RequestId, Sampling, Token};

/// Continues `prompt` until a token of `stop` or the limit. `on_token` sees each token as it comes; `false` ends it.
pub fn generate(
    b: &dyn Backend,
    model: &Model,
    prompt: &[u32],
    sampling: &Sampling,
    stop: &[u32],
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    if sampling.max_new_tokens == 0 {
        return Ok(Vec::new());
    }
    let options = Options::single(model, prompt.len(), sampling);
    let mut engine = Engine::lend(b, model, &options)?;
    engine.add(Request::new(prompt.to_vec(), sampling.clone(), stop.to_vec()))?;
    let mut out = Vec::new();
    while engine.is_busy() {
        for event in engine.step()? {
            let Some(token) = event.token else { continue };
            out.push(token.id);
            if !on_token(token.id) {
                return Ok(out);
            }
        }
    }
    Ok(out)
}
