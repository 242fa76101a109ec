//! The memory rules of backends that need no device to state them.
use super::dry::Rules;
use crate::dtype::DType;

/// Floats are held as f32, in words of 8 bytes.
pub struct CpuRules;

impl Rules for CpuRules {
    fn name(&self) -> &'static str {
        "cpu"
    }
    fn width(&self, dtype: DType) -> usize {
        if dtype.is_float() { 4 } else { dtype.size() }
    }
    fn bytes(&self, len: usize, dtype: DType) -> u64 {
        (len * self.width(dtype)).next_multiple_of(8) as u64
    }
    fn host_bytes(&self, len: usize, dtype: DType) -> u64 {
        self.bytes(len, dtype)
    }
}

/// Allocations are multiples of 256 bytes; beside them there is the workspace of cuBLASLt.
pub struct CudaRules {
    pub workspace: u64,
}

impl CudaRules {
    /// What NVIDIA advises for Hopper.
    pub const WORKSPACE: usize = 32 << 20;
}

impl Rules for CudaRules {
    fn name(&self) -> &'static str {
        "cuda"
    }
    fn bytes(&self, len: usize, dtype: DType) -> u64 {
        (len * dtype.size()).next_multiple_of(256).max(256) as u64
    }
    fn host_bytes(&self, len: usize, dtype: DType) -> u64 {
        (len * dtype.size()).max(1) as u64
    }
    fn workspace(&self) -> u64 {
        self.workspace
    }
}
