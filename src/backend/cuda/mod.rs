//! NVIDIA GPUs through the CUDA driver: kernels compiled for the device at first use, products by cuBLASLt, attention by cuDNN
//! where it is there.
//!
//! Nothing of CUDA is linked: the driver and the libraries are found at run time (`libs.rs`), and what is missing is an
//! `Error::Device` that says how to get it. Everything runs on one stream, in order, but for copies from and to the host's
//! memory (`host.rs`) and for packed weights, which are unpacked ahead of their products (`ahead.rs`). Since Hopper the blocks of
//! our own kernels come while the kernel before them still ends, and wait for it in their first line (`kernels.rs`).
use super::dry::Rules;
use super::{Backend, Buf, CudaRules, HostBuf, Launch, Mark, Memory, Recording, Use, same_bytes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::result;
use host::{Stretch, Touch, Way};
use kernels::{Kernels, Start};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

mod ahead;
mod blas;
mod cudnn;
mod driver;
mod events;
pub mod fast;
mod graph;
mod host;
mod kernels;
pub mod libs;
pub mod low_rank;
mod marks;
mod memory;
pub mod nvrtc;
mod order;
mod pinned;
mod report;
mod scaled;
pub use super::cuda_text as source;
mod tune;
pub use cudnn::AttentionPath;
pub use graph::Graphs;
pub use report::{CudaDevice, CudaReport, report};

const RULES: CudaRules = CudaRules::FULL;

pub struct Cuda {
    slabs: RefCell<memory::Slabs>,
    kernels: RefCell<Kernels>,
    ring: RefCell<memory::Ring>,
    host: RefCell<host::Host>,
    ahead: RefCell<ahead::Ahead>,
    /// `None`: only plain kernels, for tests of the fast paths.
    blas: RefCell<Option<blas::Blas>>,
    cudnn: RefCell<cudnn::Cudnn>,
    graphs: Cell<Graphs>,
    /// While calls are captured.
    recorder: RefCell<Option<graph::Recorder>>,
    /// Counts changes of what decides how a call runs.
    epoch: Cell<u64>,
    /// Last, so that what lives on it goes first.
    device: driver::Device,
}

impl Cuda {
    /// `LUTHIER_CUDA_ATTENTION` chooses what runs attention ([`AttentionPath`]), `LUTHIER_CUDA_GRAPHS` what becomes of recorded
    /// calls ([`Graphs`]).
    pub fn new(ordinal: usize) -> Result<Cuda> {
        Cuda::with_attention(ordinal, AttentionPath::from_env()?)
    }
    pub fn with_attention(ordinal: usize, path: AttentionPath) -> Result<Cuda> {
        let cuda = Cuda::plain(ordinal)?;
        *cuda.blas.borrow_mut() = Some(blas::Blas::new(&cuda.device)?);
        cuda.slabs.borrow_mut().ledger.take_for(Use::Workspace, RULES.workspace());
        *cuda.cudnn.borrow_mut() = cudnn::Cudnn::new(path)?;
        cuda.graphs.set(Graphs::from_env()?);
        Ok(cuda)
    }
    /// Without fast paths: every op is the plain kernel of its name.
    pub fn plain(ordinal: usize) -> Result<Cuda> {
        let device = driver::Device::new(ordinal)?;
        if let Some(what) = libs::missing("nvrtc") {
            return Err(Error::device("cuda", what));
        }
        let ring = RefCell::new(memory::Ring::new(&device)?);
        let host = RefCell::new(host::Host::new(&device)?);
        let ahead = RefCell::new(ahead::Ahead::new(&device)?);
        let cudnn = RefCell::new(cudnn::Cudnn::new(AttentionPath::Own)?);
        Ok(Cuda {
            slabs: RefCell::default(),
            kernels: RefCell::default(),
            ring,
            host,
            ahead,
            blas: RefCell::new(None),
            cudnn,
            graphs: Cell::new(Graphs::Off),
            recorder: RefCell::default(),
            epoch: Cell::new(0),
            device,
        })
    }
    /// From now on recorded calls run so.
    pub fn set_graphs(&self, graphs: Graphs) {
        self.graphs.set(graphs);
        self.epoch.set(self.epoch.get() + 1);
    }
    /// A graph has launches and copies on the device, and nothing else.
    fn not_recording(&self, what: &str) -> Result<()> {
        match self.recorder.borrow().is_some() {
            true => Err(Error::Bug(format!("{what} among recorded calls"))),
            false => Ok(()),
        }
    }
    /// Queues what touches these, in the order that a recording wants.
    fn queue(
        &self,
        touched: impl FnOnce(&mut graph::Recorder) -> Vec<order::Touched>,
        call: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let recorded = match self.recorder.borrow_mut().as_mut() {
            Some(recorder) => {
                let touched = touched(recorder);
                Some(recorder.before(&self.device, touched)?)
            }
            None => None,
        };
        call()?;
        match (recorded, self.recorder.borrow_mut().as_mut()) {
            (Some(call), Some(recorder)) => recorder.after(&self.device, call),
            _ => Ok(()),
        }
    }
    /// For all but the copies to and from the host.
    fn wait(&self) -> Result<()> {
        self.not_recording("waiting")?;
        self.device.bind()?;
        self.ahead.borrow_mut().join(&self.device)?;
        self.device.stream.synchronize().map_err(driver::failed("waiting for the device"))
    }
    /// Calls of attention that cuDNN ran, and what it planned, a line each.
    pub fn cudnn(&self) -> (u64, Vec<String>) {
        let cudnn = self.cudnn.borrow();
        (cudnn.runs(), cudnn.plans())
    }
    fn run_kernel(&self, launch: &Launch, variant: Option<source::Variant>, pointers: &[u64]) -> Result<()> {
        // recorded calls have dependencies of their own
        let start = if self.recorder.borrow().is_some() { Start::After } else { Start::early(&self.device) };
        self.kernels.borrow_mut().run((&self.device, self.device.raw_stream(), start), launch, variant, pointers)
    }
    /// A launch that unpacks a weight.
    fn unpack(&self, launch: &Launch) -> Result<()> {
        let (mut host, mut waits) = (self.host.borrow_mut(), false);
        for (i, buf) in launch.args().iter().flatten().enumerate() {
            waits |= host.before(&self.device, buf, if i == 0 { Touch::Writes } else { Touch::Reads })?;
        }
        let pointers: Vec<u64> = launch.args().iter().map(|buf| buf.map_or(0, |buf| self.ptr(buf))).collect();
        self.ahead.borrow_mut().unpack(&self.device, launch, waits, |stream| {
            self.kernels.borrow_mut().run((&self.device, stream, Start::After), launch, None, &pointers)
        })
    }
    fn ptr(&self, buf: &Buf) -> u64 {
        self.slabs.borrow().ptr(buf)
    }
    /// The same, for what is queued next and does this to the buffer.
    fn reach(&self, buf: &Buf, touch: Touch) -> Result<u64> {
        let waits = self.host.borrow_mut().before(&self.device, buf, touch)?;
        self.ahead.borrow_mut().before(&self.device, buf, if waits { Touch::Writes } else { touch })?;
        Ok(self.ptr(buf))
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
    fn driver(&self) -> Option<String> {
        report::driver_version().ok().map(|(major, minor)| format!("CUDA {major}.{minor}"))
    }
    fn alloc(&self, len: usize, dtype: DType) -> Result<Buf> {
        self.not_recording("an allocation")?;
        self.device.bind()?;
        let slab = self.slabs.borrow_mut().alloc(&self.device, RULES.bytes(len, dtype) as usize)?;
        self.ahead.borrow_mut().write(slab);
        Ok(Buf { slab, start: 0, len, dtype, width: dtype.size() })
    }
    fn free(&self, buf: Buf) {
        if self.device.bind().is_ok() {
            // A failure here means a lost device, which the next `sync` reports.
            let _ = self.host.borrow_mut().before_free(&self.device, buf.slab);
            let _ = self.ahead.borrow_mut().before_free(&self.device, buf.slab);
            self.cudnn.borrow_mut().drop_sequences(self, &buf);
            self.slabs.borrow_mut().free(&self.device, buf.slab);
        }
    }
    fn upload(&self, to: &mut Buf, bytes: &[u8]) -> Result<()> {
        same_bytes("upload", to.bytes(), bytes.len())?;
        self.not_recording("an upload")?;
        self.device.bind()?;
        self.cudnn.borrow_mut().forget(to);
        let to = self.reach(to, Touch::Writes)?;
        self.ring.borrow_mut().upload(&self.device, to, bytes)
    }
    fn download(&self, from: &Buf) -> Result<Vec<u8>> {
        self.device.bind()?;
        let mut bytes = vec![0; from.bytes()];
        if !bytes.is_empty() {
            let from = self.reach(from, Touch::Reads)?;
            // SAFETY: `ptr` checked the range; `wait` waits before the bytes are looked at.
            unsafe { result::memcpy_dtoh_async(&mut bytes, from, self.device.raw_stream()) }
                .map_err(driver::failed("download"))?;
        }
        self.wait()?;
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
        let (place, source) = (self.reach(to, Touch::Writes)?, self.reach(from, Touch::Reads)?);
        let touched = |_: &mut _| vec![(Stretch::of(to), Touch::Writes), (Stretch::of(from), Touch::Reads)];
        self.queue(touched, || {
            // SAFETY: `ptr` checked both ranges, and they do not overlap.
            unsafe { result::memcpy_dtod_async(place, source, to.bytes(), self.device.raw_stream()) }
                .map_err(driver::failed("copy"))
        })
    }
    fn launch(&self, launch: &Launch) -> Result<()> {
        self.device.bind()?;
        let recorded = self.recorder.borrow().is_some();
        if ahead::unpacks(launch.op()) && !recorded {
            return self.unpack(launch);
        }
        let reach = |(arg, buf): (&crate::ops::Arg, &Option<&Buf>)| {
            let touch = if arg.access.writes() { Touch::Writes } else { Touch::Reads };
            buf.map_or(Ok(0), |buf| self.reach(buf, touch))
        };
        let args = launch.op().spec().args.iter().zip(launch.args());
        let pointers: Vec<u64> = args.map(reach).collect::<Result<_>>()?;
        self.cudnn.borrow_mut().forget_written(launch);
        let plain = self.blas.borrow().is_none();
        self.queue(
            |recorder| recorder.launch(self, launch, &pointers),
            || match !plain && fast::run(self, launch, &pointers)? {
                true => Ok(()),
                false => self.run_kernel(launch, None, &pointers),
            },
        )?;
        if recorded { Ok(()) } else { self.ahead.borrow_mut().after(&self.device, launch.args()) }
    }
    fn record(&self, recording: &mut Recording, calls: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        graph::record(self, recording, calls)
    }
    fn has_fp8(&self) -> bool {
        self.device.capability >= (8, 9) && self.blas.borrow().is_some()
    }
    fn has_low_rank(&self) -> bool {
        // its sums are others than those of the products that stand in where T is made again: which layers do that is a matter of memory
        self.cudnn.borrow().bits == cudnn::Bits::Any && low_rank::is_there(self)
    }
    fn sequences(&self, span: &Buf, cu_seqlens: &[u32], window: Option<u32>) {
        self.cudnn.borrow_mut().tell(span, cu_seqlens, window);
    }
    fn set_deterministic(&self, wanted: bool) {
        self.epoch.set(self.epoch.get() + 1);
        self.cudnn.borrow_mut().bits = if wanted { cudnn::Bits::Same } else { cudnn::Bits::Any };
        let choice = if wanted { blas::Choice::First } else { blas::Choice::Fastest };
        self.blas.borrow_mut().iter_mut().for_each(|blas| blas.set_choice(choice));
    }
    fn sync(&self) -> Result<()> {
        self.wait()?;
        self.host.borrow_mut().sync()
    }
    fn mark(&self) -> Result<Mark> {
        self.device.bind()?;
        self.ahead.borrow_mut().join(&self.device)?;
        marks::mark(&self.device)
    }
    fn elapsed(&self, marks: Vec<Mark>) -> Result<Vec<f64>> {
        self.device.bind()?;
        marks::elapsed(marks)
    }
    fn memory(&self) -> Memory {
        Memory { total: Some(self.device.total), ..self.slabs.borrow().ledger.memory }
    }
    fn available(&self) -> Option<u64> {
        self.device.bind().ok()?;
        let (free, _) = self.device.context.mem_get_info().ok()?;
        Some(free as u64 + self.device.pooled())
    }
    fn rules(&self) -> Rc<dyn Rules> {
        let workspace = if self.blas.borrow().is_some() { RULES.workspace } else { 0 };
        Rc::new(CudaRules { workspace, cudnn: self.cudnn.borrow().may_run(self.device.capability) })
    }
    fn charge(&self, to: Use) -> Use {
        self.slabs.borrow_mut().ledger.charge(to)
    }
    fn host_alloc(&self, len: usize, dtype: DType) -> Result<HostBuf> {
        self.device.bind()?;
        let (slab, bytes) = self.host.borrow_mut().alloc(RULES.host_bytes(len, dtype) as usize)?;
        self.slabs.borrow_mut().ledger.take_host(bytes);
        Ok(HostBuf(Buf { slab, start: 0, len, dtype, width: dtype.size() }))
    }
    fn host_free(&self, buf: HostBuf) {
        // A failure here means a lost device, which the next `sync` reports.
        if let Ok(bytes) = self.device.bind().and_then(|()| self.host.borrow_mut().free(&buf.0)) {
            self.slabs.borrow_mut().ledger.give_host(bytes);
        }
    }
    fn to_host(&self, to: &mut HostBuf, from: &Buf) -> Result<()> {
        super::host::check(&to.0, from)?;
        self.not_recording("a copy to the host")?;
        self.device.bind()?;
        self.ahead.borrow_mut().before(&self.device, from, Touch::Reads)?;
        self.host.borrow_mut().copy(&self.device, Way::ToHost, (from, self.ptr(from)), &to.0)
    }
    fn from_host(&self, to: &mut Buf, from: &HostBuf) -> Result<()> {
        super::host::check(to, &from.0)?;
        self.not_recording("a copy from the host")?;
        self.device.bind()?;
        self.cudnn.borrow_mut().forget(to);
        self.ahead.borrow_mut().before(&self.device, to, Touch::Writes)?;
        self.host.borrow_mut().copy(&self.device, Way::FromHost, (to, self.ptr(to)), &from.0)
    }
    fn rows_from_host(&self, to: &mut Buf, from: &HostBuf, ids: &[u32]) -> Result<()> {
        let row = super::host::check_rows(to, &from.0, ids)? * to.width;
        self.not_recording("a copy from the host")?;
        self.device.bind()?;
        self.cudnn.borrow_mut().forget(to);
        let to = self.reach(to, Touch::Writes)?;
        let host = self.host.borrow();
        self.ring.borrow_mut().upload_rows(&self.device, to, host.written(&from.0)?, row, ids)
    }
    fn host_upload(&self, to: &mut HostBuf, bytes: &[u8]) -> Result<()> {
        same_bytes("host_upload", to.0.bytes(), bytes.len())?;
        self.device.bind()?;
        self.host.borrow_mut().upload(&to.0, bytes)
    }
    fn host_download(&self, from: &HostBuf) -> Result<Vec<u8>> {
        self.device.bind()?;
        self.host.borrow_mut().download(&from.0)
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
