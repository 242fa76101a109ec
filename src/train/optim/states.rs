//! What an optimizer keeps of each weight between steps: some buffers side by side with a group's values.
use super::hyper::{Home, Hyper, Precision, Rule};
use crate::backend::{Backend, Buf, HostBuf};
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
    pub slots: &'static [Slot],
    held: Held,
}

enum Held {
    Device(Vec<Buf>),
    Host(Vec<HostBuf>),
}

impl States {
    /// Zeros for P values.
    pub fn new(b: &dyn Backend, slots: &'static [Slot], P: usize, home: Home) -> Result<States> {
        let len = |slot: &Slot| slot.range(0, P).1;
        let device = || slots.iter().map(|slot| b.alloc(len(slot), slot.dtype)).collect::<Result<_>>();
        let host = || slots.iter().map(|slot| b.host_alloc(len(slot), slot.dtype)).collect::<Result<_>>();
        let held = match home {
            Home::Device => Held::Device(device()?),
            Home::Host { .. } => Held::Host(host()?),
        };
        Ok(States { slots, held })
    }

    /// Those of values `offset..offset + len`, where they lie on the device.
    pub fn device(&self, offset: usize, len: usize) -> Vec<Buf> {
        let Held::Device(bufs) = &self.held else { return Vec::new() };
        self.ranges(offset, len).zip(bufs).map(|((offset, len), buf)| buf.view(offset, len)).collect()
    }

    /// The same where they lie on the host.
    pub fn host(&self, offset: usize, len: usize) -> Vec<HostBuf> {
        let Held::Host(bufs) = &self.held else { return Vec::new() };
        self.ranges(offset, len).zip(bufs).map(|((offset, len), buf)| buf.view(offset, len)).collect()
    }

    fn ranges(&self, offset: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
        self.slots.iter().map(move |slot| slot.range(offset, len))
    }

    /// One tensor's part of each buffer, by the name it has in a checkpoint.
    pub fn parts(&self, place: Place) -> impl Iterator<Item = (&'static str, Part)> {
        let device = self.device(place.offset, place.len).into_iter().map(Part::Device);
        let host = self.host(place.offset, place.len).into_iter().map(Part::Host);
        self.slots.iter().map(|slot| slot.name).zip(device.chain(host))
    }
}

/// A stretch of memory, wherever it is.
pub(super) enum Part {
    Device(Buf),
    Host(HostBuf),
}

impl Part {
    pub fn dtype(&self) -> DType {
        match self {
            Part::Device(buf) => buf.dtype(),
            Part::Host(buf) => buf.dtype(),
        }
    }
    pub fn len(&self) -> usize {
        match self {
            Part::Device(buf) => buf.len(),
            Part::Host(buf) => buf.len(),
        }
    }
    pub fn download(&self, b: &dyn Backend) -> Result<Vec<u8>> {
        match self {
            Part::Device(buf) => b.download(buf),
            Part::Host(buf) => b.host_download(buf),
        }
    }
    pub fn upload(&mut self, b: &dyn Backend, bytes: &[u8]) -> Result<()> {
        match self {
            Part::Device(buf) => b.upload(buf, bytes),
            Part::Host(buf) => b.host_upload(buf, bytes),
        }
    }
}
