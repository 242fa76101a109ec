//! A run that is interrupted or killed goes on as if nothing had been: the same steps, the same weights, bit by bit.
#![cfg(unix)]
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const STEPS: u64 = 40;

fn luthier(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_luthier"));
    command.args(args);
    command
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// A model of one narrow layer, some chats, and a config whose runs go to `out`, in a folder that goes with the test.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        let shape = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "vocab_size": 4096, "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
        std::fs::write(bench.at("config.json"), shape).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
            std::fs::copy(Path::new("assets/base").join(name), bench.at(name)).unwrap();
        }
        let chat = |i: usize| {
            format!(
                r#"{{"messages":[{{"role":"user","content":"{i} + 1?"}},{{"role":"assistant","content":"{}"}}]}}"#,
                i + 1
            )
        };
        let chats: Vec<String> = (0..50).map(chat).collect();
        std::fs::write(bench.at("chats.jsonl"), chats.join("\n") + "\n").unwrap();
        let (model, config) = (bench.at("model"), bench.at("config.json"));
        let init = luthier(&["init", "--config", config.to_str().unwrap(), "--out", model.to_str().unwrap()]).output();
        good(&init.unwrap());
        let config = format!(
            "model_name_or_path = {model:?}\ndataset = {:?}\nmax_length = 32\nper_device_train_batch_size = 2\n\
             max_steps = {STEPS}\nlearning_rate = 1e-2\nlogging_steps = 1\nsave_steps = 1\noptim = \"adamw_8bit\"\n\
             backend = \"cpu\"\n[lora]\nr = 4\n",
            bench.at("chats.jsonl")
        );
        std::fs::write(bench.at("run.toml"), config).unwrap();
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn train(&self, out: &str) -> Command {
        let out = format!("output_dir={}", self.at(out).display());
        luthier(&["train", self.at("run.toml").to_str().unwrap(), &out])
    }

    /// What a finished run leaves: the adapter, and per step its loss and gradient norm as they were written.
    fn result(&self, out: &str) -> (Vec<u8>, Vec<(u64, String)>) {
        let adapter = std::fs::read(self.at(out).join("adapter_model.safetensors")).unwrap();
        let text = std::fs::read_to_string(self.at(out).join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            (json["step"].as_u64().unwrap(), format!("{} {}", json["loss"], json["grad_norm"]))
        };
        (adapter, text.lines().map(line).collect())
    }
}

/// Kills that each backend's runs must survive.
const KILLS: u32 = 30;

/// Kills runs at random moments, most of them inside a save (there is one every step), and starts the same command again; a
/// run that reaches its end must equal one that was never disturbed, and is followed by a new one until enough were killed.
fn survives_kills(backend: &str) {
    let bench = Bench::new();
    let backend = format!("backend={backend}");
    let started = std::time::Instant::now();
    good(&bench.train("straight").arg(&backend).output().unwrap());
    let whole = started.elapsed();
    let want = bench.result("straight");
    assert_eq!(want.1.iter().map(|l| l.0).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());

    let mut rng = luthier::rng::Rng::new(std::process::id() as u64);
    let (mut kills, mut finished) = (0, 0);
    while kills < KILLS || finished == 0 {
        let out = format!("killed-{finished}");
        let mut child = bench.train(&out).arg(&backend).stderr(Stdio::piped()).spawn().unwrap();
        // late kills only once there were enough: the last run must come to its end
        let share = if kills < KILLS { 0.15 + 0.5 * rng.uniform() as f64 } else { 20.0 };
        let deadline = std::time::Instant::now() + whole.mul_f64(share);
        while child.try_wait().unwrap().is_none() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        if output.status.signal().is_some() {
            kills += 1;
            continue;
        }
        good(&output);
        assert_eq!(bench.result(&out), want, "after {kills} kills");
        let left = std::fs::read_dir(bench.at(&out)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(left.filter(|n| n.starts_with(".tmp")).count(), 0);
        finished += 1;
    }
    println!("{backend}: {kills} kills, {finished} runs finished, each equal to the undisturbed one");
}

#[test]
fn killed_at_any_moment_a_run_on_the_cpu_ends_as_if_it_had_not_been() {
    survives_kills("cpu");
}

#[test]
fn killed_at_any_moment_a_run_on_wgpu_ends_as_if_it_had_not_been() {
    match luthier::backend::pick::pick("wgpu") {
        Ok(_) => survives_kills("wgpu"),
        Err(e) => {
            let required = std::env::var("LUTHIER_REQUIRE").unwrap_or_default();
            assert!(!required.contains("wgpu"), "LUTHIER_REQUIRE names wgpu: {e}");
            println!("wgpu: skipped: {e}");
        }
    }
}

#[test]
fn interrupted_a_run_saves_and_goes_on() {
    let bench = Bench::new();
    good(&bench.train("straight").output().unwrap());
    let mut child = bench.train("interrupted").arg("save_steps=1000").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|l| l.unwrap());
    assert!(lines.any(|line| line.starts_with("step 3/")), "no third step");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|l| l.starts_with("interrupted: finishing this step")), "{rest:?}");
    assert!(rest.iter().any(|l| l.starts_with("error: interrupted after step")), "{rest:?}");
    let output = bench.train("interrupted").arg("save_steps=1000").output().unwrap();
    good(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("resumed after step"));
    assert_eq!(bench.result("interrupted"), bench.result("straight"));

    // and a run that is done stays as it is
    let written = || std::fs::metadata(bench.at("interrupted/adapter_model.safetensors")).unwrap().modified().unwrap();
    let before = written();
    let output = bench.train("interrupted").arg("save_steps=1000").output().unwrap();
    good(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("finished already"));
    assert_eq!((bench.result("interrupted"), written()), (bench.result("straight"), before));
}

#[test]
fn a_second_run_in_the_same_folder_is_refused() {
    let bench = Bench::new();
    let mut first = bench.train("shared").arg("max_steps=100000").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines().map(|l| l.unwrap());
    assert!(lines.any(|line| line.starts_with("step 1/")), "no first step");
    let second = bench.train("shared").arg("max_steps=100000").output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(73), "{said}");
    assert!(said.contains(&format!("process {} is using this folder", first.id())), "{said}");
}
