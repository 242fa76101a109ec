//! Hundreds of broken inputs: each ends, within its time, in an error that names the file and where in it, or in a result; never
//! in a panic. They are generated: kinds of damage x places, and seeded mutations of sound files.
use luthier::data::tokenizer::TemplateText;
use luthier::data::{self, Chat, DataOptions, Source, Template, Tokenizer};
use luthier::error::{Error, Result};
use luthier::rng::Rng;
use luthier::train::config;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;

#[path = "hostile/common.rs"]
mod common;
use common::{ends, wounded};

fn base() -> Arc<Tokenizer> {
    static BASE: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    BASE.get_or_init(|| Arc::new(Tokenizer::load("assets/base".as_ref()).unwrap())).clone()
}

/// Loads one data file. The error's text; None: it is sound.
fn load(dir: &TempDir, name: &str, bytes: &[u8], pretrain: bool) -> Option<String> {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let sources = vec![Source::new(path.to_str().unwrap())];
    let opts = DataOptions { sources, max_length: 64, pretrain, ..Default::default() };
    let tokenizer = base();
    let error = ends(name, move || data::load(&opts, &tokenizer).err())?;
    assert!(matches!(error, Error::Content { .. }), "{name}: {error:?}");
    assert_eq!(error.exit_code(), 65);
    let text = error.to_string();
    assert!(text.contains(name) && text.len() < 2000 && !text.contains('\u{1b}'), "{name}: {text}");
    Some(text)
}

