//! Tensors larger than a shader sees at once: calls on them are made in parts, along a dim that all their large arguments begin
//! with, where what one of its rows becomes does not depend on another's place. A table's rows are looked up window after window.
use super::Wgpu;
use crate::backend::{Buf, Launch, dry};
use crate::error::Result;
use crate::ops::{Access, Op};

/// Files of ops that may be made in parts.
const BY_ROWS: [&str; 21] = [
    "activation",
    "adamw",
    "attention",
    "bias",
    "cast",
    "clamped_swiglu",
    "dora",
    "fill",
    "gguf",
    "int8",
    "layernorm",
    "lion",
    "logprob",
    "matmul",
    "nf4",
    "residual",
    "rmsnorm",
    "rope",
    "sgd",
    "swiglu",
    "expert_bias",
];
/// Parts begin at multiples of this many rows, and of as many blocks: views begin at whole words, and 16-bit rows in pairs.
const ROWS: usize = 64;

/// One call as several.
struct Parts {
    /// The dim's place among the params' fields, its size and that of a part.
    field: usize,
    size: usize,
    part: usize,
    /// Of each argument: elements per block and rows per block, or none where it is seen whole.
    strides: Vec<Option<(usize, usize)>>,
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

impl Parts {
    /// Along `dim`, with parts of which no argument shows more than `room` bytes.
    fn along(launch: &Launch, dim: &str, room: usize) -> Option<Parts> {
        let spec = launch.op().spec();
        let (values, extents) = launch.op().extents(launch.params());
        let size = values[spec.dims.iter().position(|d| *d == dim)?];
        let field = spec.fields.iter().position(|(name, _)| *name == dim)?;
        let (mut strides, mut part, mut round) = (Vec::new(), size, ROWS);
        for ((arg, extent), buf) in spec.args.iter().zip(&extents).zip(launch.args()) {
            let found = leading(arg.shape).filter(|(first, _)| *first == dim);
            let whole = found.is_none() && !matches!(arg.access, Access::Write | Access::Update);
            if times(arg.shape, dim) != usize::from(found.is_some()) || !(whole || found.is_some()) {
                return None;
            }
            let (Some((_, per)), Some(buf)) = (found, buf) else {
                strides.push(None);
                continue;
            };
            let stride = extent.elements() / extent.dims[0].max(1);
            strides.push(Some((stride, per)));
            part = part.min(room / (stride * buf.width).max(1) * per);
            round = round.max(ROWS * per);
        }
        part = part / round * round;
        (part > 0 && part < size).then_some(Parts { field, size, part, strides })
    }

    /// The calls, one after the other.
    fn each(&self, launch: &Launch, mut run: impl FnMut(&Launch) -> Result<()>) -> Result<()> {
        for first in (0..self.size).step_by(self.part) {
            let count = self.part.min(self.size - first);
            let mut params = launch.params().to_vec();
            params[4 * self.field..][..4].copy_from_slice(&(count as u32).to_ne_bytes());
            let view = |(buf, stride): (&Option<&Buf>, &Option<(usize, usize)>)| {
                buf.map(|buf| match stride {
                    Some((stride, per)) => buf.view(first / per * stride, count.div_ceil(*per) * stride),
                    None => buf.view(0, buf.len()),
                })
            };
            let views: Vec<Option<Buf>> = launch.args().iter().zip(&self.strides).map(view).collect();
            let args: Vec<Option<&Buf>> = views.iter().map(Option::as_ref).collect();
            run(&Launch::new(launch.op(), &args, &params)?)?;
        }
        Ok(())
    }
}

impl Wgpu {
    /// Bytes of a tensor that a shader surely sees, wherever it begins.
    pub(super) fn room(&self) -> usize {
        dry::Rules::room(&*self.rules)
    }

    /// Whether the call has been made in parts, because an argument is too large to be seen at once.
    pub(super) fn in_parts(&self, launch: &Launch, run: impl FnMut(&Launch) -> Result<()>) -> Result<bool> {
        let (spec, room) = (launch.op().spec(), self.room());
        let large = |buf: &&Buf| buf.bytes() > room;
        // a look-up's outputs are by rows, what its backward adds to a table is not
        let by_rows = BY_ROWS.contains(&spec.file) || launch.op() == Op::embedding_forward;
        if !by_rows || !launch.args().iter().flatten().any(large) {
            return Ok(false);
        }
        let Some(parts) = spec.dims.iter().find_map(|dim| Parts::along(launch, dim, room)) else { return Ok(false) };
        parts.each(launch, run)?;
        Ok(true)
    }

    /// For a look-up in a table that is too large, what is looked up where; otherwise none.
    pub(super) fn table_windows(&self, op: Op, launch: &Launch) -> Vec<Window> {
        let spec = op.spec();
        let table = spec.args.iter().position(|arg| op == Op::embedding_forward && arg.name == "weight");
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
