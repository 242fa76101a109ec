//! From a model folder to weights on a device, with what is to be trained made ready.
use super::block::{Block, Mlp};
use super::experts::Experts;
use super::linear::{Linear, Nf4Weight, Weight};
use super::lora::LoraConfig;
use super::moe::Moe;
use super::param::Param;
use super::spec::{Bias, Head, Spec};
use super::{Model, arch};
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Tensor, Tensors};
use crate::ops::{dyn8, nf4};
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
        LoadOptions { dtype, load_in_4bit: false, lora: None, train: false, seed: 0 }
    }
    /// The first contradiction, if any.
    fn check(&self, spec: &Spec) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        if self.load_in_4bit && self.full() {
            return usage(
                "load_in_4bit trains an adapter only: add a [lora] table, or set load_in_4bit = false".into(),
            );
        }
        if self.load_in_4bit && quantized(spec).any(|(O, C)| O * C % nf4::BLOCK != 0) {
            return usage(format!("load_in_4bit wants weights of a multiple of {} values", nf4::BLOCK));
        }
        if self.dtype.size() == 2 && [spec.C, spec.F, spec.D / 2].iter().any(|n| n % 2 == 1) {
            let what = format!("hidden {}, ffn {}, head {}", spec.C, spec.F, spec.D);
            return usage(format!(
                "16-bit dtypes want even sizes and head sizes in fours ({what}): use dtype = \"float32\""
            ));
        }
        if let Some(moe) = spec.moe.as_ref().filter(|moe| self.dtype.size() == 2 && moe.E % 2 == 1) {
            return usage(format!(
                "16-bit dtypes want an even number of experts, got {}: use dtype = \"float32\"",
                moe.E
            ));
        }
        if let Some(config) = &self.lora {
            let modules = linear_names(spec);
            config.target_modules.check(&modules).or_else(usage)?;
            let known = [spec.names.embed, spec.names.head];
            if let Some(name) = config.modules_to_save.iter().find(|m| !known.iter().any(|k| saves(m, k))) {
                return usage(format!("lora.modules_to_save: `{name}` is none of embed_tokens, lm_head"));
            }
        }
        Ok(())
    }
    /// Every weight is trained.
    fn full(&self) -> bool {
        self.train && self.lora.is_none()
    }
    /// The adapter has a copy of this module of its own.
    fn saves(&self, module: &str) -> bool {
        self.lora.as_ref().is_some_and(|c| c.modules_to_save.iter().any(|m| saves(m, module)))
    }
}

/// PEFT's suffix rule for modules_to_save.
fn saves(name: &str, module: &str) -> bool {
    module == name || module.ends_with(&format!(".{name}"))
}

fn linear_names(spec: &Spec) -> Vec<String> {
    let of_layer = |l: usize| {
        let experts = spec.experts().into_iter().flatten().flat_map(move |(module, ..)| spec.expert_names(l, module));
        spec.linears().into_iter().map(move |(module, ..)| spec.names.of(l, module)).chain(experts)
    };
    (0..spec.layers).flat_map(of_layer).collect()
}

/// Output and input channels of what `load_in_4bit` quantizes: linear layers and experts, but not routers, as transformers does.
fn quantized(spec: &Spec) -> impl Iterator<Item = (usize, usize)> {
    let linears = spec.linears().into_iter().filter(|(module, ..)| !is_router(spec, module)).map(|(_, O, C, _)| (O, C));
    linears.chain(spec.experts().into_iter().flatten().map(|(_, O, C)| (O, C)))
}

/// Whether it is the module of a layer that chooses experts.
fn is_router(spec: &Spec, module: &str) -> bool {
    spec.moe.as_ref().is_some_and(|moe| moe.router == module)
}

impl Model {
    /// Loads a Hugging Face folder: `config.json` and `model.safetensors` or its shards.
    pub fn load(b: &dyn Backend, folder: &Path, options: &LoadOptions) -> Result<Model> {
        let spec = arch::read_spec(folder)?;
        options.check(&spec)?;
        let tensors = Tensors::open_folder(folder, "model")?;
        check_names(&spec, &tensors)?;
        Loader { b, tensors: &tensors, options, spec: &spec, staging: None }.model(spec.clone())
    }
}

/// Missing, misshapen and unexpected tensors, before anything is allocated.
fn check_names(spec: &Spec, tensors: &Tensors) -> Result<()> {
    let weights = spec.weights();
    for w in &weights {
        tensors.floats(&w.name, &w.shape)?;
    }
    let known: BTreeSet<&str> = weights.iter().map(|w| w.name.as_str()).collect();
    let head = format!("{}.weight", spec.names.head);
    let harmless = |name: &str| name.ends_with("rotary_emb.inv_freq") || name == head;
    match tensors.names().find(|name| !known.contains(name) && !harmless(name)) {
        Some(name) => Err(Error::content(tensors.path(), name, "the config knows no such tensor")),
        None => Ok(()),
    }
}

