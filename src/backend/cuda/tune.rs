//! Choosing an algorithm of cuBLASLt by timing its proposals on the product at hand, once for a device and a library: what was chosen is
//! kept on disk, so that a run that goes on computes the same bits as before.
use super::driver::{Device, failed};
use super::{marks, memory};
use crate::backend::kept::Kept;
use crate::error::Result;
use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;

/// Seconds of a turn; short products end with so many calls.
const TURN: f64 = 0.005;
const CALLS: f64 = 30.0;
/// So many turns run before the first.
const BEFORE: usize = 12;

/// What was chosen for this product before.
pub(super) fn kept(product: &str, device: &Device, version: usize) -> Kept {
    let on = format!("{} {} {version}", device.name, device.arch);
    Kept::new("product", "algo", &[product, &on, "at work"])
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

/// The place of the fastest. At work a GPU slows down until it is within its power, and how far that is, is a matter of the algorithm
/// and of what ran before: so all have their turns there and back again, then the better half has, until one is left.
fn best(
    device: &Device,
    algos: &[cublasLtMatmulAlgo_t],
    run: impl Fn(&cublasLtMatmulAlgo_t) -> Result<()>,
) -> Result<usize> {
    let first = || run(&algos[0]);
    let calls = (TURN / time(device, 1, first)?).clamp(1.0, CALLS) as usize;
    time(device, BEFORE * calls, first)?;
    let mut left: Vec<(usize, f64)> = (0..algos.len()).map(|i| (i, 0.0)).collect();
    while left.len() > 1 {
        for _ in 0..2 {
            for (i, spent) in &mut left {
                // one that cannot run after all is not the fastest
                *spent += time(device, calls, || run(&algos[*i])).unwrap_or(f64::INFINITY);
            }
            left.reverse();
        }
        left.sort_by(|a, b| a.1.total_cmp(&b.1));
        left.truncate(left.len().div_ceil(2));
    }
    Ok(left[0].0)
}

/// Seconds of a call, of so many in a row behind one that does not count.
fn time(device: &Device, calls: usize, run: impl Fn() -> Result<()>) -> Result<f64> {
    run()?;
    let start = marks::mark(device)?;
    (0..calls).try_for_each(|_| run())?;
    let all = marks::elapsed(vec![start, marks::mark(device)?])?;
    Ok(all.iter().sum::<f64>() / calls as f64)
}
