//! The head: hidden states to log-probabilities of labels, and back, in chunks of tokens, so that [N, V] never exists.
//!
//! forward   z = softcap(scale·h·Wᵀ + bias) [n, V] in f32,  logp = z[label] − log Σ exp z
//! backward  dz = coef·(1[label] − softmax z)·softcap′,  dh = scale·dz·W,  dW += scale·dzᵀ·h,  dbias += Σ_n dz
use super::Model;
use super::param::{Param, Sum};
use super::spec::Spec;
use super::table::{SLICE_BYTES, Slices, Table};
use super::token_rows::{Chunk, HeadGrad, TokenRows};
use crate::backend::dry::Rules;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::bias::{Bias, BiasBackward};
use crate::ops::logprob::LogProb;
use crate::ops::matmul::MatMul;

/// Bytes of f32 logits alive at a time, at most.
const CHUNK_BYTES: usize = 128 << 20;
/// Tokens of which twice as many are: every chunk reads the whole weight.
const MANY: usize = 1 << 14;
/// The same where the head is trained: each chunk adds to all of its gradient, so a few large ones are wanted. An eighth of the tokens
/// is enough.
const TRAINED_CHUNK_BYTES: usize = 512 << 20;
/// Tokens that products like best, in multiples.
const TILE: usize = 128;

/// What makes logits of hidden states.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    /// [V, C]
    pub table: &'a Table,
    /// [V]
    pub bias: Option<&'a Param>,
}

pub(super) struct HeadScratch {
    V: usize,
    C: usize,
    /// Of logits.
    scale: f32,
    softcap: f32,
    /// Tokens of a chunk.
    rows: usize,
    /// Row stride of logits: V rounded up, so that rows stay aligned for 16-bit and tensor-core kernels.
    ld: usize,
    logits: Buf,
    /// Of the weight.
    slices: Slices,
    /// dh of a chunk in f32, where it is a sum over slices and 16 bits would round each.
    sum: Option<Buf>,
    /// Only for training.
    dlogits: Option<Buf>,
    logp: Buf,
    lse: Buf,
    labels: Buf,
    coef: Buf,
    /// For rows that are trained alone.
    rows_grad: Option<HeadGrad>,
}

/// What a backward is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trains {
    Nothing,
    /// What is before the head.
    Others,
    /// Its whole weight, too.
    Head,
}

fn trains(model: &Model, train: bool) -> Trains {
    match model.head.as_ref().unwrap_or(&model.embed) {
        _ if !train => Trains::Nothing,
        Table::Dense(Param { train: Some(_), .. }) => Trains::Head,
        _ => Trains::Others,
    }
}

impl HeadScratch {
    /// `room` is what [`HeadScratch::sizes`] asks for.
    pub fn new(scope: &Scope, model: &Model, N: usize, train: bool, room: Vec<Buf>) -> Result<HeadScratch> {
        let (s, dtype) = (&model.spec, model.dtype);
        let (table, rows) = match &model.head {
            Some(own) => (own, &model.head_rows),
            None => (&model.embed, &model.embed_rows),
        };
        let slices = Slices::new(scope, table, [s.V, s.C], dtype, SLICE_BYTES)?;
        let mut head = Self::with(scope, s, slices, N, room, trains(model, train))?;
        if let Some(rows) = rows.as_ref().filter(|_| train) {
            head.rows_grad = Some(HeadGrad::new(scope, rows, model.head_bias.as_ref(), head.rows, N, dtype)?);
        }
        Ok(head)
    }

    /// Row stride of logits, and tokens of a chunk.
    fn chunk(rules: &dyn Rules, s: &Spec, N: usize, trains: Trains) -> (usize, usize) {
        let ld = s.V.next_multiple_of(64);
        let within = |bytes: usize| match bytes / 4 / ld {
            rows if rows > TILE => rows / TILE * TILE,
            rows => rows,
        };
        let few = match trains {
            Trains::Head => within(TRAINED_CHUNK_BYTES).min(N.div_ceil(8).next_multiple_of(TILE)),
            _ => 0,
        };
        let bytes = if N < MANY { CHUNK_BYTES } else { 2 * CHUNK_BYTES };
        (ld, within(bytes.max(rules.logits())).max(few).clamp(1, N))
    }

