//! An adapter as a GGUF file of its own, for llama.cpp's `--lora`: A and B under the names of the weights they change.
//!
//! llama.cpp knows one alpha for all modules, and scales each by alpha over its rank: where PEFT scales one otherwise
//! (rank-stabilized, patterns), B takes the difference. An alpha of 0 means a scale of 1 there and of 0 in PEFT: then it is 1 in
//! the file, and B is zeros.
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::export::peft::{self, AdapterFile};
use crate::io::gguf::{Format, Item, Outline, Pairs, Writer};
use crate::model::gguf::{Described, Fix, Place, Places, describe};
use crate::model::layout::Layout;
use crate::model::lora::Rules;
use crate::model::spec::Spec;
use std::path::Path;

/// One side of the adapters of a tensor, those of experts one after the other.
struct Side {
    name: String,
    /// Of one.
    shape: [usize; 2],
    /// So many there must be.
    parts: usize,
    values: Vec<f32>,
}

/// Writes the file; returns its bytes.
pub fn write(spec: &Spec, adapter: &AdapterFile, folder: &Path, name: &str, out: &Path) -> Result<u64> {
    let config = &adapter.config;
    if config.use_dora || !config.modules_to_save.is_empty() || config.trainable_token_indices.is_some() {
        let what = "llama.cpp's adapters are A and B alone: with DoRA, modules_to_save or trainable_token_indices, merge it into \
                    the model (gguf)";
        return Err(Error::content(adapter.tensors.path(), "", what));
    }
    let Described { architecture, places, .. } = describe(spec)?;
    let alpha = alpha(config.lora_alpha);
    let pairs: Pairs = vec![
        ("general.architecture".into(), Item::Text(architecture.into())),
        ("general.type".into(), Item::Text("adapter".into())),
        ("general.name".into(), Item::Text(name.into())),
        ("adapter.type".into(), Item::Text("lora".into())),
        ("adapter.lora.alpha".into(), Item::F32(alpha)),
    ];
    let sides = sides(spec, adapter, &places, folder)?;
    let outline = |side: &Side| Outline {
        name: side.name.clone(),
        shape: if side.parts > 1 { [&[side.parts][..], &side.shape].concat() } else { side.shape.to_vec() },
        format: Format::named("F32").expect("a format"),
    };
    let mut writer = Writer::create(out, &pairs, sides.iter().map(outline).collect())?;
    sides.iter().try_for_each(|side| writer.write(&DType::F32.encode(&side.values)))?;
    writer.finish()?;
    Ok(std::fs::metadata(out).map_err(Error::read(out))?.len())
}

/// The file's alpha.
fn alpha(lora_alpha: f64) -> f32 {
    if lora_alpha == 0.0 { 1.0 } else { lora_alpha as f32 }
}

/// Modules that can have an adapter in a file, with the tensors of their weights.
pub(super) fn modules(places: &Places) -> impl Iterator<Item = (&str, &Place)> {
    places.iter().filter_map(|(weight, places)| match &places[..] {
        [place] => Some((weight.strip_suffix(".weight")?, place)),
        _ => None,
    })
}

/// Modules that llama.cpp multiplies by without looking for an adapter.
fn bare(spec: &Spec) -> Vec<String> {
    let latent = spec.latent.as_ref().map_or(Vec::new(), |latent| latent.linears(spec));
    let of_layer = |l: usize| latent.iter().map(move |linear| spec.names.of(l, linear.module));
    (0..spec.layers).flat_map(of_layer).collect()
}

fn sides(spec: &Spec, adapter: &AdapterFile, places: &Places, folder: &Path) -> Result<Vec<Side>> {
    let rules = Rules::new(&adapter.config, folder)?;
    let alpha = alpha(adapter.config.lora_alpha);
    let wrong = |at: &str, what: &str| Err(Error::content(adapter.tensors.path(), at, what));
    let has = |module: &str| adapter.tensors.contains(&peft::side(module, "A"));
    if let Some(module) = bare(spec).iter().find(|module| has(module)) {
        return wrong(module, "llama.cpp has no adapters on latent attention: merge it into the model (gguf)");
    }
    let mut adapted: Vec<(&str, &Place)> = modules(places).filter(|(module, _)| has(module)).collect();
    // experts in their order
    adapted.sort_by_key(|(_, place)| (place.tensor.clone(), place.part));
    let mut all: Vec<Side> = Vec::new();
    for (module, place) in adapted {
        let shape = rules.shape(module)?;
        let [a, mut b] = ["A", "B"].map(|side| adapter.tensors.get(&peft::side(module, side)));
        let (Ok(a), Ok(b)) = (&a, &mut b) else { return wrong(module, "one of A and B is missing") };
        let ([r, C], [O, _]) = (a.shape, b.shape) else { return wrong(module, "A and B must be matrices") };
        let factor = shape.scale * shape.r as f32 / alpha;
        let (Some(down), Some(up)) = (a.to_f32(), b.to_f32()) else { return wrong(module, "floats are wanted") };
        let up = up.iter().map(|x| x * factor).collect();
        let up = rows(place.fix).to_gguf(up, &[*O, *r]);
        for (side, shape, values) in [("lora_a", [*r, *C], down), ("lora_b", [*O, *r], up)] {
            let name = format!("{}.{side}", place.tensor);
            match all.iter_mut().find(|side| side.name == name) {
                Some(one) if one.shape == shape => one.values.extend(values),
                Some(_) => return wrong(module, "llama.cpp wants experts of one layer to have one rank"),
                None => all.push(Side { name, shape, parts: place.part.map_or(1, |(_, of)| of), values }),
            }
        }
    }
    match all.iter().find(|side| side.values.len() != side.parts * side.shape[0] * side.shape[1]) {
        Some(side) => wrong(&side.name, "llama.cpp wants an adapter on every expert of a layer, or on none"),
        None => Ok(all),
    }
}

/// What happens to the rows of a weight happens to those of B; what turns it over, to neither.
pub(super) fn rows(fix: Fix) -> Fix {
    match fix {
        Fix::Rows(layout) if layout.of_rows() == Layout::Rows => Fix::Keep,
        other => other,
    }
}
