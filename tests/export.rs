//! Products: every golden model with an adapter, merged or handed out, computes what model and adapter computed.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::dtype::DType;
use luthier::export::peft;
use luthier::export::product::{self, Input, Product};
use luthier::io::safetensors::Tensors;
use luthier::model::lora::LoraConfig;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens, Weights, arch};
use std::path::{Path, PathBuf};
mod support;
use support::*;

const F32: Option<DType> = Some(DType::F32);

fn cpu() -> Cpu {
    Cpu::new()
}

fn load(b: &dyn Backend, folder: &Path, adapter: Option<&Path>) -> Model {
    let lora = adapter.map(|adapter| peft::read_config(adapter).unwrap());
    let mut model = Model::load(b, folder, &LoadOptions { lora, ..LoadOptions::frozen(DType::F32) })
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    if let Some(adapter) = adapter {
        peft::load(b, &mut model, adapter).unwrap();
    }
    model
}

fn logits(b: &dyn Backend, folder: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let model = load(b, folder, adapter);
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % model.spec.V as u32).collect();
    let N = ids.len();
    let mut session = Session::new(b, &model, N, N, Plan::Inference).unwrap();
    session.forward(&model, &Tokens::single(&ids)).unwrap();
    session.logits(&model, 0, N).unwrap()
}

/// An adapter on everything linear whose every value counts.
fn adapter(b: &dyn Backend, folder: &Path, config: LoraConfig, out: &Path) {
    let options = LoadOptions { lora: Some(config), ..LoadOptions::frozen(DType::F32) };
    let mut model = Model::load(b, folder, &options).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for param in model.params_mut().filter(|p| p.name.contains("lora_B")) {
        let values: Vec<f32> = (0..param.elements()).map(|i| ((i * 37 % 23) as f32 - 11.0) * 0.01).collect();
        param.set(b, &values).unwrap();
    }
    std::fs::create_dir_all(out).unwrap();
    peft::save(b, &model, "base", out).unwrap();
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut all: Vec<PathBuf> = all.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    all.sort();
    all
}

/// Those of the goldens that are models, quantized ones and GGUF files among them.
fn models() -> Vec<PathBuf> {
    let weights = |f: &PathBuf| f.join("config.json").exists() && f.join("model.safetensors").exists();
    let mut all: Vec<PathBuf> = folders(&golden_root()).into_iter().filter(weights).collect();
    all.extend(["packed", "packed_mixtral", "llama"].map(|name| golden_root().join(format!("gguf/{name}.gguf"))));
    all
}

fn merge(b: &dyn Backend, product: Product, model: &Path, adapter: &Path, dtype: Option<DType>, out: &Path) {
    let input = Input { model, adapter: Some(adapter), dtype, name: None };
    product::export(b, product, &input, out, |_| Ok(())).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
}

#[test]
fn merged_models_of_every_kind_compute_what_model_and_adapter_did() {
    let (b, dir) = (&cpu() as &dyn Backend, tempfile::tempdir().unwrap());
    for (i, model) in models().iter().enumerate() {
        for use_dora in [false, true] {
            let has_experts = arch::read_spec(model).unwrap().moe.is_some();
            if use_dora && has_experts {
                continue;
            }
            let at = |what: &str| dir.path().join(format!("{i}{use_dora}{what}"));
            let config =
                LoraConfig { use_dora, use_rslora: i % 2 == 1, r: 5, lora_alpha: 7.0, ..LoraConfig::default() };
            adapter(b, model, config, &at("adapter"));
            merge(b, Product::Merged, model, &at("adapter"), F32, &at("merged"));
            let (plain, want) = (logits(b, model, None), logits(b, model, Some(&at("adapter"))));
            let err = max_abs(&logits(b, &at("merged"), None), &want);
            let name = model.display();
            println!("{name} dora {use_dora}: {err:.1e}");
            assert!(err <= 2e-4, "{name} dora {use_dora}: {err}");
            assert!(max_abs(&plain, &want) > 1e-2, "{name}: the adapter does nothing");
        }
    }
}

#[test]
fn adapters_of_peft_merge_and_are_handed_out() {
    let (b, dir) = (&cpu() as &dyn Backend, tempfile::tempdir().unwrap());
    let mut count = 0;
    for base in folders(&golden_root().join("adapters")) {
        let model = base.join("model");
        for kind in folders(&base).iter().filter(|f| f.join("adapter_config.json").exists()) {
            let at = |what: &str| dir.path().join(format!("{count}{what}"));
            let want = logits(b, &model, Some(kind));
            merge(b, Product::Merged, &model, kind, F32, &at("merged"));
            let err = max_abs(&logits(b, &at("merged"), None), &want);
            assert!(err <= 2e-4, "{}: {err}", kind.display());
            merge(b, Product::Adapter, &model, kind, None, &at("adapter"));
            assert_eq!(logits(b, &model, Some(&at("adapter"))), want);
            count += 1;
        }
    }
    assert!(count > 10);
}

