//! Which calls a call must wait for: those before it that touch what it touches, where one of the two writes.
use super::host::{Stretch, Touch};

/// A stretch of memory, and what a call does to it.
pub(super) type Touched = (Stretch, Touch);

/// The calls so far.
#[derive(Default)]
pub(super) struct Order {
    calls: Vec<Call>,
}

pub(super) struct Call {
    touched: Vec<Touched>,
    /// A bit for each call that has ended when this one begins.
    past: Vec<u64>,
    /// The last of them: those that no other of them waits for.
    pub after: Vec<usize>,
}

fn clash(a: &[Touched], b: &[Touched]) -> bool {
    a.iter().any(|(at, does)| {
        b.iter().any(|(to, done)| (*does == Touch::Writes || *done == Touch::Writes) && at.overlaps(to))
    })
}

impl Order {
    /// The next call, to be added if it comes to anything.
    pub fn next(&self, touched: Vec<Touched>) -> Call {
        let mut next = Call { touched, past: vec![0; self.calls.len().div_ceil(64)], after: Vec::new() };
        for (i, call) in self.calls.iter().enumerate().rev() {
            if next.past[i / 64] >> (i % 64) & 1 == 0 && clash(&call.touched, &next.touched) {
                next.after.push(i);
                next.past[i / 64] |= 1 << (i % 64);
                next.past.iter_mut().zip(&call.past).for_each(|(all, more)| *all |= more);
            }
        }
        next
    }
    pub fn add(&mut self, call: Call) {
        self.calls.push(call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_wait_for_what_they_touch_and_no_more() {
        let at = |slab, start, end, touch| (Stretch { slab, start, end }, touch);
        let mut order = Order::default();
        let mut call = |touched: Vec<Touched>| {
            let next = order.next(touched);
            let after = next.after.clone();
            order.add(next);
            after
        };
        use Touch::{Reads, Writes};
        assert_eq!(call(vec![at(0, 0, 8, Writes)]), [0; 0], "the first");
        assert_eq!(call(vec![at(0, 0, 8, Reads), at(1, 0, 4, Writes)]), [0]);
        assert_eq!(
            call(vec![at(0, 4, 8, Reads), at(1, 4, 8, Writes)]),
            [0],
            "beside the second: other halves are written"
        );
        assert_eq!(call(vec![at(1, 0, 8, Reads), at(2, 0, 8, Writes)]), [2, 1], "both, and through them the first");
        assert_eq!(call(vec![at(0, 0, 2, Writes)]), [1], "what is read is not written yet");
        assert_eq!(call(vec![at(2, 8, 9, Writes)]), [0; 0], "right beside is not within");
        assert_eq!(call(vec![at(2, 0, 9, Reads), at(0, 0, 1, Reads)]), [5, 4, 3]);
    }
}
