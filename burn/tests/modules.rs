//! The layers as Burn sees modules, and the files that they come from and go to.
#![cfg(feature = "wgpu")]
mod common;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use common::*;
use luthier::io::safetensors::Tensors;
use luthier::model::quantized;
use luthier_burn::{Adapter, Format, LoraConfig, LoraLinear, Named, PackedWeight, QLoraLinear, Targets, peft};
use std::path::{Path, PathBuf};

const NAME: &str = "model.layers.0.self_attn.q_proj";

fn config() -> LoraConfig {
    let target_modules = Targets::Names(vec!["q_proj".into(), "up_proj".into()]);
    LoraConfig { r: 4, lora_alpha: 8.0, target_modules, ..LoraConfig::default() }
}

fn linear(o: usize, c: usize, device: &Device) -> Linear {
    LinearConfig::new(c, o).init(device)
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
}

/// Steps of AdamW on what `forward` makes of the layer; the first loss and the last.
fn train<M: Module + 'static>(mut layer: M, forward: impl Fn(&M, Tensor<3>) -> Tensor<3>) -> (M, f32, f32) {
    let device = taped();
    let (x, target) = (random([4, 8, 64], &device), random([4, 8, 48], &device));
    let loss = |layer: &M| (forward(layer, x.clone()) - target.clone()).powi_scalar(2).mean();
    let first = values(loss(&layer))[0];
    let mut optimizer = AdamWConfig::new().init();
    for _ in 0..30 {
        let gradients = GradientsParams::from_grads(loss(&layer).backward(), &layer);
        layer = optimizer.step(2e-2, layer, gradients);
    }
    let last = values(loss(&layer))[0];
    (layer, first, last)
}

#[test]
fn adapters_train_and_their_bases_do_not() {
    let (device, config) = (taped(), config());
    let lora = Named { config: &config, module: NAME };
    for format in [Format::Nf4, Format::Nf4Double, Format::Int8] {
        let layer = QLoraLinear::from_linear(linear(48, 64, &device), format, lora).unwrap();
        let (weight, bias) =
            (values(layer.weight.dequantize(FloatDType::F32)), values(layer.bias.as_ref().unwrap().val()));
        let (layer, first, last) = train(layer, |layer, x| layer.forward(x));
        println!("{format:?}: {first} to {last}");
        assert!(last < 0.85 * first, "{format:?}: {first} to {last}");
        assert_eq!(values(layer.weight.dequantize(FloatDType::F32)), weight, "{format:?}: the weight is frozen");
        assert_eq!(values(layer.bias.as_ref().unwrap().val()), bias, "{format:?}: the bias is frozen");
        let x = random([2, 3, 64], &device);
        close("without the tape", &values(layer.valid().forward(x.clone().inner())), &values(layer.forward(x)), 1e-12);
    }
    let base = linear(48, 64, &device);
    let before = values(base.weight.val());
    let (layer, first, last) = train(LoraLinear::from_linear(base, lora).unwrap(), |layer, x| layer.forward(x));
    assert!(last < 0.85 * first && values(layer.base.weight.val()) == before, "floats: {first} to {last}");
}

/// An adapter that has learned nothing changes nothing, and a packed layer is its own dequantized weight's.
#[test]
fn a_new_layer_is_its_base() {
    let (device, config) = (plain(), config());
    let base = linear(48, 64, &device);
    let x = random([5, 2, 64], &device);
    let lora = Named { config: &config, module: NAME };
    let got = LoraLinear::from_linear(base.clone(), lora).unwrap().forward(x.clone());
    close("floats", &values(got), &values(base.forward(x.clone())), product(64));
    let layer = QLoraLinear::from_linear(base.clone(), Format::Int8, lora).unwrap();
    let dense = layer.weight.dequantize(FloatDType::F32);
    let mut unpacked = base;
    unpacked.weight = unpacked.weight.map(|_| dense.transpose());
    close("8 bits", &values(layer.forward(x.clone())), &values(unpacked.forward(x)), product(64));
}

#[test]
fn packing_is_the_trainers() {
    use luthier::ops::{int8, nf4};
    let device = plain();
    let [o, c] = [37, 70];
    let tensor = random([o, c], &device);
    let floats = values(tensor.clone());
    let p = nf4::Nf4 { P: (o * c) as u32 };
    let (mut codes, mut absmax) = (vec![0; (o * c).div_ceil(2)], vec![0.0f32; (o * c).div_ceil(64)]);
    nf4::nf4_quantize(&mut codes, &mut absmax, &floats, &p);
    let mut want = vec![0.0; o * c];
    nf4::nf4_dequantize(&mut want, &codes, &absmax, &p);
    assert_eq!(values(PackedWeight::quantize(tensor.clone(), Format::Nf4).dequantize(FloatDType::F32)), want);
    let (mut codes, mut scb) = (vec![0; o * c], vec![0.0f32; o]);
    let p = int8::Int8 { O: o as u32, C: c as u32 };
    int8::int8_quantize(&mut codes, &mut scb, &floats, &p);
    int8::int8_dequantize(&mut want, &codes, &scb, &p);
    let got = values(PackedWeight::quantize(tensor, Format::Int8).dequantize(FloatDType::F32));
    close("8 bits", &got, &want, 1e-13);
}

