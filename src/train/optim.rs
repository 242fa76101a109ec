//! AdamW over all trained weights, with f32 or block-wise 8-bit moments, gradient norm and clipping.
//!
//! A step: norm of all gradients -> finite? -> each weight moves by its gradient times the clipping factor -> gradients to 0.
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Outline, Tensors, Writer, dtype_of};
use crate::model::Model;
use crate::model::param::Param;
use crate::ops::adamw::AdamW;
use crate::ops::dyn8;
use crate::ops::gradnorm::{self, GradNorm, GradNormFinish};
use std::path::Path;

/// Smaller tensors keep f32 moments, as in bitsandbytes.
const MIN_8BIT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// 0: no clipping.
    pub max_grad_norm: f64,
    /// Moments of larger tensors in 8 bits.
    pub eight_bit: bool,
    /// Decay norms and biases too; transformers' trainer does not, a bare torch optimizer does.
    pub decay_all: bool,
}

/// A weight's moments.
enum Moments {
    F32 { m: Buf, v: Buf },
    U8 { m: Buf, v: Buf, absmax1: Buf, absmax2: Buf },
}

impl Moments {
    fn buffers(&self) -> Vec<(&'static str, &Buf)> {
        match self {
            Moments::F32 { m, v } => vec![("exp_avg", m), ("exp_avg_sq", v)],
            Moments::U8 { m, v, absmax1, absmax2 } => {
                vec![("state1", m), ("state2", v), ("absmax1", absmax1), ("absmax2", absmax2)]
            }
        }
    }
    fn buffers_mut(&mut self) -> Vec<(&'static str, &mut Buf)> {
        match self {
            Moments::F32 { m, v } => vec![("exp_avg", m), ("exp_avg_sq", v)],
            Moments::U8 { m, v, absmax1, absmax2 } => {
                vec![("state1", m), ("state2", v), ("absmax1", absmax1), ("absmax2", absmax2)]
            }
        }
    }
}

pub struct Optimizer {
    hyper: Hyper,
    /// Steps done.
    pub step: u64,
    /// One per trained weight, in the model's order.
    moments: Vec<Moments>,
    partial: Buf,
    norm: Buf,
    scale: Buf,
    map1: Buf,
    map2: Buf,
}

impl Optimizer {
    pub fn new(b: &dyn Backend, model: &Model, hyper: Hyper) -> Result<Optimizer> {
        let (mut moments, mut partials) = (Vec::new(), 0);
        for param in model.trained() {
            let P = param.value.len();
            let blocks = P.div_ceil(dyn8::BLOCK);
            partials += P.div_ceil(gradnorm::BLOCK);
            moments.push(if hyper.eight_bit && P >= MIN_8BIT {
                let (m, v) = (b.alloc(P, DType::U8)?, b.alloc(P, DType::U8)?);
                Moments::U8 { m, v, absmax1: b.alloc(blocks, DType::F32)?, absmax2: b.alloc(blocks, DType::F32)? }
            } else {
                Moments::F32 { m: b.alloc(P, DType::F32)?, v: b.alloc(P, DType::F32)? }
            });
        }
        Ok(Optimizer {
            hyper,
            step: 0,
            moments,
            partial: b.alloc(partials.max(1), DType::F32)?,
            norm: b.alloc(1, DType::F32)?,
            scale: b.alloc(1, DType::F32)?,
            map1: b.alloc_f32(&dyn8::dynamic_map(true), DType::F32)?,
            map2: b.alloc_f32(&dyn8::dynamic_map(false), DType::F32)?,
        })
    }

    /// The norm of all gradients; leaves the clipping factor on the device. Waits.
    pub fn gradient_norm(&mut self, b: &dyn Backend, model: &Model) -> Result<f32> {
        let mut at = 0;
        for train in model.trained().filter_map(|p| p.train.as_ref()) {
            let P = train.grad.len();
            let blocks = P.div_ceil(gradnorm::BLOCK);
            b.gradnorm_partial(&mut self.partial.view(at, blocks), &train.grad, &GradNorm { P: P as u32 })?;
            at += blocks;
        }
        let p = GradNormFinish { P: self.partial.len() as u32, max_norm: self.hyper.max_grad_norm as f32 };
        b.gradnorm_finish(&mut self.norm, &mut self.scale, &self.partial, &p)?;
        Ok(b.download_f32(&self.norm)?[0])
    }

