//! The server, asked by a plain HTTP client and, where it is installed, by OpenAI's own.
#![cfg(feature = "serve")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::dtype::DType;
use luthier::export::peft;
use luthier::infer::{Engine, Options, Prefixes};
use luthier::model::lora::LoraConfig;
use luthier::model::{LoadOptions, Model};
use luthier::serve::{Adapter, Config, Patience, RuntimeAdapters, run};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const KEY: &str = "sk-luthier-test";

/// A server on a thread of its own, stopped when it is dropped.
struct Server {
    address: SocketAddr,
    stop: tokio::sync::watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Server {
    /// With the quickstart's model; the thread returns the bytes that the backend has left over.
    fn start(change: impl FnOnce(&mut Config, &mut Options)) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let folder = PathBuf::from("assets/base");
        let mut config = Config { api_key: Some(KEY.into()), ..Config::new("base", folder.clone()) };
        let mut options = Options {
            max_sequences: 16,
            max_step_tokens: 128,
            max_length: Some(256),
            kv_cache: None,
            prefixes: Prefixes::Shared,
        };
        change(&mut config, &mut options);
        let thread = std::thread::spawn(move || {
            let b = Cpu::new();
            let b: &dyn Backend = &b;
            let model = Model::load(b, &folder, &LoadOptions::frozen(DType::F32)).unwrap();
            let before = b.memory().used;
            let engine = Engine::new(b, model, &options).unwrap();
            run(config, engine, Vec::<Adapter>::new(), listener, stopped).unwrap();
            b.memory().used - before
        });
        Server { address, stop, thread: Some(thread) }
    }

    fn send(&self, method: &str, path: &str, key: Option<&str>, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let auth = key.map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\n{auth}Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // who refuses a body does not read all of it
        let _ = stream.write_all(body.as_bytes());
        stream
    }

    fn ask_as(&self, method: &str, path: &str, key: Option<&str>, body: &str) -> (u16, String) {
        let mut reader = BufReader::new(self.send(method, path, key, body));
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut chunked = false;
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
            if line.trim().is_empty() {
                break;
            }
        }
        let mut text = String::new();
        if !chunked {
            reader.read_to_string(&mut text).unwrap();
            return (status, text);
        }
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            text += std::str::from_utf8(&chunk[..size]).unwrap();
            if size == 0 {
                return (status, text);
            }
        }
    }

    fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.ask_as("POST", path, Some(KEY), &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The objects of a stream, without its end.
    fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let (status, text) = self.ask_as("POST", path, Some(KEY), &body.to_string());
        assert_eq!(status, 200, "{text}");
        let lines: Vec<&str> = text.split("\n\n").filter(|line| !line.is_empty()).collect();
        let (last, chunks) = lines.split_last().unwrap();
        assert_eq!(*last, "data: [DONE]");
        chunks.iter().map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.ask_as("GET", "/metrics", Some(KEY), "");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("{name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until nothing runs.
    fn settle(&self) {
        let started = Instant::now();
        while self.metric("luthier_requests_running") + self.metric("luthier_requests_waiting") > 0.0 {
            assert!(started.elapsed() < Duration::from_secs(60), "still busy");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(Err(e)) = self.thread.take().map(|thread| thread.join()) {
            assert!(std::thread::panicking(), "{e:?}");
        }
    }
}

fn chat(text: &str) -> Value {
    json!({ "model": "base", "messages": [{ "role": "user", "content": text }], "max_tokens": 12, "temperature": 0 })
}

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

#[test]
fn chats_whole_and_in_pieces() {
    let server = Server::start(|_, _| ());
    let (status, whole) = server.post("/v1/chat/completions", chat("What is E0117?"));
    assert_eq!(status, 200, "{whole}");
    let choice = &whole["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert_eq!((&whole["object"], &choice["message"]["role"]), (&json!("chat.completion"), &json!("assistant")));
    assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    let usage = &whole["usage"];
    assert_eq!(
        usage["total_tokens"],
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );
    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let chunks = server.stream("/v1/chat/completions", with(chat("What is E0117?"), options));
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (usage, &json!([])));
    let said: String = rest.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text);
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], choice["finish_reason"]);
    assert!(rest.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == rest[0]["id"]));
    // several answers, the same again by their seed
    let warm = || with(chat("Hello"), json!({ "n": 3, "temperature": 1.5, "seed": 7 }));
    let texts = |value: Value| {
        value["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].clone()).collect::<Vec<_>>()
    };
    let first = texts(server.post("/v1/chat/completions", warm()).1);
    assert!(first.len() == 3 && first.iter().any(|text| *text != first[0]), "{first:?}");
    assert_eq!(first, texts(server.post("/v1/chat/completions", warm()).1));
}

