//! Every error says what, where, what was wanted, what came, and what to do; its kind decides the exit code.
use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Error {
    /// A bad command line. Exit code 2.
    Usage(String),
    /// Bad content of a file: config, model, data, checkpoint. `at` is a line, a key or a tensor; may be empty. Exit code 65.
    Content { file: PathBuf, at: String, what: String },
    /// The device is absent, lacks something, was lost or is out of memory. Exit code 69.
    Device { backend: &'static str, what: String },
    /// A call that disagrees with its row of the op table. Exit code 70.
    Op { op: &'static str, arg: &'static str, kind: OpError },
    /// Something that cannot happen happened. Exit code 70.
    Bug(String),
    /// A result could not be written. Exit code 73.
    Write { file: PathBuf, source: std::io::Error },
    /// A file could not be read. Exit code 74.
    Read { file: PathBuf, source: std::io::Error },
    /// Training stopped itself before harm; the last checkpoint is good. Exit code 75.
    Stopped(String),
    /// The user interrupted; what was reached is saved. Exit code 130.
    Interrupted(String),
}

/// How a call disagrees with its row.
#[derive(Debug, PartialEq)]
pub enum OpError {
    /// `shape` as the row writes it, `dims` as this call binds it.
    Length {
        shape: &'static str,
        want: usize,
        dims: String,
        got: usize,
    },
    Stride {
        ld: usize,
        row: usize,
    },
    /// 16-bit values travel in pairs: a row stride must be even.
    OddStride {
        ld: usize,
        dtype: &'static str,
    },
    Type {
        want: &'static str,
        got: &'static str,
    },
    Presence {
        want: bool,
    },
    Overlap {
        with: &'static str,
    },
    /// The params contradict themselves.
    Params(String),
}

impl Error {
    pub fn content(file: impl AsRef<Path>, at: impl fmt::Display, what: impl fmt::Display) -> Error {
        Error::Content { file: file.as_ref().to_path_buf(), at: at.to_string(), what: what.to_string() }
    }
    pub fn device(backend: &'static str, what: impl fmt::Display) -> Error {
        Error::Device { backend, what: what.to_string() }
    }
    /// For `map_err` on reads of `file`.
    pub fn read(file: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let file = file.as_ref().to_path_buf();
        move |source| Error::Read { file, source }
    }
    /// For `map_err` on writes of `file`.
    pub fn write(file: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let file = file.as_ref().to_path_buf();
        move |source| Error::Write { file, source }
    }
    /// The process's exit code, after sysexits.h.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Content { .. } => 65,
            Error::Device { .. } => 69,
            Error::Op { .. } | Error::Bug(_) => 70,
            Error::Write { .. } => 73,
            Error::Read { .. } => 74,
            Error::Stopped(_) => 75,
            Error::Interrupted(_) => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(what) | Error::Stopped(what) | Error::Interrupted(what) => write!(f, "{}", clean(what)),
            Error::Content { file, at, what } if at.is_empty() => write!(f, "{}: {}", file.display(), clean(what)),
            Error::Content { file, at, what } => write!(f, "{}: {}: {}", file.display(), clean(at), clean(what)),
            Error::Device { backend, what } => write!(f, "{backend}: {what}"),
            Error::Op { op, arg, kind } => write!(f, "{op}: `{arg}` {kind}"),
            Error::Bug(what) => write!(f, "bug in luthier, please report it: {what}"),
            Error::Write { file, source } => write!(f, "{}: cannot write: {source}", file.display()),
            Error::Read { file, source } => write!(f, "{}: cannot read: {source}", file.display()),
        }
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpError::Length { shape, want, dims, got } => {
                write!(f, "must be {shape} = {want} elements ({dims}), got {got}")
            }
            OpError::Stride { ld, row } => write!(f, "has rows of {row}, but a row stride of {ld}"),
            OpError::OddStride { ld, dtype } => {
                write!(f, "is {dtype} with a row stride of {ld}; 16-bit rows must be even (pad them, or use float32)")
            }
            OpError::Type { want, got } => write!(f, "must hold {want}, got {got}"),
            OpError::Presence { want: true } => write!(f, "is wanted, but absent"),
            OpError::Presence { want: false } => write!(f, "is given, but the params say it is absent"),
            OpError::Overlap { with } => write!(f, "is written, but shares memory with `{with}`"),
            OpError::Params(what) => write!(f, "{what}"),
        }
    }
}

/// Text that may come from an untrusted file, made safe for a terminal: control characters escaped, cut at 600.
fn clean(text: &str) -> String {
    let safe = |c: char| !c.is_control() || c == '\n' || c == '\t';
    let mut out = String::new();
    for c in text.chars() {
        if out.len() > 600 {
            out.push('…');
            break;
        }
        if safe(c) { out.push(c) } else { out.extend(c.escape_default()) }
    }
    out
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Write { source, .. } | Error::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Levenshtein's distance.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for j in 0..b.len() {
            let change = diagonal + usize::from(ca != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
