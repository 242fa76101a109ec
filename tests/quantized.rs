//! Quantized checkpoints: written, read again, and refused where they are not what they say.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::dtype::DType;
use luthier::error::Error;
use luthier::export::bnb::Format;
use luthier::export::quantize::quantize;
use luthier::io::safetensors::{Dtype, Outline, Tensors, Writer};
use luthier::model::linear::{Linear, Nf4Scales, Weight};
use luthier::model::lora::{LoraConfig, Targets};
use luthier::model::{self, LoadOptions, Model, Plan, Session};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
#[allow(dead_code, reason = "what other tests share")]
mod support;
use support::*;

const NF4: &str = "tests/golden/bnb_4bit";
const INT8: &str = "tests/golden/bnb_8bit";
const Q: &str = "model.layers.0.self_attn.q_proj";
const STATE: &str = "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4";

type Edit = dyn Fn(&mut Files, &mut Value);
type Files = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a model folder, changed on the way.
fn copy(from: &str, to: &Path, edit: impl FnOnce(&mut Files, &mut Value)) {
    let tensors = Tensors::open_folder(from.as_ref(), "model").unwrap();
    let read = |name: &str| {
        let t = tensors.get(name).unwrap();
        (name.to_string(), (t.dtype, t.shape.to_vec(), t.bytes.to_vec()))
    };
    let mut files: Files = tensors.names().map(read).collect();
    let text = std::fs::read(Path::new(from).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    edit(&mut files, &mut config);
    let outline = |(name, (dtype, shape, _)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| Outline {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
    };
    let mut writer = Writer::create(&to.join("model.safetensors"), files.iter().map(outline).collect()).unwrap();
    files.values().for_each(|(.., bytes)| writer.write(bytes).unwrap());
    writer.finish().unwrap();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
}

fn load(b: &dyn Backend, folder: &Path) -> Result<Model, Error> {
    Model::load(b, folder, &LoadOptions::frozen(DType::F32))
}

fn dequantized(b: &dyn Backend, linear: &Linear) -> Vec<f32> {
    let mut out = b.alloc(linear.O * linear.C, DType::F32).unwrap();
    linear.dequantize(b, &mut out).unwrap();
    b.download_f32(&out).unwrap()
}

fn bytes(b: &dyn Backend, weight: &Weight) -> Vec<Vec<u8>> {
    let get = |buf| b.download(buf).unwrap();
    match weight {
        Weight::Dense(_) | Weight::Gguf(_) | Weight::Fp8(_) => panic!("a weight of another kind"),
        Weight::Int8(q) => vec![get(&q.codes), get(&q.scb)],
        Weight::Mxfp4(q) => vec![get(&q.codes), get(&q.scales)],
        Weight::Nf4(q) => match &q.scales {
            Nf4Scales::Single { absmax } => vec![get(&q.codes), get(absmax)],
            Nf4Scales::Double { qabsmax, nested, map, offset } => {
                vec![get(&q.codes), get(qabsmax), get(nested), get(map), offset.to_le_bytes().to_vec()]
            }
        },
    }
}

/// A model in f32 whose weights end within a block of NF4, or within a byte of codes.
fn uneven(F: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": 36, "intermediate_size": F, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "vocab_size": 90, "tie_word_embeddings": true, "attention_bias": F % 2 == 1,
    });
    std::fs::write(dir.path().join("shape.json"), config.to_string()).unwrap();
    luthier::export::init::init(&dir.path().join("shape.json"), dir.path(), DType::F32, None, 5).unwrap();
    dir
}

#[test]
fn what_quantize_writes_is_what_loading_quantizes() {
    let (even, odd) = (uneven(52), uneven(49));
    let folders = [Path::new("tests/golden/llama"), even.path(), odd.path()];
    for b in backends() {
        for from in folders {
            let floats = load(&*b, from).unwrap();
            for format in [Format::Nf4, Format::Int8] {
                let dir = tempfile::tempdir().unwrap();
                let (before, after) = quantize(&*b, from, dir.path(), format).unwrap();
                assert!(after < before, "{before} bytes became {after}");
                let (four, eight) = (format == Format::Nf4, format == Format::Int8);
                let on_load =
                    LoadOptions { load_in_4bit: four, load_in_8bit: eight, ..LoadOptions::frozen(DType::F32) };
                let want = Model::load(&*b, from, &on_load).unwrap();
                let got = load(&*b, dir.path()).unwrap();
                for (got, want) in got.linears().zip(want.linears()) {
                    assert_eq!(bytes(&*b, &got.weight), bytes(&*b, &want.weight), "{} {}", b.name(), got.name);
                }
                let limit = if four { 0.02 } else { 2e-4 };
                for (got, want) in got.linears().zip(floats.linears()) {
                    let [got, want] = [got, want].map(|linear| dequantized(&*b, linear));
                    let err = nmse(&got, &want);
                    assert!(err > 0.0 && err <= limit, "{} {format:?}: {err}", b.name());
                }
                for (got, want) in got.params().zip(want.params()) {
                    assert_eq!(got.name, want.name);
                    assert_eq!(got.get(&*b).unwrap(), want.get(&*b).unwrap(), "{}", got.name);
                }
            }
        }
    }
}

