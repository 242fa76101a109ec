//! What must hold for every decoder beside its goldens: generation with a cache, other sizes, adapters on fused modules.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::dtype::DType;
use luthier::export::{full, init, peft};
use luthier::infer::{Sampling, generate};
use luthier::model::lora::LoraConfig;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use luthier::model::quantized;
use support::*;

/// The golden folders of unquantized models, one per architecture at least.
fn models() -> Vec<PathBuf> {
    let folders = std::fs::read_dir("tests/golden").expect("goldens").map(|e| e.unwrap().path());
    let mut models: Vec<_> = folders.filter(|f| f.join("config.json").exists()).collect();
    models.retain(|f| luthier::model::arch::read_spec(f).is_ok() && quantized::scheme(f).is_ok_and(|s| s.is_none()));
    models.sort();
    assert!(models.len() >= 33, "{models:?}");
    models
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

fn frozen(b: &dyn Backend, folder: &Path) -> Model {
    Model::load(b, folder, &LoadOptions::frozen(DType::F32)).unwrap_or_else(|e| panic!("{e}"))
}

/// Greedy, without a cache: the whole text again for each token.
fn greedy(b: &dyn Backend, model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let N = ids.len();
        let mut session = Session::new(b, model, N, N, Plan::Inference).unwrap();
        session.forward(model, &Tokens::single(&ids)).unwrap();
        let logits = session.logits(model, N - 1, 1).unwrap();
        ids.push((0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32);
    }
    ids[prompt.len()..].to_vec()
}

/// 24 tokens from 5: past every window, and past the length from which longrope's other angles hold.
#[test]
fn a_cache_changes_nothing() {
    let b: &dyn Backend = &Cpu::new();
    for folder in models() {
        let model = frozen(b, &folder);
        let prompt = [3, 70, 11, 5, 42];
        let sampling = Sampling { max_new_tokens: 24, ..Sampling::default() };
        let cached = generate(b, &model, &prompt, &sampling, &[], |_| true).unwrap();
        assert_eq!(cached, greedy(b, &model, &prompt, 24), "{}", name(&folder));
    }
}

/// The config with other sizes: odd head counts, a small head, a tied head where the golden has its own and the reverse.
fn resized(folder: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let keys = config.as_object_mut().unwrap();
    let sizes = [
        ("vocab_size", 90),
        ("hidden_size", 36),
        ("intermediate_size", 52),
        ("num_attention_heads", 6),
        ("num_key_value_heads", 2),
        ("num_hidden_layers", 3),
        ("head_dim", 6),
    ];
    keys.extend(sizes.map(|(key, size)| (key.to_string(), size.into())));
    if keys.contains_key("layer_types") {
        let sliding = keys["layer_types"].to_string().contains("sliding");
        let types =
            if sliding { ["full_attention", "sliding_attention", "full_attention"] } else { ["full_attention"; 3] };
        keys.insert("layer_types".into(), types.to_vec().into());
    }
    if let Some(layers) = keys.get_mut("no_rope_layers") {
        *layers = vec![0, 1, 0].into();
    }
    if let Some(part) = keys.get_mut("rope_parameters").and_then(|p| p.get_mut("partial_rotary_factor")) {
        // 4 of the 6 channels, where not all of them turn
        *part = if part.as_f64().unwrap() < 1.0 { 0.67 } else { 1.0 }.into();
    }
    for factor in ["short_factor", "long_factor"] {
        if let Some(list) = keys.get_mut("rope_parameters").and_then(|p| p.get_mut(factor)) {
            list.as_array_mut().unwrap().truncate(3);
        }
    }
    if moe(keys) {
        let more = [("moe_intermediate_size", 20), (experts(keys), 5), ("num_experts_per_tok", 3)];
        keys.extend(more.map(|(key, size)| (key.to_string(), size.into())));
        let plain = keys.get("norm_topk_prob").is_some_and(|v| v == false);
        keys.insert("norm_topk_prob".into(), plain.into());
        if keys.contains_key("mlp_only_layers") {
            keys.insert("mlp_only_layers".into(), vec![0].into());
        }
    }
    if keys.contains_key("kv_lora_rank") {
        let more = [
            ("num_key_value_heads", 6),
            ("kv_lora_rank", 13),
            ("qk_rope_head_dim", 6),
            ("qk_nope_head_dim", 5),
            ("v_head_dim", 7),
            ("n_routed_experts", 6),
            ("n_group", 3),
            ("topk_group", 2),
        ];
        keys.extend(more.map(|(key, size)| (key.to_string(), size.into())));
        if !keys["q_lora_rank"].is_null() {
            keys.insert("q_lora_rank".into(), 15.into());
        }
    }
    if keys.contains_key("n_embd") {
        keys.extend(
            [("n_embd", 36), ("n_inner", 52), ("n_head", 6), ("n_layer", 3)].map(|(k, v)| (k.to_string(), v.into())),
        );
    }
    let tied = keys["tie_word_embeddings"].as_bool().unwrap();
    keys.insert("tie_word_embeddings".into(), (!tied).into());
    keys.insert("initializer_range".into(), 0.2.into());
    config
}

fn moe(keys: &serde_json::Map<String, serde_json::Value>) -> bool {
    keys.contains_key("num_experts_per_tok")
}

/// The key that counts them.
fn experts(keys: &serde_json::Map<String, serde_json::Value>) -> &'static str {
    let known = ["num_experts", "n_routed_experts"];
    known.into_iter().find(|key| keys.contains_key(*key)).unwrap_or("num_local_experts")
}

