//! Configs as people write them: what is read, and what a mistake is told.
use luthier::Error;
use luthier::data::Source;
use luthier::dtype::DType;
use luthier::model::lora::{Patterns, Targets};
use luthier::train::config::{self, AdjustLr, Checkpointing, Optim, Resume, SchedulerType, TrainConfig};
use std::path::PathBuf;

const LEAST: &str = "model_name_or_path = \"m\"\ndataset = \"d.jsonl\"\noutput_dir = \"o\"\n";

/// Writes `text` to a file that ends in `name` and reads it.
fn load(name: &str, text: &str, overrides: &[&str]) -> Result<TrainConfig, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    config::load(&path, &overrides)
}

fn with(lines: &str, overrides: &[&str]) -> Result<TrainConfig, Error> {
    load("run.toml", &format!("{LEAST}{lines}"), overrides)
}

fn ok(lines: &str) -> TrainConfig {
    with(lines, &[]).unwrap_or_else(|e| panic!("{lines}: {e}"))
}

/// The message and the exit code of what must fail; `lines` start at line 4.
fn bad(lines: &str, overrides: &[&str]) -> (String, u8) {
    let e = with(lines, overrides).expect_err(lines);
    (e.to_string(), e.exit_code())
}

#[test]
fn the_quickstart_is_read_as_written() {
    let c = config::load("examples/quickstart.toml".as_ref(), &[]).unwrap();
    assert_eq!(c.model_name_or_path, PathBuf::from("assets/base"));
    assert_eq!((c.max_length, c.packing, c.per_device_train_batch_size), (512, true, 4));
    assert_eq!((c.learning_rate, c.lr_scheduler_type), (2e-4, SchedulerType::Cosine));
    assert_eq!((c.optim, c.dtype), (Optim::AdamW8bit, DType::Bf16));
    assert_eq!((c.gradient_checkpointing, c.resume_from_checkpoint), (Checkpointing::Auto, Resume::Auto));
    let lora = c.lora.unwrap();
    assert_eq!((lora.r, lora.lora_alpha, lora.target_modules), (16, 32.0, Targets::Word("all-linear".into())));
}

#[test]
fn every_example_loads() {
    let mut seen = 0;
    for entry in std::fs::read_dir("examples").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            config::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
            seen += 1;
        }
    }
    assert!(seen >= 2, "{seen} example configs");
}

#[test]
fn yaml_and_toml_say_the_same() {
    let yaml = "
base_model: m
datasets:
  - path: a.jsonl
  - path: b.jsonl
output: o
sequence_len: 256
sample_packing: true
micro_batch_size: 2
lr: '2e-4'
bf16: false
fp16: true
gradient_checkpointing: true
eval_dataset:
lora_r: 4
lora_target_modules: [q_proj, v_proj]
";
    let toml = r#"
model_name_or_path = "m"
dataset = ["a.jsonl", "b.jsonl"]
output_dir = "o"
max_length = 256
packing = true
per_device_train_batch_size = 2
learning_rate = 2e-4
dtype = "float16"
gradient_checkpointing = true
[lora]
r = 4
target_modules = ["q_proj", "v_proj"]
"#;
    assert_eq!(load("a.yaml", yaml, &[]).unwrap(), load("a.toml", toml, &[]).unwrap());
}

#[test]
fn the_resolved_config_reads_back_to_itself() {
    for lines in [
        "",
        "lr_scheduler_type = 'polynomial'\nlr_scheduler_kwargs = { power = 2.0, lr_end = 1e-8 }\nmax_steps = 7",
        "resume_from_checkpoint = false\nload_in_4bit = true\n[lora]\nmodules_to_save = ['lm_head']\nseed = 9",
        "[lora]\nrank_pattern = { 'q.*' = 3, down_proj = 2 }\nalpha_pattern = { x = 1.5 }\ntarget_modules = '.*_proj'",
        "compute = 'fp8'\n[lora]",
        "[lora]\nexclude_modules = ['q_proj']\nlayers_to_transform = 1\nlayers_pattern = 'layers'\nuse_dora = true",
        "resume_from_checkpoint = 'o/checkpoint-3'\ngradient_checkpointing = false\nlora_target_modules = ['q_proj']",
        "optim = 'muon'\nlearning_rates = { b = 1e-3, 'a.*' = 0.0 }\nloraplus_lr_ratio = 2.0\n[optim_args]\nmomentum = 0.8\n[lora]",
        "assistant_only_loss = 'last'\neval_dataset = ['a', {path = 'b', split = 'test', merged_prompt = '{x}'}]\n[lora]",
        "assistant_only_loss = false\neval_dataset = {path = 'b', weight = 0.5, roles = {bot = 'assistant'}, \
        columns = {messages = 'chat', role = 'who'}, conversation_extension = 3}\n[lora]",
    ] {
        let c = ok(lines);
        let text = c.to_toml().unwrap();
        assert_eq!(load("resolved.toml", &text, &[]).unwrap_or_else(|e| panic!("{e}\n{text}")), c);
    }
}

