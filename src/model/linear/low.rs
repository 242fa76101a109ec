//! The low-rank side of linears that read one input: T = s·X·Aᵀ and P = s·G·B of each [N, R], side by side in rows of ΣR.
//!
//! Where their A lie one behind the other, as the optimizer puts them, they are one matrix [ΣR, C]: X is read once for all, and
//! what they add to dX is one product. Where an adapter is no more than that (no DoRA, nothing dropped), its product comes first
//! and the base's adds to it: what is large is written once, and read behind the product's own work.
use super::{Linear, LinearScratch, Lora, nn, nt, part, tn};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::matmul::MatMul;

/// What linears share, and where the T of these is.
#[derive(Clone, Copy)]
pub struct With<'a> {
    scratch: &'a LinearScratch,
    t: T<'a>,
}

#[derive(Clone, Copy)]
enum T<'a> {
    /// In the scratch, until the next linears run.
    Passing,
    /// From `first` on, for the backward.
    Kept { place: &'a Buf, first: usize },
}

impl<'a> From<&'a LinearScratch> for With<'a> {
    fn from(scratch: &'a LinearScratch) -> With<'a> {
        With { scratch, t: T::Passing }
    }
}

impl std::ops::Deref for With<'_> {
    type Target = LinearScratch;
    fn deref(&self) -> &LinearScratch {
        self.scratch
    }
}

impl LinearScratch {
    /// The forward leaves T in this place, if there is one, and the backward finds it there.
    pub fn keeping<'a>(&'a self, place: &'a Option<Buf>) -> With<'a> {
        let t = place.as_ref().map_or(T::Passing, |place| T::Kept { place, first: 0 });
        With { scratch: self, t }
    }
}

impl With<'_> {
    /// Whether the backward finds T as the forward left it.
    pub(super) fn is_kept(self) -> bool {
        matches!(self.t, T::Kept { .. })
    }
    /// The next place, behind T of a linear.
    pub(super) fn behind(self, linear: &Linear, N: usize) -> Self {
        let t = match self.t {
            T::Kept { place, first } => T::Kept { place, first: first + N * rank(linear) },
            passing => passing,
        };
        With { t, ..self }
    }
    /// These columns of T.
    pub(super) fn t(self, at: Columns, N: usize) -> Buf {
        match self.t {
            T::Passing => at.of(&self.scratch.xa, N),
            T::Kept { place, first } => place.view(first + at.first, N * at.ld),
        }
    }
}

/// Ranks of a layer's adapters, added up where they read one input; or the largest of several layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranks {
    pub qkv: usize,
    pub o: usize,
    pub gate_up: usize,
    pub down: usize,
}

impl Ranks {
    pub fn max(self, other: Ranks) -> Ranks {
        Ranks {
            qkv: self.qkv.max(other.qkv),
            o: self.o.max(other.o),
            gate_up: self.gate_up.max(other.gate_up),
            down: self.down.max(other.down),
        }
    }
    /// Of what a layer computes again before its backward: T of the others is of the first forward, and made again.
    pub fn again(self) -> Ranks {
        Ranks { o: 0, down: 0, ..self }
    }
}

/// The ranks of linears that read one input.
pub fn ranks<'a>(linears: impl IntoIterator<Item = &'a Linear>) -> usize {
    linears.into_iter().map(rank).sum()
}

/// Room for T of N tokens from the forward to the backward.
pub fn kept(scope: &Scope, ranks: usize, N: usize, dtype: DType) -> Result<Option<Buf>> {
    // columns from r on are a view that starts r later
    if ranks > 0 { scope.alloc((N + 1) * ranks, dtype).map(Some) } else { Ok(None) }
}

fn rank(linear: &Linear) -> usize {
    linear.lora.as_ref().map_or(0, |lora| lora.R)
}

/// Linears that read one input, at most: q, k and v.
const MOST: usize = 3;

/// Where a linear's columns of T and P are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub first: usize,
    /// Elements of a row.
    pub ld: usize,
}

