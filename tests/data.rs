//! Data files -> batches: chat templates against transformers' own renderings, masks, packing, errors, hostile files.
use luthier::data::tokenizer::TemplateText;
use luthier::data::{
    self, Batch, BatchOptions, Chat, DataOptions, EpochPlan, Example, ExampleRef, Finding, IGNORE, Packing, Source,
    Template, Tokenizer, TrainOn,
};
use luthier::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashMap;
use tempfile::TempDir;

fn base() -> Tokenizer {
    Tokenizer::load("assets/base".as_ref()).unwrap()
}

fn base_json() -> Value {
    serde_json::from_str(&std::fs::read_to_string("assets/base/tokenizer.json").unwrap()).unwrap()
}

/// A model directory with these files.
fn model(tokenizer: &str, config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn load_model(tokenizer: &Value, config: &Value) -> Result<Tokenizer> {
    Tokenizer::load(model(&tokenizer.to_string(), config).path())
}

/// The base tokenizer with more special tokens.
fn with_special(special: &Value, names: &Value) -> Tokenizer {
    let mut json = base_json();
    for (i, token) in special.as_array().unwrap().iter().enumerate() {
        let list = json["added_tokens"].as_array_mut().unwrap();
        if !list.iter().any(|t| t["content"] == *token) {
            let mut new = list[0].clone();
            (new["content"], new["id"]) = (token.clone(), (4096 + i).into());
            list.push(new);
        }
    }
    load_model(&json, names).unwrap()
}

fn chat(case: &Value) -> Chat {
    let messages = case["messages"].as_array().unwrap().iter().map(|m| m.as_object().unwrap().clone()).collect();
    Chat { messages, tools: Some(case["tools"].clone()).filter(|t| !t.is_null()) }
}

fn ranges(value: &Value) -> Vec<std::ops::Range<usize>> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|r| r[0].as_u64().unwrap() as usize..r[1].as_u64().unwrap() as usize).collect()
}

/// `.. golden.json`: made by transformers; each template once with {% generation %} and once (`/bare`) without.
#[test]
fn templates_render_as_in_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/templates/golden.json")).unwrap();
    let tokenizer = with_special(&golden["special"], &golden["names"]);
    let sources = golden["templates"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_string());
    let templates: Vec<Template> =
        sources.map(|text| Template::new(&TemplateText { file: "golden".into(), text }, &tokenizer).unwrap()).collect();
    let mut refused = 0;
    for case in golden["cases"].as_array().unwrap() {
        let (name, chat) = (case["name"].as_str().unwrap(), chat(case));
        let template = &templates[case["template"].as_u64().unwrap() as usize];
        assert_eq!(template.render(&chat, false).unwrap(), case["text"].as_str().unwrap(), "{name}");
        assert_eq!(template.render(&chat, true).unwrap(), case["prompt"].as_str().unwrap(), "{name}");
        let got = template.render_assistant(&chat);
        if name.starts_with("odd/") && name.ends_with("/bare") {
            // It begins with all roles: no conversation is a prefix of a longer one.
            assert!(got.unwrap_err().to_string().contains("cannot be told apart"), "{name}");
            refused += 1;
            continue;
        }
        let got = got.unwrap();
        assert_eq!(got.text, case["text"].as_str().unwrap(), "{name}");
        let words = |ranges: &[std::ops::Range<usize>]| {
            ranges.iter().map(|r| got.text[r.clone()].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(words(&got.assistant), words(&ranges(&case["assistant"])), "{name}");
        assert_eq!(got.assistant, ranges(&case["assistant"]), "{name}");
    }
    assert_eq!(refused, 6);
}

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_string()
}

fn options(files: Vec<String>) -> DataOptions {
    DataOptions { sources: files.into_iter().map(Source::new).collect(), max_length: 256, ..Default::default() }
}

