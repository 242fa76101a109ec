//! The same data in every format gives the same tokens and masks; sources, weights, columns; what is trained; what looks wrong.
use luthier::data::{self, DataOptions, Dataset, Example, Finding, Source, Tokenizer, TrainOn};
use serde_json::{Value, json};
use tempfile::TempDir;

const CHATS: &str = "assets/rustc_explain.jsonl";

fn base() -> Tokenizer {
    Tokenizer::load("assets/base".as_ref()).unwrap()
}

fn chats() -> Vec<Value> {
    let text = std::fs::read_to_string(CHATS).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["messages"].clone()).collect()
}

fn options(sources: Vec<Source>) -> DataOptions {
    DataOptions { sources, max_length: 1024, ..Default::default() }
}

fn load(source: Source) -> Dataset {
    data::load(&options(vec![source]), &base()).unwrap_or_else(|e| panic!("{e}"))
}

fn fails(opts: &DataOptions) -> String {
    data::load(opts, &base()).err().expect("an error").to_string()
}

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> Source {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    Source::new(path.to_str().unwrap())
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn cell(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn content(chat: &Value, i: usize) -> &str {
    chat[i]["content"].as_str().unwrap()
}

#[test]
fn every_format_gives_the_same_examples() {
    let (dir, chats) = (tempfile::tempdir().unwrap(), chats());
    let want = load(Source::new(CHATS)).train.to_vec();
    assert_eq!(want.len(), 516);
    let each = |row: &dyn Fn(&Value) -> Value| chats.iter().map(row).collect::<Vec<_>>();
    let messages = each(&|chat| json!({ "messages": chat }));
    let turn = |m: &Value| json!({"from": if m["role"] == "user" { "human" } else { "gpt" }, "value": m["content"]});
    let sharegpt = each(&|chat| json!({"conversations": [turn(&chat[0]), turn(&chat[1])]}));
    let alpaca = each(&|chat| json!({"instruction": content(chat, 0), "input": "", "output": content(chat, 1)}));
    let completion = each(&|chat| json!({"prompt": [chat[0]], "completion": [chat[1]]}));
    let table = |between: &str| -> String {
        let head = ["instruction", "output"].join(between) + "\r\n";
        let row = |chat: &Value| [cell(content(chat, 0)), cell(content(chat, 1))].join(between) + "\r\n";
        head + &chats.iter().map(row).collect::<String>()
    };
    let quoted: Vec<String> = chats.iter().map(|chat| cell(&chat.to_string()) + "\n").collect();
    let merged = Source {
        merged_prompt: Some("{question}".into()),
        columns: [("output".to_string(), "answer".to_string())].into(),
        ..write(&dir, "merged.jsonl", lines(&each(&|c| json!({"question": content(c, 0), "answer": content(c, 1)}))))
    };
    std::fs::create_dir_all(dir.path().join("parts/train")).unwrap();
    write(&dir, "parts/train/1.jsonl", lines(&messages[..200]));
    write(&dir, "parts/train/2.csv", format!("conversations\n{}", quoted[200..].join("")));
    let parts = |pattern: &str| Source::new(dir.path().join(pattern).to_str().unwrap());
    let cases = [
        parts("parts"),
        parts("parts/**/[12].*"),
        Source { split: Some("train".into()), ..parts("parts") },
        write(&dir, "a.json", serde_json::to_string_pretty(&messages).unwrap()),
        write(&dir, "b.json", format!("\u{FEFF}{}", lines(&messages).replace('\n', "\r\n\r\n"))),
        write(&dir, "c.ndjson", lines(&messages)),
        write(&dir, "d.jsonl", lines(&sharegpt)),
        write(&dir, "e.json", json!(sharegpt).to_string()),
        write(&dir, "f.jsonl", lines(&alpaca)),
        write(&dir, "g.jsonl", lines(&completion)),
        write(&dir, "h.csv", table(",")),
        write(&dir, "i.tsv", format!("\u{FEFF}{}", table("\t"))),
        write(&dir, "j.csv", format!("messages\n{}", quoted.join(""))),
        merged,
        Source::new("tests/golden/data/messages.parquet"),
    ];
    for source in cases {
        let got = load(source.clone());
        assert_eq!(got.report.records, 516, "{}", source.path);
        assert!(got.train.to_vec() == want, "{} gives other examples", source.path);
    }
    // A prompt and a completion that are texts are no chat: written as the template does, they differ in the last line end.
    let framed = each(&|chat| {
        let prompt = format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", content(chat, 0));
        json!({"prompt": prompt, "completion": format!("{}<|im_end|>", content(chat, 1))})
    });
    for (got, want) in load(write(&dir, "k.jsonl", lines(&framed))).train.to_vec().iter().zip(&want) {
        let n = got.len();
        assert!(n == want.len() || (n + 1 == want.len() && !want.trained[n]));
        assert_eq!((&got.ids[..], &got.trained[..]), (&want.ids[..n], &want.trained[..n]));
    }
}

#[test]
fn parquet_in_every_layout_and_compression() {
    let want = load(Source::new(CHATS)).train.to_vec();
    for name in ["snappy", "sharegpt_gzip", "alpaca_lz4", "completion_v2", "json_text"] {
        let got = load(Source::new(format!("tests/golden/data/{name}.parquet")));
        assert_eq!(got.train.len(), 24, "{name}");
        assert!(got.train.to_vec()[..] == want[..24], "{name} gives other examples");
    }
    let err = fails(&options(vec![Source {
        columns: [("messages".to_string(), "chat".to_string()), ("conversations".into(), "x".into())].into(),
        ..Source::new("tests/golden/data/snappy.parquet")
    }]));
    assert!(err.contains("snappy.parquet: schema: must have") && err.contains("has only id, messages"), "{err}");
}

#[test]
fn a_folder_is_its_files_in_order() {
    let (dir, rows) = (tempfile::tempdir().unwrap(), chats());
    let rows: Vec<Value> = rows.iter().map(|chat| json!({ "messages": chat })).collect();
    write(&dir, "2.jsonl", lines(&rows[20..30]));
    write(&dir, "1.json", json!(rows[..20]).to_string());
    write(&dir, "README.md", "not data");
    let folder = load(Source::new(dir.path().to_str().unwrap()));
    assert!(folder.train.to_vec()[..] == load(Source::new(CHATS)).train.to_vec()[..30] && folder.report.files == 2);
}

/// How often each text of `examples` comes.
fn times(examples: &[Example], tokenizer: &Tokenizer) -> std::collections::BTreeMap<String, usize> {
    let mut out = std::collections::BTreeMap::new();
    for example in examples {
        *out.entry(tokenizer.decode(&example.ids, true).unwrap()).or_default() += 1;
    }
    out
}

#[test]
fn weights_say_how_often_an_epoch_sees_a_record() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), base());
    let texts = |name: &str| (0..20).map(|i| json!({"text": format!("{name} {i}")})).collect::<Vec<_>>();
    let [a, b, c] = ["a", "b", "c"].map(|name| write(&dir, &format!("{name}.jsonl"), lines(&texts(name))));
    let sources = vec![Source { weight: 2.0, ..a }, Source { weight: 0.25, ..b.clone() }, Source { weight: 1.5, ..c }];
    let opts = options(sources);
    let data = data::load(&opts, &tokenizer).unwrap();
    let times = times(&data.train.to_vec(), &tokenizer);
    let of = |name: &str| times.iter().filter(|(text, _)| text.starts_with(name)).map(|(_, n)| *n).collect::<Vec<_>>();
    assert_eq!(of("a "), [2; 20]);
    assert_eq!(of("b "), [1; 5]);
    assert_eq!((of("c ").len(), of("c ").iter().sum::<usize>()), (20, 30));
    let again = data::load(&opts, &tokenizer).unwrap();
    assert_eq!(again.report, data.report);
    assert_ne!(
        data::load(&DataOptions { seed: 1, ..opts.clone() }, &tokenizer).unwrap().report.fingerprint,
        data.report.fingerprint
    );
    // what is held out is never trained on, however often its source comes
    let held = data::load(&DataOptions { eval_split: 0.2, ..opts }, &tokenizer).unwrap();
    assert_eq!((held.eval.len(), held.report.findings.count(Finding::EvalInTrain)), (12, 0));
    assert!(held.eval.iter().all(|e| !held.train.iter().any(|t| t == e)));
    let opts = DataOptions { eval_sources: vec![Source { weight: 2.0, ..b.clone() }], ..options(vec![b.clone()]) };
    assert!(fails(&opts).contains("take its weight out"));
    assert!(fails(&options(vec![Source { weight: 0.01, ..b }])).contains("weight 0.01 leaves none of 20 records"));
}

