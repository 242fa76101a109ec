//! The routers' balance loss against transformers', and NEFTune's noise against embeddings that have it already.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= tol)`, so that NaN fails")]
use luthier::dtype::DType;
use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
use luthier::ops::noise::{Noise, noise_forward};
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

/// The loss, and the gradients that it alone gives.
#[test]
fn the_routers_balance_is_transformers() {
    let mut checked = 0;
    for folder in std::fs::read_dir(golden_root()).unwrap().map(|e| e.unwrap().path()) {
        if !folder.join("balance.safetensors").exists() {
            continue;
        }
        let (golden, balance) = (open(&folder.join("golden.safetensors")), open(&folder.join("balance.safetensors")));
        let mask: Vec<bool> = balance.get("mask").unwrap().to_i64().unwrap().iter().map(|x| *x == 1).collect();
        let (tokens, labels) = packed(&golden, "input_ids", "labels");
        for b in backends() {
            let b = &*b;
            let options = LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) };
            let mut model = Model::load(b, &folder, &options).unwrap();
            assert!(model.has_balance());
            let N = tokens.ids.len();
            let mut session = Session::new(b, &model, N, N, Plan::Recompute).unwrap();
            assert_eq!(session.balance_loss().unwrap(), None);
            let far = |got: f64, key: &str| (got / floats(&balance, key)[0] as f64 - 1.0).abs();
            session.start_balance(&model, &vec![true; N], 1.0).unwrap();
            session.forward(&model, &tokens).unwrap();
            let whole = far(session.balance_loss().unwrap().unwrap(), "aux_loss_all");
            // what is padded sees and is seen by nothing that counts
            session.start_balance(&model, &mask, 0.5).unwrap();
            session.forward(&model, &tokens).unwrap();
            let masked = far(session.balance_loss().unwrap().unwrap(), "aux_loss");
            session.backward(&mut model, &vec![u32::MAX; labels.len()], &vec![0.0; N]).unwrap();
            let mut gradients = 0.0f64;
            let mut routers = 0;
            for param in model.trained() {
                let name = format!("grad.{}", param.name);
                if balance.contains(&name) {
                    let got: Vec<f32> = param.grad(b).unwrap().iter().map(|g| g * 2.0).collect();
                    gradients = gradients.max(nmse(&got, &floats(&balance, &name)));
                    routers += 1;
                }
            }
            println!(
                "{} {}: loss {whole:.1e}, masked {masked:.1e}, gradients {gradients:.1e}",
                folder.display(),
                b.name()
            );
            assert!(whole <= 1e-5 && masked <= 1e-5 && gradients <= 1e-8, "{}", b.name());
            assert_eq!(routers, balance.names().filter(|name| name.starts_with("grad.")).count());
            checked += 1;
        }
    }
    assert!(checked > 0, "no golden");
}

#[test]
fn a_frozen_router_has_no_gradient_and_the_rest_has() {
    let b = &*backends().remove(0);
    let options = LoadOptions { train: true, freeze_router: true, ..LoadOptions::frozen(DType::F32) };
    let model = Model::load(b, "tests/golden/mixtral".as_ref(), &options).unwrap();
    let all = model.params().count();
    let frozen: Vec<&str> = model.params().filter(|p| p.train.is_none()).map(|p| p.name.as_str()).collect();
    assert_eq!(frozen.len(), 2, "{frozen:?} of {all}");
    assert!(frozen.iter().all(|name| name.ends_with("block_sparse_moe.gate.weight")), "{frozen:?}");
}

/// Sequences of 4 and 12 tokens, none twice: noise on a token is noise on its row of the embedding.
#[test]
fn neftunes_noise_is_on_the_embeddings() {
    let folder = "tests/golden/llama".as_ref();
    let (alpha, seed, lengths) = (5.0, 99, [4usize, 12]);
    let N = 16;
    let ids: Vec<u32> = (0..N as u32).map(|n| n * 5 + 3).collect();
    let tokens =
        Tokens { ids: ids.clone(), positions: (0..4).chain(0..12).collect(), cu_seqlens: vec![0, 4, N as u32] };
    for b in backends() {
        let b = &*b;
        let options = LoadOptions { train: true, ..LoadOptions::frozen(DType::F32) };
        let mut model = Model::load(b, folder, &options).unwrap();
        let (C, V) = (model.spec.C, model.spec.V);
        let mut session = Session::new(b, &model, N, N, Plan::Recompute).unwrap();
        let mut logits = |model: &Model, noise: Option<(f64, u32)>| {
            session.set_neftune(noise).unwrap();
            session.forward(model, &tokens).unwrap();
            session.logits(model, 0, N).unwrap()
        };
        let (plain, noisy) = (logits(&model, None), logits(&model, Some((alpha, seed))));
        assert!(max_abs(&plain, &noisy) > 0.01, "noise shows");
        assert_eq!(logits(&model, None), plain, "and goes");

        let mut noise = vec![0.0f64; N * C];
        let magnitude: Vec<f64> = lengths.iter().flat_map(|L| vec![alpha / ((L * C) as f64).sqrt(); *L]).collect();
        noise_forward(&mut noise, &magnitude, &Noise { N: N as u32, C: C as u32, seed, stream: 0 });
        let table = model.params_mut().next().unwrap();
        assert_eq!((table.name.as_str(), table.elements()), ("model.embed_tokens.weight", V * C));
        let mut rows = table.get(b).unwrap();
        for (n, id) in ids.iter().enumerate() {
            (0..C).for_each(|c| rows[*id as usize * C + c] += noise[n * C + c] as f32);
        }
        table.set(b, &rows).unwrap();
        let err = max_abs(&noisy, &logits(&model, None));
        println!("{}: {err:.1e}", b.name());
        // the same values but for where they were rounded: 1.1e-5 seen on an H200's Vulkan; the noise itself moves logits by 1e-2
        assert!(err <= 5e-5, "{}: {err}", b.name());
    }
}
