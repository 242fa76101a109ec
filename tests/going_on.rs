//! `--adapter`, as a user meets it: runs that go on from an adapter, what they say, and generation with one.
use std::path::{Path, PathBuf};
use std::process::Command;

const TEMPLATE: &str =
    "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ' = ' if add_generation_prompt }}";

/// A tiny model with untied embeddings, records, and a config of short runs.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        let shape = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 4096, "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
        bench.write("config.json", shape);
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
            std::fs::copy(Path::new("assets/base").join(name), bench.at(name)).unwrap();
        }
        bench.says(&["init", "--config", &bench.text("config.json"), "--out", &bench.text("model")]);
        let record = |i: usize| {
            format!(
                r#"{{"messages":[{{"role":"user","content":"{i} + 1?"}},{{"role":"assistant","content":"{}"}}]}}"#,
                i + 1
            )
        };
        bench.write("chats.jsonl", &(0..40).map(record).collect::<Vec<_>>().join("\n"));
        let keys = format!(
            "model_name_or_path = {:?}\ndataset = {:?}\nmax_length = 32\nper_device_train_batch_size = 2\nmax_steps = 6\n\
             learning_rate = 1e-2\nlogging_steps = 1\nsave_steps = 3\nbackend = \"cpu\"\ndtype = \"float32\"\n",
            bench.at("model"),
            bench.at("chats.jsonl")
        );
        bench.write("run.toml", &keys);
        bench.write("lora.toml", &format!("{keys}[lora]\nr = 4\nlora_alpha = 16\n"));
        bench
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_string()
    }
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.at(name), text).unwrap();
    }

    /// The exit code, and what was printed on either stream.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_luthier")).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }
    /// Standard output and error of what must succeed.
    fn says(&self, args: &[&str]) -> (String, String) {
        let (code, out, err) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {err}");
        (out, err)
    }
    fn train(&self, config: &str, out: &str, more: &[&str]) -> String {
        let (config, out) = (self.text(config), format!("output_dir={}", self.text(out)));
        self.says(&[&["train", &config, &out], more].concat()).1
    }
    fn fails(&self, config: &str, out: &str, more: &[&str], code: i32, part: &str) {
        let (config, out) = (self.text(config), format!("output_dir={}", self.text(out)));
        let (got, _, said) = self.run(&[&["train", &config, &out], more].concat());
        assert!(got == code && said.contains(part), "exit code {got}, wanted {code}: {said}\nwanted {part}");
    }
    /// Goes on from the third step of the run in `from`.
    fn resume(&self, from: &str, out: &str, more: &[&str]) {
        let (from, to) = (self.at(from).join("checkpoint-3"), self.at(out).join("checkpoint-3"));
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        has(&self.train("lora.toml", out, more), &["resumed after step 3"]);
    }
    fn weights(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.at(out).join("adapter_model.safetensors")).unwrap()
    }
}

fn has(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "said   {said}\nwanted {part}");
    }
}

