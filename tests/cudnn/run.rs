//! A case on a device, and what is wrong with what came out.
use super::cases::{Case, Data};
use super::nmse;
use luthier::backend::cuda::Cuda;
use luthier::backend::{Backend, Buf};
use luthier::dtype::DType::{self, F16, F32};
use std::collections::BTreeMap;
use std::time::Instant;

/// Elements behind each output that must stay as they are.
const GUARD: usize = 64;

/// A buffer of NaN, and the part of it that is an output.
fn nothing(b: &dyn Backend, len: usize, dtype: DType) -> (Buf, Buf) {
    let whole = b.alloc_f32(&vec![f32::NAN; len + GUARD], dtype).unwrap();
    let part = whole.view(0, len);
    (whole, part)
}

pub struct Ran {
    pub outputs: BTreeMap<&'static str, Vec<f32>>,
    /// Microseconds of a call, forward and backward.
    pub times: [f64; 2],
    /// Calls that cuDNN ran of the two that were checked.
    pub by_cudnn: u64,
    pub stray: Vec<&'static str>,
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
pub fn run(cuda: &Cuda, case: &Case, d: &Data) -> Ran {
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
pub fn judge(ran: &Ran, case: &Case, d: &Data) -> (String, Vec<String>) {
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
