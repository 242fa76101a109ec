//! From a model folder to weights on a device, with what is to be trained made ready.
use super::attention::{Attention, Qkv};
use super::block::Block;
use super::experts::Experts;
use super::fp8::{self, Compute};
use super::latent::{Latent, Narrow};
use super::layout::Layout;
use super::linear::{Linear, Projections, Weight};
use super::lora::{Init, LoraConfig, Rules, pissa};
use super::mlp::Mlp;
use super::norm::NormParams;
use super::param::Param;
use super::quantized::{self, Floats, Scheme, Stored};
use super::spec::{
    Bias, Gating, Head, LinearSpec, MlpKind, NarrowSpec, NormKind, NormSpec, Positions, QkNorm, Sinks, Spec,
    WeightLayout,
};
use super::streamed::{Place, Streamed};
use super::table::Table;
use super::token_rows::{self, TokenRows};
use super::weights::Weights;
use super::{Model, arch, check, lora};
use crate::backend::{Backend, Buf, Charge, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::path::Path;

mod adapted;
mod experts;
mod options;
mod tables;
pub use options::LoadOptions;

/// Sizes of what is quantized while it loads: linear layers and experts, but no routers.
fn sizes(spec: &Spec) -> impl Iterator<Item = usize> {
    let of_layer = |l| {
        let linears = spec.linears(l).into_iter().filter(|linear| !is_router(spec, linear.module));
        linears.chain(spec.experts(l)).map(|linear| linear.O() * linear.C)
    };
    (0..spec.layers).flat_map(of_layer)
}

/// Whether this module of a layer chooses experts.
pub(super) fn is_router(spec: &Spec, module: &str) -> bool {
    spec.moe.as_ref().is_some_and(|moe| moe.router == module)
}

impl Model {
    /// Loads a Hugging Face folder (`config.json` and `model.safetensors` or its shards), or a GGUF file.
    pub fn load(b: &dyn Backend, folder: &Path, options: &LoadOptions) -> Result<Model> {
        let (spec, stored) = (arch::read_spec(folder)?, quantized::scheme(folder)?);
        options.check(&spec, stored, folder)?;
        // the blocks of a GGUF file lie as the device has them
        if stored.is_some_and(|stored| stored != Scheme::Gguf) && spec.layout != WeightLayout::Rows {
            let what = format!("quantized checkpoints of {} are not supported yet", spec.model_type);
            let what = format!("{what}: take the unquantized model and load_in_4bit or load_in_8bit");
            return Err(Error::content(folder.join("config.json"), "quantization_config", what));
        }
        // a rehearsal can do without weights
        let tensors = match b.is_dry() && stored.is_none() && !Weights::are_in(folder)? {
            true => Weights::shapes(folder, &spec, options.dtype)?,
            false => Weights::open(folder, Some(&spec))?,
        };
        check::first(check::weights(&spec, stored, &tensors), folder)?;
        // a quantized checkpoint says itself which layers stay floats
        let quantize = (options.load_in_4bit && stored.is_none(), options.load_in_8bit && stored.is_none());
        let rules = options.lora.as_ref().map(|config| Rules::new(config, folder)).transpose()?;
        let wanted = options.vocab.max(options.lora.as_ref().map_or(0, LoraConfig::vocab));
        if wanted > token_rows::MAX_VOCAB.max(spec.V) {
            let most = token_rows::MAX_VOCAB;
            return Err(Error::Usage(format!("a vocabulary of {wanted} tokens is wanted; one may have {most}")));
        }
        let held = Spec { V: spec.V.max(wanted), ..spec.clone() };
        Loader { b, tensors: &tensors, options, rules, quantize, spec: &spec, staging: None }.model(held, folder)
    }
}

struct Loader<'a> {
    b: &'a dyn Backend,
    tensors: &'a Weights,
    options: &'a LoadOptions,
    /// Of the adapter.
    rules: Option<Rules<'a>>,
    /// Floats of linear layers go into 4 bits, into 8 bits.
    quantize: (bool, bool),
    spec: &'a Spec,
    /// A weight on its way into 4 or 8 bits.
    staging: Option<Buf>,
}

