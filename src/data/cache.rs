//! Token stores kept on disk under a hash of everything that decides what is in them: the bytes of the files, the tokenizer, the
//! template, the options. Times, names and places of files say nothing. A folder of it may be deleted at any time.
use super::example::TrainOn;
use super::source::extension;
use super::store::{Builder, Meta, Store};
use super::{DataOptions, Source, Template, Tokenizer, read};
use crate::error::{Error, Result};
use crate::io::disk;
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Counts up when records become other tokens, or stores other bytes.
const VERSION: u32 = 1;

/// `tokens` in the [folder for caches](disk::cache_folder).
pub fn folder() -> Option<PathBuf> {
    disk::cache_folder().map(|folder| folder.join("tokens"))
}

/// What decides the tokens of a source, as a name. `index`: the source's place, which seeds what is chosen by chance.
pub(super) fn key(
    source: &Source,
    index: u64,
    files: &[PathBuf],
    opts: &DataOptions,
    tokenizer: &Tokenizer,
) -> Result<String> {
    let content = |file: &PathBuf| -> Result<_> {
        read::check_regular(file)?;
        let mut hash = blake3::Hasher::new();
        hash.update_mmap_rayon(file).map_err(Error::read(file))?;
        // the ending says how a file is read
        Ok(json!([extension(file), hash.finalize().to_hex().as_str()]))
    };
    let files = files.iter().map(content).collect::<Result<Vec<_>>>()?;
    let template = Template::text(opts.chat_template.as_deref(), tokenizer).ok().map(|template| template.text);
    let train_on = match (opts.pretrain, opts.train_on) {
        (true, _) | (_, TrainOn::Everything) => "everything",
        (_, TrainOn::Assistant) => "assistant",
        (_, TrainOn::LastTurn) => "last",
        (_, TrainOn::Chat) => "chat",
    };
    let extension = source.conversation_extension;
    let all = json!({
        "version": VERSION,
        "luthier": env!("CARGO_PKG_VERSION"),
        "files": files,
        "columns": source.columns,
        "roles": source.roles,
        "merged_prompt": source.merged_prompt,
        "conversation_extension": extension,
        "chance": (extension > 1).then_some((opts.seed, index)),
        "tokenizer": tokenizer.fingerprint(),
        "template": template,
        "train_on": train_on,
        "pretrain": opts.pretrain,
        "max_length": (!opts.pretrain).then_some(opts.max_length),
    });
    Ok(blake3::hash(all.to_string().as_bytes()).to_hex().to_string())
}

/// What tells that a file was changed while it was read: its size and time.
pub(super) type Stamp = (u64, Option<SystemTime>);

pub(super) fn stamps(files: &[PathBuf]) -> Result<Vec<Stamp>> {
    let stamp = |file: &PathBuf| fs::metadata(file).map(|m| (m.len(), m.modified().ok())).map_err(Error::read(file));
    files.iter().map(stamp).collect()
}

/// The store under `key`, made by `make` where there is none or a damaged one. `notes` says where it came from.
pub(super) fn get(
    folder: &Path,
    key: &str,
    notes: &mut Vec<String>,
    make: impl FnOnce(&mut Builder) -> Result<Meta>,
) -> Result<(Store, Meta)> {
    let path = folder.join(format!("{key}.tokens"));
    let lock = match lock(&folder.join(format!("{key}.lock"))) {
        Ok(lock) => lock,
        Err(e) => {
            notes.push(format!("no token cache, so tokens stay in memory: {e} (LUTHIER_CACHE names another folder)"));
            let mut builder = Builder::in_memory();
            let meta = make(&mut builder)?;
            return Ok((builder.into_store(), meta));
        }
    };
    if path.exists() {
        match Store::open(&path) {
            Ok(found) => {
                notes.push(format!("tokens as cached: {}", path.display()));
                return Ok(found);
            }
            Err(e) => notes.push(format!("{e}; it is made again")),
        }
    }
    disk::publish(&path, |temporary| {
        let mut builder = Builder::in_file(temporary)?;
        let meta = make(&mut builder)?;
        builder.finish(&meta)
    })?;
    drop(lock);
    Store::open(&path)
}

/// Waits until no other process makes the same.
fn lock(path: &Path) -> Result<File> {
    fs::create_dir_all(disk::parent(path)).map_err(Error::write(path))?;
    let file = File::create(path).map_err(Error::write(path))?;
    file.lock().map_err(Error::write(path))?;
    Ok(file)
}