/// A tensor's name without its layer, with its type and number of dimensions.
fn layout(folder: &Path) -> std::collections::BTreeSet<(String, String, usize)> {
    let tensors = Tensors::open_folder(folder, "model").unwrap();
    let entry = |name: &str| {
        let t = tensors.get(name).unwrap();
        let place = name.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part });
        (place.collect::<Vec<_>>().join("."), format!("{:?}", t.dtype), t.shape.len())
    };
    tensors.names().map(entry).collect()
}

#[test]
fn the_layout_is_that_of_transformers() {
    for (format, theirs) in [(Format::Nf4, NF4), (Format::Int8, INT8)] {
        let dir = tempfile::tempdir().unwrap();
        quantize(&Cpu::new(), "tests/golden/llama".as_ref(), dir.path(), format).unwrap();
        assert_eq!(layout(dir.path()), layout(theirs.as_ref()));
        let config = |folder: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
        };
        let (mut ours, mut theirs) = (config(dir.path()), config(theirs.as_ref()));
        let [ours, theirs] = [&mut ours, &mut theirs].map(|c| c["quantization_config"].as_object_mut().unwrap());
        // theirs, null, stands for the head
        assert_eq!(ours.insert("llm_int8_skip_modules".into(), Value::Null), Some(json!(["lm_head"])));
        assert_eq!(ours, theirs);
    }
    let dir = tempfile::tempdir().unwrap();
    quantize(&Cpu::new(), "tests/golden/llama".as_ref(), dir.path(), Format::Nf4).unwrap();
    let state = |folder: &Path| {
        let tensors = Tensors::open_folder(folder, "model").unwrap();
        let state: Value = serde_json::from_slice(tensors.get(STATE).unwrap().bytes).unwrap();
        state.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(state(dir.path()), state(NF4.as_ref()));
    let again = quantize(&Cpu::new(), dir.path(), &dir.path().join("again"), Format::Nf4).unwrap_err();
    assert!(again.to_string().contains("already") && again.exit_code() == 65, "{again}");
}

/// The doubly quantized scales of a module as plain ones.
fn single(files: &mut Files, module: &str) {
    let take = |files: &mut Files, part: &str| files.remove(&format!("{module}.weight{part}")).unwrap().2;
    let state = take(files, ".quant_state.bitsandbytes__nf4");
    let mut state: Value = serde_json::from_slice(&state).unwrap();
    let offset = state["nested_offset"].as_f64().unwrap() as f32;
    let (codes, nested) = (take(files, ".absmax"), DType::F32.decode(&take(files, ".nested_absmax")));
    let map = DType::F32.decode(&take(files, ".nested_quant_map"));
    let absmax = codes.iter().enumerate().map(|(i, code)| map[*code as usize] * nested[i / 256] + offset);
    let absmax = DType::F32.encode(&absmax.collect::<Vec<_>>());
    for key in ["nested_blocksize", "nested_offset", "nested_dtype"] {
        state.as_object_mut().unwrap().remove(key);
    }
    let state = state.to_string().into_bytes();
    let name = format!("{module}.weight");
    files.insert(format!("{name}.quant_state.bitsandbytes__nf4"), (Dtype::U8, vec![state.len()], state));
    files.insert(format!("{name}.absmax"), (Dtype::F32, vec![codes.len()], absmax));
}

