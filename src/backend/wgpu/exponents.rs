//! Exponents of operands, kept while their values are: bf16 reaches further than f16, so what goes to cooperative matrices is
//! scaled by the power of two that its largest value asks for. Weights and activations are multiplied several times a step, and
//! their maxima are taken once.
use super::plan::Plan;
use crate::backend::Buf;
use std::collections::HashMap;

/// Exponents that there is room for.
pub const SLOTS: u32 = 4096;

/// Rows, columns and stride of a matrix: what of a tensor is looked at.
pub type Matrix = [u64; 3];

struct Known {
    bytes: std::ops::Range<usize>,
    matrix: Matrix,
    slot: u32,
}

/// Which slot of the buffer of exponents belongs to whom.
pub struct Exponents {
    known: HashMap<u32, Vec<Known>>,
    free: Vec<u32>,
}

impl Default for Exponents {
    fn default() -> Exponents {
        Exponents { known: HashMap::new(), free: (0..SLOTS).rev().collect() }
    }
}

fn bytes(buf: &Buf) -> std::ops::Range<usize> {
    buf.start..buf.start + buf.bytes()
}

impl Exponents {
    /// The slot for a matrix in `buf`, and whether its exponent has yet to be found.
    pub fn slot(&mut self, buf: &Buf, matrix: Matrix) -> (u32, bool) {
        let same = |known: &&Known| known.bytes == bytes(buf) && known.matrix == matrix;
        if let Some(known) = self.known.get(&buf.slab).and_then(|all| all.iter().find(same)) {
            return (known.slot, false);
        }
        // two operands of a call need two
        if self.free.len() < 2 {
            *self = Exponents::default();
        }
        let slot = self.free.pop().expect("there are two");
        self.known.entry(buf.slab).or_default().push(Known { bytes: bytes(buf), matrix, slot });
        (slot, true)
    }

    /// Tells a plan where its operands' exponents are, and which of them it has to find.
    pub fn settle<'b>(&mut self, plan: &mut Plan, operand: impl Fn(&str) -> &'b Buf) {
        if plan.scaled.is_empty() {
            return;
        }
        let found: Vec<_> = plan.scaled.iter().map(|(name, matrix)| self.slot(operand(name), *matrix)).collect();
        let fresh = |(_, fresh): &&(u32, bool)| *fresh;
        let unknown = found.iter().filter(fresh).count() as u32;
        let unknown_from = found.iter().position(|(_, fresh)| *fresh).unwrap_or(0) as u32;
        for (name, value) in &mut plan.extra {
            match *name {
                "e_a" => *value = found[0].0,
                "e_b" => *value = found[1].0,
                "unknown" => *value = unknown,
                "unknown_from" => *value = unknown_from,
                _ => {}
            }
        }
    }

    /// The values of `buf` are no longer what they were.
    pub fn forget(&mut self, buf: &Buf) {
        let (Exponents { known, free }, gone) = (self, bytes(buf));
        if let Some(all) = known.get_mut(&buf.slab) {
            let overlaps = |known: &Known| known.bytes.start < gone.end && gone.start < known.bytes.end;
            free.extend(all.extract_if(.., |known| overlaps(known)).map(|known| known.slot));
            if all.is_empty() {
                known.remove(&buf.slab);
            }
        }
    }

    /// The same for all.
    pub fn clear(&mut self) {
        *self = Exponents::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn an_exponent_holds_until_its_values_change() {
        let buf = |slab, start, len| Buf { slab, start, len, dtype: DType::Bf16, width: 2 };
        let mut exponents = Exponents::default();
        let (a, b) = (buf(0, 0, 64), buf(0, 128, 64));
        let (first, fresh) = exponents.slot(&a, [8, 8, 8]);
        assert!(fresh);
        assert_eq!(exponents.slot(&a, [8, 8, 8]), (first, false));
        let (other, fresh) = exponents.slot(&a, [4, 8, 16]);
        assert!(fresh && other != first, "another part of it");
        exponents.slot(&b, [8, 8, 8]);
        exponents.forget(&buf(0, 120, 4));
        assert!(!exponents.slot(&b, [8, 8, 8]).1, "its neighbour was written");
        assert!(exponents.slot(&a, [8, 8, 8]).1, "its end was written");
        exponents.forget(&buf(1, 0, 64));
        assert!(!exponents.slot(&a, [8, 8, 8]).1, "another buffer was written");
        // more than there is room for: each is found again, and no two of a call share a slot
        for i in 0..2 * SLOTS as usize {
            let pair = [buf(2, 4 * i, 2), buf(3, 4 * i, 2)].map(|x| exponents.slot(&x, [1, 2, 2]));
            assert!(pair[0].0 != pair[1].0 && pair[0].1 && pair[1].1);
        }
    }
}
