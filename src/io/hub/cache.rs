//! The Hub's cache as Python's `huggingface_hub` lays it out, so that both share what is there.
//!
//! ```text
//! models--org--name/refs/main            the commit that a revision was, the last time
//!                  /snapshots/COMMIT/F   a link to ../../blobs/ETAG
//!                  /blobs/ETAG           content; ETAG.incomplete while it comes
//!                  /.no_exist/COMMIT/F   empty: the commit has no such file
//! .locks/models--org--name/ETAG.lock
//! ```
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A model's place in the cache.
pub(super) struct Repo {
    /// `models--org--name`
    folder: PathBuf,
    locks: PathBuf,
}

impl Repo {
    pub fn new(cache: &Path, name: &str) -> Repo {
        Repo::of(cache, &format!("models--{}", name.replace('/', "--")))
    }
    pub fn of_dataset(cache: &Path, name: &str) -> Repo {
        Repo::of(cache, &format!("datasets--{}", name.replace('/', "--")))
    }
    fn of(cache: &Path, own: &str) -> Repo {
        Repo { folder: cache.join(own), locks: cache.join(".locks").join(own) }
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }
    /// The commit that the revision was when it was last asked for; a commit is itself.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        match is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            true => Ok(()),
            false => put(&self.folder.join("refs").join(revision), commit),
        }
    }
    /// Whether this commit is known to have no such file.
    pub fn lacks(&self, commit: &str, file: &str) -> bool {
        self.folder.join(".no_exist").join(commit).join(file).exists()
    }
    pub fn set_lacks(&self, commit: &str, file: &str) -> Result<()> {
        put(&self.folder.join(".no_exist").join(commit).join(file), "")
    }

    /// Makes `file` of the commit show the blob; where links are not to be had, the content moves there.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let to = self.snapshot(commit).join(file);
        make_parent(&to)?;
        if to.is_symlink() {
            // its blob was deleted
            fs::remove_file(&to).map_err(Error::write(&to))?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        let linked = link(&Path::new(&up).join("blobs").join(etag), &to);
        linked.or_else(|_| fs::rename(self.blob(etag), &to)).map_err(Error::write(&to))
    }

    /// Waits until no other process fetches this blob.
    pub fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::create(&path).map_err(Error::write(&path))?;
        file.lock().map_err(Error::write(&path))?;
        Ok(file)
    }
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

pub(super) fn make_parent(file: &Path) -> Result<()> {
    let parent = file.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(parent).map_err(Error::write(parent))
}

fn put(file: &Path, text: &str) -> Result<()> {
    make_parent(file)?;
    fs::write(file, text).map_err(Error::write(file))
}

#[cfg(unix)]
fn link(target: &Path, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}
#[cfg(not(unix))]
fn link(target: &Path, at: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, at)
}
