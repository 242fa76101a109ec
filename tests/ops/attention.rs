use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::attention::Attention;
use values::{Data, Values};

/// One query head reads one kv head each, or several share it.
fn params(N: u32, T: u32, H: u32, K: u32, D: u32, pads: [u32; 3]) -> Attention {
    let (ld_q, ld_k, ld_v) = (H * D + pads[0], K * D + pads[1], K * D + pads[2]);
    Attention { N, T, H, K, D, ld_q, ld_k, ld_v, scale: 1.0 / (D as f32).sqrt(), softcap: 0.0 }
}

fn set_span(values: &mut Values, span: Vec<[usize; 2]>) {
    // scores of some size: a flat softmax forgives much
    values.get_mut("q").unwrap().floats_mut().iter_mut().for_each(|x| *x *= 4.0);
    values.insert("span", Data::U32(span.into_iter().flatten().map(|j| j as u32).collect()));
}

/// Sequences of these lengths packed end to end, each causal with a window of keys.
fn packed(lengths: &[usize], window: usize) -> Vec<[usize; 2]> {
    let starts = lengths.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len)));
    let sequence = |(start, len): (usize, &usize)| (start..start + len).map(move |n| [start.max((n + 1).saturating_sub(window)), n + 1]);
    starts.zip(lengths).flat_map(sequence).collect()
}

const HEADS: &[(u32, u32, u32)] = &[(1, 1, 6), (2, 2, 16), (4, 2, 64), (6, 2, 80), (4, 1, 128), (2, 1, 256), (3, 3, 12)];

fn both(cases: &mut Vec<Case>, what: &str, p: Attention, span: Vec<[usize; 2]>) {
    for op in [Op::attention_forward, Op::attention_backward] {
        let span = span.clone();
        let case = Case::new(op, p).with(what, move |values| set_span(values, span.clone()));
        cases.push(match op {
            Op::attention_forward => case.mixed(Bf16, &[("out", F32)]),
            _ => case.mixed(F16, &[("out", F32)]),
        });
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (H, K, D) in HEADS {
        both(&mut cases, "packed", params(101, 101, *H, *K, *D, [0; 3]), packed(&[1, 37, 63], 1000));
        both(&mut cases, "window", params(75, 75, *H, *K, *D, [2, 4, 6]), packed(&[70, 5], 17));
    }
    // the cap is low, so that scores reach it
    let capped = |p: Attention| Attention { softcap: 5.0, ..p };
    both(&mut cases, "softcap", capped(params(101, 101, 4, 2, 64, [0; 3])), packed(&[1, 37, 63], 1000));
    both(&mut cases, "softcap", capped(params(75, 75, 2, 1, 6, [2, 4, 6])), packed(&[70, 5], 17));
    both(&mut cases, "softcap", capped(params(130, 130, 2, 2, 256, [0; 3])), packed(&[130], 1000));
    both(&mut cases, "softcap", capped(params(150, 150, 4, 2, 128, [0; 3])), packed(&[129, 21], 70));
    // one token alone has a gradient of exactly 0 through its softmax: no scale to compare with
    let alone = Case::new(Op::attention_forward, params(1, 1, 2, 1, 16, [0; 3]));
    cases.push(alone.with("one token", |v| set_span(v, vec![[0, 1]])));
    both(&mut cases, "one token and two", params(3, 3, 2, 1, 16, [0; 3]), packed(&[1, 2], 9));
    both(&mut cases, "tiles", params(130, 130, 2, 2, 64, [0; 3]), packed(&[64, 65, 1], 1000));
    both(&mut cases, "long", params(300, 300, 2, 1, 32, [64, 32, 32]), packed(&[300], 1000));
    both(&mut cases, "long", params(257, 257, 4, 2, 128, [0; 3]), packed(&[257], 1000));
    both(&mut cases, "long window", params(200, 200, 2, 2, 64, [0; 3]), packed(&[150, 50], 70));
    // cached decoding: the queries are the last of T tokens
    both(&mut cases, "decode", params(1, 70, 4, 2, 64, [0; 3]), vec![[0, 70]]);
    both(&mut cases, "decode", params(1, 1029, 4, 1, 128, [0; 3]), vec![[0, 1029]]);
    let last = |N: usize, T: usize| (T - N..T).map(|t| [0, t + 1]).collect();
    both(&mut cases, "continued", params(13, 70, 4, 2, 16, [0; 3]), last(13, 70));
    // everyone sees everything, as in an encoder; one query sees nothing
    both(&mut cases, "full", params(40, 66, 2, 2, 16, [0; 3]), vec![[0, 66]; 40]);
    let mut blind = packed(&[30, 10], 1000);
    (blind[0], blind[39]) = ([0, 0], [40, 40]);
    both(&mut cases, "blind", params(40, 40, 2, 1, 16, [0; 3]), blind);
    cases
}

fn dot(values: &Values, dims: &[usize]) -> Vec<f64> {
    let D = dims[4];
    let (dout, out) = (values["dout"].floats().chunks(D), values["out"].floats().chunks(D));
    dout.zip(out).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum()).collect()
}

pub fn gradients() -> Vec<Gradient> {
    let of = |p: Attention| Gradient::new(Op::attention_forward, p, Op::attention_backward, p).statistic("dot", dot);
    vec![
        of(params(1, 1, 1, 1, 2, [0; 3])),
        of(params(7, 7, 4, 2, 6, [1, 2, 3])).with("packed", |v| set_span(v, packed(&[3, 4], 9))),
        of(params(9, 9, 2, 2, 4, [0; 3])).with("window", |v| set_span(v, packed(&[9], 3))),
        of(Attention { softcap: 2.0, ..params(7, 7, 4, 2, 6, [1, 2, 3]) }).with("softcap", |v| set_span(v, packed(&[3, 4], 9))),
        of(params(3, 8, 6, 2, 5, [0; 3])).with("continued", |v| set_span(v, vec![[0, 6], [0, 7], [0, 8]])),
        of(params(4, 4, 2, 1, 3, [0; 3])).with("blind", |v| set_span(v, vec![[0, 0], [0, 2], [0, 3], [4, 4]])),
    ]
}
