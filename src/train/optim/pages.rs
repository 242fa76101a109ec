//! States that live in host memory, brought to the device some values at a time. Two pages on the device take turns: while one is
//! used the next comes and the last goes, where a device copies beside its work.
//!
//! Rules that go value by value do not care where a page ends: the bits are those of states that lie on the device.
use super::states::{Slot, States};
use crate::backend::{Backend, Buf};
use crate::error::Result;

/// A page of a group's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub group: usize,
    /// Values of the group.
    pub offset: usize,
    pub len: usize,
}

pub(super) struct Pages {
    /// Values of one.
    size: usize,
    /// Where pages of groups with these states come to.
    places: Vec<(&'static [Slot], [Vec<Buf>; 2])>,
    /// The place of the next page.
    turn: usize,
    /// What is there already.
    ahead: Option<Page>,
}

impl Pages {
    /// For the states of groups, and the values of each; `size` is a multiple of all block sizes.
    pub fn new(b: &dyn Backend, size: usize, groups: &[(&'static [Slot], usize)]) -> Result<Pages> {
        let mut places: Vec<(&'static [Slot], [Vec<Buf>; 2])> = Vec::new();
        for (slots, _) in groups {
            if places.iter().any(|(of, _)| of == slots) {
                continue;
            }
            let most = groups.iter().filter(|(of, _)| of == slots).map(|(_, P)| *P).max().unwrap_or(0).min(size);
            let place = || slots.iter().map(|slot| b.alloc(slot.range(0, most).1, slot.dtype)).collect::<Result<_>>();
            places.push((slots, [place()?, place()?]));
        }
        Ok(Pages { size, places, turn: 0, ahead: None })
    }

    /// The pages of a group of P values.
    pub fn of(&self, group: usize, P: usize) -> impl Iterator<Item = Page> {
        let size = self.size;
        (0..P).step_by(size).map(move |offset| Page { group, offset, len: size.min(P - offset) })
    }

    /// Brings a page, unless it is there, and starts to bring the next.
    pub fn bring(&mut self, b: &dyn Backend, states: &[States], page: Page, next: Option<Page>) -> Result<Vec<Buf>> {
        if self.ahead != Some(page) {
            self.fetch(b, states, page, self.turn)?;
        }
        let here = self.views(&states[page.group], page.len, self.turn);
        self.turn = 1 - self.turn;
        if let Some(next) = next {
            self.fetch(b, states, next, self.turn)?;
        }
        self.ahead = next;
        Ok(here)
    }

    fn fetch(&self, b: &dyn Backend, states: &[States], page: Page, turn: usize) -> Result<()> {
        let of = &states[page.group];
        let from = of.host(page.offset, page.len);
        self.views(of, page.len, turn).iter_mut().zip(&from).try_for_each(|(to, from)| b.from_host(to, from))
    }

    fn views(&self, of: &States, len: usize, turn: usize) -> Vec<Buf> {
        let (_, places) = self.places.iter().find(|(slots, _)| *slots == of.slots).expect("made for every group");
        of.slots.iter().zip(&places[turn]).map(|(slot, buf)| buf.view(0, slot.range(0, len).1)).collect()
    }
}

/// Sends a page back.
pub(super) fn put_back(b: &dyn Backend, states: &States, page: Page, from: &[Buf]) -> Result<()> {
    let mut to = states.host(page.offset, page.len);
    to.iter_mut().zip(from).try_for_each(|(to, from)| b.to_host(to, from))
}
