//! What a forward pass reads when its tokens go on where their sequences' keys and values lie in pages of a pool.
//!
//! Tokens come in two runs. The first `few` are of sequences with few new tokens each, as in decoding: their queries look
//! through the page table (`ops/paged_attention.rs`). The keys of the others, prompts mostly, are gathered end to end first,
//! so that ordinary attention reads them.
use super::spec::Spec;
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Attention;
use crate::ops::embedding::Embedding;
use crate::ops::paged_attention::{PagedAttention, PagedAttentionJoin};
use crate::ops::pages::Pages;
use std::ops::Range;

/// Tokens of a page.
pub const PAGE: usize = 16;

/// Keys and values of every layer, as slots of K·D values; slot 0's page belongs to nobody and takes what is only padding.
pub struct Pool {
    /// k and v of each layer.
    layers: Vec<(Buf, Buf)>,
    pages: usize,
}

impl Pool {
    /// Bytes of a page.
    pub fn page_bytes(s: &Spec, dtype: DType) -> u64 {
        (2 * s.layers * PAGE * s.K * s.D * dtype.size()) as u64
    }
    pub fn new(b: &dyn Backend, s: &Spec, dtype: DType, pages: usize) -> Result<Pool> {
        let mut pool = Pool { layers: Vec::new(), pages };
        let one = || b.alloc(pages * PAGE * s.K * s.D, dtype);
        for _ in 0..s.layers {
            let pair = one().and_then(|k| one().map(|v| (k, v)));
            match pair {
                Ok(pair) => pool.layers.push(pair),
                Err(e) => {
                    pool.free(b);
                    return Err(e);
                }
            }
        }
        Ok(pool)
    }
    pub fn pages(&self) -> usize {
        self.pages
    }
    pub fn free(self, b: &dyn Backend) {
        self.layers.into_iter().flat_map(|(k, v)| [k, v]).for_each(|buf| b.free(buf));
    }
    pub(super) fn layer(&self, l: usize) -> (&Buf, &Buf) {
        (&self.layers[l].0, &self.layers[l].1)
    }
}

/// New tokens of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<'a> {
    pub ids: &'a [u32],
    /// Tokens of the sequence before them, which lie in its pages.
    pub past: usize,
    /// Tokens of the sequence that are known, which settles the angles of length-dependent RoPE.
    pub length: usize,
    /// Pages for `past` and the new ones.
    pub pages: &'a [u32],
}

/// A step's tokens on the host, padded to the session's N.
pub(super) struct Layout {
    pub ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub sequences: Vec<(Range<usize>, usize)>,
    /// Where each token's key and value go.
    slots: Vec<u32>,
    /// Rows that look through the page table: those of the first parts.
    few: usize,
    /// Parts that the keys of such a row are cut into.
    Z: usize,
    starts: Vec<u32>,
    pages: Vec<u32>,
    /// The slots of all keys of the other rows, end to end.
    pub keys: Vec<u32>,
    /// Per row, the sequence's tokens before this row, and its key's place: within the sequence for the few, among `keys` for
    /// the others. `None` is padding.
    places: Vec<Option<(usize, usize)>>,
}

/// New tokens of a sequence up to which they are few.
const FEW: usize = 4;
/// Entries of a page table, at least, where there are no prompts.
const PAGES: usize = 64;

impl Layout {
    /// `parts` with few tokens come first; `Part::few` says which those are. K: kv heads.
    pub fn new(parts: &[Part], N: usize, K: usize) -> Layout {
        let few = parts.iter().filter(|part| part.is_few()).map(|part| part.ids.len()).sum();
        let mut all = Layout {
            ids: Vec::with_capacity(N),
            positions: Vec::with_capacity(N),
            sequences: Vec::with_capacity(parts.len()),
            slots: Vec::with_capacity(N),
            few,
            Z: 1,
            starts: Vec::new(),
            pages: Vec::new(),
            keys: Vec::new(),
            places: Vec::with_capacity(N),
        };
        for part in parts {
            let slot = |t: usize| part.pages[t / PAGE] * PAGE as u32 + (t % PAGE) as u32;
            let (first, end) = (all.ids.len(), part.past + part.ids.len());
            all.ids.extend(part.ids);
            all.positions.extend((part.past..end).map(|t| t as u32));
            all.sequences.push((first..all.ids.len(), part.length));
            all.slots.extend((part.past..end).map(slot));
            let before = if part.is_few() {
                let start = all.pages.len() as u32;
                all.starts.extend(part.ids.iter().map(|_| start));
                all.pages.extend(&part.pages[..end.div_ceil(PAGE)]);
                0
            } else {
                let before = all.keys.len();
                all.keys.extend((0..end).map(slot));
                before
            };
            all.places.extend((part.past..end).map(|t| Some((t, before + t))));
        }
        // what fills up the session sees nothing, and its keys go to the page that belongs to nobody
        assert!(all.ids.len() <= N, "{} tokens in a session of {N}", all.ids.len());
        if all.keys.is_empty() {
            all.few = N;
            all.starts.resize(N, 0);
            // few lengths, as steps of the same are recorded
            all.pages.resize(all.pages.len().next_power_of_two().max(PAGES), 0);
        }
        let longest = parts.iter().filter(|part| part.is_few()).map(|part| part.past + part.ids.len()).max();
        all.Z = pieces(all.few * K, longest.unwrap_or(0));
        all.ids.resize(N, 0);
        all.positions.resize(N, 0);
        all.slots.resize(N, 0);
        all.places.resize(N, None);
        all
    }

