use super::*;
use luthier::dtype::DType::{Bf16, F32};
use luthier::ops::router::Router;
use values::{Data, Values};

/// Few levels, so that the choice meets equals.
fn ties(values: &mut Values) {
    let Some(Data::Float(x)) = values.get_mut("logits") else { panic!("logits are float") };
    x.iter_mut().for_each(|x| *x = (*x * 2.0).round() / 2.0);
}

/// All weight on one expert. Forward only: what is left of the gradient is less than its rounding.
fn large(values: &mut Values) {
    let Some(Data::Float(x)) = values.get_mut("logits") else { panic!("logits are float") };
    x.iter_mut().for_each(|x| *x *= 300.0);
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [
        (1, 1, 1), (1, 2, 1), (3, 4, 2), (7, 5, 5), (65, 6, 2), (130, 8, 3), (63, 33, 4), (9, 64, 8), (257, 128, 8), (5, 130, 6),
        (300, 60, 1), (2, 512, 22),
    ];
    for (N, E, S) in shapes {
        for norm in [0, 1] {
            let p = Router { N, E, S, norm };
            for op in [Op::router_forward, Op::router_backward] {
                cases.push(Case::new(op, p));
                if E > 3 {
                    cases.push(Case::new(op, p).with("ties", ties));
                }
            }
            cases.push(Case::new(Op::router_forward, p).with("large", large));
            cases.push(Case::new(Op::router_backward, p).mixed(Bf16, &[("dlogits", F32)]));
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, E, S, norm| {
        let p = Router { N, E, S, norm };
        Gradient::new(Op::router_forward, p, Op::router_backward, p)
    };
    vec![of(1, 1, 1, 0), of(3, 4, 2, 0), of(3, 4, 2, 1), of(5, 7, 3, 0), of(5, 7, 3, 1), of(2, 9, 9, 1), of(2, 9, 9, 0)]
}

fn choice(logits: &[f64], S: u32, norm: u32) -> (Vec<u32>, Vec<f64>) {
    let (mut experts, mut weights) = (vec![9; S as usize], vec![f64::NAN; S as usize]);
    let p = Router { N: 1, E: logits.len() as u32, S, norm };
    luthier::ops::router::router_forward(&mut weights, &mut experts, logits, &p);
    (experts, weights)
}

#[test]
fn of_equal_logits_the_lowest_index_wins() {
    assert_eq!(choice(&[1.0, 3.0, 3.0, 3.0, 2.0], 3, 1), (vec![1, 2, 3], vec![1.0 / 3.0; 3]));
    assert_eq!(choice(&[0.0; 4], 2, 0), (vec![0, 1], vec![0.25; 2]));
}

#[test]
fn nans_choose_experts_that_exist_and_show_in_the_weights() {
    on_devices(|devices| {
        for d in devices {
            let b = &*d.backend;
            for norm in [0, 1] {
                let p = Router { N: 2, E: 5, S: 3, norm };
                let mut logits = [f32::NAN; 10];
                logits[7] = 1.0;
                let logits = b.alloc_f32(&logits, F32).unwrap();
                let mut weights = b.alloc(6, F32).unwrap();
                let mut experts = b.alloc_u32(&[77; 6]).unwrap();
                b.router_forward(&mut weights, &mut experts, &logits, &p).unwrap();
                let experts: Vec<u32> = bytemuck::cast_slice(&b.download(&experts).unwrap()).to_vec();
                assert!(experts.iter().all(|e| *e < 5) && experts[3] == 2, "{}: {experts:?}", d.name);
                let weights = b.download_f32(&weights).unwrap();
                assert!(weights[..3].iter().all(|w| w.is_nan()), "{}: {weights:?}", d.name);
            }
        }
    });
}
