//! Products of rows in e4m3 by cuBLASLt: each row of either side has a scale, and tensor cores want both sides along the sum.
//!
//! They add in fewer bits than f32 has (`FAST_ACCUM`), which loses less than the rounding to e4m3 did.
use cudarc::cublaslt::result::{CublasError, set_matmul_desc_attribute};
use cudarc::cublaslt::sys;
use std::ffi::c_void;
use sys::cublasLtMatmulDescAttributes_t as Attribute;

/// Where the scales of cublasLt's A and B are: those of our b and a.
pub(super) type Scales = [u64; 2];

/// Whether it may ask cuBLASLt: rows start at multiples of 16 bytes and are sixteens long.
pub(super) fn fits([I, J, Q]: [u32; 3], pointers: &[u64]) -> bool {
    I > 0 && [J, Q].iter().all(|n| *n > 0 && n.is_multiple_of(16)) && pointers.iter().all(|p| p % 16 == 0)
}

/// Makes a product one of scaled rows.
pub(super) fn describe(desc: sys::cublasLtMatmulDesc_t, scales: Scales) -> Result<(), CublasError> {
    let mode = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as u32;
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode)?;
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode)?;
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1i8)?;
    point(desc, scales)
}

/// Says where the scales are this time.
pub(super) fn point(desc: sys::cublasLtMatmulDesc_t, [a, b]: Scales) -> Result<(), CublasError> {
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, a)?;
    set(desc, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, b)
}

fn set<T>(desc: sys::cublasLtMatmulDesc_t, attribute: Attribute, value: T) -> Result<(), CublasError> {
    // SAFETY: the value lives until the call returns, which copies it; it has the attribute's type.
    unsafe { set_matmul_desc_attribute(desc, attribute, &value as *const T as *const c_void, size_of::<T>()) }
}
