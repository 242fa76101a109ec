use super::*;
use luthier::dtype::DType::{Bf16, F32};
use luthier::ops::latent::Latent;

const OPS: [Op; 6] = [
    Op::latent_query_forward,
    Op::latent_query_backward,
    Op::latent_kv_forward,
    Op::latent_kv_backward,
    Op::latent_output_forward,
    Op::latent_output_backward,
];

pub fn cases() -> Vec<Case> {
    // N, H, D, A, U, Y: heads that fill D and heads that do not, odd parts, sizes of published models
    let shapes = [
        (1, 1, 2, 2, 0, 1), (3, 2, 6, 2, 4, 6), (7, 3, 8, 4, 3, 5), (5, 4, 24, 8, 16, 16), (65, 3, 14, 2, 11, 7), (2, 6, 20, 6, 9, 20),
        (33, 2, 192, 64, 128, 128), (9, 5, 256, 64, 192, 256), (130, 7, 12, 4, 8, 10), (4, 128, 66, 2, 63, 62),
    ];
    let mut cases = Vec::new();
    for (N, H, D, A, U, Y) in shapes {
        let p = Latent { N, H, D, A, U, Y };
        cases.extend(OPS.map(|op| Case::new(op, p)));
        cases.push(Case::new(Op::latent_kv_backward, p).mixed(Bf16, &[("dk", F32)]));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let mut gradients = Vec::new();
    for (N, H, D, A, U, Y) in [(1, 1, 2, 2, 0, 1), (4, 3, 11, 4, 5, 7), (2, 2, 9, 6, 3, 9)] {
        let p = Latent { N, H, D, A, U, Y };
        gradients.extend(OPS.chunks(2).map(|pair| Gradient::new(pair[0], p, pair[1], p)));
    }
    gradients
}

#[test]
fn heads_are_turning_channels_then_others_then_zeros() {
    let p = Latent { N: 1, H: 2, D: 7, A: 4, U: 1, Y: 2 };
    let mut q = vec![9.0f64; 14];
    luthier::ops::latent::latent_query_forward(&mut q, &[1., 2., 3., 4., 5., 10., 20., 30., 40., 50.], &p);
    assert_eq!(q, [2., 3., 4., 5., 1., 0., 0., 20., 30., 40., 50., 10., 0., 0.]);
    let (mut k, mut v) = (vec![9.0f64; 14], vec![9.0f64; 14]);
    luthier::ops::latent::latent_kv_forward(&mut k, &mut v, &[1., 2., 3., 10., 20., 30.], &[5., 6., 7., 8.], &p);
    assert_eq!(k, [5., 6., 7., 8., 1., 0., 0., 5., 6., 7., 8., 10., 0., 0.]);
    assert_eq!(v, [2., 3., 0., 0., 0., 0., 0., 20., 30., 0., 0., 0., 0., 0.]);
}
