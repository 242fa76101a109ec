//! luthier fine-tunes language models on any GPU.
#![expect(non_snake_case, reason = "N, C, O … are the dims of the docs, the WGSL and the CUDA")]
#![allow(clippy::too_many_arguments, reason = "a kernel takes the buffers it takes")]
#![allow(clippy::needless_range_loop, reason = "references read like the kernels: plain indices")]
pub mod backend;
pub mod data;
pub mod dtype;
pub mod error;
pub mod export;
pub mod infer;
pub mod io;
pub mod model;
pub mod ops;
pub mod rng;
pub mod train;
pub use error::{Error, Result};