    /// Lengths and types of what is wanted only while the head runs: logits, for training dlogits, and the sum over slices.
    pub fn sizes(rules: &dyn Rules, model: &Model, N: usize, train: bool) -> Vec<(usize, DType)> {
        let (s, dtype) = (&model.spec, model.dtype);
        let table = model.head.as_ref().unwrap_or(&model.embed);
        let slices = Slices::rows(rules, table, [s.V, s.C], dtype, SLICE_BYTES) < s.V;
        Self::sizes_of(rules, s, N, dtype, slices, trains(model, train))
    }

    fn sizes_of(
        rules: &dyn Rules,
        s: &Spec,
        N: usize,
        dtype: DType,
        slices: bool,
        trains: Trains,
    ) -> Vec<(usize, DType)> {
        let ((ld, rows), train) = (Self::chunk(rules, s, N, trains), trains != Trains::Nothing);
        // columns from v on are a view that starts v later
        let len = rows * ld + if slices { ld } else { 0 };
        let mut sizes = vec![(len, DType::F32)];
        sizes.extend(train.then_some((len, dtype)));
        sizes.extend((train && slices && dtype != DType::F32).then_some((rows * s.C, DType::F32)));
        sizes
    }

    fn with(scope: &Scope, s: &Spec, slices: Slices, N: usize, room: Vec<Buf>, trains: Trains) -> Result<HeadScratch> {
        let (V, C, scale, softcap) = (s.V, s.C, s.logit_scale, s.logit_softcap);
        let (ld, rows) = Self::chunk(&*scope.backend().rules(), s, N, trains);
        let mut room = room.into_iter();
        let logits = room.next().ok_or_else(|| Error::Bug("a head without room for logits".into()))?;
        let (dlogits, sum) = (room.next(), room.next());
        let n = |dtype| scope.alloc(N, dtype);
        let (logp, lse, coef) = (n(DType::F32)?, n(DType::F32)?, n(DType::F32)?);
        Ok(HeadScratch {
            V,
            C,
            scale,
            softcap,
            rows,
            ld,
            logits,
            slices,
            sum,
            dlogits,
            logp,
            lse,
            labels: n(DType::U32)?,
            coef,
            rows_grad: None,
        })
    }

