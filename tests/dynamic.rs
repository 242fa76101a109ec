//! Dynamic 4-bit: what is measured, what is kept, and that the folder is what the report says.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
use luthier::backend::{Backend, Buf};
use luthier::data::{self, BatchOptions, DataOptions, Packing, Source, Tokenizer};
use luthier::dtype::DType;
use luthier::error::Result;
use luthier::export::bnb::Format;
use luthier::export::dynamic::{Options, Report, quantize_dynamic};
use luthier::export::{folder, init, quantize::quantize};
use luthier::io::safetensors::Tensors;
use luthier::model::experts::{Experts, Rows};
use luthier::model::linear::{Linear, Observer};
use luthier::model::quantized::find;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

/// Tokens of a row and of a batch.
const T: usize = 64;
const BATCH: usize = 4 * T;

/// Weights of both kinds of spread, with the tokenizer of the model that comes with the project.
fn made(dir: &Path, moe: bool) {
    let mut config = serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": T, "initializer_range": 0.2,
    });
    if moe {
        let own = serde_json::json!({
            "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16,
        });
        config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    }
    std::fs::write(dir.join("shape.json"), config.to_string()).unwrap();
    init::init(&dir.join("shape.json"), dir, DType::F32, None, 5).unwrap();
    folder::copy_companions("assets/base".as_ref(), dir).unwrap();
    let lines: Vec<String> =
        std::fs::read_to_string("assets/rustc_explain.jsonl").unwrap().lines().take(4).map(String::from).collect();
    std::fs::write(dir.join("text.jsonl"), lines.join("\n")).unwrap();
}

fn dynamic(b: &dyn Backend, model: &Path, out: &Path, size_budget: f64) -> Result<Report> {
    let calibration = vec![Source::new(model.join("text.jsonl").to_str().unwrap())];
    quantize_dynamic(b, &Options { calibration, size_budget, dtype: None, model, out })
}

/// The same text as the report's, in the same order: what was measured on, and what was held out.
fn text(model: &Path, tokens: (usize, usize)) -> (Vec<data::Batch>, Vec<data::Batch>) {
    let tokenizer = Tokenizer::load(model).unwrap();
    let sources = vec![data::Source::new(model.join("text.jsonl").to_str().unwrap())];
    let options = DataOptions { sources, max_length: T, pretrain: true, ..DataOptions::default() };
    let data = data::load(&options, &tokenizer).unwrap();
    let options = BatchOptions { max_length: T, rows: 4, packing: Packing::Wrapped, seed: 0, shuffle: true, pad_id: 0 };
    let full = data::batches(&data.train, &options, 0).filter(|batch| batch.tokens == BATCH);
    let mut rows: Vec<_> = full.take((tokens.0 + tokens.1) / BATCH).collect();
    let held_out = rows.split_off(tokens.0 / BATCH);
    (rows, held_out)
}

fn forward(session: &mut Session, model: &Model, batch: &data::Batch) {
    let data::Batch { ids, positions, cu_seqlens, .. } = batch.clone();
    session.forward(model, &Tokens { ids, positions, cu_seqlens }).unwrap();
}

fn loss(b: &dyn Backend, folder: &Path, rows: &[data::Batch]) -> f64 {
    let model = Model::load(b, folder, &LoadOptions::frozen(DType::F32)).unwrap();
    let mut session = Session::new(b, &model, BATCH, T, Plan::Inference).unwrap();
    let (mut sum, mut counted) = (0.0, 0);
    for row in rows {
        forward(&mut session, &model, row);
        sum -= session.logprobs(&model, &row.labels).unwrap().iter().map(|x| *x as f64).sum::<f64>();
        counted += row.counted;
    }
    sum / counted as f64
}

#[test]
fn the_folder_is_what_the_report_says() {
    for moe in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path(), moe);
        for b in &backends() {
            let (b, out, plain) = (&**b, dir.path().join(b.name()), dir.path().join(format!("{}-nf4", b.name())));
            let report = dynamic(b, dir.path(), &out, 0.03).unwrap();
            let (before, after) = quantize(b, dir.path(), &plain, Format::Nf4).unwrap();
            assert_eq!((report.bytes.original, report.bytes.nf4), (before, after));
            let cost: u64 = report.modules.iter().filter(|m| m.kept).map(|m| m.cost).sum();
            assert_eq!(report.bytes.dynamic, after + cost);
            assert!(cost > 0 && cost as f64 <= 0.03 * after as f64, "{cost} of {after}");

            let (_, held_out) = text(dir.path(), report.tokens);
            let losses = [dir.path(), &plain, &out].map(|folder| loss(b, folder, &held_out));
            for (got, want) in [report.loss.original, report.loss.nf4, report.loss.dynamic].iter().zip(losses) {
                assert!((got - want).abs() <= 1e-5 * want, "{}: {got} {want}", b.name());
            }

            let (old, new) = (open(&dir.path().join("model.safetensors")), open(&out.join("model.safetensors")));
            let config: serde_json::Value =
                serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
            let skip = config["quantization_config"]["llm_int8_skip_modules"].as_array().unwrap();
            for module in &report.modules {
                assert_eq!(module.names.len() == 4, moe && module.names[0].contains("experts"), "{module:?}");
                for name in &module.names {
                    let weight = format!("{name}.weight");
                    let same = old.get(&weight).unwrap().bytes == new.get(&weight).unwrap().bytes;
                    assert_eq!(same, module.kept, "{name}");
                    assert_eq!(skip.contains(&name.as_str().into()), module.kept, "{name}: {skip:?}");
                }
            }
            assert!(skip.contains(&"lm_head".into()));
        }
    }
}

