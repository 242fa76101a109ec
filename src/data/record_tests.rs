use super::*;

fn of(line: &str, source: &Source) -> Result<Body, String> {
    let row: Map<String, Value> = serde_json::from_str(line).unwrap();
    body(row, source, &Roles::new(source))
}

fn plain(line: &str) -> Result<Body, String> {
    of(line, &Source::new(""))
}

fn chat(body: Body) -> (Value, usize) {
    let Body::Chat { chat, from } = body else { panic!("a chat, got {body:?}") };
    (json!(chat.messages), from)
}

#[test]
fn bad_records_say_what_was_wanted() {
    for (line, want) in [
        (r#"{"a": 1, "b": 2}"#, "has only a, b"),
        (r#"{"prompt": "x"}"#, "has only prompt"),
        (r#"{"text": null, "b": 1}"#, "has only b"),
        (r#"{}"#, "has only none"),
        (r#"{"text": 1}"#, "`text` must be a text, got a number"),
        (r#"{"text": ""}"#, "`text` is empty"),
        (r#"{"messages": {}}"#, "`messages` must be a list"),
        (r#"{"messages": "[{"}"#, "`messages` holds bad JSON at column 2"),
        (r#"{"messages": "hello"}"#, "`messages` must be a list, got a text"),
        (r#"{"messages": []}"#, "`messages` is empty"),
        (r#"{"messages": [1]}"#, "`messages[0]` must be an object, got a number"),
        (r#"{"messages": [{"content": "x"}]}"#, "`messages[0]` has no `role`"),
        (r#"{"messages": [{"role": "user"}]}"#, "`messages[0]` has no `content`"),
        (r#"{"messages": [{"role": 7, "content": "x"}]}"#, "`messages[0]`.role must be a text, got a number"),
        (r#"{"messages": [{"role": "user", "content": null}]}"#, "`messages[0]`.content must be a text, got null"),
        (r#"{"messages": [{"role": "bot", "content": "x"}]}"#, "got \"bot\""),
        (r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#, "type text only, got image"),
        (r#"{"messages": [{"role": "user", "content": "x"}], "tools": 1}"#, "`tools` must be a list"),
        (r#"{"conversations": [{"from": "human"}]}"#, "`conversations[0]` has no `value`"),
        (r#"{"conversations": [{"from": "alien", "value": "x"}]}"#, "`conversations[0]`.from must be one of"),
        (r#"{"conversations": [{"from": "function_call", "value": "x"}]}"#, "must be a call as JSON"),
        (r#"{"conversations": [{"from": "function_call", "value": "{}"}]}"#, "it has no name"),
        (
            r#"{"prompt": [{"role": "user", "content": "x"}], "completion": "y"}"#,
            "`completion` must be a list, got a text",
        ),
        (r#"{"prompt": "x", "completion": ""}"#, "`completion` is empty"),
        (r#"{"instruction": "x", "input": 1, "output": "y"}"#, "`input` must be a text, got a number"),
        (r#"{"instruction": "x", "output": ["y"]}"#, "`output` must be a text, got a list"),
        (r#"{"instruction": "x", "output": "y", "system": {}}"#, "`system` must be a text, got an object"),
    ] {
        let got = plain(line).unwrap_err();
        assert!(got.contains(want), "{line}: {got}");
    }
}

#[test]
fn parts_of_text_join_and_other_keys_stay() {
    let line = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"}]}"#;
    assert_eq!(chat(plain(line).unwrap()).0, json!([{"role": "user", "content": "ab", "name": "x"}]));
}

#[test]
fn sharegpt_is_a_chat() {
    let line = r#"{"system": "S", "conversations": [{"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a", "weight": 1}]}"#;
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
    let want = json!([{"role": "system", "content": "S"}, {"role": "user", "content": "q"},
        {"role": "assistant", "content": null, "tool_calls": call}, {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "a", "weight": 1}]);
    assert_eq!(chat(plain(line).unwrap()).0, want);
}

#[test]
fn alpaca_is_a_chat_of_two() {
    let line = r#"{"instruction": "add", "input": "1 2", "output": "3"}"#;
    let (got, _) = chat(plain(line).unwrap());
    assert_eq!(
        (&got[0]["content"], &got[0]["input"], &got[1]["content"]),
        (&json!("add\n\n1 2"), &json!("1 2"), &json!("3"))
    );
    let (got, _) = chat(plain(r#"{"instruction": "add", "input": "", "output": "3"}"#).unwrap());
    assert_eq!(got[0], json!({"role": "user", "content": "add"}));
}

#[test]
fn a_completion_of_messages_comes_after_its_prompt() {
    let line =
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#;
    assert_eq!(chat(plain(line).unwrap()).1, 1);
}

#[test]
fn columns_and_roles_can_have_other_names() {
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    let source = Source {
        columns: map(&[("messages", "dialog"), ("role", "speaker"), ("content", "says")]),
        roles: map(&[("bot", "assistant")]),
        ..Source::new("")
    };
    let line = r#"{"dialog": [{"speaker": "human", "says": "q"}, {"speaker": "bot", "says": "a"}]}"#;
    let want = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    assert_eq!(chat(of(line, &source).unwrap()).0, want);
    let source = Source { columns: map(&[("prompt", "question"), ("completion", "answer")]), ..Source::new("") };
    let Body::Completion { completion, .. } = of(r#"{"question": "q", "answer": "a"}"#, &source).unwrap() else {
        panic!()
    };
    assert_eq!(completion, "a");
    assert!(of(r#"{"question": "q", "answer": 1}"#, &source).unwrap_err().contains("`answer` must be a text"));
    assert!(wants(&source, "answer") && wants(&source, "text") && !wants(&source, "completion"));
}

#[test]
fn a_merged_prompt_makes_a_chat_of_columns() {
    let source = Source {
        merged_prompt: Some("Age {Age}.[[ Cabin {Cabin}.]]".into()),
        columns: [("output".to_string(), "Survived".to_string())].into(),
        ..Source::new("")
    };
    let (got, _) = chat(of(r#"{"Age": 22.0, "Cabin": null, "Survived": 0}"#, &source).unwrap());
    assert_eq!(got, json!([{"role": "user", "content": "Age 22.0."}, {"role": "assistant", "content": "0"}]));
    assert!(of(r#"{"Survived": 0}"#, &source).unwrap_err().contains("merged_prompt needs `Age`"));
    assert!(of(r#"{"Age": 1}"#, &source).unwrap_err().contains("`Survived` must be a text, got null"));
    assert!(wants(&source, "Cabin"));
}
