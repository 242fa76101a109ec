//! Products: every golden model with an adapter, merged or handed out, computes what model and adapter computed.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::dtype::DType;
use luthier::export::compare::{Side, compare};
use luthier::export::gguf::Quant;
use luthier::export::peft;
use luthier::export::product::{self, Input, Product};
use luthier::export::verify::{limit, verify};
use luthier::io::safetensors::Tensors;
use luthier::model::lora::LoraConfig;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens, Weights, arch};
use std::path::{Path, PathBuf};
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

const F32: Option<DType> = Some(DType::F32);

fn cpu() -> Cpu {
    Cpu::new()
}

fn load(b: &dyn Backend, folder: &Path, adapter: Option<&Path>) -> Model {
    let lora = adapter.map(|adapter| peft::read_config(adapter).unwrap());
    let spec = arch::read_spec(folder).unwrap();
    let vocab = adapter.map_or(spec.V, |adapter| peft::vocab(adapter, &spec).unwrap());
    let mut model = Model::load(b, folder, &LoadOptions { lora, vocab, ..LoadOptions::frozen(DType::F32) })
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

/// What was written is what was trained, by the numbers; and something else is not.
#[test]
fn products_prove_themselves() {
    let (b, dir) = (&cpu() as &dyn Backend, tempfile::tempdir().unwrap());
    let model = Path::new("assets/base");
    let at = |what: &str| dir.path().join(what);
    adapter(b, model, LoraConfig { r: 2, lora_alpha: 1.0, ..LoraConfig::default() }, &at("adapter"));
    let input = Input { model, adapter: Some(&at("adapter")), dtype: None, name: None };
    let quant = |name| Product::Gguf(Quant::parse(name).unwrap());
    let products = [
        ("copy", Product::Adapter),
        ("merged", Product::Merged),
        ("nf4", Product::MergedNf4),
        ("q8.gguf", quant("q8_0")),
        ("q4", quant("q4_k_m")),
    ];
    for (name, product) in products {
        let mut found = None;
        product::export(b, product, &input, &at(name), |at| {
            found = Some(verify(b, product, &input, at)?);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = found.unwrap();
        println!("{name}: {found:?}");
        assert!(
            found.tokens > 50 && found.mean_kl <= limit(product, DType::Bf16) && found.top1 > 0.5,
            "{name}: {found:?}"
        );
    }
    // the base alone is not what was trained
    let e = product::export(b, Product::Merged, &Input { adapter: None, ..input }, &at("base"), |at| {
        verify(b, Product::Merged, &input, at).map(|_| ())
    });
    let e = e.unwrap_err();
    assert!(e.exit_code() == 65 && e.to_string().contains("KL divergence"), "{e}");
    assert!(!at("base").exists());
    let side = |model, adapter| Side { model, adapter };
    let texts = [vec![5, 6, 7, 8, 9]];
    let (merged, own) = (at("merged"), at("adapter"));
    let same = compare(b, &side(&merged, None), &side(&merged, None), &texts, DType::F32).unwrap();
    assert!(
        same.mean_kl < 1e-9 && same.max_logit == 0.0 && same.top1 == 1.0 && same.greedy.0 == same.greedy.1,
        "{same:?}"
    );
    let other = compare(b, &side(model, Some(&own)), &side(model, None), &texts, DType::F32).unwrap();
    assert!(other.mean_kl > 1e-4 && other.loss[0] != other.loss[1], "{other:?}");
}

/// PEFT, transformers and llama.cpp on our products, where they are installed; `LUTHIER_PYTHON` names the interpreter.
#[test]
fn other_programs_agree() {
    let python = std::env::var("LUTHIER_PYTHON").unwrap_or_else(|_| "python3".into());
    let run = |args: &[&str]| std::process::Command::new(&python).args(args).env("OMP_NUM_THREADS", "2").output();
    if !run(&["-c", "import torch, transformers, peft, llama_cpp"]).is_ok_and(|done| done.status.success()) {
        println!("NOT CHECKED: {python} has not all of torch, transformers, peft, llama_cpp");
        return;
    }
    let (dir, binary, script) =
        (tempfile::tempdir().unwrap(), env!("CARGO_BIN_EXE_luthier"), "tests/python/export_check.py");
    let at = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_string()
    };
    for args in [
        vec![script, binary, "assets/base", &at("products")],
        vec![script, "archs", binary, "tests/golden", &at("archs")],
    ] {
        let done = run(&args).unwrap();
        let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        println!("{said}");
        assert!(done.status.success(), "{args:?}: {said}\n{errors}");
    }
}

/// The commands: a product with its numbers, nothing written over, and two models compared.
#[test]
fn on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_luthier")).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
    };
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (gguf, text) = (at("base.gguf"), at("text.txt"));
    let export = ["export", "--model", "assets/base", "--format", "gguf", "--quant", "Q8_0", "--out", &gguf];
    let (code, out, err) = run(&export);
    assert!(code == 0 && out.contains("mean KL divergence") && out.contains("base.gguf: "), "{out}{err}");
    let (code, _, err) = run(&export);
    assert!(code == 2 && err.contains("is there already"), "{code} {err}");
    let words: String = (0..400).map(|i| format!("the borrow checker said {i} times that x moved. ")).collect();
    std::fs::write(&text, words).unwrap();
    let compare = ["compare", "assets/base", &gguf, "--data", &text, "--max-tokens", "96", "--backend", "cpu"];
    let (code, out, err) = run(&compare);
    assert!(code == 0 && out.contains("tokens compared           96\n"), "{out}{err}");
    let (code, _, err) = run(&["export", "--model", "assets/base", "--format", "adapter", "--out", &at("a")]);
    assert!(code == 2 && err.contains("--adapter"), "{code} {err}");
}
