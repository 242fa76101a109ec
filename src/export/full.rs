//! A whole model as a Hugging Face folder: `config.json` and `model.safetensors`, or shards with an index.
use super::folder::{write, write_json};
use crate::backend::Backend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Outline, Writer, dtype_of};
use crate::model::param::Param;
use crate::model::{Model, arch};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A shard's size, as Hugging Face's "5GB".
const SHARD: usize = 5_000_000_000;

/// Writes every weight in the model's dtype (those that stay f32 in f32), and the config of `base` with that dtype.
pub fn save(b: &dyn Backend, model: &Model, base: &Path, out: &Path) -> Result<()> {
    let named = |p| Param::files(p).enumerate().map(move |(i, name)| (name, (p, i)));
    let params: BTreeMap<&str, (&Param, usize)> = model.params().flat_map(named).collect();
    let outlines: Vec<Outline> = params
        .iter()
        .map(|(name, (p, _))| Outline {
            name: name.to_string(),
            dtype: dtype_of(p.value.dtype()),
            shape: p.shape.clone(),
        })
        .collect();
    let bytes = |(param, i): (&Param, usize)| Ok(param.value.dtype().encode(&param.get_part(b, i)?));
    write_shards(out, outlines, |name| bytes(params[name]))?;
    let mut config = config(base, model.dtype, None)?;
    // there may be more tokens than the base has
    config["vocab_size"] = json!(model.spec.V);
    write_json(&out.join("config.json"), &config)
}

/// The config of a model (a folder, a GGUF file, a config file), with the dtype and the `quantization_config` its weights have now.
pub fn write_config(from: &Path, dtype: DType, quantization: Option<Value>, to: &Path) -> Result<()> {
    write_json(to, &config(from, dtype, quantization)?)
}

/// The same, not yet written.
pub(super) fn config(from: &Path, dtype: DType, quantization: Option<Value>) -> Result<Value> {
    let mut config = arch::read_config(from)?;
    let keys = config.as_object_mut().ok_or_else(|| Error::content(from, "", "a JSON object is wanted"))?;
    keys.remove("torch_dtype");
    keys.insert("dtype".into(), json!(dtype.name()));
    keys.remove("quantization_config");
    if let Some(quantization) = quantization {
        keys.insert("quantization_config".into(), quantization);
    }
    Ok(config)
}

/// Writes tensors into one file, or into several with an index when they are many; `bytes` gives each by name.
pub fn write_shards(out: &Path, outlines: Vec<Outline>, bytes: impl Fn(&str) -> Result<Vec<u8>>) -> Result<()> {
    let mut shards: Vec<Vec<Outline>> = vec![Vec::new()];
    let mut size = 0;
    for outline in outlines {
        if size > 0 && size + outline.bytes() > SHARD {
            shards.push(Vec::new());
            size = 0;
        }
        size += outline.bytes();
        shards.last_mut().expect("one at least").push(outline);
    }
    let count = shards.len();
    let name = |i: usize| match count {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    let (mut map, mut total) = (BTreeMap::new(), 0);
    for (i, shard) in shards.into_iter().enumerate() {
        let names: Vec<String> = shard.iter().map(|o| o.name.clone()).collect();
        total += shard.iter().map(Outline::bytes).sum::<usize>();
        let mut writer = Writer::create(&out.join(name(i)), shard)?;
        for tensor in names {
            writer.write(&bytes(&tensor)?)?;
            map.insert(tensor, name(i));
        }
        writer.finish()?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let text = serde_json::to_vec_pretty(&index).map_err(|e| Error::Bug(e.to_string()))?;
        write(&out.join("model.safetensors.index.json"), &text)?;
    }
    Ok(())
}
