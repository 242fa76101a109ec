//! `luthier bench ops`: each op at the sizes of a decoder, in GB/s and TFLOP/s. Bytes: each input read once, each output
//! written once.
use super::super::{dtype, out, say};
use super::{attention, fp8};
use clap::Args;
use luthier::Result;
use luthier::backend::{Backend, Buf, Scope, pick};
use luthier::dtype::DType;
use luthier::ops::logprob::LogProb;
use luthier::ops::matmul::MatMul;
use luthier::ops::nf4::{BLOCK, Nf4};
use luthier::ops::residual::Residual;
use luthier::ops::rmsnorm::{RmsNorm, RmsNormResidual};
use luthier::ops::rope::Rope;
use luthier::ops::swiglu::SwiGlu;
use luthier::rng::Rng;
use std::time::{Duration, Instant};

/// Time each op: the copy and the fastest product show what the device can do.
#[derive(Args)]
pub struct Ops {
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    backend: String,
    /// How activations and weights are stored.
    #[arg(long, default_value = "bfloat16", value_parser = dtype)]
    pub(super) dtype: DType,
    /// Only lines whose name contains this.
    #[arg(long, default_value = "")]
    filter: String,
    /// Side of the square products.
    #[arg(long, default_value_t = 4096, value_parser = super::at_least(2))]
    size: usize,
    /// Tokens of everything else.
    #[arg(long, default_value_t = 4096, value_parser = super::at_least(2))]
    pub(super) tokens: usize,
    /// Channels of everything else; the MLP has 7/2 times as many. Four query heads share keys and values.
    #[arg(long, default_value_t = 4096, value_parser = super::at_least(2))]
    pub(super) hidden: usize,
    /// Channels of a head.
    #[arg(long, default_value_t = 128, value_parser = super::at_least(2))]
    pub(super) head_dim: usize,
}

/// Vocabulary of the head's op.
const V: usize = 128256;
/// Rank of the thin products.
const R: usize = 16;

/// What a line of the table runs, with the buffers it needs.
pub(super) type Run<'b> = Box<dyn FnMut() -> Result<()> + 'b>;
pub(super) type Make = Box<dyn for<'b> Fn(&Scope<'b>) -> Result<Run<'b>>>;

pub(super) struct Line {
    pub name: String,
    pub bytes: f64,
    pub flops: f64,
    pub make: Make,
}

impl Ops {
    pub fn run(self) -> Result<()> {
        let (backend, which) = pick::pick(&self.backend)?;
        backend.set_deterministic(false);
        say!("{which}");
        out(&format!("{:<42} {:>10} {:>9} {:>9}\n", "op", "us", "GB/s", "TFLOP/s"))?;
        let lines = [self.rows(), self.products(), fp8::lines(&self), attention::lines(&self)].into_iter().flatten();
        for line in lines.filter(|line| line.name.contains(&self.filter)) {
            let scope = Scope::new(&*backend);
            let time = median_time(&*backend, &mut (line.make)(&scope)?)?;
            let rate = |x: f64| if x > 0.0 { format!("{:9.1}", x / time) } else { " ".repeat(9) };
            let (name, us) = (line.name, time * 1e6);
            out(&format!("{name:<42} {us:10.1} {} {}\n", rate(line.bytes / 1e9), rate(line.flops / 1e12)))?;
        }
        Ok(())
    }

