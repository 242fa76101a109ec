use crate::bench::{Bench, Faulty, Log, not_finite};
use luthier::backend::cpu::Cpu;
use luthier::ops::Op;
use luthier::rng::Rng;

/// Weights (and moments), activations and gradients, each with an argument that the op writes and how often a step runs it.
const PLACES: &[(Op, usize, usize)] = &[
    (Op::adamw_step, 0, 3),
    (Op::adamw_step, 1, 3),
    (Op::adamw_step, 2, 3),
    (Op::matmul_nt, 0, 60),
    (Op::rmsnorm_forward, 0, 20),
    (Op::attention_forward, 0, 8),
    (Op::matmul_nn, 0, 60),
    (Op::matmul_tn_add, 0, 60),
    (Op::rmsnorm_backward, 0, 20),
    (Op::embedding_backward, 0, 4),
];

#[test]
fn no_checkpoint_ever_holds_what_is_no_number() {
    let bench = Bench::new();
    let cpu = Cpu::new();
    let mut rng = Rng::new(7);
    let (mut stopped, mut met) = (0, 0);
    for case in 0..20 {
        let (op, argument, most) = PLACES[case % PLACES.len()];
        let value = [f32::NAN, f32::INFINITY][case / PLACES.len()];
        let b = Faulty::new(&cpu, op, argument, value, rng.below(most));
        let out = format!("case-{case}");
        let keys = ["eval_strategy=\"no\"", "gradient_accumulation_steps=2", "max_steps=6"];
        let mut log = Log::default();
        let result = bench.run(&b, &out, &keys, &mut log);
        met += b.has_failed() as usize;
        if let Err(error) = &result {
            assert_eq!(error.exit_code(), 75, "{op:?}: {error}");
            println!("{op:?}: {error}");
            stopped += 1;
        }
        for step in bench.checkpoints(&out) {
            let folder = bench.at(&format!("{out}/checkpoint-{step}"));
            for file in ["model.safetensors", "optimizer.safetensors"] {
                assert_eq!(not_finite(&folder.join(file)), Vec::<String>::new(), "{op:?} {argument} step {step}");
            }
        }
    }
    // a value that nothing looks at (of an ignored token, say) harms nothing
    assert!(met == 20 && stopped >= 15, "{met} met, {stopped} stopped");
}

#[test]
fn a_gradient_that_is_no_number_is_named() {
    let bench = Bench::new();
    let cpu = Cpu::new();
    let keys = ["eval_strategy=\"no\"", "gradient_accumulation_steps=2"];
    // the backward's last weight gradient is the embedding's
    let b = Faulty::new(&cpu, Op::embedding_backward, 0, f32::NAN, 0);
    let error = bench.run(&b, "out", &keys, &mut Log::default()).unwrap_err().to_string();
    assert!(error.contains("step 1: the gradient norm is NaN: the first gradient that is not finite"), "{error}");
    assert!(error.contains("model.embed_tokens.weight; no micro-batch alone does it again"), "{error}");

    // the second forward's first, the only one that is not made with a sum; the first backward makes its blocks' four again
    let b = Faulty::new(&cpu, Op::rmsnorm_forward, 0, f32::NAN, 4);
    let error = bench.run(&b, "other", &keys, &mut Log::default()).unwrap_err().to_string();
    assert!(
        error.contains("step 1: the loss is NaN") && error.contains("micro-batch 2 of 2, training examples "),
        "{error}"
    );
}
