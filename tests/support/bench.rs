//! A run that takes a second, through the program: what it leaves is what the tests look at.
#![allow(dead_code, reason = "not every test looks at everything")]
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const STEPS: u64 = 40;

pub fn luthier(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_luthier"));
    command.args(args);
    command
}

pub fn good(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// A model of one narrow layer, some chats, and a config whose runs go to `out`, in a folder that goes with the test.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        let shape = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "vocab_size": 4096, "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
        std::fs::write(bench.at("config.json"), shape).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
            std::fs::copy(Path::new("assets/base").join(name), bench.at(name)).unwrap();
        }
        let chat = |i: usize| {
            format!(
                r#"{{"messages":[{{"role":"user","content":"{i} + 1?"}},{{"role":"assistant","content":"{}"}}]}}"#,
                i + 1
            )
        };
        let chats: Vec<String> = (0..50).map(chat).collect();
        std::fs::write(bench.at("chats.jsonl"), chats.join("\n") + "\n").unwrap();
        let (model, config) = (bench.at("model"), bench.at("config.json"));
        let init = luthier(&["init", "--config", config.to_str().unwrap(), "--out", model.to_str().unwrap()]).output();
        good(&init.unwrap());
        let config = format!(
            "model_name_or_path = {model:?}\ndataset = {:?}\nmax_length = 32\nper_device_train_batch_size = 2\n\
             max_steps = {STEPS}\nlearning_rate = 1e-2\nlogging_steps = 1\nsave_steps = 1\noptim = \"adamw_8bit\"\n\
             backend = \"cpu\"\n[lora]\nr = 4\n",
            bench.at("chats.jsonl")
        );
        std::fs::write(bench.at("run.toml"), config).unwrap();
        bench
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn train(&self, out: &str) -> Command {
        let out = format!("output_dir={}", self.at(out).display());
        luthier(&["train", self.at("run.toml").to_str().unwrap(), &out])
    }

    /// What a finished run leaves: the adapter, and per step its loss and gradient norm as they were written.
    pub fn result(&self, out: &str) -> (Vec<u8>, Vec<(u64, String)>) {
        let adapter = std::fs::read(self.at(out).join("adapter_model.safetensors")).unwrap();
        let text = std::fs::read_to_string(self.at(out).join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            (json["step"].as_u64().unwrap(), format!("{} {}", json["loss"], json["grad_norm"]))
        };
        (adapter, text.lines().map(line).collect())
    }
}
