//! `compute = "fp8"`: what adapters learn over weights in e4m3 is what they learn over the weights themselves, but for rounding.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::dtype::DType;
use luthier::export::bnb::Format;
use luthier::export::init;
use luthier::model::linear::Weight;
use luthier::model::lora::LoraConfig;
use luthier::model::{Compute, LoadOptions, Model, Place, Places, Plan, Session, Tokens};
use luthier::rng::Rng;
use luthier::train::optim::{Hyper, Optimizer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::{backends, mean_loss, nmse};

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod support;

/// Sizes in sixteens; every token goes to every expert, for who is chosen may change with the rounding.
fn sizes(model_type: &str) -> Value {
    json!({ "model_type": model_type, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "initializer_range": 0.1,
        "num_local_experts": 4, "num_experts_per_tok": 4 })
}

fn made(dir: &Path, config: &Value, format: Option<Format>) -> PathBuf {
    let (file, out) = (dir.join("config.json"), dir.join("model"));
    std::fs::write(&file, config.to_string()).unwrap();
    init::init(&file, &out, DType::F32, format, 5).unwrap();
    out
}

fn options(compute: Compute, dtype: DType) -> LoadOptions {
    let lora = Some(LoraConfig { r: 8, ..LoraConfig::default() });
    LoadOptions { train: true, lora, seed: 3, compute, ..LoadOptions::frozen(dtype) }
}

/// With adapters that are not zero.
fn load(b: &dyn Backend, folder: &Path, options: &LoadOptions) -> Model {
    let mut model = Model::load(b, folder, options).unwrap();
    for (i, param) in model.params_mut().filter(|p| p.name.contains("lora_B")).enumerate() {
        let mut rng = Rng::stream(11, i as u64);
        let values: Vec<f32> = (0..param.elements()).map(|_| 0.1 * rng.normal()).collect();
        param.set(b, &values).unwrap();
    }
    model
}

/// More than few tokens, whose products go other ways.
const N: usize = 2 * T;
const T: usize = 36;

/// Two sequences in which a token tells the next.
fn batch(step: u64) -> (Tokens, Vec<u32>) {
    let starts = [step * 7 % 96, step * 13 % 96];
    let ids: Vec<u32> = starts.iter().flat_map(|s| (0..T as u64).map(move |t| ((s + t * 5) % 96) as u32)).collect();
    let label = |n: usize| if (n + 1).is_multiple_of(T) { u32::MAX } else { ids[n + 1] };
    let labels = (0..N).map(label).collect();
    let positions = (0..N).map(|n| (n % T) as u32).collect();
    (Tokens { positions, cu_seqlens: vec![0, T as u32, N as u32], ids }, labels)
}

/// Log-probabilities and the gradients of the adapters.
fn gradients(b: &dyn Backend, folder: &Path, options: &LoadOptions) -> Vec<(String, Vec<f32>)> {
    let mut model = load(b, folder, options);
    let (tokens, labels) = batch(1);
    let mut session = Session::new(b, &model, N, N, Plan::Keep).unwrap();
    session.forward(&model, &tokens).unwrap();
    session.backward(&mut model, &labels, &mean_loss(&[], &labels).1).unwrap();
    let mut all = vec![("logp".to_string(), session.backward_logprobs().unwrap())];
    all.extend(model.trained().map(|p| (p.name.clone(), p.grad(b).unwrap())));
    all
}

/// Each module alone, in one matrix, without gates, and beside experts. A rounding to 3 bits of mantissa is 0.026 of a value, root
/// mean square; both sides of a product have one, and a gradient goes through two dozen of them.
#[test]
fn gradients_are_those_of_the_weights_but_for_rounding() {
    for model_type in ["llama", "phi3", "gpt_neox", "mixtral"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = made(dir.path(), &sizes(model_type), None);
        let want = gradients(&Cpu::new(), &folder, &options(Compute::Dtype, DType::F32));
        let cpu = gradients(&Cpu::new(), &folder, &options(Compute::Fp8, DType::F32));
        for b in backends() {
            let got = gradients(&*b, &folder, &options(Compute::Fp8, DType::F32));
            let mut worst = 0f64;
            for (((name, got), (_, want)), (_, cpu)) in got.iter().zip(&want).zip(&cpu) {
                let error = nmse(got, want);
                worst = worst.max(error);
                assert!(error <= 0.1, "{model_type} on {}: {name} {error:e}", b.name());
                assert!(error > 1e-9 || name.contains("experts"), "{model_type} on {}: {name} is exact", b.name());
                // what a sum in another order rounds to is another code, if rarely, and that goes on
                let error = nmse(got, cpu);
                assert!(error <= 2e-2, "{model_type} on {}: {name} {error:e} from the cpu's", b.name());
            }
            println!("{model_type} on {}: at most {worst:.1e}", b.name());
        }
    }
}

/// Losses of steps of AdamW.
fn losses(b: &dyn Backend, folder: &Path, options: &LoadOptions) -> Vec<f64> {
    let mut model = Model::load(b, folder, options).unwrap();
    let mut optimizer = Optimizer::new(b, &mut model, Hyper::default()).unwrap();
    let mut session = Session::new(b, &model, N, N, Plan::Recompute).unwrap();
    let mut step = |i| {
        let (tokens, labels) = batch(i);
        session.forward(&model, &tokens).unwrap();
        session.backward(&mut model, &labels, &mean_loss(&[], &labels).1).unwrap();
        let loss = mean_loss(&session.backward_logprobs().unwrap(), &labels).0;
        optimizer.step(b, 5e-3).unwrap();
        loss
    };
    (0..30).map(&mut step).collect()
}

#[test]
fn a_run_learns_as_it_does_in_floats() {
    let dir = tempfile::tempdir().unwrap();
    let folder = made(dir.path(), &sizes("llama"), None);
    for b in backends() {
        let want = losses(&*b, &folder, &options(Compute::Dtype, DType::Bf16));
        let got = losses(&*b, &folder, &options(Compute::Fp8, DType::Bf16));
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let apart = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        let ends = [&want[..5], &want[25..], &got[25..]].map(mean);
        println!("{}: {ends:?}, at most {apart:.3} apart", b.name());
        assert!(ends[1] < 0.7 * ends[0], "{}: {ends:?}", b.name());
        assert!(
            (ends[2] - ends[1]).abs() <= 0.05 * ends[0] && apart <= 0.1 * ends[0],
            "{}: {ends:?} {apart}",
            b.name()
        );
    }
}

/// A packed base is unpacked into it, while it loads.
#[test]
fn any_base_goes_into_it() {
    for format in [None, Some(Format::Nf4), Some(Format::Int8)] {
        let dir = tempfile::tempdir().unwrap();
        let folder = made(dir.path(), &sizes("llama"), format);
        for b in backends() {
            let before = b.memory().used;
            let packed = Model::load(&*b, &folder, &options(Compute::Fp8, DType::F32)).unwrap();
            let used = b.memory().used - before;
            let own = Model::load(&*b, &folder, &options(Compute::Dtype, DType::F32)).unwrap();
            if format.is_none() {
                assert!(used < b.memory().used - before - used, "{}: memory is spared", b.name());
            }
            for (linear, own) in packed.linears().zip(own.linears()) {
                assert!(matches!(linear.weight, Weight::Fp8(_)), "{}", linear.name);
                let values = |linear: &luthier::model::linear::Linear| {
                    let mut out = b.alloc(linear.O * linear.C, DType::F32).unwrap();
                    linear.dequantize(&*b, &mut out).unwrap();
                    b.download_f32(&out).unwrap()
                };
                let error = nmse(&values(linear), &values(own));
                assert!(error > 1e-6 && error <= 1.5e-3, "{} on {}: {error:e}", linear.name, b.name());
            }
        }
    }
}

#[test]
fn where_the_weights_wait_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = made(dir.path(), &sizes("llama"), None);
    for b in backends() {
        let here = options(Compute::Fp8, DType::Bf16);
        let away = LoadOptions { places: Places { blocks: Place::Host, embed: Place::Device }, ..here.clone() };
        assert!(gradients(&*b, &folder, &here) == gradients(&*b, &folder, &away), "{}", b.name());
    }
}