#[test]
fn bitsandbytes_checkpoints() {
    let (device, config) = (plain(), config());
    for folder in ["bnb_4bit", "bnb_8bit"] {
        let tensors = Tensors::open_folder(&golden(folder), "model").unwrap();
        let shape = [128, 128];
        let lora = Named { config: &config, module: NAME };
        let layer = QLoraLinear::from_safetensors(&tensors, lora, shape, &device).unwrap();
        let want = quantized::find(&tensors, &format!("{NAME}.weight"), &shape).unwrap().to_f32();
        close(folder, &values(layer.weight.dequantize(FloatDType::F32)), &want, 1e-13);
        let e = QLoraLinear::from_safetensors(&tensors, lora, [128, 64], &device).unwrap_err();
        assert!(e.to_string().contains("[128, 64]"), "{e}");
        let e = PackedWeight::from_safetensors(&tensors, "lm_head.weight", shape, &device).unwrap_err();
        assert!(e.to_string().contains("bitsandbytes' 4 or 8 bits"), "{e}");
    }
}

/// An adapter that PEFT wrote, with rank-stabilized scales and ranks by pattern; and ours, which PEFT's reader here takes.
#[test]
fn peft_adapters() {
    let device = taped();
    let folder = golden("adapters/llama/rslora");
    let saved = peft::Saved::open(&folder).unwrap();
    let file = Tensors::open_folder(&folder, "adapter_model").unwrap();
    let names = |part: &str| (0..3).map(|i| format!("model.layers.{i}.{part}")).collect::<Vec<_>>();
    let (q, up) = (names("self_attn.q_proj"), names("mlp.up_proj"));
    let shapes = q.iter().map(|name| (name, [16, 16])).chain(up.iter().map(|name| (name, [24, 16])));
    let mut adapters = Vec::new();
    for (name, shape) in shapes {
        // of another rank until it is loaded
        let mut adapter = Adapter::new(&config(), name, shape, &device).unwrap();
        saved.load(name, &mut adapter).unwrap();
        let stored =
            |side: &str| file.get(&format!("base_model.model.{name}.lora_{side}.weight")).unwrap().to_f32().unwrap();
        assert_eq!(values(adapter.a.val()), stored("A"));
        let r = if name.ends_with("up_proj") { 9 } else { 4 };
        assert_eq!((adapter.rank(), adapter.scale()), (r, 8.0 / (r as f32).sqrt()));
        let x = random([3, 16], &device);
        let host =
            |side: &str, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(stored(side), shape), &device);
        let (a, b) = (host("A", [r, 16]), host("B", [shape[0], r]));
        let want = x.clone().matmul(a.transpose()).matmul(b.transpose()) * adapter.scale();
        let got = adapter.forward(x);
        close(name, &values(got.clone()), &values(want), product(16 * 9));
        let gradients = got.sum().backward();
        assert!(adapter.a.val().grad(&gradients).is_some(), "what was loaded is trained");
        adapters.push((name.clone(), adapter));
    }
    let config = saved.config().clone();
    saved.finish().unwrap();

    let out = tempfile::tempdir().unwrap();
    let modules: Vec<_> = adapters.iter().map(|(name, adapter)| (name.as_str(), adapter)).collect();
    peft::save(&config, "model", &modules, out.path()).unwrap();
    let (before, after) = (
        Tensors::open_folder(&folder, "adapter_model").unwrap(),
        Tensors::open_folder(out.path(), "adapter_model").unwrap(),
    );
    assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
    assert!(before.names().all(|name| before.get(name).unwrap().bytes == after.get(name).unwrap().bytes));
    let again = luthier::export::peft::read_config(out.path()).unwrap();
    assert_eq!((again.r, again.use_rslora, again.rank_pattern), (4, true, config.rank_pattern.clone()));

    let saved = peft::Saved::open(out.path()).unwrap();
    saved.load(&adapters[0].0, &mut adapters[0].1.clone()).unwrap();
    let e = saved.finish().unwrap_err().to_string();
    assert!(e.contains("no module was loaded by this name"), "{e}");
    let plain = LoraConfig { use_rslora: false, ..config };
    let e = peft::save(&plain, "model", &[(&adapters[0].0, &adapters[0].1)], out.path()).unwrap_err().to_string();
    assert!(e.contains("whose rank is 4, scaled by 4"), "{e}");
}

/// What a Learner's checkpoint holds: codes and scales beside A and B.
#[test]
fn records_hold_packed_layers() {
    let (device, config) = (plain(), config());
    let lora = Named { config: &config, module: NAME };
    let layer = |format| QLoraLinear::from_linear(linear(48, 64, &device), format, lora).unwrap();
    for format in [Format::Nf4, Format::Nf4Double, Format::Int8] {
        // of another scale, too
        let mut wide = linear(48, 64, &device);
        wide.weight = wide.weight.map(|w| w * 100.0);
        let one = QLoraLinear::from_linear(wide, format, lora).unwrap();
        let other = layer(format);
        let x = random([2, 64], &device);
        let want = values(one.forward(x.clone()));
        assert_ne!(values(other.forward(x.clone())), want);
        assert_eq!(values(other.load_record(one.into_record()).forward(x)), want, "{format:?}");
    }
}
