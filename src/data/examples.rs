//! Examples as training reads them: lent from token stores, which lie in memory or in mapped files.
use super::example::Example;
use super::store::{Store, TRAINED};
use std::sync::Arc;

/// One sequence, as in a store: ids whose highest bit says that they are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExampleRef<'a> {
    packed: &'a [u32],
}

impl<'a> ExampleRef<'a> {
    pub fn len(&self) -> usize {
        self.packed.len()
    }
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }
    pub fn ids(self) -> impl ExactSizeIterator<Item = u32> + 'a {
        self.packed.iter().map(|token| token & !TRAINED)
    }
    /// As [`Example::trained`].
    pub fn trained(self) -> impl ExactSizeIterator<Item = bool> + 'a {
        self.packed.iter().map(|token| token & TRAINED != 0)
    }
    /// Token `i`, and whether it is trained.
    pub fn get(&self, i: usize) -> Option<(u32, bool)> {
        self.packed.get(i).map(|token| (token & !TRAINED, token & TRAINED != 0))
    }
    /// Tokens that count in the loss.
    pub fn targets(self) -> usize {
        self.trained().skip(1).filter(|trained| *trained).count()
    }
    pub fn to_example(self) -> Example {
        Example { ids: self.ids().collect(), trained: self.trained().collect() }
    }
}

/// Which examples of which stores, in which order; the same one may come several times.
#[derive(Clone, Default)]
pub struct Examples {
    stores: Arc<Stores>,
    picks: Vec<usize>,
}

/// Numbered through, from the first store's first example to the last one's last.
#[derive(Default)]
pub(super) struct Stores {
    all: Vec<Store>,
    /// Where each begins.
    starts: Vec<usize>,
}

impl Stores {
    pub fn new(all: Vec<Store>) -> Stores {
        let starts = all.iter().scan(0, |next, store| Some(std::mem::replace(next, *next + store.len())));
        Stores { starts: starts.collect(), all }
    }
    pub fn len(&self) -> usize {
        self.all.iter().map(Store::len).sum()
    }
    fn place(&self, i: usize) -> (&Store, usize) {
        let store = self.starts.partition_point(|start| *start <= i) - 1;
        (&self.all[store], i - self.starts[store])
    }
    /// Of the example's ids.
    pub fn hash(&self, i: usize) -> u64 {
        let (store, i) = self.place(i);
        store.hashes()[i]
    }
}

impl Examples {
    pub(super) fn new(stores: Arc<Stores>, picks: Vec<usize>) -> Examples {
        Examples { stores, picks }
    }
    pub fn len(&self) -> usize {
        self.picks.len()
    }
    pub fn is_empty(&self) -> bool {
        self.picks.is_empty()
    }
    /// Panics if there is no example `i`.
    pub fn get(&self, i: usize) -> ExampleRef<'_> {
        let (store, i) = self.stores.place(self.picks[i]);
        ExampleRef { packed: store.example(i) }
    }
    pub fn first(&self) -> Option<ExampleRef<'_>> {
        (!self.is_empty()).then(|| self.get(0))
    }
    pub fn iter(&self) -> impl ExactSizeIterator<Item = ExampleRef<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }
    /// Tokens of each.
    pub fn lengths(&self) -> Vec<usize> {
        self.iter().map(|example| example.len()).collect()
    }
    /// All of them in memory.
    pub fn to_vec(&self) -> Vec<Example> {
        self.iter().map(ExampleRef::to_example).collect()
    }
    /// A hash of each one's ids.
    pub(super) fn hashes(&self) -> impl Iterator<Item = u64> + '_ {
        self.picks.iter().map(|i| self.stores.hash(*i))
    }
}

impl FromIterator<Example> for Examples {
    fn from_iter<I: IntoIterator<Item = Example>>(examples: I) -> Examples {
        let stores = Stores::new(vec![Store::from_examples(examples)]);
        Examples { picks: (0..stores.len()).collect(), stores: Arc::new(stores) }
    }
}
