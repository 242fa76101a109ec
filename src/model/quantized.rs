//! Weights in 4 and 8 bits: as bitsandbytes and GGUF store them in checkpoints, and made from floats on the device; gpt-oss's
//! experts in MXFP4, as they are published.
//!
//! ```text
//! 4 bits  X.weight u8 [⌈P/2⌉, 1] · X.weight.quant_map f32 [16] · X.weight.quant_state.bitsandbytes__nf4: JSON
//!         single: X.weight.absmax f32 [⌈P/64⌉]
//!         double: X.weight.absmax u8 [⌈P/64⌉] · .nested_absmax f32 [⌈⌈P/64⌉/256⌉] · .nested_quant_map f32 [256]
//! 8 bits  X.weight i8 [O, C] · X.SCB f32 [O] · X.weight_format: ignored
//! MXFP4   for an X that is [E, C, O] as floats: X_blocks u8 [E, O, C/32, 16] · X_scales u8 [E, O, C/32]
//! ```
//! Nothing is quantized again: codes and scales go to the device as they are.
use super::config::Keys;
use super::gguf::mxfp4 as ggml;
use super::layout::Layout;
use super::linear::{GgufWeight, Int8Weight, Mxfp4Weight, Nf4Scales, Nf4Weight};
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::gguf::{self, Gguf};
use crate::io::safetensors::{Dtype, Tensor, Tensors};
use crate::ops::gguf::Packed;
use crate::ops::{dyn8, int8, mxfp4, nf4};
use serde::Deserialize;
use std::borrow::Cow;
use std::path::Path;

mod stack;
pub use stack::stack;

/// How the linear layers of a checkpoint are stored, where they are no floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Nf4,
    Int8,
    /// ggml's blocks, whatever their formats.
    Gguf,
    /// Experts alone; everything else is floats.
    Mxfp4,
}

impl Scheme {
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Nf4 => "4-bit NF4 (bitsandbytes)",
            Scheme::Int8 => "8-bit (bitsandbytes)",
            Scheme::Gguf => "in blocks (GGUF)",
            Scheme::Mxfp4 => "4-bit MXFP4",
        }
    }
}

/// Of a linear layer's weight, beside the weight: what its 4-bit form adds to the name.
pub const NF4_PARTS: [&str; 5] =
    [".absmax", ".nested_absmax", ".nested_quant_map", ".quant_map", ".quant_state.bitsandbytes__nf4"];
/// What the 8-bit form adds to the module's name.
pub const INT8_PARTS: [&str; 2] = [".SCB", ".weight_format"];
/// What MXFP4 adds to the weight's name.
pub const MXFP4_PARTS: [&str; 2] = ["_blocks", "_scales"];
/// Values of experts that are unpacked at a time: 512 MiB of bf16.
const UNPACKED: usize = 1 << 28;
/// The largest JSON of a quant_state that is read.
const MAX_STATE: usize = 4096;

/// What `quantization_config` of a model folder says, or the formats in a GGUF file; `None`: its weights are floats.
pub fn scheme(folder: &Path) -> Result<Option<Scheme>> {
    if let Some(file) = gguf::find(folder)? {
        let gguf = Gguf::open(&file)?;
        let packed = gguf.names().filter_map(|name| gguf.tensor(name)).any(|tensor| tensor.format.len > 1);
        return Ok(packed.then_some(Scheme::Gguf));
    }
    let file = if folder.is_dir() { folder.join("config.json") } else { folder.to_path_buf() };
    let all = Keys::read(&file)?;
    if all.get("compression_config").is_some() {
        return all.wrong("compression_config", other_method("compressed-tensors"));
    }
    let Some(keys) = all.object("quantization_config")? else { return Ok(None) };
    let method = keys.text("quant_method", Some("bitsandbytes"))?;
    if method == "mxfp4" {
        return Ok(Some(Scheme::Mxfp4));
    }
    if method != "bitsandbytes" {
        return keys.wrong("quant_method", other_method(&method));
    }
    let (four, eight) = (keys.flag("load_in_4bit", false)?, keys.flag("load_in_8bit", false)?);
    match (four, eight) {
        (true, false) => {
            // transformers' own default is fp4
            let kind = keys.text("bnb_4bit_quant_type", Some("fp4"))?;
            if kind != "nf4" {
                return keys.wrong("bnb_4bit_quant_type", other_kind(&kind));
            }
            Ok(Some(Scheme::Nf4))
        }
        (false, true) => Ok(Some(Scheme::Int8)),
        (false, false) => Ok(None),
        (true, true) => keys.wrong("load_in_4bit", "load_in_4bit and load_in_8bit exclude each other"),
    }
}

