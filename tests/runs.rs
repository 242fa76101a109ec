//! What a run leaves to be looked at, and what `luthier runs` makes of it.
#![cfg(unix)]
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
#[path = "support/bench.rs"]
mod bench;
use bench::*;

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// How often TensorBoard's only file in `dir` has each step's loss.
fn events(dir: &Path) -> usize {
    let files: Vec<_> = names(dir).into_iter().collect();
    let [file] = &files[..] else { panic!("one file of events is wanted, there are {files:?}") };
    assert!(file.starts_with("events.out.tfevents."), "{file}");
    let bytes = std::fs::read(dir.join(file)).unwrap();
    bytes.windows(10).filter(|w| *w == b"train/loss").count()
}

#[test]
fn a_run_says_what_it_was_and_goes_on_in_the_same_files() {
    let bench = Bench::new();
    let more = ["save_steps=1000", "eval_split=0.1", "eval_steps=10"];
    let mut child = bench.train("run").args(more).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|l| l.unwrap());
    assert!(lines.any(|line| line.starts_with("step 3/")), "no third step");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let out = bench.at("run");
    let first = json(&out.join("run.json"));
    assert_eq!(first["status"], "interrupted");
    assert!(first["error"].as_str().unwrap().contains("run the same command to go on"), "{first}");

    good(&bench.train("run").args(more).output().unwrap());
    let info = json(&out.join("run.json"));
    assert_eq!((&info["status"], &info["error"]), (&Value::from("finished"), &Value::Null));
    assert_eq!((info["global_step"].as_u64(), info["total_steps"].as_u64()), (Some(STEPS), Some(STEPS)));
    assert_eq!((&info["started"], &info["luthier"]), (&first["started"], &Value::from(env!("CARGO_PKG_VERSION"))));
    assert_eq!((&info["device"]["backend"], &info["model"]["method"]), (&Value::from("cpu"), &Value::from("sft lora")));
    assert_eq!(info["data"]["eval_examples"], 5);
    assert!(info["command"].as_array().unwrap().iter().any(|arg| arg == "train"), "{info}");
    assert_eq!(info["resumed_from"].as_array().map(Vec::len), Some(1));
    assert!(info["seconds"].as_f64() > first["seconds"].as_f64());

    let (_, metrics) = bench.result("run");
    let steps: Vec<u64> = metrics.iter().filter(|(_, line)| !line.starts_with("null")).map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "each step has one line");
    assert_eq!(events(&out.join("tensorboard")), STEPS as usize, "and one event");
    let samples = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
    assert!(samples.lines().count() >= 2, "{samples}");

    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for part in ["finished", "best eval loss", "<svg ", "sft lora", "Samples", "after step 40", "luthier generate"] {
        assert!(page.contains(part), "{part} is missing in the page");
    }
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="), "the page needs something");
    assert!(std::fs::read_to_string(out.join("loss.svg")).unwrap().starts_with("<svg "));
    assert!(std::fs::read(out.join("loss.png")).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));

    // a new run in the same folder begins anew
    good(&bench.train("run").args(more).arg("resume_from_checkpoint=false").output().unwrap());
    assert_eq!(events(&out.join("tensorboard")), STEPS as usize);
    assert_eq!(json(&out.join("run.json"))["resumed_from"].as_array().map(Vec::len), Some(0));
    let zero = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert_eq!(
        zero.lines().filter(|line| line.contains("\"step\":0,")).count(),
        1,
        "the evaluation before the first step"
    );
}

#[test]
fn what_a_model_says_is_no_markup() {
    let bench = Bench::new();
    let out = bench.at("run");
    good(&bench.train("run").arg("report_to=none").output().unwrap());
    assert!(!out.join("tensorboard").exists());
    let evil = "<script>alert(1)</script><img src=x onerror=alert(1)>";
    let sample = serde_json::json!({"step": 40, "prompt": evil, "text": evil}).to_string() + "\n";
    std::fs::write(out.join("samples.jsonl"), sample).unwrap();
    let mut info = json(&out.join("run.json"));
    info["model"]["name"] = evil.into();
    info["host"]["cpu"] = evil.into();
    std::fs::write(out.join("run.json"), info.to_string()).unwrap();
    let output = luthier(&["runs", "report", out.to_str().unwrap()]).output().unwrap();
    good(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("report.html"));
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script") && !page.contains("<img"), "{page}");
}

