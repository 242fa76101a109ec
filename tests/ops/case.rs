//! One line of the matrix: an op, its params, and the storage types it is tried with.
use crate::values::Values;
use luthier::dtype::DType;
use luthier::ops::{Elem, Extent, Op, Params};
use std::fmt::Debug;

type Set = dyn Fn(&mut Values) + Send + Sync;

pub struct Case {
    pub op: Op,
    pub params: Vec<u8>,
    /// The op and its params, as printed; the seed too.
    pub label: String,
    pub set: Box<Set>,
    mixed: Vec<(DType, Vec<(&'static str, DType)>)>,
    odd_rows: bool,
    only_f32: bool,
    /// The limit of every output, instead of the table's.
    pub within: Option<f64>,
}

impl Case {
    pub fn new<P: Params + Debug>(op: Op, params: P) -> Case {
        Case {
            op,
            params: bytemuck::bytes_of(&params).to_vec(),
            label: format!("{op:?} {params:?}"),
            set: Box::new(|_| ()),
            mixed: Vec::new(),
            odd_rows: false,
            only_f32: false,
            within: None,
        }
    }
    /// One more storage: `base` for every float argument except those named.
    pub fn mixed(mut self, base: DType, except: &[(&'static str, DType)]) -> Case {
        self.mixed.push((base, except.to_vec()));
        self
    }
    /// Changes inputs by name. `what` tells this case from another with the same params.
    pub fn with(mut self, what: &str, set: impl Fn(&mut Values) + Send + Sync + 'static) -> Case {
        self.label = format!("{} {what}", self.label);
        self.set = Box::new(set);
        self
    }
    /// Also 16-bit types with rows of odd length, at even strides: a vocabulary may be odd.
    pub fn odd_rows(mut self) -> Case {
        self.odd_rows = true;
        self
    }
    /// Of a step: also a weight or a gradient in 16 bits, and the other in f32.
    pub fn held_apart(self) -> Case {
        self.mixed(DType::F32, &[("weight", DType::Bf16)]).mixed(DType::F32, &[("grad", DType::Bf16)])
    }
    /// Of a step that rounds by chance: which way is known, but for a weight in a thousand whose sum is another in its last bit. What
    /// is rounded to nearest is fifty times as far away.
    pub fn rounded_by_chance(mut self) -> Case {
        self.within = Some(1e-7);
        self
    }
    pub fn only_f32(mut self) -> Case {
        self.only_f32 = true;
        self
    }

    /// The storages to try: a type per argument.
    pub fn storages(&self) -> Vec<Vec<DType>> {
        let extents = self.op.extents(&self.params).1;
        let uniform = [DType::F32, DType::F16, DType::Bf16].map(|base| (base, Vec::new()));
        let mut storages: Vec<Vec<DType>> = Vec::new();
        for (base, except) in uniform.iter().chain(&self.mixed) {
            let storage = self.storage(*base, except);
            if !storages.contains(&storage) && self.fits(&storage, &extents) {
                storages.push(storage);
            }
        }
        storages
    }
    fn storage(&self, base: DType, except: &[(&str, DType)]) -> Vec<DType> {
        let args = self.op.spec().args;
        let unknown = except.iter().find(|(name, _)| !args.iter().any(|a| a.name == *name && a.elem == Elem::Float));
        assert!(unknown.is_none(), "{}: no float argument {unknown:?}", self.label);
        let of = |name| except.iter().find(|(n, _)| *n == name).map_or(base, |(_, dtype)| *dtype);
        let dtype = |elem, name| match elem {
            Elem::Float => of(name),
            Elem::F32 => DType::F32,
            Elem::U32 => DType::U32,
            Elem::U8 => DType::U8,
        };
        args.iter().map(|a| dtype(a.elem, a.name)).collect()
    }
    /// 16-bit values travel in pairs: matrices have even strides, and even rows but for `odd_rows`.
    fn fits(&self, storage: &[DType], extents: &[Extent]) -> bool {
        let pairs = |e: &Extent| {
            e.dims.len() == 1 || (e.row().1.is_multiple_of(2) && (self.odd_rows || e.row().0.is_multiple_of(2)))
        };
        let half = |dtype: &DType| dtype.is_float() && dtype.size() == 2;
        storage.iter().zip(extents).all(|(d, e)| !half(d) || (!self.only_f32 && pairs(e)))
    }
}

/// `bfloat16`, or what differs by argument.
pub fn describe(op: Op, storage: &[DType]) -> String {
    let args = op.spec().args.iter().zip(storage);
    let floats: Vec<_> = args.filter(|(a, _)| a.elem == Elem::Float).map(|(a, d)| (a.name, d.name())).collect();
    match floats.first() {
        None => String::new(),
        Some((_, first)) if floats.iter().all(|(_, d)| d == first) => first.to_string(),
        _ => floats.iter().map(|(name, d)| format!("{name}:{d}")).collect::<Vec<_>>().join(" "),
    }
}
