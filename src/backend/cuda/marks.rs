//! Marks of the stream's moments: events that the device itself times.
use super::driver::{Device, failed};
use crate::backend::Mark;
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};

/// An event, given back when dropped.
struct Event(sys::CUevent);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `mark`, owned here alone.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// What is queued here; `elapsed` gives it back.
pub(super) fn mark(device: &Device) -> Result<Mark> {
    let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("an event"))?;
    // SAFETY: the event was just made.
    unsafe { result::event::record(event, device.raw_stream()) }.map_err(failed("an event"))?;
    Ok(Mark::Device(event as u64))
}

/// Seconds from each mark to the next.
pub(super) fn elapsed(marks: Vec<Mark>) -> Result<Vec<f64>> {
    let events = marks.into_iter().map(|mark| match mark {
        Mark::Device(event) => Ok(Event(event as sys::CUevent)),
        Mark::Host(_) => Err(Error::Bug("a mark of another backend".into())),
    });
    let events = events.collect::<Result<Vec<_>>>()?;
    let Some(last) = events.last() else { return Ok(Vec::new()) };
    // SAFETY: the events are alive, and were recorded in their order.
    unsafe { result::event::synchronize(last.0) }.map_err(failed("waiting for an event"))?;
    // SAFETY: as above, and all have passed.
    let between = |pair: &[Event]| unsafe { result::event::elapsed(pair[0].0, pair[1].0) };
    events.windows(2).map(|pair| Ok(between(pair).map_err(failed("an event"))? as f64 / 1e3)).collect()
}
