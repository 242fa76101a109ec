//! Links of a model folder: they may lead within it, or from a snapshot of the Hub's cache to that model's blobs.
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Where the files of `folder` may really lie.
fn homes(folder: &Path) -> Result<Vec<PathBuf>> {
    let real = folder.canonicalize().map_err(Error::read(folder))?;
    // models--org--name/snapshots/<commit>, whose files are links to models--org--name/blobs
    let snapshots = real.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|model| model.join("blobs"));
    Ok([Some(real), blobs].into_iter().flatten().collect())
}

fn inside(homes: &[PathBuf], file: &Path) -> Result<()> {
    let real = file.canonicalize().map_err(Error::read(file))?;
    if homes.iter().any(|home| real.starts_with(home)) {
        return Ok(());
    }
    let what = format!("is a link that leaves the model's folder, to {}: put the file itself there", real.display());
    Err(Error::content(file, "", what))
}

/// An error if `name` of `folder` is there, but really lies elsewhere.
pub fn check(folder: &Path, name: &str) -> Result<()> {
    let file = folder.join(name);
    match file.is_symlink() {
        true => inside(&homes(folder)?, &file),
        false => Ok(()),
    }
}

/// The same for everything in `folder` that a model is made of.
pub fn check_all(folder: &Path) -> Result<()> {
    const KINDS: [&str; 6] = ["json", "safetensors", "gguf", "model", "txt", "jinja"];
    for entry in std::fs::read_dir(folder).map_err(Error::read(folder))? {
        let path = entry.map_err(Error::read(folder))?.path();
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if KINDS.contains(&kind)
            && let Some(name) = path.file_name().and_then(|n| n.to_str())
        {
            check(folder, name)?;
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_the_model_or_its_cache() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--a--b/snapshots/0123");
        let blobs = dir.path().join("models--a--b/blobs");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join("x"), "{}").unwrap();
        std::fs::write(dir.path().join("secret.json"), "{}").unwrap();
        symlink("../../blobs/x", snapshot.join("config.json")).unwrap();
        check_all(&snapshot).unwrap();
        symlink("config.json", snapshot.join("again.json")).unwrap();
        check_all(&snapshot).unwrap();
        symlink("../../../secret.json", snapshot.join("tokenizer.json")).unwrap();
        let e = check_all(&snapshot).unwrap_err();
        assert!(e.exit_code() == 65 && e.to_string().contains("leaves the model's folder"), "{e}");

        // only a snapshot has blobs
        let plain = dir.path().join("models--a--b/plain");
        std::fs::create_dir(&plain).unwrap();
        symlink("../blobs/x", plain.join("config.json")).unwrap();
        assert!(check_all(&plain).is_err());
        // a folder that is itself reached through a link is none of its own
        symlink(&snapshot, dir.path().join("model")).unwrap();
        check(&dir.path().join("model"), "config.json").unwrap();
    }
}
