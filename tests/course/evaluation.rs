use crate::bench::{Bench, Log};
use luthier::backend::Backend;
use luthier::backend::cpu::Cpu;

fn steps(log: &Log) -> Vec<u64> {
    log.evals.iter().map(|eval| eval.step).collect()
}

#[test]
fn when_a_run_evaluates_and_saves() {
    // 24 records in batches of 2: 12 steps an epoch
    let bench = Bench::new();
    let cases: &[(&[&str], &[u64], &[u64])] = &[
        (&["eval_steps=3", "save_steps=4"], &[0, 3, 6, 8], &[4, 8]),
        (&["eval_steps=0.25", "save_steps=0.3", "eval_on_start=false"], &[2, 4, 6, 8], &[3, 6, 8]),
        (&["eval_strategy=\"no\"", "save_strategy=\"no\"", "eval_on_start=false"], &[], &[8]),
        (&["eval_strategy=\"epoch\"", "save_strategy=\"epoch\"", "max_steps=25"], &[0, 12, 24, 25], &[12, 24, 25]),
    ];
    for (i, (keys, evals, saves)) in cases.iter().enumerate() {
        let (mut log, out) = (Log::default(), format!("out-{i}"));
        bench.run(&Cpu::new(), &out, keys, &mut log).unwrap();
        assert_eq!((steps(&log), bench.checkpoints(&out)), (evals.to_vec(), saves.to_vec()), "{keys:?}");
    }
    let lines = bench.lines("out-0/metrics.jsonl");
    let evals: Vec<_> = lines.iter().filter(|line| line.get("eval_loss").is_some()).collect();
    assert_eq!(evals.len(), 4);
    for line in evals {
        let [loss, perplexity] = ["eval_loss", "eval_perplexity"].map(|key| line[key].as_f64().unwrap());
        assert!((loss.exp() / perplexity - 1.0).abs() < 1e-12 && perplexity > 1.0, "{line}");
    }
}

#[test]
fn samples_take_no_memory_and_are_kept() {
    let bench = Bench::new();
    let peak = |out: &str, keys: &[&str]| {
        let (b, mut log) = (Cpu::new(), Log::default());
        bench.run(&b, out, keys, &mut log).unwrap();
        (b.memory().peak, log.samples)
    };
    let keys = ["eval_samples=3", "save_strategy=\"no\""];
    let (without, before_and_after) = peak("without", &["eval_strategy=\"no\"", "save_strategy=\"no\""]);
    let (with, samples) = peak("with", &keys);
    assert_eq!((with, before_and_after, samples), (without, 2, 9));
    let lines = bench.lines("with/samples.jsonl");
    let want: Vec<(u64, String)> =
        [0, 4, 8].iter().flat_map(|step| (24..27).map(move |i| (*step, format!("{i} + 1 =")))).collect();
    let got: Vec<(u64, String)> = lines
        .iter()
        .map(|line| (line["step"].as_u64().unwrap(), line["prompt"].as_str().unwrap().trim().to_string()))
        .collect();
    assert_eq!(got, want);
    assert_eq!(lines[0]["reference"].as_str().unwrap().trim(), "25");
    // training is as it would have been
    assert_eq!(bench.weights("with"), bench.weights("without"));
}

/// A rate at which the loss of what was not trained on rises soon.
const OVERFIT: &[&str] = &[
    "max_steps=60",
    "learning_rate=0.03",
    "lr_scheduler_type=\"constant\"",
    "eval_steps=4",
    "early_stopping_patience=2",
    "load_best_model_at_end=true",
    "save_total_limit=1",
    "save_strategy=\"no\"",
];

#[test]
fn a_run_ends_when_nothing_gets_better_and_gives_its_best() {
    let bench = Bench::new();
    let mut log = Log::default();
    bench.run(&Cpu::new(), "straight", OVERFIT, &mut log).unwrap();
    let best = log.evals.iter().skip(1).min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss)).unwrap();
    let last = log.steps.last().unwrap().step;
    assert!(best.step + 8 == last && last < 60, "best at {}, ended at {last}", best.step);
    assert_eq!(bench.checkpoints("straight"), [best.step, last]);
    assert!(log.says(&format!("stopped early at step {last}; the best evaluation was that of step {}", best.step)));
    let folder = |step: u64| format!("straight/checkpoint-{step}");
    assert_eq!(bench.weights("straight"), bench.weights(&folder(best.step)));
    assert_ne!(bench.weights("straight"), bench.weights(&folder(last)));

    // interrupted between the best and the end, a run decides the same
    for stop in [best.step + 1, best.step + 5] {
        let (out, mut log) = (format!("stopped-{stop}"), Log { stop: Some(stop), ..Log::default() });
        assert_eq!(bench.run(&Cpu::new(), &out, OVERFIT, &mut log).unwrap_err().exit_code(), 130);
        let mut log = Log::default();
        bench.run(&Cpu::new(), &out, OVERFIT, &mut log).unwrap();
        assert_eq!((log.steps.last().unwrap().step, bench.checkpoints(&out)), (last, vec![best.step, last]));
        assert_eq!(bench.weights(&out), bench.weights("straight"));
        let mut again = Log::default();
        bench.run(&Cpu::new(), &out, OVERFIT, &mut again).unwrap();
        assert!(again.says(&format!("finished already: {last} steps are done")), "{:?}", again.messages);
    }
}

#[test]
fn keys_that_need_evaluations_say_so() {
    let bench = Bench::new();
    for key in ["early_stopping_patience=1", "load_best_model_at_end=true", "save_strategy=\"best\"", "eval_samples=1"]
    {
        for (without, part) in
            [("eval_strategy=\"no\"", "`eval_strategy` is \"no\""), ("eval_dataset=[]", "records to evaluate on")]
        {
            let error = bench.run(&Cpu::new(), "out", &[key, without], &mut Log::default()).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