#[test]
fn completions_logprobs_and_stops() {
    let server = Server::start(|_, _| ());
    let body =
        |more: Value| with(json!({ "model": "base", "prompt": "The error", "max_tokens": 16, "temperature": 0 }), more);
    let (status, plain) = server.post("/v1/completions", body(json!({ "logprobs": 2 })));
    assert_eq!(status, 200, "{plain}");
    let choice = &plain["choices"][0];
    let (text, logs) = (choice["text"].as_str().unwrap(), &choice["logprobs"]);
    assert_eq!(logs["tokens"].as_array().unwrap().len() as u64, plain["usage"]["completion_tokens"].as_u64().unwrap());
    assert!(logs["token_logprobs"].as_array().unwrap().iter().all(|p| p.as_f64().unwrap() <= 0.0));
    assert!(logs["top_logprobs"].as_array().unwrap().iter().all(|top| !top.as_object().unwrap().is_empty()));
    // a stop string from the middle of the answer, whole and in pieces
    let middle: String = text.chars().skip(text.chars().count() / 2).take(2).collect();
    let before = &text[..text.find(&middle).unwrap()];
    let (_, stopped) = server.post("/v1/completions", body(json!({ "stop": [middle] })));
    assert_eq!(
        (&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]),
        (&json!(before), &json!("stop"))
    );
    let chunks = server.stream("/v1/completions", body(json!({ "stop": middle, "stream": true })));
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(said, before);
    // prompts together, each with its echo; one of them as tokens
    let many =
        json!({ "model": "base", "prompt": ["The error", "A trait"], "max_tokens": 4, "temperature": 0, "echo": true });
    let (_, both) = server.post("/v1/completions", many);
    assert!(both["choices"][0]["text"].as_str().unwrap().starts_with("The error"));
    assert!(both["choices"][1]["text"].as_str().unwrap().starts_with("A trait"));
    let (status, ids) =
        server.post("/v1/completions", json!({ "model": "base", "prompt": [[5, 6, 7]], "max_tokens": 1 }));
    assert_eq!((status, &ids["usage"]["prompt_tokens"]), (200, &json!(3)));
    let logs = with(chat("Hi"), json!({ "logprobs": true, "top_logprobs": 3 }));
    let (_, logs) = server.post("/v1/chat/completions", logs);
    let first = &logs["choices"][0]["logprobs"]["content"][0];
    assert_eq!(
        (first["top_logprobs"].as_array().unwrap().len(), &first["token"]),
        (3, &first["top_logprobs"][0]["token"])
    );
}

