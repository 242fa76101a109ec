//! safetensors files: one, or shards with an index, read through memory maps; written as a stream.
//!
//! Nothing of a file is trusted: sizes are checked against the file before anything is allocated, names in an index must stay
//! in the model's folder. Reading a tensor costs no copy.
use crate::dtype::DType;
use crate::error::{Error, Result};
use memmap2::Mmap;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

pub use ::safetensors::Dtype;

/// Larger headers are refused: the largest real ones are a few megabytes.
const MAX_HEADER: u64 = 32 << 20;

/// A tensor of a file, borrowed from its map.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// The storage type, if it is a float that models are made of.
    pub fn float(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::Bf16),
            _ => None,
        }
    }
    /// The values as f32; `None` for types that are no floats.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        self.float().map(|dtype| dtype.decode(self.bytes))
    }
    /// The values of an i64 or i32 tensor.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let wide = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("8 bytes"));
        let narrow = |b: &[u8]| i32::from_le_bytes(b.try_into().expect("4 bytes")) as i64;
        match self.dtype {
            Dtype::I64 => Some(self.bytes.chunks_exact(8).map(wide).collect()),
            Dtype::I32 => Some(self.bytes.chunks_exact(4).map(narrow).collect()),
            _ => None,
        }
    }
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: std::ops::Range<usize>,
}

