//! The loop's course: float16 and its loss scale, evaluations and what hangs on them, and what happens when numbers go bad.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
mod bad;
mod bench;
#[cfg(feature = "wgpu")]
#[path = "../support/device.rs"]
mod device;
mod evaluation;
mod float16;
mod full;
mod lost;
mod places;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the golden tests use the rest")]
mod support;
mod tricks;