#[test]
fn overrides_go_over_the_file() {
    let c = with("lr = 1e-3\n[lora]\nr = 4", &["learning_rate=2e-4", "lora.r=32", "dataset=x y.jsonl", "packing=true"]);
    let c = c.unwrap();
    assert_eq!((c.learning_rate, c.packing, c.dataset), (2e-4, true, vec![Source::new("x y.jsonl")]));
    assert_eq!(c.lora.unwrap().r, 32);
    assert_eq!(with("[lora]\nr = 4", &["lora=false"]).unwrap().lora, None);
    assert_eq!(with("", &["lora={r=3}"]).unwrap().lora.unwrap().r, 3);
    assert_eq!(with("", &["lora_r=3"]).unwrap().lora.unwrap().r, 3);
}

#[test]
fn what_the_lora_table_leaves_out_is_the_adapters() {
    let config = |lines: &str| {
        let lines = format!("adapter = 'tests/golden/train_lora_embed/adapter_start'\n{lines}");
        with(&lines, &[]).unwrap().lora.unwrap()
    };
    let same = config("");
    assert_eq!((same.r, same.lora_alpha, same.use_rslora), (4, 8.0, true));
    assert_eq!(same.modules_to_save, ["embed_tokens", "lm_head"]);
    let lowered = config("[lora]\nlora_alpha = 2");
    assert_eq!((lowered.r, lowered.lora_alpha, lowered.target_modules), (4, 2.0, same.target_modules));
    assert_eq!(with("adapter = 'no/such/folder'", &[]).unwrap_err().exit_code(), 74);
}

#[test]
fn optimizers_have_settings() {
    let c = ok("optim = 'sgd'\n[optim_args]\nmomentum = 0.9\nnesterov = true");
    assert_eq!((c.optim, c.optim_args.momentum, c.optim_args.nesterov), (Optim::Sgd, Some(0.9), Some(true)));
    assert_eq!(ok("optim = 'sgd'\noptim_args = 'momentum=0.9, nesterov=True'"), c);
    assert_eq!(with("optim = 'sgd'", &["optim_args=momentum=0.9,nesterov=True"]).unwrap(), c);
    assert_eq!(ok("optim = 'lion'").optim, Optim::Lion);
    let c = ok("optim = 'muon'\noptim_args = { adjust_lr_fn = 'match_rms_adamw', ns_steps = 4 }");
    assert_eq!((c.optim_args.adjust_lr_fn, c.optim_args.ns_steps), (Some(AdjustLr::MatchRmsAdamw), Some(4)));
    let c = ok("[learning_rates]\n'layers.0..*' = 1e-5\nq_proj = 0");
    assert_eq!(c.learning_rates, Patterns(vec![("layers.0..*".into(), 1e-5), ("q_proj".into(), 0.0)]));
}

#[test]
fn patterns_keep_their_order() {
    let c = ok("[lora.rank_pattern]\n'q.*' = 3\ndown_proj = 2").lora.unwrap();
    assert_eq!(c.rank_pattern, Patterns(vec![("q.*".into(), 3), ("down_proj".into(), 2)]));
}

#[test]
fn a_bare_lora_table_means_lora() {
    assert_eq!(ok("[lora]").lora.unwrap().r, 8);
    assert_eq!(ok("").lora, None);
}

