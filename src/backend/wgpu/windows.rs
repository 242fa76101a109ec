//! Tensors larger than a shader sees at once: calls on them are made in parts, along a dim that a large argument begins with, where
//! what one of its rows becomes does not depend on another's place. A product's other arguments may have that dim as columns, and
//! along the dim that it sums over, later parts add to the first one's sum, which is stored between them. A table's rows are looked
//! up, or added to, window after window.
use super::Wgpu;
use super::rules::Rules;
use crate::backend::{Buf, Launch, dry};
use crate::error::Result;
use crate::ops::{Access, Arg, Op};

/// Files of ops that may be made in parts.
const BY_ROWS: [&str; 25] = [
    "activation",
    "adamw",
    "attention",
    "bias",
    "cast",
    "clamped_swiglu",
    "dora",
    "dyn8",
    "fill",
    "fp8",
    "gguf",
    "gradnorm",
    "int8",
    "layernorm",
    "lion",
    "logprob",
    "matmul",
    "mxfp4",
    "nf4",
    "residual",
    "rmsnorm",
    "rope",
    "sgd",
    "swiglu",
    "expert_bias",
];
/// Parts begin at multiples of this many rows, and of as many blocks of bytes: views begin at whole words, and 16-bit rows in pairs.
const ROWS: usize = 64;

/// One call as several.
struct Parts {
    /// The dim's place among the params' fields, its size and that of a part.
    field: usize,
    size: usize,
    part: usize,
    /// Of each argument.
    seen: Vec<Seen>,
}

/// What a part sees of an argument.
enum Seen {
    Whole,
    /// Elements per block and rows per block.
    Rows(usize, usize),
    Columns,
}

/// A part of a table.
pub(super) struct Window {
    /// Of the table among the arguments.
    pub place: usize,
    /// The first, and how many.
    pub rows: (u32, u32),
    pub table: Buf,
}

/// The dim that a shape begins with and how many of its rows an entry stands for: `N, C` one, `ceil(P, 64)` 64.
fn leading(shape: &str) -> Option<(&str, usize)> {
    let shape = shape.trim_matches(['[', ']']).trim();
    if let Some((dim, rest)) = shape.strip_prefix("ceil(").and_then(|rest| rest.split_once(',')) {
        let (per, rest) = rest.split_once(')')?;
        return rest.is_empty().then_some((dim.trim(), per.trim().parse().ok()?));
    }
    Some((shape.split([',', ';']).next()?.trim(), 1))
}

/// How often a shape has a dim, strides not counted.
fn times(shape: &str, dim: &str) -> usize {
    let shape = shape.split(';').next().unwrap_or("");
    shape.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| *word == dim).count()
}

/// Whether a shape is rows of `dim` columns and a stride of their own: `[I, J; ld_out]` for J.
fn has_columns(shape: &str, dim: &str) -> bool {
    let Some((dims, _)) = shape.trim_matches(['[', ']']).split_once(';') else { return false };
    dims.split_once(',').is_some_and(|(_, columns)| columns.trim() == dim)
}

/// The product that adds to what the first part of this one has written.
fn adding(op: Op) -> Option<Op> {
    match op {
        Op::matmul_nt => Some(Op::matmul_nt_add),
        Op::matmul_nn => Some(Op::matmul_nn_add),
        Op::matmul_tn => Some(Op::matmul_tn_add),
        _ => None,
    }
}

impl Parts {
    /// Along `dim`, with parts of which no argument that begins with it shows more than `room` bytes.
    fn along(launch: &Launch, dim: &str, room: usize) -> Option<Parts> {
        let spec = launch.op().spec();
        let (values, extents) = launch.op().extents(launch.params());
        let size = values[spec.dims.iter().position(|d| *d == dim)?];
        let field = spec.fields.iter().position(|(name, _)| *name == dim)?;
        let (mut seen, mut part, mut round) = (Vec::new(), size, ROWS);
        for ((arg, extent), buf) in spec.args.iter().zip(&extents).zip(launch.args()) {
            let per = leading(arg.shape).filter(|(first, _)| *first == dim).map(|(_, per)| per);
            let columns = spec.file == "matmul" && has_columns(arg.shape, dim);
            if times(arg.shape, dim) != usize::from(per.is_some() || columns) {
                return None;
            }
            seen.push(match (per, buf) {
                (Some(per), Some(buf)) => {
                    let stride = extent.elements() / extent.dims[0].max(1);
                    part = part.min(room / (stride * buf.width).max(1) * per);
                    round = round.max(if buf.width < 4 { ROWS * per } else { per });
                    Seen::Rows(stride, per)
                }
                (None, _) if columns => Seen::Columns,
                (None, _) if arg.access == Access::Update => return None,
                (None, _) if arg.access == Access::Write && adding(launch.op()).is_none() => return None,
                _ => Seen::Whole,
            });
        }
        if part == size {
            return None;
        }
        part = part / round * round;
        (part > 0).then_some(Parts { field, size, part, seen })
    }

