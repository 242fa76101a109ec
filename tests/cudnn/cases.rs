//! Sequences and sizes, what goes in, and what must come out.
use luthier::dtype::DType::{self, Bf16, F16};
use luthier::ops::attention::{Attention, attention_backward, attention_forward};
use rayon::prelude::*;
use std::collections::BTreeMap;

fn noise(len: usize, seed: u32, size: f32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        size * ((s >> 8) as f32 / 8_388_608.0 - 1.0)
    };
    (0..len).map(|_| next()).collect()
}

pub struct Case {
    pub lengths: Vec<u32>,
    pub heads: [u32; 3],
    pub dtype: DType,
    pub window: Option<u32>,
    /// Elements after each row of q, k, v that are not attention's.
    pub pad: u32,
}

pub fn case(lengths: &[u32], heads: [u32; 3], dtype: DType) -> Case {
    Case { lengths: lengths.to_vec(), heads, dtype, window: None, pad: 0 }
}

pub fn cases() -> Vec<Case> {
    let windowed = |case: Case, w| Case { window: Some(w), ..case };
    let padded = |case: Case| Case { pad: 16, ..case };
    let staircase: Vec<u32> = (1..=70).collect();
    vec![
        // one length, a multiple of a tile: no tables
        case(&[128], [4, 4, 64], Bf16),
        case(&[256; 3], [4, 1, 64], F16),
        case(&[2048], [8, 1, 128], Bf16),
        case(&[1024; 2], [8, 2, 128], F16),
        case(&[512; 2], [4, 2, 80], Bf16),
        case(&[512; 2], [3, 3, 96], Bf16),
        case(&[384; 2], [2, 1, 72], Bf16),
        case(&[384; 2], [4, 1, 256], Bf16),
        padded(case(&[640; 2], [4, 2, 128], Bf16)),
        windowed(case(&[1024; 2], [4, 1, 128], Bf16), 100),
        windowed(case(&[512; 3], [4, 4, 64], F16), 511),
        // ragged
        case(&[100], [4, 4, 64], Bf16),
        case(&[2047], [4, 1, 128], Bf16),
        case(&[2049], [4, 1, 128], F16),
        case(&[1, 37, 511, 63, 400], [8, 2, 128], Bf16),
        case(&[1, 37, 511, 63, 400], [8, 8, 64], F16),
        case(&[600, 0, 3, 129, 128, 127], [8, 1, 128], Bf16),
        case(&staircase, [4, 2, 64], Bf16),
        case(&[300, 200], [4, 2, 80], Bf16),
        case(&[300, 200], [3, 3, 96], F16),
        case(&[300, 201], [2, 1, 48], Bf16),
        case(&[300, 200, 77], [4, 1, 256], Bf16),
        padded(case(&[300, 700, 24], [4, 2, 128], Bf16)),
        windowed(case(&[700, 1, 300], [4, 2, 128], Bf16), 128),
        windowed(case(&[33, 900, 300], [8, 1, 64], Bf16), 129),
        windowed(case(&[900, 124], [4, 4, 64], F16), 2),
    ]
}

/// What goes in, rounded to the case's type, and what comes out at f64.
pub struct Data {
    pub p: Attention,
    pub cu_seqlens: Vec<u32>,
    pub span: Vec<u32>,
    pub reach: Vec<u32>,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub dout: Vec<f32>,
    /// Of the reference, rounded: the backward's input.
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub want: BTreeMap<&'static str, Vec<f64>>,
}

/// Columns from..from+width of rows of ld.
pub fn columns(x: &[f32], ld: usize, from: usize, width: usize) -> Vec<f64> {
    x.chunks(ld).flat_map(|row| row[from..from + width].iter().map(|x| *x as f64)).collect()
}

/// Puts columns back.
pub fn scatter(to: &mut [f64], ld: usize, from: usize, x: &[f64], width: usize) {
    to.chunks_mut(ld).zip(x.chunks(width)).for_each(|(row, x)| row[from..from + width].copy_from_slice(x));
}

