use super::*;
use luthier::ops::expert_count::ExpertCount;
use values::{Data, Values};

/// Experts that exist, each at most once a token.
fn choices(E: u32, S: u32) -> impl Fn(&mut Values) + Send + Sync {
    move |values| {
        if let Some(Data::U32(experts)) = values.get_mut("experts") {
            for (i, e) in experts.iter_mut().enumerate() {
                *e = (i as u32 % S + i as u32 / S * 7) % E;
            }
        }
        balance::masked(values);
    }
}

const SHAPES: [(u32, u32, u32); 9] = [
    (1, 1, 1), (1, 2, 1), (3, 4, 2), (7, 5, 5), (65, 6, 2), (63, 33, 4), (257, 64, 8), (9, 130, 6), (1030, 16, 2),
];

pub fn cases() -> Vec<Case> {
    let case = |(N, E, S)| Case::new(Op::expert_count, ExpertCount { N, E, S }).with("choices", choices(E, S));
    SHAPES.into_iter().map(case).collect()
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
