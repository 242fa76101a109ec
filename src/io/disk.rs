//! Changes of the disk that survive a crash: what is written is synced before it gets its name, and the name before it is
//! relied upon. Every change passes `cut`, so that the tests can stop at each of them.
use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What temporaries' names begin with; leftovers are deleted by the next run in the same folder.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// `path` with its last name made a temporary's.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{TEMPORARY}{name}"))
}

/// An empty folder, whatever a failed attempt left there.
pub(crate) fn fresh_dir(path: &Path) -> Result<()> {
    if path.exists() {
        remove_dir(path)?;
    }
    cut::point("create_dir", path).and_then(|()| fs::create_dir(path)).map_err(Error::write(path))
}

pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    cut::point("remove_dir", path).and_then(|()| fs::remove_dir_all(path)).map_err(Error::write(path))
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    cut::point("remove_file", path).and_then(|()| fs::remove_file(path)).map_err(Error::write(path))
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    cut::point("rename", to).and_then(|()| fs::rename(from, to)).map_err(Error::write(to))
}

/// A new file that holds `bytes`, not yet synced.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let run = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        cut::point("write", path)?;
        file.write_all(bytes)
    };
    run().map_err(full(path, bytes.len() as u64))
}

pub(crate) fn sync_file(path: &Path) -> Result<()> {
    let run = || {
        cut::point("sync", path)?;
        // Windows syncs only what is open for writing.
        let file = OpenOptions::new().write(true).open(path)?;
        file.sync_all()?;
        cut::synced(&file)
    };
    run().map_err(Error::write(path))
}

/// Makes the names in a folder durable. Windows has no such call; its renames are journaled.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let run = || {
        cut::point("sync", path)?;
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    };
    run().map_err(Error::write(path))
}

/// Whatever `write` puts at the path that it is given appears at `path`, whole, or `path` stays as it was.
pub fn publish(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = parent(path);
    let temporary = temporary(path);
    let run = || {
        write(&temporary)?;
        sync_file(&temporary)?;
        rename(&temporary, path)?;
        sync_dir(parent)
    };
    run().inspect_err(|_| {
        // A leftover is harmless, and the first error is the one to report.
        let _ = remove_file(&temporary);
    })
}

/// The files that `write` puts into the folder that it is given appear in `dir`, each whole or not at all.
pub fn publish_all(dir: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = dir.join(format!("{TEMPORARY}result"));
    let run = || {
        fresh_dir(&temporary)?;
        write(&temporary)?;
        let files = files(&temporary)?;
        for file in &files {
            sync_file(&temporary.join(file))?;
        }
        for file in &files {
            rename(&temporary.join(file), &dir.join(file))?;
        }
        sync_dir(dir)
    };
    let done = run();
    let cleared = remove_dir(&temporary);
    done.and(cleared)
}

/// For `map_err` on writes of `path`: a full disk's error says what was wanted and what there is.
pub(crate) fn full(path: &Path, needed: u64) -> impl FnOnce(io::Error) -> Error {
    move |e| explained(Error::write(path)(e), needed)
}

/// The same for an error of writing several files with `needed` bytes in all.
pub(crate) fn explained(e: Error, needed: u64) -> Error {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match e {
        Error::Write { file, source } if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
            let free = free(parent(&file)).map_or("an unknown number".to_string(), |free| free.to_string());
            let what = format!("{source}: {needed} bytes to write, {free} free there; make room and run it again");
            Error::Write { file, source: io::Error::new(source.kind(), what) }
        }
        e => e,
    }
}

/// Bytes that may still be written where `path` is, or would be; `None` where the system does not say.
pub(crate) fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    fs4::available_space(there).ok()
}

/// Where things are kept that can be made again: `$LUTHIER_CACHE`, else `luthier` in `$XDG_CACHE_HOME` or the platform's folder
/// for caches. `None`: there is no home.
pub fn cache_folder() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = std::env::home_dir;
    let base = match (var("LUTHIER_CACHE"), var("XDG_CACHE_HOME")) {
        (Some(own), _) => return Some(own),
        (None, Some(base)) => base,
        (None, None) if cfg!(windows) => var("LOCALAPPDATA")?,
        (None, None) if cfg!(target_os = "macos") => home()?.join("Library/Caches"),
        (None, None) => home()?.join(".cache"),
    };
    Some(base.join("luthier"))
}

/// The folder that a path's last name is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// The names of a folder's files, sorted; anything else in it is an error.
pub(crate) fn files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::read(dir))? {
        let entry = entry.map_err(Error::read(dir))?;
        let kind = entry.file_type().map_err(Error::read(entry.path()))?;
        let name = entry.file_name().into_string().ok().filter(|_| kind.is_file());
        let what = || Error::Bug(format!("{}: only plain files belong here", entry.path().display()));
        names.push(name.ok_or_else(what)?);
    }
    names.sort();
    Ok(names)
}

#[cfg(not(test))]
mod cut {
    use super::*;
    pub fn point(_: &'static str, _: &Path) -> io::Result<()> {
        Ok(())
    }
    pub fn synced(_: &File) -> io::Result<()> {
        Ok(())
    }
}

/// Stops the disk at a chosen change, and knows what of it a power failure would have kept.
#[cfg(test)]
pub(crate) mod cut {
    use super::*;
    use std::cell::RefCell;
    use std::collections::HashSet;

    #[derive(Clone, Copy, PartialEq)]
    pub enum How {
        /// This change fails, later ones (the cleaning up) work.
        Error,
        /// The process is gone: nothing works from here on.
        Crash,
    }

    #[derive(Default)]
    struct Plan {
        at: Option<(usize, How)>,
        trace: Vec<String>,
        synced: HashSet<u64>,
    }

    thread_local! {
        static PLAN: RefCell<Plan> = RefCell::default();
    }

    /// Stops at change number `at` from now on; `None`: never.
    pub fn plan(at: Option<(usize, How)>) {
        PLAN.with_borrow_mut(|p| *p = Plan { at, ..Plan::default() });
    }

    /// The changes since `plan`.
    pub fn trace() -> Vec<String> {
        PLAN.with_borrow(|p| p.trace.clone())
    }

    pub fn point(what: &'static str, path: &Path) -> io::Result<()> {
        PLAN.with_borrow_mut(|p| {
            let n = p.trace.len();
            p.trace.push(format!("{what} {}", path.file_name().unwrap_or_default().to_string_lossy()));
            match p.at {
                Some((at, How::Error)) if n == at => Err(io::Error::other("injected")),
                Some((at, How::Crash)) if n >= at => Err(io::Error::other("injected")),
                _ => Ok(()),
            }
        })
    }

    #[cfg(unix)]
    pub fn synced(file: &File) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let inode = file.metadata()?.ino();
        PLAN.with_borrow_mut(|p| p.synced.insert(inode));
        Ok(())
    }

    /// What a power failure does: of files that were not synced since `plan`, and that `before` does not have, half is lost.
    #[cfg(unix)]
    pub fn lose_unsynced(dir: &Path, before: &HashSet<u64>) {
        for (inode, path) in inodes(dir) {
            if !before.contains(&inode) && !PLAN.with_borrow(|p| p.synced.contains(&inode)) {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            }
        }
    }

    /// Every file below `dir`.
    #[cfg(unix)]
    pub fn inodes(dir: &Path) -> Vec<(u64, PathBuf)> {
        use std::os::unix::fs::MetadataExt;
        let mut out = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => out.extend(inodes(&path)),
                false => out.push((fs::metadata(&path).unwrap().ino(), path)),
            }
        }
        out
    }
}
