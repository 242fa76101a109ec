//! The experts of a layer, which the file names one by one or stacks itself, as one stack.
use super::super::experts::Layout;
use super::super::moe::Moe;
use super::super::shared::Shared;
use super::super::spec::{Bias, ExpertFiles, LinearSpec};
use super::{Buf, DType, Experts, Floats, Linear, Loader, Param, Stored, Weight, quantized};
use crate::error::{Error, Result};
use crate::model::linear::GgufWeight;

impl<'a> Loader<'a> {
    pub(super) fn moe(&mut self, layer: usize) -> Result<Moe> {
        let s = self.spec;
        let (Some(router), Some((gate_up, down))) = (s.router(), s.expert()) else {
            return Err(Error::Bug("experts have a router, gate, up and down".into()));
        };
        let shared = s.shared().map(|(gate_up, down, weigh)| {
            let (gate_up, down) = (self.projections(layer, gate_up)?, self.linear(layer, down)?);
            Ok(Box::new(Shared { gate_up, down, weigh: weigh.map(|w| self.linear(layer, w)).transpose()? }))
        });
        Ok(Moe {
            router: self.linear(layer, router)?,
            bias: s.choice_bias(layer).map(|name| self.choice_bias(layer, name)).transpose()?,
            gate_up: gate_up.into_iter().map(|module| self.experts(layer, module)).collect::<Result<_>>()?,
            down: self.experts(layer, down)?,
            shared: shared.transpose()?,
        })
    }

    /// What the choice among experts adds to their scores: f32 whatever the model is, and nothing that a gradient reaches.
    fn choice_bias(&self, layer: usize, module: &str) -> Result<Param> {
        let (name, E) = (self.spec.names.of(layer, module), self.spec.moe.as_ref().map_or(0, |moe| moe.E));
        let mut param = Param::zeros(self.b, &name, &[E], DType::F32)?;
        param.set(self.b, &self.tensors.find(&name, &[E])?.to_f32())?;
        Ok(param)
    }

    /// One module of all experts of a layer.
    pub(super) fn experts(&mut self, layer: usize, linear: LinearSpec) -> Result<Experts> {
        if self.spec.moe.as_ref().is_some_and(|moe| moe.files == ExpertFiles::Stacked) {
            return self.stacked(layer, linear);
        }
        let (O, C) = (linear.O(), linear.C);
        let names = self.spec.expert_names(layer, linear.module);
        let files: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        let weight = match self.quantize {
            (true, _) => {
                let inp = self.staged_stack(&files, O, C)?;
                quantized::quantize_nf4(self.b, &inp).map(Weight::Nf4)?
            }
            (_, true) => {
                let inp = self.staged_stack(&files, O, C)?;
                quantized::quantize_int8(self.b, &inp, files.len() * O, C).map(Weight::Int8)?
            }
            _ => match self.packed_stack(&files, O, C)? {
                Some(packed) => Weight::Gguf(packed),
                None => Weight::Dense(self.stack(files, O, C)?),
            },
        };
        let name = names.first().cloned().unwrap_or_default();
        let stack =
            Linear { name, O: names.len() * O, parts: vec![names.len() * O], C, weight, bias: None, lora: None };
        let mut experts = Experts { names, O, C, layout: Layout::Rows, stack };
        if let Some(config) = &self.options.lora
            && experts.targeted(config)?
        {
            experts.attach(config, self.b, self.options.dtype, self.options.train, self.options.seed)?;
        }
        Ok(experts)
    }

    /// One tensor [E, C, O] of the file; packed ones lie as [E, O, C].
    fn stacked(&mut self, layer: usize, linear: LinearSpec) -> Result<Experts> {
        let (O, C) = (linear.O(), linear.C);
        let names = self.spec.expert_names(layer, linear.module);
        let (name, E) = (self.spec.names.of(layer, linear.module), names.len());
        let weight = self.weight(&name, &[E, C, O], self.quantize)?;
        let bias_name = format!("{name}_bias");
        let bias = match linear.bias {
            Bias::Present => Some(self.param(&bias_name, &bias_name, &[E, O], self.options.full())?),
            Bias::Absent => None,
        };
        let (layout, rows, columns) = match weight {
            Weight::Mxfp4(_) => (Layout::Rows, E * O, C),
            _ => (Layout::Columns, E * C, O),
        };
        let stack = Linear { name, O: rows, parts: vec![rows], C: columns, weight, bias, lora: None };
        Ok(Experts { names, O, C, layout, stack })
    }

    fn stack(&self, files: Vec<String>, O: usize, C: usize) -> Result<Param> {
        let tensors = self.tensors_of(&files, O, C)?;
        let mut param = Param::stack(self.b, files, &[O, C], [O, C], self.options.dtype)?;
        let exact = tensors.iter().all(|floats| floats.dtype == self.options.dtype);
        if self.options.full() && !exact {
            param.unfreeze(self.b)?;
        }
        for (i, floats) in tensors.iter().enumerate() {
            match exact {
                true => param.set_bytes(self.b, i, &floats.bytes)?,
                false => param.set_part(self.b, i, &floats.to_f32())?,
            }
        }
        if self.options.full() {
            param.unfreeze(self.b)?;
        }
        Ok(param)
    }

    /// All of them on the device, one below the other.
    fn staged_stack(&mut self, files: &[String], O: usize, C: usize) -> Result<Buf> {
        let tensors = self.tensors_of(files, O, C)?;
        if let Some(other) = tensors.iter().position(|floats| floats.dtype != tensors[0].dtype) {
            let what = "experts of one layer are stored in different types: save the model in one";
            return Err(Error::content(self.tensors.path(), &files[other], what));
        }
        self.stage(&tensors, O, C)
    }

    fn tensors_of(&self, files: &[String], O: usize, C: usize) -> Result<Vec<Floats<'a>>> {
        let floats = |file: &String| match self.tensors.find(file, &[O, C])? {
            Stored::Float(floats) => Ok(floats),
            Stored::Nf4(_) => Err(self.unsupported(file, 4)),
            Stored::Int8(_) => Err(self.unsupported(file, 8)),
            Stored::Gguf(_) => Err(self.mixed(file)),
            Stored::Mxfp4(_) => Err(Error::Bug(format!("{file}: only stacked experts come in MXFP4"))),
        };
        files.iter().map(floats).collect()
    }

    /// The blocks of all experts as one weight; `None`: the first one's are floats.
    fn packed_stack(&self, files: &[String], O: usize, C: usize) -> Result<Option<GgufWeight>> {
        let (mut all, mut format) = (Vec::new(), None);
        for file in files {
            match self.tensors.find(file, &[O, C])? {
                Stored::Gguf(q) if *format.get_or_insert(q.format) == q.format => all.extend_from_slice(&q.bytes),
                _ if format.is_none() => return Ok(None),
                _ => return Err(self.mixed(file)),
            }
        }
        let mut blocks = self.b.alloc(all.len(), DType::U8)?;
        self.b.upload(&mut blocks, &all)?;
        Ok(format.map(|format| GgufWeight { format, blocks }))
    }

    fn mixed(&self, file: &str) -> Error {
        let what = "experts of one layer are stored in different formats: quantize the model in one";
        Error::content(self.tensors.path(), file, what)
    }

    fn unsupported(&self, file: &str, bits: u32) -> Error {
        let what = format!(
            "expert weights stored in {bits} bits are not supported yet; load the unquantized model with load_in_{bits}bit"
        );
        Error::content(self.tensors.path(), file, what)
    }
}
