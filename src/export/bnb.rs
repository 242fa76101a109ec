//! bitsandbytes' own layout of a folder, as transformers saves and loads it.
//! Streamed: never more than one tensor and its parts in memory.
use super::full::write_shards;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Dtype, Outline};
use crate::model::spec::Spec;
use crate::ops::{dyn8, nf4};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How the linear layers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NF4 with double quantization.
    Nf4,
    /// 8 bits with one scale a row.
    Int8,
}

/// Their names on a command line.
pub const FORMATS: [&str; 2] = ["bnb-nf4", "bnb-int8"];

impl Format {
    pub fn parse(name: &str) -> Option<Format> {
        match name {
            "bnb-nf4" => Some(Format::Nf4),
            "bnb-int8" => Some(Format::Int8),
            _ => None,
        }
    }
}

/// The tensors that one weight [O, C] becomes, by what they add to the module's name.
pub(super) type Parts = BTreeMap<&'static str, Vec<u8>>;

const STATE: &str = ".weight.quant_state.bitsandbytes__nf4";
/// An offset's digits; blanks fill the rest, so that a tensor's size is known before its values are.
const OFFSET_DIGITS: usize = 25;

/// The tensors of a module's weight, in the order they are written.
pub(super) fn outlines(format: Format, dtype: DType, module: &str, O: usize, C: usize) -> Vec<Outline> {
    let outline =
        |part: &str, dtype, shape: &[usize]| Outline { name: format!("{module}{part}"), dtype, shape: shape.to_vec() };
    let (P, blocks) = (O * C, (O * C).div_ceil(nf4::BLOCK));
    match format {
        Format::Nf4 => vec![
            outline(".weight", Dtype::U8, &[P.div_ceil(2), 1]),
            outline(".weight.absmax", Dtype::U8, &[blocks]),
            outline(".weight.nested_absmax", Dtype::F32, &[blocks.div_ceil(dyn8::BLOCK)]),
            outline(".weight.nested_quant_map", Dtype::F32, &[256]),
            outline(".weight.quant_map", Dtype::F32, &[16]),
            outline(STATE, Dtype::U8, &[state(dtype, O, C, 0.0).len()]),
        ],
        Format::Int8 => vec![
            outline(".weight", Dtype::I8, &[O, C]),
            outline(".SCB", Dtype::F32, &[O]),
            outline(".weight_format", Dtype::U8, &[]),
        ],
    }
}

/// bitsandbytes' description of a 4-bit weight.
fn state(dtype: DType, O: usize, C: usize, offset: f32) -> Vec<u8> {
    let (dtype, block, nested) = (dtype.name(), nf4::BLOCK, dyn8::BLOCK);
    let head = format!(
        "{{\"quant_type\": \"nf4\", \"blocksize\": {block}, \"dtype\": \"{dtype}\", \"shape\": [{O}, {C}], \
         \"nested_blocksize\": {nested}, \"nested_dtype\": \"float32\", \"nested_offset\": "
    );
    let length = head.len() + OFFSET_DIGITS + 1;
    let mut text = format!("{head}{:?}}}", offset as f64).into_bytes();
    text.resize(length, b' ');
    text
}

pub(super) fn nf4_parts(
    dtype: DType,
    (O, C): (usize, usize),
    codes: Vec<u8>,
    qabsmax: Vec<u8>,
    nested: Vec<u8>,
    map: Vec<u8>,
    offset: f32,
) -> Parts {
    BTreeMap::from([
        (".weight", codes),
        (".weight.absmax", qabsmax),
        (".weight.nested_absmax", nested),
        (".weight.nested_quant_map", map),
        (".weight.quant_map", DType::F32.encode(&nf4::LEVELS)),
        (STATE, state(dtype, O, C, offset)),
    ])
}

pub(super) fn int8_parts(codes: Vec<u8>, scb: Vec<u8>) -> Parts {
    // format 0: plain rows
    BTreeMap::from([(".weight", codes), (".SCB", scb), (".weight_format", vec![0])])
}

/// Whether a model of this spec can be stored so.
pub(super) fn check(spec: &Spec) -> Result<()> {
    match spec.moe {
        None => Ok(()),
        Some(_) => Err(Error::Usage(
            "mixtures of experts are not stored in 4 or 8 bits yet; load the unquantized model with load_in_4bit"
                .into(),
        )),
    }
}

/// The linear modules of a spec: name -> [O, C].
pub(super) fn modules(spec: &Spec) -> BTreeMap<String, (usize, usize)> {
    let of = |l: usize| spec.linears(l).into_iter().map(move |m| (spec.names.of(l, m.module), (m.O(), m.C)));
    (0..spec.layers).flat_map(of).collect()
}

/// `quantization_config` as transformers writes it.
pub(super) fn config(format: Format, dtype: DType, spec: &Spec) -> Value {
    let linear = modules(spec);
    // The head stays dense, and so does every matrix that is not among the linear layers.
    let weights = spec.weights();
    let matrices = weights.iter().filter(|w| w.shape.len() == 2).filter_map(|w| w.name.strip_suffix(".weight"));
    let mut skip: BTreeSet<&str> = matrices.filter(|m| !linear.contains_key(*m) && *m != spec.names.embed).collect();
    skip.insert(spec.names.head);
    let (four, eight) = (format == Format::Nf4, format == Format::Int8);
    json!({
        "_load_in_4bit": four,
        "_load_in_8bit": eight,
        "bnb_4bit_compute_dtype": if four { dtype.name() } else { "float32" },
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if four { "nf4" } else { "fp4" },
        "bnb_4bit_use_double_quant": four,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skip,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": eight,
        "quant_method": "bitsandbytes",
    })
}

/// Writes every tensor of `plain`: those of a module in `linear` as the parts that `parts` makes of it, others as
/// `whole` does. Returns the bytes of all.
pub(super) fn write(
    out: &Path,
    plain: Vec<Outline>,
    format: Format,
    dtype: DType,
    linear: &BTreeMap<String, (usize, usize)>,
    whole: impl Fn(&str) -> Result<Vec<u8>>,
    parts: impl Fn(&str, usize, usize) -> Result<Parts>,
) -> Result<u64> {
    let module = |name: &str| name.strip_suffix(".weight").and_then(|m| linear.get_key_value(m));
    let mut all = Vec::new();
    let mut owner: BTreeMap<String, &str> = BTreeMap::new();
    for outline in plain {
        match module(&outline.name) {
            None => all.push(outline),
            Some((name, (O, C))) => {
                let made = outlines(format, dtype, name, *O, *C);
                owner.extend(made.iter().map(|o| (o.name.clone(), name.as_str())));
                all.extend(made);
            }
        }
    }
    let bytes = all.iter().map(|o| o.bytes() as u64).sum();
    // the parts of a weight are written one after another
    let current: RefCell<(String, Parts)> = RefCell::default();
    write_shards(out, all, |tensor| {
        let Some(name) = owner.get(tensor) else { return whole(tensor) };
        let mut current = current.borrow_mut();
        if current.0 != *name {
            let (O, C) = linear[*name];
            *current = (name.to_string(), parts(name, O, C)?);
        }
        current.1.remove(&tensor[name.len()..]).ok_or_else(|| Error::Bug(format!("{tensor} is written twice")))
    })?;
    Ok(bytes)
}