fn other_method(method: &str) -> String {
    format!(
        "`{method}` checkpoints are not supported: take the unquantized model (load_in_4bit = true quantizes it while it \
         loads), or one in bitsandbytes' 4 or 8 bits"
    )
}

fn other_kind(kind: &str) -> String {
    format!("`{kind}` is not supported, `nf4` is: take the unquantized model and load_in_4bit = true")
}

/// A weight as a file holds it.
pub enum Stored<'a> {
    Float(Floats<'a>),
    Nf4(StoredNf4<'a>),
    Int8(StoredInt8<'a>),
    Mxfp4(StoredMxfp4<'a>),
    Gguf(StoredGguf<'a>),
}

/// Values of a float type, as the model has them.
pub struct Floats<'a> {
    pub dtype: DType,
    pub bytes: Cow<'a, [u8]>,
}

impl Floats<'_> {
    pub fn to_f32(&self) -> Vec<f32> {
        self.dtype.decode(&self.bytes)
    }
}

impl<'a> From<Tensor<'a>> for Floats<'a> {
    fn from(tensor: Tensor<'a>) -> Floats<'a> {
        Floats { dtype: tensor.float().expect("a float tensor"), bytes: tensor.bytes.into() }
    }
}

/// Blocks of P values in all.
pub struct StoredGguf<'a> {
    pub format: Packed,
    pub P: usize,
    pub bytes: Cow<'a, [u8]>,
    /// The blocks' rows are the device's; a folder has another order.
    pub turned: Option<Turned>,
}

/// The order of a folder's values, where its GGUF file has that of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// Its rows and columns, so ordered.
    Rows(Layout, [usize; 2]),
    /// Experts [E, C, O], which are [E, O, C] in blocks.
    Experts { C: usize, O: usize },
}

pub struct StoredNf4<'a> {
    P: usize,
    pub codes: &'a [u8],
    /// f32, or the codes of `nested`.
    pub absmax: &'a [u8],
    pub nested: Option<Nested<'a>>,
}

/// The scales of the scales, their levels and their mean.
pub struct Nested<'a> {
    pub absmax: Tensor<'a>,
    pub map: Tensor<'a>,
    pub offset: f32,
}

pub struct StoredInt8<'a> {
    O: usize,
    C: usize,
    pub codes: &'a [u8],
    pub scb: &'a [u8],
}

pub struct StoredMxfp4<'a> {
    /// E, O, C.
    pub shape: [usize; 3],
    pub codes: Cow<'a, [u8]>,
    pub scales: Cow<'a, [u8]>,
}

/// `quant_state.bitsandbytes__nf4`.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// The weight `name` of the given shape, its parts checked against one another.
pub fn find<'a>(tensors: &'a Tensors, name: &str, shape: &[usize]) -> Result<Stored<'a>> {
    if let ([E, C, O], true) = (shape, tensors.contains(&format!("{name}_blocks"))) {
        return find_mxfp4(tensors, name, [*E, *O, *C]).map(Stored::Mxfp4);
    }
    let tensor = tensors.get(name)?;
    let state = format!("{name}.quant_state.bitsandbytes__");
    if tensors.contains(&format!("{state}nf4")) {
        return find_nf4(tensors, name, shape, tensor).map(Stored::Nf4);
    }
    if tensors.contains(&format!("{state}fp4")) {
        return Err(Error::content(tensors.path(), name, other_kind("fp4")));
    }
    match (tensor.dtype, name.strip_suffix(".weight"), shape) {
        (Dtype::I8, Some(module), [O, C]) => find_int8(tensors, module, (*O, *C), tensor).map(Stored::Int8),
        _ => tensors.floats(name, shape).map(|tensor| Stored::Float(tensor.into())),
    }
}

