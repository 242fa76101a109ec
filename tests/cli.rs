//! The program as a user meets it: exit codes, and what the messages say.
use std::path::Path;
use std::process::{Command, Output};

fn luthier(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_luthier")).args(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("ended by itself")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs, wants that exit code, and wants each part in what stderr says.
fn fails(args: &[&str], want: i32, parts: &[&str]) {
    let output = luthier(args);
    let said = text(&output.stderr);
    assert_eq!(code(&output), want, "{args:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{args:?}\n  said   {said}\n  wanted {part}");
    }
}

fn config(dir: &Path, lines: &str) -> String {
    let path = dir.join("run.toml");
    let least = "model_name_or_path = \"m\"\ndataset = \"d.jsonl\"\noutput_dir = \"o\"\n";
    std::fs::write(&path, format!("{least}{lines}")).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn help_and_version() {
    let page = text(&luthier(&["--help"]).stdout);
    for command in ["train", "generate", "chat", "serve", "init", "quantize", "inspect", "data", "doctor"] {
        assert!(page.contains(command));
        let output = luthier(&[command, "--help"]);
        assert_eq!(code(&output), 0, "{command}");
        assert!(text(&output.stdout).contains("Usage: luthier"), "{command}");
    }
    assert!(text(&luthier(&["--version"]).stdout).starts_with("luthier "));
}

#[test]
fn every_key_has_its_help() {
    let output = luthier(&["train", "--help-config"]);
    assert_eq!(code(&output), 0);
    assert_eq!(text(&output.stdout), std::fs::read_to_string("docs/config.md").unwrap());
}

#[test]
fn bad_command_lines() {
    let dir = tempfile::tempdir().unwrap();
    let run = config(dir.path(), "");
    fails(&["train"], 2, &["<CONFIG>"]);
    fails(&["trian"], 2, &["unrecognized subcommand", "train"]);
    fails(&["train", &run, "--backend", "rocm"], 2, &["possible values: auto, cuda, wgpu, cpu"]);
    fails(&["train", &run, "learning_rate"], 2, &["error: learning_rate: an override is key=value"]);
    fails(&["train", &run, "lr=fast"], 2, &["error: lr=fast: `lr` must be a finite number, got \"fast\""]);
    fails(&["train", &run, "learnin_rate=1"], 2, &["there is no key `learnin_rate`", "Did you mean `learning_rate`?"]);
    fails(&["generate", "--model", "m"], 2, &["--prompt"]);
    fails(&["quantize", "--model", "m", "--out", "o", "--format", "gptq"], 2, &["possible values: bnb-nf4, bnb-int8"]);
    fails(
        &["init", "--config", "c", "--out", "o", "--dtype", "int8"],
        2,
        &["choose one of bfloat16, float16, float32"],
    );
}

#[test]
fn bad_configs() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("max_lenth = 5", "run.toml: line 4: there is no key `max_lenth`. Did you mean `max_length`?"),
        ("packing = 1", "run.toml: line 4: `packing` must be true or false, got 1"),
        ("[lora]\nr = 0", "run.toml: line 5: `lora.r` must be 1 or more, got 0"),
        ("seed = = 2", "run.toml: line 4: is not valid TOML"),
    ];
    for (lines, wanted) in cases {
        fails(&["train", &config(dir.path(), lines)], 65, &["error: ", wanted]);
    }
    let secret = "packing = \"\u{1b}[31mred\"".replace('\u{1b}', "\\u001b");
    let output = luthier(&["train", &config(dir.path(), &secret)]);
    assert!(!output.stderr.contains(&0x1b), "an escape sequence of the file reached the terminal");
}

#[test]
fn files_that_are_missing() {
    fails(&["train", "no/such.toml"], 74, &["no/such.toml: cannot read"]);
    fails(&["generate", "--model", "no/such/folder", "--prompt", "x", "--backend", "cpu"], 74, &["no/such/folder"]);
    fails(&["inspect", "no/such/folder"], 74, &["no/such/folder"]);
    fails(&["quantize", "--model", "no/such/folder", "--out", "no/out", "--backend", "cpu"], 74, &["no/such/folder"]);
    fails(&["init", "--config", "no/such.json", "--out", "no/out"], 74, &["no/such.json"]);
}

