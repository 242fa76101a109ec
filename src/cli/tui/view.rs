//! What the terminal shows, as data: the training thread writes it, the drawing thread copies it.
use super::history::History;
use crate::cli::data::clean;
use luthier::train::metrics::{EvalMetrics, StepMetrics};
use std::collections::VecDeque;

/// Messages and samples that are kept; older ones go.
const KEPT: usize = 200;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tab {
    #[default]
    Samples,
    Messages,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    #[default]
    Running,
    Paused,
    /// Asked to save and end.
    Ending,
}

#[derive(Clone, Debug)]
pub struct Sample {
    /// The step after which it was made.
    pub step: u64,
    pub prompt: String,
    pub text: String,
}

#[derive(Clone, Debug, Default)]
pub struct View {
    pub title: String,
    pub pace: Pace,
    /// The steps that were done when this start began, and all of them.
    pub done: u64,
    pub total: u64,
    /// Seconds since this start began, without pauses.
    pub seconds: f64,
    /// Bytes on the device in all, where it says so.
    pub memory: Option<u64>,
    pub last: StepMetrics,
    pub loss: History,
    pub grad_norm: History,
    pub learning_rate: History,
    pub speed: History,
    pub evals: Vec<(f64, f64)>,
    pub samples: VecDeque<Sample>,
    pub messages: VecDeque<String>,
    pub tab: Tab,
    /// Lines up from the end of the tab.
    pub scroll: u16,
    /// A file that is on its way here: name, bytes here, bytes in all.
    pub download: Option<(String, u64, u64)>,
}

impl View {
    pub fn start(&mut self, done: u64, total: u64) {
        (self.done, self.total, self.last.step) = (done, total, done);
    }

    pub fn step(&mut self, m: &StepMetrics) {
        self.loss.push(m.step, m.loss);
        self.grad_norm.push(m.step, m.grad_norm);
        self.learning_rate.push(m.step, m.learning_rate);
        self.speed.push(m.step, m.tokens_per_second);
        self.last = m.clone();
    }

    pub fn eval(&mut self, m: &EvalMetrics) {
        self.evals.push((m.step as f64, m.eval_loss));
        self.message(&format!("step {} · eval_loss {:.4}", m.step, m.eval_loss));
    }

    pub fn sample(&mut self, prompt: &str, text: &str) {
        let sample = Sample { step: self.last.step, prompt: clean(prompt), text: clean(text) };
        keep(&mut self.samples, sample);
    }

    pub fn message(&mut self, text: &str) {
        keep(&mut self.messages, clean(text));
    }

    /// The step and value of the least evaluation.
    pub fn best(&self) -> Option<(u64, f64)> {
        let finite = self.evals.iter().filter(|(_, loss)| loss.is_finite());
        finite.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(step, loss)| (*step as u64, *loss))
    }

    /// Seconds to go, at the speed since this start.
    pub fn left(&self) -> f64 {
        let taken = self.last.step.saturating_sub(self.done).max(1) as f64;
        self.seconds / taken * self.total.saturating_sub(self.last.step) as f64
    }

    pub fn turn(&mut self) {
        self.tab = match self.tab {
            Tab::Samples => Tab::Messages,
            Tab::Messages => Tab::Samples,
        };
        self.scroll = 0;
    }
}

fn keep<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() == KEPT {
        list.pop_front();
    }
    list.push_back(item);
}
