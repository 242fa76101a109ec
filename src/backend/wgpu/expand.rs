//! The preprocessor of the shaders: loops unrolled and variants chosen in the text, so that every driver sees registers
//! where we mean registers.
//!
//! ```text
//! #for i 0 RM     repeats its body with $i = 0, 1, … RM − 1
//! #if W - 1       keeps its body when the expression is not 0
//! #part name x y  keeps its body for `#use name one two`, which puts it there with $x = one, $y = two
//! #end            closes any of them
//! #include tile   puts shaders/shared/tile.wgsl there
//! ```
//! Expressions are those of `kernel_text`, over the constants of the variant. A part is declared before it is used.
use crate::backend::kernel_text::{Names, eval};
use std::collections::BTreeMap;

/// `text` without directives.
pub fn expand(text: &str, names: &Names) -> Result<String, String> {
    expand_with(text, names, &mut BTreeMap::new())
}

/// What files may include.
fn shared(name: &str) -> Option<&'static str> {
    match name {
        "tile" => Some(include_str!("../../../shaders/shared/tile.wgsl")),
        _ => None,
    }
}

/// What stands under the name of a part.
#[derive(Clone)]
struct Part {
    holes: Vec<String>,
    body: String,
}

impl Part {
    fn filled(&self, with: &[&str]) -> Option<String> {
        let holes = self.holes.iter().zip(with);
        let body = holes.fold(self.body.clone(), |body, (hole, value)| body.replace(&format!("${hole}"), value));
        (self.holes.len() == with.len()).then_some(body)
    }
}

fn expand_with(text: &str, names: &Names, parts: &mut BTreeMap<String, Part>) -> Result<String, String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < lines.len() {
        let words: Vec<&str> = lines[at].split_whitespace().collect();
        match words.as_slice() {
            ["#for", var, from, to] => {
                let end = end_of(&lines, at)?;
                let body = lines[at + 1..end].join("\n");
                for value in eval(from, names)?..eval(to, names)? {
                    out += &expand_with(&body.replace(&format!("${var}"), &value.to_string()), names, parts)?;
                }
                at = end;
            }
            ["#if", condition @ ..] => {
                let end = end_of(&lines, at)?;
                if eval(&condition.join(" "), names)? != 0 {
                    out += &expand_with(&lines[at + 1..end].join("\n"), names, parts)?;
                }
                at = end;
            }
            ["#include", name] => {
                let text = shared(name).ok_or_else(|| format!("`{}`: no such file", lines[at].trim()))?;
                out += &expand_with(text, names, parts)?;
            }
            ["#part", name, holes @ ..] => {
                let end = end_of(&lines, at)?;
                let holes = holes.iter().map(|hole| hole.to_string()).collect();
                parts.insert(name.to_string(), Part { holes, body: lines[at + 1..end].join("\n") });
                at = end;
            }
            ["#use", name, with @ ..] => {
                let filled = parts.get(*name).and_then(|part| part.filled(with));
                let body = filled.ok_or_else(|| format!("`{}`: no such part", lines[at].trim()))?;
                out += &expand_with(&body, names, parts)?;
            }
            [word, ..] if word.starts_with('#') => {
                return Err(format!("`{}` is no directive, or out of place", lines[at]));
            }
            _ => {
                out += lines[at];
                out.push('\n');
            }
        }
        at += 1;
    }
    Ok(out)
}

/// The line of the `#end` that closes the directive at `start`.
fn end_of(lines: &[&str], start: usize) -> Result<usize, String> {
    let mut depth = 0;
    for (i, line) in lines.iter().enumerate().skip(start) {
        match line.split_whitespace().next() {
            Some("#for" | "#if" | "#part") => depth += 1,
            Some("#end") => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(i);
        }
    }
    Err(format!("`{}` has no #end", lines[start].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_put_where_they_are_used() {
        let names = Names::from([("R", 2)]);
        let text = "#part sum x by\n#for i 0 R\n  $x$i += $by;\n#end\n#end\nf\n#use sum a b$i\n#for i 0 1\n#use sum c d$i\n#end\n";
        assert_eq!(expand(text, &names).unwrap(), "f\n  a0 += b0;\n  a1 += b1;\n  c0 += d0;\n  c1 += d0;\n");
        for wrong in ["#use sum a b\n", "#include no\n", "#part sum x\n#end\n#use sum\n", "#part sum\n"] {
            assert!(expand(wrong, &names).is_err(), "{wrong}");
        }
    }

    #[test]
    fn loops_nest_and_conditions_choose() {
        let names = Names::from([("R", 2), ("W", 1)]);
        let text = "a\n#for i 0 R\n  #for j $i R\n  c$i$j\n  #end\n#end\n#if W - 1\nno\n#end\n#if W\nyes\n#end\n";
        assert_eq!(expand(text, &names).unwrap(), "a\n  c00\n  c01\n  c11\nyes\n");
        for wrong in ["#for i 0 R\n", "#end\n", "#if X\n#end\n", "#else\n"] {
            assert!(expand(wrong, &names).is_err(), "{wrong}");
        }
    }
}
