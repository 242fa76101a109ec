//! Finding CUDA's libraries at run time: the loader's own search, then pip's `nvidia/*/lib` folders of the active Python.
//!
//! What is opened here by its full path stays open, so that cudarc's later search by bare name meets it in memory.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A library as `luthier doctor` shows it.
#[derive(Clone, Debug)]
pub struct Library {
    pub name: &'static str,
    /// Where it was found; the bare file name if the loader's own search found it.
    pub found: Option<String>,
    /// What is lost without it.
    pub used_for: &'static str,
    /// How to get it.
    pub get: &'static str,
}

/// (name, major versions, used for, how to get it). In the order of opening: each finds its needs in memory.
const LIBRARIES: &[(&str, &[&str], &str, &str)] = &[
    ("cuda", &["1"], "the NVIDIA driver", "install the NVIDIA driver (580 or newer for CUDA 13)"),
    (
        "nvrtc-builtins",
        &["13.0", "13.1", "13.2", "13.3", "12.9", "12.8"],
        "needed by nvrtc",
        "pip install nvidia-cuda-nvrtc",
    ),
    ("nvrtc", &["13", "12"], "compiling kernels for the device", "pip install nvidia-cuda-nvrtc"),
    ("cublasLt", &["13", "12"], "matrix products", "pip install nvidia-cublas"),
    ("cudnn", &["9"], "optional: faster attention on Hopper and newer", "pip install nvidia-cudnn-cu13"),
];

/// Opens every library that can be found, once per process.
pub fn open() -> &'static [Library] {
    static OPENED: OnceLock<Vec<Library>> = OnceLock::new();
    OPENED.get_or_init(|| {
        let mut folders = None;
        let find = |&(name, majors, used_for, get): &(&'static str, &[&str], _, _)| Library {
            name,
            found: by_name(name, majors)
                .or_else(|| by_folder(name, majors, folders.get_or_insert_with(folders_of_pip))),
            used_for,
            get,
        };
        LIBRARIES.iter().map(find).collect()
    })
}

/// The sentence for a library that an operation cannot do without; `None` when it is there.
pub fn missing(name: &str) -> Option<String> {
    let library = open().iter().find(|l| l.name == name).expect("a library of the table");
    match &library.found {
        Some(_) => None,
        None => Some(format!("lib{name} was not found ({}); {}", library.used_for, library.get)),
    }
}

fn file_names(name: &str, majors: &[&str]) -> Vec<String> {
    if cfg!(windows) {
        // The driver alone has a fixed name there; the toolkit's names are those that cudarc tries.
        return if name == "cuda" { vec!["nvcuda.dll".into()] } else { cudarc::get_lib_name_candidates(name) };
    }
    let versioned = majors.iter().map(|major| format!("lib{name}.so.{major}"));
    versioned.chain([format!("lib{name}.so")]).collect()
}

fn by_name(name: &str, majors: &[&str]) -> Option<String> {
    file_names(name, majors).into_iter().find(|file| keep_open(file.as_ref()))
}

fn by_folder(name: &str, majors: &[&str], folders: &[PathBuf]) -> Option<String> {
    if name == "cuda" {
        return None; // the driver never comes from pip, and a stub of it must not be taken for one
    }
    let files = file_names(name, majors);
    let paths = files.iter().flat_map(|file| folders.iter().map(move |folder| folder.join(file)));
    paths.filter(|path| path.is_file()).find(|path| keep_open(path)).map(|path| path.display().to_string())
}

#[cfg(unix)]
fn keep_open(file: &Path) -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: NVIDIA's libraries run no harmful initialisers; they are never closed.
    unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) }.map(std::mem::forget).is_ok()
}

#[cfg(not(unix))]
fn keep_open(file: &Path) -> bool {
    // SAFETY: as above.
    unsafe { libloading::Library::new(file) }.map(std::mem::forget).is_ok()
}

/// `site-packages/nvidia/*/lib` of the active environment; a Python is asked only when no folder holds any.
fn folders_of_pip() -> Vec<PathBuf> {
    let variables = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    let active: Vec<PathBuf> = variables.flat_map(|prefix| library_folders(&site_packages(&prefix))).collect();
    if !active.is_empty() {
        return active;
    }
    let of_path: Vec<PathBuf> = prefixes_on_path().iter().flat_map(|p| library_folders(&site_packages(p))).collect();
    if of_path.is_empty() { library_folders(&ask_python()) } else { of_path }
}

/// Prefixes of the Pythons on PATH, symbolic links followed, and the user's own packages.
fn prefixes_on_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let python = |folder: PathBuf| std::fs::canonicalize(folder.join("python3")).ok();
    let prefix = |python: PathBuf| python.parent().and_then(Path::parent).map(Path::to_path_buf);
    let user = std::env::home_dir().map(|home| home.join(".local"));
    std::env::split_paths(&path).filter_map(python).take(1).filter_map(prefix).chain(user).collect()
}

fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let patterns = ["lib/python3*/site-packages", "lib/python3*/dist-packages", "Lib/site-packages"];
    patterns.iter().flat_map(|pattern| matches(&prefix.join(pattern))).collect()
}

fn library_folders(sites: &[PathBuf]) -> Vec<PathBuf> {
    let parts =
        if cfg!(windows) { ["nvidia/*/bin/x86_64", "nvidia/*/bin"] } else { ["nvidia/*/lib", "nvidia/*/lib64"] };
    sites.iter().flat_map(|site| parts.iter().flat_map(|part| matches(&site.join(part)))).collect()
}

fn matches(pattern: &Path) -> Vec<PathBuf> {
    glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten().collect()
}

/// Last resort, for launchers that hide where their Python lives: tens of milliseconds.
fn ask_python() -> Vec<PathBuf> {
    let code = "import site; print(*site.getsitepackages(), site.getusersitepackages(), sep='\\n')";
    let output = Command::new("python3").args(["-c", code]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().map(PathBuf::from).collect()
}
