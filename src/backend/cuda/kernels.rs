//! Kernels on the device: compiled at first use, kept by op and storage types, launched with a grid from their file's headings.
use super::driver::{Device, failed};
use super::nvrtc;
use super::source::{Kernel, Variant};
use crate::backend::Launch;
use crate::backend::kernel_text::{Names, Section, eval, grid};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Op;
use cudarc::driver::{result, sys};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::rc::Rc;

/// More than any row has.
const MAX_ARGS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    op: Op,
    dtypes: [DType; MAX_ARGS],
    variant: Option<&'static str>,
}

/// When the blocks of a kernel may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// When the kernel before it has ended.
    After,
    /// When all of the kernel before it are there; they wait for it on the device, which hides how long a launch takes.
    Early,
}

impl Start {
    /// Early on devices since Hopper, which can.
    pub fn early(device: &Device) -> Start {
        if device.capability.0 >= 9 { Start::Early } else { Start::After }
    }
}

struct Stage {
    section: Section<'static>,
    function: sys::CUfunction,
    /// Dynamic shared memory that it may use without asking again.
    granted: Cell<u64>,
}

/// All stages of one op for one choice of storage types.
struct Loaded {
    module: sys::CUmodule,
    stages: Vec<Stage>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: loaded by `load`; the driver waits for running kernels.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

#[derive(Default)]
pub(super) struct Kernels {
    loaded: HashMap<Key, Rc<Loaded>>,
}

impl Kernels {
    /// Queues every stage of the launch's op on `stream`. `pointers` in the row's order, 0 for an absent argument.
    pub fn run(
        &mut self,
        (device, stream, start): (&Device, sys::CUstream, Start),
        launch: &Launch,
        variant: Option<Variant>,
        pointers: &[u64],
    ) -> Result<()> {
        let loaded = self.get(device, launch, variant)?;
        let names = Kernel { op: launch.op(), dtypes: &[], variant }.names(launch.params());
        let mut params: Vec<*mut c_void> = pointers.iter().map(|p| p as *const u64 as *mut c_void).collect();
        params.push(launch.params().as_ptr() as *mut c_void);
        loaded.stages.iter().try_for_each(|stage| stage.run((stream, start), &names, &mut params))
    }
    fn get(&mut self, device: &Device, launch: &Launch, variant: Option<Variant>) -> Result<Rc<Loaded>> {
        let mut dtypes = [DType::F32; MAX_ARGS];
        for (dtype, arg) in dtypes.iter_mut().zip(launch.args()) {
            *dtype = arg.map_or(DType::F32, |buf| buf.dtype());
        }
        let key = Key { op: launch.op(), dtypes, variant: variant.map(|v| v.name) };
        if let Some(loaded) = self.loaded.get(&key) {
            return Ok(loaded.clone());
        }
        let dtypes = &dtypes[..launch.args().len()];
        let loaded = Rc::new(load(device, Kernel { op: launch.op(), dtypes, variant })?);
        self.loaded.insert(key, loaded.clone());
        Ok(loaded)
    }
}

fn load(device: &Device, kernel: Kernel) -> Result<Loaded> {
    let name = kernel.op.spec().name;
    let cubin = nvrtc::cached(name, &kernel.source()?, &device.arch)?;
    // SAFETY: the image is a whole cubin, by NVRTC or by the hash of the cache.
    let module = unsafe { result::module::load_data(cubin.as_ptr() as *const c_void) }.map_err(failed(name))?;
    let mut loaded = Loaded { module, stages: Vec::new() };
    for section in kernel.sections()? {
        let c_name =
            CString::new(section.name).map_err(|_| Error::Bug(format!("{name}: a zero byte in a kernel's name")))?;
        // SAFETY: the module is loaded, and outlives its functions in `Loaded`.
        let function = unsafe { result::module::get_function(module, c_name) }.map_err(failed(section.name))?;
        loaded.stages.push(Stage { section, function, granted: Cell::new(48 << 10) });
    }
    Ok(loaded)
}

impl Stage {
    fn run(&self, (stream, start): (sys::CUstream, Start), names: &Names, params: &mut [*mut c_void]) -> Result<()> {
        let name = self.section.name;
        let value =
            |expr: &str| eval(expr, names).map_err(|e| Error::Bug(format!("the heading of kernel {name}: {e}")));
        let grid = grid(&self.section, names).map_err(Error::Bug)?;
        if grid.contains(&0) {
            return Ok(());
        }
        for (size, limit) in grid.iter().zip([i32::MAX as u64, 65535, 65535]) {
            if *size > limit {
                return Err(Error::device(
                    "cuda",
                    format!("{name}: a grid of {grid:?} blocks, {limit} is the most; use fewer tokens"),
                ));
            }
        }
        let (block, shared) = (value(self.section.block)?, value(self.section.shared)?);
        self.grant(shared)?;
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0] as u32,
            gridDimY: grid[1] as u32,
            gridDimZ: grid[2] as u32,
            blockDimX: block as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared as u32,
            hStream: stream,
            attrs: &mut early,
            numAttrs: (start == Start::Early) as u32,
        };
        // SAFETY: `params` are the kernel's arguments as its source declares them; `Launch` checked what they point to. A kernel that
        // starts early waits in its first line.
        unsafe { sys::cuLaunchKernelEx(&config, self.function, params.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(failed(name))
    }
    /// More than 48 KiB of shared memory is given on request only.
    fn grant(&self, bytes: u64) -> Result<()> {
        if bytes <= self.granted.get() {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function lives as long as its module.
        unsafe { result::function::set_function_attribute(self.function, attribute, bytes as i32) }
            .map_err(failed(&format!("{} wants {bytes} bytes of shared memory", self.section.name)))?;
        self.granted.set(bytes);
        Ok(())
    }
}
