//! The text that NVRTC gets for one op and its storage types.
//!
//! ```text
//! typedef bf16 T_inp; …          one per argument; the kernel's signature names them
//! struct Params { … };           generated from the row's params
//! kernels/shared/common.cuh      types, conversions, vector loads, reductions
//! kernels/<file>.cu              the file's common part and the op's own sections
//! ```
//! A file that says `#include "tensor.cuh"` has that text of kernels/shared there.
use crate::backend::kernel_text::{self, Names, Section};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Op;
use std::fmt::Write;

const COMMON: &str = include_str!("../../kernels/shared/common.cuh");
/// The line that asks for it, and what it asks for.
const TENSOR: (&str, &str) = ("#include \"tensor.cuh\"", include_str!("../../kernels/shared/tensor.cuh"));

/// A kernel file that some ops may use instead of their own, with constants set at compile time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    pub name: &'static str,
    pub text: &'static str,
    /// `#define`s in front of the text.
    pub constants: &'static [(&'static str, u32)],
}

/// What is compiled together: every stage of one op for one choice of storage types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel<'a> {
    pub op: Op,
    /// In the row's order; any for an absent argument.
    pub dtypes: &'a [DType],
    pub variant: Option<Variant>,
}

impl<'a> Kernel<'a> {
    pub fn plain(op: Op, dtypes: &'a [DType]) -> Kernel<'a> {
        Kernel { op, dtypes, variant: None }
    }
    fn file(&self) -> &'static str {
        self.variant.map_or_else(|| self.op.cuda(), |v| v.text)
    }
    /// The op's entry points in the order they run.
    pub fn sections(&self) -> Result<Vec<Section<'static>>> {
        let name = self.op.spec().name;
        let (_, sections) =
            kernel_text::parse(self.file()).map_err(|e| Error::Bug(format!("kernel of {name}: {e}")))?;
        let own: Vec<_> = sections.into_iter().filter(|s| s.op() == name).collect();
        if own.is_empty() { Err(Error::Bug(format!("no kernel for {name} in its file"))) } else { Ok(own) }
    }
    /// What the headings of its sections may name.
    pub fn names(&self, params: &[u8]) -> Names {
        let mut names = kernel_text::names(self.op.spec().fields, params);
        names.extend(self.variant.iter().flat_map(|v| v.constants).map(|(name, value)| (*name, *value as u64)));
        names
    }
    /// The whole text.
    pub fn source(&self) -> Result<String> {
        let spec = self.op.spec();
        let (common, _) =
            kernel_text::parse(self.file()).map_err(|e| Error::Bug(format!("kernel of {}: {e}", spec.name)))?;
        let mut text = String::from(COMMON);
        for (arg, dtype) in spec.args.iter().zip(self.dtypes) {
            let _ = writeln!(text, "typedef {} T_{};", c_name(*dtype), arg.name);
        }
        text.push_str("struct Params {");
        for (name, ty) in spec.fields {
            let _ = write!(text, " {} {name};", if *ty == "f32" { "float" } else { "u32" });
        }
        text.push_str(" };\n");
        for (name, value) in self.variant.iter().flat_map(|v| v.constants) {
            let _ = writeln!(text, "#define {name} {value}");
        }
        text.push_str(&common.replacen(TENSOR.0, TENSOR.1, 1));
        for section in self.sections()? {
            text.push_str(&begun(&section)?);
        }
        Ok(text)
    }
}

/// The text of an entry point, which begins with `begin()` of common.cuh: so it may be launched before the one before it has ended.
fn begun(section: &Section) -> Result<String> {
    let (text, entry) = (section.text, "extern \"C\" __global__");
    let body = text.find(entry).and_then(|at| Some(at + text[at..].find('{')? + 1));
    let body = body.ok_or_else(|| Error::Bug(format!("kernel {} has no entry point", section.name)))?;
    let (head, body) = text.split_at(body);
    Ok(format!("{head}\n    begin();{body}"))
}

fn c_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::U32 => "u32",
        DType::U8 => "u8",
    }
}