/// The same with every expert for every token: where a choice changes, the loss jumps, and differences say nothing.
fn without_choice(mut config: serde_json::Value) -> serde_json::Value {
    let keys = config.as_object_mut().unwrap();
    if moe(keys) {
        keys.insert("num_experts_per_tok".into(), keys[experts(keys)].clone());
        if keys.contains_key("n_group") {
            keys.insert("topk_group".into(), keys["n_group"].clone());
        }
    }
    config
}

/// Configs as the folders of published models have them: what transformers counts in them is what we count.
#[test]
fn published_configs_are_read() {
    let text = std::fs::read_to_string("tests/golden/published.json").unwrap();
    let models: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, model) in &models {
        std::fs::write(dir.path().join("config.json"), model["config"].to_string()).unwrap();
        let spec = luthier::model::arch::read_spec(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(spec.parameters(), model["parameters"].as_u64().unwrap(), "{name}");
        // transformers has the experts of a layer in two tensors
        let fused = spec.moe.as_ref().map_or(0, |moe| spec.layers * (3 * moe.E - 2));
        assert_eq!(spec.weights().len() - fused, model["tensors"].as_u64().unwrap() as usize, "{name}");
    }
}

struct Passed {
    loss: f64,
    gradients: BTreeMap<String, Vec<f32>>,
}

/// Sequences of 24 and 13 tokens, packed.
fn pass(b: &dyn Backend, model: &mut Model) -> Passed {
    let N = 37;
    let ids: Vec<u32> = (0..N as u32).map(|n| (n * 37 + n * n * 11) % 90).collect();
    let tokens = Tokens { positions: (0..24).chain(0..13).collect(), cu_seqlens: vec![0, 24, N as u32], ids };
    let labels: Vec<u32> = (0..N as u32).map(|n| if n % 7 == 3 { u32::MAX } else { (n * 53 + 8) % 90 }).collect();
    let mut session = Session::new(b, model, N, N, Plan::Keep).unwrap();
    session.forward(model, &tokens).unwrap();
    let (loss, coef) = mean_loss(&session.logprobs(model, &labels).unwrap(), &labels);
    session.backward(model, &labels, &coef).unwrap();
    let gradients = model.trained().map(|p| (p.name.clone(), p.grad(b).unwrap())).collect();
    Passed { loss, gradients }
}

/// Moves every trained weight along its gradient, by `step` over the gradient's norm.
fn moved(b: &dyn Backend, model: &mut Model, along: &Passed, step: f64) {
    let norm: f64 = along.gradients.values().flatten().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
    for param in model.params_mut().filter(|p| p.train.is_some()) {
        let (old, grad) = (param.get(b).unwrap(), &along.gradients[&param.name]);
        let new: Vec<f32> = old.iter().zip(grad).map(|(w, g)| (*w as f64 + *g as f64 * step / norm) as f32).collect();
        param.set(b, &new).unwrap();
    }
}