/// A part of a quantized weight: its type and number of elements must be these.
fn part<'a>(tensors: &'a Tensors, name: &str, dtype: Dtype, len: usize) -> Result<Tensor<'a>> {
    let tensor = tensors.get(name)?;
    let got: usize = tensor.shape.iter().product();
    if tensor.dtype != dtype || got != len {
        let what = format!("{dtype:?} with {len} elements is wanted, got {:?} {:?}", tensor.dtype, tensor.shape);
        return Err(Error::content(tensors.path(), name, what));
    }
    Ok(tensor)
}

fn find_nf4<'a>(tensors: &'a Tensors, name: &str, shape: &[usize], weight: Tensor<'a>) -> Result<StoredNf4<'a>> {
    let wrong = |what: String| Err(Error::content(tensors.path(), name, what));
    let file = format!("{name}.quant_state.bitsandbytes__nf4");
    let bytes = tensors.get(&file)?.bytes;
    let state: State = match bytes.len() {
        ..=MAX_STATE => serde_json::from_slice(bytes).map_err(|e| Error::content(tensors.path(), &file, e))?,
        n => return Err(Error::content(tensors.path(), &file, format!("{n} bytes are too many"))),
    };
    if state.quant_type != "nf4" {
        return wrong(other_kind(&state.quant_type));
    }
    if state.shape != shape {
        return wrong(format!("has shape {:?}, the config wants {shape:?}", state.shape));
    }
    let again = "quantize the original again with `luthier quantize`";
    if state.blocksize != nf4::BLOCK {
        return wrong(format!("has blocks of {} values, {} is wanted: {again}", state.blocksize, nf4::BLOCK));
    }
    let P: usize = shape.iter().product();
    let blocks = P.div_ceil(nf4::BLOCK);
    if weight.bytes.len() != P.div_ceil(2) {
        return wrong(format!(
            "has {} bytes of codes, its shape {shape:?} wants {}",
            weight.bytes.len(),
            P.div_ceil(2)
        ));
    }
    let of = |suffix: &str, dtype, len| part(tensors, &format!("{name}{suffix}"), dtype, len);
    if of(".quant_map", Dtype::F32, 16)?.to_f32().expect("f32") != nf4::LEVELS {
        return wrong(format!("has levels of its own in .quant_map, not NF4's: {again}"));
    }
    let (absmax, nested) = match (state.nested_blocksize, state.nested_offset) {
        (None, None) => (of(".absmax", Dtype::F32, blocks)?, None),
        (Some(dyn8::BLOCK), Some(offset)) => {
            let absmax = of(".nested_absmax", Dtype::F32, blocks.div_ceil(dyn8::BLOCK))?;
            let map = of(".nested_quant_map", Dtype::F32, 256)?;
            (of(".absmax", Dtype::U8, blocks)?, Some(Nested { absmax, map, offset }))
        }
        (size, _) => {
            let what = format!("nested blocks of {size:?} scales and their offset; {} is wanted: {again}", dyn8::BLOCK);
            return wrong(what);
        }
    };
    Ok(StoredNf4 { P, codes: weight.bytes, absmax: absmax.bytes, nested })
}

fn find_int8<'a>(
    tensors: &'a Tensors,
    module: &str,
    (O, C): (usize, usize),
    weight: Tensor<'a>,
) -> Result<StoredInt8<'a>> {
    if *weight.shape != [O, C] {
        let what = format!("has shape {:?}, the config wants {:?}", weight.shape, [O, C]);
        return Err(Error::content(tensors.path(), format!("{module}.weight"), what));
    }
    let scb = part(tensors, &format!("{module}.SCB"), Dtype::F32, O)?;
    Ok(StoredInt8 { O, C, codes: weight.bytes, scb: scb.bytes })
}

