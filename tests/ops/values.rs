//! What arguments hold: noise by default, by name where a name has a domain (ids < V, scales > 0, …).
use luthier::dtype::DType;
use luthier::ops::{Access, Arg, Elem, Extent, Op, Slice, dyn8, logprob::IGNORE};
use std::collections::BTreeMap;

/// Uniform in [-1, 1), exact in f32, so that every backend rounds from the same inputs.
pub struct Noise(u64);

impl Noise {
    pub fn of(seed: &str) -> Noise {
        Noise(seed.bytes().fold(0xcbf29ce484222325, |h, b| (h ^ b as u64).wrapping_mul(0x100000001b3)))
    }
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    }
    pub fn vec(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.next()).collect()
    }
    pub fn below(&mut self, end: usize) -> u32 {
        ((self.next() + 1.0) / 2.0 * end as f64) as u32
    }
}

#[derive(Clone, Debug)]
pub enum Data {
    Float(Vec<f64>),
    U32(Vec<u32>),
    U8(Vec<u8>),
}

impl Data {
    pub fn floats(&self) -> &[f64] {
        let Data::Float(x) = self else { panic!("not floats") };
        x
    }
    pub fn floats_mut(&mut self) -> &mut [f64] {
        let Data::Float(x) = self else { panic!("not floats") };
        x
    }
    pub fn u32s(&self) -> &[u32] {
        let Data::U32(x) = self else { panic!("not u32") };
        x
    }
    pub fn bytes(&self) -> &[u8] {
        let Data::U8(x) = self else { panic!("not u8") };
        x
    }
    pub fn encode(&self, dtype: DType) -> Vec<u8> {
        match self {
            Data::Float(x) => dtype.encode(&x.iter().map(|x| *x as f32).collect::<Vec<_>>()),
            Data::U32(x) => bytemuck::cast_slice(x).to_vec(),
            Data::U8(x) => x.clone(),
        }
    }
    pub fn decode(dtype: DType, bytes: &[u8]) -> Data {
        match dtype {
            DType::U32 => Data::U32(bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()),
            DType::U8 => Data::U8(bytes.to_vec()),
            _ => Data::Float(dtype.decode(bytes).into_iter().map(f64::from).collect()),
        }
    }
    pub fn round(&mut self, dtype: DType) {
        if let Data::Float(x) = self {
            x.iter_mut().for_each(|x| *x = dtype.round(*x as f32) as f64);
        }
    }
    /// As a reference takes it.
    pub fn slice(&mut self, access: Access) -> Slice<'_, f64> {
        match (self, access.writes()) {
            (Data::Float(x), true) => Slice::FloatMut(x),
            (Data::Float(x), false) => Slice::Float(x),
            (Data::U32(x), true) => Slice::U32Mut(x),
            (Data::U32(x), false) => Slice::U32(x),
            (Data::U8(x), true) => Slice::U8Mut(x),
            (Data::U8(x), false) => Slice::U8(x),
        }
    }
}

/// Arguments by name.
pub type Values = BTreeMap<&'static str, Data>;

pub fn is_pad(extent: &Extent, i: usize) -> bool {
    let (row, ld) = extent.row();
    i % ld >= row
}

/// The elements that are no pads.
pub fn live(x: &[f64], extent: &Extent) -> Vec<f64> {
    (0..x.len()).filter(|i| !is_pad(extent, *i)).map(|i| x[i]).collect()
}

/// Adds what `op` needs and `values` lacks. `set` changes the free arguments before those that follow from them
/// (`order`, `reach`) are computed. What is only written starts as NaN, and so do the pads of all.
pub fn fill(values: &mut Values, op: Op, params: &[u8], noise: &mut Noise, set: &dyn Fn(&mut Values)) {
    let (spec, (dims, extents)) = (op.spec(), op.extents(params));
    let dim = |name: &str| dims[spec.dims.iter().position(|d| *d == name).expect("the row has the dim")];
    for (arg, extent) in spec.args.iter().zip(&extents) {
        if !values.contains_key(arg.name) {
            values.insert(arg.name, plain(arg, extent, noise, &dim));
        }
    }
    set(values);
    for (arg, extent) in spec.args.iter().zip(&extents) {
        match arg.name {
            "order" => _ = values.insert("order", Data::U32(order(values["ids"].u32s()))),
            "reach" => _ = values.insert("reach", Data::U32(reach(values["span"].u32s(), dim("T")))),
            _ => {}
        }
        if let Some(Data::Float(x)) = values.get_mut(arg.name) {
            (0..x.len()).filter(|i| is_pad(extent, *i)).for_each(|i| x[i] = f64::NAN);
        }
    }
}