    /// Ops that are as fast as memory is.
    fn rows(&self) -> Vec<Line> {
        let (N, C, F, dtype) = (self.tokens, self.hidden, self.hidden * 7 / 2, self.dtype);
        let size = dtype.size();
        let line = |name: &str, bytes: usize, make| Line { name: name.into(), bytes: bytes as f64, flops: 0.0, make };
        let p = Residual { P: (N * F) as u32, scale: 1.0 };
        let norm = RmsNorm { N: N as u32, C: C as u32, eps: 1e-5, shift: 0.0 };
        let glu =
            SwiGlu { N: N as u32, F: F as u32, ld_gate: F as u32, ld_up: F as u32, act: 0, slope: 1.0, cubic: 0.0 };
        // whole heads of an even number of channels
        let D = (self.head_dim / 2 * 2).max(2);
        let H = (C / D).max(1);
        let [n, h, d] = [N, H, D].map(|x| x as u32);
        let rope = Rope { N: n, H: h, D: d, A: d, T: n, ld_x: h * d, interleaved: 0 };
        let chunk = N.min(256);
        let head = LogProb { N: chunk as u32, V: V as u32, ld_logits: V as u32, ld_dlogits: V as u32, softcap: 0.0 };
        let nf4 = Nf4 { P: (C * F) as u32 };
        vec![
            line(
                "copy",
                2 * N * F * size,
                Box::new(move |s| {
                    let (b, from, mut to) = (s.backend(), random(s, N * F, dtype)?, s.alloc(N * F, dtype)?);
                    Ok(Box::new(move || b.copy(&mut to, &from)))
                }),
            ),
            line(
                "residual_forward",
                3 * N * F * size,
                Box::new(move |s| {
                    let (b, x, y) = (s.backend(), random(s, N * F, dtype)?, random(s, N * F, dtype)?);
                    let mut out = s.alloc(N * F, dtype)?;
                    Ok(Box::new(move || b.residual_forward(&mut out, &x, &y, &p)))
                }),
            ),
            line(
                "rmsnorm_forward",
                2 * N * C * size,
                Box::new(move |s| {
                    let (b, x, w) = (s.backend(), random(s, N * C, dtype)?, random(s, C, dtype)?);
                    let (mut out, mut rstd) = (s.alloc(N * C, dtype)?, s.alloc(N, DType::F32)?);
                    Ok(Box::new(move || b.rmsnorm_forward(&mut out, &mut rstd, &x, &w, &norm)))
                }),
            ),
            line(
                "rmsnorm_residual_forward",
                4 * N * C * size,
                Box::new(move |s| {
                    let (b, x, y, w) =
                        (s.backend(), random(s, N * C, dtype)?, random(s, N * C, dtype)?, random(s, C, dtype)?);
                    let (mut out, mut rstd, mut sum) =
                        (s.alloc(N * C, dtype)?, s.alloc(N, DType::F32)?, s.alloc(N * C, dtype)?);
                    let p = RmsNormResidual { N: N as u32, C: C as u32, eps: 1e-5, shift: 0.0, scale: 1.0 };
                    Ok(Box::new(move || b.rmsnorm_residual_forward(&mut out, &mut rstd, &mut sum, &x, &y, &w, &p)))
                }),
            ),
            line(
                "rmsnorm_backward",
                4 * N * C * size,
                Box::new(move |s| {
                    let (b, x, w) = (s.backend(), random(s, N * C, dtype)?, random(s, C, dtype)?);
                    let (dout, rstd) = (random(s, N * C, dtype)?, random(s, N, DType::F32)?);
                    let mut dinp = s.alloc(N * C, dtype)?;
                    Ok(Box::new(move || b.rmsnorm_backward(&mut dinp, &dout, &x, &w, &rstd, &norm)))
                }),
            ),
            line(
                "rope_forward",
                2 * N * H * D * size,
                Box::new(move |s| {
                    let (b, mut x, table) = (s.backend(), random(s, N * H * D, dtype)?, random(s, N * D, DType::F32)?);
                    let mut positions = s.alloc(N, DType::U32)?;
                    b.upload_u32(&mut positions, &(0..N as u32).collect::<Vec<_>>())?;
                    Ok(Box::new(move || b.rope_forward(&mut x, &table, &positions, &rope)))
                }),
            ),
            line(
                "swiglu_forward",
                3 * N * F * size,
                Box::new(move |s| {
                    let (b, gate, up) = (s.backend(), random(s, N * F, dtype)?, random(s, N * F, dtype)?);
                    let mut out = s.alloc(N * F, dtype)?;
                    Ok(Box::new(move || b.swiglu_forward(&mut out, &gate, &up, &glu)))
                }),
            ),
            line(
                "swiglu_backward",
                6 * N * F * size,
                Box::new(move |s| {
                    let (b, mut gate, mut up) = (s.backend(), random(s, N * F, dtype)?, random(s, N * F, dtype)?);
                    let mut dout = random(s, N * F, dtype)?;
                    Ok(Box::new(move || b.swiglu_backward(&mut dout, &mut gate, &mut up, &glu)))
                }),
            ),
            line(
                "logprob_forward",
                chunk * V * 4,
                Box::new(move |s| {
                    let (b, z) = (s.backend(), random(s, chunk * V, DType::F32)?);
                    let labels = s.alloc(chunk, DType::U32)?;
                    let (mut logp, mut lse) = (s.alloc(chunk, DType::F32)?, s.alloc(chunk, DType::F32)?);
                    Ok(Box::new(move || b.logprob_forward(&mut logp, &mut lse, &z, &labels, &head)))
                }),
            ),
            line(
                "logprob_backward",
                chunk * V * (4 + size),
                Box::new(move |s| {
                    let (b, z, coef) = (s.backend(), random(s, chunk * V, DType::F32)?, random(s, chunk, DType::F32)?);
                    let (lse, labels) = (random(s, chunk, DType::F32)?, s.alloc(chunk, DType::U32)?);
                    let mut dz = s.alloc(chunk * V, dtype)?;
                    Ok(Box::new(move || b.logprob_backward(&mut dz, &coef, &lse, &z, &labels, &head)))
                }),
            ),
            line(
                "nf4_dequantize",
                C * F / 2 + C * F / BLOCK * 4 + C * F * size,
                Box::new(move |s| {
                    let (b, weight) = (s.backend(), random(s, C * F, dtype)?);
                    let (mut codes, mut absmax) =
                        (s.alloc(C * F / 2, DType::U8)?, s.alloc((C * F).div_ceil(BLOCK), DType::F32)?);
                    b.nf4_quantize(&mut codes, &mut absmax, &weight, &nf4)?;
                    let mut out = weight;
                    Ok(Box::new(move || b.nf4_dequantize(&mut out, &codes, &absmax, &nf4)))
                }),
            ),
        ]
    }

