//! Models against Hugging Face transformers: logits, loss and every gradient in float32, on every backend.
//!
//! `LUTHIER_GOLDEN=DIR cargo test --release --test arch -- --nocapture` checks each folder of DIR that holds
//! `golden.safetensors` and `config.json`; `LUTHIER_REQUIRE_ARCH=all` makes an unsupported one a failure.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::Backend;
use luthier::dtype::DType;
use luthier::io::safetensors::Tensors;
use luthier::model::param::Param;
use luthier::model::{LoadOptions, Model, Plan, Session};
use std::path::Path;
mod support;
use support::*;

const LOGITS: f64 = 1e-3;
const LOSS: f64 = 1e-5;
const GRADIENT: f64 = 1e-8;

/// The gradient of a weight, or of the experts' weights that are one here, out of what transformers fuses: `gate_up_proj` is
/// [E, 2F, C], gate rows then up rows, `down_proj` is [E, C, F].
fn wanted(golden: &Tensors, param: &Param, E: usize) -> Vec<f32> {
    let name = param.name.replace("block_sparse_moe", "mlp");
    let Some((mlp, expert)) = name.split_once(".experts.") else { return floats(golden, &format!("grad.{name}")) };
    let fused = |part: &str| floats(golden, &format!("grad.{mlp}.experts.{part}"));
    let half = |which: usize| -> Vec<f32> {
        let all = fused("gate_up_proj");
        let len = all.len() / E / 2;
        all.chunks(len).skip(which).step_by(2).flatten().copied().collect()
    };
    match expert {
        "0.w1.weight" | "0.gate_proj.weight" => half(0),
        "0.w3.weight" | "0.up_proj.weight" => half(1),
        "0.w2.weight" | "0.down_proj.weight" => fused("down_proj"),
        other => panic!("{other} is no expert's weight"),
    }
}

/// What was measured, or what is wrong.
fn check(b: &dyn Backend, folder: &Path, plan: Plan) -> Result<String, String> {
    let golden = open(&folder.join("golden.safetensors"));
    let options = LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) };
    let mut model = Model::load(b, folder, &options).map_err(|e| e.to_string())?;
    let (tokens, labels) = packed(&golden, "input_ids", "labels");
    let N = tokens.ids.len();
    let run = |model: &mut Model| {
        let mut session = Session::new(b, model, N, N, plan)?;
        session.forward(model, &tokens)?;
        let logits = session.logits(model, 0, N)?;
        let logp = session.logprobs(model, &labels)?;
        let (loss, coef) = mean_loss(&logp, &labels);
        session.backward(model, &labels, &coef)?;
        Ok((logits, loss))
    };
    let (logits, loss) = run(&mut model).map_err(|e: luthier::error::Error| e.to_string())?;
    let logits = max_abs(&logits, &floats(&golden, "logits"));
    let want = floats(&golden, "loss")[0] as f64;
    let loss = (loss - want).abs() / want;
    let mut gradient = (0.0, String::new());
    let E = model.spec.moe.as_ref().map_or(0, |moe| moe.E);
    for param in model.trained() {
        let err = nmse(&param.grad(b).map_err(|e| e.to_string())?, &wanted(&golden, param, E));
        if !(err <= gradient.0) {
            gradient = (err, param.name.clone());
        }
    }
    let report = format!("logits {logits:.1e} loss {loss:.1e} gradients {:.1e} ({})", gradient.0, gradient.1);
    let ok = logits <= LOGITS && loss <= LOSS && gradient.0 <= GRADIENT;
    if ok { Ok(report) } else { Err(report) }
}

#[test]
fn goldens() {
    let strict = std::env::var("LUTHIER_REQUIRE_ARCH").is_ok_and(|v| v == "all");
    let (mut failed, mut checked) = (Vec::new(), 0);
    let backends = backends();
    let mut folders: Vec<_> = std::fs::read_dir(golden_root()).expect("goldens").map(|e| e.unwrap().path()).collect();
    folders.sort();
    for folder in folders.iter().filter(|f| f.join("golden.safetensors").exists() && f.join("config.json").exists()) {
        let name = folder.file_name().unwrap().to_string_lossy();
        let supported = luthier::model::arch::read_spec(folder);
        for b in &backends {
            if let Err(why) = &supported {
                println!("{name} {} unsupported {why}", b.name());
                if strict {
                    failed.push(format!("{name} {}: {why}", b.name()));
                }
                continue;
            }
            for plan in [Plan::Keep, Plan::Recompute] {
                checked += 1;
                match check(&**b, folder, plan) {
                    Ok(report) => println!("{name} {} ok {plan:?} {report}", b.name()),
                    Err(report) => {
                        println!("{name} {} FAIL {plan:?} {report}", b.name());
                        failed.push(format!("{name} {}: {report}", b.name()));
                    }
                }
            }
        }
    }
    assert!(checked > 0, "no golden of a supported architecture in {}", golden_root().display());
    assert!(failed.is_empty(), "{failed:#?}");
}
