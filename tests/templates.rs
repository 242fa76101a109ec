//! Chat templates that model families ship with, and the built-in ones, against transformers' renderings.
use luthier::data::tokenizer::TemplateText;
use luthier::data::{Chat, Template, Tokenizer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The control tokens of the families, which their tokenizers have.
const SPECIAL: &[&str] = &[
    "<s>",
    "</s>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|user|>",
    "<|system|>",
    "<|assistant|>",
    "<|im_sep|>",
    "[INST]",
    "[/INST]",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<|start_of_role|>",
    "<|end_of_role|>",
];

/// The base tokenizer under other names of BOS and EOS, with those tokens.
fn tokenizer(names: &Value) -> Tokenizer {
    let mut json: Value =
        serde_json::from_str(&std::fs::read_to_string("assets/base/tokenizer.json").unwrap()).unwrap();
    for (i, token) in SPECIAL.iter().enumerate() {
        let list = json["added_tokens"].as_array_mut().unwrap();
        let mut new = list[0].clone();
        (new["content"], new["id"]) = ((*token).into(), (4096 + i).into());
        list.push(new);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), names.to_string()).unwrap();
    Tokenizer::load(dir.path()).unwrap()
}

fn chat(json: &Value) -> Chat {
    let messages = json["messages"].as_array().unwrap().iter().map(|m| m.as_object().unwrap().clone()).collect();
    Chat { messages, tools: Some(json["tools"].clone()).filter(|t| !t.is_null()) }
}