#[test]
fn mistakes_are_named_with_their_line() {
    // Lines at 4, then what the message must contain.
    let cases: &[(&str, &[&str])] = &[
        ("learnin_rate = 1e-4", &["run.toml: line 4: there is no key `learnin_rate`", "Did you mean `learning_rate`?"]),
        ("\n[lora]\nrank = 4\nr = 2", &["line 6: there is no key `lora.rank`"]),
        ("[lora]\nlora_alfa = 4", &["line 5", "Did you mean `lora"]),
        ("[peft]\nr = 4", &["line 4: there is no key `peft`"]),
        ("zzzzzzzzzz = 4", &["line 4: there is no key `zzzzzzzzzz`. (`luthier train --help-config`"]),
        ("lora = 4", &["line 4: `lora` must be a table, got 4"]),
        ("lr = 1e-4\nlearning_rate = 1e-4", &["line", "`lr` and `learning_rate` are the same key: keep one"]),
        ("lora_r = 4\n[lora]\nr = 4", &["`lora_r`", "`lora.r`", "are the same key"]),
        ("bf16 = true\ndtype = 'float32'", &["`bf16` and `dtype` are the same key"]),
        ("bf16 = 'auto'", &["line 4: `bf16` must be true or false, got \"auto\""]),
        ("packing = 'yes'", &["line 4: `packing` must be true or false, got \"yes\""]),
        ("max_length = -5", &["line 4: `max_length` must be a whole number, 0 or more, got -5"]),
        ("max_seq_length = 1", &["line 4: `max_seq_length` must be 2 or more, got 1"]),
        ("per_device_train_batch_size = 0", &["must be 1 or more, got 0"]),
        ("max_steps = 0", &["must be 1 or more, or -1"]),
        ("eval_split = 1.0", &["must be at least 0 and less than 1, got 1"]),
        ("learning_rate = 'fast'", &["must be a finite number, got \"fast\""]),
        ("learning_rate = inf", &["must be a finite number, got inf"]),
        ("learning_rate = -1e-4", &["must be more than 0, got -0.0001"]),
        ("optim = 'adafactor'", &["must be \"adamw\", ", "\"adamw_8bit\"", "got \"adafactor\""]),
        ("[optim_args]\nmomentum = 0.9", &["line 5: `momentum` is not a setting of optim \"adamw\""]),
        ("optim = 'sgd'\noptim_args = 'ns_steps=3'", &["line 5: `ns_steps` is not a setting of optim \"sgd\""]),
        (
            "optim = 'sgd'\n[optim_args]\nmomentum = 1",
            &["line 6: `optim_args.momentum` must be at least 0 and less than 1"],
        ),
        ("optim = 'sgd'\n[optim_args]\nnesterov = true", &["line 6: `nesterov` wants a `momentum` above 0"]),
        ("optim = 'muon'\n[optim_args]\nadjust_lr_fn = 'x'", &["line 6", "\"original\", \"match_rms_adamw\" or "]),
        ("optim_args = 'momentum'", &["line 4: `optim_args` must be a table, got \"momentum\""]),
        ("loraplus_lr_ratio = 4", &["line 4: `loraplus_lr_ratio` is about adapters"]),
        ("loraplus_lr_embedding = 1e-6\n[lora]", &["line 4: `loraplus_lr_embedding` goes with `loraplus_lr_ratio`"]),
        (
            "loraplus_lr_ratio = 4\nloraplus_lr_embedding = 1e-6\nembedding_learning_rate = 1e-5\n[lora]",
            &["line 5: `loraplus_lr_embedding` and `embedding_learning_rate` exclude each other"],
        ),
        ("[learning_rates]\nq_proj = -1", &["`learning_rates` must be of rates that are 0 or more, got a table"]),
        ("[learning_rates]\nq_proj = 'x'", &["`learning_rates` must be a table of regular expressions, each with"]),
        ("method = 'rlhf'", &["must be \"sft\", \"pretrain\""]),
        ("dtype = 'int8'", &["must be \"bfloat16\", \"float16\" or \"float32\", got \"int8\""]),
        ("backend = 'rocm'", &["must be \"auto\", \"cuda\", \"wgpu\" or \"cpu\""]),
        ("[lora]\nr = 0", &["line 5: `lora.r` must be 1 or more, got 0"]),
        ("[lora]\nlora_dropout = 1.0", &["line 5: `lora.lora_dropout` must be at least 0 and less than 1, got 1"]),
        ("[lora]\ntarget_modules = 3", &["\"all-linear\", a regular expression, or a list of layer names", "got 3"]),
        (
            "[lora]\nrank_pattern = { q = 'x' }",
            &["a table of regular expressions, each with a whole number", "got a table"],
        ),
        ("[lora]\nlayers_to_transform = [-1]", &["must be a whole number or a list of them"]),
        ("embedding_learning_rate = 0", &["`embedding_learning_rate` must be more than 0, got 0"]),
        (
            "[lora]\ninit_lora_weights = 'olora'",
            &["must be true, \"gaussian\", \"pissa\" or \"pissa_niter_[number]\", got \"olora\""],
        ),
        (
            "[lora]\nuse_dora = true\ninit_lora_weights = 'pissa'",
            &["line 6: `init_lora_weights` and `use_dora` exclude"],
        ),
        ("eval_steps = 1.5", &["must be a whole number of steps, or a share between 0 and 1, got 1.5"]),
        ("early_stopping_patience = 2", &["line 4: `early_stopping_patience` needs records to evaluate on"]),
        ("[lora]\nbias = 'all'", &["must be \"none\", got \"all\""]),
        (
            "eval_dataset = [1]",
            &["line 4: `eval_dataset` must be a path, a table with a `path`, or a list", "got a list"],
        ),
        ("eval_dataset = {weight = 2}", &["must be a path, a table with a `path`"]),
        (
            "eval_dataset = [\n'a',\n{path = 'b', wieght = 2.0}]",
            &["line 6: `eval_dataset` has no key `wieght`: did you mean `weight`?"],
        ),
        ("eval_dataset = {path = 'a', weight = 0}", &["`eval_dataset`.weight must be more than 0, at most 1e6, got 0"]),
        ("eval_dataset = {path = 'a', weight = 'x'}", &["`eval_dataset`.weight must be a finite number, got \"x\""]),
        ("eval_dataset = {path = 'a', columns = 'x'}", &["`eval_dataset`.columns must be a table, got \"x\""]),
        (
            "eval_dataset = {path = 'a', columns = {question = 'q'}}",
            &[".columns has no key `question`: it has messages"],
        ),
        (
            "eval_dataset = {path = 'a', columns = {prompt = 7}}",
            &[".columns.prompt must be text that is not empty, got 7"],
        ),
        ("eval_dataset = {path = 'a', roles = {bot = 'robot'}}", &[".roles must be one of system", "got \"robot\""]),
        ("eval_dataset = {path = 'a', split = 7}", &[".split must be text that is not empty, got 7"]),
        ("dataset_test_split = 'test'\neval_split = 0.1", &["line 4", "`dataset_test_split` excludes"]),
        ("dataset_test_split = 'test'", &["`dataset_test_split` is of folders and data sets"]),
        ("eval_dataset = {path = 'a', merged_prompt = 'x'}", &[".merged_prompt names no {column}"]),
        ("eval_dataset = {path = 'a', merged_prompt = '[[{x}'}", &[".merged_prompt has a [[part without its ]]"]),
        (
            "eval_dataset = {path = 'a', conversation_extension = 0}",
            &[".conversation_extension must be from 1 to 1024"],
        ),
        (
            "assistant_only_loss = 'first'",
            &["line 4: `assistant_only_loss` must be true, false or \"last\", got \"first\""],
        ),
        ("load_in_4bit = true", &["line 4: `load_in_4bit` freezes the base"]),
        ("load_in_8bit = true", &["line 4: `load_in_8bit` freezes the base"]),
        ("compute = 'fp4'", &["line 4: `compute` must be \"dtype\" or \"fp8\", got \"fp4\""]),
        ("compute = 'fp8'", &["line 4: `compute` = \"fp8\" computes with frozen weights"]),
        (
            "compute = 'fp8'\nload_in_8bit = true\n[lora]",
            &["line 4: `compute` = \"fp8\" holds the weights in 8 bits itself"],
        ),
        (
            "compute = 'fp8'\n[lora]\nuse_dora = true",
            &["line 4: `compute` = \"fp8\" and `use_dora` exclude each other"],
        ),
        ("load_in_4bit = true\nload_in_8bit = true\n[lora]", &["line 5: `load_in_8bit` and `load_in_4bit` exclude"]),
        ("eval_dataset = 'e'\neval_split = 0.1", &["line 5: `eval_split` and `eval_dataset` exclude each other"]),
        ("warmup_steps = 3\nwarmup_ratio = 0.1", &["line 5: `warmup_ratio` and `warmup_steps`"]),
        ("[lr_scheduler_kwargs]\npower = 2.0", &["line 5: `power` is not a setting of lr_scheduler_type \"linear\""]),
        ("lr_scheduler_type = 'polynomial'\nlearning_rate = 1e-8", &["`lr_end` must be less than `learning_rate`"]),
        ("packing = ", &["line 4", "is not valid TOML"]),
        ("seed = 99999999999999999999", &["is not valid TOML", "too large"]),
    ];
    for (lines, wanted) in cases {
        let (message, code) = bad(lines, &[]);
        assert_eq!(code, 65, "{message}");
        for part in *wanted {
            assert!(message.contains(part), "{lines}\n  said   {message}\n  wanted {part}");
        }
    }
}