impl Columns {
    /// There are no others.
    pub fn alone(R: usize) -> Columns {
        Columns { first: 0, ld: R }
    }
    /// In a scratch of `room` rows' elements.
    pub fn of(self, scratch: &Option<Buf>, N: usize) -> Buf {
        part(scratch, self.first + N * self.ld).view(self.first, N * self.ld)
    }
    /// A product that writes them.
    pub fn out(self, p: MatMul) -> MatMul {
        MatMul { ld_out: self.ld as u32, ..p }
    }
    /// A product whose a they are.
    pub fn a(self, p: MatMul) -> MatMul {
        MatMul { ld_a: self.ld as u32, ..p }
    }
    /// A product whose b they are.
    pub fn b(self, p: MatMul) -> MatMul {
        MatMul { ld_b: self.ld as u32, ..p }
    }
}

/// Elements of T and of P for N tokens, whichever of the linears are stacked.
pub(super) fn room(linears: &[&Linear], N: usize) -> usize {
    let stacked = |first: usize| linears[first..].iter().take(MOST).map(|linear| rank(linear)).sum();
    // columns from r on are a view that starts r later
    (N + 1) * (0..linears.len()).map(stacked).max().unwrap_or(0)
}

/// The adapters of linears that read one input, as one.
pub(super) struct Stack {
    /// [ΣR, C]
    a: Buf,
    /// Of each linear; `None`: it has no adapter.
    columns: Vec<Option<Columns>>,
    R: usize,
    C: usize,
    scale: f32,
}

impl Stack {
    /// `None`: they are not of a kind, or their A are not one matrix.
    pub fn of(linears: &[Linear], scratch: &LinearScratch) -> Option<Stack> {
        let loras = || linears.iter().filter_map(|linear| linear.lora.as_ref());
        let first = loras().next()?;
        let alike = |lora: &Lora| lora.is_plain(scratch) && lora.scale == first.scale;
        let several = (2..=MOST).contains(&loras().count()) && linears.len() <= MOST;
        if !several || !loras().all(alike) || Self::gradient(linears).is_none() && loras().any(|l| l.a.train.is_some())
        {
            return None;
        }
        let a = Buf::joined(loras().map(|lora| &lora.a.value))?;
        let R = loras().map(|lora| lora.R).sum();
        let columns = linears.iter().scan(0, |next, linear| {
            let first = *next;
            *next += linear.lora.as_ref().map_or(0, |lora| lora.R);
            Some((*next > first).then_some(Columns { first, ld: R }))
        });
        Some(Stack { a, columns: columns.collect(), R, C: linears[0].C, scale: first.scale })
    }

    /// That of A, where all are trained and theirs are one matrix, too.
    fn gradient(linears: &[Linear]) -> Option<Buf> {
        let loras = linears.iter().filter_map(|linear| linear.lora.as_ref());
        let grads = loras.map(|lora| lora.a.train.as_ref().map(|train| &train.grad)).collect::<Option<Vec<_>>>()?;
        Buf::joined(grads.into_iter())
    }

    /// Each linear's columns; of no meaning for one without an adapter.
    pub fn columns(&self, linear: usize) -> Columns {
        self.columns[linear].unwrap_or(Columns { first: 0, ld: self.R })
    }

    /// T of all.
    pub fn narrow(&self, b: &dyn Backend, with: With, inp: &Buf, N: usize) -> Result<()> {
        b.matmul_nt(&mut with.t(Columns::alone(self.R), N), inp, &self.a, &nt(N, self.R, self.C, self.scale))
    }

    /// dinp = P·A, from the P of all.
    pub fn widen(&self, b: &dyn Backend, scratch: &LinearScratch, dinp: &mut Buf, N: usize) -> Result<()> {
        b.matmul_nn(dinp, &part(&scratch.p, N * self.R), &self.a, &nn(N, self.C, self.R, 1.0))
    }

    /// The gradients of all A, if they are trained, from the P of all.
    pub fn backward_a(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        linears: &mut [Linear],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        let mut trained = linears.iter_mut().filter_map(|linear| linear.lora.as_mut()?.a.train.as_mut());
        trained.try_for_each(|train| train.sum(b).map(|_| ()))?;
        let Some(mut grad) = Self::gradient(linears) else { return Ok(()) };
        b.matmul_tn_add(&mut grad, &part(&scratch.p, N * self.R), inp, &tn(self.R, self.C, N, 1.0))
    }
}

