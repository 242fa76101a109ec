use crate::bench::{Bench, Faulty, Log};
use crate::support::backends;
use luthier::backend::cpu::Cpu;
use luthier::ops::Op;

#[test]
fn float16_learns_what_float32_learns() {
    let bench = Bench::new();
    let (mut want, keys) = (Log::default(), ["max_steps=30", "save_strategy=\"no\""]);
    bench.run(&Cpu::new(), "float32", &keys, &mut want).unwrap();
    assert!(want.steps[29].loss < 0.5 * want.steps[0].loss, "{} {}", want.steps[0].loss, want.steps[29].loss);
    for b in backends() {
        let mut got = Log::default();
        let keys = [keys[0], keys[1], "dtype=\"float16\""];
        bench.run(&*b, &format!("float16-{}", b.name()), &keys, &mut got).unwrap();
        let far = want.steps.iter().zip(&got.steps).map(|(w, g)| (w.loss - g.loss).abs()).fold(0.0, f64::max);
        let scales: Vec<f64> = got.steps.iter().map(|step| step.loss_scale.unwrap()).collect();
        println!("{}: losses differ by {far:.1e} at most, scales {} to {}", b.name(), scales[0], scales[29]);
        assert!(far < 0.03, "{}: {far}", b.name());
        assert!(scales[0] == 65536.0 && scales[29] >= 1024.0, "{scales:?}");
        let norms = want.steps.iter().zip(&got.steps).map(|(w, g)| (w.grad_norm / g.grad_norm - 1.0).abs());
        let near = norms.filter(|far| *far < 0.02).count();
        assert!(near >= 25, "the norm is that of the gradients without their scale: {near} of 30 agree");
    }
}

#[test]
fn a_step_that_overflows_is_left_out_and_a_run_that_goes_on_knows() {
    let bench = Bench::new();
    let cpu = Cpu::new();
    let keys = ["dtype=\"float16\"", "eval_strategy=\"no\"", "warmup_steps=8"];
    let faulty = |nth| Faulty::new(&cpu, Op::gradnorm_partial, 0, f32::INFINITY, nth);
    let per_step = {
        let (b, mut log) = (faulty(0), Log::default());
        bench.run(&b, "first", &keys, &mut log).unwrap();
        assert_eq!(log.steps.len(), 8);
        let left_out = log.steps.iter().position(|step| !step.grad_norm.is_finite()).unwrap();
        assert_eq!(left_out, 0);
        log
    };
    assert!(per_step.says("step 1: float16 overflowed, so the step was left out; loss_scale is 32768 now"));
    let scales: Vec<f64> = per_step.steps.iter().map(|step| step.loss_scale.unwrap()).collect();
    assert_eq!(scales, [65536.0, 32768.0, 32768.0, 32768.0, 32768.0, 32768.0, 32768.0, 32768.0]);
    // the schedule has not seen the step: its rate comes again
    let rates: Vec<f64> = per_step.steps.iter().map(|step| (step.learning_rate / 1e-2 * 8.0).round()).collect();
    assert_eq!(rates, [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    // nor have the weights
    assert_ne!(bench.weights("first/checkpoint-3"), bench.weights("first/checkpoint-2"));
    let optimizer =
        |step: u64| std::fs::read(bench.at(&format!("first/checkpoint-{step}/optimizer.safetensors"))).unwrap();
    assert_ne!(optimizer(1), optimizer(2));

    let mut log = Log { stop: Some(4), ..Log::default() };
    assert_eq!(bench.run(&faulty(0), "again", &keys, &mut log).unwrap_err().exit_code(), 130);
    bench.run(&cpu, "again", &keys, &mut Log::default()).unwrap();
    assert_eq!(bench.weights("again"), bench.weights("first"));
    let state = |out: &str| std::fs::read_to_string(bench.at(out).join("trainer_state.json")).unwrap();
    assert_eq!(state("again"), state("first"));
    assert!(state("again").contains("\"skipped_steps\": 1"), "{}", state("again"));
}

#[test]
fn what_no_scale_can_mend_stops_the_run() {
    let bench = Bench::new();
    let keys = ["dtype=\"float16\"", "eval_strategy=\"no\"", "max_steps=40"];
    // a weight beyond what float16 holds
    let file = bench.at("model/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1e6f32.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let mut log = Log::default();
    let error = bench.run(&Cpu::new(), "stopped", &keys, &mut log).unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    assert!(error.to_string().contains("step 17: the loss is NaN: the weight "), "{error}");
    assert_eq!(log.steps.len(), 16, "65536 is halved 16 times until 1");
}
