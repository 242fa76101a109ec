//! Broken models, GGUF files, adapters and checkpoints: each ends, within its time, in an error that names the file, or in a result;
//! never in a panic. They are generated: every key with every odd value, headers that lie, seeded wounds, ends that are lost.
use luthier::backend::cpu::Cpu;
use luthier::data::Tokenizer;
use luthier::dtype::DType;
use luthier::error::{Error, Result};
use luthier::export::peft;
use luthier::model::{self, LoadOptions, Model, Plan, Session, Tokens, arch};
use luthier::rng::Rng;
use luthier::train::checkpoint::{self, MANIFEST};
use luthier::train::{config, run};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

#[path = "hostile/common.rs"]
mod common;
use common::*;

fn object(file: &Path) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// A folder with copies of these files.
fn copy(from: &Path, names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    dir
}

/// Looks at a model as `inspect` does, and where nothing is wrong runs it.
fn try_model(folder: &Path) -> Result<()> {
    let spec = model::check(folder)?.spec()?;
    if spec.parameters() > 1 << 24 {
        return Ok(());
    }
    let b = Cpu::new();
    let model = Model::load(&b, folder, &LoadOptions::frozen(DType::F32))?;
    let tokens = Tokens::single(&[0, 1 % spec.V as u32]);
    let mut session = Session::new(&b, &model, 2, 2, Plan::Inference)?;
    session.forward(&model, &tokens)
}

/// Runs `f`; says whether it was refused, and the refusal must blame `file`.
fn refused(name: &str, file: &str, f: impl FnOnce() -> Result<()> + Send + 'static) -> usize {
    match ends(name, f) {
        Ok(()) => 0,
        Err(error) => {
            blames(name, &error, file);
            1
        }
    }
}

/// What a family showed: enough were tried, and enough of them were refused.
fn report(family: &str, tried: usize, refused: usize, least: usize) {
    println!("{family}: {refused} of {tried} were refused");
    assert!(tried >= least && refused * 3 > tried, "{family}: {refused} of {tried} were refused");
}

#[test]
fn model_configs() {
    let (mut tried, mut no) = (0, 0);
    for kind in ["llama", "gemma3", "phi3_longrope", "deepseek_v3_yarn", "qwen3_moe", "gpt_oss", "gpt2", "cohere2"] {
        let from = Path::new("tests/golden").join(kind);
        let dir = copy(&from, &["config.json", "model.safetensors"]);
        let sound = object(&from.join("config.json"));
        let mut all = changed(&sound);
        for key in ["rope_parameters", "rope_scaling", "quantization_config"] {
            let Some(Value::Object(inner)) = sound.get(key) else { continue };
            for (name, text) in changed(inner) {
                let mut outer = sound.clone();
                if let Ok(inner) = serde_json::from_str(&text) {
                    outer[key] = inner;
                    all.push((format!("{key}.{name}"), Value::Object(outer).to_string()));
                }
            }
        }
        for (name, text) in all {
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            let folder = dir.path().to_path_buf();
            // a config that asks for other shapes is refused with a tensor's name
            let file = folder.to_str().unwrap().to_string();
            no += refused(&format!("{kind}: {name}"), &file, move || try_model(&folder));
            tried += 1;
        }
    }
    let dir = copy("tests/golden/llama".as_ref(), &["config.json", "model.safetensors"]);
    let bytes = std::fs::read("tests/golden/llama/config.json").unwrap();
    let mut rng = Rng::new(11);
    for i in 0..150 {
        std::fs::write(dir.path().join("config.json"), wounded(&bytes, &mut rng)).unwrap();
        let (folder, file) = (dir.path().to_path_buf(), dir.path().to_str().unwrap().to_string());
        no += refused(&format!("wound {i}"), &file, move || try_model(&folder));
        tried += 1;
    }
    report("config.json", tried, no, 1500);
}

