//! Full fine-tuning: how gradients and weights are held, and where gradients wait for the step.
use crate::bench::{Bench, Log};
use luthier::backend::{Backend, cpu::Cpu};
use luthier::train::config;

/// Five layers and a head of its own; all sizes differ.
const SHAPE: &str = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 64}"#;
const LEAN: [&str; 2] = ["bf16_stochastic_round=true", "gradient_accumulation_dtype=\"bfloat16\""];

/// Weights, states, the course (loss and gradient norm of each step) and what was said.
type Ran = (Vec<u8>, Vec<u8>, Vec<(f64, f64)>, Log);

fn ran(bench: &Bench, b: &dyn Backend, out: &str, keys: &[&str]) -> Ran {
    let mut log = Log::default();
    let all = [&["eval_strategy=\"no\"", "save_strategy=\"no\"", "max_steps=4"], keys].concat();
    bench.run(b, out, &all, &mut log).unwrap_or_else(|e| panic!("{keys:?}: {e}"));
    let states = std::fs::read(bench.at(out).join("checkpoint-4/optimizer.safetensors")).unwrap();
    let lines = bench.lines(&format!("{out}/metrics.jsonl"));
    let course = lines.iter().filter_map(|line| Some((line["loss"].as_f64()?, line["grad_norm"].as_f64()?))).collect();
    (bench.weights(out), states, course, log)
}

/// On the device, on the host, or used up within the backward; by every way of holding weights, and several optimizers.
#[test]
fn where_gradients_wait_changes_nothing() {
    let bench = Bench::of(SHAPE);
    let ways: [(&str, &[&str]); 5] = [
        ("exact", &["dtype=\"float32\""]),
        ("lean", &["dtype=\"bfloat16\"", LEAN[0], LEAN[1], "optim=\"adamw_8bit\""]),
        ("masters", &["dtype=\"bfloat16\"", LEAN[1], "optim=\"paged_adamw_32bit\""]),
        ("lion", &["dtype=\"bfloat16\"", LEAN[0], "optim=\"lion_8bit\""]),
        ("muon", &["dtype=\"bfloat16\"", LEAN[0], LEAN[1], "optim=\"muon\""]),
    ];
    let backends = crate::support::backends();
    let all = backends.iter().flat_map(|b| ways.iter().map(move |way| (b, way)));
    for (b, (way, keys)) in all.filter(|(b, (way, _))| b.name() == "cpu" || ["exact", "lean"].contains(way)) {
        let keys = &[keys, &["deterministic=true"][..]].concat();
        for (clip, gathers) in [("0", "1"), ("0.5", "1"), ("0.5", "3")] {
            let rules = [format!("max_grad_norm={clip}"), format!("gradient_accumulation_steps={gathers}")];
            let of = |name: &str, more: &[&str]| {
                let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
                ran(
                    &bench,
                    &**b,
                    &format!("{way}-{name}-{}-{clip}-{gathers}", b.name()),
                    &[keys, &rules, more].concat(),
                )
            };
            let here = of("here", &["optimizer_in_bwd=false", "offload_gradients=false"]);
            let mut others = vec![("host", of("host", &["offload_gradients=true"]), "share two places")];
            if clip == "0" {
                others.push(("fused", of("fused", &[]), "during the backward"));
            }
            assert!(!here.3.says("gradients: ") && here.2.len() == 4);
            for (name, other, what) in others {
                assert!(other.3.says(what), "{way} {name}");
                assert_eq!(other.2, here.2, "{way} {name} on {}: losses and norms", b.name());
                assert!(other.0 == here.0, "{way} {name} on {}, {clip}, {gathers}: weights", b.name());
                assert!(other.1 == here.1, "{way} {name} on {}, {clip}, {gathers}: states", b.name());
            }
        }
    }
}

/// Nothing but the seed, the step and the weight's place decides how it is rounded.
#[test]
fn rounding_by_chance_goes_on_as_if_nothing_had_been() {
    let bench = Bench::of(SHAPE);
    let keys = ["dtype=\"bfloat16\"", LEAN[0], LEAN[1], "optim=\"adamw_8bit\"", "eval_strategy=\"no\"", "max_steps=6"];
    let straight = [&keys[..], &["max_grad_norm=0"]].concat();
    bench.run(&Cpu::new(), "straight", &straight, &mut Log::default()).unwrap();
    let mut log = Log { stop: Some(3), ..Log::default() };
    assert_eq!(bench.run(&Cpu::new(), "again", &straight, &mut log).unwrap_err().exit_code(), 130);
    // where gradients wait may change on the way
    let other = [&straight[..], &["offload_gradients=true"]].concat();
    bench.run(&Cpu::new(), "again", &other, &mut Log::default()).unwrap();
    assert!(bench.weights("straight") == bench.weights("again"));
    let seed = [&straight[..], &["seed=7"]].concat();
    bench.run(&Cpu::new(), "seed", &seed, &mut Log::default()).unwrap();
    assert!(bench.weights("straight") != bench.weights("seed"));
}

/// Steps far below what bf16 tells apart add up without masters, as they do with them.
#[test]
fn it_learns_without_masters() {
    let bench = Bench::of(SHAPE);
    let last = |name: &str, keys: &[&str]| {
        let keys = [&["dtype=\"bfloat16\"", "learning_rate=1e-3"], keys].concat();
        let course = ran(&bench, &Cpu::new(), name, &keys).2;
        (course[0].0, course[course.len() - 1].0)
    };
    let (first, with) = last("with", &[]);
    let (_, without) = last("without", &LEAN);
    assert!(with < first - 0.05, "it learns: {first} to {with}");
    assert!((without - with).abs() < 0.2 * (first - with), "{first} to {with} with masters, to {without} without");
}

#[test]
fn what_does_not_go_together_is_said() {
    let bench = Bench::of(SHAPE);
    let refused = |keys: &[&str], part: &str| {
        let over: Vec<String> = keys.iter().map(|key| key.to_string()).chain(["output_dir='o'".into()]).collect();
        let error = config::load(&bench.at("run.toml"), &over).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(part), "{keys:?}: {error}");
    };
    refused(&[LEAN[0]], "goes with dtype = \"bfloat16\"");
    refused(&[LEAN[1], "dtype=\"float16\""], "goes with dtype = \"bfloat16\"");
    refused(&["gradient_accumulation_dtype=\"float16\"", "dtype=\"bfloat16\""], "\"float32\" or \"bfloat16\"");
    refused(&[LEAN[0], "dtype=\"bfloat16\"", "lora={r=4}"], "is about full fine-tuning");
    refused(&["optimizer_in_bwd=true"], "wants `max_grad_norm = 0`");
    refused(
        &["optimizer_in_bwd=true", "max_grad_norm=0", "gradient_accumulation_steps=2"],
        "gradient_accumulation_steps = 1",
    );
    refused(&["optimizer_in_bwd=true", "max_grad_norm=0", "dtype=\"float16\""], "does not go with float16");
    refused(&["optimizer_in_bwd=true", "max_grad_norm=0", "offload_gradients=true"], "exclude each other");
    refused(&["offload_gradients=true", "lora={r=4}"], "is about full fine-tuning");
}