#[test]
fn masks_cover_the_assistants_words_and_its_end_token() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), base());
    let line = json!({"messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi assistant"},
        {"role": "assistant", "content": "Hello, «world» 🙂\n"}, {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you"}]});
    let file = write(&dir, "a.jsonl", line.to_string());
    for template in [None, Some("chatml".to_string())] {
        let opts = DataOptions { chat_template: template, ..options(vec![file.clone()]) };
        let data = data::load(&opts, &tokenizer).unwrap();
        let example = &data.train.to_vec()[0];
        let text = |wanted: bool| {
            let runs = example.trained.chunk_by(|a, b| a == b);
            let (mut at, mut out) = (0, vec![]);
            for run in runs {
                if run[0] == wanted {
                    out.push(tokenizer.decode(&example.ids[at..at + run.len()], false).unwrap());
                }
                at += run.len();
            }
            out
        };
        assert_eq!(text(true), ["Hello, «world» 🙂\n<|im_end|>", "See you<|im_end|>"]);
        assert_eq!(
            text(false)[0],
            "<|begin_of_text|><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n\
            Hi assistant<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            (data.report.findings.count(Finding::EosAdded), data.report.findings.count(Finding::Truncated)),
            (0, 0)
        );
    }
    let all = data::load(&DataOptions { train_on: TrainOn::Chat, ..options(vec![file]) }, &tokenizer).unwrap();
    assert_eq!(all.train.get(0).targets(), all.train.get(0).len() - 1);
}

#[test]
fn texts_and_completions_end_with_eos() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), base());
    let file =
        write(&dir, "a.jsonl", "{\"text\": \"let x = 1;\"}\r\n\n{\"prompt\": \"2 + 2 = \", \"completion\": \"4\"}");
    let data = data::load(&DataOptions { train_on: TrainOn::Chat, ..options(vec![file]) }, &tokenizer).unwrap();
    let [text, completion] = &data.train.to_vec()[..] else { panic!("two examples") };
    assert_eq!(tokenizer.decode(&text.ids, false).unwrap(), "<|begin_of_text|>let x = 1;<|end_of_text|>");
    assert_eq!(text.targets(), text.len() - 1);
    let trained: Vec<u32> =
        completion.ids.iter().zip(&completion.trained).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&trained, false).unwrap(), "4<|end_of_text|>");
    assert_eq!((data.report.records, data.report.findings.count(Finding::EosAdded)), (2, 2));
}

#[test]
fn long_chats_are_cut_and_chats_without_words_are_left_out() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), base());
    let ask = |n: usize| json!({"messages": [{"role": "user", "content": "word ".repeat(n)}, {"role": "assistant", "content": "yes <|pad|>"}]});
    let asks = [ask(2), ask(500), json!({"messages": [{"role": "user", "content": "anyone?"}]})].map(|v| v.to_string());
    let data = data::load(&options(vec![write(&dir, "a.jsonl", asks.join("\n"))]), &tokenizer).unwrap();
    let r = &data.report;
    assert_eq!((data.train.len(), r.records), (1, 3));
    let counts = [Finding::Truncated, Finding::WithoutTargets, Finding::SpecialInContent].map(|f| r.findings.count(f));
    assert_eq!(counts, [1, 2, 2]);
    let none = data::load(&options(vec![write(&dir, "b.jsonl", &asks[2])]), &tokenizer).err().unwrap();
    assert!(none.to_string().contains("b.jsonl: the loss counts no token of any of the 1 records"), "{none}");
}

#[test]
fn the_quickstarts_data_loads() {
    let tokenizer = base();
    let whole =
        data::load(&DataOptions { max_length: 1024, ..options(vec!["assets/*.jsonl".into()]) }, &tokenizer).unwrap();
    // As transformers' apply_chat_template counts them: input_ids, and assistant_masks but for the first token.
    assert_eq!((whole.report.tokens, whole.report.targets), (137_159, 123_179));
    let opts = DataOptions { max_length: 2048, eval_split: 0.05, seed: 7, ..options(vec!["assets/*.jsonl".into()]) };
    let data = data::load(&opts, &tokenizer).unwrap();
    assert_eq!(
        (data.report.records, data.train.len(), data.eval.len(), data.report.findings.count(Finding::WithoutTargets)),
        (516, 490, 26, 0)
    );
    let again = data::load(&opts, &tokenizer).unwrap();
    assert_eq!(data.report, again.report);
    let other = data::load(&DataOptions { seed: 8, ..opts }, &tokenizer).unwrap();
    assert_ne!(data.report.fingerprint, other.report.fingerprint);
}