/// What is wrong with a record, and what the message must say of it.
fn bad_records() -> Vec<(Vec<u8>, &'static str)> {
    let deep = "[".repeat(100_000);
    let text = |s: &str| s.as_bytes().to_vec();
    vec![
        (text("{\"text\": "), "bad JSON"),
        (text("{'text': 'x'}"), "bad JSON"),
        (text("{\"text\": \"x\",}"), "bad JSON"),
        (text("{\"text\": NaN}"), "bad JSON"),
        (text("{\"text\": 01}"), "bad JSON"),
        (text("{\"text\": \"\\ud800\"}"), "bad JSON"),
        (text("{\"text\": \"\\q\"}"), "bad JSON"),
        (text("{\"text\": \"\u{1}\"}"), "bad JSON"),
        (format!("{{\"text\": {deep}}}").into_bytes(), "bad JSON"),
        (b"{\"text\": \"\xFF\xFE\"}".to_vec(), "must be UTF-8"),
        (text("7"), "must be a JSON object, got a number"),
        (text("null"), "must be a JSON object, got null"),
        (text("\"text\""), "must be a JSON object, got a text"),
        (text("{}"), "must have `messages`"),
        (text("{\"Text\": \"x\"}"), "has only Text"),
        (text("{\"text\": []}"), "`text` must be a text, got a list"),
        (text("{\"text\": \"\"}"), "`text` is empty"),
        (text("{\"prompt\": \"x\", \"completion\": 4}"), "`completion` must be a text, got a number"),
        (text("{\"messages\": 7}"), "`messages` must be a list, got a number"),
        (text("{\"messages\": []}"), "`messages` is empty"),
        (text("{\"messages\": [null]}"), "`messages[0]` must be an object, got null"),
        (text("{\"messages\": [{\"role\": \"assistant\"}]}"), "`messages[0]` has no `content`"),
        (text("{\"messages\": [{\"role\": \"\\u001b[2J\", \"content\": \"x\"}]}"), "must be one of"),
        (
            text("{\"messages\": [{\"role\": \"assistant\", \"content\": {\"text\": \"x\"}}]}"),
            "must be a text, got an object",
        ),
        (text("{\"messages\": [{\"role\": \"assistant\", \"content\": \"\u{FDD0}\"}]}"), "which Unicode reserves"),
        (text("{\"conversations\": [{\"from\": \"gpt\"}]}"), "`conversations[0]` has no `value`"),
        (text("{\"instruction\": \"x\", \"output\": null}"), "has only instruction"),
        (text("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": {}}"), "`tools` must be a list"),
    ]
}

const GOOD: &[u8] =
    b"{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";

#[test]
fn json_lines() {
    let dir = tempfile::tempdir().unwrap();
    let mut n = 0;
    for (bad, want) in bad_records() {
        for place in [0, 3, 6] {
            let mut rows = vec![GOOD.to_vec(); 7];
            rows[place] = bad.clone();
            let name = format!("{n}.jsonl");
            let got = load(&dir, &name, &rows.join(&b'\n'), false).unwrap_or_else(|| panic!("{want}: was taken"));
            assert!(got.contains(&format!("{name}: line {}: ", place + 1)) && got.contains(want), "{want}: {got}");
            n += 1;
        }
    }
    assert_eq!(
        load(&dir, "good.jsonl", &[GOOD, b"\n\n ", GOOD, b"\r\n\xE2\x80\xA8"].concat()[..GOOD.len()], false),
        None
    );
    let mut rng = Rng::new(1);
    for i in 0..150 {
        load(&dir, &format!("m{i}.jsonl"), &wounded(&[GOOD, b"\n", GOOD, b"\n", GOOD].concat(), &mut rng), false);
    }
}

#[test]
fn json_arrays() {
    let dir = tempfile::tempdir().unwrap();
    for (n, (bad, want)) in bad_records().into_iter().enumerate() {
        for place in [0, 3] {
            let mut rows = vec![GOOD.to_vec(); 4];
            rows[place] = bad.clone();
            let name = format!("{n}-{place}.json");
            let file = [b"[\n".to_vec(), rows.join(&b",\n"[..]), b"\n]".to_vec()].concat();
            let got = load(&dir, &name, &file, false).unwrap_or_else(|| panic!("{want}: was taken"));
            // a broken literal may only be noticed by what follows it
            let lines = [place + 2, place + 3].map(|line| got.contains(&format!("{name}: line {line}: ")));
            assert!(lines.contains(&true) && (got.contains(want) || got.contains("bad JSON")), "{want}: {got}");
        }
    }
    for (i, file) in
        ["[", "[]", "[}", "[{}", "[1, 2]", "[[[]]]", "[{} {}]", "[{}] x", "[,]", "\u{FEFF}["].iter().enumerate()
    {
        assert!(load(&dir, &format!("a{i}.json"), file.as_bytes(), false).is_some(), "{file}");
    }
    let deep = load(&dir, "deep.json", "[".repeat(1 << 20).as_bytes(), false).unwrap();
    assert!(deep.contains("deep.json: line 1: bad JSON"), "{deep}");
    let mut rng = Rng::new(2);
    for i in 0..100 {
        load(&dir, &format!("m{i}.json"), &wounded(&[b"[", GOOD, b",\n", GOOD, b"]"].concat(), &mut rng), false);
    }
}

#[test]
fn tables() {
    let dir = tempfile::tempdir().unwrap();
    let good = "instruction,output\n\"q\n1\",a\nq,a\nq,a\n";
    assert_eq!(load(&dir, "good.csv", good.as_bytes(), false), None);
    let open = format!("instruction,output\n\"{}", "x".repeat(17 << 20));
    let cases: [(&str, &[u8], &str); 14] = [
        ("a.csv", b"", "has no record"),
        ("b.csv", b"instruction,output\n", "has no record"),
        ("c.csv", b"text\nx\n\ny\n\"\"\n", "line 5: must have `messages`"),
        (
            "d.csv",
            b"instruction,output\n\"q\n1\",a\nq,a,b\n",
            "line 4: has 3 cells where the first line names 2 columns",
        ),
        ("e.csv", b"instruction,output\nq\n", "line 2: has 1 cells"),
        ("f.csv", b"text,text\na,b\n", "line 1: names the column \"text\" twice"),
        ("g.csv", b"instruction,output\nq,a\nq,\xFF\n", "line 3: must be UTF-8, is not in cell 2"),
        ("h.csv", b"te\xFFxt\nx\n", "line 1: must be UTF-8"),
        ("i.csv", b"instruction,output\nq,a\nq,\nq,a\n", "line 3: must have `messages`"),
        ("j.csv", b"messages\n[1\n", "line 2: `messages` holds bad JSON"),
        ("k.csv", b"messages\nhello\n", "line 2: `messages` must be a list, got a text"),
        ("l.tsv", b"instruction,output\nq,a\n", "line 2: must have `messages`"),
        ("m.csv", open.as_bytes(), "line 2: has more than 16777216 bytes; is a quote left open?"),
        ("n.csv", b"PK\x03\x04 a spreadsheet", "a spreadsheet"),
    ];
    for (name, bytes, want) in cases {
        let got = load(&dir, name, bytes, false).unwrap_or_else(|| panic!("{name} was taken"));
        assert!(got.contains(&format!("{name}: ")) && got.contains(want), "{name}: {got}");
    }
    let mut rng = Rng::new(3);
    for i in 0..100 {
        load(&dir, &format!("m{i}.csv"), &wounded(good.as_bytes(), &mut rng), false);
    }
}

#[test]
fn parquet_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(4);
    let mut refused = 0;
    for name in ["snappy", "sharegpt_gzip", "alpaca_lz4", "completion_v2", "json_text"] {
        let bytes = std::fs::read(format!("tests/golden/data/{name}.parquet")).unwrap();
        assert_eq!(load(&dir, &format!("{name}.parquet"), &bytes, false), None);
        for i in 0..40 {
            refused +=
                usize::from(load(&dir, &format!("{name}-{i}.parquet"), &wounded(&bytes, &mut rng), false).is_some());
        }
        // the footer holds the schema, sizes and offsets: wounds there are the worst
        let footer = bytes.len() - 8 - u32::from_le_bytes(bytes[bytes.len() - 8..][..4].try_into().unwrap()) as usize;
        for i in 0..40 {
            let wound = [bytes[..footer].to_vec(), wounded(&bytes[footer..], &mut rng)].concat();
            refused += usize::from(load(&dir, &format!("{name}-f{i}.parquet"), &wound, false).is_some());
        }
        for keep in [4, 8, 12, bytes.len() / 2, bytes.len() - 1] {
            assert!(load(&dir, &format!("{name}-{keep}.parquet"), &bytes[..keep], false).is_some());
        }
    }
    assert!(refused > 200, "{refused} of 400 were refused");
    for (i, bytes) in
        [&b"PAR1"[..], b"PAR1PAR1", b"PAR1\xFF\xFF\xFF\xFFPAR1", b"PAR1\0\0\0\0PAR1", b"text", b""].iter().enumerate()
    {
        assert!(load(&dir, &format!("x{i}.parquet"), bytes, false).is_some(), "{i}");
    }
}

