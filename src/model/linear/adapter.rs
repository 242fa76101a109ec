//! An adapter's products.
use super::super::param::Param;
use super::low::{Columns, With};
use super::{LinearScratch, Lora, nn, nt, part};
use crate::backend::{Backend, Buf};
use crate::error::Result;
use crate::ops::low_rank::LowRank;

impl Lora {
    /// T, alone, of the X [N, C] that A sees.
    pub(super) fn narrow(&self, b: &dyn Backend, with: With, seen: &Buf, N: usize, C: usize) -> Result<()> {
        b.matmul_nt(&mut with.t(Columns::alone(self.R), N), seen, &self.a.value, &nt(N, self.R, C, self.scale))
    }
    /// out [N, O] = (or +=) T·Bᵀ for rows first..first + O of B.
    pub(super) fn widen(
        &self,
        b: &dyn Backend,
        with: With,
        out: &mut Buf,
        (first, O): (usize, usize),
        N: usize,
        at: Columns,
        add: bool,
    ) -> Result<()> {
        let (t, rows, p) = (with.t(at, N), self.b_rows(first, O), at.a(nt(N, O, self.R, 1.0)));
        if add { b.matmul_nt_add(out, &t, &rows, &p) } else { b.matmul_nt(out, &t, &rows, &p) }
    }
    /// P = (or +=) s·G·B for rows first..first + O of B.
    pub(super) fn narrow_gradient(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dout: &Buf,
        (first, O): (usize, usize),
        N: usize,
        at: Columns,
        add: bool,
    ) -> Result<()> {
        let (mut out, rows, p) = (at.of(&scratch.p, N), self.b_rows(first, O), at.out(nn(N, self.R, O, self.scale)));
        if add { b.matmul_nn_add(&mut out, dout, &rows, &p) } else { b.matmul_nn(&mut out, dout, &rows, &p) }
    }
    /// P and B's gradient, from G [N, O] and T.
    pub(super) fn backward_joined(
        &mut self,
        b: &dyn Backend,
        with: With,
        dout: &Buf,
        O: usize,
        N: usize,
        at: Columns,
    ) -> Result<()> {
        let Some(train) = &mut self.b.train else { return Ok(()) };
        let [n, o, r, ld] = [N, O, self.R, at.ld].map(|x| x as u32);
        let p = LowRank { N: n, O: o, R: r, ld_dt: ld, ld_t: ld, scale: self.scale };
        b.low_rank_backward(&mut at.of(&with.p, N), train.sum(b)?, dout, &self.b.value, &with.t(at, N), &p)
    }
    /// dinp [N, C] = (or +=) P·A, with P alone.
    pub(super) fn backward_widen(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dinp: &mut Buf,
        N: usize,
        C: usize,
        add: bool,
    ) -> Result<()> {
        let (p, params) = (part(&scratch.p, N * self.R), nn(N, C, self.R, 1.0));
        match add {
            true => b.matmul_nn_add(dinp, &p, &self.a.value, &params),
            false => b.matmul_nn(dinp, &p, &self.a.value, &params),
        }
    }
    fn b_rows(&self, first: usize, O: usize) -> Buf {
        self.b.value.view(first * self.R, O * self.R)
    }
    pub(super) fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.a, &self.b].into_iter().chain(self.dora.as_ref().map(|dora| &dora.magnitude))
    }
    pub(super) fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        if let Some(dora) = &self.dora {
            dora.touch();
        }
        [&mut self.a, &mut self.b].into_iter().chain(self.dora.as_mut().map(|dora| &mut dora.magnitude))
    }
}
