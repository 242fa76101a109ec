//! Where the gradients of large matrices are between the backward that makes them and the step that uses them up.
//!
//! ```text
//! device   each has a place of its own                                                      grows with the model
//! host     those of the last k layers share two places by turns; what is displaced waits    two layers less k
//!          on the host: there behind the backward, and back ahead of the step
//! fused    all share one place: a part's weights move as soon as its gradients are whole    the largest part
//! ```
//! The bits are the same. Clipping wants the norm of all gradients before anything moves, so it excludes `fused`; the sums of squares
//! of what goes to the host are taken before it goes.
//!
//! An example, 8.03e9 parameters in 32 layers on an H200, 2 x 2048 tokens, AdamW in 8 bits, bf16 without masters: weights 14.96 GiB,
//! states 18.1 (those of the embedding are f32, as transformers has it), gradients 14.96: 48.0 with no activation yet. A layer's
//! gradients are 0.41 GiB. With 12 layers in two places, 10 · 0.436 GB go to the host, one in 8 ms where its backward takes 9, and come
//! back at 55 GB/s in 80 ms. The last layers go: the backward passes them first, so that their copies are over long before it is, and
//! the next forward needs them last. So their steps wait for it (`advance_lazily`): what comes back lands where the gradients of the
//! other layers were, beside the 25 ms of their steps and the 60 ms of their forwards, and each layer moves right before it is read.
use super::kind::Kind;
use crate::backend::{Backend, Buf, Charge, HostBuf, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::watch::Part;
use crate::train::flat::{self, Group, Place};
use std::collections::VecDeque;

/// Where gradients of large matrices wait for their step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Device,
    /// On the host, those of the last so many layers but for two; `micro_batches` make a step.
    Host {
        layers: usize,
        micro_batches: usize,
    },
    /// They do not wait: weights move during the backward. For steps of one micro-batch without clipping.
    Fused,
}

/// Which of a step's micro-batches a backward is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Micro {
    /// Others follow.
    Earlier,
    Last,
}

/// Where a part's gradients are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Now {
    Nowhere,
    Place,
    Host,
}

/// A part whose gradients share a place.
pub(super) struct Shared {
    pub part: Part,
    /// One weight each.
    pub groups: Vec<usize>,
    /// Their places, one per group.
    pub places: Vec<Buf>,
    /// One per group; empty: they never leave.
    pub hosts: Vec<HostBuf>,
    pub now: Now,
}

/// Those that share a place, in the order of the backward.
#[derive(Default)]
pub(super) struct Gradients {
    pub parts: Vec<Shared>,
    /// How many of them the running step's last backward has passed.
    pub passed: usize,
    /// The groups of each layer whose gradients are alone in their places.
    pub alone: Vec<Vec<usize>>,
    pub pending: Pending,
}

/// Parts whose steps wait for their gradients to come from the host.
#[derive(Default)]
pub(super) struct Pending {
    pub lr: f64,
    /// In the order of the forward; those in front are on their way.
    pub parts: VecDeque<usize>,
    pub coming: usize,
    /// Places of gradients that are used up, for those to come; as many as a part has groups.
    pub free: VecDeque<Vec<Buf>>,
}

/// A place for the gradient of each trained weight that shares one.
pub(super) struct Plan {
    pub order: Vec<Part>,
    pub places: Vec<Option<Buf>>,
}

