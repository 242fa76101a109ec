//! What the cpu does faster than its references: products by the gemm crate, attention in blocks of products.
use crate::dtype::Real;
use crate::ops::attention::Attention;
use crate::ops::gguf::Blocks32;
use crate::ops::matmul::MatMul;
use crate::ops::{Op, Slice, softcap, softcap_slope};
use rayon::prelude::*;

/// Runs the op if it has a fast path here; `false`: run the reference.
pub(super) fn run<'a>(op: Op, args: impl Iterator<Item = Slice<'a, f32>>, params: &[u8]) -> bool {
    let args: Vec<_> = args.collect();
    if op.spec().file == "grouped" {
        super::grouped::run(op, args, &bytemuck::pod_read_unaligned(params));
        return true;
    }
    if op.spec().file == "thin" {
        super::thin::run(op, args, params);
        return true;
    }
    if op.spec().file == "fp8_matmul" {
        super::fp8::run(op, args, &bytemuck::pod_read_unaligned(params));
        return true;
    }
    if op.spec().file == "gguf" {
        let Ok([Slice::FloatMut(out), Slice::U8(blocks)]) = <[_; 2]>::try_from(args) else { return false };
        dequantize(op, out, blocks);
        return true;
    }
    match (op, <[_; 3]>::try_from(args)) {
        (
            Op::matmul_nt | Op::matmul_nt_add | Op::matmul_nn | Op::matmul_nn_add | Op::matmul_tn | Op::matmul_tn_add,
            Ok([Slice::FloatMut(out), Slice::Float(a), Slice::Float(b)]),
        ) => matmul(op, out, a, b, &bytemuck::pod_read_unaligned(params)),
        (Op::attention_forward, Err(args)) => attention_forward(args, &bytemuck::pod_read_unaligned(params)),
        (Op::attention_backward, Err(args)) => attention_backward(args, &bytemuck::pod_read_unaligned(params)),
        _ => return false,
    }
    true
}

/// The reference of one of ggml's formats on runs of whole blocks.
fn dequantize(op: Op, out: &mut [f32], blocks: &[u8]) {
    const RUN: usize = 1 << 14;
    // as many bytes for RUN values, a multiple of all block lengths
    let bytes = (blocks.len() as u128 * RUN as u128 / out.len().max(1) as u128) as usize;
    out.par_chunks_mut(RUN).zip(blocks.par_chunks(bytes.max(1))).for_each(|(out, blocks)| {
        let p = Blocks32 { P: out.len() as u32 };
        op.reference([Slice::FloatMut(out), Slice::U8(blocks)], bytemuck::bytes_of(&p));
    });
}

/// A strided matrix: element (i, j) at `i·row + j·col`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

/// out[i,j] (rows ld apart) = keep·out + alpha·Σ_q a(i,q)·b(q,j).
pub(super) fn gemm(
    out: &mut [f32],
    ld: usize,
    (i, j, q): (usize, usize, usize),
    a: Mat,
    b: Mat,
    alpha: f32,
    add: bool,
    parallel: bool,
) {
    let last = |m: Mat, r: usize, c: usize| (r - 1) * m.row + (c - 1) * m.col;
    if i == 0 || j == 0 {
        return;
    }
    assert!(out.len() > (i - 1) * ld + j - 1);
    assert!(q == 0 || (a.data.len() > last(a, i, q) && b.data.len() > last(b, q, j)));
    let threads = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: the asserts above bound every access; out is borrowed mutably, so it overlaps neither a nor b.
    unsafe {
        gemm::gemm(
            i,
            j,
            q,
            out.as_mut_ptr(),
            1,
            ld as isize,
            add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            threads,
        )
    }
}

fn matmul(op: Op, out: &mut [f32], a: &[f32], b: &[f32], p: &MatMul) {
    let (ld_a, ld_b) = (p.ld_a as usize, p.ld_b as usize);
    let a = match op {
        Op::matmul_tn | Op::matmul_tn_add => Mat { data: a, row: 1, col: ld_a },
        _ => Mat { data: a, row: ld_a, col: 1 },
    };
    let b = match op {
        Op::matmul_nt | Op::matmul_nt_add => Mat { data: b, row: 1, col: ld_b },
        _ => Mat { data: b, row: ld_b, col: 1 },
    };
    let add = matches!(op, Op::matmul_nt_add | Op::matmul_nn_add | Op::matmul_tn_add);
    gemm(out, p.ld_out as usize, (p.I as usize, p.J as usize, p.Q as usize), a, b, p.alpha, add, true);
}

/// Queries a task takes at a time.
const BLOCK: usize = 64;

/// Keys that any query of `rows` sees.
fn covered(span: &[u32], rows: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let pairs = || span[2 * rows.start..2 * rows.end].chunks(2).filter(|s| s[0] < s[1]);
    let first = pairs().map(|s| s[0]).min().unwrap_or(0) as usize;
    first..pairs().map(|s| s[1]).max().unwrap_or(0).max(first as u32) as usize
}

