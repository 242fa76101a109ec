//! Choosing an algorithm of cuBLASLt by timing its proposals on the product at hand, once for a device and a library: what was chosen is
//! kept on disk, so that a run that goes on computes the same bits as before.
use super::driver::{Device, failed};
use super::memory;
use crate::backend::kept::Kept;
use crate::error::Result;
use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;
use cudarc::driver::{result, sys};

/// Runs of each algorithm, the first of which does not count.
const RUNS: usize = 9;
/// The first proposal stays unless another takes less than this share of its time.
const WORTH: f32 = 0.95;

/// What was chosen for this product before.
pub(super) fn kept(product: &str, device: &Device, version: usize) -> Kept {
    let on = format!("{} {} {version}", device.name, device.arch);
    Kept::new("product", "algo", &[product, &on])
}

/// The fastest of `algos`. `run` queues one, to another place than its output where that is added to.
pub(super) fn choose(
    device: &Device,
    algos: &[cublasLtMatmulAlgo_t],
    kept: Kept,
    out_bytes: usize,
    adds: bool,
    run: impl Fn(&cublasLtMatmulAlgo_t, Option<u64>) -> Result<()>,
) -> Result<cublasLtMatmulAlgo_t> {
    if let Some(known) = kept.read().and_then(|bytes| algos.iter().find(|algo| bytes == code(algo))) {
        return Ok(*known);
    }
    let place = if adds { memory::alloc(device, out_bytes).map(Some) } else { Ok(None) };
    // no room to try: the first, for now
    let Ok(place) = place else { return Ok(algos[0]) };
    let timed = best(device, algos, |algo| run(algo, place));
    if let Some(place) = place {
        memory::free(device, place).map_err(failed("trying a product"))?;
    }
    let chosen = algos[timed?];
    kept.write(&code(&chosen));
    Ok(chosen)
}

fn code(algo: &cublasLtMatmulAlgo_t) -> Vec<u8> {
    bytemuck::cast_slice(&algo.data).to_vec()
}

/// The place of the fastest.
fn best(
    device: &Device,
    algos: &[cublasLtMatmulAlgo_t],
    run: impl Fn(&cublasLtMatmulAlgo_t) -> Result<()>,
) -> Result<usize> {
    let mut best = (0, f32::INFINITY);
    for (i, algo) in algos.iter().enumerate() {
        // one that cannot run after all is not the fastest
        let Ok(time) = time(device, || run(algo)) else { continue };
        if time < best.1 * if i == 0 { 1.0 } else { WORTH } {
            best = (i, time);
        }
    }
    Ok(best.0)
}

/// Milliseconds of the fastest of a few runs.
fn time(device: &Device, run: impl Fn() -> Result<()>) -> Result<f32> {
    let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("an event"));
    let marks = (0..=RUNS).map(|_| event()).collect::<Result<Vec<_>>>()?;
    let timed = between(device, &marks, run);
    for mark in marks {
        // SAFETY: created above, and no longer waited for.
        unsafe { result::event::destroy(mark) }.map_err(failed("an event"))?;
    }
    timed
}

fn between(device: &Device, marks: &[sys::CUevent], run: impl Fn() -> Result<()>) -> Result<f32> {
    let fail = failed("timing a product");
    // SAFETY: the events live until the caller destroys them.
    let record = |mark: &sys::CUevent| unsafe { result::event::record(*mark, device.raw_stream()) }.map_err(&fail);
    record(&marks[0])?;
    for mark in &marks[1..] {
        run()?;
        record(mark)?;
    }
    // SAFETY: as above; the last is recorded after all others.
    unsafe { result::event::synchronize(marks[marks.len() - 1]) }.map_err(&fail)?;
    let mut least = f32::INFINITY;
    for pair in marks[1..].windows(2) {
        // SAFETY: both have passed.
        least = least.min(unsafe { result::event::elapsed(pair[0], pair[1]) }.map_err(&fail)?);
    }
    Ok(least)
}
