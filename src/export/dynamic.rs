//! Dynamic 4-bit: NF4 for most linear layers, floats for those whose output it changes most, within a budget of bytes.
//!
//! weight error      ‖W − Ŵ‖²/‖W‖², Ŵ = W through NF4 and back
//! activation error  ‖X·(W − Ŵ)ᵀ‖²/‖X·Wᵀ‖², X = what the layer is given where the model reads the calibration text
//! Layers are kept in the order of their activation error per byte. The folder lists them as `llm_int8_skip_modules`, which
//! transformers leaves in the model's own 16 bits; 8 bits beside 4 in one folder is nothing it loads.
//! The model is held once: the losses of the smaller ones are taken with its weights rounded in place.
use super::bnb::{self, Format};
use super::quantize::{Source, write};
use crate::backend::{Backend, Scope};
use crate::data::{self, Batch, BatchOptions, DataOptions, Packing, Tokenizer};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::{LoadOptions, Model, Plan, Session, Tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
mod measure;
use measure::{Measure, rounded};

/// Tokens of a row, rows of a batch, batches: 65,536 tokens at most, a quarter of them held out.
const ROW: usize = 512;
const ROWS: usize = 4;
const BATCHES: usize = 32;

#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Text files and records, as for pretraining.
    pub calibration: Vec<data::Source>,
    /// How much larger than with NF4 alone the weights may become, as a share.
    pub size_budget: f64,
    /// Of the model while it is measured; `None`: its own.
    pub dtype: Option<DType>,
    pub model: &'a Path,
    pub out: &'a Path,
}

/// A linear layer, or one module of all experts of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// In files; more than one are experts.
    pub names: Vec<String>,
    pub weight_error: f64,
    pub activation_error: f64,
    /// Bytes that keeping it costs.
    pub cost: u64,
    pub kept: bool,
}

/// For the model itself, with NF4 alone, and as written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Three<T> {
    pub original: T,
    pub nf4: T,
    pub dynamic: T,
}

#[derive(Clone, Debug)]
pub struct Report {
    pub modules: Vec<Module>,
    /// Mean −log p of the held-out tokens, in nats.
    pub loss: Three<f64>,
    /// Bytes of the weights.
    pub bytes: Three<u64>,
    /// Tokens that were measured on, and held out.
    pub tokens: (usize, usize),
}

/// Measures, chooses, and writes the folder `out`.
pub fn quantize_dynamic(b: &dyn Backend, options: &Options) -> Result<Report> {
    let source = Source::open(options.model)?;
    let tokenizer = Tokenizer::load(options.model)?;
    let text = Text::load(&options.calibration, &tokenizer, ROW.min(source.spec.max_positions))?;
    let dtype = options.dtype.unwrap_or(source.dtype);
    let mut model = Model::load(b, options.model, &LoadOptions::frozen(dtype))?;
    let mut session = Session::new(b, &model, text.N, text.T, Plan::Inference)?;
    let all = bnb::modules(&source.spec);
    let original = text.loss(&mut session, &model)?;
    let mut modules = measure(&mut session, &model, &text, &source, &all)?;
    let plain = source.bytes(&all);
    choose(&mut modules, (plain as f64 * options.size_budget) as u64);
    if modules.iter().all(|m| m.kept) {
        let what = "the size budget holds every layer as it is, so nothing would be quantized: give a smaller one";
        return Err(Error::Usage(what.into()));
    }
    round(b, &mut model, &modules)?;
    let nf4 = text.loss(&mut session, &model)?;
    restore(b, &mut model, &modules, &source)?;
    let dynamic = text.loss(&mut session, &model)?;
    drop(session);
    model.free(b);

    let kept: BTreeSet<&String> = modules.iter().filter(|m| m.kept).flat_map(|m| &m.names).collect();
    let small: BTreeMap<_, _> = all.into_iter().filter(|(name, _)| !kept.contains(name)).collect();
    let (before, after) = write(b, &source, options.out, Format::Nf4, &small)?;
    let bytes = Three { original: before, nf4: plain, dynamic: after };
    Ok(Report { modules, loss: Three { original, nf4, dynamic }, bytes, tokens: text.tokens() })
}

/// The calibration text in batches of N tokens, rows of T.
struct Text {
    N: usize,
    T: usize,
    measured: Vec<Batch>,
    held_out: Vec<Batch>,
}

impl Text {
    fn load(sources: &[data::Source], tokenizer: &Tokenizer, T: usize) -> Result<Text> {
        let first = sources.first().map_or("", |source| source.path.as_str());
        let data = DataOptions { sources: sources.to_vec(), max_length: T, pretrain: true, ..DataOptions::default() };
        let data = data::load(&data, tokenizer)?;
        // four batches at least, for a quarter is held out
        let rows = (data.report.tokens / T / 4).clamp(1, ROWS);
        let pad_id = tokenizer.pad_id();
        let options = BatchOptions { max_length: T, rows, packing: Packing::Wrapped, seed: 0, shuffle: true, pad_id };
        let N = rows * T;
        let full = data::batches(&data.train, &options, 0).filter(|batch| batch.tokens == N);
        let mut measured: Vec<Batch> = full.take(BATCHES).collect();
        if measured.len() < 2 {
            let what = format!("{} tokens are too few to measure with: {} are the least", data.report.tokens, 2 * T);
            return Err(Error::content(first, "", what));
        }
        let held_out = measured.split_off(measured.len() - (measured.len() / 4).max(1));
        Ok(Text { N, T, measured, held_out })
    }

