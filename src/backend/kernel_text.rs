//! What a shader or kernel file says about itself: one section per entry point, headed by a comment that both languages know.
//!
//! ```text
//! … helpers that every section sees …
//! // op rmsnorm_backward grid(N) block(256)
//! … the entry point of that name …
//! // op attention_backward__kv grid(ceil(T, 64), K) block(128)
//! … a stage of an op that takes several kernels; stages run in the order of the file …
//! ```
//! `grid(x, y, z)` counts workgroups (blocks); `block` and `shared` (bytes) are CUDA's. Expressions: integers, the u32 fields of
//! the op's params, names the backend adds (WGSL: `W`, elements per word), `+ - * /`, `ceil(a, b)`, `min(a, b)`, `max(a, b)`.
use std::collections::BTreeMap;

/// One entry point of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Section<'a> {
    /// `op` or `op__stage`.
    pub name: &'a str,
    pub grid: Vec<&'a str>,
    pub block: &'a str,
    pub shared: &'a str,
    pub text: &'a str,
}

impl Section<'_> {
    /// The op this entry point belongs to.
    pub fn op(&self) -> &str {
        self.name.split("__").next().expect("split gives at least one")
    }
}

const MARK: &str = "// op ";

/// What all sections share, and the sections.
pub fn parse(file: &str) -> Result<(&str, Vec<Section<'_>>), String> {
    let starts: Vec<usize> =
        file.match_indices(MARK).map(|(i, _)| i).filter(|i| *i == 0 || file.as_bytes()[i - 1] == b'\n').collect();
    let common = &file[..starts.first().copied().unwrap_or(file.len())];
    let ends = starts.iter().skip(1).copied().chain([file.len()]);
    let sections = starts.iter().zip(ends).map(|(start, end)| section(&file[*start..end]));
    Ok((common, sections.collect::<Result<_, _>>()?))
}

fn section(text: &str) -> Result<Section<'_>, String> {
    let head = text.lines().next().unwrap_or("");
    let rest = &head[MARK.len()..];
    let name = rest.split_whitespace().next().ok_or_else(|| format!("`{head}`: no name"))?;
    let grid = clause(rest, "grid").ok_or_else(|| format!("`{head}`: no grid(…)"))?;
    let block = clause(rest, "block").unwrap_or("1");
    Ok(Section { name, grid: split(grid), block, shared: clause(rest, "shared").unwrap_or("0"), text })
}

/// What stands in the parentheses of ` word(…)`.
fn clause<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let start = text.find(&format!(" {word}("))? + word.len() + 2;
    let mut depth = 1;
    let end = text[start..].find(|c| {
        depth += (c == '(') as i32 - (c == ')') as i32;
        depth == 0
    })?;
    Some(&text[start..start + end])
}

/// Splits at the commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let outside = |c: char| {
        depth += (c == '(') as i32 - (c == ')') as i32;
        c == ',' && depth == 0
    };
    text.split(outside).map(str::trim).collect()
}

/// The names an expression may use.
pub type Names = BTreeMap<&'static str, u64>;

/// The u32 fields of an op's params by name.
pub fn names(fields: &[(&'static str, &'static str)], params: &[u8]) -> Names {
    let words = params.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    fields.iter().zip(words).filter(|((_, ty), _)| *ty == "u32").map(|((name, _), v)| (*name, v as u64)).collect()
}