impl Loader<'_> {
    /// `spec`: with as many tokens as the model shall have, where `self.spec` has the files'.
    fn model(mut self, spec: Spec, folder: &Path) -> Result<Model> {
        let full = self.options.full();
        let (embed, head) = (spec.names.embed, spec.names.head);
        let (own_embed, own_head) = (self.options.saves(embed), self.options.saves(head));
        let train = |own| full || self.options.train && own;
        let (train_embed, train_head) = (train(own_embed), train(own_head));
        let file = |module: &str| format!("{module}.weight");
        let [embed_ids, head_ids] = match &self.options.lora {
            Some(config) => token_rows::wanted(config, &spec, folder)?,
            None => [None, None],
        };
        let (dense_embed, dense_head) = (own_embed || embed_ids.is_some(), own_head || head_ids.is_some());
        let tables = Charge::to(self.b, Use::Tables);
        let embed_table = match self.options.places.embed {
            Place::Device => self.table(&file(embed), &file(embed), spec.V, dense_embed, train_embed)?,
            Place::Host => self.host_table(&file(embed), spec.V)?,
        };
        let positions = match spec.positions {
            Positions::Learned => {
                let name = file(spec.names.positions);
                Some(self.param(&name, &name, &[spec.max_positions, spec.C], full)?)
            }
            Positions::Implicit => None,
        };
        drop(tables);
        let mut streamed = (self.options.places.blocks == Place::Host).then(Streamed::default);
        let mut blocks = Vec::new();
        for l in 0..spec.layers {
            let mut block = self.block(l)?;
            if let Some(streamed) = &mut streamed {
                streamed.take(self.b, &mut block)?;
            }
            blocks.push(block);
        }
        let bias = spec.norm == NormKind::Layer(Bias::Present);
        let final_norm = self.norm(&[spec.names.final_norm.to_string()], &[spec.C], bias)?;
        // As PEFT: a module to save is a copy of its own, which unties a tied head.
        let untie = spec.head == Head::Tied && (own_embed || own_head);
        let tables = Charge::to(self.b, Use::Tables);
        let head_table = match spec.head {
            Head::Own => Some(self.table(&file(head), &file(head), spec.V, dense_head, train_head)?),
            Head::Tied if untie => Some(self.table(&file(embed), &file(head), spec.V, own_head, train_head)?),
            Head::Tied => None,
        };
        let bias_name = format!("{head}.bias");
        let head_bias = match spec.head_bias {
            Bias::Present => Some(self.grown(&bias_name, &bias_name, spec.V, train_head)?),
            Bias::Absent => None,
        };
        drop(tables);
        if let Some(staging) = self.staging {
            self.b.free(staging);
        }
        let lora = self.options.lora.clone();
        let rows = |module: &str, ids: Option<&[u32]>, table: &Table| {
            let new = |ids| TokenRows::new(self.b, module, ids, table, spec.C, self.options.train);
            ids.map(new).transpose()
        };
        let embed_rows = rows(embed, embed_ids, &embed_table)?;
        let head_rows = rows(head, head_ids, head_table.as_ref().unwrap_or(&embed_table))?;
        let (dtype, embed, head) = (self.options.dtype, embed_table, head_table);
        Ok(Model {
            spec,
            dtype,
            embed,
            embed_rows,
            positions,
            blocks,
            final_norm,
            head,
            head_rows,
            head_bias,
            lora,
            streamed,
        })
    }

    /// Of a weight, where anybody wants them.
    fn values(&self, stored: &Stored) -> Vec<f32> {
        if self.b.is_dry() { Vec::new() } else { stored.to_f32() }
    }

    /// The tensor `from` as the parameter `name`; trained if so said, or if the adapter saves its module.
    fn param(&self, from: &str, name: &str, shape: &[usize], train: bool) -> Result<Param> {
        self.param_of(from, name, (shape, Layout::Rows), train)
    }

    fn param_of(&self, from: &str, name: &str, (shape, layout): (&[usize], Layout), train: bool) -> Result<Param> {
        let train = train || self.options.train && self.options.saves(lora::module_of(name));
        let stored = self.tensors.find(from, shape)?;
        let mut param = Param::zeros(self.b, name, shape, self.options.dtype)?.laid_out(layout);
        match &stored {
            Stored::Float(floats) if layout == Layout::Rows && floats.dtype == self.options.dtype => {
                param.set_bytes(self.b, 0, &floats.bytes)?;
                if train {
                    param.unfreeze_as(self.b, self.options.training())?;
                }
            }
            // where the model has no quantized form for it (a head in 4 bits), or another order, its exact values
            _ => {
                if train {
                    param.unfreeze_as(self.b, self.options.training())?;
                }
                param.set(self.b, &self.values(&stored))?;
            }
        }
        Ok(param)
    }

    fn block(&mut self, layer: usize) -> Result<Block> {
        let (s, n) = (self.spec, &self.spec.names);
        Ok(Block {
            kind: s.kind_of[layer],
            pre_norms: match s.norm_place.before() {
                true => self.norms(layer, &[n.attention_norm, n.mlp_norm])?,
                false => Vec::new(),
            },
            post_norms: self.two_norms(layer, [n.attention_post_norm, n.mlp_post_norm], s.norm_place.after())?,
            attention: Attention {
                head_norms: self.two_norms(layer, [n.q_norm, n.k_norm], s.qk_norm != QkNorm::Absent)?,
                sinks: match s.sinks {
                    Sinks::PerHead => {
                        let name = n.of(layer, n.sinks);
                        Some(self.param(&name, &name, &[s.H], self.options.full())?)
                    }
                    Sinks::Absent => None,
                },
                qkv: self.qkv(layer)?,
                o: self.linear(layer, s.o())?,
            },
            mlp: self.mlp(layer)?,
        })
    }

    fn mlp(&mut self, layer: usize) -> Result<Mlp> {
        let s = self.spec;
        match s.mlp(layer) {
            MlpKind::Dense => self.dense(layer, s.gate_up(), s.down()),
            MlpKind::Moe => self.moe(layer).map(|moe| Mlp::Moe(Box::new(moe))),
        }
    }

    fn dense(&mut self, layer: usize, gate_up: Vec<LinearSpec>, down: LinearSpec) -> Result<Mlp> {
        let Projections(mut first) = self.projections(layer, gate_up)?;
        let down = Box::new(self.linear(layer, down)?);
        Ok(match self.spec.gating {
            Gating::Gated => Mlp::Dense { gate_up: Projections(first), down },
            Gating::Plain => Mlp::Plain { up: Box::new(first.remove(0)), down },
        })
    }

    /// Those of the modules that the spec has a norm for.
    fn norms(&self, layer: usize, modules: &[&str]) -> Result<Vec<NormParams>> {
        let specs = self.spec.norms();
        let there = modules.iter().filter_map(|module| specs.iter().find(|norm| norm.module == *module));
        let load = |norm: &NormSpec| {
            let (files, shape) = norm.files();
            let names: Vec<String> = files.iter().map(|module| self.spec.names.of(layer, module)).collect();
            self.norm(&names, shape, norm.bias == Bias::Present)
        };
        there.map(load).collect()
    }

    fn two_norms(&self, layer: usize, modules: [&str; 2], there: bool) -> Result<Option<[NormParams; 2]>> {
        if !there {
            return Ok(None);
        }
        let two = <[_; 2]>::try_from(self.norms(layer, &modules)?);
        two.map(Some).map_err(|_| Error::Bug(format!("the spec does not have both norms {modules:?}")))
    }

    /// A norm whose weight is in one file or, with a part for each head, in several.
    fn norm(&self, modules: &[String], shape: &[usize], bias: bool) -> Result<NormParams> {
        let files: Vec<String> = modules.iter().map(|module| format!("{module}.weight")).collect();
        let full = self.options.full();
        let weight = match modules {
            [_] => self.param(&files[0], &files[0], shape, full)?,
            _ => self.many(files, shape)?,
        };
        let bias_name = format!("{}.bias", modules[0]);
        let bias = if bias { Some(self.param(&bias_name, &bias_name, shape, full)?) } else { None };
        Ok(NormParams { weight, bias })
    }

    /// Vectors, one after the other.
    fn many(&self, files: Vec<String>, shape: &[usize]) -> Result<Param> {
        let held = [1, shape.iter().product()];
        let mut param = Param::stack(self.b, files.clone(), shape, held, self.options.dtype)?;
        let saved = files.first().is_some_and(|file| self.options.saves(lora::module_of(file)));
        if self.options.full() || self.options.train && saved {
            param.unfreeze_as(self.b, self.options.training())?;
        }
        for (i, file) in files.iter().enumerate() {
            param.set_part(self.b, i, &self.values(&self.tensors.find(file, shape)?))?;
        }
        Ok(param)
    }

    fn qkv(&mut self, layer: usize) -> Result<Qkv> {
        let s = self.spec;
        let Some(latent) = &s.latent else { return self.projections(layer, s.qkv()).map(Qkv::Projections) };
        Ok(Qkv::Latent(Box::new(Latent {
            q_a: latent.q_a(s).map(|narrow| self.narrow(layer, narrow)).transpose()?,
            q_b: self.linear(layer, latent.q_b(s))?,
            kv_a: self.narrow(layer, latent.kv_a(s))?,
            kv_b: self.linear(layer, latent.kv_b(s))?,
        })))
    }

    fn narrow(&mut self, layer: usize, narrow: NarrowSpec) -> Result<Narrow> {
        Ok(Narrow { norm: self.norms(layer, &[narrow.norm])?.remove(0), down: self.linear(layer, narrow.down)? })
    }

    fn projections(&mut self, layer: usize, modules: Vec<LinearSpec>) -> Result<Projections> {
        modules.into_iter().map(|module| self.linear(layer, module)).collect::<Result<_>>().map(Projections)
    }

    fn linear(&mut self, layer: usize, module: LinearSpec) -> Result<Linear> {
        let router = is_router(self.spec, module.module);
        let full = self.options.full() && !(router && self.options.freeze_router);
        let (name, O, C) = (self.spec.names.of(layer, module.module), module.O(), module.C);
        let quantize = if router || self.options.saves(&name) { (false, false) } else { self.quantize };
        let layout = self.spec.layout_of(module.module);
        let adapted = match &self.rules {
            Some(rules) => !(router && rules.all_linear()) && rules.targets(&name)?,
            None => false,
        };
        // what becomes of the weight is quantized
        let first = if adapted && self.pissa().is_some() { (false, false) } else { quantize };
        let weight = self.weight(&format!("{name}.weight"), (&[O, C], layout), first, full)?;
        let bias_name = format!("{name}.bias");
        let bias = match module.bias {
            Bias::Present => Some(self.param_of(&bias_name, &bias_name, (&[O], layout.of_rows()), full)?),
            Bias::Absent => None,
        };
        let mut linear = Linear { name, O, parts: module.parts, C, weight, bias, lora: None };
        if let Some(rules) = self.rules.as_ref().filter(|_| adapted) {
            let (adapter, options) = ((rules.shape(&linear.name)?, rules), self.options);
            lora::attach(self.b, &mut linear, adapter, options.dtype, options.train, options.seed)?;
            linear.lora = linear.lora.map(|lora| lora.laid_out(layout.of_rows()));
            if let Some(niter) = self.pissa() {
                pissa::start(self.b, &mut linear, niter, (options.seed, quantize), self.tensors.path())?;
            }
        }
        let own = router || self.options.saves(&linear.name);
        if self.options.compute == Compute::Fp8 && !own && fp8::fits(C, &linear.parts) {
            fp8::pack(self.b, &mut linear, self.options.dtype)?;
        }
        Ok(linear)
    }

    /// A new adapter starts as the principal part of its weights, found by so many iterations.
    fn pissa(&self) -> Option<Option<usize>> {
        match self.rules.as_ref()?.init() {
            Init::Pissa { niter } if self.options.train => Some(niter),
            _ => None,
        }
    }

    /// As the file has it, or quantized on the device from the file's own precision.
    fn weight(
        &mut self,
        name: &str,
        (held, layout): (&[usize], Layout),
        quantize: (bool, bool),
        full: bool,
    ) -> Result<Weight> {
        let C = held.last().copied().unwrap_or(1);
        let O = held.iter().product::<usize>() / C;
        let turned = layout.turned([O, C]);
        let shape = if layout == Layout::Rows { held } else { &turned[..] };
        if self.options.saves(lora::module_of(name)) {
            return Ok(Weight::Dense(self.param_of(name, name, (shape, layout), false)?));
        }
        let floats = match self.tensors.find(name, shape)? {
            Stored::Nf4(q) => return Ok(Weight::Nf4(q.upload(self.b)?)),
            Stored::Int8(q) => return Ok(Weight::Int8(q.upload(self.b)?)),
            Stored::Mxfp4(q) if !self.options.full() => return Ok(Weight::Mxfp4(q.upload(self.b)?)),
            Stored::Mxfp4(_) => return self.param(name, name, shape, true).map(Weight::Dense),
            Stored::Gguf(q) => return Ok(Weight::Gguf(q.upload(self.b)?)),
            Stored::Float(floats) => floats,
        };
        match quantize {
            (true, _) => {
                let inp = self.stage(&[floats], (O, C, layout))?;
                quantized::quantize_nf4(self.b, &inp).map(Weight::Nf4)
            }
            (_, true) => {
                let inp = self.stage(&[floats], (O, C, layout))?;
                quantized::quantize_int8(self.b, &inp, O, C).map(Weight::Int8)
            }
            _ => Ok(Weight::Dense(self.param_of(name, name, (shape, layout), full)?)),
        }
    }

    /// Tensors [O, C] of one type on the device, one after the other, in memory that the next ones reuse.
    fn stage(&mut self, tensors: &[Floats], (O, C, layout): (usize, usize, Layout)) -> Result<Buf> {
        let staged: Vec<_> = tensors.iter().map(|floats| quantized::staged(floats, C)).collect();
        let (dtype, P) = (staged[0].0, O * C);
        let len = staged.len() * P;
        let fits = self.staging.as_ref().is_some_and(|s| s.dtype() == dtype && s.len() >= len);
        if !fits {
            if let Some(old) = self.staging.take() {
                self.b.free(old);
            }
            let largest = sizes(self.spec).max().unwrap_or(len);
            self.staging = Some(self.b.alloc(largest.max(len), dtype)?);
        }
        let view = self.staging.as_ref().expect("made above").view(0, len);
        for (i, (dtype, bytes)) in staged.iter().enumerate() {
            let ordered = match layout {
                Layout::Rows => Cow::Borrowed(&**bytes),
                _ => Cow::Owned(layout.to_device(bytes, layout.turned([O, C]), dtype.size())),
            };
            self.b.upload(&mut view.view(i * P, P), &ordered)?;
        }
        Ok(view)
    }
}
