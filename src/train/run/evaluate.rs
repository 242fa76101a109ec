//! Evaluation: the mean loss of the held-out examples, in the training session's own buffers: no memory more than a step's.
use super::Run;
use super::step::tokens;
use crate::data::{self, BatchOptions};
use crate::error::Result;
use crate::train::method::cross_entropy;
use crate::train::metrics::{EvalMetrics, Reporter};
use crate::train::setup;
use std::time::Instant;

impl Run<'_> {
    /// `None`: there is nothing to evaluate on.
    pub(super) fn evaluate(&mut self, reporter: &mut dyn Reporter) -> Result<Option<EvalMetrics>> {
        if self.data.eval.is_empty() {
            return Ok(None);
        }
        let started = Instant::now();
        self.optimizer.finish(self.b)?;
        let options = BatchOptions { shuffle: false, ..setup::batch_options(self.config, self.tokenizer, false) };
        let (mut loss, mut counted) = (0.0, 0);
        let session = self.session.as_mut().expect("no sample is being made");
        for batch in data::batches(&self.data.eval, &options, 0) {
            session.forward(&self.model, &tokens(&batch))?;
            loss += cross_entropy::loss(&session.logprobs(&self.model, &batch.labels)?, 1);
            counted += batch.counted;
        }
        let eval_loss = loss / counted.max(1) as f64;
        let eval = EvalMetrics {
            step: self.state.global_step,
            epoch: self.clock.epoch,
            eval_loss,
            eval_perplexity: eval_loss.exp(),
            eval_runtime: started.elapsed().as_secs_f64(),
        };
        self.record.eval(&eval)?;
        reporter.eval(&eval);
        self.answer(reporter)?;
        self.clock.since += started.elapsed();
        Ok(Some(eval))
    }
}
