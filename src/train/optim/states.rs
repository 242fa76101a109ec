//! What an optimizer keeps of each weight between steps: some buffers side by side with a group's values.
use super::hyper::{Hyper, Precision, Rule};
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::dyn8;
use crate::train::flat::Place;

/// One of the buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slot {
    /// Its name in a checkpoint, behind the weight's.
    pub name: &'static str,
    pub dtype: DType,
    /// Values of the weight that share one of it.
    pub per: usize,
}

const fn floats(name: &'static str) -> Slot {
    Slot { name, dtype: DType::F32, per: 1 }
}
const fn codes(name: &'static str) -> Slot {
    Slot { name, dtype: DType::U8, per: 1 }
}
const fn scales(name: &'static str) -> Slot {
    Slot { name, dtype: DType::F32, per: dyn8::BLOCK }
}

/// The buffers of a rule, in the order its op takes them.
pub(super) fn slots(rule: Rule, precision: Precision, hyper: &Hyper) -> &'static [Slot] {
    match (rule, precision) {
        (Rule::AdamW, Precision::F32) => const { &[floats("exp_avg"), floats("exp_avg_sq")] },
        (Rule::AdamW, Precision::Bits8) => {
            const { &[codes("state1"), codes("state2"), scales("absmax1"), scales("absmax2")] }
        }
        (Rule::Lion, Precision::F32) => const { &[floats("exp_avg")] },
        (Rule::Lion, Precision::Bits8) => const { &[codes("state1"), scales("absmax1")] },
        (Rule::Sgd, _) if hyper.momentum == 0.0 => &[],
        (Rule::Sgd | Rule::Muon, _) => const { &[floats("momentum_buffer")] },
    }
}

impl Slot {
    /// Its elements for values `offset..offset + len`, which begin with a block.
    pub fn range(&self, offset: usize, len: usize) -> (usize, usize) {
        (offset / self.per, len.div_ceil(self.per))
    }
}

/// The states of a group of weights.
pub(super) struct States {
    slots: &'static [Slot],
    bufs: Vec<Buf>,
}

impl States {
    /// Zeros for P values.
    pub fn new(b: &dyn Backend, slots: &'static [Slot], P: usize) -> Result<States> {
        let bufs = slots.iter().map(|slot| b.alloc(slot.range(0, P).1, slot.dtype)).collect::<Result<_>>()?;
        Ok(States { slots, bufs })
    }

    /// Those of values `offset..offset + len`.
    pub fn views(&self, offset: usize, len: usize) -> Vec<Buf> {
        let view = |(slot, buf): (&Slot, &Buf)| {
            let (offset, len) = slot.range(offset, len);
            buf.view(offset, len)
        };
        self.slots.iter().zip(&self.bufs).map(view).collect()
    }

    /// One tensor's part of each buffer, by the name it has in a checkpoint.
    pub fn parts(&self, place: Place) -> impl Iterator<Item = (&'static str, Buf)> {
        self.slots.iter().map(|slot| slot.name).zip(self.views(place.offset, place.len))
    }
}
