//! gpt-oss beside its goldens: experts in MXFP4 under an adapter, what an adapter may name, fresh models, damaged files.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::dtype::DType;
use luthier::error::Result;
use luthier::export::{full, init, peft};
use luthier::io::safetensors::{Dtype, Outline, Writer};
use luthier::model::linear::Weight;
use luthier::model::lora::{LoraConfig, Targets};
use luthier::model::mlp::Mlp;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens, quantized};
use std::collections::BTreeMap;
use std::path::Path;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

const FLOATS: &str = "tests/golden/gpt_oss";
const PACKED: &str = "tests/golden/gpt_oss_mxfp4";

fn lora() -> LoraConfig {
    LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() }
}

fn options(dtype: DType, lora: Option<LoraConfig>) -> LoadOptions {
    LoadOptions { train: true, lora, ..LoadOptions::frozen(dtype) }
}

/// Loss and gradients of 30 packed tokens, the adapter's B set to noise first.
fn pass(b: &dyn Backend, model: &mut Model) -> (f64, BTreeMap<String, Vec<f32>>) {
    let mut rng = luthier::rng::Rng::new(4);
    for param in model.params_mut().filter(|p| p.name.contains(".lora_B.")) {
        let values: Vec<f32> = (0..param.elements()).map(|_| rng.normal() * 0.1).collect();
        param.set(b, &values).unwrap();
    }
    let N = 30;
    let ids: Vec<u32> = (0..N as u32).map(|n| (n * 37 + n * n * 11) % 90).collect();
    let tokens = Tokens { positions: (0..17).chain(0..13).collect(), cu_seqlens: vec![0, 17, N as u32], ids };
    let labels: Vec<u32> = (0..N as u32).map(|n| if n % 7 == 3 { u32::MAX } else { (n * 53 + 8) % 90 }).collect();
    let mut session = Session::new(b, model, N, N, Plan::Recompute).unwrap();
    session.forward(model, &tokens).unwrap();
    let (loss, coef) = mean_loss(&session.logprobs(model, &labels).unwrap(), &labels);
    session.backward(model, &labels, &coef).unwrap();
    (loss, model.trained().map(|p| (p.name.clone(), p.grad(b).unwrap())).collect())
}

/// Tensors by name: type, shape, bytes.
type File = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(folder: &Path) -> File {
    let tensors = open(&folder.join("model.safetensors"));
    let one = |name: &str| {
        let t = tensors.get(name).unwrap();
        (name.to_string(), (t.dtype, t.shape.to_vec(), t.bytes.to_vec()))
    };
    tensors.names().map(one).collect()
}

