//! What is wanted of a model that is loaded, and whether that fits the model.
use super::super::fp8::{self, Compute};
use super::super::lora::{self, LoraConfig, Rules};
use super::super::param::Training;
use super::super::quantized::Scheme;
use super::super::spec::{Head, LinearSpec, Spec};
use super::super::streamed::{Place, Places};
use super::super::token_rows;
use super::adapted::{linear_names, stacked_stay};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::nf4;
use std::collections::BTreeSet;
use std::path::Path;

/// How weights are held and which of them are trained.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Of activations and unquantized weights.
    pub dtype: DType,
    /// Linear layers of the blocks in NF4 with double quantization.
    pub load_in_4bit: bool,
    /// The same in 8 bits with one scale a row.
    pub load_in_8bit: bool,
    /// What products with frozen weights are computed in: `Fp8` holds those of the linear layers so.
    pub compute: Compute,
    /// An adapter on some linear layers.
    pub lora: Option<LoraConfig>,
    /// The adapter (with its modules_to_save) is trained, or without one every weight.
    pub train: bool,
    /// Routers of mixtures stay as they are, even where every weight is trained.
    pub freeze_router: bool,
    /// Of the adapter's first values.
    pub seed: u64,
    /// Rows of embedding and head at least; those that the files lack start as the mean of the others.
    pub vocab: usize,
    /// Where frozen weights are.
    pub places: Places,
    /// How weights are held where every one is trained.
    pub training: Training,
}

