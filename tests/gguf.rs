//! GGUF files as models: against the Hugging Face folders they were made from, and against transformers on the values they hold.
//!
//! tests/golden/make_gguf.py makes the files. `LUTHIER_GOLDEN=DIR` checks DIR/gguf/CASE.gguf against DIR/CASE for every case.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::data::Tokenizer;
use luthier::dtype::DType;
use luthier::error::Error;
use luthier::io::safetensors::{Dtype, Outline, Tensors, Writer};
use luthier::model::linear::Weight;
use luthier::model::lora::{LoraConfig, Targets};
use luthier::model::table::Table;
use luthier::model::{self, LoadOptions, Model, Plan, Session, Tokens, Weights, arch};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
mod support;
use support::*;

const ROOT: &str = "tests/golden/gguf";

fn at(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

fn load(b: &dyn Backend, path: &Path, options: &LoadOptions) -> Model {
    Model::load(b, path, options).unwrap_or_else(|e| panic!("{e}"))
}

/// Logits and mean loss of a batch, and a backward pass that leaves every gradient.
fn run(b: &dyn Backend, model: &mut Model, tokens: &Tokens, labels: &[u32]) -> (Vec<f32>, f64) {
    let N = tokens.ids.len();
    let mut session = Session::new(b, model, N, N, Plan::Keep).unwrap();
    session.forward(model, tokens).unwrap();
    let logits = session.logits(model, 0, N).unwrap();
    let (loss, coef) = mean_loss(&session.logprobs(model, labels).unwrap(), labels);
    session.backward(model, labels, &coef).unwrap();
    (logits, loss)
}

/// Every weight is what the folder has, and the logits are what transformers says.
fn check_twin(file: &Path, folder: &Path, backends: &[Box<dyn Backend>]) {
    let checked = model::check(file).unwrap();
    let name = file.display();
    assert!(checked.mismatches.is_empty(), "{name}: {:?}", checked.mismatches);
    let (spec, want) = (checked.spec.unwrap(), arch::read_spec(folder).unwrap());
    let windows = |s: &model::spec::Spec| s.kind_of.iter().map(|k| s.kinds[*k].window).collect::<Vec<_>>();
    assert_eq!(windows(&spec), windows(&want), "{name}");
    assert_eq!(spec.weights(), want.weights(), "{name}");
    let (got, original) = (Weights::open(file, Some(&spec)).unwrap(), Weights::open(folder, Some(&want)).unwrap());
    for w in spec.weights() {
        let [got, want] = [&got, &original].map(|weights| weights.find(&w.name, &w.shape).unwrap().to_f32());
        // a norm whose distance from 1 is stored loses what adding 1 rounds away
        let limit = if spec.norm_weight.shift() != 0.0 && w.shape.len() == 1 { 1.2e-7 } else { 0.0 };
        assert!(max_abs(&got, &want) <= limit, "{name}: {}", w.name);
    }
    let golden = open(&folder.join("golden.safetensors"));
    let (tokens, labels) = packed(&golden, "input_ids", "labels");
    for b in backends {
        // floats may be trained in full
        let options = LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) };
        let (logits, loss) = run(&**b, &mut load(&**b, file, &options), &tokens, &labels);
        let (logits, want) = (max_abs(&logits, &floats(&golden, "logits")), floats(&golden, "loss")[0] as f64);
        println!("{name} {} logits {logits:.1e} loss {:.1e}", b.name(), (loss - want).abs() / want);
        assert!(logits <= 1e-3 && (loss - want).abs() / want <= 1e-5, "{name} {}: {logits}", b.name());
    }
}

#[test]
fn twins_are_the_models_they_were_made_from() {
    let (root, backends) = (golden_root(), backends());
    let mut files: Vec<_> = std::fs::read_dir(root.join("gguf")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut count = 0;
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "gguf")) {
        let folder = root.join(file.file_stem().unwrap());
        if folder.join("golden.safetensors").exists() {
            check_twin(file, &folder, &backends);
            count += 1;
        }
    }
    assert!(count >= 1, "no GGUF file in {} has its folder", root.display());
}

/// A Hugging Face folder of the values that a GGUF file stands for.
fn dequantized(file: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let spec = arch::read_spec(file).unwrap();
    let weights = Weights::open(file, Some(&spec)).unwrap();
    let config = arch::read_config(file).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let all = spec.weights();
    let outline =
        |w: &model::spec::WeightSpec| Outline { name: w.name.clone(), dtype: Dtype::F32, shape: w.shape.clone() };
    let mut writer = Writer::create(&dir.path().join("model.safetensors"), all.iter().map(outline).collect()).unwrap();
    for w in &all {
        writer.write(&DType::F32.encode(&weights.find(&w.name, &w.shape).unwrap().to_f32())).unwrap();
    }
    writer.finish().unwrap();
    dir
}

