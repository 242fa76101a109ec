//! Pinned host memory, and copies from and to it on two streams of their own: the bus works while kernels do, both ways.
//!
//! ```text
//! a copy        waits for the work queued before it, and for copies of the other stream that touch what it touches
//! other work    waits for the copies that write what it touches, and for those that read what it writes
//! ```
use super::driver::{Device, failed};
use super::events::{self, event, record};
use super::pinned::Pinned;
use crate::backend::{Buf, copy_bytes};
use crate::error::Result;
use cudarc::driver::{result, sys};

/// Which way a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToHost,
    FromHost,
}

/// What somebody does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Reads,
    Writes,
}

/// Bytes of a slab, or of a pinned allocation.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    pub slab: u32,
    pub start: usize,
    pub end: usize,
}

impl Stretch {
    pub fn of(buf: &Buf) -> Stretch {
        Stretch { slab: buf.slab, start: buf.start, end: buf.start + buf.bytes() }
    }
    pub fn overlaps(&self, other: &Stretch) -> bool {
        self.slab == other.slab && self.start < other.end && other.start < self.end
    }
}

/// A copy that may still run.
struct Copy {
    way: Way,
    device: Stretch,
    host: Stretch,
    done: sys::CUevent,
    /// The stream of the kernels has waited for it.
    awaited: bool,
}

impl Copy {
    /// Whether it must end before somebody does this to its place on the device.
    fn hinders(&self, touch: Touch) -> bool {
        self.way == Way::FromHost || touch == Touch::Writes
    }
}

pub(super) struct Host {
    /// By `Way`.
    streams: [sys::CUstream; 2],
    /// Recorded on the stream of the kernels when a copy is queued.
    mark: sys::CUevent,
    pinned: Vec<Option<Pinned>>,
    /// Oldest first.
    copies: Vec<Copy>,
    /// Events without a copy.
    spare: Vec<sys::CUevent>,
}

/// So many copies are remembered before those that have ended are looked for.
const REMEMBERED: usize = 32;

fn wait(stream: sys::CUstream, event: sys::CUevent) -> Result<()> {
    events::wait(stream, event, "waiting for a copy")
}

