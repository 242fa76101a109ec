//! A model with its adapter folded into the weights, one tensor at a time.
//!
//! ```text
//! LoRA    W' = W + s·B·A          s = alpha/r, or alpha/√r when rank-stabilized
//! DoRA    W' = m/‖W + s·B·A‖ ∘ (W + s·B·A), norms of rows
//! trainable_token_indices: the adapter's own rows of embedding and head, which may be more than the base has
//! modules_to_save: the adapter's own copy; that of a tied embedding or head unties them
//! ```
//! Sums are f32, of what the base's codes stand for where it is quantized; a result is rounded once.
use super::peft::{self, AdapterFile};
use crate::backend::{Backend, Scope};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::layout::Layout;
use crate::model::lora::Rules;
use crate::model::quantized::{Floats, Scheme, Stored, StoredMxfp4};
use crate::model::spec::{ExpertFiles, Head, Spec, WeightSpec};
use crate::model::token_rows;
use crate::model::{self, Weights};
use crate::ops::matmul::MatMul;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Values of a weight that a device holds at a time.
const AT_ONCE: usize = 1 << 26;
/// Values that one thread encodes at a time.
const CHUNK: usize = 1 << 16;
pub(super) const LARGEST_F16: f32 = 65504.0;

/// What may have an adapter: a linear module, its sizes, and how its file orders it.
#[derive(Clone, Copy, Debug)]
struct Module {
    O: usize,
    C: usize,
    layout: Layout,
    /// Chooses experts: `all-linear` does not mean it.
    router: bool,
}

pub struct Merged {
    pub folder: PathBuf,
    /// Of what comes out: untied where the adapter has a copy of embedding or head, with more tokens where it has more.
    pub spec: Spec,
    /// Tokens of the base.
    base_V: usize,
    pub scheme: Option<Scheme>,
    weights: Weights,
    adapter: Option<AdapterFile>,
    modules: BTreeMap<String, Module>,
}

/// A weight as it comes out.
enum Found<'a> {
    Stored(Stored<'a>),
    New(Vec<f32>),
}

impl Merged {
    /// Checks the model and its adapter against each other; reads no weight yet.
    pub fn open(folder: &Path, adapter: Option<&Path>) -> Result<Merged> {
        let mut checked = model::check(folder)?;
        let (weights, scheme) = (checked.tensors.take(), checked.scheme);
        let mut spec = checked.spec()?;
        let weights = weights.ok_or_else(|| Error::Bug("a model without a mismatch has weights".into()))?;
        let adapter = adapter.map(peft::open_file).transpose()?;
        let own = |module: &str| adapter.as_ref().is_some_and(|adapter| adapter.config.saves(module));
        if spec.head == Head::Tied && (own(spec.names.embed) || own(spec.names.head)) {
            spec.head = Head::Own;
        }
        let (modules, base_V) = (modules(&spec), spec.V);
        if let Some(file) = &adapter {
            spec.V = file.vocab(&spec)?;
        }
        let merged = Merged { folder: folder.to_path_buf(), spec, base_V, scheme, weights, adapter, modules };
        merged.check()?;
        Ok(merged)
    }

    /// The 16-bit type of the base; bfloat16 where it has none.
    pub fn dtype(&self) -> Result<DType> {
        let embed = [format!("{}.weight", self.spec.names.embed)];
        Ok(match self.weights.find(&embed[0], &[self.base_V, self.spec.C])? {
            Stored::Float(Floats { dtype: dtype @ (DType::F16 | DType::Bf16), .. }) => dtype,
            _ => DType::Bf16,
        })
    }

    /// Whether head and embedding were one weight and are two now.
    pub fn untied(&self) -> Result<bool> {
        Ok(self.spec.head == Head::Own && model::arch::read_spec(&self.folder)?.head == Head::Tied)
    }

    /// Every tensor of the adapter has a place, and every module with an adapter has its tensors.
    fn check(&self) -> Result<()> {
        let Some(adapter) = &self.adapter else { return Ok(()) };
        let rules = Rules::new(&adapter.config, &self.folder)?;
        let mut wanted = BTreeSet::new();
        for (name, module) in &self.modules {
            if rules.targets(name)? && !(module.router && rules.all_linear()) {
                let r = rules.shape(name)?.r;
                adapter.tensors.floats(&peft::side(name, "A"), &[r, module.C])?;
                adapter.tensors.floats(&peft::side(name, "B"), &[module.O, r])?;
                wanted.extend([peft::side(name, "A"), peft::side(name, "B"), peft::magnitude(name)]);
                if adapter.config.use_dora {
                    adapter.magnitude(name, module.O)?;
                }
            }
        }
        for weight in self.spec.weights().into_iter().filter(|w| adapter.config.saves_param(&w.name)) {
            adapter.tensors.floats(&peft::file_name(&weight.name), &weight.shape)?;
            wanted.insert(peft::file_name(&weight.name));
        }
        for (module, ids) in self.token_rows(adapter)? {
            let name = peft::file_name(&format!("{module}{}", token_rows::SUFFIX));
            adapter.tensors.floats(&name, &[ids.len(), self.spec.C])?;
            wanted.insert(name);
        }
        match adapter.tensors.names().find(|name| !wanted.contains(peft::plain_name(name))) {
            Some(extra) => {
                Err(Error::content(adapter.tensors.path(), extra, "the base model has no place for this tensor"))
            }
            None => Ok(()),
        }
    }

