//! Products by cuBLASLt, one plan per (types, shape, alignment), chosen once: the same call always runs the same algorithm. Which
//! one large products run is found by timing (`tune.rs`), or is the first where the same bits are wanted everywhere.
//!
//! cuBLASLt thinks in columns, we in rows: a row-major [I, J] is its J×I. So outᵀ = op(b)ᵀ·op(a)ᵀ, its A is our b:
//!
//! ```text
//! nt   b [J, Q] is a Q×J, transposed     a [I, Q] is a Q×I
//! nn   b [Q, J] is a J×Q                 a [I, Q] is a Q×I
//! tn   b [Q, J] is a J×Q                 a [Q, I] is an I×Q, transposed
//! ```
use super::driver::{Device, failed};
use super::{libs, memory, scaled, tune};
use crate::backend::CudaRules;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::matmul::MatMul;
use cudarc::cublaslt::{result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of};

const WORKSPACE: usize = CudaRules::WORKSPACE;

/// Proposals that are timed, for the product itself and for each of its like.
const PROPOSALS: usize = 8;
/// Products of fewer multiplications take no time worth choosing for.
const LARGE: u64 = 1 << 27;

/// Which of cuBLASLt's proposals runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The first.
    First,
    /// The fastest here, of large products.
    Fastest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    op: Op,
    /// out, a, b.
    dtypes: [DType; 3],
    /// I, J, Q, ld_out, ld_a, ld_b.
    sizes: [u32; 6],
    /// Of out, a, b, in bytes, up to 256.
    alignments: [u32; 3],
}

impl Key {
    fn new(op: Op, dtypes: [DType; 3], pointers: [u64; 3], p: &MatMul) -> Key {
        let alignments = pointers.map(|p| 1 << p.trailing_zeros().min(8));
        Key { op, dtypes, sizes: [p.I, p.J, p.Q, p.ld_out, p.ld_a, p.ld_b], alignments }
    }
}

/// A product that is ready to run.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    /// Of our b, a and out.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algo: sys::cublasLtMatmulAlgo_t,
    /// Bytes of workspace that it uses.
    workspace: usize,
}

/// An algorithm that cuBLASLt proposes, and the bytes of workspace that it uses.
struct Proposal {
    algo: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    choice: Choice,
    /// `None`: cuBLASLt cannot do it.
    plans: HashMap<Key, Option<Plan>>,
}

fn refused(what: &str) -> impl Fn(result::CublasError) -> Error {
    move |e| Error::device("cuda", format!("cublasLt: {what}: {e}"))
}

