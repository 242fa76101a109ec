//! Models by name, from a Hub that the test itself serves.
use luthier::data::{self, DataOptions, Source, Tokenizer};
use luthier::io::hub::{Event, Hub, Kind};
use luthier::model::{LoadOptions, Model};
use luthier::{Error, Result, backend::cpu::Cpu, dtype::DType};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

#[path = "hub/server.rs"]
mod server;
use server::{Repo, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LLAMA: &str = "tests/golden/llama";

/// The small Llama as a repository.
fn llama() -> Repo {
    let read = |name: &str| (name.to_string(), std::fs::read(Path::new(LLAMA).join(name)).unwrap());
    let mut files: std::collections::BTreeMap<_, _> = ["config.json", "model.safetensors"].map(read).into();
    files.insert("README.md".into(), b"not for us".to_vec());
    files.insert("generation_config.json".into(), b"{\"eos_token_id\": 2}".to_vec());
    Repo { commit: COMMIT.into(), revisions: vec!["main".into(), "refs/pr/1".into()], files, gated: None }
}

/// The same with its tensors in two shards.
fn sharded() -> Repo {
    let mut repo = llama();
    let whole = repo.files.remove("model.safetensors").unwrap();
    let file = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let mut map = serde_json::Map::new();
    for (i, name) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].into_iter().enumerate() {
        let views: Vec<_> =
            file.tensors().into_iter().enumerate().filter(|(t, _)| t % 2 == i).map(|(_, v)| v).collect();
        map.extend(views.iter().map(|(tensor, _)| (tensor.clone(), name.into())));
        repo.files.insert(name.into(), safetensors::serialize(views, None).unwrap());
    }
    let index = serde_json::json!({ "weight_map": map }).to_string().into_bytes();
    repo.files.insert("model.safetensors.index.json".into(), index);
    repo
}

fn hub(server: &Server, cache: &TempDir) -> Hub {
    Hub { endpoint: server.url.clone(), token: None, cache: cache.path().to_path_buf(), offline: false }
}

fn get(hub: &Hub, name: &str) -> Result<PathBuf> {
    hub.resolve(name.as_ref(), Kind::Model, &mut |_| true)
}

fn refused(hub: &Hub, name: &str, code: u8, words: &[&str]) {
    let e = get(hub, name).expect_err(name);
    let said = e.to_string();
    assert!(
        e.exit_code() == code && words.iter().all(|w| said.contains(w)),
        "{name}: {} {said}, not {words:?}",
        e.exit_code()
    );
}

fn loads(folder: &Path) {
    let model = Model::load(&Cpu::new(), folder, &LoadOptions::frozen(DType::F32)).unwrap();
    assert!(model.params().count() > 3);
}

