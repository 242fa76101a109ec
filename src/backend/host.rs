//! Host memory that a device copies from and to: where things wait that it has no room for.
use super::{Backend, Buf};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A stretch of a backend's host memory, in elements; pinned where copies want that. Like [`Buf`], not `Clone`.
#[derive(Debug, PartialEq)]
pub struct HostBuf(pub(crate) Buf);

impl HostBuf {
    /// Elements.
    pub fn len(&self) -> usize {
        self.0.len
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }
    /// As [`Buf::view`].
    pub fn view(&self, offset: usize, len: usize) -> HostBuf {
        HostBuf(self.0.view(offset, len))
    }
}

/// `to_host` and `from_host` of every backend start with this.
pub(crate) fn check(to: &Buf, from: &Buf) -> Result<()> {
    match to.dtype == from.dtype && to.len == from.len {
        true => Ok(()),
        false => {
            let of = |buf: &Buf| format!("{} of {}", buf.len, buf.dtype.name());
            Err(Error::Bug(format!("a copy to or from the host: {} wanted, {} given", of(to), of(from))))
        }
    }
}

/// `rows_from_host` of every backend starts with this. Elements of a row.
pub(crate) fn check_rows(to: &Buf, from: &Buf, ids: &[u32]) -> Result<usize> {
    let row = to.len / ids.len().max(1);
    let rows = from.len / row.max(1);
    let whole = row * ids.len() == to.len && row * rows == from.len && to.dtype == from.dtype;
    match ids.iter().find(|id| **id as usize >= rows) {
        None if whole => Ok(row),
        far => {
            let of = |buf: &Buf| format!("{} of {}", buf.len, buf.dtype.name());
            let what = format!("{} rows of {} wanted from {}", ids.len(), of(to), of(from));
            Err(Error::Bug(far.map_or(what.clone(), |far| format!("{what}: there is no row {far}"))))
        }
    }
}

/// Host buffers that are given back together, when the scope ends.
pub struct HostScope<'b> {
    b: &'b dyn Backend,
    held: std::cell::RefCell<Vec<HostBuf>>,
}

impl<'b> HostScope<'b> {
    pub fn new(b: &'b dyn Backend) -> HostScope<'b> {
        HostScope { b, held: Default::default() }
    }
    /// As [`Backend::host_alloc`].
    pub fn alloc(&self, len: usize, dtype: DType) -> Result<HostBuf> {
        let buf = self.b.host_alloc(len, dtype)?;
        self.held.borrow_mut().push(buf.view(0, len));
        Ok(buf)
    }
}

impl Drop for HostScope<'_> {
    fn drop(&mut self) {
        self.held.take().into_iter().for_each(|buf| self.b.host_free(buf));
    }
}
