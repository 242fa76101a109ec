use super::*;
use luthier::ops::gradnorm::{GradNorm, GradNormFinish, gradnorm_finish, gradnorm_partial};

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = [1, 2, 255, 4095, 4096, 4097, 12_289, 70_001].map(|P| Case::new(Op::gradnorm_partial, GradNorm { P })).into();
    for P in [1, 2, 65, 255, 257, 1021, 5000] {
        for (max_norm, unscale) in [(0.0, 1.0), (1.0, 1.0), (1e4, 1.0), (0.0, 0.125), (0.25, 1.0 / 1024.0)] {
            cases.push(Case::new(Op::gradnorm_finish, GradNormFinish { P, max_norm, unscale }));
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

#[test]
fn clipping_scales_to_the_greatest_norm_and_never_up() {
    let grad = vec![0.5f64; 10_000];
    let mut partial = [f64::NAN; 3];
    gradnorm_partial(&mut partial, &grad, &GradNorm { P: 10_000 });
    for (max_norm, unscale, want) in
        [(0.0, 1.0, 1.0), (5.0, 1.0, 5.0 / 50.000001), (1000.0, 1.0, 1.0), (5.0, 0.25, 0.25 * 5.0 / 12.500001)]
    {
        let (mut norm, mut scale) = ([f64::NAN], [f64::NAN]);
        gradnorm_finish(&mut norm, &mut scale, &partial, &GradNormFinish { P: 3, max_norm, unscale });
        assert_eq!(norm, [50.0 * unscale as f64]);
        assert!((scale[0] - want).abs() <= 1e-12, "max_norm {max_norm}: {scale:?}");
    }
}