#[test]
fn texts_and_other_files() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, want) in [
        ("a.txt", &b"one\ntwo \xFF"[..], "line 2: must be UTF-8"),
        ("b.txt", b" \x0C \n", "has no record"),
        ("c.jsonl", b"", "has no record"),
        ("d.jsonl", b"\xFF\xFE{\0", "UTF-16"),
        ("e.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("f.json", b"<!DOCTYPE html>", "a web page"),
        ("g.jsonl", b"\x28\xB5\x2F\xFD", "zstd"),
        ("h.jsonl", b"ARROW1\0\0", "Arrow"),
        ("i.data", b"{}", "says nothing about its content"),
        ("j.jsonl", b"\0\0\0\0", "line 1: bad JSON"),
    ] {
        let got = load(&dir, name, bytes, true).unwrap_or_else(|| panic!("{name} was taken"));
        assert!(got.contains(&format!("{name}: ")) && got.contains(want), "{name}: {got}");
    }
    assert!(load(&dir, "k.md", b"# x", false).unwrap().contains("plain text is for pretraining"));
    assert_eq!(load(&dir, "l.md", b"# x", true), None);
}

/// Every place of a JSON value, as pointers, to a depth.
fn places(value: &Value, at: &str, depth: usize, out: &mut Vec<String>) {
    out.push(at.to_string());
    if depth == 0 {
        return;
    }
    match value {
        Value::Object(map) => map.iter().take(12).for_each(|(key, inner)| {
            let key = key.replace('~', "~0").replace('/', "~1");
            places(inner, &format!("{at}/{key}"), depth - 1, out);
        }),
        Value::Array(list) => {
            list.iter().take(2).enumerate().for_each(|(i, inner)| places(inner, &format!("{at}/{i}"), depth - 1, out))
        }
        _ => {}
    }
}