/// scores[i,j] = exp(softcap(scale·q[i]·k[j]) − lse[i]) over the keys of a block of queries, 0 where j is not seen.
struct Scores<'a> {
    p: &'a Attention,
    span: &'a [u32],
    q: &'a [f32],
    k: &'a [f32],
}

impl Scores<'_> {
    fn products(&self, rows: std::ops::Range<usize>, keys: std::ops::Range<usize>, h: usize, out: &mut Vec<f32>) {
        let (p, D) = (self.p, self.p.D as usize);
        out.clear();
        out.resize(rows.len() * keys.len(), 0.0);
        let kv = h / (p.H / p.K) as usize * D;
        let q = Mat { data: &self.q[rows.start * p.ld_q as usize + h * D..], row: p.ld_q as usize, col: 1 };
        let k = Mat { data: &self.k[keys.start * p.ld_k as usize + kv..], row: 1, col: p.ld_k as usize };
        gemm(out, keys.len(), (rows.len(), keys.len(), D), q, k, p.scale, false, false);
        if p.softcap != 0.0 {
            out.iter_mut().for_each(|s| *s = softcap(*s, p.softcap));
        }
    }
    /// The columns of row `n` that it sees, within `keys`.
    fn seen(&self, n: usize, keys: &std::ops::Range<usize>) -> std::ops::Range<usize> {
        let clip = |j: u32| (j as usize).clamp(keys.start, keys.end) - keys.start;
        clip(self.span[2 * n])..clip(self.span[2 * n + 1]).max(clip(self.span[2 * n]))
    }
    /// products, then exp(s − lse): the probabilities themselves.
    fn probabilities(
        &self,
        rows: std::ops::Range<usize>,
        keys: std::ops::Range<usize>,
        h: usize,
        lse: &[f32],
        out: &mut Vec<f32>,
    ) {
        self.products(rows.clone(), keys.clone(), h, out);
        for (row, n) in out.chunks_mut(keys.len().max(1)).zip(rows) {
            let (seen, lse) = (self.seen(n, &keys), lse[n * self.p.H as usize + h]);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            row[seen].iter_mut().for_each(|s| *s = Real::exp(*s - lse));
        }
    }
}

/// Where tasks of one launch write disjoint parts.
#[derive(Clone, Copy)]
struct Shared(*mut f32, usize);
// SAFETY: tasks write disjoint (row block, head) parts only.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}
impl Shared {
    fn of(s: &mut [f32]) -> Shared {
        Shared(s.as_mut_ptr(), s.len())
    }
    /// # Safety
    /// No other task touches the elements that the caller touches of `start..`.
    #[allow(clippy::mut_from_ref, reason = "see Safety")]
    unsafe fn from<'a>(self, start: usize) -> &'a mut [f32] {
        assert!(start <= self.1);
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), self.1 - start) }
    }
}

fn attention_forward(args: Vec<Slice<f32>>, p: &Attention) {
    let Ok(
        [
            Slice::FloatMut(out),
            Slice::FloatMut(lse),
            Slice::Float(q),
            Slice::Float(k),
            Slice::Float(v),
            Slice::U32(span),
        ],
    ) = <[_; 6]>::try_from(args)
    else {
        panic!("arguments as in the row")
    };
    let (N, H, D) = (p.N as usize, p.H as usize, p.D as usize);
    let scores = Scores { p, span, q, k };
    let (out, lse) = (Shared::of(out), Shared::of(lse));
    (0..N.div_ceil(BLOCK) * H).into_par_iter().for_each_init(Vec::new, |s, task| {
        let (h, rows) = (task % H, task / H * BLOCK..N.min((task / H + 1) * BLOCK));
        let keys = covered(span, rows.clone());
        scores.products(rows.clone(), keys.clone(), h, s);
        // SAFETY: rows × head belongs to this task.
        let (o, l) = unsafe { (out.from((rows.start * H + h) * D), lse.from(rows.start * H + h)) };
        let mut sums = [0f32; BLOCK];
        for (i, n) in rows.clone().enumerate() {
            let seen = scores.seen(n, &keys);
            let row = &mut s[i * keys.len()..][..keys.len()];
            let max = row[seen.clone()].iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            row[seen.clone()].iter_mut().for_each(|s| *s = Real::exp(*s - max));
            sums[i] = row[seen].iter().sum();
            l[i * H] = max + sums[i].ln();
        }
        let kv = h / (p.H / p.K) as usize * D;
        let v = Mat { data: &v[keys.start * p.ld_v as usize + kv..], row: p.ld_v as usize, col: 1 };
        let prob = Mat { data: s, row: keys.len(), col: 1 };
        gemm(o, H * D, (rows.len(), D, keys.len()), prob, v, 1.0, false, false);
        for i in 0..rows.len() {
            let scale = if sums[i] > 0.0 { 1.0 / sums[i] } else { 0.0 };
            o[i * H * D..][..D].iter_mut().for_each(|o| *o *= scale);
        }
    });
}

