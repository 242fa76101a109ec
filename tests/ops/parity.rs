//! A backend against the reference at f64, on identically rounded inputs.
//!
//! Outputs start as NaN, accumulated ones as noise; guard bands lie around every buffer; pads of strided arguments are NaN
//! before and after; what is only read must not change.
use crate::case::{Case, describe};
use crate::codes;
use crate::limits::{limit, nmse};
use crate::values::{Data, Noise, Values, fill, forward_of, is_pad, live, reference, run};
use luthier::backend::{Backend, Buf, Launch};
use luthier::dtype::DType;
use luthier::ops::{Access, Elem, Extent, Op};

/// A case in one storage, with its inputs and what must come out.
#[derive(Clone)]
pub struct Trial {
    pub op: Op,
    pub label: String,
    params: Vec<u8>,
    args: Vec<TrialArg>,
    within: Option<f64>,
}

#[derive(Clone)]
struct TrialArg {
    name: &'static str,
    access: Access,
    dtype: DType,
    /// Bytes before the argument's first.
    offset: usize,
    /// Guard, argument, fill up to a word, guard: as uploaded.
    bytes: Vec<u8>,
    before: Data,
    want: Data,
}

/// Bytes of a guard band. Views start at words, on most devices' finest grid or beside it.
const GUARD: usize = 256;
/// As f32, f16 and bf16 a small number, so that no conversion changes it.
const SENTINEL: u8 = 0xa5;

impl Trial {
    pub fn new(case: &Case, storage: &[DType]) -> Trial {
        let (op, params) = (case.op, &case.params);
        let label = format!("{} {}", case.label, describe(op, storage)).trim_end().to_string();
        let mut noise = Noise::of(&label);
        let mut before = Values::new();
        fill(&mut before, op, params, &mut noise, &*case.set);
        let args = op.spec().args;
        args.iter().zip(storage).for_each(|(a, d)| before.get_mut(a.name).expect("filled").round(*d));
        if let Some(forward) = forward_of(op) {
            saved(&mut before, op, forward, params, &mut noise, storage);
        }
        let mut want = before.clone();
        run(&reference, op, &mut want, params);
        let quarter = noise.below(4);
        let args = args.iter().zip(storage).enumerate().map(|(i, (arg, dtype))| {
            let shift = match quarter {
                0 | 1 => 0,
                2 => 4,
                _ => 4 * (i % 4),
            };
            let bytes = guarded(before[arg.name].encode(*dtype), GUARD + shift);
            let (before, want) = (before[arg.name].clone(), want[arg.name].clone());
            TrialArg { name: arg.name, access: arg.access, dtype: *dtype, offset: GUARD + shift, bytes, before, want }
        });
        Trial { op, args: args.collect(), label, params: params.clone(), within: case.within }
    }

    /// The bytes of every buffer after the call.
    pub fn run(&self, b: &dyn Backend) -> Result<Vec<Vec<u8>>, String> {
        let text = |e: luthier::error::Error| format!("{}: {e}", self.label);
        let mut bufs: Vec<Buf> = Vec::new();
        for arg in &self.args {
            let mut buf = b.alloc(arg.bytes.len() / arg.dtype.size(), arg.dtype).map_err(text)?;
            b.upload(&mut buf, &arg.bytes).map_err(text)?;
            bufs.push(buf);
        }
        let extents = self.op.extents(&self.params).1;
        let views = bufs.iter().zip(&self.args).zip(&extents);
        let views: Vec<Buf> = views.map(|((b, a), e)| b.view(a.offset / a.dtype.size(), e.elements())).collect();
        let args: Vec<Option<&Buf>> = views.iter().zip(&extents).map(|(v, e)| e.present.then_some(v)).collect();
        b.launch(&Launch::new(self.op, &args, &self.params).map_err(text)?).map_err(text)?;
        let after = bufs.iter().map(|buf| b.download(buf)).collect::<Result<_, _>>().map_err(text);
        bufs.into_iter().for_each(|buf| b.free(buf));
        after
    }

    /// The greatest share of a limit that an output takes up; `Err` says what is wrong.
    pub fn compare(&self, after: &[Vec<u8>]) -> Result<f64, String> {
        let extents = self.op.extents(&self.params).1;
        let mut worst = 0f64;
        for ((arg, after), extent) in self.args.iter().zip(after).zip(&extents) {
            let share = self.compare_arg(arg, after, extent);
            worst = worst.max(share.map_err(|what| format!("{}: `{}` {what}", self.label, arg.name))?);
        }
        Ok(worst)
    }

