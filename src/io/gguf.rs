//! GGUF files (version 2 and 3, one or split): metadata and tensors, read through memory maps.
//!
//! ```text
//! "GGUF" · version · tensor count · pair count · pairs (key, type, value) · infos (name, dims, type, offset) · data
//! ```
//! Nothing of a file is trusted; see `read`. The format: ggml's `docs/gguf.md`.
use crate::error::{Error, Result};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

mod format;
mod packed;
mod read;
#[cfg(test)]
mod tests;
mod write;
pub use format::{FORMATS, Format};
pub use packed::Packed;
pub use write::{Item, Outline, Pairs, Writer};

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Vec<Value>),
}

impl Value {
    /// A whole number from 0.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(x) => Some(*x),
            Value::Signed(x) => (*x).try_into().ok(),
            _ => None,
        }
    }
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Float(x) => Some(*x),
            Value::Unsigned(x) => Some(*x as f64),
            Value::Signed(x) => Some(*x as f64),
            _ => None,
        }
    }
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(x) = self { Some(*x) } else { None }
    }
    pub fn as_text(&self) -> Option<&str> {
        if let Value::Text(x) = self { Some(x) } else { None }
    }
    pub fn as_array(&self) -> Option<&[Value]> {
        if let Value::Array(x) = self { Some(x) } else { None }
    }
}

/// A tensor of a file, borrowed from its map.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub format: Format,
    /// The slowest dimension first.
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

struct Entry {
    file: usize,
    info: read::Info,
}

/// A GGUF model: a file, or all parts of a split one.
pub struct Gguf {
    files: Vec<(PathBuf, Mmap)>,
    /// Of the first file.
    metadata: BTreeMap<String, Value>,
    entries: BTreeMap<String, Entry>,
}

/// The GGUF file that `path` names: itself, or the one in a folder without safetensors. `None`: this is no GGUF.
pub fn find(path: &Path) -> Result<Option<PathBuf>> {
    if !path.is_dir() {
        return Ok(is_gguf(path).then(|| path.to_path_buf()));
    }
    if ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| path.join(name).exists()) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::read(path))? {
        let file = entry.map_err(Error::read(path))?.path();
        let further = part(&file).is_some_and(|(_, number, _)| number != 1);
        if file.extension().is_some_and(|e| e == "gguf") && file.is_file() && !further {
            found.push(file);
        }
    }
    found.sort();
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        n => {
            let names: Vec<_> = found.iter().filter_map(|file| file.file_name()?.to_str()).collect();
            Err(Error::content(path, "", format!("holds {n} GGUF models, name one of them: {}", names.join(", "))))
        }
    }
}

/// By its name, or by its first bytes.
fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
    };
    path.extension().is_some_and(|e| e == "gguf") || begins()
}

/// (stem, number, count) of `stem-00002-of-00003.gguf`.
fn part(path: &Path) -> Option<(String, usize, usize)> {
    let (stem, count) = path.file_name()?.to_str()?.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let number_of = |digits: &str| digits.parse().ok().filter(|n| (1..100_000).contains(n) && digits.len() == 5);
    Some((stem.to_string(), number_of(number)?, number_of(count)?))
}

impl Gguf {
    /// Opens a file; of a split model, any of its parts stands for all.
    pub fn open(path: &Path) -> Result<Gguf> {
        let paths = match part(path) {
            Some((stem, _, count)) => {
                let name = |number| format!("{stem}-{number:05}-of-{count:05}.gguf");
                (1..=count).map(|number| path.with_file_name(name(number))).collect()
            }
            None => vec![path.to_path_buf()],
        };
        let mut all = Gguf { files: Vec::new(), metadata: BTreeMap::new(), entries: BTreeMap::new() };
        for path in &paths {
            all.add(path)?;
        }
        let declared = all.get("split.count").and_then(Value::as_u64).unwrap_or(1).max(1);
        if declared != paths.len() as u64 {
            let what =
                format!("is one of {declared} parts, and its name must say so: `NAME-00001-of-{declared:05}.gguf`");
            return all.wrong("split.count", what);
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(Error::read(path))?;
        // SAFETY: the map is read only; a file that another process truncates meanwhile is outside what can be guarded.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::read(path))?;
        let header = read::header(&map).map_err(|(at, what)| Error::content(path, at, what))?;
        for info in header.tensors {
            let name = info.name.clone();
            if self.entries.insert(name.clone(), Entry { file: self.files.len(), info }).is_some() {
                return Err(Error::content(path, name, "the tensor is in two parts of the model"));
            }
        }
        if self.files.is_empty() {
            self.metadata = header.metadata;
        }
        self.files.push((path.to_path_buf(), map));
        Ok(())
    }

    /// The file that errors should name.
    pub fn path(&self) -> &Path {
        &self.files[0].0
    }
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }
    /// `Err` about a key or a tensor.
    pub fn wrong<T>(&self, at: &str, what: impl std::fmt::Display) -> Result<T> {
        Err(Error::content(self.path(), at, what))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let Entry { file, info } = self.entries.get(name)?;
        let bytes = &self.files[*file].1[info.range.clone()];
        Some(Tensor { format: info.format, shape: &info.shape, bytes })
    }

    /// A hash of the tensors' names, formats, shapes and a sample of each one's bytes, and of the metadata.
    pub fn fingerprint(&self) -> String {
        const SAMPLE: usize = 4096;
        let mut hash = blake3::Hasher::new();
        for (name, entry) in &self.entries {
            let bytes = &self.files[entry.file].1[entry.info.range.clone()];
            hash.update(format!("{name} {} {:?}\n", entry.info.format.name, entry.info.shape).as_bytes());
            hash.update(&bytes[..bytes.len().min(SAMPLE)]);
            hash.update(&bytes[bytes.len() - bytes.len().min(SAMPLE)..]);
        }
        hash.update(format!("{:?}", self.metadata).as_bytes());
        hash.finalize().to_hex().to_string()
    }
}
