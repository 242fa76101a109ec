//! What a forward pass reads: packed tokens and who sees whom, on the device.
use super::paged::Layout;
use super::rope::{Reach, Rope};
use super::spec::{Positions, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::ops::Range;

/// Packed tokens on the host. All are `N` long but `cu_seqlens`: sequence s is the tokens cu_seqlens[s]..cu_seqlens[s+1].
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub cu_seqlens: Vec<u32>,
}

impl Tokens {
    /// One sequence from position 0.
    pub fn single(ids: &[u32]) -> Tokens {
        let N = ids.len() as u32;
        Tokens { ids: ids.to_vec(), positions: (0..N).collect(), cu_seqlens: vec![0, N] }
    }

    fn sequences(&self) -> impl Iterator<Item = std::ops::Range<u32>> {
        self.cu_seqlens.windows(2).map(|s| s[0]..s[1])
    }

    /// Causal attention within each sequence: the keys query n sees, and the queries that see key j, as [first, end).
    fn visibility(&self, window: Option<usize>) -> (Vec<u32>, Vec<u32>) {
        let (mut span, mut reach) = (Vec::new(), Vec::new());
        let window = window.map_or(u32::MAX, |w| w as u32);
        for seq in self.sequences() {
            for n in seq.clone() {
                span.extend([seq.start.max((n + 1).saturating_sub(window)), n + 1]);
                reach.extend([n, seq.end.min(n.saturating_add(window))]);
            }
        }
        (span, reach)
    }

    /// Each sequence, with the length that settles its angles.
    fn lengths(&self) -> Vec<(Range<usize>, usize)> {
        let one = |range: Range<u32>| {
            let range = range.start as usize..range.end as usize;
            let length = self.positions[range.clone()].iter().max().map_or(0, |last| *last as usize + 1);
            (range, length)
        };
        self.sequences().map(one).collect()
    }
}

/// The row of the RoPE table for each token, and the rows [N, A] of tokens whose sequence has angles of its own, if
/// there are any. In the table, the rows of long sequences begin at `positions`, and so do the tokens' own.
fn rope_rows(
    tokens: &[u32],
    sequences: &[(Range<usize>, usize)],
    rope: &Rope,
    A: usize,
    positions: usize,
) -> Result<(Vec<u32>, Vec<f32>)> {
    let (mut rows, mut own) = (tokens.to_vec(), Vec::new());
    for (range, length) in sequences {
        let (first, length) = (range.start, *length);
        let seq = &mut rows[range.clone()];
        if length > positions {
            return Err(Error::Bug(format!("a sequence of {length} tokens in a session of {positions} positions")));
        }
        match rope.reach(length) {
            Reach::Short => {}
            Reach::Long => seq.iter_mut().for_each(|row| *row += positions as u32),
            reach @ Reach::Own(_) => {
                own.resize(tokens.len() * A, 0.0);
                let angles = rope.rows(seq.iter().map(|t| *t as usize), A, reach);
                own[first * A..][..angles.len()].copy_from_slice(&angles);
                (first..).zip(seq).for_each(|(n, row)| *row = (positions + n) as u32);
            }
        }
    }
    Ok((rows, own))
}

/// [`Tokens`] on the device, reused step after step.
pub struct Inputs {
    pub N: usize,
    pub ids: Buf,
    /// The same on the host.
    pub host_ids: Vec<u32>,
    /// Tokens sorted by id, for the embedding's gradient.
    pub order: Buf,
    /// Where positions are learned.
    pub positions: Option<PositionInputs>,
    /// One per kind of layer.
    pub kinds: Vec<KindInputs>,
    /// Of the RoPE tables.
    rope_positions: usize,
}

/// Each token's row of the weight of positions, [N].
pub struct PositionInputs {
    pub rows: Buf,
    /// Tokens sorted by row, for the gradient.
    pub order: Buf,
}

/// What the layers of one kind read.
pub struct KindInputs {
    /// `None`: no positions.
    pub rope: Option<RopeInputs>,
    pub span: Buf,
    pub reach: Buf,
}

pub struct RopeInputs {
    /// cos and sin, f32 [rows, A].
    pub table: Buf,
    /// Each token's row in it, [N].
    pub rows: Buf,
}

/// The RoPE table of each kind of layer, with room for the rows of `own` tokens whose sequence has angles of its own.
pub(super) fn rope_tables(scope: &Scope, s: &Spec, positions: usize, own: usize) -> Result<Vec<Option<Buf>>> {
    let one = |rope: &Rope| {
        let mut table = rope.table(positions, s.A);
        if let Reach::Own(_) = rope.reach(positions) {
            table.resize((positions + own) * s.A, 0.0);
        }
        scope.alloc_f32(&table, DType::F32)
    };
    s.kinds.iter().map(|kind| kind.rope.as_ref().map(one).transpose()).collect()
}

impl Inputs {
    /// `tables` are those of [`rope_tables`] for so many positions, and as many tokens at least.
    pub(super) fn new(
        scope: &Scope,
        s: &Spec,
        N: usize,
        tables: &[Option<Buf>],
        rope_positions: usize,
    ) -> Result<Inputs> {
        let u32s = |len| scope.alloc(len, DType::U32);
        let kind = |table: &Option<Buf>| {
            let rope = match table {
                Some(table) => Some(RopeInputs { table: table.view(0, table.len()), rows: u32s(N)? }),
                None => None,
            };
            Ok(KindInputs { rope, span: u32s(2 * N)?, reach: u32s(2 * N)? })
        };
        let kinds = tables.iter().map(kind).collect::<Result<_>>()?;
        let learned = match s.positions {
            Positions::Learned => Some(PositionInputs { rows: u32s(N)?, order: u32s(N)? }),
            Positions::Implicit => None,
        };
        Ok(Inputs {
            N,
            ids: u32s(N)?,
            host_ids: Vec::new(),
            order: u32s(N)?,
            positions: learned,
            kinds,
            rope_positions,
        })
    }