#[test]
fn scales_may_be_plain_and_the_head_in_4_bits() {
    let dir = tempfile::tempdir().unwrap();
    copy(NF4, dir.path(), |files, _| {
        single(files, Q);
        let parts: Vec<_> = files.iter().filter(|(name, _)| name.starts_with(Q)).collect();
        let head = parts.into_iter().map(|(name, part)| (name.replace(Q, "lm_head"), part.clone()));
        let head: Files = head.collect();
        files.extend(head);
    });
    let want = floats(&open(&Path::new(NF4).join("golden.safetensors")), &format!("dequant.{Q}.weight"));
    for b in backends() {
        let model = load(&*b, dir.path()).unwrap();
        let linear = model.linears().find(|l| l.name == Q).unwrap();
        let Weight::Nf4(q) = &linear.weight else { panic!("in 4 bits") };
        assert!(matches!(q.scales, Nf4Scales::Single { .. }));
        assert_eq!(dequantized(&*b, linear), want, "{}", b.name());
        assert_eq!(model.head.unwrap().param().unwrap().get(&*b).unwrap(), want, "{}", b.name());
    }
}

/// Every gradient of an adapter, after one step's backward.
fn gradients(b: &dyn Backend, folder: &Path, golden: &Tensors) -> Vec<(String, Vec<f32>)> {
    let lora = LoraConfig { r: 4, target_modules: Targets::Word("all-linear".into()), ..LoraConfig::default() };
    let options = LoadOptions { lora: Some(lora), train: true, seed: 3, ..LoadOptions::frozen(DType::F32) };
    let mut model = Model::load(b, folder, &options).unwrap();
    let (tokens, labels) = packed(golden, "input_ids", "labels");
    let N = tokens.ids.len();
    let mut session = Session::new(b, &model, N, N, Plan::Keep).unwrap();
    session.forward(&model, &tokens).unwrap();
    let (_, coef) = mean_loss(&session.logprobs(&model, &labels).unwrap(), &labels);
    session.backward(&mut model, &labels, &coef).unwrap();
    model.trained().map(|p| (p.name.clone(), p.grad(b).unwrap())).collect()
}

#[test]
fn adapters_on_quantized_weights_learn_as_on_the_weights_they_stand_for() {
    for folder in [NF4, "tests/golden/bnb_4bit_skip", INT8] {
        let dense = tempfile::tempdir().unwrap();
        let b = Cpu::new();
        let model = load(&b, folder.as_ref()).unwrap();
        copy(folder, dense.path(), |files, config| {
            files.retain(|name, _| name.ends_with(".weight"));
            for linear in model.linears() {
                let values = DType::F32.encode(&dequantized(&b, linear));
                files.insert(format!("{}.weight", linear.name), (Dtype::F32, vec![linear.O, linear.C], values));
            }
            config.as_object_mut().unwrap().remove("quantization_config");
        });
        let golden = open(&Path::new(folder).join("golden.safetensors"));
        for b in backends() {
            let (got, want) = (gradients(&*b, folder.as_ref(), &golden), gradients(&*b, dense.path(), &golden));
            assert_eq!(got.len(), 2 * 7 * model.blocks.len());
            assert!(got.iter().any(|(_, g)| g.iter().any(|x| *x != 0.0)));
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                assert!(nmse(got, want) <= 1e-9, "{folder} {} {name}", b.name());
            }
        }
    }
}

#[test]
fn a_quantized_base_is_not_trained_and_not_quantized_otherwise() {
    let b = Cpu::new();
    let frozen = LoadOptions::frozen(DType::F32);
    let cases = [
        (NF4, LoadOptions { train: true, ..frozen.clone() }, "add a [lora] table"),
        ("tests/golden/llama", LoadOptions { train: true, load_in_8bit: true, ..frozen.clone() }, "add a [lora] table"),
        (NF4, LoadOptions { load_in_8bit: true, ..frozen.clone() }, "the checkpoint is 4-bit NF4"),
        (INT8, LoadOptions { load_in_4bit: true, ..frozen.clone() }, "the checkpoint is 8-bit"),
        (NF4, LoadOptions { load_in_4bit: true, load_in_8bit: true, ..frozen.clone() }, "exclude each other"),
    ];
    for (folder, options, wanted) in cases {
        let e = Model::load(&b, folder.as_ref(), &options).err().expect("refused").to_string();
        assert!(e.contains(wanted), "{e}");
    }
    // the layers that a checkpoint keeps dense stay so
    let options = LoadOptions { load_in_4bit: true, ..frozen };
    let model = Model::load(&b, "tests/golden/bnb_4bit_skip".as_ref(), &options).unwrap();
    let dense: Vec<_> = model.linears().filter(|l| matches!(l.weight, Weight::Dense(_))).map(|l| &*l.name).collect();
    let attention = ["q", "k", "v", "o"].map(|x| format!("model.layers.0.self_attn.{x}_proj"));
    assert_eq!(dense, [&attention[..], &["model.layers.1.mlp.down_proj".into()]].concat());
}