#[test]
fn refusals_say_why() {
    let server = Server::start(|config, _| (config.max_body, config.max_n) = (20_000, 4));
    let refused = |status: u16, path: &str, body: Value| {
        let (got, value) = server.post(path, body);
        let error = &value["error"];
        assert!(got == status && error["message"].is_string() && error["type"].is_string(), "{status}: {got} {value}");
        value
    };
    for key in [None, Some("wrong"), Some("")] {
        for (method, path) in
            [("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/nowhere")]
        {
            assert_eq!(server.ask_as(method, path, key, "{}").0, 401);
        }
    }
    assert_eq!(server.ask_as("GET", "/health", None, "").0, 200);
    assert_eq!(server.ask_as("GET", "/v1/chat/completions", Some(KEY), "").0, 405);
    assert_eq!(server.ask_as("POST", "/v1/chat/completions", Some(KEY), "{").0, 400);
    refused(404, "/v1/nowhere", json!({}));
    let missing = refused(404, "/v1/chat/completions", with(chat("x"), json!({ "model": "other" })));
    assert_eq!(missing["error"]["code"], "model_not_found");
    refused(413, "/v1/chat/completions", chat(&"x".repeat(30_000)));
    for wrong in [
        json!({ "messages": [] }),
        json!({ "messages": "hello" }),
        json!({ "temperature": -1 }),
        json!({ "top_p": 7 }),
        json!({ "n": 0 }),
        json!({ "n": 5 }),
        json!({ "max_tokens": 0 }),
        json!({ "logit_bias": { "x": 1 } }),
        json!({ "logprobs": true, "top_logprobs": 99 }),
        json!({ "response_format": { "type": "json_object" } }),
        json!({ "messages": [{ "role": "user", "content": "word ".repeat(400) }] }),
    ] {
        refused(400, "/v1/chat/completions", with(chat("x"), wrong));
    }
    refused(400, "/v1/completions", json!({ "model": "base" }));
    refused(400, "/v1/completions", json!({ "model": "base", "prompt": [1_000_000_000] }));
    refused(400, "/v1/completions", json!({ "model": "base", "prompt": [] }));
    refused(403, "/v1/load_lora_adapter", json!({ "lora_name": "a", "lora_path": "/" }));
    let (status, models) = server.post("/v1/models", json!({}));
    assert_eq!(status, 405, "{models}");
    let (_, models) = server.ask_as("GET", "/v1/models", Some(KEY), "");
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("base")));
    assert!(server.metric("luthier_http_responses_total{code=\"4xx\"}") > 10.0);
}

