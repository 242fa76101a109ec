//! What the golden tests share: backends, folders, comparisons.
use luthier::backend::{Backend, cpu::Cpu};
use luthier::io::safetensors::Tensors;
use std::path::{Path, PathBuf};

/// `$LUTHIER_GOLDEN`, or the goldens that come with the project.
pub fn golden_root() -> PathBuf {
    std::env::var_os("LUTHIER_GOLDEN").map_or_else(|| PathBuf::from("tests/golden"), PathBuf::from)
}

/// Every backend there is; `LUTHIER_REQUIRE=wgpu,cuda` makes an absent one a failure.
pub fn backends() -> Vec<Box<dyn Backend>> {
    let required = std::env::var("LUTHIER_REQUIRE").unwrap_or_default();
    let mut all: Vec<Box<dyn Backend>> = vec![Box::new(Cpu::new())];
    for name in ["wgpu", "cuda"] {
        match luthier::backend::pick::pick(name) {
            Ok((b, _)) => all.push(b),
            Err(e) if required.split(',').any(|r| r == name) => panic!("LUTHIER_REQUIRE names {name}: {e}"),
            Err(e) => println!("{name}: skipped: {e}"),
        }
    }
    all
}

/// Normalised mean square error. NaN in, NaN out: compare with `!(nmse <= tol)`.
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - *w as f64).powi(2)).sum();
    error / want.iter().map(|w| (*w as f64).powi(2)).sum::<f64>().max(1e-30)
}

pub fn max_abs(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (*g as f64 - *w as f64).abs()).fold(0.0, |m, e| if e <= m { m } else { e })
}

pub fn open(file: &Path) -> Tensors {
    Tensors::open(&[file.to_path_buf()]).unwrap_or_else(|e| panic!("{e}"))
}

pub fn floats(t: &Tensors, name: &str) -> Vec<f32> {
    t.get(name)
        .and_then(|t| t.to_f32().ok_or_else(|| luthier::error::Error::Bug("no float".into())))
        .unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A golden batch [B, T] packed: ids and positions, and labels moved to the token that predicts them.
pub fn packed(t: &Tensors, ids: &str, labels: &str) -> (luthier::model::Tokens, Vec<u32>) {
    let (ids, labels) = (t.get(ids).unwrap(), t.get(labels).unwrap());
    let [B, T] = ids.shape[..] else { panic!("ids are [B, T]") };
    let shift = |row: &[i64]| -> Vec<u32> {
        row[1..].iter().map(|l| if *l < 0 { u32::MAX } else { *l as u32 }).chain([u32::MAX]).collect()
    };
    let labels: Vec<u32> = labels.to_i64().unwrap().chunks(T).flat_map(shift).collect();
    let tokens = luthier::model::Tokens {
        ids: ids.to_i64().unwrap().iter().map(|x| *x as u32).collect(),
        positions: (0..B * T).map(|n| (n % T) as u32).collect(),
        cu_seqlens: (0..=B).map(|s| (s * T) as u32).collect(),
    };
    (tokens, labels)
}

/// coef = −1/count for every counted label: the mean cross-entropy.
pub fn mean_loss(logp: &[f32], labels: &[u32]) -> (f64, Vec<f32>) {
    let count = labels.iter().filter(|l| **l != u32::MAX).count() as f64;
    let coef = labels.iter().map(|l| if *l == u32::MAX { 0.0 } else { (-1.0 / count) as f32 }).collect();
    (-logp.iter().map(|x| *x as f64).sum::<f64>() / count, coef)
}