impl Blas {
    pub fn new(device: &Device) -> Result<Blas> {
        if let Some(what) = libs::missing("cublasLt") {
            return Err(Error::device("cuda", what));
        }
        device.bind()?;
        let handle = result::create_handle().map_err(refused("starting"))?;
        let workspace = memory::alloc(device, WORKSPACE).map_err(failed("the workspace of cublasLt"))?;
        Ok(Blas { handle, workspace, choice: Choice::First, plans: HashMap::new() })
    }
    /// Of [`CudaRules::WORKSPACE`] bytes, for what is queued next.
    pub fn workspace(&self) -> u64 {
        self.workspace
    }
    /// Before the device goes.
    pub fn close(self, device: &Device) {
        drop(self.plans);
        // Failures here leak, and the process has no further use for the device.
        let _ = memory::free(device, self.workspace);
        // SAFETY: created in `new`; its plans are gone.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
    /// Queues the product; `false` if cuBLASLt has no algorithm for it. `pointers` and `dtypes`: out, a, b; `scales` of rows in
    /// e4m3, which are u8 here.
    pub fn run(
        &mut self,
        device: &Device,
        op: Op,
        dtypes: [DType; 3],
        pointers: [u64; 3],
        scales: Option<scaled::Scales>,
        p: &MatMul,
    ) -> Result<bool> {
        if !supported(dtypes) || p.I == 0 || p.J == 0 || p.Q == 0 {
            return Ok(false);
        }
        let key = Key::new(op, dtypes, pointers, p);
        if !self.plans.contains_key(&key) {
            let plan = self.planned(device, &key, pointers, scales, p.alpha)?;
            self.plans.insert(key, plan);
        }
        let Some(Some(plan)) = self.plans.get(&key) else { return Ok(false) };
        if let Some(scales) = scales {
            scaled::point(plan.desc, scales).map_err(refused("scales"))?;
        }
        self.queue(device, op, plan, &plan.algo, pointers, pointers[0], p.alpha)?;
        Ok(true)
    }
    /// Whether this product uses the workspace, as far as that is known.
    pub fn uses_workspace(&self, op: Op, dtypes: [DType; 3], pointers: [u64; 3], p: &MatMul) -> bool {
        let plan = self.plans.get(&Key::new(op, dtypes, pointers, p));
        plan.is_none_or(|plan| plan.as_ref().is_some_and(|plan| plan.workspace > 0))
    }
    /// From now on the first algorithm that is proposed, or the fastest: trying takes longer than a single run, so only those who
    /// repeat their products want it.
    pub fn set_choice(&mut self, choice: Choice) {
        if self.choice != choice {
            self.plans.clear();
        }
        self.choice = choice;
    }
    fn planned(
        &self,
        device: &Device,
        key: &Key,
        pointers: [u64; 3],
        scales: Option<scaled::Scales>,
        alpha: f32,
    ) -> Result<Option<Plan>> {
        let tuned =
            self.choice == Choice::Fastest && key.sizes[..3].iter().map(|x| *x as u64).product::<u64>() >= LARGE;
        let most = if tuned { PROPOSALS } else { 1 };
        let Some((mut plan, mut proposals)) = plan(self.handle, key, scales, most)? else {
            return Ok(None);
        };
        if tuned {
            let chosen = self.chosen(device, key, &plan, pointers, scales, alpha, &mut proposals)?;
            (plan.algo, plan.workspace) = (chosen.algo, chosen.workspace);
        }
        Ok(Some(plan))
    }
    /// The fastest of the proposals and of others: as kept on disk, or by timing.
    fn chosen<'p>(
        &self,
        device: &Device,
        key: &Key,
        plan: &Plan,
        pointers: [u64; 3],
        scales: Option<scaled::Scales>,
        alpha: f32,
        proposals: &'p mut Vec<Proposal>,
    ) -> Result<&'p Proposal> {
        // SAFETY: returns a number.
        let version = unsafe { sys::cublasLtGetVersion() };
        let kept = tune::kept(&format!("{key:?}"), device, version as usize);
        let known = kept.read();
        let is_known = |proposal: &Proposal| known.as_ref().is_some_and(|code| *code == tune::code(&proposal.algo));
        // others are asked for only where they are wanted: a start has many products
        if !proposals.iter().any(is_known) {
            self.add_others(plan, key, scales, proposals);
        }
        let place = match proposals.iter().position(is_known) {
            Some(place) => place,
            None => {
                let algos: Vec<_> = proposals.iter().map(|proposal| proposal.algo).collect();
                tune::choose(device, &algos, kept, self.out_bytes(key), adds(key.op), |algo, to| {
                    self.queue(device, key.op, plan, algo, pointers, to.unwrap_or(pointers[0]), alpha)
                })?
            }
        };
        Ok(&proposals[place])
    }
    /// Adds what is proposed for half as many rows and for twice as many, as far as it can do this product, too: often that is faster.
    fn add_others(&self, plan: &Plan, key: &Key, scales: Option<scaled::Scales>, proposals: &mut Vec<Proposal>) {
        let [rows, rest @ ..] = key.sizes;
        for rows in [(rows / 2).max(1), rows.saturating_mul(2)] {
            let [j, q, ld_out, ld_a, ld_b] = rest;
            // a of tn is [Q, I]: its stride must hold the rows, and be as well aligned as it is, no better
            let columns = matches!(key.op, Op::matmul_tn | Op::matmul_tn_add);
            let ld_a = if columns && rows > ld_a { ld_a.saturating_mul(3) } else { ld_a };
            let like = Key { sizes: [rows, j, q, ld_out, ld_a, ld_b], ..*key };
            // nobody asked for that product: if there is an error with it, it is none of ours
            let Ok(Some((_, others))) = self::plan(self.handle, &like, scales, PROPOSALS) else { continue };
            for Proposal { algo, .. } in others {
                if proposals.iter().all(|known| known.algo.data != algo.data) {
                    proposals.extend(check(self.handle, plan, algo));
                }
            }
        }
    }
    fn out_bytes(&self, key: &Key) -> usize {
        key.sizes[0] as usize * key.sizes[3] as usize * key.dtypes[0].size()
    }
    /// Queues the product by this algorithm; it goes to `to`, and what is added to is in `out`.
    fn queue(
        &self,
        device: &Device,
        op: Op,
        plan: &Plan,
        algo: &sys::cublasLtMatmulAlgo_t,
        [out, a, b]: [u64; 3],
        to: u64,
        alpha: f32,
    ) -> Result<()> {
        let beta = if adds(op) { 1.0f32 } else { 0.0 };
        let number = |x: &f32| x as *const f32 as *const c_void;
        let [b_layout, a_layout, out_layout] = plan.layouts;
        // SAFETY: `Launch` checked the ranges; the plan was made for these sizes, types and alignments.
        unsafe {
            result::matmul(
                self.handle,
                plan.desc,
                number(&alpha),
                number(&beta),
                b as *const c_void,
                b_layout,
                a as *const c_void,
                a_layout,
                out as *const c_void,
                out_layout,
                to as *mut c_void,
                out_layout,
                algo,
                self.workspace as *mut c_void,
                WORKSPACE,
                device.raw_stream() as sys::cudaStream_t,
            )
        }
        .map_err(refused("a product"))
    }
}

