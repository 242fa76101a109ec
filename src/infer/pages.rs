//! Who has which pages of the pool: counted, and found again by what is in them.
//!
//! A full page is known by a hash of its tokens, of all tokens before them and of the adapter that made it. Whoever starts with
//! the same tokens shares it; a page that nobody has any more stays until its place is wanted, the longest unused first.
use super::sequence::AdapterId;
use crate::model::paged::PAGE;
use std::collections::{BTreeMap, HashMap};

/// A hash of a page's tokens and of all before them.
pub type Key = [u8; 16];

/// The key of the page that holds `tokens` after the page of key `before`.
pub fn key(before: Option<Key>, adapter: AdapterId, tokens: &[u32]) -> Key {
    let mut hash = blake3::Hasher::new();
    match before {
        Some(key) => hash.update(&key),
        None => hash.update(&adapter.to_le_bytes()),
    };
    hash.update(bytemuck::cast_slice(tokens));
    hash.finalize().as_bytes()[..16].try_into().expect("a hash has 32 bytes")
}

pub struct Pages {
    /// How many sequences have each page.
    owners: Vec<u32>,
    /// Pages of no content, the next to give out last.
    free: Vec<u32>,
    known: HashMap<Key, u32>,
    keys: Vec<Option<Key>>,
    /// Pages that nobody has and that are known, by when they were left.
    idle: BTreeMap<u64, u32>,
    left_at: Vec<u64>,
    clock: u64,
}

impl Pages {
    /// Pages 1 to `count` − 1; page 0 belongs to nobody.
    pub fn new(count: usize) -> Pages {
        Pages {
            owners: vec![0; count],
            free: (1..count as u32).rev().collect(),
            known: HashMap::new(),
            keys: vec![None; count],
            idle: BTreeMap::new(),
            left_at: vec![0; count],
            clock: 0,
        }
    }

    /// Pages that could be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }
    /// Pages that a sequence has.
    pub fn used(&self) -> usize {
        self.owners.iter().filter(|owners| **owners > 0).count()
    }
    /// Pages that nobody has, but that are known by what is in them.
    pub fn kept(&self) -> usize {
        self.idle.len()
    }

    /// A page to write to.
    pub fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                self.forget(page);
                page
            }
        };
        self.owners[page as usize] = 1;
        Some(page)
    }

    /// The page of this content, shared from now on.
    pub fn find(&mut self, key: &Key) -> Option<u32> {
        let page = *self.known.get(key)?;
        if self.owners[page as usize] == 0 {
            self.idle.remove(&self.left_at[page as usize]);
        }
        self.owners[page as usize] += 1;
        Some(page)
    }

    /// The page is full, and has this content.
    pub fn learn(&mut self, page: u32, key: Key) {
        if self.keys[page as usize].is_none() && !self.known.contains_key(&key) {
            self.known.insert(key, page);
            self.keys[page as usize] = Some(key);
        }
    }

    /// A sequence leaves its pages; the last are wanted back first, as the first are of more use to others.
    pub fn leave(&mut self, pages: &mut Vec<u32>) {
        while let Some(page) = pages.pop() {
            let owners = &mut self.owners[page as usize];
            *owners -= 1;
            if *owners > 0 {
                continue;
            }
            match self.keys[page as usize] {
                None => self.free.push(page),
                Some(_) => {
                    self.clock += 1;
                    self.left_at[page as usize] = self.clock;
                    self.idle.insert(self.clock, page);
                }
            }
        }
    }

    /// Nothing is known any more of pages that nobody has.
    pub fn clear(&mut self) {
        while let Some((_, page)) = self.idle.pop_first() {
            self.forget(page);
            self.free.push(page);
        }
    }

    fn forget(&mut self, page: u32) {
        if let Some(key) = self.keys[page as usize].take() {
            self.known.remove(&key);
        }
    }
}

/// Pages for so many tokens.
pub fn pages_of(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_shared_kept_and_taken_back() {
        let mut pages = Pages::new(4);
        let (a, b) = (key(None, 0, &[1, 2]), key(None, 1, &[1, 2]));
        assert_ne!(a, b, "another adapter");
        let mut one = vec![pages.take().unwrap(), pages.take().unwrap()];
        pages.learn(one[0], a);
        pages.learn(one[1], key(Some(a), 0, &[3]));
        let mut two = vec![pages.find(&a).unwrap()];
        assert_eq!((two[0], pages.find(&b)), (one[0], None));
        pages.leave(&mut one);
        assert_eq!((pages.used(), pages.kept(), pages.available()), (1, 1, 2));
        // the unknown page goes first, then what was left longest ago
        let mut three = vec![pages.take().unwrap()];
        assert_eq!(pages.kept(), 1);
        three.push(pages.take().unwrap());
        assert_eq!((pages.kept(), pages.take()), (0, None));
        assert!(pages.find(&key(Some(a), 0, &[3])).is_none(), "it was taken");
        pages.leave(&mut two);
        pages.leave(&mut three);
        assert_eq!((pages.used(), pages.available(), pages.kept()), (0, 3, 1));
        pages.clear();
        assert_eq!((pages.kept(), pages.find(&a)), (0, None));
    }
}
