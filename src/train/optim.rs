//! AdamW over all trained weights, with f32 or block-wise 8-bit moments, gradient norm and clipping.
//!
//! A step: norm of all gradients -> finite? -> each weight moves by its gradient times the clipping factor -> gradients to 0.
use super::flat::{self, Group, Place};
use crate::backend::{Backend, Buf, Charge, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Outline, Tensors, Writer, dtype_of};
use crate::model::Model;
use crate::model::param::Param;
use crate::model::token_rows;
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

/// The moments of a group of weights.
enum Moments {
    F32 { m: Buf, v: Buf },
    U8 { m: Buf, v: Buf, absmax1: Buf, absmax2: Buf },
}

impl Moments {
    fn new(b: &dyn Backend, P: usize, eight_bit: bool) -> Result<Moments> {
        let f32s = |len| b.alloc(len, DType::F32);
        if !eight_bit {
            return Ok(Moments::F32 { m: f32s(P)?, v: f32s(P)? });
        }
        let (blocks, codes) = (P.div_ceil(dyn8::BLOCK), |len| b.alloc(len, DType::U8));
        Ok(Moments::U8 { m: codes(P)?, v: codes(P)?, absmax1: f32s(blocks)?, absmax2: f32s(blocks)? })
    }

    /// One tensor's part of each buffer, by the name it has in a checkpoint.
    fn parts(&self, place: Place) -> Vec<(&'static str, Buf)> {
        let values = |buf: &Buf| buf.view(place.offset, place.len);
        let blocks = |buf: &Buf| buf.view(place.offset / dyn8::BLOCK, place.len.div_ceil(dyn8::BLOCK));
        match self {
            Moments::F32 { m, v } => vec![("exp_avg", values(m)), ("exp_avg_sq", values(v))],
            Moments::U8 { m, v, absmax1, absmax2 } => vec![
                ("state1", values(m)),
                ("state2", values(v)),
                ("absmax1", blocks(absmax1)),
                ("absmax2", blocks(absmax2)),
            ],
        }
    }
}

/// Whose learning rate counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rate {
    Base,
    Embedding,
}

/// What the weights of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    dtype: DType,
    rate: Rate,
    decay: bool,
    eight_bit: bool,
}

pub struct Optimizer {
    hyper: Hyper,
    /// The embeddings' and the head's learning rate, in units of the others'; 1 at first.
    pub embedding_rate: f64,
    /// Steps done.
    pub step: u64,
    groups: Vec<Group<Kind>>,
    /// One per group.
    moments: Vec<Moments>,
    /// One per trained weight, in the model's order.
    places: Vec<Place>,
    partial: Buf,
    norm: Buf,
    scale: Buf,
    map1: Buf,
    map2: Buf,
}

impl Optimizer {
    /// Moves the model's small trained weights together (see `flat`).
    pub fn new(b: &dyn Backend, model: &mut Model, hyper: Hyper) -> Result<Optimizer> {
        let _charge = Charge::to(b, Use::Optimizer);
        let tables = [model.spec.names.embed, model.spec.names.head].map(|module| format!("{module}.weight"));
        let is_table = |param: &Param| tables.contains(&param.name) || param.name.ends_with(token_rows::SUFFIX);
        let rate = |param: &Param| if is_table(param) { Rate::Embedding } else { Rate::Base };
        let kind = |param: &Param| Kind {
            rate: rate(param),
            dtype: param.value.dtype(),
            decay: hyper.decay_all || decays(param),
            eight_bit: hyper.eight_bit && param.value.len() >= MIN_8BIT,
        };
        let (groups, places) = flat::group(b, model, kind)?;
        let moments = groups.iter().map(|g| Moments::new(b, g.grad.len(), g.key.eight_bit)).collect::<Result<_>>()?;
        let partials: usize = groups.iter().map(|g| g.grad.len().div_ceil(gradnorm::BLOCK)).sum();
        Ok(Optimizer {
            hyper,
            embedding_rate: 1.0,
            step: 0,
            groups,
            moments,
            places,
            partial: b.alloc(partials.max(1), DType::F32)?,
            norm: b.alloc(1, DType::F32)?,
            scale: b.alloc(1, DType::F32)?,
            map1: b.alloc_f32(&dyn8::dynamic_map(true), DType::F32)?,
            map2: b.alloc_f32(&dyn8::dynamic_map(false), DType::F32)?,
        })
    }

