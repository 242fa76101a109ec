//! Marks of the queue's moments: timestamps that the device itself writes.
use super::{State, Wgpu, fail};
use crate::backend::{Backend, Mark};
use crate::error::{Error, Result};
use std::time::Instant;
use wgpu::{Buffer, BufferUsages, Features, QuerySet};

/// Timestamps of a set.
const SET: u64 = wgpu::QUERY_SET_MAX_QUERIES as u64;
/// Of a timestamp.
const BYTES: u64 = 8;

/// What has been marked and not asked for yet.
#[derive(Default)]
pub struct Marks {
    sets: Vec<QuerySet>,
    written: u64,
}

impl Wgpu {
    fn has_timestamps(&self) -> bool {
        self.device.features().contains(Features::TIMESTAMP_QUERY.union(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS))
    }

    pub(super) fn timestamp(&self) -> Result<Mark> {
        if !self.has_timestamps() {
            self.sync()?;
            return Ok(Mark::Host(Instant::now()));
        }
        let State { marks, recorder, .. } = &mut *self.state.borrow_mut();
        let (set, place) = (marks.written / SET, marks.written % SET);
        if set as usize == marks.sets.len() {
            let (ty, count) = (wgpu::QueryType::Timestamp, SET as u32);
            marks.sets.push(self.device.create_query_set(&wgpu::QuerySetDescriptor { label: None, ty, count }));
        }
        recorder.encoder().write_timestamp(&marks.sets[set as usize], place as u32);
        marks.written += 1;
        Ok(Mark::Device(marks.written - 1))
    }

    pub(super) fn seconds_between(&self, marks: Vec<Mark>) -> Result<Vec<f64>> {
        let times = self.timestamps()?;
        let start = Instant::now();
        let at = |mark: &Mark| match mark {
            Mark::Device(place) => times.get(*place as usize).copied(),
            Mark::Host(at) => Some(-start.duration_since(*at).as_secs_f64()),
        };
        let bug = || Error::Bug("a mark that was asked for before".into());
        let all = marks.iter().map(|mark| at(mark).ok_or_else(bug)).collect::<Result<Vec<_>>>()?;
        Ok(all.windows(2).map(|pair| pair[1] - pair[0]).collect())
    }

    /// Seconds of every timestamp since it was last asked for.
    fn timestamps(&self) -> Result<Vec<f64>> {
        let State { marks, recorder, .. } = &mut *self.state.borrow_mut();
        let Marks { sets, written } = std::mem::take(marks);
        if written == 0 {
            return Ok(Vec::new());
        }
        let buffer = |usage| -> Buffer {
            let size = sets.len() as u64 * SET * BYTES;
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
        };
        let on_device = buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC);
        let host = buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST);
        for (i, set) in sets.iter().enumerate() {
            let first = i as u64 * SET;
            let count = SET.min(written - first);
            recorder.encoder().resolve_query_set(set, 0..count as u32, &on_device, first * BYTES);
        }
        recorder.encoder().copy_buffer_to_buffer(&on_device, 0, &host, 0, written * BYTES);
        let mut bytes = Vec::new();
        self.read(recorder, &host, 0..written * BYTES, &mut bytes)?;
        let unit = recorder.timestamp_seconds();
        let words = bytes.chunks_exact(BYTES as usize).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
        let words: Vec<u64> = words.collect();
        let first = *words.first().ok_or_else(|| fail("no timestamps came back"))?;
        Ok(words.iter().map(|at| at.wrapping_sub(first) as f64 * unit).collect())
    }
}
