//! Tokens that a run adds, from the config to a result that runs elsewhere as it is.
//!
//! `LUTHIER_TOKENS=DIR` keeps the results for `tests/golden/check_new_tokens.py`, which loads them with transformers and PEFT.
use luthier::backend::cpu::Cpu;
use luthier::data::{Chat, Template, Tokenizer};
use luthier::dtype::DType;
use luthier::error::Error;
use luthier::export::peft;
use luthier::io::safetensors::{Dtype, Outline, Tensors, Writer};
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens, arch};
use luthier::train::metrics::{EvalMetrics, Reporter, StepMetrics};
use luthier::train::{config, run};
use serde_json::{Value, json};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Stops after so many steps.
struct Until(u64, Cell<u64>);

impl Reporter for Until {
    fn start(&mut self, _: u64, _: u64) {}
    fn step(&mut self, step: &StepMetrics) {
        self.1.set(step.step);
    }
    fn eval(&mut self, _: &EvalMetrics) {}
    fn sample(&mut self, _: &str, _: &str) {}
    fn saved(&mut self, _: &Path) {}
    fn message(&mut self, _: &str) {}
    fn is_interrupted(&self) -> bool {
        self.1.get() >= self.0
    }
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// A tiny model whose tokenizer has 4096 tokens, with a row for each and `spare` more.
    fn new(tied: bool, spare: usize) -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        let shape = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 4096 + spare, "max_position_embeddings": 128, "eos_token_id": 1,
            "tie_word_embeddings": tied});
        bench.write("config.json", &shape.to_string());
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
            std::fs::copy(Path::new("assets/base").join(name), bench.at(name)).unwrap();
        }
        let init = Command::new(env!("CARGO_BIN_EXE_luthier"))
            .args(["init", "--config", bench.at("config.json").to_str().unwrap(), "--out"])
            .arg(bench.at("model"))
            .output()
            .unwrap();
        assert!(init.status.success(), "{init:?}");
        let record = |i: usize| {
            let call = format!("<call>{}</call>", i + 1);
            json!({"messages": [{"role": "user", "content": format!("{i} + 1?")}, {"role": "assistant", "content": call}]})
                .to_string()
        };
        bench.write("chats.jsonl", &(0..40).map(record).collect::<Vec<_>>().join("\n"));
        bench.write(
            "phi.jinja",
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}\
            {% if add_generation_prompt %}<|assistant|>{% endif %}",
        );
        let keys = format!(
            "model = {:?}\ndataset = {:?}\nmax_length = 32\nbatch_size = 2\nmax_steps = 4\nlr = 1e-2\nsave_steps = 2\n\
             backend = \"cpu\"\ndtype = \"float32\"\nnew_tokens = [\"<call>\", \"</call>\", \"fn\"]\nchat_template = {:?}\n\
             dataset_cache = false\n[special_tokens]\neos_token = \"<|end|>\"\npad_token = \"<|fill|>\"\n\
             additional_special_tokens = [\"<|user|>\", \"<|assistant|>\"]\n",
            bench.at("model"),
            bench.at("chats.jsonl"),
            bench.at("phi.jinja")
        );
        bench.write("full.toml", &keys);
        bench.write("lora.toml", &format!("{keys}[lora]\nr = 4\n"));
        bench.write("save.toml", &format!("{keys}[lora]\nr = 4\nmodules_to_save = [\"embed_tokens\", \"lm_head\"]\n"));
        bench
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.at(name), text).unwrap();
    }
    fn train(&self, config: &str, out: &str, stop: u64, more: &[&str]) -> Result<PathBuf, Error> {
        let out = self.at(out);
        let mut overrides = vec![format!("output_dir={out:?}")];
        overrides.extend(more.iter().map(|key| key.to_string()));
        let config = config::load(&self.at(config), &overrides)?;
        run::train(&config, &Cpu::new(), &mut Until(stop, Cell::new(0)))?;
        Ok(out)
    }
    /// Merged into the model, an adapter computes what it did.
    fn merges(&self, adapter: &Path, tokenizer: &Tokenizer) {
        let out = self.at("merged");
        let args = ["export", "--format", "merged-16bit", "--dtype", "float32"];
        let done = Command::new(env!("CARGO_BIN_EXE_luthier"))
            .args(args)
            .args([Path::new("--model"), &self.at("model"), Path::new("--adapter"), adapter, Path::new("--out"), &out])
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        assert_eq!(read(&out, "config.json")["vocab_size"], self.load(&Cpu::new(), adapter).spec.V);
        let (b, ids) = (Cpu::new(), tokenizer.encode("<|user|>x<|end|><call>3</call>", false).unwrap());
        let [want, got] = [adapter, &out].map(|folder| logits(&b, &self.load(&b, folder), &ids));
        let far = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(want.len() == got.len() && far < 1e-4, "{far}");
        check_files(&out);
    }
    /// The model as `generate` loads it.
    fn load(&self, b: &Cpu, folder: &Path) -> Model {
        if !folder.join("adapter_config.json").exists() {
            return Model::load(b, folder, &LoadOptions::frozen(DType::F32)).unwrap();
        }
        let vocab = peft::vocab(folder, &arch::read_spec(&self.at("model")).unwrap()).unwrap();
        let lora = Some(peft::read_config(folder).unwrap());
        let options = LoadOptions { lora, vocab, ..LoadOptions::frozen(DType::F32) };
        let mut model = Model::load(b, &self.at("model"), &options).unwrap();
        peft::load(b, &mut model, folder).unwrap();
        model
    }
}