#[test]
fn tokenizers() {
    let sound: Value = serde_json::from_str(&std::fs::read_to_string("assets/base/tokenizer.json").unwrap()).unwrap();
    let mut spots = vec![];
    places(&sound, "", 4, &mut spots);
    let values = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("\u{1b}x"),
        json!([]),
        json!({}),
        json!(true),
    ];
    let (dir, mut rng, mut refused, mut n) = (tempfile::tempdir().unwrap(), Rng::new(5), 0, 0);
    for spot in spots {
        for _ in 0..4 {
            let mut json = sound.clone();
            *json.pointer_mut(&spot).unwrap() = values[rng.below(values.len())].clone();
            refused += usize::from(broken_tokenizer(dir.path(), &format!("{spot} {n}"), json.to_string().as_bytes()));
            n += 1;
        }
    }
    let bytes = sound.to_string().into_bytes();
    for i in 0..60 {
        // mostly where the structure is, before the vocabulary
        let wound = [wounded(&bytes[..4000], &mut rng), bytes[4000..].to_vec()].concat();
        refused += usize::from(broken_tokenizer(dir.path(), &format!("wound {i}"), &wound));
        n += 1;
    }
    assert!(n > 250 && refused > n / 3, "{refused} of {n} were refused");
}

/// Whether it is refused; if not, it works on a text.
fn broken_tokenizer(dir: &Path, name: &str, json: &[u8]) -> bool {
    std::fs::write(dir.join("tokenizer.json"), json).unwrap();
    let folder = dir.to_path_buf();
    let result: Result<()> = ends(name, move || {
        let tokenizer = Tokenizer::load(&folder)?;
        let ids = tokenizer.encode("fn main() { let s = \"Grüße\"; }", true)?;
        tokenizer.decode(&ids, false).map(|_| ())
    });
    let Err(error) = result else { return false };
    let text = error.to_string();
    assert!(matches!(error, Error::Content { .. }) && text.contains("tokenizer.json"), "{name}: {error:?}");
    assert!(!text.contains('\u{1b}'), "{name}: {text:?}");
    true
}