#[test]
fn chats_go_on_with_others() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), base());
    let chat = |i: usize| json!({"instruction": format!("q{i}?"), "output": format!("a{i}!")});
    let rows: Vec<Value> = (0..50).map(chat).collect();
    let source = Source { conversation_extension: 3, ..write(&dir, "a.jsonl", lines(&rows)) };
    let data = load(source.clone());
    assert_eq!(data.train.len(), 50);
    let (mut seen, mut moved) = (vec![0; 50], 0);
    for (i, example) in data.train.to_vec().iter().enumerate() {
        let text = tokenizer.decode(&example.ids, false).unwrap();
        let turns: Vec<usize> =
            text.split("user\nq").skip(1).map(|part| part.split('?').next().unwrap().parse().unwrap()).collect();
        assert_eq!((turns.len(), turns[0]), (3, i), "{text}");
        moved += usize::from(turns[1] != i);
        for turn in turns {
            assert!(text.contains(&format!("q{turn}?<|im_end|>\n<|im_start|>assistant\na{turn}!<|im_end|>")), "{text}");
            seen[turn] += 1;
        }
        let trained: Vec<u32> =
            example.ids.iter().zip(&example.trained).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
        assert_eq!(tokenizer.decode(&trained, false).unwrap().matches("!<|im_end|>").count(), 3);
    }
    assert!(seen.iter().all(|n| *n == 3) && moved > 40, "{seen:?}, {moved}");
    assert_eq!(load(source.clone()).report, data.report);
    let text = write(&dir, "b.jsonl", "{\"text\": \"x\"}");
    assert!(
        fails(&options(vec![Source { conversation_extension: 2, ..text }]))
            .contains("b.jsonl: line 1: conversation_extension joins chats")
    );
    let system = |i: usize| json!({"instruction": "q", "output": "a", "system": format!("s{i}")});
    let differing = write(&dir, "c.jsonl", lines(&[system(1), system(2), system(3)]));
    assert!(fails(&options(vec![Source { conversation_extension: 3, ..differing }])).contains("one system message"));
}

