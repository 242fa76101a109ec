//! A curve of any length in little memory: when it is full, neighbours become their mean.

const MOST: usize = 2048;

#[derive(Clone, Debug)]
pub struct History {
    points: Vec<(f64, f64)>,
    /// Steps that one point stands for.
    stride: usize,
    /// Of the point that is not full yet: how many, and their sums.
    open: (usize, f64, f64),
}

impl Default for History {
    fn default() -> History {
        History { points: Vec::new(), stride: 1, open: (0, 0.0, 0.0) }
    }
}

impl History {
    /// A value that is no number is left out.
    pub fn push(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.open = (self.open.0 + 1, self.open.1 + step as f64, self.open.2 + value);
        if self.open.0 == self.stride {
            let (n, steps, values) = std::mem::take(&mut self.open);
            self.points.push((steps / n as f64, values / n as f64));
        }
        if self.points.len() == MOST {
            let mean = |pair: &[(f64, f64)]| ((pair[0].0 + pair[1].0) / 2.0, (pair[0].1 + pair[1].1) / 2.0);
            self.points = self.points.chunks_exact(2).map(mean).collect();
            self.stride *= 2;
        }
    }

    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// The whole curve as `n` values, each the mean of its stretch; fewer where there are not so many points.
    pub fn columns(&self, n: usize) -> Vec<f64> {
        let (len, n) = (self.points.len(), n.min(self.points.len()));
        let mean = |part: &[(f64, f64)]| part.iter().map(|(_, value)| value).sum::<f64>() / part.len() as f64;
        (0..n).map(|i| mean(&self.points[i * len / n..(i + 1) * len / n])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_shape() {
        let mut history = History::default();
        for step in 0..100_000 {
            history.push(step, step as f64 * 2.0);
        }
        history.push(100_000, f64::NAN);
        let points = history.points();
        assert!(points.len() < MOST && points.len() >= MOST / 2);
        assert!(points.iter().all(|(step, value)| (value - 2.0 * step).abs() < 1e-6));
        assert!(points.last().is_some_and(|(step, _)| *step > 99_000.0));
        let columns = history.columns(10);
        assert!(columns.len() == 10 && columns.is_sorted());
        assert!(History::default().columns(10).is_empty());
    }
}