#[test]
fn templates() {
    let chat = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let messages = chat.as_array().unwrap().iter().map(|m| m.as_object().unwrap().clone()).collect();
    let chat = Arc::new(Chat { messages, tools: Some(json!([{"type": "function", "function": {"name": "f"}}])) });
    let mut files: Vec<PathBuf> =
        std::fs::read_dir("tests/golden/templates/published").unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let (mut rng, mut refused, mut n) = (Rng::new(6), 0, 0);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for i in 0..20 {
            let text = String::from_utf8_lossy(&wounded(&bytes, &mut rng)).into_owned();
            let (name, chat, tokenizer) = (format!("{} {i}", file.display()), chat.clone(), base());
            let source = TemplateText { file: file.clone(), text };
            let result =
                ends(&name, move || Template::new(&source, &tokenizer).and_then(|t| t.render_assistant(&chat)));
            n += 1;
            if let Err(error) = result {
                let said = error.to_string();
                assert!(
                    matches!(error, Error::Content { .. }) && said.contains(file.to_str().unwrap()),
                    "{name}: {error:?}"
                );
                assert!(said.contains("chat_template") && !said.contains('\u{1b}'), "{name}: {said}");
                refused += 1;
            }
        }
    }
    assert!(n >= 300 && refused > n / 10, "{refused} of {n} were refused");
    for source in [
        "{{ 'a' * 1000000000 }}",
        "{{ messages | tojson(indent=100000) }}",
        "{% for i in range(100001) %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% extends 'x' %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages[9].content }}",
        "{{ 'x'.center(10000000000) }}",
        "{{ 7 is nonsense }}",
    ] {
        let (chat, tokenizer) = (chat.clone(), base());
        let text = TemplateText { file: "t.jinja".into(), text: source.into() };
        let error = ends(source, move || Template::new(&text, &tokenizer).and_then(|t| t.render(&chat, false)));
        let error = error.expect_err(source);
        assert!(
            matches!(error, Error::Content { .. }) && error.to_string().contains("t.jinja: chat_template"),
            "{source}: {error}"
        );
    }
}

#[test]
fn configs() {
    let dir = tempfile::tempdir().unwrap();
    let sound = std::fs::read_to_string("examples/quickstart.toml").unwrap();
    let load = |name: &str, text: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let result = ends(name, move || config::load(&path, &[]));
        result.err().inspect(|error| {
            let said = error.to_string();
            assert!(
                matches!(error, Error::Content { .. }) && said.contains(name) && !said.contains('\u{1b}'),
                "{name}: {error:?}"
            );
        })
    };
    assert!(load("sound.toml", sound.as_bytes()).is_none());
    let keys: Vec<(usize, &str)> =
        sound.lines().enumerate().filter_map(|(i, line)| Some((i, line.split_once(" = ")?.0.trim()))).collect();
    let values = [
        "-1",
        "0",
        "1e400",
        "nan",
        "''",
        "[]",
        "{}",
        "\"\\u001b[2J\"",
        "[[[[]]]]",
        "99999999999999999999",
        "1979-05-27",
        "{a = 1}",
    ];
    let mut refused = 0;
    for (line, key) in &keys {
        for (v, value) in values.iter().enumerate() {
            let mut lines: Vec<String> = sound.lines().map(str::to_string).collect();
            lines[*line] = format!("{key} = {value}");
            let error = load(&format!("{key}-{v}.toml"), lines.join("\n").as_bytes());
            if let Some(error) = error {
                let said = error.to_string();
                assert!(said.contains(": line "), "{key} = {value}: {said}");
                refused += 1;
            }
        }
    }
    assert!(refused > keys.len() * 8, "{refused} of {} were refused", keys.len() * values.len());
    let mut rng = Rng::new(7);
    for i in 0..150 {
        load(&format!("m{i}.toml"), &wounded(sound.as_bytes(), &mut rng));
        let yaml = b"model: m\ndataset:\n  - path: d\n    weight: 2\noutput_dir: o\nlora:\n  r: 8\nlr: '2e-4'\n";
        load(&format!("m{i}.yaml"), &wounded(yaml, &mut rng));
    }
    let aliases =
        (0..40).map(|i| format!("a{i}: &a{i} [{}]\n", format!("*a{}, ", (i as u32).saturating_sub(1)).repeat(9)));
    assert!(load("bomb.yaml", format!("a0: &a0 x\n{}", aliases.skip(1).collect::<String>()).as_bytes()).is_some());
    assert!(load("deep.yaml", "[".repeat(100_000).as_bytes()).is_some());
    assert!(load("deep.toml", format!("a = {}", "[".repeat(100_000)).as_bytes()).is_some());
}