/// The trained parts of the only record, as text.
fn trained(source: &Source, train_on: TrainOn) -> Vec<String> {
    let tokenizer = base();
    let data = data::load(&DataOptions { train_on, ..options(vec![source.clone()]) }, &tokenizer).unwrap();
    let (example, mut at, mut out) = (&data.train.to_vec()[0], 0, vec![]);
    for run in example.trained.chunk_by(|a, b| a == b) {
        if run[0] {
            out.push(tokenizer.decode(&example.ids[at..at + run.len()], false).unwrap());
        }
        at += run.len();
    }
    out
}

#[test]
fn what_is_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let m = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = json!([m("user", "a"), m("assistant", "b"), m("user", "c"), m("assistant", "d"), m("user", "e")]);
    let chat = write(&dir, "a.jsonl", json!({ "messages": messages }).to_string());
    assert_eq!(trained(&chat, TrainOn::Assistant), ["b<|im_end|>", "d<|im_end|>"]);
    assert_eq!(trained(&chat, TrainOn::LastTurn), ["d<|im_end|>"]);
    let whole = "<|begin_of_text|><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n\
        <|im_start|>assistant\nd<|im_end|>\n<|im_start|>user\ne<|im_end|>\n";
    assert_eq!(trained(&chat, TrainOn::Chat), [whole]);
    let parts = json!({"prompt": [m("user", "a"), m("assistant", "b"), m("user", "c")], "completion": [m("assistant", "d"), m("user", "e"), m("assistant", "f")]});
    let parts = write(&dir, "b.jsonl", parts.to_string());
    assert_eq!(trained(&parts, TrainOn::Assistant), ["d<|im_end|>", "f<|im_end|>"]);
    assert_eq!(trained(&parts, TrainOn::LastTurn), ["f<|im_end|>"]);
    assert_eq!(trained(&parts, TrainOn::Chat)[0][..11], *"d<|im_end|>");
    assert!(trained(&parts, TrainOn::Everything)[0].starts_with("<|begin_of_text|><|im_start|>user\na"));
    let texts = write(&dir, "c.jsonl", r#"{"prompt": "2 + 2 = ", "completion": "4"}"#);
    for train_on in [TrainOn::Assistant, TrainOn::LastTurn, TrainOn::Chat] {
        assert_eq!(trained(&texts, train_on), ["4<|end_of_text|>"]);
    }
    assert_eq!(trained(&texts, TrainOn::Everything), ["<|begin_of_text|>2 + 2 = 4<|end_of_text|>"]);
}

