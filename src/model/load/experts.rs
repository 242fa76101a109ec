//! The experts of a layer, which the file names one by one, as one stack.
use super::super::spec::LinearSpec;
use super::{Buf, DType, Experts, Floats, Linear, Loader, Param, Stored, Weight, quantized};
use crate::error::{Error, Result};
use crate::model::linear::GgufWeight;

impl<'a> Loader<'a> {
    /// One module of all experts of a layer.
    pub(super) fn experts(&mut self, layer: usize, linear: LinearSpec) -> Result<Experts> {
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
