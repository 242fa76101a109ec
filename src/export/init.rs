//! A checkpoint of random weights in any shape, streamed: never more than one tensor in memory.
use super::bnb::{self, Format, Parts};
use super::full::{write_config, write_shards};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Outline, dtype_of};
use crate::model::arch::read_spec;
use crate::ops::{dyn8, nf4};
use crate::rng::Rng;
use rayon::prelude::*;
use std::path::Path;

/// Values that one random stream fills.
const CHUNK: usize = 1 << 16;

/// Writes a folder for the config: matrices and sinks normal with its `initializer_range`, norms a factor of 1, biases 0, as transformers
/// starts.
/// With a `format`, the linear layers are random codes and scales of that spread; their floats are never made.
/// Returns the number of parameters.
pub fn init(config: &Path, out: &Path, dtype: DType, format: Option<Format>, seed: u64) -> Result<u64> {
    let spec = read_spec(config)?;
    if format.is_some() {
        bnb::check(&spec)?;
    }
    std::fs::create_dir_all(out).map_err(Error::write(out))?;
    let shapes: std::collections::HashMap<String, Vec<usize>> =
        spec.weights().into_iter().map(|w| (w.name, w.shape)).collect();
    let outline = |w: crate::model::spec::WeightSpec| Outline { name: w.name, dtype: dtype_of(dtype), shape: w.shape };
    let outlines = spec.weights().into_iter().map(outline).collect();
    let fresh = Fresh { std: spec.initializer_range, norm: 1.0 - spec.norm_weight.shift(), dtype, seed };
    let norms: Vec<String> = spec.norms().iter().map(|norm| format!(".{}.weight", norm.module)).collect();
    // a norm of heads is a matrix
    let is_norm = |name: &str| shapes[name].len() == 1 || norms.iter().any(|norm| name.ends_with(norm));
    let whole = |name: &str| Ok(fresh.values(name, &shapes[name], is_norm(name)));
    match format {
        None => write_shards(out, outlines, whole)?,
        Some(format) => {
            let parts = |module: &str, O: usize, C: usize| {
                Ok(match format {
                    Format::Nf4 => random_nf4(module, (O, C), fresh.std, dtype, seed),
                    Format::Int8 => random_int8(module, (O, C), fresh.std, seed),
                })
            };
            bnb::write(out, outlines, format, dtype, &bnb::modules(&spec), whole, parts)?;
        }
    }
    let file = if config.is_dir() { config.join("config.json") } else { config.to_path_buf() };
    let quantization = format.map(|format| bnb::config(format, dtype, &spec, &bnb::modules(&spec)));
    write_config(&file, dtype, quantization, &out.join("config.json"))?;
    Ok(spec.parameters())
}

/// How fresh weights are made.
struct Fresh {
    std: f32,
    norm: f32,
    dtype: DType,
    seed: u64,
}

impl Fresh {
    fn values(&self, name: &str, shape: &[usize], norm_or_bias: bool) -> Vec<u8> {
        let len: usize = shape.iter().product();
        if name.ends_with(".bias") || name.ends_with("_bias") {
            return self.dtype.encode(&vec![0.0; len]);
        }
        if norm_or_bias && !name.ends_with(".sinks") {
            return self.dtype.encode(&vec![self.norm; len]);
        }
        let mut bytes = vec![0; len * self.dtype.size()];
        bytes.par_chunks_mut(CHUNK * self.dtype.size()).enumerate().for_each(|(c, chunk)| {
            let mut rng = Rng::named(self.seed, &format!("{name}/{c}"));
            let count = chunk.len() / self.dtype.size();
            let values: Vec<f32> = (0..count).map(|_| rng.normal() * self.std).collect();
            chunk.copy_from_slice(&self.dtype.encode(&values));
        });
        bytes
    }
}

/// `len` random bytes.
fn random_bytes(name: &str, len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes.par_chunks_mut(CHUNK).enumerate().for_each(|(c, chunk)| {
        let mut rng = Rng::named(seed, &format!("{name}/{c}"));
        for word in chunk.chunks_mut(8) {
            word.copy_from_slice(&rng.bits().to_le_bytes()[..word.len()]);
        }
    });
    bytes
}