#[test]
fn other_sizes_agree_on_every_backend_and_with_their_own_differences() {
    let options = LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) };
    for folder in models() {
        let dir = tempfile::tempdir().unwrap();
        let make = |config: serde_json::Value, name: &str| {
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            let made = dir.path().join(name);
            init::init(&dir.path().join("config.json"), &made, DType::F32, None, 5).unwrap();
            made
        };
        let made = make(resized(&folder), "made");
        let runs: Vec<_> = backends()
            .iter()
            .map(|b| (b.name(), pass(&**b, &mut Model::load(&**b, &made, &options).unwrap())))
            .collect();
        let (_, first) = &runs[0];
        for (backend, run) in &runs[1..] {
            let off = (run.loss - first.loss).abs() / first.loss;
            assert!(off <= 1e-5, "{} {backend}: loss {off:e}", name(&folder));
            for (param, gradient) in &run.gradients {
                let err = nmse(gradient, &first.gradients[param]);
                assert!(err <= 1e-8, "{} {backend}: {param} {err:e}", name(&folder));
            }
        }
        let b: &dyn Backend = &Cpu::new();
        let made = make(without_choice(resized(&folder)), "steady");
        let first = &pass(b, &mut Model::load(b, &made, &options).unwrap());
        let at = |step| {
            let mut model = Model::load(b, &made, &options).unwrap();
            moved(b, &mut model, first, step);
            pass(b, &mut model).loss
        };
        let norm = first.gradients.values().flatten().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        let (h, slope) = (2e-3, |h: f64| (at(h) - at(-h)) / (2.0 * h));
        // the h² term of the difference cancels against that of the double step
        let slope = (4.0 * slope(h) - slope(2.0 * h)) / 3.0;
        let off = (slope - norm).abs() / norm;
        println!("{}: loss {:.4}, slope off by {off:.1e}", name(&folder), first.loss);
        assert!(off <= 2e-4, "{}: slope {slope}, norm {norm}", name(&folder));
    }
}

/// Every tensor of the file comes back, under its name and bit for bit; fused modules as one.
#[test]
fn a_saved_model_is_the_model() {
    let b: &dyn Backend = &Cpu::new();
    for folder in models() {
        let dir = tempfile::tempdir().unwrap();
        full::save(b, &frozen(b, &folder), &folder, dir.path()).unwrap();
        let (old, new) = (open(&folder.join("model.safetensors")), open(&dir.path().join("model.safetensors")));
        assert!(old.names().eq(new.names()), "{}", name(&folder));
        for tensor in old.names() {
            assert_eq!(old.get(tensor).unwrap().shape, new.get(tensor).unwrap().shape, "{tensor}");
            assert_eq!(floats(&old, tensor), floats(&new, tensor), "{tensor}");
        }
        assert_eq!(
            luthier::model::arch::read_spec(dir.path()).unwrap(),
            luthier::model::arch::read_spec(&folder).unwrap()
        );
    }
}

/// Half the bits, and 4-bit weights under an adapter, give about the same loss.
#[test]
fn fewer_bits_are_near() {
    let lora = Some(LoraConfig { r: 4, ..LoraConfig::default() });
    for b in &backends() {
        for folder in models() {
            let loss = |options: LoadOptions| {
                let mut model = Model::load(&**b, &folder, &options).unwrap_or_else(|e| panic!("{e}"));
                let passed = pass(&**b, &mut model);
                let square: f64 = passed.gradients.values().flatten().map(|g| (*g as f64).powi(2)).sum();
                assert!(square.is_finite() && square > 0.0, "{} {}", b.name(), name(&folder));
                passed.loss
            };
            let full = LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) };
            let exact = loss(full.clone());
            let half = loss(LoadOptions { dtype: DType::Bf16, ..full.clone() });
            let quarter = loss(LoadOptions { dtype: DType::Bf16, load_in_4bit: true, lora: lora.clone(), ..full });
            println!("{} {}: {exact:.4} {half:.4} {quarter:.4}", b.name(), name(&folder));
            assert!((half - exact).abs() <= 0.01 * exact && (quarter - exact).abs() <= 0.15 * exact);
        }
    }
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