#[test]
fn pretraining_takes_documents() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), base());
    let file = write(&dir, "a.txt", format!("one\n\x0C{}\x0C\n\x0Cthree", "two ".repeat(300)));
    let opts = DataOptions { pretrain: true, max_length: 64, train_on: TrainOn::Chat, ..options(vec![file.clone()]) };
    let data = data::load(&opts, &tokenizer).unwrap();
    assert_eq!(data.train.len(), 3);
    assert!(data.train.get(1).len() > 300 && data.report.findings.count(Finding::Truncated) == 0);
    assert!(
        data.train
            .iter()
            .map(ExampleRef::to_example)
            .all(|e| e.ids[0] == tokenizer.bos_id().unwrap() && e.ids.last() == Some(&tokenizer.eos_id().unwrap()))
    );
    let err = data::load(&DataOptions { pretrain: false, ..opts }, &tokenizer).err().unwrap();
    assert!(err.to_string().contains("a.txt: plain text is for pretraining"), "{err}");
}

// -- packing

/// Examples whose tokens are all different, so that each can be told from any other.
fn numbered(lengths: &[usize]) -> Vec<Example> {
    let mut next = 0;
    let example = |len: &usize| {
        let ids: Vec<u32> = (next..next + *len as u32).collect();
        next += *len as u32;
        Example { trained: ids.iter().map(|id| id % 3 != 0).collect(), ids }
    };
    lengths.iter().map(example).collect()
}

fn lengths(seed: u64, n: usize, max: u64) -> Vec<usize> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) % max + 1
    };
    (0..n).map(|_| next() as usize).collect()
}

const PAD: u32 = u32::MAX - 1;

/// Every invariant of a batch that does not depend on which examples are in it.
fn check_batch(batch: &Batch, opts: &BatchOptions, trained: &HashMap<u32, bool>, owner: &HashMap<u32, usize>) {
    let total = opts.rows * opts.max_length;
    assert_eq!([batch.ids.len(), batch.labels.len(), batch.positions.len()], [total; 3]);
    assert_eq!((batch.cu_seqlens[0], *batch.cu_seqlens.last().unwrap()), (0, total as u32));
    assert_eq!(batch.tokens, batch.ids.iter().filter(|id| **id != PAD).count());
    assert_eq!(batch.counted, batch.labels.iter().filter(|l| **l != IGNORE).count());
    for span in batch.cu_seqlens.windows(2) {
        let (start, end) = (span[0] as usize, span[1] as usize);
        assert!(start < end && start / opts.max_length == (end - 1) / opts.max_length, "a sequence stays in its row");
        let ids = &batch.ids[start..end];
        assert!(ids.iter().all(|id| owner.get(id) == owner.get(&ids[0])), "a sequence is of one example");
        for n in start..end {
            assert_eq!(batch.positions[n] as usize, n - start);
            let (id, label) = (batch.ids[n], batch.labels[n]);
            if id == PAD {
                assert_eq!(label, IGNORE);
            } else if label != IGNORE {
                assert!(label == id + 1 && trained[&label] && owner[&label] == owner[&id]);
                assert!(n + 1 == end || batch.ids[n + 1] == label);
            } else {
                assert!(
                    trained.get(&(id + 1)) != Some(&true) || owner.get(&(id + 1)) != owner.get(&id),
                    "no target is lost"
                );
            }
        }
    }
}