    /// The norm of all gradients; leaves the clipping factor on the device. Waits.
    pub fn gradient_norm(&mut self, b: &dyn Backend) -> Result<f32> {
        let mut at = 0;
        for Group { grad, .. } in &self.groups {
            let blocks = grad.len().div_ceil(gradnorm::BLOCK);
            b.gradnorm_partial(&mut self.partial.view(at, blocks), grad, &GradNorm { P: grad.len() as u32 })?;
            at += blocks;
        }
        let p = GradNormFinish { P: self.partial.len() as u32, max_norm: self.hyper.max_grad_norm as f32 };
        b.gradnorm_finish(&mut self.norm, &mut self.scale, &self.partial, &p)?;
        Ok(b.download_f32(&self.norm)?[0])
    }

    /// One step at this learning rate; returns the gradient norm before clipping. A norm that is not finite moves nothing.
    pub fn step(&mut self, b: &dyn Backend, lr: f64) -> Result<f32> {
        let norm = self.gradient_norm(b)?;
        if !norm.is_finite() {
            return Err(Error::Stopped(format!("the gradient norm of step {} is {norm}", self.step + 1)));
        }
        self.step += 1;
        for (Group { key, value, grad, master }, moments) in self.groups.iter_mut().zip(&mut self.moments) {
            let decay = if key.decay { self.hyper.weight_decay } else { 0.0 };
            let lr = if key.rate == Rate::Embedding { lr * self.embedding_rate } else { lr };
            let betas = (self.hyper.beta1, self.hyper.beta2);
            let p = AdamW::new(grad.len(), self.step, lr, betas, self.hyper.eps, decay);
            let weight = master.as_mut().unwrap_or(value);
            match moments {
                Moments::F32 { m, v } => b.adamw_step(weight, m, v, grad, &self.scale, &p)?,
                Moments::U8 { m, v, absmax1, absmax2 } => {
                    b.adamw_step_8bit(weight, m, v, absmax1, absmax2, grad, &self.scale, &self.map1, &self.map2, &p)?
                }
            }
            if let Some(master) = master {
                b.cast(value, master)?;
            }
            b.fill(grad, 0.0)?;
        }
        Ok(norm)
    }

    /// Weights and moments to a file, exactly; `load` brings them back bit for bit.
    pub fn save(&self, b: &dyn Backend, model: &Model, file: &Path) -> Result<()> {
        let mut parts: Vec<(String, Buf)> = Vec::new();
        for (param, place) in model.trained().zip(&self.places) {
            let exact = exact(param);
            parts.push((format!("{}.weight", param.name), exact.view(0, exact.len())));
            let moments = self.moments[place.group].parts(*place);
            parts.extend(moments.into_iter().map(|(part, buf)| (format!("{}.{part}", param.name), buf)));
        }
        let outline = |(name, buf): &(String, Buf)| Outline {
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
        for (param, place) in trained.zip(&self.places) {
            for (part, mut buf) in self.moments[place.group].parts(*place) {
                read(format!("{}.{part}", param.name), &mut buf)?;
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

/// transformers' rule: no decay on norms (those of each head are a matrix) and biases; those of stacked experts are matrices, sinks and DoRA's magnitudes are
/// neither.
fn decays(param: &Param) -> bool {
    let neither = [".sinks", ".lora_magnitude_vector"].iter().any(|end| param.name.ends_with(end));
    let norm = |part: &str| part == "norm" || part.ends_with("_norm") || part.ends_with("layernorm");
    neither || param.shape.len() > 1 && !param.name.ends_with("_bias") && !param.name.split('.').any(norm)
}