fn golden() -> Value {
    let file = std::env::var("LUTHIER_TEMPLATES").unwrap_or("tests/golden/templates/published.json".into());
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// A rendering, or `null` where the template refuses.
fn rendered(template: &Template, chat: &Chat, prompt: bool) -> Value {
    template.render(chat, prompt).map_or(Value::Null, Value::from)
}

#[test]
fn published_templates_render_as_in_transformers() {
    let golden = golden();
    let tokenizer = tokenizer(&golden["names"]);
    let (mut templates, mut wrong, mut refused) = (BTreeMap::<&str, Template>::new(), vec![], 0);
    for case in golden["cases"].as_array().unwrap() {
        let (name, which) = (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
        let template = templates.entry(name).or_insert_with(|| {
            let folder = std::env::var("LUTHIER_TEMPLATE_FOLDER").unwrap_or("tests/golden/templates/published".into());
            let file = std::path::PathBuf::from(format!("{folder}/{name}.jinja"));
            let text = std::fs::read_to_string(&file).unwrap();
            let text = text.strip_suffix('\n').unwrap_or(&text).to_string();
            Template::new(&TemplateText { file, text }, &tokenizer).unwrap_or_else(|e| panic!("{e}"))
        });
        let chat = chat(&golden["chats"][which]);
        refused += usize::from(case["text"].is_null());
        for (prompt, want) in [(false, &case["text"]), (true, &case["prompt"])] {
            let got = rendered(template, &chat, prompt);
            if got != *want {
                let why = template.render(&chat, prompt).err().map_or(String::new(), |e| e.to_string());
                wrong.push(format!("{name} / {which} / prompt {prompt}\n  got    {got}\n  wanted {want}\n  {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} renderings differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(templates.len() >= 12 && refused > 0, "{} templates, {refused} refusals", templates.len());
}

/// Of every published template that marks nothing itself: what is taken for the assistant's is what it says, and only that.
#[test]
fn the_assistants_words_are_found_in_published_templates() {
    let golden = golden();
    let tokenizer = tokenizer(&golden["names"]);
    let (mut found, mut refused) = (0, vec![]);
    for case in golden["cases"].as_array().unwrap().iter().filter(|case| !case["text"].is_null()) {
        let (name, which) = (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
        if !["one", "system", "many", "open", "tools"].contains(&which) {
            continue;
        }
        let file = format!("tests/golden/templates/published/{name}.jinja");
        let text = std::fs::read_to_string(&file).unwrap().trim_end().to_string();
        let template = Template::new(&TemplateText { file: file.into(), text }, &tokenizer).unwrap();
        let chat = chat(&golden["chats"][which]);
        let rendered = match template.render_assistant(&chat) {
            Ok(rendered) => rendered,
            Err(e) => {
                refused.push(format!("{name} / {which}: {e}"));
                continue;
            }
        };
        let said: Vec<&Value> =
            chat.messages.iter().filter(|m| m["role"] == "assistant").map(|m| &m["content"]).collect();
        assert_eq!(rendered.assistant.len(), said.len(), "{name} / {which}");
        for (range, content) in rendered.assistant.iter().zip(said) {
            let words = &rendered.text[range.clone()];
            let content = content.as_str().unwrap();
            assert!(words.contains(content.trim()), "{name} / {which}: {words:?} lacks {content:?}");
            assert!(words.len() < content.len() + 48, "{name} / {which}: {words:?} is more than {content:?}");
        }
        found += 1;
    }
    // Mistral's v3 writes a system message into the last turn only if the user speaks there: no prompt begins its answer.
    for e in &refused {
        assert!(e.starts_with("mistral-v3 / ") && e.contains("{% generation %}"), "{e}");
    }
    assert_eq!((found, refused.len()), (91, 2));
}

const CHAT: [(&str, &str); 5] =
    [("system", "Be kind."), ("user", "a b"), ("assistant", "c"), ("user", "d"), ("assistant", "e f")];

/// (name, text of `CHAT` but for its last message's words, one per assistant message).
const BUILT_IN: [(&str, &str); 10] = [
    (
        "chatml",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧\n\
        <|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n⟦e f<|im_end|>⟧\n",
    ),
    (
        "llama-3",
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na b<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\n⟦c<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n\nd<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\n⟦e f<|eot_id|>⟧",
    ),
    ("mistral", "<s>[INST] Be kind.\n\na b[/INST]⟦ c</s>⟧[INST] d[/INST]⟦ e f</s>⟧"),
    (
        "gemma",
        "<s><start_of_turn>user\nBe kind.\n\na b<end_of_turn>\n<start_of_turn>model\n⟦c<end_of_turn>⟧\n\
        <start_of_turn>user\nd<end_of_turn>\n<start_of_turn>model\n⟦e f<end_of_turn>⟧\n",
    ),
    (
        "phi-3",
        "<|system|>\nBe kind.<|end|>\n<|user|>\na b<|end|>\n<|assistant|>\n⟦c<|end|>⟧\n<|user|>\nd<|end|>\n\
        <|assistant|>\n⟦e f<|end|>⟧\n</s>",
    ),
    (
        "phi-4",
        "<|im_start|>system<|im_sep|>Be kind.<|im_end|><|im_start|>user<|im_sep|>a b<|im_end|><|im_start|>assistant<|im_sep|>\
        ⟦c<|im_end|>⟧<|im_start|>user<|im_sep|>d<|im_end|><|im_start|>assistant<|im_sep|>⟦e f<|im_end|>⟧",
    ),
    (
        "qwen",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧\n\
        <|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n⟦e f<|im_end|>⟧\n",
    ),
    (
        "alpaca",
        "<s>Be kind.\n\n### Instruction:\na b\n\n### Response:\n⟦c</s>⟧\n\n### Instruction:\nd\n\n### Response:\n⟦e f</s>⟧",
    ),
    ("vicuna", "<s>Be kind. USER: a b ASSISTANT:⟦ c</s>⟧USER: d ASSISTANT:⟦ e f</s>⟧"),
    (
        "zephyr",
        "<|system|>\nBe kind.</s>\n<|user|>\na b</s>\n<|assistant|>\n⟦c</s>⟧\n<|user|>\nd</s>\n<|assistant|>\n⟦e f</s>⟧\n",
    ),
];

fn messages(chat: &[(&str, &str)], tools: Value) -> Chat {
    let messages: Vec<Value> = chat.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    self::chat(&json!({"messages": messages, "tools": tools}))
}

#[test]
fn built_in_templates_write_and_mark_a_chat() {
    let tokenizer = tokenizer(&json!({"bos_token": "<s>", "eos_token": "</s>"}));
    let names: Vec<&str> = luthier::data::builtin::names().collect();
    assert_eq!(names, BUILT_IN.map(|(name, _)| name));
    for (name, want) in BUILT_IN {
        let template = Template::load(Some(name), &tokenizer).unwrap();
        let chat = messages(&CHAT, Value::Null);
        let rendered = template.render_assistant(&chat).unwrap();
        let mut text = rendered.text.clone();
        for range in rendered.assistant.iter().rev() {
            text.insert(range.end, '⟧');
            text.insert(range.start, '⟦');
        }
        assert_eq!(text.strip_prefix("<|begin_of_text|>").unwrap_or(&text), want, "{name}");
        // up to the last answer, the same text is what the assistant is asked with
        let asked = template.render(&messages(&CHAT[..4], Value::Null), true).unwrap();
        assert_eq!(asked, rendered.text[..rendered.assistant[1].start], "{name}");
        let last = template.render_assistant_from(&chat, 4).unwrap();
        assert_eq!(last.assistant, rendered.assistant[1..], "{name}");
        let tools = template.render(&messages(&CHAT, json!([{"type": "function"}])), false);
        assert!(tools.unwrap_err().to_string().contains("no form for tools"), "{name}");
    }
}

/// Where a published template writes the same chats, a built-in one of its name writes them alike.
#[test]
fn built_in_templates_agree_with_published_ones() {
    let golden = golden();
    let tokenizer = tokenizer(&golden["names"]);
    for (ours, theirs) in
        [("chatml", "chatml"), ("gemma", "gemma-3"), ("phi-3", "phi-3"), ("phi-4", "phi-4"), ("qwen", "qwen2.5")]
    {
        let template = Template::load(Some(ours), &tokenizer).unwrap();
        let plain = ["one", "system", "many", "open", "question", "code"];
        for case in golden["cases"].as_array().unwrap().iter().filter(|case| case["template"] == theirs) {
            let which = case["chat"].as_str().unwrap();
            if plain.contains(&which) {
                let chat = chat(&golden["chats"][which]);
                assert_eq!(rendered(&template, &chat, false), case["text"], "{ours} / {which}");
                assert_eq!(rendered(&template, &chat, true), case["prompt"], "{ours} / {which}");
            }
        }
    }
}

#[test]
fn alpaca_shows_an_input_apart() {
    let tokenizer = tokenizer(&json!({"bos_token": "<s>", "eos_token": "</s>"}));
    let template = Template::load(Some("alpaca"), &tokenizer).unwrap();
    let user = json!({"role": "user", "content": "add\n\n1 2", "instruction": "add", "input": "1 2"});
    let text = template.render(&chat(&json!({"messages": [user]})), true).unwrap();
    let end = "completes the request.\n\n### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n";
    assert!(
        text.starts_with("<s>Below is an instruction that describes a task, paired with an input")
            && text.ends_with(end),
        "{text}"
    );
}

#[test]
fn control_tokens_that_the_tokenizer_lacks_are_named() {
    let tokenizer = tokenizer(&json!({"bos_token": "<s>", "eos_token": "</s>"}));
    let unknown = |name| Template::load(Some(name), &tokenizer).unwrap().unknown_tokens(&tokenizer);
    assert_eq!(unknown("chatml"), [""; 0]);
    assert_eq!(unknown("llama-3"), ["<|end_header_id|>"]);
    assert_eq!(unknown("gemma"), ["<start_of_turn>"]);
}

/// The template that goes with a result: without tags that other programs do not know, and of the same words.
#[test]
fn a_saved_template_writes_the_same_without_marks() {
    let tokenizer = tokenizer(&json!({"bos_token": "<s>", "eos_token": "</s>"}));
    let dir = tempfile::tempdir().unwrap();
    for name in luthier::data::builtin::names() {
        luthier::export::folder::chat_template(name, &tokenizer, dir.path()).unwrap();
        let file = dir.path().join("chat_template.jinja");
        assert!(!std::fs::read_to_string(&file).unwrap().contains("generation %}"), "{name}");
        let saved = Template::load(file.to_str(), &tokenizer).unwrap();
        let own = Template::load(Some(name), &tokenizer).unwrap();
        for (chat, prompt) in [(messages(&CHAT, Value::Null), false), (messages(&CHAT[..4], Value::Null), true)] {
            assert_eq!(saved.render(&chat, prompt).unwrap(), own.render(&chat, prompt).unwrap(), "{name}");
        }
    }
}

#[test]
fn line_ends_of_windows_are_line_ends() {
    let tokenizer = tokenizer(&json!({}));
    let text = TemplateText {
        file: "t".into(),
        text: "{% for m in messages %}\r\n{{ m.content + '\r\n' }}\r\n{% endfor %}\r\n".into(),
    };
    let chat = messages(&[("user", "a"), ("assistant", "b")], Value::Null);
    assert_eq!(Template::new(&text, &tokenizer).unwrap().render(&chat, false).unwrap(), "a\n\nb\n\n");
}
