//! The learning rate of each step, equal to transformers' `get_scheduler`:
//! a rise from 0 over the warmup, lr·step/warmup, then the course that `lr_scheduler_type` names.
use super::config::{SchedulerKwargs, SchedulerType, TrainConfig};
use std::f64::consts::PI;

/// The last learning rate of `polynomial` where `lr_end` is not given.
pub const LR_END: f64 = 1e-7;

#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub kind: SchedulerType,
    pub kwargs: SchedulerKwargs,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Steps.
    pub warmup: u64,
    /// Steps of the whole run, the warmup's among them.
    pub total: u64,
}

impl Schedule {
    pub fn new(config: &TrainConfig, total: u64) -> Schedule {
        let warmup = match config.warmup_steps {
            0 => (total as f64 * config.warmup_ratio).ceil() as u64,
            steps => steps,
        };
        Schedule {
            kind: config.lr_scheduler_type,
            kwargs: config.lr_scheduler_kwargs.clone(),
            learning_rate: config.learning_rate,
            warmup,
            total,
        }
    }

    /// The learning rate that step `step` (from 0) is taken with.
    pub fn lr(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if self.kind == SchedulerType::Constant {
            return 1.0;
        }
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let after = (step - self.warmup) as f64;
        let decay = self.total.saturating_sub(self.warmup).max(1) as f64;
        let progress = after / decay;
        match self.kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => 1.0,
            SchedulerType::Linear => (self.total.saturating_sub(step) as f64 / decay).max(0.0),
            SchedulerType::Cosine => {
                let cycles = self.kwargs.num_cycles.unwrap_or(0.5);
                (0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())).max(0.0)
            }
            SchedulerType::CosineWithRestarts if progress >= 1.0 => 0.0,
            SchedulerType::CosineWithRestarts => {
                let cycles = self.kwargs.num_cycles.unwrap_or(1.0);
                (0.5 * (1.0 + (PI * (cycles * progress).fract()).cos())).max(0.0)
            }
            SchedulerType::Polynomial => self.polynomial(step, progress),
            SchedulerType::InverseSqrt => {
                let without = if self.warmup > 0 { self.warmup as f64 } else { 10_000.0 };
                let timescale = self.kwargs.timescale.unwrap_or(without);
                ((after + timescale) / timescale).sqrt().recip()
            }
        }
    }

    fn polynomial(&self, step: u64, progress: f64) -> f64 {
        let end = self.kwargs.lr_end.unwrap_or(LR_END);
        if step > self.total {
            return end / self.learning_rate;
        }
        let left = (1.0 - progress).powf(self.kwargs.power.unwrap_or(1.0));
        ((self.learning_rate - end) * left + end) / self.learning_rate
    }
}