#[test]
fn a_model_comes_once_and_only_what_is_needed_of_it() {
    let (server, cache) = (Server::start([("org/llama", llama())]), tempfile::tempdir().unwrap());
    let hub = Hub { token: Some("secret".into()), ..hub(&server, &cache) };
    let mut seen = Vec::new();
    let folder = hub.resolve("org/llama".as_ref(), Kind::Model, &mut |event| {
        if let Event::File { name, size, have: 0 } = event {
            seen.push((name.to_string(), size as usize));
        }
        true
    });
    let folder = folder.unwrap();
    let repo = llama();
    let want =
        ["config.json", "generation_config.json", "model.safetensors"].map(|f| (f.to_string(), repo.files[f].len()));
    assert_eq!(seen, want);
    let place = cache.path().join("models--org--llama");
    assert_eq!(folder, place.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(place.join("refs/main")).unwrap(), COMMIT);
    for (file, _) in &want {
        assert_eq!(std::fs::read(folder.join(file)).unwrap(), repo.files[file], "{file}");
        let target = std::fs::read_link(folder.join(file)).unwrap();
        assert!(target.starts_with("../../blobs"), "{target:?}");
    }
    assert!(place.join(".no_exist").join(COMMIT).join("tokenizer.model").exists());
    loads(&folder);
    let log = server.log();
    assert!(!log.iter().any(|line| line.contains("README")), "{log:?}");
    // the token is the Hub's alone, and a redirect leads elsewhere
    assert!(log.iter().all(|line| line.contains(" token") != line.contains("/cdn/")), "{log:?}");
    assert!(log.iter().any(|line| line.contains("/cdn/")));

    // again: one look at whether it has changed; by commit: none
    assert_eq!(get(&hub, "org/llama").unwrap(), folder);
    assert_eq!(server.log(), ["HEAD /org/llama/resolve/main/config.json token"]);
    assert_eq!(get(&hub, &format!("org/llama@{COMMIT}")).unwrap(), folder);
    assert!(server.log().is_empty());

    // a new commit with the same weights: only what changed comes
    let commit = COMMIT.replace('0', "f");
    server.state.lock().unwrap().repos.insert("org/llama".into(), {
        let mut repo = Repo { commit: commit.clone(), ..llama() };
        repo.files.insert("generation_config.json".into(), b"{}".to_vec());
        repo
    });
    let new = get(&hub, "org/llama").unwrap();
    assert!(new.ends_with(&commit));
    let fetched: Vec<String> = server.log().into_iter().filter(|line| line.starts_with("GET")).collect();
    assert_eq!(fetched, [format!("GET /org/llama/resolve/{commit}/generation_config.json token")]);
    loads(&new);
}

#[test]
fn what_was_interrupted_goes_on_where_it_stopped() {
    let (server, cache) = (Server::start([("org/llama", llama())]), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let size = llama().files["model.safetensors"].len();
    // the connection breaks twice: the same call goes on by itself
    server.state.lock().unwrap().cuts = vec![1000, 500];
    // and then the user ends it
    let mut bytes = 0;
    let stopped = hub.resolve("org/llama".as_ref(), Kind::Model, &mut |event| {
        if let Event::Bytes(have) = event {
            bytes = have;
        }
        bytes != 1500
    });
    assert_eq!(stopped.unwrap_err().exit_code(), 130);
    let blobs = cache.path().join("models--org--llama/blobs");
    let part = || std::fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some());
    assert_eq!(std::fs::read(part().unwrap()).unwrap(), llama().files["model.safetensors"][..1500]);
    server.log();

    // a server that breaks off at once, again and again, is an error; what is there stays
    server.state.lock().unwrap().cuts = vec![0; 5];
    let e = get(&hub, "org/llama").unwrap_err();
    assert_eq!(e.exit_code(), 74, "{e}");
    assert_eq!(part().unwrap().metadata().unwrap().len(), 1500);
    assert_eq!(server.log().iter().filter(|line| line.contains("/cdn/") && line.ends_with("bytes=1500-")).count(), 5);

    let mut from = None;
    let folder = hub.resolve("org/llama".as_ref(), Kind::Model, &mut |event| {
        if let Event::File { name: "model.safetensors", have, .. } = event {
            from = Some(have);
        }
        true
    });
    assert_eq!(from, Some(1500));
    assert_eq!(std::fs::read(folder.unwrap().join("model.safetensors")).unwrap(), llama().files["model.safetensors"]);
    assert!(part().is_none());

    // leftovers that are too long, and a server that cannot give parts: from the start
    for (leftover, whole) in [(size + 1, false), (size - 1, true), (size, false)] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub { cache: cache.path().to_path_buf(), ..hub.clone() };
        let etag = blake3::hash(&llama().files["model.safetensors"]).to_hex();
        let blobs = cache.path().join("models--org--llama/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let content = if leftover == size { llama().files["model.safetensors"].clone() } else { vec![7; leftover] };
        std::fs::write(blobs.join(format!("{etag}.incomplete")), content).unwrap();
        server.state.lock().unwrap().whole = whole;
        let folder = get(&hub, "org/llama").unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), llama().files["model.safetensors"]);
    }
}

