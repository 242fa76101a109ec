//! From hidden states to next tokens, on the device: the head for the rows that are sampled after, changes of single logits,
//! the draw (`ops/sample.rs`). Only tokens and their log-probabilities come to the host.
use super::Model;
use super::head::HeadScratch;
use super::paged::Grown;
use super::session::{Session, head_of};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::embedding::Embedding;
use crate::ops::sample::{SampleAdjust, SampleSoftcap, SampleToken};

/// How one row's token is drawn; see `ops/sample.rs`.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// The row of the session.
    pub row: u32,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    /// 0: all.
    pub top_k: u32,
    /// Random words, of the sequence and its length.
    pub words: [u32; 2],
    /// (token, factor, more) of tokens whose logit is changed first.
    pub adjust: Vec<(u32, f32, f32)>,
    pub want: Want,
}

/// What comes to the host beside the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Token,
    /// The logits too, as they were before they were changed.
    Logits,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    pub token: u32,
    /// Of the token, under the logits after changes and before the temperature.
    pub logp: f32,
    pub logits: Option<Vec<f32>>,
}

/// For sessions of one model, whatever their sizes.
pub struct Sampler<'b> {
    b: &'b dyn Backend,
    _scope: Scope<'b>,
    /// Rows at a time.
    rows: usize,
    ids: Buf,
    /// [rows, C]
    h: Buf,
    head: HeadScratch,
    token: Buf,
    logp: Buf,
    controls: Buf,
    keys: Buf,
    at: Grown,
    change: Grown,
}

impl<'b> Sampler<'b> {
    pub fn new(b: &'b dyn Backend, model: &Model, rows: usize) -> Result<Sampler<'b>> {
        let (scope, s) = (Scope::new(b), &model.spec);
        let room = scope.by_turns(&[HeadScratch::sizes(&*scope.backend().rules(), model, rows, false)])?.remove(0);
        let head = HeadScratch::new(&scope, model, rows, false, room)?;
        let rows = head.rows();
        let (u32s, floats) = (|len| scope.alloc(len, DType::U32), |len| scope.alloc(len, DType::F32));
        Ok(Sampler {
            b,
            rows,
            ids: u32s(rows)?,
            h: scope.alloc(rows * s.C, model.dtype)?,
            head,
            token: u32s(rows)?,
            logp: floats(rows)?,
            controls: floats(3 * rows)?,
            keys: u32s(3 * rows)?,
            at: Grown::new(DType::U32),
            change: Grown::new(DType::F32),
            _scope: scope,
        })
    }

    /// Draws from the rows of the session's last forward.
    pub fn sample(&mut self, model: &Model, session: &Session, draws: &[Draw]) -> Result<Vec<Drawn>> {
        let mut out = Vec::with_capacity(draws.len());
        for draws in draws.chunks(self.rows) {
            out.extend(self.some(model, session, draws)?);
        }
        Ok(out)
    }

    fn some(&mut self, model: &Model, session: &Session, draws: &[Draw]) -> Result<Vec<Drawn>> {
        let (b, s, n) = (self.b, &model.spec, draws.len());
        let (mut ids, mut h) = (self.ids.view(0, n), self.h.view(0, n * s.C));
        b.upload_u32(&mut ids, &draws.iter().map(|d| d.row).collect::<Vec<_>>())?;
        let p = Embedding { N: n as u32, V: session.N as u32, C: s.C as u32, scale: 1.0 };
        b.embedding_forward(&mut h, &ids, session.hidden(), &p)?;
        let mut logits = self.head.logits(b, head_of(model), &h, 0, n)?;
        let (N, V, ld_logits) = (n as u32, s.V as u32, (logits.len() / n) as u32);
        if s.logit_softcap != 0.0 {
            b.sample_softcap(&mut logits, &SampleSoftcap { N, V, ld_logits, softcap: s.logit_softcap })?;
        }
        let wanted = |(i, draw): (usize, &Draw)| match draw.want {
            Want::Token => Ok(None),
            Want::Logits => b.download_f32(&logits.view(i * ld_logits as usize, s.V)).map(Some),
        };
        let whole = draws.iter().enumerate().map(wanted).collect::<Result<Vec<_>>>()?;
        self.adjust(&mut logits, draws, [N, V, ld_logits])?;
        let (mut token, mut logp) = (self.token.view(0, n), self.logp.view(0, n));
        let (mut controls, mut keys) = (self.controls.view(0, 3 * n), self.keys.view(0, 3 * n));
        let each = |draw: &Draw| [draw.temperature, draw.top_p, draw.min_p];
        b.upload_f32(&mut controls, &draws.iter().flat_map(each).collect::<Vec<_>>())?;
        let each = |draw: &Draw| [draw.words[0], draw.words[1], draw.top_k];
        b.upload_u32(&mut keys, &draws.iter().flat_map(each).collect::<Vec<_>>())?;
        b.sample_token(&mut token, &mut logp, &logits, &controls, &keys, &SampleToken { N, V, ld_logits })?;
        let (token, logp) = (b.download_u32(&token)?, b.download_f32(&logp)?);
        let all = token.into_iter().zip(logp).zip(whole);
        Ok(all.map(|((token, logp), logits)| Drawn { token, logp, logits }).collect())
    }

    fn adjust(&mut self, logits: &mut Buf, draws: &[Draw], [N, V, ld_logits]: [u32; 3]) -> Result<()> {
        let (mut at, mut change) = (Vec::new(), Vec::new());
        for (row, draw) in draws.iter().enumerate() {
            for (token, factor, more) in &draw.adjust {
                at.extend([row as u32, *token]);
                change.extend([*factor, *more]);
            }
        }
        if at.is_empty() {
            return Ok(());
        }
        let P = at.len() as u32 / 2;
        let (mut places, mut changes) = (self.at.get(self.b, at.len())?, self.change.get(self.b, change.len())?);
        self.b.upload_u32(&mut places, &at)?;
        self.b.upload_f32(&mut changes, &change)?;
        self.b.sample_adjust(logits, &places, &changes, &SampleAdjust { N, V, P, ld_logits })
    }
}

impl Drop for Sampler<'_> {
    fn drop(&mut self) {
        self.at.free(self.b);
        self.change.free(self.b);
    }
}
