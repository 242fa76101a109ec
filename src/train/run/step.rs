//! One step: forward and backward of each micro-batch, then the optimizer, if all that it would move by is finite.
use super::Run;
use crate::data::Batch;
use crate::error::Result;
use crate::model::{Session, Tokens};
use crate::rng::Rng;
use crate::train::loss_scale::LossScale;
use crate::train::method::cross_entropy;
use crate::train::metrics::{Reporter, StepMetrics};
use crate::train::optim::Micro;
use std::time::Instant;

impl Run<'_> {
    /// `true`: the step was an epoch's last.
    pub(super) fn step(&mut self, reporter: &mut dyn Reporter) -> Result<bool> {
        let (batches, epoch) = self.cursor.step(self.state.global_step);
        let loss_scale = self.state.loss_scale.as_ref().map(|by| by.scale);
        let (mut losses, mut aux_losses) = (Vec::new(), Vec::new());
        for (micro, batch) in batches.iter().enumerate() {
            let of = if micro + 1 == batches.len() { Micro::Last } else { Micro::Earlier };
            losses.push(self.micro_batch(micro, batch, &batches, of)?);
            aux_losses.extend(self.aux_loss()?);
            self.state.num_input_tokens_seen += batch.tokens as u64;
            self.clock.tokens += batch.tokens as u64;
        }
        let loss = losses.iter().sum();
        let aux_loss = self.aux_coef.map(|_| aux_losses.iter().sum::<f64>() / aux_losses.len().max(1) as f64);
        self.optimizer.unscale = loss_scale.unwrap_or(1.0).recip() as f32;
        let learning_rate = self.schedule.lr(self.state.steps_taken());
        let grad_norm = self.optimizer.gradient_norm(self.b)? as f64;
        match f64::is_finite(loss + grad_norm) {
            true => {
                self.optimizer.advance_lazily(self.b, learning_rate)?;
                self.state.loss_scale.iter_mut().for_each(LossScale::good);
            }
            false => self.leave_out(&batches, &losses, grad_norm, reporter)?,
        }
        self.state.global_step += 1;
        self.clock.epoch = epoch;
        let step = self.state.global_step;
        let metrics = StepMetrics {
            step,
            epoch,
            loss,
            grad_norm,
            learning_rate,
            num_input_tokens_seen: self.state.num_input_tokens_seen,
            tokens_per_second: self.clock.tokens as f64 / self.clock.since.elapsed().as_secs_f64().max(1e-9),
            memory: self.b.memory().peak,
            aux_loss,
            loss_scale,
        };
        self.record.reached(&metrics);
        let told = Instant::now();
        reporter.step(&metrics);
        self.clock.since += told.elapsed();
        if step.is_multiple_of(self.config.logging_steps) || step == self.total {
            self.record.step(&metrics)?;
            (self.clock.since, self.clock.tokens) = (Instant::now(), 0);
        }
        Ok(epoch.fract() == 0.0)
    }

    /// Adds to the gradients; returns the micro-batch's share of the loss. `all`: of the step; `of`: of those that are summed.
    pub(super) fn micro_batch(&mut self, micro: usize, batch: &Batch, all: &[Batch], of: Micro) -> Result<f64> {
        let counted = all.iter().map(|batch| batch.counted).sum();
        let (seed, noise) = (self.seed("dropout", micro), self.seed("neftune", micro));
        let scale = self.state.loss_scale.as_ref().map_or(1.0, |by| by.scale);
        let coef = cross_entropy::coef(&batch.labels, counted).into_iter().map(|c| (c as f64 * scale) as f32);
        let session = self.session.as_mut().expect("no sample is being made");
        session.set_dropout(Some(seed));
        session.set_neftune(self.config.neftune_noise_alpha.map(|alpha| (alpha, noise)))?;
        if let Some(coef) = self.aux_coef {
            session.start_balance(&self.model, &batch.real, coef * scale / all.len() as f64)?;
        }
        let learning_rate = self.schedule.lr(self.state.steps_taken());
        let mut follow = self.optimizer.follow(self.b, of, learning_rate)?;
        session.forward_watched(&self.model, &tokens(batch), &mut follow)?;
        session.backward_watched(&mut self.model, &batch.labels, &coef.collect::<Vec<_>>(), &mut follow)?;
        session.set_dropout(None);
        session.set_neftune(None)?;
        Ok(cross_entropy::loss(&session.backward_logprobs()?, counted))
    }

    /// Of the micro-batch's forward.
    fn aux_loss(&mut self) -> Result<Option<f64>> {
        let session = self.session.as_mut().filter(|_| self.aux_coef.is_some());
        session.map_or(Ok(None), Session::balance_loss)
    }

    /// The same for the same step, whenever it is run.
    fn seed(&self, of: &str, micro: usize) -> u32 {
        Rng::named(self.config.seed, &format!("{of} {} {micro}", self.state.global_step)).bits() as u32
    }

    /// A loss or gradient that is not finite moves nothing. In float16 it may be the loss's scale that did it, and the run goes on
    /// with a smaller one; else it stops here.
    fn leave_out(
        &mut self,
        batches: &[Batch],
        losses: &[f64],
        grad_norm: f64,
        reporter: &mut dyn Reporter,
    ) -> Result<()> {
        let goes_on = self.state.loss_scale.as_mut().is_some_and(LossScale::overflow);
        let Some(LossScale { scale, .. }) = self.state.loss_scale.clone().filter(|_| goes_on) else {
            return Err(self.stopped(batches, losses, grad_norm));
        };
        self.optimizer.clear_gradients(self.b)?;
        let step = self.state.global_step + 1;
        reporter
            .message(&format!("step {step}: float16 overflowed, so the step was left out; loss_scale is {scale} now"));
        Ok(())
    }
}

pub(super) fn tokens(batch: &Batch) -> Tokens {
    let Batch { ids, positions, cu_seqlens, .. } = batch.clone();
    Tokens { ids, positions, cu_seqlens }
}
