//! Host memory: buffers that the device copies from and to, and that can be mapped.
use super::record::Recorder;
use super::{Heap, State, Wgpu, fail};
use crate::backend::{Buf, HostBuf, host, same_bytes};
use crate::dtype::DType;
use crate::error::{Error, Result};

impl Wgpu {
    /// Appends bytes of a buffer that can be mapped, when all that is recorded has run.
    pub(super) fn read(
        &self,
        recorder: &mut Recorder,
        host: &wgpu::Buffer,
        range: std::ops::Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        recorder.flush();
        let (tell, told) = std::sync::mpsc::channel();
        host.slice(range.clone()).map_async(wgpu::MapMode::Read, move |result| {
            // nobody listens only when the download has already failed
            let _ = tell.send(result);
        });
        let waited = recorder.wait();
        self.check()?;
        waited.map_err(fail)?;
        // what has run has told; a device that did not tell will not
        told.try_recv().map_err(|_| fail("what was to be read has not come"))?.map_err(fail)?;
        out.extend_from_slice(&host.slice(range).get_mapped_range().map_err(fail)?);
        host.unmap();
        Ok(())
    }

    /// Sets the bytes of `to` behind its last whole word; the rest of that word is not ours, so `write` fills a word of its own,
    /// which is merged on the device.
    pub(super) fn merge_tail(
        &self,
        state: &mut State,
        to: &Buf,
        write: impl FnOnce(&Heap, &mut Recorder, &Buf) -> std::result::Result<(), String>,
    ) -> Result<()> {
        let (body, tail) = (to.bytes() / 4 * 4, to.bytes() % 4);
        let from = self.take(state, 1, DType::U32)?;
        let State { heap, recorder, .. } = state;
        write(heap, recorder, &from).map_err(fail)?;
        let end = Buf { slab: to.slab, start: to.start + body, len: 1, dtype: DType::U32, width: 4 };
        self.copy_words(state, &end, &from, 1, tail)?;
        self.release(state, from);
        Ok(())
    }

    /// On the one queue there is, in its order: the device does not wait for the host, but nor does it compute meanwhile.
    pub(super) fn copy_to_host(&self, to: &mut HostBuf, from: &Buf) -> Result<()> {
        host::check(&to.0, from)?;
        let State { heap, recorder, .. } = &mut *self.state.borrow_mut();
        let (bytes, host) = (from.bytes().next_multiple_of(4) as u64, heap.host(to));
        let start = to.0.start as u64;
        if !from.bytes().is_multiple_of(4) && start + bytes < host.size() {
            return Err(Error::Bug("a part of a host buffer that ends within a word".into()));
        }
        if bytes > 0 {
            recorder.encoder().copy_buffer_to_buffer(heap.buffer(from.slab), from.start as u64, host, start, bytes);
        }
        Ok(())
    }

    pub(super) fn copy_from_host(&self, to: &mut Buf, from: &HostBuf) -> Result<()> {
        host::check(to, &from.0)?;
        let state = &mut *self.state.borrow_mut();
        let (body, start) = ((to.bytes() / 4 * 4) as u64, from.0.start as u64);
        state.exponents.forget(to);
        let State { heap, recorder, .. } = state;
        if body > 0 {
            let place = heap.buffer(to.slab);
            recorder.encoder().copy_buffer_to_buffer(heap.host(from), start, place, to.start as u64, body);
        }
        if to.bytes().is_multiple_of(4) {
            return Ok(());
        }
        self.merge_tail(state, to, |heap, recorder, to| {
            let place = heap.buffer(to.slab);
            recorder.encoder().copy_buffer_to_buffer(heap.host(from), start + body, place, to.start as u64, 4);
            Ok(())
        })
    }

    /// A copy for each row, or for neighbours together.
    pub(super) fn copy_rows_from_host(&self, to: &mut Buf, from: &HostBuf, ids: &[u32]) -> Result<()> {
        let row = host::check_rows(to, &from.0, ids)? * to.width;
        if !row.is_multiple_of(4) {
            return Err(Error::Bug(format!("rows of {row} bytes, which are no whole words")));
        }
        let State { heap, recorder, .. } = &mut *self.state.borrow_mut();
        let (host, place, mut n) = (heap.host(from), heap.buffer(to.slab), 0);
        for run in ids.chunk_by(|a, b| a.checked_add(1) == Some(*b)).filter(|_| row > 0) {
            let (first, bytes) = (from.0.start + run[0] as usize * row, (run.len() * row) as u64);
            recorder.encoder().copy_buffer_to_buffer(host, first as u64, place, (to.start + n * row) as u64, bytes);
            n += run.len();
        }
        Ok(())
    }

    pub(super) fn write_host(&self, to: &mut HostBuf, bytes: &[u8]) -> Result<()> {
        same_bytes("host_upload", to.0.bytes(), bytes.len())?;
        let State { heap, recorder, .. } = &mut *self.state.borrow_mut();
        let (host, mut words) = (heap.host(to), bytes.to_vec());
        words.resize(bytes.len().next_multiple_of(4), 0);
        if words.len() > bytes.len() && to.0.start + words.len() < host.size() as usize {
            return Err(Error::Bug("a part of a host buffer that ends within a word".into()));
        }
        if words.is_empty() {
            return Ok(());
        }
        recorder.upload(host, to.0.start as u64, &words).map_err(fail)?;
        self.check()
    }

    pub(super) fn read_host(&self, from: &HostBuf) -> Result<Vec<u8>> {
        let State { heap, recorder, .. } = &mut *self.state.borrow_mut();
        let (start, bytes) = (from.0.start as u64, from.0.bytes());
        let mut out = Vec::with_capacity(bytes + 4);
        // a mapping begins at a multiple of 8
        let first = start / 8 * 8;
        let end = (start + bytes as u64).next_multiple_of(4);
        self.read(recorder, heap.host(from), first..end, &mut out)?;
        out.drain(..(start - first) as usize);
        out.truncate(bytes);
        Ok(out)
    }
}