    /// Square ones in each layout, then those of a layer, bordered and not, and of its adapter.
    fn products(&self) -> Vec<Line> {
        let (n, N, C, F) = (self.size, self.tokens, self.hidden, self.hidden * 7 / 2);
        let layouts = [Layout::Nt, Layout::Nn, Layout::Tn];
        let square = layouts.map(|layout| self.product(layout, false, [n, n, n]));
        let layer = [
            self.product(Layout::Nt, false, [N, F, C]),
            self.product(Layout::Nt, false, [N, C, F]),
            self.product(Layout::Nt, false, [N, C / 4, C]),
            self.product(Layout::Nn, false, [N, C, F]),
            self.product(Layout::Nn, true, [N, F, C]),
            self.product(Layout::Nt, true, [N, F, C]),
            self.product(Layout::Nt, false, [N, F, C + R]),
            self.product(Layout::Nt, false, [N, F, C + 64]),
            self.product(Layout::Nn, false, [N, C, F + R]),
            self.product(Layout::Nt, false, [N, R, C]),
            self.product(Layout::Nt, false, [N, 3 * R, C]),
            self.product(Layout::Nt, false, [N, R, F]),
            self.product(Layout::Nt, false, [N, F, R]),
            self.product(Layout::Nt, true, [N, F, R]),
            self.product(Layout::Nt, true, [N, C, R]),
            self.product(Layout::Nn, false, [N, R, F]),
            self.product(Layout::Nn, false, [N, C, R]),
            self.product(Layout::Nn, true, [N, C, R]),
            self.product(Layout::Tn, true, [R, C, N]),
            self.product(Layout::Tn, true, [3 * R, C, N]),
            self.product(Layout::Tn, true, [R, F, N]),
            self.product(Layout::Tn, true, [F, R, N]),
        ];
        square.into_iter().chain(layer).collect()
    }