/// An argument that depends on no other.
fn plain(arg: &Arg, extent: &Extent, noise: &mut Noise, dim: &dyn Fn(&str) -> usize) -> Data {
    let len = extent.elements();
    match (arg.name, arg.elem) {
        (_, Elem::U8) => Data::U8((0..len).map(|_| noise.below(256) as u8).collect()),
        (_, Elem::Float | Elem::F32) if arg.access == Access::Write => Data::Float(vec![f64::NAN; len]),
        (_, Elem::U32) if arg.access == Access::Write => Data::U32(vec![u32::MAX; len]),
        ("experts", _) => Data::U32((0..len).map(|_| noise.below(dim("E"))).collect()),
        ("rows" | "places", _) => Data::U32(permutation(noise, len)),
        ("offsets", _) => Data::U32(offsets(noise, dim("M"), dim("E"))),
        ("ids", _) => Data::U32((0..len).map(|_| noise.below(dim("V"))).collect()),
        ("labels", _) => Data::U32((0..len).map(|n| if n % 5 == 3 { IGNORE } else { noise.below(dim("V")) }).collect()),
        ("positions", _) => Data::U32((0..len).map(|_| noise.below(dim("T"))).collect()),
        ("span", _) => Data::U32(causal(dim("N"), dim("T"))),
        (_, Elem::U32) => Data::U32(vec![0; len]),
        ("map" | "map1", _) => Data::Float(dyn8::dynamic_map(true).map(f64::from).to_vec()),
        ("map2", _) => Data::Float(dyn8::dynamic_map(false).map(f64::from).to_vec()),
        // scales, variances and sums of squares are positive
        (
            "absmax" | "absmax1" | "absmax2" | "nested" | "scale" | "partial" | "rstd" | "scales" | "square" | "v",
            Elem::F32,
        ) => Data::Float(noise.vec(len).into_iter().map(|x| x.abs() + 0.01).collect()),
        _ => Data::Float(noise.vec(len)),
    }
}

fn permutation(noise: &mut Noise, len: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..len as u32).collect();
    (1..len).rev().for_each(|i| all.swap(i, noise.below(i + 1) as usize));
    all
}

/// M rows among E groups, some of them empty where there are more than two.
fn offsets(noise: &mut Noise, M: usize, E: usize) -> Vec<u32> {
    let mut inner: Vec<u32> = (1..E).map(|_| noise.below(M + 1)).collect();
    if E > 2 {
        inner[1] = inner[0];
    }
    inner.sort();
    [0].into_iter().chain(inner).chain([M as u32]).collect()
}

/// Each query sees the keys up to its own; the queries are the last N of T tokens.
fn causal(N: usize, T: usize) -> Vec<u32> {
    (0..N).flat_map(|n| [0, (T + n + 1).saturating_sub(N).min(T) as u32]).collect()
}

fn order(ids: &[u32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|n| (ids[*n as usize], *n));
    order
}

/// The queries that see each key; an interval, or the span is no span that a call may have.
fn reach(span: &[u32], T: usize) -> Vec<u32> {
    let sees = |n: usize, j: usize| (span[2 * n]..span[2 * n + 1]).contains(&(j as u32));
    let of = |j: usize| {
        let queries: Vec<u32> = (0..span.len() / 2).filter(|n| sees(*n, j)).map(|n| n as u32).collect();
        let (first, end) = (queries.first().map_or(0, |n| *n), queries.last().map_or(0, |n| *n + 1));
        assert_eq!((end - first) as usize, queries.len(), "key {j} is seen by queries with a gap: {queries:?}");
        [first, end]
    };
    (0..T).flat_map(of).collect()
}

/// Runs `op` on the values of its arguments' names.
pub fn run(call: &Run, op: Op, values: &mut Values, params: &[u8]) {
    let (args, extents) = (op.spec().args, op.extents(params).1);
    let mut data: Vec<Data> = args.iter().map(|a| values[a.name].clone()).collect();
    let slices = data.iter_mut().zip(args).zip(extents);
    call(op, slices.map(|((x, a), e)| if e.present { x.slice(a.access) } else { Slice::Absent }).collect(), params);
    values.extend(args.iter().map(|a| a.name).zip(data));
}

pub type Run = dyn Fn(Op, Vec<Slice<f64>>, &[u8]);

pub fn reference(op: Op, args: Vec<Slice<f64>>, params: &[u8]) {
    op.reference(args, params)
}

/// The forward row whose saved statistics `op` takes, if it is a backward row that takes any.
pub fn forward_of(op: Op) -> Option<Op> {
    let (stem, _) = op.spec().name.split_once("_backward")?;
    let forward = Op::ALL.iter().find(|f| f.spec().name.strip_suffix("_forward") == Some(stem))?;
    let saved = |arg: &&Arg| forward.spec().args.iter().any(|f| f.name == arg.name && f.access == Access::Write);
    op.spec().args.iter().filter(|a| a.access == Access::Read).find(saved)?;
    Some(*forward)
}