/// A safetensors file of this header and data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Damaged variants of a safetensors file.
fn damaged_tensors(bytes: &[u8], seed: u64) -> Vec<(String, Vec<u8>)> {
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = (&bytes[8..8 + n], &bytes[8 + n..]);
    let sound: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let mut out: Vec<(String, Vec<u8>)> = vec![];
    let names: Vec<&String> = sound.keys().filter(|key| *key != "__metadata__").collect();
    for name in names.iter().step_by(names.len().div_ceil(4)) {
        let entry = sound[*name].as_object().unwrap();
        for (what, text) in changed(entry) {
            let rest = json!(sound).to_string().replacen(&sound[*name].to_string(), &text, 1);
            out.push((format!("{name}.{what}"), safetensors(&rest, data)));
        }
        let [start, end] = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap());
        for offsets in [
            json!([end, start]),
            json!([start, end + 1]),
            json!([start, u64::MAX]),
            json!([u64::MAX - 1, u64::MAX]),
            json!([start + 1, end]),
            json!([0, 0]),
            json!([start]),
        ] {
            let mut header = sound.clone();
            header[*name]["data_offsets"] = offsets.clone();
            out.push((format!("{name} at {offsets}"), safetensors(&json!(header).to_string(), data)));
        }
        for shape in
            [json!([u64::MAX, 0]), json!([u64::MAX, 2]), json!([1u64 << 62, 8]), json!([0]), json!(vec![1; 30])]
        {
            let mut header = sound.clone();
            header[*name]["shape"] = shape.clone();
            out.push((format!("{name} of {shape}"), safetensors(&json!(header).to_string(), data)));
        }
        let mut header = sound.clone();
        header.shift_remove(*name);
        out.push((format!("no {name}"), safetensors(&json!(header).to_string(), data)));
        header.insert(format!("{name}\u{1b}"), sound[*name].clone());
        out.push((format!("{name} by another name"), safetensors(&json!(header).to_string(), data)));
    }
    for length in [0, 1, 7, n as u64 - 1, n as u64 + 1, bytes.len() as u64, 1 << 31, 1 << 63, u64::MAX, u64::MAX - 7] {
        out.push((format!("header of {length}"), [&length.to_le_bytes()[..], &bytes[8..]].concat()));
    }
    for keep in [0, 1, 7, 8, 9, 8 + n / 2, 8 + n, 8 + n + 1, bytes.len() - 1] {
        out.push((format!("{keep} bytes"), bytes[..keep].to_vec()));
    }
    for header in ["", "[]", "7", "{", "null", "{\"a\":{}}", "{\"a\":null}", "{\"__metadata__\":7}", "\u{FEFF}{}"] {
        out.push((format!("header {header}"), safetensors(header, data)));
    }
    out.push(("deep".into(), safetensors(&"[".repeat(100_000), data)));
    let mut rng = Rng::new(seed);
    for i in 0..60 {
        out.push((format!("wound {i}"), [&bytes[..8], &wounded(header, &mut rng), data].concat()));
        let wound = wounded(header, &mut rng);
        out.push((format!("fitting wound {i}"), [&(wound.len() as u64).to_le_bytes()[..], &wound, data].concat()));
    }
    out
}

#[test]
fn model_weights() {
    let (mut tried, mut no) = (0, 0);
    for (i, kind) in ["llama", "bnb_4bit", "bnb_8bit"].into_iter().enumerate() {
        let dir = copy(&Path::new("tests/golden").join(kind), &["config.json", "model.safetensors"]);
        let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        for (name, bytes) in damaged_tensors(&bytes, 12 + i as u64) {
            std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
            let folder = dir.path().to_path_buf();
            no += refused(&format!("{kind}: {name}"), "model.safetensors", move || try_model(&folder));
            tried += 1;
        }
    }
    let dir = copy("tests/golden/llama".as_ref(), &["config.json"]);
    for (i, index) in [
        json!({}),
        json!({"weight_map": []}),
        json!({"weight_map": {}}),
        json!({"weight_map": {"lm_head.weight": 7}}),
        json!({"weight_map": {"lm_head.weight": "../model.safetensors"}}),
        json!({"weight_map": {"lm_head.weight": "/etc/passwd"}}),
        json!({"weight_map": {"lm_head.weight": ""}}),
        json!({"weight_map": {"lm_head.weight": "a\u{0}b"}}),
        json!({"weight_map": {"lm_head.weight": "model-1.safetensors"}}),
        json!(7),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let folder = dir.path().to_path_buf();
        let error = ends("index", move || try_model(&folder)).expect_err(&index.to_string());
        assert!([65, 74].contains(&error.exit_code()), "index {i}: {error:?}");
        tried += 1;
        no += 1;
    }
    report("model.safetensors", tried, no, 600);
}