#[test]
fn offline_means_the_cache_and_nothing_else() {
    let (server, cache) =
        (Server::start([("org/llama", llama()), ("org/parts", sharded())]), tempfile::tempdir().unwrap());
    let online = hub(&server, &cache);
    let offline = Hub { offline: true, ..online.clone() };
    refused(&offline, "org/llama", 74, &["not in the cache", "HF_HUB_OFFLINE"]);
    let folder = get(&online, "org/llama@refs/pr/1").unwrap();
    server.log();
    assert_eq!(get(&offline, "org/llama@refs/pr/1").unwrap(), folder);
    assert_eq!(get(&offline, &format!("org/llama@{COMMIT}")).unwrap(), folder);
    refused(&offline, "org/llama", 74, &["org/llama is not in the cache"]);

    // a shard is missing
    let folder = get(&online, "org/parts").unwrap();
    loads(&folder);
    assert_eq!(get(&offline, "org/parts").unwrap(), folder);
    let shard = folder.join("model-00002-of-00002.safetensors");
    std::fs::remove_file(shard.canonicalize().unwrap()).unwrap();
    refused(&offline, "org/parts", 74, &["not whole", "model-00002-of-00002.safetensors is missing"]);
    // and comes again
    loads(&get(&online, "org/parts").unwrap());

    // nobody answers: the cache, with a word about it; where there is nothing, an error
    let gone = Hub { endpoint: "http://127.0.0.1:9".into(), ..online };
    let mut notes = Vec::new();
    let found = gone.resolve("org/parts".as_ref(), Kind::Model, &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note.to_string());
        }
        true
    });
    assert_eq!(found.unwrap(), folder);
    assert!(notes.len() == 1 && notes[0].contains("127.0.0.1:9") && notes[0].contains(COMMIT), "{notes:?}");
    refused(&gone, "org/other", 74, &["no such folder here", "does not answer"]);
}

