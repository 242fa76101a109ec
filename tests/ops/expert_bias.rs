use super::*;
use luthier::ops::expert_bias::ExpertBias;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [
        (1, 1, 1), (1, 4, 2), (7, 3, 13), (64, 2, 64), (65, 5, 66), (33, 40, 255), (300, 6, 34), (130, 128, 96), (12, 4, 2050), (5, 2, 4098),
    ];
    for (M, E, O) in shapes {
        for weighted in [0, 1] {
            let p = ExpertBias { M, E, O, weighted };
            let all = [Op::expert_bias_forward, Op::expert_bias_backward, Op::expert_bias_backward_weights];
            cases.extend(all.map(|op| Case::new(op, p)));
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let mut gradients = Vec::new();
    for (M, E, O) in [(1, 1, 1), (6, 3, 2), (5, 7, 3)] {
        let p = |weighted| ExpertBias { M, E, O, weighted };
        let of = |op, weighted| Gradient::new(Op::expert_bias_forward, p(weighted), op, p(weighted));
        gradients.extend([of(Op::expert_bias_backward, 0), of(Op::expert_bias_backward, 1)]);
        gradients.push(of(Op::expert_bias_backward_weights, 1));
    }
    gradients
}