const PACKED: [&str; 2] = ["packed", "packed_mixtral"];

#[test]
fn blocks_stay_packed_and_are_the_values_that_transformers_sees() {
    for name in PACKED {
        let golden = open(&at(&format!("{name}.safetensors")));
        let (tokens, labels) = packed(&golden, "input_ids", "labels");
        for b in backends() {
            let mut model = load(&*b, &at(&format!("{name}.gguf")), &LoadOptions::frozen(DType::F32));
            let stacks = model.experts().map(|e| &e.stack);
            let packed = model.linears().chain(stacks).filter(|l| matches!(l.weight, Weight::Gguf(_))).count();
            assert_eq!(packed, if name == "packed" { 7 } else { 2 * (1 + 3) });
            let tables = [Some(&model.embed), model.head.as_ref()].into_iter().flatten();
            assert_eq!(tables.filter(|t| matches!(t, Table::Packed(_))).count(), if name == "packed" { 2 } else { 0 });
            model.params_mut().for_each(|p| p.unfreeze(&*b).unwrap());
            let (logits, loss) = run(&*b, &mut model, &tokens, &labels);
            let (logits, want) = (max_abs(&logits, &floats(&golden, "logits")), floats(&golden, "loss")[0] as f64);
            assert!(logits <= 1e-3 && (loss - want).abs() / want <= 1e-5, "{name} {}: {logits} {loss}", b.name());
            for gradient in golden.names().filter(|n| n.starts_with("grad.")) {
                let param = model.params().find(|p| Some(&*p.name) == gradient.strip_prefix("grad.")).unwrap();
                let err = nmse(&param.grad(&*b).unwrap(), &floats(&golden, gradient));
                assert!(err <= 1e-8, "{name} {} {gradient}: {err}", b.name());
            }
        }
    }
}

#[test]
fn adapters_on_blocks_learn_as_on_the_values() {
    for name in PACKED {
        let file = at(&format!("{name}.gguf"));
        let (dense, golden) = (dequantized(&file), open(&at(&format!("{name}.safetensors"))));
        let (tokens, labels) = packed(&golden, "input_ids", "labels");
        // a mixture's experts have no magnitudes
        let kinds: &[bool] = if name == "packed" { &[false, true] } else { &[false] };
        for (use_dora, b) in kinds.iter().flat_map(|kind| backends().into_iter().map(|b| (*kind, b))) {
            let lora = LoraConfig {
                use_dora,
                r: 4,
                lora_alpha: 8.0,
                target_modules: Targets::Word("all-linear".into()),
                ..LoraConfig::default()
            };
            let options = LoadOptions { lora: Some(lora), train: true, seed: 3, ..LoadOptions::frozen(DType::F32) };
            let gradients = |path: &Path| {
                let mut model = load(&*b, path, &options);
                // B starts at zero, and then A has no gradient
                for p in model.params_mut().filter(|p| p.name.ends_with("lora_B.weight")) {
                    let values: Vec<f32> = (0..p.elements()).map(|i| (i % 7) as f32 * 0.01 - 0.03).collect();
                    p.set(&*b, &values).unwrap();
                }
                run(&*b, &mut model, &tokens, &labels);
                let one = |p: &model::param::Param| (p.name.clone(), p.grad(&*b).unwrap());
                model.trained().map(one).collect::<Vec<_>>()
            };
            let (got, want) = (gradients(&file), gradients(dense.path()));
            assert!(!got.is_empty() && got.len() == want.len());
            for ((name, got), (same, want)) in got.iter().zip(&want) {
                assert_eq!(name, same);
                assert!(nmse(got, want) <= 1e-9 && want.iter().any(|x| *x != 0.0), "{} {name}", b.name());
            }
        }
    }
}

/// A module to save is a copy of its own in floats, and unties a tied head.
#[test]
fn modules_to_save_leave_the_blocks() {
    let b = Cpu::new();
    let modules_to_save = vec!["embed_tokens".to_string()];
    let lora = LoraConfig { modules_to_save, ..LoraConfig::default() };
    let options = LoadOptions { lora: Some(lora), train: true, ..LoadOptions::frozen(DType::F32) };
    let model = load(&b, &at("chat.gguf"), &options);
    let dense = load(&b, dequantized(&at("chat.gguf")).path(), &LoadOptions::frozen(DType::F32));
    let saved = model.embed.param().expect("a copy in floats");
    assert!(saved.train.is_some() && matches!(model.head, Some(Table::Packed(_))));
    assert_eq!(saved.get(&b).unwrap(), dense.embed.param().unwrap().get(&b).unwrap());
}

