//! Attention by cuDNN's graph API: on Hopper and datacenter Blackwell about twice as fast as our own tensor-core kernels.
//!
//! cuDNN wants to know the mask, and the op sees only tables on the device; so the model tells the backend which sequences a
//! span table was filled from ([`sequences`]). Then a call is a [`problem::Problem`], a graph of small operations
//! ([`forward`], [`backward`]) that cuDNN fuses into one kernel, and a [`plan::Plan`] kept for the next call.
//! What is not told, or does not fit, runs on our own kernels.
use super::{Cuda, libs};
use crate::backend::{Buf, Launch, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use call::Call;
use cudarc::cudnn::sys;
use descriptor::check;
use plan::{Plan, Target};
use problem::{Direction, Problem};
use sequences::{LONG, Sequences};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

mod backward;
mod call;
mod descriptor;
mod forward;
mod graph;
mod plan;
mod problem;
mod sequences;
#[cfg(test)]
mod tests;

/// Older ones have known errors in attention, or want other graphs.
const OLDEST: usize = 91002;

/// Which attention runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionPath {
    /// cuDNN where it is the faster one.
    Auto,
    /// Our own kernels alone.
    Own,
    /// cuDNN wherever it can.
    Cudnn,
}

impl AttentionPath {
    /// From `LUTHIER_CUDA_ATTENTION`: auto, own or cudnn.
    pub fn from_env() -> Result<AttentionPath> {
        match std::env::var("LUTHIER_CUDA_ATTENTION").as_deref() {
            Err(_) | Ok("auto") => Ok(AttentionPath::Auto),
            Ok("own") => Ok(AttentionPath::Own),
            Ok("cudnn") => Ok(AttentionPath::Cudnn),
            Ok(other) => {
                let what = format!("LUTHIER_CUDA_ATTENTION: wanted auto, own or cudnn, got `{other}`");
                Err(Error::device("cuda", what))
            }
        }
    }
}

/// Whether the same call must give the same bits again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    Any,
    Same,
}

/// A plan, or why there is none; and how long it took to find out.
struct Tried {
    plan: std::result::Result<Rc<Plan>, String>,
    took: Duration,
}

/// The library at work.
struct Open {
    handle: sys::cudnnHandle_t,
    plans: HashMap<Problem, Tried>,
    workspace: Option<Buf>,
}

enum Library {
    Unopened,
    Absent,
    Open(Open),
}

pub(super) struct Cudnn {
    pub path: AttentionPath,
    pub bits: Bits,
    sequences: Vec<Sequences>,
    library: Library,
    runs: u64,
}

impl Cudnn {
    pub fn new(path: AttentionPath) -> Result<Cudnn> {
        match (path, libs::missing("cudnn")) {
            (AttentionPath::Cudnn, Some(what)) => return Err(Error::device("cuda", what)),
            _ => {}
        }
        Ok(Cudnn { path, bits: Bits::Any, sequences: Vec::new(), library: Library::Unopened, runs: 0 })
    }
    /// Whether a backward may run here.
    pub fn may_run(&self, capability: (i32, i32)) -> bool {
        let wanted = match self.path {
            AttentionPath::Own => false,
            AttentionPath::Auto => matches!(capability.0, 9 | 10),
            AttentionPath::Cudnn => capability.0 >= 8,
        };
        wanted && self.bits == Bits::Any && libs::missing("cudnn").is_none()
    }
    /// Calls that cuDNN has run.
    pub fn runs(&self) -> u64 {
        self.runs
    }
    /// What was planned, a line each.
    pub fn plans(&self) -> Vec<String> {
        let Library::Open(open) = &self.library else { return Vec::new() };
        let line = |(p, tried): (&Problem, &Tried)| {
            let result = match &tried.plan {
                Ok(plan) => format!("{} MiB of workspace", plan.workspace >> 20),
                Err(why) => why.clone(),
            };
            format!("{} in {:.2} s: {result}", p.words(), tried.took.as_secs_f64())
        };
        open.plans.iter().map(line).collect()
    }
    pub fn tell(&mut self, span: &Buf, cu_seqlens: &[u32], window: Option<u32>) {
        if self.path == AttentionPath::Own {
            return;
        }
        let known = self.sequences.iter().position(|s| s.is_of(span));
        let at = known.unwrap_or_else(|| {
            self.sequences.push(Sequences::new(span.view(0, span.len())));
            self.sequences.len() - 1
        });
        self.sequences[at].tell(cu_seqlens, window);
    }
    /// `written` holds something else now.
    pub fn forget(&mut self, written: &Buf) {
        self.sequences.iter_mut().filter(|s| s.overlaps(written)).for_each(Sequences::forget);
    }
    /// The same for what a launch writes: tables are u32.
    pub fn forget_written(&mut self, launch: &Launch) {
        let args = launch.op().spec().args.iter().zip(launch.args());
        let written = args.filter(|(arg, _)| arg.access.writes()).filter_map(|(_, buf)| *buf);
        written.filter(|buf| buf.dtype() == DType::U32).for_each(|buf| self.forget(buf));
    }
    /// `freed` is no buffer any more.
    pub fn drop_sequences(&mut self, cuda: &Cuda, freed: &Buf) {
        self.sequences.extract_if(.., |s| s.overlaps(freed)).for_each(|s| s.free(cuda));
    }
    /// Before the device goes. Tables and workspace go with all other memory.
    pub fn close(&mut self) {
        if let Library::Open(open) = std::mem::replace(&mut self.library, Library::Absent) {
            drop(open.plans);
            // SAFETY: created in `opened`; its plans are gone.
            let _ = unsafe { sys::cudnnDestroy(open.handle) };
        }
    }
}