/// What is left of a connection until the other side closes it; `None` if it did not within a minute.
fn closed(mut stream: TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => None,
        _ => Some(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

#[test]
fn slow_clients_are_let_go() {
    let short = Duration::from_millis(1500);
    let patience = Patience { idle: short, headers: short, body: short, ..Patience::default() };
    let server = Server::start(|config, _| config.patience = patience);
    let connect = || TcpStream::connect(server.address).unwrap();
    // nothing is said, at first or after a request
    assert_eq!(closed(connect()).as_deref(), Some(""));
    let mut kept = connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(closed(kept).is_some_and(|said| said.starts_with("HTTP/1.1 200")));
    // headers that never end, although there is always a bit more
    let mut trickle = connect();
    trickle.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    let started = Instant::now();
    while trickle.write_all(b"x: y\r\n").is_ok() {
        assert!(started.elapsed() < Duration::from_secs(60), "headers for a minute");
        std::thread::sleep(Duration::from_millis(100));
    }
    // a body that does not come
    let mut waits = connect();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 9\r\n\r\n");
    waits.write_all(head.as_bytes()).unwrap();
    assert!(closed(waits).is_some_and(|said| said.starts_with("HTTP/1.1 408")));
    // an answer may take longer than any of these, whole or in pieces, and two requests may share a connection
    let long = json!({ "max_tokens": 200, "ignore_eos": true, "n": 8 });
    let (whole, pieces) =
        (with(chat("Hello"), long.clone()), with(chat("Hello"), with(long, json!({ "stream": true }))));
    let started = Instant::now();
    assert_eq!(server.post("/v1/chat/completions", whole).0, 200);
    assert!(server.stream("/v1/chat/completions", pieces).len() > 100);
    println!("two long answers in {:?}", started.elapsed());
    let mut twice = connect();
    for _ in 0..2 {
        twice.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut head = [0; 15];
        twice.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        while !head.ends_with(b"\r\n\r\n") {
            head.rotate_left(1);
            twice.read_exact(&mut head[14..]).unwrap();
        }
        std::thread::sleep(short / 8);
    }
}

/// A character of several tokens: each says its own bytes, and together they are the text.
#[test]
fn logprobs_have_the_bytes_of_tokens() {
    let server = Server::start(|_, _| ());
    let ids = luthier::data::Tokenizer::load("assets/base".as_ref()).unwrap().encode("語", false).unwrap();
    assert!(ids.len() > 1, "a character of several tokens");
    for id in ids {
        let more =
            json!({ "logprobs": true, "top_logprobs": 1, "max_tokens": 1, "logit_bias": { id.to_string(): 100 } });
        let (_, said) = server.post("/v1/chat/completions", with(chat("x"), more));
        let token = &said["choices"][0]["logprobs"]["content"][0];
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert!("語".as_bytes().windows(bytes.len()).any(|part| part == bytes), "{token}");
        assert_eq!(token["token"], json!(String::from_utf8_lossy(&bytes)));
    }
}

/// 64 streams at once on 16 places; what one says, all say.
#[test]
fn many_streams_at_once() {
    let server = Server::start(|_, _| ());
    let body = with(chat("What is E0117?"), json!({ "stream": true, "max_tokens": 8 }));
    let said = |chunks: Vec<Value>| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
    };
    let alone = said(server.stream("/v1/chat/completions", body.clone()));
    std::thread::scope(|scope| {
        let streams: Vec<_> =
            (0..64).map(|_| scope.spawn(|| said(server.stream("/v1/chat/completions", body.clone())))).collect();
        for stream in streams {
            assert_eq!(stream.join().unwrap(), alone);
        }
    });
    server.settle();
    assert_eq!(server.metric("luthier_kv_pages_used"), 0.0);
    assert_eq!(server.metric("luthier_time_to_first_token_seconds_count"), 65.0);
}

/// Clients that leave take their requests with them. `LUTHIER_CYCLES=10000`, with this test alone, for the long run: only then is
/// the process's memory this test's own, and looked at.
#[test]
fn clients_that_leave() {
    let long: Option<usize> = std::env::var("LUTHIER_CYCLES").ok().map(|n| n.parse().unwrap());
    let cycles = long.unwrap_or(200);
    let server = Server::start(|_, _| ());
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) / 256
    };
    let endless = |i: usize| {
        let more = json!({ "stream": !i.is_multiple_of(3), "max_tokens": 200, "ignore_eos": true, "n": 1 + i % 2 });
        with(chat(&format!("{i} What is E0117?")), more).to_string()
    };
    let cycle = |i: usize| {
        let mut stream = server.send("POST", "/v1/chat/completions", Some(KEY), &endless(i));
        // some leave at once, some after the first bytes
        if i % 3 == 1 {
            let _ = stream.read(&mut [0; 64]).unwrap();
        }
    };
    (0..cycles / 10).for_each(cycle);
    server.settle();
    let before = resident();
    for i in 0..cycles {
        cycle(i);
        // as many at a time as the queue takes
        if i % 50 == 49 {
            server.settle();
        }
    }
    server.settle();
    assert_eq!(server.metric("luthier_kv_pages_used"), 0.0);
    let grown = resident().saturating_sub(before);
    assert!(long.is_none() || grown < 64, "{grown} MiB more after {cycles} clients");
    // and there is room for others
    assert_eq!(server.post("/v1/chat/completions", chat("Hello")).0, 200);
}

