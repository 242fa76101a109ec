//! A figure as PNG on a light ground: lines and circles by tiny-skia, letters out of a font that the binary has in it.
use super::figure::{Anchor, Figure, Ink, Mark};
use super::svg::paint;
use crate::error::{Error, Result};
use tiny_skia::{Color, FillRule, LineJoin, Paint, Path, PathBuilder, Pixmap, Stroke, Transform};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

const FONT: &[u8] = include_bytes!("../../../assets/font/DejaVuSans-latin.ttf");
/// Pixels of the picture per pixel of the figure.
const SCALE: f32 = 2.0;

pub fn encode(figure: &Figure) -> Result<Vec<u8>> {
    let bug = |what: &str| Error::Bug(format!("a picture of {} x {}: {what}", figure.width, figure.height));
    let size = |x: f64| (x as f32 * SCALE).ceil() as u32;
    let mut pixmap = Pixmap::new(size(figure.width), size(figure.height)).ok_or_else(|| bug("no such size"))?;
    pixmap.fill(Color::WHITE);
    let face = Face::parse(FONT, 0).map_err(|e| bug(&e.to_string()))?;
    figure.marks.iter().for_each(|mark| draw(&mut pixmap, &face, mark));
    pixmap.encode_png().map_err(|e| bug(&e.to_string()))
}

fn draw(pixmap: &mut Pixmap, face: &Face, mark: &Mark) {
    let whole = Transform::from_scale(SCALE, SCALE);
    match mark {
        Mark::Line { points, width, ink } => {
            let stroke = Stroke { width: *width as f32, line_join: LineJoin::Round, ..Stroke::default() };
            if let Some(path) = polyline(points) {
                pixmap.stroke_path(&path, &color(*ink), &stroke, whole, None);
            }
        }
        Mark::Dot { at: (x, y), radius, ink } => {
            if let Some(path) = PathBuilder::from_circle(*x as f32, *y as f32, *radius as f32) {
                pixmap.fill_path(&path, &color(*ink), FillRule::Winding, whole, None);
            }
        }
        Mark::Text { at, text, size, anchor, ink } => {
            if let Some(path) = letters(face, *at, text, *size as f32, *anchor) {
                pixmap.fill_path(&path, &color(*ink), FillRule::Winding, whole, None);
            }
        }
    }
}

fn color(ink: Ink) -> Paint<'static> {
    let found = paint(ink);
    let [_, r, g, b] = found.light.to_be_bytes();
    let mut paint = Paint::default();
    paint.set_color_rgba8(r, g, b, (found.opacity * 255.0) as u8);
    paint
}

fn polyline(points: &[(f64, f64)]) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for (i, (x, y)) in points.iter().enumerate() {
        match i {
            0 => builder.move_to(*x as f32, *y as f32),
            _ => builder.line_to(*x as f32, *y as f32),
        }
    }
    builder.finish()
}

/// The outlines of a text; a letter that the font lacks is a box.
fn letters(face: &Face, at: (f64, f64), text: &str, size: f32, anchor: Anchor) -> Option<Path> {
    let scale = size / f32::from(face.units_per_em());
    let glyphs: Vec<GlyphId> = text.chars().map(|c| face.glyph_index(c).unwrap_or_default()).collect();
    let advance = |glyph: &GlyphId| f32::from(face.glyph_hor_advance(*glyph).unwrap_or(0)) * scale;
    let width: f32 = glyphs.iter().map(advance).sum();
    let left = match anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => width / 2.0,
        Anchor::End => width,
    };
    let mut pen = Pen { path: PathBuilder::new(), x: at.0 as f32 - left, y: at.1 as f32, scale };
    for glyph in &glyphs {
        // a space has no outline
        let _: Option<ttf_parser::Rect> = face.outline_glyph(*glyph, &mut pen);
        pen.x += advance(glyph);
    }
    pen.path.finish()
}

/// From a font's units, y up, to the figure's pixels, y down.
struct Pen {
    path: PathBuilder,
    x: f32,
    y: f32,
    scale: f32,
}

impl Pen {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, self.y - y * self.scale)
    }
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }
    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }
    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }
    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }
    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_letters_are_where_they_belong() {
        let line = Mark::Line { points: vec![(0.0, 10.0), (40.0, 10.0)], width: 4.0, ink: Ink::Color(0) };
        let text = |at, anchor| Mark::Text { at, text: "lll ".into(), size: 12.0, anchor, ink: Ink::Text };
        let marks = vec![line, text((60.0, 40.0), Anchor::Start), text((60.0, 80.0), Anchor::End)];
        let png = encode(&Figure { title: String::new(), width: 100.0, height: 90.0, marks }).unwrap();
        let picture = Pixmap::decode_png(&png).unwrap();
        assert_eq!((picture.width(), picture.height()), (200, 180));
        let dark = |x: std::ops::Range<u32>, y: std::ops::Range<u32>| {
            let inked = |(x, y)| picture.pixel(x, y).is_some_and(|p| p.red() < 128);
            x.flat_map(|x| y.clone().map(move |y| (x, y))).filter(|at| inked(*at)).count()
        };
        assert_eq!(dark(10..70, 16..24), 60 * 8, "the line is full");
        assert_eq!(dark(10..70, 25..60), 0);
        assert!(dark(120..160, 50..90) > 20 && dark(0..119, 50..90) == 0, "text that starts there");
        assert!(dark(80..120, 130..170) > 20 && dark(121..200, 130..170) == 0, "text that ends there");
    }

    #[test]
    fn the_font_has_what_axes_say() {
        let face = Face::parse(FONT, 0).unwrap();
        let missing: String = (' '..='~').filter(|c| face.glyph_index(*c).is_none()).collect();
        assert_eq!(missing, "");
    }
}
