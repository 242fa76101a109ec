//! The cache of tokens: the same examples from it as without it, another entry for whatever changes them, damage found, and data
//! that needs no memory of its own.
use luthier::data::{self, DataOptions, Dataset, Source, Tokenizer, TrainOn};
use luthier::error::Error;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const CHATS: &str = "assets/rustc_explain.jsonl";

fn base() -> Tokenizer {
    Tokenizer::load("assets/base".as_ref()).unwrap()
}

fn options(cache: &Path, path: &str) -> DataOptions {
    DataOptions { sources: vec![Source::new(path)], max_length: 512, cache: Some(cache.into()), ..Default::default() }
}

fn load(opts: &DataOptions) -> Dataset {
    data::load(opts, &base()).unwrap_or_else(|e| panic!("{e}"))
}

/// The entries of a cache, sorted.
fn entries(cache: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(cache).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<_> = all.filter(|p| p.extension().is_some_and(|e| e != "lock")).collect();
    all.sort();
    all
}

fn is_cached(data: &Dataset) -> bool {
    data.notes.iter().any(|note| note.contains("as cached"))
}

fn same(a: &Dataset, b: &Dataset) {
    assert_eq!(a.report, b.report);
    assert!(a.train.to_vec() == b.train.to_vec() && a.eval.to_vec() == b.eval.to_vec());
}

fn file(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_string()
}

fn say(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]})
}

#[test]
fn cold_warm_and_without_a_cache_are_the_same() {
    let cache = tempfile::tempdir().unwrap();
    let split = DataOptions { eval_split: 0.1, seed: 5, ..options(cache.path(), CHATS) };
    let own = DataOptions { eval_sources: vec![Source::new(CHATS)], ..options(cache.path(), CHATS) };
    let weighted = vec![Source { weight: 0.5, conversation_extension: 2, ..Source::new(CHATS) }, Source::new(CHATS)];
    let weighted = DataOptions { sources: weighted, ..options(cache.path(), CHATS) };
    // a template whose tokens are unknown: what looks wrong is told from the cache, too
    let gemma = DataOptions { chat_template: Some("gemma".into()), ..options(cache.path(), CHATS) };
    for opts in [split, own, weighted, gemma] {
        let without = load(&DataOptions { cache: None, ..opts.clone() });
        let (cold, warm) = (load(&opts), load(&opts));
        assert!(is_cached(&warm) && !is_cached(&without) && without.notes.is_empty());
        same(&without, &cold);
        same(&without, &warm);
        let notes = warm.notes.iter().filter(|note| note.contains("as cached")).count();
        assert_eq!(notes, opts.sources.len() + opts.eval_sources.len(), "each source is one entry");
    }
    // the split and weights choose among the same tokens
    assert_eq!(entries(cache.path()).len(), 3);
}

#[test]
fn content_alone_decides() {
    let (cache, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = format!("{}\n{}\n", say("one"), say("two"));
    let path = file(&dir, "a.jsonl", &text);
    let opts = options(cache.path(), &path);
    let first = load(&opts);
    // another place, another time, the same bytes
    let moved = file(&dir, "b.jsonl", &text);
    let again = load(&options(cache.path(), &moved));
    assert!(is_cached(&again));
    same(&first, &again);
    // the same name, size and time, other bytes
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    file(&dir, "a.jsonl", text.replace("two", "six"));
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    let other = load(&opts);
    assert!(!is_cached(&other) && other.report.fingerprint != first.report.fingerprint);
    same(&other, &load(&DataOptions { cache: None, ..opts.clone() }));
    // everything else that changes tokens
    let jinja = file(
        &dir,
        "t.jinja",
        "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}",
    );
    let variants = [
        DataOptions { max_length: 16, ..opts.clone() },
        DataOptions { train_on: TrainOn::Chat, ..opts.clone() },
        DataOptions { train_on: TrainOn::LastTurn, ..opts.clone() },
        DataOptions { pretrain: true, ..opts.clone() },
        DataOptions { chat_template: Some("vicuna".into()), ..opts.clone() },
        DataOptions { chat_template: Some(jinja.clone()), ..opts.clone() },
    ];
    for (i, opts) in variants.iter().enumerate() {
        let got = load(opts);
        assert!(!is_cached(&got), "variant {i}");
        same(&got, &load(&DataOptions { cache: None, ..opts.clone() }));
    }
    std::fs::write(
        &jinja,
        "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}",
    )
    .unwrap();
    assert!(!is_cached(&load(&variants[5])), "the template's text counts, not its name");
    // another tokenizer of the same size
    let model = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(format!("assets/base/{name}"), model.path().join(name)).unwrap();
    }
    let json = model.path().join("tokenizer.json");
    let changed = std::fs::read_to_string(&json).unwrap().replace("<|pad|>", "<|mad|>");
    std::fs::write(&json, changed).unwrap();
    let config = model.path().join("tokenizer_config.json");
    let changed = std::fs::read_to_string(&config).unwrap().replace("<|pad|>", "<|mad|>");
    std::fs::write(&config, changed).unwrap();
    let got = data::load(&opts, &Tokenizer::load(model.path()).unwrap()).unwrap();
    assert!(!is_cached(&got));
}

