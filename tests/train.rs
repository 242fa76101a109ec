//! Twenty steps of training against PEFT + torch.AdamW in float32, on every backend; other optimizers against torch's and
//! bitsandbytes' (`tests/golden/make_optimizers.py`).
//!
//! `LUTHIER_GOLDEN=DIR cargo test --release --test train -- --nocapture` checks each folder of DIR that holds `trajectory.json`.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::backend::Backend;
use luthier::dtype::DType;
use luthier::error::Error;
use luthier::export::peft;
use luthier::model::{LoadOptions, Model, Plan, Session};
use luthier::train::config::{SchedulerKwargs, SchedulerType};
use luthier::train::optim::{Decay, Home, Hyper, Optimizer, Precision, Rule};
use luthier::train::schedule::Schedule;
use std::path::Path;
mod support;
use support::*;

const LOSS: f64 = 1e-4;
const WEIGHTS: f64 = 1e-9;
const GRADIENT: f64 = 1e-8;
const RATE: f64 = 1e-6;
/// PyTorch's own f32 norms are up to 1.5e-6 from the same trajectory in f64 (`tests/golden/float64.py` prints it; ours are up to
/// 1.1e-6 on a CPU), so two right programs differ by the sum. Full training at 1e-3 amplifies every rounding over its 20 steps, and
/// Vulkan drivers may round a division or exp by 2 to 3 ulp: 3.1e-6 seen on an H200.
const NORM: f64 = 5e-6;

struct Trajectory(serde_json::Value);

impl Trajectory {
    fn number(&self, key: &str) -> f64 {
        self.0[key].as_f64().unwrap_or_else(|| panic!("{key} is a number"))
    }
    fn list(&self, key: &str) -> Vec<f64> {
        self.0[key]
            .as_array()
            .unwrap_or_else(|| panic!("{key} is a list"))
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect()
    }
    /// The optimizer, as our config says it.
    fn hyper(&self) -> Hyper {
        let keys = self.0["config"].as_object().cloned().unwrap_or_default();
        let keys = keys.iter().map(|(key, value)| {
            let table = if key == "optim" || key.starts_with("loraplus") { "" } else { "optim_args." };
            format!("{table}{key}={value}")
        });
        let optim = (!self.0["config"]["optim"].is_string()).then(|| "optim=adamw".to_string());
        let rest = [("learning_rate", "lr"), ("weight_decay", "weight_decay"), ("max_grad_norm", "clip")];
        let rest = rest.map(|(key, name)| format!("{key}={}", self.number(name)));
        let all: Vec<String> = keys.chain(optim).chain(rest).chain(["lora.r=8".into()]).collect();
        let config = luthier::train::config::load("examples/quickstart.toml".as_ref(), &all);
        Hyper { decay: Decay::All, ..luthier::train::hyper(&config.unwrap_or_else(|e| panic!("{e}"))) }
    }
}

/// The largest errors of a run.
#[derive(Default)]
struct Worst {
    loss: f64,
    norm: f64,
    lr: f64,
    gradient: f64,
    weights: f64,
}

fn grow(worst: &mut f64, err: f64) {
    if !(err <= *worst) {
        *worst = err;
    }
}

/// PEFT's name of a parameter while it is trained.
fn live_name(name: &str) -> String {
    match name.strip_suffix(".weight") {
        Some(module) if name.contains(".lora_") => format!("{module}.default.weight"),
        Some(module) => format!("base_model.model.{module}.modules_to_save.default.weight"),
        // magnitudes have no `.weight` in files
        None => format!("{name}.default.weight"),
    }
}

fn file_name(name: &str, adapter: bool) -> String {
    if !adapter || name.starts_with("base_model.") { name.to_string() } else { format!("base_model.model.{name}") }
}

