//! Adapters that come and go on a model that stays: attached, exchanged for one another at no cost, taken off.
use super::Model;
use super::attention::Qkv;
use super::dora::Dora;
use super::experts::Experts;
use super::latent::Latent;
use super::layout::Layout;
use super::linear::{Linear, Lora};
use super::load::{LoadOptions, is_router};
use super::lora::{self, LoraConfig, Rules};
use super::mlp::Mlp;
use super::moe::Moe;
use super::param::Param;
use super::spec::{ExpertFiles, Head};
use super::table::Table;
use crate::backend::{Backend, Buf, Scope};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// Whatever of a model an adapter sets, while it is not on the model; after an exchange, what the model had before.
pub struct Detached {
    config: Option<LoraConfig>,
    /// Of each linear layer, stacks of experts included.
    loras: Vec<Option<Lora>>,
    /// Values of modules that the adapter has a copy of, by their weights' names.
    saved: HashMap<String, Buf>,
    /// A head of its own, where the model's was tied: `None` there is the tied one.
    head: Option<Option<Table>>,
}

/// A linear layer, or one of each expert.
enum Slot<'m> {
    Linear(&'m mut Linear),
    Experts(&'m mut Experts),
}

impl Slot<'_> {
    fn lora(&mut self) -> &mut Option<Lora> {
        match self {
            Slot::Linear(linear) => &mut linear.lora,
            Slot::Experts(experts) => &mut experts.stack.lora,
        }
    }
}

/// What of a model's adapters sets the sizes of a session's scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AdapterShape {
    rank: usize,
    expert_rank: usize,
    /// The largest O·R and R under DoRA.
    dora: [usize; 2],
}

