//! The optimizer beside a forward and a backward: it sends gradients to the host and brings them back, and moves weights as soon as it
//! can, or as late.
use super::Optimizer;
use super::gradients::{Micro, Now, Pending, Stay, same};
use crate::backend::{Backend, Buf};
use crate::error::{Error, Result};
use crate::model::param::Sum;
use crate::model::watch::{Part, Watch};

impl Optimizer {
    /// For the backward of a micro-batch of a step at this learning rate.
    pub fn follow<'a>(&'a mut self, b: &'a dyn Backend, micro: Micro, lr: f64) -> Result<Follow<'a>> {
        if micro == Micro::Last {
            self.gradients.passed = 0;
        }
        if self.hyper.stay == Stay::Fused {
            self.step += 1;
            b.fill(&mut self.scale, 1.0)?;
        }
        Ok(Follow { optimizer: self, b, micro, lr })
    }

    /// Brings a part's gradients from the host, to places of their own or to others alike.
    fn fetch(&mut self, b: &dyn Backend, k: usize, places: Option<Vec<Buf>>) -> Result<()> {
        let part = &mut self.gradients.parts[k];
        let places = places.unwrap_or_else(|| part.places.iter().map(same).collect());
        for ((group, host), place) in part.groups.iter().zip(&part.hosts).zip(places) {
            let group = &mut self.groups[*group];
            group.grad = place;
            b.from_host(&mut group.grad, host)?;
            group.sum.iter().for_each(|sum| sum.set(Sum::Begun));
        }
        part.now = Now::Place;
        Ok(())
    }

    /// Sends them there.
    fn send(&mut self, b: &dyn Backend, k: usize) -> Result<()> {
        let part = &mut self.gradients.parts[k];
        for (group, host) in part.groups.iter().zip(&mut part.hosts) {
            let group = &mut self.groups[*group];
            b.to_host(host, group.gradient(b)?)?;
            group.sum.iter().for_each(|sum| sum.set(Sum::Nothing));
        }
        part.now = Now::Host;
        Ok(())
    }

    /// Moves a part; returns the places that its gradients were in, and they are in their own again.
    fn step_part(&mut self, b: &dyn Backend, k: usize, lr: f64) -> Result<Vec<Buf>> {
        let groups = self.gradients.parts[k].groups.clone();
        groups.iter().try_for_each(|group| self.step_group(b, *group, lr))?;
        let part = &mut self.gradients.parts[k];
        part.now = Now::Nowhere;
        let own = groups.iter().zip(&part.places);
        Ok(own.map(|(group, place)| std::mem::replace(&mut self.groups[*group].grad, same(place))).collect())
    }

    /// Every group moves whose gradient is on the device; the others begin to come.
    pub(super) fn step_all(&mut self, b: &dyn Backend, lr: f64) -> Result<()> {
        let (parts, shared) = (&self.gradients.parts, self.gradients.measured()?);
        if parts.is_empty() {
            return (0..self.groups.len()).try_for_each(|group| self.step_group(b, group, lr));
        }
        let is = |now: Now| (0..parts.len()).rev().filter(|k| parts[*k].now == now).collect::<Vec<_>>();
        let (here, away) = (is(Now::Place), is(Now::Host));
        self.gradients.pending = Pending { lr, parts: away.into(), ..Pending::default() };
        for k in here {
            let places = self.step_part(b, k, lr)?;
            self.gradients.pending.free.push_back(places);
            self.bring(b)?;
        }
        for layer in self.gradients.alone.clone() {
            layer.iter().try_for_each(|group| self.step_group(b, *group, lr))?;
            let places = layer.iter().map(|group| same(&self.groups[*group].grad)).collect();
            self.gradients.pending.free.push_back(places);
            self.bring(b)?;
        }
        let layers: Vec<usize> = self.gradients.alone.iter().flatten().copied().collect();
        let others = (0..self.groups.len()).filter(|group| !shared.contains(group) && !layers.contains(group));
        others.collect::<Vec<_>>().into_iter().try_for_each(|group| self.step_group(b, group, lr))
    }

