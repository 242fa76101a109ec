//! Training: what a run is told (`config`), how its learning rate goes (`schedule`), what it leaves behind
//! (`checkpoint`, `metrics`).
pub mod config;
pub mod schedule;