#[test]
fn refusals_say_what_to_do() {
    let old = || {
        let mut repo = llama();
        let weights = repo.files.remove("model.safetensors").unwrap();
        repo.files.insert("pytorch_model.bin".into(), weights);
        repo
    };
    let gated = Repo { gated: Some("mine".into()), ..llama() };
    let mut leaving = sharded();
    let index = "model.safetensors.index.json";
    leaving.files.insert(index.into(), br#"{"weight_map": {"a": "../../../x.safetensors"}}"#.to_vec());
    let bare = Repo { files: Default::default(), ..llama() };
    let repos = [("o/llama", llama()), ("o/gated", gated), ("o/old", old()), ("o/leaving", leaving), ("o/bare", bare)];
    let (server, cache) = (Server::start(repos), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let other = Hub { token: Some("other".into()), ..hub.clone() };
    let mine = Hub { token: Some("mine".into()), ..hub.clone() };
    refused(&hub, "o/lama", 74, &["no such folder here", "no such model", "check the name", "HF_TOKEN"]);
    refused(&hub, "o/llama@v2", 74, &["no revision `v2`"]);
    refused(&hub, "o/gated", 74, &["gated", "accept its licence", "/o/gated", "set HF_TOKEN"]);
    refused(&other, "o/gated", 74, &["gated", "the token in use", "no access"]);
    loads(&get(&mine, "o/gated").unwrap());
    refused(&hub, "o/old", 65, &["pytorch_model.bin", "no safetensors", "refs/pr/1"]);
    refused(&hub, "o/leaving", 65, &["../../../x.safetensors", "no safetensors file of this folder"]);
    refused(&hub, "o/bare", 65, &["has no config.json"]);
    refused(&hub, "./o/llama", 74, &["no such folder"]);
    let no_adapter = hub.resolve("o/llama".as_ref(), Kind::Adapter, &mut |_| true).unwrap_err();
    assert!(matches!(&no_adapter, Error::Content { what, .. } if what.contains("adapter_config.json")), "{no_adapter}");
}

fn luthier(server: &Server, home: &Path, args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_luthier"));
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &server.url).env("HF_HOME", home).args(args).output().unwrap()
}

#[test]
fn commands_take_names() {
    let gated = Repo { gated: Some("saved".into()), ..base() };
    let (server, dir) = (Server::start([("org/base", gated)]), tempfile::tempdir().unwrap());
    let home = dir.path().join("hf");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("token"), "saved\n").unwrap();
    let out = luthier(&server, &home, &["inspect", "org/base"]);
    let said = String::from_utf8_lossy(&out.stdout).to_string() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("downloading model.safetensors"), "{said}");
    assert!(said.contains("no mismatch"), "{said}");

    let config = dir.path().join("run.toml");
    let data = dir.path().join("data.jsonl");
    std::fs::write(&data, "{\"text\": \"fn main() { println!(); }\"}\n".repeat(4)).unwrap();
    let (data, result) = (data.display(), dir.path().join("out"));
    let text = format!(
        "model_name_or_path = \"org/base@main\"\ndataset = {data:?}\noutput_dir = {result:?}\nmax_length = 16\nmax_steps = 1\n\
         per_device_train_batch_size = 1\ndtype = \"float32\"\n[lora]\nr = 2\n"
    );
    std::fs::write(&config, text.replace(&format!("{data:?}"), &format!("\"{data}\""))).unwrap();
    let out = luthier(&server, &home, &["train", config.to_str().unwrap(), "--backend", "cpu"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let adapter = std::fs::read(result.join("adapter_config.json")).unwrap();
    let adapter: serde_json::Value = serde_json::from_slice(&adapter).unwrap();
    assert_eq!(
        (adapter["base_model_name_or_path"].as_str(), adapter["revision"].as_str()),
        (Some("org/base"), Some("main"))
    );
    assert!(result.join("tokenizer.json").exists());

    // the adapter, in its turn, by name
    let read = |name: &str| (name.to_string(), std::fs::read(result.join(name)).unwrap());
    let files = ["adapter_config.json", "adapter_model.safetensors"].map(read).into();
    server.state.lock().unwrap().repos.insert("org/adapter".into(), Repo { files, ..llama() });
    let words = ["--prompt", "fn", "--raw", "--max-new-tokens", "2", "--backend", "cpu"];
    let names = ["generate", "--model", "org/base", "--adapter", "org/adapter"];
    let out = luthier(&server, &home, &[&names[..], &words].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let there = home.join("hub/models--org--adapter/snapshots").join(COMMIT);
    assert!(there.join("adapter_model.safetensors").exists() && !there.join("README.md").exists());
}

/// What is compared or measured on may be a data set by name, as training's may.
#[test]
fn models_are_looked_at_with_data_sets_by_name() {
    let text = std::fs::read_to_string("assets/rustc_explain.jsonl").unwrap();
    let texts = text.lines().take(12).map(|line| serde_json::json!({ "text": line }).to_string() + "\n");
    let files = [("train.jsonl".to_string(), texts.collect::<String>().into_bytes())].into();
    let repo = Repo { commit: COMMIT.into(), revisions: vec!["main".into()], files, gated: None };
    let (server, dir) = (Server::start([("datasets/org/texts", repo)]), tempfile::tempdir().unwrap());
    let said = |args: &[&str]| {
        let out = luthier(&server, &dir.path().join("hf"), args);
        let said = String::from_utf8_lossy(&out.stdout).to_string() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && out.status.code() == Some(0), "{args:?}: {said}");
        said
    };
    let base = "assets/base";
    let compared = said(&["compare", base, base, "--data", "org/texts", "--max-tokens", "64", "--backend", "cpu"]);
    assert!(
        compared.contains("downloading train.jsonl") && compared.contains("tokens compared           64"),
        "{compared}"
    );
    let made = dir.path().join("made");
    let made = made.to_str().unwrap();
    let measured = said(&[
        "quantize",
        "--model",
        base,
        "--out",
        made,
        "--dynamic",
        "--calibration",
        "org/texts",
        "--backend",
        "cpu",
    ]);
    assert!(measured.contains("measured on"), "{measured}");
}

/// The model that comes with the project.
fn base() -> Repo {
    let files = std::fs::read_dir("assets/base").unwrap().map(|e| e.unwrap().path());
    let read = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap());
    Repo { files: files.map(read).collect(), ..llama() }
}

