//! A figure as SVG that reads well on light and dark grounds, by itself or inside a page.
use super::figure::{Anchor, Figure, Ink, Mark};
use std::fmt::Write;

/// Hexadecimal RGB of what is drawn on a light ground and on a dark one.
pub struct Paint {
    pub light: u32,
    pub dark: u32,
    /// From 0 to 1.
    pub opacity: f64,
}

const COLORS: [(u32, u32); 8] = [
    (0x2563eb, 0x60a5fa),
    (0xd9480f, 0xfb923c),
    (0x15803d, 0x4ade80),
    (0x9333ea, 0xc084fc),
    (0xb91c1c, 0xf87171),
    (0x0e7490, 0x22d3ee),
    (0xa16207, 0xfacc15),
    (0xbe185d, 0xf472b6),
];

pub fn paint(ink: Ink) -> Paint {
    let ((light, dark), opacity) = match ink {
        Ink::Text => ((0x1f2937, 0xe5e7eb), 1.0),
        Ink::Muted => ((0x6b7280, 0x9ca3af), 1.0),
        Ink::Grid => ((0x9ca3af, 0x6b7280), 0.28),
        Ink::Color(i) => (COLORS[i % COLORS.len()], 1.0),
        Ink::Faint(i) => (COLORS[i % COLORS.len()], 0.38),
    };
    Paint { light, dark, opacity }
}

fn class(ink: Ink) -> String {
    match ink {
        Ink::Text => "lt".into(),
        Ink::Muted => "lm".into(),
        Ink::Grid => "lg".into(),
        Ink::Color(i) => format!("l{}", i % COLORS.len()),
        Ink::Faint(i) => format!("l{} lf", i % COLORS.len()),
    }
}

/// What gives the classes their colours: in a file of its own, and once in a page.
pub fn style() -> String {
    let mut names = vec![("lt".to_string(), Ink::Text), ("lm".into(), Ink::Muted), ("lg".into(), Ink::Grid)];
    names.extend((0..COLORS.len()).map(|i| (format!("l{i}"), Ink::Color(i))));
    let rules = |dark: bool| {
        let rule = |(name, ink): &(String, Ink)| {
            let paint = paint(*ink);
            format!(".{name}{{color:#{:06x}}}", if dark { paint.dark } else { paint.light })
        };
        names.iter().map(rule).collect::<String>()
    };
    let opacity = |ink| paint(ink).opacity;
    format!(
        "{}.lg{{opacity:{}}}.lf{{opacity:{}}}@media (prefers-color-scheme:dark){{{}}}",
        rules(false),
        opacity(Ink::Grid),
        opacity(Ink::Faint(0)),
        rules(true)
    )
}

/// An `<svg>` element; its classes want [`style`].
pub fn element(figure: &Figure) -> String {
    let (width, height) = (figure.width, figure.height);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" font-family=\"system-ui,sans-serif\"><title>{}</title>\n",
        escaped(&figure.title)
    );
    figure.marks.iter().for_each(|found| mark(&mut out, found));
    out + "</svg>\n"
}

/// A file.
pub fn document(figure: &Figure) -> String {
    element(figure).replacen("<title>", &format!("<style>{}</style><title>", style()), 1)
}

fn mark(out: &mut String, mark: &Mark) {
    // Writing to a string does not fail.
    let _ = match mark {
        Mark::Line { points, width, ink } => {
            let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            writeln!(
                out,
                "<polyline class=\"{}\" points=\"{}\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"{width}\" \
                 stroke-linejoin=\"round\"/>",
                class(*ink),
                points.join(" ")
            )
        }
        Mark::Dot { at: (x, y), radius, ink } => {
            let class = class(*ink);
            writeln!(
                out,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"currentColor\"/>"
            )
        }
        Mark::Text { at: (x, y), text, size, anchor, ink } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            writeln!(
                out,
                "<text class=\"{}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" \
                 fill=\"currentColor\">{}</text>",
                class(*ink),
                escaped(text)
            )
        }
    };
}

/// Text that may come from anywhere, made safe between tags and in quoted attributes of HTML and XML. Control characters, which
/// XML does not allow, are shown as U+FFFD.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::axis::Floor;
    use super::super::figure::{Curve, Panel, Style, figure};
    use super::*;

    #[test]
    fn a_figure_is_one_element_and_nothing_of_its_texts_is_markup() {
        let points = vec![(0.0, 1.0), (1.0, 3.0)];
        let curve = Curve { label: "<script>\"a\"&\u{7}".into(), points, style: Style::Dots, color: 9 };
        let panel = Panel { title: "loss", curves: vec![curve], height: 100.0, floor: Floor::Data };
        let svg = document(&figure("a < b", &[panel], 400.0));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("<title>a &lt; b</title>") && svg.contains("&lt;script&gt;&quot;a&quot;&amp;\u{fffd}"));
        assert_eq!((svg.matches("<svg").count(), svg.matches("<script").count()), (1, 0));
        assert!(svg.contains("prefers-color-scheme:dark") && svg.contains("class=\"l1\""));
        let open = svg.matches('<').count() - svg.matches("</").count() - svg.matches("/>").count();
        assert_eq!(open, svg.matches("</").count(), "every tag is closed");
    }
}
