//! Rows of a plan -> the arrays that a step reads. N = rows · max_length is the same for every batch; what a row's sequences
//! leave over is one more sequence, of pad tokens, whose labels are all [`IGNORE`].
use super::examples::{ExampleRef, Examples};
use super::pack::{BatchOptions, EpochPlan, Piece};

/// The label that counts for nothing, as in `ops::logprob`.
pub const IGNORE: u32 = u32::MAX;

/// One batch of N tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// [N]
    pub ids: Vec<u32>,
    /// [N], the token that follows in the same sequence if it is trained, else IGNORE.
    pub labels: Vec<u32>,
    /// [N], 0, 1, 2 .. in each sequence.
    pub positions: Vec<u32>,
    /// [S+1] Where sequences begin, from 0 to N.
    pub cu_seqlens: Vec<u32>,
    /// [N], whether a token is none of the padding.
    pub real: Vec<bool>,
    /// Labels that are not IGNORE.
    pub counted: usize,
    /// Tokens that are not padding.
    pub tokens: usize,
}

impl EpochPlan {
    /// Batch `i` of the epoch. `examples` are those that the plan's lengths were taken from.
    pub fn batch(&self, i: usize, examples: &Examples) -> Batch {
        let opts = &self.opts;
        let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
        for row in i * opts.rows..(i + 1) * opts.rows {
            let pieces = self.rows.get(row).map(Vec::as_slice).unwrap_or_default();
            for piece in pieces {
                batch.push(piece, examples.get(piece.example));
            }
            let used: usize = pieces.iter().map(|piece| piece.len).sum();
            batch.pad(opts.max_length - used, opts.pad_id);
        }
        batch.counted = batch.labels.iter().filter(|label| **label != IGNORE).count();
        batch
    }
}

impl Batch {
    /// A piece's last token is labelled too if its example goes on: no target is lost where a row ends.
    fn push(&mut self, piece: &Piece, example: ExampleRef) {
        let (start, end) = (piece.start, piece.start + piece.len);
        self.ids.extend(example.ids().skip(start).take(piece.len));
        self.labels.extend((start + 1..=end).map(|next| match example.get(next) {
            Some((id, true)) => id,
            _ => IGNORE,
        }));
        self.tokens += piece.len;
        self.end_sequence(piece.len, true);
    }

    fn pad(&mut self, len: usize, pad_id: u32) {
        if len > 0 {
            self.ids.extend(std::iter::repeat_n(pad_id, len));
            self.labels.extend(std::iter::repeat_n(IGNORE, len));
            self.end_sequence(len, false);
        }
    }

    fn end_sequence(&mut self, len: usize, real: bool) {
        self.real.extend(std::iter::repeat_n(real, len));
        self.positions.extend(0..len as u32);
        self.cu_seqlens.push(self.ids.len() as u32);
    }
}

/// All batches of an epoch, in order.
pub fn batches<'a>(examples: &'a Examples, opts: &BatchOptions, epoch: u64) -> impl Iterator<Item = Batch> + 'a {
    let plan = EpochPlan::new(&examples.lengths(), opts, epoch);
    (0..plan.len()).map(move |i| plan.batch(i, examples))
}