/// The tensors of a file, or of a folder's `model.safetensors` or shards.
pub struct Tensors {
    files: Vec<(PathBuf, Mmap)>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn index(folder: &Path, stem: &str) -> PathBuf {
    folder.join(format!("{stem}.safetensors.index.json"))
}

/// The shard of each tensor, as the index says; `None` where there is a single file, or nothing.
fn weight_map(folder: &Path, stem: &str) -> Result<Option<BTreeMap<String, String>>> {
    let index = index(folder, stem);
    if folder.join(format!("{stem}.safetensors")).exists() || !index.exists() {
        return Ok(None);
    }
    let text = std::fs::read(&index).map_err(Error::read(&index))?;
    let map: Index = serde_json::from_slice(&text).map_err(|e| Error::content(&index, "", e))?;
    let plain = |name: &str| {
        let mut parts = Path::new(name).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && name.ends_with(".safetensors")
    };
    match map.weight_map.values().find(|name| !plain(name)) {
        Some(name) => {
            let what = format!("`{name}` is no safetensors file of this folder");
            Err(Error::content(&index, "weight_map", what))
        }
        None => Ok(Some(map.weight_map)),
    }
}

/// The files that the weights of a folder lie in, or would lie in.
pub fn files(folder: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    let single = || BTreeSet::from([format!("{stem}.safetensors")]);
    let names = weight_map(folder, stem)?.map_or_else(single, |map| map.into_values().collect());
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

impl Tensors {
    /// `stem.safetensors` of a folder, or the shards that `stem.safetensors.index.json` lists.
    pub fn open_folder(folder: &Path, stem: &str) -> Result<Tensors> {
        let Some(map) = weight_map(folder, stem)? else {
            let name = format!("{stem}.safetensors");
            super::links::check(folder, &name)?;
            return Self::open(&[folder.join(name)]);
        };
        let shards: BTreeSet<&String> = map.values().collect();
        for name in &shards {
            super::links::check(folder, name)?;
        }
        let tensors = Self::open(&shards.iter().map(|name| folder.join(name)).collect::<Vec<_>>())?;
        match map.keys().find(|name| !tensors.entries.contains_key(*name)) {
            Some(name) => {
                let what = "listed, but in none of the shards: download the model again";
                Err(Error::content(index(folder, stem), name, what))
            }
            None => Ok(tensors),
        }
    }

    pub fn open(paths: &[PathBuf]) -> Result<Tensors> {
        let mut all = Tensors { files: Vec::new(), entries: BTreeMap::new() };
        for path in paths {
            let file = File::open(path).map_err(Error::read(path))?;
            // SAFETY: the map is read only; a file that another process truncates meanwhile is outside what can be guarded.
            let map = unsafe { Mmap::map(&file) }.map_err(Error::read(path))?;
            let index = all.files.len();
            for (name, entry) in header(path, &map)? {
                let entry = Entry { file: index, ..entry };
                if all.entries.insert(name.clone(), entry).is_some() {
                    return Err(Error::content(path, name, "the tensor is in two shards"));
                }
            }
            all.files.push((path.clone(), map));
        }
        Ok(all)
    }

    /// Names as a whole model has them, where the file holds those of the part below the head, `transformer.` left out: known by
    /// the tensor `known`. Names that begin with `head` stay.
    pub fn with_prefix(mut self, known: &str, head: &str) -> Tensors {
        let Some((prefix, short)) = known.split_once('.') else { return self };
        if !self.contains(known) && self.contains(short) {
            let whole = |name: String| if name.starts_with(head) { name } else { format!("{prefix}.{name}") };
            self.entries = self.entries.into_iter().map(|(name, entry)| (whole(name), entry)).collect();
        }
        self
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }
    /// The file that errors about these tensors should name.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |(path, _)| path)
    }

    /// A hash of all names, types, shapes and a sample of each tensor's bytes: tells checkpoints apart without reading them.
    pub fn fingerprint(&self) -> String {
        const SAMPLE: usize = 4096;
        let mut hash = blake3::Hasher::new();
        for (name, entry) in &self.entries {
            let bytes = &self.files[entry.file].1[entry.range.clone()];
            hash.update(format!("{name} {:?} {:?}\n", entry.dtype, entry.shape).as_bytes());
            hash.update(&bytes[..bytes.len().min(SAMPLE)]);
            hash.update(&bytes[bytes.len() - bytes.len().min(SAMPLE)..]);
        }
        hash.finalize().to_hex().to_string()
    }

    pub fn get(&self, name: &str) -> Result<Tensor<'_>> {
        let entry = self.entries.get(name).ok_or_else(|| Error::content(self.path(), name, "the tensor is missing"))?;
        let bytes = &self.files[entry.file].1[entry.range.clone()];
        Ok(Tensor { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// A float tensor of a given shape.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let tensor = self.get(name)?;
        let wrong = |what: String| Err(Error::content(self.path(), name, what));
        if tensor.shape != shape {
            return wrong(format!("has shape {:?}, the config wants {shape:?}", tensor.shape));
        }
        if tensor.float().is_none() {
            return wrong(format!("is {:?}; float32, float16 or bfloat16 is wanted", tensor.dtype));
        }
        Ok(tensor)
    }
}

/// The entries of one file, each checked to lie in it.
fn header(path: &Path, map: &[u8]) -> Result<Vec<(String, Entry)>> {
    let bad = |what: String| Error::content(path, "header", what);
    let length = map.get(..8).ok_or_else(|| bad(format!("{} bytes are too few for a safetensors file", map.len())))?;
    let length = u64::from_le_bytes(length.try_into().expect("8 bytes"));
    if length > MAX_HEADER || length + 8 > map.len() as u64 {
        return Err(bad(format!("declares {length} bytes, the file has {}: truncated download?", map.len())));
    }
    let (n, meta) = ::safetensors::SafeTensors::read_metadata(map).map_err(|e| bad(e.to_string()))?;
    let data = map.len() - 8 - n;
    let mut entries = Vec::new();
    for (name, info) in meta.tensors() {
        let (start, end) = info.data_offsets;
        if start > end || end > data {
            return Err(Error::content(
                path,
                name,
                format!("lies at {start}..{end}, the file holds {data} bytes of data"),
            ));
        }
        let range = 8 + n + start..8 + n + end;
        entries.push((name, Entry { file: 0, dtype: info.dtype, shape: info.shape.clone(), range }));
    }
    Ok(entries)
}

/// A tensor about to be written.
#[derive(Clone, Debug)]
pub struct Outline {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Outline {
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// The safetensors name of a storage type.
pub fn dtype_of(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
    }
}

/// Writes a file tensor by tensor, in the order of its outlines, without holding more than one. In the file, wider types
/// come first, so that every tensor lies at a multiple of its element's size: other readers view the bytes in place.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    /// With each one's place in the file.
    left: std::vec::IntoIter<(Outline, u64)>,
    /// Where the next byte would go.
    at: u64,
}

impl Writer {
    pub fn create(path: &Path, outlines: Vec<Outline>) -> Result<Writer> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
        let mut order: Vec<usize> = (0..outlines.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(outlines[*i].dtype.bitsize()));
        let (mut places, mut at) = (vec![0; outlines.len()], 0);
        for i in order {
            places[i] = at;
            at += outlines[i].bytes();
        }
        for (o, start) in outlines.iter().zip(&places) {
            let dtype = serde_json::to_value(o.dtype).map_err(|e| Error::Bug(e.to_string()))?;
            let offsets = [*start, start + o.bytes()];
            let entry = serde_json::json!({ "dtype": dtype, "shape": o.shape, "data_offsets": offsets });
            if header.insert(o.name.clone(), entry).is_some() {
                return Err(Error::Bug(format!("{}: `{}` is written twice", path.display(), o.name)));
            }
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(Error::write(path))?);
        let head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
        file.write_all(&head).map_err(Error::write(path))?;
        let base = head.len();
        let left: Vec<_> = outlines.into_iter().zip(places).map(|(o, start)| (o, (base + start) as u64)).collect();
        Ok(Writer { path: path.to_path_buf(), file, left: left.into_iter(), at: base as u64 })
    }

    /// The next tensor's bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (next, start) =
            self.left.next().ok_or_else(|| Error::Bug(format!("{}: one tensor too many", self.path.display())))?;
        if next.bytes() != bytes.len() {
            let what = format!("{}: {} bytes wanted, {} given", next.name, next.bytes(), bytes.len());
            return Err(Error::Bug(what));
        }
        if start != self.at {
            self.file.seek(SeekFrom::Start(start)).map_err(Error::write(&self.path))?;
        }
        self.at = start + bytes.len() as u64;
        self.put(bytes, start).map_err(Error::write(&self.path))
    }

