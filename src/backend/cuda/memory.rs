//! Device memory: allocations by number, and a pinned ring that uploads pass through so that they never wait for the stream.
use super::driver::{Device, failed};
use super::events::{event, record};
use crate::backend::{Buf, Ledger, Use, copy_bytes};
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use rayon::prelude::*;
use std::collections::VecDeque;

struct Slab {
    ptr: sys::CUdeviceptr,
    bytes: usize,
    what: Use,
}

/// The allocations that `Buf::slab` counts.
#[derive(Default)]
pub(super) struct Slabs {
    slabs: Vec<Option<Slab>>,
    pub ledger: Ledger,
}

impl Slabs {
    /// Zeroed.
    pub fn alloc(&mut self, device: &Device, bytes: usize) -> Result<u32> {
        let ptr = alloc(device, bytes).map_err(|e| out_of_memory(device, bytes, e))?;
        // SAFETY: the range was just allocated.
        unsafe { result::memset_d8_async(ptr, 0, bytes, device.raw_stream()) }.map_err(failed("clearing memory"))?;
        let what = self.ledger.take(bytes as u64);
        // A number is never used again, so that a view of what was freed is found out.
        self.slabs.push(Some(Slab { ptr, bytes, what }));
        Ok(self.slabs.len() as u32 - 1)
    }
    /// The same, for this whatever the caller's caller is at.
    pub fn alloc_for(&mut self, what: Use, device: &Device, bytes: usize) -> Result<u32> {
        let before = self.ledger.charge(what);
        let slab = self.alloc(device, bytes);
        self.ledger.charge(before);
        slab
    }
    pub fn free(&mut self, device: &Device, slab: u32) {
        let Some(slab) = self.slabs[slab as usize].take() else { return };
        self.ledger.give(slab.what, slab.bytes as u64);
        // A failure here means a lost device, which the next `sync` reports.
        let _ = free(device, slab.ptr);
    }
    pub fn free_all(&mut self, device: &Device) {
        (0..self.slabs.len() as u32).for_each(|slab| self.free(device, slab));
    }
    /// The address of the buffer's first byte.
    pub fn ptr(&self, buf: &Buf) -> sys::CUdeviceptr {
        let slab = self.slabs[buf.slab as usize].as_ref().expect("the buffer was freed");
        assert!(buf.start + buf.len * buf.width <= slab.bytes, "a buffer of another backend");
        slab.ptr + buf.start as u64
    }
}

/// In the stream's order where the device can do that.
pub(super) fn alloc(device: &Device, bytes: usize) -> std::result::Result<sys::CUdeviceptr, result::DriverError> {
    // SAFETY: nothing is read before it is written: `Slabs` clears, workspaces are written by their users.
    unsafe {
        match device.context.has_async_alloc() {
            true => result::malloc_async(device.raw_stream(), bytes),
            false => result::malloc_sync(bytes),
        }
    }
}

pub(super) fn free(device: &Device, ptr: sys::CUdeviceptr) -> std::result::Result<(), result::DriverError> {
    // SAFETY: the caller gives up a pointer of `alloc`; work queued before still finds it.
    unsafe {
        match device.context.has_async_alloc() {
            true => result::free_async(ptr, device.raw_stream()),
            false => result::free_sync(ptr),
        }
    }
}

fn out_of_memory(device: &Device, bytes: usize, e: result::DriverError) -> Error {
    let free = device.context.mem_get_info().map_or(0, |(free, _)| free);
    let mib = |b: usize| b >> 20;
    let (want, free, total) = (mib(bytes), mib(free), device.total >> 20);
    Error::device(
        "cuda",
        format!(
            "out of memory: {want} MiB wanted, {free} of {total} MiB free ({e}); use fewer tokens or a smaller base"
        ),
    )
}

/// A part of the ring that a copy still reads until its event has passed.
struct Piece {
    start: usize,
    end: usize,
    done: sys::CUevent,
}

