//! What the model says, in the memory of the training session, which is given back for as long as a sample takes.
use super::Run;
use crate::backend::{Backend, Charge, Use};
use crate::data::{Dataset, Example, ExampleRef};
use crate::error::Result;
use crate::infer::{self, Sampling};
use crate::model::{Model, Session};
use crate::train::config::TrainConfig;
use crate::train::metrics::{Reporter, SampleLine};

/// The first held-out records, or where an evaluation shows none the first of all: what is asked before and after.
fn asked<'d>(config: &TrainConfig, data: &'d Dataset) -> Vec<ExampleRef<'d>> {
    match config.eval_samples {
        0 => data.eval.first().or(data.train.first()).into_iter().collect(),
        samples => data.eval.iter().take(samples).collect(),
    }
}

/// Tokens before the first trained one: a chat's question, or a text's first words.
fn prompt(example: ExampleRef) -> usize {
    let question = example.trained().position(|t| t).unwrap_or(0);
    if question > 1 { question } else { example.len().min(16) }
}

/// Tokens of the longest prompt that a run goes on from.
pub(crate) fn longest_prompt(config: &TrainConfig, data: &Dataset) -> Option<usize> {
    asked(config, data).into_iter().map(prompt).max()
}

/// What the model says to a prompt, greedily and in so many tokens at most, for a person to see.
pub(crate) fn speak(
    b: &dyn Backend,
    model: &Model,
    prompt: &[u32],
    (max_new_tokens, seed): (usize, u64),
    stop: &[u32],
) -> Result<Vec<u32>> {
    let _charge = Charge::to(b, Use::Scratch);
    let sampling = Sampling { max_new_tokens, seed, ..Sampling::default() };
    infer::generate(b, model, prompt, &sampling, stop, |_| true)
}

impl Run<'_> {
    /// Before and after a run: what the model says to one record, where no evaluation shows more.
    pub(super) fn compare(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        if self.config.eval_samples == 0 {
            self.sample(reporter)?;
        }
        Ok(())
    }

    /// At an evaluation: the answers to its first prompts.
    pub(super) fn answer(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        if self.config.eval_samples > 0 {
            self.sample(reporter)?;
        }
        Ok(())
    }

    /// Nothing where the weights stream from the host: each token would take all of them over the bus.
    fn sample(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        if self.model.streamed.is_some() {
            return Ok(());
        }
        self.session = None;
        for example in asked(self.config, self.data) {
            let line = self.continued(example.to_example(), prompt(example))?;
            self.record.sample(&line)?;
            reporter.sample(&line.prompt, &line.text);
        }
        let N = self.config.per_device_train_batch_size * self.config.max_length;
        self.session = Some(Session::new(self.b, &self.model, N, self.config.max_length, self.plan.clone())?);
        Ok(())
    }

    fn continued(&self, example: Example, prompt: usize) -> Result<SampleLine> {
        let (question, rest) = example.ids.split_at(prompt);
        let most = self.config.eval_sample_tokens;
        let ids = speak(self.b, &self.model, question, (most, self.config.seed), self.tokenizer.eos_ids())?;
        let own = example.trained[question.len()..].iter().take_while(|trained| **trained).count();
        let text = |ids: &[u32]| self.tokenizer.decode(ids, true);
        let reference = text(&rest[..own.min(most)])?;
        Ok(SampleLine { step: self.state.global_step, prompt: text(question)?, text: text(&ids)?, reference })
    }
}
