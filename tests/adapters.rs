//! Adapters that PEFT made (`tests/golden/make_adapters.py`): what they compute, what is trained, and the way back.
//!
//! `LUTHIER_ADAPTERS=DIR` takes other goldens. `LUTHIER_TRAINED=DIR` keeps the trained adapters for `make_adapters.py check`.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::Backend;
use luthier::dtype::DType;
use luthier::error::Error;
use luthier::export::peft;
use luthier::io::safetensors::{Dtype, Outline, Writer};
use luthier::model::lora::{LoraConfig, Targets};
use luthier::model::{LoadOptions, Model, Plan, Session, arch};
use luthier::train::optim::{Hyper, Optimizer, Rates};
use std::path::{Path, PathBuf};
#[path = "support/full.rs"]
mod full;
mod support;
use support::*;

/// Of dropout, as in make_adapters.py.
const SEED: u32 = 1234;
const LOGITS: f64 = 1e-4;
const LOSS: f64 = 1e-5;
const GRADIENT: f64 = 1e-9;

/// What a parameter is called in a file, from what PEFT calls it while it is trained.
fn file_name(live: &str) -> String {
    let name = live.replace(".modules_to_save.default", "").replace(".default", "");
    name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
}

fn check(what: &str, err: f64, tol: f64) -> Result<(), Error> {
    if err <= tol { Ok(()) } else { Err(Error::Bug(format!("{what} differs by {err:.1e}, at most {tol:.0e}"))) }
}

fn load(b: &dyn Backend, base: &Path, adapter: &Path, train: bool) -> Result<Model, Error> {
    let lora = Some(peft::read_config(adapter)?);
    let vocab = peft::vocab(adapter, &arch::read_spec(&base.join("model"))?)?;
    let options = LoadOptions { train, lora, vocab, ..LoadOptions::frozen(DType::F32) };
    let mut model = Model::load(b, &base.join("model"), &options)?;
    peft::load(b, &mut model, adapter)?;
    Ok(model)
}

fn logits(b: &dyn Backend, model: &Model, golden: &Path) -> Result<Vec<f32>, Error> {
    let (tokens, _) = packed(&open(golden), "input_ids", "labels");
    let N = tokens.ids.len();
    let mut session = Session::new(b, model, N, N, Plan::Inference)?;
    session.forward(model, &tokens)?;
    session.logits(model, 0, N)
}

fn adam() -> Hyper {
    Hyper { max_grad_norm: 0.0, ..Hyper::default() }
}

/// The adapter as it came, three steps of training, and the result saved and loaded again.
fn run(b: &dyn Backend, base: &Path, kind: &str, out: &Path) -> Result<(), Error> {
    let file = base.join(kind).join("golden.safetensors");
    let golden = open(&file);
    let mut model = load(b, base, &base.join(kind), true)?;
    let counts = golden.get("params")?.to_i64().expect("counts");
    assert_eq!([model.trainable_parameters() as i64, model.all_parameters() as i64], counts[..], "{kind}");
    let parts: usize = model.trainable_parts().iter().map(|(_, count)| count).sum();
    assert_eq!(parts, model.trainable_parameters(), "{kind}");

    let (tokens, labels) = packed(&golden, "input_ids", "labels");
    let N = tokens.ids.len();
    let mut optimizer = Optimizer::new(b, &mut model, adam())?;
    let mut session = Session::new(b, &model, N, N, Plan::Keep)?;
    session.set_dropout(Some(SEED));
    for step in 0..3 {
        session.forward(&model, &tokens)?;
        if step == 0 {
            check("logits", max_abs(&session.logits(&model, 0, N)?, &floats(&golden, "logits")), LOGITS)?;
        }
        session.backward(&mut model, &labels, &mean_loss(&[], &labels).1)?;
        if step == 0 {
            let loss = mean_loss(&session.backward_logprobs()?, &labels).0;
            check("loss", (loss - floats(&golden, "loss")[0] as f64).abs(), LOSS)?;
            let live: Vec<&str> = golden.names().filter(|name| name.starts_with("grad.")).collect();
            assert_eq!(model.trained().count(), live.len(), "{kind}: tensors with a gradient");
            for param in model.trained() {
                let own = format!("grad.base_model.model.{}", param.name.trim_start_matches("base_model.model."));
                let name = live.iter().find(|name| file_name(name) == own).unwrap_or_else(|| panic!("{own}: {live:?}"));
                check(&param.name, nmse(&param.grad(b)?, &floats(&golden, name)), GRADIENT)?;
            }
        }
        optimizer.step(b, 1e-2)?;
    }

    let ours = logits(b, &model, &file)?;
    if !(max_abs(&ours, &floats(&golden, "logits")) > 1e-3) {
        return Err(Error::Bug("training moved nothing".into()));
    }
    peft::save(b, &model, "model", out)?;
    let shape = vec![ours.len()];
    let mut writer = Writer::create(
        &out.join("logits.safetensors"),
        vec![Outline { name: "logits".into(), dtype: Dtype::F32, shape }],
    )?;
    writer.write(&DType::F32.encode(&ours))?;
    writer.finish()?;
    check("the saved adapter", max_abs(&logits(b, &load(b, base, out, false)?, &file)?, &ours), 1e-6)
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut all: Vec<PathBuf> = all.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    all.sort();
    all
}

