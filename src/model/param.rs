//! A named weight on the device, and what training it needs.
use super::layout::Layout;
use crate::backend::{Backend, Buf, Charge, Use};
use crate::dtype::DType;
use crate::error::Result;
use std::cell::Cell;
use std::rc::Rc;

/// A weight as the forward pass reads it. On the device its rows may be longer and more than in files (adapter ranks are
/// padded to a multiple of 8, with zeros that training leaves zero). Weights of equal shape may be one here and many in files:
/// those of the experts of a layer, one after the other.
pub struct Param {
    /// What it is called here, and in files unless it is many.
    pub name: String,
    /// As in files, of one of them.
    pub shape: Vec<usize>,
    /// The names in files, in order.
    parts: Vec<String>,
    /// Rows and columns on the device, of one.
    held: [usize; 2],
    /// The order in files.
    layout: Layout,
    /// In the model's dtype.
    pub value: Buf,
    pub train: Option<Train>,
}

/// A trained weight's gradient and exact value.
pub struct Train {
    /// Accumulates until the optimizer's step; empty where room comes later.
    pub grad: Buf,
    /// Shared with whoever uses the gradient up.
    pub sum: Rc<Cell<Sum>>,
    /// f32, where the optimizer does not move `value` itself: what it moves, and `value` is its rounding.
    pub master: Option<Buf>,
}

/// What a gradient's buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// What is no gradient any more, and counts as zeros.
    Nothing,
    Begun,
}

/// How the weights of a model that is trained as a whole are held, as far as they are matrices; everything else has its gradient
/// and its master in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Training {
    pub gradients: DType,
    pub masters: Masters,
    pub room: Room,
}

/// What the optimizer moves of a weight in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masters {
    F32,
    /// The weight itself, rounded by chance.
    None,
}

/// When gradients get their room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// With the weight.
    Now,
    /// When the optimizer is made, which knows where they shall be.
    Later,
}

impl Default for Training {
    fn default() -> Training {
        Training { gradients: DType::F32, masters: Masters::F32, room: Room::Now }
    }
}

impl Train {
    /// The gradient, to be added to.
    pub fn sum(&mut self, b: &dyn Backend) -> Result<&mut Buf> {
        if self.sum.replace(Sum::Begun) == Sum::Nothing {
            b.fill(&mut self.grad, 0.0)?;
        }
        Ok(&mut self.grad)
    }
}

