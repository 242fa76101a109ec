//! Random weights of a shape, for measurements.
use super::super::say;
use luthier::dtype::DType;
use luthier::export::bnb::Format;
use luthier::model::quantized::{self, Scheme};
use luthier::{Error, Result, export};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The shapes that have names.
const SHAPES: [(&str, &str); 4] = [
    ("1b", include_str!("../../../assets/shapes/1b.json")),
    ("8b", include_str!("../../../assets/shapes/8b.json")),
    ("70b", include_str!("../../../assets/shapes/70b.json")),
    ("qwen3-1.7b", include_str!("../../../assets/shapes/qwen3-1.7b.json")),
];

/// Makes the weights that `method` runs on in `folder`; what is there already is taken, if it is of that kind.
pub(super) fn make(folder: &Path, shape: &str, method: &str) -> Result<()> {
    let (format, scheme) = match method {
        "qlora" => (Some(Format::Nf4), Some(Scheme::Nf4)),
        "lora-8bit" => (Some(Format::Int8), Some(Scheme::Int8)),
        _ => (None, None),
    };
    if folder.join("config.json").exists() {
        say!("{}: taken as it is, whatever --shape says", folder.display());
        if quantized::scheme(folder)? != scheme {
            let what = format!("--weights {}: not what {method} runs on", folder.display());
            return Err(Error::Usage(format!("{what}; name another folder")));
        }
        return Ok(());
    }
    let start = Instant::now();
    let parameters = export::init::init(&shape_file(folder, shape)?, folder, DType::Bf16, format, 1)?;
    say!("{parameters} parameters in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The config of a named shape, in the folder of its weights; or the file that `shape` names.
pub(super) fn shape_file(folder: &Path, shape: &str) -> Result<PathBuf> {
    let Some((_, text)) = SHAPES.iter().find(|(name, _)| *name == shape) else {
        return Ok(shape.into());
    };
    let file = folder.join("shape.json");
    std::fs::create_dir_all(folder).map_err(Error::write(folder))?;
    std::fs::write(&file, text).map_err(Error::write(&file))?;
    Ok(file)
}
