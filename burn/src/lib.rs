//! luthier's quantized and LoRA ops for models that are written and trained in [Burn](https://burn.dev).
//!
//! | | |
//! |---|---|
//! | [`QLoraLinear`], [`LoraLinear`] | linear layers with an adapter; made from Burn's `Linear` or from bitsandbytes' checkpoints |
//! | [`PackedWeight`] | a frozen weight in NF4 or 8 bits, which the backward keeps as it is |
//! | [`peft`] | adapters in PEFT's files |
//! | [`swiglu`], [`geglu`], [`rmsnorm`], [`rope`] | one kernel forward, one backward |
//! | [`linear_cross_entropy`], [`linear_logprob`] | a head and its loss, without the logits of all tokens |
//! | [`share`] | luthier and Burn on one wgpu device |
//!
//! The kernels are the trainer's: the same WGSL and CUDA files, the same params, the same checks, through
//! [`luthier::backend::foreign`]. Every backward is written by hand ([`ops`]); under `fusion` the ops are queued like Burn's own,
//! but not fused with them.
//!
//! Ops take f32, f16 and bf16 as far as the device has them, views as well as whole tensors. Rows of an odd length in 16 bits go by
//! f32, for the kernels read two values at a time. Adapters, RoPE's tables, losses and log-probabilities are f32 always.
//!
//! # Where it runs
//! - Feature `wgpu` (default): wherever Burn's wgpu runs as WGSL. `burn/vulkan` and `burn/metal` compile to SPIR-V and MSL and refuse
//!   WGSL; an op then says so.
//! - Feature `cuda`: through cubecl's C++ path (`cubecl/cuda-cpp`), which wants the headers of the CUDA toolkit at run time. This
//!   path is checked by the compiler, and its kernels by NVRTC; no machine of ours has run it.
//!
//! What stays with Burn's own ops: products and attention. luthier has cuBLASLt, cuDNN and kernels with dynamic shared memory for
//! them; cubecl keeps its stream to itself, and gives kernels that it did not make no dynamic shared memory.
#![expect(non_snake_case, reason = "N, C, O … are the dims of luthier's ops")]
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
compile_error!("luthier-burn has kernels for the features `wgpu` and `cuda`: turn one on");

mod kernel;
mod kernels;
mod layer;
pub mod ops;
mod packed;
pub mod peft;
#[cfg(feature = "wgpu")]
pub mod share;
mod tensor;
mod weight;
pub use kernels::{Kernels, Norm, Pairs, Turn, Way};
pub use layer::{Adapter, LoraLinear, Named, QLoraLinear};
pub use luthier::model::lora::{LoraConfig, Targets};
pub use luthier::model::rope::{Rope, RopeScaling};
pub use luthier::model::spec::Activation;
pub use packed::Packed;
pub use tensor::{Head, RopeTable, gated, geglu, linear_cross_entropy, linear_logprob, rmsnorm, rope, swiglu};
pub use weight::{Format, PackedWeight};
