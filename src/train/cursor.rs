//! Where a run is in its data: a pure function of data, options and step, so that resuming needs no stored state.
use crate::data::{BatchOptions, EpochPlan, Examples};

/// The epochs of a run, planned one at a time.
pub struct Cursor<'d> {
    examples: &'d Examples,
    lengths: Vec<usize>,
    options: BatchOptions,
    accumulation: usize,
    epoch: u64,
    plan: EpochPlan,
    /// The step at which this epoch begins.
    first_step: u64,
}

impl<'d> Cursor<'d> {
    pub fn new(examples: &'d Examples, options: BatchOptions, accumulation: usize) -> Cursor<'d> {
        let lengths = examples.lengths();
        let plan = EpochPlan::new(&lengths, &options, 0);
        Cursor { examples, lengths, options, accumulation, epoch: 0, plan, first_step: 0 }
    }

    /// Micro-batches of the first epoch.
    pub fn micro_batches(&self) -> usize {
        self.plan.len()
    }

    /// The share of the first epoch's computed tokens that are no padding.
    pub fn fill(&self) -> f64 {
        self.plan.fill()
    }

    fn steps(&self) -> u64 {
        self.plan.len().div_ceil(self.accumulation).max(1) as u64
    }

    /// The examples in each micro-batch of the step that [`Cursor::step`] gave last.
    pub fn examples(&self, step: u64) -> Vec<Vec<usize>> {
        let micro = |i: usize| {
            let rows = self.plan.rows.iter().skip(i * self.options.rows).take(self.options.rows);
            let mut examples: Vec<usize> = rows.flatten().map(|piece| piece.example).collect();
            examples.dedup();
            examples
        };
        self.micro(step).map(micro).collect()
    }

    /// Which micro-batches of the epoch are those of a step in it.
    fn micro(&self, step: u64) -> std::ops::Range<usize> {
        let within = (step - self.first_step) as usize;
        within * self.accumulation..self.plan.len().min((within + 1) * self.accumulation)
    }

    /// The micro-batches of step `step` (from 0; never going back), and the epochs done after it.
    pub fn step(&mut self, step: u64) -> (Vec<crate::data::Batch>, f64) {
        while step >= self.first_step + self.steps() {
            self.first_step += self.steps();
            self.epoch += 1;
            self.plan = EpochPlan::new(&self.lengths, &self.options, self.epoch);
        }
        let within = (step - self.first_step) as usize;
        let epochs = self.epoch as f64 + (within + 1) as f64 / self.steps() as f64;
        (self.micro(step).map(|i| self.plan.batch(i, self.examples)).collect(), epochs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Example, Packing};

    #[test]
    fn a_cursor_that_starts_late_sees_what_the_first_one_saw() {
        let example = |n: usize| Example { ids: vec![n as u32; n % 7 + 1], trained: vec![true; n % 7 + 1] };
        let examples: Examples = (0..23).map(example).collect();
        let options = BatchOptions { max_length: 8, rows: 2, packing: Packing::Bfd, seed: 3, shuffle: true, pad_id: 0 };
        let new = || Cursor::new(&examples, options.clone(), 3);
        let mut through = new();
        let all: Vec<_> = (0..12).map(|s| through.step(s)).collect();
        assert_eq!(new().step(11), all[11]);
        for (batch, examples) in all[11].0.iter().zip(through.examples(11)) {
            let ids: Vec<u32> = examples.iter().flat_map(|i| example(*i).ids).collect();
            assert_eq!(
                batch.ids.iter().filter(|id| **id != 0).collect::<Vec<_>>(),
                ids.iter().filter(|id| **id != 0).collect::<Vec<_>>()
            );
        }
        assert!(all[11].1 > 1.0, "the second epoch was reached");
        let seen: usize = all.iter().filter(|(_, e)| *e <= 1.0).flat_map(|(b, _)| b).map(|b| b.tokens).sum();
        assert_eq!(seen, examples.lengths().iter().sum::<usize>(), "an epoch sees every token once");
    }
}