impl Model {
    fn slots(&mut self) -> Vec<Slot<'_>> {
        let mut all = Vec::new();
        for block in &mut self.blocks {
            match &mut block.attention.qkv {
                Qkv::Projections(projections) => all.extend(projections.0.iter_mut().map(Slot::Linear)),
                Qkv::Latent(latent) => {
                    let Latent { q_a, q_b, kv_a, kv_b } = &mut **latent;
                    all.extend(q_a.iter_mut().map(|narrow| Slot::Linear(&mut narrow.down)));
                    all.extend([q_b, &mut kv_a.down, kv_b].map(Slot::Linear));
                }
            }
            all.push(Slot::Linear(&mut block.attention.o));
            match &mut block.mlp {
                Mlp::Dense { gate_up, down } => all.extend(gate_up.0.iter_mut().chain([&mut **down]).map(Slot::Linear)),
                Mlp::Plain { up, down } => all.extend([&mut **up, &mut **down].map(Slot::Linear)),
                Mlp::Moe(moe) => {
                    let Moe { router, gate_up, down, shared, .. } = &mut **moe;
                    all.push(Slot::Linear(router));
                    all.extend(shared.iter_mut().flat_map(|shared| shared.linears_mut()).map(Slot::Linear));
                    all.extend(gate_up.iter_mut().chain([down]).map(Slot::Experts));
                }
            }
        }
        all
    }

    /// Sizes that sessions with the adapter on the model have to be made for.
    pub fn adapter_shape(&self) -> AdapterShape {
        let mut shape = AdapterShape::default();
        for (linear, lora) in self.linears().filter_map(|linear| Some((linear, linear.lora.as_ref()?))) {
            shape.rank = shape.rank.max(lora.R);
            if lora.dora.is_some() {
                shape.dora = [shape.dora[0].max(linear.O * lora.R), shape.dora[1].max(lora.R)];
            }
        }
        let ranks = self.experts().filter_map(|experts| experts.stack.lora.as_ref()).map(|lora| lora.R);
        AdapterShape { expert_rank: ranks.max().unwrap_or(0), ..shape }
    }

    /// Makes room on a model without an adapter for one of this config, whose own values are to be set then. `folder` is the
    /// model's, for errors.
    pub fn attach(&mut self, b: &dyn Backend, config: &LoraConfig, folder: &Path) -> Result<()> {
        if self.lora.is_some() {
            return Err(Error::Bug("a model has one adapter at a time".into()));
        }
        if config.trainable_token_indices.is_some() {
            let what = "an adapter with rows of tokens of its own cannot be exchanged for another while the model runs: merge it \
                        into a model with `luthier export --format merged-16bit`, or give it to `luthier generate`";
            return Err(config.error(folder, "trainable_token_indices", what));
        }
        let options = LoadOptions { lora: Some(config.clone()), ..LoadOptions::frozen(self.dtype) };
        options.check(&self.spec, None, folder)?;
        let rules = Rules::new(config, folder)?;
        self.lora = Some(config.clone());
        let (spec, dtype) = (self.spec.clone(), self.dtype);
        let stacked = spec.moe.as_ref().is_some_and(|moe| moe.files == ExpertFiles::Stacked);
        let layouts: HashMap<String, _> = (0..spec.layers)
            .flat_map(|l| spec.linears(l).into_iter().map(move |linear| (l, linear.module)))
            .map(|(l, module)| (spec.names.of(l, module), (module, spec.layout_of(module).of_rows())))
            .collect();
        for slot in self.slots() {
            match slot {
                Slot::Linear(linear) => {
                    let Some((module, rows)) = layouts.get(&linear.name) else { continue };
                    if is_router(&spec, module) && rules.all_linear() || !rules.targets(&linear.name)? {
                        continue;
                    }
                    lora::attach(b, linear, (rules.shape(&linear.name)?, &rules), dtype, false, 0)?;
                    linear.lora = linear.lora.take().map(|lora| lora.laid_out(*rows));
                }
                Slot::Experts(experts) if !stacked => {
                    if let Some(shape) = experts.targeted(&rules)? {
                        experts.attach((shape, rules.lora_dropout()), b, dtype, false, 0)?;
                    }
                }
                Slot::Experts(_) => {}
            }
        }
        Ok(())
    }

    /// Copies of the modules that the adapter saves with it, as they are in the model.
    fn copies(&self, b: &dyn Backend, config: &LoraConfig, folder: &Path) -> Result<Detached> {
        let mut detached = Detached { config: None, loras: Vec::new(), saved: HashMap::new(), head: None };
        if config.modules_to_save.is_empty() {
            return Ok(detached);
        }
        let packed = self.linears().filter(|linear| !linear.weight.quantized().is_empty()).map(|l| l.name.as_str());
        let tables = [(&self.spec.names.embed, Some(&self.embed)), (&self.spec.names.head, self.head.as_ref())];
        let tables = tables.into_iter().filter(|(_, table)| table.is_some_and(|t| t.packed().is_some()));
        if let Some(name) = packed.chain(tables.map(|(name, _)| *name)).find(|name| config.saves(name)) {
            let what =
                format!("`{name}` is quantized in the model that runs: load the adapter together with the model");
            return Err(config.error(folder, "modules_to_save", what));
        }
        // of a device that is full in the middle of it
        let made = Scope::new(b);
        for param in self.params().filter(|p| config.saves_param(&p.name)) {
            detached.saved.insert(param.name.clone(), copy(&made, &param.value)?);
        }
        let (embed, head) = (self.spec.names.embed, self.spec.names.head);
        if self.spec.head == Head::Tied
            && (config.saves(embed) || config.saves(head))
            && let Some(tied) = self.embed.param()
        {
            let mut own = Param::zeros(b, &format!("{head}.weight"), &tied.shape, self.dtype)?;
            made.hold(&own.value);
            b.copy(&mut own.value, &tied.value)?;
            detached.head = Some(Some(Table::Dense(own)));
        }
        made.keep();
        Ok(detached)
    }

    /// Puts an adapter on the model whose values `set` knows, and takes it off again.
    pub fn adopt(
        &mut self,
        b: &dyn Backend,
        config: &LoraConfig,
        folder: &Path,
        set: impl FnOnce(&mut Model) -> Result<()>,
    ) -> Result<Detached> {
        let mut base = self.copies(b, config, folder)?;
        // the copies are on the model now, and what it had is in `base`
        self.exchange(&mut base);
        let made = self.attach(b, config, folder).and_then(|()| set(self));
        self.exchange(&mut base);
        if let Err(e) = made {
            base.free(b);
            return Err(e);
        }
        Ok(base)
    }

    /// The adapter goes on the model, and what was on it comes off.
    pub fn exchange(&mut self, other: &mut Detached) {
        std::mem::swap(&mut self.lora, &mut other.config);
        if let Some(head) = &mut other.head {
            std::mem::swap(&mut self.head, head);
        }
        let slots = self.slots();
        other.loras.resize_with(slots.len(), || None);
        for (mut slot, lora) in slots.into_iter().zip(&mut other.loras) {
            std::mem::swap(slot.lora(), lora);
        }
        if other.saved.is_empty() {
            return;
        }
        for param in self.params_mut() {
            if let Some(value) = other.saved.get_mut(&param.name) {
                std::mem::swap(&mut param.value, value);
            }
        }
    }
}

impl Lora {
    /// The file has the outputs in this order.
    pub(super) fn laid_out(self, rows: Layout) -> Lora {
        let dora = self.dora.map(|dora| dora.laid_out(rows));
        Lora { b: self.b.laid_out(rows), dora, ..self }
    }
    /// Gives the memory of an adapter back that is not trained.
    pub(super) fn free(self, b: &dyn Backend) {
        let dora = self.dora.into_iter().flat_map(Dora::bufs);
        [self.a.value, self.b.value].into_iter().chain(dora).for_each(|buf| b.free(buf));
    }
}

fn copy(scope: &Scope, from: &Buf) -> Result<Buf> {
    let mut to = scope.alloc(from.len(), from.dtype())?;
    scope.backend().copy(&mut to, from)?;
    Ok(to)
}

impl Detached {
    /// Gives its memory back.
    pub fn free(self, b: &dyn Backend) {
        let head = self.head.flatten();
        let head = head.iter().filter_map(Table::param).map(|param| param.value.view(0, param.value.len()));
        head.chain(self.saved.into_values()).for_each(|buf| b.free(buf));
        self.loras.into_iter().flatten().for_each(|lora| lora.free(b));
    }
}
