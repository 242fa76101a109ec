//! One device: its context and stream, and how the driver's errors become ours.
use super::{libs, nvrtc};
use crate::error::{Error, Result};
use cudarc::driver::result::DriverError;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::sync::Arc;

/// For `map_err` on a call of the driver.
pub(super) fn failed(what: &str) -> impl Fn(DriverError) -> Error {
    move |e| {
        use sys::cudaError_enum as E;
        let hint = match e.0 {
            E::CUDA_ERROR_LAUNCH_FAILED | E::CUDA_ERROR_ILLEGAL_INSTRUCTION | E::CUDA_ERROR_ILLEGAL_ADDRESS => {
                "; a kernel met an index outside its table (token id, label, position, span) or has a bug"
            }
            E::CUDA_ERROR_NO_BINARY_FOR_GPU | E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
                "; the driver is older than the NVRTC library: update the driver, or install the nvidia-cuda-nvrtc of its CUDA version"
            }
            _ => "",
        };
        Error::device("cuda", format!("{what}: {e}{hint}"))
    }
}

pub(super) struct Device {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub name: String,
    /// As NVRTC calls it: `sm_90a`.
    pub arch: String,
    /// (major, minor).
    pub capability: (i32, i32),
    pub total: u64,
    /// Bytes of shared memory that a block may have.
    pub shared: u32,
}

fn shared(context: &CudaContext) -> Result<u32> {
    let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let bytes = context.attribute(attribute).map_err(failed("the device's shared memory"))?;
    Ok(bytes.max(0) as u32)
}

impl Device {
    pub fn new(ordinal: usize) -> Result<Device> {
        driver_present()?;
        let count = CudaContext::device_count().map_err(failed("counting devices"))?;
        if ordinal >= count.max(0) as usize {
            return Err(Error::device(
                "cuda",
                format!("device {ordinal} wanted, {count} present; choose one below {count}"),
            ));
        }
        let context = CudaContext::new(ordinal).map_err(failed("opening the device"))?;
        // SAFETY: what crosses streams is ordered by `host.rs` and `ahead.rs`; before anything is allocated.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context)?;
        let capability = context.compute_capability().map_err(failed("compute capability"))?;
        Ok(Device {
            stream: context.new_stream().map_err(failed("creating a stream"))?,
            name: context.name().map_err(failed("the device's name"))?,
            arch: nvrtc::arch(capability),
            capability,
            total: context.total_mem().map_err(failed("the device's memory"))? as u64,
            shared: shared(&context)?,
            context,
        })
    }
    /// Makes the device current on this thread; a process may have several.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("making the device current"))
    }
    /// Bytes that the pool holds and nobody uses.
    pub fn pooled(&self) -> u64 {
        use sys::CUmemPool_attribute as Attribute;
        let value = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: the attribute's value is a u64.
            let got = unsafe {
                result::device::get_default_mem_pool(self.context.cu_device())
                    .and_then(|pool| result::mem_pool::get_attribute(pool, attribute, &mut bytes as *mut u64 as *mut _))
            };
            got.map_or(0, |()| bytes)
        };
        if !self.context.has_async_alloc() {
            return 0;
        }
        let reserved = value(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
        reserved.saturating_sub(value(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT))
    }
    pub fn raw_stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }
}

/// The driver library is there and has a device; else the sentence that says what to do.
pub(super) fn driver_present() -> Result<()> {
    if let Some(what) = libs::missing("cuda") {
        return Err(Error::device("cuda", what));
    }
    // cudarc panics if it finds no driver under the names it tries
    // SAFETY: opens libraries by name, no more.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::device(
            "cuda",
            "libcuda was found, but not under its usual name; install the NVIDIA driver",
        ));
    }
    result::init().map_err(failed("the driver does not start"))
}

/// By default the pool gives freed memory back to the system at each synchronisation, and takes it again right after.
fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the attribute's value is a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).map_err(failed("the memory pool"))?;
        result::mem_pool::set_attribute(pool, attribute, &mut threshold as *mut u64 as *mut _)
            .map_err(failed("the memory pool"))
    }
}
