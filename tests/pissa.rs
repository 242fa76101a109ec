//! PiSSA: an adapter that starts as the principal part of its weights, and what is saved of it.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::Backend;
use luthier::dtype::DType;
use luthier::export::peft;
use luthier::model::lora::{Init, LoraConfig, Patterns, Targets};
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
use std::path::Path;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

const N: usize = 24;

fn logits(b: &dyn Backend, model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..N as u32).map(|n| (n * 37 + 5) % 90).collect();
    let mut session = Session::new(b, model, N, N, Plan::Inference).unwrap();
    session.forward(model, &Tokens::single(&ids)).unwrap();
    session.logits(model, 0, N).unwrap()
}

fn pissa() -> LoraConfig {
    LoraConfig { r: 4, lora_alpha: 12.0, init: Init::Pissa { niter: None }, ..LoraConfig::default() }
}

fn load(b: &dyn Backend, folder: &Path, lora: Option<LoraConfig>) -> Model {
    let options = LoadOptions { train: lora.is_some(), lora, seed: 3, ..LoadOptions::frozen(DType::F32) };
    Model::load(b, folder, &options).unwrap()
}

/// Moves A and B, each as far as it is long, as training would.
fn moved(b: &dyn Backend, model: &mut Model) {
    let mut rng = luthier::rng::Rng::new(8);
    for param in model.params_mut().filter(|p| p.name.contains(".lora_")) {
        let mut values = param.get(b).unwrap();
        values.iter_mut().for_each(|x| *x += 0.1 * rng.normal());
        param.set(b, &values).unwrap();
    }
}

/// Families with fused and turned weights among them.
const FAMILIES: [&str; 4] = ["llama", "phi3", "gpt2", "gpt_neox"];

#[test]
fn what_is_saved_makes_the_trained_model_of_the_first_base() {
    let ranks = LoraConfig {
        rank_pattern: Patterns(vec![("down_proj".into(), 3)]),
        alpha_pattern: Patterns(vec![("o_proj".into(), 5.0)]),
        ..pissa()
    };
    let stable = LoraConfig { use_rslora: true, ..ranks.clone() };
    for name in FAMILIES {
        let folder = golden_root().join(name);
        for b in backends() {
            let b = &*b;
            let base = logits(b, &load(b, &folder, None));
            for lora in [pissa(), ranks.clone(), stable.clone()] {
                let mut model = load(b, &folder, Some(lora.clone()));
                let start = max_abs(&logits(b, &model), &base);
                let norm = |part: &str| {
                    let of = model.params().filter(|p| p.name.contains(part));
                    of.flat_map(|p| p.get(b).unwrap()).map(|x| (x as f64).powi(2)).sum::<f64>()
                };
                assert!(
                    start <= 1e-4 && norm(".lora_A") > 0.1 && norm(".lora_B") > 0.1,
                    "{name} {}: {start}",
                    b.name()
                );
                moved(b, &mut model);
                let trained = logits(b, &model);
                assert!(max_abs(&trained, &base) > 0.1, "{name}: it moved");

                let dir = tempfile::tempdir().unwrap();
                peft::save(b, &model, "base", dir.path()).unwrap();
                let config = peft::read_config(dir.path()).unwrap();
                assert_eq!((config.r, config.init), (8, Init::Plain));
                let mut again = load(b, &folder, Some(config));
                peft::load(b, &mut again, dir.path()).unwrap();
                let err = max_abs(&logits(b, &again), &trained);
                println!("{name} {}: start {start:.1e}, saved {err:.1e}", b.name());
                assert!(err <= 1e-4, "{name} {}: {err}", b.name());
            }
        }
    }
}

/// What is left of a weight, in 4 bits, and the adapter: nearer to the weight than the weight in 4 bits is, for here the
/// adapter has almost every direction.
#[test]
fn the_rest_of_a_weight_is_quantized() {
    let folder = golden_root().join("llama");
    for b in backends() {
        let b = &*b;
        let base = logits(b, &load(b, &folder, None));
        let with = |lora: LoraConfig| {
            let options =
                LoadOptions { load_in_4bit: true, train: true, lora: Some(lora), ..LoadOptions::frozen(DType::F32) };
            logits(b, &Model::load(b, &folder, &options).unwrap())
        };
        let (plain, most) = (with(LoraConfig::default()), with(LoraConfig { r: 40, lora_alpha: 40.0, ..pissa() }));
        let (far, near) = (nmse(&plain, &base), nmse(&most, &base));
        println!("{}: nmse {far:.1e} in 4 bits, {near:.1e} with PiSSA", b.name());
        assert!(far > 1e-4 && near < far / 10.0, "{}: {far} {near}", b.name());
    }
}

#[test]
fn bases_that_are_stored_quantized_are_refused() {
    let b = &*backends().remove(0);
    let lora = LoraConfig { target_modules: Targets::Word("all-linear".into()), ..pissa() };
    let options = LoadOptions { train: true, lora: Some(lora), ..LoadOptions::frozen(DType::F32) };
    let error = Model::load(b, &golden_root().join("bnb_4bit"), &options).map(|_| ()).unwrap_err();
    assert!(error.exit_code() == 65 && error.to_string().contains("starts from frozen weights in floats"), "{error}");
}
