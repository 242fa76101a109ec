//! Whether the disk has room for a run's checkpoints: told before the first step, not hours later.
use super::checkpoint;
use super::config::{Optim, TrainConfig};
use super::disk;
use super::report::words::bytes;
use crate::error::{Error, Result};
use crate::model::Model;
use std::io;

/// Wanted over the estimate.
const RESERVE: f64 = 1.2;

/// Bytes of one checkpoint, about: the result, the weights as the optimizer has them, and its moments.
pub(super) fn checkpoint_bytes(config: &TrainConfig, model: &Model) -> u64 {
    let trained = model.trainable_parameters() as u64;
    let result = match model.lora {
        Some(_) => trained * 4,
        None => model.all_parameters() * config.dtype.size() as u64,
    };
    let moments = match config.optim.resident() {
        Optim::AdamW8bit => trained * 2 + trained / 32,
        Optim::Lion8bit => trained + trained / 64,
        Optim::Lion => trained * 4,
        Optim::Sgd if config.optim_args.momentum.unwrap_or(0.0) == 0.0 => 0,
        Optim::Sgd => trained * 4,
        // AdamW; more than Muon's
        _ => trained * 8,
    };
    let exact = if config.bf16_stochastic_round { 2 } else { 4 };
    result + trained * exact + moments
}

/// An error where not one checkpoint fits; a warning where `save_total_limit` of them, and the next beside them, do not.
pub(super) fn check(config: &TrainConfig, model: &Model) -> Result<Option<String>> {
    let there = checkpoint::names(&config.output_dir)?.len();
    match disk::free(&config.output_dir) {
        Some(free) => verdict(config, checkpoint_bytes(config, model), there, free),
        None => Ok(None),
    }
}

/// `there`: checkpoints that are on the disk already, whose room the next ones take over.
fn verdict(config: &TrainConfig, one: u64, there: usize, free: u64) -> Result<Option<String>> {
    let count = (config.save_total_limit + 1).saturating_sub(there).max(1);
    let needed = (RESERVE * one as f64 * count as f64) as u64;
    let (has, wants) = (bytes(free), bytes(needed));
    if free < one {
        let what = format!(
            "a checkpoint takes about {}, and {has} are free: make room, or choose another output_dir",
            bytes(one)
        );
        return Err(Error::write(&config.output_dir)(io::Error::new(io::ErrorKind::StorageFull, what)));
    }
    Ok((free < needed).then(|| {
        format!(
            "warning: {} has {has} free, but {count} more checkpoints of about {} want {wants}: lower save_total_limit, or \
             make room",
            config.output_dir.display(),
            bytes(one)
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_enough_or_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, "model = 'm'\ndataset = 'd'\noutput_dir = 'o'\nsave_total_limit = 2\n").unwrap();
        let config = super::super::config::load(&path, &[]).unwrap();
        let verdict = |there, free: u64| verdict(&config, 1000 << 20, there, free << 20);
        assert_eq!(verdict(0, 3601).unwrap(), None, "1.2 · 3 · 1000 MiB");
        let warning = verdict(0, 3599).unwrap().unwrap();
        assert!(
            warning.contains("o has 3.5 GiB free, but 3 more checkpoints of about 1000.0 MiB want 3.5 GiB"),
            "{warning}"
        );
        assert_eq!(verdict(2, 1201).unwrap(), None, "the two that are there make room");
        let error = verdict(2, 999).unwrap_err();
        assert_eq!(error.exit_code(), 73);
        assert!(error.to_string().contains("takes about 1000.0 MiB, and 999.0 MiB are free"), "{error}");
    }
}