fn find_mxfp4<'a>(tensors: &'a Tensors, name: &str, [E, O, C]: [usize; 3]) -> Result<StoredMxfp4<'a>> {
    let groups = C / mxfp4::BLOCK;
    let part = |suffix: &str, shape: &[usize]| {
        let (file, tensor) = (format!("{name}{suffix}"), tensors.get(&format!("{name}{suffix}"))?);
        if tensor.dtype != Dtype::U8 || tensor.shape != shape || !C.is_multiple_of(mxfp4::BLOCK) {
            let (got, block) = (tensor.dtype, mxfp4::BLOCK);
            let what = format!("U8 {shape:?}, blocks of {block} of {C}, is wanted, got {got:?} {:?}", tensor.shape);
            return Err(Error::content(tensors.path(), &file, what));
        }
        Ok(tensor.bytes)
    };
    let [blocks, scales] = MXFP4_PARTS;
    let codes = part(blocks, &[E, O, groups, mxfp4::BLOCK / 2])?;
    Ok(StoredMxfp4 { shape: [E, O, C], codes: codes.into(), scales: part(scales, &[E, O, groups])?.into() })
}

impl Stored<'_> {
    pub fn scheme(&self) -> Option<Scheme> {
        match self {
            Stored::Float(_) => None,
            Stored::Nf4(_) => Some(Scheme::Nf4),
            Stored::Int8(_) => Some(Scheme::Int8),
            Stored::Gguf(_) => Some(Scheme::Gguf),
            Stored::Mxfp4(_) => Some(Scheme::Mxfp4),
        }
    }

    /// The values, decoded on the host.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Stored::Float(floats) => floats.to_f32(),
            Stored::Gguf(q) => q.to_f32(),
            Stored::Mxfp4(q) => q.to_f32(),
            Stored::Int8(q) => {
                let mut out = vec![0.0; q.O * q.C];
                let p = int8::Int8 { O: q.O as u32, C: q.C as u32 };
                int8::int8_dequantize(&mut out, q.codes, &DType::F32.decode(q.scb), &p);
                out
            }
            Stored::Nf4(q) => {
                let mut out = vec![0.0; q.P];
                let P = q.P as u32;
                match &q.nested {
                    None => {
                        nf4::nf4_dequantize(&mut out, q.codes, &DType::F32.decode(q.absmax), &nf4::Nf4 { P });
                    }
                    Some(n) => {
                        let (nested, map) = (DType::F32.decode(n.absmax.bytes), DType::F32.decode(n.map.bytes));
                        let p = nf4::Nf4Double { P, offset: n.offset };
                        nf4::nf4_dequantize_double(&mut out, q.codes, q.absmax, &nested, &map, &p);
                    }
                }
                out
            }
        }
    }
}

/// A new buffer that holds a tensor's bytes.
fn upload(b: &dyn Backend, bytes: &[u8], dtype: DType) -> Result<Buf> {
    let mut buf = b.alloc(bytes.len() / dtype.size(), dtype)?;
    b.upload(&mut buf, bytes)?;
    Ok(buf)
}

impl StoredNf4<'_> {
    pub fn upload(&self, b: &dyn Backend) -> Result<Nf4Weight> {
        let codes = upload(b, self.codes, DType::U8)?;
        let scales = match &self.nested {
            None => Nf4Scales::Single { absmax: upload(b, self.absmax, DType::F32)? },
            Some(n) => Nf4Scales::Double {
                qabsmax: upload(b, self.absmax, DType::U8)?,
                nested: upload(b, n.absmax.bytes, DType::F32)?,
                map: upload(b, n.map.bytes, DType::F32)?,
                offset: n.offset,
            },
        };
        Ok(Nf4Weight { codes, scales })
    }
}

impl StoredInt8<'_> {
    pub fn upload(&self, b: &dyn Backend) -> Result<Int8Weight> {
        Ok(Int8Weight { codes: upload(b, self.codes, DType::U8)?, scb: upload(b, self.scb, DType::F32)? })
    }
}

impl StoredGguf<'_> {
    /// In the order of a folder.
    fn to_f32(&self) -> Vec<f32> {
        let values = self.format.decode(&self.bytes, self.P);
        match self.turned {
            None => values,
            Some(Turned::Rows(layout, shape)) => layout.to_file(&values, shape, 1),
            Some(Turned::Experts { C, O }) => columns(&values, C, O),
        }
    }
    pub fn upload(&self, b: &dyn Backend) -> Result<GgufWeight> {
        Ok(GgufWeight { format: self.format, blocks: upload(b, &self.bytes, DType::U8)? })
    }
}