    /// Large tensors by all threads: one alone is slower than the memory that a file may lie in.
    #[cfg(unix)]
    fn put(&mut self, bytes: &[u8], start: u64) -> std::io::Result<()> {
        use rayon::prelude::*;
        use std::os::unix::fs::FileExt;
        const PART: usize = 16 << 20;
        if bytes.len() < 2 * PART {
            return self.file.write_all(bytes);
        }
        self.file.flush()?;
        let file = self.file.get_ref();
        let parts = bytes.par_chunks(PART).enumerate();
        parts.try_for_each(|(i, part)| file.write_all_at(part, start + (i * PART) as u64))?;
        self.file.seek(SeekFrom::Start(self.at)).map(|_| ())
    }
    #[cfg(not(unix))]
    fn put(&mut self, bytes: &[u8], _: u64) -> std::io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Everything on disk.
    pub fn finish(mut self) -> Result<()> {
        if let Some((missing, _)) = self.left.next() {
            return Err(Error::Bug(format!("{}: `{}` was not written", self.path.display(), missing.name)));
        }
        self.file.flush().map_err(Error::write(&self.path))?;
        self.file.get_ref().sync_all().map_err(Error::write(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(name: &str, shape: &[usize]) -> Outline {
        Outline { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec() }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut w = Writer::create(&path, vec![outline("b", &[2, 3]), outline("a", &[1])]).unwrap();
        let values: Vec<f32> = (0..6).map(|i| i as f32).collect();
        w.write(&DType::F32.encode(&values)).unwrap();
        w.write(&DType::F32.encode(&[7.0])).unwrap();
        w.finish().unwrap();
        let t = Tensors::open_folder(dir.path(), "model").unwrap();
        assert_eq!(t.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(t.floats("b", &[2, 3]).unwrap().to_f32().unwrap(), values);
        assert!(t.floats("b", &[3, 2]).unwrap_err().to_string().contains("[2, 3]"));
        assert!(t.get("c").is_err());
    }

    #[test]
    fn tensors_lie_at_multiples_of_their_elements_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let outlines = [(Dtype::U8, 3), (Dtype::F32, 2), (Dtype::BF16, 1), (Dtype::I8, 1), (Dtype::F32, 1)];
        let named = outlines.iter().enumerate();
        let named = named.map(|(i, (dtype, len))| Outline { name: format!("{i}"), dtype: *dtype, shape: vec![*len] });
        let mut w = Writer::create(&path, named.collect()).unwrap();
        for (i, (dtype, len)) in outlines.iter().enumerate() {
            w.write(&vec![i as u8 + 1; dtype.bitsize() / 8 * len]).unwrap();
        }
        w.finish().unwrap();
        let t = Tensors::open_folder(dir.path(), "model").unwrap();
        for (i, (dtype, _)) in outlines.iter().enumerate() {
            let entry = &t.entries[&i.to_string()];
            assert!(entry.range.start.is_multiple_of(dtype.bitsize() / 8), "{i}");
            assert!(t.get(&i.to_string()).unwrap().bytes.iter().all(|b| *b == i as u8 + 1), "{i}");
        }
    }

    #[test]
    fn damaged_files_are_errors_with_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut w = Writer::create(&path, vec![outline("a", &[4])]).unwrap();
        w.write(&[0; 16]).unwrap();
        w.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 8, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let e = Tensors::open_folder(dir.path(), "model").err().expect("a cut file is refused").to_string();
            assert!(e.contains("model.safetensors"), "{cut}: {e}");
        }
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, huge).unwrap();
        assert!(Tensors::open_folder(dir.path(), "model").is_err());
    }

    #[test]
    fn an_index_cannot_leave_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        for name in ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "./x.safetensors", "x.bin"] {
            std::fs::write(&index, serde_json::json!({ "weight_map": { "a": name } }).to_string()).unwrap();
            let e = Tensors::open_folder(dir.path(), "model").err().expect("refused").to_string();
            assert!(e.contains("is no safetensors file of this folder"), "{e}");
        }
    }
}
