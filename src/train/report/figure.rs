//! Curves as marks on a plane, in pixels: panels one below the other over one axis of steps. `svg` and `png` draw the marks.
use super::axis::{Axis, Floor};

/// (step, value), steps going up.
pub type Points = Vec<(f64, f64)>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Style {
    /// Faint: every value as it was.
    Raw,
    Line,
    /// A line with its points marked, for values that are far apart.
    Dots,
}

#[derive(Clone, Debug)]
pub struct Curve {
    /// Empty: not in the legend.
    pub label: String,
    pub points: Points,
    pub style: Style,
    /// Which of the colours.
    pub color: usize,
}

#[derive(Clone, Debug)]
pub struct Panel {
    pub title: &'static str,
    pub curves: Vec<Curve>,
    /// Pixels between the axes' ends.
    pub height: f64,
    pub floor: Floor,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ink {
    Text,
    Muted,
    Grid,
    Color(usize),
    /// The same, mostly seen through.
    Faint(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Debug)]
pub enum Mark {
    Line { points: Vec<(f64, f64)>, width: f64, ink: Ink },
    Dot { at: (f64, f64), radius: f64, ink: Ink },
    Text { at: (f64, f64), text: String, size: f64, anchor: Anchor, ink: Ink },
}

#[derive(Clone, Debug)]
pub struct Figure {
    pub title: String,
    pub width: f64,
    pub height: f64,
    pub marks: Vec<Mark>,
}

const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
/// Above a panel, for its title, and below it, for its steps.
const ABOVE: f64 = 30.0;
const BELOW: f64 = 24.0;
const SMALL: f64 = 11.0;
/// Of a legend's letter, in pixels, on average.
const LETTER: f64 = 6.6;

/// The panels as a figure `width` pixels wide.
pub fn figure(title: &str, panels: &[Panel], width: f64) -> Figure {
    let all = || panels.iter().flat_map(|panel| &panel.curves).flat_map(|curve| &curve.points);
    let steps = Axis::of(all().map(|(step, _)| *step), Floor::Data, 8);
    let mut figure = Figure { title: title.to_string(), width, height: 0.0, marks: Vec::new() };
    for panel in panels {
        figure.height += ABOVE;
        let top = figure.height;
        figure.panel(panel, &steps, top);
        figure.height += panel.height + BELOW;
    }
    figure
}

impl Figure {
    fn panel(&mut self, panel: &Panel, steps: &Axis, top: f64) {
        let (right, bottom) = (self.width - RIGHT, top + panel.height);
        let values = panel.curves.iter().flat_map(|curve| &curve.points).map(|(_, value)| *value);
        let axis = Axis::of(values, panel.floor, (panel.height / 30.0) as usize);
        let x = |step: f64| LEFT + steps.at(step) * (right - LEFT);
        let y = |value: f64| bottom - axis.at(value) * panel.height;
        for (value, label) in &axis.ticks {
            self.line(vec![(LEFT, y(*value)), (right, y(*value))], 1.0, Ink::Grid);
            self.text((LEFT - 8.0, y(*value) + 4.0), label, SMALL, Anchor::End, Ink::Muted);
        }
        for (step, label) in &steps.ticks {
            self.line(vec![(x(*step), bottom), (x(*step), bottom + 4.0)], 1.0, Ink::Muted);
            self.text((x(*step), bottom + 17.0), label, SMALL, Anchor::Middle, Ink::Muted);
        }
        self.text((LEFT - 14.0, bottom + 17.0), "step", SMALL, Anchor::End, Ink::Muted);
        self.line(vec![(LEFT, bottom), (right, bottom)], 1.0, Ink::Muted);
        self.text((LEFT, top - 11.0), panel.title, 13.0, Anchor::Start, Ink::Text);
        for curve in &panel.curves {
            let points = thinned(&curve.points, (right - LEFT) as usize);
            let at: Vec<(f64, f64)> = points.into_iter().map(|(step, value)| (x(step), y(value))).collect();
            self.curve(curve, at);
        }
        self.legend(&panel.curves, top - 11.0);
    }

    fn curve(&mut self, curve: &Curve, at: Vec<(f64, f64)>) {
        let (width, ink) = match curve.style {
            Style::Raw => (1.0, Ink::Faint(curve.color)),
            Style::Line => (2.0, Ink::Color(curve.color)),
            Style::Dots => (1.5, Ink::Color(curve.color)),
        };
        if curve.style == Style::Dots || at.len() == 1 {
            self.marks.extend(at.iter().map(|at| Mark::Dot { at: *at, radius: 3.5, ink }));
        }
        if at.len() > 1 {
            self.line(at, width, ink);
        }
    }

