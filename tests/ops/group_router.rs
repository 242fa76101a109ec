use super::*;
use luthier::dtype::DType::{Bf16, F32};
use luthier::ops::group_router::GroupRouter;
use values::{Data, Values};

/// Few levels without a bias, so that the choice meets equals; no two sums of two of them are equal.
fn ties(values: &mut Values) {
    for (name, levels) in [("logits", [-0.875, 0.125, 0.75]), ("bias", [0.0; 3])] {
        if let Some(Data::Float(x)) = values.get_mut(name) {
            x.iter_mut().for_each(|x| *x = levels[((*x + 1.0) * 1.5) as usize % 3]);
        }
    }
}

/// Sigmoids near 0 and 1: the bias chooses.
fn large(values: &mut Values) {
    values.get_mut("logits").expect("logits").floats_mut().iter_mut().for_each(|x| *x *= 12.0);
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // N, E, S, groups, kept
    let shapes = [
        (1, 1, 1, 1, 1), (1, 2, 2, 1, 1), (3, 4, 2, 2, 1), (7, 5, 3, 5, 4), (65, 6, 2, 3, 2), (130, 8, 3, 2, 2), (63, 33, 4, 11, 3),
        (9, 64, 6, 1, 1), (257, 128, 8, 8, 4), (33, 256, 8, 8, 4), (5, 130, 6, 65, 40), (2, 384, 8, 1, 1), (4, 512, 7, 256, 9),
    ];
    for (N, E, S, groups, kept) in shapes {
        for (norm, scale) in [(0, 1.0), (1, 2.5)] {
            let p = GroupRouter { N, E, S, groups, kept, norm, scale };
            for op in [Op::group_router_forward, Op::group_router_backward] {
                cases.push(Case::new(op, p));
                cases.push(Case::new(op, p).with("ties", ties));
            }
            cases.push(Case::new(Op::group_router_forward, p).with("large", large));
            cases.push(Case::new(Op::group_router_backward, p).mixed(Bf16, &[("dlogits", F32)]));
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, E, S, groups, kept, norm, scale| {
        let p = GroupRouter { N, E, S, groups, kept, norm, scale };
        Gradient::new(Op::group_router_forward, p, Op::group_router_backward, p)
    };
    vec![of(1, 1, 1, 1, 1, 0, 1.5), of(3, 4, 2, 2, 1, 0, 2.0), of(3, 6, 2, 3, 2, 1, 2.5), of(5, 8, 3, 1, 1, 1, 1.0), of(2, 9, 9, 3, 3, 1, 0.5)]
}

fn choice(logits: &[f64], bias: &[f64], p: GroupRouter) -> (Vec<u32>, Vec<f64>) {
    let (mut experts, mut weights) = (vec![99; p.S as usize], vec![f64::NAN; p.S as usize]);
    luthier::ops::group_router::group_router_forward(&mut weights, &mut experts, logits, bias, &p);
    (experts, weights)
}

/// σ(0) = 0.5, σ(ln 3) = 0.75, σ(−ln 3) = 0.25.
#[test]
fn groups_count_by_their_best_two_and_the_bias_only_chooses() {
    let l = 3f64.ln();
    let p = GroupRouter { N: 1, E: 6, S: 2, groups: 2, kept: 1, norm: 0, scale: 2.0 };
    // the greatest of all is in the group whose two best are less
    assert_eq!(choice(&[l, -l, -l, 0.0, 0.0, l], &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0], p), (vec![5, 3], vec![1.5, 1.0]));
    assert_eq!(choice(&[l, -l, -l, 0.0, 0.0, l], &[0.0, 0.0, 9.0, 0.0, 0.0, 0.0], p), (vec![2, 0], vec![0.5, 1.5]));
    let (experts, weights) = choice(&[l, -l, -l, 0.0, 0.0, 0.0], &[0.0; 6], GroupRouter { norm: 1, ..p });
    assert_eq!(experts, [0, 1], "equal groups and equal experts: the first");
    assert!((weights[0] - 1.5).abs() < 1e-12 && (weights[1] - 0.5).abs() < 1e-12, "{weights:?}");
}

#[test]
fn nans_choose_experts_that_exist_and_show_in_the_weights() {
    on_devices(|devices| {
        for d in devices {
            let b = &*d.backend;
            for norm in [0, 1] {
                let p = GroupRouter { N: 2, E: 6, S: 3, groups: 2, kept: 1, norm, scale: 1.0 };
                let mut logits = [f32::NAN; 12];
                logits[6 + 4] = 1.0;
                let (logits, bias) = (b.alloc_f32(&logits, F32).unwrap(), b.alloc_f32(&[0.0; 6], F32).unwrap());
                let mut weights = b.alloc(6, F32).unwrap();
                let mut experts = b.alloc_u32(&[77; 6]).unwrap();
                b.group_router_forward(&mut weights, &mut experts, &logits, &bias, &p).unwrap();
                let experts: Vec<u32> = bytemuck::cast_slice(&b.download(&experts).unwrap()).to_vec();
                assert!(experts.iter().all(|e| *e < 6) && experts[3] == 4, "{}: {experts:?}", d.name);
                let weights = b.download_f32(&weights).unwrap();
                assert!([0, 1, 2, 4, 5].iter().all(|i| weights[*i].is_nan()), "{}: {weights:?}", d.name);
            }
        }
    });
}
