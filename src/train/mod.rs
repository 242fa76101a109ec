//! train
pub mod optim;