/// A weight as matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrices {
    pub count: usize,
    /// Rows and columns of one, on the device.
    pub held: [usize; 2],
    /// Outputs and inputs of one.
    pub fan: [usize; 2],
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
        let (name, shape, parts) = (name.to_string(), shape.to_vec(), vec![name.into()]);
        Ok(Param { name, shape, parts, held, layout: Layout::Rows, value, train: None })
    }

    /// The same weight, ordered so in files; the shape stays the file's.
    pub fn laid_out(mut self, layout: Layout) -> Param {
        if self.held == matrix(&self.shape) {
            self.held = layout.turned(self.held);
        }
        self.layout = layout;
        self
    }

    /// Many of the same shape.
    pub fn stack(
        b: &dyn Backend,
        names: Vec<String>,
        shape: &[usize],
        held: [usize; 2],
        dtype: DType,
    ) -> Result<Param> {
        let value = b.alloc(names.len() * held[0] * held[1], dtype)?;
        let name = names.first().cloned().unwrap_or_default();
        Ok(Param { name, shape: shape.to_vec(), parts: names, held, layout: Layout::Rows, value, train: None })
    }

    /// The names in files; each is of `shape`.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(String::as_str)
    }

    /// Elements as in files, of all.
    pub fn elements(&self) -> usize {
        self.parts.len() * self.shape.iter().product::<usize>()
    }

    /// Of how many matrices it is made, one below the other. A file's stack is [E, inputs, outputs].
    pub fn matrices(&self) -> Matrices {
        match self.shape[..] {
            [E, C, O] => Matrices { count: E, held: [self.held[0] / E.max(1), self.held[1]], fan: [O, C] },
            _ => Matrices { count: self.parts.len(), held: self.held, fan: self.layout.turned(matrix(&self.shape)) },
        }
    }

    fn part(&self, buf: &Buf, i: usize) -> Buf {
        let len = self.held[0] * self.held[1];
        buf.view(i * len, len)
    }

    /// Gives it a gradient and, in 16 bits, an f32 master that starts at its value.
    pub fn unfreeze(&mut self, b: &dyn Backend) -> Result<()> {
        self.unfreeze_as(b, Training::default())
    }

    /// The same in another way.
    pub fn unfreeze_as(&mut self, b: &dyn Backend, training: Training) -> Result<()> {
        if self.train.is_some() {
            return Ok(());
        }
        let len = self.value.len();
        let (gradients, masters) =
            if self.is_matrix() { (training.gradients, training.masters) } else { (DType::F32, Masters::F32) };
        let mut master = None;
        if self.value.dtype() != DType::F32 && masters == Masters::F32 {
            let _charge = Charge::to(b, Use::Master);
            let mut m = b.alloc(len, DType::F32)?;
            b.cast(&mut m, &self.value)?;
            master = Some(m);
        }
        let _charge = Charge::to(b, Use::Gradients);
        let grad = b.alloc(if training.room == Room::Now { len } else { 0 }, gradients)?;
        self.train = Some(Train { grad, sum: Rc::new(Cell::new(Sum::Begun)), master });
        Ok(())
    }

    /// It multiplies, and is no norm of heads and no bias of experts.
    pub fn is_matrix(&self) -> bool {
        let norm = |part: &str| part == "norm" || part.ends_with("_norm") || part.ends_with("layernorm");
        self.shape.len() > 1 && !self.name.ends_with("_bias") && !self.name.split('.').any(norm)
    }

    /// Sets the weight from values in the file's layout; a master keeps what 16 bits cannot.
    pub fn set(&mut self, b: &dyn Backend, values: &[f32]) -> Result<()> {
        if b.is_dry() {
            return Ok(());
        }
        let held = self.pad(values);
        b.upload_f32(&mut self.value, &held)?;
        if let Some(Train { master: Some(master), .. }) = &mut self.train {
            b.upload_f32(master, &held)?;
        }
        Ok(())
    }

    /// The same for the `i`th alone.
    pub fn set_part(&mut self, b: &dyn Backend, i: usize, values: &[f32]) -> Result<()> {
        if b.is_dry() {
            return Ok(());
        }
        let held = self.pad(values);
        b.upload_f32(&mut self.part(&self.value, i), &held)?;
        if let Some(Train { master: Some(master), .. }) = &self.train {
            b.upload_f32(&mut self.part(master, i), &held)?;
        }
        Ok(())
    }

    /// Sets the `i`th weight from a file's bytes in the weight's own dtype, without a detour; before `unfreeze`.
    pub fn set_bytes(&mut self, b: &dyn Backend, i: usize, bytes: &[u8]) -> Result<()> {
        let as_file = self.held == matrix(&self.shape) && self.layout == Layout::Rows;
        assert!(as_file, "weights that are padded or ordered otherwise come as values");
        b.upload(&mut self.part(&self.value, i), bytes)
    }

    /// The exact weight (the master if there is one) in the file's layout.
    pub fn get(&self, b: &dyn Backend) -> Result<Vec<f32>> {
        Ok(self.unpad(&b.download_f32(self.exact())?))
    }

    /// The same of the `i`th alone.
    pub fn get_part(&self, b: &dyn Backend, i: usize) -> Result<Vec<f32>> {
        Ok(self.unpad(&b.download_f32(&self.part(self.exact(), i))?))
    }

    fn exact(&self) -> &Buf {
        self.train.as_ref().and_then(|t| t.master.as_ref()).unwrap_or(&self.value)
    }

    /// The gradient in the file's layout; zeros if frozen, or where there is none.
    pub fn grad(&self, b: &dyn Backend) -> Result<Vec<f32>> {
        match &self.train {
            Some(train) if train.sum.get() == Sum::Begun => Ok(self.unpad(&b.download_f32(&train.grad)?)),
            _ => Ok(vec![0.0; self.elements()]),
        }
    }

    /// Tensors in the file's layout (one or all), laid out as on the device.
    pub fn pad(&self, values: &[f32]) -> Vec<f32> {
        let file = matrix(&self.shape);
        let [rows, cols] = self.layout.turned(file);
        let count = values.len() / (rows * cols).max(1);
        assert!(values.len() == count * rows * cols && (count == 1 || count == self.parts.len()), "{}", self.name);
        let one = self.held[0] * self.held[1];
        let mut held = vec![0.0; count * one];
        for (held, values) in held.chunks_mut(one).zip(values.chunks(rows * cols)) {
            let values = self.layout.to_device(values, file, 1);
            for (to, from) in held.chunks_mut(self.held[1]).zip(values.chunks(cols)) {
                to[..cols].copy_from_slice(from);
            }
        }
        held
    }

    /// Values as the device holds them, in the file's layout.
    pub fn unpad(&self, held: &[f32]) -> Vec<f32> {
        let file = matrix(&self.shape);
        let [rows, cols] = self.layout.turned(file);
        let one = |one: &[f32]| {
            let rows = one.chunks(self.held[1]).take(rows).flat_map(|row| &row[..cols]);
            self.layout.to_file(&rows.copied().collect::<Vec<f32>>(), file, 1)
        };
        held.chunks(self.held[0] * self.held[1]).flat_map(one).collect()
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

    #[test]
    fn many_weights_in_one_buffer() {
        let b: &dyn Backend = &Cpu::new();
        let names = vec!["a".to_string(), "b".to_string()];
        let mut p = Param::stack(b, names, &[2, 3], [4, 8], DType::Bf16).unwrap();
        p.unfreeze(b).unwrap();
        let values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
        p.set_part(b, 1, &values).unwrap();
        assert_eq!((p.get_part(b, 0).unwrap(), p.get_part(b, 1).unwrap()), (vec![0.0; 6], values.to_vec()));
        assert_eq!(p.get(b).unwrap()[6..], values);
        p.set(b, &[values, values].concat()).unwrap();
        assert_eq!((p.get_part(b, 0).unwrap(), p.elements()), (values.to_vec(), 12));
        assert_eq!(b.download_f32(&p.value).unwrap()[32 + 8], DType::Bf16.round(0.4));
    }
}
