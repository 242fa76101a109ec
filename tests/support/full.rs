//! A backend that has room for so many more buffers, and then is full.
use luthier::backend::dry::Rules;
use luthier::backend::{Backend, Buf, HostBuf, Launch, Memory, Use};
use luthier::dtype::DType;
use luthier::error::{Error, Result};
use std::cell::Cell;

pub struct Full<'b> {
    pub inner: &'b dyn Backend,
    pub room: Cell<usize>,
}

impl Backend for Full<'_> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn device(&self) -> String {
        self.inner.device()
    }
    fn alloc(&self, len: usize, dtype: DType) -> Result<Buf> {
        match self.room.get().checked_sub(1) {
            Some(room) => {
                self.room.set(room);
                self.inner.alloc(len, dtype)
            }
            None => Err(Error::device("full", "out of memory")),
        }
    }
    fn free(&self, buf: Buf) {
        self.inner.free(buf);
    }
    fn upload(&self, to: &mut Buf, bytes: &[u8]) -> Result<()> {
        self.inner.upload(to, bytes)
    }
    fn download(&self, from: &Buf) -> Result<Vec<u8>> {
        self.inner.download(from)
    }
    fn copy(&self, to: &mut Buf, from: &Buf) -> Result<()> {
        self.inner.copy(to, from)
    }
    fn launch(&self, launch: &Launch) -> Result<()> {
        self.inner.launch(launch)
    }
    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
    fn memory(&self) -> Memory {
        self.inner.memory()
    }
    fn available(&self) -> Option<u64> {
        self.inner.available()
    }
    fn rules(&self) -> std::rc::Rc<dyn Rules> {
        self.inner.rules()
    }
    fn charge(&self, to: Use) -> Use {
        self.inner.charge(to)
    }
    fn host_alloc(&self, len: usize, dtype: DType) -> Result<HostBuf> {
        self.inner.host_alloc(len, dtype)
    }
    fn host_free(&self, buf: HostBuf) {
        self.inner.host_free(buf);
    }
    fn to_host(&self, to: &mut HostBuf, from: &Buf) -> Result<()> {
        self.inner.to_host(to, from)
    }
    fn from_host(&self, to: &mut Buf, from: &HostBuf) -> Result<()> {
        self.inner.from_host(to, from)
    }
    fn rows_from_host(&self, to: &mut Buf, from: &HostBuf, ids: &[u32]) -> Result<()> {
        self.inner.rows_from_host(to, from, ids)
    }
    fn host_upload(&self, to: &mut HostBuf, bytes: &[u8]) -> Result<()> {
        self.inner.host_upload(to, bytes)
    }
    fn host_download(&self, from: &HostBuf) -> Result<Vec<u8>> {
        self.inner.host_download(from)
    }
}
