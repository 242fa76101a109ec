//! One call of an attention op, as cuDNN is given it.
use super::plan::Plan;
use super::problem::{Direction, Layout, Mask, Problem, id};
use super::sequences::{Kind, Sequences};
use super::{Open, backward};
use crate::backend::cuda::Cuda;
use crate::backend::{Buf, Launch};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Op;
use crate::ops::attention::Attention;

pub(super) struct Call<'a> {
    pub direction: Direction,
    pub span: &'a Buf,
    dtype: DType,
    p: Attention,
    /// In the row's order.
    pointers: &'a [u64],
}

/// The arguments of either direction, in the row's order.
const FORWARD: [i64; 5] = [id::OUT, id::LSE, id::Q, id::K, id::V];
const BACKWARD: [i64; 10] = [id::DQ, id::DK, id::DV, id::DOT, id::DOUT, id::OUT, id::LSE, id::Q, id::K, id::V];
/// Bytes that cuDNN's loads and stores are aligned to.
const ALIGNED: u64 = 16;
/// Parts of the workspace start at multiples of it.
const PART: usize = 256;
/// Tiles may reach over the last token.
const TILE: usize = 128;

impl<'a> Call<'a> {
    /// `None`: it is none for cuDNN, whatever the mask.
    pub fn new(launch: &Launch<'a>, pointers: &'a [u64]) -> Option<Call<'a>> {
        let (direction, arguments) = match launch.op() {
            Op::attention_forward => (Direction::Forward, FORWARD.len()),
            Op::attention_backward => (Direction::Backward, BACKWARD.len()),
            _ => return None,
        };
        let span = launch.args()[arguments]?;
        let p: Attention = bytemuck::pod_read_unaligned(launch.params());
        let dtype = super::super::fast::one_half_type(launch)?;
        let aligned = pointers[..arguments].iter().all(|p| p % ALIGNED == 0);
        let rows = [p.ld_q, p.ld_k, p.ld_v, p.D].iter().all(|ld| ld % 8 == 0);
        let plain = p.softcap == 0.0 && p.scale > 0.0 && p.N == p.T;
        (aligned && rows && plain).then_some(Call { direction, span, dtype, p, pointers })
    }
    pub fn problem(&self, told: &Sequences) -> Problem {
        let (layout, B, S) = told.layout();
        let p = &self.p;
        Problem {
            direction: self.direction,
            dtype: self.dtype,
            B,
            S,
            H: p.H.into(),
            K: p.K.into(),
            D: p.D.into(),
            ld: [p.ld_q.into(), p.ld_k.into(), p.ld_v.into()],
            // a window that hides nothing is none
            mask: if told.window.is_some_and(|w| w < told.longest()) { Mask::Sliding } else { Mask::Causal },
            layout,
        }
    }
    /// Queues it. Nothing waits.
    pub fn run(
        &self,
        cuda: &Cuda,
        open: &mut Open,
        plan: &Plan,
        problem: &Problem,
        told: &mut Sequences,
    ) -> Result<()> {
        let arguments: &[i64] = match self.direction {
            Direction::Forward => &FORWARD,
            Direction::Backward => &BACKWARD,
        };
        let mut given: Vec<(i64, u64)> = arguments.iter().copied().zip(self.pointers.iter().copied()).collect();
        if problem.layout == Layout::Ragged {
            given.extend(tables(cuda, problem, told)?);
        }
        let mut bytes = plan.workspace.next_multiple_of(PART);
        let mut parts = Vec::new();
        if self.direction == Direction::Backward {
            let tokens = (self.p.N as usize).next_multiple_of(TILE);
            let sizes = backward::scratch(problem, tokens);
            for (id, size) in [id::DQ_SUM, id::DK_HEADS, id::DV_HEADS].into_iter().zip(sizes) {
                if size > 0 {
                    parts.push((id, bytes));
                    bytes += size.next_multiple_of(PART);
                }
            }
        }
        let workspace = open.workspace(cuda, bytes)?;
        given.extend(parts.into_iter().map(|(id, at)| (id, workspace + at as u64)));
        let window = told.window.map_or(f32::INFINITY, |w| w as f32);
        let scalars = [self.p.scale, f32::NEG_INFINITY, 1.0, window];
        let at = |i: usize| &scalars[i] as *const f32 as u64;
        given.extend([(id::SCALE, at(0)), (id::NEVER, at(1))]);
        if self.direction == Direction::Backward {
            given.push((id::ONE, at(2)));
        }
        if problem.mask == Mask::Sliding {
            given.push((id::WINDOW, at(3)));
        }
        plan.run(open.handle, &given, workspace)
    }
}

/// Where each sequence starts in each tensor, and how long it is.
fn tables(cuda: &Cuda, p: &Problem, told: &mut Sequences) -> Result<Vec<(i64, u64)>> {
    let wanted = [
        (id::STARTS_Q, Kind::Starts(p.ld[0])),
        (id::STARTS_K, Kind::Starts(p.ld[1])),
        (id::STARTS_V, Kind::Starts(p.ld[2])),
        (id::STARTS_OUT, Kind::Starts(p.H * p.D)),
        (id::STARTS_LSE, Kind::Starts(p.H)),
        (id::LENGTHS_Q, Kind::Lengths),
        (id::LENGTHS_K, Kind::Lengths),
    ];
    wanted.into_iter().map(|(id, kind)| Ok((id, told.table(cuda, kind, p.B)?))).collect()
}