#[test]
fn gguf_files() {
    let (mut tried, mut no, mut rng) = (0, 0, Rng::new(15));
    let dir = tempfile::tempdir().unwrap();
    for (kind, head) in [("llama", 2600), ("packed", 3000), ("chat", 200_000), ("spm", 1200)] {
        let bytes = std::fs::read(format!("tests/golden/gguf/{kind}.gguf")).unwrap();
        let head = head.min(bytes.len() - 1);
        let mut all: Vec<(String, Vec<u8>)> = vec![];
        for at in [0, 4, 8, 12, 16, 20, 24, 28, 32] {
            for value in [0u64, 1, 1 << 31, u64::MAX, 1 << 63, 0x0300_0000, 1 << 40] {
                let mut lie = bytes.clone();
                lie[at..at + 8].copy_from_slice(&value.to_le_bytes());
                all.push((format!("{value} at {at}"), lie));
            }
        }
        for keep in [0, 3, 4, 8, 23, 24, 25, 31, head / 3, head / 2, head, bytes.len() - 1] {
            all.push((format!("{keep} bytes"), bytes[..keep].to_vec()));
        }
        for i in 0..110 {
            all.push((format!("wound {i}"), [&wounded(&bytes[..head], &mut rng), &bytes[head..]].concat()));
        }
        for (name, bytes) in all {
            let file = dir.path().join(format!("{kind}.gguf"));
            std::fs::write(&file, bytes).unwrap();
            let only_tokenizer = kind == "spm";
            no += refused(&format!("{kind}: {name}"), &format!("{kind}.gguf"), move || {
                let read = Tokenizer::load(&file).map(|_| ());
                if only_tokenizer { read } else { try_model(&file) }
            });
            tried += 1;
        }
    }
    report("GGUF", tried, no, 600);
}

fn try_adapter(base: &Path, folder: &Path) -> Result<()> {
    let b = Cpu::new();
    let vocab = peft::vocab(folder, &arch::read_spec(base)?)?;
    if vocab > 4096 {
        return Ok(());
    }
    let lora = Some(peft::read_config(folder)?);
    let mut model = Model::load(&b, base, &LoadOptions { lora, vocab, ..LoadOptions::frozen(DType::F32) })?;
    peft::load(&b, &mut model, folder)
}

#[test]
fn adapters() {
    let (mut tried, mut no) = (0, 0);
    for (i, kind) in ["llama/patterns", "llama/dora", "tokens/both", "tied/save_embed"].into_iter().enumerate() {
        let from = Path::new("tests/golden/adapters").join(kind);
        let base = from.parent().unwrap().join("model");
        let names = ["adapter_config.json", "adapter_model.safetensors"];
        let dir = copy(&from, &names);
        let mut all: Vec<(&str, String, Vec<u8>)> = vec![];
        let config = changed(&object(&from.join(names[0])));
        all.extend(config.into_iter().map(|(name, text)| (names[0], name, text.into_bytes())));
        let (text, mut rng) = (std::fs::read(from.join(names[0])).unwrap(), Rng::new(20 + i as u64));
        all.extend((0..40).map(|i| (names[0], format!("wound {i}"), wounded(&text, &mut rng))));
        let tensors = damaged_tensors(&std::fs::read(from.join(names[1])).unwrap(), 30 + i as u64);
        all.extend(tensors.into_iter().map(|(name, bytes)| (names[1], name, bytes)));
        for (file, name, bytes) in all {
            std::fs::write(dir.path().join(file), bytes).unwrap();
            let (base, folder, said) =
                (base.clone(), dir.path().to_path_buf(), dir.path().to_str().unwrap().to_string());
            no += refused(&format!("{kind}: {file}: {name}"), &said, move || try_adapter(&base, &folder));
            tried += 1;
            std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
        }
    }
    report("adapters", tried, no, 1500);
}

/// A run of two steps with checkpoints.
fn trained(dir: &Path) -> PathBuf {
    let shape = json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 4096, "max_position_embeddings": 32, "tie_word_embeddings": true});
    std::fs::write(dir.join("config.json"), shape.to_string()).unwrap();
    let init = std::process::Command::new(env!("CARGO_BIN_EXE_luthier"))
        .args(["init", "--config", "config.json", "--out", "model"])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(init.status.success(), "{init:?}");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new("assets/base").join(name), dir.join("model").join(name)).unwrap();
    }
    std::fs::write(dir.join("d.jsonl"), "{\"text\": \"a b c\"}\n{\"text\": \"d e f\"}\n").unwrap();
    let keys = format!(
        "model = {:?}\ndataset = {:?}\noutput_dir = {:?}\nmax_length = 8\nbatch_size = 1\nmax_steps = 2\nsave_steps = 1\n\
         backend = \"cpu\"\ndtype = \"float32\"\ndataset_cache = false\n[lora]\nr = 1\ntarget_modules = [\"q_proj\"]\n",
        dir.join("model"),
        dir.join("d.jsonl"),
        dir.join("out")
    );
    std::fs::write(dir.join("run.toml"), keys).unwrap();
    resume(dir, "false").unwrap();
    // later runs replace what is in their folder
    let kept = dir.join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::rename(dir.join("out/checkpoint-1"), kept.join("checkpoint-1")).unwrap();
    kept.join("checkpoint-1")
}

