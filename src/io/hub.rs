//! Models by name: `org/name` or `org/name@revision`, fetched from the Hugging Face Hub into the cache that Python uses too.
//!
//! Only what a model is loaded from comes: config, safetensors, tokenizer, templates. A folder that exists is itself. All files
//! are of one commit, so a model that changes while it is fetched is not mixed; what was interrupted goes on where it stopped.
//!
//! A client of its own on `ureq`: the crate hf-hub brings an async runtime and some 280 crates in version 1, and in version 0.5 it
//! hides the code that tells a gated model from a missing one, checks no sizes, and appends where a server ignores `Range`.
use crate::error::{Error, Result};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
mod cache;
mod client;
pub mod dataset;
mod fetch;
mod name;
mod upload;
use client::{Client, Fault};
use name::Name;

/// What runs beside the weights elsewhere: tokenizer, chat template, generation config. A model may lack any of them.
pub const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// What is to be found under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Model,
    /// As PEFT writes it.
    Adapter,
}

impl Kind {
    fn config(self) -> &'static str {
        match self {
            Kind::Model => "config.json",
            Kind::Adapter => "adapter_config.json",
        }
    }
    fn stem(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Adapter => "adapter_model",
        }
    }
}

/// How a download goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A file of `size` bytes begins; `have` of them are there from an earlier attempt.
    File {
        name: &'a str,
        size: u64,
        have: u64,
    },
    /// So many bytes of it are there now.
    Bytes(u64),
    /// It is there.
    Done,
    Note(&'a str),
}

/// Sees each event; `false` ends the download, to be gone on with another time.
pub type Watch<'w> = dyn FnMut(Event) -> bool + 'w;

/// The folder of a model: `path` itself where it is one, else what the Hub, as the environment describes it, has under that name.
pub fn resolve(path: &Path, kind: Kind, watch: &mut Watch) -> Result<PathBuf> {
    Hub::from_env().resolve(path, kind, watch)
}

/// A name on the Hub and its revision, where it has one; a folder's path is all name.
pub fn split(path: &str) -> (&str, Option<&str>) {
    match path.split_once('@') {
        Some((name, revision)) if !Path::new(path).exists() && Name::parse(path.as_ref()).is_ok() => {
            (name, Some(revision))
        }
        _ => (path, None),
    }
}

/// Whether this is a name on the Hub, without a revision, and no folder here.
pub fn is_name(text: &str) -> bool {
    !text.contains('@') && !Path::new(text).exists() && Name::parse(text.as_ref()).is_ok()
}

/// Where models come from, and where they are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    pub endpoint: String,
    pub token: Option<String>,
    pub cache: PathBuf,
    /// Nothing but the cache is looked at.
    pub offline: bool,
}