#[test]
fn bfloat16_models_dequantize_into_bfloat16() {
    let golden = open(&at("packed.safetensors"));
    let (tokens, labels) = packed(&golden, "input_ids", "labels");
    for b in backends() {
        let mut model = load(&*b, &at("packed.gguf"), &LoadOptions::frozen(DType::Bf16));
        let (_, loss) = run(&*b, &mut model, &tokens, &labels);
        let want = floats(&golden, "loss")[0] as f64;
        assert!((loss - want).abs() / want <= 0.02, "{}: {loss} {want}", b.name());
    }
}

const TEXTS: [&str; 8] = [
    "The quick brown fox, 1234567 jumps over the lazy dog.",
    "  two  spaces   and\ttabs\r\n\n\nlines  \n",
    "I'll say it's THEY'RE don't",
    "ünïcödé 汉字 🙂 ∀x∈ℝ ﬁ Å",
    "fn main() { let x: Vec<u32> = vec![1, 22, 333]; println!(\"{x:?}\"); }",
    "<|im_start|>user\nhi<|im_end|>\n<|pad|>",
    "",
    " ",
];

#[test]
fn byte_level_tokenizers_are_the_original() {
    let (got, want) = (Tokenizer::load(&at("chat.gguf")).unwrap(), Tokenizer::load("assets/base".as_ref()).unwrap());
    let data = std::fs::read_to_string("assets/rustc_explain.jsonl").unwrap();
    for text in TEXTS.into_iter().chain(data.lines().take(60)) {
        for special in [true, false] {
            let ids = got.encode(text, special).unwrap();
            assert_eq!(ids, want.encode(text, special).unwrap(), "{text:?}");
            assert_eq!(got.decode(&ids, false).unwrap(), want.decode(&ids, false).unwrap());
        }
    }
    assert_eq!((got.bos_id(), got.eos_id(), got.pad_id()), (want.bos_id(), want.eos_id(), want.pad_id()));
    assert_eq!((got.vocab_size(), got.special_tokens()), (want.vocab_size(), want.special_tokens()));
    assert_eq!(got.chat_template().map(|t| &t.text), want.chat_template().map(|t| &t.text));
    let end = want.token_to_id("<|im_end|>").unwrap();
    assert!(got.eos_ids().contains(&end), "a turn's end ends a generation");
}

#[test]
fn sentencepiece_tokenizers_are_the_original() {
    let tokenizer = Tokenizer::load(&at("spm.gguf")).unwrap();
    let cases: Vec<(String, Vec<u32>)> = serde_json::from_slice(&std::fs::read(at("spm.json")).unwrap()).unwrap();
    assert!(cases.len() > 20);
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
}

