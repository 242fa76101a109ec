//! Our kernels for hosts that have launchers of their own, Burn for one: the texts that our backends run, in a form that wants
//! nothing of a launcher but to bind buffers in order.
//!
//! The contract, which `tests/foreign.rs` checks for every op that is offered here:
//! - A [`Stage`] is one entry point; an op's stages run in order, each on its [`Stage::geometry`].
//! - `buffers` says which arguments of the row are bound, in which order. WGSL: storage buffers at `@group(0) @binding(0..n)`, all
//!   `read_write`, since a host's tensors share its buffers; CUDA: pointers, one for each argument of the row.
//! - The row's params, as many bytes as their struct has, come last: in WGSL a uniform buffer at binding n, in CUDA a struct by value.
//! - A buffer begins at its binding or pointer, at a multiple of 16 bytes, without gaps between its rows, and ends with a whole
//!   word of 4 bytes. Rows of 16-bit values are of even length.
//! - The text stands alone: no header, no compiler's option, no feature of the device beyond those of its storage types; at most
//!   48 KiB of shared memory, all of it static.
//! - CUDA, since sm_90: a kernel waits for the one before it and then lets dependents of its launch come, where launches have any.
//!
//! What does not fit is refused: products and attention, whose tiles, scratch or dynamic shared memory belong to our launchers.
use super::kernel_text::{self, Section};
use super::{Buf, Launch, cuda_text};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Op;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    #[cfg(feature = "wgpu")]
    Wgsl,
    Cuda,
}

impl Language {
    /// As other programs call it: `wgsl`, `cuda`.
    pub fn tag(self) -> &'static str {
        match self {
            #[cfg(feature = "wgpu")]
            Language::Wgsl => "wgsl",
            Language::Cuda => "cuda",
        }
    }
    /// The backend that runs these texts here.
    fn backend(self) -> &'static str {
        match self {
            #[cfg(feature = "wgpu")]
            Language::Wgsl => "wgpu",
            Language::Cuda => "cuda",
        }
    }
}

/// One entry point, ready to be compiled.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The entry point's name.
    pub name: &'static str,
    pub text: String,
    /// The arguments of the row that are bound, in order.
    pub buffers: Vec<usize>,
    op: Op,
    language: Language,
    section: Section<'static>,
    /// Elements to a word of the shader.
    width: u64,
}

/// An argument as its tensor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    pub dtype: DType,
    /// Elements.
    pub len: usize,
}

/// Whether a call agrees with its row: `args` in the row's order, `params` the bytes of its params struct. That no argument overlaps
/// one that is written is the host's business.
pub fn check(op: Op, args: &[Arg], params: &[u8]) -> Result<()> {
    let buf = |(slab, arg): (usize, &Arg)| Buf {
        slab: slab as u32,
        start: 0,
        len: arg.len,
        dtype: arg.dtype,
        width: arg.dtype.size(),
    };
    let bufs: Vec<Buf> = args.iter().enumerate().map(buf).collect();
    Launch::new(op, &bufs.iter().map(Some).collect::<Vec<_>>(), params).map(|_| ())
}

/// The op's entry points for arguments that are stored so, in the order in which they run.
pub fn stages(op: Op, language: Language, dtypes: &[DType]) -> Result<Vec<Stage>> {
    match language {
        #[cfg(feature = "wgpu")]
        Language::Wgsl => wgsl(op, dtypes),
        Language::Cuda => cuda(op, dtypes),
    }
}

fn refused(op: Op, language: Language, why: &str) -> Error {
    Error::device(language.backend(), format!("{}: its kernel {why}, so it is not for other hosts", op.spec().name))
}

fn cuda(op: Op, dtypes: &[DType]) -> Result<Vec<Stage>> {
    let kernel = cuda_text::Kernel::plain(op, dtypes);
    let text = kernel.source()?;
    let stage = |section: Section<'static>| {
        if section.shared != "0" {
            return Err(refused(op, Language::Cuda, "wants dynamic shared memory"));
        }
        let (name, text, buffers) = (section.name, text.clone(), (0..dtypes.len()).collect());
        Ok(Stage { name, text, buffers, op, language: Language::Cuda, section, width: 1 })
    };
    kernel.sections()?.into_iter().map(stage).collect()
}

#[cfg(feature = "wgpu")]
fn wgsl(op: Op, dtypes: &[DType]) -> Result<Vec<Stage>> {
    use super::wgpu::{plan, text};
    let (spec, language) = (op.spec(), Language::Wgsl);
    // all that a launcher may switch on is off
    let plain = |plan: &plan::Plan| {
        plan.consts.iter().all(|(_, value)| *value == 0)
            && plan::Plan { consts: Vec::new(), ..plan.clone() } == plan::Plan::default()
    };
    let Some(plan) = plan::variants(op).into_iter().find(plain) else {
        return Err(refused(op, language, "has tiles and scratch that our own launcher chooses"));
    };
    let arg = |(arg, dtype): (&crate::ops::Arg, &DType)| text::TextArg {
        name: arg.name,
        elem: arg.elem,
        dtype: Some(*dtype),
        wide: false,
    };
    let args: Vec<_> = spec.args.iter().zip(dtypes).map(arg).collect();
    let (common, sections) = kernel_text::parse(op.wgsl()).map_err(Error::Bug)?;
    let stage = |section: Section<'static>| {
        let (fields, params_in) = (spec.fields, text::ParamsIn::Behind);
        let request = text::Request { common, section: &section, fields, args: &args, consts: &plan.consts, params_in };
        let text::Module { text, bound } = text::module(&request).map_err(Error::Bug)?;
        let (name, width) = (section.name, text::width(&args));
        Ok(Stage { name, text, buffers: bound, op, language, section, width })
    };
    sections.into_iter().filter(|s| s.op() == spec.name).map(stage).collect()
}

impl Stage {
    pub fn language(&self) -> Language {
        self.language
    }
    /// Workgroups (blocks) in x, y and z, and the threads of one. A side of 0: there is nothing to do.
    pub fn geometry(&self, params: &[u8]) -> Result<([u32; 3], u32)> {
        let mut names = kernel_text::names(self.op.spec().fields, params);
        let (grid, most, block) = match self.language {
            #[cfg(feature = "wgpu")]
            Language::Wgsl => {
                names.insert("W", self.width);
                (kernel_text::folded_grid(&self.section, &names), [65_535; 3], workgroup_size(&self.section)?)
            }
            Language::Cuda => {
                let block = kernel_text::eval(self.section.block, &names).map_err(Error::Bug)?;
                (kernel_text::grid(&self.section, &names), [i32::MAX as u64, 65_535, 65_535], block as u32)
            }
        };
        let grid = grid.map_err(Error::Bug)?;
        if grid.iter().zip(most).any(|(side, most)| *side > most) {
            let what = format!("{}: a grid of {grid:?} workgroups, {most:?} is the most", self.name);
            return Err(Error::device(self.language.backend(), what));
        }
        Ok((grid.map(|side| side as u32), block))
    }
}

/// Threads of a workgroup, as the shader says.
#[cfg(feature = "wgpu")]
fn workgroup_size(section: &Section) -> Result<u32> {
    let said = section.text.split("@workgroup_size(").nth(1).and_then(|rest| rest.split(')').next());
    let size = said.and_then(|size| size.trim().parse().ok());
    size.ok_or_else(|| Error::Bug(format!("shader {}: no @workgroup_size of one number", section.name)))
}
