//! What is said when a run ends before its time: how to go on.
use crate::error::Error;
use crate::train::checkpoint;
use crate::train::config::{Resume, TrainConfig};

/// What makes the run go on from its newest checkpoint.
pub(super) fn way_on(config: &TrainConfig) -> &'static str {
    match config.resume_from_checkpoint {
        Resume::Auto => "run the same command to go on",
        _ => "to go on, run the same command with resume_from_checkpoint=auto",
    }
}

/// A device's error in the middle of a run, and the checkpoint that it has left whole.
pub(super) fn with_way_on(error: Error, config: &TrainConfig) -> Error {
    let Error::Device { backend, what } = error else { return error };
    let newest = checkpoint::newest(&config.output_dir).ok().and_then(|found| found.newest);
    let what = match newest {
        Some((_, folder)) => format!("{what}; {} is whole: {}", folder.display(), way_on(config)),
        None => what,
    };
    Error::Device { backend, what }
}
