use crate::bench::{Bench, Log};
use luthier::backend::cpu::Cpu;
use luthier::io::safetensors::Tensors;

const MIXTURE: &str = r#"{"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 4096, "max_position_embeddings": 64, "num_local_experts": 8,
    "num_experts_per_tok": 2}"#;

#[test]
fn noise_is_in_training_alone_and_the_same_again() {
    let bench = Bench::new();
    let run = |out: &str, keys: &[&str]| {
        let mut log = Log::default();
        bench.run(&Cpu::new(), out, keys, &mut log).unwrap();
        log
    };
    let (plain, noisy) = (run("plain", &[]), run("noisy", &["neftune_noise_alpha=5"]));
    assert_eq!(plain.evals[0].eval_loss, noisy.evals[0].eval_loss, "an evaluation has none");
    assert_ne!(plain.steps[0].loss, noisy.steps[0].loss);
    let mut log = Log { stop: Some(3), ..Log::default() };
    bench.run(&Cpu::new(), "again", &["neftune_noise_alpha=5"], &mut log).unwrap_err();
    run("again", &["neftune_noise_alpha=5"]);
    assert_eq!(bench.weights("again"), bench.weights("noisy"));
}

#[test]
fn a_run_balances_its_routers() {
    let bench = Bench::of(MIXTURE);
    let run = |out: &str, keys: &[&str]| {
        let keys = [&["max_steps=30", "eval_strategy=\"no\"", "save_strategy=\"no\""], keys].concat();
        let mut log = Log::default();
        bench.run(&Cpu::new(), out, &keys, &mut log).unwrap();
        log.steps
    };
    let (without, tiny, large) =
        (run("without", &[]), run("tiny", &["router_aux_loss_coef=1e-9"]), run("large", &["router_aux_loss_coef=1"]));
    assert!(without.iter().all(|step| step.aux_loss.is_none()));
    let last = |steps: &[luthier::train::metrics::StepMetrics]| {
        steps[20..].iter().map(|step| step.aux_loss.unwrap()).sum::<f64>() / 10.0
    };
    // evenly spread tokens have a loss of S = 2; less only by chance
    println!("first {:?}, at the end {} and {}", tiny[0].aux_loss, last(&tiny), last(&large));
    assert!(last(&large) < last(&tiny) - 0.02, "{} {}", last(&large), last(&tiny));
    assert_eq!(tiny[0].loss, without[0].loss, "the loss leaves it out");

    // micro-batches share it: two of the same records are as one with both
    let whole =
        run("whole", &["router_aux_loss_coef=1", "per_device_train_batch_size=1", "gradient_accumulation_steps=2"]);
    assert!((whole[0].aux_loss.unwrap() - large[0].aux_loss.unwrap()).abs() < 0.3);

    let gate = |out: &str| {
        let tensors = Tensors::open(&[bench.at(out)]).unwrap();
        tensors.get("model.layers.1.block_sparse_moe.gate.weight").unwrap().bytes.to_vec()
    };
    run("frozen", &["router_aux_loss_coef=1", "freeze_router=true"]);
    let start = gate("model/model.safetensors");
    assert!(gate("frozen/model.safetensors") == start && gate("large/model.safetensors") != start);
}

#[test]
fn a_model_without_routers_has_no_balance() {
    let bench = Bench::new();
    let error = bench.run(&Cpu::new(), "out", &["output_router_logits=true"], &mut Log::default()).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("no such loss is defined"), "{error}");
}

#[test]
fn an_adapter_from_principal_parts_goes_on_as_if_nothing_had_been() {
    let bench = Bench::new();
    for (dtype, bits) in [("float32", "load_in_4bit=false"), ("bfloat16", "load_in_4bit=true")] {
        let keys = [
            &format!("dtype={dtype:?}"),
            bits,
            "lora={r=4,init_lora_weights=\"pissa_niter_4\"}",
            "eval_strategy=\"no\"",
        ];
        let adapter = |out: &str| std::fs::read(bench.at(out).join("adapter_model.safetensors")).unwrap();
        let (straight, again) = (format!("straight-{dtype}"), format!("again-{dtype}"));
        bench.run(&Cpu::new(), &straight, &keys, &mut Log::default()).unwrap();
        let mut log = Log { stop: Some(3), ..Log::default() };
        assert_eq!(bench.run(&Cpu::new(), &again, &keys, &mut log).unwrap_err().exit_code(), 130);
        bench.run(&Cpu::new(), &again, &keys, &mut Log::default()).unwrap();
        assert!(adapter(&straight) == adapter(&again), "{dtype}");
        let config = std::fs::read_to_string(bench.at(&straight).join("adapter_config.json")).unwrap();
        assert!(config.contains("\"r\": 8") && config.contains("\"init_lora_weights\": true"), "{config}");

        // the state knows what the base lacks
        let file = bench.at(&again).join("trainer_state.json");
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert!(state["start"].is_string(), "{state}");
    }
}