/// Odd layers stay as they are, and where all are odd that is said.
#[test]
fn sizes_in_sixteens() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = sizes("llama");
    config["intermediate_size"] = 152.into();
    let folder = made(dir.path(), &config, None);
    let b = Cpu::new();
    let model = Model::load(&b, &folder, &options(Compute::Fp8, DType::Bf16)).unwrap();
    let dense: Vec<&str> = model.linears().filter(|l| l.fp8().is_none()).map(|l| &*l.name).collect();
    assert_eq!(dense.len(), 9, "{dense:?}");
    assert!(dense.iter().all(|name| name.contains(".mlp.")), "{dense:?}");
    assert!(
        gradients(&b, &folder, &options(Compute::Fp8, DType::Bf16)).iter().flat_map(|g| &g.1).all(|x| x.is_finite())
    );
}

#[test]
fn what_it_cannot_do_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let folder = made(dir.path(), &sizes("llama"), None);
    let fp8 = options(Compute::Fp8, DType::Bf16);
    let dora = Some(LoraConfig { use_dora: true, ..LoraConfig::default() });
    let cases = [
        (LoadOptions { lora: None, ..fp8.clone() }, "add a [lora] table"),
        (LoadOptions { load_in_4bit: true, ..fp8.clone() }, "take out load_in_4bit"),
        (LoadOptions { lora: dora, ..fp8.clone() }, "use_dora exclude each other"),
    ];
    for (options, wanted) in cases {
        let e = Model::load(&Cpu::new(), &folder, &options).err().expect("refused").to_string();
        assert!(e.contains(wanted), "{e}");
    }
    let odd = tempfile::tempdir().unwrap();
    let mut config = sizes("llama");
    config["hidden_size"] = 56.into();
    let folder = made(odd.path(), &config, None);
    let e = Model::load(&Cpu::new(), &folder, &fp8).err().expect("refused").to_string();
    assert!(e.contains("multiples of 16, and there is none"), "{e}");
}
