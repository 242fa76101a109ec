//! The terminal's view of a run that was, as SVG: how the pictures in the documentation are made.
use super::draw::draw;
use super::view::View;
use luthier::train::metrics::{EvalMetrics, StepMetrics};
use luthier::train::report::{escaped, folder::Folder};
use luthier::{Error, Result};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use std::fmt::Write;

/// Columns and rows.
const SIZE: (u16, u16) = (112, 36);
/// Pixels of a cell.
const CELL: (f64, f64) = (8.0, 16.0);
const GROUND: &str = "#11151b";

/// The frame as it was after `step`.
pub fn picture(run: &Folder, step: u64) -> Result<String> {
    let view = replay(run, step);
    let mut terminal = Terminal::new(TestBackend::new(SIZE.0, SIZE.1)).map_err(|e| Error::Bug(e.to_string()))?;
    terminal.draw(|frame| draw(frame, &view)).map_err(|e| Error::Bug(e.to_string()))?;
    Ok(svg(terminal.backend().buffer()))
}

/// What the run told up to `until`.
fn replay(run: &Folder, until: u64) -> View {
    let mut view = View { title: run.name(), memory: run.info.device.memory, ..View::default() };
    view.message(&format!("{} on {}", run.info.device.backend, run.info.device.name));
    view.start(0, run.info.total_steps);
    let at = |name: &str, step: f64| {
        let curve = run.curve(name);
        let found = curve.binary_search_by(|(s, _)| s.total_cmp(&step));
        found.ok().and_then(|i| curve.get(i)).map_or(0.0, |(_, value)| *value)
    };
    let told = |view: &mut View, step: u64| {
        for (_, loss) in run.curve("eval_loss").iter().filter(|(s, _)| *s as u64 == step) {
            view.eval(&EvalMetrics { step, eval_loss: *loss, ..EvalMetrics::default() });
        }
        run.samples.iter().filter(|s| s.step == step).for_each(|s| view.sample(&s.prompt, &s.text));
    };
    told(&mut view, 0);
    for (at_step, loss) in run.curve("loss").iter().filter(|(s, _)| *s as u64 <= until) {
        let step = *at_step as u64;
        view.step(&StepMetrics {
            step,
            loss: *loss,
            epoch: at("epoch", *at_step),
            grad_norm: at("grad_norm", *at_step),
            learning_rate: at("learning_rate", *at_step),
            num_input_tokens_seen: at("num_input_tokens_seen", *at_step) as u64,
            tokens_per_second: at("tokens_per_second", *at_step),
            memory: at("memory", *at_step) as u64,
            ..StepMetrics::default()
        });
        told(&mut view, step);
    }
    view.seconds = run.info.seconds * view.last.step as f64 / run.step().max(1) as f64;
    view
}

fn svg(buffer: &Buffer) -> String {
    let (width, height) = (f64::from(buffer.area.width) * CELL.0, f64::from(buffer.area.height) * CELL.1);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{GROUND}\"/>\n"
    );
    for row in 0..buffer.area.height {
        line(&mut out, buffer, row);
    }
    out + "</svg>\n"
}

/// Neighbours of one colour are one text, spread over exactly their cells.
fn line(out: &mut String, buffer: &Buffer, row: u16) {
    let cells: Vec<&Cell> = (0..buffer.area.width).filter_map(|column| buffer.cell((column, row))).collect();
    let top = f64::from(row) * CELL.1;
    let mut column = 0;
    while column < cells.len() {
        let first = cells[column];
        let same = |cell: &&&Cell| cell.fg == first.fg && cell.bg == first.bg && cell.modifier == first.modifier;
        let run: Vec<&Cell> = cells[column..].iter().take_while(same).copied().collect();
        ground(out, first.bg, column, run.len(), top);
        let text: String = run.iter().map(|cell| if drawn(cell).is_some() { " " } else { cell.symbol() }).collect();
        letters(out, first, &text, column, top);
        for (i, shape) in run.iter().enumerate().filter_map(|(i, cell)| Some((i, drawn(cell)?))) {
            let left = (column + i) as f64 * CELL.0;
            shape.draw(out, left, top, color(first.fg).unwrap_or("#d1d5db"));
        }
        column += run.len();
    }
}