/// A copy of embedding or head of the adapter's own unties the two.
#[test]
fn tied_embeddings_part_where_the_adapter_has_its_own() {
    let (b, dir) = (&cpu() as &dyn Backend, tempfile::tempdir().unwrap());
    let base = golden_root().join("adapters/tied");
    for kind in ["save_both", "save_embed"] {
        let out = dir.path().join(kind);
        merge(b, Product::Merged, &base.join("model"), &base.join(kind), F32, &out);
        assert_eq!(arch::read_config(&out).unwrap()["tie_word_embeddings"], false, "{kind}");
        assert!(Tensors::open_folder(&out, "model").unwrap().contains("lm_head.weight"), "{kind}");
    }
}

/// What no adapter touches keeps its bytes; what one does is rounded once to the base's 16 bits.
#[test]
fn a_merge_rounds_once_to_the_bases_own_type() {
    let (b, dir) = (&cpu() as &dyn Backend, tempfile::tempdir().unwrap());
    let model = Path::new("assets/base");
    let at = |what: &str| dir.path().join(what);
    let only_q = luthier::model::lora::Targets::Names(vec!["q_proj".into()]);
    adapter(b, model, LoraConfig { target_modules: only_q, ..LoraConfig::default() }, &at("adapter"));
    merge(b, Product::Merged, model, &at("adapter"), None, &at("own"));
    merge(b, Product::Merged, model, &at("adapter"), F32, &at("exact"));
    let spec = arch::read_spec(model).unwrap();
    let open = |folder: &Path| Tensors::open_folder(folder, "model").unwrap();
    let (base, own, exact) = (open(model), open(&at("own")), open(&at("exact")));
    for weight in spec.weights() {
        let [base, own, exact] = [&base, &own, &exact].map(|t| t.floats(&weight.name, &weight.shape).unwrap());
        let dtype = base.float().unwrap();
        assert!(own.float() == Some(dtype) && dtype.size() == 2, "{}: {:?}", weight.name, own.dtype);
        match weight.name.contains("q_proj") {
            true => assert!(own.bytes == dtype.encode(&exact.to_f32().unwrap()) && own.bytes != base.bytes),
            false => assert!(own.bytes == base.bytes, "{}", weight.name),
        }
    }
    assert!(["tokenizer.json", "config.json"].iter().all(|file| at("own").join(file).exists()));
}

#[test]
fn merged_and_quantized_again() {
    let (b, dir) = (&cpu() as &dyn Backend, tempfile::tempdir().unwrap());
    for (i, name) in ["llama", "bnb_4bit", "qwen3_moe"].iter().enumerate() {
        let model = golden_root().join(name);
        let at = |what: &str| dir.path().join(format!("{i}{what}"));
        adapter(b, &model, LoraConfig::default(), &at("adapter"));
        merge(b, Product::MergedNf4, &model, &at("adapter"), F32, &at("nf4"));
        merge(b, Product::Merged, &model, &at("adapter"), F32, &at("merged"));
        // the values of the one are those of the other through NF4
        let spec = arch::read_spec(&at("nf4")).unwrap();
        let (small, whole) =
            (Weights::open(&at("nf4"), Some(&spec)).unwrap(), Weights::open(&at("merged"), Some(&spec)).unwrap());
        let mut quantized = 0;
        for weight in spec.weights() {
            let [small, whole] = [&small, &whole].map(|w| w.find(&weight.name, &weight.shape).unwrap());
            quantized += usize::from(small.scheme().is_some());
            let (err, limit) =
                (nmse(&small.to_f32(), &whole.to_f32()), if small.scheme().is_some() { 0.02 } else { 0.0 });
            assert!(err <= limit, "{name} {}: {err}", weight.name);
        }
        assert!(quantized > 0, "{name}");
        logits(b, &at("nf4"), None);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let (b, dir) = (&cpu() as &dyn Backend, tempfile::tempdir().unwrap());
    let (llama, out) = (golden_root().join("adapters/llama"), dir.path().join("out"));
    let fails = |model: &Path, adapter: Option<&Path>, product| {
        let input = Input { model, adapter, dtype: None, name: None };
        let e = product::export(b, product, &input, &out, |_| Ok(())).unwrap_err();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "{e}");
        e
    };
    let e = fails(&golden_root().join("adapters/phi3/model"), Some(&llama.join("dora_save")), Product::Merged);
    assert_eq!(e.exit_code(), 65, "{e}");
    assert_eq!(fails(&llama.join("model"), None, Product::Adapter).exit_code(), 2);
    assert_eq!(fails(&golden_root().join("gpt2"), None, Product::MergedNf4).exit_code(), 2);
}
