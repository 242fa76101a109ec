//! What chat templates take for granted of Python and Jinja2, for minijinja: `str`, `repr`, `json.dumps`, string methods,
//! `strftime_now`, `raise_exception`; and limits, for a template is somebody else's program. They bound time and output; minijinja
//! bounds no value, so a template that doubles a text again and again can still take some GB before it ends.
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;
use std::fmt::Write;

/// Longest text that one filter may make.
const MAX_TEXT: usize = 16 << 20;
const MAX_INDENT: usize = 64;
/// Instructions of one rendering: some 80 ms. Real templates take about 1,000 and 900 for each message.
const FUEL: u64 = 2_000_000;
/// The day that `strftime_now` tells: a run must not depend on when it is made. It is the one that Llama 3.1's own
/// template falls back to: Friday, 26 July 2024.
const TODAY: &[(char, &str)] = &[
    ('a', "Fri"),
    ('A', "Friday"),
    ('b', "Jul"),
    ('B', "July"),
    ('d', "26"),
    ('e', "26"),
    ('j', "208"),
    ('m', "07"),
    ('w', "5"),
    ('y', "24"),
    ('Y', "2024"),
    ('F', "2024-07-26"),
    ('H', "00"),
    ('M', "00"),
    ('S', "00"),
    ('T', "00:00:00"),
    ('%', "%"),
];

/// An environment as transformers sets it up for chat templates.
pub fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_debug(false);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(100);
    env.set_formatter(print);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(method);
    for filter in ["format", "pprint", "attr"] {
        env.remove_filter(filter);
    }
    env.remove_global("debug");
    env.add_filter("tojson", tojson);
    env.add_filter("string", |v: Value| Ok::<_, Error>(str(&v)));
    env.add_filter("join", join);
    env.add_filter("replace", replace);
    env.add_filter("indent", indent);
    env.add_test("sequence", |v: Value| matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map));
    env.add_test("iterable", |v: Value| !v.is_none() && (v.kind() == ValueKind::String || v.try_iter().is_ok()));
    env.add_function("raise_exception", |what: String| -> Result<Value, Error> { Err(wrong(what)) });
    env.add_function("strftime_now", strftime_now);
    env
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

fn limited(bytes: usize) -> Result<(), Error> {
    if bytes <= MAX_TEXT {
        Ok(())
    } else {
        Err(wrong(format!("a text of {bytes} bytes is over the limit of {MAX_TEXT}")))
    }
}

/// `{{ value }}`.
fn print(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            out.write_str(&str(value)).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Python's `str(value)`.
fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => value.to_string(),
        _ => serde_json::to_value(value).map_or_else(|_| value.to_string(), |json| repr(&json)),
    }
}

/// Python's `str(value)` of what a file holds.
pub fn shown(value: &Json) -> String {
    value.as_str().map_or_else(|| repr(value), str::to_string)
}