#[test]
fn packing_loses_nothing_and_mixes_nothing() {
    for (seed, packing) in (0..60).map(|i| (i, [Packing::Off, Packing::Bfd, Packing::Wrapped][i as usize % 3])) {
        let max_length = [16, 33, 128][seed as usize / 3 % 3];
        let longest = if packing == Packing::Wrapped { 3 * max_length } else { max_length };
        let examples = numbered(&lengths(seed, 1 + seed as usize * 7, longest as u64));
        let opts = BatchOptions {
            max_length,
            rows: 1 + seed as usize % 4,
            packing,
            seed,
            shuffle: seed % 5 != 0,
            pad_id: PAD,
        };
        let owner = examples.iter().enumerate().flat_map(|(i, e)| e.ids.iter().map(move |id| (*id, i))).collect();
        let trained = examples.iter().flat_map(|e| e.ids.iter().copied().zip(e.trained.iter().copied())).collect();
        for epoch in 0..2 {
            let all: Vec<Batch> = data::batches(&examples.iter().cloned().collect(), &opts, epoch).collect();
            all.iter().for_each(|batch| check_batch(batch, &opts, &trained, &owner));
            let mut seen: Vec<u32> = all.iter().flat_map(|b| &b.ids).copied().filter(|id| *id != PAD).collect();
            seen.sort();
            let total: usize = examples.iter().map(Example::len).sum();
            assert!(seen.iter().copied().eq(0..total as u32), "each token comes once");
            assert_eq!(
                all.iter().map(|b| b.counted).sum::<usize>(),
                examples.iter().map(Example::targets).sum::<usize>()
            );
            if packing == Packing::Wrapped {
                assert_eq!(all.len(), total.div_ceil(max_length).div_ceil(opts.rows));
            }
        }
    }
}

#[test]
fn best_fit_fills_the_rows() {
    let lengths = lengths(3, 10_000, 512);
    let opts = BatchOptions { max_length: 1024, rows: 1, packing: Packing::Bfd, seed: 1, shuffle: true, pad_id: PAD };
    let plan = EpochPlan::new(&lengths, &opts, 0);
    let full = lengths.iter().sum::<usize>() as f64 / (plan.rows.len() * 1024) as f64;
    assert!(full > 0.99, "{full}");
}

#[test]
fn a_plan_is_a_function_of_lengths_options_and_epoch() {
    let lengths = lengths(9, 1000, 64);
    for packing in [Packing::Off, Packing::Bfd, Packing::Wrapped] {
        let opts = BatchOptions { max_length: 64, rows: 4, packing, seed: 1, shuffle: true, pad_id: PAD };
        let plan = EpochPlan::new(&lengths, &opts, 3);
        assert_eq!(plan, EpochPlan::new(&lengths, &opts, 3));
        assert_ne!(plan.rows, EpochPlan::new(&lengths, &opts, 4).rows);
        assert_ne!(plan.rows, EpochPlan::new(&lengths, &BatchOptions { seed: 2, ..opts.clone() }, 3).rows);
        let calm = BatchOptions { shuffle: false, ..opts };
        assert_eq!(EpochPlan::new(&lengths, &calm, 3).rows, EpochPlan::new(&lengths, &calm, 4).rows);
    }
    // Pinned: a resumed run must find the order of the run that it resumes, whatever version of luthier that was.
    let opts = BatchOptions { max_length: 8, rows: 1, packing: Packing::Off, seed: 5, shuffle: true, pad_id: PAD };
    let order: Vec<usize> = EpochPlan::new(&[8; 8], &opts, 1).rows.iter().map(|row| row[0].example).collect();
    assert_eq!(order, [2, 3, 5, 7, 6, 4, 1, 0]);
}

// -- bad input

