//! Going on from an adapter: what makes its shape stays as it is, the rest may change, and every change is told.
use super::config::TrainConfig;
use super::setup;
use crate::error::{Error, Result};
use crate::export::peft;
use crate::model::lora::LoraConfig;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The adapter that a run goes on from.
pub(super) struct Own<'a> {
    pub folder: &'a Path,
    pub lora: LoraConfig,
    /// What is said differently now, and what comes of it.
    pub notes: Vec<String>,
    fingerprint: String,
}

/// Reads an adapter's config and settles it with the run's.
pub(super) fn open<'a>(config: &TrainConfig, folder: &'a Path) -> Result<Own<'a>> {
    let real = |path: &Path| path.canonicalize().map_err(Error::read(path));
    // a plan has no output_dir yet
    if config.output_dir.exists() && real(folder)?.starts_with(real(&config.output_dir)?) {
        let what = "lies in output_dir, which a run replaces: choose another output_dir for what comes of it";
        return Err(Error::content(folder, "", what));
    }
    let own = peft::read_config(folder)?;
    let wanted = config.lora.as_ref().map_or_else(|| own.clone(), setup::lora);
    let (lora, mut notes) = settle(own, wanted);
    notes.extend(other_settings(config, folder)?);
    Ok(Own { folder, lora, notes, fingerprint: peft::fingerprint(folder)? })
}

/// Of a base model and the adapter that is put on it.
pub(super) fn fingerprint(base: String, own: &Option<Own>) -> String {
    own.as_ref().map_or(base.clone(), |own| format!("{base}+{}", own.fingerprint))
}

fn shown(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The adapter's config with what may change as it is wanted, and a line for each difference.
fn settle(own: LoraConfig, wanted: LoraConfig) -> (LoraConfig, Vec<String>) {
    let (mut lora, mut notes) = (own.clone(), Vec::new());
    macro_rules! keep {
        ($($key:ident),+) => { $( if own.$key != wanted.$key {
            let (key, has, asked) = (stringify!($key), shown(&own.$key), shown(&wanted.$key));
            notes.push(format!("lora.{key}: the adapter has {has} and keeps it; {asked} would be another adapter"));
        } )+ };
    }
    macro_rules! change {
        ($($key:ident),+) => { $( if own.$key != wanted.$key {
            let (key, was, now) = (stringify!($key), shown(&own.$key), shown(&wanted.$key));
            notes.push(format!("lora.{key}: {was} in the adapter, {now} from now on"));
            lora.$key = wanted.$key;
        } )+ };
    }
    keep!(r, rank_pattern, target_modules, exclude_modules, layers_to_transform, layers_pattern, use_dora);
    keep!(trainable_token_indices);
    change!(lora_alpha, alpha_pattern, use_rslora, lora_dropout);
    for module in wanted.modules_to_save {
        if !own.saves(&module) {
            notes.push(format!("lora.modules_to_save: {module} is trained in full from now on, too"));
            lora.modules_to_save.push(module);
        }
    }
    (lora, notes)
}

/// Keys that say where, not how.
const PLACES: &[&str] = &["lora", "adapter", "model_name_or_path", "dataset", "eval_dataset", "output_dir", "backend"];

/// The config of the run that made the adapter: beside it, or above a checkpoint.
fn earlier_config(folder: &Path) -> Option<PathBuf> {
    let above = folder.join("trainer_state.json").is_file().then(|| folder.parent()).flatten();
    [Some(folder), above].into_iter().flatten().map(|dir| dir.join("config.toml")).find(|file| file.is_file())
}

/// What else the run that made the adapter did differently, where it was one of ours.
fn other_settings(config: &TrainConfig, folder: &Path) -> Result<Vec<String>> {
    let Some(file) = earlier_config(folder) else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(&file).map_err(Error::read(&file))?;
    let earlier: toml::Table = toml::from_str(&text).map_err(|e| Error::content(&file, "", e.message()))?;
    let now: toml::Table = toml::from_str(&config.to_toml()?).map_err(|e| Error::Bug(e.to_string()))?;
    let differs = |(key, value): &(&String, &toml::Value)| {
        !PLACES.contains(&key.as_str()) && earlier.get(*key).is_some_and(|before| before != *value)
    };
    let note = |(key, value): (&String, &toml::Value)| format!("{key}: {} before, {value} now", earlier[key]);
    Ok(now.iter().filter(differs).map(note).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_stays_and_a_scale_may_change() {
        let own =
            LoraConfig { r: 4, lora_alpha: 16.0, modules_to_save: vec!["lm_head".into()], ..LoraConfig::default() };
        let wanted = LoraConfig { r: 8, lora_alpha: 8.0, modules_to_save: vec!["embed_tokens".into()], ..own.clone() };
        let (lora, notes) = settle(own.clone(), wanted);
        assert_eq!((lora.r, lora.lora_alpha), (4, 8.0));
        assert_eq!(lora.modules_to_save, ["lm_head", "embed_tokens"]);
        assert_eq!(
            notes,
            [
                "lora.r: the adapter has 4 and keeps it; 8 would be another adapter",
                "lora.lora_alpha: 16.0 in the adapter, 8.0 from now on",
                "lora.modules_to_save: embed_tokens is trained in full from now on, too",
            ]
        );
        assert_eq!(settle(own.clone(), own.clone()), (own, vec![]));
    }
}
