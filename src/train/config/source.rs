//! The keys as they were written: aliases resolved, overrides applied, each taken once by its canonical name.
use super::tree::{self, Node, Place, Value};
use crate::error::{Error, Result, distance};
use std::path::Path;

/// A key of the config, as its documentation and the search for misspellings see it.
pub struct Key {
    /// Canonical, with its table: `lora.r`.
    pub name: &'static str,
    /// Other spellings, at the top level.
    pub aliases: &'static [&'static str],
    pub doc: &'static [&'static str],
    /// As JSON; `None`: the key must be given.
    pub default: fn() -> Option<String>,
}

/// What a type reads itself from.
pub trait FromNode: Sized {
    /// What is wanted, to follow "must be".
    fn wanted() -> String;
    fn from_value(value: &Value) -> Option<Self>;
    /// The same for a type of several parts, which can be wrong by themselves: the error says which one is, and how.
    fn parts_of(value: &Value) -> Result<Option<Self>, (Place, String)> {
        Ok(Self::from_value(value))
    }
}

/// A rule for a value: the condition, and what is wanted, to follow "must be".
pub type Check<T> = (fn(&T) -> bool, &'static str);

/// One key as written.
struct Entry {
    key: &'static str,
    spelled: String,
    node: Node,
}

pub struct Source<'a> {
    file: &'a Path,
    entries: Vec<Entry>,
    /// Tables that were written, if only as a bare header.
    tables: Vec<&'static str>,
}

impl<'a> Source<'a> {
    /// Reads `file`, if there is one, then puts the overrides over it. `keys` are all there are, `tables` the names before their dots.
    pub fn read(
        file: Option<&'a Path>,
        overrides: &[String],
        keys: &[&'static [Key]],
        tables: &'static [&'static str],
    ) -> Result<Source<'a>> {
        let read = file.map(tree::read).transpose()?.unwrap_or_default();
        let file = file.unwrap_or(Path::new("the command line"));
        let mut source = Source { file, entries: Vec::new(), tables: Vec::new() };
        let written = flatten(read, tables, &mut source.tables);
        source.entries = source.resolve(written, keys)?;