    /// Starts to bring what waits on the host, as far as places are free.
    fn bring(&mut self, b: &dyn Backend) -> Result<()> {
        loop {
            let Pending { parts, coming, free, .. } = &mut self.gradients.pending;
            let Some(k) = parts.get(*coming).copied() else { return Ok(()) };
            let fits = |places: &Vec<Buf>| {
                let own = &self.gradients.parts[k].places;
                places.len() == own.len()
                    && places.iter().zip(own).all(|(a, b)| (a.len(), a.dtype()) == (b.len(), b.dtype()))
            };
            let Some(i) = free.iter().position(fits) else { return Ok(()) };
            let places = free.remove(i);
            *coming += 1;
            self.fetch(b, k, places)?;
        }
    }

    /// The next part that waits moves.
    fn step_next(&mut self, b: &dyn Backend) -> Result<()> {
        let Pending { lr, parts, coming, .. } = &mut self.gradients.pending;
        let (lr, Some(k)) = (*lr, parts.pop_front()) else { return Ok(()) };
        match coming.checked_sub(1) {
            Some(rest) => *coming = rest,
            None => self.fetch(b, k, None)?,
        }
        let places = self.step_part(b, k, lr)?;
        self.gradients.pending.free.push_back(places);
        self.bring(b)
    }

    /// What `advance_lazily` left moves. Before anybody reads weights but a forward that this optimizer follows.
    pub fn finish(&mut self, b: &dyn Backend) -> Result<()> {
        while self.is_pending() {
            self.step_next(b)?;
        }
        Ok(())
    }

    /// Some weights have not moved yet.
    pub(super) fn is_pending(&self) -> bool {
        !self.gradients.pending.parts.is_empty()
    }
}

/// Follows a backward.
pub struct Follow<'a> {
    optimizer: &'a mut Optimizer,
    b: &'a dyn Backend,
    micro: Micro,
    lr: f64,
}

impl Follow<'_> {
    fn place(&self, part: Part) -> Option<usize> {
        self.optimizer.gradients.parts.iter().position(|shared| shared.part == part)
    }
    fn fetch_waiting(&mut self, k: usize) -> Result<()> {
        match self.optimizer.gradients.parts.get(k) {
            Some(part) if part.now == Now::Host => self.optimizer.fetch(self.b, k, None),
            _ => Ok(()),
        }
    }
}

impl Watch for Follow<'_> {
    fn forward(&mut self, layer: usize) -> Result<()> {
        let gradients = &self.optimizer.gradients;
        match gradients.pending.parts.front() {
            Some(k) if gradients.parts[*k].part == Part::Layer(layer) => self.optimizer.step_next(self.b),
            _ => Ok(()),
        }
    }

    /// What earlier micro-batches left comes back; the next part's on the way already.
    fn before(&mut self, part: Part) -> Result<()> {
        if self.optimizer.is_pending() {
            return Err(Error::Bug("a backward after a forward whose weights had not all moved".into()));
        }
        let Some(k) = self.place(part) else { return Ok(()) };
        self.fetch_waiting(k)?;
        self.fetch_waiting(k + 1)
    }

    fn after(&mut self, part: Part) -> Result<()> {
        let (Some(k), b, last) = (self.place(part), self.b, self.micro == Micro::Last) else { return Ok(()) };
        let optimizer = &mut *self.optimizer;
        let shared = &mut optimizer.gradients.parts[k];
        shared.now = Now::Place;
        let groups = shared.groups.clone();
        if last {
            groups.iter().try_for_each(|group| optimizer.measure(b, *group))?;
            optimizer.gradients.passed += 1;
        }
        match optimizer.hyper.stay {
            Stay::Fused => optimizer.step_part(b, k, self.lr).map(drop),
            // the place is wanted by the next but one
            _ if !last || k + 2 < optimizer.gradients.parts.len() => optimizer.send(b, k),
            _ => Ok(()),
        }
    }
}
