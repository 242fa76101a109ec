//! A graph made ready to run: the first engine of cuDNN's heuristic that takes it.
use super::backward;
use super::descriptor::{Descriptor, check};
use super::forward;
use super::problem::{Direction, Problem};
use crate::backend::kept::Kept;
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
    /// What it was made of, and may refer to.
    _parts: Vec<Descriptor>,
}

/// The device that a plan is for: one that is here, or one that is described.
pub(super) enum Target {
    Handle(sys::cudnnHandle_t),
    #[cfg(test)]
    Described(Descriptor),
}

/// What makes the graphs: a plan of another text is another plan.
const TEXTS: [&str; 5] = [
    include_str!("forward.rs"),
    include_str!("backward.rs"),
    include_str!("problem.rs"),
    include_str!("graph.rs"),
    include_str!("plan.rs"),
];

impl Plan {
    /// From the disk, if it was made before for such a `device`; else made. An error of the last engine that was tried if
    /// none takes the problem.
    pub fn new(problem: &Problem, target: &Target, device: &str) -> Result<Plan> {
        let from = [TEXTS.concat(), format!("{problem:?}"), device.into()];
        let kept = Kept::new("cudnn", "json", &from.each_ref().map(String::as_str));
        if let Some(plan) = kept.read().and_then(|json| Plan::read(&json, target).ok()) {
            return Ok(plan);
        }
        let plan = Plan::make(problem, target)?;
        if let Ok(json) = plan.json() {
            kept.write(&json);
        }
        Ok(plan)
    }
    /// As `read` takes it.
    pub fn json(&self) -> Result<Vec<u8>> {
        self.plan.text(Name::CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION)
    }
    pub fn read(json: &[u8], target: &Target) -> Result<Plan> {
        let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, Type::CUDNN_TYPE_CHAR, json)?;
        Plan::ready(plan, target)
    }
    pub fn make(problem: &Problem, target: &Target) -> Result<Plan> {
        let graph = match problem.direction {
            Direction::Forward => forward::graph(problem)?,
            Direction::Backward => backward::graph(problem)?,
        };
        let (graph, mut parts) = graph.finish(target.handle())?;
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
        let mut refused = Error::device("cuda", "cudnn: no engine");
        for engine in engines {
            let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
            plan.set_descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &engine)?;
            match Plan::ready(plan, target) {
                Ok(plan) => {
                    parts.extend([engine, heuristic, graph]);
                    return Ok(Plan { _parts: parts, ..plan });
                }
                Err(e) => refused = e,
            }
        }
        Err(refused)
    }
    fn ready(plan: Descriptor, target: &Target) -> Result<Plan> {
        match target {
            Target::Handle(handle) => {
                plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Type::CUDNN_TYPE_HANDLE, &[*handle])?
            }
            #[cfg(test)]
            Target::Described(device) => plan.set_descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device)?,
        }
        let plan = plan.finalize()?;
        let workspace = plan.integer(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)? as usize;
        Ok(Plan { plan, workspace, _parts: Vec::new() })
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

impl Target {
    /// Null: none.
    fn handle(&self) -> sys::cudnnHandle_t {
        match self {
            Target::Handle(handle) => *handle,
            #[cfg(test)]
            Target::Described(_) => std::ptr::null_mut(),
        }
    }
}
