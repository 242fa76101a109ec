//! Encoded examples side by side: their tokens in one array, where each ends in another. In memory, or in a file that is mapped,
//! so that it may be larger than the memory:
//!
//! ```text
//! MAGIC | tokens u32 [T], to a multiple of 8 bytes | ends u64 [n] | hashes u64 [n] | meta, JSON | T, n, bytes of meta: u64 | blake3 of it all
//! ```
//! Numbers are in the machine's own byte order, which MAGIC shows.
use super::example::Example;
use super::finding::Finding;
use crate::error::{Error, Result};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The bit of a token that is trained; ids are far below (a tokenizer has 2²⁰ at most).
pub(super) const TRAINED: u32 = 1 << 31;
const MAGIC: u64 = u64::from_le_bytes(*b"luthtok1");
/// T, n, bytes of meta; the hash.
const FOOTER: usize = 3 * 8 + 32;

/// What was seen while the examples were made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub records: usize,
    /// A chat template was used.
    pub chats: bool,
    /// How often each was made, and first in which file (by its number), and where in it.
    pub findings: Vec<(Finding, usize, usize, String)>,
}

impl Meta {
    /// Made once more, in this file at this place.
    pub fn find(&mut self, finding: Finding, file: usize, at: &str) {
        match self.findings.iter_mut().find(|(kind, ..)| *kind == finding) {
            Some((_, count, ..)) => *count += 1,
            None => self.findings.push((finding, 1, file, at.to_string())),
        }
    }
}

enum Held {
    Memory { tokens: Vec<u32>, ends: Vec<u64>, hashes: Vec<u64> },
    Mapped { map: Mmap, tokens: Range<usize>, ends: Range<usize>, hashes: Range<usize> },
}

pub(super) struct Store(Held);

impl Default for Store {
    fn default() -> Store {
        Builder::in_memory().into_store()
    }
}

impl Store {
    pub fn from_examples(examples: impl IntoIterator<Item = Example>) -> Store {
        let mut builder = Builder::in_memory();
        for example in examples {
            builder.push(&example, hash(&example.ids)).expect("memory takes everything");
        }
        builder.into_store()
    }
    pub fn len(&self) -> usize {
        self.ends().len()
    }
    fn tokens(&self) -> &[u32] {
        match &self.0 {
            Held::Memory { tokens, .. } => tokens,
            Held::Mapped { map, tokens, .. } => bytemuck::cast_slice(&map[tokens.clone()]),
        }
    }
    /// Where each example ends among the tokens.
    fn ends(&self) -> &[u64] {
        match &self.0 {
            Held::Memory { ends, .. } => ends,
            Held::Mapped { map, ends, .. } => bytemuck::cast_slice(&map[ends.clone()]),
        }
    }
    /// Of each example's ids.
    pub fn hashes(&self) -> &[u64] {
        match &self.0 {
            Held::Memory { hashes, .. } => hashes,
            Held::Mapped { map, hashes, .. } => bytemuck::cast_slice(&map[hashes.clone()]),
        }
    }
    pub fn example(&self, i: usize) -> &[u32] {
        let start = if i == 0 { 0 } else { self.ends()[i - 1] };
        &self.tokens()[start as usize..self.ends()[i] as usize]
    }

    /// Maps a file that [`Builder`] wrote; the error says how it is no such file.
    pub fn open(file: &Path) -> Result<(Store, Meta)> {
        let opened = File::open(file).map_err(Error::read(file))?;
        // SAFETY: files of the cache get their names once they are whole, and are never changed, only replaced.
        let map = unsafe { Mmap::map(&opened) }.map_err(Error::read(file))?;
        let (held, meta) =
            parse(&map).ok_or_else(|| Error::content(file, "", "damaged: its hash and its content differ"))?;
        let [tokens, ends, hashes] = held;
        let store = Store(Held::Mapped { map, tokens, ends, hashes });
        let sound =
            store.ends().is_sorted() && store.ends().last().is_none_or(|end| *end == store.tokens().len() as u64);
        match sound {
            true => Ok((store, meta)),
            false => Err(Error::content(file, "", "its examples do not fit its tokens")),
        }
    }
}

/// The places of tokens, ends and hashes.
fn parse(bytes: &[u8]) -> Option<([Range<usize>; 3], Meta)> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if body.get(..8)? != MAGIC.to_ne_bytes() || blake3::Hasher::new().update_rayon(body).finalize().as_bytes() != hash {
        return None;
    }
    let counts = body.len().checked_sub(FOOTER - 32)?;
    let number = |i: usize| Some(u64::from_ne_bytes(body.get(counts + 8 * i..)?.get(..8)?.try_into().ok()?) as usize);
    let [T, n, meta] = [number(0)?, number(1)?, number(2)?];
    let tokens = 8..T.checked_mul(4)?.checked_add(8)?;
    let start = tokens.end.checked_next_multiple_of(8)?;
    let size = n.checked_mul(8)?;
    let ends = start..start.checked_add(size)?;
    let hashes = ends.end..ends.end.checked_add(size)?;
    let meta =
        body.get(hashes.end..hashes.end.checked_add(meta)?).filter(|_| hashes.end.checked_add(meta) == Some(counts))?;
    Some(([tokens, ends, hashes], serde_json::from_slice(meta).ok()?))
}