    /// Tokens at a time.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn chunks(&self, N: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows = self.rows;
        (0..N.div_ceil(rows)).map(move |i| (i * rows, rows.min(N - i * rows)))
    }

    /// scale·h·Wᵀ + bias of tokens `first..first + n`; `h` is [N, C].
    pub fn logits(&self, b: &dyn Backend, head: Weights, h: &Buf, first: usize, n: usize) -> Result<Buf> {
        let (V, C, ld) = (self.V as u32, self.C as u32, self.ld as u32);
        let h = h.view(first * self.C, n * self.C);
        let mut z = self.logits.view(0, n * self.ld);
        for (v, count) in self.slices.each() {
            let weight = self.slices.get(b, head.table, v, count)?;
            let p = MatMul { I: n as u32, J: count as u32, Q: C, ld_out: ld, ld_a: C, ld_b: C, alpha: self.scale };
            b.matmul_nt(&mut self.logits.view(v, n * self.ld), &h, &weight, &p)?;
        }
        if let Some(bias) = head.bias {
            b.bias_forward(&mut z, &bias.value, &Bias { N: n as u32, O: V, ld_out: ld })?;
        }
        Ok(z)
    }

    /// dh [n, C] = scale·dz·W.
    fn input_gradient(&self, b: &dyn Backend, table: &Table, dh: &mut Buf, n: usize) -> Result<()> {
        let (C, ld) = (self.C as u32, self.ld as u32);
        let dlogits = self.dlogits.as_ref().expect("made for training");
        let mut sum = self.sum.as_ref().map_or_else(|| dh.view(0, dh.len()), |sum| sum.view(0, n * self.C));
        for (v, count) in self.slices.each() {
            let weight = self.slices.get(b, table, v, count)?;
            let p = MatMul { I: n as u32, J: C, Q: count as u32, ld_out: C, ld_a: ld, ld_b: C, alpha: self.scale };
            let dz = dlogits.view(v, n * self.ld);
            match v {
                0 => b.matmul_nn(&mut sum, &dz, &weight, &p)?,
                _ => b.matmul_nn_add(&mut sum, &dz, &weight, &p)?,
            }
        }
        if self.sum.is_some() { b.cast(dh, &sum) } else { Ok(()) }
    }

    /// The logits of some tokens on the host, [n, V]; for generation and for looking at a model.
    pub fn download_logits(&self, b: &dyn Backend, head: Weights, h: &Buf, first: usize, n: usize) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(n * self.V);
        let mut at = first;
        while at < first + n {
            let rows = self.rows.min(first + n - at);
            let z = b.download_f32(&self.logits(b, head, h, at, rows)?)?;
            z.chunks(self.ld).for_each(|row| all.extend_from_slice(&row[..self.V]));
            at += rows;
        }
        if self.softcap != 0.0 {
            all.iter_mut().for_each(|z| *z = self.softcap * (*z / self.softcap).tanh());
        }
        Ok(all)
    }

    /// logp [N] of `labels` under h [N, C].
    pub fn forward(&mut self, b: &dyn Backend, head: Weights, h: &Buf, labels: &[u32]) -> Result<Vec<f32>> {
        b.upload_u32(&mut self.labels, labels)?;
        for (first, n) in self.chunks(labels.len()) {
            let z = self.logits(b, head, h, first, n)?;
            self.logprob(b, &z, first, n)?;
        }
        b.download_f32(&self.logp)
    }

    fn logprob(&mut self, b: &dyn Backend, z: &Buf, first: usize, n: usize) -> Result<()> {
        let p = self.params(n);
        let (mut logp, mut lse) = (self.logp.view(first, n), self.lse.view(first, n));
        b.logprob_forward(&mut logp, &mut lse, z, &self.labels.view(first, n), &p)
    }

    fn params(&self, n: usize) -> LogProb {
        let ld = self.ld as u32;
        LogProb { N: n as u32, V: self.V as u32, ld_logits: ld, ld_dlogits: ld, softcap: self.softcap }
    }

    /// Forward and backward in one pass: coef [N] is known. dh [N, C] is written; the gradients of what is trained grow.
    /// The log-probabilities stay on the device until [`HeadScratch::logp`].
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        (table, mut bias, mut rows): (&mut Table, Option<&mut Param>, Option<&mut TokenRows>),
        dh: &mut Buf,
        h: &Buf,
        labels: &[u32],
        coef: &[f32],
    ) -> Result<()> {
        let all_labels = labels;
        b.upload_u32(&mut self.labels, labels)?;
        b.upload_f32(&mut self.coef, coef)?;
        let (C, v, c, ld) = (self.C, self.V as u32, self.C as u32, self.ld as u32);
        for (first, n) in self.chunks(labels.len()) {
            let z = self.logits(b, Weights { table, bias: bias.as_deref() }, h, first, n)?;
            self.logprob(b, &z, first, n)?;
            let mut dz = self.dlogits.as_ref().expect("made for training").view(0, n * self.ld);
            let (coef, lse, labels) = (self.coef.view(first, n), self.lse.view(first, n), self.labels.view(first, n));
            b.logprob_backward(&mut dz, &coef, &lse, &z, &labels, &self.params(n))?;
            self.input_gradient(b, table, &mut dh.view(first * C, n * C), n)?;
            if let Table::Dense(Param { train: Some(train), .. }) = table {
                let (h, begun) = (h.view(first * C, n * C), train.sum.replace(Sum::Begun));
                for (v, count) in self.slices.each() {
                    let (I, Q) = (count as u32, n as u32);
                    let p = MatMul { I, J: c, Q, ld_out: c, ld_a: ld, ld_b: c, alpha: self.scale };
                    let dz = self.dlogits.as_ref().expect("made for training").view(v, n * self.ld);
                    let mut grad = train.grad.view(v * C, count * C);
                    match begun {
                        Sum::Nothing => b.matmul_tn(&mut grad, &dz, &h, &p)?,
                        Sum::Begun => b.matmul_tn_add(&mut grad, &dz, &h, &p)?,
                    }
                }
            }
            if let (Some(grad), Some(rows)) = (&mut self.rows_grad, rows.as_deref_mut()) {
                let h = &h.view(first * C, n * C);
                let (scale, softcap, labels) = (self.scale, self.softcap, &all_labels[first..first + n]);
                grad.backward(b, rows, &Chunk { n, h, coef: &coef, lse: &lse, labels, scale, softcap })?;
            }
            if let Some(Param { train: Some(train), .. }) = bias.as_deref_mut() {
                b.bias_backward(train.sum(b)?, &dz, &BiasBackward { N: n as u32, O: v, ld_dout: ld })?;
            }
        }
        Ok(())
    }

    /// The log-probabilities of the last `backward`. Waits.
    pub fn logp(&self, b: &dyn Backend) -> Result<Vec<f32>> {
        b.download_f32(&self.logp)
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::GgufWeight;
    use super::*;
    use crate::backend::pick;
    use crate::model::arch;
    use crate::ops::gguf::Packed;

    /// A head in Q8_0 a slice at a time, against the same values as floats at once.
    fn check(b: &dyn Backend, dtype: DType, limit: f32) {
        let (V, C, N) = (200, 32, 5);
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({ "model_type": "llama", "hidden_size": C, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": V });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let s = arch::read_spec(dir.path()).unwrap();
        let block =
            |v: usize| DType::F16.encode(&[0.002]).into_iter().chain((0..32).map(move |i| (v * 37 + i * 11) as u8));
        let bytes: Vec<u8> = (0..V).flat_map(block).collect();
        let mut blocks = b.alloc(bytes.len(), DType::U8).unwrap();
        b.upload(&mut blocks, &bytes).unwrap();
        let mut dense = Param::zeros(b, "lm_head.weight", &[V, C], dtype).unwrap();
        dense.set(b, &Packed::Q8_0.decode(&bytes, V * C)).unwrap();
        let scope = Scope::new(b);
        let noise = |len: usize| (0..len).map(|i| (i * 7 % 13) as f32 / 6.0 - 1.0).collect::<Vec<_>>();
        let h = scope.alloc_f32(&noise(N * C), dtype).unwrap();
        let (labels, coef) = ([3, 199, u32::MAX, 64, 128], [0.5, -1.0, 0.0, 2.0, 1.0]);
        let run = |mut table: Table, bytes: usize| {
            let slices = Slices::new(&scope, &table, [V, C], dtype, bytes).unwrap();
            let count = slices.each().count();
            let sizes = HeadScratch::sizes_of(&*b.rules(), &s, N, dtype, count > 1, Trains::Others);
            let room = sizes.iter().map(|(len, dtype)| scope.alloc(*len, *dtype).unwrap()).collect();
            let mut head = HeadScratch::with(&scope, &s, slices, N, room, Trains::Others).unwrap();
            let logits = head.download_logits(b, Weights { table: &table, bias: None }, &h, 0, N).unwrap();
            let mut dh = scope.alloc(N * C, dtype).unwrap();
            head.backward(b, (&mut table, None, None), &mut dh, &h, &labels, &coef).unwrap();
            (count, [logits, head.logp(b).unwrap(), b.download_f32(&dh).unwrap()])
        };
        let (one, want) = run(Table::Dense(dense), 0);
        let (four, got) = run(Table::Packed(GgufWeight { format: Packed::Q8_0, blocks }), 0);
        assert_eq!((one, four), (1, 4), "slices of 64 rows at least");
        for (got, want) in got.iter().zip(&want) {
            let most = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!(
                most > 0.1 && got.iter().zip(want).all(|(g, w)| (g - w).abs() <= limit * most),
                "{got:?}\n{want:?}"
            );
        }
    }

    #[test]
    fn a_packed_head_is_its_values() {
        for name in ["cpu", "wgpu"] {
            if let Ok((b, _)) = pick::pick(name) {
                check(&*b, DType::F32, 1e-6);
                check(&*b, DType::Bf16, 0.01);
            }
        }
    }
}
