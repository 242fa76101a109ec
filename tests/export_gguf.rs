//! GGUF files that we write: blocks are ggml's, models are what they were made from, tokenizers encode as before.
//!
//! tests/golden/make_ggml_blocks.py records what ggml makes of some values.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::data::Tokenizer;
use luthier::dtype::DType;
use luthier::export::gguf::blocks::quantize;
use luthier::export::gguf::{QUANTS, Quant};
use luthier::export::peft;
use luthier::export::product::{self, Input, Product};
use luthier::io::gguf::{Gguf, Value};
use luthier::model::lora::LoraConfig;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens, arch};
use luthier::ops::gguf::Packed;
use serde_json::json;
use std::path::{Path, PathBuf};
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

fn quant(name: &str) -> Quant {
    Quant::parse(name).unwrap()
}

fn logits(b: &dyn Backend, path: &Path) -> Vec<f32> {
    let model = Model::load(b, path, &LoadOptions::frozen(DType::F32)).unwrap_or_else(|e| panic!("{e}"));
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % model.spec.V as u32).collect();
    let mut session = Session::new(b, &model, ids.len(), ids.len(), Plan::Inference).unwrap();
    session.forward(&model, &Tokens::single(&ids)).unwrap();
    session.logits(&model, 0, ids.len()).unwrap()
}

fn write(b: &dyn Backend, model: &Path, quant: Quant, out: &Path) -> Result<u64, luthier::Error> {
    let input = Input { model, adapter: None, dtype: None, name: Some("golden") };
    product::export(b, Product::Gguf(quant), &input, out, |_| Ok(()))
}

#[test]
fn blocks_are_those_of_ggml() {
    let golden = open(&golden_root().join("gguf/ggml_blocks.safetensors"));
    let values = floats(&golden, "values");
    for (format, name) in Packed::ALL {
        let (got, want) = (quantize(format, &values), golden.get(name).unwrap());
        let row = want.shape[1];
        for (i, (got, want)) in got.chunks(row).zip(want.bytes.chunks(row)).enumerate() {
            assert!(
                got == want,
                "{name}: row {i} differs in {} bytes",
                got.iter().zip(want).filter(|(a, b)| a != b).count()
            );
        }
    }
}

/// What a GGUF file can hold.
const WRITTEN: [&str; 27] = [
    "cohere",
    "cohere2",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
];

/// Goldens that have what llama.cpp has not, and what their configs say without it.
fn plainer() -> Vec<(&'static str, serde_json::Value)> {
    vec![
        ("cohere_qk_norm", json!({ "use_qk_norm": false })),
        ("ernie4_5", json!({ "use_bias": false })),
        ("exaone4", json!({ "sliding_window": null, "layer_types": null })),
        ("gemma2", json!({ "query_pre_attn_scalar": "head_dim" })),
        ("gemma3", json!({ "query_pre_attn_scalar": "head_dim" })),
        ("olmoe", json!({ "num_key_value_heads": "num_attention_heads" })),
        ("phi", json!({ "qk_layernorm": false })),
        ("qwen2_moe", json!({ "mlp_only_layers": [] })),
        (
            "smollm3",
            json!({ "use_sliding_window": false, "layer_types": null, "no_rope_layers": null, "no_rope_layer_interval": 4 }),
        ),
    ]
}

/// Random weights for the golden's config with these keys changed; a key's name stands for that key's value.
fn changed(golden: &str, changes: &serde_json::Value, out: &Path) {
    let text = std::fs::read_to_string(golden_root().join(golden).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        let value = value.as_str().map_or(value.clone(), |other| config[other].clone());
        config[key] = value;
    }
    config["initializer_range"] = json!(0.2);
    std::fs::create_dir_all(out).unwrap();
    let file = out.join("changed.json");
    std::fs::write(&file, config.to_string()).unwrap();
    luthier::export::init::init(&file, out, DType::F32, None, 5).unwrap();
}

