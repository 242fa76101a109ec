//! Which backends there are here, and the one thread that owns them: a GPU is opened once for all tests.
//!
//! `LUTHIER_REQUIRE=wgpu,cuda` makes an absent one a failure; without it an absent one is skipped, and said so.
//! `LUTHIER_ONLY=cpu` leaves the others out.
use luthier::backend::Backend;
use luthier::backend::cpu::Cpu;
use luthier::error::Result;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

pub struct Device {
    /// As the reports call it; `cpu plain` runs without fast paths.
    pub name: &'static str,
    pub backend: Box<dyn Backend>,
}

type Open = fn() -> Result<Box<dyn Backend>>;

/// A new backend is a line here.
fn backends() -> Vec<(&'static str, Open)> {
    vec![
        ("cpu", || Ok(Box::new(Cpu::new()))),
        ("cpu plain", || Ok(Box::new(Cpu::plain()))),
        #[cfg(feature = "wgpu")]
        ("wgpu", || Ok(Box::new(luthier::backend::wgpu::Wgpu::new(None)?))),
        #[cfg(feature = "cuda")]
        ("cuda", || Ok(Box::new(luthier::backend::cuda::Cuda::new(0)?))),
    ]
}

/// Past libtest's capture: what ran where is printed when all went well, too.
pub fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("stderr takes a line");
}

fn open() -> Result<Vec<Device>, String> {
    let required = std::env::var("LUTHIER_REQUIRE").unwrap_or_default();
    let mut missing: Vec<&str> = required.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let only = std::env::var("LUTHIER_ONLY").ok();
    let wanted = |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|o| name.starts_with(o.trim())));
    let mut devices = Vec::new();
    for (name, open) in backends() {
        if !wanted(name) {
            say(&format!("{name}: left out by LUTHIER_ONLY"));
            continue;
        }
        match open() {
            Ok(backend) => {
                say(&format!("{name}: {}", backend.device()));
                missing.retain(|m| *m != name);
                devices.push(Device { name, backend });
            }
            Err(e) => say(&format!("{name}: skipped, {e}")),
        }
    }
    match missing.is_empty() {
        true => Ok(devices),
        false => Err(format!("LUTHIER_REQUIRE={required}, but there is no {}", missing.join(", "))),
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
