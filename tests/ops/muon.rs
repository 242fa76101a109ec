use super::*;
use luthier::dtype::DType;
use luthier::ops::adamw::Chance;
use luthier::ops::muon::{MuonMomentum, MuonNormalize, MuonStep, muon_normalize};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, (N, C)) in [(1, 1), (3, 7), (8, 64), (5, 255), (7, 257), (2, 1030), (65, 34)].into_iter().enumerate() {
        let p = MuonMomentum { N, C, momentum: 0.95, rest: 0.05, nesterov: i as u32 % 2 };
        cases.push(Case::new(Op::muon_momentum, p));
    }
    for (E, N, C) in [(1, 1, 1), (1, 3, 7), (3, 8, 64), (2, 5, 1638), (5, 1, 4097), (2, 300, 2), (1, 257, 32)] {
        cases.push(Case::new(Op::muon_normalize, MuonNormalize { E, N, C, eps: 1e-7 }));
        cases.push(Case::new(Op::muon_normalize, MuonNormalize { E, N, C, eps: 0.5 }).with("of zero", |values| {
            values.get_mut("square").unwrap().floats_mut().fill(0.0);
        }));
    }
    for P in [1, 2, 255, 513, 4100, 70_001] {
        let p = MuonStep::new(P, 0.99, 0.02);
        cases.push(Case::new(Op::muon_step, p).mixed(DType::Bf16, &[("weight", DType::F32)]));
        let p = p.by_chance(Chance { seed: 7, stream: 1, first: 8192 });
        cases.push(Case::new(Op::muon_step, p).rounded_by_chance());
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

#[test]
fn each_matrix_has_its_own_norm() {
    let mut x = [3.0f64, 4.0, 0.0, 0.0, 6.0, 8.0];
    muon_normalize(&mut x, &[25.0, 0.0, 100.0], &MuonNormalize { E: 3, N: 1, C: 2, eps: 1e-7 });
    let err = limits::nmse(&x, &[0.6, 0.8, 0.0, 0.0, 0.6, 0.8]);
    assert!(err <= 1e-12, "{x:?}");
}
