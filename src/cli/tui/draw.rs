//! A view drawn into a frame of any size.
use super::view::{Pace, Tab, View};
use luthier::train::report::words::{bytes, duration, grouped};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, BorderType, Chart, Dataset, Gauge, GraphType, Paragraph, Sparkline, Wrap};

const TRAIN: Color = Color::Blue;
const EVAL: Color = Color::Yellow;
const QUIET: Style = Style::new().fg(Color::DarkGray);
/// Columns of the figures beside the curve.
const SIDE: u16 = 34;

pub fn draw(frame: &mut Frame, view: &View) {
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Percentage(30),
        Constraint::Length(1),
    ]);
    let [head, bar, middle, texts, foot] = rows.areas(frame.area());
    let [curve, side] = Layout::horizontal([Constraint::Min(0), Constraint::Max(SIDE)]).areas(middle);
    frame.render_widget(Line::from(header(view)), head);
    progress(frame, view, bar);
    curves(frame, view, curve);
    figures(frame, view, side);
    texts_of(frame, view, texts);
    let keys = " q save and end · s checkpoint now · p pause · tab samples or messages · ↑↓ scroll";
    frame.render_widget(Line::styled(keys, QUIET), foot);
}

fn header(view: &View) -> Vec<Span<'_>> {
    let (pace, color) = match view.pace {
        Pace::Running if view.total == 0 => ("preparing", Color::Yellow),
        Pace::Running => ("training", Color::Green),
        Pace::Paused => ("paused", Color::Yellow),
        Pace::Ending => ("saving, then ending", Color::Yellow),
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    vec![
        Span::styled(" luthier ", bold),
        Span::raw(&view.title),
        Span::styled(format!("  {pace}"), bold.fg(color)),
        Span::styled(format!("  {} so far, {} left", duration(view.seconds), duration(view.left())), QUIET),
    ]
}

fn progress(frame: &mut Frame, view: &View, area: Rect) {
    let (ratio, label) = match &view.download {
        Some((name, have, size)) => {
            (*have as f64 / (*size).max(1) as f64, format!("{name}: {} of {}", bytes(*have), bytes(*size)))
        }
        None => {
            let (step, epoch) = (view.last.step, view.last.epoch);
            (step as f64 / view.total.max(1) as f64, format!("step {step} / {} · epoch {epoch:.2}", view.total))
        }
    };
    let style = Style::new().fg(TRAIN).bg(Color::Black);
    frame.render_widget(Gauge::default().gauge_style(style).ratio(ratio.clamp(0.0, 1.0)).label(label), area);
}

fn block(title: &str) -> Block<'_> {
    Block::bordered().border_type(BorderType::Rounded).border_style(QUIET).title(title)
}

fn curves(frame: &mut Frame, view: &View, area: Rect) {
    let train = view.loss.points();
    let all = || train.iter().chain(&view.evals).map(|(_, loss)| *loss).filter(|loss| loss.is_finite());
    let (lo, hi) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    if lo > hi {
        return frame.render_widget(Paragraph::new("no step yet").style(QUIET).block(block(" loss ")), area);
    }
    let room = ((hi - lo) * 0.05).max(1e-3);
    let (lo, hi, end) = (lo - room, hi + room, view.total.max(1) as f64);
    let set = |name, data, color, marker, kind| {
        let style = Style::new().fg(color);
        Dataset::default().name(name).data(data).style(style).marker(marker).graph_type(kind)
    };
    let mut sets = vec![set("train", train, TRAIN, Marker::Braille, GraphType::Line)];
    if !view.evals.is_empty() {
        sets.push(set("eval", &view.evals, EVAL, Marker::Dot, GraphType::Scatter));
    }
    let losses = [lo, (lo + hi) / 2.0, hi].map(|x| format!("{x:.3}"));
    let steps = [0.0, end / 2.0, end].map(|x| format!("{x:.0}"));
    let chart = Chart::new(sets)
        .block(block(" loss "))
        .x_axis(Axis::default().bounds([0.0, end]).labels(steps).style(QUIET))
        .y_axis(Axis::default().bounds([lo, hi]).labels(losses).style(QUIET));
    frame.render_widget(chart, area);
}

fn figures(frame: &mut Frame, view: &View, area: Rect) {
    let rows =
        [Constraint::Length(7), Constraint::Length(1), Constraint::Fill(1), Constraint::Fill(1), Constraint::Fill(1)];
    let outer = block(" now ");
    let [numbers, memory, rate, norm, speed] = Layout::vertical(rows).areas(outer.inner(area));
    frame.render_widget(outer, area);
    let m = &view.last;
    let best = view.best().map_or("-".into(), |(step, loss)| format!("{loss:.4} (step {step})"));
    let line = |name: &'static str, value: String| {
        Line::from(vec![Span::styled(format!("{name:<12}"), QUIET), Span::raw(value)])
    };
    let lines = vec![
        line("loss", format!("{:.4}", m.loss)),
        line("best eval", best),
        line("lr", format!("{:.3e}", m.learning_rate)),
        line("grad norm", format!("{:.3}", m.grad_norm)),
        line("tokens/s", grouped(m.tokens_per_second.max(0.0).round() as u64)),
        line("tokens", grouped(m.num_input_tokens_seen)),
        line("memory", bytes(m.memory)),
    ];
    frame.render_widget(Paragraph::new(lines), numbers);
    if let Some(total) = view.memory.filter(|total| *total > 0) {
        let ratio = (m.memory as f64 / total as f64).clamp(0.0, 1.0);
        let color = if ratio > 0.9 { Color::Red } else { Color::Cyan };
        let label = format!("{:.0} % of {}", 100.0 * ratio, bytes(total));
        let style = Style::new().fg(color).bg(Color::Black);
        frame.render_widget(Gauge::default().gauge_style(style).ratio(ratio).label(label), memory);
    }
    spark(frame, "learning rate", &view.learning_rate.columns(rate.width.into()), Color::Green, rate);
    spark(frame, "gradient norm", &view.grad_norm.columns(norm.width.into()), Color::Magenta, norm);
    spark(frame, "tokens per second", &view.speed.columns(speed.width.into()), Color::Cyan, speed);
}