    fn product(&self, layout: Layout, add: bool, [I, J, Q]: [usize; 3]) -> Line {
        let dtype = self.dtype;
        // a product of two activations is a weight's gradient
        let out_dtype = if let Layout::Tn = layout { DType::F32 } else { dtype };
        let stored = |add: bool| I * J * out_dtype.size() * if add { 2 } else { 1 };
        let make = move |s: &Scope<'_>| -> Result<(Buf, Buf, Buf)> {
            Ok((s.alloc(I * J, out_dtype)?, random(s, I * Q, dtype)?, random(s, J * Q, dtype)?))
        };
        let (ld_a, ld_b) = match layout {
            Layout::Nt => (Q, Q),
            Layout::Nn => (Q, J),
            Layout::Tn => (I, J),
        };
        let [i, j, q, lda, ldb] = [I, J, Q, ld_a, ld_b].map(|d| d as u32);
        let p = MatMul { I: i, J: j, Q: q, ld_out: j, ld_a: lda, ld_b: ldb, alpha: 1e-3 };
        Line {
            name: format!("matmul_{}{} {I}x{J}x{Q}", layout.name(), if add { "_add" } else { "" }),
            bytes: (stored(add) + (I + J) * Q * dtype.size()) as f64,
            flops: 2.0 * I as f64 * J as f64 * Q as f64,
            make: Box::new(move |s| {
                let (b, (mut out, x, w)) = (s.backend(), make(s)?);
                Ok(Box::new(move || match (layout, add) {
                    (Layout::Nt, false) => b.matmul_nt(&mut out, &x, &w, &p),
                    (Layout::Nt, true) => b.matmul_nt_add(&mut out, &x, &w, &p),
                    (Layout::Nn, false) => b.matmul_nn(&mut out, &x, &w, &p),
                    (Layout::Nn, true) => b.matmul_nn_add(&mut out, &x, &w, &p),
                    (Layout::Tn, false) => b.matmul_tn(&mut out, &x, &w, &p),
                    (Layout::Tn, true) => b.matmul_tn_add(&mut out, &x, &w, &p),
                }))
            }),
        }
    }
}

#[derive(Clone, Copy)]
enum Layout {
    Nt,
    Nn,
    Tn,
}

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Layout::Nt => "nt",
            Layout::Nn => "nn",
            Layout::Tn => "tn",
        }
    }
}

/// Normal values; a product of zeros would be faster than real ones.
pub(super) fn random(s: &Scope<'_>, len: usize, dtype: DType) -> Result<Buf> {
    let mut rng = Rng::named(1, &format!("{len}"));
    let few: Vec<f32> = (0..len.min(1 << 18)).map(|_| rng.normal()).collect();
    let all: Vec<f32> = few.iter().copied().cycle().take(len).collect();
    s.alloc_f32(&all, dtype)
}

pub(super) fn indices(s: &Scope<'_>, values: &[u32]) -> Result<Buf> {
    let mut buf = s.alloc(values.len(), DType::U32)?;
    s.backend().upload_u32(&mut buf, values)?;
    Ok(buf)
}

/// Seconds of one call: the median of five batches of calls, each long enough that the wait at its end does not count.
pub(super) fn median_time(b: &dyn Backend, run: &mut Run<'_>) -> Result<f64> {
    const LONG: Duration = Duration::from_millis(60);
    let mut batch = |calls: usize| -> Result<Duration> {
        let start = Instant::now();
        (0..calls).try_for_each(|_| run())?;
        b.sync()?;
        Ok(start.elapsed())
    };
    batch(2)?;
    let mut calls = 1;
    while batch(calls)? < LONG && calls < 1 << 14 {
        calls *= 2;
    }
    let mut times = (0..5).map(|_| batch(calls)).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times[2].as_secs_f64() / calls as f64)
}
