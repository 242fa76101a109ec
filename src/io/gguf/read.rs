//! The header of a GGUF file: counts, metadata, tensor infos. Whatever it declares is held against the bytes that are there.
use super::{Format, Value};
use std::collections::BTreeMap;

/// Values of all arrays together; the largest real files have some hundred thousand tokens and merges.
const MAX_VALUES: usize = 1 << 23;
/// Arrays in arrays.
const MAX_NESTING: usize = 4;
const MAX_NAME: usize = 1 << 16;
const MAX_DIMS: usize = 4;
/// Tensors start at multiples of it, unless the file says otherwise.
const ALIGNMENT: u64 = 32;

/// What is wrong: where, and what.
pub(super) type Wrong = (String, String);

/// A tensor as the header declares it.
pub(super) struct Info {
    pub name: String,
    /// The slowest dimension first, as everywhere but in GGUF.
    pub shape: Vec<usize>,
    pub format: Format,
    /// In the file.
    pub range: std::ops::Range<usize>,
}

pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<Info>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Array values that may still come.
    values_left: usize,
}

fn wrong<T>(at: impl ToString, what: impl ToString) -> Result<T, Wrong> {
    Err((at.to_string(), what.to_string()))
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], Wrong> {
        let left = self.bytes.len() - self.at;
        if len > left as u64 {
            return wrong("header", format!("{len} bytes are wanted at byte {}, {left} are left: truncated?", self.at));
        }
        let taken = &self.bytes[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        Ok(self.take(N as u64)?.try_into().expect("N bytes"))
    }
    fn u32(&mut self) -> Result<u32, Wrong> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, Wrong> {
        self.array().map(u64::from_le_bytes)
    }
    fn text(&mut self) -> Result<String, Wrong> {
        let (len, at) = (self.u64()?, self.at);
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).or_else(|e| wrong("header", format!("a text at byte {at} is not UTF-8: {e}")))
    }
    fn name(&mut self) -> Result<String, Wrong> {
        let at = self.at;
        let name = self.text()?;
        if name.is_empty() || name.len() > MAX_NAME {
            return wrong("header", format!("a name at byte {at} has {} bytes", name.len()));
        }
        Ok(name)
    }
    /// A count of things that take at least `each` bytes.
    fn count(&mut self, what: &str, each: usize) -> Result<usize, Wrong> {
        let (count, left) = (self.u64()?, self.bytes.len() - self.at);
        if count > (left / each) as u64 {
            return wrong("header", format!("declares {count} {what}, the {left} bytes left cannot hold them"));
        }
        Ok(count as usize)
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, Wrong> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed((self.array::<1>()?[0] as i8).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()?[0] {
                bit @ (0 | 1) => Value::Bool(bit == 1),
                other => return wrong("header", format!("a truth value is {other}, 0 or 1 is wanted")),
            },
            8 => Value::Text(self.text()?),
            9 => self.values(depth + 1)?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return wrong("header", format!("metadata of type {other} is not known")),
        })
    }

    fn values(&mut self, depth: usize) -> Result<Value, Wrong> {
        if depth > MAX_NESTING {
            return wrong("header", format!("arrays are nested more than {MAX_NESTING} deep"));
        }
        let kind = self.u32()?;
        let each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            8 | 10..=12 => 8,
            9 => 12,
            _ => 4,
        };
        let count = self.count("values of an array", each)?;
        self.values_left = match self.values_left.checked_sub(count) {
            Some(left) => left,
            None => return wrong("header", format!("its arrays have more than {MAX_VALUES} values")),
        };
        (0..count).map(|_| self.value(kind, depth)).collect::<Result<_, _>>().map(Value::Array)
    }

    /// A tensor with its offset from the start of the data.
    fn info(&mut self) -> Result<(String, Vec<u64>, u32, u64), Wrong> {
        let name = self.name()?;
        let dims = self.u32()? as usize;
        if dims > MAX_DIMS {
            return wrong(name, format!("has {dims} dimensions, at most {MAX_DIMS} are wanted"));
        }
        let mut shape = (0..dims).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok((name, shape, self.u32()?, self.u64()?))
    }
}

/// The header of a file with these bytes, all its tensors inside and apart from one another.
pub(super) fn header(bytes: &[u8]) -> Result<Header, Wrong> {
    let mut cursor = Cursor { bytes, at: 0, values_left: MAX_VALUES };
    let magic: [u8; 4] = cursor.array()?;
    if magic != *b"GGUF" {
        return wrong(
            "header",
            format!("starts with {:?}, a GGUF file with \"GGUF\"", magic.escape_ascii().to_string()),
        );
    }
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 2 | 3) => {
            return wrong("header", "is big-endian; only little-endian files are read");
        }
        _ => return wrong("header", format!("is of version {version}; 2 and 3 are read: convert the model again")),
    }
    let tensors = cursor.count("tensors", 8 + 4 + 4 + 8)?;
    let pairs = cursor.count("metadata pairs", 8 + 4 + 1)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let key = cursor.name()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0).map_err(|(_, what)| (key.clone(), what))?;
        if metadata.insert(key.clone(), value).is_some() {
            return wrong(key, "is in the metadata twice");
        }
    }
    let infos = (0..tensors).map(|_| cursor.info()).collect::<Result<Vec<_>, _>>()?;
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Unsigned(a)) if a.is_power_of_two() && *a <= 1 << 20 => *a,
        Some(other) => return wrong("general.alignment", format!("a power of two is wanted, got {other:?}")),
    };
    let start = (cursor.at as u64).next_multiple_of(alignment);
    let tensors =
        infos.into_iter().map(|info| place(info, start, alignment, bytes.len())).collect::<Result<Vec<_>, _>>()?;
    apart(&tensors)?;
    Ok(Header { metadata, tensors })
}

/// Where a tensor lies in a file of `len` bytes whose data begin at `start`.
fn place(
    (name, shape, id, offset): (String, Vec<u64>, u32, u64),
    start: u64,
    alignment: u64,
    len: usize,
) -> Result<Info, Wrong> {
    let Some(format) = Format::of_id(id) else { return wrong(name, format!("is of type {id}, which is not known")) };
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(format.len as u64) || shape.contains(&0) {
        let what =
            format!("has shape {shape:?}; rows of whole blocks of {} are wanted for {}", format.len, format.name);
        return wrong(name, what);
    }
    if !offset.is_multiple_of(alignment) {
        return wrong(name, format!("lies at {offset}, a multiple of {alignment} is wanted"));
    }
    let values = shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim));
    let bytes = values.and_then(|n| (n / format.len as u64).checked_mul(format.bytes as u64));
    let first = start.checked_add(offset);
    let end = first.and_then(|first| first.checked_add(bytes?));
    match (first, end) {
        (Some(first), Some(end)) if end <= len as u64 => {
            let shape = shape.into_iter().map(|dim| dim as usize).collect();
            Ok(Info { name, shape, format, range: first as usize..end as usize })
        }
        _ => wrong(
            name,
            format!("of shape {shape:?} lies at {offset} of the data, beyond the file's {len} bytes: truncated?"),
        ),
    }
}

/// No name twice, no byte in two tensors.
fn apart(tensors: &[Info]) -> Result<(), Wrong> {
    let mut sorted: Vec<&Info> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return wrong(&pair[0].name, "the tensor is there twice");
    }
    sorted.sort_by_key(|info| info.range.start);
    match sorted.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some(pair) => wrong(&pair[1].name, format!("overlaps `{}`", pair[0].name)),
        None => Ok(()),
    }
}