#[test]
fn what_does_not_fit_is_named() {
    let set_state = |files: &mut Files, key: &str, value: Value| {
        let bytes = &mut files.get_mut(STATE).unwrap();
        let mut state: Value = serde_json::from_slice(&bytes.2).unwrap();
        state[key] = value;
        bytes.2 = state.to_string().into_bytes();
        bytes.1 = vec![bytes.2.len()];
    };
    let name = |part: &str| format!("{Q}.weight{part}");
    let checks: Vec<(&str, Box<Edit>, &str)> = vec![
        (NF4, Box::new(|_, c| c["quantization_config"]["quant_method"] = json!("gptq")), "`gptq` checkpoints are not"),
        (
            NF4,
            Box::new(|_, c| c["quantization_config"]["quant_method"] = json!("awq")),
            "load_in_4bit = true quantizes",
        ),
        (NF4, Box::new(|_, c| c["compression_config"] = json!({})), "`compressed-tensors` checkpoints are not"),
        (
            NF4,
            Box::new(|_, c| c["quantization_config"]["bnb_4bit_quant_type"] = json!("fp4")),
            "`fp4` is not supported",
        ),
        (NF4, Box::new(move |f, _| set_state(f, "blocksize", json!(128))), "has blocks of 128 values, 64 is wanted"),
        (NF4, Box::new(move |f, _| set_state(f, "nested_blocksize", json!(512))), "nested blocks of Some(512)"),
        (NF4, Box::new(move |f, _| set_state(f, "shape", json!([64, 256]))), "has shape [64, 256], the config wants"),
        (NF4, Box::new(move |f, _| set_state(f, "quant_type", json!("fp4"))), "`fp4` is not supported"),
        (NF4, Box::new(|f, _| f.get_mut(STATE).unwrap().2.fill(b'[')), "bitsandbytes__nf4"),
        (NF4, Box::new(move |f, _| drop(f.remove(&name(".absmax")))), ".absmax: the tensor is missing"),
        (NF4, Box::new(move |f, _| drop(f.remove(&format!("{Q}.weight.nested_quant_map")))), "nested_quant_map"),
        (
            NF4,
            Box::new(|f, _| f.get_mut(&format!("{Q}.weight.quant_map")).unwrap().2[0] ^= 1),
            "has levels of its own in .quant_map",
        ),
        (NF4, Box::new(|f, _| drop(f.insert("x.weight".into(), (Dtype::F32, vec![1], vec![0; 4])))), "no such tensor"),
        (NF4, Box::new(|_, c| drop(c.as_object_mut().unwrap().remove("quantization_config"))), "no quantization"),
        (INT8, Box::new(|f, _| drop(f.remove(&format!("{Q}.SCB")))), "SCB: the tensor is missing"),
        (INT8, Box::new(|f, _| f.get_mut(&format!("{Q}.weight")).unwrap().1 = vec![64, 256]), "has shape [64, 256]"),
        (
            "tests/golden/llama",
            Box::new(|_, c| c["quantization_config"] = json!({ "load_in_8bit": true })),
            "every weight is a float",
        ),
    ];
    for (folder, edit, wanted) in checks {
        let dir = tempfile::tempdir().unwrap();
        copy(folder, dir.path(), edit);
        let e = load(&Cpu::new(), dir.path()).err().unwrap_or_else(|| panic!("{wanted}: was taken"));
        assert!(e.to_string().contains(wanted) && e.exit_code() == 65, "{e}\nwanted {wanted}");
        let listed = model::check(dir.path()).unwrap().mismatches;
        assert!(listed.iter().any(|m| m.to_string().contains(wanted)), "{wanted}: {listed:?}");
    }
}

#[test]
fn every_mismatch_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    copy("tests/golden/llama", dir.path(), |files, _| {
        files.remove("model.norm.weight");
        files.get_mut("model.layers.0.mlp.down_proj.weight").unwrap().1.reverse();
        files.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().1.insert(0, 1);
        files.insert("extra.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    let listed: Vec<String> = model::check(dir.path()).unwrap().mismatches.iter().map(|m| m.to_string()).collect();
    assert_eq!(listed.len(), 4, "{listed:#?}");
    for wanted in
        ["model.norm.weight", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj.weight", "extra.weight"]
    {
        assert!(listed.iter().any(|m| m.contains(wanted)), "{wanted}: {listed:#?}");
    }
    let e = load(&Cpu::new(), dir.path()).err().expect("refused").to_string();
    assert!(e.contains("and 3 more: `luthier inspect"), "{e}");
}