        let mut given = Vec::new();
        for text in overrides {
            given.push(read_override(text)?);
        }
        source.drop_tables(&mut given, tables);
        let given = flatten(given, tables, &mut source.tables);
        for entry in source.resolve(given, keys)? {
            source.entries.retain(|e| e.key != entry.key);
            source.entries.push(entry);
        }
        Ok(source)
    }

    /// `lora=false` on the command line takes the file's table away.
    fn drop_tables(&mut self, given: &mut Vec<(String, Node)>, tables: &'static [&'static str]) {
        given.retain(|(key, node)| {
            let dropped = tables.contains(&key.as_str()) && matches!(node.value, Value::Bool(false));
            if dropped {
                self.tables.retain(|t| t != key);
                self.entries.retain(|e| e.key.split_once('.').is_none_or(|(table, _)| table != key));
            }
            !dropped
        });
    }

    /// Canonical names for what was written; unknown keys and a key given twice are errors.
    fn resolve(&self, written: Vec<(String, Node)>, keys: &[&'static [Key]]) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        for (spelled, node) in written {
            let Some((name, node)) = self.canonical(&spelled, node)? else { continue };
            let Some(key) = find(&name, keys) else { return Err(self.unknown(&spelled, &node, keys)) };
            if let Some(first) = entries.iter().find(|e| e.key == key.name) {
                let what = match first.spelled == spelled {
                    true => format!("`{spelled}` is given twice: keep one"),
                    false => format!("`{}` and `{spelled}` are the same key: keep one", first.spelled),
                };
                return Err(self.fail(&node.place, what));
            }
            // YAML's empty value and JSON's null: not given.
            if !matches!(node.value, Value::Null) {
                entries.push(Entry { key: key.name, spelled, node });
            }
        }
        Ok(entries)
    }

    /// `bf16 = true` says `dtype = "bfloat16"`, `fp16 = true` "float16"; `false` says nothing.
    fn canonical(&self, spelled: &str, node: Node) -> Result<Option<(String, Node)>> {
        let dtype = match spelled {
            "bf16" => "bfloat16",
            "fp16" => "float16",
            _ => return Ok(Some((spelled.to_string(), node))),
        };
        match node.value {
            Value::Bool(true) => {
                Ok(Some(("dtype".into(), Node { place: node.place, value: Value::Str(dtype.into()) })))
            }
            Value::Bool(false) | Value::Null => Ok(None),
            other => Err(self.fail(&node.place, format!("`{spelled}` must be true or false, got {other}"))),
        }
    }

    fn unknown(&self, spelled: &str, node: &Node, keys: &[&'static [Key]]) -> Error {
        let table = |k: &Key| k.name.split_once('.').is_some_and(|(table, _)| table == spelled);
        if keys.iter().flat_map(|k| k.iter()).any(table) {
            return self.fail(&node.place, format!("`{spelled}` must be a table, got {}", node.value));
        }
        let name = spelled.rsplit('.').next().unwrap_or(spelled);
        let every = keys.iter().flat_map(|k| k.iter()).flat_map(|k| std::iter::once(&k.name).chain(k.aliases));
        let close = every
            .map(|k| (distance(spelled, k).min(distance(name, k.rsplit('.').next().unwrap_or(k))), k))
            .filter(|(d, k)| *d <= 1 + k.len() / 4)
            .min_by_key(|(d, _)| *d);
        let hint = close.map_or(String::new(), |(_, k)| format!(" Did you mean `{k}`?"));
        let all = "`luthier train --help-config` lists them all";
        self.fail(&node.place, format!("there is no key `{spelled}`.{hint} ({all})"))
    }

    pub fn has_table(&self, table: &str) -> bool {
        let inside = |e: &Entry| e.key.split_once('.').is_some_and(|(t, _)| t == table);
        self.tables.contains(&table) || self.entries.iter().any(inside)
    }

    /// The key was written.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|e| e.key == key)
    }

    /// The value of `key`, or its default; `None` as default says that the key must be given.
    pub fn take<T: FromNode>(&self, key: &str, default: Option<T>, checks: &[Check<T>]) -> Result<T> {
        let Some(entry) = self.entries.iter().find(|e| e.key == key) else {
            return default
                .ok_or_else(|| Error::content(self.file, "", format!("`{key}` is missing: it must be given")));
        };
        let got = &entry.node.value;
        let must = |want: &str| self.fail(&entry.node.place, format!("`{}` must be {want}, got {got}", entry.spelled));
        let value =
            T::parts_of(got).map_err(|(place, what)| self.fail(&place, format!("`{}`{what}", entry.spelled)))?;
        let value = value.ok_or_else(|| must(&T::wanted()))?;
        match checks.iter().find(|(holds, _)| !holds(&value)) {
            Some((_, want)) => Err(must(want)),
            None => Ok(value),
        }
    }

    /// An error about `key`, placed where it was written.
    pub fn fail_at(&self, key: &str, what: impl Into<String>) -> Error {
        match self.entries.iter().find(|e| e.key == key) {
            Some(entry) => self.fail(&entry.node.place, what.into()),
            None => Error::content(self.file, "", what.into()),
        }
    }

    fn fail(&self, place: &Place, what: String) -> Error {
        match place {
            Place::Line(line) => Error::content(self.file, format!("line {line}"), what),
            Place::Override(text) => Error::Usage(format!("{text}: {what}")),
        }
    }
}

fn find(name: &str, keys: &[&'static [Key]]) -> Option<&'static Key> {
    keys.iter().flat_map(|k| k.iter()).find(|k| k.name == name || k.aliases.contains(&name))
}

/// `key=value`.
fn read_override(text: &str) -> Result<(String, Node)> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::Usage(format!("{text}: an override is key=value, as in learning_rate=1e-4")));
    };
    let place = Place::Override(text.to_string());
    Ok((key.trim().to_string(), tree::read_override(value.trim(), &place)))
}

/// A table as transformers' `optim_args` has it: `a=1, b=True`.
fn pairs(text: &str, place: &Place) -> Option<Vec<(String, Node)>> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let value = match value.trim() {
            "True" => "true",
            "False" => "false",
            value => value,
        };
        Some((key.trim().to_string(), tree::read_override(value, place)))
    };
    text.split(',').map(pair).collect()
}

/// `[lora] r = 8` becomes `lora.r = 8`; the known tables only, so that an unknown one is named as a whole.
fn flatten(
    written: Vec<(String, Node)>,
    tables: &'static [&'static str],
    seen: &mut Vec<&'static str>,
) -> Vec<(String, Node)> {
    let mut out = Vec::new();
    for (key, node) in written {
        let table = tables.iter().find(|t| **t == key);
        let value = match node.value {
            Value::Str(text) if table.is_some() => pairs(&text, &node.place).map_or(Value::Str(text), Value::Table),
            value => value,
        };
        match (table, value) {
            (Some(table), Value::Table(inner)) => {
                seen.push(table);
                out.extend(inner.into_iter().map(|(name, node)| (format!("{key}.{name}"), node)));
            }
            // `lora:` with nothing below it, or `lora: false`: no table.
            (Some(_), Value::Null | Value::Bool(false)) => {}
            (_, value) => out.push((key, Node { place: node.place, value })),
        }
    }
    out
}
