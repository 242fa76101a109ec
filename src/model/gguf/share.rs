//! Weights that a GGUF file has in another order, or in two tensors: which of a weight's elements a tensor has.
//!
//! ```text
//! keys, values   of kv_b [H·(U + Y), R], for each head U rows of k, then Y of v:  k_b [H, R, U], v_b [H, Y, R]
//! experts        of a stack [E, C, O], every `step`th output from `first` on:      [E, O/step, C]
//! biases         of [E, O], the same:                                              [E, O/step]
//! ```
//! Gate and up of gpt-oss are one stack with their channels in turn: step 2.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Keys { H: usize, U: usize, Y: usize },
    Values { H: usize, U: usize, Y: usize },
    Experts { first: usize, step: usize },
    Biases { first: usize, step: usize },
}

impl Share {
    /// The tensor's shape, of a weight of this one.
    pub fn shape(self, weight: &[usize]) -> Vec<usize> {
        match (self, weight) {
            (Share::Keys { H, U, .. }, [_, R]) => vec![H, *R, U],
            (Share::Values { H, Y, .. }, [_, R]) => vec![H, Y, *R],
            (Share::Experts { step, .. }, [E, C, O]) => vec![*E, O / step, *C],
            (Share::Biases { step, .. }, [E, O]) => vec![*E, O / step],
            _ => weight.to_vec(),
        }
    }

    /// The place in the weight of the tensor's element i.
    fn source(self, weight: &[usize], i: usize) -> usize {
        match (self, weight) {
            (Share::Keys { U, Y, .. }, [_, R]) => ((i / (R * U)) * (U + Y) + i % U) * R + i / U % R,
            (Share::Values { U, Y, .. }, [_, R]) => ((i / (Y * R)) * (U + Y) + U + i / R % Y) * R + i % R,
            (Share::Experts { first, step }, [_, C, O]) => {
                let (o, c) = (i / C % (O / step), i % C);
                i / (C * (O / step)) * C * O + c * O + first + o * step
            }
            (Share::Biases { first, step }, [_, O]) => i / (O / step) * O + first + i % (O / step) * step,
            _ => i,
        }
    }

    /// The tensor's values, out of the weight's.
    pub fn taken(self, values: &[f32], weight: &[usize]) -> Vec<f32> {
        let len = self.shape(weight).iter().product();
        (0..len).map(|i| values[self.source(weight, i)]).collect()
    }

    /// The tensor's values at their places in the weight's.
    pub fn put(self, values: &mut [f32], weight: &[usize], tensor: &[f32]) {
        tensor.iter().enumerate().for_each(|(i, x)| values[self.source(weight, i)] = *x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_shares_are_the_whole() {
        let kv = (Share::Keys { H: 3, U: 2, Y: 4 }, Share::Values { H: 3, U: 2, Y: 4 }, vec![18, 5]);
        let gate_up = (Share::Experts { first: 0, step: 2 }, Share::Experts { first: 1, step: 2 }, vec![2, 3, 8]);
        let biases = (Share::Biases { first: 0, step: 2 }, Share::Biases { first: 1, step: 2 }, vec![2, 8]);
        for (a, b, shape) in [kv, gate_up, biases] {
            let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
            let mut again = vec![-1.0; values.len()];
            for share in [a, b] {
                share.put(&mut again, &shape, &share.taken(&values, &shape));
            }
            assert_eq!(again, values, "{a:?}");
        }
        // row 3 of head 0 is the second of v; channel 1 of k_b's R comes from column 1
        let values: Vec<f32> = (0..90).map(|i| i as f32).collect();
        assert_eq!(Share::Values { H: 3, U: 2, Y: 4 }.taken(&values, &[18, 5])[5], 15.0);
        assert_eq!(Share::Keys { H: 3, U: 2, Y: 4 }.taken(&values, &[18, 5])[..4], [0.0, 5.0, 1.0, 6.0]);
    }
}
