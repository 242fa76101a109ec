//! Which backends there are here, and the one thread that owns them: a GPU is opened once for all tests.
//!
//! `LUTHIER_REQUIRE=wgpu,cuda` makes an absent one a failure; without it an absent one is skipped, and said so. `coop` among them:
//! wgpu must have cooperative matrices, and what can run on them must. `LUTHIER_ONLY=cpu` leaves the others out,
//! `LUTHIER_CASES='Q: 66;D: 16'` all cases but those whose labels contain one of these.
#![allow(dead_code, reason = "not every test that opens devices asks for all of this")]
use luthier::backend::Backend;
use luthier::backend::cpu::Cpu;
use luthier::error::Result;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

pub struct Device {
    /// As the reports call it; `cpu plain` runs without fast paths.
    pub name: &'static str,
    pub backend: Rc<dyn Backend>,
    /// Calls so far, by the file of their shader; none where there are no shaders.
    pub calls: Box<dyn Fn(&str) -> u64>,
    /// It has cooperative matrices.
    pub coop: bool,
}

type Open = fn() -> Result<Device>;

/// A new backend is a line here.
fn backends() -> Vec<(&'static str, Open)> {
    vec![
        ("cpu", || Ok(without_shaders("cpu", Cpu::new()))),
        ("cpu plain", || Ok(without_shaders("cpu plain", Cpu::plain()))),
        #[cfg(feature = "wgpu")]
        ("wgpu", wgpu),
        #[cfg(feature = "cuda")]
        ("cuda", || Ok(without_shaders("cuda", luthier::backend::cuda::Cuda::new(0)?))),
    ]
}

fn without_shaders(name: &'static str, backend: impl Backend + 'static) -> Device {
    Device { name, backend: Rc::new(backend), calls: Box::new(|_| 0), coop: false }
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Device> {
    let wgpu = Rc::new(luthier::backend::wgpu::Wgpu::new(None)?);
    let coop = wgpu.report().matrix_unit.is_some();
    let counted = wgpu.clone();
    Ok(Device { name: "wgpu", backend: wgpu, calls: Box::new(move |file| counted.calls(file)), coop })
}

fn listed(variable: &str, separator: char) -> Option<Vec<String>> {
    let text = std::env::var(variable).ok()?;
    Some(text.split(separator).map(|word| word.trim().to_string()).filter(|word| !word.is_empty()).collect())
}

/// Whether cooperative matrices are required.
pub fn requires_coop() -> bool {
    listed("LUTHIER_REQUIRE", ',').is_some_and(|names| names.iter().any(|name| name == "coop"))
}

/// Whether `LUTHIER_CASES` lets a case of this label run.
pub fn is_wanted(label: &str) -> bool {
    listed("LUTHIER_CASES", ';').is_none_or(|parts| parts.iter().any(|part| label.contains(part.as_str())))
}

/// What of `LUTHIER_CASES` is in none of these labels.
pub fn wanted_and_absent<'a>(labels: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let parts = listed("LUTHIER_CASES", ';').unwrap_or_default();
    parts.into_iter().filter(|part| !labels.clone().any(|label| label.contains(part.as_str()))).collect()
}

/// Past libtest's capture: what ran where is printed when all went well, too.
pub fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("stderr takes a line");
}

fn open() -> Result<Vec<Device>, String> {
    let required = listed("LUTHIER_REQUIRE", ',').unwrap_or_default();
    let mut missing = required.clone();
    let only = listed("LUTHIER_ONLY", ',');
    let wanted = |name: &str| only.as_ref().is_none_or(|only| only.iter().any(|o| name.starts_with(o.as_str())));
    let mut devices = Vec::new();
    for (name, open) in backends() {
        if !wanted(name) {
            say(&format!("{name}: left out by LUTHIER_ONLY"));
            continue;
        }
        match open() {
            Ok(device) => {
                let coop = if device.coop { ", with cooperative matrices" } else { "" };
                say(&format!("{name}: {}{coop}", device.backend.device()));
                missing.retain(|m| m != name && !(m == "coop" && device.coop));
                devices.push(device);
            }
            Err(e) => say(&format!("{name}: skipped, {e}")),
        }
    }
    match missing.is_empty() {
        true => Ok(devices),
        false => Err(format!("LUTHIER_REQUIRE={}, but there is no {}", required.join(","), missing.join(", "))),
    }
}

type Job = Box<dyn FnOnce(&Result<Vec<Device>, String>) + Send>;

fn owner() -> Sender<Job> {
    static OWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let start = || {
        let (send, jobs) = channel::<Job>();
        std::thread::spawn(move || {
            let devices = open();
            jobs.into_iter().for_each(|job| job(&devices));
        });
        Mutex::new(send)
    };
    OWNER.get_or_init(start).lock().expect("no one panics with it").clone()
}

/// Runs `job` where the devices live; its panic is the caller's.
pub fn on_devices<R: Send + 'static>(job: impl FnOnce(&[Device]) -> R + Send + 'static) -> R {
    let (send, answer) = channel();
    let job = move |devices: &Result<Vec<Device>, String>| {
        let result = catch_unwind(AssertUnwindSafe(|| match devices {
            Ok(devices) => job(devices),
            Err(e) => panic!("{e}"),
        }));
        send.send(result).expect("the caller waits");
    };
    owner().send(Box::new(job)).expect("the devices' thread lives as long as the process");
    answer.recv().expect("every job answers").unwrap_or_else(|e| resume_unwind(e))
}
