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
    for args in
        [["--help"].as_slice(), &["train", "--help"], &["generate", "--help"], &["init", "-h"], &["doctor", "-h"]]
    {
        let output = luthier(args);
        assert_eq!(code(&output), 0, "{args:?}");
        assert!(text(&output.stdout).contains("Usage: luthier"), "{args:?}");
    }
    for command in ["train", "generate", "init", "doctor"] {
        assert!(text(&luthier(&["--help"]).stdout).contains(command));
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
    fails(&["generate", "--model", "no/such", "--prompt", "x", "--backend", "cpu"], 74, &["no/such"]);
    fails(&["init", "--config", "no/such.json", "--out", "no/out"], 74, &["no/such.json"]);
}

#[test]
fn init_makes_a_model_that_generates() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let out = out.to_str().unwrap();
    // One layer: this is about the commands.
    let shape = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": 4096, "max_position_embeddings": 64}"#;
    std::fs::write(dir.path().join("config.json"), shape).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
        std::fs::copy(Path::new("assets/base").join(name), dir.path().join(name)).unwrap();
    }
    let shape = dir.path().join("config.json");
    let init = ["init", "--config", shape.to_str().unwrap(), "--out", out];
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