fn read(folder: &Path, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

/// The tokenizer's files say the same, in the tokenizer and beside it.
fn check_files(folder: &Path) -> Tokenizer {
    let tokenizer = Tokenizer::load(folder).unwrap();
    let id = |text: &str| tokenizer.token_to_id(text).unwrap_or_else(|| panic!("{text} is no token"));
    let mut ids = ["<|end|>", "<|fill|>", "<|user|>", "<|assistant|>", "<call>", "</call>"].map(id);
    ids.sort();
    assert_eq!(ids, [4096, 4097, 4098, 4099, 4100, 4101]);
    assert!(id("fn") < 4096, "a word of the vocabulary keeps its id");
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (Some(id("<|end|>")), id("<|fill|>")));
    let generation = read(folder, "generation_config.json");
    assert_eq!(generation["eos_token_id"], json!([id("<|end|>"), 1, 3]));
    assert_eq!(generation["pad_token_id"], json!(id("<|fill|>")));
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let names = read(folder, name);
        assert_eq!((&names["eos_token"], &names["pad_token"]), (&json!("<|end|>"), &json!("<|fill|>")), "{name}");
        assert_eq!(names["additional_special_tokens"], json!(["<|user|>", "<|assistant|>"]), "{name}");
    }
    // control tokens are skipped, words are not
    let ids = tokenizer.encode("<|user|><call>x", false).unwrap();
    assert_eq!((ids[0], ids[1]), (id("<|user|>"), id("<call>")));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "<call>x");
    let message = json!({"role": "user", "content": "<call>"}).as_object().cloned().unwrap();
    let template = Template::load(None, &tokenizer).unwrap();
    let text = template.render(&Chat { messages: vec![message], tools: None }, true).unwrap();
    assert_eq!(text, "<|user|><call><|end|><|assistant|>");
    tokenizer
}

fn tensors(file: &Path) -> Tensors {
    Tensors::open(&[file.to_path_buf()]).unwrap()
}

/// The logits of a text with the new tokens.
fn logits(b: &Cpu, model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut session = Session::new(b, model, ids.len(), ids.len(), Plan::Inference).unwrap();
    session.forward(model, &Tokens::single(ids)).unwrap();
    session.logits(model, 0, ids.len()).unwrap()
}

/// For the script: a folder's logits.
fn keep(name: &str, bench: &Bench, folder: &Path, tokenizer: &Tokenizer) {
    let text = "<|user|>2 + 1?<|end|><|assistant|><call>3</call><|end|>";
    let ids = tokenizer.encode(text, false).unwrap();
    let b = Cpu::new();
    let got = logits(&b, &bench.load(&b, folder), &ids);
    assert!(got.iter().all(|x| x.is_finite()));
    let Some(out) = std::env::var_os("LUTHIER_TOKENS").map(|dir| PathBuf::from(dir).join(name)) else { return };
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
            std::fs::copy(&entry, to.join(entry.file_name().unwrap())).unwrap();
        }
    };
    copy(&bench.at("model"), &out.join("model"));
    copy(folder, &out.join("result"));
    std::fs::write(out.join("text.txt"), text).unwrap();
    let shape = vec![ids.len(), got.len() / ids.len()];
    let outline = Outline { name: "logits".into(), dtype: Dtype::F32, shape };
    let mut writer = Writer::create(&out.join("logits.safetensors"), vec![outline]).unwrap();
    writer.write(&DType::F32.encode(&got)).unwrap();
    writer.finish().unwrap();
}

