//! NVIDIA GPUs through the CUDA driver: kernels compiled for the device at first use, products by cuBLASLt, attention by cuDNN
//! where it is there.
//!
//! Nothing of CUDA is linked: the driver and the libraries are found at run time (`libs.rs`), and what is missing is an
//! `Error::Device` that says how to get it. Everything runs on one stream, in order.
use super::{Backend, Buf, Launch, Memory, same_bytes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::result;
use std::cell::RefCell;

mod blas;
mod cudnn;
mod driver;
pub mod fast;
mod kept;
mod kernels;
pub mod libs;
mod memory;
pub mod nvrtc;
mod report;
pub mod source;
pub use cudnn::AttentionPath;
pub use report::{CudaDevice, CudaReport, report};

pub struct Cuda {
    slabs: RefCell<memory::Slabs>,
    kernels: RefCell<kernels::Kernels>,
    ring: RefCell<memory::Ring>,
    /// `None`: only plain kernels, for tests of the fast paths.
    blas: RefCell<Option<blas::Blas>>,
    cudnn: RefCell<cudnn::Cudnn>,
    /// Last, so that what lives on it goes first.
    device: driver::Device,
}

impl Cuda {
    /// `LUTHIER_CUDA_ATTENTION` chooses what runs attention ([`AttentionPath`]).
    pub fn new(ordinal: usize) -> Result<Cuda> {
        Cuda::with_attention(ordinal, AttentionPath::from_env()?)
    }
    pub fn with_attention(ordinal: usize, path: AttentionPath) -> Result<Cuda> {
        let cuda = Cuda::plain(ordinal)?;
        *cuda.blas.borrow_mut() = Some(blas::Blas::new(&cuda.device)?);
        *cuda.cudnn.borrow_mut() = cudnn::Cudnn::new(path)?;
        Ok(cuda)
    }
    /// Without fast paths: every op is the plain kernel of its name.
    pub fn plain(ordinal: usize) -> Result<Cuda> {
        let device = driver::Device::new(ordinal)?;
        if let Some(what) = libs::missing("nvrtc") {
            return Err(Error::device("cuda", what));
        }
        let ring = RefCell::new(memory::Ring::new(&device)?);
        let cudnn = RefCell::new(cudnn::Cudnn::new(AttentionPath::Own)?);
        Ok(Cuda {
            slabs: RefCell::default(),
            kernels: RefCell::default(),
            ring,
            blas: RefCell::new(None),
            cudnn,
            device,
        })
    }
    /// Calls of attention that cuDNN ran, and what it planned, a line each.
    pub fn cudnn(&self) -> (u64, Vec<String>) {
        let cudnn = self.cudnn.borrow();
        (cudnn.runs(), cudnn.plans())
    }
    fn run_kernel(&self, launch: &Launch, variant: Option<source::Variant>, pointers: &[u64]) -> Result<()> {
        self.kernels.borrow_mut().run(&self.device, launch, variant, pointers)
    }
    fn ptr(&self, buf: &Buf) -> u64 {
        self.slabs.borrow().ptr(buf)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A lost device cannot be tidied, and nobody is left to tell.
        let _ = self.device.bind().and_then(|()| self.sync());
        self.cudnn.get_mut().close();
        if let Some(blas) = self.blas.get_mut().take() {
            blas.close(&self.device);
        }
        self.slabs.get_mut().free_all(&self.device);
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }
    fn device(&self) -> String {
        let (major, minor) = self.device.capability;
        format!("{} (compute capability {major}.{minor}, {} MiB)", self.device.name, self.device.total >> 20)
    }
    fn alloc(&self, len: usize, dtype: DType) -> Result<Buf> {
        self.device.bind()?;
        let slab = self.slabs.borrow_mut().alloc(&self.device, len * dtype.size())?;
        Ok(Buf { slab, start: 0, len, dtype, width: dtype.size() })
    }
    fn free(&self, buf: Buf) {
        if self.device.bind().is_ok() {
            self.cudnn.borrow_mut().drop_sequences(self, &buf);
            self.slabs.borrow_mut().free(&self.device, buf.slab);
        }
    }
    fn upload(&self, to: &mut Buf, bytes: &[u8]) -> Result<()> {
        same_bytes("upload", to.bytes(), bytes.len())?;
        self.device.bind()?;
        self.cudnn.borrow_mut().forget(to);
        self.ring.borrow_mut().upload(&self.device, self.ptr(to), bytes)
    }
    fn download(&self, from: &Buf) -> Result<Vec<u8>> {
        self.device.bind()?;
        let mut bytes = vec![0; from.bytes()];
        if !bytes.is_empty() {
            // SAFETY: `ptr` checked the range; `sync` waits before the bytes are looked at.
            unsafe { result::memcpy_dtoh_async(&mut bytes, self.ptr(from), self.device.raw_stream()) }
                .map_err(driver::failed("download"))?;
        }
        self.sync()?;
        Ok(bytes)
    }
    fn copy(&self, to: &mut Buf, from: &Buf) -> Result<()> {
        same_bytes("copy", to.bytes(), from.bytes())?;
        assert!(to.dtype == from.dtype && !to.overlaps(from), "copy: other dtype or overlap");
        self.device.bind()?;
        self.cudnn.borrow_mut().forget(to);
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: `ptr` checked both ranges, and they do not overlap.
        unsafe { result::memcpy_dtod_async(self.ptr(to), self.ptr(from), to.bytes(), self.device.raw_stream()) }
            .map_err(driver::failed("copy"))
    }
    fn launch(&self, launch: &Launch) -> Result<()> {
        self.device.bind()?;
        let pointers: Vec<u64> = launch.args().iter().map(|buf| buf.map_or(0, |buf| self.ptr(buf))).collect();
        self.cudnn.borrow_mut().forget_written(launch);
        let plain = self.blas.borrow().is_none();
        if plain || !fast::run(self, launch, &pointers)? {
            self.run_kernel(launch, None, &pointers)?;
        }
        Ok(())
    }
    fn sequences(&self, span: &Buf, cu_seqlens: &[u32], window: Option<u32>) {
        self.cudnn.borrow_mut().tell(span, cu_seqlens, window);
    }
    fn set_deterministic(&self, wanted: bool) {
        self.cudnn.borrow_mut().bits = if wanted { cudnn::Bits::Same } else { cudnn::Bits::Any };
    }
    fn sync(&self) -> Result<()> {
        self.device.bind()?;
        self.device.stream.synchronize().map_err(driver::failed("waiting for the device"))
    }
    fn memory(&self) -> Memory {
        Memory { total: Some(self.device.total), ..self.slabs.borrow().memory }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a GPU, without one, without a driver: always a message, never a panic.
    #[test]
    fn a_device_that_is_not_there_is_an_error_with_advice() {
        let Err(e) = Cuda::new(999) else { panic!("nobody has 1000 GPUs") };
        assert_eq!(e.exit_code(), 69);
        let (said, report) = (e.to_string(), report());
        println!("{said}\n{report:?}");
        assert!(said.contains("install") || said.contains("choose one below"), "{said}");
        assert_eq!(report.devices.is_empty(), report.problem.is_some() || report.driver.is_none());
        assert_eq!(report.advice().len(), report.libraries.iter().filter(|l| l.found.is_none()).count());
    }
}
