use super::*;
use luthier::dtype::DType::{Bf16, F32};
use luthier::ops::attention_sink::AttentionSink;
use values::{Data, Values};

/// A query that saw nothing, and sinks far above and below the scores.
fn extremes(values: &mut Values) {
    let Some(Data::Float(lse)) = values.get_mut("lse") else { panic!("lse is float") };
    lse[0] = f64::NEG_INFINITY;
    let Some(Data::Float(sinks)) = values.get_mut("sinks") else { panic!("sinks are float") };
    sinks.iter_mut().enumerate().for_each(|(h, s)| *s *= if h % 2 == 0 { 90.0 } else { 1.0 });
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (N, H, D) in [(1, 1, 1), (1, 3, 2), (5, 4, 6), (65, 3, 33), (257, 2, 64), (40, 64, 64), (129, 5, 80), (9, 6, 256), (300, 3, 128)] {
        let p = AttentionSink { N, H, D };
        let forward = Case::new(Op::attention_sink_forward, p).mixed(Bf16, &[("sinks", F32)]);
        cases.push(forward);
        cases.push(Case::new(Op::attention_sink_forward, p).with("extremes", extremes));
        cases.push(Case::new(Op::attention_sink_backward, p).mixed(Bf16, &[("sinks", F32)]));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, H, D| {
        let p = AttentionSink { N, H, D };
        Gradient::new(Op::attention_sink_forward, p, Op::attention_sink_backward, p)
    };
    vec![of(1, 1, 1), of(4, 3, 5), of(7, 2, 4)]
}

/// One key and a sink of the same score: half of the key's value.
#[test]
fn a_sink_takes_its_share() {
    let p = AttentionSink { N: 1, H: 2, D: 1 };
    let (mut out, mut lse) = (vec![4.0f64, 4.0], vec![0.5, f64::NEG_INFINITY]);
    luthier::ops::attention_sink::attention_sink_forward(&mut out, &mut lse, &[0.5, 2.0], &p);
    assert!((out[0] - 2.0).abs() < 1e-14 && out[1] == 0.0, "{out:?}");
    assert!((lse[0] - (0.5 + 2f64.ln())).abs() < 1e-15 && lse[1] == 2.0);
}
