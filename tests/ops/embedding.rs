use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::embedding::Embedding;
use values::{Data, Values};

/// Few ids, so that runs are long and some rows get nothing.
fn repeated(values: &mut Values) {
    let Some(Data::U32(ids)) = values.get_mut("ids") else { panic!("ids are u32") };
    ids.iter_mut().for_each(|id| *id = *id % 3 * 2);
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (N, V, C) in [(1, 1, 1), (1, 5, 2), (7, 11, 13), (65, 10, 64), (257, 127, 130), (3, 50, 4099), (130, 300, 254)] {
        let p = Embedding { N, V, C, scale: if C % 2 == 1 { 6.9375 } else { 1.0 } };
        cases.push(Case::new(Op::embedding_forward, p).mixed(Bf16, &[("weight", F32)]).mixed(F32, &[("weight", F16)]));
        cases.push(Case::new(Op::embedding_backward, p).mixed(Bf16, &[("dweight", F32)]));
        if V > 4 {
            cases.push(Case::new(Op::embedding_backward, p).mixed(F16, &[("dweight", F32)]).with("repeated", repeated));
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, V, C| {
        let p = Embedding { N, V, C, scale: 0.5 + C as f32 };
        Gradient::new(Op::embedding_forward, p, Op::embedding_backward, p)
    };
    vec![of(1, 1, 1), of(9, 5, 3), of(12, 7, 4).with("repeated", repeated)]
}
