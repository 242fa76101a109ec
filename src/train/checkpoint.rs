//! Checkpoints appear whole or not at all: written to a temporary folder, every file synced, a manifest of sizes and
//! hashes, the folder synced, renamed to `checkpoint-N`, the parent synced. Reading believes nothing but the manifest.
use super::disk;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

pub const MANIFEST: &str = "manifest.json";
/// The form of a checkpoint's folder. A new form gets a new number, and old ones stay readable.
const FORMAT_VERSION: u32 = 1;
/// A manifest lists some dozens of files.
const MANIFEST_BYTES: u64 = 1 << 20;
pub(super) const LOCK: &str = ".lock";
/// After the name of a checkpoint that is being replaced by another of the same step.
const REPLACED: &str = ".replaced";

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format_version: u32,
    step: u64,
    files: Vec<Listed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    name: String,
    /// Bytes.
    size: u64,
    blake3: String,
}

/// A run's `output_dir`, held by this process alone until it is dropped or dies.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// The operating system gives the lock back when the process ends, however it ends.
    _lock: File,
}

/// The checkpoints that stay when one is saved.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// With the one just saved; but the best stays beside it in any case.
    pub most: usize,
    /// The step of the best evaluation, if there was one.
    pub best: Option<u64>,
}

impl From<usize> for Keep {
    fn from(most: usize) -> Keep {
        Keep { most, best: None }
    }
}

/// What [`newest`] found.
#[derive(Debug, Default)]
pub struct Found {
    /// The step and the folder.
    pub newest: Option<(u64, PathBuf)>,
    /// Newer ones that do not agree with their manifest, and why: to be told to the user.
    pub damaged: Vec<Error>,
}

impl RunDir {
    /// Makes the folder where it is missing, locks it, and clears what dead processes left half done.
    pub fn open(output_dir: &Path) -> Result<RunDir> {
        fs::create_dir_all(output_dir).map_err(Error::write(output_dir))?;
        let run = RunDir { path: output_dir.to_path_buf(), _lock: lock(&output_dir.join(LOCK))? };
        run.tidy()?;
        Ok(run)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `write` fills the folder that it is given; when this returns, `checkpoint-{step}` has it on disk, and of the others what
    /// `keep` says. On an error the earlier checkpoints are as they were.
    pub fn save(&self, step: u64, keep: impl Into<Keep>, write: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let whole = self.path.join(name(step));
        let temporary = disk::temporary(&whole);
        let run = || {
            disk::fresh_dir(&temporary)?;
            write(&temporary)?;
            seal(&temporary, step)?;
            self.put(&temporary, &whole)
        };
        run().inspect_err(|_| {
            // A leftover is cleared by the next `open`, and the first error is the one to report.
            let _ = disk::remove_dir(&temporary);
        })?;
        self.prune(step, keep.into())?;
        Ok(whole)
    }

    /// Gives a sealed folder its name. Another checkpoint of the same step is moved aside first: [`newest`] still finds it.
    fn put(&self, temporary: &Path, whole: &Path) -> Result<()> {
        let aside = aside(whole);
        let replaces = whole.exists();
        if replaces {
            disk::rename(whole, &aside)?;
        }
        disk::rename(temporary, whole)?;
        disk::sync_dir(&self.path)?;
        if replaces { disk::remove_dir(&aside) } else { Ok(()) }
    }

    /// The oldest go first; never the best, nor the one just saved, which is not the newest by number after a resume from an
    /// earlier one.
    fn prune(&self, saved: u64, keep: Keep) -> Result<()> {
        let mut others: Vec<_> = listed(&self.path)?.into_iter().filter(|(step, _)| *step != saved).collect();
        others.sort_by_key(|(step, _)| *step);
        let excess = (others.len() + 1).saturating_sub(keep.most.max(1));
        for (_, path) in others.into_iter().filter(|(step, _)| Some(*step) != keep.best).take(excess) {
            self.remove(&path)?;
        }
        Ok(())
    }

    /// Takes away the checkpoints after `step`: a run that goes on from there leaves their course.
    pub fn remove_after(&self, step: u64) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for (n, path) in listed(&self.path)? {
            if n > step {
                self.remove(&path)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// Under a temporary name first: a crash in the middle must not leave a damaged checkpoint.
    fn remove(&self, path: &Path) -> Result<()> {
        let gone = disk::temporary(path);
        if gone.exists() {
            disk::remove_dir(&gone)?;
        }
        disk::rename(path, &gone)?;
        disk::remove_dir(&gone)
    }

    /// Leftovers of dead processes: temporaries go, a checkpoint moved aside gets its name back if nothing replaced it.
    fn tidy(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(Error::read(&self.path))? {
            let path = entry.map_err(Error::read(&self.path))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(disk::TEMPORARY) {
                if path.is_dir() { disk::remove_dir(&path)? } else { disk::remove_file(&path)? }
            } else if let Some(original) = name.strip_suffix(REPLACED).filter(|n| step_of(n).is_some()) {
                let original = self.path.join(original);
                if original.exists() { disk::remove_dir(&path)? } else { disk::rename(&path, &original)? }
            }
        }
        Ok(())
    }
}

/// The folder of a step's checkpoint.
pub fn folder(output_dir: &Path, step: u64) -> PathBuf {
    output_dir.join(name(step))
}

/// The newest checkpoint whose files agree with its manifest, and the newer ones that don't.
pub fn newest(output_dir: &Path) -> Result<Found> {
    let mut found = Found::default();
    if !output_dir.exists() {
        return Ok(found);
    }
    let mut all = listed(output_dir)?;
    all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    for (step, path) in all {
        match verify(&path) {
            Ok(_) => {
                found.newest = Some((step, path));
                break;
            }
            Err(e) => found.damaged.push(e),
        }
    }
    Ok(found)
}

/// The folders' names, by their steps.
pub(super) fn names(output_dir: &Path) -> Result<Vec<String>> {
    let mut all = listed(output_dir)?;
    all.sort();
    Ok(all.into_iter().map(|(step, _)| name(step)).collect())
}

/// Checks every file of a checkpoint against its manifest, and gives its step.
pub fn verify(checkpoint: &Path) -> Result<u64> {
    let path = checkpoint.join(MANIFEST);
    let bad = |at: &str, what: String| Error::content(&path, at, what);
    let size = fs::metadata(&path).map_err(Error::read(&path))?.len();
    if size > MANIFEST_BYTES {
        return Err(bad("", format!("a manifest has at most {MANIFEST_BYTES} bytes, got {size}")));
    }
    let bytes = fs::read(&path).map_err(Error::read(&path))?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|e| bad(&format!("line {}", e.line()), format!("not a manifest: {e}")))?;
    if manifest.format_version != FORMAT_VERSION {
        let got = manifest.format_version;
        return Err(bad("format_version", format!("this version of luthier reads {FORMAT_VERSION}, got {got}")));
    }
    let folder = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    if step_of(folder.strip_suffix(REPLACED).unwrap_or(&folder)).is_some_and(|step| step != manifest.step) {
        return Err(bad("step", format!("is {}, but the folder is {folder}", manifest.step)));
    }
    for file in &manifest.files {
        if file.name.contains(['/', '\\', ':']) || file.name.starts_with("..") {
            return Err(bad(&file.name, "leaves the checkpoint's folder".into()));
        }
        verify_file(&checkpoint.join(&file.name), file)?;
    }
    Ok(manifest.step)
}

fn verify_file(path: &Path, listed: &Listed) -> Result<()> {
    let size = fs::metadata(path).map_err(Error::read(path))?.len();
    if size != listed.size {
        return Err(Error::content(path, "", format!("damaged: {} bytes wanted, {size} found", listed.size)));
    }
    match hash(path)? {
        got if got == listed.blake3 => Ok(()),
        got => Err(Error::content(path, "", format!("damaged: blake3 {} wanted, {got} found", listed.blake3))),
    }
}

/// Syncs every file, adds the manifest, syncs the folder.
fn seal(dir: &Path, step: u64) -> Result<()> {
    let mut files = Vec::new();
    for name in disk::files(dir)? {
        let path = dir.join(&name);
        disk::sync_file(&path)?;
        let size = fs::metadata(&path).map_err(Error::read(&path))?.len();
        files.push(Listed { name, size, blake3: hash(&path)? });
    }
    let manifest = Manifest { format_version: FORMAT_VERSION, step, files };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::Bug(e.to_string()))?;
    disk::write(&dir.join(MANIFEST), &text)?;
    disk::sync_file(&dir.join(MANIFEST))?;
    disk::sync_dir(dir)
}

fn hash(path: &Path) -> Result<String> {
    let run = || -> io::Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(hasher.finalize().to_hex().to_string())
    };
    run().map_err(Error::read(path))
}

