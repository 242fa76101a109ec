//! Mixtures of experts beside their goldens: adapters of experts, their files, 4-bit experts, models saved as they came.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::Backend;
use luthier::dtype::DType;
use luthier::export::{full, init, peft};
use luthier::io::safetensors::Tensors;
use luthier::model::lora::{LoraConfig, Targets};
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
use std::collections::BTreeMap;
use std::path::Path;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

const MODELS: [&str; 4] =
    ["tests/golden/mixtral", "tests/golden/qwen3_moe", "tests/golden/deepseek_v3", "tests/golden/qwen2_moe"];
/// Linear modules of each, experts counted one by one, routers not: of DeepSeek 5 of attention and an MLP, twice, and 8 experts; of
/// Qwen2-MoE an MLP in each of 3 layers, and in two of them what weighs it and 6 experts.
const LINEARS: [usize; 4] = [2 * (4 + 3 * 4), 2 * (4 + 3 * 6), 2 * (5 + 3) + 3 * 8, 3 * (4 + 3) + 2 * (1 + 3 * 6)];

fn adapter(targets: &[&str]) -> LoraConfig {
    let names = targets.iter().map(|s| s.to_string()).collect();
    LoraConfig { r: 3, lora_alpha: 6.0, target_modules: Targets::Names(names), ..LoraConfig::default() }
}

fn options(lora: Option<LoraConfig>) -> LoadOptions {
    LoadOptions { train: true, lora, ..LoadOptions::frozen(DType::F32) }
}

/// The loss of 30 packed tokens; gradients are left in the model.
fn pass(b: &dyn Backend, model: &mut Model) -> f64 {
    let N = 30;
    let ids: Vec<u32> = (0..N as u32).map(|n| (n * 37 + n * n * 11) % 90).collect();
    let tokens = Tokens { positions: (0..17).chain(0..13).collect(), cu_seqlens: vec![0, 17, N as u32], ids };
    let labels: Vec<u32> = (0..N as u32).map(|n| if n % 7 == 3 { u32::MAX } else { (n * 53 + 8) % 90 }).collect();
    let mut session = Session::new(b, model, N, N, Plan::Recompute).unwrap();
    session.forward(model, &tokens).unwrap();
    let (loss, coef) = mean_loss(&session.logprobs(model, &labels).unwrap(), &labels);
    session.backward(model, &labels, &coef).unwrap();
    loss
}

/// [rows, cols] of a matrix's product with another.
fn product(a: &[f32], b: &[f32], (rows, inner, cols): (usize, usize, usize), scale: f64) -> Vec<f32> {
    let at = |i: usize, j: usize| (0..inner).map(|q| a[i * inner + q] as f64 * b[q * cols + j] as f64).sum::<f64>();
    (0..rows * cols).map(|x| (scale * at(x / cols, x % cols)) as f32).collect()
}

fn transposed(a: &[f32], rows: usize) -> Vec<f32> {
    let cols = a.len() / rows;
    (0..a.len()).map(|x| a[x % rows * cols + x / rows]).collect()
}

/// Each weight of the model by its name in files, with its gradient.
fn by_file(b: &dyn Backend, model: &Model) -> BTreeMap<String, Vec<f32>> {
    let mut all = BTreeMap::new();
    for param in model.trained() {
        let len: usize = param.shape.iter().product();
        let grad = param.grad(b).unwrap();
        all.extend(param.files().map(str::to_string).zip(grad.chunks(len).map(<[f32]>::to_vec)));
    }
    all
}

/// An adapter on experts (and on the router, where it is named) is the module with W + s·B·A: the same loss, dB = s·dW·Aᵀ,
/// dA = s·Bᵀ·dW. Also through its file, where experts have PEFT's names.
#[test]
fn an_adapter_of_experts_is_an_adapter_of_each() {
    let latent = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "up_proj", "mlp.gate"];
    let weighed = ["shared_expert_gate", "gate_proj", "down_proj", "q_proj"];
    let targets = [["w1", "w2", "gate"].as_slice(), &["up_proj", "down_proj", "mlp.gate"], &latent, &weighed];
    for (folder, targets) in MODELS.iter().zip(targets) {
        for b in &backends() {
            let (b, folder) = (&**b, Path::new(folder));
            let lora = adapter(targets);
            let mut model = Model::load(b, folder, &options(Some(lora.clone()))).unwrap();
            let mut rng = luthier::rng::Rng::new(4);
            for param in model.params_mut().filter(|p| p.name.contains(".lora_B.")) {
                let values: Vec<f32> = (0..param.elements()).map(|_| rng.normal() * 0.2).collect();
                param.set(b, &values).unwrap();
            }
            let dir = tempfile::tempdir().unwrap();
            peft::save(b, &model, "base", dir.path()).unwrap();
            let loss = pass(b, &mut model);
            let gradients = by_file(b, &model);
            let file = open(&dir.path().join("adapter_model.safetensors"));
            let mut names: Vec<&str> = file.names().collect();
            names.sort();
            assert_eq!(names, gradients.keys().map(String::as_str).collect::<Vec<_>>());

            let lora = peft::read_config(dir.path()).unwrap();
            let mut again = Model::load(b, folder, &options(Some(lora))).unwrap();
            peft::load(b, &mut again, dir.path()).unwrap();
            assert_eq!(pass(b, &mut again), loss);

            merged_agrees(b, folder, &file, loss, &gradients);
        }
    }
}

