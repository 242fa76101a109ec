//! Which sequences a span table was filled from, as the model told it, and cuDNN's tables of them.
//!
//! What was told holds for the bytes it was told of: any write to the table forgets it, so it is never stale.
use super::problem::Layout;
use crate::backend::cuda::Cuda;
use crate::backend::{Buf, Use};
use crate::dtype::DType;
use crate::error::Result;

/// What a table holds for each sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// i64 [B + 1]: elements before its first token, at so many elements a token.
    Starts(i64),
    /// i32 [B]: its tokens.
    Lengths,
}

/// A table on the device. Kept when what it says is out of date: the next step needs one like it.
struct Table {
    kind: Kind,
    B: i64,
    buf: Buf,
    current: bool,
}

pub(super) struct Sequences {
    span: Buf,
    /// Sequence s is the tokens cu_seqlens[s]..cu_seqlens[s+1]; empty: not known.
    cu_seqlens: Vec<u32>,
    pub window: Option<u32>,
    tables: Vec<Table>,
}

/// Lengths from here on are worth a plan of cuDNN's: a plan costs a second, and below our own kernels are as good.
pub(super) const LONG: u32 = 512;
/// cuDNN's tiles are at most so many tokens tall.
const TILE: u32 = 128;

impl Sequences {
    pub fn new(span: Buf) -> Sequences {
        Sequences { span, cu_seqlens: Vec::new(), window: None, tables: Vec::new() }
    }
    pub fn is_of(&self, span: &Buf) -> bool {
        self.span == *span
    }
    pub fn overlaps(&self, buf: &Buf) -> bool {
        self.span.overlaps(buf)
    }
    /// Ascending from 0 to the table's rows, or nothing is known.
    pub fn tell(&mut self, cu_seqlens: &[u32], window: Option<u32>) {
        self.forget();
        let whole = cu_seqlens.first() == Some(&0) && cu_seqlens.last() == Some(&(self.span.len() as u32 / 2));
        if whole && cu_seqlens.is_sorted() {
            (self.cu_seqlens, self.window) = (cu_seqlens.to_vec(), window);
        }
    }
    pub fn forget(&mut self) {
        self.cu_seqlens.clear();
        self.tables.iter_mut().for_each(|t| t.current = false);
    }
    pub fn is_known(&self) -> bool {
        !self.cu_seqlens.is_empty()
    }
    fn lengths(&self) -> impl Iterator<Item = u32> {
        self.cu_seqlens.windows(2).map(|s| s[1] - s[0])
    }
    pub fn longest(&self) -> u32 {
        self.lengths().max().unwrap_or(0)
    }
    /// Layout, sequences and their longest; the sizes of ragged ones are rounded up, so that a packed run meets few plans.
    pub fn layout(&self) -> (Layout, i64, i64) {
        let (count, longest) = (self.lengths().count(), self.longest());
        if longest.is_multiple_of(TILE) && self.lengths().all(|length| length == longest) {
            return (Layout::Even, count as i64, longest as i64);
        }
        let mut sequences = 4;
        while sequences < count {
            sequences *= 4;
        }
        (Layout::Ragged, sequences as i64, longest.next_power_of_two().max(TILE) as i64)
    }
    /// Where the table of `B` sequences is; uploaded when first asked for.
    pub fn table(&mut self, cuda: &Cuda, kind: Kind, B: i64) -> Result<u64> {
        let found = self.tables.iter().position(|t| t.kind == kind && t.B == B);
        let at = match found {
            Some(at) => at,
            None => {
                let words = if kind == Kind::Lengths { B } else { 2 * (B + 1) };
                let slab = cuda.slabs.borrow_mut().alloc_for(Use::Workspace, &cuda.device, words as usize * 4)?;
                let buf = Buf { slab, start: 0, len: words as usize, dtype: DType::U32, width: 4 };
                self.tables.push(Table { kind, B, buf, current: false });
                self.tables.len() - 1
            }
        };
        let to = cuda.ptr(&self.tables[at].buf);
        if !self.tables[at].current {
            cuda.ring.borrow_mut().upload(&cuda.device, to, &self.bytes(kind, B as usize))?;
            self.tables[at].current = true;
        }
        Ok(to)
    }
    /// Sequences beyond those that are there are empty, at the end.
    fn bytes(&self, kind: Kind, B: usize) -> Vec<u8> {
        match kind {
            Kind::Lengths => {
                let lengths = self.lengths().chain(std::iter::repeat(0)).take(B);
                lengths.flat_map(|length| (length as i32).to_le_bytes()).collect()
            }
            Kind::Starts(ld) => {
                let end = *self.cu_seqlens.last().expect("sequences are known");
                let starts = self.cu_seqlens.iter().copied().chain(std::iter::repeat(end)).take(B + 1);
                starts.flat_map(|token| (token as i64 * ld).to_le_bytes()).collect()
            }
        }
    }
    pub fn free(self, cuda: &Cuda) {
        self.tables.into_iter().for_each(|t| cuda.slabs.borrow_mut().free(&cuda.device, t.buf.slab));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(cu_seqlens: &[u32]) -> Sequences {
        let rows = *cu_seqlens.last().unwrap() as usize;
        let mut s = Sequences::new(Buf { slab: 0, start: 0, len: 2 * rows, dtype: DType::U32, width: 4 });
        s.tell(cu_seqlens, None);
        s
    }

    #[test]
    fn sequences_of_one_length_need_no_tables_and_others_few_plans() {
        assert_eq!(told(&[0, 256, 512]).layout(), (Layout::Even, 2, 256));
        assert_eq!(told(&[0, 200, 400]).layout(), (Layout::Ragged, 4, 256));
        assert_eq!(told(&[0, 1]).layout(), (Layout::Ragged, 4, 128));
        assert_eq!(told(&[0, 2049, 2049, 3000]).layout(), (Layout::Ragged, 4, 4096));
        assert_eq!(told(&[0, 1, 2, 3, 4, 5]).layout(), (Layout::Ragged, 16, 128));
    }

    #[test]
    fn tables_end_in_empty_sequences() {
        let s = told(&[0, 3, 3, 5]);
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, i32>(&s.bytes(Kind::Lengths, 4)), [3, 0, 2, 0]);
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, i64>(&s.bytes(Kind::Starts(10), 4)), [0, 30, 30, 50, 50]);
    }

    #[test]
    fn what_does_not_fit_the_table_or_was_overwritten_is_not_known() {
        let mut s = told(&[0, 3, 5]);
        assert!(s.is_known());
        for wrong in [&[0, 3][..], &[1, 5], &[0, 4, 3, 5], &[]] {
            s.tell(wrong, None);
            assert!(!s.is_known(), "{wrong:?}");
        }
        s.tell(&[0, 5], Some(2));
        assert_eq!((s.is_known(), s.window), (true, Some(2)));
        s.forget();
        assert!(!s.is_known());
    }
}