/// An f32 field of an op's params.
pub fn float(fields: &[(&'static str, &'static str)], params: &[u8], name: &str) -> Option<f32> {
    let place = fields.iter().position(|(field, ty)| (*field, *ty) == (name, "f32"))?;
    params.chunks_exact(4).nth(place).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

/// The value of an expression.
pub fn eval(expr: &str, names: &Names) -> Result<u64, String> {
    let mut parser = Parser { rest: expr, names };
    let value = parser.sum()?;
    parser.space();
    if parser.rest.is_empty() { Ok(value) } else { Err(format!("`{expr}`: `{}` is not understood", parser.rest)) }
}

/// A section's workgroups in x, y and z; 0 where there is nothing to do.
pub fn grid(section: &Section, names: &Names) -> Result<[u64; 3], String> {
    let mut grid = [1; 3];
    for (side, expr) in grid.iter_mut().zip(&section.grid) {
        *side = eval(expr, names).map_err(|e| format!("the heading of {}: {e}", section.name))?;
    }
    Ok(grid)
}

/// The same for a shader: a grid that is wide and one-dimensional is folded (see `flat` in shaders/shared/common.wgsl).
pub fn folded_grid(section: &Section, names: &Names) -> Result<[u64; 3], String> {
    const WIDEST: u64 = 65_535;
    let wide = grid(section, names)?;
    let folds = section.grid.len() == 1 && wide[0] > WIDEST;
    Ok(if folds { [WIDEST, wide[0].div_ceil(WIDEST), 1] } else { wide })
}

struct Parser<'a> {
    rest: &'a str,
    names: &'a Names,
}

impl Parser<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }
    fn eat(&mut self, c: char) -> bool {
        self.space();
        self.rest.strip_prefix(c).map(|rest| self.rest = rest).is_some()
    }
    fn sum(&mut self) -> Result<u64, String> {
        let mut value = self.product()?;
        loop {
            if self.eat('+') {
                value += self.product()?;
            } else if self.eat('-') {
                value = value.checked_sub(self.product()?).ok_or("below zero")?;
            } else {
                return Ok(value);
            }
        }
    }
    fn product(&mut self) -> Result<u64, String> {
        let mut value = self.atom()?;
        loop {
            if self.eat('*') {
                value *= self.atom()?;
            } else if self.eat('/') {
                value = value.checked_div(self.atom()?).ok_or("division by zero")?;
            } else {
                return Ok(value);
            }
        }
    }
    fn atom(&mut self) -> Result<u64, String> {
        if self.eat('(') {
            let value = self.sum()?;
            return if self.eat(')') { Ok(value) } else { Err("`)` is missing".into()) };
        }
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if let Ok(number) = word.parse() {
            return Ok(number);
        }
        if self.eat('(') {
            let a = self.sum()?;
            let b = if self.eat(',') { self.sum()? } else { 1 };
            if !self.eat(')') {
                return Err("`)` is missing".into());
            }
            return match word {
                "ceil" => a.checked_add(b.max(1) - 1).and_then(|a| a.checked_div(b)).ok_or("division by zero".into()),
                "min" => Ok(a.min(b)),
                "max" => Ok(a.max(b)),
                _ => Err(format!("no function `{word}`")),
            };
        }
        self.names.get(word).copied().ok_or_else(|| format!("`{word}` is no u32 field of the params"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_their_clauses() {
        let file =
            "fn f() {}\n// op a grid(ceil(N*C/W, 256), H)\nA // op no\n// op b__x grid(N) block(128) shared(4*D)\nB\n";
        let (common, sections) = parse(file).unwrap();
        assert_eq!(common, "fn f() {}\n");
        assert_eq!(
            (sections[0].name, sections[0].grid.clone(), sections[0].block),
            ("a", vec!["ceil(N*C/W, 256)", "H"], "1")
        );
        assert_eq!((sections[1].op(), sections[1].block, sections[1].shared), ("b", "128", "4*D"));
        assert!(sections[1].text.ends_with("B\n"));
    }

    #[test]
    fn expressions() {
        let names = Names::from([("N", 5), ("C", 300)]);
        for (expr, want) in [("N*C/2", 750), ("ceil(N*C, 256)", 6), ("min(N, 3) + (C - 1) * 2", 601), ("max(1,N)", 5)] {
            assert_eq!(eval(expr, &names), Ok(want), "{expr}");
        }
        for wrong in ["M", "N +", "N / 0", "(N", "foo(N)", "N N"] {
            assert!(eval(wrong, &names).is_err(), "{wrong}");
        }
    }
}