#[test]
fn mistakes_on_the_command_line_are_usage() {
    for (over, wanted) in [
        ("learning_rate", "learning_rate: an override is key=value"),
        ("lr=-1", "lr=-1: `lr` must be more than 0, got -1"),
        ("lora.q=1", "lora.q=1: there is no key `lora.q`"),
    ] {
        let (message, code) = bad("", &[over]);
        assert_eq!((message.contains(wanted), code), (true, 2), "{message}");
    }
    let (message, _) = bad("", &["lr=1", "learning_rate=1"]);
    assert!(message.contains("are the same key"), "{message}");
}

#[test]
fn yaml_mistakes_are_named_with_their_line() {
    let least = "model: m\ndataset: d\noutput_dir: o\n";
    for (lines, wanted) in [
        ("max_len: 3", "a.yml: line 4: there is no key `max_len`"),
        ("lora:\n  r: zero", "line 5: `lora.r` must be a whole number, 0 or more, got \"zero\""),
        ("seed: 1\nseed: 2", "a.yml: line 5"),
        ("seed: [1", "is not valid YML"),
        ("seed: &a [*a, *a]", "a.yml"),
    ] {
        let e = load("a.yml", &format!("{least}{lines}"), &[]).expect_err(lines);
        assert_eq!((e.to_string().contains(wanted), e.exit_code()), (true, 65), "{e}");
    }
    assert!(load("a.yml", "- 1\n- 2", &[]).unwrap_err().to_string().contains("a table of keys, got a list"));
}