#[test]
fn damage_is_found_and_made_good() {
    let cache = tempfile::tempdir().unwrap();
    let opts = options(cache.path(), CHATS);
    let want = load(&DataOptions { cache: None, ..opts.clone() });
    load(&opts);
    let entry = entries(cache.path()).remove(0);
    let whole = std::fs::read(&entry).unwrap();
    for damage in 0..4 {
        let mut bytes = whole.clone();
        match damage {
            0 => bytes[1000] ^= 1,
            1 => bytes.truncate(whole.len() / 2),
            2 => bytes.clear(),
            _ => bytes.extend(b"more"),
        }
        std::fs::write(&entry, &bytes).unwrap();
        let got = load(&opts);
        assert!(got.notes.iter().any(|n| n.contains("damaged") && n.contains("made again")), "{:?}", got.notes);
        same(&want, &got);
        assert!(std::fs::read(&entry).unwrap() == whole, "the same bytes again");
    }
    // what cannot be encoded leaves nothing behind
    let dir = tempfile::tempdir().unwrap();
    let bad = file(&dir, "bad.jsonl", format!("{}\n{{}}\n", say("x")));
    let error = data::load(&options(cache.path(), &bad), &base()).err().unwrap();
    assert!(matches!(error, Error::Content { .. }) && error.to_string().contains("bad.jsonl: line 2"), "{error}");
    assert_eq!(entries(cache.path()), [entry]);
}

#[test]
fn a_folder_that_cannot_be_written_is_told_and_an_interruption_ends() {
    let dir = tempfile::tempdir().unwrap();
    let no_folder = file(&dir, "file", "");
    let got = load(&options(no_folder.as_ref(), CHATS));
    assert!(got.notes.iter().any(|note| note.contains("tokens stay in memory")), "{:?}", got.notes);
    same(&got, &load(&DataOptions { cache: None, ..options(dir.path(), CHATS) }));
    let cache = dir.path().join("cache");
    let stopped = data::load_watched(&options(&cache, CHATS), &base(), &mut |_| false).err().unwrap();
    assert_eq!(stopped.exit_code(), 130);
    assert!(entries(&cache).is_empty());
}

/// `luthier data preview` of `run.toml` with at most so many bytes of its own: heap and stacks, but no mapped files.
fn preview(dir: &Path, bytes: usize, overrides: &[&str]) -> Output {
    let script = format!("ulimit -d {} && exec \"$0\" data preview run.toml \"$@\"", bytes >> 10);
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_luthier")]).args(overrides);
    command.current_dir(dir).env("LUTHIER_CACHE", dir.join("cache")).env("RAYON_NUM_THREADS", "2");
    command.output().unwrap()
}

/// Linux counts private writable memory by itself; elsewhere the limit means other things.
#[cfg(target_os = "linux")]
#[test]
fn data_larger_than_the_memory() {
    const RECORDS: usize = 200_000;
    const LIMIT: usize = 192 << 20;
    let dir = tempfile::tempdir().unwrap();
    let mut out = std::io::BufWriter::new(std::fs::File::create(dir.path().join("many.jsonl")).unwrap());
    for i in 0..RECORDS {
        // bytes that no merge joins: a token each
        let text: String = (0..120).map(|j| char::from(b'!' + ((i * 7 + j * 11) % 14) as u8)).collect();
        writeln!(out, "{}", json!({ "text": text })).unwrap();
    }
    drop(out);
    let base = std::fs::canonicalize("assets/base").unwrap();
    let config = format!("model = {base:?}\ndataset = \"many.jsonl\"\noutput_dir = \"out\"\nmax_length = 512\n");
    std::fs::write(dir.path().join("run.toml"), config).unwrap();
    let started = std::time::Instant::now();
    let cold = preview(dir.path(), LIMIT, &[]);
    let text = String::from_utf8_lossy(&cold.stdout).into_owned();
    assert!(cold.status.success(), "{}", String::from_utf8_lossy(&cold.stderr));
    println!("cold: {:.1?}", started.elapsed());
    let tokens: usize = text.split("tokens ").nth(1).unwrap().trim().split(',').next().unwrap().parse().unwrap();
    assert!(tokens >= 120 * RECORDS, "{tokens} tokens are too few to show anything");
    let started = std::time::Instant::now();
    let warm = preview(dir.path(), LIMIT, &[]);
    println!("warm: {:.1?}", started.elapsed());
    let cached = |out: &Output| String::from_utf8_lossy(&out.stdout).contains("as cached");
    assert!(warm.status.success() && cached(&warm) && !cached(&cold));
    let memory = preview(dir.path(), LIMIT, &["dataset_cache=false"]);
    assert!(!memory.status.success(), "the same tokens in memory fit, so the limit shows nothing");
}