/// Keeps what one module is given.
struct Inputs(&'static str, RefCell<Vec<f32>>);

impl Observer for Inputs {
    fn linear(&self, b: &dyn Backend, linear: &Linear, inp: &Buf, N: usize) -> Result<()> {
        if linear.name == self.0 {
            self.1.borrow_mut().extend(b.download_f32(&inp.view(0, N * linear.C))?);
        }
        Ok(())
    }
    fn experts(&self, _: &dyn Backend, _: &Experts, _: &Buf, _: &Rows) -> Result<()> {
        Ok(())
    }
}

/// Σ of squares of a·bᵀ, rows of C values.
fn squares(a: &[f32], b: &[f64], C: usize) -> f64 {
    let dot = |x: &[f32], w: &[f64]| x.iter().zip(w).map(|(x, w)| *x as f64 * w).sum::<f64>();
    a.chunks(C).flat_map(|x| b.chunks(C).map(move |w| dot(x, w).powi(2))).sum()
}

/// Both errors of a layer, again from the files and what the layer is given.
#[test]
fn errors_are_those_of_the_layers_outputs() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path(), false);
    for b in &backends() {
        let (b, out) = (&**b, dir.path().join(b.name()));
        // a budget of nothing: every layer in NF4
        let report = dynamic(b, dir.path(), &out, 0.0).unwrap();
        assert!(report.modules.len() == 14 && report.modules.iter().all(|m| !m.kept));
        assert!(report.loss.dynamic == report.loss.nf4 && report.bytes.dynamic == report.bytes.nf4);
        let (rows, _) = text(dir.path(), report.tokens);
        let model = Model::load(b, dir.path(), &LoadOptions::frozen(DType::F32)).unwrap();
        let [old, new] = [dir.path(), &out].map(|folder| Tensors::open_folder(folder, "model").unwrap());
        for name in ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"] {
            let inputs = Rc::new(Inputs(name, RefCell::default()));
            let mut session = Session::new(b, &model, BATCH, T, Plan::Inference).unwrap();
            session.observe(Some(inputs.clone()));
            rows.iter().for_each(|row| forward(&mut session, &model, row));
            session.observe(None);
            forward(&mut session, &model, &rows[0]);
            let (O, C) = model.linears().find(|l| l.name == name).map(|l| (l.O, l.C)).unwrap();
            let inputs = inputs.1.borrow();
            assert_eq!(inputs.len(), rows.len() * BATCH * C);
            let [was, is] = [&old, &new].map(|t| find(t, &format!("{name}.weight"), &[O, C]).unwrap().to_f32());
            let exact: Vec<f64> = was.iter().map(|w| *w as f64).collect();
            let change: Vec<f64> = was.iter().zip(&is).map(|(w, q)| *w as f64 - *q as f64).collect();
            let got = report.modules.iter().find(|m| m.names == [name]).unwrap();
            let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>();
            for (got, want) in [
                (got.weight_error, norm(&change) / norm(&exact)),
                (got.activation_error, squares(&inputs, &change, C) / squares(&inputs, &exact, C)),
            ] {
                assert!((got / want - 1.0).abs() <= 1e-4 && want > 1e-3, "{} {name}: {got} {want}", b.name());
            }
        }
    }
}

#[test]
fn a_freed_model_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path(), true);
    for b in &backends() {
        for (load_in_4bit, load_in_8bit) in [(false, false), (true, false), (false, true)] {
            let before = b.memory().used;
            let options = LoadOptions { load_in_4bit, load_in_8bit, ..LoadOptions::frozen(DType::Bf16) };
            let model = Model::load(&**b, dir.path(), &options).unwrap();
            assert!(b.memory().used > before);
            model.free(&**b);
            assert_eq!(b.memory().used, before, "{}", b.name());
        }
    }
}

#[test]
fn too_little_text_and_too_much_room_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path(), false);
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "a few words").unwrap();
    let calibration = vec![Source::new(short.to_str().unwrap())];
    let out = dir.path().join("out");
    let options = Options { calibration, size_budget: 0.1, dtype: None, model: dir.path(), out: &out };
    let e = quantize_dynamic(&luthier::backend::cpu::Cpu::new(), &options).unwrap_err();
    assert!(e.exit_code() == 65 && e.to_string().contains("too few"), "{e}");
    let all = dynamic(&luthier::backend::cpu::Cpu::new(), dir.path(), &out, 9.0).unwrap_err();
    assert!(all.exit_code() == 2 && all.to_string().contains("give a smaller one"), "{all}");
    assert!(!out.exists());
}