impl LoadOptions {
    /// For reading a model as it is.
    pub fn frozen(dtype: DType) -> LoadOptions {
        LoadOptions {
            dtype,
            load_in_4bit: false,
            load_in_8bit: false,
            compute: Compute::Dtype,
            lora: None,
            train: false,
            freeze_router: false,
            seed: 0,
            vocab: 0,
            places: Places::default(),
            training: Training::default(),
        }
    }
    /// The first contradiction, if any.
    pub(in crate::model) fn check(&self, spec: &Spec, stored: Option<Scheme>, folder: &Path) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        let wanted = [(self.load_in_4bit, Scheme::Nf4), (self.load_in_8bit, Scheme::Int8)];
        let wanted: Vec<Scheme> = wanted.into_iter().filter(|(on, _)| *on).map(|(_, scheme)| scheme).collect();
        if wanted.len() > 1 {
            return usage("load_in_4bit and load_in_8bit exclude each other: keep one".into());
        }
        if let (Some(stored), Some(wanted)) = (stored, wanted.first())
            && stored != *wanted
        {
            let (stored, wanted) = (stored.name(), wanted.name());
            return usage(format!("{wanted} is asked for, but the checkpoint is {stored}: set it to false"));
        }
        // MXFP4 is how gpt-oss is published: to be trained in full, it is taken as the floats it stands for
        let frozen = stored.is_some_and(|stored| stored != Scheme::Mxfp4);
        if self.full() && (frozen || !wanted.is_empty()) {
            let what = "a quantized base is frozen, so there is nothing to train: add a [lora] table, or take an \
                        unquantized model without load_in_4bit and load_in_8bit";
            return usage(what.into());
        }
        self.check_compute(spec)?;
        let odd = |linear: &LinearSpec| !(linear.O() * linear.C).is_multiple_of(nf4::BLOCK);
        if self.load_in_4bit && (0..spec.layers).flat_map(|l| spec.experts(l)).any(|linear| odd(&linear)) {
            return usage(format!("load_in_4bit wants experts of a multiple of {} values", nf4::BLOCK));
        }
        if self.dtype.size() == 2 && [spec.C, spec.F, spec.D / 2, spec.A / 2].iter().any(|n| n % 2 == 1) {
            let what = format!("hidden {}, ffn {}, head {}", spec.C, spec.F, spec.D);
            return usage(format!(
                "16-bit dtypes want even sizes and head sizes in fours ({what}): use dtype = \"float32\""
            ));
        }
        let rows = spec.latent.as_ref().map_or(Vec::new(), |latent| latent.rows(spec));
        if let Some(odd) = rows.iter().find(|row| self.dtype.size() == 2 && *row % 2 == 1) {
            let what = format!("16-bit dtypes want even rows in latent attention, got one of {odd}");
            return usage(format!("{what}: use dtype = \"float32\""));
        }
        if let Some(moe) = spec.moe.as_ref().filter(|moe| self.dtype.size() == 2 && moe.E % 2 == 1) {
            let what = format!("16-bit dtypes want an even number of experts, got {}", moe.E);
            return usage(format!("{what}: use dtype = \"float32\""));
        }
        if let (Place::Host, Some(why)) = (self.places.embed, self.embed_stays(spec, stored, folder)?) {
            return usage(format!("offload_embedding: the embedding cannot wait in the host's memory, for {why}"));
        }
        if let Some(config) = &self.lora {
            let rules = Rules::new(config, folder)?;
            stacked_stay(spec, &rules)?;
            rules.check(&linear_names(spec))?;
            self.check_saved(config, spec, folder)?;
            token_rows::wanted(config, spec, folder)?;
        }
        Ok(())
    }
    /// What cannot be computed in e4m3.
    fn check_compute(&self, spec: &Spec) -> Result<()> {
        let packed = self.load_in_4bit || self.load_in_8bit;
        let dora = self.lora.as_ref().is_some_and(|lora| lora.use_dora);
        let what = match self.compute {
            Compute::Dtype => return Ok(()),
            _ if self.full() => "computes with frozen weights, and all are trained: add a [lora] table, or take it out",
            _ if packed => "holds the weights in 8 bits itself: take out load_in_4bit and load_in_8bit",
            _ if dora => "and use_dora exclude each other: DoRA measures the weights as they are",
            _ if fp8::fitting(spec) == 0 => "wants linear layers whose sizes are multiples of 16, and there is none",
            Compute::Fp8 => return Ok(()),
        };
        Err(Error::Usage(format!("compute = \"fp8\" {what}")))
    }
    /// Why the embedding cannot wait in the host's memory, if it cannot.
    pub fn embed_stays(&self, spec: &Spec, stored: Option<Scheme>, folder: &Path) -> Result<Option<&'static str>> {
        let rows = match &self.lora {
            Some(config) => token_rows::wanted(config, spec, folder)?[0].is_some(),
            None => false,
        };
        Ok(if spec.head == Head::Tied {
            Some("the head multiplies with the same weight")
        } else if self.full() || rows || self.train && self.saves(spec.names.embed) {
            Some("it is trained")
        } else if stored == Some(Scheme::Gguf) {
            Some("a GGUF file's stays packed, which is smaller still")
        } else {
            None
        })
    }
    /// Every module to save is there, and none of them is an expert.
    fn check_saved(&self, config: &LoraConfig, spec: &Spec, folder: &Path) -> Result<()> {
        let mut modules: Vec<String> = spec.weights().iter().map(|w| lora::module_of(&w.name).to_string()).collect();
        modules.push(spec.names.head.into());
        let alone = |name: &String| LoraConfig { modules_to_save: vec![name.clone()], ..LoraConfig::default() };
        if let Some(name) = config.modules_to_save.iter().find(|name| !modules.iter().any(|m| alone(name).saves(m))) {
            let known: BTreeSet<_> = modules.iter().filter_map(|m| m.rsplit('.').next()).collect();
            let what = format!("no module is called `{name}`; there are {known:?}");
            return Err(config.error(folder, "modules_to_save", what));
        }
        let of_layer = |l: usize| spec.experts(l).into_iter().flat_map(move |e| spec.expert_names(l, e.module));
        let mut names = (0..spec.layers).flat_map(of_layer);
        match names.find(|name| config.saves(name)) {
            None => Ok(()),
            Some(name) => {
                let what =
                    format!("experts are not trained in full beside an adapter, and `{name}` is one: adapt them");
                Err(config.error(folder, "modules_to_save", what))
            }
        }
    }
    /// Every weight is trained.
    pub(super) fn full(&self) -> bool {
        self.train && self.lora.is_none()
    }
    /// How a weight is held that is trained.
    pub(super) fn training(&self) -> Training {
        if self.full() { self.training } else { Training::default() }
    }
    /// The adapter has a copy of this module of its own.
    pub(super) fn saves(&self, module: &str) -> bool {
        self.lora.as_ref().is_some_and(|c| c.saves(module))
    }
}
