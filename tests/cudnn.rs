//! Attention by cuDNN against the references at f64, and next to our own kernels: a line a case, with errors and times.
//!
//! Wants an NVIDIA GPU and libcudnn; `LUTHIER_REQUIRE=cuda` makes their absence a failure.
//! `LUTHIER_REQUIRE=cuda cargo test --release --test cudnn -- --nocapture --test-threads 1`
#![cfg(feature = "cuda")]
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= limit)`, so that NaN fails")]
use luthier::backend::cuda::{AttentionPath, Cuda};
use luthier::backend::{Backend, Buf};
use luthier::dtype::DType::{self, Bf16, F16, F32};
use luthier::ops::attention::{Attention, attention_backward, attention_forward};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::time::Instant;

/// A device that runs attention so; none where there is none and none is required.
fn open(path: AttentionPath) -> Option<Cuda> {
    match Cuda::with_attention(0, path) {
        Ok(cuda) => Some(cuda),
        Err(e) if std::env::var("LUTHIER_REQUIRE").is_ok_and(|r| r.contains("cuda")) => panic!("{e}"),
        Err(e) => {
            eprintln!("cuda: skipped, {e}");
            None
        }
    }
}

fn noise(len: usize, seed: u32, size: f32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        size * ((s >> 8) as f32 / 8_388_608.0 - 1.0)
    };
    (0..len).map(|_| next()).collect()
}

fn nmse(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - w).powi(2)).sum();
    error / want.iter().map(|w| w.powi(2)).sum::<f64>().max(1e-30)
}

struct Case {
    lengths: Vec<u32>,
    heads: [u32; 3],
    dtype: DType,
    window: Option<u32>,
    /// Elements after each row of q, k, v that are not attention's.
    pad: u32,
}

fn case(lengths: &[u32], heads: [u32; 3], dtype: DType) -> Case {
    Case { lengths: lengths.to_vec(), heads, dtype, window: None, pad: 0 }
}

fn cases() -> Vec<Case> {
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
struct Data {
    p: Attention,
    cu_seqlens: Vec<u32>,
    span: Vec<u32>,
    reach: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
    /// Of the reference, rounded: the backward's input.
    out: Vec<f32>,
    lse: Vec<f32>,
    want: BTreeMap<&'static str, Vec<f64>>,
}

/// Columns from..from+width of rows of ld.
fn columns(x: &[f32], ld: usize, from: usize, width: usize) -> Vec<f64> {
    x.chunks(ld).flat_map(|row| row[from..from + width].iter().map(|x| *x as f64)).collect()
}

/// Puts columns back.
fn scatter(to: &mut [f64], ld: usize, from: usize, x: &[f64], width: usize) {
    to.chunks_mut(ld).zip(x.chunks(width)).for_each(|(row, x)| row[from..from + width].copy_from_slice(x));
}

impl Case {
    fn name(&self) -> String {
        let Case { lengths, heads: [H, K, D], dtype, window, pad } = self;
        let lengths = if lengths.len() > 6 { format!("{} lengths", lengths.len()) } else { format!("{lengths:?}") };
        let window = window.map_or(String::new(), |w| format!(" window {w}"));
        let pad = if *pad > 0 { " strided" } else { "" };
        format!("{lengths} {H}/{K}x{D} {}{window}{pad}", dtype.name())
    }
    fn cu_seqlens(&self) -> Vec<u32> {
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }
    /// With the reference's outputs.
    fn data(&self) -> Data {
        let mut data = self.shape();
        data.refer(self.dtype);
        data
    }
    fn shape(&self) -> Data {
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
    fn refer(&mut self, dtype: DType) {
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

/// Elements behind each output that must stay as they are.
const GUARD: usize = 64;

/// A buffer of NaN, and the part of it that is an output.
fn nothing(b: &dyn Backend, len: usize, dtype: DType) -> (Buf, Buf) {
    let whole = b.alloc_f32(&vec![f32::NAN; len + GUARD], dtype).unwrap();
    let part = whole.view(0, len);
    (whole, part)
}

struct Ran {
    outputs: BTreeMap<&'static str, Vec<f32>>,
    /// Microseconds of a call, forward and backward.
    times: [f64; 2],
    /// Calls that cuDNN ran of the two that were checked.
    by_cudnn: u64,
    stray: Vec<&'static str>,
}

fn timed(b: &dyn Backend, mut run: impl FnMut()) -> f64 {
    const CALLS: usize = 10;
    b.sync().unwrap();
    let start = Instant::now();
    (0..CALLS).for_each(|_| run());
    b.sync().unwrap();
    start.elapsed().as_secs_f64() * 1e6 / CALLS as f64
}

/// Both directions on a device that is told the sequences.
fn run(cuda: &Cuda, case: &Case, d: &Data) -> Ran {
    let b: &dyn Backend = cuda;
    let (p, dtype) = (&d.p, case.dtype);
    let [N, H, D] = [p.N, p.H, p.D].map(|x| x as usize);
    let input = |x: &[f32], dtype| b.alloc_f32(x, dtype).unwrap();
    let (q, k, v, dout) = (input(&d.q, dtype), input(&d.k, dtype), input(&d.v, dtype), input(&d.dout, dtype));
    let (ref_out, ref_lse) = (input(&d.out, dtype), input(&d.lse, F32));
    let (span, reach) = (b.alloc_u32(&d.span).unwrap(), b.alloc_u32(&d.reach).unwrap());
    b.sequences(&span, &d.cu_seqlens, case.window);
    let mut bufs = BTreeMap::new();
    let sizes = [
        ("out", N * H * D, H * D),
        ("dq", d.q.len(), H * D),
        ("dk", d.k.len(), d.k.len() / N - case.pad as usize),
        ("dv", d.v.len(), d.v.len() / N - case.pad as usize),
    ];
    sizes.iter().for_each(|(name, len, width)| drop(bufs.insert(*name, (nothing(b, *len, dtype), len / N, *width))));
    ["lse", "dot"].iter().for_each(|name| drop(bufs.insert(*name, (nothing(b, N * H, F32), H, H))));
    let part = |name: &str| bufs[name].0.1.view(0, bufs[name].0.1.len());
    let (mut out, mut lse) = (part("out"), part("lse"));
    let (mut dq, mut dk, mut dv, mut dot) = (part("dq"), part("dk"), part("dv"), part("dot"));
    let mut forward = || b.attention_forward(&mut out, &mut lse, &q, &k, &v, &span, p).unwrap();
    let mut backward = || {
        b.attention_backward(
            &mut dq, &mut dk, &mut dv, &mut dot, &dout, &ref_out, &ref_lse, &q, &k, &v, &span, &reach, p,
        )
        .unwrap()
    };
    let before = cuda.cudnn().0;
    forward();
    backward();
    let by_cudnn = cuda.cudnn().0 - before;
    let (mut outputs, mut stray) = (BTreeMap::new(), Vec::new());
    for (name, ((whole, _), ld, width)) in &bufs {
        let all = b.download_f32(whole).unwrap();
        let (rows, guard) = all.split_at(N * ld);
        let pads = rows.chunks(*ld).flat_map(|row| &row[*width..]);
        if !pads.chain(guard).all(|x| x.is_nan()) {
            stray.push(*name);
        }
        outputs.insert(*name, rows.chunks(*ld).flat_map(|row| row[..*width].to_vec()).collect());
    }
    let times = [timed(b, &mut forward), timed(b, &mut backward)];
    bufs.into_values().for_each(|((whole, _), ..)| b.free(whole));
    [q, k, v, dout, ref_out, ref_lse, span, reach].into_iter().for_each(|buf| b.free(buf));
    Ran { outputs, times, by_cudnn, stray }
}

/// As the parity matrix has them; lse and dot come of 16-bit operands, too.
fn limit(output: &str, dtype: DType) -> f64 {
    match (output, dtype) {
        ("out" | "lse", F16) => 2e-6,
        ("out" | "lse", _) => 1e-4,
        (_, F16) => 1e-5,
        _ => 3e-4,
    }
}

/// The outputs with their errors, and what is wrong.
fn judge(ran: &Ran, case: &Case, d: &Data) -> (String, Vec<String>) {
    let (mut line, mut wrong) = (String::new(), Vec::new());
    for name in ["out", "lse", "dq", "dk", "dv", "dot"] {
        let (err, limit) = (nmse(&ran.outputs[name], &d.want[name]), limit(name, case.dtype));
        line += &format!(" {name} {err:.0e}");
        if !(err <= limit) {
            line += "!";
            wrong.push(format!("{name} {err:.1e} > {limit:.0e}"));
        }
    }
    wrong.extend(ran.stray.iter().map(|name| format!("{name} was written outside")));
    (line, wrong)
}

#[test]
fn both_ways_agree_with_the_reference() {
    let (Some(own), Some(cudnn)) = (open(AttentionPath::Own), open(AttentionPath::Cudnn)) else { return };
    let mut failures = Vec::new();
    for case in cases() {
        let data = case.data();
        println!("{}", case.name());
        for (path, cuda) in [("own", &own), ("cudnn", &cudnn)] {
            let ran = run(cuda, &case, &data);
            let (line, mut wrong) = judge(&ran, &case, &data);
            let [forward, backward] = ran.times;
            println!("  {path:<6} {forward:8.1} us {backward:8.1} us {line} {}", wrong.join(", "));
            let expected = if path == "cudnn" { 2 } else { 0 };
            if ran.by_cudnn != expected {
                wrong.push(format!("cuDNN ran {} of {expected} calls", ran.by_cudnn));
            }
            failures.extend(wrong.into_iter().map(|w| format!("{} {path}: {w}", case.name())));
        }
    }
    println!("plans:");
    cudnn.cudnn().1.iter().for_each(|plan| println!("  {plan}"));
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

/// The forward's output over `span`, which was told `cu_seqlens` before something happened to it.
fn told_then(cuda: &Cuda, d: &Data, happens: impl FnOnce(&dyn Backend, &mut Buf)) -> (Vec<f32>, u64) {
    let b: &dyn Backend = cuda;
    let input = |x: &[f32]| b.alloc_f32(x, Bf16).unwrap();
    let (q, k, v) = (input(&d.q), input(&d.k), input(&d.v));
    let (mut out, mut lse) = (b.alloc(d.out.len(), Bf16).unwrap(), b.alloc(d.lse.len(), F32).unwrap());
    let mut span = b.alloc_u32(&d.span).unwrap();
    b.sequences(&span, &d.cu_seqlens, None);
    b.attention_forward(&mut out, &mut lse, &q, &k, &v, &span, &d.p).unwrap();
    happens(b, &mut span);
    let before = cuda.cudnn().0;
    b.attention_forward(&mut out, &mut lse, &q, &k, &v, &span, &d.p).unwrap();
    let by_cudnn = cuda.cudnn().0 - before;
    let got = b.download_f32(&out).unwrap();
    [q, k, v, out, lse, span].into_iter().for_each(|buf| b.free(buf));
    (got, by_cudnn)
}

#[test]
fn what_was_told_is_forgotten_with_the_table_it_was_told_of() {
    let Some(cuda) = open(AttentionPath::Cudnn) else { return };
    let (whole, parts) = (case(&[512], [4, 2, 64], Bf16).data(), case(&[200, 312], [4, 2, 64], Bf16).data());
    let close = |got: &[f32], d: &Data| nmse(got, &d.want["out"]) <= 1e-4;
    let (got, by_cudnn) = told_then(&cuda, &whole, |_, _| {});
    assert!(by_cudnn == 1 && close(&got, &whole), "told, and nothing happened: {by_cudnn}");
    let (got, by_cudnn) = told_then(&cuda, &whole, |b, span| b.upload_u32(span, &parts.span).unwrap());
    assert!(by_cudnn == 0 && close(&got, &parts), "uploaded: {by_cudnn}");
    let (got, by_cudnn) = told_then(&cuda, &whole, |b, span| {
        let other = b.alloc_u32(&parts.span).unwrap();
        b.copy(span, &other).unwrap();
        b.free(other);
    });
    assert!(by_cudnn == 0 && close(&got, &parts), "copied: {by_cudnn}");
    let (got, by_cudnn) = told_then(&cuda, &whole, |b, span| {
        b.upload_u32(&mut span.view(0, 2), &parts.span[..2]).unwrap();
        b.upload_u32(span, &parts.span).unwrap();
        b.sequences(span, &parts.cu_seqlens, None);
    });
    assert!(by_cudnn == 1 && close(&got, &parts), "told again: {by_cudnn}");
    let (got, by_cudnn) = told_then(&cuda, &whole, |b, span| {
        let other = b.alloc_u32(&parts.span).unwrap();
        b.free(std::mem::replace(span, other));
    });
    assert!(by_cudnn == 0 && close(&got, &parts), "another buffer: {by_cudnn}");
}

#[test]
fn the_same_bits_again_where_they_are_wanted() {
    let Some(cuda) = open(AttentionPath::Cudnn) else { return };
    for case in [case(&[1024; 4], [8, 2, 128], Bf16), case(&[1000, 24, 2000], [8, 2, 128], Bf16)] {
        let data = case.data();
        let bits = |ran: &Ran| {
            let of = |name: &str| ran.outputs[name].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            (["out", "lse"].map(of), ["dq", "dk", "dv"].map(of))
        };
        let first = run(&cuda, &case, &data);
        let again: Vec<Ran> = (0..4).map(|_| run(&cuda, &case, &data)).collect();
        let same = |ran: &Ran| bits(ran).1 == bits(&first).1;
        println!("{}: backward the same in {} of 4 runs", case.name(), again.iter().filter(|r| same(r)).count());
        assert!(again.iter().all(|r| bits(r).0 == bits(&first).0), "{}: the forward differs", case.name());
        cuda.set_deterministic(true);
        let steady = run(&cuda, &case, &data);
        assert_eq!(steady.by_cudnn, 1, "the backward is our own");
        assert!((0..4).all(|_| bits(&run(&cuda, &case, &data)) == bits(&steady)), "{}", case.name());
        cuda.set_deterministic(false);
    }
}

/// Loss and gradients of a model with random weights over packed sequences.
fn step(cuda: &Cuda, folder: &std::path::Path, lengths: &[u32]) -> (f64, BTreeMap<String, Vec<f32>>) {
    use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
    let options = LoadOptions { train: true, ..LoadOptions::frozen(Bf16) };
    let mut model = Model::load(cuda, folder, &options).unwrap();
    let cu_seqlens = case(lengths, [1; 3], Bf16).cu_seqlens();
    let N = *cu_seqlens.last().unwrap() as usize;
    let ids: Vec<u32> = (0..N as u32).map(|n| (n * 37 + n / 7 * 11) % 256).collect();
    let labels: Vec<u32> = (0..N as u32).map(|n| if n % 7 == 3 { u32::MAX } else { (n * 53 + 8) % 256 }).collect();
    let tokens = Tokens { ids, positions: lengths.iter().flat_map(|length| 0..*length).collect(), cu_seqlens };
    let mut session = Session::new(cuda, &model, N, N, Plan::Recompute).unwrap();
    session.forward(&model, &tokens).unwrap();
    let logp = session.logprobs(&model, &labels).unwrap();
    let counted = labels.iter().filter(|l| **l != u32::MAX).count() as f64;
    let coef: Vec<f32> = labels.iter().map(|l| if *l == u32::MAX { 0.0 } else { (-1.0 / counted) as f32 }).collect();
    session.backward(&mut model, &labels, &coef).unwrap();
    let gradients = model.trained().map(|p| (p.name.clone(), p.grad(cuda).unwrap())).collect();
    (-logp.iter().map(|x| *x as f64).sum::<f64>() / counted, gradients)
}

#[test]
fn a_packed_step_of_a_model_is_the_same_both_ways() {
    let (Some(own), Some(cudnn)) = (open(AttentionPath::Own), open(AttentionPath::Auto)) else { return };
    let sizes = r#""vocab_size": 256, "hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5"#;
    let mut failures = Vec::new();
    for (kind, more) in [("llama", ""), ("mistral", ", \"sliding_window\": 200")] {
        let dir = tempfile::tempdir().unwrap();
        let (config, made) = (dir.path().join("config.json"), dir.path().join("made"));
        std::fs::write(&config, format!("{{\"model_type\": \"{kind}\", {sizes}{more}}}")).unwrap();
        luthier::export::init::init(&config, &made, Bf16, None, 5).unwrap();
        for lengths in [&[1024, 1024][..], &[900, 1, 400, 123], &[2048]] {
            let before = cudnn.cudnn().0;
            let (want, got) = (step(&own, &made, lengths), step(&cudnn, &made, lengths));
            let by_cudnn = cudnn.cudnn().0 - before;
            let off = (got.0 - want.0).abs() / want.0;
            let error = |name: &String| {
                let want: Vec<f64> = want.1[name].iter().map(|x| *x as f64).collect();
                (nmse(&got.1[name], &want), name.clone())
            };
            let worst = got.1.keys().map(error).fold((0.0, String::new()), |a, b| if b.0 <= a.0 { a } else { b });
            println!("{kind} {lengths:?}: loss off {off:.1e}, worst gradient {worst:?}, {by_cudnn} calls by cuDNN");
            // 3 layers: forward, again for the backward, backward
            if !(off <= 1e-3 && worst.0 <= 3e-3) || by_cudnn != 9 {
                failures.push(format!("{kind} {lengths:?}: {off:e} {worst:?} {by_cudnn}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The sizes of an 8B model. TFLOP/s: causal pairs alone are counted.
#[test]
fn speeds() {
    let (Some(own), Some(cudnn)) = (open(AttentionPath::Own), open(AttentionPath::Cudnn)) else { return };
    let packed: Vec<u32> = [25, 16, 12, 10, 9, 7, 6, 5, 4, 3, 2, 1].map(|share| share * 16384 / 100).to_vec();
    let short: Vec<u32> = (0..64).map(|i| 128 + (i * 37) % 256).collect();
    for lengths in [vec![2048; 2], vec![2048; 8], vec![16384], vec![2047; 8], packed, short] {
        let case = case(&lengths, [32, 8, 128], Bf16);
        let mut data = case.shape();
        (data.out, data.lse) = (data.dout.clone(), vec![5.0; data.p.N as usize * 32]);
        let pairs: f64 = lengths.iter().map(|l| *l as f64 * (*l as f64 + 1.0) / 2.0).sum();
        println!("{}, {} tokens", case.name(), data.p.N);
        for (path, cuda) in [("own", &own), ("cudnn", &cudnn)] {
            let ran = run(cuda, &case, &data);
            let [forward, backward] = ran.times;
            let rate = |products: f64, us: f64| products * 2.0 * pairs * 4096.0 / us / 1e6;
            println!(
                "  {path:<6} {forward:9.1} us {:6.1} TFLOP/s  {backward:9.1} us {:6.1} TFLOP/s, {} calls by cuDNN",
                rate(2.0, forward),
                rate(5.0, backward),
                ran.by_cudnn
            );
        }
    }
    println!("memory: {:?}", cudnn.memory());
    cudnn.cudnn().1.iter().for_each(|plan| println!("  {plan}"));
}