#[test]
fn an_adapter_trains_the_rows_of_new_tokens() {
    for (tied, spare) in [(false, 0), (true, 0), (false, 64)] {
        let bench = Bench::new(tied, spare);
        let whole = bench.train("lora.toml", "whole", u64::MAX, &[]).unwrap();
        let tokenizer = check_files(&whole);
        let config = read(&whole, "adapter_config.json");
        let ids: Vec<u32> = (4096..4102).collect();
        let both = json!({"embed_tokens": ids, "lm_head": ids});
        assert_eq!(config["trainable_token_indices"], if tied { json!(ids) } else { both });
        let stored = tensors(&whole.join("adapter_model.safetensors"));
        let rows: Vec<&str> = stored.names().filter(|name| name.contains("token_adapter")).collect();
        assert_eq!(rows.len(), if tied { 1 } else { 2 });
        for name in rows {
            assert_eq!(stored.get(name).unwrap().shape, [6, 32], "{name}");
        }
        // the rows moved from where they began: the mean of the others
        let embed = stored.get("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta").unwrap();
        let base = tensors(&bench.at("model/model.safetensors"));
        let base = base.get("model.embed_tokens.weight").unwrap().to_f32().unwrap();
        let mean = |c: usize| base.chunks(32).map(|row| row[c] as f64).sum::<f64>() / (4096 + spare) as f64;
        let moved = embed.to_f32().unwrap();
        let far = moved.chunks(32).map(|row| (0..32).map(|c| (row[c] as f64 - mean(c)).abs()).fold(0.0, f64::max));
        let far: Vec<f64> = far.collect();
        assert!(far.iter().all(|x| *x < 1.0) && far.iter().filter(|x| **x > 1e-3).count() >= 4, "{far:?}");
        // an interrupted run is the same run
        let stopped = bench.train("lora.toml", "broken", 2, &[]).unwrap_err();
        assert_eq!(stopped.exit_code(), 130);
        let broken = bench.train("lora.toml", "broken", u64::MAX, &[]).unwrap();
        let bytes = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        assert!(bytes(&broken) == bytes(&whole), "resuming changes the result");
        keep(&format!("lora_{}_{spare}", if tied { "tied" } else { "own" }), &bench, &whole, &tokenizer);
        bench.merges(&whole, &tokenizer);
        // and goes on from, with its tokens
        let adapter = format!("adapter={whole:?}");
        let more = bench.train("lora.toml", "more", u64::MAX, &[&adapter]).unwrap();
        check_files(&more);
        let other = "new_tokens=[\"<other>\"]".to_string();
        let refused = bench.train("lora.toml", "other", u64::MAX, &[&adapter, &other]).unwrap_err();
        assert!(refused.to_string().contains("go with a new adapter"), "{refused}");
    }
}

#[test]
fn whole_modules_and_whole_models_get_the_rows_too() {
    let bench = Bench::new(false, 0);
    let saved = bench.train("save.toml", "saved", u64::MAX, &[]).unwrap();
    let tokenizer = check_files(&saved);
    bench.merges(&saved, &tokenizer);
    assert_eq!(read(&saved, "adapter_config.json")["trainable_token_indices"], Value::Null);
    let stored = tensors(&saved.join("adapter_model.safetensors"));
    assert_eq!(stored.get("base_model.model.lm_head.weight").unwrap().shape, [4102, 32]);
    keep("save", &bench, &saved, &tokenizer);
    for tied in [false, true] {
        let bench = Bench::new(tied, 0);
        let full = bench.train("full.toml", "full", u64::MAX, &[]).unwrap();
        let tokenizer = check_files(&full);
        let config = read(&full, "config.json");
        let ids = ["<|end|>", "<|fill|>"].map(|text| json!(tokenizer.token_to_id(text)));
        assert_eq!(config["vocab_size"], 4102);
        assert_eq!([&config["eos_token_id"], &config["pad_token_id"]], [&ids[0], &ids[1]]);
        keep(if tied { "full_tied" } else { "full" }, &bench, &full, &tokenizer);
    }
}

#[test]
fn a_mistake_is_told() {
    let bench = Bench::new(true, 0);
    for (key, want) in [
        ("new_tokens=[\" \"]", "must be texts that are not blank"),
        ("lora.trainable_token_indices=[]", "different tokens, at least one"),
        ("lora.trainable_token_indices=[3, 3]", "different tokens, at least one"),
        ("lora.trainable_token_indices={ q_proj = [3] }", "is neither the embedding"),
        ("lora.trainable_token_indices={ embed_tokens = [3], lm_head = [4] }", "is tied to"),
        ("lora.trainable_token_indices=[4000000000]", "token 4000000000 of 4102; new tokens come by"),
        ("lora.trainable_token_indices=[4102]", "token 4102 of 4102; new tokens come by"),
        ("lora.modules_to_save=[\"embed_tokens\"] lora.trainable_token_indices=[3]", "name it once"),
    ] {
        let keys: Vec<&str> = key.split(" lora.t").collect();
        let second = keys.get(1).map(|rest| format!("lora.t{rest}"));
        let keys: Vec<&str> = std::iter::once(keys[0]).chain(second.as_deref()).collect();
        let e = bench.train("lora.toml", "bad", u64::MAX, &keys).unwrap_err();
        assert!(e.to_string().contains(want) && [2, 65].contains(&e.exit_code()), "{key}: {e}");
    }
}