/// A copy of a file with the first `from` replaced by as many bytes.
fn edited(dir: &Path, name: &str, from: &[u8], to: &[u8]) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(at(name)).unwrap();
    let place = bytes.windows(from.len()).position(|w| w == from).expect("it is in the file");
    bytes[place..place + to.len()].copy_from_slice(to);
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_cannot_be_a_base_is_refused() {
    let (b, dir) = (Cpu::new(), tempfile::tempdir().unwrap());
    let fails = |path: &Path, options: &LoadOptions, code: u8, parts: &[&str]| {
        let e = Model::load(&b, path, options).err().unwrap_or_else(|| panic!("must fail with {parts:?}"));
        assert_eq!(e.exit_code(), code, "{e}");
        let e = e.to_string();
        assert!(parts.iter().all(|part| e.contains(part)), "{e}\n{parts:?}");
    };
    let (file, plain) = (at("packed.gguf"), LoadOptions::frozen(DType::F32));
    fails(&file, &LoadOptions { train: true, ..plain.clone() }, 2, &["a quantized base is frozen", "[lora]"]);
    fails(&file, &LoadOptions { load_in_4bit: true, ..plain.clone() }, 2, &["GGUF"]);
    // the info of blk.0.attn_q.weight: 2 dims of 256, type 2 (Q4_0); 20 is IQ4_NL with blocks of the same size
    let info = |kind: u8| {
        [&b"blk.0.attn_q.weight"[..], &[2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, kind]].concat()
    };
    let other = edited(dir.path(), "packed.gguf", &info(2), &info(20));
    fails(&other, &plain, 65, &["self_attn.q_proj.weight", "IQ4_NL", "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"]);
    let other = edited(dir.path(), "packed.gguf", b"blk.0.attn_q.weight", b"blk.0.attn_x.weight");
    fails(&other, &plain, 65, &["`blk.0.attn_q.weight` is missing", "1 more"]);
    let other = edited(dir.path(), "packed.gguf", b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lamma");
    fails(&other, &plain, 65, &["`lamma` is not supported", "qwen3moe"]);
    let other = edited(dir.path(), "packed.gguf", b"llama.block_count", b"llama.block_kount");
    fails(&other, &plain, 65, &["llama.block_count", "is missing"]);
    let e = Tokenizer::load(&edited(dir.path(), "chat.gguf", b"dbrx", b"dbry")).err().unwrap();
    assert!(matches!(e, Error::Content { .. }) && e.to_string().contains("tokenizer.json"), "{e}");
    // what is beside the file wins
    std::fs::copy("assets/base/tokenizer.json", dir.path().join("tokenizer.json")).unwrap();
    std::fs::copy("assets/base/tokenizer_config.json", dir.path().join("tokenizer_config.json")).unwrap();
    assert_eq!(Tokenizer::load(&dir.path().join("chat.gguf")).unwrap().file(), dir.path().join("tokenizer.json"));
}

#[test]
fn a_float_file_trained_in_full_becomes_a_folder() {
    for name in ["llama", "gemma3"] {
        let (b, dir) = (Cpu::new(), tempfile::tempdir().unwrap());
        let file = at(&format!("{name}.gguf"));
        let model = load(&b, &file, &LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) });
        luthier::export::full::save(&b, &model, &file, dir.path()).unwrap();
        assert_eq!(arch::read_spec(dir.path()).unwrap(), model.spec);
        let again = load(&b, dir.path(), &LoadOptions::frozen(DType::F32));
        for (got, want) in again.params().zip(model.params()) {
            assert_eq!((&got.name, got.get(&b).unwrap()), (&want.name, want.get(&b).unwrap()));
        }
    }
}

fn luthier(args: &[&str], code: i32) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_luthier")).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

#[test]
fn inspect_train_and_generate_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = at("chat.gguf");
    let file = file.to_str().unwrap();
    let said = luthier(&["inspect", file], 0);
    for part in
        ["architecture  llama", "quantization  in blocks (GGUF)", "Q8_0 (8 tensors", "4096 tokens", "no mismatch"]
    {
        assert!(said.contains(part), "{said}");
    }
    let data = dir.path().join("chats.jsonl");
    let chat = r#"{"messages": [{"role": "user", "content": "What is E0117?"}, {"role": "assistant", "content": "An orphan."}]}"#;
    std::fs::write(&data, format!("{chat}\n").repeat(8)).unwrap();
    let (run, out) = (dir.path().join("run.toml"), dir.path().join("out"));
    let lora = "[lora]\nr = 4\nlora_alpha = 8\ntarget_modules = \"all-linear\"\n";
    let top = format!("model_name_or_path = {file:?}\ndataset = {data:?}\noutput_dir = {out:?}\n");
    let rest =
        "max_length = 32\nmax_steps = 3\nlearning_rate = 1e-3\nbackend = \"cpu\"\nresume_from_checkpoint = \"auto\"\n";
    std::fs::write(&run, format!("{top}{rest}{lora}")).unwrap();
    luthier(&["train", run.to_str().unwrap()], 0);
    assert!(luthier(&["train", run.to_str().unwrap()], 0).contains("finished already"));
    let adapter = Tensors::open_folder(&out, "adapter_model").unwrap();
    assert!(adapter.contains("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"));
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], file);
    let (made, want) = (Tokenizer::load(&out).unwrap(), Tokenizer::load("assets/base".as_ref()).unwrap());
    assert_eq!(made.encode(TEXTS[0], true).unwrap(), want.encode(TEXTS[0], true).unwrap());
    let adapter = out.to_str().unwrap();
    let generate = ["generate", "--model", file, "--prompt", "x", "--max-new-tokens", "4", "--backend", "cpu"];
    luthier(&generate, 0);
    luthier(&[&generate[..], &["--adapter", adapter]].concat(), 0);
    let fresh = dir.path().join("fresh");
    let said = luthier(&["quantize", "--model", file, "--out", fresh.to_str().unwrap(), "--backend", "cpu"], 65);
    assert!(said.contains("is a GGUF file"), "{said}");
    std::fs::write(&run, format!("{top}{rest}").replace("/out\"", "/full\"")).unwrap();
    assert!(luthier(&["train", run.to_str().unwrap()], 2).contains("a quantized base is frozen"));
}