#[test]
fn files_that_are_no_config() {
    let e = load("a.json", "{}", &[]).unwrap_err();
    assert!(e.to_string().contains("ends in .toml, .yaml or .yml"), "{e}");
    let e = load("a.toml", "", &[]).unwrap_err();
    assert!(e.to_string().contains("`model_name_or_path` is missing"), "{e}");
    let e = config::load("no/such/file.toml".as_ref(), &[]).unwrap_err();
    assert_eq!(e.exit_code(), 74, "{e}");
    let e = load("a.toml", &format!("#{}", "x".repeat(1 << 20)), &[]).unwrap_err();
    assert!(e.to_string().contains("at most 1048576 bytes"), "{e}");
}

#[test]
fn steps_of_a_run() {
    let mut c = ok("num_train_epochs = 1.5\ngradient_accumulation_steps = 4");
    assert_eq!(c.total_steps(10), 5, "ceil(1.5 · ceil(10 / 4))");
    c.max_steps = 7;
    assert_eq!(c.total_steps(10), 7);
}

#[test]
fn the_page_of_keys_is_current() {
    let page = config::page();
    if std::env::var_os("LUTHIER_WRITE").is_some() {
        std::fs::write("docs/config.md", &page).unwrap();
    }
    let written = std::fs::read_to_string("docs/config.md").unwrap_or_default();
    assert!(written == page, "docs/config.md is not what the keys say: run this test with LUTHIER_WRITE=1");
}
