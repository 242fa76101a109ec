//! The keys as a page of Markdown: `docs/config.md` and `luthier train --help-config`.
use super::source::Key;
use std::fmt::Write;

const HEAD: &str = "# Config keys

A run is a TOML or YAML file. `key=value` after the file's name on the command line goes over it: `learning_rate=1e-4`,
`lora.r=32`, `lora=false`. Paths are relative to the working directory. An unknown key is an error.
";

/// `sections`: heading, introduction, keys.
pub fn page(sections: &[(&str, &str, &[Key])]) -> String {
    let mut out = HEAD.to_string();
    for (heading, about, keys) in sections {
        if !heading.is_empty() {
            let _ = write!(out, "\n## {heading}\n\n{about}\n");
        }
        keys.iter().for_each(|key| entry(&mut out, key));
    }
    out
}

fn entry(out: &mut String, key: &Key) {
    let name = key.name.rsplit('.').next().unwrap_or(key.name);
    let default = match (key.default)().as_deref() {
        None => "must be given".to_string(),
        Some("null") => "not given".to_string(),
        Some(json) => format!("default `{json}`"),
    };
    let _ = write!(out, "\n**`{name}`**, {default}");
    if !key.aliases.is_empty() {
        let also: Vec<String> = key.aliases.iter().map(|a| format!("`{a}`")).collect();
        let _ = write!(out, ", also {}", also.join(", "));
    }
    out.push_str("  \n");
    for line in key.doc {
        let _ = writeln!(out, "{}", line.trim());
    }
}