/// a and b of one type; out of that type or f32, or of any float where they are in e4m3.
fn supported([out, a, b]: [DType; 3]) -> bool {
    a == b && (out == a || out == DType::F32 || a == DType::U8)
}

fn adds(op: Op) -> bool {
    matches!(op, Op::matmul_nt_add | Op::matmul_nn_add | Op::matmul_tn_add | Op::fp8_matmul_add)
}

fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::U8 => sys::cudaDataType_t::CUDA_R_8F_E4M3,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `plan`, owned here alone.
        unsafe {
            let _ = result::destroy_matmul_desc(self.desc);
            self.layouts.iter().for_each(|l| {
                let _ = result::destroy_matrix_layout(*l);
            });
        }
    }
}

/// With up to `most` algorithms, the first of which it has. `None`: there is none.
fn plan(
    handle: sys::cublasLtHandle_t,
    key: &Key,
    scales: Option<scaled::Scales>,
    most: usize,
) -> Result<Option<(Plan, Vec<Proposal>)>> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let [i, j, q, ld_out, ld_a, ld_b] = key.sizes;
    let [out, a, b] = key.dtypes;
    let (b_rows, b_cols, transpose_b) = match key.op {
        Op::matmul_nt | Op::matmul_nt_add | Op::fp8_matmul | Op::fp8_matmul_add => (q, j, true),
        _ => (j, q, false),
    };
    let (a_rows, a_cols, transpose_a) = match key.op {
        Op::matmul_tn | Op::matmul_tn_add => (i, q, true),
        _ => (q, i, false),
    };
    let layout = |dtype, rows, cols, ld| {
        result::create_matrix_layout(data_type(dtype), rows as u64, cols as u64, ld as i64).map_err(refused("a layout"))
    };
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let desc = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).map_err(refused("a product"))?;
    for (attribute, on) in
        [(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, transpose_b), (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, transpose_a)]
    {
        let value = on as i32; // CUBLAS_OP_N, CUBLAS_OP_T
        // SAFETY: the attribute is 4 bytes.
        unsafe { result::set_matmul_desc_attribute(desc, attribute, &value as *const i32 as *const c_void, 4) }
            .map_err(refused("a product"))?;
    }
    if let Some(scales) = scales {
        scaled::describe(desc, scales).map_err(refused("a product of scaled rows"))?;
    }
    let layouts = [layout(b, b_rows, b_cols, ld_b)?, layout(a, a_rows, a_cols, ld_a)?, layout(out, j, i, ld_out)?];
    let mut plan = Plan { desc, layouts, algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] }, workspace: 0 };
    let proposals = heuristic(handle, &plan, key.alignments, most)?;
    let Some(first) = proposals.first() else { return Ok(None) };
    (plan.algo, plan.workspace) = (first.algo, first.workspace);
    Ok(Some((plan, proposals)))
}

/// cuBLASLt's first proposals that fit the workspace and sum split parts in f32 and in a fixed order.
fn heuristic(handle: sys::cublasLtHandle_t, plan: &Plan, [out, a, b]: [u32; 3], most: usize) -> Result<Vec<Proposal>> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let preference = Preference(result::create_matmul_pref().map_err(refused("a preference"))?);
    let in_workspace = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, in_workspace)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out)?;
    let mut found = vec![MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); most];
    let mut count = 0;
    let [b_layout, a_layout, out_layout] = plan.layouts;
    // SAFETY: room for the results asked for; those are read that `count` says were written.
    unsafe {
        let status = sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            plan.desc,
            b_layout,
            a_layout,
            out_layout,
            out_layout,
            preference.0,
            most as i32,
            found.as_mut_ptr() as *mut _,
            &mut count,
        );
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
            || status == sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE
        {
            return Ok(Vec::new());
        }
        status.result().map_err(refused("choosing algorithms"))?;
        let found = found.into_iter().take(count.max(0) as usize).map(|f| f.assume_init());
        let fine = found.filter(|f| f.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(fine.map(|f| Proposal { algo: f.algo, workspace: f.workspaceSize }).collect())
    }
}

/// The algorithm as a proposal for this product, if it can do it.
fn check(handle: sys::cublasLtHandle_t, plan: &Plan, algo: sys::cublasLtMatmulAlgo_t) -> Option<Proposal> {
    let [b, a, out] = plan.layouts;
    let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
    // SAFETY: all are alive, and there is room for the result, which is of numbers.
    let found = unsafe {
        sys::cublasLtMatmulAlgoCheck(handle, plan.desc, b, a, out, out, &algo, found.as_mut_ptr()).result().ok()?;
        found.assume_init()
    };
    let fine = found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= WORKSPACE;
    fine.then_some(Proposal { algo, workspace: found.workspaceSize })
}

struct Preference(sys::cublasLtMatmulPreference_t);
impl Preference {
    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<()> {
        // SAFETY: the value lives until the call returns, which copies it.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, &value as *const T as *const c_void, size_of::<T>())
        }
        .map_err(refused("a preference"))
    }
}
impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by its owner, destroyed here.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