    /// The keys each row sees, as [first, end).
    pub fn span(&self, window: Option<usize>) -> Vec<u32> {
        let one = |place: &Option<(usize, usize)>| {
            let Some((t, key)) = place else { return [0, 0] };
            let seen = window.map_or(t + 1, |w| w.min(t + 1));
            [(key + 1 - seen) as u32, (key + 1) as u32]
        };
        self.places.iter().flat_map(one).collect()
    }

    /// The same of the first rows, cut into Z parts each.
    fn parts(&self, window: Option<usize>) -> Vec<u32> {
        let span = self.span(window);
        let cut = |row: &[u32]| {
            let ([lo, hi], Z) = ([row[0], row[1]], self.Z as u32);
            let part = (hi - lo).div_ceil(Z);
            (0..Z).flat_map(move |z| [(lo + z * part).min(hi), (lo + (z + 1) * part).min(hi)])
        };
        span[..2 * self.few].chunks_exact(2).flat_map(cut).collect()
    }
}

/// Parts to cut the keys of `heads` queries into that see up to `longest`: as many as keep a large device busy, of so many keys at
/// least; a power of two, as steps of the same are recorded.
fn pieces(heads: usize, longest: usize) -> usize {
    const BUSY: usize = 512;
    const KEYS: usize = 64;
    const MOST: usize = 32;
    let most = (BUSY / heads.max(1)).min(longest / KEYS).clamp(1, MOST);
    1 << most.ilog2()
}

impl Part<'_> {
    pub fn is_few(&self) -> bool {
        self.ids.len() <= FEW
    }
}

/// A buffer that grows by doubling.
pub(super) struct Grown {
    buf: Option<Buf>,
    dtype: DType,
}

impl Grown {
    pub fn new(dtype: DType) -> Grown {
        Grown { buf: None, dtype }
    }
    /// Whether `get` of so much makes another buffer.
    fn grows(&self, len: usize) -> bool {
        self.buf.as_ref().is_none_or(|buf| buf.len() < len)
    }
    /// The first `len` elements; what was there before may be gone.
    pub fn get(&mut self, b: &dyn Backend, len: usize) -> Result<Buf> {
        if self.grows(len) {
            if let Some(old) = self.buf.take() {
                b.free(old);
            }
            self.buf = Some(b.alloc(len.next_power_of_two().max(64), self.dtype)?);
        }
        Ok(self.buf.as_ref().expect("made above").view(0, len))
    }
    pub fn free(&mut self, b: &dyn Backend) {
        self.buf.take().into_iter().for_each(|buf| b.free(buf));
    }
}

/// What the sessions of an engine share for their steps: page tables, and room for gathered keys and values.
pub struct Tables {
    /// How often a buffer was made.
    made: u64,
    slots: Grown,
    starts: Grown,
    pages: Grown,
    keys: Grown,
    gathered: [Grown; 2],
    /// Of each kind of layer.
    spans: Vec<Grown>,
    /// Attention over parts of the keys, and their statistics.
    parts: [Grown; 2],
}

