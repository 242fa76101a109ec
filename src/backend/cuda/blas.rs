//! Products by cuBLASLt, one plan per (types, shape, alignment), chosen once: the same call always runs the same algorithm.
//!
//! cuBLASLt thinks in columns, we in rows: a row-major [I, J] is its J×I. So outᵀ = op(b)ᵀ·op(a)ᵀ, its A is our b:
//!
//! ```text
//! nt   b [J, Q] is a Q×J, transposed     a [I, Q] is a Q×I
//! nn   b [Q, J] is a J×Q                 a [I, Q] is a Q×I
//! tn   b [Q, J] is a J×Q                 a [Q, I] is an I×Q, transposed
//! ```
use super::driver::{Device, failed};
use super::{libs, memory};
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

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    op: Op,
    /// out, a, b.
    dtypes: [DType; 3],
    /// I, J, Q, ld_out, ld_a, ld_b.
    sizes: [u32; 6],
    /// Of out, a, b, in bytes, up to 256.
    alignments: [u32; 3],
}

/// A product that is ready to run.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    /// Of our b, a and out.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algo: sys::cublasLtMatmulAlgo_t,
}

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
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
        Ok(Blas { handle, workspace, plans: HashMap::new() })
    }
    /// Before the device goes.
    pub fn close(self, device: &Device) {
        drop(self.plans);
        // Failures here leak, and the process has no further use for the device.
        let _ = memory::free(device, self.workspace);
        // SAFETY: created in `new`; its plans are gone.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
    /// Queues the product; `false` if cuBLASLt has no algorithm for it. `pointers` and `dtypes`: out, a, b.
    pub fn run(&mut self, device: &Device, op: Op, dtypes: [DType; 3], pointers: [u64; 3], p: &MatMul) -> Result<bool> {
        if !supported(dtypes) || p.I == 0 || p.J == 0 || p.Q == 0 {
            return Ok(false);
        }
        let alignments = pointers.map(|p| 1 << p.trailing_zeros().min(8));
        let key = Key { op, dtypes, sizes: [p.I, p.J, p.Q, p.ld_out, p.ld_a, p.ld_b], alignments };
        if !self.plans.contains_key(&key) {
            let plan = plan(self.handle, &key)?;
            self.plans.insert(key, plan);
        }
        let Some(Some(plan)) = self.plans.get(&key) else { return Ok(false) };
        let beta = if adds(op) { 1.0f32 } else { 0.0 };
        let number = |x: &f32| x as *const f32 as *const c_void;
        let ([out, a, b], [b_layout, a_layout, out_layout]) = (pointers, plan.layouts);
        // SAFETY: `Launch` checked the ranges; the plan was made for these sizes, types and alignments.
        unsafe {
            result::matmul(
                self.handle,
                plan.desc,
                number(&p.alpha),
                number(&beta),
                b as *const c_void,
                b_layout,
                a as *const c_void,
                a_layout,
                out as *const c_void,
                out_layout,
                out as *mut c_void,
                out_layout,
                &plan.algo,
                self.workspace as *mut c_void,
                WORKSPACE,
                device.raw_stream() as sys::cudaStream_t,
            )
        }
        .map_err(refused("a product"))?;
        Ok(true)
    }
}

/// a and b of one type; out of that type or f32.
fn supported([out, a, b]: [DType; 3]) -> bool {
    a == b && (out == a || out == DType::F32)
}

fn adds(op: Op) -> bool {
    matches!(op, Op::matmul_nt_add | Op::matmul_nn_add | Op::matmul_tn_add)
}

fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
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

/// `None`: no algorithm.
fn plan(handle: sys::cublasLtHandle_t, key: &Key) -> Result<Option<Plan>> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let [i, j, q, ld_out, ld_a, ld_b] = key.sizes;
    let [out, a, b] = key.dtypes;
    let (b_rows, b_cols, transpose_b) = match key.op {
        Op::matmul_nt | Op::matmul_nt_add => (q, j, true),
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
    let layouts = [layout(b, b_rows, b_cols, ld_b)?, layout(a, a_rows, a_cols, ld_a)?, layout(out, j, i, ld_out)?];
    let mut plan = Plan { desc, layouts, algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] } };
    match heuristic(handle, &plan, key.alignments)? {
        Some(algo) => plan.algo = algo,
        None => return Ok(None),
    }
    Ok(Some(plan))
}

/// cuBLASLt's first proposal that fits the workspace and sums split parts in f32 and in a fixed order.
fn heuristic(
    handle: sys::cublasLtHandle_t,
    plan: &Plan,
    [out, a, b]: [u32; 3],
) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let preference = Preference(result::create_matmul_pref().map_err(refused("a preference"))?);
    let in_workspace = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, in_workspace)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out)?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out)?;
    let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
    let mut count = 0;
    let [b_layout, a_layout, out_layout] = plan.layouts;
    // SAFETY: room for the one result asked for; it is read only when `count` says that it was written.
    unsafe {
        let status = sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            plan.desc,
            b_layout,
            a_layout,
            out_layout,
            out_layout,
            preference.0,
            1,
            found.as_mut_ptr(),
            &mut count,
        );
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
            || status == sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE
        {
            return Ok(None);
        }
        status.result().map_err(refused("choosing an algorithm"))?;
        let found = (count > 0).then(|| found.assume_init());
        Ok(found.filter(|f| f.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).map(|f| f.algo))
    }
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