    /// Modules of whose rows the adapter has some, with their tokens.
    fn token_rows<'a>(&'a self, adapter: &'a AdapterFile) -> Result<Vec<(&'static str, &'a [u32])>> {
        let wanted = token_rows::wanted(&adapter.config, &self.spec, &self.folder)?;
        let modules = [self.spec.names.embed, self.spec.names.head].into_iter().zip(wanted);
        Ok(modules.filter_map(|(module, ids)| Some((module, ids?))).collect())
    }

    /// A weight with a row per token, where it differs from the base's.
    fn tokens(&self, name: &str, stored: &Stored) -> Result<Option<Vec<f32>>> {
        let names = [self.spec.names.embed, self.spec.names.head];
        let module = name.strip_suffix(".weight").or(name.strip_suffix(".bias")).unwrap_or(name);
        let Some(adapter) = self.adapter.as_ref().filter(|_| names.contains(&module)) else { return Ok(None) };
        let rows = self.token_rows(adapter)?.into_iter().find(|(own, _)| *own == module && name.ends_with(".weight"));
        if rows.is_none() && self.spec.V == self.base_V {
            return Ok(None);
        }
        let (C, mut values) = (self.spec.C, stored.to_f32());
        token_rows::grow(&mut values, if name.ends_with(".bias") { 1 } else { C }, self.spec.V);
        if let Some((_, ids)) = rows {
            let own = adapter
                .tensors
                .floats(&peft::file_name(&format!("{module}{}", token_rows::SUFFIX)), &[ids.len(), C])?;
            let own = Floats::from(own).to_f32();
            for (id, row) in ids.iter().zip(own.chunks(C)) {
                values[*id as usize * C..][..C].copy_from_slice(row);
            }
        }
        Ok(Some(values))
    }

    /// The tensors that come out, and the type that each is stored in where floats are of `dtype`.
    pub fn outlines(&self, dtype: DType) -> Vec<(WeightSpec, DType)> {
        let exact = self.spec.moe.iter().flat_map(|_| (0..self.spec.layers).filter_map(|l| self.choice_bias(l)));
        let exact: BTreeSet<String> = exact.collect();
        let typed = |w: WeightSpec| {
            let own = if exact.contains(&w.name) { DType::F32 } else { dtype };
            (w, own)
        };
        self.spec.weights().into_iter().map(typed).collect()
    }

    /// What adds to the scores of a choice stays f32: transformers keeps it so.
    fn choice_bias(&self, layer: usize) -> Option<String> {
        self.spec.choice_bias(layer).map(|module| self.spec.names.of(layer, module))
    }

    /// A weight's values.
    pub fn values(&self, b: &dyn Backend, weight: &WeightSpec) -> Result<Vec<f32>> {
        Ok(match self.find(b, weight)? {
            Found::New(values) => values,
            Found::Stored(stored) => stored.to_f32(),
        })
    }

    /// A weight that is in MXFP4, as it is.
    pub fn packed_experts(&self, b: &dyn Backend, weight: &WeightSpec) -> Result<Option<StoredMxfp4<'_>>> {
        Ok(match self.find(b, weight)? {
            Found::Stored(Stored::Mxfp4(packed)) => Some(packed),
            _ => None,
        })
    }

    /// A weight's bytes in `dtype`; what the adapter left alone and is stored so already, as it is.
    pub fn bytes(&self, b: &dyn Backend, weight: &WeightSpec, dtype: DType) -> Result<Vec<u8>> {
        let values = match self.find(b, weight)? {
            Found::Stored(Stored::Float(floats)) if floats.dtype == dtype => return Ok(floats.bytes.into_owned()),
            Found::Stored(stored) => stored.to_f32(),
            Found::New(values) => values,
        };
        match values.iter().find(|x| !x.is_finite() || dtype == DType::F16 && x.abs() > LARGEST_F16) {
            None => Ok(encode(dtype, &values)),
            Some(bad) => {
                let what = format!("would hold {bad}, which is no weight in {}: choose another dtype", dtype.name());
                Err(Error::content(&self.folder, &weight.name, what))
            }
        }
    }

    fn find(&self, b: &dyn Backend, weight: &WeightSpec) -> Result<Found<'_>> {
        let name = weight.name.as_str();
        if let Some(adapter) = self.adapter.as_ref().filter(|adapter| adapter.config.saves_param(name)) {
            let own = adapter.tensors.floats(&peft::file_name(name), &weight.shape)?;
            return Ok(Found::Stored(Stored::Float(own.into())));
        }
        let head = format!("{}.weight", self.spec.names.head);
        let per_token =
            [&head, &format!("{}.weight", self.spec.names.embed), &format!("{}.bias", self.spec.names.head)];
        let mut shape = weight.shape.clone();
        if per_token.iter().any(|own| *own == name) {
            shape[0] = self.base_V;
        }
        let stored = match name == head && self.untied()? {
            true => self.weights.find(&format!("{}.weight", self.spec.names.embed), &shape)?,
            false => self.weights.find(name, &shape)?,
        };
        if let Some(values) = self.tokens(name, &stored)? {
            return Ok(Found::New(values));
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        match (&self.adapter, self.modules.get(module)) {
            (Some(adapter), Some(sizes)) if adapter.tensors.contains(&peft::side(module, "A")) => {
                let rules = Rules::new(&adapter.config, &self.folder)?;
                fold(b, stored.to_f32(), adapter, &rules, (module, *sizes)).map(Found::New)
            }
            _ => Ok(Found::Stored(stored)),
        }
    }
}

