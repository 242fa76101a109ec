//! A step of a model, by our own kernels and by cuDNN.
use super::cases::case;
use super::{nmse, open};
use luthier::backend::cuda::{AttentionPath, Cuda};
use luthier::dtype::DType::Bf16;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
use std::collections::BTreeMap;

/// Loss and gradients of a model with random weights over packed sequences.
fn step(cuda: &Cuda, folder: &std::path::Path, lengths: &[u32]) -> (f64, BTreeMap<String, Vec<f32>>) {
    let options = LoadOptions { train: true, ..LoadOptions::frozen(Bf16) };
    let mut model = Model::load(cuda, folder, &options).unwrap();
    let cu_seqlens = case(lengths, [1; 3], Bf16).cu_seqlens();
    let N = *cu_seqlens.last().unwrap() as usize;
    let ids: Vec<u32> = (0..N as u32).map(|n| (n * 37 + n / 7 * 11) % 256).collect();
    let labels: Vec<u32> = (0..N as u32).map(|n| if n % 7 == 3 { u32::MAX } else { (n * 53 + 8) % 256 }).collect();
    let tokens = Tokens { ids, positions: lengths.iter().flat_map(|length| 0..*length).collect(), cu_seqlens };
    let mut session = Session::new(cuda, &model, N, N, Plan::Recompute).unwrap();
    session.forward(&model, &tokens).unwrap();
    let logp = session.logprobs(&model, &labels).unwrap();
    let counted = labels.iter().filter(|l| **l != u32::MAX).count() as f64;
    let coef: Vec<f32> = labels.iter().map(|l| if *l == u32::MAX { 0.0 } else { (-1.0 / counted) as f32 }).collect();
    session.backward(&mut model, &labels, &coef).unwrap();
    let gradients = model.trained().map(|p| (p.name.clone(), p.grad(cuda).unwrap())).collect();
    (-logp.iter().map(|x| *x as f64).sum::<f64>() / counted, gradients)
}

#[test]
fn a_packed_step_of_a_model_is_the_same_both_ways() {
    let (Some(own), Some(cudnn)) = (open(AttentionPath::Own), open(AttentionPath::Auto)) else { return };
    let sizes = r#""vocab_size": 256, "hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5"#;
    let mut failures = Vec::new();
    for (kind, more) in [("llama", ""), ("mistral", ", \"sliding_window\": 200")] {
        let dir = tempfile::tempdir().unwrap();
        let (config, made) = (dir.path().join("config.json"), dir.path().join("made"));
        std::fs::write(&config, format!("{{\"model_type\": \"{kind}\", {sizes}{more}}}")).unwrap();
        luthier::export::init::init(&config, &made, Bf16, None, 5).unwrap();
        for lengths in [&[1024, 1024][..], &[900, 1, 400, 123], &[2048]] {
            let before = cudnn.cudnn().0;
            let (want, got) = (step(&own, &made, lengths), step(&cudnn, &made, lengths));
            let by_cudnn = cudnn.cudnn().0 - before;
            let off = (got.0 - want.0).abs() / want.0;
            let error = |name: &String| {
                let want: Vec<f64> = want.1[name].iter().map(|x| *x as f64).collect();
                (nmse(&got.1[name], &want), name.clone())
            };
            let worst = got.1.keys().map(error).fold((0.0, String::new()), |a, b| if b.0 <= a.0 { a } else { b });
            println!("{kind} {lengths:?}: loss off {off:.1e}, worst gradient {worst:?}, {by_cudnn} calls by cuDNN");
            // 3 layers: forward, again for the backward, backward
            if !(off <= 1e-3 && worst.0 <= 3e-3) || by_cudnn != 9 {
                failures.push(format!("{kind} {lengths:?}: {off:e} {worst:?} {by_cudnn}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
