//! Events that order streams; `marks.rs` has those that tell the time.
use super::driver::failed;
use crate::error::Result;
use cudarc::driver::{result, sys};

/// Its maker destroys it.
pub(super) fn event() -> Result<sys::CUevent> {
    result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("an event"))
}

/// For what is queued on the stream by now; `what` is what an error names.
pub(super) fn record(event: sys::CUevent, stream: sys::CUstream, what: &str) -> Result<()> {
    // SAFETY: the caller's event and stream are alive.
    unsafe { result::event::record(event, stream) }.map_err(failed(what))
}

/// What is queued on the stream from now on begins behind what the event was recorded for.
pub(super) fn wait(stream: sys::CUstream, event: sys::CUevent, what: &str) -> Result<()> {
    // SAFETY: as above.
    unsafe { result::stream::wait_event(stream, event, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
        .map_err(failed(what))
}