/// Of the numbers 0 to 999 in 32 bits, by `sha256sum`.
const SHA: &str = "550625f47dc1b7d1d5bda267bc6e2baeeb0e700033b325e5d53ccd66267dd74e";

/// A folder goes up as one commit: large files apart, in one request or in parts, and only once; what fails by itself is tried
/// again.
#[test]
fn a_folder_is_pushed() {
    let (server, cache) = (Server::start([]), tempfile::tempdir().unwrap());
    let hub = Hub { token: Some("writer".into()), ..hub(&server, &cache) };
    let folder = cache.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let weights: Vec<u8> = (0..1000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(folder.join("model.safetensors"), &weights).unwrap();
    std::fs::write(folder.join("README.md"), "# mine").unwrap();
    std::fs::write(folder.join(".hidden"), "stays").unwrap();
    let push = |hub: &Hub| hub.push("org/mine", true, &folder, "first", &mut |_| true);
    server.state.lock().unwrap().busy = 1;
    assert_eq!(push(&hub).unwrap(), "https://hub/commit/1");
    {
        let state = server.state.lock().unwrap();
        let lines: Vec<serde_json::Value> =
            state.commits[0].lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let value = |i: usize, key: &str| lines[i]["value"][key].clone();
        assert_eq!((lines.len(), value(0, "summary")), (3, "first".into()));
        assert_eq!((value(1, "path"), value(1, "content")), ("README.md".into(), "IyBtaW5l".into()));
        assert_eq!((value(2, "path"), value(2, "size")), ("model.safetensors".into(), 4000.into()));
        let oid = value(2, "oid").as_str().unwrap().to_string();
        assert_eq!(oid, SHA);
        assert_eq!((oid.len(), state.uploads.get(&oid)), (64, Some(&weights)));
    }
    // the same again sends no weights, and a repository that is there is fine
    server.log();
    push(&hub).unwrap();
    assert!(!server.log().iter().any(|line| line.starts_with("PUT")));
    // in parts, the last one shorter
    let mut state = server.state.lock().unwrap();
    state.uploads.clear();
    state.part = Some(1536);
    drop(state);
    push(&hub).unwrap();
    assert_eq!(server.log().iter().filter(|line| line.starts_with("PUT")).count(), 3);
    let uploads = server.state.lock().unwrap().uploads.clone();
    assert_eq!(uploads.values().collect::<Vec<_>>(), [&weights]);
    // who may not write is told so, before anything is sent
    for token in [None, Some("reader".to_string())] {
        let e = push(&Hub { token, ..hub.clone() }).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("HF_TOKEN"), "{e}");
    }
}

