//! The preprocessor of the shaders: loops unrolled and variants chosen in the text, so that every driver sees registers
//! where we mean registers.
//!
//! ```text
//! #for i 0 RM     repeats its body with $i = 0, 1, … RM − 1
//! #if W - 1       keeps its body when the expression is not 0
//! #end            closes either
//! ```
//! Expressions are those of `kernel_text`, over the constants of the variant.
use crate::backend::kernel_text::{Names, eval};

/// `text` without directives.
pub fn expand(text: &str, names: &Names) -> Result<String, String> {
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
                    out += &expand(&body.replace(&format!("${var}"), &value.to_string()), names)?;
                }
                at = end;
            }
            ["#if", condition @ ..] => {
                let end = end_of(&lines, at)?;
                if eval(&condition.join(" "), names)? != 0 {
                    out += &expand(&lines[at + 1..end].join("\n"), names)?;
                }
                at = end;
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
            Some("#for" | "#if") => depth += 1,
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
    fn loops_nest_and_conditions_choose() {
        let names = Names::from([("R", 2), ("W", 1)]);
        let text = "a\n#for i 0 R\n  #for j $i R\n  c$i$j\n  #end\n#end\n#if W - 1\nno\n#end\n#if W\nyes\n#end\n";
        assert_eq!(expand(text, &names).unwrap(), "a\n  c00\n  c01\n  c11\nyes\n");
        for wrong in ["#for i 0 R\n", "#end\n", "#if X\n#end\n", "#else\n"] {
            assert!(expand(wrong, &names).is_err(), "{wrong}");
        }
    }
}