/// Of an example's ids.
pub(super) fn hash(ids: &[u32]) -> u64 {
    let hash = blake3::hash(bytemuck::cast_slice(ids));
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
}

/// Examples one after the other, into memory or into a file. Beside a file it holds 16 bytes an example.
pub(super) struct Builder {
    out: Out,
    tokens: u64,
    ends: Vec<u64>,
    hashes: Vec<u64>,
    packed: Vec<u32>,
}

enum Out {
    Memory(Vec<u32>),
    File { path: PathBuf, file: BufWriter<File>, hash: Box<blake3::Hasher> },
}

impl Builder {
    pub fn in_memory() -> Builder {
        Builder::with(Out::Memory(vec![]))
    }
    pub fn in_file(path: &Path) -> Result<Builder> {
        let file = File::create(path).map_err(Error::write(path))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let mut out = Out::File { path: path.to_path_buf(), file, hash: Box::default() };
        out.write(&MAGIC.to_ne_bytes())?;
        Ok(Builder::with(out))
    }
    fn with(out: Out) -> Builder {
        Builder { out, tokens: 0, ends: vec![], hashes: vec![], packed: vec![] }
    }

    pub fn push(&mut self, example: &Example, hash: u64) -> Result<()> {
        let packed =
            example.ids.iter().zip(&example.trained).map(|(id, trained)| if *trained { id | TRAINED } else { *id });
        match &mut self.out {
            Out::Memory(tokens) => tokens.extend(packed),
            out => {
                self.packed.clear();
                self.packed.extend(packed);
                out.write(bytemuck::cast_slice(&self.packed))?;
            }
        }
        self.tokens += example.len() as u64;
        self.ends.push(self.tokens);
        self.hashes.push(hash);
        Ok(())
    }

    pub fn into_store(self) -> Store {
        match self.out {
            Out::Memory(tokens) => Store(Held::Memory { tokens, ends: self.ends, hashes: self.hashes }),
            Out::File { .. } => unreachable!("a file is opened once it is finished"),
        }
    }

    /// Completes the file.
    pub fn finish(mut self, meta: &Meta) -> Result<()> {
        let meta = serde_json::to_vec(meta).map_err(|e| Error::Bug(e.to_string()))?;
        self.out.write(&[0; 4][..if self.tokens % 2 == 1 { 4 } else { 0 }])?;
        self.out.write(bytemuck::cast_slice(&self.ends))?;
        self.out.write(bytemuck::cast_slice(&self.hashes))?;
        self.out.write(&meta)?;
        for count in [self.tokens, self.ends.len() as u64, meta.len() as u64] {
            self.out.write(&count.to_ne_bytes())?;
        }
        self.out.seal()
    }
}

impl Out {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Out::File { path, file, hash } = self else { return Ok(()) };
        hash.update(bytes);
        file.write_all(bytes).map_err(Error::write(path))
    }
    fn seal(self) -> Result<()> {
        let Out::File { path, mut file, hash } = self else { return Ok(()) };
        let mut end = || -> io::Result<()> {
            file.write_all(hash.finalize().as_bytes())?;
            file.flush()
        };
        end().map_err(Error::write(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<Example> {
        let example =
            |n: usize| Example { ids: (0..n as u32).collect(), trained: (0..n).map(|i| i % 3 == 1).collect() };
        [5, 0, 1, 8, 3].map(example).to_vec()
    }

    fn write(path: &Path) -> Meta {
        let mut builder = Builder::in_file(path).unwrap();
        examples().iter().for_each(|e| builder.push(e, hash(&e.ids)).unwrap());
        let meta = Meta { records: 7, chats: true, findings: vec![(Finding::Truncated, 2, 0, "line 4".into())] };
        builder.finish(&meta).unwrap();
        meta
    }

    #[test]
    fn a_file_is_what_memory_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tokens");
        let want = write(&file);
        let (store, meta) = Store::open(&file).unwrap();
        let memory = Store::from_examples(examples());
        assert_eq!(meta, want);
        assert_eq!((store.len(), store.hashes()), (5, memory.hashes()));
        (0..5).for_each(|i| assert_eq!(store.example(i), memory.example(i)));
        assert_eq!(store.example(3)[..3], [0, 1 | TRAINED, 2]);
        assert_eq!(Store::default().len(), 0);
    }

    #[test]
    fn every_changed_bit_and_every_lost_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tokens");
        write(&file);
        let whole = std::fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&file, &bytes).unwrap();
            assert!(Store::open(&file).is_err(), "byte {at}");
            std::fs::write(&file, &whole[..at]).unwrap();
            assert!(Store::open(&file).is_err(), "{at} bytes");
        }
        // a sound hash over counts that lie
        for (i, lie) in [(0, u64::MAX), (1, 1 << 61), (2, u64::MAX - 7), (0, 3), (1, 4)] {
            let mut bytes = whole[..whole.len() - 32].to_vec();
            let at = bytes.len() - 24 + 8 * i;
            bytes[at..at + 8].copy_from_slice(&lie.to_ne_bytes());
            let hash = blake3::hash(&bytes);
            bytes.extend(hash.as_bytes());
            std::fs::write(&file, &bytes).unwrap();
            assert!(Store::open(&file).is_err(), "count {i} is {lie}");
        }
    }
}
