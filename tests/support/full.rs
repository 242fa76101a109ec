//! A backend that has room for so many more buffers, and then is full.
use luthier::backend::{Backend, Buf};
use luthier::dtype::DType;
use luthier::error::{Error, Result};
use std::cell::Cell;

pub struct Full<'b> {
    pub inner: &'b dyn Backend,
    pub room: Cell<usize>,
}

impl Backend for Full<'_> {
    luthier::pass_on! { inner: name device free upload download copy launch sync memory available rules has_low_rank charge
    host_alloc host_free to_host from_host rows_from_host host_upload host_download }
    fn alloc(&self, len: usize, dtype: DType) -> Result<Buf> {
        match self.room.get().checked_sub(1) {
            Some(room) => {
                self.room.set(room);
                self.inner.alloc(len, dtype)
            }
            None => Err(Error::device("full", "out of memory")),
        }
    }
}