/// An adapter on a module is the module with W + s·B·A: the same loss, dB = s·dW·Aᵀ, dA = s·Bᵀ·dW. Also through its file.
#[test]
fn an_adapter_is_its_product() {
    // fused modules; scaled branches; norms after alone; parallel branches behind one norm; files with other orders than the
    // device: q, k and v head after head, input by output
    let folders = ["phi3", "glm", "granite", "olmo2", "cohere_qk_norm", "gpt_neox", "gpt2"];
    let folders = folders.map(|name| Path::new("tests/golden").join(name));
    let lora = LoraConfig { r: 3, lora_alpha: 6.0, ..LoraConfig::default() };
    for (b, folder) in backends().iter().flat_map(|b| folders.iter().map(move |folder| (b, folder))) {
        let b = &**b;
        // W of what the file has of so many rows, and the reverse
        let turned = |w: Vec<f32>, rows| if folder.ends_with("gpt2") { transposed(&w, rows) } else { w };
        let options = LoadOptions { train: true, lora: Some(lora.clone()), ..LoadOptions::frozen(DType::F32) };
        let mut model = Model::load(b, folder, &options).unwrap();
        let mut rng = luthier::rng::Rng::new(4);
        for param in model.params_mut().filter(|p| p.name.contains(".lora_B.")) {
            let values: Vec<f32> = (0..param.elements()).map(|_| rng.normal() * 0.2).collect();
            param.set(b, &values).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        peft::save(b, &model, "base", dir.path()).unwrap();
        let file = open(&dir.path().join("adapter_model.safetensors"));
        let adapted = pass(b, &mut model);

        let mut again = Model::load(b, folder, &options).unwrap();
        peft::load(b, &mut again, dir.path()).unwrap();
        assert_eq!(pass(b, &mut again).loss, adapted.loss);

        let options = LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) };
        let mut merged = Model::load(b, folder, &options).unwrap();
        let part = |module: &str, side| format!("base_model.model.{module}.lora_{side}.weight");
        let layers = model.linears().map(|l| (l.name.clone(), (l.O, l.C)));
        let sizes: BTreeMap<String, (usize, usize)> = layers.collect();
        for (module, (O, C)) in &sizes {
            let (a, bb) = (floats(&file, &part(module, "A")), floats(&file, &part(module, "B")));
            assert_eq!((a.len(), bb.len()), (3 * C, O * 3), "{module}");
            let delta = turned(product(&bb, &a, (*O, 3, *C), 2.0), *O);
            let weight = merged.params_mut().find(|p| p.name == format!("{module}.weight")).unwrap();
            let sum: Vec<f32> = weight.get(b).unwrap().iter().zip(delta).map(|(w, d)| w + d).collect();
            weight.set(b, &sum).unwrap();
        }
        let dense = pass(b, &mut merged);
        assert!((dense.loss - adapted.loss).abs() <= 1e-6 * dense.loss, "{} {}", dense.loss, adapted.loss);
        for (module, (O, C)) in sizes {
            let (a, bb) = (floats(&file, &part(&module, "A")), floats(&file, &part(&module, "B")));
            let dW = &turned(dense.gradients[&format!("{module}.weight")].clone(), C);
            let want_b = product(dW, &transposed(&a, 3), (O, C, 3), 2.0);
            let want_a = product(&transposed(&bb, O), dW, (3, O, C), 2.0);
            for (side, want) in [("A", want_a), ("B", want_b)] {
                let err = nmse(&adapted.gradients[&part(&module, side)], &want);
                assert!(err <= 1e-9, "{} {module} {side}: {err:e}", b.name());
            }
        }
    }
}

/// The files of older transformers: GPT-2 without the prefix of the part below the head, both with masks as tensors.
#[test]
fn older_files_are_the_same_model() {
    use luthier::io::safetensors::{Dtype, Outline, Writer};
    let b: &dyn Backend = &Cpu::new();
    for (model, prefix, masks) in [
        ("gpt2", "transformer.", ["h.0.attn.bias", "h.1.attn.masked_bias"]),
        ("gpt_neox", "", ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"]),
    ] {
        let (folder, dir) = (Path::new("tests/golden").join(model), tempfile::tempdir().unwrap());
        let file = open(&folder.join("model.safetensors"));
        let short = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_string();
        let weight = |name: &str| Outline {
            name: short(name),
            dtype: Dtype::F32,
            shape: file.get(name).unwrap().shape.to_vec(),
        };
        let mask = |name: &str| Outline { name: name.into(), dtype: Dtype::F32, shape: vec![1, 1, 2, 2] };
        let outlines = file.names().map(weight).chain(masks.map(mask)).collect();
        let mut writer = Writer::create(&dir.path().join("model.safetensors"), outlines).unwrap();
        file.names().for_each(|name| writer.write(file.get(name).unwrap().bytes).unwrap());
        masks.iter().for_each(|_| writer.write(&[0; 16]).unwrap());
        writer.finish().unwrap();
        std::fs::copy(folder.join("config.json"), dir.path().join("config.json")).unwrap();
        let loss = |folder: &Path| {
            let options = LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) };
            pass(b, &mut Model::load(b, folder, &options).unwrap_or_else(|e| panic!("{e}"))).loss
        };
        assert_eq!(loss(dir.path()), loss(&folder), "{model}");
    }
}

/// Positions are learned up to a length, and beyond it there are none.
#[test]
fn learned_positions_end() {
    let b: &dyn Backend = &Cpu::new();
    let model = frozen(b, Path::new("tests/golden/gpt2"));
    let mut session = Session::new(b, &model, 65, 65, Plan::Inference).unwrap();
    let e = session.forward(&model, &Tokens::single(&[1; 65])).unwrap_err().to_string();
    assert!(e.contains("position 64") && e.contains("64 positions"), "{e}");
    let sampling = Sampling { max_new_tokens: 20, ..Sampling::default() };
    assert_eq!(generate(b, &model, &[1; 60], &sampling, &[], |_| true).unwrap().len(), 4);
}