fn run(b: &dyn Backend, folder: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(folder.join("trajectory.json")).expect("trajectory.json");
    let t = Trajectory(serde_json::from_str(&text).expect("JSON"));
    // another optimizer's trajectory starts where an AdamW's does
    let other = t.0["start"].as_str().map(|name| golden_root().join(name));
    let begin = other.as_deref().unwrap_or(folder);
    let start = begin.join("adapter_start");
    let adapter = start.exists();
    let lora = if adapter { Some(peft::read_config(&start)?) } else { None };
    let options = LoadOptions { train: true, lora, ..LoadOptions::frozen(DType::F32) };
    let mut model = Model::load(b, &begin.join("base"), &options)?;
    if adapter {
        peft::load(b, &mut model, &start)?;
    }
    let mut optimizer = Optimizer::new(b, &mut model, t.hyper())?;
    let (steps, warmup) = (t.number("steps") as u64, t.number("warmup") as u64);
    let name = t.0["schedule"].as_str().expect("schedule");
    let kind = *SchedulerType::ALL.iter().find(|k| k.name() == name).expect("a known schedule");
    let schedule =
        Schedule { kind, kwargs: SchedulerKwargs::default(), learning_rate: t.number("lr"), warmup, total: steps };
    let (losses, norms, lrs) = (t.list("losses"), t.list("grad_norms"), t.list("lrs"));
    let batches = open(&begin.join("batches.safetensors"));
    let batch = [packed(&batches, "ids0", "labels0"), packed(&batches, "ids1", "labels1")];
    let N = batch[0].0.ids.len();
    let mut session = Session::new(b, &model, N, N, Plan::Recompute)?;
    let mut worst = Worst::default();
    for step in 0..steps as usize {
        let (tokens, labels) = &batch[step % 2];
        let coef = mean_loss(&[], labels).1;
        session.forward(&model, tokens)?;
        session.backward(&mut model, labels, &coef)?;
        grow(&mut worst.loss, (mean_loss(&session.backward_logprobs()?, labels).0 - losses[step]).abs());
        if step == 0 && adapter && other.is_none() {
            let norm = optimizer.gradient_norm(b)? as f64;
            let factor = (t.number("clip") / (norm + 1e-6)).min(1.0) as f32;
            let clipped = open(&folder.join("clipped_grads_step0.safetensors"));
            for param in model.trained() {
                let got: Vec<f32> = param.grad(b)?.iter().map(|g| g * factor).collect();
                grow(&mut worst.gradient, nmse(&got, &floats(&clipped, &format!("grad.{}", live_name(&param.name)))));
            }
        }
        let lr = schedule.lr(step as u64);
        grow(&mut worst.lr, (lr - lrs[step]).abs() / lrs[step].max(1e-30));
        let norm = optimizer.step(b, lr)? as f64;
        grow(&mut worst.norm, (norm - norms[step]).abs() / norms[step]);
    }
    let end = open(&match (&other, adapter) {
        (Some(_), _) => folder.join("end.safetensors"),
        (None, true) => folder.join("adapter_end/adapter_model.safetensors"),
        (None, false) => folder.join("end/model.safetensors"),
    });
    for param in model.trained() {
        grow(&mut worst.weights, nmse(&param.get(b)?, &floats(&end, &file_name(&param.name, adapter))));
    }
    session.forward(&model, &batch[0].0)?;
    let logits = max_abs(&session.logits(&model, 0, N)?, &floats(&batches, "end_logits"));
    let (got, want) = (model.trainable_parameters(), t.number("trainable") as usize);
    let Worst { loss, norm, lr, gradient, weights } = worst;
    let report = format!(
        "loss {loss:.1e} norm {norm:.1e} lr {lr:.1e} gradients {gradient:.1e} weights {weights:.1e} end logits {logits:.1e} trainable {got}"
    );
    let ok = loss <= LOSS && norm <= NORM && lr <= RATE && gradient <= GRADIENT && weights <= WEIGHTS && got == want;
    if ok { Ok(report) } else { Err(Error::Bug(format!("{report} (wanted {want} trainable)"))) }
}

/// Weights and states after three steps, as a checkpoint has them.
fn three_steps(b: &dyn Backend, hyper: Hyper) -> Vec<u8> {
    let folder = golden_root().join("train_full");
    let options = LoadOptions { train: true, ..LoadOptions::frozen(DType::Bf16) };
    let mut model = Model::load(b, &folder.join("base"), &options).unwrap();
    let mut optimizer = Optimizer::new(b, &mut model, hyper).unwrap();
    let (tokens, labels) = packed(&open(&folder.join("batches.safetensors")), "ids0", "labels0");
    let N = tokens.ids.len();
    let mut session = Session::new(b, &model, N, N, Plan::Recompute).unwrap();
    for _ in 0..3 {
        session.forward(&model, &tokens).unwrap();
        session.backward(&mut model, &labels, &mean_loss(&[], &labels).1).unwrap();
        optimizer.step(b, 1e-3).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("optimizer.safetensors");
    optimizer.save(b, &model, &file).unwrap();
    // and comes back as it was
    optimizer.load(b, &mut model, &file, 3).unwrap();
    let again = dir.path().join("again.safetensors");
    optimizer.save(b, &model, &again).unwrap();
    let bytes = std::fs::read(file).unwrap();
    assert!(std::fs::read(again).unwrap() == bytes, "{}: loaded and saved again", b.name());
    bytes
}

/// Pages of 4096 values: groups have many, and the last of a tensor is shorter.
#[test]
fn states_on_the_host_change_nothing() {
    for b in backends() {
        for rule in [Rule::AdamW, Rule::Lion] {
            for precision in [Precision::F32, Precision::Bits8] {
                let run = |home| three_steps(&*b, Hyper { rule, precision, home, ..Hyper::default() });
                let want = run(Home::Device);
                assert!(run(Home::Host { page: 4096 }) == want, "{rule:?} {precision:?} on {}", b.name());
                assert!(run(Home::HOST) == want, "{rule:?} {precision:?} on {}", b.name());
            }
        }
    }
}

#[test]
fn trajectories() {
    let backends = backends();
    let mut folders: Vec<_> = std::fs::read_dir(golden_root()).expect("goldens").map(|e| e.unwrap().path()).collect();
    folders.sort();
    let (mut failed, mut checked) = (Vec::new(), 0);
    for folder in folders.iter().filter(|f| f.join("trajectory.json").exists()) {
        let name = folder.file_name().unwrap().to_string_lossy();
        let start = folder.join("adapter_start");
        if start.exists()
            && let Err(why) = peft::read_config(&start)
        {
            println!("{name} unsupported {why}");
            continue;
        }
        for b in &backends {
            checked += 1;
            match run(&**b, folder) {
                Ok(report) => println!("{name} {} ok {report}", b.name()),
                Err(e) => {
                    println!("{name} {} FAIL {e}", b.name());
                    failed.push(format!("{name} {}: {e}", b.name()));
                }
            }
        }
    }
    assert!(checked > 0, "no trajectory in {}", golden_root().display());
    assert!(failed.is_empty(), "{failed:#?}");
}
