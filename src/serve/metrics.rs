//! Numbers for Prometheus.
use crate::infer::Stats;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the times to the first token, in seconds.
const BOUNDS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Default)]
pub struct Metrics {
    stats: Mutex<Stats>,
    /// By status classes 1xx to 5xx.
    responses: [AtomicU64; 5],
    first: [AtomicU64; BOUNDS.len() + 1],
    first_micros: AtomicU64,
}

impl Metrics {
    pub fn set(&self, stats: Stats) {
        *self.stats.lock().unwrap_or_else(|e| e.into_inner()) = stats;
    }
    pub fn response(&self, status: u16) {
        if let Some(class) = self.responses.get((status as usize / 100).wrapping_sub(1)) {
            class.fetch_add(1, Relaxed);
        }
    }
    /// Seconds from a request to its first token.
    pub fn first_token(&self, seconds: f64) {
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.first[at].fetch_add(1, Relaxed);
        self.first_micros.fetch_add((seconds * 1e6) as u64, Relaxed);
    }

    /// In the text format, version 0.0.4.
    pub fn text(&self) -> String {
        let s = *self.stats.lock().unwrap_or_else(|e| e.into_inner());
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        one("luthier_requests_running", "gauge", "Answers that go on.", s.running as u64);
        one("luthier_requests_waiting", "gauge", "Answers that wait for a place.", s.waiting as u64);
        one("luthier_prompt_tokens_total", "counter", "Tokens of prompts that were computed.", s.prompt_tokens);
        one("luthier_generation_tokens_total", "counter", "Tokens that were generated.", s.generated_tokens);
        one("luthier_prefix_cached_tokens_total", "counter", "Prompt tokens found in the cache.", s.cached_tokens);
        one("luthier_preemptions_total", "counter", "Answers that had to give their pages back.", s.preempted);
        one("luthier_kv_pages", "gauge", "Pages of the cache.", s.pages as u64);
        one("luthier_kv_pages_used", "gauge", "Pages that answers have.", s.pages_used as u64);
        one("luthier_kv_pages_kept", "gauge", "Pages kept for prompts that begin alike.", s.pages_kept as u64);
        out += "# HELP luthier_http_responses_total Responses by class.\n# TYPE luthier_http_responses_total counter\n";
        for (class, count) in (1..).zip(&self.responses) {
            let _ = writeln!(out, "luthier_http_responses_total{{code=\"{class}xx\"}} {}", count.load(Relaxed));
        }
        let name = "luthier_time_to_first_token_seconds";
        let _ = writeln!(out, "# HELP {name} From the request to its first token.\n# TYPE {name} histogram");
        let mut sum = 0;
        for (i, count) in self.first.iter().enumerate() {
            sum += count.load(Relaxed);
            let bound = BOUNDS.get(i).map_or("+Inf".to_string(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let seconds = self.first_micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {sum}");
        out
    }
}
