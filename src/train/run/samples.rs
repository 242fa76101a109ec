//! What the model says, in the memory of the training session: it is given back for as long as a sample takes, and what would
//! take more than it had is not tried.
use super::Run;
use crate::data::Example;
use crate::error::Result;
use crate::infer::{self, Sampling};
use crate::model::{Model, Plan, Session};
use crate::train::metrics::{Reporter, SampleLine};

/// Bytes beside the model that an answer of `new` tokens to `prompt` tokens takes at most: keys and values, and a session for
/// the prompt (or, where angles change on the way, for all of it).
pub(super) fn bytes(model: &Model, prompt: usize, new: usize) -> u64 {
    let (s, room) = (&model.spec, prompt + new);
    let caches = 2 * s.layers * room * s.K * s.D * model.dtype.size();
    let session = |N: usize| Plan::Inference.bytes(s, N, model.dtype);
    caches as u64 + session(room) + session(1)
}

/// The tokens before the first trained one: a chat's question, or a text's first words.
fn prompt(example: &Example) -> usize {
    let question = example.trained.iter().position(|t| *t).unwrap_or(0);
    if question > 1 { question } else { example.len().min(16) }
}

impl Run<'_> {
    /// Before and after a run: what the model says to the first held-out record (or the first of all), where no evaluation shows
    /// more.
    pub(super) fn compare(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        let Some(example) = self.data.eval.first().or(self.data.train.first()) else { return Ok(()) };
        if self.config.eval_samples == 0 {
            self.sample(&[example], reporter)?;
        }
        Ok(())
    }

    /// The answers to the first of the evaluation's prompts.
    pub(super) fn answer(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        let examples: Vec<&Example> = self.data.eval.iter().take(self.config.eval_samples).collect();
        if examples.is_empty() {
            return Ok(());
        }
        for line in self.sample(&examples, reporter)? {
            self.samples.iter_mut().try_for_each(|file| file.sample(&line))?;
        }
        Ok(())
    }

    fn sample(&mut self, examples: &[&Example], reporter: &mut dyn Reporter) -> Result<Vec<SampleLine>> {
        let used = self.b.memory().used;
        self.session = None;
        let room = used.saturating_sub(self.b.memory().used);
        let mut lines = Vec::new();
        for example in examples {
            let (prompt, new) = (prompt(example), self.config.eval_sample_tokens);
            let wanted = bytes(&self.model, prompt, new);
            if wanted > room {
                let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                reporter.message(&format!(
                    "no sample for a prompt of {prompt} tokens: it may take {} MiB, a step takes {}",
                    mib(wanted),
                    mib(room)
                ));
                continue;
            }
            let line = self.continued(example, prompt)?;
            reporter.sample(&line.prompt, &line.text);
            lines.push(line);
        }
        let N = self.config.per_device_train_batch_size * self.config.max_length;
        self.session = Some(Session::new(self.b, &self.model, N, self.config.max_length, self.plan)?);
        Ok(lines)
    }

    fn continued(&self, example: &Example, prompt: usize) -> Result<SampleLine> {
        let (question, rest) = example.ids.split_at(prompt);
        let sampling =
            Sampling { max_new_tokens: self.config.eval_sample_tokens, temperature: 0.0, seed: self.config.seed };
        let ids = infer::generate(self.b, &self.model, question, &sampling, self.tokenizer.eos_ids(), |_| true)?;
        let own = example.trained[prompt..].iter().take_while(|trained| **trained).count();
        let text = |ids: &[u32]| self.tokenizer.decode(ids, true);
        let reference = text(&rest[..own.min(self.config.eval_sample_tokens)])?;
        Ok(SampleLine { step: self.state.global_step, prompt: text(question)?, text: text(&ids)?, reference })
    }
}
