//! `org/name@revision`, told apart from a path that does not exist.
use crate::error::{Error, Result};
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// `org/name`
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.revision.as_str() {
            "main" => write!(f, "{}", self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

/// As the Hub allows: letters, digits, `-`, `_`, `.`; no dot or dash at the ends, none of them twice.
fn is_part(text: &str) -> bool {
    let edge = |c: char| c == '.' || c == '-';
    let allowed = |c: char| c.is_ascii_alphanumeric() || edge(c) || c == '_';
    let doubled = text.contains("..") || text.contains("--");
    (1..=96).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !doubled
}

/// It becomes a path in the cache.
fn is_revision(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
    };
    text.len() <= 200 && text.split('/').all(part)
}

impl Name {
    /// The name that a path which does not exist must be.
    pub fn parse(path: &Path) -> Result<Name> {
        let wrong = |what: &str| {
            let source = io::Error::new(ErrorKind::NotFound, what);
            Err(Error::Read { file: path.to_path_buf(), source })
        };
        let folder = "no such folder, and no name on the Hub either: that would be `org/name` or `org/name@revision`";
        let Some(text) = path.to_str() else { return wrong(folder) };
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let Some((org, name)) = repo.split_once('/') else { return wrong(folder) };
        if !is_part(org) || !is_part(name) {
            return wrong(folder);
        }
        if !is_revision(revision) {
            return wrong("no such folder, and what follows `@` is no revision: a branch, a tag or a commit");
        }
        Ok(Name { repo: repo.to_string(), revision: revision.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        for (text, repo, revision) in [
            ("org/name", "org/name", "main"),
            ("Qwen/Qwen2.5-0.5B@v1.0", "Qwen/Qwen2.5-0.5B", "v1.0"),
            ("a/b_c@refs/pr/3", "a/b_c", "refs/pr/3"),
        ] {
            let name = Name::parse(text.as_ref()).unwrap();
            assert_eq!((name.repo.as_str(), name.revision.as_str()), (repo, revision));
        }
        for text in [
            "name",
            "./org/name",
            "../name",
            "/org/name",
            "a/b/c",
            "a/..",
            "a/.b",
            "a\\b",
            "~/x",
            "a/b@../c",
            "a/b@",
            "a/b@c//d",
            "a/b@c d",
            "",
            "a/",
            "C:/x",
        ] {
            let e = Name::parse(text.as_ref()).unwrap_err();
            assert!(e.exit_code() == 74 && e.to_string().contains("no such folder"), "{text}: {e}");
        }
    }
}
