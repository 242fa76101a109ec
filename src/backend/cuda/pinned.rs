//! Host memory whose pages stay where they are, so that the device copies from and to it by itself.
use super::driver::failed;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use memmap2::MmapMut;
use rayon::prelude::*;

pub(super) struct Pinned {
    map: MmapMut,
    pub bytes: usize,
}

impl Pinned {
    /// Zeros. The device's context is current.
    pub fn new(bytes: usize) -> Result<Pinned> {
        let what = format!("{} MiB of pinned host memory", bytes >> 20);
        let mut map = MmapMut::map_anon(bytes.max(1)).map_err(|e| Error::device("cuda", format!("{what}: {e}")))?;
        // a kernel that has no large pages gives small ones
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        // all threads touch the pages: where the driver alone does, that is most of what pinning takes
        map.par_chunks_mut(16 << 20).for_each(|part| part.fill(0));
        // SAFETY: the pages are there until `drop` has unregistered them.
        unsafe { sys::cuMemHostRegister_v2(map.as_mut_ptr().cast(), map.len(), sys::CU_MEMHOSTREGISTER_PORTABLE) }
            .result()
            .map_err(failed(&what))?;
        Ok(Pinned { map, bytes })
    }
    pub fn base(&self) -> *mut u8 {
        self.map.as_ptr().cast_mut()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: registered in `new`; the caller has waited for the copies. A lost device cannot be asked.
        let _ = unsafe { sys::cuMemHostUnregister(self.map.as_mut_ptr().cast()) };
    }
}