/// A name, and bars from 0 to the largest below it.
fn spark(frame: &mut Frame, name: &str, values: &[f64], color: Color, area: Rect) {
    let [title, bars] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(Line::styled(name, QUIET), title);
    let most = values.iter().copied().fold(0.0, f64::max);
    let scaled = values.iter().map(|x| if most > 0.0 { (x.max(0.0) / most * 1000.0) as u64 } else { 0 });
    frame.render_widget(Sparkline::default().data(scaled).max(1000).style(Style::new().fg(color)), bars);
}

fn texts_of(frame: &mut Frame, view: &View, area: Rect) {
    let (title, lines) = match view.tab {
        Tab::Samples => (" samples · messages: tab ", samples(view)),
        Tab::Messages => {
            (" messages · samples: tab ", view.messages.iter().flat_map(|text| text.lines()).map(Line::raw).collect())
        }
    };
    let block = block(title);
    let inner = block.inner(area);
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    // the end is what is new, so that is what is seen
    let lines = wrapped(view, inner.width);
    let above = lines.saturating_sub(inner.height).saturating_sub(view.scroll);
    frame.render_widget(text.scroll((above, 0)).block(block), area);
}

fn samples(view: &View) -> Vec<Line<'_>> {
    let sample = |sample: &'_ super::view::Sample| -> Vec<Line<'static>> {
        let head = Line::styled(format!("after step {}", sample.step), QUIET);
        let style = Style::new().fg(TRAIN);
        let prompt = sample.prompt.lines().map(|line| Line::styled(format!("> {line}"), style));
        let text = sample.text.lines().map(|line| Line::raw(line.to_string()));
        std::iter::once(head).chain(prompt).chain(text).collect()
    };
    view.samples.iter().flat_map(sample).collect()
}

/// Rows that the tab's texts take at that width, at least.
fn wrapped(view: &View, width: u16) -> u16 {
    let rows = |line: &str| line.chars().count().div_ceil(usize::from(width.max(1))).max(1);
    let all: usize = match view.tab {
        Tab::Messages => view.messages.iter().flat_map(|text| text.lines()).map(rows).sum(),
        Tab::Samples => samples(view).iter().map(|line| rows(&line.to_string())).sum(),
    };
    all.min(usize::from(u16::MAX)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use luthier::train::metrics::{EvalMetrics, StepMetrics};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn view(steps: u64) -> View {
        let mut view = View { title: "quickstart".into(), memory: Some(8 << 30), ..View::default() };
        view.message("cpu on CPU, 2 threads (as asked)");
        view.start(0, 40);
        view.sample("What is E0117?", "before");
        for step in 1..=steps {
            let loss = 3.0 - step as f64 / 20.0;
            view.step(&StepMetrics {
                step,
                epoch: step as f64 / 20.0,
                loss,
                grad_norm: 1.0,
                learning_rate: 2e-4,
                num_input_tokens_seen: 1000 * step,
                tokens_per_second: 1234.5,
                memory: 2 << 30,
                ..StepMetrics::default()
            });
            if step % 10 == 0 {
                view.eval(&EvalMetrics { step, eval_loss: loss + 0.1, ..EvalMetrics::default() });
            }
        }
        view.seconds = 20.0;
        view.sample("What is E0117?", "after\u{1b}[31m");
        view
    }

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_is_on_the_screen() {
        let screen = screen(&view(20), 100, 36);
        for part in [
            "luthier quickstart  training  20s so far, 20s left",
            "step 20 / 40 · epoch 1.00",
            "loss        2.0000",
            "best eval   2.1000 (step 20)",
            "lr          2.000e-4",
            "tokens/s    1,235",
            "tokens      20,000",
            "25 % of 8.0 GiB",
            "learning rate",
            "after step 20",
            "> What is E0117?",
            "after\\u{1b}[31m",
            "q save and end",
        ] {
            assert!(screen.contains(part), "{part} is missing in\n{screen}");
        }
        assert!(screen.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "no curve in\n{screen}");
    }

    #[test]
    fn the_other_tab_and_what_was_above() {
        let mut view = view(20);
        view.turn();
        assert!(screen(&view, 100, 36).contains("cpu on CPU, 2 threads"));
        (0..50).for_each(|i| view.message(&format!("message {i}.")));
        let end = screen(&view, 100, 36);
        assert!(end.contains("message 49.") && !end.contains("message 10."), "{end}");
        view.scroll = 39;
        let above = screen(&view, 100, 36);
        assert!(above.contains("message 10.") && !above.contains("message 49."), "{above}");
    }

    #[test]
    fn any_size_is_drawn() {
        let views = [View::default(), view(1), view(40)];
        for (width, height) in [(1, 1), (2, 3), (10, 4), (40, 8), (80, 24), (300, 90)] {
            views.iter().for_each(|view| drop(screen(view, width, height)));
        }
    }
}