impl Host {
    pub fn new(device: &Device) -> Result<Host> {
        device.bind()?;
        let stream =
            || result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("creating a stream"));
        let streams = [stream()?, stream()?];
        Ok(Host { streams, mark: event()?, pinned: Vec::new(), copies: Vec::new(), spare: Vec::new() })
    }

    /// Zeros; the number of the allocation, and its bytes.
    pub fn alloc(&mut self, bytes: usize) -> Result<(u32, u64)> {
        self.pinned.push(Some(Pinned::new(bytes)?));
        Ok((self.pinned.len() as u32 - 1, bytes as u64))
    }

    /// Gives an allocation back when no copy uses it; returns its bytes.
    pub fn free(&mut self, buf: &Buf) -> Result<u64> {
        let Some(pinned) = self.pinned[buf.slab as usize].take() else { return Ok(0) };
        let whole = Stretch { slab: buf.slab, start: 0, end: pinned.bytes };
        let waited = self.finish(&whole, |_| true);
        // nobody can name it any more
        waited.map(|()| pinned.bytes as u64)
    }

    /// The bytes of a buffer; the caller has waited for the copies that touch them.
    #[allow(
        clippy::mut_from_ref,
        reason = "pinned memory is memory of its own; only `Host` hands it out, for one call"
    )]
    fn bytes(&self, buf: &Buf) -> &mut [u8] {
        let pinned = self.pinned[buf.slab as usize].as_ref().expect("the host buffer was freed");
        assert!(buf.start + buf.bytes() <= pinned.bytes, "a host buffer of another backend");
        // SAFETY: within the allocation.
        unsafe { std::slice::from_raw_parts_mut(pinned.base().add(buf.start), buf.bytes()) }
    }

    pub fn upload(&mut self, to: &Buf, bytes: &[u8]) -> Result<()> {
        self.finish(&Stretch::of(to), |_| true)?;
        copy_bytes(self.bytes(to), bytes);
        Ok(())
    }
    pub fn download(&mut self, from: &Buf) -> Result<Vec<u8>> {
        self.finish(&Stretch::of(from), |way| way == Way::ToHost)?;
        Ok(self.bytes(from).to_vec())
    }

    /// The bytes of a buffer, as what was queued to write them leaves them.
    pub fn written(&self, buf: &Buf) -> Result<&[u8]> {
        self.finish(&Stretch::of(buf), |way| way == Way::ToHost)?;
        Ok(self.bytes(buf))
    }

    /// Waits for the copies that touch this part of the host, as far as they go such a way.
    fn finish(&self, host: &Stretch, ways: impl Fn(Way) -> bool) -> Result<()> {
        let own = self.copies.iter().filter(|copy| copy.host.overlaps(host) && ways(copy.way));
        // SAFETY: events of `copies` are alive.
        own.into_iter().try_for_each(|copy| unsafe { result::event::synchronize(copy.done) }.map_err(failed("a copy")))
    }

    /// Queues a copy; `at` is the address of `device`.
    pub fn copy(&mut self, on: &Device, way: Way, (device, at): (&Buf, sys::CUdeviceptr), host: &Buf) -> Result<()> {
        if device.is_empty() {
            return Ok(());
        }
        let (stream, place, other) = (self.streams[way as usize], Stretch::of(device), Stretch::of(host));
        let touch = if way == Way::FromHost { Touch::Writes } else { Touch::Reads };
        record(self.mark, on.raw_stream(), "a copy")?;
        wait(stream, self.mark)?;
        // a copy of the same stream comes first anyway
        for copy in self.copies.iter().filter(|copy| copy.way != way) {
            // they go opposite ways: one of the two writes, on the device as on the host
            if copy.device.overlaps(&place) && copy.hinders(touch) || copy.host.overlaps(&other) {
                wait(stream, copy.done)?;
            }
        }
        let bytes = self.bytes(host);
        // SAFETY: the caller checked the device's range, `bytes` the host's; both stay until the copy is done, see `free`.
        unsafe {
            match way {
                Way::ToHost => result::memcpy_dtoh_async(bytes, at, stream),
                Way::FromHost => result::memcpy_htod_async(at, bytes, stream),
            }
        }
        .map_err(failed("a copy"))?;
        let done = self.spare.pop().map_or_else(event, Ok)?;
        // remembered before it is recorded, so that an error does not lose the event
        self.copies.push(Copy { way, device: place, host: other, done, awaited: false });
        record(done, stream, "a copy")?;
        if self.copies.len() > REMEMBERED {
            self.forget();
        }
        Ok(())
    }

    /// Lets go of the copies that have ended; those of one way end in their order.
    fn forget(&mut self) {
        let (spare, mut running) = (&mut self.spare, [false; 2]);
        self.copies.retain(|copy| {
            let behind = &mut running[copy.way as usize];
            // SAFETY: the events are alive. An error other than "not yet" comes out of the next call that waits.
            *behind = *behind || unsafe { result::event::query(copy.done) }.is_err();
            if !*behind {
                spare.push(copy.done);
            }
            *behind
        });
    }

    /// The kernels' stream waits for what stands in the way of doing this to a buffer; whether there was something.
    pub fn before(&mut self, on: &Device, buf: &Buf, touch: Touch) -> Result<bool> {
        if self.copies.is_empty() {
            return Ok(false);
        }
        self.before_stretch(on, &Stretch::of(buf), touch)
    }
    /// The same for what touches nobody knows what.
    pub fn before_all(&mut self, on: &Device) -> Result<()> {
        for copy in self.copies.iter_mut().filter(|copy| !copy.awaited) {
            wait(on.raw_stream(), copy.done)?;
            copy.awaited = true;
        }
        Ok(())
    }
    /// The same for a whole slab that goes.
    pub fn before_free(&mut self, on: &Device, slab: u32) -> Result<bool> {
        self.before_stretch(on, &Stretch { slab, start: 0, end: usize::MAX }, Touch::Writes)
    }
    fn before_stretch(&mut self, on: &Device, place: &Stretch, touch: Touch) -> Result<bool> {
        let mut waits = false;
        for copy in self.copies.iter_mut() {
            if !copy.awaited && copy.device.overlaps(place) && copy.hinders(touch) {
                wait(on.raw_stream(), copy.done)?;
                (copy.awaited, waits) = (true, true);
            }
        }
        Ok(waits)
    }

    /// Waits for all copies.
    pub fn sync(&mut self) -> Result<()> {
        for stream in self.streams {
            // SAFETY: the stream is alive.
            unsafe { result::stream::synchronize(stream) }.map_err(failed("waiting for the copies"))?;
        }
        self.spare.extend(self.copies.drain(..).map(|copy| copy.done));
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A lost device cannot be tidied, and nobody is left to tell.
        let _ = self.sync();
        self.pinned.clear();
        // SAFETY: no copy runs any more; nobody else has these.
        unsafe {
            for event in self.spare.drain(..).chain(self.copies.drain(..).map(|copy| copy.done)).chain([self.mark]) {
                let _ = result::event::destroy(event);
            }
            for stream in self.streams {
                let _ = result::stream::destroy(stream);
            }
        }
    }
}
