//! The parity matrix (op × case × storage type × backend) and the gradients; one file of cases per file of src/ops.
//!
//! `cargo test --release --test ops rope` runs the cases of tests/ops/rope.rs on every backend there is (`devices.rs`).
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= limit)`, so that NaN fails")]
use case::Case;
use devices::{on_devices, say};
use gradient::Gradient;
use luthier::ops::Op;
use parity::Trial;
use std::collections::BTreeMap;

mod backend;
mod case;
mod codes;
mod controls;
mod devices;
mod gradient;
mod limits;
mod parity;
mod values;

/// Declares the files of cases; each is a test of its name.
macro_rules! files {
    ($($file:ident),+ $(,)?) => {
        $( mod $file; )+
        mod matrix {
            $( #[test] fn $file() { super::check(stringify!($file), super::$file::cases(), super::$file::gradients()); } )+
        }
    };
}
files! {
    activation, adamw, attention, attention_sink, balance, bias, cast, clamped_swiglu, dora, dropout, dyn8, embedding, expert_bias, expert_count, fill, fp8, fp8_matmul, gguf,
    gradnorm, group_router, grouped, int8, latent, layernorm, lion, logprob, low_rank, matmul, muon, mxfp4, nf4, noise, paged_attention, pages, residual, rmsnorm, rope,
    route, routed_swiglu, router, rows, sample, sgd, swiglu, thin,
}

/// What a backend did with a file's cases.
#[derive(Default)]
struct Tally {
    runs: usize,
    worst: f64,
    worst_at: String,
}

fn check(file: &str, cases: Vec<Case>, gradients: Vec<Gradient>) {
    for op in Op::ALL.iter().filter(|op| op.spec().file == file) {
        assert!(cases.iter().any(|c| c.op == *op), "{op:?} has no case");
        let backward = op.spec().name.contains("_backward");
        assert!(
            !backward || gradients.iter().any(|g| g.backward() == *op),
            "{op:?} is compared with no finite differences"
        );
    }
    let none = devices::wanted_and_absent(cases.iter().map(|case| case.label.as_str()));
    assert!(none.is_empty(), "{file}: LUTHIER_CASES wants {none:?}, which no case is");
    let cases: Vec<Case> = cases.into_iter().filter(|case| devices::is_wanted(&case.label)).collect();
    let mut failures: Vec<String> = gradients.iter().filter_map(|g| g.check(&values::reference).err()).collect();
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    for case in &cases {
        for storage in case.storages() {
            let trial = Trial::new(case, &storage);
            for (device, result) in on_every_device(&trial) {
                let tally = tallies.entry(device).or_default();
                tally.runs += 1;
                match result.and_then(|after| trial.compare(&after)) {
                    Ok(share) if share > tally.worst => (tally.worst, tally.worst_at) = (share, trial.label.clone()),
                    Ok(_) => {}
                    Err(what) => failures.push(format!("{device}: {what}")),
                }
            }
        }
    }
    for (device, tally) in &tallies {
        let Tally { runs, worst, worst_at } = tally;
        say(&format!("{file} on {device}: {runs} runs, at most {worst:.2} of the limit ({worst_at})"));
    }
    failures.extend(without_coop(file));
    let shown: Vec<_> = failures.iter().take(40).map(|f| f.as_str()).collect();
    assert!(failures.is_empty(), "{file}: {} failures\n{}", failures.len(), shown.join("\n"));
}

/// Where cooperative matrices are required, what multiplies matrices must have run on them.
fn without_coop(file: &str) -> Option<String> {
    let multiplies = ["matmul", "attention"].contains(&file) && devices::requires_coop();
    let fast = format!("{file}_coop");
    let calls = multiplies.then(|| on_devices(move |all| all.iter().map(|d| (d.calls)(&fast)).sum::<u64>()))?;
    say(&format!("{file}: {calls} calls on cooperative matrices"));
    (calls == 0).then(|| format!("{file}: no call ran on cooperative matrices"))
}

type After = Result<Vec<Vec<u8>>, String>;

/// A backend that panics fails its trial, not the others.
fn on_every_device(trial: &Trial) -> Vec<(&'static str, After)> {
    let trial = trial.clone();
    on_devices(move |devices| {
        let run = |d: &devices::Device| {
            let run = || trial.run(&*d.backend);
            let panicked = |e: Box<dyn std::any::Any + Send>| {
                let text = e.downcast_ref::<String>().map(String::as_str).or(e.downcast_ref::<&str>().copied());
                Err(format!("{}: panicked: {}", trial.label, text.unwrap_or("?")))
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(panicked)
        };
        devices.iter().map(|d| (d.name, run(d))).collect()
    })
}
