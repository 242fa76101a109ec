//! The machine that a run is on, and the state of the sources around it. Whatever cannot be had is left out.
use serde::{Deserialize, Serialize};
use std::env::consts::{ARCH, OS};
use std::process::{Command, Stdio};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    pub name: Option<String>,
    /// The operating system with its version.
    pub os: String,
    pub arch: String,
    pub cpu: Option<String>,
    /// Threads that run at once.
    pub threads: usize,
    /// Bytes.
    pub memory: Option<u64>,
}

/// The repository that the working directory is in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Git {
    pub commit: String,
    /// Tracked files differ from the commit.
    pub dirty: bool,
}

impl Host {
    pub fn here() -> Host {
        Host {
            name: name(),
            os: os().unwrap_or_else(|| OS.to_string()),
            arch: ARCH.to_string(),
            cpu: cpu(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory(),
        }
    }
}

impl Git {
    /// `None`: no repository, no commit in it, or no `git`.
    pub fn here() -> Option<Git> {
        let commit = said("git", &["rev-parse", "--verify", "HEAD"])?;
        let changed = said("git", &["--no-optional-locks", "status", "--porcelain", "--untracked-files=no"])?;
        Some(Git { commit, dirty: !changed.is_empty() })
    }
}

/// What a program writes when it succeeds, without the white space around it.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn file(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}

/// The first `key: value` or `KEY=value` of a text.
fn value(text: &str, key: &str) -> Option<String> {
    let of = |line: &str| {
        let rest = line.strip_prefix(key)?.trim_start().strip_prefix([':', '='])?;
        Some(rest.trim().trim_matches('"').to_string())
    };
    text.lines().find_map(of).filter(|value| !value.is_empty())
}

fn name() -> Option<String> {
    let set = |key: &str| std::env::var(key).ok();
    let name = file("/proc/sys/kernel/hostname").or_else(|| set("COMPUTERNAME")).or_else(|| said("hostname", &[]));
    name.filter(|name| !name.is_empty())
}

fn os() -> Option<String> {
    match OS {
        "linux" => {
            let release = file("/etc/os-release").and_then(|text| value(&text, "PRETTY_NAME"))?;
            Some(
                file("/proc/sys/kernel/osrelease")
                    .map_or(release.clone(), |kernel| format!("{release}, Linux {kernel}")),
            )
        }
        "macos" => said("sw_vers", &["-productVersion"]).map(|version| format!("macOS {version}")),
        "windows" => said("cmd", &["/C", "ver"]),
        _ => said("uname", &["-sr"]),
    }
}

fn cpu() -> Option<String> {
    match OS {
        "linux" => {
            let text = file("/proc/cpuinfo")?;
            value(&text, "model name").or_else(|| value(&text, "Model"))
        }
        "macos" => said("sysctl", &["-n", "machdep.cpu.brand_string"]),
        _ => std::env::var("PROCESSOR_IDENTIFIER").ok(),
    }
}

fn memory() -> Option<u64> {
    match OS {
        "linux" => {
            let kib = value(&file("/proc/meminfo")?, "MemTotal")?;
            kib.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
        }
        "macos" => said("sysctl", &["-n", "hw.memsize"])?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_keys() {
        let text = "processor\t: 0\nmodel name\t: A \"CPU\" X\nempty :\nPRETTY_NAME=\"Debian 12\"";
        assert_eq!(value(text, "model name").as_deref(), Some("A \"CPU\" X"));
        assert_eq!(value(text, "PRETTY_NAME").as_deref(), Some("Debian 12"));
        assert_eq!((value(text, "empty"), value(text, "model")), (None, None));
    }

    #[test]
    fn this_machine_has_an_architecture_and_threads() {
        let host = Host::here();
        assert_eq!(host.arch, ARCH);
        assert!(host.threads >= 1 && !host.os.is_empty());
        if OS == "linux" {
            assert!(host.memory.is_some_and(|bytes| bytes > 1 << 20));
        }
    }

    #[test]
    fn a_program_that_is_absent_says_nothing() {
        assert_eq!(said("no-such-program-anywhere", &[]), None);
    }
}