impl Tables {
    pub fn new(dtype: DType) -> Tables {
        let table = || Grown::new(DType::U32);
        let gathered = [Grown::new(dtype), Grown::new(dtype)];
        let parts = [Grown::new(DType::F32), Grown::new(DType::F32)];
        let (slots, starts, pages, keys) = (table(), table(), table(), table());
        Tables { made: 0, slots, starts, pages, keys, gathered, spans: Vec::new(), parts }
    }
    pub fn free(&mut self, b: &dyn Backend) {
        let tables = [&mut self.slots, &mut self.starts, &mut self.pages, &mut self.keys];
        let values = self.gathered.iter_mut().chain(&mut self.parts);
        tables.into_iter().chain(values).chain(&mut self.spans).for_each(|grown| grown.free(b));
    }
    /// A step's tables on the device.
    pub(super) fn set(&mut self, b: &dyn Backend, s: &Spec, layout: &Layout) -> Result<Step> {
        let made = &mut self.made;
        let mut get = |grown: &mut Grown, len: usize| {
            *made += grown.grows(len) as u64;
            grown.get(b, len)
        };
        let mut put = |grown: &mut Grown, values: &[u32]| {
            let mut buf = get(grown, values.len().max(1))?;
            if !values.is_empty() {
                b.upload_u32(&mut buf, values)?;
            }
            Ok(buf)
        };
        self.spans.resize_with(s.kinds.len(), || Grown::new(DType::U32));
        let kinds = self.spans.iter_mut().zip(&s.kinds);
        let spans = kinds.map(|(grown, kind)| put(grown, &layout.parts(kind.window))).collect::<Result<_>>()?;
        let slots = put(&mut self.slots, &layout.slots)?;
        let starts = put(&mut self.starts, &layout.starts)?;
        let pages = put(&mut self.pages, &layout.pages)?;
        let keys = put(&mut self.keys, &layout.keys)?;
        let mut two = |[a, b]: &mut [Grown; 2], lens: [usize; 2]| Ok([get(a, lens[0])?, get(b, lens[1])?]);
        let (rows, gathered) = (layout.few * layout.Z, layout.keys.len() * s.K * s.D);
        let parts = (layout.Z > 1).then(|| two(&mut self.parts, [rows * s.H * s.D, rows * s.H])).transpose()?;
        let gathered = (gathered > 0).then(|| two(&mut self.gathered, [gathered; 2])).transpose()?;
        Ok(Step { few: layout.few, Z: layout.Z, made: self.made, slots, starts, pages, keys, gathered, spans, parts })
    }
}

/// What, beside a session and a model, settles the calls of a step without prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fixed {
    /// The tables' buffers.
    pub tables: u64,
    /// Entries of the page table.
    pages: usize,
    Z: usize,
}

impl Step {
    /// `None`: it gathers keys, of which it has as many as no other.
    pub(super) fn fixed(&self) -> Option<Fixed> {
        self.gathered.is_none().then(|| Fixed { tables: self.made, pages: self.pages.len(), Z: self.Z })
    }
}

/// The tables of one step on the device.
pub struct Step {
    few: usize,
    Z: usize,
    /// Of [`Tables`].
    made: u64,
    slots: Buf,
    starts: Buf,
    pages: Buf,
    keys: Buf,
    gathered: Option<[Buf; 2]>,
    spans: Vec<Buf>,
    /// `None`: the keys are not cut.
    parts: Option<[Buf; 2]>,
}

/// One layer's part of the pool, with the step that reads and writes it.
pub struct Cache<'a> {
    pub k: &'a Buf,
    pub v: &'a Buf,
    pub step: &'a Step,
}