    fn compare_arg(&self, arg: &TrialArg, after: &[u8], extent: &Extent) -> Result<f64, String> {
        let end = arg.offset + extent.elements() * arg.dtype.size();
        let (low, high) = (..arg.offset, end.next_multiple_of(4)..);
        if after[low] != arg.bytes[low] || after[high.clone()] != arg.bytes[high] {
            return Err("was written outside its bounds".into());
        }
        let (old, new) = (&arg.bytes[arg.offset..end], &after[arg.offset..end]);
        if !arg.access.writes() || !extent.present {
            return if old == new { Ok(0.0) } else { Err("is only read, but changed".into()) };
        }
        if let Some(i) = changed_pad(old, new, arg.dtype, extent) {
            return Err(format!("has pads, and the one at element {i} changed"));
        }
        let got = Data::decode(arg.dtype, new);
        if arg.dtype == DType::U8 {
            return codes::compare(self.op, arg.name, got.bytes(), &self.inputs(), &self.params);
        }
        if arg.dtype == DType::U32 {
            let wrong = got.u32s().iter().zip(arg.want.u32s()).position(|(g, w)| g != w);
            let text = |i: usize| format!("[{i}] must be {}, got {}", arg.want.u32s()[i], got.u32s()[i]);
            return wrong.map_or(Ok(0.0), |i| Err(text(i)));
        }
        let mut want = arg.want.clone();
        let limit = self.limit(arg);
        if limit == 0.0 {
            want.round(arg.dtype);
        }
        let (got, want) = (live(got.floats(), extent), live(want.floats(), extent));
        let err = nmse(&got, &want);
        if !(err <= limit) {
            return Err(format!("nmse {err:e} > {limit:e}; {}", furthest(&got, &want)));
        }
        Ok(if limit == 0.0 { 0.0 } else { err / limit })
    }

    /// For a control: accumulated outputs start from zero.
    pub fn forget_old_values(&mut self) {
        for arg in self.args.iter_mut().filter(|a| a.access == Access::Add) {
            let end = arg.bytes.len() - GUARD;
            arg.bytes[arg.offset..end].fill(0);
        }
    }
    /// For a control: changes element `i` of the first argument in what came back.
    pub fn spoil(&self, after: &mut [u8], i: usize) {
        after[self.args[0].offset + i * self.args[0].dtype.size()] ^= 1;
    }

    fn inputs(&self) -> Values {
        self.args.iter().map(|a| (a.name, a.before.clone())).collect()
    }

    fn limit(&self, out: &TrialArg) -> f64 {
        if let Some(limit) = self.within {
            return limit;
        }
        let specs = self.op.spec().args.iter().zip(&self.args);
        let coarsest = specs.filter(|(s, _)| s.elem == Elem::Float).map(|(_, a)| a.dtype).max().unwrap_or(out.dtype);
        let names = self.op.spec().dims.iter().zip(self.op.extents(&self.params).0);
        let summed = if self.op == Op::grouped_tn_add { "M" } else { "Q" };
        let inner = names.filter(|(d, _)| **d == summed).map(|(_, v)| v).next().unwrap_or(0);
        limit(self.op, out.name, out.dtype, coarsest, inner)
    }
}

/// Fills in what the forward row saves for `op` (rstd, lse, out), rounded as it is stored.
fn saved(values: &mut Values, op: Op, forward: Op, params: &[u8], noise: &mut Noise, storage: &[DType]) {
    let mut run_values = values.clone();
    let outputs = || forward.spec().args.iter().filter(|a| a.access == Access::Write);
    outputs().for_each(|a| _ = run_values.remove(a.name));
    fill(&mut run_values, forward, params, noise, &|_| ());
    run(&reference, forward, &mut run_values, params);
    for out in outputs() {
        let Some(i) = op.spec().args.iter().position(|a| a.name == out.name) else { continue };
        let mut data = run_values[out.name].clone();
        data.round(storage[i]);
        values.insert(out.name, data);
    }
}

/// The argument between guard bands, the second one starting at a word.
fn guarded(data: Vec<u8>, offset: usize) -> Vec<u8> {
    let mut bytes = vec![SENTINEL; offset];
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4) + GUARD, SENTINEL);
    bytes
}

/// The first pad whose bits changed. A 16-bit pad that shares its word with a row's last element may change.
fn changed_pad(old: &[u8], new: &[u8], dtype: DType, extent: &Extent) -> Option<usize> {
    let size = dtype.size();
    let tied = |i: usize| size == 2 && i % 2 == 1 && !is_pad(extent, i - 1);
    let pads = (0..old.len() / size).filter(|i| is_pad(extent, *i) && !tied(*i));
    pads.into_iter().find(|i| old[i * size..][..size] != new[i * size..][..size])
}

/// Where the greatest difference is, for people; a NaN comes first.
fn furthest(got: &[f64], want: &[f64]) -> String {
    let off = |i: &usize| if got[*i].is_nan() { f64::INFINITY } else { (got[*i] - want[*i]).abs() };
    let i = (0..got.len()).max_by(|i, j| off(i).total_cmp(&off(j))).unwrap_or(0);
    format!("furthest at live element {i} of {}: wanted {}, got {}", got.len(), want[i], got[i])
}