impl StoredMxfp4<'_> {
    /// [E, C, O], as the floats would be stored.
    fn to_f32(&self) -> Vec<f32> {
        let [E, O, C] = self.shape;
        let mut rows = vec![0.0; E * O * C];
        let p = mxfp4::Mxfp4 { P: rows.len() as u32 };
        mxfp4::mxfp4_dequantize(&mut rows, &self.codes, &self.scales, &p);
        columns(&rows, C, O)
    }

    /// Every `step`th output from `first` on of each expert, in ggml's blocks.
    pub fn rows(&self, first: usize, step: usize) -> Vec<u8> {
        let [E, O, C] = self.shape;
        let blocks = C / mxfp4::BLOCK;
        let row = |i: usize| {
            let (codes, scales) = (i * blocks * (mxfp4::BLOCK / 2), i * blocks);
            ggml::join(&self.codes[codes..][..blocks * (mxfp4::BLOCK / 2)], &self.scales[scales..][..blocks])
        };
        (0..E).flat_map(|e| (first..O).step_by(step).map(move |o| e * O + o)).flat_map(row).collect()
    }

    /// As [E, O, C].
    pub fn upload(&self, b: &dyn Backend) -> Result<Mxfp4Weight> {
        let [E, O, C] = self.shape;
        // parts begin at a word of scales
        let word = 4 / gcd(4, O * C / mxfp4::BLOCK);
        let experts = (UNPACKED / (O * C) / word * word).clamp(word, E.next_multiple_of(word)).max(1);
        Ok(Mxfp4Weight {
            codes: upload(b, &self.codes, DType::U8)?,
            scales: upload(b, &self.scales, DType::U8)?,
            at_once: experts * O * C,
        })
    }
}

/// [E, C, O] of [E, O, C].
fn columns(rows: &[f32], C: usize, O: usize) -> Vec<f32> {
    let at = |i: usize| rows[i / (C * O) * (C * O) + i % O * C + i / O % C];
    (0..rows.len()).map(at).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Quantizes `inp` on the device, with double quantization.
pub fn quantize_nf4(b: &dyn Backend, inp: &Buf) -> Result<Nf4Weight> {
    let P = inp.len();
    let blocks = P.div_ceil(nf4::BLOCK);
    let mut codes = b.alloc(P.div_ceil(2), DType::U8)?;
    let mut absmax = b.alloc(blocks, DType::F32)?;
    b.nf4_quantize(&mut codes, &mut absmax, inp, &nf4::Nf4 { P: P as u32 })?;
    let values = if b.is_dry() { Vec::new() } else { b.download_f32(&absmax)? };
    b.free(absmax);
    let (qabsmax, nested, offset) = match b.is_dry() {
        true => (vec![0; blocks], vec![0.0; blocks.div_ceil(dyn8::BLOCK)], 0.0),
        false => nf4::double_quantize(&values),
    };
    let scales = Nf4Scales::Double {
        qabsmax: upload(b, &qabsmax, DType::U8)?,
        nested: b.alloc_f32(&nested, DType::F32)?,
        map: b.alloc_f32(&dyn8::dynamic_map(true), DType::F32)?,
        offset,
    };
    Ok(Nf4Weight { codes, scales })
}

/// Quantizes `inp` [O, C] on the device.
pub fn quantize_int8(b: &dyn Backend, inp: &Buf, O: usize, C: usize) -> Result<Int8Weight> {
    let (mut codes, mut scb) = (b.alloc(O * C, DType::U8)?, b.alloc(O, DType::F32)?);
    b.int8_quantize(&mut codes, &mut scb, inp, &int8::Int8 { O: O as u32, C: C as u32 })?;
    Ok(Int8Weight { codes, scb })
}

/// What [`quantize_nf4`] and [`quantize_int8`] take of a tensor: its own type, or f32 where 16-bit rows would be odd.
pub fn staged<'a>(floats: &'a Floats, C: usize) -> (DType, Cow<'a, [u8]>) {
    match floats.dtype {
        dtype if dtype.size() == 4 || C.is_multiple_of(2) => (dtype, (&*floats.bytes).into()),
        _ => (DType::F32, DType::F32.encode(&floats.to_f32()).into()),
    }
}
