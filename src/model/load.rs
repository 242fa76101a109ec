//! From a model folder to weights on a device, with what is to be trained made ready.
use super::attention::{Attention, Qkv};
use super::block::Block;
use super::experts::Experts;
use super::latent::{Latent, Narrow};
use super::linear::{Linear, Projections, Weight};
use super::lora::{LoraConfig, Rules};
use super::mlp::Mlp;
use super::param::Param;
use super::quantized::{self, Scheme, Stored};
use super::spec::{Bias, ExpertFiles, Head, LinearSpec, MlpKind, NarrowSpec, QkNorm, Sinks, Spec};
use super::{Model, arch, check, lora};
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Tensor, Tensors};
use crate::ops::nf4;
use std::collections::BTreeSet;
use std::path::Path;

mod experts;

/// How weights are held and which of them are trained.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Of activations and unquantized weights.
    pub dtype: DType,
    /// Linear layers of the blocks in NF4 with double quantization.
    pub load_in_4bit: bool,
    /// The same in 8 bits with one scale a row.
    pub load_in_8bit: bool,
    /// An adapter on some linear layers.
    pub lora: Option<LoraConfig>,
    /// The adapter (with its modules_to_save) is trained, or without one every weight.
    pub train: bool,
    /// Of the adapter's first values.
    pub seed: u64,
}

impl LoadOptions {
    /// For reading a model as it is.
    pub fn frozen(dtype: DType) -> LoadOptions {
        LoadOptions { dtype, load_in_4bit: false, load_in_8bit: false, lora: None, train: false, seed: 0 }
    }
    /// The first contradiction, if any.
    fn check(&self, spec: &Spec, stored: Option<Scheme>, folder: &Path) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        let wanted = [(self.load_in_4bit, Scheme::Nf4), (self.load_in_8bit, Scheme::Int8)];
        let wanted: Vec<Scheme> = wanted.into_iter().filter(|(on, _)| *on).map(|(_, scheme)| scheme).collect();
        if wanted.len() > 1 {
            return usage("load_in_4bit and load_in_8bit exclude each other: keep one".into());
        }
        if let (Some(stored), Some(wanted)) = (stored, wanted.first())
            && stored != *wanted
        {
            let (stored, wanted) = (stored.name(), wanted.name());
            return usage(format!("{wanted} is asked for, but the checkpoint is {stored}: set it to false"));
        }
        // MXFP4 is how gpt-oss is published: to be trained in full, it is taken as the floats it stands for
        let frozen = stored.is_some_and(|stored| stored != Scheme::Mxfp4);
        if self.full() && (frozen || !wanted.is_empty()) {
            let what = "a quantized base is frozen, so there is nothing to train: add a [lora] table, or take an \
                        unquantized model without load_in_4bit and load_in_8bit";
            return usage(what.into());
        }
        let odd = |linear: &LinearSpec| !(linear.O() * linear.C).is_multiple_of(nf4::BLOCK);
        if self.load_in_4bit && (0..spec.layers).flat_map(|l| spec.experts(l)).any(|linear| odd(&linear)) {
            return usage(format!("load_in_4bit wants experts of a multiple of {} values", nf4::BLOCK));
        }
        if self.dtype.size() == 2 && [spec.C, spec.F, spec.D / 2, spec.A / 2].iter().any(|n| n % 2 == 1) {
            let what = format!("hidden {}, ffn {}, head {}", spec.C, spec.F, spec.D);
            return usage(format!(
                "16-bit dtypes want even sizes and head sizes in fours ({what}): use dtype = \"float32\""
            ));
        }
        let rows = spec.latent.as_ref().map_or(Vec::new(), |latent| latent.rows(spec));
        if let Some(odd) = rows.iter().find(|row| self.dtype.size() == 2 && *row % 2 == 1) {
            let what = format!("16-bit dtypes want even rows in latent attention, got one of {odd}");
            return usage(format!("{what}: use dtype = \"float32\""));
        }
        if let Some(moe) = spec.moe.as_ref().filter(|moe| self.dtype.size() == 2 && moe.E % 2 == 1) {
            let what = format!("16-bit dtypes want an even number of experts, got {}", moe.E);
            return usage(format!("{what}: use dtype = \"float32\""));
        }
        if let Some(config) = &self.lora {
            let rules = Rules::new(config, folder)?;
            stacked_stay(spec, &rules)?;
            rules.check(&linear_names(spec))?;
            self.check_saved(config, spec, folder)?;
        }
        Ok(())
    }
    /// Every module to save is there, and none of them is an expert.
    fn check_saved(&self, config: &LoraConfig, spec: &Spec, folder: &Path) -> Result<()> {
        let mut modules: Vec<String> = spec.weights().iter().map(|w| lora::module_of(&w.name).to_string()).collect();
        modules.push(spec.names.head.into());
        let alone = |name: &String| LoraConfig { modules_to_save: vec![name.clone()], ..LoraConfig::default() };
        if let Some(name) = config.modules_to_save.iter().find(|name| !modules.iter().any(|m| alone(name).saves(m))) {
            let known: BTreeSet<_> = modules.iter().filter_map(|m| m.rsplit('.').next()).collect();
            let what = format!("no module is called `{name}`; there are {known:?}");
            return Err(config.error(folder, "modules_to_save", what));
        }
        let of_layer = |l: usize| spec.experts(l).into_iter().flat_map(move |e| spec.expert_names(l, e.module));
        let mut names = (0..spec.layers).flat_map(of_layer);
        match names.find(|name| config.saves(name)) {
            None => Ok(()),
            Some(name) => {
                let what =
                    format!("experts are not trained in full beside an adapter, and `{name}` is one: adapt them");
                Err(config.error(folder, "modules_to_save", what))
            }
        }
    }
    /// Every weight is trained.
    fn full(&self) -> bool {
        self.train && self.lora.is_none()
    }
    /// The adapter has a copy of this module of its own.
    fn saves(&self, module: &str) -> bool {
        self.lora.as_ref().is_some_and(|c| c.saves(module))
    }
}

