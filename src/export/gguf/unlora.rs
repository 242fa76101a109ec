//! The reverse of `lora`: a GGUF adapter as the folder that PEFT would have written.
use super::lora::{modules, rows};
use crate::dtype::DType;
use crate::error::Result;
use crate::export::peft;
use crate::io::gguf::{Gguf, Value};
use crate::io::safetensors::{Dtype, Outline, Writer};
use crate::model::gguf::{Described, Place, describe};
use crate::model::lora::{LoraConfig, Patterns, Targets};
use crate::model::spec::Spec;
use std::collections::BTreeSet;
use std::path::Path;

/// A module's A or B.
struct Side {
    module: String,
    side: &'static str,
    shape: [usize; 2],
    values: Vec<f32>,
}

/// Writes the adapter for a model of this spec into `out`, a folder that is there.
pub fn read(spec: &Spec, file: &Path, out: &Path) -> Result<()> {
    let gguf = Gguf::open(file)?;
    let Described { architecture, places, .. } = describe(spec)?;
    for (key, want) in [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", architecture)] {
        let got = gguf.get(key).and_then(Value::as_text);
        if got != Some(want) {
            return gguf.wrong(key, format!("`{want}` is wanted, got {got:?}"));
        }
    }
    let Some(alpha) = gguf.get("adapter.lora.alpha").and_then(Value::as_f64) else {
        return gguf.wrong("adapter.lora.alpha", "a number is wanted");
    };
    let (mut sides, mut used) = (Vec::new(), BTreeSet::new());
    for (module, place) in modules(&places) {
        for side in ["A", "B"] {
            let name = format!("{}.lora_{}", place.tensor, side.to_lowercase());
            sides.extend(one(&gguf, &name, side, (module, place))?);
            used.insert(name);
        }
    }
    if let Some(extra) = gguf.names().find(|name| !used.contains(*name)) {
        return gguf.wrong(extra, "the model has no place for this tensor");
    }
    // an alpha of 0 is a scale of 1
    if alpha == 0.0 {
        for side in sides.iter_mut().filter(|side| side.side == "B") {
            let r = side.shape[1] as f32;
            side.values.iter_mut().for_each(|x| *x *= r);
        }
    }
    let config = config(&sides, if alpha == 0.0 { 1.0 } else { alpha });
    peft::write_config(&config, spec, out)?;
    sides.sort_by_key(|side| peft::side(&side.module, side.side));
    let outline = |side: &Side| Outline {
        name: peft::side(&side.module, side.side),
        dtype: Dtype::F32,
        shape: side.shape.to_vec(),
    };
    let mut writer = Writer::create(&peft::weights(out), sides.iter().map(outline).collect())?;
    sides.iter().try_for_each(|side| writer.write(&DType::F32.encode(&side.values)))?;
    writer.finish()
}

/// A tensor of the file as a module's side, if it is there; of experts this one's.
fn one(gguf: &Gguf, name: &str, side: &'static str, (module, place): (&str, &Place)) -> Result<Option<Side>> {
    let Some(tensor) = gguf.tensor(name) else { return Ok(None) };
    let (i, parts) = place.part.unwrap_or((0, 1));
    let shape: [usize; 2] = match (tensor.shape, tensor.format.name) {
        ([r, c], "F32") if parts == 1 => [*r, *c],
        ([n, r, c], "F32") if *n == parts => [*r, *c],
        (shape, format) => return gguf.wrong(name, format!("F32 [{parts}, .., ..] is wanted, got {format} {shape:?}")),
    };
    let each = tensor.bytes.len() / parts;
    let values = DType::F32.decode(&tensor.bytes[i * each..][..each]);
    let values = if side == "B" { rows(place.fix).to_folder(values, &shape) } else { values };
    Ok(Some(Side { module: module.into(), side, shape, values }))
}

fn config(sides: &[Side], lora_alpha: f64) -> LoraConfig {
    let downs = sides.iter().filter(|side| side.side == "A");
    let ranks: Vec<(String, usize)> = downs.map(|side| (side.module.clone(), side.shape[0])).collect();
    let r = ranks.first().map_or(1, |(_, r)| *r);
    LoraConfig {
        r,
        lora_alpha,
        target_modules: Targets::Names(ranks.iter().map(|(module, _)| module.clone()).collect()),
        rank_pattern: Patterns(ranks.into_iter().filter(|(_, own)| *own != r).collect()),
        ..LoraConfig::default()
    }
}