struct Loader<'a> {
    b: &'a dyn Backend,
    tensors: &'a Tensors,
    options: &'a LoadOptions,
    spec: &'a Spec,
    /// A weight on its way into 4 bits.
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

    /// The tensor `from` as the parameter `name`.
    fn param(&self, from: &str, name: &str, shape: &[usize], train: bool) -> Result<Param> {
        let tensor = self.tensors.floats(from, shape)?;
        let mut param = Param::zeros(self.b, name, shape, self.options.dtype)?;
        if tensor.float() == Some(self.options.dtype) {
            param.set_bytes(self.b, 0, tensor.bytes)?;
            if train {
                param.unfreeze(self.b)?;
            }
        } else {
            if train {
                param.unfreeze(self.b)?;
            }
            param.set(self.b, &tensor.to_f32().expect("floats() gives floats"))?;
        }
        Ok(param)
    }

    fn block(&mut self, layer: usize) -> Result<Block> {
        let full = self.options.full();
        let (names, C) = (self.spec.names.clone(), self.spec.C);
        let norm = |module| {
            let name = format!("{}.weight", names.of(layer, module));
            self.param(&name, &name, &[C], full)
        };
        let (attention_norm, mlp_norm) = (norm(names.attention_norm)?, norm(names.mlp_norm)?);
        let mut linears = Vec::new();
        for linear in self.spec.linears() {
            linears.push(self.linear(layer, linear)?);
        }
        let mut linears = linears.into_iter();
        let mut next = || linears.next().expect("as many as the spec lists");
        let (q, k, v, o) = (next(), next(), next(), next());
        let mlp = match self.spec.experts() {
            None => Mlp::Dense { gate: next(), up: next(), down: next() },
            Some([gate, up, down]) => Mlp::Moe(Moe {
                router: next(),
                gate: self.experts(layer, gate)?,
                up: self.experts(layer, up)?,
                down: self.experts(layer, down)?,
            }),
        };
        Ok(Block { attention_norm, q, k, v, o, mlp_norm, mlp })
    }

    fn linear(&mut self, layer: usize, (module, O, C, bias): (&'static str, usize, usize, Bias)) -> Result<Linear> {
        let (full, router) = (self.options.full(), is_router(self.spec, module));
        let name = self.spec.names.of(layer, module);
        let weight = format!("{name}.weight");
        let weight = if self.options.load_in_4bit && !router {
            Weight::Nf4(self.nf4(&weight, O, C)?)
        } else {
            Weight::Dense(self.param(&weight, &weight, &[O, C], full)?)
        };
        let bias_name = format!("{name}.bias");
        let bias = match bias {
            Bias::Present => Some(self.param(&bias_name, &bias_name, &[O], full)?),
            Bias::Absent => None,
        };
        let mut linear = Linear { name, O, C, weight, bias, lora: None };
        let targeted =
            |c: &&LoraConfig| c.target_modules.matches(&linear.name) && !(router && c.target_modules.all_linear());
        if let Some(config) = self.options.lora.as_ref().filter(targeted) {
            config.attach(self.b, &mut linear, self.options.dtype, self.options.train, self.options.seed)?;
        }
        Ok(linear)
    }

    /// Quantized on the device from the file's own precision.
    fn nf4(&mut self, name: &str, O: usize, C: usize) -> Result<Nf4Weight> {
        let tensor = self.tensors.floats(name, &[O, C])?;
        let inp = self.stage(&[tensor], O * C)?;
        self.quantize(&inp)
    }

    fn quantize(&self, inp: &Buf) -> Result<Nf4Weight> {
        let (b, P) = (self.b, inp.len());
        let blocks = P.div_ceil(nf4::BLOCK);
        let mut codes = b.alloc(P.div_ceil(2), DType::U8)?;
        let mut absmax = b.alloc(blocks, DType::F32)?;
        b.nf4_quantize(&mut codes, &mut absmax, inp, &nf4::Nf4 { P: P as u32 })?;
        let scales = b.download_f32(&absmax)?;
        b.free(absmax);
        let (qabsmax, nested, offset) = nf4::double_quantize(&scales);
        let mut q = b.alloc(blocks, DType::U8)?;
        b.upload(&mut q, &qabsmax)?;
        let nested = b.alloc_f32(&nested, DType::F32)?;
        let map = b.alloc_f32(&dyn8::dynamic_map(true), DType::F32)?;
        Ok(Nf4Weight { codes, qabsmax: q, nested, map, offset })
    }

    /// Tensors of P elements on the device as the file has them, one after the other, in memory that the next ones reuse.
    fn stage(&mut self, tensors: &[Tensor], P: usize) -> Result<Buf> {
        let dtype = tensors[0].float().expect("floats() gives floats");
        let len = tensors.len() * P;
        let fits = self.staging.as_ref().is_some_and(|s| s.dtype() == dtype && s.len() >= len);
        if !fits {
            if let Some(old) = self.staging.take() {
                self.b.free(old);
            }
            let largest = quantized(self.spec).map(|(O, C)| O * C).max().unwrap_or(len);
            self.staging = Some(self.b.alloc(largest.max(len), dtype)?);
        }
        let view = self.staging.as_ref().expect("made above").view(0, len);
        for (i, tensor) in tensors.iter().enumerate() {
            self.b.upload(&mut view.view(i * P, P), tensor.bytes)?;
        }
        Ok(view)
    }
}