impl Lora {
    /// Neither DoRA nor, now, dropout: it is a sum with the base.
    pub(super) fn is_plain(&self, scratch: &LinearScratch) -> bool {
        self.dora.is_none() && !self.drops(scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Projections, Weight};
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::backend::{Launch, pick};
    use crate::model::param::{Param, Sum, Train};
    use crate::ops::Op;
    use std::cell::Cell;
    use std::rc::Rc;

    const N: usize = 70;
    const C: usize = 64;
    /// Output channels and rank of each; the second has no adapter.
    const EACH: [(usize, usize); 4] = [(32, 8), (16, 0), (16, 16), (48, 8)];

    fn noise(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// A trained weight whose value and gradient lie in `place`, if there is one.
    fn trained(b: &dyn Backend, shape: [usize; 2], seed: usize, place: Option<(Buf, Buf)>, dtype: DType) -> Param {
        let mut param = Param::zeros(b, "a", &shape, dtype).unwrap();
        let len = shape[0] * shape[1];
        let (value, grad) = place.unwrap_or_else(|| (b.alloc(len, dtype).unwrap(), b.alloc(len, DType::F32).unwrap()));
        b.free(std::mem::replace(&mut param.value, value));
        b.upload_f32(&mut param.value, &noise(len, seed)).unwrap();
        param.train = Some(Train { grad, sum: Rc::new(Cell::new(Sum::Begun)), master: None });
        param
    }

    /// Three adapted linears and one that is not, with their A side by side or apart.
    fn projections(b: &dyn Backend, which: &[usize], together: bool, dtype: DType) -> Projections {
        let ranks: usize = which.iter().map(|i| EACH[*i].1).sum();
        let all = (b.alloc(ranks * C, dtype).unwrap(), b.alloc(ranks * C, DType::F32).unwrap());
        let mut next = 0;
        let linear = |i: &usize| {
            let (O, R) = EACH[*i];
            let mut weight = Param::zeros(b, "w", &[O, C], dtype).unwrap();
            b.upload_f32(&mut weight.value, &noise(O * C, *i)).unwrap();
            let place = together.then(|| (all.0.view(next * C, R * C), all.1.view(next * C, R * C)));
            next += R;
            let lora = (R > 0).then(|| Lora {
                a: trained(b, [R, C], 10 + i, place, dtype),
                b: trained(b, [O, R], 20 + i, None, dtype),
                R,
                scale: 0.5,
                dora: None,
                dropout: None,
                start: None,
            });
            Linear { name: "q".into(), O, parts: vec![O], C, weight: Weight::Dense(weight), bias: None, lora }
        };
        Projections(which.iter().map(linear).collect())
    }

    /// Where the backward has T from.
    #[derive(Clone, Copy, Debug)]
    enum Source {
        Again,
        Forward,
    }

    /// Outputs, the input's gradient, and those of A and B; and whether the adapters were one.
    fn run(b: &dyn Backend, which: &[usize], how: (bool, Source), dtype: DType) -> (Vec<Vec<f32>>, bool) {
        run_wanting(b, which, how, dtype, true)
    }

    /// The same where the input's gradient may not be wanted.
    fn run_wanting(
        b: &dyn Backend,
        which: &[usize],
        (together, from): (bool, Source),
        dtype: DType,
        wanted: bool,
    ) -> (Vec<Vec<f32>>, bool) {
        let (scope, mut p) = (Scope::new(b), projections(b, which, together, dtype));
        let scratch = LinearScratch::new(&scope, p.0.iter(), N, dtype).unwrap();
        let bufs = |seed: usize| -> Vec<Buf> {
            which.iter().map(|i| scope.alloc_f32(&noise(N * EACH[*i].0, seed + i), dtype).unwrap()).collect()
        };
        let (mut outs, douts, inp) = (bufs(30), bufs(40), scope.alloc_f32(&noise(N * C, 50), dtype).unwrap());
        let mut dinp = scope.alloc_f32(&noise(N * C, 60), dtype).unwrap();
        let place = match from {
            Source::Again => None,
            Source::Forward => kept(&scope, ranks(&p.0), N, dtype).unwrap(),
        };
        p.forward(b, scratch.keeping(&place), &mut outs.iter_mut().collect::<Vec<_>>(), &inp, N).unwrap();
        // others run in between
        let mut passing = part(&scratch.xa, scratch.xa.as_ref().unwrap().len());
        b.fill(&mut passing, f32::NAN).unwrap();
        let douts: Vec<_> = douts.iter().collect();
        p.backward(b, scratch.keeping(&place), (&mut dinp, wanted), &douts, &inp, N).unwrap();
        let loras = p.0.iter().filter_map(|linear| linear.lora.as_ref());
        let grads = loras.flat_map(|lora| [&lora.a, &lora.b]).map(|param| param.grad(b).unwrap());
        let values = outs.iter().chain([&dinp]).map(|buf| b.download_f32(buf).unwrap()).chain(grads).collect();
        (values, Stack::of(&p.0, &scratch).is_some())
    }

    /// Squared error over the squared norm.
    fn distance(got: &[f32], want: &[f32]) -> f64 {
        let square = |x: f32| (x as f64).powi(2);
        let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
        error / want.iter().map(|w| square(*w)).sum::<f64>()
    }

    /// The cpu, as one that makes both gradients of B's product together.
    struct Joining {
        inner: Cpu,
        joined: Cell<usize>,
    }

    impl Backend for Joining {
        crate::pass_on! { inner: name device alloc free upload download copy sync memory available rules charge host_alloc
        host_free to_host from_host rows_from_host host_upload host_download }
        fn has_low_rank(&self) -> bool {
            true
        }
        fn launch(&self, launch: &Launch) -> Result<()> {
            self.joined.set(self.joined.get() + usize::from(launch.op() == Op::low_rank_backward));
            self.inner.launch(launch)
        }
    }

    #[test]
    fn gradients_from_one_reading_are_those_of_two_products() {
        for (which, adapters) in [([0, 1, 2].as_slice(), 2), (&[0, 3], 2), (&[3], 1)] {
            for together in [true, false] {
                let b = Joining { inner: Cpu::new(), joined: Cell::new(0) };
                let (want, _) = run(&b.inner, which, (together, Source::Again), DType::F32);
                for (from, count) in [(Source::Again, 0), (Source::Forward, adapters)] {
                    b.joined.set(0);
                    let (got, _) = run(&b, which, (together, from), DType::F32);
                    assert_eq!(b.joined.get(), count, "{which:?} {together} {from:?}");
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        assert!(distance(got, want) <= 1e-12, "{which:?} {together} {from:?}: {i}");
                    }
                }
            }
        }
    }

    /// Of the first layer's input, where nothing before it is trained.
    #[test]
    fn without_the_inputs_gradient_those_of_adapters_are_the_same() {
        let b = Cpu::new();
        for which in [[0, 1, 2].as_slice(), &[0, 3], &[1, 3], &[3]] {
            for how in [(true, Source::Again), (false, Source::Again), (true, Source::Forward)] {
                let (want, _) = run(&b, which, how, DType::F32);
                let (got, _) = run_wanting(&b, which, how, DType::F32, false);
                let dinp = which.len();
                assert_eq!(got[dinp], noise(N * C, 60), "{which:?} {how:?}: it is left alone");
                assert!(got[dinp + 1..] == want[dinp + 1..] && got[dinp] != want[dinp], "{which:?} {how:?}");
            }
        }
    }

    #[test]
    fn adapters_side_by_side_give_what_they_give_apart() {
        for name in ["cpu", "wgpu", "cuda"] {
            let Ok((b, _)) = pick::pick(name) else { continue };
            for (dtype, limit) in [(DType::F32, 1e-9), (DType::Bf16, 1e-4)] {
                for which in [[0, 1, 2].as_slice(), &[0, 3], &[2, 0, 3]] {
                    let (want, other) = run(&*b, which, (false, Source::Again), dtype);
                    let (got, one) = run(&*b, which, (true, Source::Again), dtype);
                    assert!(one && !other, "{name}: {which:?}");
                    for (together, want) in [(true, &got), (false, &want)] {
                        let (kept, _) = run(&*b, which, (together, Source::Forward), dtype);
                        assert_eq!(kept, *want, "{name} {dtype:?} {which:?}: T of the forward");
                    }
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        let error = distance(got, want);
                        assert!(error <= limit, "{name} {dtype:?} {which:?}: {i}: {error:e}");
                    }
                }
            }
        }
    }
}
