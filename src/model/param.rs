//! A named weight on the device, and what training it needs.
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::Result;

/// A weight as the forward pass reads it. On the device its rows may be longer and more than in files (adapter ranks are
/// padded to a multiple of 8, with zeros that training leaves zero).
pub struct Param {
    /// As in files.
    pub name: String,
    /// As in files.
    pub shape: Vec<usize>,
    /// Rows and columns on the device.
    held: [usize; 2],
    /// In the model's dtype.
    pub value: Buf,
    pub train: Option<Train>,
}

/// A trained weight's gradient and exact value.
pub struct Train {
    /// f32; accumulates until the optimizer's step.
    pub grad: Buf,
    /// f32, when the model's dtype is another: what the optimizer moves; `value` is its rounding.
    pub master: Option<Buf>,
}

/// `[rows, columns]` of a shape: its last dimension, and all others.
fn matrix(shape: &[usize]) -> [usize; 2] {
    let cols = shape.last().copied().unwrap_or(1);
    [shape.iter().product::<usize>() / cols.max(1), cols]
}

impl Param {
    /// A frozen weight of zeros.
    pub fn zeros(b: &dyn Backend, name: &str, shape: &[usize], dtype: DType) -> Result<Param> {
        Self::zeros_held(b, name, shape, matrix(shape), dtype)
    }

    /// The same, with room for `held` rows and columns on the device.
    pub fn zeros_held(b: &dyn Backend, name: &str, shape: &[usize], held: [usize; 2], dtype: DType) -> Result<Param> {
        let value = b.alloc(held[0] * held[1], dtype)?;
        Ok(Param { name: name.into(), shape: shape.to_vec(), held, value, train: None })
    }

    /// Elements as in files.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Gives it a gradient and, in 16 bits, an f32 master that starts at its value.
    pub fn unfreeze(&mut self, b: &dyn Backend) -> Result<()> {
        if self.train.is_some() {
            return Ok(());
        }
        let len = self.value.len();
        let mut master = None;
        if self.value.dtype() != DType::F32 {
            let mut m = b.alloc(len, DType::F32)?;
            b.cast(&mut m, &self.value)?;
            master = Some(m);
        }
        self.train = Some(Train { grad: b.alloc(len, DType::F32)?, master });
        Ok(())
    }

    /// Sets the weight from values in the file's layout; a master keeps what 16 bits cannot.
    pub fn set(&mut self, b: &dyn Backend, values: &[f32]) -> Result<()> {
        let held = self.pad(values);
        b.upload_f32(&mut self.value, &held)?;
        if let Some(Train { master: Some(master), .. }) = &mut self.train {
            b.upload_f32(master, &held)?;
        }
        Ok(())
    }

    /// Sets the weight from a file's bytes in the weight's own dtype, without a detour.
    pub fn set_bytes(&mut self, b: &dyn Backend, bytes: &[u8]) -> Result<()> {
        assert_eq!(self.held, matrix(&self.shape), "padded weights come as values");
        b.upload(&mut self.value, bytes)
    }

    /// The exact weight (the master if there is one) in the file's layout.
    pub fn get(&self, b: &dyn Backend) -> Result<Vec<f32>> {
        let exact = self.train.as_ref().and_then(|t| t.master.as_ref()).unwrap_or(&self.value);
        Ok(self.unpad(&b.download_f32(exact)?))
    }

    /// The gradient in the file's layout; zeros if frozen.
    pub fn grad(&self, b: &dyn Backend) -> Result<Vec<f32>> {
        match &self.train {
            Some(train) => Ok(self.unpad(&b.download_f32(&train.grad)?)),
            None => Ok(vec![0.0; self.elements()]),
        }
    }

    /// A tensor in the file's layout, laid out as on the device.
    pub fn pad(&self, values: &[f32]) -> Vec<f32> {
        let [rows, cols] = matrix(&self.shape);
        assert_eq!(values.len(), rows * cols, "{}", self.name);
        let mut held = vec![0.0; self.held[0] * self.held[1]];
        for (to, from) in held.chunks_mut(self.held[1]).zip(values.chunks(cols)) {
            to[..cols].copy_from_slice(from);
        }
        held
    }

    fn unpad(&self, held: &[f32]) -> Vec<f32> {
        let [rows, cols] = matrix(&self.shape);
        held.chunks(self.held[1]).take(rows).flat_map(|row| &row[..cols]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn padding_is_invisible_and_a_master_is_exact() {
        let b: &dyn Backend = &Cpu::new();
        let mut p = Param::zeros_held(b, "a", &[2, 3], [4, 8], DType::Bf16).unwrap();
        p.unfreeze(b).unwrap();
        let values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
        p.set(b, &values).unwrap();
        assert_eq!(p.get(b).unwrap(), values);
        assert_eq!(p.elements(), 6);
        let held = b.download_f32(&p.value).unwrap();
        assert_eq!((held[3], held[8], held[16]), (0.0, DType::Bf16.round(0.4), 0.0));
    }
}
