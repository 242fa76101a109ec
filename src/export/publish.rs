//! Products appear whole or not at all, and never over anything: written under a name of their own, synced, renamed.
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Attempts at a name that nothing has yet.
const NAMES: u32 = 1000;

/// Whether a folder may appear at `out`: there is nothing, or an empty folder.
pub fn vacant(out: &Path) -> Result<()> {
    let empty = |mut entries: fs::ReadDir| entries.next().is_none();
    let free = match fs::symlink_metadata(out) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => true,
        Err(e) => return Err(Error::Read { file: out.into(), source: e }),
        Ok(there) => there.is_dir() && fs::read_dir(out).map_err(Error::read(out)).map(empty)?,
    };
    match free {
        true => Ok(()),
        false => Err(Error::Usage(format!("{}: is there already; choose another name", out.display()))),
    }
}

/// The folder that `write` fills appears at `out`.
pub fn folder<T>(out: &Path, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    vacant(out)?;
    let parent = made_parent(out)?;
    let temporary = new_folder(out)?;
    let run = || {
        let made = write(&temporary)?;
        sync_dir(&temporary)?;
        if out.is_dir() {
            // takes away nothing but an empty folder
            fs::remove_dir(out).map_err(Error::write(out))?;
        }
        fs::rename(&temporary, out).map_err(Error::write(out))?;
        sync_dir(&parent)?;
        Ok(made)
    };
    run().inspect_err(|_| {
        // the first error is the one to report
        let _ = fs::remove_dir_all(&temporary);
    })
}

/// The file that `write` makes in a folder of its own appears at `out`.
pub fn file<T>(out: &Path, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if out.symlink_metadata().is_ok() {
        return Err(Error::Usage(format!("{}: is there already; choose another name", out.display())));
    }
    let parent = made_parent(out)?;
    let temporary = new_folder(out)?;
    let inside = temporary.join(out.file_name().unwrap_or_default());
    let run = || {
        let made = write(&inside)?;
        fs::rename(&inside, out).map_err(Error::write(out))?;
        sync_dir(&parent)?;
        Ok(made)
    };
    let done = run();
    let _ = fs::remove_dir_all(&temporary);
    done
}

/// What `read` makes of an empty folder beside `out`, which is gone then.
pub fn scratch<T>(out: &Path, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let temporary = new_folder(out)?;
    let done = read(&temporary);
    let _ = fs::remove_dir_all(&temporary);
    done
}

/// The folder that `out` is to lie in.
fn made_parent(out: &Path) -> Result<PathBuf> {
    let parent = match out.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::write(parent))?;
    Ok(parent.to_path_buf())
}

/// A folder beside `out` that was not there before.
fn new_folder(out: &Path) -> Result<PathBuf> {
    let name = out.file_name().map(|name| name.to_string_lossy().into_owned());
    let Some(name) = name else { return Err(Error::Usage(format!("{}: a name is wanted", out.display()))) };
    for attempt in 0..NAMES {
        let path = out.with_file_name(format!(".tmp-{name}-{}-{attempt}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::Write { file: path, source: e }),
        }
    }
    Err(Error::Usage(format!("{}: too many unfinished exports beside it; delete .tmp-{name}-*", out.display())))
}

/// Makes the names in a folder durable. Windows has no such call; its renames are journaled.
fn sync_dir(path: &Path) -> Result<()> {
    match cfg!(unix) {
        true => File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::write(path)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn whole_or_not_at_all_and_over_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (out, single) = (dir.path().join("a/out"), dir.path().join("b.gguf"));
        let fails = |at: &Path| {
            fs::write(at.join("half"), "x").unwrap();
            Err::<(), _>(Error::Bug("stop".into()))
        };
        assert!(folder(&out, fails).is_err());
        assert!(names(&dir.path().join("a")).is_empty());
        fs::create_dir(&out).unwrap();
        folder(&out, |at| fs::write(at.join("whole"), "x").map_err(Error::write(at))).unwrap();
        assert_eq!(names(&out), ["whole"]);
        let e = folder(&out, |_| Ok(())).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("is there already"), "{e}");
        file(&single, |at| fs::write(at, "x").map_err(Error::write(at))).unwrap();
        assert!(file(&single, |_| Ok(())).is_err());
        assert_eq!(names(dir.path()), ["a", "b.gguf"]);
    }
}
