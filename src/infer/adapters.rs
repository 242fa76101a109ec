//! The adapters of an engine: one at a time is on the model, and a step runs the sequences of each together.
use super::sequence::AdapterId;
use crate::backend::Backend;
use crate::model::Model;
use crate::model::adapters::Detached;
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Adapters {
    /// Those that are off the model. While one is on it, its place here has the model's own state.
    off: HashMap<AdapterId, Detached>,
    on: AdapterId,
    last: AdapterId,
    /// To be freed when no sequence is left that wants them.
    leaving: Vec<AdapterId>,
}

impl Adapters {
    pub fn add(&mut self, adapter: Detached) -> AdapterId {
        self.last += 1;
        self.off.insert(self.last, adapter);
        self.last
    }

    /// Whether requests may name it; 0 is the model alone.
    pub fn has(&self, id: AdapterId) -> bool {
        id == 0 || self.off.contains_key(&id) && !self.leaving.contains(&id)
    }

    /// The one on the model.
    pub fn on(&self) -> AdapterId {
        self.on
    }
    /// Puts this one on the model.
    pub fn put_on(&mut self, model: &mut Model, id: AdapterId) {
        if self.on == id {
            return;
        }
        for id in [std::mem::replace(&mut self.on, id), id] {
            if let Some(state) = self.off.get_mut(&id) {
                model.exchange(state);
            }
        }
    }

    pub fn remove(&mut self, id: AdapterId) {
        if self.has(id) && id != 0 {
            self.leaving.push(id);
        }
    }

    /// Frees what was removed and is not `wanted` any more.
    /// Returns whether any left.
    pub fn sweep(&mut self, b: &dyn Backend, model: &mut Model, wanted: impl Fn(AdapterId) -> bool) -> bool {
        let (stay, go): (Vec<_>, Vec<_>) = self.leaving.drain(..).partition(|id| wanted(*id));
        self.leaving = stay;
        let left = !go.is_empty();
        for id in go {
            if self.on == id {
                self.put_on(model, 0);
            }
            self.off.remove(&id).into_iter().for_each(|adapter| adapter.free(b));
        }
        left
    }

    pub fn free(&mut self, b: &dyn Backend, model: &mut Model) {
        self.put_on(model, 0);
        self.off.drain().for_each(|(_, adapter)| adapter.free(b));
    }
}