#[test]
fn errors_name_file_and_line() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), base());
    let good = "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}\n";
    for (name, bytes, want) in [
        (
            "a.jsonl",
            format!("{good}\n{{\"messages\": []}}\n{{\n").into_bytes(),
            "a.jsonl: line 3: `messages` is empty (1 more bad lines)",
        ),
        ("b.jsonl", b"\n\n".to_vec(), "b.jsonl: has no record"),
        ("c.jsonl", b"[{}]".to_vec(), "c.jsonl: line 1: must have `messages`"),
        (
            "d.jsonl",
            b"\x1F\x8B\x08\0".to_vec(),
            "d.jsonl: must be JSON Lines, JSON, CSV, Parquet or text in UTF-8, but looks like gzip",
        ),
        ("e.jsonl", b"{\"text\": \"\xFF\"}".to_vec(), "e.jsonl: line 1: must be UTF-8, is not at byte 10"),
        ("f.jsonl", vec![b' '; 3], "f.jsonl: has no record"),
        (
            "h.jsonl",
            [b"{\"text\": \"", &vec![b'x'; 17 << 20][..], b"\"}"].concat(),
            "h.jsonl: line 1: has 17825804 bytes",
        ),
    ] {
        let err = data::load(&options(vec![write(&dir, name, bytes)]), &tokenizer).err().unwrap();
        assert!(matches!(err, Error::Content { .. }) && err.to_string().contains(want), "{name}: {err}");
    }
    // a text has no roles: all of it counts, whatever assistant_only_loss says
    let text = data::load(&options(vec![write(&dir, "text.jsonl", b"{\"text\": \"x y\"}")]), &tokenizer).unwrap();
    assert!(text.train.get(0).trained().all(|t| t));
    let at = |entry: &str| data::load(&options(vec![entry.to_string()]), &tokenizer).err().unwrap();
    assert!(matches!(at("no/such.jsonl"), Error::Read { .. }));
    assert!(at("no/such*.jsonl").to_string().contains("matches no file"));
    assert!(at(tempfile::tempdir().unwrap().path().to_str().unwrap()).to_string().contains("a folder without data"));
    let opts = DataOptions { chat_template: Some("vicunja".into()), ..options(vec![write(&dir, "i.jsonl", good)]) };
    assert_eq!(data::load(&opts, &tokenizer).err().unwrap().exit_code(), 2);
}

/// A tokenizer.json that contradicts itself is refused, never a panic or a hang.
#[test]
fn hostile_tokenizers_are_refused() {
    let config = json!({});
    assert!(load_model(&base_json(), &config).is_ok());
    let set = |pointer: &str, value: Value| {
        let mut json = base_json();
        *json.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        json
    };
    for (pointer, value) in [
        ("/model", Value::Null),
        ("/model", json!({"type": "Nonsense", "vocab": {"a": 0}})),
        ("/model/vocab", json!({})),
        ("/model/vocab/!", json!(4294967295u64)),
        ("/model/vocab/!", json!(-1)),
        ("/model/vocab/!", json!(77)),
        ("/model/merges", json!("x")),
        ("/model/merges/0", json!(["zzzz", "a"])),
        ("/model/merges/0", json!(["a", "b", "c"])),
        ("/model/merges/0", json!("")),
        ("/model/continuing_subword_prefix", json!("much longer than any token")),
        ("/added_tokens/0/content", json!("")),
        ("/added_tokens/0/id", json!(4e9 as u64)),
        ("/added_tokens/0/content", json!("<|end_of_text|>")),
        ("/normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"})),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}); 9]}),
        ),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": null})),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "!!!!"})),
        ("/normalizer", json!({"type": "Sequence", "normalizers": [""]})),
        ("/normalizer", json!({"type": "Prepend", "prepend": ""})),
        ("/normalizer", json!("")),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": false}),
        ),
        ("/pre_tokenizer", json!({"type": "Metaspace", "replacement": "", "prepend_scheme": "always"})),
        ("/post_processor/single", json!([{"SpecialToken": {"id": "[CLS]", "type_id": 0}}])),
        ("/post_processor/special_tokens", json!({})),
        ("/post_processor/special_tokens/<|begin_of_text|>/ids", json!([99999])),
        ("/decoder", json!({"type": "Strip", "content": "a", "start": 99, "stop": 99, "x": [[[]]]})),
    ] {
        let text = format!("{pointer} = {value}");
        match load_model(&set(pointer, value), &config) {
            Err(err) => assert!(matches!(err, Error::Content { .. }), "{text}: {err:?}"),
            Ok(_) => assert!(text.contains("Strip"), "{text}: was taken"),
        }
    }
    for text in ["", "null", "[]", "{", "<!DOCTYPE html>", "{\"model\": 1}", &"[".repeat(200_000), "\u{FEFF}{}"] {
        assert!(matches!(Tokenizer::load(model(text, &config).path()), Err(Error::Content { .. })), "{}", text.len());
    }
    for config in [
        json!({"eos_token": "</none>"}),
        json!({"chat_template": 7}),
        json!({"chat_template": [{"name": "rag"}]}),
        json!([]),
    ] {
        assert!(matches!(load_model(&base_json(), &config), Err(Error::Content { .. })), "{config}");
    }
}

