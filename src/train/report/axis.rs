//! Where an axis has its ticks, and what stands beside them: multiples of 1, 2 or 5 times a power of ten.

#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    pub lo: f64,
    pub hi: f64,
    pub ticks: Vec<(f64, String)>,
}

/// Where an axis begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Floor {
    Zero,
    /// At the least value.
    Data,
    /// A little below it, with as much room above the largest.
    Below,
}

/// Whether a value has a place on an axis: numbers beyond are no measurements, and their differences no numbers.
pub fn drawable(x: f64) -> bool {
    x.abs() < 1e100
}

impl Axis {
    /// Holds every value that is drawable, with about `n` ticks.
    pub fn of(values: impl Iterator<Item = f64>, floor: Floor, n: usize) -> Axis {
        let (mut lo, mut hi) = (f64::INFINITY, f64::NEG_INFINITY);
        for x in values.filter(|x| drawable(*x)) {
            (lo, hi) = (lo.min(x), hi.max(x));
        }
        if floor == Floor::Zero {
            (lo, hi) = (lo.min(0.0), hi.max(0.0));
        }
        if lo > hi {
            (lo, hi) = (0.0, 1.0);
        }
        // closer than that, and no tick between them has a number of its own
        if hi - lo <= 1e-9 * lo.abs().max(hi.abs()).max(1e-90) {
            let room = if lo.abs() < 1e-90 { 1.0 } else { lo.abs() * 0.1 };
            (lo, hi) = (lo - if floor == Floor::Zero { 0.0 } else { room }, hi + room);
        }
        if floor == Floor::Below {
            let room = 0.04 * (hi - lo);
            (lo, hi) = (lo - room, hi + room);
        }
        let step = nice((hi - lo) / n.max(1) as f64);
        let (first, last) = ((lo / step).ceil() as i64, (hi / step).floor() as i64);
        // a step is at least a fifth of (hi - lo) / n wide, so there are few
        let ticks =
            (first..=last).map(|i| i as f64 * step).map(|x| (x, label(x, step, lo.abs().max(hi.abs())))).collect();
        Axis { lo, hi, ticks }
    }

    /// 0 at the axis's begin, 1 at its end.
    pub fn at(&self, x: f64) -> f64 {
        (x - self.lo) / (self.hi - self.lo)
    }
}

/// The least of 1, 2, 5, 10 … that is no less than `x`.
fn nice(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= x * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn digits(x: f64) -> i32 {
    // against a power of ten that is a little less than itself
    (x.log10() + 1e-9).floor() as i32
}

/// `x` as exactly as ticks `step` apart ask for, on an axis whose largest value is `most`.
fn label(x: f64, step: f64, most: f64) -> String {
    let fixed = |x: f64, step: f64| format!("{x:.*}", (-digits(step)).max(0) as usize);
    if x == 0.0 {
        return "0".into();
    }
    match most {
        1e9.. => fixed(x / 1e9, step / 1e9) + "G",
        1e6.. => fixed(x / 1e6, step / 1e6) + "M",
        1e4.. => fixed(x / 1e3, step / 1e3) + "k",
        1e-2.. => fixed(x, step),
        _ => {
            let power = digits(most);
            let scale = 10f64.powi(power);
            format!("{}e{power}", fixed(x / scale, step / scale))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(lo: f64, hi: f64, n: usize) -> Vec<String> {
        Axis::of([lo, hi].into_iter(), Floor::Data, n).ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 10.0, 5), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(1.234, 2.1, 4), ["1.5", "2.0"]);
        assert_eq!(labels(0.0, 2e-4, 4), ["0", "0.5e-4", "1.0e-4", "1.5e-4", "2.0e-4"]);
        assert_eq!(labels(0.0, 25000.0, 5), ["0", "5k", "10k", "15k", "20k", "25k"]);
        assert_eq!(labels(-1.0, 1.0, 4), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
        assert_eq!(labels(3.0e6, 3.1e6, 2), ["3.00M", "3.05M", "3.10M"]);
    }

    #[test]
    fn an_axis_holds_its_values_whatever_they_are() {
        let cases: [&[f64]; 8] = [
            &[],
            &[5.0],
            &[0.0],
            &[-3.0],
            &[f64::NAN, 2.0, f64::INFINITY, 1e300],
            &[5e-324, 0.0],
            &[1e-300, 1e99],
            &[1.0, 1.0 + 1e-15],
        ];
        for values in cases {
            for floor in [Floor::Zero, Floor::Data, Floor::Below] {
                let axis = Axis::of(values.iter().copied(), floor, 5);
                assert!(axis.lo < axis.hi && axis.ticks.len() <= 30, "{values:?}: {axis:?}");
                for x in values.iter().filter(|x| drawable(**x)) {
                    assert!((0.0..=1.0).contains(&axis.at(*x)), "{values:?}: {axis:?}");
                }
            }
        }
    }
}
