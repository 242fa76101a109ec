//! Choosing an algorithm of cuBLASLt by timing its proposals on the product at hand, once for a device and a library: what was chosen is
//! kept on disk, so that a run that goes on computes the same bits as before.
use super::driver::{Device, failed};
use super::{marks, memory};
use crate::backend::kept::Kept;
use crate::error::Result;
use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;

/// Seconds of a turn; short products end with so many calls.
const TURN: f64 = 0.005;
const CALLS: f64 = 12.0;
/// So many turns run before the first.
const BEFORE: usize = 12;
/// So many are left for the last turns, of which each has so many.
const LAST: usize = 4;
const LAST_TURNS: usize = 4;
/// The first proposal stays unless another takes less than this share of its time: what is less may be noise.
const WORTH: f64 = 0.99;

/// What was chosen for this product before.
pub(super) fn kept(product: &str, device: &Device, version: usize) -> Kept {
    let on = format!("{} {} {version}", device.name, device.arch);
    Kept::new("product", "algo", &[product, &on, "at work, last turns"])
}

/// The place of the fastest of `algos`. `run` queues one, to another place than its output where that is added to.
pub(super) fn choose(
    device: &Device,
    algos: &[cublasLtMatmulAlgo_t],
    kept: Kept,
    out_bytes: usize,
    adds: bool,
    run: impl Fn(&cublasLtMatmulAlgo_t, Option<u64>) -> Result<()>,
) -> Result<usize> {
    let place = if adds { memory::alloc(device, out_bytes).map(Some) } else { Ok(None) };
    // no room to try: the first, for now
    let Ok(place) = place else { return Ok(0) };
    // one that cannot run after all is not the fastest
    let timed = fastest(algos.len(), |i, calls| time(device, calls, || run(&algos[i], place)).unwrap_or(f64::INFINITY));
    if let Some(place) = place {
        memory::free(device, place).map_err(failed("trying a product"))?;
    }
    kept.write(&code(&algos[timed]));
    Ok(timed)
}

/// As it is kept.
pub(super) fn code(algo: &cublasLtMatmulAlgo_t) -> Vec<u8> {
    bytemuck::cast_slice(&algo.data).to_vec()
}

/// The place of the fastest of so many; `time(place, calls)` runs one, and tells the seconds of a call. At work a GPU slows down until it
/// is within its power, and how far that is, is a matter of the algorithm: so they run behind each other, in turns, of which the slower
/// half has no more.
fn fastest(count: usize, time: impl Fn(usize, usize) -> f64) -> usize {
    if count == 1 {
        return 0;
    }
    let calls = (TURN / time(0, 1)).clamp(1.0, CALLS) as usize;
    time(0, BEFORE * calls);
    // place, and seconds so far
    let mut left: Vec<(usize, f64)> = (0..count).map(|i| (i, 0.0)).collect();
    let turn = |left: &mut [(usize, f64)]| left.iter_mut().for_each(|(i, spent)| *spent += time(*i, calls));
    while left.len() > LAST {
        turn(&mut left);
        left = faster_half(left);
    }
    left.iter_mut().for_each(|(_, spent)| *spent = 0.0);
    for _ in 0..LAST_TURNS {
        turn(&mut left);
        // what the clock has lost or won meanwhile comes to all
        left.reverse();
    }
    let of_first = left.iter().find(|(i, _)| *i == 0).map_or(0.0, |(_, spent)| *spent);
    let best = left.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    best.filter(|(_, spent)| *spent < WORTH * of_first).map_or(0, |(i, _)| *i)
}

/// Of three or more; the first algorithm stays, to be compared with in the end.
fn faster_half(mut left: Vec<(usize, f64)>) -> Vec<(usize, f64)> {
    left.sort_by(|a, b| a.1.total_cmp(&b.1));
    let half = left.len().div_ceil(2);
    if let Some(first) = left.iter().position(|(i, _)| *i == 0).filter(|at| *at >= half) {
        left.swap(half - 1, first);
    }
    left.truncate(half);
    left
}

/// Seconds of a call, of so many in a row behind one that does not count.
fn time(device: &Device, calls: usize, run: impl Fn() -> Result<()>) -> Result<f64> {
    run()?;
    let start = marks::mark(device)?;
    (0..calls).try_for_each(|_| run())?;
    let all = marks::elapsed(vec![start, marks::mark(device)?])?;
    Ok(all.iter().sum::<f64>() / calls as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn the_fastest_is_found_if_it_is_worth_it() {
        let of = |seconds: &[f64]| fastest(seconds.len(), |i, _| seconds[i]);
        assert_eq!((of(&[1.0]), of(&[1.0, 0.5]), of(&[0.5, 1.0])), (0, 1, 0));
        let ms = [2.9, 3.0, 2.8, 3.1, 2.7, 2.75, 3.3, 2.72, 3.2, 2.95, 2.71, 3.05, 2.81].map(|ms| ms / 1e3);
        assert_eq!(of(&ms), 4);
        let alike = ms.map(|s| 2.9e-3 + (s - 2.9e-3) / 10.0);
        assert_eq!(of(&alike), 0, "less than what it must save");
        assert_eq!(of(&[f64::INFINITY, 1.0, 0.9, f64::INFINITY]), 2, "the first cannot run");
        assert_eq!(of(&[f64::INFINITY; 5]), 0);
    }

    /// Trying 20 takes little more than two turns of each, and the last; a short product, few calls.
    #[test]
    fn trying_takes_few_calls() {
        let spent = RefCell::new(vec![0; 20]);
        fastest(20, |i, calls| {
            spent.borrow_mut()[i] += calls;
            3e-3 + i as f64 * 1e-5
        });
        let all: usize = spent.borrow().iter().sum();
        assert!(
            spent.borrow().iter().all(|calls| *calls >= 1) && all <= 2 * 20 + BEFORE + LAST * LAST_TURNS + 5,
            "{all}"
        );
        let most = RefCell::new(0);
        fastest(8, |_, calls| {
            let most = &mut *most.borrow_mut();
            *most = calls.max(*most);
            1e-5
        });
        assert_eq!(*most.borrow(), BEFORE * CALLS as usize);
    }

    #[test]
    fn the_faster_half_stays_and_the_first() {
        let of = |seconds: &[f64]| faster_half(seconds.iter().copied().enumerate().collect());
        assert_eq!(of(&[3.0, 1.0, 2.0]), [(1, 1.0), (0, 3.0)]);
        assert_eq!(of(&[1.0, 4.0, 3.0, 2.0, 5.0]), [(0, 1.0), (3, 2.0), (2, 3.0)]);
        assert_eq!(of(&[f64::INFINITY, f64::INFINITY, 1.0, 2.0]), [(2, 1.0), (0, f64::INFINITY)]);
    }
}