impl Case {
    pub fn name(&self) -> String {
        let Case { lengths, heads: [H, K, D], dtype, window, pad } = self;
        let lengths = if lengths.len() > 6 { format!("{} lengths", lengths.len()) } else { format!("{lengths:?}") };
        let window = window.map_or(String::new(), |w| format!(" window {w}"));
        let pad = if *pad > 0 { " strided" } else { "" };
        format!("{lengths} {H}/{K}x{D} {}{window}{pad}", dtype.name())
    }
    pub fn cu_seqlens(&self) -> Vec<u32> {
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }
    /// With the reference's outputs.
    pub fn data(&self) -> Data {
        let mut data = self.shape();
        data.refer(self.dtype);
        data
    }
    pub fn shape(&self) -> Data {
        let [H, K, D] = self.heads;
        let (cu_seqlens, w) = (self.cu_seqlens(), self.window.unwrap_or(u32::MAX));
        let N = *cu_seqlens.last().unwrap();
        let (ld_q, ld_k) = (H * D + self.pad, K * D + self.pad);
        let scale = 1.0 / (D as f32).sqrt();
        let p = Attention { N, T: N, H, K, D, ld_q, ld_k, ld_v: ld_k, scale, softcap: 0.0 };
        let tokens = || cu_seqlens.windows(2).flat_map(|s| (s[0]..s[1]).map(|n| (s[0], n, s[1])).collect::<Vec<_>>());
        let span = tokens().flat_map(|(first, n, _)| [first.max((n + 1).saturating_sub(w)), n + 1]).collect();
        let reach = tokens().flat_map(|(_, n, end)| [n, end.min(n.saturating_add(w))]).collect();
        // scores of some size: a flat softmax forgives much
        let rounded = |len: u32, seed, size| self.dtype.decode(&self.dtype.encode(&noise(len as usize, seed, size)));
        let (q, k) = (rounded(N * ld_q, 1, 4.0), rounded(N * ld_k, 2, 1.0));
        let (v, dout) = (rounded(N * ld_k, 3, 1.0), rounded(N * H * D, 4, 1.0));
        let (out, lse, want) = (Vec::new(), Vec::new(), BTreeMap::new());
        Data { p, cu_seqlens, span, reach, q, k, v, dout, out, lse, want }
    }
}

impl Data {
    /// The references at f64, each kv head with its query heads for itself.
    pub fn refer(&mut self, dtype: DType) {
        let [N, H, K, D] = [self.p.N, self.p.H, self.p.K, self.p.D].map(|x| x as usize);
        let (G, ld_q, ld_k) = (H / K, self.p.ld_q as usize, self.p.ld_k as usize);
        let local = Attention { H: G as u32, K: 1, ld_q: (G * D) as u32, ld_k: D as u32, ld_v: D as u32, ..self.p };
        let group = |h: usize| {
            let q = columns(&self.q, ld_q, h * G * D, G * D);
            let (k, v) = (columns(&self.k, ld_k, h * D, D), columns(&self.v, ld_k, h * D, D));
            let dout = columns(&self.dout, H * D, h * G * D, G * D);
            let (mut out, mut lse) = (vec![0.0; N * G * D], vec![0.0; N * G]);
            attention_forward(&mut out, &mut lse, &q, &k, &v, &self.span, &local);
            let (mut dq, mut dk, mut dv, mut dot) = (q.clone(), k.clone(), v.clone(), lse.clone());
            attention_backward(
                &mut dq,
                &mut dk,
                &mut dv,
                &mut dot,
                &dout,
                &out,
                &lse,
                &q,
                &k,
                &v,
                &self.span,
                &self.reach,
                &local,
            );
            [("out", out, G * D), ("lse", lse, G), ("dq", dq, G * D), ("dk", dk, D), ("dv", dv, D), ("dot", dot, G)]
        };
        let groups: Vec<_> = (0..K).into_par_iter().map(group).collect();
        for (h, group) in groups.into_iter().enumerate() {
            for (name, x, width) in group {
                let whole = self.want.entry(name).or_insert_with(|| vec![0.0; N * K * width]);
                scatter(whole, K * width, h * width, &x, width);
            }
        }
        let f32s = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
        self.out = dtype.decode(&dtype.encode(&f32s(&self.want["out"])));
        self.lse = f32s(&self.want["lse"]);
    }
}