    /// From the right, the last curve first.
    fn legend(&mut self, curves: &[Curve], baseline: f64) {
        let mut end = self.width - RIGHT;
        for curve in curves.iter().rev().filter(|curve| !curve.label.is_empty()) {
            let begin = end - curve.label.chars().count() as f64 * LETTER;
            self.text((begin, baseline), &curve.label, SMALL, Anchor::Start, Ink::Muted);
            self.curve(curve, vec![(begin - 27.0, baseline - 4.0), (begin - 9.0, baseline - 4.0)]);
            end = begin - 42.0;
        }
    }

    fn line(&mut self, points: Vec<(f64, f64)>, width: f64, ink: Ink) {
        self.marks.push(Mark::Line { points, width, ink });
    }

    fn text(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, ink: Ink) {
        self.marks.push(Mark::Text { at, text: text.to_string(), size, anchor, ink });
    }
}

/// At most about 2·`most` points, with every bump of the curve still there: of each stretch the least and the largest.
fn thinned(points: &[(f64, f64)], most: usize) -> Points {
    let finite = || points.iter().copied().filter(|(_, value)| value.is_finite());
    let stretch = finite().count().div_ceil(most.max(1)).max(1);
    if stretch == 1 {
        return finite().collect();
    }
    let all: Points = finite().collect();
    let ends = |part: &[(f64, f64)]| {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (least, largest) = (*part.iter().min_by(by)?, *part.iter().max_by(by)?);
        Some(if least.0 <= largest.0 { [least, largest] } else { [largest, least] })
    };
    all.chunks(stretch).filter_map(ends).flatten().collect()
}

/// Values with their noise averaged out: exponential weights, corrected for the start, over about a 25th of the curve.
pub fn smoothed(points: &[(f64, f64)]) -> Points {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 25.0).max(3.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut next = |(step, value): &(f64, f64)| {
        if value.is_finite() {
            (sum, weight) = (keep * sum + value, keep * weight + 1.0);
        }
        (weight > 0.0).then(|| (*step, sum / weight))
    };
    points.iter().filter_map(&mut next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Points {
        (0..n).map(|i| (i as f64, if i == n / 2 { 9.0 } else { (i % 2) as f64 })).collect()
    }

    #[test]
    fn thinning_keeps_the_peaks() {
        let thin = thinned(&wave(10_000), 100);
        assert!(thin.len() <= 202 && thin.is_sorted_by(|a, b| a.0 <= b.0), "{}", thin.len());
        assert!(thin.iter().any(|(_, value)| *value == 9.0));
        assert_eq!(thinned(&wave(50), 100), wave(50));
        assert_eq!(thinned(&[(1.0, f64::NAN)], 100), []);
    }

    #[test]
    fn smoothing_averages_and_starts_without_bias() {
        let flat: Points = (0..500).map(|i| (i as f64, 2.0)).collect();
        assert!(smoothed(&flat).iter().all(|(_, value)| (value - 2.0).abs() < 1e-12));
        let wave: Points = (0..500).map(|i| (i as f64, (i % 2) as f64)).collect();
        assert!(smoothed(&wave)[100..].iter().all(|(_, value)| (value - 0.5).abs() < 0.05));
        assert_eq!(smoothed(&[(1.0, f64::NAN), (2.0, 4.0)]), [(2.0, 4.0)]);
    }

    #[test]
    fn marks_stay_in_the_figure() {
        let curve = |style| Curve { label: "loss".into(), points: wave(300), style, color: 0 };
        let curves = vec![curve(Style::Raw), curve(Style::Line), curve(Style::Dots)];
        let panel = Panel { title: "loss", curves, height: 200.0, floor: Floor::Data };
        let figure = figure("", &[panel.clone(), panel], 640.0);
        let inside = |(x, y): &(f64, f64)| (0.0..=640.0).contains(x) && (0.0..=figure.height).contains(y);
        for mark in &figure.marks {
            match mark {
                Mark::Line { points, .. } => assert!(points.iter().all(inside), "{mark:?}"),
                Mark::Dot { at, .. } | Mark::Text { at, .. } => assert!(inside(at), "{mark:?}"),
            }
        }
    }
}
