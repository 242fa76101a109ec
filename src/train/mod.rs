//! Training: what a run is told (`config`), how its learning rate goes (`schedule`), what moves the weights (`optim`), what is
//! minimised (`method`), what it leaves behind (`checkpoint`, `metrics`).
mod adapter;
pub mod checkpoint;
pub mod config;
mod cursor;
mod flat;
pub mod method;
pub mod metrics;
pub mod optim;
pub mod plan;
pub mod run;
pub mod schedule;
mod setup;
mod state;
pub use crate::io::disk;
pub use setup::{batch_options, data_options, new_tokens, tokenizer};
