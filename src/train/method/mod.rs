//! Methods: what a run minimises, as a function of per-token log-probabilities. One file each.
pub mod cross_entropy;
