//! Which sequences get which tokens in a step.
use super::options::Prefixes;
use super::pages::{Pages, pages_of};
use super::sequence::Sequence;
use crate::model::paged::PAGE;
use crate::model::spec::Spec;
use std::collections::VecDeque;

/// The sequences of an engine, and their pages.
pub(super) struct Queue {
    pub pages: Pages,
    pub waiting: VecDeque<Sequence>,
    /// In the order they joined.
    pub running: Vec<Sequence>,
    pub max_sequences: usize,
    pub max_step_tokens: usize,
    pub prefixes: Prefixes,
    /// How often a sequence had to give its pages back.
    pub preempted: u64,
}

/// Tokens of a running sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Its place among the running.
    pub at: usize,
    pub tokens: usize,
}

impl Queue {
    /// Those that go on, then prompts in pieces, the oldest first. Every share has its pages.
    pub fn plan(&mut self, s: &Spec) -> Vec<Share> {
        let mut left = self.max_step_tokens;
        let mut shares: Vec<Share> = Vec::new();
        // answers first: each wants one token, and a page now and then
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].missing() == 1 {
                if !self.make_room(at) {
                    continue;
                }
                shares.push(Share { at, tokens: 1 });
                left -= 1;
            }
            at += 1;
        }
        // giving pages back moves nobody who stands before
        shares.retain(|share| share.at < self.running.len());
        for at in 0..self.running.len() {
            let tokens = self.running[at].missing().min(left);
            if self.running[at].missing() > 1 && tokens > 0 && self.grow(at, tokens) {
                shares.push(Share { at, tokens });
                left -= tokens;
            }
        }
        while left > 0 && self.running.len() < self.max_sequences {
            let Some(sequence) = self.waiting.pop_front() else { break };
            let at = self.running.len();
            self.running.push(sequence);
            self.find_prefix(s, at);
            let tokens = self.running[at].missing().min(left);
            if !self.grow(at, tokens) {
                // it had not begun, so nothing is lost
                self.send_back(at);
                self.preempted -= 1;
                break;
            }
            shares.push(Share { at, tokens });
            left -= tokens;
        }
        if shares.is_empty() && self.running.len() > 1 {
            // prompts that hold each other's pages: the last to come lets go
            self.send_back(self.running.len() - 1);
            return self.plan(s);
        }
        shares
    }

    /// A page for one more token of sequence `at`, if need be from the last to come; false: it was the last itself.
    fn make_room(&mut self, at: usize) -> bool {
        while !self.grow(at, 1) {
            let last = self.running.len() - 1;
            self.send_back(last);
            if last == at {
                return false;
            }
        }
        true
    }

    /// Pages for `tokens` more, or none.
    fn grow(&mut self, at: usize, tokens: usize) -> bool {
        let sequence = &mut self.running[at];
        let wanted = pages_of(sequence.computed + tokens).saturating_sub(sequence.pages.len());
        if wanted > self.pages.available() {
            return false;
        }
        sequence.pages.extend((0..wanted).map_while(|_| self.pages.take()));
        true
    }

    /// Its pages are others' now; it begins again when there is room.
    fn send_back(&mut self, at: usize) {
        let mut sequence = self.running.remove(at);
        sequence.restart(&mut self.pages);
        self.preempted += 1;
        self.waiting.push_front(sequence);
    }

    /// What others have computed of its first tokens; its last token is always left to do.
    fn find_prefix(&mut self, s: &Spec, at: usize) {
        let sequence = &mut self.running[at];
        if self.prefixes == Prefixes::Apart || !s.rope_is_short(sequence.tokens.len()) {
            return;
        }
        for page in 0..(sequence.tokens.len() - 1) / PAGE {
            let key = sequence.key(page);
            let Some(found) = self.pages.find(&key) else { break };
            sequence.pages.push(found);
        }
        sequence.computed = sequence.pages.len() * PAGE;
        sequence.found = sequence.computed;
    }

    /// Tells the pool of the pages that have become full.
    pub fn learn(&mut self, s: &Spec, at: usize, before: usize) {
        let sequence = &mut self.running[at];
        if self.prefixes == Prefixes::Apart || !s.rope_is_short(sequence.tokens.len()) {
            return;
        }
        for page in before / PAGE..sequence.computed / PAGE {
            let key = sequence.key(page);
            self.pages.learn(sequence.pages[page], key);
        }
    }
}