/// Python's `repr(value)`.
fn repr(value: &Json) -> String {
    match value {
        Json::Null => "None".into(),
        Json::Bool(true) => "True".into(),
        Json::Bool(false) => "False".into(),
        Json::Number(n) => number(n),
        Json::String(s) => quoted(s),
        Json::Array(list) => format!("[{}]", list.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Json::Object(map) => {
            let entries: Vec<_> = map.iter().map(|(k, v)| format!("{}: {}", quoted(k), repr(v))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => write!(out, "\\x{:02x}", c as u32).expect("a String takes all"),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// Floats have the shortest digits that read back, with an exponent below 1e-4 and from 1e16.
fn number(n: &serde_json::Number) -> String {
    let Some(x) = n.as_f64().filter(|_| n.is_f64()) else { return n.to_string() };
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)`.
fn tojson(value: Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    if let Some(extra) = positional.first() {
        return Err(wrong(format!("tojson takes its options by name, got {extra}")));
    }
    kwargs.get::<Option<bool>>("ensure_ascii")?;
    let indent = kwargs.get::<Option<usize>>("indent")?;
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    if indent.is_some_and(|n| n > MAX_INDENT) {
        return Err(wrong(format!("tojson indents by at most {MAX_INDENT}")));
    }
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(wrong("tojson needs two separators")),
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let json = serde_json::to_value(&value).map_err(|e| wrong(format!("tojson: {e}")))?;
    let mut out = String::new();
    Dump { item, key, indent, sort_keys }.write(&json, 1, &mut out)?;
    Ok(out)
}

struct Dump {
    item: String,
    key: String,
    indent: Option<usize>,
    sort_keys: bool,
}

impl Dump {
    fn write(&self, value: &Json, depth: usize, out: &mut String) -> Result<(), Error> {
        limited(out.len())?;
        match value {
            Json::Number(n) => out.push_str(&number(n)),
            Json::Array(list) if !list.is_empty() => {
                self.list('[', ']', list.iter(), depth, out, |v, out| self.write(v, depth + 1, out))?
            }
            Json::Object(map) if !map.is_empty() => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|entry| entry.0);
                }
                self.list('{', '}', entries.into_iter(), depth, out, |(k, v), out| {
                    out.push_str(&Json::from(k.as_str()).to_string());
                    out.push_str(&self.key);
                    self.write(v, depth + 1, out)
                })?
            }
            simple => out.push_str(&simple.to_string()),
        }
        Ok(())
    }

    fn list<T>(
        &self,
        open: char,
        close: char,
        items: impl Iterator<Item = T>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            self.line(depth, out);
            write(item, out)?;
        }
        self.line(depth - 1, out);
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(width) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }
}

fn join(list: Value, separator: Option<String>) -> Result<String, Error> {
    let separator = separator.unwrap_or_default();
    let mut out = String::new();
    for (i, item) in list.try_iter()?.enumerate() {
        if i > 0 {
            out.push_str(&separator);
        }
        out.push_str(&str(&item));
        limited(out.len())?;
    }
    Ok(out)
}

fn replace(text: String, from: String, to: String, count: Option<usize>) -> Result<String, Error> {
    let found = text.matches(&from).count().min(count.unwrap_or(usize::MAX));
    limited(text.len() + found.saturating_mul(to.len()))?;
    Ok(text.replacen(&from, &to, found))
}

fn indent(
    text: String,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = width.or(kwargs.get("width")?).unwrap_or(Value::from(4));
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let space = match width.as_str() {
        Some(text) if text.len() <= MAX_INDENT => text.to_string(),
        _ => " ".repeat(width.as_usize().filter(|n| *n <= MAX_INDENT).ok_or_else(|| wrong("indent: bad width"))?),
    };
    limited(text.len() + (1 + text.matches('\n').count()) * space.len())?;
    let lines = text.split('\n').enumerate().map(|(i, line)| {
        let wanted = if i == 0 { first } else { blank || !line.is_empty() };
        if wanted { format!("{space}{line}") } else { line.to_string() }
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Python's methods; those that could make a text of any length go through the limited filters.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
    match (name, args) {
        ("format", _) => Err(wrong("str.format is not supported in chat templates; use ~")),
        ("join", [list]) => join(list.clone(), Some(text.into())).map(Value::from),
        ("replace", [from, to, rest @ ..]) => {
            let count = rest.first().and_then(Value::as_usize);
            replace(text.into(), from.to_string(), to.to_string(), count).map(Value::from)
        }
        ("removeprefix", [prefix]) => Ok(text.strip_prefix(prefix.as_str().unwrap_or("")).unwrap_or(text).into()),
        ("removesuffix", [suffix]) => Ok(text.strip_suffix(suffix.as_str().unwrap_or("")).unwrap_or(text).into()),
        _ => unknown_method_callback(state, value, name, args),
    }
}

fn strftime_now(format: String) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let code = chars.next().unwrap_or(' ');
        let known = TODAY.iter().find(|(c, _)| *c == code);
        out.push_str(known.ok_or_else(|| wrong(format!("strftime_now does not know %{code}")))?.1);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, json: Json) -> Result<String, Error> {
        environment().render_str(template, json)
    }

    #[test]
    fn values_print_as_in_python() {
        let json =
            serde_json::json!({"v": {"b": [1, 2.0, 1e20, 1.5e-7, null, true], "a": "it's \"\n"}, "u": "ü\u{1}</a>"});
        let cases = [
            ("{{ v }}", r#"{'b': [1, 2.0, 1e+20, 1.5e-07, None, True], 'a': 'it\'s "\n'}"#),
            ("{{ v | tojson }}", r#"{"b": [1, 2.0, 1e+20, 1.5e-07, null, true], "a": "it's \"\n"}"#),
            ("{{ v.b[:2] | tojson(indent=2) }}", "[\n  1,\n  2.0\n]"),
            (
                "{{ v | tojson(sort_keys=true, separators=(',', ':')) }}",
                r#"{"a":"it's \"\n","b":[1,2.0,1e+20,1.5e-07,null,true]}"#,
            ),
            ("{{ u | tojson }}", r#""ü\u0001</a>""#),
            ("{{ v.b[5] }} {{ v.b[4] }} {{ v.missing }}", "True None "),
            ("{{ 'a\nb\n\nc' | indent(2) }}", "a\n  b\n\n  c"),
            ("{{ ' x '.strip() ~ 'abc'.removeprefix('a') ~ 'a-b'.split('-')[-1] }}", "xbcb"),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{{ [1, 'a'] | join(', ') }} {{ 'aaa'.replace('a', 'b', 2) }}", "1, a bba"),
        ];
        for (template, want) in cases {
            assert_eq!(render(template, json.clone()).unwrap(), want, "{template}");
        }
    }

    #[test]
    fn greedy_templates_end_in_errors() {
        for template in [
            "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
            "{{ range(99999) | join('a' * 1000000) }}",
            "{{ 'a' | indent(10000000000) }}",
            "{{ [1] | tojson(indent=2000000000) }}",
            "{{ '%100000000000d' | format(1) }}",
            "{{ '{:>100000000000}'.format(1) }}",
            "{{ ''.__class__.__mro__ }}",
            "{% include '/etc/passwd' %}",
            "{% import 'x' as y %}",
            "{{ raise_exception('no') }}",
            "{{ 10 ** 1000 }}",
            "{{ 1 // 0 }}",
        ] {
            assert!(render(template, Json::Null).is_err(), "{template}");
        }
    }
}
