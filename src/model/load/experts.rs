//! The experts of a layer, which the file names one by one or stacks itself, as one stack.
use super::super::experts::Layout;
use super::super::layout::Layout as Order;
use super::super::moe::Moe;
use super::super::shared::Shared;
use super::super::spec::{Bias, ExpertFiles, LinearSpec};
use super::{Buf, DType, Experts, Floats, Linear, Loader, Param, Stored, Weight, quantized};
use crate::error::{Error, Result};

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
        param.set(self.b, &self.values(&self.tensors.find(&name, &[E])?))?;
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
            _ => self.stored(files, O, C)?,
        };
        let name = names.first().cloned().unwrap_or_default();
        let stack =
            Linear { name, O: names.len() * O, parts: vec![names.len() * O], C, weight, bias: None, lora: None };
        let mut experts = Experts { names, O, C, layout: Layout::Rows, stack };
        if let Some(rules) = &self.rules
            && let Some(shape) = experts.targeted(rules)?
        {
            if self.pissa().is_some() {
                let what = "\"pissa\" starts from weights of their own, and experts of a layer lie together: take experts out of \
                            target_modules";
                return Err(rules.error("init_lora_weights", what));
            }
            experts.attach(
                (shape, rules.lora_dropout()),
                self.b,
                self.options.dtype,
                self.options.train,
                self.options.seed,
            )?;
        }
        Ok(experts)
    }

    /// One tensor [E, C, O] of the file; packed ones lie as [E, O, C].
    fn stacked(&mut self, layer: usize, linear: LinearSpec) -> Result<Experts> {
        let (O, C) = (linear.O(), linear.C);
        let names = self.spec.expert_names(layer, linear.module);
        let (name, E) = (self.spec.names.of(layer, linear.module), names.len());
        let weight = self.weight(&name, (&[E, C, O], Order::Rows), self.quantize, self.options.full())?;
        let bias_name = format!("{name}_bias");
        let bias = match linear.bias {
            Bias::Present => Some(self.param(&bias_name, &bias_name, &[E, O], self.options.full())?),
            Bias::Absent => None,
        };
        let (layout, rows, columns) = match weight {
            Weight::Mxfp4(_) | Weight::Gguf(_) => (Layout::Rows, E * O, C),
            _ => (Layout::Columns, E * C, O),
        };
        let stack = Linear { name, O: rows, parts: vec![rows], C: columns, weight, bias, lora: None };
        Ok(Experts { names, O, C, layout, stack })
    }

    /// As the files have them.
    fn stored(&self, files: Vec<String>, O: usize, C: usize) -> Result<Weight> {
        let stored = |file: &String| self.tensors.find(file, &[O, C]);
        let all = files.iter().map(stored).collect::<Result<Vec<_>>>()?;
        match quantized::stack(self.b, &all)? {
            Some(weight) => Ok(weight),
            None => self.floats(files, &all, O, C).map(Weight::Dense),
        }
    }

    /// Floats, or the exact values of what has no quantized form as a stack.
    fn floats(&self, files: Vec<String>, all: &[Stored], O: usize, C: usize) -> Result<Param> {
        let dtype = self.options.dtype;
        let mut param = Param::stack(self.b, files, &[O, C], [O, C], dtype)?;
        let exact = |stored: &Stored| matches!(stored, Stored::Float(floats) if floats.dtype == dtype);
        if self.options.full() && !all.iter().all(exact) {
            param.unfreeze_as(self.b, self.options.training())?;
        }
        for (i, stored) in all.iter().enumerate() {
            match stored {
                Stored::Float(floats) if param.train.is_none() && exact(stored) => {
                    param.set_bytes(self.b, i, &floats.bytes)?;
                }
                _ => param.set_part(self.b, i, &self.values(stored))?,
            }
        }
        if self.options.full() {
            param.unfreeze_as(self.b, self.options.training())?;
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
        self.stage(&tensors, (O, C, Order::Rows))
    }

    fn tensors_of(&self, files: &[String], O: usize, C: usize) -> Result<Vec<Floats<'a>>> {
        let floats = |file: &String| match self.tensors.find(file, &[O, C])? {
            Stored::Float(floats) => Ok(floats),
            _ => Err(Error::Bug(format!("{file}: what is stored in few bits is not quantized again"))),
        };
        files.iter().map(floats).collect()
    }
}