    fn tokens(&self) -> (usize, usize) {
        (self.measured.len() * self.N, self.held_out.len() * self.N)
    }

    fn loss(&self, session: &mut Session, model: &Model) -> Result<f64> {
        let (mut sum, mut counted) = (0.0, 0);
        for batch in &self.held_out {
            session.forward(model, &tokens(batch))?;
            sum -= session.logprobs(model, &batch.labels)?.iter().map(|x| *x as f64).sum::<f64>();
            counted += batch.counted;
        }
        Ok(sum / counted.max(1) as f64)
    }
}

fn tokens(batch: &Batch) -> Tokens {
    let Batch { ids, positions, cu_seqlens, .. } = batch.clone();
    Tokens { ids, positions, cu_seqlens }
}

/// Every layer that NF4 could take, in the order of the forward pass.
fn measure(
    session: &mut Session,
    model: &Model,
    text: &Text,
    source: &Source,
    all: &BTreeMap<String, (usize, usize)>,
) -> Result<Vec<Module>> {
    let linears = model.linears().filter(|l| all.contains_key(&l.name)).map(|l| vec![l.name.clone()]);
    let units: Vec<Vec<String>> = linears.chain(model.experts().map(|e| e.names.clone())).collect();
    let measure = Rc::new(Measure::new(units.iter().filter_map(|names| names.first().cloned()).collect()));
    session.observe(Some(measure.clone()));
    for batch in &text.measured {
        session.forward(model, &tokens(batch))?;
    }
    session.observe(None);
    let sums = measure.sums.borrow();
    let module = |names: Vec<String>| {
        let seen = sums.get(&names[0]).ok_or_else(|| Error::Bug(format!("{} was never used", names[0])))?;
        let (weight_error, activation_error) = (seen.weight_error(), seen.activation_error());
        let cost = names.iter().map(|name| source.cost(name, all[name])).sum();
        Ok(Module { names, weight_error, activation_error, cost, kept: false })
    };
    units.into_iter().map(module).collect()
}

/// Greedy: each in its turn, if it still fits.
fn choose(modules: &mut [Module], budget: u64) {
    let mut order: Vec<usize> = (0..modules.len()).collect();
    let worth = |m: &Module| m.activation_error / m.cost.max(1) as f64;
    order.sort_by(|i, j| worth(&modules[*j]).total_cmp(&worth(&modules[*i])));
    let mut left = budget;
    for i in order {
        let module = &mut modules[i];
        if module.cost <= left {
            left -= module.cost;
            module.kept = true;
        }
    }
}

fn module_of(param: &str) -> &str {
    param.strip_suffix(".weight").unwrap_or(param)
}

/// Every measured weight as NF4 would have it.
fn round(b: &dyn Backend, model: &mut Model, modules: &[Module]) -> Result<()> {
    let names: BTreeSet<&str> = modules.iter().map(|m| m.names[0].as_str()).collect();
    for param in model.params_mut().filter(|p| names.contains(module_of(&p.name))) {
        let scope = Scope::new(b);
        let (E, O, C) = (param.files().count(), param.shape[0], param.shape[1]);
        let rounded = rounded(&scope, &param.value, E, (O, C))?;
        b.copy(&mut param.value, &rounded)?;
    }
    Ok(())
}

/// What is kept, from the files again.
fn restore(b: &dyn Backend, model: &mut Model, modules: &[Module], source: &Source) -> Result<()> {
    let names: BTreeSet<&str> = modules.iter().filter(|m| m.kept).map(|m| m.names[0].as_str()).collect();
    for param in model.params_mut().filter(|p| names.contains(module_of(&p.name))) {
        let files: Vec<String> = param.files().map(str::to_string).collect();
        for (i, file) in files.iter().enumerate() {
            let values = source.tensors.floats(file, &param.shape)?.to_f32().expect("floats() gives floats");
            param.set_part(b, i, &values)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_for_their_size_are_kept_while_they_fit() {
        let module = |activation_error, cost| Module {
            names: vec!["x".into()],
            weight_error: 0.0,
            activation_error,
            cost,
            kept: false,
        };
        let kept = |budget| {
            let mut modules = [module(0.2, 20), module(0.3, 10), module(0.1, 1), module(0.9, 100)];
            choose(&mut modules, budget);
            modules.map(|m| m.kept)
        };
        assert_eq!(kept(0), [false; 4]);
        assert_eq!(kept(11), [false, true, true, false]);
        assert_eq!(kept(30), [false, true, true, false]);
        assert_eq!(kept(31), [true, true, true, false]);
        assert_eq!(kept(131), [true; 4]);
    }
}
