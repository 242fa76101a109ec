//! Optimizers over all trained weights: AdamW, SGD, Lion, Muon; their states in f32 or in blocks of 8 bits; norm and clipping.
//!
//! A step: norm of all gradients -> finite? -> each weight moves by its gradient times the clipping factor -> gradients to 0.
//! Weights that have everything in common (`kind`) lie in one group (`flat`) and move by one launch, but for Muon's (`muon`).
use super::flat::{self, Group, Place};
use crate::backend::{Backend, Buf, Charge, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::param::{Masters, Matrices};
use crate::ops::adamw::{AdamW, Chance};
use crate::ops::dyn8;
use crate::ops::gradnorm::{self, GradNorm, GradNormFinish};
use crate::ops::lion::Lion;
use crate::ops::sgd::Sgd;
use crate::rng::Rng;
use gradients::Gradients;
use kind::{Kind, Kinds};
use muon::{Moved, Muon};
use pages::{Page, Pages};
use states::{Slot, States};

mod follow;
mod gradients;
mod hyper;
mod kind;
mod muon;
mod pages;
mod rates;
mod save;
mod states;
pub use follow::Follow;
pub use gradients::{Micro, Stay};
pub use hyper::{Decay, Home, Hyper, Precision, Rule};
pub use rates::{Rates, Share};

pub struct Optimizer {
    hyper: Hyper,
    /// 1 / what the gradients were multiplied by; 1 at first.
    pub unscale: f32,
    /// Steps done.
    pub step: u64,
    groups: Vec<Group<Kind>>,
    /// One per group.
    states: Vec<States>,
    /// Where the states live on the host.
    pages: Option<Pages>,
    gradients: Gradients,
    /// One per trained weight, in the model's order.
    places: Vec<Place>,
    /// The matrices of each trained weight.
    matrices: Vec<Matrices>,
    muon: Option<Muon>,
    shares: Vec<Share>,
    partial: Buf,
    norm: Buf,
    scale: Buf,
    map1: Buf,
    map2: Buf,
}

impl Optimizer {
    /// Moves the model's small trained weights together (see `flat`). A weight whose rate is 0 is frozen from then on.
    pub fn new(b: &dyn Backend, model: &mut Model, hyper: Hyper) -> Result<Optimizer> {
        let _charge = Charge::to(b, Use::Optimizer);
        let (mut rule_of, shares) = hyper.rates.shares(model)?;
        hyper.rates.freeze(b, model, &mut rule_of, &shares)?;
        let rates: Vec<f64> = rule_of.iter().map(|rule| shares[*rule].rate / hyper.rates.base).collect();
        let kinds = Kinds::new(model, &hyper);
        let kinds: Vec<Kind> = model.trained().zip(rates).map(|(param, rate)| kinds.of(param, rate)).collect();
        let matrices: Vec<Matrices> = model.trained().map(|param| param.matrices()).collect();
        let by_muon: Vec<Matrices> =
            kinds.iter().zip(&matrices).filter(|(kind, _)| kind.rule == Rule::Muon).map(|(_, m)| *m).collect();
        let shared = gradients::plan(b, model, hyper.stay)?;
        let parts = model.trained_parts().into_iter().zip(&shared.places);
        let parts = parts.map(|(part, place)| (part, place.is_some())).collect();
        let (groups, places) = flat::group(b, model, kinds, shared.places)?;
        let gradients = Gradients::new(b, hyper.stay, (shared.order, parts), (&places, &groups))?;
        let slots = |g: &Group<Kind>| (states::slots(g.key.rule, g.key.precision, &hyper), g.grad.len());
        let slots: Vec<(&[Slot], usize)> = groups.iter().map(slots).collect();
        let states = slots.iter().map(|(slots, P)| States::new(b, slots, *P, hyper.home)).collect::<Result<_>>()?;
        let pages = match hyper.home {
            Home::Device => None,
            Home::Host { page } => Some(Pages::new(b, page, &slots)?),
        };
        let partials: usize = groups.iter().map(|g| g.grad.len().div_ceil(gradnorm::BLOCK)).sum();
        let muon = if by_muon.is_empty() { None } else { Some(Muon::new(b, model.dtype, &by_muon)?) };
        Ok(Optimizer {
            hyper,
            unscale: 1.0,
            step: 0,
            groups,
            states,
            pages,
            gradients,
            places,
            matrices,
            muon,
            shares,
            partial: b.alloc(partials.max(1), DType::F32)?,
            norm: b.alloc(1, DType::F32)?,
            scale: b.alloc(1, DType::F32)?,
            map1: b.alloc_f32(&dyn8::dynamic_map(true), DType::F32)?,
            map2: b.alloc_f32(&dyn8::dynamic_map(false), DType::F32)?,
        })
    }

    /// The learning rates in use, and how many parameters have each.
    pub fn shares(&self) -> impl Iterator<Item = &Share> {
        self.shares.iter().filter(|share| share.count > 0)
    }

    /// Where gradients wait for the step.
    pub fn stay(&self) -> Stay {
        self.hyper.stay
    }

    /// The norm of all gradients; leaves the clipping factor on the device. Waits.
    pub fn gradient_norm(&mut self, b: &dyn Backend) -> Result<f32> {
        let measured = self.gradients.measured()?;
        for group in (0..self.groups.len()).filter(|group| !measured.contains(group)) {
            self.measure(b, group)?;
        }
        let (P, max_norm) = (self.partial.len() as u32, self.hyper.max_grad_norm as f32);
        let p = GradNormFinish { P, max_norm, unscale: self.unscale };
        b.gradnorm_finish(&mut self.norm, &mut self.scale, &self.partial, &p)?;
        Ok(b.download_f32(&self.norm)?[0])
    }

    /// A group's share of the norm.
    fn measure(&mut self, b: &dyn Backend, group: usize) -> Result<()> {
        let blocks = |group: &Group<Kind>| group.grad.len().div_ceil(gradnorm::BLOCK);
        let at = self.groups[..group].iter().map(blocks).sum();
        let own = blocks(&self.groups[group]);
        let grad = self.groups[group].gradient(b)?;
        b.gradnorm_partial(&mut self.partial.view(at, own), grad, &GradNorm { P: grad.len() as u32 })
    }

    /// One step at this learning rate; returns the gradient norm before clipping. A norm that is not finite moves nothing.
    pub fn step(&mut self, b: &dyn Backend, lr: f64) -> Result<f32> {
        let norm = self.gradient_norm(b)?;
        if !norm.is_finite() {
            return Err(Error::Stopped(format!("the gradient norm of step {} is {norm}", self.step + 1)));
        }
        self.advance(b, lr)?;
        Ok(norm)
    }

    /// The weights move by their gradients, as the last `gradient_norm` clips them; then the gradients are 0.
    pub fn advance(&mut self, b: &dyn Backend, lr: f64) -> Result<()> {
        self.advance_lazily(b, lr)?;
        self.finish(b)
    }

    /// The same, but that layers whose gradients are on the host move in the next forward: one that this optimizer follows, or after
    /// [`Optimizer::finish`].
    pub fn advance_lazily(&mut self, b: &dyn Backend, lr: f64) -> Result<()> {
        if self.hyper.stay != Stay::Fused {
            self.step += 1;
        }
        self.step_all(b, lr)?;
        self.gradients.clear();
        Ok(())
    }

    /// Gradients to 0, nothing moves.
    pub fn clear_gradients(&mut self, b: &dyn Backend) -> Result<()> {
        self.gradients.clear();
        self.groups.iter_mut().try_for_each(|group| group.clear(b))
    }

    /// The same for one group, as part of the step that `self.step` counts already.
    fn step_group(&mut self, b: &dyn Backend, group: usize, lr: f64) -> Result<()> {
        let lr = lr * self.groups[group].key.rate;
        match self.groups[group].key.rule {
            Rule::Muon => self.step_matrices(b, group, lr)?,
            _ => self.step_values(b, group, lr)?,
        }
        let of = &mut self.groups[group];
        if let Some(master) = &of.master {
            b.cast(&mut of.value, master)?;
        }
        of.clear(b)
    }

    /// The rules that take value by value: all at once, or page by page.
    fn step_values(&mut self, b: &dyn Backend, group: usize, lr: f64) -> Result<()> {
        let P = self.groups[group].grad.len();
        let Some(pages) = &mut self.pages else {
            let mut states = self.states[group].device(0, P);
            return self.step_page(b, Page { group, offset: 0, len: P }, &mut states, lr);
        };
        let own: Vec<Page> = pages.of(group, P).collect();
        // where gradients do not all wait on the device, groups move in another order
        let next = self.groups.get(group + 1).filter(|_| self.hyper.stay == Stay::Device);
        let after = next.and_then(|next| pages.of(group + 1, next.grad.len()).next());
        for (i, page) in own.iter().enumerate() {
            let pages = self.pages.as_mut().expect("they are there");
            let mut states = pages.bring(b, &self.states, *page, own.get(i + 1).copied().or(after))?;
            self.step_page(b, *page, &mut states, lr)?;
            pages::put_back(b, &self.states[group], *page, &states)?;
        }
        Ok(())
    }

    /// Moves some values of a group, with their states on the device.
    fn step_page(&self, b: &dyn Backend, page: Page, states: &mut [Buf], lr: f64) -> Result<()> {
        let Page { group, offset, len: P } = page;
        let Group { key, value, grad, master, .. } = &self.groups[group];
        let (h, scale, betas) = (&self.hyper, &self.scale, (self.hyper.beta1, self.hyper.beta2));
        let (weight, grad) = (&mut master.as_ref().unwrap_or(value).view(offset, P), &grad.view(offset, P));
        let decay = if key.decays { h.weight_decay } else { 0.0 };
        let mut sgd = Sgd::new(P, self.step, lr, (h.momentum, h.dampening), h.nesterov, decay);
        let mut adamw = AdamW::new(P, self.step, lr, betas, h.eps, decay);
        let mut lion = Lion::new(P, lr, betas, decay);
        if let Some(chance) = self.chance(group, offset) {
            (sgd, adamw, lion) = (sgd.by_chance(chance), adamw.by_chance(chance), lion.by_chance(chance));
        }
        match (key.rule, states) {
            (Rule::AdamW, [m, v]) => b.adamw_step(weight, m, v, grad, scale, &adamw),
            (Rule::AdamW, [m, v, absmax1, absmax2]) => {
                b.adamw_step_8bit(weight, m, v, absmax1, absmax2, grad, scale, &self.map1, &self.map2, &adamw)
            }
            (Rule::Lion, [m]) => b.lion_step(weight, m, grad, scale, &lion),
            (Rule::Lion, [m, absmax]) => b.lion_step_8bit(weight, m, absmax, grad, scale, &self.map1, &lion),
            (Rule::Sgd, []) => b.sgd_step(weight, grad, scale, &sgd),
            (Rule::Sgd, [m]) => b.sgd_step_momentum(weight, m, grad, scale, &sgd),
            (rule, states) => Err(Error::Bug(format!("{rule:?} with {} states", states.len()))),
        }
    }

    /// Where no master has the exact values of a group: which way those from `offset` on are rounded in this step.
    fn chance(&self, group: usize, offset: usize) -> Option<Chance> {
        let Group { key, value, .. } = &self.groups[group];
        let seed = Rng::named(self.hyper.seed, &format!("rounding {}", self.step)).bits() as u32;
        let chance = Chance { seed, stream: group as u32, first: offset as u32 };
        (key.masters == Masters::None && value.dtype() == DType::Bf16).then_some(chance)
    }

    /// Muon, weight by weight.
    fn step_matrices(&mut self, b: &dyn Backend, group: usize, lr: f64) -> Result<()> {
        let Group { key, value, grad, master, .. } = &self.groups[group];
        let weight = master.as_ref().unwrap_or(value);
        let decay = if key.decays { self.hyper.weight_decay } else { 0.0 };
        let mut muon = self.muon.take().expect("made for such groups");
        for (place, matrices) in self.places.iter().zip(&self.matrices).filter(|(place, _)| place.group == group) {
            let view = |buf: &Buf| buf.view(place.offset, place.len);
            let [m] = &self.states[group].device(place.offset, place.len)[..] else {
                return Err(Error::Bug("Muon has one state".into()));
            };
            let chance = self.chance(group, place.offset);
            let of = Moved { weight: &view(weight), m, grad: &view(grad), scale: &self.scale, chance };
            muon.step(b, &self.hyper, &of, matrices, lr, decay)?;
        }
        self.muon = Some(muon);
        Ok(())
    }
}