/// Queues an attention if cuDNN is there for it and can do it; `false`: our own kernels do.
pub(super) fn run(cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Result<bool> {
    let mut cudnn = cuda.cudnn.borrow_mut();
    let Cudnn { path, bits, sequences, library, runs } = &mut *cudnn;
    let Some(call) = Call::new(launch, pointers) else { return Ok(false) };
    let Some(told) = sequences.iter_mut().find(|s| s.is_of(call.span) && s.is_known()) else { return Ok(false) };
    let capability = cuda.device.capability;
    let wanted = match path {
        AttentionPath::Own => false,
        AttentionPath::Auto => matches!(capability.0, 9 | 10) && told.longest() >= LONG,
        AttentionPath::Cudnn => capability.0 >= 8,
    };
    let varies = *bits == Bits::Same && call.direction == Direction::Backward;
    let problem = call.problem(told);
    if !wanted || varies || !problem.fits(capability) {
        return Ok(false);
    }
    let Some(open) = opened(cuda, library)? else { return Ok(false) };
    let Some(plan) = open.plan(&problem) else { return Ok(false) };
    call.run(cuda, open, &plan, &problem, told)?;
    *runs += 1;
    Ok(true)
}

/// The library, opened at first use; `None` if there is none, or one too old.
fn opened<'l>(cuda: &Cuda, library: &'l mut Library) -> Result<Option<&'l mut Open>> {
    if let Library::Unopened = library {
        *library = Library::Absent;
        // SAFETY: opens libraries by name, no more.
        if libs::missing("cudnn").is_none() && unsafe { sys::is_culib_present() } {
            // SAFETY: returns a number.
            let version = unsafe { sys::cudnnGetVersion() };
            if version >= OLDEST {
                *library = Library::Open(Open::new(cuda)?);
            }
        }
    }
    match library {
        Library::Open(open) => Ok(Some(open)),
        _ => Ok(None),
    }
}

impl Open {
    fn new(cuda: &Cuda) -> Result<Open> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: room for one handle; the stream lives as long as the device.
        unsafe {
            check("starting", sys::cudnnCreate(&mut handle))?;
            check("its stream", sys::cudnnSetStream(handle, cuda.device.raw_stream() as sys::cudaStream_t))?;
        }
        Ok(Open { handle, plans: HashMap::new(), workspace: None })
    }
    fn plan(&mut self, problem: &Problem) -> Option<Rc<Plan>> {
        let handle = self.handle;
        let tried = self.plans.entry(*problem).or_insert_with(|| {
            let started = Instant::now();
            let plan = Plan::new(problem, &Target::Handle(handle)).map(Rc::new).map_err(|e| e.to_string());
            Tried { plan, took: started.elapsed() }
        });
        tried.plan.as_ref().ok().cloned()
    }
    /// At least so many bytes; the largest so far stays.
    fn workspace(&mut self, cuda: &Cuda, bytes: usize) -> Result<u64> {
        if self.workspace.as_ref().is_none_or(|w| w.len() < bytes) {
            if let Some(small) = self.workspace.take() {
                cuda.slabs.borrow_mut().free(&cuda.device, small.slab);
            }
            let slab = cuda.slabs.borrow_mut().alloc_for(Use::Workspace, &cuda.device, bytes)?;
            self.workspace = Some(Buf { slab, start: 0, len: bytes, dtype: DType::U8, width: 1 });
        }
        Ok(self.workspace.as_ref().map_or(0, |w| cuda.ptr(w)))
    }
}