impl Hub {
    /// As `huggingface_hub` reads HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE.
    pub fn from_env() -> Hub {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let first = |names: [&str; 2]| names.iter().find_map(|name| var(name));
        let user = || std::env::home_dir().unwrap_or_default().join(".cache");
        let shared = || var("XDG_CACHE_HOME").map_or_else(user, PathBuf::from).join("huggingface");
        let home = var("HF_HOME").map_or_else(shared, PathBuf::from);
        let cache = first(["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map_or_else(|| home.join("hub"), PathBuf::from);
        let file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let saved = || std::fs::read_to_string(file).ok();
        let token = first(["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(saved);
        let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Hub {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.map(|t| t.trim().to_string()).filter(|t| !t.is_empty()),
            cache,
            offline: first(["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(on),
        }
    }

    /// As [`resolve`], from here.
    pub fn resolve(&self, path: &Path, kind: Kind, watch: &mut Watch) -> Result<PathBuf> {
        if path.is_dir() {
            super::links::check_all(path)?;
            return Ok(path.to_path_buf());
        }
        if path.exists() {
            return Ok(path.to_path_buf());
        }
        let name = Name::parse(path)?;
        let repo = cache::Repo::new(&self.cache, &name.repo);
        let folder = self.find(path, &name, &repo, kind, watch)?;
        super::links::check_all(&folder)?;
        Ok(folder)
    }

    fn find(&self, path: &Path, name: &Name, repo: &cache::Repo, kind: Kind, watch: &mut Watch) -> Result<PathBuf> {
        if self.offline {
            return cached(repo, name, kind).map_err(|why| {
                let what = format!("{why}, and HF_HUB_OFFLINE is set: unset it to download the model");
                absent(path, ErrorKind::NotFound, what)
            });
        }
        // a commit never changes
        if cache::is_commit(&name.revision)
            && let Ok(folder) = cached(repo, name, kind)
            && COMPANIONS.iter().all(|f| repo.lacks(&name.revision, f) || folder.join(f).exists())
        {
            return Ok(folder);
        }
        let client = Client::new(&self.endpoint, self.token.clone());
        match fetch::fetch(&client, repo, name, kind, watch) {
            Err(fetch::Stop::Fault(Fault::Unreachable(why))) => match cached(repo, name, kind) {
                Ok(folder) => {
                    let commit = folder.file_name().unwrap_or_default().to_string_lossy();
                    let endpoint = &self.endpoint;
                    watch(Event::Note(&format!("{endpoint}: {why}: {name} as cached, commit {commit}, is used")));
                    Ok(folder)
                }
                Err(_) => {
                    let what = format!("no such folder here, and {} does not answer: {why}", self.endpoint);
                    Err(absent(path, ErrorKind::NotConnected, what))
                }
            },
            Err(fetch::Stop::Fault(fault)) => Err(self.refusal(path, name, fault, "model")),
            Err(fetch::Stop::Error(e)) => Err(e),
            Ok(folder) => Ok(folder),
        }
    }

    /// What to do about an answer that refuses.
    fn refusal(&self, path: &Path, name: &Name, fault: Fault, thing: &str) -> Error {
        let Fault::Refused { status, code } = &fault else { return fault.error(&path.to_string_lossy()) };
        let place = if thing == "model" { "" } else { "datasets/" };
        let page = format!("{}/{place}{}", self.endpoint.trim_end_matches('/'), name.repo);
        let token = match self.token {
            Some(_) => "the token in use (HF_TOKEN, or the one `hf auth login` saved) has no access to it",
            None => "set HF_TOKEN to a token of yours",
        };
        let (kind, what) = match (status, code.as_str()) {
            (_, "GatedRepo") | (403, _) => {
                let what = format!("the {thing} is gated: accept its licence at {page}, and then {token}");
                let again = format!("the {thing} is gated: accept its licence at {page}; {token} yet");
                (ErrorKind::PermissionDenied, if self.token.is_some() { again } else { what })
            }
            (_, "RevisionNotFound") => {
                let revision = &name.revision;
                (ErrorKind::NotFound, format!("the {thing} has no revision `{revision}`: {page}/tree/main lists them"))
            }
            (401 | 404, "RepoNotFound") | (401, _) => {
                let what = format!(
                    "no such folder here and no such {thing} at {page}: check the name; if it is private, {token}"
                );
                (ErrorKind::NotFound, what)
            }
            (404, _) => (ErrorKind::NotFound, format!("no such folder here, and nothing of that name at {page}")),
            (429, _) => (ErrorKind::Other, format!("{page}: too many requests; wait, or {token}")),
            _ => return fault.error(&page),
        };
        absent(path, kind, what)
    }
}

fn absent(path: &Path, kind: ErrorKind, what: impl Into<String>) -> Error {
    Error::Read { file: path.to_path_buf(), source: io::Error::new(kind, what.into()) }
}

/// The revision's folder if everything that must be there is; else what is not.
fn cached(repo: &cache::Repo, name: &Name, kind: Kind) -> Result<PathBuf, String> {
    let none = || format!("{name} is not in the cache {}", repo.path().display());
    let folder = repo.snapshot(&repo.commit(&name.revision).ok_or_else(none)?);
    if !folder.join(kind.config()).exists() {
        return Err(none());
    }
    let wanted = super::safetensors::files(&folder, kind.stem()).map_err(|e| e.to_string())?;
    match wanted.iter().find(|file| !file.exists()) {
        Some(file) => Err(format!("{name} is not whole in the cache: {} is missing", file.display())),
        None => Ok(folder),
    }
}