fn models() -> Vec<PathBuf> {
    let all = std::fs::read_dir(golden_root()).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> =
        all.filter(|f| f.join("config.json").exists() && f.join("model.safetensors").exists()).collect();
    all.sort();
    all
}

#[test]
fn every_family_comes_back_as_it_was() {
    let (b, dir) = (&Cpu::new() as &dyn Backend, tempfile::tempdir().unwrap());
    let mut written = std::collections::BTreeSet::new();
    let mut all = models();
    for (golden, changes) in plainer() {
        let out = dir.path().join(golden);
        changed(golden, &changes, &out);
        // the golden itself is refused
        let e = write(b, &golden_root().join(golden), quant("f32"), &dir.path().join("no.gguf")).unwrap_err();
        assert!(e.to_string().contains("GGUF") && !dir.path().join("no.gguf").exists(), "{golden}: {e}");
        all.push(out);
    }
    for model in all {
        let (name, out) = (model.display(), dir.path().join("m.gguf"));
        match write(b, &model, quant("f32"), &out) {
            Ok(_) => {
                let err = max_abs(&logits(b, &out), &logits(b, &model));
                assert!(err <= 2e-4, "{name}: {err}");
                written.insert(arch::read_spec(&model).unwrap().model_type);
                std::fs::remove_file(&out).unwrap();
            }
            Err(e) => assert!(e.to_string().contains("GGUF") && !out.exists(), "{name}: {e}"),
        }
    }
    assert_eq!(written, WRITTEN.map(str::to_string).into());
}

/// Every file type of a real model: what it is stored in, and that it still is that model.
#[test]
fn every_file_type_is_written_and_read() {
    let (b, dir) = (&Cpu::new() as &dyn Backend, tempfile::tempdir().unwrap());
    let model = Path::new("assets/base");
    let want = logits(b, model);
    for quant in QUANTS {
        let out = dir.path().join(format!("{}.gguf", quant.name));
        let bytes = write(b, model, quant, &out).unwrap();
        let (err, limit) = (nmse(&logits(b, &out), &want), if quant.format().len == 1 { 1e-5 } else { 0.02 });
        println!("{}: {bytes} bytes, {err:.1e}", quant.name);
        assert!(err <= limit, "{}: {err}", quant.name);
    }
    let types = |name: &str| {
        let gguf = Gguf::open(&dir.path().join(format!("{name}.gguf"))).unwrap();
        let named = |tensor: &str| gguf.tensor(tensor).unwrap().format.name;
        [
            "token_embd.weight",
            "blk.0.attn_v.weight",
            "blk.2.attn_v.weight",
            "blk.1.ffn_down.weight",
            "blk.0.attn_norm.weight",
        ]
        .map(named)
    };
    // six layers: values of 5 and 2 .. in Q6_K, and the embedding, which is the head too
    assert_eq!(types("q4_k_m"), ["Q6_K", "Q4_K", "Q6_K", "Q4_K", "F32"]);
    assert_eq!(types("q4_k_s"), ["Q6_K", "Q5_K", "Q5_K", "Q4_K", "F32"]);
    assert_eq!(types("q8_0"), ["Q8_0", "Q8_0", "Q8_0", "Q8_0", "F32"]);
    assert_eq!(types("q4_0"), ["Q6_K", "Q4_0", "Q4_0", "Q4_0", "F32"]);
    assert_eq!(types("f16"), ["F16", "F16", "F16", "F16", "F32"]);
}