/// A model folder of these tensors, the golden's config changed by `edit`.
fn write(file: &File, edit: impl Fn(&mut serde_json::Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let outline = |(name, (dtype, shape, _)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| Outline {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
    };
    let mut writer = Writer::create(&dir.path().join("model.safetensors"), file.iter().map(outline).collect()).unwrap();
    file.values().for_each(|(.., bytes)| writer.write(bytes).unwrap());
    writer.finish().unwrap();
    let text = std::fs::read_to_string(Path::new(PACKED).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    edit(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// The packed golden with its experts as floats [E, C, O].
fn unpacked() -> tempfile::TempDir {
    let mut file = read(Path::new(PACKED));
    let tensors = open(&Path::new(PACKED).join("model.safetensors"));
    for w in luthier::model::arch::read_spec(Path::new(PACKED)).unwrap().weights() {
        if file.remove(&format!("{}_blocks", w.name)).is_none() {
            continue;
        }
        file.remove(&format!("{}_scales", w.name)).expect("blocks have scales");
        let values = quantized::find(&tensors, &w.name, &w.shape).unwrap().to_f32();
        file.insert(w.name, (Dtype::F32, w.shape, DType::F32.encode(&values)));
    }
    write(&file, |config| _ = config.as_object_mut().unwrap().remove("quantization_config"))
}

/// Unpacks the experts one at a time, as larger ones are.
fn one_at_a_time(model: &mut Model) {
    for block in &mut model.blocks {
        let Mlp::Moe(moe) = &mut block.mlp else { panic!("a mixture in every layer") };
        for experts in moe.gate_up.iter_mut().chain([&mut moe.down]) {
            let (one, E) = (experts.O * experts.C, experts.names.len());
            let Weight::Mxfp4(packed) = &mut experts.stack.weight else { panic!("packed") };
            assert_eq!(packed.at_once, E * one, "small ones come at once");
            packed.at_once = one;
        }
    }
}

/// An adapter on attention over packed experts: as over the floats they stand for, and however many are unpacked at a time.
#[test]
fn packed_experts_are_their_floats() {
    let floats = unpacked();
    for b in &backends() {
        for dtype in [DType::F32, DType::Bf16] {
            let load = |folder: &Path| Model::load(&**b, folder, &options(dtype, Some(lora()))).unwrap();
            let (want, gradients) = pass(&**b, &mut load(floats.path()));
            let mut packed = load(Path::new(PACKED));
            let whole = pass(&**b, &mut packed);
            let mut model = load(Path::new(PACKED));
            one_at_a_time(&mut model);
            assert_eq!(pass(&**b, &mut model), whole, "{} {dtype:?}", b.name());
            let (close, near) = if dtype == DType::F32 { (1e-6, 1e-9) } else { (2e-2, 5e-2) };
            assert!((whole.0 - want).abs() <= close * want, "{} {dtype:?}: {} {want}", b.name(), whole.0);
            assert!(gradients.len() == 2 * 4 * 2 && gradients.keys().eq(whole.1.keys()));
            for (name, gradient) in gradients {
                let err = nmse(&whole.1[&name], &gradient);
                assert!(err <= near, "{} {dtype:?} {name}: {err:e}", b.name());
            }
        }
    }
}

/// PEFT's all-linear leaves stacked experts and their router alone: they are no linear modules. Named, they are refused.
#[test]
fn adapters_are_on_attention() {
    let b: &dyn Backend = &Cpu::new();
    let model = Model::load(b, Path::new(FLOATS), &options(DType::F32, Some(lora()))).unwrap();
    assert!(model.trained().all(|p| p.name.contains(".self_attn.")), "attention alone");
    let dir = tempfile::tempdir().unwrap();
    peft::save(b, &model, "base", dir.path()).unwrap();
    let config = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    let with = |parameters: &str| {
        let more = format!("{{ \"target_parameters\": {parameters},");
        std::fs::write(dir.path().join("adapter_config.json"), config.replacen('{', &more, 1)).unwrap();
        peft::read_config(dir.path())
    };
    assert!(with("null").is_ok() && with("[]").is_ok());
    let e = with("[\"mlp.experts.gate_up_proj\"]").unwrap_err();
    assert!(e.to_string().contains("target_parameters"), "{e}");
    for name in ["gate_up_proj", "experts.down_proj", "router"] {
        let targets = Targets::Names(vec!["q_proj".into(), name.into()]);
        let named = LoraConfig { target_modules: targets, ..lora() };
        let e =
            Model::load(b, Path::new(FLOATS), &options(DType::F32, Some(named))).err().expect("refused").to_string();
        assert!(e.contains("not supported") && e.contains("q_proj, k_proj, v_proj, o_proj"), "{e}");
    }
}

/// What a full fine-tune writes in 16 bits is the layout that transformers reads: the same names, shapes and, untrained, values.
#[test]
fn sixteen_bits_come_out_as_they_came_in() {
    let (b, folder): (&dyn Backend, _) = (&Cpu::new(), unpacked());
    let dir = tempfile::tempdir().unwrap();
    let model = Model::load(b, folder.path(), &options(DType::Bf16, None)).unwrap();
    full::save(b, &model, folder.path(), dir.path()).unwrap();
    let (old, new) = (read(folder.path()), read(dir.path()));
    assert!(old.keys().eq(new.keys()));
    for (name, (_, shape, bytes)) in old {
        let (dtype, got, values) = &new[&name];
        assert_eq!((dtype, got), (&Dtype::BF16, &shape), "{name}");
        let want: Vec<f32> = DType::F32.decode(&bytes).into_iter().map(|x| DType::Bf16.round(x)).collect();
        assert_eq!(DType::Bf16.decode(values), want, "{name}");
    }
}

#[test]
fn a_fresh_model_learns_and_its_biases_start_at_zero() {
    let dir = tempfile::tempdir().unwrap();
    let count = init::init(Path::new(FLOATS), dir.path(), DType::F32, None, 3).unwrap();
    for b in &backends() {
        let mut model = Model::load(&**b, dir.path(), &options(DType::F32, None)).unwrap();
        assert_eq!(count, model.params().map(|p| p.elements() as u64).sum::<u64>());
        for param in model.params() {
            let values = param.get(&**b).unwrap();
            let zero = values.iter().all(|x| *x == 0.0);
            assert_eq!(zero, param.name.ends_with("bias"), "{}", param.name);
            assert!(!param.name.ends_with("sinks") || values.iter().all(|x| x.abs() < 0.2), "{values:?}");
        }
        let (loss, gradients) = pass(&**b, &mut model);
        assert!((loss - 128f64.ln()).abs() < 0.2, "{loss}");
        let still: Vec<_> = gradients.iter().filter(|(_, g)| g.iter().all(|x| *x == 0.0)).map(|(n, _)| n).collect();
        assert!(still.is_empty(), "{still:?}");
    }
}

/// Trained in full, packed experts are the floats that they stand for, and are saved as such.
#[test]
fn full_fine_tuning_unpacks() {
    let (b, floats): (&dyn Backend, _) = (&Cpu::new(), unpacked());
    for dtype in [DType::F32, DType::Bf16] {
        let load = |folder: &Path| Model::load(b, folder, &options(dtype, None)).unwrap();
        let (mut packed, mut plain) = (load(Path::new(PACKED)), load(floats.path()));
        assert_eq!(pass(b, &mut packed), pass(b, &mut plain));
        let saved = |model: &Model, folder: &Path| {
            let dir = tempfile::tempdir().unwrap();
            full::save(b, model, folder, dir.path()).unwrap();
            dir
        };
        let (from_packed, from_plain) = (saved(&packed, Path::new(PACKED)), saved(&plain, floats.path()));
        assert!(read(from_packed.path()) == read(from_plain.path()));
        assert_eq!(quantized::scheme(from_packed.path()).unwrap(), None);
    }
}

#[test]
fn what_is_packed_is_not_packed_again() {
    let b: &dyn Backend = &Cpu::new();
    let again = LoadOptions { load_in_4bit: true, ..options(DType::F32, Some(lora())) };
    let e = Model::load(b, Path::new(PACKED), &again).err().expect("refused");
    assert!(e.to_string().contains("the checkpoint is 4-bit MXFP4"), "{e}");
}

#[test]
fn damaged_experts_are_told() {
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    let load = |file: &File, edit: fn(&mut serde_json::Value)| -> Result<Model> {
        Model::load(&Cpu::new(), write(file, edit).path(), &LoadOptions::frozen(DType::F32))
    };
    let whole = read(Path::new(PACKED));
    assert!(load(&whole, |_| ()).is_ok());
    let told = |file: &File, edit: fn(&mut serde_json::Value), words: &str| {
        let e = load(file, edit).err().expect("refused");
        assert!(e.exit_code() == 65 && e.to_string().contains(words), "{e}");
    };
    let mut file = whole.clone();
    file.remove(&format!("{name}_scales"));
    told(&file, |_| (), "gate_up_proj_scales");
    let mut file = whole.clone();
    let (_, shape, _) = file.get_mut(&format!("{name}_blocks")).unwrap();
    shape.swap(1, 2);
    told(&file, |_| (), "is wanted");
    told(&whole, |config| _ = config.as_object_mut().unwrap().remove("quantization_config"), "MXFP4");
    told(&whole, |config| config["hidden_size"] = 62.into(), "62");
    told(&whole, |config| config["quantization_config"]["quant_method"] = "awq".into(), "awq");
}
