//! Training: what a run is told (`config`), how its learning rate goes (`schedule`), what moves the weights (`optim`), what is
//! minimised (`method`), what it leaves behind (`checkpoint`, `metrics`, `record`).
mod adapter;
mod best;
pub mod checkpoint;
pub mod config;
mod cursor;
mod flat;
mod loss_scale;
pub mod method;
pub mod metrics;
pub mod optim;
pub mod plan;
pub mod record;
pub mod report;
mod router;
pub mod run;
pub mod schedule;
mod setup;
mod space;
mod state;
pub use crate::io::disk;
pub use setup::{batch_options, data_options, hyper, new_tokens, tokenizer};