    /// The calls, one after the other.
    fn each(&self, launch: &Launch, mut run: impl FnMut(&Launch) -> Result<()>) -> Result<()> {
        let whole_write = |(arg, seen): (&Arg, &Seen)| arg.access == Access::Write && matches!(seen, Seen::Whole);
        let sums = launch.op().spec().args.iter().zip(&self.seen).any(whole_write);
        for first in (0..self.size).step_by(self.part) {
            let count = self.part.min(self.size - first);
            let mut params = launch.params().to_vec();
            params[4 * self.field..][..4].copy_from_slice(&(count as u32).to_ne_bytes());
            let view = |(buf, seen): (&Option<&Buf>, &Seen)| {
                buf.map(|buf| {
                    let (start, len) = match seen {
                        Seen::Whole => (0, buf.len()),
                        Seen::Rows(stride, per) => (first / per * stride, count.div_ceil(*per) * stride),
                        Seen::Columns => (first, buf.len()),
                    };
                    // columns end with their last row
                    buf.view(start, len.min(buf.len() - start))
                })
            };
            let views: Vec<Option<Buf>> = launch.args().iter().zip(&self.seen).map(view).collect();
            let args: Vec<Option<&Buf>> = views.iter().map(Option::as_ref).collect();
            let op = if sums && first > 0 { adding(launch.op()) } else { None }.unwrap_or(launch.op());
            run(&Launch::of_columns(op, &args, &params)?)?;
        }
        Ok(())
    }
}

/// The argument that an op has the rows of by id.
fn table(op: Op) -> Option<&'static str> {
    match op {
        Op::embedding_forward | Op::rows_gather => Some("weight"),
        Op::embedding_backward => Some("dweight"),
        _ => None,
    }
}

impl Rules {
    /// Whether the call has been made in parts by `run`, because an argument is too large to be seen at once.
    pub(super) fn in_parts(&self, launch: &Launch, run: impl FnMut(&Launch) -> Result<()>) -> Result<bool> {
        let (spec, room) = (launch.op().spec(), dry::Rules::room(self));
        let large = |buf: &&Buf| buf.bytes() > room;
        // a look-up's outputs are by rows, what its backward adds to a table is not
        let by_rows = BY_ROWS.contains(&spec.file) || table(launch.op()) == Some("weight");
        if !by_rows || !launch.args().iter().flatten().any(large) {
            return Ok(false);
        }
        let Some(parts) = spec.dims.iter().find_map(|dim| Parts::along(launch, dim, room)) else { return Ok(false) };
        parts.each(launch, run)?;
        Ok(true)
    }
}

impl Wgpu {
    /// Bytes of a tensor that a shader surely sees, wherever it begins.
    pub(super) fn room(&self) -> usize {
        dry::Rules::room(&*self.rules)
    }

    /// For a look-up in a table that is too large, or a sum into one, its windows; otherwise none.
    pub(super) fn table_windows(&self, op: Op, launch: &Launch) -> Vec<Window> {
        let spec = op.spec();
        let table = spec.args.iter().position(|arg| table(op) == Some(arg.name));
        let found = table.and_then(|place| Some((place, launch.args()[place]?)));
        let Some((place, table)) = found.filter(|(_, table)| table.bytes() > self.room()) else { return Vec::new() };
        let stride = op.extents(launch.params()).1[place].row().1;
        let rows = table.len() / stride.max(1);
        // whole words; a row that is larger than a window stays an error
        let at_once = (self.room() / (stride * table.width) / ROWS * ROWS).max(ROWS);
        let window = |first: usize| {
            let count = at_once.min(rows - first);
            Window { place, rows: (first as u32, count as u32), table: table.view(first * stride, count * stride) }
        };
        (0..rows).step_by(at_once).map(window).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_say_what_they_begin_with() {
        assert_eq!(leading("[N, C]"), Some(("N", 1)));
        assert_eq!(leading("[I, Q; ld_a]"), Some(("I", 1)));
        assert_eq!(leading("[ceil(P, 64)]"), Some(("P", 64)));
        assert_eq!(leading("[N*S, C]").unwrap().0, "N*S");
        assert!(has_columns("[Q, I; ld_a]", "I") && !has_columns("[Q, I; ld_a]", "Q") && !has_columns("[Q, I]", "I"));
        assert_eq!((times("[N*S, C]", "S"), times("[R, R]", "R"), times("[N, C; ld_S]", "ld_S")), (1, 2, 0));
        for op in Op::ALL {
            for arg in op.spec().args {
                assert!(
                    leading(arg.shape).is_some() || arg.shape.contains("ceil"),
                    "{}: {}",
                    op.spec().name,
                    arg.shape
                );
            }
        }
    }
}
