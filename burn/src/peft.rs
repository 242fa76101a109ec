//! PEFT adapters of Burn models: `adapter_config.json` and `adapter_model.safetensors`, read and written by luthier's own code.
use crate::layer::Adapter;
use luthier::export::peft::{self, AdapterFile, Part};
use luthier::io::disk;
use luthier::model::lora::{LoraConfig, Rules};
use luthier::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

/// Writes the adapters of these modules, by their names in the base model, into the folder `out`, where each file appears whole or
/// not at all. `base` is what users will find as the base model; `config.target_modules` must find every one of the modules.
pub fn save(config: &LoraConfig, base: &str, modules: &[(&str, &Adapter)], out: &Path) -> Result<()> {
    let rules = Rules::new(config, out)?;
    if rules.all_linear() {
        return Err(rules.error("target_modules", "names of modules, or an expression for them, are wanted here"));
    }
    for (module, adapter) in modules {
        let shape = rules.shape(module)?;
        if !rules.targets(module)? {
            return Err(rules.error("target_modules", format!("`{module}` has an adapter, but is not among them")));
        }
        if (shape.r, shape.scale) != (adapter.rank(), adapter.scale()) {
            let (r, scale) = (adapter.rank(), adapter.scale());
            let what =
                format!("{} scaled by {} for `{module}`, whose rank is {r}, scaled by {scale}", shape.r, shape.scale);
            return Err(rules.error("r", what));
        }
    }
    let parts = modules.iter().flat_map(|(module, adapter)| {
        let ([a, b], shape) = (adapter.values(), [&adapter.a, &adapter.b].map(|p| p.lazy_shape().dims::<2>()));
        let part = |side, shape, values| Part { module, side, shape, values };
        [part("A", shape[0], a), part("B", shape[1], b)]
    });
    let parts: Vec<Part> = parts.collect();
    std::fs::create_dir_all(out).map_err(Error::write(out))?;
    disk::publish_all(out, |temporary| peft::save_parts(config, base, parts, temporary))
}

/// An adapter's folder, to be handed out module by module.
pub struct Saved {
    file: AdapterFile,
    used: RefCell<BTreeSet<String>>,
}

impl Saved {
    pub fn open(folder: &Path) -> Result<Saved> {
        Ok(Saved { file: peft::open_file(folder)?, used: RefCell::default() })
    }

    pub fn config(&self) -> &LoraConfig {
        &self.file.config
    }

    /// Sets a module's adapter to what the file has for this name.
    pub fn load(&self, module: &str, adapter: &mut Adapter) -> Result<()> {
        let rules = Rules::new(&self.file.config, self.file.tensors.path())?;
        if self.file.config.use_dora {
            return Err(rules.error("use_dora", "DoRA is not supported here; LoRA and rsLoRA are"));
        }
        let shape = rules.shape(module)?;
        let ([_, c], [o, _]) = (adapter.a.lazy_shape().dims::<2>(), adapter.b.lazy_shape().dims::<2>());
        let a = self.file.part(module, "A", [shape.r, c])?;
        let b = self.file.part(module, "B", [o, shape.r])?;
        adapter.set(shape.r, shape.scale, [a, b]);
        self.used.borrow_mut().extend(["A", "B"].map(|side| peft::side(module, side)));
        Ok(())
    }

    /// That nothing in the file was left over: a name that no module was loaded by is a mistake in one of the two.
    pub fn finish(self) -> Result<()> {
        let used = self.used.into_inner();
        match self.file.tensors.names().find(|name| !used.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(Error::content(self.file.tensors.path(), name, "no module was loaded by this name")),
        }
    }
}