/// A data set of two splits, one of them in two files, and a subset that its card lists.
fn chats() -> Repo {
    let row = |text: &str| format!("{}\n", serde_json::json!({ "text": text })).into_bytes();
    let card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n  - split: test\n    \
        path: data/test.jsonl\n- config_name: extra\n  data_files: extra/*.csv\n---\n";
    let files = [
        ("README.md", card.as_bytes().to_vec()),
        ("data/train-00000-of-00002.jsonl", row("one")),
        ("data/train-00001-of-00002.jsonl", row("two")),
        ("data/test.jsonl", row("three")),
        ("extra/a.csv", b"text\nfour\n".to_vec()),
        ("model.bin", b"not for us".to_vec()),
    ];
    let files = files.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect();
    Repo { commit: COMMIT.into(), revisions: vec!["main".into(), "v1".into()], files, gated: None }
}

#[test]
fn data_sets_by_name() {
    let script = Repo { files: [("set.py".to_string(), b"import os".to_vec())].into(), ..chats() };
    let gated = Repo { gated: Some("secret".into()), ..chats() };
    let repos = [("datasets/org/chats", chats()), ("datasets/org/script", script), ("datasets/org/gated", gated)];
    let server = Server::start(repos);
    let cache = TempDir::new().unwrap();
    let tokenizer = Tokenizer::load("assets/base".as_ref()).unwrap();
    let hub = |offline| Hub { endpoint: server.url.clone(), token: None, cache: cache.path().to_path_buf(), offline };
    let texts_of = |source: &Source, hub: &Hub| -> Result<Vec<String>> {
        let mut source = source.clone();
        data::hub::fetch_from(hub, &mut source, false, &mut |_| true)?;
        let options = DataOptions { sources: vec![source], max_length: 32, ..Default::default() };
        let data = data::load(&options, &tokenizer)?;
        data.train.to_vec().iter().map(|example| tokenizer.decode(&example.ids, true)).collect()
    };
    let texts = |source: &Source| texts_of(source, &hub(false));
    let set = Source::new("org/chats");
    assert_eq!(texts(&set).unwrap(), ["one", "two"]);
    let log = server.log();
    assert_eq!(log[0], "GET /api/datasets/org/chats/revision/main");
    assert!(!log.iter().any(|line| line.contains("test.jsonl") || line.contains("model.bin")), "{log:?}");
    let snapshot = cache.path().join("datasets--org--chats/snapshots").join(COMMIT);
    let link = snapshot.join("data/train-00000-of-00002.jsonl");
    assert!(
        link.is_file()
            && link
                .canonicalize()
                .unwrap()
                .starts_with(cache.path().canonicalize().unwrap().join("datasets--org--chats/blobs"))
    );
    let split = |split: &str| Source { split: Some(split.into()), ..set.clone() };
    assert_eq!(texts(&split("test")).unwrap(), ["three"]);
    assert_eq!(texts(&Source { name: Some("extra".into()), ..set.clone() }).unwrap(), ["four"]);
    assert_eq!(texts(&Source::new("org/chats@v1")).unwrap(), ["one", "two"]);
    assert_eq!(texts(&Source::new("hf://datasets/org/chats/data/t*.jsonl")).unwrap(), ["three", "one", "two"]);
    // nothing but the listing is asked for again
    server.log();
    texts(&set).unwrap();
    assert_eq!(server.log().len(), 1);
    assert_eq!(texts_of(&set, &hub(true)).unwrap(), ["one", "two"]);
    for (source, want) in [
        (split("dev"), "has no split \"dev\", only test, train"),
        (Source { name: Some("no".into()), ..set.clone() }, "README.md lists default, extra"),
        (Source::new("org/script"), "refs/convert/parquet"),
        (Source::new("org/nothing"), "no such data set at"),
        (Source::new("org/chats@v9"), "has no revision `v9`"),
        (Source::new("org/gated"), "the data set is gated"),
        (Source::new("hf://datasets/org/chats/data/*.parquet"), "has no file data/*.parquet"),
        (Source::new("hf://datasets/org"), "is no name of a data set"),
    ] {
        let error = texts(&source).unwrap_err();
        assert!([65, 74].contains(&error.exit_code()) && error.to_string().contains(want), "{}: {error}", source.path);
    }
    // what ends like a data file is a path
    assert!(matches!(texts(&Source::new("org/chats.jsonl")).unwrap_err(), Error::Read { .. }));
}
