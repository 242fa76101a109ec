//! Which backend: the one that is named, or the first that works of cuda, wgpu on hardware, cpu.
use super::cpu::Cpu;
use super::dry::Rules;
use super::{Backend, CpuRules, CudaRules};
use crate::error::{Error, Result};
use std::rc::Rc;

/// What a config or a command line may say.
pub const NAMES: &[&str] = &["auto", "cuda", "wgpu", "cpu"];

/// The backend, and a line that says which it is and why. A named one that does not work is an error, never another one.
pub fn pick(name: &str) -> Result<(Box<dyn Backend>, String)> {
    let chosen = |backend: Box<dyn Backend>, why: &str| {
        let line = format!("{} on {} ({why})", backend.name(), backend.device());
        Ok((backend, line))
    };
    match name {
        "auto" => {
            let (backend, why) = best(&[cuda, wgpu_on_hardware])?;
            chosen(backend, &why)
        }
        "cuda" => chosen(cuda()?, "as asked"),
        "wgpu" => chosen(wgpu()?, "as asked"),
        "cpu" => chosen(Box::new(Cpu::new()), "as asked"),
        _ => Err(Error::Usage(format!("there is no backend {name:?}: choose one of {}", NAMES.join(", ")))),
    }
}

/// How a backend takes memory, also on a device that is not here; but wgpu's rules depend on the adapter.
pub fn rules(name: &str) -> Result<Rc<dyn Rules>> {
    match name {
        "auto" | "cuda" => Ok(Rc::new(CudaRules::FULL)),
        "cpu" => Ok(Rc::new(CpuRules)),
        _ => Ok(pick(name)?.0.rules()),
    }
}

/// Each backend, and what it finds here, for people.
pub fn survey() -> [(&'static str, Vec<String>); 3] {
    [("cuda", cuda_lines()), ("wgpu", wgpu_lines()), ("cpu", Vec::new())]
}

type Open = fn() -> Result<Box<dyn Backend>>;

/// The first that opens, or the cpu; and why those before it did not.
fn best(candidates: &[Open]) -> Result<(Box<dyn Backend>, String)> {
    let mut missing = Vec::new();
    for open in candidates {
        match open() {
            Ok(backend) => {
                let why = if missing.is_empty() { "the best there is".into() } else { missing.join("; ") };
                return Ok((backend, why));
            }
            // Only "not here" leads on; a bug must come out.
            Err(e @ Error::Device { .. }) => missing.push(e.to_string()),
            Err(e) => return Err(e),
        }
    }
    Ok((Box::new(Cpu::new()), missing.join("; ")))
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Box<dyn Backend>> {
    Ok(Box::new(super::cuda::Cuda::new(0)?))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Box<dyn Backend>> {
    Err(Error::device("cuda", "not in this build; build with `--features cuda`"))
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Box<dyn Backend>> {
    Ok(Box::new(super::wgpu::Wgpu::new(None)?))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Box<dyn Backend>> {
    Err(Error::device("wgpu", "not in this build; build with `--features wgpu`"))
}

/// A software adapter is slower than the cpu backend.
#[cfg(feature = "wgpu")]
fn wgpu_on_hardware() -> Result<Box<dyn Backend>> {
    match super::wgpu::adapters().iter().any(|a| a.hardware) {
        true => wgpu(),
        false => Err(Error::device("wgpu", "no graphics driver offers a GPU")),
    }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_on_hardware() -> Result<Box<dyn Backend>> {
    wgpu()
}

#[cfg(feature = "cuda")]
fn cuda_lines() -> Vec<String> {
    let report = super::cuda::report();
    let mut lines = Vec::new();
    lines.extend(report.driver.map(|(major, minor)| format!("driver for CUDA {major}.{minor}")));
    lines.extend(report.devices.iter().map(|d| {
        let (major, minor) = d.capability;
        let gib = d.memory as f64 / f64::from(1 << 30);
        format!("{} {}, compute capability {major}.{minor}, {gib:.1} GiB", d.ordinal, d.name)
    }));
    let found = report.libraries.iter().filter_map(|l| l.found.as_ref().map(|at| format!("lib{}: {at}", l.name)));
    lines.extend(found);
    // Without a driver, libraries would not help.
    if report.problem.is_none() {
        lines.extend(report.advice());
    }
    lines
}

#[cfg(not(feature = "cuda"))]
fn cuda_lines() -> Vec<String> {
    Vec::new()
}

#[cfg(feature = "wgpu")]
fn wgpu_lines() -> Vec<String> {
    let line = |a: &super::wgpu::AdapterReport| {
        let kind = if a.hardware { "" } else { ", software" };
        format!("{} ({}, {}{kind}): {}", a.name, a.api, a.driver, a.features.join(", "))
    };
    super::wgpu::adapters().iter().map(line).collect()
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_lines() -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absent() -> Result<Box<dyn Backend>> {
        Err(Error::device("cuda", "no driver"))
    }
    fn broken() -> Result<Box<dyn Backend>> {
        Err(Error::Bug("a null pointer".into()))
    }
    fn present() -> Result<Box<dyn Backend>> {
        Ok(Box::new(Cpu::plain()))
    }

    #[test]
    fn auto_goes_on_where_a_device_is_absent_and_says_so() {
        let (backend, why) = best(&[absent]).unwrap();
        assert_eq!((backend.name(), why.as_str()), ("cpu", "cuda: no driver"));
        assert_eq!(best(&[present, broken]).unwrap().1, "the best there is");
        assert!(matches!(best(&[broken, present]), Err(Error::Bug(_))));
    }

    #[test]
    fn names() {
        let (backend, line) = pick("cpu").unwrap();
        assert_eq!(backend.name(), "cpu");
        assert!(line.starts_with("cpu on CPU, ") && line.ends_with("(as asked)"), "{line}");
        assert!(pick("auto").is_ok());
        assert_eq!(pick("rocm").err().map(|e| e.exit_code()), Some(2));
    }
}