fn name(step: u64) -> String {
    format!("checkpoint-{step}")
}

fn aside(whole: &Path) -> PathBuf {
    let mut name = whole.as_os_str().to_os_string();
    name.push(REPLACED);
    name.into()
}

/// `checkpoint-7` is 7; as `name` writes it, so that a folder has one step and a step one folder.
fn step_of(folder: &str) -> Option<u64> {
    let step: u64 = folder.strip_prefix("checkpoint-")?.parse().ok()?;
    (name(step) == folder).then_some(step)
}

/// Every checkpoint, damaged ones too; one moved aside counts only where nothing replaced it.
fn listed(output_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(output_dir).map_err(Error::read(output_dir))? {
        let path = entry.map_err(Error::read(output_dir))?.path();
        let folder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let replaced = folder.strip_suffix(REPLACED);
        if replaced.is_some_and(|original| output_dir.join(original).exists()) || !path.is_dir() {
            continue;
        }
        if let Some(step) = step_of(replaced.unwrap_or(&folder)) {
            out.push((step, path));
        }
    }
    Ok(out)
}

/// Locks `path` for this process and writes its number into it, for the message that another one gets.
fn lock(path: &Path) -> Result<File> {
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(Error::write(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(path, &mut file)),
        Err(TryLockError::Error(e)) => return Err(Error::write(path)(e)),
    }
    let mut run = || {
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())
    };
    run().map_err(Error::write(path))?;
    Ok(file)
}

fn held(path: &Path, file: &mut File) -> Error {
    let mut holder = String::new();
    // Windows keeps even readers out; the message then lacks the number.
    let read = file.rewind().and_then(|()| file.take(20).read_to_string(&mut holder));
    let who = match read {
        Ok(n) if n > 0 => format!("process {holder}"),
        _ => "another process".into(),
    };
    let what = format!("{who} is using this folder: wait for it, or choose another output_dir");
    Error::write(path)(io::Error::new(io::ErrorKind::ResourceBusy, what))
}

#[cfg(all(test, unix))]
mod tests;
