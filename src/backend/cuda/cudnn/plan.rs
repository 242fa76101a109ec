//! A graph made ready to run: the first engine of cuDNN's heuristic that takes it.
use super::backward;
use super::descriptor::{Descriptor, check};
use super::forward;
use super::problem::{Direction, Problem};
use crate::error::{Error, Result};
use cudarc::cudnn::sys;
use std::ffi::c_void;
use sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type, cudnnBackendDescriptorType_t as Kind,
};

pub(super) struct Plan {
    plan: Descriptor,
    /// Bytes.
    pub workspace: usize,
    /// What the plan may refer to.
    _parts: Vec<Descriptor>,
}

/// The device that a plan is for: one that is here, or one that is described.
pub(super) enum Target {
    Handle(sys::cudnnHandle_t),
    #[cfg(test)]
    Described(Descriptor),
}

impl Plan {
    /// An error of the last engine that was tried if none takes the problem.
    pub fn new(problem: &Problem, target: &Target) -> Result<Plan> {
        let graph = match problem.direction {
            Direction::Forward => forward::graph(problem)?,
            Direction::Backward => backward::graph(problem)?,
        };
        let handle = match target {
            Target::Handle(handle) => *handle,
            #[cfg(test)]
            Target::Described(_) => std::ptr::null_mut(),
        };
        let (graph, mut parts) = graph.finish(handle)?;
        let heuristic = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        heuristic.set_descriptor(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &graph)?;
        let mode = sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A;
        heuristic.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, Type::CUDNN_TYPE_HEUR_MODE, &[mode])?;
        #[cfg(test)]
        if let Target::Described(device) = target {
            heuristic.set_descriptor(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device)?;
        }
        let heuristic = heuristic.finalize()?;
        let engines = heuristic.list(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?;
        parts.extend([graph, heuristic]);
        let mut refused = Error::device("cuda", "cudnn: no engine");
        for engine in engines {
            match ready(&engine, handle) {
                Ok(plan) => {
                    let workspace = plan.integer(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)? as usize;
                    parts.push(engine);
                    return Ok(Plan { plan, workspace, _parts: parts });
                }
                Err(e) => refused = e,
            }
        }
        Err(refused)
    }
    /// Queues a run; `given` are ids with addresses, of the device or, for scalars, of the host.
    pub fn run(&self, handle: sys::cudnnHandle_t, given: &[(i64, u64)], workspace: u64) -> Result<()> {
        let (ids, pointers): (Vec<i64>, Vec<u64>) = given.iter().copied().unzip();
        let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        let pointer = Type::CUDNN_TYPE_VOID_PTR;
        pack.set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, pointer, &pointers)?;
        pack.set_integers(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &ids)?;
        pack.set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, pointer, &[workspace as *mut c_void])?;
        let pack = pack.finalize()?;
        // SAFETY: the caller gives every id of the graph, with room for what the problem says.
        check("attention", unsafe { sys::cudnnBackendExecute(handle, self.plan.raw(), pack.raw()) })
    }
}

fn ready(engine: &Descriptor, handle: sys::cudnnHandle_t) -> Result<Descriptor> {
    let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
    plan.set_descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine)?;
    if !handle.is_null() {
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Type::CUDNN_TYPE_HANDLE, &[handle])?;
    }
    plan.finalize()
}
