//! An optimizer's part of a checkpoint: exact weights and states, each tensor by itself, whatever groups they lie in.
use super::Optimizer;
use super::states::Part;
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Outline, Tensors, Writer, dtype_of};
use crate::model::Model;
use crate::model::param::{Param, Train};
use std::path::Path;

impl Optimizer {
    /// Weights and states to a file, exactly; `load` brings them back bit for bit.
    pub fn save(&self, b: &dyn Backend, model: &Model, file: &Path) -> Result<()> {
        if self.is_pending() {
            return Err(Error::Bug("a checkpoint of weights that have not all moved yet".into()));
        }
        let mut parts: Vec<(String, Part)> = Vec::new();
        for (param, place) in model.trained().zip(&self.places) {
            let exact = exact(param);
            parts.push((format!("{}.weight", param.name), Part::Device(exact.view(0, exact.len()))));
            let states = self.states[place.group].parts(*place);
            parts.extend(states.map(|(part, buf)| (format!("{}.{part}", param.name), buf)));
        }
        let outline = |(name, buf): &(String, Part)| Outline {
            name: name.clone(),
            dtype: dtype_of(buf.dtype()),
            shape: vec![buf.len()],
        };
        let mut writer = Writer::create(file, parts.iter().map(outline).collect())?;
        for (name, buf) in &parts {
            let bytes = buf.download(b)?;
            if !is_finite(buf.dtype(), &bytes) {
                return Err(Error::Stopped(format!(
                    "{name} is not finite any more, so nothing was saved; the checkpoints before are good"
                )));
            }
            writer.write(&bytes)?;
        }
        writer.finish()
    }

    /// What `save` wrote, for the same model and options.
    pub fn load(&mut self, b: &dyn Backend, model: &mut Model, file: &Path, step: u64) -> Result<()> {
        let tensors = Tensors::open(&[file.to_path_buf()])?;
        let read = |name: String, part: &mut Part| {
            let tensor = tensors.get(&name)?;
            if tensor.dtype != dtype_of(part.dtype()) || tensor.shape != [part.len()] {
                let want = format!("{} values of {}", part.len(), part.dtype().name());
                let got = format!("{:?} of {:?}", tensor.shape, tensor.dtype);
                let what =
                    format!("{want} are wanted, got {got}: another model, adapter or optimizer than the checkpoint's");
                return Err(Error::content(file, name, what));
            }
            part.upload(b, tensor.bytes)
        };
        let trained = model.params_mut().filter(|p| p.train.is_some());
        for (param, place) in trained.zip(&self.places) {
            for (name, mut part) in self.states[place.group].parts(*place) {
                read(format!("{}.{name}", param.name), &mut part)?;
            }
            let name = format!("{}.weight", param.name);
            let exact = exact(param);
            read(name, &mut Part::Device(exact.view(0, exact.len())))?;
            if let Param { value, train: Some(Train { master: Some(master), .. }), .. } = param {
                b.cast(value, master)?;
            }
        }
        self.step = step;
        Ok(())
    }
}

fn exact(param: &Param) -> &Buf {
    param.train.as_ref().and_then(|t| t.master.as_ref()).unwrap_or(&param.value)
}

/// All of these values are, as far as they are f32 or bf16.
fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    let exponent = f32::INFINITY.to_bits();
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().all(|word| u32::from_le_bytes(*word) & exponent != exponent),
        DType::Bf16 => {
            bytes.as_chunks().0.iter().all(|half| (u16::from_le_bytes(*half) as u32) << 16 & exponent != exponent)
        }
        _ => true,
    }
}