fn resume(dir: &Path, from: &str) -> Result<()> {
    let overrides = [format!("resume_from_checkpoint={from}"), format!("output_dir={:?}", dir.join("out"))];
    let config = config::load(&dir.join("run.toml"), &overrides)?;
    run::train(&config, &Cpu::new(), &mut ()).map(|_| ())
}

/// Makes a checkpoint's manifest agree with its files.
fn seal(checkpoint: &Path) {
    let mut manifest = object(&checkpoint.join(MANIFEST));
    for file in manifest["files"].as_array_mut().unwrap() {
        let bytes = std::fs::read(checkpoint.join(file["name"].as_str().unwrap())).unwrap();
        file["size"] = json!(bytes.len());
        file["blake3"] = json!(blake3::hash(&bytes).to_hex().to_string());
    }
    std::fs::write(checkpoint.join(MANIFEST), Value::Object(manifest).to_string()).unwrap();
}

#[test]
fn checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let made = trained(dir.path());
    let (mut tried, mut no, mut rng) = (0, 0, Rng::new(41));
    // the manifest, and files that do not agree with it
    let manifest = std::fs::read(made.join(MANIFEST)).unwrap();
    let mut all: Vec<(&str, String, Vec<u8>)> = vec![];
    let sound = object(&made.join(MANIFEST));
    all.extend(changed(&sound).into_iter().map(|(name, text)| (MANIFEST, name, text.into_bytes())));
    for (name, text) in changed(sound["files"][0].as_object().unwrap()) {
        let text = json!(sound).to_string().replacen(&sound["files"][0].to_string(), &text, 1);
        all.push((MANIFEST, format!("files[0].{name}"), text.into_bytes()));
    }
    for name in ["../x", "/etc/passwd", "a/b", "C:x", "\\\\h\\x", ""] {
        let mut lie = sound.clone();
        lie["files"][0]["name"] = json!(name);
        all.push((MANIFEST, format!("a file {name:?}"), Value::Object(lie).to_string().into_bytes()));
    }
    all.extend((0..60).map(|i| (MANIFEST, format!("wound {i}"), wounded(&manifest, &mut rng))));
    for file in ["optimizer.safetensors", "trainer_state.json", "adapter_config.json"] {
        let bytes = std::fs::read(made.join(file)).unwrap();
        all.extend((0..25).map(|i| (file, format!("wound {i}"), wounded(&bytes, &mut rng))));
    }
    for (file, name, bytes) in all {
        let before = std::fs::read(made.join(file)).unwrap();
        std::fs::write(made.join(file), bytes).unwrap();
        let folder = made.clone();
        match ends(&name, move || checkpoint::verify(&folder)) {
            Ok(step) => assert!(step == 1, "{file}: {name}"),
            // a name that no file has cannot be read
            Err(error) => {
                assert!([65, 74].contains(&error.exit_code()), "{file}: {name}: {error:?}");
                no += 1;
            }
        }
        tried += 1;
        std::fs::write(made.join(file), before).unwrap();
    }
    // the same lies under a manifest that vouches for them
    let mut all: Vec<(&str, String, Vec<u8>)> = vec![];
    let state = changed(&object(&made.join("trainer_state.json")));
    all.extend(state.into_iter().map(|(name, text)| ("trainer_state.json", name, text.into_bytes())));
    let tensors = damaged_tensors(&std::fs::read(made.join("optimizer.safetensors")).unwrap(), 42);
    all.extend(tensors.into_iter().map(|(name, bytes)| ("optimizer.safetensors", name, bytes)));
    let aside = dir.path().join("checkpoint-1");
    for (i, (file, name, bytes)) in all.into_iter().enumerate().filter(|(i, _)| i % 2 == 0) {
        let _ = std::fs::remove_dir_all(&aside);
        std::fs::create_dir(&aside).unwrap();
        for entry in std::fs::read_dir(&made).unwrap().map(|e| e.unwrap().path()) {
            std::fs::copy(&entry, aside.join(entry.file_name().unwrap())).unwrap();
        }
        std::fs::write(aside.join(file), bytes).unwrap();
        seal(&aside);
        let (at, from) = (dir.path().to_path_buf(), format!("{aside:?}"));
        let error: Option<Error> = ends(&name, move || resume(&at, &from)).err();
        if let Some(error) = error {
            blames(&format!("{i} {file}: {name}"), &error, "checkpoint-1");
            no += 1;
        }
        tried += 1;
    }
    report("checkpoints", tried, no, 300);
}
