//! A run that is interrupted or killed goes on as if nothing had been: the same steps, the same weights, bit by bit.
#![cfg(unix)]
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;
#[path = "support/bench.rs"]
mod bench;
use bench::*;

/// Kills that each backend's runs must survive.
const KILLS: u32 = 30;
/// What has a state of its own that a resume must bring back: where in a step's micro-batches, which rows were packed, what was
/// dropped, moments in 8 bits (of tensors of 4096 values and more).
const ALL_ON: [&str; 4] = ["packing=true", "gradient_accumulation_steps=2", "lora.lora_dropout=0.1", "lora.r=64"];

/// Kills runs at random moments, most of them inside a save (there is one every step), and starts the same command again; a
/// run that reaches its end must equal one that was never disturbed, and is followed by a new one until enough were killed.
fn survives_kills(backend: &str) {
    let bench = Bench::new();
    let backend = format!("backend={backend}");
    let started = std::time::Instant::now();
    good(&bench.train("straight").arg(&backend).args(ALL_ON).output().unwrap());
    let states = bench.at(&format!("straight/checkpoint-{STEPS}/optimizer.safetensors"));
    assert!(
        std::fs::read(&states).unwrap().windows(12).any(|text| text == br#""dtype":"U8""#),
        "no state is in 8 bits"
    );
    let whole = started.elapsed();
    let want = bench.result("straight");
    assert_eq!(want.1.iter().map(|l| l.0).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());

    let mut rng = luthier::rng::Rng::new(std::process::id() as u64);
    let (mut kills, mut finished) = (0, 0);
    while kills < KILLS || finished == 0 {
        let out = format!("killed-{finished}");
        let mut child = bench.train(&out).arg(&backend).args(ALL_ON).stderr(Stdio::piped()).spawn().unwrap();
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
    if has_wgpu() {
        survives_kills("wgpu");
    }
}

fn has_wgpu() -> bool {
    let found = luthier::backend::pick::pick("wgpu");
    if let Err(e) = &found {
        let required = std::env::var("LUTHIER_REQUIRE").unwrap_or_default();
        assert!(!required.contains("wgpu"), "LUTHIER_REQUIRE names wgpu: {e}");
        println!("wgpu: skipped: {e}");
    }
    found.is_ok()
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

/// A driver that has no more to give, and not a plan that says so before: the process may map less than the run's tensors take.
#[test]
#[cfg(all(target_os = "linux", feature = "wgpu"))]
fn out_of_memory_a_run_on_wgpu_says_what_it_wanted_and_leaves_nothing_behind() {
    // a card's memory is not the process's
    if !has_wgpu() || luthier::backend::wgpu::adapters()[0].hardware {
        return;
    }
    let bench = Bench::new();
    let keys = ["backend=wgpu", "optim=adamw_torch", "max_length=524288", "gradient_checkpointing=false"];
    let train = bench.train("short");
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 1400000 && exec \"$0\" \"$@\""]).arg(train.get_program()).args(train.get_args());
    // each thread maps memory of its own
    let threads = ["RAYON_NUM_THREADS", "LP_NUM_THREADS", "MALLOC_ARENA_MAX"];
    let output = limited.args(keys).envs(threads.map(|name| (name, "2"))).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let error = said.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(error.starts_with("error: wgpu: ") && error.to_lowercase().contains("out of memory"), "{said}");
    assert!(error.contains("MiB wanted, ") && error.contains("MiB in use") && error.contains("memory_limit"), "{said}");
    // the folder is as free as before
    good(&bench.train("short").args(["backend=wgpu", "max_steps=1"]).output().unwrap());
}
