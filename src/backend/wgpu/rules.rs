//! How an op is run on a device, and what memory that and every tensor takes.
use super::adapter::MatrixUnit;
use super::coop::{self, Products};
use super::plan::{self, Plan};
use super::text::SLACK;
use super::tune::Tiles;
use super::{attention, kernel_text};
use crate::backend::Launch;
use crate::backend::dry;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Elem;
use kernel_text::Names;
use std::cell::Cell;
use wgpu::Limits;

/// Tensors start at multiples of this many bytes: every device can bind there, and loads of 16 bytes are aligned.
const ALIGN: u64 = 256;

pub struct Rules {
    pub matrix_unit: Option<MatrixUnit>,
    pub limits: Limits,
    /// Bytes on the device in all, where the driver says so.
    pub memory: Option<u64>,
    pub products: Cell<Products>,
    pub tiles: Cell<Tiles>,
    /// A card of its own, and not a part of the processor.
    pub discrete: bool,
}

impl Rules {
    /// How a launch is to be run.
    pub(super) fn plan(&self, launch: &Launch, names: &Names) -> Plan {
        let fast = || {
            let large = coop::LARGE[self.tiles.get().coop];
            let device = coop::Device::new(self.matrix_unit?, &self.limits, self.memory, large);
            let floats = launch.op().spec().args.iter().zip(launch.args()).filter(|(arg, _)| arg.elem == Elem::Float);
            let dtypes: Vec<_> = floats.filter_map(|(_, buf)| buf.map(|b| b.dtype)).collect();
            match launch.op().spec().file {
                "matmul" => coop::plan(launch.op(), names, dtypes.try_into().ok()?, device, self.products.get()),
                "attention" => {
                    let capped = kernel_text::float(launch.op().spec().fields, launch.params(), "softcap") != Some(0.0);
                    attention::plan(launch.op(), names, capped, &dtypes, device, self.products.get())
                }
                _ => None,
            }
        };
        fast().unwrap_or_else(|| plan::plan(launch.op(), names, self.tiles.get().plain))
    }
}

/// What a tensor takes.
pub(super) fn bytes(len: usize, dtype: DType) -> u64 {
    (len as u64 * dtype.size() as u64 + SLACK as u64).next_multiple_of(ALIGN)
}

/// The same in host memory: copies are of whole words.
pub(super) fn host_bytes(len: usize, dtype: DType) -> u64 {
    (len * dtype.size()).next_multiple_of(4).max(4) as u64
}

impl dry::Rules for Rules {
    fn name(&self) -> &'static str {
        "wgpu"
    }
    fn bytes(&self, len: usize, dtype: DType) -> u64 {
        bytes(len, dtype)
    }
    fn host_bytes(&self, len: usize, dtype: DType) -> u64 {
        host_bytes(len, dtype)
    }
    fn scratch(&self, launch: &Launch) -> Result<[usize; 2]> {
        let mut most = [0; 2];
        let part = |part: &Launch| {
            let wanted = dry::Rules::scratch(self, part)?;
            most = [0, 1].map(|i| wanted[i].max(most[i]));
            Ok(())
        };
        if self.in_parts(launch, part)? {
            return Ok(most);
        }
        let plan = self.plan(launch, &kernel_text::names(launch.op().spec().fields, launch.params()));
        Ok([plan.scratch, plan.packed])
    }
    /// Each chunk's products write the head's weight anew: fewer chunks where there is room.
    fn logits(&self) -> usize {
        (self.memory.unwrap_or(0) / 256).min(1 << 30) as usize
    }
    fn room(&self) -> usize {
        let align = self.limits.min_storage_buffer_offset_alignment as u64;
        (self.limits.max_storage_buffer_binding_size / 4 * 4).saturating_sub(align + SLACK as u64) as usize
    }
    fn host_is_apart(&self) -> bool {
        self.discrete
    }
    /// The last word of what does not end with one, see `merge_tail`.
    fn patch(&self, bytes: usize) -> usize {
        usize::from(!bytes.is_multiple_of(4))
    }
}
