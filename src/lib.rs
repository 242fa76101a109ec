//! luthier fine-tunes language models on any GPU, without Python.
//!
//! # Layers
//! Lowest first; a module uses only modules before it, and `tests/tidy.rs` checks that:
//! `error < dtype < rng < io < data < ops < backend < model < infer < export < train < cli`.
//!
//! | module | what it is about |
//! |---|---|
//! | [`ops`] | every op: one row in `ops/table.rs`, and one file with its formula, params and reference |
//! | [`backend`] | memory and launches: [`backend::cpu`] runs the references, `wgpu` the shaders, `cuda` the kernels |
//! | [`model`] | the decoder as data ([`model::spec`]), its forward and backward by hand, adapters, loading |
//! | [`data`], [`io`] | text to batches; bytes to named tensors, and models by name ([`io::hub`]) |
//! | [`train`] | config, schedule, optimizer, the loop, checkpoints that appear whole or not at all |
//! | [`infer`], [`export`] | generation with a cache; adapters and models as other tools load them |
//!
//! # What holds everywhere
//! - **One op, one row.** A row declares dims, buffers and what happens to them; from it are stamped the op's enum variant, its
//!   shapes, its reference and one checked method of [`backend::Backend`]. A [`backend::Launch`] exists only for a call that
//!   agrees with its row, so backends check nothing and cpu's `unsafe` rests on it. The name is the same in the row, the Rust
//!   function, the WGSL entry point, the CUDA kernel and the test.
//! - **Numbers.** Weights and activations are stored as f32, f16 or bf16; every sum is f32. The tests run each op's reference at
//!   f64 and hold every backend to it, on shapes around every tile.
//! - **Who sees whom is data.** Tokens are packed; attention reads for each query the range of keys it sees, and for each key
//!   the range of queries that see it. Packing, windows and caches differ only in these tables.
//! - **A method is a function of per-token log-probabilities**: it gives coef = ∂loss/∂logp, the model does the rest.
//! - **Memory is known before.** A run is rehearsed by its own code on a backend that only counts ([`backend::dry`]), by the rules
//!   that the real one allocates by; so it is laid out before its first step, and what layers keep is a plan, not a flag.
//! - **The same bits again.** cpu and wgpu are deterministic, and so are cuda's own kernels; a run that was killed goes on as if
//!   nothing had been. cuDNN's attention is not: `deterministic = true` does without its backward.
//!
//! # Adding to it
//! An op: reference, shader, kernel, cases, one row. An architecture: one file in `model/arch/`, one row, goldens. A method:
//! one file in `train/method/`. `cargo test --release --test tidy` says what is missing.
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
