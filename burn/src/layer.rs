//! Linear layers with a LoRA adapter, as Burn modules: over a packed weight (QLoRA) or over floats.
//!
//! y = x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ; W and bias are frozen, A [R, C] and B [O, R] are trained. Hu et al. 2021, arXiv:2106.09685.
use crate::ops::Ops;
use crate::tensor::ours;
use crate::weight::{Format, PackedWeight};
use burn::backend::Dispatch;
use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor, TensorData};
use luthier::Result;
use luthier::io::safetensors::Tensors;
use luthier::model::lora::{LoraConfig, Rules};
use std::path::Path;

/// A and B of one module, and what its config says.
#[derive(Module, Debug)]
pub struct Adapter {
    /// [R, C], PEFT's `lora_A.weight`.
    pub a: Param<Tensor<2>>,
    /// [O, R], PEFT's `lora_B.weight`.
    pub b: Param<Tensor<2>>,
    scale: f64,
    dropout: Dropout,
}

impl Adapter {
    /// An adapter that changes nothing yet, for `module` of [O, C] by that name's rank and alpha: A uniform in ±1/√C (Kaiming with
    /// a = √5), B zero, both in f32 whatever the model's type, as PEFT.
    pub fn new(config: &LoraConfig, module: &str, [o, c]: [usize; 2], device: &Device) -> Result<Adapter> {
        let rules = Rules::new(config, Path::new(module))?;
        if config.use_dora {
            return Err(rules.error("use_dora", "DoRA is not supported here; LoRA and rsLoRA are"));
        }
        let shape = rules.shape(module)?;
        let (bound, f32s) = (1.0 / (c as f64).sqrt(), (device, DType::F32));
        Ok(Adapter {
            a: Param::from_tensor(Tensor::random([shape.r, c], Distribution::Uniform(-bound, bound), f32s)),
            b: Param::from_tensor(Tensor::zeros([o, shape.r], f32s)),
            scale: shape.scale as f64,
            dropout: DropoutConfig::new(config.lora_dropout).init(),
        })
    }

    /// s·(x·Aᵀ)·Bᵀ; x [N, C]. In the type of A and B, and given back in x's.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (a, b, dtype) = (self.a.val(), self.b.val(), x.dtype());
        let x = self.dropout.forward(x).cast(FloatDType::from(a.dtype()));
        let y = Tensor::<2>::from_dispatch(Dispatch::lora(ours(x), ours(a), ours(b), self.scale as f32));
        y.cast(FloatDType::from(dtype))
    }

    /// R.
    pub fn rank(&self) -> usize {
        self.a.lazy_shape()[0]
    }
    /// What the product is multiplied with: alpha/R, or alpha/√R where rank-stabilized.
    pub fn scale(&self) -> f32 {
        self.scale as f32
    }

    /// The same values on the host: A, then B.
    pub(crate) fn values(&self) -> [Vec<f32>; 2] {
        let read = |param: &Param<Tensor<2>>| {
            param.val().into_data().convert::<f32>().try_to_vec().expect("floats were asked for")
        };
        [read(&self.a), read(&self.b)]
    }

    /// Other values, of another rank perhaps; to an optimizer these are the same parameters.
    pub(crate) fn set(&mut self, r: usize, scale: f32, [a, b]: [Vec<f32>; 2]) {
        let put = |param: &Param<Tensor<2>>, values, shape: [usize; 2]| {
            param.clone().map(|old| {
                let new = Tensor::from_data(TensorData::new(values, shape), (&old.device(), old.dtype()));
                new.set_require_grad(old.is_require_grad())
            })
        };
        let (c, o) = (self.a.lazy_shape()[1], self.b.lazy_shape()[0]);
        (self.a, self.b) = (put(&self.a, a, [r, c]), put(&self.b, b, [o, r]));
        self.scale = scale as f64;
    }
}

/// Runs `f` on the rows of x.
fn by_rows<const D: usize>(x: Tensor<D>, f: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<D> {
    let mut dims = x.dims();
    let c = dims[D - 1];
    let y = f(x.reshape([-1, c as i32]));
    dims[D - 1] = y.dims()[1];
    y.reshape(dims)
}

/// A module by its name in the base model, by which `config` says its rank and its scale.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    pub config: &'a LoraConfig,
    pub module: &'a str,
}

/// A linear layer whose weight is packed in 4 or 8 bits, and stays so.
#[derive(Module, Debug)]
pub struct QLoraLinear {
    pub weight: PackedWeight,
    pub bias: Option<Param<Tensor<1>>>,
    pub adapter: Adapter,
}

impl QLoraLinear {
    /// Packs a layer of floats, on its device.
    pub fn from_linear(linear: Linear, format: Format, lora: Named) -> Result<QLoraLinear> {
        let weight = PackedWeight::quantize(linear.weight.val().transpose(), format);
        let device = linear.weight.val().device();
        let adapter = Adapter::new(lora.config, lora.module, weight.dims(), &device)?;
        let bias = linear.bias.map(|bias| bias.set_require_grad(false));
        Ok(QLoraLinear { weight, bias, adapter })
    }

    /// The module of a bitsandbytes checkpoint, [O, C]: its codes and scales as they are.
    pub fn from_safetensors(tensors: &Tensors, lora: Named, shape: [usize; 2], device: &Device) -> Result<QLoraLinear> {
        let weight = PackedWeight::from_safetensors(tensors, &format!("{}.weight", lora.module), shape, device)?;
        let name = format!("{}.bias", lora.module);
        let bias = match tensors.contains(&name) {
            true => {
                let values = tensors.floats(&name, &shape[..1])?.to_f32().expect("floats() gives floats");
                let tensor = Tensor::from_data(TensorData::new(values, [shape[0]]), (device, DType::F32));
                Some(Param::from_tensor(tensor).set_require_grad(false))
            }
            false => None,
        };
        Ok(QLoraLinear { weight, bias, adapter: Adapter::new(lora.config, lora.module, shape, device)? })
    }

    /// x [.., C] to [.., O].
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        by_rows(x, |x| {
            let dtype = FloatDType::from(x.dtype());
            let y = self.weight.linear(x.clone()) + self.adapter.forward(x);
            match &self.bias {
                Some(bias) => y + bias.val().cast(dtype).unsqueeze(),
                None => y,
            }
        })
    }
}

/// A linear layer of floats, frozen.
#[derive(Module, Debug)]
pub struct LoraLinear {
    pub base: Linear,
    pub adapter: Adapter,
}

impl LoraLinear {
    /// The layer's own weight, not a copy.
    pub fn from_linear(linear: Linear, lora: Named) -> Result<LoraLinear> {
        let ([c, o], device) = (linear.weight.val().dims(), linear.weight.val().device());
        Ok(LoraLinear { base: linear.no_grad(), adapter: Adapter::new(lora.config, lora.module, [o, c], &device)? })
    }

    /// x [.., C] to [.., O].
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        by_rows(x, |x| self.base.forward(x.clone()) + self.adapter.forward(x))
    }
}
