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
use luthier::export::verify::verify;
use luthier::io::gguf::{Gguf, Value};
use luthier::model::linear::Weight;
use luthier::model::lora::{LoraConfig, Patterns, Targets};
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens, Weights, arch};
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
const WRITTEN: [&str; 32] = [
    "cohere",
    "cohere2",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "kimi_k2",
    "llama",
    "ministral",
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
    let yarn = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 0.707,
        "mscale_all_dim": 0.707 });
    let mut kimi = yarn.clone();
    kimi["beta_fast"] = json!(1.0);
    let no_window = json!({ "sliding_window": null, "layer_types": ["full_attention", "full_attention"] });
    vec![
        ("cohere_qk_norm", json!({ "use_qk_norm": false })),
        ("deepseek_v3_plain", json!({ "attention_bias": false, "rope_interleave": true })),
        ("deepseek_v3_yarn", json!({ "rope_parameters": yarn })),
        ("kimi_k2", json!({ "rope_scaling": kimi })),
        ("glm", json!({ "head_dim": 12 })),
        ("gpt_oss", json!({ "swiglu_limit": 7.0 })),
        ("ministral", no_window),
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

/// Experts stay as they are published, whatever the rest is stored in.
#[test]
fn experts_in_mxfp4_stay_so() {
    let (b, dir) = (&Cpu::new() as &dyn Backend, tempfile::tempdir().unwrap());
    let (model, out) = (golden_root().join("gpt_oss_mxfp4"), dir.path().join("m.gguf"));
    write(b, &model, quant("q8_0"), &out).unwrap();
    let gguf = Gguf::open(&out).unwrap();
    let stored = |name: &str| gguf.tensor(name).unwrap().format.name;
    assert_eq!(stored("blk.1.ffn_gate_exps.weight"), "MXFP4");
    assert_eq!((stored("blk.0.attn_q.weight"), stored("blk.0.ffn_down_exps.bias")), ("Q8_0", "F32"));
    let [was, is] = [&model, &out].map(|path| Weights::open(path, Some(&arch::read_spec(path).unwrap())).unwrap());
    for w in arch::read_spec(&model).unwrap().weights().iter().filter(|w| w.name.contains("experts")) {
        let [was, is] = [&was, &is].map(|weights| weights.find(&w.name, &w.shape).unwrap());
        assert_eq!((was.to_f32(), was.scheme()), (is.to_f32(), is.scheme()), "{}", w.name);
    }
    // as floats they go into any blocks, and stay packed on the device
    let (floats, blocks) = (dir.path().join("floats"), dir.path().join("blocks.gguf"));
    let input = Input { model: &model, adapter: None, dtype: Some(DType::F32), name: None };
    product::export(b, Product::Merged, &input, &floats, |_| Ok(())).unwrap();
    write(b, &floats, quant("q8_0"), &blocks).unwrap();
    let loaded = Model::load(b, &blocks, &LoadOptions::frozen(DType::F32)).unwrap();
    assert!(loaded.experts().all(|experts| matches!(experts.stack.weight, Weight::Gguf(_))));
    let err = nmse(&logits(b, &blocks), &logits(b, &model));
    assert!(err <= 0.05, "{err}");
    let unpacked = dir.path().join("unpacked");
    let input = Input { model: &blocks, adapter: None, dtype: Some(DType::F32), name: None };
    product::export(b, Product::Merged, &input, &unpacked, |_| Ok(())).unwrap();
    let err = max_abs(&logits(b, &unpacked), &logits(b, &blocks));
    assert!(err <= 1e-3, "{err}");
    // and into another file
    let again = dir.path().join("again.gguf");
    write(b, &out, quant("q8_0"), &again).unwrap();
    assert_eq!(std::fs::read(&again).unwrap().len(), std::fs::read(&out).unwrap().len());
    assert!(max_abs(&logits(b, &again), &logits(b, &out)) <= 1e-3);
}

/// Weights that their folders have transposed, or head by head, stay packed as the device has them.
#[test]
fn blocks_of_other_layouts_are_the_values_that_a_folder_gets() {
    let (b, dir) = (&Cpu::new() as &dyn Backend, tempfile::tempdir().unwrap());
    for (golden, changes) in [
        ("gpt2", json!({ "n_embd": 64, "n_inner": 96, "n_head": 4 })),
        (
            "gpt_neox",
            json!({ "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "rotary_pct": 0.25,
                "rope_parameters": { "partial_rotary_factor": 0.25, "rope_theta": 1e4, "rope_type": "default" } }),
        ),
    ] {
        let (model, out, folder) = (dir.path().join(golden), dir.path().join("m.gguf"), dir.path().join("folder"));
        changed(golden, &changes, &model);
        for name in ["q8_0", "q4_0", "q5_1"] {
            write(b, &model, quant(name), &out).unwrap();
            let loaded = Model::load(b, &out, &LoadOptions::frozen(DType::F32)).unwrap();
            assert!(loaded.linears().all(|linear| matches!(linear.weight, Weight::Gguf(_))), "{golden}");
            let input = Input { model: &out, adapter: None, dtype: Some(DType::F32), name: None };
            product::export(b, Product::Merged, &input, &folder, |_| Ok(())).unwrap();
            let (packed, floats) = (logits(b, &out), logits(b, &folder));
            let err = max_abs(&packed, &floats);
            assert!(err <= 1e-4, "{golden} {name}: {err}");
            assert!(nmse(&packed, &logits(b, &model)) <= 0.1, "{golden} {name}");
            std::fs::remove_file(&out).unwrap();
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
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

/// DeepSeek V3 splits in three steps, which have one name together.
#[test]
fn steps_of_splitting_have_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string("assets/base/tokenizer.json").unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    // as in the published tokenizer.json
    let regexes = [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    ];
    let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let stages: Vec<_> = regexes.map(split).into_iter().chain([bytes]).collect();
    json["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": stages });
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let pairs = luthier::data::gguf::metadata(&tokenizer, tokenizer.vocab_size()).unwrap();
    let file = dir.path().join("t.gguf");
    luthier::io::gguf::Writer::create(&file, &pairs, Vec::new()).unwrap().finish().unwrap();
    let gguf = Gguf::open(&file).unwrap();
    assert_eq!(gguf.get("tokenizer.ggml.pre").and_then(Value::as_text), Some("deepseek-v3"));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let again = Tokenizer::load(&file).unwrap();
    for text in ["fn main() { x.y(12345) }", "今日は良い天気です。 3 天", " a\n\n  b!=c don't ünï"] {
        assert_eq!(again.encode(text, false).unwrap(), tokenizer.encode(text, false).unwrap(), "{text}");
    }
}

/// A PEFT folder of an adapter of this config on `model`, whose B is not zeros.
fn adapter(b: &dyn Backend, model: &Path, config: LoraConfig, out: &Path) {
    std::fs::create_dir(out).unwrap();
    let options = LoadOptions { lora: Some(config), ..LoadOptions::frozen(DType::F32) };
    let mut loaded = Model::load(b, model, &options).unwrap();
    for param in loaded.params_mut().filter(|p| p.name.contains("lora_B")) {
        let values: Vec<f32> = (0..param.elements()).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 500.0).collect();
        param.set(b, &values).unwrap();
    }
    peft::save(b, &loaded, "base", out).unwrap();
}

/// A and B under GGUF's names, their product the one that the model adds: read again, they are the adapter.
#[test]
fn adapters_for_llama_cpp() {
    let (b, dir) = (&Cpu::new() as &dyn Backend, tempfile::tempdir().unwrap());
    let model = Path::new("assets/base");
    let ranks = Patterns(vec![("down_proj".to_string(), 6)]);
    let config = LoraConfig { use_rslora: true, r: 4, lora_alpha: 6.0, rank_pattern: ranks, ..LoraConfig::default() };
    let none = LoraConfig { r: 4, lora_alpha: 0.0, ..LoraConfig::default() };
    let [mine, off] = [("mine", config), ("off", none)].map(|(name, config)| {
        let folder = dir.path().join(name);
        adapter(b, model, config, &folder);
        folder
    });
    let of = |adapter| Input { model, adapter: Some(adapter), dtype: None, name: None };
    let out = dir.path().join("a.gguf");
    let mut found = None;
    product::export(b, Product::GgufLora, &of(&mine), &out, |at| {
        found = Some(verify(b, Product::GgufLora, &of(&mine), at)?);
        Ok(())
    })
    .unwrap();
    assert!(found.is_some_and(|found| found.mean_kl <= 1e-6 && found.tokens > 20));
    let gguf = Gguf::open(&out).unwrap();
    let text = |key: &str| gguf.get(key).and_then(Value::as_text).map(str::to_string);
    assert_eq!(text("general.type").as_deref(), Some("adapter"));
    assert_eq!(text("adapter.type").as_deref(), Some("lora"));
    assert_eq!(gguf.get("adapter.lora.alpha").and_then(Value::as_f64), Some(6.0));
    assert_eq!(gguf.names().count(), 6 * 7 * 2);
    assert_eq!(gguf.tensor("blk.5.ffn_down.weight.lora_a").unwrap().shape, [6, 768]);
    assert_eq!(gguf.tensor("blk.0.attn_k.weight.lora_b").unwrap().shape, [128, 4]);
    // another adapter's file is not this adapter
    let e = verify(b, Product::GgufLora, &of(&off), &out).unwrap_err();
    assert!(e.exit_code() == 65 && e.to_string().contains("differs from what was trained"), "{e}");
    // an alpha of 0 adds nothing, where llama.cpp would take it for a scale of 1
    let silent = dir.path().join("off.gguf");
    product::export(b, Product::GgufLora, &of(&off), &silent, |at| {
        verify(b, Product::GgufLora, &of(&off), at).map(drop)
    })
    .unwrap();
    let gguf = Gguf::open(&silent).unwrap();
    assert_eq!(gguf.get("adapter.lora.alpha").and_then(Value::as_f64), Some(1.0));
    let b_of = DType::F32.decode(gguf.tensor("blk.0.attn_k.weight.lora_b").unwrap().bytes);
    assert!(b_of.iter().all(|x| *x == 0.0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "nothing else is left");
}

/// Where llama.cpp would not look at an adapter, none is written.
#[test]
fn adapters_on_latent_attention_are_merged_instead() {
    let (b, dir) = (&Cpu::new() as &dyn Backend, tempfile::tempdir().unwrap());
    let model = golden_root().join("deepseek_v3");
    for (modules, code) in [(["q_b_proj", "down_proj"], Some(65)), (["o_proj", "gate_proj"], None)] {
        let (folder, out) = (dir.path().join(modules[0]), dir.path().join(format!("{}.gguf", modules[0])));
        let target_modules = Targets::Names(modules.map(str::to_string).to_vec());
        adapter(b, &model, LoraConfig { r: 4, target_modules, ..LoraConfig::default() }, &folder);
        let input = Input { model: &model, adapter: Some(&folder), dtype: None, name: None };
        let proof = |at: &Path| verify(b, Product::GgufLora, &input, at).map(drop);
        let done = product::export(b, Product::GgufLora, &input, &out, proof);
        assert_eq!(done.as_ref().err().map(|e| e.exit_code()), code, "{done:?}");
    }
}

/// docs/export.md lists what can be written, and what of it cannot; every kind of model that is known has a line.
#[test]
fn the_page_of_architectures_is_current() {
    let table = luthier::model::gguf::table();
    for name in arch::model_types() {
        assert!(table.contains(&format!("`{name}`")), "{name}");
    }
    let (file, marks) = ("docs/export.md", ["<!-- architectures -->\n", "<!-- /architectures -->"]);
    let page = std::fs::read_to_string(file).unwrap();
    let [begin, end] = marks.map(|mark| page.find(mark).unwrap_or_else(|| panic!("{file} has no {mark}")));
    let current = [&page[..begin + marks[0].len()], &table, &page[end..]].concat();
    if std::env::var_os("LUTHIER_WRITE").is_some() {
        std::fs::write(file, &current).unwrap();
    }
    assert!(page == current, "{file} is not what the tables say: run this test with LUTHIER_WRITE=1");
}