#[test]
fn runs_are_listed_and_compared() {
    let bench = Bench::new();
    let runs = bench.at("runs");
    for (name, rate) in [("runs/slow", "1e-5"), ("runs/deep/fast", "1e-2")] {
        let args = [format!("learning_rate={rate}"), "save_steps=1000".into(), "eval_split=0.1".into()];
        good(&bench.train(name).args(args).output().unwrap());
    }
    let of = |args: &[&str]| {
        let output = luthier(&[&["runs"], args].concat()).output().unwrap();
        good(&output);
        String::from_utf8(output.stdout).unwrap()
    };
    let dir = runs.to_str().unwrap();
    let (slow, fast) = (runs.join("slow"), runs.join("deep/fast"));
    let table = of(&[dir, "--sort", "eval-loss"]);
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert!(rows[0].starts_with("run ") && rows[1].contains("fast") && rows[2].contains("slow"), "{table}");
    assert!(rows[1].contains("finished") && rows[1].contains("40/40") && rows[1].contains("sft lora"), "{table}");
    let reversed = of(&[dir, "--sort", "eval-loss", "--reverse"]);
    assert_eq!(reversed.lines().nth(1), Some(rows[2]));
    let listed: Value = serde_json::from_str(&of(&[dir, "--json", "--sort", "name"])).unwrap();
    assert_eq!((&listed[0]["name"], &listed[1]["name"]), (&Value::from("fast"), &Value::from("slow")));
    assert!(listed[0]["eval_loss"].as_f64() < listed[1]["eval_loss"].as_f64(), "{listed}");

    let (slow, fast) = (slow.to_str().unwrap(), fast.to_str().unwrap());
    let table = of(&["compare", slow, fast]);
    let row = table.lines().find(|line| line.starts_with("learning_rate")).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("0.00001") && row.contains("0.01"), "{row}");
    assert!(!table.contains("save_steps") && !table.contains("output_dir"), "what is the same, and where: {table}");
    for name in ["over.svg", "over.html", "over.png"] {
        of(&["compare", slow, fast, "--out", bench.at(name).to_str().unwrap()]);
    }
    let page = std::fs::read_to_string(bench.at("over.html")).unwrap();
    assert!(page.contains("<svg ") && page.contains("learning_rate") && page.contains("fast"));
    assert!(std::fs::read_to_string(bench.at("over.svg")).unwrap().contains("train loss"));

    let none = luthier(&["runs", "no/such/folder"]).output().unwrap();
    assert_eq!(none.status.code(), Some(74), "{}", said(&none));
    std::fs::write(runs.join("slow/run.json"), "{").unwrap();
    let output = luthier(&["runs", dir]).output().unwrap();
    assert!(said(&output).contains("run.json: line 1"), "a damaged one is named: {}", said(&output));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2, "and the other is listed");
}

/// The same run where no file may grow over `blocks` of 512 bytes: what a full disk does, without filling one.
fn cramped(bench: &Bench, out: &str, blocks: u64, more: &[&str]) -> Output {
    let train = bench.train(out);
    let script = format!("trap '' 25; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let args = std::iter::once(train.get_program()).chain(train.get_args());
    Command::new("sh").args(["-c", &script]).args(args).args(more).output().unwrap()
}

#[test]
fn a_full_disk_ends_a_run_and_harms_nothing() {
    let bench = Bench::new();
    let more = ["save_steps=10", "report_to=none"];
    good(&bench.train("run").args(more).output().unwrap());
    let (want, out) = (bench.result("run"), bench.at("run"));
    // as if it had been killed after the step before the last checkpoint
    let forget = || {
        let _ = std::fs::remove_dir_all(out.join("checkpoint-40"));
        std::fs::remove_file(out.join("trainer_state.json")).unwrap();
    };
    forget();
    let output = cramped(&bench, "run", 64, &more);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(73), "{text}");
    assert!(text.contains("resumed after step 30") && text.contains(".tmp-checkpoint-40/"), "{text}");
    assert!(text.contains("bytes to write") && text.contains("free there"), "{text}");
    let left = names(&out);
    assert!(left.contains("checkpoint-30") && !left.contains("checkpoint-40"), "{left:?}");
    assert!(!left.iter().any(|name| name.starts_with(".tmp")), "{left:?}");
    assert_eq!(json(&out.join("run.json"))["status"], "failed");

    // now the metrics do not fit
    let output = cramped(&bench, "run", 8, &more);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(73), "{text}");
    assert!(text.contains("metrics.jsonl: cannot write") && text.contains("bytes to write"), "{text}");

    good(&bench.train("run").args(more).output().unwrap());
    assert_eq!(bench.result("run"), want, "with room again it ends as if nothing had been");
}

#[test]
fn the_terminals_ui_wants_a_terminal() {
    let bench = Bench::new();
    let output = bench.train("run").args(["--ui", "tui"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("--ui tui wants a terminal"), "{}", said(&output));
    assert!(!bench.at("run").exists(), "nothing was begun");
}