/// Truncation, padding and dropout of merges would change or blow up what is encoded.
#[test]
fn padding_truncation_and_dropout_are_set_aside() {
    let mut json = base_json();
    json["truncation"] = json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5});
    json["padding"] = json!({"strategy": {"Fixed": 2000000000u64}, "direction": "Right", "pad_to_multiple_of": 1u64 << 40,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    json["model"]["dropout"] = json!(0.5);
    let (changed, base) = (load_model(&json, &json!({})).unwrap(), base());
    let text = "Some text, encoded the same way twice.";
    assert_eq!(changed.encode(text, true).unwrap(), base.encode(text, true).unwrap());
}

/// A pattern that would backtrack for ever gives up, and no text is lost.
#[test]
fn a_pattern_that_backtracks_gives_up() {
    let mut json = base_json();
    let split =
        json!({"type": "Split", "pattern": {"Regex": "(?=(a+a+)+$)b?"}, "behavior": "Isolated", "invert": false});
    json["pre_tokenizer"]["pretokenizers"][0] = split;
    let (tokenizer, text) = (load_model(&json, &json!({})).unwrap(), format!("{}c", "a".repeat(60)));
    let start = std::time::Instant::now();
    let ids = tokenizer.encode(&text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

#[test]
fn hostile_templates_are_refused() {
    let tokenizer = base();
    let chat = chat(&json!({"messages": [{"role": "user", "content": "x"}]}));
    let long = " ".repeat(129 << 10);
    for source in [
        "",
        "  ",
        long.as_str(),
        "{% for x in y %}",
        "{{",
        "{% nonsense %}",
        "{{ x | nonsense }}",
        "{% generation %}x",
        "{{ messages[5].role.x }}",
        "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
        "{{ raise_exception('No \u{1b}[31m') }}",
        "{% for a in range(99999) %}{% for a in range(99999) %}{% endfor %}{% endfor %}",
        "{% include 'chat' %}",
        "{% for i in range(3000) %}{{ 'x' * 10000 }}{% endfor %}",
        &"(".repeat(5000),
        &format!("{{{{ {} }}}}", "(".repeat(5000)),
    ] {
        let text = TemplateText { file: "t".into(), text: source.into() };
        let out = Template::new(&text, &tokenizer).and_then(|t| t.render(&chat, false));
        if source.starts_with('(') {
            assert_eq!(out.unwrap(), source);
            continue;
        }
        let err = out.expect_err(source);
        assert!(matches!(err, Error::Content { .. }) && !err.to_string().contains('\u{1b}'), "{source}: {err:?}");
    }
    let text = TemplateText { file: "t".into(), text: "{{ messages[0].content }}".into() };
    let mark = self::chat(&json!({"messages": [{"role": "assistant", "content": "\u{FDD0}x\u{FDD1}"}]}));
    let template = Template::new(&text, &tokenizer).unwrap();
    assert!(template.render_assistant(&mark).is_err() && template.render(&mark, false).is_err());
}

// -- tokenizer

#[test]
fn a_stream_shows_whole_characters() {
    let tokenizer = base();
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
        (4096, Some(0), Some(1), 4)
    );
    assert_eq!(tokenizer.eos_ids(), [1, 3]);
    let text = "fn main() { println!(\"Grüße, 世界 🙂\"); }";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    let mut stream = tokenizer.stream(true);
    let parts: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert!(parts.iter().all(|part| !part.contains('\u{FFFD}')) && parts.iter().any(String::is_empty));
    assert_eq!(parts.concat() + &stream.finish().unwrap(), text);
}
