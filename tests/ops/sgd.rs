use super::*;
use luthier::dtype::DType;
use luthier::ops::adamw::Chance;
use luthier::ops::sgd::{Sgd, sgd_step, sgd_step_momentum};

const CHANCE: Chance = Chance { seed: 5, stream: 3, first: 4096 };

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, P) in [1, 2, 255, 256, 257, 1021, 4100, 70_001].into_iter().enumerate() {
        let p = Sgd { nesterov: i as u32 % 2, decay: 0.01, momentum: 0.9, rest: 0.7, ..Sgd::new(P, 1, 0.1, (0.0, 0.0), false, 0.0) };
        for op in [Op::sgd_step, Op::sgd_step_momentum] {
            cases.push(Case::new(op, p).held_apart());
            cases.push(Case::new(op, p.by_chance(CHANCE)).rounded_by_chance());
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

/// m is 1, then 0.5 + 0.5·1; nesterov looks half a momentum further.
#[test]
fn momentum_gathers() {
    let p = Sgd { momentum: 0.5, ..Sgd::new(1, 1, 1.0, (0.0, 0.0), false, 0.0) };
    let run = |nesterov: u32| {
        let (mut weight, mut m) = ([0.0f64], [0.0]);
        for _ in 0..2 {
            sgd_step_momentum(&mut weight, &mut m, &[2.0], &[0.5], &Sgd { nesterov, ..p });
        }
        (weight[0], m[0])
    };
    assert_eq!(run(0), (-2.5, 1.5));
    assert_eq!(run(1), (-(1.5 + 1.75), 1.5));
}

/// What is rounded by chance is right on average, where the nearest value would never move; and its neighbours are all it becomes.
#[test]
fn many_small_steps_add_up() {
    let P = 4096;
    let mut weight = vec![1.0f64; P];
    // a bf16 between 1 and 2 has steps of 2⁻⁷: this is a sixteenth of one
    let grad = vec![-(0.5f64.powi(11)); P];
    for seed in 0..64 {
        let p = Sgd::new(P, 1, 1.0, (0.0, 0.0), false, 0.0).by_chance(Chance { seed, stream: 0, first: 0 });
        sgd_step(&mut weight, &grad, &[1.0], &p);
    }
    let steps = |w: &f64| (w - 1.0) * 128.0;
    assert!(weight.iter().all(|w| steps(w).fract() == 0.0), "values that bf16 has");
    let (mean, most) = (weight.iter().map(steps).sum::<f64>() / P as f64, weight.iter().map(steps).fold(0.0, f64::max));
    // 64 draws of 1/16 each: a binomial of mean 4 and variance 3.75; five standard deviations of the mean of P of them
    assert!((mean - 4.0).abs() < 5.0 * (3.75 / P as f64).sqrt(), "{mean}");
    assert!((8.0..24.0).contains(&most), "{most}");
}

/// Sums that are exact in f32: then every device rounds the very same way, wherever its call begins.
#[test]
fn every_device_draws_the_same() {
    let P = 1000;
    let mut noise = values::Noise::of("chance");
    let weight: Vec<f32> = noise.vec(P).iter().map(|x| DType::Bf16.round(*x as f32 + 1.5)).collect();
    let grad: Vec<f32> = noise.vec(P).iter().map(|x| (*x as f32 * 256.0).round() / 65536.0).collect();
    let params = |P, first| {
        Sgd::new(P, 1, 1.0, (0.0, 0.0), false, 0.0).by_chance(Chance { seed: 77, stream: 9, first })
    };
    let mut want: Vec<f64> = weight.iter().map(|w| *w as f64).collect();
    let grads: Vec<f64> = grad.iter().map(|g| *g as f64).collect();
    sgd_step(&mut want, &grads, &[1.0], &params(P, 0));
    let want: Vec<f32> = want.iter().map(|w| *w as f32).collect();
    assert!(want.iter().zip(&weight).filter(|(a, b)| a != b).count() > P / 8);
    on_devices(move |devices| {
        for d in devices {
            let b = &*d.backend;
            let (mut w, scale) = (b.alloc_f32(&weight, DType::Bf16).unwrap(), b.alloc_f32(&[1.0], DType::F32).unwrap());
            let g = b.alloc_f32(&grad, DType::F32).unwrap();
            for (first, len) in [(0, 256), (256, 744)] {
                let p = params(len, first as u32);
                b.sgd_step(&mut w.view(first, len), &g.view(first, len), &scale, &p).unwrap();
            }
            assert_eq!(b.download_f32(&w).unwrap(), want, "{}", d.name);
            w = b.alloc_f32(&weight, DType::Bf16).unwrap();
            b.sgd_step(&mut w, &g, &scale, &params(P, 0)).unwrap();
            assert_eq!(b.download_f32(&w).unwrap(), want, "{} at once", d.name);
        }
    });
}
