//! What took long to make or to find, kept on disk for the next process: kernels, pipelines, plans, tiles.
use crate::io::disk;
use std::path::{Path, PathBuf};

/// A file of the cache. No file where there is no place for one: that costs time, not correctness.
pub(crate) struct Kept(Option<PathBuf>);

impl Kept {
    /// The thing made of `from`, down to the versions of who makes it.
    pub fn new(name: &str, extension: &str, from: &[&str]) -> Kept {
        let mut hash = blake3::Hasher::new();
        for part in from {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let file = format!("{name}-{}.{extension}", &hash.finalize().to_hex()[..32]);
        Kept(disk::cache_folder().map(|folder| folder.join("kernels").join(file)))
    }
    /// A file cut short is one whose hash disagrees: as if there were none.
    pub fn read(&self) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.0.as_ref()?).ok()?;
        let (hash, thing) = bytes.split_at_checked(32)?;
        (blake3::hash(thing).as_bytes()[..] == *hash).then(|| thing.to_vec())
    }
    /// A cache that cannot be written (read-only home, full disk) is none.
    pub fn write(&self, thing: &[u8]) {
        let _ = self.0.as_ref().map(|file| write(file, thing));
    }
}

/// Under another name first: a reader never sees half a file.
fn write(file: &Path, thing: &[u8]) -> std::io::Result<()> {
    file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let temporary = file.with_extension(format!("{}.{:?}.tmp", std::process::id(), std::thread::current().id()));
    std::fs::write(&temporary, [&blake3::hash(thing).as_bytes()[..], thing].concat())?;
    std::fs::rename(&temporary, file).inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_broken_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new").join("thing.json");
        let kept = Kept(Some(file.clone()));
        assert_eq!(kept.read(), None);
        kept.write(b"thing");
        assert_eq!(kept.read().as_deref(), Some(&b"thing"[..]));
        let whole = std::fs::read(&file).unwrap();
        for broken in [&whole[..whole.len() - 1], &whole[..9], &[]] {
            std::fs::write(&file, broken).unwrap();
            assert_eq!(kept.read(), None);
        }
        assert_eq!(Kept(None).read(), None);
    }
}