/// A config of one layer, and the tokenizer of the base model beside it: these tests are about the commands.
fn small(dir: &Path) -> String {
    let shape = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": 4096, "max_position_embeddings": 64}"#;
    std::fs::write(dir.join("config.json"), shape).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
        std::fs::copy(Path::new("assets/base").join(name), dir.join(name)).unwrap();
    }
    dir.join("config.json").to_str().unwrap().to_string()
}

#[test]
fn init_makes_a_model_that_generates() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let out = out.to_str().unwrap();
    let shape = small(dir.path());
    let init = ["init", "--config", &shape, "--out", out];
    let output = luthier(&init);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("parameters"));
    fails(&init, 2, &["holds a model already"]);

    let generate = |more: &[&str]| {
        let args = ["generate", "--model", out, "--prompt", "fn main", "--max-new-tokens", "8", "--backend", "cpu"];
        let output = luthier(&[args.as_slice(), more].concat());
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("cpu on CPU"));
        text(&output.stdout)
    };
    assert_eq!(generate(&["--temperature", "1", "--seed", "5"]), generate(&["--temperature", "1", "--seed", "5"]));
    assert_ne!(generate(&["--raw", "--temperature", "1"]), generate(&["--raw", "--temperature", "1", "--seed", "9"]));
}

/// Many prompts at once give each what it gives alone; a conversation keeps its turns.
#[test]
fn prompts_together_and_chats() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (prompts, saved) = (at("prompts.jsonl"), at("saved.jsonl"));
    let lines =
        "{\"prompt\": \"What is E0117?\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"And E0382?\"}]}\n";
    std::fs::write(&prompts, lines).unwrap();
    let base =
        ["generate", "--model", "assets/base", "--backend", "cpu", "--dtype", "float32", "--max-new-tokens", "9"];
    let run = |more: &[&str]| says(&[base.as_slice(), more].concat());
    let json =
        |text: String| -> Vec<serde_json::Value> { text.lines().map(|l| serde_json::from_str(l).unwrap()).collect() };
    let mut together = json(run(&["--prompts", &prompts, "--json", "--logprobs", "1"]));
    together.sort_by_key(|line| line["prompt"].as_u64());
    for (line, prompt) in together.iter().zip(["What is E0117?", "And E0382?"]) {
        assert_eq!(format!("{}\n", line["text"].as_str().unwrap()), run(&["--prompt", prompt]));
        assert!(!line["logprobs"].as_array().unwrap().is_empty() && line["finish_reason"].is_string());
    }
    let several = json(run(&["--prompt", "Hello", "--n", "3", "--temperature", "1.5", "--top-k", "50", "--json"]));
    assert_eq!(several.len(), 3);
    std::fs::write(&prompts, "{\"text\": 1}\n").unwrap();
    let file = ["generate", "--model", "assets/base", "--backend", "cpu", "--prompts", &prompts];
    fails(&file, 65, &["prompts.jsonl: line 1", "`prompt`"]);

    let chat = ["chat", "--model", "assets/base", "--backend", "cpu", "--dtype", "float32", "--max-new-tokens", "9"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_luthier"))
        .args(chat)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let script = format!("What is E0117?\n/reset\nWhat is E0117?\nAnd E0382?\n/adapter x\n/save {saved}\n/quit\n");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(code(&output) == 0 && told.contains("no adapter is called \"x\"; there are none"), "{told}");
    let first = run(&["--prompt", "What is E0117?"]);
    assert!(said.starts_with(&[first.as_str(), &first].concat()), "{said}");
    let talk: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    let roles: Vec<_> = talk["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
}

fn says(args: &[&str]) -> String {
    let output = luthier(args);
    assert_eq!(code(&output), 0, "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn quantized_models_generate_and_are_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let shape = small(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (floats, four) = (at("floats"), at("four"));
    says(&["init", "--config", &shape, "--out", &floats]);
    says(&["init", "--config", &shape, "--out", &four, "--format", "bnb-nf4"]);
    for format in ["bnb-nf4", "bnb-int8"] {
        let quantize = ["quantize", "--model", &floats, "--out", &at(format), "--format", format, "--backend", "cpu"];
        assert!(says(&quantize).contains("MiB, was "));
        fails(&quantize, 2, &["holds a model already"]);
    }
    for (name, quantization) in
        [("floats", "none"), ("four", "4-bit NF4"), ("bnb-nf4", "4-bit NF4"), ("bnb-int8", "8-bit")]
    {
        let said = says(&["inspect", &at(name)]);
        for part in ["architecture  llama", "self_attn.q_proj.weight", "chat template", "no mismatch"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(said.contains(&format!("quantization  {quantization}")), "{said}");
        let model = at(name);
        says(&["generate", "--model", &model, "--prompt", "x", "--raw", "--max-new-tokens", "4", "--backend", "cpu"]);
    }
    fails(&["quantize", "--model", &four, "--out", &at("again"), "--backend", "cpu"], 65, &["already"]);
    fails(&["quantize", "--model", &floats, "--out", &at("dynamic"), "--dynamic"], 2, &["--calibration"]);
    let text = at("text.txt");
    std::fs::write(&text, "the quick brown fox jumps over the lazy dog, and so on. ".repeat(200)).unwrap();
    let said = says(&[
        "quantize",
        "--model",
        &floats,
        "--out",
        &at("dynamic"),
        "--dynamic",
        "--calibration",
        &text,
        "--size-budget",
        "1",
        "--backend",
        "cpu",
    ]);
    for part in
        ["weight error  activation error", "model.layers.0.mlp.down_proj", "held-out", "original", "nf4", "dynamic"]
    {
        assert!(said.contains(part), "{said}");
    }
    assert!(says(&["inspect", &at("dynamic")]).contains("no mismatch"));
}

#[test]
fn inspect_lists_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let shape = small(dir.path());
    let out = dir.path().join("model");
    let out = out.to_str().unwrap();
    says(&["init", "--config", &shape, "--out", out]);
    let file = Path::new(out).join("config.json");
    let sound = std::fs::read_to_string(&file).unwrap();
    let cases: [(&str, &str, &[&str]); 9] = [
        (r#""llama""#, r#""lama""#, &["`lama` is not supported, the nearest that is: `llama`"]),
        (r#""num_attention_heads": 4"#, r#""num_attention_heads": 5"#, &["num_attention_heads: hidden_size 32"]),
        (
            r#""vocab_size": 4096"#,
            r#""vocab_size": 64"#,
            &["model.embed_tokens.weight: has shape", "embedding has 64 rows"],
        ),
        (
            r#""intermediate_size": 64"#,
            r#""intermediate_size": 65"#,
            &["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        ),
        (
            r#""num_hidden_layers": 1"#,
            r#""num_hidden_layers": 2"#,
            &["layers.1.mlp.up_proj.weight: the tensor is missing"],
        ),
        (r#""vocab_size""#, r#""rope_scaling": {"type": "spiral"}, "vocab_size""#, &["RoPE of type `spiral`"]),
        // a wrong RoPE hides no wrong tensor
        (
            r#""intermediate_size": 64"#,
            r#""intermediate_size": 65, "rope_scaling": {"rope_type": "linear"}"#,
            &["rope_scaling.factor", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        ),
        // nor a wrong key another
        (
            r#""intermediate_size": 64"#,
            r#""intermediate_size": 64, "num_key_value_heads": 3, "rms_norm_eps": -1, "rope_scaling": {"type": "spiral"}"#,
            &[
                "4 query heads do not divide among 3 kv heads",
                "rms_norm_eps: a number above 0",
                "RoPE of type `spiral`",
            ],
        ),
        (
            r#""llama""#,
            r#""qwen3_next", "linear_num_value_heads": 2"#,
            &["`qwen3_next` is not supported yet", "linear attention"],
        ),
    ];
    for (from, to, wanted) in cases {
        assert!(sound.contains(from), "{sound}");
        std::fs::write(&file, sound.replace(from, to)).unwrap();
        let output = luthier(&["inspect", out]);
        let said = text(&output.stdout);
        assert_eq!(code(&output), 65, "{said}");
        assert!(wanted.iter().all(|part| said.contains(part)), "{said}\nwanted {wanted:?}");
        assert!(said.contains("tokenizer     4096 tokens"), "{said}");
        // every command that takes a model begins with the same check
        let first =
            said.lines().find_map(|line| line.strip_prefix("mismatch      ")).unwrap_or_else(|| panic!("{said}"));
        let again = dir.path().join("again").to_str().unwrap().to_string();
        let run = dir.path().join("run.toml").to_str().unwrap().to_string();
        std::fs::write(&run, format!("model_name_or_path = {out:?}\ndataset = \"d.jsonl\"\noutput_dir = {again:?}\n"))
            .unwrap();
        fails(&["train", &run], 65, &["error: ", first]);
        fails(&["quantize", "--model", out, "--out", &again, "--backend", "cpu"], 65, &["error: ", first]);
        fails(&["generate", "--model", out, "--prompt", "x", "--backend", "cpu"], 65, &["error: ", first]);
    }
}

#[test]
fn doctor_says_what_there_is() {
    let output = luthier(&["doctor"]);
    let said = text(&output.stdout);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let (_, cpu) = said.split_once("\ncpu\n").unwrap_or_else(|| panic!("{said}"));
    assert!(cpu.starts_with("  works: CPU, "), "{said}");
    assert!(said.contains("\ncuda\n") && said.contains("\nwgpu\n"), "{said}");
    assert!(said.contains("\nauto chooses "), "{said}");
    assert!(!said.contains("WRONG"), "{said}");
}

#[test]
fn data_preview_shows_what_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run.toml");
    let write = |data: &str, more: &str| {
        let text = format!("model_name_or_path = \"assets/base\"\ndataset = {data}\noutput_dir = \"o\"\n{more}");
        std::fs::write(&run, text).unwrap();
    };
    let preview = |args: &[&str]| luthier(&[&["data", "preview", run.to_str().unwrap()], args].concat());
    write("\"assets/rustc_explain.jsonl\"", "max_length = 512");
    let output = preview(&["--samples", "2"]);
    let page = text(&output.stdout);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    for part in [
        "records   516 of 1 files: 516 examples to train on, 0 to evaluate on",
        "longest 512 (max_length 512)",
        "unpacked  516 rows of 512, ",
        "is padding: with packing = true there are ",
        "examples lost the end of what is trained: raise max_length (first: assets/rustc_explain.jsonl: line ",
        "── example 0: ",
        "<|im_start|>assistant\n⟦#### Note: this error code is no longer emitted by the compiler.",
        "<|im_end|>⟧\n",
        "── example 258: ",
    ] {
        assert!(page.contains(part), "{page}\nlacks {part}");
    }
    assert_eq!(page.matches("── example").count(), 2);
    let packed = text(&preview(&["packing=true", "--samples", "0"]).stdout);
    assert!(packed.contains("packed ") && packed.contains("% full") && !packed.contains("padding"), "{packed}");
    let wrong = text(&preview(&["chat_template=gemma", "--samples", "1"]).stdout);
    assert!(wrong.contains("warning   2 control tokens of the chat template are unknown to the tokenizer"), "{wrong}");
    // a text of the data cannot command the terminal
    let escape = dir.path().join("a.jsonl");
    std::fs::write(&escape, "{\"text\": \"\\u001b[2Jx\"}").unwrap();
    write(&format!("{:?}", escape.to_str().unwrap()), "");
    let output = preview(&[]);
    assert!(code(&output) == 0 && !output.stdout.contains(&0x1b));
    std::fs::write(&escape, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}").unwrap();
    fails(&["data", "preview", run.to_str().unwrap()], 65, &["the loss counts no token of any of the 1 records"]);
}