fn ground(out: &mut String, bg: Color, column: usize, cells: usize, top: f64) {
    if let Some(color) = color(bg) {
        rectangle(out, column as f64 * CELL.0, top, cells as f64 * CELL.0, CELL.1, color);
    }
}

fn letters(out: &mut String, style: &Cell, text: &str, column: usize, top: f64) {
    // spaces at the ends would be stretched, too
    let begin = text.chars().take_while(|c| *c == ' ').count();
    let text = text.trim();
    if text.is_empty() {
        return;
    }
    let bold = if style.modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{}\"{bold} textLength=\"{:.1}\" xml:space=\"preserve\">{}</text>",
        (column + begin) as f64 * CELL.0,
        top + 12.5,
        color(style.fg).unwrap_or("#d1d5db"),
        text.chars().count() as f64 * CELL.0,
        escaped(text)
    );
}

/// Symbols that fonts draw too differently to line up.
enum Shape {
    /// The dots that are set: U+2800 and the bits above it.
    Braille(u32),
    /// Eighths of the cell, from below or from the left.
    Below(u32),
    Left(u32),
}

fn drawn(cell: &Cell) -> Option<Shape> {
    let symbol = u32::from(cell.symbol().chars().next()?);
    match symbol {
        0x2800..=0x28ff => Some(Shape::Braille(symbol - 0x2800)),
        0x2581..=0x2588 => Some(Shape::Below(symbol - 0x2580)),
        0x2589..=0x258f => Some(Shape::Left(0x2590 - symbol)),
        _ => None,
    }
}

impl Shape {
    fn draw(&self, out: &mut String, left: f64, top: f64, color: &str) {
        match self {
            Shape::Below(eighths) => {
                let height = CELL.1 * f64::from(*eighths) / 8.0;
                rectangle(out, left, top + CELL.1 - height, CELL.0, height, color);
            }
            Shape::Left(eighths) => rectangle(out, left, top, CELL.0 * f64::from(*eighths) / 8.0, CELL.1, color),
            Shape::Braille(bits) => {
                // (column, row) of the dots 1 to 8
                let dots = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)];
                for (_, (column, row)) in dots.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1) {
                    let (x, y) = (left + 2.0 + 4.0 * f64::from(*column), top + 2.0 + 4.0 * f64::from(*row));
                    let _ = writeln!(out, "<circle cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"1.3\" fill=\"{color}\"/>");
                }
            }
        }
    }
}

fn rectangle(out: &mut String, x: f64, y: f64, width: f64, height: f64, color: &str) {
    let _ =
        writeln!(out, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{color}\"/>");
}

/// `None`: the terminal's own.
fn color(color: Color) -> Option<&'static str> {
    match color {
        Color::Blue => Some("#60a5fa"),
        Color::Yellow => Some("#facc15"),
        Color::Green => Some("#4ade80"),
        Color::Magenta => Some("#c084fc"),
        Color::Cyan => Some("#22d3ee"),
        Color::Red => Some("#f87171"),
        Color::DarkGray => Some("#8b95a5"),
        Color::Black => Some("#262e3a"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::style::Style;

    #[test]
    fn cells_become_text_bars_and_dots() {
        let mut buffer = Buffer::empty(ratatui::layout::Rect::new(0, 0, 12, 2));
        buffer.set_string(1, 0, "a <b>", Style::new().fg(Color::Green).bg(Color::Black));
        buffer.set_string(0, 1, "▄▌⠓", Style::new().fg(Color::Cyan));
        let svg = svg(&buffer);
        assert!(svg.contains("textLength=\"40.0\" xml:space=\"preserve\">a &lt;b&gt;</text>"), "{svg}");
        assert!(svg.contains("<rect x=\"8.0\" y=\"0.0\" width=\"40.0\" height=\"16.0\" fill=\"#262e3a\"/>"), "{svg}");
        assert!(svg.contains("<rect x=\"0.0\" y=\"24.0\" width=\"8.0\" height=\"8.0\" fill=\"#22d3ee\"/>"), "{svg}");
        assert!(svg.contains("<rect x=\"8.0\" y=\"16.0\" width=\"4.0\" height=\"16.0\" fill=\"#22d3ee\"/>"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
    }
}
