//! The experts of a layer, which the file names one by one, as one stack.
use super::super::spec::LinearSpec;
use super::{Experts, Linear, Loader, Nf4Weight, Param, Tensor, Weight};
use crate::error::{Error, Result};

impl<'a> Loader<'a> {
    /// One module of all experts of a layer.
    pub(super) fn experts(&mut self, layer: usize, linear: LinearSpec) -> Result<Experts> {
        let (O, C) = (linear.O(), linear.C);
        let names = self.spec.expert_names(layer, linear.module);
        let files: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        let weight = match self.options.load_in_4bit {
            true => Weight::Nf4(self.nf4_stack(&files, O, C)?),
            false => Weight::Dense(self.stack(files, O, C)?),
        };
        let name = names.first().cloned().unwrap_or_default();
        let stack =
            Linear { name, O: names.len() * O, parts: vec![names.len() * O], C, weight, bias: None, lora: None };
        let mut experts = Experts { names, O, stack };
        if let Some(config) = &self.options.lora
            && experts.targeted(config)?
        {
            experts.attach(config, self.b, self.options.dtype, self.options.train, self.options.seed)?;
        }
        Ok(experts)
    }

    fn stack(&self, files: Vec<String>, O: usize, C: usize) -> Result<Param> {
        let tensors = self.tensors_of(&files, O, C)?;
        let mut param = Param::stack(self.b, files, &[O, C], [O, C], self.options.dtype)?;
        let exact = tensors.iter().all(|tensor| tensor.float() == Some(self.options.dtype));
        if self.options.full() && !exact {
            param.unfreeze(self.b)?;
        }
        for (i, tensor) in tensors.iter().enumerate() {
            match exact {
                true => param.set_bytes(self.b, i, tensor.bytes)?,
                false => param.set_part(self.b, i, &tensor.to_f32().expect("floats() gives floats"))?,
            }
        }
        if self.options.full() {
            param.unfreeze(self.b)?;
        }
        Ok(param)
    }

    fn nf4_stack(&mut self, files: &[String], O: usize, C: usize) -> Result<Nf4Weight> {
        let tensors = self.tensors_of(files, O, C)?;
        if let Some(other) = tensors.iter().position(|tensor| tensor.float() != tensors[0].float()) {
            let what = "experts of one layer are stored in different types: save the model in one";
            return Err(Error::content(self.tensors.path(), &files[other], what));
        }
        let inp = self.stage(&tensors, O * C)?;
        self.quantize(&inp)
    }

    fn tensors_of(&self, files: &[String], O: usize, C: usize) -> Result<Vec<Tensor<'a>>> {
        files.iter().map(|file| self.tensors.floats(file, &[O, C])).collect()
    }
}