/// The same bytes as [`DType::encode`], by all cores.
pub(super) fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    values.par_chunks(CHUNK).flat_map_iter(|chunk| dtype.encode(chunk)).collect()
}

/// Every module that PEFT could adapt.
fn modules(spec: &Spec) -> BTreeMap<String, Module> {
    let stacked = spec.moe.as_ref().is_some_and(|moe| moe.files == ExpertFiles::Stacked);
    let router = spec.router().map(|router| router.module);
    let mut all = BTreeMap::new();
    for l in 0..spec.layers {
        for linear in spec.linears(l) {
            let (layout, router) = (spec.layout_of(linear.module), Some(linear.module) == router);
            if !(router && stacked) {
                all.insert(spec.names.of(l, linear.module), Module { O: linear.O(), C: linear.C, layout, router });
            }
        }
        for linear in spec.experts(l).into_iter().filter(|_| !stacked) {
            let module = Module { O: linear.O(), C: linear.C, layout: Layout::Rows, router: false };
            all.extend(spec.expert_names(l, linear.module).into_iter().map(|name| (name, module)));
        }
    }
    all
}

/// The weight of a module in its file's order, with its adapter folded in.
fn fold(
    b: &dyn Backend,
    base: Vec<f32>,
    adapter: &AdapterFile,
    rules: &Rules,
    (name, module): (&str, Module),
) -> Result<Vec<f32>> {
    let Module { O, C, layout, .. } = module;
    let shape = rules.shape(name)?;
    let side = |side: &str, shape: &[usize]| {
        let tensor = adapter.tensors.floats(&peft::side(name, side), shape)?;
        Ok::<_, Error>(Floats::from(tensor).to_f32())
    };
    let (a, bb) = (side("A", &[shape.r, C])?, side("B", &[O, shape.r])?);
    // B, magnitudes and rows of a weight are in one order; only a transposed weight has none of rows
    let turned = layout == Layout::Transposed;
    let mut weight = if turned { layout.to_device(&base, [C, O], 1) } else { base };
    let rows = (AT_ONCE / C).clamp(1, O.max(1));
    for (i, part) in weight.chunks_mut(rows * C).enumerate() {
        let first = i * rows * shape.r;
        add_product(b, part, &bb[first..first + part.len() / C * shape.r], &a, (C, shape.r), shape.scale)?;
    }
    if adapter.config.use_dora {
        rescale(&mut weight, &adapter.magnitude(name, O)?, C);
    }
    Ok(if turned { layout.to_file(&weight, [C, O], 1) } else { weight })
}

/// weight [O, C] += scale·b·a, b [O, r], a [r, C].
fn add_product(
    backend: &dyn Backend,
    weight: &mut [f32],
    b: &[f32],
    a: &[f32],
    (C, r): (usize, usize),
    scale: f32,
) -> Result<()> {
    let (scope, O) = (Scope::new(backend), weight.len() / C);
    let on_device = |values: &[f32]| {
        let mut buf = scope.alloc(values.len(), DType::F32)?;
        backend.upload(&mut buf, bytemuck::cast_slice(values))?;
        Ok::<_, Error>(buf)
    };
    let (mut out, b, a) = (on_device(weight)?, on_device(b)?, on_device(a)?);
    let [I, J, Q] = [O, C, r].map(|n| n as u32);
    backend.matmul_nn_add(&mut out, &b, &a, &MatMul { I, J, Q, ld_out: J, ld_a: Q, ld_b: J, alpha: scale })?;
    weight.copy_from_slice(&backend.download_f32(&out)?);
    Ok(())
}

/// Rows of C values get these lengths.
fn rescale(weight: &mut [f32], lengths: &[f32], C: usize) {
    weight.par_chunks_mut(C).zip(lengths).for_each(|(row, length)| {
        let norm = row.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt();
        let factor = (*length as f64 / norm) as f32;
        row.iter_mut().for_each(|x| *x *= factor);
    });
}
