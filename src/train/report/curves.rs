//! Which curves of runs are shown, and how.
use super::axis::Floor;
use super::figure::{Curve, Figure, Panel, Style, figure, smoothed};
use super::folder::Folder;

/// Pixels.
const WIDTH: f64 = 900.0;

/// One colour a curve, where the runs are not told apart by them.
const TRAIN: usize = 0;
const EVAL: usize = 1;

/// The loss with its evaluations, and the learning rate below it.
pub fn loss(run: &Folder) -> Figure {
    let raw = run.curve("loss");
    let curve =
        |label: &str, points: Vec<(f64, f64)>, style, color| Curve { label: label.into(), points, style, color };
    let mut curves =
        vec![curve("", raw.to_vec(), Style::Raw, TRAIN), curve("train (smoothed)", smoothed(raw), Style::Line, TRAIN)];
    let evals = run.curve("eval_loss");
    if !evals.is_empty() {
        curves.push(curve("eval", evals.to_vec(), Style::Dots, EVAL));
    }
    let rate = curve("", run.curve("learning_rate").to_vec(), Style::Line, 2);
    let panels = [
        Panel { title: "loss", curves, height: 260.0, floor: Floor::Below },
        Panel { title: "learning rate", curves: vec![rate], height: 70.0, floor: Floor::Zero },
    ];
    figure(&format!("{}: loss and learning rate over steps", run.name()), &panels, WIDTH)
}

/// Everything that says how the run went rather than where: the gradient's norm, and the speed.
pub fn health(run: &Folder) -> Figure {
    let pair = |name: &str, color| {
        let raw = run.curve(name);
        let curve = |points, style| Curve { label: String::new(), points, style, color };
        vec![curve(raw.to_vec(), Style::Raw), curve(smoothed(raw), Style::Line)]
    };
    let panel = |title, name, color| Panel { title, curves: pair(name, color), height: 90.0, floor: Floor::Zero };
    let panels = [panel("gradient norm", "grad_norm", 3), panel("tokens per second", "tokens_per_second", 5)];
    figure(&format!("{}: gradient norm and speed over steps", run.name()), &panels, WIDTH)
}

/// The losses of several runs over one another, a colour for each.
pub fn overlay(runs: &[Folder]) -> Figure {
    let curves = |name: &str, smooth: bool, style| {
        let named = runs.iter().enumerate().filter(|(_, run)| !run.curve(name).is_empty());
        let curve = |(color, run): (usize, &Folder)| {
            let raw = run.curve(name);
            let points = if smooth { smoothed(raw) } else { raw.to_vec() };
            Curve { label: run.name(), points, style, color }
        };
        named.map(curve).collect::<Vec<_>>()
    };
    let mut panels = vec![Panel {
        title: "train loss (smoothed)",
        curves: curves("loss", true, Style::Line),
        height: 260.0,
        floor: Floor::Below,
    }];
    let evals = curves("eval_loss", false, Style::Dots);
    if !evals.is_empty() {
        panels.push(Panel { title: "eval loss", curves: evals, height: 180.0, floor: Floor::Below });
    }
    figure("losses over steps", &panels, WIDTH)
}
