//! Where activations, frozen weights and states wait, and what is made again in the backward, changes memory and nothing else: every
//! way of it against the run that keeps all on the device, bit by bit, on every backend (`deterministic`).
use crate::bench::{Bench, Log};
use luthier::backend::Backend;
use luthier::train::config;
use luthier::train::plan::{self, Budget};

/// Four layers and a head of its own, so that the embedding may wait on the host.
const SHAPE: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 64}"#;
const RUN: [&str; 4] = ["eval_strategy=\"no\"", "save_strategy=\"no\"", "max_steps=3", "deterministic=true"];
const HERE: [&str; 3] = ["gradient_checkpointing=false", "offload_embedding=false", "offload_weights=false"];

/// What was trained and its states, and losses and gradient norms as they were written.
fn ran(bench: &Bench, b: &dyn Backend, out: &str, keys: &[&str], log: &mut Log) -> (Vec<u8>, Vec<u8>, Vec<String>) {
    bench.run(b, out, &[&RUN[..], keys].concat(), log).unwrap_or_else(|e| panic!("{} {keys:?}: {e}", b.name()));
    let read = |file: &str| std::fs::read(bench.at(out).join("checkpoint-3").join(file)).unwrap();
    let lines = bench.lines(&format!("{out}/metrics.jsonl"));
    let course = lines.iter().filter(|line| !line["loss"].is_null());
    let course = course.map(|line| format!("{} {}", line["loss"], line["grad_norm"])).collect();
    let adapter = bench.at(out).join("checkpoint-3/adapter_model.safetensors").exists();
    let trained = if adapter { "adapter_model.safetensors" } else { "model.safetensors" };
    (read(trained), read("optimizer.safetensors"), course)
}

/// A limit that some layers' activations fit in, and not all.
fn narrow(bench: &Bench, b: &dyn Backend, keys: &[&str]) -> String {
    let peak = |more: &str| {
        let over: Vec<String> = keys.iter().chain([&more, &"output_dir='o'"]).map(|key| key.to_string()).collect();
        let config = config::load(&bench.at("run.toml"), &over).unwrap();
        let layout = plan::plan(&config, b.rules(), Budget::given(1 << 40, &config), &mut Log::default()).unwrap();
        layout.memory.peak
    };
    let (most, least) = (peak("gradient_checkpointing=false"), peak("gradient_checkpointing=true"));
    assert!(least < most, "{least} < {most}");
    format!("memory_limit={}", (most + least) / 2)
}

/// Every way and what it says, against the run that keeps all here. Where a way has no optimizer, it is `optim`.
fn compare(bench: &Bench, b: &dyn Backend, what: &str, optim: &str, keys: &[&str], ways: &[(&str, &[&str], &str)]) {
    let run = |name: &str, way: &[&str], log: &mut Log| {
        let own = way.iter().any(|key| key.starts_with("optim="));
        let keys = [keys, way, &[optim][usize::from(own)..]].concat();
        ran(bench, b, &format!("{what}-{name}-{}", b.name()), &keys, log)
    };
    let want = run("here", &HERE, &mut Log::default());
    assert_eq!(want.2.len(), 3);
    for (name, way, says) in ways {
        let mut log = Log::default();
        let got = run(name, way, &mut log);
        assert!(log.says(says), "{what} {name} on {}: {:?}", b.name(), log.messages);
        assert_eq!(got.2, want.2, "{what} {name} on {}: losses and norms", b.name());
        assert!(got.0 == want.0, "{what} {name} on {}: what was trained", b.name());
        assert!(got.1 == want.1, "{what} {name} on {}: states", b.name());
    }
}

#[test]
fn where_things_wait_changes_nothing() {
    let bench = Bench::of(SHAPE);
    let host = "on the host";
    for b in crate::support::backends() {
        let adapters: [(&str, &str, &str, &[&str]); 2] = [
            ("lora", "optim=\"adamw_torch\"", "optim=\"paged_adamw_32bit\"", &["dtype=\"float32\"", "lora={r=4}"]),
            (
                "qlora",
                "optim=\"adamw_8bit\"",
                "optim=\"paged_adamw_8bit\"",
                &["dtype=\"bfloat16\"", "load_in_4bit=true", "lora={r=8, lora_dropout=0.1}"],
            ),
        ];
        for (what, optim, paged, keys) in adapters {
            let limit = narrow(&bench, &*b, &[keys, &["offload_weights=false", "offload_embedding=false"]].concat());
            let ways: [(&str, &[&str], &str); 6] = [
                ("again", &["gradient_checkpointing=true"], "activations: "),
                ("some", &["offload_weights=false", "offload_embedding=false", &limit], "layers keep"),
                ("activations", &["gradient_checkpointing=\"offload\"", "offload_embedding=false"], host),
                ("embedding", &["gradient_checkpointing=false", "offload_embedding=true"], host),
                ("weights", &["gradient_checkpointing=\"offload\"", "offload_weights=true"], "come layer by layer"),
                ("states", &["gradient_checkpointing=false", paged], host),
            ];
            compare(&bench, &*b, what, optim, keys, &ways);
        }
        let ways: [(&str, &[&str], &str); 3] = [
            ("again", &["gradient_checkpointing=true"], "activations: "),
            ("activations", &["gradient_checkpointing=\"offload\""], host),
            ("states", &["gradient_checkpointing=\"offload\"", "optim=\"paged_adamw_32bit\""], host),
        ];
        compare(&bench, &*b, "full", "optim=\"adamw_torch\"", &["dtype=\"bfloat16\"", "max_grad_norm=0.5"], &ways);
    }
}
