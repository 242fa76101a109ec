//! What is said when a loss or a gradient is not finite: which micro-batch, which tensor, which examples.
use super::Run;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::model::param::Param;
use crate::train::optim::{Micro, Stay};

/// Examples that a message names at most.
const NAMED: usize = 16;

impl Run<'_> {
    /// Nothing was changed by the step that failed; the last checkpoint is good.
    pub(super) fn stopped(&mut self, batches: &[Batch], losses: &[f64], grad_norm: f64) -> Error {
        let step = self.state.global_step + 1;
        let what = match losses.iter().find(|loss| !loss.is_finite()) {
            Some(loss) => format!("the loss is {loss}"),
            None => format!("the gradient norm is {grad_norm}"),
        };
        match self.origin(batches, losses) {
            Ok(origin) => {
                let when = match self.optimizer.stay() {
                    Stay::Fused => "while weights moved",
                    _ => "before the weights were touched",
                };
                let hint =
                    "lower the learning rate or set max_grad_norm; the checkpoints in output_dir are from before";
                Error::Stopped(format!("step {step}: {what}: {origin}; training stopped {when}; {hint}"))
            }
            Err(e) => e,
        }
    }

    fn origin(&mut self, batches: &[Batch], losses: &[f64]) -> Result<String> {
        let mut found = Vec::new();
        if let Some(weight) = self.first(|param, run| run.b.download_f32(&param.value), false)? {
            found.push(format!("the weight {weight} is not finite already"));
        }
        // the backward begins at the last weight
        if let Some(gradient) = self.first(|param, run| param.grad(run.b), true)? {
            found.push(format!("the first gradient that is not finite is that of {gradient}"));
        }
        let micro = match losses.iter().position(|loss| !loss.is_finite()) {
            None if losses.len() > 1 => self.repeat(batches)?,
            None => Some(0),
            micro => micro,
        };
        found.push(match micro {
            Some(micro) => format!("micro-batch {} of {}, {}", micro + 1, losses.len(), self.named(micro)),
            None => "no micro-batch alone does it again".into(),
        });
        Ok(found.join("; "))
    }

    /// The name of the first parameter, or the last, that has a value which is not finite.
    fn first(&self, values: impl Fn(&Param, &Self) -> Result<Vec<f32>>, last: bool) -> Result<Option<String>> {
        let mut name = None;
        for param in self.model.params() {
            if (name.is_none() || last) && !values(param, self)?.iter().all(|x| x.is_finite()) {
                name = Some(param.name.clone());
            }
        }
        Ok(name)
    }

    /// Each micro-batch again and alone: the first whose gradients are not finite.
    fn repeat(&mut self, batches: &[Batch]) -> Result<Option<usize>> {
        for (micro, batch) in batches.iter().enumerate() {
            self.optimizer.clear_gradients(self.b)?;
            let loss = self.micro_batch(micro, batch, batches, Micro::Last)?;
            if !loss.is_finite() || !self.optimizer.gradient_norm(self.b)?.is_finite() {
                return Ok(Some(micro));
            }
        }
        Ok(None)
    }

    /// `examples 3, 17`: their places among those that are trained on, from 0.
    fn named(&self, micro: usize) -> String {
        let examples = self.cursor.examples(self.state.global_step).swap_remove(micro);
        let names: Vec<String> = examples.iter().take(NAMED).map(usize::to_string).collect();
        let more = if examples.len() > NAMED { " …" } else { "" };
        format!("training examples {}{more}", names.join(", "))
    }
}