/// The same with a template that marks nothing, so that its structure is asked.
#[test]
fn the_last_turn_is_found_in_a_template_without_marks() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), base());
    let bare = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let template = write(&dir, "bare.jinja", bare).path;
    let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]});
    let source = write(&dir, "a.jsonl", row.to_string());
    let opts = DataOptions { train_on: TrainOn::LastTurn, chat_template: Some(template), ..options(vec![source]) };
    let example = &data::load(&opts, &tokenizer).unwrap().train.to_vec()[0];
    let ids: Vec<u32> = example.ids.iter().zip(&example.trained).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "d<|im_end|>");
}

#[test]
fn what_looks_wrong_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let say =
        |text: &str| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]});
    let finding = |opts: DataOptions, tokenizer: &Tokenizer| data::load(&opts, tokenizer).unwrap().report.findings;
    let rows = [say("one"), say("two"), say("one"), say(&"long ".repeat(2000))];
    let chats = write(&dir, "a.jsonl", lines(&rows));
    let found = finding(options(vec![chats.clone()]), &base());
    let count = |f: Finding| found.count(f);
    assert_eq!([Finding::Truncated, Finding::AnswerCut, Finding::Repeated, Finding::OpenEnd].map(count), [1, 1, 1, 0]);
    let cut = found.iter().find(|f| f.finding == Finding::AnswerCut).unwrap().to_string();
    assert!(cut.contains("raise max_length") && cut.contains("a.jsonl: line 4"), "{cut}");
    // a template whose end token ends nothing, and whose tokens are spelled out
    let opts =
        DataOptions { chat_template: Some("gemma".into()), ..options(vec![write(&dir, "b.jsonl", lines(&rows[..2]))]) };
    let found = finding(opts, &base());
    assert_eq!((found.count(Finding::TemplateTokens), found.count(Finding::EosAdded)), (2, 2));
    let tokens = found.iter().find(|f| f.finding == Finding::TemplateTokens).unwrap().to_string();
    assert!(tokens.contains("<start_of_turn>"), "{tokens}");
    let twice = write(&dir, "c.jsonl", json!({"text": "<|begin_of_text|>x"}).to_string());
    assert_eq!(finding(options(vec![twice]), &base()).count(Finding::DoubleBos), 1);
    // <|im_end|> is an end only because generation_config.json says so
    let model = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(format!("assets/base/{name}"), model.path().join(name)).unwrap();
    }
    let found = finding(options(vec![chats.clone()]), &Tokenizer::load(model.path()).unwrap());
    assert_eq!(found.count(Finding::OpenEnd), 4);
    let opts = DataOptions { eval_sources: vec![write(&dir, "d.jsonl", lines(&rows[..1]))], ..options(vec![chats]) };
    assert_eq!(finding(opts, &base()).count(Finding::EvalInTrain), 1);
}
