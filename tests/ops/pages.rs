use super::*;
use luthier::ops::pages::Pages;
use values::Data;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (N, T, C) in [(1, 1, 2), (1, 32, 6), (5, 64, 16), (17, 100, 66), (64, 256, 128), (3, 48, 1030), (7, 9, 5)] {
        // each row has a slot of its own, the last slot too
        let slots: Vec<u32> = (0..N).map(|n| (T - 1 + n * 7) % T).collect();
        let unique: std::collections::BTreeSet<_> = slots.iter().collect();
        let slots = if unique.len() == slots.len() { slots } else { (0..N).map(|n| T - N + n).collect() };
        cases.push(
            Case::new(Op::pages_write, Pages { N, T, C }).with("slots", move |v| _ = v.insert("slots", Data::U32(slots.clone()))),
        );
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