#[test]
fn tokenizers_encode_as_before_and_templates_go_along() {
    let (b, dir) = (&Cpu::new() as &dyn Backend, tempfile::tempdir().unwrap());
    let check = |model: &Path, out: &Path| {
        let (was, is) = (Tokenizer::load(model).unwrap(), Tokenizer::load(out).unwrap());
        for text in
            ["Hello, world!  12345 x", " leading\n\n\nlines\tand ünïcödé 汉字 🙂", "<|im_start|>user\nHi<|im_end|>", ""]
        {
            for special in [true, false] {
                assert_eq!(was.encode(text, special).unwrap(), is.encode(text, special).unwrap(), "{text:?} {special}");
            }
        }
        assert_eq!(
            (was.bos_id(), was.eos_id(), was.adds_bos().unwrap()),
            (is.bos_id(), is.eos_id(), is.adds_bos().unwrap())
        );
        let sorted = |t: &Tokenizer| std::collections::BTreeSet::from_iter(t.eos_ids().to_vec());
        assert!(sorted(&was).is_subset(&sorted(&is)), "{:?} {:?}", was.eos_ids(), is.eos_ids());
        (was, is)
    };
    let out = dir.path().join("folder");
    write(b, Path::new("assets/base"), quant("q8_0"), &out).unwrap();
    let file = out.join("golden-Q8_0.gguf");
    let (_, is) = check(Path::new("assets/base"), &file);
    let template = &is.chat_template().unwrap().text;
    assert!(template.contains("<|im_start|>") && !template.contains("generation %}"), "{template}");
    let gguf = Gguf::open(&file).unwrap();
    assert_eq!(gguf.get("tokenizer.ggml.eot_token_id").and_then(Value::as_u64), Some(3));
    let modelfile = std::fs::read_to_string(out.join("Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM ./golden-Q8_0.gguf\n"), "{modelfile}");
    assert!(modelfile.contains("PARAMETER stop \"<|im_end|>\"\n"), "{modelfile}");
    // SentencePiece's, out of a file and into another one
    let folder = dir.path().join("spm");
    std::fs::create_dir(&folder).unwrap();
    let spm = golden_root().join("gguf/spm.gguf");
    for (name, json) in luthier::data::gguf::companions(&Gguf::open(&spm).unwrap()).unwrap() {
        std::fs::write(folder.join(name), json.to_string()).unwrap();
    }
    let tokenizer = Tokenizer::load(&folder).unwrap();
    let pairs = luthier::data::gguf::metadata(&tokenizer, tokenizer.vocab_size()).unwrap();
    let again = dir.path().join("again.gguf");
    luthier::io::gguf::Writer::create(&again, &pairs, Vec::new()).unwrap().finish().unwrap();
    check(&spm, &again);
}

/// A and B under GGUF's names, their product the one that the model adds.
#[test]
fn adapters_for_llama_cpp() {
    let (b, dir) = (&Cpu::new() as &dyn Backend, tempfile::tempdir().unwrap());
    let model = Path::new("assets/base");
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
// an alpha of 0 means 1 to llama.cpp's scale, so B has the 0 then
    for (lora_alpha, written) in [(6.0, 6.0), (0.0, 1.0)] {
        let config = LoraConfig { use_rslora: true, r: 4, lora_alpha, ..LoraConfig::default() };
        let options = LoadOptions { lora: Some(config), ..LoadOptions::frozen(DType::F32) };
        let loaded = Model::load(b, model, &options).unwrap();
        peft::save(b, &loaded, "base", &adapter).unwrap();
        let input = Input { model, adapter: Some(&adapter), dtype: None, name: None };
        let out = dir.path().join("a.gguf");
        product::export(b, Product::GgufLora, &input, &out, |_| Ok(())).unwrap();
        let gguf = Gguf::open(&out).unwrap();
        let text = |key: &str| gguf.get(key).and_then(Value::as_text).map(str::to_string);
        assert_eq!(text("general.type").as_deref(), Some("adapter"));
        assert_eq!(text("adapter.type").as_deref(), Some("lora"));
        assert_eq!(gguf.get("adapter.lora.alpha").and_then(Value::as_f64), Some(written));
        assert_eq!(gguf.names().count(), 6 * 7 * 2);
        assert_eq!(gguf.tensor("blk.5.ffn_down.weight.lora_a").unwrap().shape, [4, 768]);
        let k = gguf.tensor("blk.0.attn_k.weight.lora_b").unwrap();
        assert_eq!(k.shape, [128, 4]);
        assert!(DType::F32.decode(k.bytes).iter().all(|x| *x == 0.0), "B starts at 0, whatever alpha");
    }
}