#[test]
fn a_run_goes_on_from_an_adapter() {
    let bench = Bench::new();
    let first = bench.train("lora.toml", "first", &[]);
    let parts = "of these: q_proj 512, k_proj 512, v_proj 512, o_proj 512, gate_proj 768, up_proj 768, down_proj 768";
    has(&first, &["trainable params: 4,352 || all params: 156,064 || trainable%: 2.7886", parts]);
    let loss = |out: &str| -> f64 {
        let text = std::fs::read_to_string(bench.at(out).join("metrics.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        line["loss"].as_f64().unwrap()
    };

    // nothing said of lora: all is the adapter's; a longer max_length
    let adapter = bench.text("first");
    let second = bench.train("run.toml", "second", &["--adapter", &adapter, "max_seq_length=48"]);
    has(&second, &["trainable params: 4,352 ||", "max_length: 32 before, 48 now"]);
    assert!(!second.contains("lora."), "{second}");
    assert!(loss("second") < loss("first") - 0.3, "{} {}", loss("first"), loss("second"));
    let config = std::fs::read_to_string(bench.at("second/adapter_config.json")).unwrap();
    has(&config, &["\"r\": 4", "\"lora_alpha\": 16"]);

    // what is said otherwise is told
    let lora = ["lora.r=8", "lora.lora_alpha=2", "lora.modules_to_save=[\"lm_head\"]", "embedding_learning_rate=1e-4"];
    let third = bench.train("run.toml", "third", &[&["--adapter", &adapter], lora.as_slice()].concat());
    has(
        &third,
        &[
            "lora.r: the adapter has 4 and keeps it; 8 would be another adapter",
            "lora.lora_alpha: 16.0 in the adapter, 2.0 from now on",
            "lora.modules_to_save: lm_head is trained in full from now on, too",
            "trainable params: 135,424 || all params: 287,136 || trainable%: 47.1637",
            "lm_head 131,072",
        ],
    );
    let config = std::fs::read_to_string(bench.at("third/adapter_config.json")).unwrap();
    has(&config, &["\"r\": 4", "\"lora_alpha\": 2", "\"lm_head\""]);

    // a finished run stays finished, and another adapter is another run
    let again = bench.train("run.toml", "second", &["--adapter", &adapter, "max_seq_length=48"]);
    has(&again, &["finished already"]);
    let other = bench.text("third");
    bench.fails("run.toml", "second", &["--adapter", &other, "max_seq_length=48"], 65, "another base model");
    bench.fails("run.toml", "first", &["--adapter", &adapter], 65, "lies in output_dir");
    bench.fails("run.toml", "new", &["--adapter", "no/such/folder"], 74, "no/such/folder");
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    bench.train("lora.toml", "first", &["max_steps=1"]);
    let file = bench.at("first/adapter_config.json");
    let sound = std::fs::read_to_string(&file).unwrap();
    for (from, to, part) in [
        ("\"r\": 4", "\"r\": 5", "has shape [4, "),
        ("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "adapter_config.json: peft_type: IA3: this kind"),
        ("\"q_proj\"", "\"k_proj\"", "the base model has no place for this tensor"),
        (
            "\"modules_to_save\": null",
            "\"modules_to_save\": [\"nrm\"]",
            "adapter_config.json: modules_to_save: no module is called `nrm`",
        ),
        ("\"r\": 4", "\"r\": \"four\"", "adapter_config.json: line "),
    ] {
        assert!(sound.contains(from), "{sound}");
        std::fs::write(&file, sound.replace(from, to)).unwrap();
        bench.fails("run.toml", "second", &["--adapter", &bench.text("first")], 65, part);
        let (model, adapter) = (bench.text("model"), bench.text("first"));
        let args = ["generate", "--model", &model, "--adapter", &adapter, "--prompt", "x", "--backend", "cpu"];
        let (code, _, said) = bench.run(&args);
        assert!(code == 65 && said.contains(part), "{code}: {said}\nwanted {part}");
    }
}

#[test]
fn dropout_is_the_same_when_a_run_resumes() {
    let bench = Bench::new();
    let dropout = ["lora.lora_dropout=0.3"];
    bench.train("lora.toml", "straight", &dropout);
    bench.train("lora.toml", "plain", &[]);
    assert_ne!(bench.weights("straight"), bench.weights("plain"));
    bench.resume("straight", "resumed", &dropout);
    assert_eq!(bench.weights("resumed"), bench.weights("straight"));
    let config = std::fs::read_to_string(bench.at("straight/adapter_config.json")).unwrap();
    has(&config, &["\"lora_dropout\": 0.3"]);
}

/// Of rank 128, so that states are in 8 bits where they may be.
#[test]
fn every_optimizer_resumes_bit_by_bit() {
    let bench = Bench::new();
    let mut seen = Vec::new();
    for (i, more) in [
        &["optim=adamw"][..],
        &["optim=adamw_8bit", "loraplus_lr_ratio=4"],
        &["optim=lion_32bit", "learning_rate=1e-3"],
        &["optim=paged_lion_8bit", "learning_rate=1e-3"],
        &["optim=sgd"],
        &["optim=sgd", "optim_args=momentum=0.9,dampening=0.1"],
        &["optim=muon", "dtype=bfloat16", "learning_rates={q_proj=1e-3}"],
    ]
    .into_iter()
    .enumerate()
    {
        let more = [more, &["lora.r=128", "lora.target_modules=['q_proj', 'down_proj']", "warmup_steps=2"]].concat();
        let (straight, resumed) = (format!("straight-{i}"), format!("resumed-{i}"));
        bench.train("lora.toml", &straight, &more);
        bench.resume(&straight, &resumed, &more);
        assert!(bench.weights(&resumed) == bench.weights(&straight), "{more:?}");
        assert!(!seen.contains(&bench.weights(&straight)), "{more:?} is as one before it");
        seen.push(bench.weights(&straight));
        // where states lie is not part of what a run is
        if i == 3 {
            bench.resume(&straight, "unpaged", &[&["optim=lion_8bit"], &more[1..]].concat());
            assert!(bench.weights("unpaged") == bench.weights(&straight), "paged or not");
        }
    }
}

#[test]
fn modules_have_rates_of_their_own() {
    let bench = Bench::new();
    let rates = r"learning_rates={'layers\.0\..*' = 0, 'down_proj.lora_A' = 1e-4}";
    let said = bench.train("lora.toml", "rates", &[rates, "loraplus_lr_ratio=2"]);
    has(
        &said,
        &[
            "trainable params: 2,176 ||",
            r"frozen: 2,176 parameters (`layers\.0\..*` of learning_rates)",
            "learning rate 1e-4: 256 parameters (`down_proj.lora_A` of learning_rates)",
            "learning rate 2e-2: 1,152 parameters (loraplus_lr_ratio = 2)",
            "learning rate 1e-2: 768 parameters (learning_rate)",
        ],
    );
    let part = "learning_rates: `nothing` matches nothing that is trained";
    bench.fails("lora.toml", "new", &["learning_rates={nothing=1}"], 65, part);
    bench.fails("lora.toml", "new", &["learning_rates={'.*'=0}"], 65, "every rate is 0");
    bench.fails("lora.toml", "new", &["learning_rates={'('=0}"], 65, "is no regular expression");
}

#[test]
fn an_adapters_own_template_is_used() {
    let bench = Bench::new();
    bench.train("lora.toml", "first", &["lora.use_dora=true", "learning_rate=0.03"]);
    let (model, adapter) = (bench.text("model"), bench.text("first"));
    let generate = |prompt: &str, more: &[&str]| {
        let args = ["generate", "--model", &model, "--adapter", &adapter, "--prompt", prompt, "--backend", "cpu"];
        bench
            .says(
                &[&args, ["--max-new-tokens", "6", "--temperature", "2", "--dtype", "float32"].as_slice(), more]
                    .concat(),
            )
            .0
    };
    let usual = generate("3 + 1?", &[]);
    std::fs::write(bench.at("first/chat_template.jinja"), TEMPLATE).unwrap();
    let own = generate("3 + 1?", &[]);
    assert_ne!(own, usual);
    assert_eq!(own, generate("3 + 1? = ", &["--raw"]));
    // the template alone, beside the base's tokenizer
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        std::fs::remove_file(bench.at("first").join(name)).unwrap();
    }
    assert_eq!(own, generate("3 + 1?", &[]));
    std::fs::remove_file(bench.at("first/chat_template.jinja")).unwrap();
    let weights = bench.at("first/adapter_model.safetensors");
    std::fs::rename(&weights, weights.with_extension("bin")).unwrap();
    bench.fails("run.toml", "second", &["--adapter", &adapter], 65, "adapter_model.bin: is a pickle");
}