/// Three of sixteen highest levels become lowest ones: NF4's levels are not symmetric, all as likely their mean is 0.023, and a
/// common mean of a large matrix is a direction that outgrows all others, layer after layer.
fn balance(codes: &mut [u8]) {
    codes.par_chunks_mut(CHUNK).for_each(|chunk| {
        let mut seen = 0;
        let mut flip = |code: u8| {
            seen += u32::from(code == 15);
            if code == 15 && seen % 16 < 3 { 0 } else { code }
        };
        chunk.iter_mut().for_each(|byte| *byte = flip(*byte >> 4) << 4 | flip(*byte & 15));
    });
}

/// NF4's levels are a normal distribution's quantiles: codes that are all as likely, on scales around the one that gives `std`.
fn random_nf4(module: &str, (O, C): (usize, usize), std: f32, dtype: DType, seed: u64) -> Parts {
    let (P, blocks) = (O * C, (O * C).div_ceil(nf4::BLOCK));
    let spread = (nf4::LEVELS.iter().map(|l| l * l).sum::<f32>() / 16.0).sqrt();
    let absmax = std / spread;
    let mut codes = random_bytes(&format!("{module}.codes"), P.div_ceil(2), seed);
    balance(&mut codes);
    if let (Some(last), 1) = (codes.last_mut(), P % 2) {
        *last &= 0xf0;
    }
    let qabsmax = random_bytes(&format!("{module}.absmax"), blocks, seed);
    // the scales of 64 normal values differ by about a fifth
    let nested = DType::F32.encode(&vec![absmax / 5.0; blocks.div_ceil(dyn8::BLOCK)]);
    let map = DType::F32.encode(&dyn8::dynamic_map(true));
    bnb::nf4_parts(dtype, (O, C), codes, qabsmax, nested, map, absmax)
}

/// Codes that are all as likely, -127 to 127, on the scale that gives `std`.
fn random_int8(module: &str, (O, C): (usize, usize), std: f32, seed: u64) -> Parts {
    // a byte of 128, -128, has no counterpart: 0 instead
    let mut codes = random_bytes(&format!("{module}.codes"), O * C, seed);
    codes.par_iter_mut().filter(|code| **code == 128).for_each(|code| *code = 0);
    bnb::int8_parts(codes, DType::F32.encode(&vec![std * 3f32.sqrt(); O]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::model::{LoadOptions, Model};

    #[test]
    fn random_codes_have_the_spread_that_the_config_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        // sizes that leave a last block of NF4 and odd bytes
        let config = r#"{"model_type": "llama", "hidden_size": 36, "intermediate_size": 51, "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 40, "initializer_range": 0.05}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        for format in [Format::Nf4, Format::Int8] {
            let out = dir.path().join(format!("{format:?}"));
            init(dir.path(), &out, DType::Bf16, Some(format), 7).unwrap();
            let b: &dyn crate::backend::Backend = &Cpu::new();
            let model = Model::load(b, &out, &LoadOptions::frozen(DType::F32)).unwrap();
            for linear in model.linears() {
                let mut weight = b.alloc(linear.O * linear.C, DType::F32).unwrap();
                linear.dequantize(b, &mut weight).unwrap();
                let values = b.download_f32(&weight).unwrap();
                let std = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
                assert!((std / 0.05 - 1.0).abs() < 0.15, "{format:?} {}: {std}", linear.name);
                let mean = values.iter().sum::<f32>() / values.len() as f32;
                assert!(mean.abs() < 4.0 * std / (values.len() as f32).sqrt(), "{format:?} {}: {mean}", linear.name);
            }
        }
    }

    #[test]
    fn a_fresh_checkpoint_loads_and_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let read = |name: &str| {
            let out = dir.path().join(name);
            let count = init(&dir.path().join("config.json"), &out, DType::Bf16, None, 7).unwrap();
            let model = Model::load(&Cpu::new(), &out, &LoadOptions::frozen(DType::F32)).unwrap();
            assert_eq!(count, model.params().map(|p| p.elements() as u64).sum::<u64>());
            std::fs::read(out.join("model.safetensors")).unwrap()
        };
        assert_eq!(read("a"), read("b"));
    }
}
