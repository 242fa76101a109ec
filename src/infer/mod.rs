//! Text from a model: sampling with a key-value cache.
use crate::backend::{Backend, Buf, Scope};
use crate::error::{Error, Result};
use crate::model::{Model, Plan, Session};
use crate::rng::Rng;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    pub max_new_tokens: usize,
    /// 0: always the likeliest token.
    pub temperature: f32,
    pub seed: u64,
}

/// Continues `prompt` until a token of `stop` or the limit. `on_token` sees each token as it comes; `false` ends it.
pub fn generate(
    b: &dyn Backend,
    model: &Model,
    prompt: &[u32],
    sampling: &Sampling,
    stop: &[u32],
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    let s = &model.spec;
    if prompt.is_empty() {
        return Err(Error::Usage("the prompt has no tokens".into()));
    }
    if let Some(id) = prompt.iter().find(|id| **id as usize >= s.V) {
        return Err(Error::Usage(format!("token {id} is beyond the model's vocabulary of {}", s.V)));
    }
    let room = prompt.len() + sampling.max_new_tokens;
    let scope = Scope::new(b);
    let cache = |_| -> Result<(Buf, Buf)> {
        let one = || scope.alloc(room * s.K * s.D, model.dtype);
        Ok((one()?, one()?))
    };
    let caches: Vec<(Buf, Buf)> = (0..s.layers).map(cache).collect::<Result<_>>()?;
    let mut rng = Rng::new(sampling.seed);
    let mut prefill = Session::new(b, model, prompt.len(), room, Plan::Inference)?;
    prefill.forward_cached(model, prompt, &caches, prompt.len())?;
    let mut logits = prefill.logits(model, prompt.len() - 1, 1)?;
    drop(prefill);
    let mut decode = Session::new(b, model, 1, room, Plan::Inference)?;
    let mut out = Vec::new();
    while out.len() < sampling.max_new_tokens {
        let next = choose(&logits, sampling.temperature, &mut rng);
        if stop.contains(&next) {
            break;
        }
        out.push(next);
        if !on_token(next) || out.len() == sampling.max_new_tokens {
            break;
        }
        let T = prompt.len() + out.len();
        if s.rope_turns_at(T) {
            // from here on other angles hold, for the keys in the cache too
            let mut again = Session::new(b, model, T, room, Plan::Inference)?;
            again.forward_cached(model, &[prompt, &out].concat(), &caches, T)?;
            logits = again.logits(model, T - 1, 1)?;
        } else {
            decode.forward_cached(model, &[next], &caches, T)?;
            logits = decode.logits(model, 0, 1)?;
        }
    }
    Ok(out)
}

/// The likeliest token, or one drawn from softmax(logits/temperature).
fn choose(logits: &[f32], temperature: f32, rng: &mut Rng) -> u32 {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0);
    if temperature <= 0.0 {
        return best as u32;
    }
    let weight = |z: f32| (((z - logits[best]) / temperature) as f64).exp();
    let mut left = rng.uniform() as f64 * logits.iter().map(|z| weight(*z)).sum::<f64>();
    for (id, z) in logits.iter().enumerate() {
        left -= weight(*z);
        if left < 0.0 {
            return id as u32;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_is_greedy_and_warm_follows_the_distribution() {
        let logits = [0.0, 2.0f32.ln(), f32::NEG_INFINITY];
        let mut rng = Rng::new(3);
        assert_eq!(choose(&logits, 0.0, &mut rng), 1);
        let ones = (0..3000).filter(|_| choose(&logits, 1.0, &mut rng) == 1).count();
        assert!((1900..2100).contains(&ones), "{ones}");
    }
}
