//! Attention of `luthier bench ops`: causal, over sequences of one length and of many.
use super::ops::{Line, Make, Ops, indices, random};
use luthier::Result;
use luthier::backend::{Buf, Scope};
use luthier::dtype::DType;
use luthier::ops::attention::Attention;

/// Whether the backend is told which sequences the tables stand for, as in training; it may have a faster way then.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    Sequences,
    Nothing,
}

/// Sequences of the packed lines, as shares of all tokens.
const PACKED: [usize; 12] = [25, 16, 12, 10, 9, 7, 6, 5, 4, 3, 2, 1];

/// One attention: its sequences [S+1], its sizes, its type.
#[derive(Clone)]
struct Attend {
    cu_seqlens: Vec<u32>,
    p: Attention,
    dtype: DType,
    told: Told,
}

pub(super) fn lines(ops: &Ops) -> Vec<Line> {
    let p = params(ops);
    let even = vec![0, p.N / 2, p.N];
    let mut packed: Vec<u32> = vec![0];
    for share in PACKED {
        packed.push(packed[packed.len() - 1] + (ops.tokens * share / 100) as u32);
    }
    packed.extend((packed[PACKED.len()] < p.N).then_some(p.N));
    let mut lines = Vec::new();
    for (name, cu_seqlens) in [(format!("2x{}", p.N / 2), even), (format!("packed {}", p.N), packed)] {
        for (told, how) in [(Told::Sequences, ""), (Told::Nothing, ", tables only")] {
            let attend = Attend { cu_seqlens: cu_seqlens.clone(), p, dtype: ops.dtype, told };
            let product = 2.0 * attend.pairs() * (p.H * p.D) as f64;
            let line = |op, products: f64, make| Line {
                name: format!("{op} {name}{how}"),
                bytes: 0.0,
                flops: products * product,
                make,
            };
            lines.push(line("attention_forward", 2.0, attend.clone().forward()));
            lines.push(line("attention_backward", 5.0, attend.backward()));
        }
    }
    lines
}

fn params(ops: &Ops) -> Attention {
    let D = ops.head_dim;
    let K = (ops.hidden / D / 4).max(1);
    let H = ops.hidden / D / K * K;
    let [N, H, K, D] = [ops.tokens, H, K, D].map(|x| x as u32);
    let (scale, softcap) = (1.0 / (D as f32).sqrt(), 0.0);
    Attention { N, T: N, H, K, D, ld_q: H * D, ld_k: K * D, ld_v: K * D, scale, softcap }
}

/// What both directions read.
struct Read {
    q: Buf,
    k: Buf,
    v: Buf,
    span: Buf,
    reach: Buf,
    out: Buf,
    lse: Buf,
}

impl Attend {
    /// Queries with the keys they see.
    fn pairs(&self) -> f64 {
        self.cu_seqlens.windows(2).map(|s| (s[1] - s[0]) as f64).map(|len| len * (len + 1.0) / 2.0).sum()
    }
    /// [of queries, of keys]
    fn tables(&self) -> [Vec<u32>; 2] {
        let tokens = || self.cu_seqlens.windows(2).flat_map(|s| (s[0]..s[1]).map(move |n| (s[0], n, s[1])));
        let span = tokens().flat_map(|(first, n, _)| [first, n + 1]).collect();
        [span, tokens().flat_map(|(_, n, end)| [n, end]).collect()]
    }
    fn read(&self, s: &Scope<'_>) -> Result<Read> {
        let (p, dtype) = (&self.p, self.dtype);
        let [N, H, K, D] = [p.N, p.H, p.K, p.D].map(|x| x as usize);
        let [span, reach] = self.tables();
        let read = Read {
            q: random(s, N * H * D, dtype)?,
            k: random(s, N * K * D, dtype)?,
            v: random(s, N * K * D, dtype)?,
            span: indices(s, &span)?,
            reach: indices(s, &reach)?,
            out: s.alloc(N * H * D, dtype)?,
            lse: s.alloc(N * H, DType::F32)?,
        };
        if self.told == Told::Sequences {
            s.backend().sequences(&read.span, &self.cu_seqlens, None);
        }
        Ok(read)
    }
    fn forward(self) -> Make {
        Box::new(move |s| {
            let (b, p, mut r) = (s.backend(), self.p, self.read(s)?);
            Ok(Box::new(move || b.attention_forward(&mut r.out, &mut r.lse, &r.q, &r.k, &r.v, &r.span, &p)))
        })
    }
    fn backward(self) -> Make {
        Box::new(move |s| {
            let (b, p, mut r) = (s.backend(), self.p, self.read(s)?);
            b.attention_forward(&mut r.out, &mut r.lse, &r.q, &r.k, &r.v, &r.span, &p)?;
            let alike = |buf: &Buf| s.alloc(buf.len(), buf.dtype());
            let (mut dq, mut dk, mut dv) = (alike(&r.q)?, alike(&r.k)?, alike(&r.v)?);
            let (mut dot, dout) = (alike(&r.lse)?, random(s, r.out.len(), self.dtype)?);
            let Read { q, k, v, span, reach, out, lse } = r;
            Ok(Box::new(move || {
                b.attention_backward(
                    &mut dq, &mut dk, &mut dv, &mut dot, &dout, &out, &lse, &q, &k, &v, &span, &reach, &p,
                )
            }))
        })
    }
}
