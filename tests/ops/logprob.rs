use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::logprob::LogProb;
use values::Values;

/// Logits as models have them: most tokens unlikely.
fn wide(values: &mut Values) {
    values.get_mut("logits").unwrap().floats_mut().iter_mut().for_each(|x| *x *= 12.0);
}

pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 0), (6, 2, 0), (4, 1, 1), (7, 127, 1), (5, 128, 0), (9, 4099, 1), (3, 4099, 5), (65, 66, 62), (257, 30, 0), (2, 32_003, 1),
        (1, 1021, 3),
    ];
    let mut cases = Vec::new();
    for (N, V, pad) in shapes {
        // one word alone has a gradient of exactly 0, and a cap would leave no scale to compare with
        for softcap in [0.0, 30.0].into_iter().filter(|cap| V > 1 || *cap == 0.0) {
            let p = LogProb { N, V, ld_logits: V + pad, ld_dlogits: V + pad, softcap };
            // a vocabulary may be odd
            cases.push(Case::new(Op::logprob_forward, p).odd_rows().with("wide", wide));
            let backward = Case::new(Op::logprob_backward, p).odd_rows().with("wide", wide);
            cases.push(backward.mixed(Bf16, &[("logits", F32)]).mixed(F16, &[("logits", F32)]));
        }
    }
    let other = LogProb { N: 6, V: 50, ld_logits: 52, ld_dlogits: 64, softcap: 0.0 };
    cases.push(Case::new(Op::logprob_backward, other).with("wide", wide).mixed(Bf16, &[("logits", F32)]));
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, V, ld_logits, ld_dlogits, softcap| {
        let p = LogProb { N, V, ld_logits, ld_dlogits, softcap };
        Gradient::new(Op::logprob_forward, p, Op::logprob_backward, p).called(&[("coef", "dlogp")])
    };
    vec![of(1, 1, 1, 1, 0.0), of(9, 5, 6, 8, 0.0), of(4, 17, 17, 17, 0.0), of(4, 17, 18, 17, 1.5)]
}
