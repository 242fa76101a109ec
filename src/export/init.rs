//! A checkpoint of random weights in any shape, streamed: never more than one tensor in memory.
use super::full::{write_config, write_shards};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Outline, dtype_of};
use crate::model::arch::read_spec;
use crate::rng::Rng;
use rayon::prelude::*;
use std::path::Path;

/// Values that one random stream fills.
const CHUNK: usize = 1 << 16;

/// Writes a folder for the config: matrices normal with its `initializer_range`, norms a factor of 1, biases 0, as transformers
/// starts.
/// Returns the number of parameters.
pub fn init(config: &Path, out: &Path, dtype: DType, seed: u64) -> Result<u64> {
    let spec = read_spec(config)?;
    std::fs::create_dir_all(out).map_err(Error::write(out))?;
    let shapes: std::collections::HashMap<String, Vec<usize>> =
        spec.weights().into_iter().map(|w| (w.name, w.shape)).collect();
    let outline = |w: crate::model::spec::WeightSpec| Outline { name: w.name, dtype: dtype_of(dtype), shape: w.shape };
    let outlines = spec.weights().into_iter().map(outline).collect();
    let fresh = Fresh { std: spec.initializer_range, norm: 1.0 - spec.norm_weight.shift(), dtype, seed };
    write_shards(out, outlines, |name| Ok(fresh.values(name, &shapes[name])))?;
    let file = if config.is_dir() { config.join("config.json") } else { config.to_path_buf() };
    write_config(&file, dtype, &out.join("config.json"))?;
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
    fn values(&self, name: &str, shape: &[usize]) -> Vec<u8> {
        let len: usize = shape.iter().product();
        if shape.len() == 1 {
            return self.dtype.encode(&vec![if name.ends_with(".bias") { 0.0 } else { self.norm }; len]);
        }
        let chunk = |c: usize| {
            let mut rng = Rng::named(self.seed.wrapping_add(c as u64), name);
            let count = CHUNK.min(len - c * CHUNK);
            self.dtype.encode(&(0..count).map(|_| rng.normal() * self.std).collect::<Vec<f32>>())
        };
        (0..len.div_ceil(CHUNK)).into_par_iter().flat_map_iter(chunk).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::model::{LoadOptions, Model};

    #[test]
    fn a_fresh_checkpoint_loads_and_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let read = |name: &str| {
            let out = dir.path().join(name);
            let count = init(&dir.path().join("config.json"), &out, DType::Bf16, 7).unwrap();
            let model = Model::load(&Cpu::new(), &out, &LoadOptions::frozen(DType::F32)).unwrap();
            assert_eq!(count, model.params().map(|p| p.elements() as u64).sum::<u64>());
            std::fs::read(out.join("model.safetensors")).unwrap()
        };
        assert_eq!(read("a"), read("b"));
    }
}