fn attention_backward(args: Vec<Slice<f32>>, p: &Attention) {
    let mut args = args.into_iter();
    let mut write = || if let Some(Slice::FloatMut(s)) = args.next() { s } else { panic!("arguments as in the row") };
    let (dq, dk, dv, dots) = (write(), write(), write(), write());
    let mut read = || if let Some(Slice::Float(s)) = args.next() { s } else { panic!("arguments as in the row") };
    let (dout, out, lse, q, k, v) = (read(), read(), read(), read(), read(), read());
    let (Some(Slice::U32(span)), Some(Slice::U32(reach))) = (args.next(), args.next()) else {
        panic!("arguments as in the row")
    };
    let (N, T, H, K, D) = (p.N as usize, p.T as usize, p.H as usize, p.K as usize, p.D as usize);
    dots.par_iter_mut().enumerate().for_each(|(i, dot)| {
        *dot = dout[i * D..][..D].iter().zip(&out[i * D..][..D]).map(|(a, b)| a * b).sum();
    });
    let dots = &*dots;
    let scores = Scores { p, span, q, k };
    // ds[i,j] = scale·prob·(dout[i]·v[j] − dot[i]) in place of prob; under a softcap times its slope, at s = lse + ln prob
    let score_gradients =
        |rows: std::ops::Range<usize>, keys: std::ops::Range<usize>, h: usize, s: &mut [f32], dp: &mut Vec<f32>| {
            dp.clear();
            dp.resize(s.len(), 0.0);
            let dy = Mat { data: &dout[(rows.start * H + h) * D..], row: H * D, col: 1 };
            let v = Mat { data: &v[keys.start * p.ld_v as usize + h / (H / K) * D..], row: 1, col: p.ld_v as usize };
            gemm(dp, keys.len(), (rows.len(), keys.len(), D), dy, v, 1.0, false, false);
            for (i, n) in rows.enumerate() {
                let (dot, lse) = (dots[n * H + h], lse[n * H + h]);
                let at = i * keys.len();
                for (s, dp) in s[at..][..keys.len()].iter_mut().zip(&dp[at..]) {
                    let slope = if p.softcap != 0.0 && *s > 0.0 { softcap_slope(lse + s.ln(), p.softcap) } else { 1.0 };
                    *s *= p.scale * (dp - dot) * slope;
                }
            }
        };
    let (dq, dk, dv) = (Shared::of(dq), Shared::of(dk), Shared::of(dv));
    (0..N.div_ceil(BLOCK) * H).into_par_iter().for_each_init(
        Default::default,
        |(s, dp): &mut (Vec<f32>, Vec<f32>), task| {
            let (h, rows) = (task % H, task / H * BLOCK..N.min((task / H + 1) * BLOCK));
            let keys = covered(span, rows.clone());
            scores.probabilities(rows.clone(), keys.clone(), h, lse, s);
            score_gradients(rows.clone(), keys.clone(), h, s, dp);
            let k = Mat { data: &k[keys.start * p.ld_k as usize + h / (H / K) * D..], row: p.ld_k as usize, col: 1 };
            let ds = Mat { data: s, row: keys.len(), col: 1 };
            // SAFETY: rows × head belongs to this task.
            let dq = unsafe { dq.from(rows.start * p.ld_q as usize + h * D) };
            gemm(dq, p.ld_q as usize, (rows.len(), D, keys.len()), ds, k, 1.0, false, false);
        },
    );
    (0..T.div_ceil(BLOCK) * K).into_par_iter().for_each_init(
        Default::default,
        |(s, dp): &mut (Vec<f32>, Vec<f32>), task| {
            let (kv, keys) = (task % K, task / K * BLOCK..T.min((task / K + 1) * BLOCK));
            let rows = covered(reach, keys.clone());
            // SAFETY: keys × kv head belongs to this task.
            let (dk, dv) = unsafe {
                (dk.from(keys.start * p.ld_k as usize + kv * D), dv.from(keys.start * p.ld_v as usize + kv * D))
            };
            for h in kv * (H / K)..(kv + 1) * (H / K) {
                let add = h != kv * (H / K);
                scores.probabilities(rows.clone(), keys.clone(), h, lse, s);
                let shape = (keys.len(), D, rows.len());
                let dy = Mat { data: &dout[(rows.start * H + h) * D..], row: H * D, col: 1 };
                gemm(dv, p.ld_v as usize, shape, Mat { data: s, row: 1, col: keys.len() }, dy, 1.0, add, false);
                score_gradients(rows.clone(), keys.clone(), h, s, dp);
                let q = Mat { data: &q[rows.start * p.ld_q as usize + h * D..], row: p.ld_q as usize, col: 1 };
                gemm(dk, p.ld_k as usize, shape, Mat { data: s, row: 1, col: keys.len() }, q, 1.0, add, false);
            }
        },
    );
}