#[test]
fn adapters_of_every_kind_go_on_and_come_back() {
    let root = std::env::var_os("LUTHIER_ADAPTERS").map_or_else(|| golden_root().join("adapters"), PathBuf::from);
    let own = tempfile::tempdir().unwrap();
    let out = std::env::var_os("LUTHIER_TRAINED").map_or_else(|| own.path().to_path_buf(), PathBuf::from);
    let (backends, mut failed, mut checked) = (backends(), Vec::new(), 0);
    for base in folders(&root) {
        for folder in folders(&base).iter().filter(|f| f.join("adapter_config.json").exists()) {
            let kind = folder.file_name().unwrap().to_str().unwrap();
            let name = format!("{}/{kind}", base.file_name().unwrap().to_str().unwrap());
            for b in &backends {
                checked += 1;
                std::fs::create_dir_all(out.join(&name)).unwrap();
                match run(&**b, &base, kind, &out.join(&name)) {
                    Ok(()) => println!("{name} {} ok", b.name()),
                    Err(e) => failed.push(format!("{name} {}: {e}", b.name())),
                }
            }
        }
    }
    assert!(checked > 0, "no adapters in {}", root.display());
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A copy of a golden adapter with one line of its config replaced; what reading it says.
fn changed(key: &str, value: &str) -> Result<luthier::model::lora::LoraConfig, Error> {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string("tests/golden/adapters/llama/layers/adapter_config.json").unwrap();
    let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    json.insert(key.into(), serde_json::from_str(value).unwrap());
    std::fs::write(dir.path().join("adapter_config.json"), serde_json::to_vec(&json).unwrap()).unwrap();
    peft::read_config(dir.path())
}

#[test]
fn other_kinds_of_adapters_are_named() {
    for (key, value) in [
        ("peft_type", "\"LOHA\""),
        ("bias", "\"lora_only\""),
        ("lora_bias", "true"),
        ("init_lora_weights", "\"pissa_niter_4\""),
        ("target_parameters", "[\"experts.gate_up_proj\"]"),
        ("layer_replication", "[[0, 2], [1, 3]]"),
        ("r", "0"),
        ("rank_pattern", "{\"q_proj\": 100000}"),
        ("rank_pattern", "{\"(\": 4}"),
        ("target_modules", "\"[\""),
    ] {
        let e = changed(key, value).unwrap_err();
        assert_eq!(e.exit_code(), 65, "{e}");
        assert!(e.to_string().contains(&format!("adapter_config.json: {key}: ")), "{key} {value}: {e}");
    }
    // PEFT corrects fan_in_fan_out to what the base's layers are
    let harmless =
        [("init_lora_weights", "\"gaussian\""), ("bias", "null"), ("use_dora", "null"), ("fan_in_fan_out", "true")];
    for (key, value) in harmless.into_iter().chain([("new", "{}")]) {
        changed(key, value).unwrap_or_else(|e| panic!("{key} {value}: {e}"));
    }
    assert_eq!(changed("layers_to_transform", "2").unwrap().layers_to_transform, [2]);
}

/// A tiny model with a new adapter, and a batch for it.
fn fresh(b: &dyn Backend, options: LoadOptions) -> (Model, Session<'_>, luthier::model::Tokens, Vec<u32>) {
    let base = Path::new("tests/golden/adapters/llama");
    let model = Model::load(b, &base.join("model"), &options).unwrap();
    let (tokens, labels) = packed(&open(&base.join("dora/golden.safetensors")), "input_ids", "labels");
    let N = tokens.ids.len();
    let session = Session::new(b, &model, N, N, Plan::Recompute).unwrap();
    (model, session, tokens, labels)
}

fn all_linear(use_dora: bool, lora_dropout: f64) -> LoadOptions {
    let lora = Some(LoraConfig { r: 3, use_dora, lora_dropout, ..LoraConfig::default() });
    LoadOptions { train: true, lora, ..LoadOptions::frozen(DType::F32) }
}

/// Magnitudes that are the weights' own norms change nothing, whatever the base is stored as; then they learn.
#[test]
fn dora_starts_at_the_base_and_learns() {
    let plain = LoadOptions { lora: None, train: false, ..all_linear(false, 0.0) };
    let four = LoadOptions { load_in_4bit: true, ..plain.clone() };
    let eight = LoadOptions { load_in_8bit: true, ..plain.clone() };
    let half = LoadOptions { dtype: DType::Bf16, ..plain.clone() };
    for b in backends() {
        // bf16 rounds a scaled output once more
        for (options, tol) in [(&plain, 1e-5), (&four, 1e-5), (&eight, 1e-5), (&half, 0.1)] {
            let (model, mut session, tokens, _) = fresh(&*b, options.clone());
            session.forward(&model, &tokens).unwrap();
            let want = session.logits(&model, 0, tokens.ids.len()).unwrap();

            let LoadOptions { lora, train, .. } = all_linear(true, 0.0);
            let (mut model, mut session, tokens, labels) = fresh(&*b, LoadOptions { lora, train, ..options.clone() });
            let mut optimizer = Optimizer::new(&*b, &mut model, adam()).unwrap();
            let mut losses = Vec::new();
            for step in 0..12 {
                session.forward(&model, &tokens).unwrap();
                if step == 0 {
                    let err = max_abs(&session.logits(&model, 0, tokens.ids.len()).unwrap(), &want);
                    assert!(err <= tol, "{} {options:?}: {err}", b.name());
                }
                session.backward(&mut model, &labels, &mean_loss(&[], &labels).1).unwrap();
                losses.push(mean_loss(&session.backward_logprobs().unwrap(), &labels).0);
                optimizer.step(&*b, 2e-2).unwrap();
            }
            assert!(losses[11] < losses[0] - 0.5, "{} {options:?}: {losses:?}", b.name());
            let moved = model.trained().filter(|p| p.name.ends_with("lora_magnitude_vector"));
            assert_eq!(moved.count(), 21);
        }
    }
}

/// Under one seed dropout is a fixed function: along its gradient the loss rises by the gradient's square.
#[test]
fn dropout_has_the_gradient_of_its_mask() {
    for b in backends() {
        let (mut model, mut session, tokens, labels) = fresh(&*b, all_linear(false, 0.4));
        for param in model.params_mut().filter(|p| p.name.contains("lora_B")) {
            let values: Vec<f32> = (0..param.elements()).map(|i| ((i * 37 % 23) as f32 - 11.0) * 0.02).collect();
            param.set(&*b, &values).unwrap();
        }
        let mut loss = |model: &Model, seed| {
            session.set_dropout(seed);
            session.forward(model, &tokens).unwrap();
            mean_loss(&session.logprobs(model, &labels).unwrap(), &labels).0
        };
        let (one, again, two, none) =
            (loss(&model, Some(1)), loss(&model, Some(1)), loss(&model, Some(2)), loss(&model, None));
        assert!(one == again && one != two && one != none && two != none, "{one} {again} {two} {none}");

        session.set_dropout(Some(1));
        session.forward(&model, &tokens).unwrap();
        session.backward(&mut model, &labels, &mean_loss(&[], &labels).1).unwrap();
        let grads: Vec<Vec<f32>> = model.trained().map(|p| p.grad(&*b).unwrap()).collect();
        let square: f64 = grads.iter().flatten().map(|g| (*g as f64).powi(2)).sum();
        let h = 1e-3 / square.sqrt();
        let mut at = |h: f64| {
            let trained = model.params_mut().filter(|p| p.train.is_some());
            let start: Vec<Vec<f32>> = trained.map(|p| p.get(&*b).unwrap()).collect();
            let put = |model: &mut Model, h: f64| {
                let trained = model.params_mut().filter(|p| p.train.is_some());
                for (param, (w, g)) in trained.zip(start.iter().zip(&grads)) {
                    let moved: Vec<f32> = w.iter().zip(g).map(|(w, g)| w + h as f32 * g).collect();
                    param.set(&*b, &moved).unwrap();
                }
            };
            put(&mut model, h);
            session.forward(&model, &tokens).unwrap();
            let loss = mean_loss(&session.logprobs(&model, &labels).unwrap(), &labels).0;
            put(&mut model, 0.0);
            loss
        };
        let slope = (at(h) - at(-h)) / (2.0 * h);
        assert!((slope / square - 1.0).abs() < 0.02, "{}: {slope} for {square}", b.name());
    }
}

#[test]
fn what_cannot_be_trained_is_said() {
    let b: &dyn Backend = &luthier::backend::cpu::Cpu::new();
    let model = Path::new("tests/golden/adapters/llama/model");
    let says = |lora: LoraConfig| {
        let options = LoadOptions { lora: Some(lora), ..all_linear(false, 0.0) };
        let e = Model::load(b, model, &options).err().expect("an error");
        assert_eq!(e.exit_code(), 65, "{e}");
        e.to_string()
    };
    let base = LoraConfig::default();
    assert!(says(LoraConfig { lora_dropout: 1.0, ..base.clone() }).contains("lora.lora_dropout: must be at least 0"));
    assert!(
        says(LoraConfig { modules_to_save: vec!["nrm".into()], ..base.clone() }).contains("no module is called `nrm`")
    );
    assert!(says(LoraConfig { target_modules: Targets::Word("q_proj".into()), ..base }).contains("matches no linear"));
}

/// The first step of AdamW moves each value by its learning rate, whatever the gradient.
#[test]
fn embeddings_and_head_have_a_learning_rate_of_their_own() {
    let b: &dyn Backend = &luthier::backend::cpu::Cpu::new();
    let base = Path::new("tests/golden/adapters/llama");
    let mut model = load(b, base, &base.join("dora_save"), true).unwrap();
    let (tokens, labels) = packed(&open(&base.join("dora_save/golden.safetensors")), "input_ids", "labels");
    let mut session = Session::new(b, &model, tokens.ids.len(), tokens.ids.len(), Plan::Keep).unwrap();
    let rates = Rates { embedding: Some(0.25), ..Rates::default() };
    let mut optimizer = Optimizer::new(b, &mut model, Hyper { rates, ..adam() }).unwrap();
    let before: Vec<Vec<f32>> = model.trained().map(|p| p.get(b).unwrap()).collect();
    session.forward(&model, &tokens).unwrap();
    session.backward(&mut model, &labels, &mean_loss(&[], &labels).1).unwrap();
    optimizer.step(b, 1e-2).unwrap();
    let mut seen = 0;
    for (param, before) in model.trained().zip(before) {
        let step = max_abs(&param.get(b).unwrap(), &before);
        let own = ["model.embed_tokens.weight", "lm_head.weight"].contains(&param.name.as_str());
        let want = if own { 2.5e-3 } else { 1e-2 };
        assert!((step - want).abs() < 1e-4 * want + 1e-6, "{}: {step}, wanted {want}", param.name);
        seen += usize::from(own);
    }
    assert_eq!(seen, 2);
}

/// A device that is full at any moment of it: the adapter is not there, nothing of it is left, and the model is what it was.
#[test]
fn an_adapter_that_does_not_fit_leaves_nothing() {
    let cpu = luthier::backend::cpu::Cpu::new();
    let config = LoraConfig { r: 4, ..LoraConfig::default() };
    let saved = vec!["embed_tokens".to_string(), "norm".to_string()];
    let dora = LoraConfig { use_dora: true, modules_to_save: saved, ..config.clone() };
    for (golden, config) in [("llama_tied_bias", dora), ("mixtral", config)] {
        let (base, dir) = (golden_root().join(golden), tempfile::tempdir().unwrap());
        let options = LoadOptions { lora: Some(config), ..LoadOptions::frozen(DType::F32) };
        let made = Model::load(&cpu, &base, &options).unwrap();
        peft::save(&cpu, &made, "base", dir.path()).unwrap();
        let mut model = Model::load(&cpu, &base, &LoadOptions::frozen(DType::F32)).unwrap();
        let before = cpu.memory().used;
        let weights = |model: &Model| -> Vec<Vec<f32>> { model.params().map(|p| p.get(&cpu).unwrap()).collect() };
        let was = weights(&model);
        let full = full::Full { inner: &cpu, room: Default::default() };
        let mut failed = 0;
        loop {
            full.room.set(failed);
            match peft::detached(&full, &mut model, &base, dir.path()) {
                Ok(adapter) => {
                    assert!(cpu.memory().used > before);
                    adapter.free(&cpu);
                    break;
                }
                Err(e) => assert_eq!(e.exit_code(), 69, "{e}"),
            }
            assert_eq!(cpu.memory().used, before, "{golden}, full after {failed}");
            failed += 1;
        }
        assert_eq!(cpu.memory().used, before);
        assert!(failed > 20 && model.lora.is_none() && weights(&model) == was, "{golden}: {failed}");
    }
}
