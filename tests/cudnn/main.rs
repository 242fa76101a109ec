//! Attention by cuDNN against the references at f64, and next to our own kernels: a line a case, with errors and times.
//!
//! Wants an NVIDIA GPU and libcudnn; `LUTHIER_REQUIRE=cuda` makes their absence a failure.
//! `LUTHIER_REQUIRE=cuda cargo test --release --test cudnn -- --nocapture --test-threads 1`
#![cfg(feature = "cuda")]
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= limit)`, so that NaN fails")]
use cases::{case, cases};
use luthier::backend::Backend;
use luthier::backend::cuda::{AttentionPath, Cuda};
use luthier::dtype::DType::Bf16;
use run::{Ran, judge, run};
use std::panic::{AssertUnwindSafe, catch_unwind};

mod cases;
mod hints;
mod model;
mod run;

/// A device that runs attention so; none where there is none and none is required.
fn open(path: AttentionPath) -> Option<Cuda> {
    match Cuda::with_attention(0, path) {
        Ok(cuda) => Some(cuda),
        Err(e) if std::env::var("LUTHIER_REQUIRE").is_ok_and(|r| r.contains("cuda")) => panic!("{e}"),
        Err(e) => {
            eprintln!("cuda: skipped, {e}");
            None
        }
    }
}

fn nmse(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - w).powi(2)).sum();
    error / want.iter().map(|w| w.powi(2)).sum::<f64>().max(1e-30)
}

#[test]
fn both_ways_agree_with_the_reference() {
    let (Some(own), Some(cudnn)) = (open(AttentionPath::Own), open(AttentionPath::Cudnn)) else { return };
    let mut failures = Vec::new();
    for case in cases() {
        let data = case.data();
        println!("{}", case.name());
        for (path, cuda) in [("own", &own), ("cudnn", &cudnn)] {
            // an error of one case hides no other
            let tried = catch_unwind(AssertUnwindSafe(|| run(cuda, &case, &data)));
            let Ok(ran) = tried else {
                failures.push(format!("{} {path}: panicked", case.name()));
                continue;
            };
            let (line, mut wrong) = judge(&ran, &case, &data);
            let [forward, backward] = ran.times;
            println!("  {path:<6} {forward:8.1} us {backward:8.1} us {line} {}", wrong.join(", "));
            let expected = if path == "cudnn" { 2 } else { 0 };
            if ran.by_cudnn != expected {
                wrong.push(format!("cuDNN ran {} of {expected} calls", ran.by_cudnn));
            }
            failures.extend(wrong.into_iter().map(|w| format!("{} {path}: {w}", case.name())));
        }
    }
    println!("plans:");
    cudnn.cudnn().1.iter().for_each(|plan| println!("  {plan}"));
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_same_bits_again_where_they_are_wanted() {
    let Some(cuda) = open(AttentionPath::Cudnn) else { return };
    for case in [case(&[1024; 4], [8, 2, 128], Bf16), case(&[1000, 24, 2000], [8, 2, 128], Bf16)] {
        let data = case.data();
        let bits = |ran: &Ran| {
            let of = |name: &str| ran.outputs[name].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            (["out", "lse"].map(of), ["dq", "dk", "dv"].map(of))
        };
        let first = run(&cuda, &case, &data);
        let again: Vec<Ran> = (0..4).map(|_| run(&cuda, &case, &data)).collect();
        let same = |ran: &Ran| bits(ran).1 == bits(&first).1;
        println!("{}: backward the same in {} of 4 runs", case.name(), again.iter().filter(|r| same(r)).count());
        assert!(again.iter().all(|r| bits(r).0 == bits(&first).0), "{}: the forward differs", case.name());
        cuda.set_deterministic(true);
        let steady = run(&cuda, &case, &data);
        assert_eq!(steady.by_cudnn, 1, "the backward is our own");
        assert!((0..4).all(|_| bits(&run(&cuda, &case, &data)) == bits(&steady)), "{}", case.name());
        cuda.set_deterministic(false);
    }
}

/// The sizes of an 8B model. TFLOP/s: causal pairs alone are counted.
#[test]
fn speeds() {
    let (Some(own), Some(cudnn)) = (open(AttentionPath::Own), open(AttentionPath::Cudnn)) else { return };
    let packed: Vec<u32> = [25, 16, 12, 10, 9, 7, 6, 5, 4, 3, 2, 1].map(|share| share * 16384 / 100).to_vec();
    let short: Vec<u32> = (0..64).map(|i| 128 + (i * 37) % 256).collect();
    for lengths in [vec![2048; 2], vec![2048; 8], vec![16384], vec![2047; 8], packed, short] {
        let case = case(&lengths, [32, 8, 128], Bf16);
        let mut data = case.shape();
        (data.out, data.lse) = (data.dout.clone(), vec![5.0; data.p.N as usize * 32]);
        let pairs: f64 = lengths.iter().map(|l| *l as f64 * (*l as f64 + 1.0) / 2.0).sum();
        println!("{}, {} tokens", case.name(), data.p.N);
        for (path, cuda) in [("own", &own), ("cudnn", &cudnn)] {
            let ran = run(cuda, &case, &data);
            let [forward, backward] = ran.times;
            let rate = |products: f64, us: f64| products * 2.0 * pairs * 4096.0 / us / 1e6;
            println!(
                "  {path:<6} {forward:9.1} us {:6.1} TFLOP/s  {backward:9.1} us {:6.1} TFLOP/s, {} calls by cuDNN",
                rate(2.0, forward),
                rate(5.0, backward),
                ran.by_cudnn
            );
        }
    }
    println!("memory: {:?}", cudnn.memory());
    cudnn.cudnn().1.iter().for_each(|plan| println!("  {plan}"));
}