#[test]
fn a_full_queue_says_so_and_a_stop_waits() {
    let mut server = Server::start(|config, _| config.max_queue = 2);
    let endless = with(chat("Hello"), json!({ "stream": true, "max_tokens": 200, "ignore_eos": true, "n": 2 }));
    let mut first = server.send("POST", "/v1/chat/completions", Some(KEY), &endless.to_string());
    let mut head = [0; 15];
    first.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let (status, refused) = server.post("/v1/chat/completions", chat("Hello"));
    assert_eq!((status, &refused["error"]["code"]), (429, &json!("queue_full")));
    server.stop.send(true).unwrap();
    let mut rest = String::new();
    first.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "an answer on its way is finished");
    let left = server.thread.take().unwrap().join().unwrap();
    assert_eq!(left, 0, "the engine's memory is given back");
}

/// An adapter on the quickstart's model that changes what it says.
fn adapter(folder: &std::path::Path) {
    let b: &dyn Backend = &Cpu::new();
    let lora = Some(LoraConfig { r: 8, lora_alpha: 64.0, ..LoraConfig::default() });
    let options = LoadOptions { lora, ..LoadOptions::frozen(DType::F32) };
    let mut model = Model::load(b, "assets/base".as_ref(), &options).unwrap();
    for param in model.params_mut().filter(|p| p.name.contains("lora_B")) {
        let values: Vec<f32> = (0..param.elements()).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 500.0).collect();
        param.set(b, &values).unwrap();
    }
    peft::save(b, &model, "base", folder).unwrap();
}

#[test]
fn adapters_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    adapter(folder.path());
    let server = Server::start(|config, _| config.runtime_adapters = RuntimeAdapters::Allowed);
    let ask =
        |model: &str| server.post("/v1/chat/completions", with(chat("What is E0117?"), json!({ "model": model })));
    let base = ask("base").1["choices"][0]["message"]["content"].clone();
    assert_eq!(ask("mine").0, 404);
    let load = json!({ "lora_name": "mine", "lora_path": folder.path() });
    for round in 0..3 {
        let (status, said) = server.post("/v1/load_lora_adapter", load.clone());
        assert_eq!(status, 200, "{said}");
        assert_eq!(server.post("/v1/load_lora_adapter", load.clone()).0, 400, "it is there already");
        let (status, mine) = ask("mine");
        assert_eq!((status, &mine["model"]), (200, &json!("mine")));
        assert_ne!(mine["choices"][0]["message"]["content"], base, "round {round}");
        assert_eq!(ask("base").1["choices"][0]["message"]["content"], base);
        // both at once
        std::thread::scope(|scope| {
            let both = ["base", "mine", "base", "mine"].map(|model| (model, scope.spawn(move || ask(model).1)));
            for (model, answer) in both {
                let same = answer.join().unwrap()["choices"][0]["message"]["content"] == base;
                assert_eq!(same, model == "base");
            }
        });
        assert_eq!(server.post("/v1/unload_lora_adapter", json!({ "lora_name": "mine" })).0, 200);
        assert_eq!(ask("mine").0, 404);
    }
    assert_eq!(server.post("/v1/unload_lora_adapter", json!({ "lora_name": "base" })).0, 400);
    assert_eq!(server.post("/v1/load_lora_adapter", json!({ "lora_name": "x", "lora_path": "no/such" })).0, 400);
}

/// `LUTHIER_OPENAI_PYTHON` names a Python that has `openai`; without it, `python3` is tried.
#[test]
fn the_client_of_openai() {
    let python = std::env::var("LUTHIER_OPENAI_PYTHON");
    let program = python.clone().unwrap_or("python3".into());
    let has = std::process::Command::new(&program).args(["-c", "import openai"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        assert!(python.is_err(), "{program} has no `openai`");
        println!("skipped: {program} has no `openai` (pip install openai, or LUTHIER_OPENAI_PYTHON)");
        return;
    }
    let server = Server::start(|_, _| ());
    let url = format!("http://{}/v1", server.address);
    let args = ["tests/python/openai_client.py", &url, KEY, "base"];
    let output = std::process::Command::new(&program).args(args).output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim() == "ok", "{said}\n{wrong}");
}
