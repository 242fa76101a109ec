//! What a step computes does not depend on which examples share its rows: the same loss and gradients, packed or not.
#![allow(non_snake_case, reason = "dims are capital letters, as everywhere")]
use luthier::backend::Backend;
use luthier::data::{self, Batch, BatchOptions, Example, Examples, Packing};
use luthier::dtype::DType::F32;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
use luthier::rng::Rng;
use luthier::train::method::cross_entropy;
use std::path::Path;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

const LENGTH: usize = 24;

/// Examples of all lengths, of which the last two thirds of the tokens count.
fn examples(V: usize) -> Examples {
    let mut rng = Rng::new(7);
    let example = |len: usize, rng: &mut Rng| Example {
        ids: (0..len).map(|_| (rng.bits() % V as u64) as u32).collect(),
        trained: (0..len).map(|i| 3 * i >= len).collect(),
    };
    [5, 24, 2, 11, 7, 3, 13, 9, 24, 4].into_iter().map(|len| example(len, &mut rng)).collect()
}

/// Mean loss of all examples in one step, its gradients, and the rows that it took.
fn step(b: &dyn Backend, folder: &Path, packing: Packing) -> (f64, Vec<Vec<f32>>, usize) {
    let mut model = Model::load(b, folder, &LoadOptions { train: true, ..LoadOptions::frozen(F32) }).unwrap();
    let options = BatchOptions { max_length: LENGTH, rows: 2, packing, seed: 0, shuffle: false, pad_id: 0 };
    let examples = examples(model.spec.V);
    let batches: Vec<Batch> = data::batches(&examples, &options, 0).collect();
    let counted = batches.iter().map(|batch| batch.counted).sum();
    let N = 2 * LENGTH;
    let mut session = Session::new(b, &model, N, LENGTH, Plan::Recompute).unwrap();
    let (mut loss, rows) = (0.0, 2 * batches.len());
    for Batch { ids, labels, positions, cu_seqlens, .. } in batches {
        session.forward(&model, &Tokens { ids, positions, cu_seqlens }).unwrap();
        session.backward(&mut model, &labels, &cross_entropy::coef(&labels, counted)).unwrap();
        loss += cross_entropy::loss(&session.backward_logprobs().unwrap(), counted);
    }
    let grads = model.trained().map(|p| b.download_f32(&p.train.as_ref().unwrap().grad).unwrap()).collect();
    (loss, grads, rows)
}

#[test]
fn packed_and_unpacked_steps_are_the_same() {
    // plain, windows and softcaps, a window, learned positions, latent attention, mixtures, fused projections
    for family in ["llama", "gemma2", "mistral", "gpt2", "deepseek_v3", "qwen3_moe", "phi3"] {
        let folder = Path::new("tests/golden").join(family);
        for b in backends() {
            let (off, want, rows) = step(&*b, &folder, Packing::Off);
            let (packed, got, fewer) = step(&*b, &folder, Packing::Bfd);
            assert!(fewer < rows, "{family}: {fewer} rows packed, {rows} not");
            let apart = (off - packed).abs() / off;
            let worst = want.iter().zip(&got).map(|(want, got)| nmse(got, want)).fold(0.0, f64::max);
            println!("{family} on {}: loss {off:.6}, {apart:.1e} apart, gradients {worst:.1e}", b.name());
            assert!(apart <= 1e-6, "{family} on {}: {off} and {packed}", b.name());
            assert!(worst <= 1e-9, "{family} on {}: gradients {worst:e} apart", b.name());
        }
    }
}
