//! Device memory: a tensor of some megabytes has a buffer of its own, smaller ones share slabs. Host memory: buffers that the
//! device copies from and to, and that are mapped to be read.
use super::rules;
use crate::backend::{Buf, HostBuf, Ledger, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use wgpu::{Buffer, BufferUsages, Device, ErrorFilter, Features};

/// From this size on a tensor has its own buffer.
const BIG: u64 = 4 << 20;
/// A slab for small tensors.
const SLAB: u64 = 16 << 20;

/// One buffer of the device.
struct Slab {
    buffer: Buffer,
    /// Free stretches, start -> bytes; none in a tensor's own buffer.
    free: BTreeMap<u64, u64>,
    shared: bool,
    /// Bytes from the start that were ever handed out: beyond it the memory is still zero.
    touched: u64,
    /// What each tensor in it takes, and for what.
    taken: BTreeMap<u64, (u64, Use)>,
}

/// Where a new tensor lies, and whether older values are still in it.
pub struct Place {
    pub slab: u32,
    pub start: u64,
    pub bytes: u64,
    pub dirty: bool,
}

/// All buffers of a device, by the slab number that `Buf` holds. Numbers are never used twice.
#[derive(Default)]
pub struct Heap {
    slabs: Vec<Option<Slab>>,
    /// Host memory, by the number that `HostBuf` holds.
    hosts: Vec<Option<Buffer>>,
    pub ledger: Ledger,
    max_buffer: u64,
}

impl Heap {
    pub fn new(max_buffer: u64, total: Option<u64>) -> Heap {
        Heap { max_buffer, ledger: Ledger::new(total), ..Heap::default() }
    }
    pub fn buffer(&self, slab: u32) -> &Buffer {
        &self.slabs[slab as usize].as_ref().expect("the buffer was freed").buffer
    }

    pub fn alloc(&mut self, device: &Device, len: usize, dtype: DType) -> Result<Place> {
        let wanted = rules::bytes(len, dtype);
        let place = if wanted >= BIG { self.own(device, wanted)? } else { self.share(device, wanted)? };
        let slab = self.slabs[place.slab as usize].as_mut().expect("just taken");
        slab.taken.insert(place.start, (wanted, self.ledger.take(wanted)));
        slab.touched = slab.touched.max(place.start + wanted);
        Ok(place)
    }

    fn own(&mut self, device: &Device, bytes: u64) -> Result<Place> {
        let slab = self.create(device, bytes, false)?;
        Ok(Place { slab, start: 0, bytes, dirty: false })
    }

    fn share(&mut self, device: &Device, bytes: u64) -> Result<Place> {
        let fit = |slab: &Option<Slab>| {
            slab.as_ref().and_then(|s| s.free.iter().find(|(_, b)| **b >= bytes).map(|(a, b)| (*a, *b)))
        };
        let found =
            self.slabs.iter().enumerate().find_map(|(i, slab)| fit(slab).map(|(start, len)| (i as u32, start, len)));
        let (slab, start, len) = match found {
            Some(found) => found,
            None => (self.create(device, SLAB.min(self.max_buffer), true)?, 0, SLAB.min(self.max_buffer)),
        };
        let s = self.slabs[slab as usize].as_mut().expect("found");
        s.free.remove(&start);
        if len > bytes {
            s.free.insert(start + bytes, len - bytes);
        }
        Ok(Place { slab, start, bytes, dirty: start < s.touched })
    }

    /// A buffer of the backend's own, which counts for nobody.
    pub fn own_use(&mut self, device: &Device, len: usize, dtype: DType) -> Result<Buf> {
        let slab = self.create(device, rules::bytes(len, dtype), false)?;
        Ok(Buf { slab, start: 0, len, dtype, width: dtype.size() })
    }

    fn create(&mut self, device: &Device, bytes: u64, shared: bool) -> Result<u32> {
        let buffer = self.buffer_of(device, bytes, BufferUsages::STORAGE)?;
        let free = if shared { BTreeMap::from([(0, bytes)]) } else { BTreeMap::new() };
        self.slabs.push(Some(Slab { buffer, free, shared, touched: 0, taken: BTreeMap::new() }));
        Ok(self.slabs.len() as u32 - 1)
    }

    /// A buffer to copy from and to, and for `usage`.
    fn buffer_of(&self, device: &Device, bytes: u64, usage: BufferUsages) -> Result<Buffer> {
        if bytes > self.max_buffer {
            let what = format!(
                "a buffer of {} MiB is wanted, but this device allows {} MiB",
                bytes >> 20,
                self.max_buffer >> 20
            );
            return Err(Error::device("wgpu", what));
        }
        let scopes = [ErrorFilter::OutOfMemory, ErrorFilter::Validation, ErrorFilter::Internal]
            .map(|f| device.push_error_scope(f));
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: usage | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let errors: Vec<wgpu::Error> = scopes.into_iter().rev().filter_map(|s| pollster::block_on(s.pop())).collect();
        if let Some(error) = errors.first() {
            let (wanted, used) = (bytes >> 20, self.ledger.memory.used >> 20);
            let of = self.ledger.memory.total.map(|total| format!(" of {}", total >> 20)).unwrap_or_default();
            let hint = "end what else uses the device, or set memory_limit to what there is; `luthier plan` says what a run takes";
            let what = format!("out of memory: {wanted} MiB wanted, {used}{of} MiB in use ({error}); {hint}");
            return Err(Error::device("wgpu", what));
        }
        Ok(buffer)
    }

    pub fn host_alloc(&mut self, device: &Device, len: usize, dtype: DType) -> Result<HostBuf> {
        if !device.features().contains(Features::MAPPABLE_PRIMARY_BUFFERS) {
            let what =
                "this device does not copy from host memory and to it: keep what is to be offloaded on the device";
            return Err(Error::device("wgpu", what));
        }
        let buffer = self.buffer_of(device, rules::host_bytes(len, dtype), BufferUsages::MAP_READ)?;
        self.ledger.take_host(buffer.size());
        self.hosts.push(Some(buffer));
        Ok(HostBuf(Buf { slab: self.hosts.len() as u32 - 1, start: 0, len, dtype, width: dtype.size() }))
    }
    pub fn host(&self, buf: &HostBuf) -> &Buffer {
        self.hosts[buf.0.slab as usize].as_ref().expect("the host buffer was freed")
    }
    pub fn host_free(&mut self, buf: HostBuf) {
        if let Some(buffer) = self.hosts[buf.0.slab as usize].take() {
            self.ledger.give_host(buffer.size());
        }
    }

    /// Gives a tensor's memory back; says whether its buffer is gone too.
    pub fn free(&mut self, buf: &Buf) -> bool {
        let slot = &mut self.slabs[buf.slab as usize];
        let slab = slot.as_mut().expect("the buffer was freed before");
        let (start, (bytes, what)) =
            slab.taken.remove_entry(&(buf.start as u64)).expect("`free` takes what `alloc` returned");
        self.ledger.give(what, bytes);
        if !slab.shared {
            *slot = None;
            return true;
        }
        let (mut start, mut bytes) = (start, bytes);
        if let Some((before, len)) = slab.free.range(..start).next_back().map(|(a, b)| (*a, *b))
            && before + len == start
        {
            (start, bytes) = (before, bytes + len);
        }
        if let Some(len) = slab.free.remove(&(start + bytes)) {
            bytes += len;
        }
        slab.free.insert(start, bytes);
        false
    }
}
