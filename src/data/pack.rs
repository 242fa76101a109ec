//! Which examples share a row, and in which order the rows come: a pure function of (lengths, options, epoch).
//! A resumed run makes the same plan again, so no state of a generator needs saving.
use crate::rng::Rng;
use std::collections::BTreeSet;

/// Examples are packed in windows of this many: enough for full rows, few enough that a row's mates are left to chance.
const WINDOW: usize = 4096;

/// TRL's `packing` and `packing_strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// One example a row.
    Off,
    /// Best fit, longest first: whole examples share a row.
    Bfd,
    /// Examples one after another, cut wherever a row ends; for pretraining.
    Wrapped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Tokens of a row.
    pub max_length: usize,
    /// `per_device_train_batch_size`: rows of a batch.
    pub rows: usize,
    pub packing: Packing,
    pub seed: u64,
    pub shuffle: bool,
    pub pad_id: u32,
}

/// `len` tokens of an example from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub example: usize,
    pub start: usize,
    pub len: usize,
}

/// The rows of one epoch, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochPlan {
    pub rows: Vec<Vec<Piece>>,
    pub opts: BatchOptions,
}

impl EpochPlan {
    /// `lengths`: tokens of each example; what is over max_length is left out, but for `Wrapped`.
    pub fn new(lengths: &[usize], opts: &BatchOptions, epoch: u64) -> EpochPlan {
        let mut order: Vec<usize> = (0..lengths.len()).filter(|i| lengths[*i] > 0).collect();
        let mut rng = Rng::stream(opts.seed, epoch);
        if opts.shuffle {
            rng.shuffle(&mut order);
        }
        let whole = |i: usize| Piece { example: i, start: 0, len: lengths[i].min(opts.max_length) };
        let mut rows = match opts.packing {
            Packing::Off => order.into_iter().map(|i| vec![whole(i)]).collect(),
            Packing::Bfd => {
                let pieces: Vec<Piece> = order.into_iter().map(whole).collect();
                pieces.chunks(WINDOW).flat_map(|window| best_fit(window, opts.max_length)).collect()
            }
            Packing::Wrapped => wrap(&order, lengths, opts.max_length),
        };
        if opts.shuffle && opts.packing != Packing::Off {
            rng.shuffle(&mut rows);
        }
        EpochPlan { rows, opts: opts.clone() }
    }

    /// Batches of the epoch; the last may have empty rows.
    pub fn len(&self) -> usize {
        self.rows.len().div_ceil(self.opts.rows)
    }
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
    /// The share of the epoch's tokens that are not padding.
    pub fn fill(&self) -> f64 {
        let tokens: usize = self.rows.iter().flatten().map(|piece| piece.len).sum();
        tokens as f64 / (self.len() * self.opts.rows * self.opts.max_length).max(1) as f64
    }
}

/// The longest first, each into the fullest row that still has room, else into a new one.
fn best_fit(pieces: &[Piece], max_length: usize) -> Vec<Vec<Piece>> {
    let mut sorted = pieces.to_vec();
    sorted.sort_by_key(|piece| std::cmp::Reverse(piece.len));
    let mut rows: Vec<Vec<Piece>> = vec![];
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for piece in sorted {
        let (left, row) = room.range((piece.len, 0)..).next().copied().unwrap_or((max_length, rows.len()));
        if row == rows.len() {
            rows.push(vec![]);
        }
        room.remove(&(left, row));
        room.insert((left - piece.len, row));
        rows[row].push(piece);
    }
    rows
}

fn wrap(order: &[usize], lengths: &[usize], max_length: usize) -> Vec<Vec<Piece>> {
    let mut rows: Vec<Vec<Piece>> = vec![];
    let mut left = 0;
    for &example in order {
        let mut start = 0;
        while start < lengths[example] {
            if left == 0 {
                rows.push(vec![]);
                left = max_length;
            }
            let len = left.min(lengths[example] - start);
            rows.last_mut().expect("a row was begun").push(Piece { example, start, len });
            (start, left) = (start + len, left - len);
        }
    }
    rows
}
