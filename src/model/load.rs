//! From a model folder to weights on a device, with what is to be trained made ready.
use super::block::Block;
use super::linear::{Linear, Weight};
use super::lora::LoraConfig;
use super::param::Param;
use super::quantized::{self, Scheme, Stored};
use super::spec::{Bias, Head, Spec};
use super::{Model, arch, check};
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Tensor, Tensors};
use std::path::Path;

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
    fn check(&self, spec: &Spec, stored: Option<Scheme>) -> Result<()> {
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
        if self.full() && (stored.is_some() || !wanted.is_empty()) {
            let what = "a quantized base is frozen, so there is nothing to train: add a [lora] table, or take an \
                        unquantized model without load_in_4bit and load_in_8bit";
            return usage(what.into());
        }
        if self.dtype.size() == 2 && [spec.C, spec.F, spec.D / 2].iter().any(|n| n % 2 == 1) {
            let what = format!("hidden {}, ffn {}, head {}", spec.C, spec.F, spec.D);
            return usage(format!(
                "16-bit dtypes want even sizes and head sizes in fours ({what}): use dtype = \"float32\""
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
    (0..spec.layers).flat_map(|l| spec.linears().map(|(module, ..)| spec.names.of(l, module))).collect()
}

impl Model {
    /// Loads a Hugging Face folder: `config.json` and `model.safetensors` or its shards.
    pub fn load(b: &dyn Backend, folder: &Path, options: &LoadOptions) -> Result<Model> {
        let (spec, stored) = (arch::read_spec(folder)?, quantized::scheme(folder)?);
        options.check(&spec, stored)?;
        let tensors = Tensors::open_folder(folder, "model")?;
        check::first(check::weights(&spec, stored, &tensors), folder)?;
        // a quantized checkpoint says itself which layers stay floats
        let quantize = (options.load_in_4bit && stored.is_none(), options.load_in_8bit && stored.is_none());
        Loader { b, tensors: &tensors, options, quantize, spec: &spec, staging: None }.model(spec.clone())
    }
}

struct Loader<'a> {
    b: &'a dyn Backend,
    tensors: &'a Tensors,
    options: &'a LoadOptions,
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

    /// The tensor `from` as the parameter `name`.
    fn param(&self, from: &str, name: &str, shape: &[usize], train: bool) -> Result<Param> {
        let stored = quantized::find(self.tensors, from, shape)?;
        let mut param = Param::zeros(self.b, name, shape, self.options.dtype)?;
        match &stored {
            Stored::Float(tensor) if tensor.float() == Some(self.options.dtype) => {
                param.set_bytes(self.b, tensor.bytes)?;
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
        let full = self.options.full();
        let (names, C) = (self.spec.names.clone(), self.spec.C);
        let norm = |module| {
            let name = format!("{}.weight", names.of(layer, module));
            self.param(&name, &name, &[C], full)
        };
        let (attention_norm, mlp_norm) = (norm(names.attention_norm)?, norm(names.mlp_norm)?);
        let mut linears = Vec::new();
        for (module, O, C, bias) in self.spec.linears() {
            linears.push(self.linear(names.of(layer, module), O, C, bias)?);
        }
        let Ok([q, k, v, o, gate, up, down]) = <[Linear; 7]>::try_from(linears) else { unreachable!("seven linears") };
        Ok(Block { attention_norm, q, k, v, o, mlp_norm, gate, up, down })
    }

    fn linear(&mut self, name: String, O: usize, C: usize, bias: Bias) -> Result<Linear> {
        let full = self.options.full();
        let weight = self.weight(&format!("{name}.weight"), O, C)?;
        let bias_name = format!("{name}.bias");
        let bias = match bias {
            Bias::Present => Some(self.param(&bias_name, &bias_name, &[O], full)?),
            Bias::Absent => None,
        };
        let mut linear = Linear { name, O, C, weight, bias, lora: None };
        if let Some(config) = self.options.lora.as_ref().filter(|c| c.target_modules.matches(&linear.name)) {
            config.attach(self.b, &mut linear, self.options.dtype, self.options.train, self.options.seed)?;
        }
        Ok(linear)
    }

    /// As the file has it, or quantized on the device from the file's own precision.
    fn weight(&mut self, name: &str, O: usize, C: usize) -> Result<Weight> {
        let tensor = match quantized::find(self.tensors, name, &[O, C])? {
            Stored::Nf4(q) => return Ok(Weight::Nf4(q.upload(self.b)?)),
            Stored::Int8(q) => return Ok(Weight::Int8(q.upload(self.b)?)),
            Stored::Float(tensor) => tensor,
        };
        match self.quantize {
            (true, _) => {
                let inp = self.stage(&tensor, O, C)?;
                quantized::quantize_nf4(self.b, &inp).map(Weight::Nf4)
            }
            (_, true) => {
                let inp = self.stage(&tensor, O, C)?;
                quantized::quantize_int8(self.b, &inp, O, C).map(Weight::Int8)
            }
            _ => Ok(Weight::Dense(self.param(name, name, &[O, C], self.options.full())?)),
        }
    }

    /// The tensor on the device, in memory that the next one reuses.
    fn stage(&mut self, tensor: &Tensor, O: usize, C: usize) -> Result<Buf> {
        let (dtype, bytes) = quantized::staged(tensor, C);
        let fits = self.staging.as_ref().is_some_and(|s| s.dtype() == dtype && s.len() >= O * C);
        if !fits {
            if let Some(old) = self.staging.take() {
                self.b.free(old);
            }
            let largest = self.spec.linears().iter().map(|(_, O, C, _)| O * C).max().unwrap_or(O * C);
            self.staging = Some(self.b.alloc(largest, dtype)?);
        }
        let mut view = self.staging.as_ref().expect("made above").view(0, O * C);
        self.b.upload(&mut view, &bytes)?;
        Ok(view)
    }
}
