//! Models against Hugging Face transformers: logits, loss and every gradient in float32, on every backend.
//!
//! `LUTHIER_GOLDEN=DIR cargo test --release --test arch -- --nocapture` checks each folder of DIR that holds
//! `golden.safetensors` and `config.json`; `LUTHIER_REQUIRE_ARCH=all` makes an unsupported one a failure.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::Backend;
use luthier::dtype::DType;
use luthier::io::safetensors::Tensors;
use luthier::model::experts::Experts;
use luthier::model::param::Param;
use luthier::model::{LoadOptions, Model, Plan, Session};
use std::collections::BTreeSet;
use std::path::Path;
mod support;
use support::*;

const LOGITS: f64 = 1e-3;
const LOSS: f64 = 1e-5;
const GRADIENT: f64 = 1e-8;

/// What transformers calls the gradient of a weight, and which half of each expert's it is: it fuses those of the experts,
/// `gate_up_proj` is [E, 2F, C], gate rows then up rows, `down_proj` is [E, C, F].
fn gradient_of(param: &str) -> (String, Option<usize>) {
    let name = format!("grad.{}", param.replace("block_sparse_moe", "mlp").replace("embed_out", "lm_head"));
    let Some((mlp, expert)) = name.split_once(".experts.") else { return (name, None) };
    let (part, half) = match expert {
        // one tensor in files, too
        "gate_up_proj" | "gate_up_proj_bias" | "down_proj" | "down_proj_bias" => return (name, None),
        "0.w1.weight" | "0.gate_proj.weight" => ("gate_up_proj", Some(0)),
        "0.w3.weight" | "0.up_proj.weight" => ("gate_up_proj", Some(1)),
        "0.w2.weight" | "0.down_proj.weight" => ("down_proj", None),
        other => panic!("{other} is no expert's weight"),
    };
    (format!("{mlp}.experts.{part}"), half)
}

/// The gradient of a weight, or of the weights of E experts or of the heads' norms that are one here.
fn wanted(golden: &Tensors, param: &Param, E: usize) -> Vec<f32> {
    if param.name.contains(".norms.") {
        return param.files().flat_map(|file| floats(golden, &gradient_of(file).0)).collect();
    }
    let (name, half) = gradient_of(&param.name);
    let all = floats(golden, &name);
    let Some(half) = half else { return all };
    let len = all.len() / E / 2;
    all.chunks(len).skip(half).step_by(2).flatten().copied().collect()
}

/// What was measured, or what is wrong.
fn check(b: &dyn Backend, folder: &Path, plan: Plan) -> Result<String, String> {
    let golden = open(&folder.join("golden.safetensors"));
    let quantized = luthier::model::quantized::scheme(folder).map_err(|e| e.to_string())?.is_some();
    let options = LoadOptions { train: !quantized, ..LoadOptions::frozen(DType::F32) };
    let mut model = Model::load(b, folder, &options).map_err(|e| e.to_string())?;
    if quantized {
        check_dequantized(b, &model, &golden)?;
        model.params_mut().try_for_each(|p| p.unfreeze(b)).map_err(|e| e.to_string())?;
    }
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
    // of 8-bit weights: the values they stand for, not bitsandbytes' own product of 8-bit activations
    let of = |name: &str| Some(format!("{name}_dequant")).filter(|n| golden.contains(n)).unwrap_or(name.into());
    let logits = max_abs(&logits, &floats(&golden, &of("logits")));
    let want = floats(&golden, &of("loss"))[0] as f64;
    let loss = (loss - want).abs() / want;
    let (mut gradient, mut compared) = ((0.0, String::new()), BTreeSet::new());
    let E = model.spec.moe.as_ref().map_or(0, |moe| moe.E);
    // of a quantized model, transformers gives only some
    let there = |name: &str| !quantized || golden.contains(&gradient_of(name).0);
    for param in model.trained().filter(|p| there(&p.name)) {
        let err = nmse(&param.grad(b).map_err(|e| e.to_string())?, &wanted(&golden, param, E));
        compared.extend(param.files().filter(|file| *file == param.name || file.contains(".norms.")).map(gradient_of));
        if !(err <= gradient.0) {
            gradient = (err, param.name.clone());
        }
    }
    let report = format!("logits {logits:.1e} loss {loss:.1e} gradients {:.1e} ({})", gradient.0, gradient.1);
    let gradients = golden.names().filter(|name| name.starts_with("grad.")).count();
    let compared = compared.into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len();
    if compared != gradients {
        return Err(format!("{compared} of the {gradients} gradients were compared"));
    }
    let ok = logits <= LOGITS && loss <= LOSS && gradient.0 <= GRADIENT;
    if ok { Ok(report) } else { Err(report) }
}

/// Every `dequant.<module>.weight` of the golden against ours, bit for bit; where a driver may fuse a product and a sum, which
/// WGSL allows, up to an ulp of the scale.
fn check_dequantized(b: &dyn Backend, model: &Model, golden: &Tensors) -> Result<(), String> {
    for name in golden.names().filter_map(|name| name.strip_prefix("dequant.")) {
        if let Some(experts) = model.experts().find(|e| e.stack.name == name) {
            check_packed(b, experts, &floats(golden, &format!("dequant.{name}")), name)?;
            continue;
        }
        let linear = model.linears().find(|l| name.strip_suffix(".weight") == Some(&l.name));
        let linear = linear.ok_or_else(|| format!("{name}: no such linear layer"))?;
        let dequantize = || {
            let mut out = b.alloc(linear.O * linear.C, DType::F32)?;
            linear.dequantize(b, &mut out)?;
            b.download_f32(&out)
        };
        let got = dequantize().map_err(|e: luthier::error::Error| e.to_string())?;
        let want = floats(golden, &format!("dequant.{name}"));
        let fused = b.name() == "wgpu" && !b.device().contains("llvmpipe");
        let same = |g: f32, w: f32| g.to_bits() == w.to_bits() || fused && (g - w).abs() <= 2.5e-7 * w.abs();
        let off = got.iter().zip(&want).filter(|(g, w)| !same(**g, **w)).count();
        if off > 0 || got.len() != want.len() {
            return Err(format!("{name}: {off} of {} dequantized values are others", want.len()));
        }
    }
    Ok(())
}

/// Experts in MXFP4, which lie as [E, O, C], against their floats [E, C, O]: the very bits.
fn check_packed(b: &dyn Backend, experts: &Experts, want: &[f32], name: &str) -> Result<(), String> {
    let dequantize = || {
        let mut out = b.alloc(want.len(), DType::F32)?;
        experts.stack.dequantize(b, &mut out)?;
        b.download_f32(&out)
    };
    let got = dequantize().map_err(|e: luthier::error::Error| e.to_string())?;
    let (O, C) = (experts.O, experts.C);
    let turned = (0..want.len()).map(|i| got[i / (C * O) * (C * O) + i % O * C + i / O % C]);
    let off = turned.zip(want).filter(|(g, w)| g.to_bits() != w.to_bits()).count();
    if off == 0 { Ok(()) } else { Err(format!("{name}: {off} of {} dequantized values are others", want.len())) }
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
                match check(&**b, folder, plan.clone()) {
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