/// Experts that are one tensor, and their router, are no modules: PEFT has no adapter for them but by `target_parameters`.
fn stacked_stay(spec: &Spec, rules: &Rules) -> Result<()> {
    let stacked = spec.moe.as_ref().filter(|moe| moe.files == ExpertFiles::Stacked && !rules.all_linear());
    for module in stacked.into_iter().flat_map(|moe| [moe.router, moe.gate, moe.up, moe.down]) {
        for layer in 0..spec.layers {
            if rules.targets(&spec.names.of(layer, module))? {
                let what =
                    format!("adapters on `{module}` of {} are not supported: it is no linear layer", spec.model_type);
                let hint = "name q_proj, k_proj, v_proj, o_proj, or use \"all-linear\"";
                return Err(rules.error("target_modules", format!("{what}; {hint}")));
            }
        }
    }
    Ok(())
}

fn linear_names(spec: &Spec) -> Vec<String> {
    let stacked = spec.moe.as_ref().is_some_and(|moe| moe.files == ExpertFiles::Stacked);
    let of_layer = |l: usize| {
        let linears = spec.linears(l).into_iter().filter(|linear| !(stacked && is_router(spec, linear.module)));
        let experts = if stacked { Vec::new() } else { spec.experts(l) };
        let experts = experts.into_iter().flat_map(move |linear| spec.expert_names(l, linear.module));
        linears.map(move |linear| spec.names.of(l, linear.module)).chain(experts)
    };
    (0..spec.layers).flat_map(of_layer).collect()
}

/// Sizes of what is quantized while it loads: linear layers and experts, but no routers.
fn sizes(spec: &Spec) -> impl Iterator<Item = usize> {
    let of_layer = |l| {
        let linears = spec.linears(l).into_iter().filter(|linear| !is_router(spec, linear.module));
        linears.chain(spec.experts(l)).map(|linear| linear.O() * linear.C)
    };
    (0..spec.layers).flat_map(of_layer)
}

/// Whether this module of a layer chooses experts.
fn is_router(spec: &Spec, module: &str) -> bool {
    spec.moe.as_ref().is_some_and(|moe| moe.router == module)
}