    /// Tells the backend what the span tables that were just set stand for. Not of a prompt of any length: a backend may
    /// prepare for sequences like these, which pays where there are many steps.
    pub fn tell(&self, b: &dyn Backend, s: &Spec, tokens: &Tokens) {
        for (inputs, kind) in self.kinds.iter().zip(&s.kinds) {
            b.sequences(&inputs.span, &tokens.cu_seqlens, kind.window.map(|w| w as u32));
        }
    }

    pub fn set(&mut self, b: &dyn Backend, s: &Spec, tokens: &Tokens) -> Result<()> {
        self.set_rows(b, s, (&tokens.ids, &tokens.positions), &tokens.lengths())?;
        b.upload_u32(&mut self.order, &crate::ops::embedding::order(&tokens.ids))?;
        if let Some(learned) = &mut self.positions {
            b.upload_u32(&mut learned.order, &crate::ops::embedding::order(&tokens.positions))?;
        }
        for (inputs, kind) in self.kinds.iter_mut().zip(&s.kinds) {
            let (span, reach) = tokens.visibility(kind.window);
            b.upload_u32(&mut inputs.span, &span)?;
            b.upload_u32(&mut inputs.reach, &reach)?;
        }
        Ok(())
    }

    /// The same of tokens whose keys lie in pages; for a forward alone.
    pub(super) fn set_paged(&mut self, b: &dyn Backend, s: &Spec, layout: &Layout) -> Result<()> {
        self.set_rows(b, s, (&layout.ids, &layout.positions), &layout.sequences)?;
        if layout.keys.is_empty() {
            // all look through the page table
            return Ok(());
        }
        for (inputs, kind) in self.kinds.iter_mut().zip(&s.kinds) {
            b.upload_u32(&mut inputs.span, &layout.span(kind.window))?;
        }
        Ok(())
    }

    /// What is the same for a token, wherever its keys lie: its id, and its rows in the tables of positions.
    fn set_rows(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        (ids, positions): (&[u32], &[u32]),
        sequences: &[(Range<usize>, usize)],
    ) -> Result<()> {
        assert_eq!(ids.len(), self.N, "a batch fills its inputs");
        b.upload_u32(&mut self.ids, ids)?;
        self.host_ids.clear();
        self.host_ids.extend(ids);
        if let Some(learned) = &mut self.positions {
            if let Some(far) = positions.iter().find(|p| **p as usize >= s.max_positions) {
                let what =
                    format!("a token at position {far}, but the model has learned {} positions", s.max_positions);
                return Err(Error::Usage(format!("{what}: take shorter sequences")));
            }
            b.upload_u32(&mut learned.rows, positions)?;
        }
        for (inputs, kind) in self.kinds.iter_mut().zip(&s.kinds) {
            let (Some(inputs), Some(rope)) = (&mut inputs.rope, &kind.rope) else { continue };
            let (rows, own) = rope_rows(positions, sequences, rope, s.A, self.rope_positions)?;
            b.upload_u32(&mut inputs.rows, &rows)?;
            if !own.is_empty() {
                b.upload_f32(&mut inputs.table.view(self.rope_positions * s.A, own.len()), &own)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::rope::RopeScaling;
    use super::*;

    fn packed() -> Tokens {
        Tokens { ids: vec![0; 6], positions: vec![0, 1, 2, 0, 1, 0], cu_seqlens: vec![0, 3, 5, 6] }
    }

    #[test]
    fn span_and_reach_say_the_same() {
        let tokens = packed();
        for window in [None, Some(1), Some(2), Some(9)] {
            let (span, reach) = tokens.visibility(window);
            for n in 0..6 {
                for j in 0..6 {
                    let sees = span[2 * n] as usize <= j && j < span[2 * n + 1] as usize;
                    let seen = reach[2 * j] as usize <= n && n < reach[2 * j + 1] as usize;
                    let near = j <= n && window.is_none_or(|w| n - j < w);
                    let both = |s: std::ops::Range<u32>| s.contains(&(n as u32)) && s.contains(&(j as u32));
                    let want = near && tokens.sequences().any(both);
                    assert_eq!((sees, seen), (want, want), "{n} {j} {window:?}");
                }
            }
        }
    }

    #[test]
    fn the_length_of_each_sequence_picks_its_rows() {
        let scaling = RopeScaling::LongRope { short: vec![1.0], long: vec![2.0], original: 2, attention_factor: 1.0 };
        let rope = |scaling| Rope { theta: 10000.0, scaling };
        let rows = |rope: &Rope, A, positions| {
            let tokens = packed();
            rope_rows(&tokens.positions, &tokens.lengths(), rope, A, positions)
        };
        assert_eq!(rows(&rope(scaling), 2, 8).unwrap(), (vec![8, 9, 10, 0, 1, 0], vec![]));
        let dynamic = rope(RopeScaling::Dynamic { factor: 2.0, trained: 2 });
        let (at, own) = rows(&dynamic, 4, 8).unwrap();
        assert_eq!(at, [8, 9, 10, 0, 1, 0]);
        assert_eq!(own[..12], dynamic.rows(0..3, 4, Reach::Own(3)));
        assert!(own[12..].iter().all(|x| *x == 0.0));
        assert!(rows(&rope(RopeScaling::Default), 4, 2).is_err());
    }
}
