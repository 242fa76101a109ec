//! The tiles that a device multiplies large matrices fastest with: a few candidates are timed when it is first used, and the choice
//! is remembered on disk. All candidates add in the same order, so the choice changes no bit.
use super::adapter::AdapterReport;
use super::{Wgpu, coop, plan};
use crate::backend::kept::Kept;
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::matmul::MatMul;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Places in [`plan::LARGE`] and in [`coop::LARGE`]; the first suits most devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    pub plain: usize,
    pub coop: usize,
}

impl Tiles {
    /// With one that a device of such limits can run, if there is any.
    pub(super) fn within(self, limits: &wgpu::Limits) -> Tiles {
        let fits = |place: &usize| plan::LARGE[*place].fits(limits);
        let plain = [self.plain].into_iter().chain(0..plan::LARGE.len()).find(fits);
        Tiles { plain: plain.unwrap_or(self.plain), ..self }
    }
}

/// Side of the product that is timed, and of the one that is where that takes less than so many seconds: waves of workgroups that
/// fill such a device only in part tell little of larger products.
const SIDE: usize = 2048;
const LONG_SIDE: usize = 4096;
const SHORT: f64 = 2e-3;
/// Runs of it in a row, and how often; the fastest counts.
const RUNS: usize = 4;
const TIMES: usize = 3;

/// Those of this adapter. Software is not timed: it would take longer than it brings.
pub fn tiles(report: &AdapterReport, trial: impl FnOnce() -> Result<Wgpu>) -> Result<Tiles> {
    if !report.hardware {
        return Ok(Tiles::default());
    }
    let candidates = format!("{:?} {:?}", plan::LARGE, coop::LARGE.map(|place| coop::TILES[place]));
    let kept = Kept::new("wgpu-tiles", "json", &[&report.name, &report.api, &report.driver, &candidates]);
    let known = kept.read().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(known) = known.filter(|t: &Tiles| t.plain < plan::LARGE.len() && t.coop < coop::LARGE.len()) {
        return Ok(known);
    }
    let found = time(&trial()?)?;
    kept.write(&serde_json::to_vec(&found).unwrap_or_default());
    Ok(found)
}

/// By a backend of its own, whose memory nobody counts.
fn time(b: &Wgpu) -> Result<Tiles> {
    let mut tiles = Tiles::default();
    let first = seconds(b, DType::F32, SIDE).unwrap_or(f64::INFINITY);
    let side = if first < SHORT * RUNS as f64 { LONG_SIDE } else { SIDE };
    tiles.plain = fastest(b.tiles().into_iter(), |place| {
        b.set_tiles(Tiles { plain: place, ..tiles });
        seconds(b, DType::F32, side)
    });
    if b.report().matrix_unit.is_some() {
        tiles.coop = fastest(0..coop::LARGE.len(), |place| {
            b.set_tiles(Tiles { coop: place, ..tiles });
            seconds(b, DType::F16, SIDE)
        });
    }
    Ok(tiles)
}

/// One that does not run is not chosen.
fn fastest(places: impl Iterator<Item = usize>, seconds: impl Fn(usize) -> Result<f64>) -> usize {
    let times = places.map(|place| (place, seconds(place).unwrap_or(f64::INFINITY)));
    times.min_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(place, _)| place)
}

fn seconds(b: &Wgpu, dtype: DType, side: usize) -> Result<f64> {
    let bufs = [b.alloc(side * side, dtype)?, b.alloc(side * side, dtype)?, b.alloc(side * side, dtype)?];
    let time = run(b, &bufs, side);
    bufs.into_iter().for_each(|buf| b.free(buf));
    time
}

fn run(b: &Wgpu, [out, x, y]: &[Buf; 3], side: usize) -> Result<f64> {
    let n = side as u32;
    let p = MatMul { I: n, J: n, Q: n, ld_out: n, ld_a: n, ld_b: n, alpha: 1.0 };
    let whole = |buf: &Buf| buf.view(0, side * side);
    // values that are no zeros: those cost less power, and so less time
    (b as &dyn Backend).fill(&mut whole(x), 0.37)?;
    (b as &dyn Backend).fill(&mut whole(y), -1.3)?;
    let batch = |runs: usize| {
        let start = Instant::now();
        (0..runs).try_for_each(|_| b.matmul_nt(&mut whole(out), x, y, &p))?;
        b.sync()?;
        Ok(start.elapsed().as_secs_f64())
    };
    batch(1)?;
    (0..TIMES).map(|_| batch(RUNS)).try_fold(f64::INFINITY, |best, time| Ok(time?.min(best)))
}