    /// One step at this learning rate; returns the gradient norm before clipping. A norm that is not finite moves nothing.
    pub fn step(&mut self, b: &dyn Backend, model: &mut Model, lr: f64) -> Result<f32> {
        let norm = self.gradient_norm(b, model)?;
        if !norm.is_finite() {
            return Err(Error::Stopped(format!("the gradient norm of step {} is {norm}", self.step + 1)));
        }
        self.step += 1;
        let trained = model.params_mut().filter(|p| p.train.is_some());
        for (param, moments) in trained.zip(&mut self.moments) {
            let decay = if self.hyper.decay_all || decays(param) { self.hyper.weight_decay } else { 0.0 };
            let betas = (self.hyper.beta1, self.hyper.beta2);
            let p = AdamW::new(param.value.len(), self.step, lr, betas, self.hyper.eps, decay);
            let Param { value, train: Some(train), .. } = param else { unreachable!("only trained weights") };
            let weight = train.master.as_mut().unwrap_or(value);
            match moments {
                Moments::F32 { m, v } => b.adamw_step(weight, m, v, &train.grad, &self.scale, &p)?,
                Moments::U8 { m, v, absmax1, absmax2 } => b.adamw_step_8bit(
                    weight,
                    m,
                    v,
                    absmax1,
                    absmax2,
                    &train.grad,
                    &self.scale,
                    &self.map1,
                    &self.map2,
                    &p,
                )?,
            }
            if let Some(master) = &train.master {
                b.cast(value, master)?;
            }
            b.fill(&mut train.grad, 0.0)?;
        }
        Ok(norm)
    }

    /// Weights and moments to a file, exactly; `load` brings them back bit for bit.
    pub fn save(&self, b: &dyn Backend, model: &Model, file: &Path) -> Result<()> {
        let mut parts: Vec<(String, &Buf)> = Vec::new();
        for (param, moments) in model.trained().zip(&self.moments) {
            parts.push((format!("{}.weight", param.name), exact(param)));
            parts.extend(moments.buffers().into_iter().map(|(part, buf)| (format!("{}.{part}", param.name), buf)));
        }
        let outline = |(name, buf): &(String, &Buf)| Outline {
            name: name.clone(),
            dtype: dtype_of(buf.dtype()),
            shape: vec![buf.len()],
        };
        let mut writer = Writer::create(file, parts.iter().map(outline).collect())?;
        for (_, buf) in &parts {
            writer.write(&b.download(buf)?)?;
        }
        writer.finish()
    }

    /// What `save` wrote, for the same model and options.
    pub fn load(&mut self, b: &dyn Backend, model: &mut Model, file: &Path, step: u64) -> Result<()> {
        let tensors = Tensors::open(&[file.to_path_buf()])?;
        let read = |name: String, buf: &mut Buf| {
            let tensor = tensors.get(&name)?;
            if tensor.dtype != dtype_of(buf.dtype()) || tensor.shape != [buf.len()] {
                let want = format!("{} values of {}", buf.len(), buf.dtype().name());
                let got = format!("{:?} of {:?}", tensor.shape, tensor.dtype);
                let what =
                    format!("{want} are wanted, got {got}: another model, adapter or optimizer than the checkpoint's");
                return Err(Error::content(file, name, what));
            }
            b.upload(buf, tensor.bytes)
        };
        let trained = model.params_mut().filter(|p| p.train.is_some());
        for (param, moments) in trained.zip(&mut self.moments) {
            for (part, buf) in moments.buffers_mut() {
                read(format!("{}.{part}", param.name), buf)?;
            }
            let name = format!("{}.weight", param.name);
            let Param { value, train: Some(train), .. } = param else { unreachable!("only trained weights") };
            match &mut train.master {
                Some(master) => {
                    read(name, master)?;
                    b.cast(value, master)?;
                }
                None => read(name, value)?,
            }
        }
        self.step = step;
        Ok(())
    }
}

fn exact(param: &Param) -> &Buf {
    param.train.as_ref().and_then(|t| t.master.as_ref()).unwrap_or(&param.value)
}

/// transformers' rule: no decay on norms and biases.
fn decays(param: &Param) -> bool {
    param.shape.len() > 1
}