fn merged_agrees(b: &dyn Backend, folder: &Path, file: &Tensors, loss: f64, gradients: &BTreeMap<String, Vec<f32>>) {
    let mut merged = Model::load(b, folder, &options(None)).unwrap();
    let part = |weight: &str, side| {
        format!("base_model.model.{}.lora_{side}.weight", weight.strip_suffix(".weight").unwrap_or(weight))
    };
    let mut adapted = BTreeMap::new();
    for param in merged.params_mut() {
        let names: Vec<String> = param.files().map(str::to_string).collect();
        for (i, name) in names.iter().enumerate().filter(|(_, name)| file.get(&part(name, "A")).is_ok()) {
            let (a, bb) = (floats(file, &part(name, "A")), floats(file, &part(name, "B")));
            let (O, C) = (param.shape[0], param.shape[1]);
            let delta = product(&bb, &a, (O, 3, C), 2.0);
            let sum: Vec<f32> = param.get_part(b, i).unwrap().iter().zip(delta).map(|(w, d)| w + d).collect();
            param.set_part(b, i, &sum).unwrap();
            adapted.insert(name.clone(), (O, C, a, bb));
        }
    }
    let dense = pass(b, &mut merged);
    assert!((dense - loss).abs() <= 1e-6 * dense, "{}: {dense} {loss}", b.name());
    let dense = by_file(b, &merged);
    assert!(adapted.len() * 2 == gradients.len() && !adapted.is_empty());
    for (name, (O, C, a, bb)) in &adapted {
        let dW = &dense[name];
        let want_b = product(dW, &transposed(a, 3), (*O, *C, 3), 2.0);
        let want_a = product(&transposed(bb, *O), dW, (3, *O, *C), 2.0);
        for (side, want) in [("A", want_a), ("B", want_b)] {
            let err = nmse(&gradients[&part(name, side)], &want);
            assert!(err <= 1e-8 || want.iter().all(|x| x.abs() < 1e-9), "{} {name} {side}: {err:e}", b.name());
        }
    }
}

#[test]
fn all_linear_means_experts_but_no_routers() {
    let b: &dyn Backend = &luthier::backend::cpu::Cpu::new();
    for (folder, linears) in MODELS.into_iter().zip(LINEARS) {
        let lora = LoraConfig { r: 2, ..LoraConfig::default() };
        let model = Model::load(b, Path::new(folder), &options(Some(lora))).unwrap();
        let files: Vec<String> = model.trained().flat_map(|p| p.files().map(str::to_string)).collect();
        assert_eq!(files.len(), linears * 2, "{files:?}");
        assert!(files.iter().all(|f| !f.contains(".gate.lora")), "{files:?}");
        let dir = tempfile::tempdir().unwrap();
        peft::save(b, &model, "base", dir.path()).unwrap();
        let config = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
        assert!(!config.contains("\"gate\"") && !config.contains("mlp.gate"), "{config}");
    }
}

#[test]
fn one_expert_alone_is_refused() {
    let b: &dyn Backend = &luthier::backend::cpu::Cpu::new();
    let options = options(Some(adapter(&["experts.1.w1"])));
    let e = Model::load(b, Path::new(MODELS[0]), &options).err().expect("refused").to_string();
    assert!(e.contains("some experts and not others"), "{e}");
}

/// In 16 bits and in f32: what is loaded and saved is what the file had.
#[test]
fn a_saved_model_has_the_experts_of_its_files() {
    for b in &backends() {
        for folder in MODELS {
            let model = Model::load(&**b, Path::new(folder), &options(None)).unwrap();
            let dir = tempfile::tempdir().unwrap();
            full::save(&**b, &model, Path::new(folder), dir.path()).unwrap();
            let (old, new) = (Path::new(folder).join("model.safetensors"), dir.path().join("model.safetensors"));
            let (old, new) = (open(&old), open(&new));
            assert_eq!(old.names().count(), new.names().count());
            for name in old.names() {
                assert_eq!(floats(&old, name), floats(&new, name), "{} {name}", b.name());
            }
        }
    }
}

/// A model whose experts' sizes suit blocks of 64, with adapters over 4-bit experts: close to the model itself, and trainable.
#[test]
fn experts_in_4_and_8_bits() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string("tests/golden/qwen3_moe/config.json").unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["hidden_size"] = 64.into();
    config["moe_intermediate_size"] = 32.into();
    config["initializer_range"] = 0.05.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let made = dir.path().join("made");
    init::init(&dir.path().join("config.json"), &made, DType::Bf16, None, 5).unwrap();
    for b in &backends() {
        for (dtype, bits) in [(DType::F32, 4), (DType::Bf16, 4), (DType::F32, 8), (DType::Bf16, 8)] {
            let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
            let load = |quantize| {
                let (load_in_4bit, load_in_8bit) = (quantize && bits == 4, quantize && bits == 8);
                let options = LoadOptions { dtype, load_in_4bit, load_in_8bit, ..options(Some(lora.clone())) };
                Model::load(&**b, &made, &options).unwrap()
            };
            let (mut exact, mut small) = (load(false), load(true));
            let (want, got) = (pass(&**b, &mut exact), pass(&**b, &mut small));
            assert!((got - want).abs() < 0.05 * want && got != want, "{} {bits}: {got} {want}", b.name());
            let gradients = by_file(&**b, &small);
            let reached = gradients.iter().filter(|(name, g)| name.contains(".lora_B.") && g.iter().any(|x| *x != 0.0));
            // an expert that no token chose has none
            assert!(reached.count() * 4 > gradients.len(), "{}: few gradients", b.name());
            assert!(gradients.values().flatten().all(|x| x.is_finite()));
        }
    }
}
