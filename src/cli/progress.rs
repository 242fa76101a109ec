//! A run as people watch it: a bar on a terminal, plain lines elsewhere.
use super::{download::Download, interrupt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use luthier::io::hub::Event;
use luthier::train::metrics::{EvalMetrics, Reporter, StepMetrics};
use luthier::train::report::words::duration;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::Instant;

pub struct Progress {
    bar: Option<ProgressBar>,
    download: Download,
    /// Steps between plain lines.
    every: u64,
    started: Instant,
    done: u64,
    total: u64,
}

impl Progress {
    /// A bar on a terminal.
    pub fn new(every: u64) -> Progress {
        Progress::with_bar(every, stderr().is_terminal())
    }

    /// Lines, wherever they go.
    pub fn plain(every: u64) -> Progress {
        Progress::with_bar(every, false)
    }

    fn with_bar(every: u64, bar: bool) -> Progress {
        let bar = bar.then(|| {
            let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg}");
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr())
                .with_style(style.expect("the template is a constant"))
        });
        Progress { bar, download: Download::default(), every, started: Instant::now(), done: 0, total: 0 }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| super::say!("{text}")),
            None => super::say!("{text}"),
        }
    }

    /// Seconds to go, at the speed since the start.
    fn left(&self, step: u64) -> f64 {
        let taken = step.saturating_sub(self.done).max(1) as f64;
        self.started.elapsed().as_secs_f64() / taken * self.total.saturating_sub(step) as f64
    }

    fn is_logged(&self, step: u64) -> bool {
        step == self.done + 1 || step == self.total || step.is_multiple_of(self.every)
    }
}

impl Reporter for Progress {
    fn start(&mut self, done: u64, total: u64) {
        (self.done, self.total, self.started) = (done, total, Instant::now());
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn step(&mut self, m: &StepMetrics) {
        let figures = figures(m, self.left(m.step));
        match &self.bar {
            Some(bar) => {
                bar.set_position(m.step);
                bar.set_message(figures);
            }
            None if self.is_logged(m.step) => super::say!("step {}/{} · {figures}", m.step, self.total),
            None => {}
        }
    }

    fn eval(&mut self, m: &EvalMetrics) {
        self.line(&format!("step {} · eval_loss {:.4} · {:.1} s", m.step, m.eval_loss, m.eval_runtime));
    }

    fn sample(&mut self, prompt: &str, text: &str) {
        self.line(&format!("> {prompt}\n{text}"));
    }

    fn saved(&mut self, path: &Path) {
        self.line(&format!("saved {}", path.display()));
    }

    fn message(&mut self, text: &str) {
        self.line(text);
    }

    fn download(&mut self, event: Event) {
        self.download.show(event);
    }

    fn is_interrupted(&self) -> bool {
        interrupt::asked()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn figures(m: &StepMetrics, left: f64) -> String {
    format!(
        "loss {:.4} · grad_norm {:.3} · lr {:.2e} · {:.0} tok/s · {:.2} GiB · {} left",
        m.loss,
        m.grad_norm,
        m.learning_rate,
        m.tokens_per_second,
        m.memory as f64 / f64::from(1 << 30),
        duration(left)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_step() {
        let m = StepMetrics { loss: 1.23456, learning_rate: 2e-4, memory: 3 << 29, ..StepMetrics::default() };
        let want = "loss 1.2346 · grad_norm 0.000 · lr 2.00e-4 · 0 tok/s · 1.50 GiB · 1m00s left";
        assert_eq!(figures(&m, 60.0), want);
    }

    #[test]
    fn plain_lines_come_first_last_and_every_so_often() {
        let mut progress = Progress::new(5);
        progress.start(3, 11);
        let logged: Vec<u64> = (4..=11).filter(|s| progress.is_logged(*s)).collect();
        assert_eq!(logged, [4, 5, 10, 11]);
    }
}