/// The places, by turns: as many as parts are in use at a time.
pub(super) fn plan(b: &dyn Backend, model: &Model, stay: Stay) -> Result<Plan> {
    let (of, L) = (model.trained_parts(), model.blocks.len());
    let layers = |count: usize| (L - count.min(L)..L).rev().map(Part::Layer);
    let (order, turns): (Vec<Part>, usize) = match stay {
        Stay::Device => (Vec::new(), 0),
        Stay::Host { layers: count, .. } => (layers(count).collect(), 2),
        Stay::Fused => ([Part::Head].into_iter().chain(layers(L)).chain([Part::Embedding]).collect(), 1),
    };
    let weights: Vec<(usize, DType)> = model
        .trained()
        .map(|p| {
            let grad = &p.train.as_ref().expect("it is trained").grad;
            (if grad.is_empty() && p.is_matrix() { p.value.len() } else { 0 }, grad.dtype())
        })
        .collect();
    let dtype = weights.iter().find(|(len, _)| *len > 0).map_or(DType::F32, |(_, dtype)| *dtype);
    let shares = |i: usize, part: Part| of[i] == Some(part) && weights[i].0 > 0 && weights[i].1 == dtype;
    let members = |part: Part| (0..of.len()).filter(move |i| shares(*i, part)).collect::<Vec<_>>();
    let size = |part: &Part| members(*part).iter().map(|i| weights[*i].0.next_multiple_of(flat::ALIGN)).sum::<usize>();
    let order: Vec<Part> = order.into_iter().filter(|part| size(part) > 0).collect();
    let most = order.iter().map(size).max().unwrap_or(0);
    let _charge = Charge::to(b, Use::Gradients);
    let turns: Vec<Buf> = (0..turns.min(order.len())).map(|_| b.alloc(most, dtype)).collect::<Result<_>>()?;
    let mut places: Vec<Option<Buf>> = of.iter().map(|_| None).collect();
    for (k, part) in order.iter().enumerate() {
        let mut at = 0;
        for i in members(*part) {
            places[i] = Some(turns[k % turns.len()].view(at, weights[i].0));
            at += weights[i].0.next_multiple_of(flat::ALIGN);
        }
    }
    Ok(Plan { order, places })
}

impl Gradients {
    /// `of`: the part of each trained weight, and whether its gradient shares a place; `places`: its group.
    pub fn new(
        b: &dyn Backend,
        stay: Stay,
        (order, of): (Vec<Part>, Vec<(Option<Part>, bool)>),
        (places, groups): (&[Place], &[Group<Kind>]),
    ) -> Result<Gradients> {
        let count = order.len();
        let mut parts = Vec::new();
        for (k, part) in order.into_iter().enumerate() {
            let own = places.iter().zip(&of).filter(|(_, of)| **of == (Some(part), true)).map(|(place, _)| place);
            let leaves = match stay {
                Stay::Host { micro_batches, .. } => k + 2 < count || micro_batches > 1,
                _ => false,
            };
            let host = |place: &Place| b.host_alloc(place.len, groups[place.group].grad.dtype());
            let hosts = if leaves { own.clone().map(host).collect::<Result<_>>()? } else { Vec::new() };
            let own: Vec<usize> = own.map(|place| place.group).collect();
            let places = own.iter().map(|group| same(&groups[*group].grad)).collect();
            parts.push(Shared { part, groups: own, places, hosts, now: Now::Nowhere });
        }
        let layers = of.iter().filter_map(|(part, _)| part.filter(|part| matches!(part, Part::Layer(_))));
        let mut layers: Vec<Part> = layers.collect();
        layers.dedup();
        let alone = |part: &Part| {
            let own = places.iter().zip(&of).filter(|(_, of)| **of == (Some(*part), false));
            own.map(|(place, _)| place.group).filter(|group| groups[*group].sum.is_some()).collect::<Vec<_>>()
        };
        let alone = layers.iter().map(alone).filter(|groups| !groups.is_empty()).collect();
        Ok(Gradients { parts, passed: 0, alone, pending: Pending::default() })
    }

    /// The groups whose sums of squares the backward has taken.
    pub fn measured(&self) -> Result<Vec<usize>> {
        if self.passed != self.parts.len() {
            let what = format!("{} of {} parts that share places were followed", self.passed, self.parts.len());
            return Err(Error::Bug(format!("a step after a backward that its optimizer did not follow: {what}")));
        }
        Ok(self.parts.iter().flat_map(|part| part.groups.iter().copied()).collect())
    }
    /// They have been used up.
    pub fn clear(&mut self) {
        self.parts.iter_mut().for_each(|part| part.now = Now::Nowhere);
        self.passed = 0;
    }
}

/// Another handle of a buffer.
pub(super) fn same(buf: &Buf) -> Buf {
    buf.view(0, buf.len())
}
