//! Where weights are unpacked.
use super::Linear;
use crate::backend::{Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use std::cell::Cell;

/// Places that are taken by turns: while what is in one is multiplied, the next weight may be on its way to another.
pub struct Unpacked {
    places: Vec<Buf>,
    turn: Cell<usize>,
}

impl Unpacked {
    /// `turns` places for the largest of `linears`; none where nothing is packed.
    pub fn new<'a>(
        scope: &Scope,
        linears: impl Iterator<Item = &'a Linear>,
        dtype: DType,
        turns: usize,
    ) -> Result<Option<Unpacked>> {
        let len = linears.map(|linear| linear.weight.unpacked(linear.O * linear.C)).max().unwrap_or(0);
        if len == 0 {
            return Ok(None);
        }
        let places = (0..turns).map(|_| scope.alloc(len, dtype)).collect::<Result<_>>()?;
        Ok(Some(Unpacked { places, turn: Cell::new(0) }))
    }
    /// Other handles of the same places.
    pub fn share(&self) -> Unpacked {
        let places = self.places.iter().map(|buf| buf.view(0, buf.len())).collect();
        Unpacked { places, turn: Cell::new(0) }
    }
    /// `len` elements of the place whose turn it is.
    pub(super) fn next(&self, len: usize) -> Buf {
        let turn = self.turn.get();
        self.turn.set((turn + 1) % self.places.len());
        self.places[turn].view(0, len)
    }
}
