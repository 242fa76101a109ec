//! Writes a GGUF file of version 3: header first, then tensor by tensor, never more than one in memory.
use super::Format;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Tensors start at multiples of it: what readers take where the file does not say.
const ALIGNMENT: u64 = 32;

/// A value of the metadata in the type that readers ask for: most take no other.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

/// The metadata in the order they are written.
pub type Pairs = Vec<(String, Item)>;

/// A tensor about to be written; the slowest dimension first.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    pub name: String,
    pub shape: Vec<usize>,
    pub format: Format,
}

impl Outline {
    pub fn bytes(&self) -> u64 {
        self.format.size(self.shape.iter().product()) as u64
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A list's own type is 9, then that of its values.
fn list<T>(out: &mut Vec<u8>, kind: u32, values: &[T], each: impl Fn(&mut Vec<u8>, &T)) {
    out.extend([9, kind].iter().flat_map(|x: &u32| x.to_le_bytes()));
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| each(out, value));
}

fn value(out: &mut Vec<u8>, item: &Item) {
    let one = |out: &mut Vec<u8>, kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match item {
        Item::U32(x) => one(out, 4, &x.to_le_bytes()),
        Item::F32(x) => one(out, 6, &x.to_le_bytes()),
        Item::Bool(x) => one(out, 7, &[u8::from(*x)]),
        Item::Text(x) => {
            one(out, 8, &[]);
            text(out, x);
        }
        Item::I32s(all) => list(out, 5, all, |out, x| out.extend(x.to_le_bytes())),
        Item::F32s(all) => list(out, 6, all, |out, x| out.extend(x.to_le_bytes())),
        Item::Bools(all) => list(out, 7, all, |out, x| out.push(u8::from(*x))),
        Item::Texts(all) => list(out, 8, all, |out, x| text(out, x)),
    }
}

pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    left: std::vec::IntoIter<Outline>,
}

impl Writer {
    pub fn create(path: &Path, pairs: &Pairs, outlines: Vec<Outline>) -> Result<Writer> {
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((outlines.len() as u64).to_le_bytes());
        header.extend((pairs.len() as u64).to_le_bytes());
        for (key, item) in pairs {
            text(&mut header, key);
            value(&mut header, item);
        }
        let mut offset = 0u64;
        for outline in &outlines {
            text(&mut header, &outline.name);
            header.extend((outline.shape.len() as u32).to_le_bytes());
            outline.shape.iter().rev().for_each(|dim| header.extend((*dim as u64).to_le_bytes()));
            header.extend(outline.format.id.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += outline.bytes().next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(Error::write(path))?);
        file.write_all(&header).map_err(Error::write(path))?;
        Ok(Writer { path: path.to_path_buf(), file, left: outlines.into_iter() })
    }

    /// The next tensor's bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(next) = self.left.next() else {
            return Err(Error::Bug(format!("{}: one tensor too many", self.path.display())));
        };
        if next.bytes() != bytes.len() as u64 {
            let what = format!("{}: {} bytes wanted, {} given", next.name, next.bytes(), bytes.len());
            return Err(Error::Bug(what));
        }
        let padding = next.bytes().next_multiple_of(ALIGNMENT) - next.bytes();
        let parts = [bytes, &[0; ALIGNMENT as usize][..padding as usize]];
        parts.iter().try_for_each(|part| self.file.write_all(part)).map_err(Error::write(&self.path))
    }

    /// Everything on disk.
    pub fn finish(mut self) -> Result<()> {
        if let Some(missing) = self.left.next() {
            return Err(Error::Bug(format!("{}: `{}` was not written", self.path.display(), missing.name)));
        }
        self.file.flush().map_err(Error::write(&self.path))?;
        self.file.get_ref().sync_all().map_err(Error::write(&self.path))
    }
}
