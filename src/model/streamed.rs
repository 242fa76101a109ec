//! Frozen weights that wait in host memory and come to the device layer by layer, ahead of the computation: a base that does not
//! fit can be trained on all the same.
//!
//! Layers whose weights lie alike share two places on the device by turns. While one layer computes, the next one's weights come
//! into the other place; in the backward the same the other way round. Whoever runs a layer asks for it, and for its neighbour.
use super::block::Block;
use super::fp8::Fp8Weight;
use super::linear::{GgufWeight, Int8Weight, Mxfp4Weight, Nf4Scales, Nf4Weight, Weight};
use super::param::Param;
use crate::backend::{Backend, Buf, HostBuf};
use crate::dtype::DType;
use crate::error::Result;
use std::cell::Cell;

/// Where frozen weights are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Device,
    /// In host memory. Of blocks, there is room for two layers on the device; of the embedding, for the rows of a step.
    Host,
}

/// Of the model's parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub blocks: Place,
    pub embed: Place,
}

/// Places of layers whose weights lie alike.
const TURNS: usize = 2;

#[derive(Default)]
pub struct Streamed {
    slots: Vec<Slot>,
    /// One per layer.
    layers: Vec<Away>,
}

/// Room for the weights of a layer.
struct Slot {
    bufs: Vec<Buf>,
    /// The layer whose weights are there or on their way.
    holds: Cell<Option<usize>>,
}

struct Away {
    hosts: Vec<HostBuf>,
    slot: usize,
}

impl Streamed {
    /// Moves the next block's frozen weights from the device to the host; its handles are of a shared place from now on.
    pub fn take(&mut self, b: &dyn Backend, block: &mut Block) -> Result<()> {
        let bufs = block.frozen_mut();
        let shape: Vec<(usize, DType)> = bufs.iter().map(|buf| (buf.len(), buf.dtype())).collect();
        let slot = self.slot(b, &shape)?;
        let mut hosts = Vec::new();
        for (buf, place) in bufs.into_iter().zip(&self.slots[slot].bufs) {
            let mut host = b.host_alloc(buf.len(), buf.dtype())?;
            b.to_host(&mut host, buf)?;
            b.free(std::mem::replace(buf, place.view(0, place.len())));
            hosts.push(host);
        }
        self.layers.push(Away { hosts, slot });
        Ok(())
    }

    /// The place of the next layer of this shape: a new one, or the one whose turn it is.
    fn slot(&mut self, b: &dyn Backend, shape: &[(usize, DType)]) -> Result<usize> {
        let alike = |slot: &Slot| slot.bufs.iter().map(|buf| (buf.len(), buf.dtype())).eq(shape.iter().copied());
        let found: Vec<usize> = (0..self.slots.len()).filter(|i| alike(&self.slots[*i])).collect();
        if found.len() == TURNS {
            let earlier = self.layers.iter().filter(|away| found.contains(&away.slot)).count();
            return Ok(found[earlier % TURNS]);
        }
        let bufs = shape.iter().map(|(len, dtype)| b.alloc(*len, *dtype)).collect::<Result<_>>()?;
        self.slots.push(Slot { bufs, holds: Cell::new(None) });
        Ok(self.slots.len() - 1)
    }

    /// Layer l's weights are in their place for what is queued from now on. Nothing for a layer that there is not.
    pub fn want(&self, b: &dyn Backend, l: usize) -> Result<()> {
        let Some(Away { hosts, slot }) = self.layers.get(l) else { return Ok(()) };
        let slot = &self.slots[*slot];
        if slot.holds.get() == Some(l) {
            return Ok(());
        }
        // where a copy fails, the place holds nothing whole
        slot.holds.set(None);
        for (buf, host) in slot.bufs.iter().zip(hosts) {
            b.from_host(&mut buf.view(0, buf.len()), host)?;
        }
        slot.holds.set(Some(l));
        Ok(())
    }

    /// In host memory.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().flat_map(|away| &away.hosts).map(|host| (host.len() * host.dtype().size()) as u64).sum()
    }

    /// Whether a buffer is one of the shared places.
    pub fn holds(&self, buf: &Buf) -> bool {
        self.slots.iter().flat_map(|slot| &slot.bufs).any(|place| place == buf)
    }

    pub fn free(self, b: &dyn Backend) {
        self.slots.into_iter().flat_map(|slot| slot.bufs).for_each(|buf| b.free(buf));
        self.layers.into_iter().flat_map(|away| away.hosts).for_each(|host| b.host_free(host));
    }
}

impl Weight {
    /// What it lies in, if it is not trained.
    pub(super) fn frozen_mut(&mut self) -> Vec<&mut Buf> {
        match self {
            Weight::Dense(Param { train: None, value, .. }) => vec![value],
            Weight::Dense(_) => vec![],
            Weight::Int8(Int8Weight { codes, scb }) => vec![codes, scb],
            Weight::Fp8(Fp8Weight { codes, scales }) => vec![codes, scales],
            Weight::Gguf(GgufWeight { blocks, .. }) => vec![blocks],
            Weight::Mxfp4(Mxfp4Weight { codes, scales, .. }) => vec![codes, scales],
            Weight::Nf4(Nf4Weight { codes, scales }) => match scales {
                Nf4Scales::Single { absmax } => vec![codes, absmax],
                Nf4Scales::Double { qabsmax, nested, map, .. } => vec![codes, qabsmax, nested, map],
            },
        }
    }
}