/// Pinned host memory, used round and round.
pub(super) struct Ring {
    base: *mut u8,
    head: usize,
    /// Oldest first; they follow each other around the ring.
    pieces: VecDeque<Piece>,
}

const RING: usize = 32 << 20;
const PIECE: usize = 8 << 20;

impl Ring {
    pub fn new(device: &Device) -> Result<Ring> {
        device.bind()?;
        // Not write-combined. SAFETY: freed in `drop`.
        let base =
            unsafe { result::malloc_host(RING, sys::CU_MEMHOSTALLOC_PORTABLE) }.map_err(failed("pinned memory"))?;
        Ok(Ring { base: base as *mut u8, head: 0, pieces: VecDeque::new() })
    }
    /// Queues the copy of `bytes` to `to`; the caller may drop them at once.
    pub fn upload(&mut self, device: &Device, to: sys::CUdeviceptr, bytes: &[u8]) -> Result<()> {
        for (i, part) in bytes.chunks(PIECE).enumerate() {
            // one thread copies out of a mapped file at a fraction of what the bus takes: each page of it is a fault
            self.piece(device, to + (i * PIECE) as u64, part.len(), |host| copy_bytes(host, part))?;
        }
        Ok(())
    }
    /// The same of the rows `ids` of a table whose rows take so many bytes.
    pub fn upload_rows(
        &mut self,
        device: &Device,
        to: sys::CUdeviceptr,
        table: &[u8],
        row: usize,
        ids: &[u32],
    ) -> Result<()> {
        if row == 0 {
            return Ok(());
        }
        let count = (PIECE / row).max(1);
        for (i, ids) in ids.chunks(count).enumerate() {
            let gather = |host: &mut [u8]| {
                let rows = host.par_chunks_mut(row).zip(ids).with_min_len(16);
                rows.for_each(|(to, id)| to.copy_from_slice(&table[*id as usize * row..][..row]));
            };
            self.piece(device, to + (i * count * row) as u64, ids.len() * row, gather)?;
        }
        Ok(())
    }
    /// Queues the copy to `to` of `len` bytes that `fill` writes.
    fn piece(&mut self, device: &Device, to: sys::CUdeviceptr, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        let (start, stream) = (self.reserve(len)?, device.raw_stream());
        // SAFETY: `reserve` waited until no copy reads these bytes of the ring.
        let host = unsafe { std::slice::from_raw_parts_mut(self.base.add(start), len) };
        fill(host);
        let done = event()?;
        // From here on the piece is in the queue, so that an error does not lose its event.
        self.pieces.push_back(Piece { start, end: start + len, done });
        // SAFETY: the caller checked the device's range; the host's stays until `done`.
        unsafe { result::memcpy_htod_async(to, host, stream) }.map_err(failed("upload"))?;
        record(done, stream, "upload")
    }
    /// Where `len` bytes are free.
    fn reserve(&mut self, len: usize) -> Result<usize> {
        assert!(len <= RING, "a piece of {len} bytes");
        if self.head + len > RING {
            // what lies between here and the end must be gone before pieces at the start can be the oldest
            while self.pieces.front().is_some_and(|p| p.start >= self.head) {
                self.release()?;
            }
            self.head = 0;
        }
        let (start, end) = (self.head, self.head + len);
        while self.pieces.front().is_some_and(|p| p.start < end && start < p.end) {
            self.release()?;
        }
        self.head = end;
        Ok(start)
    }
    /// Waits for the oldest piece.
    fn release(&mut self) -> Result<()> {
        let Some(piece) = self.pieces.pop_front() else { return Ok(()) };
        // SAFETY: created in `upload`, destroyed here.
        unsafe {
            let waited = result::event::synchronize(piece.done).map_err(failed("upload"));
            result::event::destroy(piece.done).map_err(failed("upload"))?;
            waited
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while !self.pieces.is_empty() {
            let _ = self.release();
        }
        // SAFETY: no copy reads it any more; a lost device cannot free it.
        let _ = unsafe { result::free_host(self.base as *mut _) };
    }
}
