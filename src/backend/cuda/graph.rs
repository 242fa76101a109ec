//! Recorded calls as CUDA graphs: the second time that they come they are captured, from then on they are launched as a whole.
//!
//! A stream captures calls as a chain. What a call touches is known, so that each is given the calls it must wait for instead
//! (`order.rs`), and what is independent runs side by side.
use super::driver::{Device, failed};
use super::host::{Stretch, Touch};
use super::order::{Call, Order, Touched};
use super::{Cuda, fast, report};
use crate::backend::{Buf, Launch, Recording};
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::ptr::null_mut;

/// What becomes of recorded calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Graphs {
    /// They run like all others.
    Off,
    /// One after the other.
    Chain,
    /// Each after those that it depends on.
    #[default]
    Branches,
}

impl Graphs {
    /// From `LUTHIER_CUDA_GRAPHS`: off, chain or branches.
    pub fn from_env() -> Result<Graphs> {
        match std::env::var("LUTHIER_CUDA_GRAPHS").as_deref() {
            Err(_) => Ok(Graphs::default()),
            Ok("off") => Ok(Graphs::Off),
            Ok("chain") => Ok(Graphs::Chain),
            Ok("branches") => Ok(Graphs::Branches),
            Ok(other) => {
                let what = format!("LUTHIER_CUDA_GRAPHS: wanted off, chain or branches, got `{other}`");
                Err(Error::device("cuda", what))
            }
        }
    }
}

/// What is kept in a [`Recording`]. An epoch is what a backend's settings were.
#[derive(Default)]
enum State {
    #[default]
    New,
    /// They have run once, so that all they need is made.
    Seen {
        epoch: u64,
    },
    Kept {
        epoch: u64,
        graph: Graph,
    },
}

/// Calls that are ready to be launched again.
struct Graph {
    exec: sys::CUgraphExec,
    /// Tables that they write.
    tables: Vec<Buf>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`; a graph that still runs ends first.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

/// As captured.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: made by `end_capture`, owned here alone.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}

/// The calls of a capture that goes on.
#[derive(Default)]
pub(super) struct Recorder {
    graphs: Graphs,
    order: Order,
    /// The last node of each call.
    nodes: Vec<sys::CUgraphNode>,
    tables: Vec<Buf>,
}

/// What libraries share behind a launch's back counts as a buffer, too.
const WORKSPACE: Stretch = Stretch { slab: u32::MAX, start: 0, end: 1 };

/// As [`crate::backend::Backend::record`].
pub(super) fn record(cuda: &Cuda, recording: &mut Recording, calls: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let (graphs, now) = (cuda.graphs.get(), cuda.epoch.get());
    // calls within recorded calls are theirs
    if graphs == Graphs::Off || cuda.recorder.borrow().is_some() {
        return calls();
    }
    let state: &mut State = recording.part();
    match state {
        State::Kept { epoch, .. } if *epoch == now => {}
        State::Seen { epoch } if *epoch == now => {
            *state = State::Kept { epoch: now, graph: capture(cuda, graphs, calls)? };
        }
        _ => {
            *state = State::New;
            calls()?;
            *state = State::Seen { epoch: now };
            return Ok(());
        }
    }
    let State::Kept { graph, .. } = state else { return Err(Error::Bug("a recording without its graph".into())) };
    cuda.device.bind()?;
    cuda.host.borrow_mut().before_all(&cuda.device)?;
    cuda.ahead.borrow_mut().before_all(&cuda.device)?;
    // SAFETY: the graph and the stream are alive, and so is what the calls use, as `Recording` demands.
    unsafe { result::graph::launch(graph.exec, cuda.device.raw_stream()) }.map_err(failed("launching a graph"))?;
    let mut cudnn = cuda.cudnn.borrow_mut();
    graph.tables.iter().for_each(|table| cudnn.forget(table));
    Ok(())
}

fn capture(cuda: &Cuda, graphs: Graphs, calls: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
    let device = &cuda.device;
    device.bind()?;
    // an event from outside cannot be waited for within
    cuda.host.borrow_mut().before_all(device)?;
    cuda.ahead.borrow_mut().before_all(device)?;
    // edges are set since CUDA 12.3
    let graphs = if report::driver_version()? < (12, 3) { Graphs::Chain } else { graphs };
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream is alive.
    unsafe { result::stream::begin_capture(device.raw_stream(), mode) }.map_err(failed("recording"))?;
    *cuda.recorder.borrow_mut() = Some(Recorder { graphs, ..Recorder::default() });
    let made = calls();
    let recorder = cuda.recorder.borrow_mut().take().expect("set above");
    // SAFETY: begun above, on the same stream.
    let captured = unsafe { result::stream::end_capture(device.raw_stream()) }.map(Captured);
    // what went wrong with a call says more than what that did to the capture
    made?;
    let captured = captured.map_err(failed("recording"))?;
    // SAFETY: the graph is whole; what it becomes does not need it any more.
    let exec = unsafe { result::graph::instantiate(captured.0, sys::CUgraphInstantiate_flags_enum(0)) };
    Ok(Graph { exec: exec.map_err(failed("making a graph"))?, tables: recorder.tables })
}

impl Recorder {
    /// The stream's next call does this.
    pub fn before(&self, device: &Device, touched: Vec<Touched>) -> Result<Call> {
        let call = self.order.next(touched);
        if self.graphs == Graphs::Branches {
            let mut nodes: Vec<_> = call.after.iter().map(|i| self.nodes[*i]).collect();
            let set = sys::CUstreamUpdateCaptureDependencies_flags_enum::CU_STREAM_SET_CAPTURE_DEPENDENCIES as u32;
            let (at, count) = (if nodes.is_empty() { null_mut() } else { nodes.as_mut_ptr() }, nodes.len());
            // SAFETY: nodes of the graph that this stream is capturing; whole dependencies have no data.
            unsafe {
                sys::cuStreamUpdateCaptureDependencies_v2(device.raw_stream(), at, std::ptr::null(), count, set)
                    .result()
            }
            .map_err(failed("recording a call"))?;
        }
        Ok(call)
    }
    /// It is queued.
    pub fn after(&mut self, device: &Device, call: Call) -> Result<()> {
        if self.graphs != Graphs::Branches {
            return Ok(());
        }
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut nodes, mut data, mut count) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: the pointers are read at once, before the stream captures anything else.
        let last = unsafe {
            sys::cuStreamGetCaptureInfo_v3(
                device.raw_stream(),
                &mut status,
                null_mut(),
                null_mut(),
                &mut nodes,
                &mut data,
                &mut count,
            )
            .result()
            .map_err(failed("recording a call"))?;
            if count == 1 { Some(*nodes) } else { None }
        };
        // a call of nothing leaves what was set before
        if let Some(node) = last.filter(|node| !self.nodes.contains(node)) {
            self.nodes.push(node);
            self.order.add(call);
        }
        Ok(())
    }
    /// What a launch touches.
    pub fn launch(&mut self, cuda: &Cuda, launch: &Launch, pointers: &[u64]) -> Vec<Touched> {
        let mut touched = Vec::new();
        for (arg, buf) in launch.op().spec().args.iter().zip(launch.args()) {
            let Some(buf) = buf else { continue };
            let touch = if arg.access.writes() { Touch::Writes } else { Touch::Reads };
            if touch == Touch::Writes && buf.dtype() == DType::U32 {
                self.tables.push(buf.view(0, buf.len()));
            }
            touched.push((Stretch::of(buf), touch));
        }
        if fast::uses_workspace(cuda, launch, pointers) {
            touched.push((WORKSPACE, Touch::Writes));
        }
        touched
    }
}