impl Model {
    /// Loads a Hugging Face folder: `config.json` and `model.safetensors` or its shards.
    pub fn load(b: &dyn Backend, folder: &Path, options: &LoadOptions) -> Result<Model> {
        let (spec, stored) = (arch::read_spec(folder)?, quantized::scheme(folder)?);
        options.check(&spec, stored, folder)?;
        let tensors = Tensors::open_folder(folder, "model")?;
        check::first(check::weights(&spec, stored, &tensors), folder)?;
        // a quantized checkpoint says itself which layers stay floats
        let quantize = (options.load_in_4bit && stored.is_none(), options.load_in_8bit && stored.is_none());
        let rules = options.lora.as_ref().map(|config| Rules::new(config, folder)).transpose()?;
        Loader { b, tensors: &tensors, options, rules, quantize, spec: &spec, staging: None }.model(spec.clone())
    }
}

struct Loader<'a> {
    b: &'a dyn Backend,
    tensors: &'a Tensors,
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
    fn model(mut self, spec: Spec) -> Result<Model> {
        let full = self.options.full();
        let (embed, head) = (spec.names.embed, spec.names.head);
        let (own_embed, own_head) = (self.options.saves(embed), self.options.saves(head));
        let train = |own| full || self.options.train && own;
        let (train_embed, train_head) = (train(own_embed), train(own_head));
        let shape = [spec.V, spec.C];
        let file = |module: &str| format!("{module}.weight");
        let embed_param = self.param(&file(embed), &file(embed), &shape, train_embed)?;
        let blocks = (0..spec.layers).map(|l| self.block(l)).collect::<Result<Vec<_>>>()?;
        let final_norm = self.param(&file(spec.names.final_norm), &file(spec.names.final_norm), &[spec.C], full)?;
        // As PEFT: a module to save is a copy of its own, which unties a tied head.
        let untie = spec.head == Head::Tied && (own_embed || own_head);
        let head_param = match spec.head {
            Head::Own => Some(self.param(&file(head), &file(head), &shape, train_head)?),
            Head::Tied if untie => Some(self.param(&file(embed), &file(head), &shape, train_head)?),
            Head::Tied => None,
        };
        if let Some(staging) = self.staging {
            self.b.free(staging);
        }
        let lora = self.options.lora.clone();
        Ok(Model { spec, dtype: self.options.dtype, embed: embed_param, blocks, final_norm, head: head_param, lora })
    }

    /// The tensor `from` as the parameter `name`; trained if so said, or if the adapter saves its module.
    fn param(&self, from: &str, name: &str, shape: &[usize], train: bool) -> Result<Param> {
        let train = train || self.options.train && self.options.saves(lora::module_of(name));
        let stored = quantized::find(self.tensors, from, shape)?;
        let mut param = Param::zeros(self.b, name, shape, self.options.dtype)?;
        match &stored {
            Stored::Float(tensor) if tensor.float() == Some(self.options.dtype) => {
                param.set_bytes(self.b, 0, tensor.bytes)?;
                if train {
                    param.unfreeze(self.b)?;
                }
            }
            // where the model has no quantized form for it (a head in 4 bits), its exact values
            _ => {
                if train {
                    param.unfreeze(self.b)?;
                }
                param.set(self.b, &stored.to_f32())?;
            }
        }
        Ok(param)
    }

    fn block(&mut self, layer: usize) -> Result<Block> {
        let (s, n) = (self.spec, &self.spec.names);
        Ok(Block {
            kind: s.kind_of[layer],
            pre_norms: self.norms(layer, [n.attention_norm, n.mlp_norm], s.norm_place.before())?,
            post_norms: self.norms(layer, [n.attention_post_norm, n.mlp_post_norm], s.norm_place.after())?,
            attention: Attention {
                head_norms: self.norms(layer, [n.q_norm, n.k_norm], s.qk_norm != QkNorm::Absent)?,
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
        let gate_up = self.projections(layer, gate_up)?;
        Ok(Mlp::Dense { gate_up, down: Box::new(self.linear(layer, down)?) })
    }

    /// Two norms, if they are there; their lengths are as the spec has them.
    fn norms(&self, layer: usize, modules: [&str; 2], there: bool) -> Result<Option<[Param; 2]>> {
        if !there {
            return Ok(None);
        }
        Ok(Some([self.norm(layer, modules[0])?, self.norm(layer, modules[1])?]))
    }

    fn norm(&self, layer: usize, module: &str) -> Result<Param> {
        let len = self.spec.norms().iter().find(|(name, _)| *name == module).map(|(_, len)| *len);
        let len = len.ok_or_else(|| Error::Bug(format!("the spec has no norm `{module}`")))?;
        let name = format!("{}.weight", self.spec.names.of(layer, module));
        self.param(&name, &name, &[len], self.options.full())
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
        Ok(Narrow { norm: self.norm(layer, narrow.norm)?, down: self.linear(layer, narrow.down)? })
    }

    fn projections(&mut self, layer: usize, modules: Vec<LinearSpec>) -> Result<Projections> {
        modules.into_iter().map(|module| self.linear(layer, module)).collect::<Result<_>>().map(Projections)
    }

    fn linear(&mut self, layer: usize, module: LinearSpec) -> Result<Linear> {
        let (full, router) = (self.options.full(), is_router(self.spec, module.module));
        let (name, O, C) = (self.spec.names.of(layer, module.module), module.O(), module.C);
        let quantize = if router || self.options.saves(&name) { (false, false) } else { self.quantize };
        let weight = self.weight(&format!("{name}.weight"), &[O, C], quantize)?;
        let bias_name = format!("{name}.bias");
        let bias = match module.bias {
            Bias::Present => Some(self.param(&bias_name, &bias_name, &[O], full)?),
            Bias::Absent => None,
        };
        let mut linear = Linear { name, O, parts: module.parts, C, weight, bias, lora: None };
        if let Some(rules) = &self.rules
            && !(router && rules.all_linear())
            && rules.targets(&linear.name)?
        {
            let (adapter, options) = ((rules.shape(&linear.name)?, rules), self.options);
            lora::attach(self.b, &mut linear, adapter, options.dtype, options.train, options.seed)?;
        }
        Ok(linear)
    }

    /// As the file has it, or quantized on the device from the file's own precision.
    fn weight(&mut self, name: &str, shape: &[usize], quantize: (bool, bool)) -> Result<Weight> {
        if self.options.saves(lora::module_of(name)) {
            return Ok(Weight::Dense(self.param(name, name, shape, false)?));
        }
        let C = shape.last().copied().unwrap_or(1);
        let O = shape.iter().product::<usize>() / C;
        let tensor = match quantized::find(self.tensors, name, shape)? {
            Stored::Nf4(q) => return Ok(Weight::Nf4(q.upload(self.b)?)),
            Stored::Int8(q) => return Ok(Weight::Int8(q.upload(self.b)?)),
            Stored::Mxfp4(q) if !self.options.full() => return Ok(Weight::Mxfp4(q.upload(self.b)?)),
            Stored::Mxfp4(_) => return self.param(name, name, shape, true).map(Weight::Dense),
            Stored::Float(tensor) => tensor,
        };
        match quantize {
            (true, _) => {
                let inp = self.stage(&[tensor], O, C)?;
                quantized::quantize_nf4(self.b, &inp).map(Weight::Nf4)
            }
            (_, true) => {
                let inp = self.stage(&[tensor], O, C)?;
                quantized::quantize_int8(self.b, &inp, O, C).map(Weight::Int8)
            }
            _ => Ok(Weight::Dense(self.param(name, name, shape, self.options.full())?)),
        }
    }

    /// Tensors [O, C] of one type on the device, one after the other, in memory that the next ones reuse.
    fn stage(&mut self, tensors: &[Tensor], O: usize, C: usize) -> Result<Buf> {
        let staged: Vec<_> = tensors.iter().map(|tensor| quantized::staged(tensor, C)).collect();
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
        for (i, (_, bytes)) in staged.iter().enumerate() {
            self.b.upload(&mut view.view(i * P, P), bytes)?;
        }
        Ok(view)
    }
}
