//! Packed weights are unpacked on a stream of their own, beside the product before, whose last blocks leave the device half idle.
//!
//! ```text
//! unpacking     waits for the last call that touched where it goes; for all calls, if one of them may have written what it reads
//! a call        waits for the unpacking of what it touches, and before it writes what is unpacked
//! ```
//! Two places by turns ([`crate::backend::dry::Rules::turns`]) are what makes it pay: with one, it waits for the product before.
use super::driver::{Device, failed};
use super::events::{self, event};
use super::host::{Stretch, Touch};
use crate::backend::{Buf, Launch};
use crate::error::Result;
use crate::ops::Op;
use cudarc::driver::{result, sys};

/// Whether the op unpacks a weight.
pub(super) fn unpacks(op: Op) -> bool {
    let spec = op.spec();
    matches!(spec.file, "nf4" | "int8" | "gguf" | "mxfp4") && spec.name.contains("dequantize")
}

/// Where weights are unpacked.
struct Place {
    at: Stretch,
    /// Recorded behind the last unpacking.
    made: sys::CUevent,
    /// The stream of all other calls has waited for it.
    awaited: bool,
    /// What it reads.
    from: Vec<Stretch>,
    /// Recorded behind the last call that touched the place, if `is_known`.
    used: sys::CUevent,
    is_known: bool,
}

pub(super) struct Ahead {
    stream: sys::CUstream,
    /// Recorded on the stream of all other calls when this one waits for them all.
    mark: sys::CUevent,
    places: Vec<Place>,
    /// Counts what is written by others.
    clock: u64,
    /// When each slab was written, as far as that is known; all are taken to be written at `all_written`.
    written: Vec<u64>,
    all_written: u64,
    /// When this stream last waited for all others.
    met: u64,
}

fn record(event: sys::CUevent, stream: sys::CUstream) -> Result<()> {
    events::record(event, stream, "unpacking a weight")
}

fn wait(stream: sys::CUstream, event: sys::CUevent) -> Result<()> {
    events::wait(stream, event, "waiting for a weight")
}

impl Place {
    /// The others wait for what is on its way here, if they have not yet.
    fn join(&mut self, on: &Device) -> Result<()> {
        if !self.awaited {
            wait(on.raw_stream(), self.made)?;
            self.awaited = true;
        }
        Ok(())
    }
}

impl Ahead {
    pub fn new(device: &Device) -> Result<Ahead> {
        device.bind()?;
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = result::stream::create(kind).map_err(failed("creating a stream"))?;
        let (places, written) = (Vec::new(), Vec::new());
        Ok(Ahead { stream, mark: event()?, places, clock: 1, written, all_written: 1, met: 0 })
    }

    /// Others write this slab now.
    pub fn write(&mut self, slab: u32) {
        self.clock += 1;
        let slab = slab as usize;
        if self.written.len() <= slab {
            self.written.resize(slab + 1, 0);
        }
        self.written[slab] = self.clock;
    }

    /// What is queued next by others does this to the buffer, or comes behind something that did.
    pub fn before(&mut self, on: &Device, buf: &Buf, touch: Touch) -> Result<()> {
        let at = Stretch::of(buf);
        for place in &mut self.places {
            let touched = place.at.overlaps(&at);
            let hinders = touched || touch == Touch::Writes && place.from.iter().any(|from| from.overlaps(&at));
            if hinders {
                place.join(on)?;
            }
            place.is_known &= !touched;
        }
        if touch == Touch::Writes {
            self.write(buf.slab);
        }
        Ok(())
    }

    /// These have been queued by others.
    pub fn after(&mut self, on: &Device, args: &[Option<&Buf>]) -> Result<()> {
        let stretches = || args.iter().flatten().map(|buf| Stretch::of(buf));
        for place in self.places.iter_mut().filter(|place| stretches().any(|at| place.at.overlaps(&at))) {
            record(place.used, on.raw_stream())?;
            place.is_known = true;
        }
        Ok(())
    }

    /// The others wait for all that is on its way.
    pub fn join(&mut self, on: &Device) -> Result<()> {
        self.places.iter_mut().try_for_each(|place| place.join(on))
    }
    /// What is queued next touches nobody knows what.
    pub fn before_all(&mut self, on: &Device) -> Result<()> {
        self.join(on)?;
        self.places.iter_mut().for_each(|place| place.is_known = false);
        self.clock += 1;
        self.all_written = self.clock;
        Ok(())
    }
    /// A slab goes.
    pub fn before_free(&mut self, on: &Device, slab: u32) -> Result<()> {
        self.join(on)?;
        for place in self.places.extract_if(.., |place| place.at.slab == slab) {
            destroy(&place);
        }
        Ok(())
    }

    /// Queues an unpacking by `run`; `waits`: it comes behind what the others have just begun to wait for.
    pub fn unpack(
        &mut self,
        on: &Device,
        launch: &Launch,
        waits: bool,
        run: impl FnOnce(sys::CUstream) -> Result<()>,
    ) -> Result<()> {
        let mut args = launch.args().iter().flatten().map(|buf| Stretch::of(buf));
        let Some(to) = args.next() else { return Ok(()) };
        let from: Vec<Stretch> = args.collect();
        let place = self.place(on, &to)?;
        let slab = |at: &Stretch| self.written.get(at.slab as usize).copied().unwrap_or(0).max(self.all_written);
        if waits || from.iter().any(|at| slab(at) > self.met) || !self.places[place].is_known {
            record(self.mark, on.raw_stream())?;
            wait(self.stream, self.mark)?;
            self.met = self.clock;
        } else {
            wait(self.stream, self.places[place].used)?;
        }
        let place = &mut self.places[place];
        // what was unpacked in vain is still read, which is forgotten here
        place.join(on)?;
        run(self.stream)?;
        (place.awaited, place.from) = (false, from);
        record(place.made, self.stream)
    }

    /// The place that begins here, as long as it ever was; others that it overlaps are places no more.
    fn place(&mut self, on: &Device, to: &Stretch) -> Result<usize> {
        let mut end = to.end;
        let other = |place: &Place| place.at.overlaps(to) && place.at.start != to.start;
        let mut is_known = !self.places.iter().any(other);
        if !is_known {
            self.join(on)?;
        }
        for old in self.places.extract_if(.., |place| other(place)) {
            end = end.max(old.at.end);
            destroy(&old);
        }
        let found = self.places.iter().position(|place| place.at.slab == to.slab && place.at.start == to.start);
        let place = match found {
            Some(place) => place,
            None => {
                let (at, from) = (Stretch { slab: to.slab, start: to.start, end }, Vec::new());
                self.places.push(Place { at, made: event()?, awaited: true, from, used: event()?, is_known: false });
                self.places.len() - 1
            }
        };
        let at = &mut self.places[place].at;
        // what is new of it may have been used by anybody
        is_known &= end <= at.end;
        at.end = at.end.max(end);
        self.places[place].is_known &= is_known;
        Ok(place)
    }
}

fn destroy(place: &Place) {
    // SAFETY: made in `place`, and nobody else has them; a failure leaks them.
    let _ = unsafe { (result::event::destroy(place.made), result::event::destroy(place.used)) };
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // SAFETY: the caller has waited; a lost device cannot be tidied.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            self.places.iter().for_each(destroy);
            let _ = result::event::destroy(self.mark);
            let _ = result::stream::destroy(self.stream);
        }
    }
}