impl Cache<'_> {
    /// Writes k and v [N, K·D] to their slots, then out [N, H·D] = attention of q [N, H·D], in a layer of this kind; span is of
    /// the rows that do not look through the page table.
    pub(super) fn attend(
        &self,
        b: &dyn Backend,
        s: &Spec,
        (out, lse): (&mut Buf, &mut Buf),
        [q, k, v]: [&Buf; 3],
        (kind, span): (usize, &Buf),
        N: usize,
    ) -> Result<()> {
        let (C, Q, few) = (s.K * s.D, s.H * s.D, self.step.few);
        let T = self.k.len() / C;
        let [n, t, c] = [N, T, C].map(|x| x as u32);
        for (pool, new) in [(self.k, k), (self.v, v)] {
            b.pages_write(&mut pool.view(0, T * C), new, &self.step.slots, &Pages { N: n, T: t, C: c })?;
        }
        if few > 0 {
            let (mut out, mut lse, q) = (out.view(0, few * Q), lse.view(0, few * s.H), q.view(0, few * Q));
            self.attend_paged(b, s, (&mut out, &mut lse), &q, &self.step.spans[kind])?;
        }
        let [H, K, D] = [s.H, s.K, s.D].map(|x| x as u32);
        let (scale, softcap) = (s.attention_scale, s.attention_softcap);
        let Some([k, v]) = &self.step.gathered else { return Ok(()) };
        let keys = self.step.keys.len() as u32;
        let gather = Embedding { N: keys, V: t, C: c, scale: 1.0 };
        for (all, pool) in [(k, self.k), (v, self.v)] {
            b.embedding_forward(&mut all.view(0, all.len()), &self.step.keys, pool, &gather)?;
        }
        let (ld_q, ld_k, ld_v, rest) = (H * D, K * D, K * D, N - few);
        let p = Attention { N: rest as u32, T: keys, H, K, D, ld_q, ld_k, ld_v, scale, softcap };
        let (mut out, mut lse) = (out.view(few * Q, rest * Q), lse.view(few * s.H, rest * s.H));
        b.attention_forward(&mut out, &mut lse, &q.view(few * Q, rest * Q), k, v, &span.view(2 * few, 2 * rest), &p)
    }

    /// Of the rows that look through the page table.
    fn attend_paged(
        &self,
        b: &dyn Backend,
        s: &Spec,
        (out, lse): (&mut Buf, &mut Buf),
        q: &Buf,
        span: &Buf,
    ) -> Result<()> {
        let Step { few, Z, starts, pages, parts, .. } = self.step;
        let [N, Z, H, K, D, P] = [*few, *Z, s.H, s.K, s.D, pages.len()].map(|x| x as u32);
        let (T, page) = ((self.k.len() / (s.K * s.D)) as u32, PAGE as u32);
        let p = PagedAttention { N, Z, T, H, K, D, P, page, scale: s.attention_scale, softcap: s.attention_softcap };
        let Some([part, part_lse]) = parts else {
            return b.paged_attention_forward(out, lse, q, self.k, self.v, span, starts, pages, &p);
        };
        let (mut part, mut part_lse) = (part.view(0, part.len()), part_lse.view(0, part_lse.len()));
        b.paged_attention_forward(&mut part, &mut part_lse, q, self.k, self.v, span, starts, pages, &p)?;
        b.paged_attention_join(out, lse, &part, &part_lse, &PagedAttentionJoin { N, Z, H, D })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_their_own_sequence() {
        let (a, b) = ([5, 6], [7, 8]);
        let long: Vec<u32> = (0..6).collect();
        let parts =
            [Part { ids: &[1], past: 18, length: 19, pages: &a }, Part { ids: &long, past: 15, length: 40, pages: &b }];
        let layout = Layout::new(&parts, 8, 1);
        assert_eq!((layout.few, &layout.starts[..], &layout.pages[..]), (1, &[0][..], &a[..]));
        assert_eq!(layout.slots, [6 * 16 + 2, 7 * 16 + 15, 8 * 16, 129, 130, 131, 132, 0]);
        assert_eq!(layout.positions, [18, 15, 16, 17, 18, 19, 20, 0]);
        assert_eq!(layout.sequences, [(0..1, 19), (1..7, 40)]);
        assert_eq!((layout.keys.len(), layout.keys[14], layout.keys[20]), (21, 126, 132));
        assert_eq!(layout.span(None), [0, 19, 0, 16, 0, 17, 0, 18, 0, 19, 0, 20, 0, 21, 0, 0]);
        assert_eq!(layout.span(Some(4))[..4], [15, 19, 12, 16]);
        // without prompts, padding looks through the page table and sees nothing
        let layout = Layout::new(&parts[..1], 3, 1);
        assert_eq!((layout.few, layout.starts.len(), layout.span(None)), (3, 3, vec![0, 19, 0, 0, 0, 0]));
    }

    #[test]
    fn long_rows_are_cut() {
        let pages: Vec<u32> = (1..40).collect();
        let part = |past| Part { ids: &[1], past, length: past + 1, pages: &pages };
        let layout = Layout::new(&[part(300), part(17)], 2, 8);
        assert_eq!((layout.Z, layout.starts.len()), (4, 2));
        assert_eq!(layout.parts(None)[..8], [0, 76, 76, 152, 152, 228, 228, 301]);
        assert_eq!(layout.parts(None)[8..], [0, 5, 5, 10, 10, 15, 15, 18]);
        assert_eq!(layout.parts(Some(2))[..8], [299, 300, 300, 301, 301, 301, 301, 301]);
        assert_eq!(
            (pieces(8, 63), pieces(8, 4096), pieces(128, 4096), pieces(4096, 4096), pieces(0, 0)),
            (1, 32, 4, 1, 1)
        );
    }
}
