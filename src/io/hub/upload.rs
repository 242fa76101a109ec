//! A folder as a commit on the Hub: large files go to where the Hub says (git LFS), small ones into the commit itself.
//!
//! ```text
//! POST /api/repos/create                  the repository, unless it is there
//! POST /api/models/R/preupload/main       which files are large
//! POST /R.git/info/lfs/objects/batch      where those go; what is there already goes nowhere
//! PUT  …                                  one request a file, or one a part
//! POST /api/models/R/commit/main          the commit, a line of JSON a file
//! ```
use super::client::{Client, Fault};
use super::name::Name;
use super::{Event, Hub, Watch};
use crate::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The first bytes of a file, by which the Hub tells text from other files.
const SAMPLE: u64 = 512;
const LFS: &str = "application/vnd.git-lfs+json";

/// A file on its way.
struct Item {
    /// In the repository.
    name: String,
    file: PathBuf,
    size: u64,
    large: bool,
    /// SHA-256 of a large one, in hex.
    oid: String,
}

impl Hub {
    /// Uploads every file of `folder` as one commit to `org/name`, which is made if it is not there. Returns the commit's page.
    pub fn push(&self, repo: &str, private: bool, folder: &Path, message: &str, watch: &mut Watch) -> Result<String> {
        let name = Name::parse(Path::new(repo))?;
        if self.offline {
            return Err(Error::Usage("HF_HUB_OFFLINE is set: unset it to upload".into()));
        }
        if self.token.is_none() {
            let what = "a token that may write is wanted: set HF_TOKEN, or log in with `hf auth login`";
            return Err(Error::Usage(format!("{repo}: {what}")));
        }
        let mut items = items(folder)?;
        let client = Client::new(&self.endpoint, self.token.clone());
        let refused = |fault: Fault| self.write_refusal(&name.repo, fault);
        create(&client, &name.repo, private).map_err(refused)?;
        sort(&client, &name.repo, &mut items, watch)?.map_err(refused)?;
        send_large(&client, &name.repo, &items, watch)?.map_err(refused)?;
        let commit = commit_lines(&items, message)?;
        let url = format!("{}/api/models/{}/commit/main", client.endpoint, name.repo);
        let answer = client.post(&url, "application/x-ndjson", "application/json", &commit).map_err(refused)?;
        let page = format!("{}/{}", client.endpoint, name.repo);
        Ok(answer["commitUrl"].as_str().map_or(page, str::to_string))
    }

    /// What to do about an answer that refuses an upload.
    fn write_refusal(&self, repo: &str, fault: Fault) -> Error {
        match &fault {
            Fault::Refused { status: 401 | 403, .. } => {
                let what =
                    "the token (HF_TOKEN) may not write there: make one with write access, or choose another name";
                Error::Usage(format!("{repo}: {what}"))
            }
            _ => fault.error(&format!("{}/{repo}", self.endpoint)),
        }
    }
}

/// The plain files of a folder; those that begin with a dot stay.
fn items(folder: &Path) -> Result<Vec<Item>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::read(folder))? {
        let file = entry.map_err(Error::read(folder))?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let meta = std::fs::metadata(&file).map_err(Error::read(&file))?;
        if meta.is_file() && !name.starts_with('.') {
            all.push(Item { name, file, size: meta.len(), large: false, oid: String::new() });
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    match all.is_empty() {
        true => Err(Error::content(folder, "", "holds no files to upload")),
        false => Ok(all),
    }
}

fn create(client: &Client, repo: &str, private: bool) -> Result<(), Fault> {
    let (org, name) = repo.split_once('/').unwrap_or(("", repo));
    let body = json!({ "name": name, "organization": org, "type": "model", "private": private });
    match client.post_json(&format!("{}/api/repos/create", client.endpoint), &body) {
        // it is there, or was made by somebody just now
        Err(Fault::Refused { status: 409, .. }) => Ok(()),
        answer => answer.map(|_| ()),
    }
}

/// Asks which files are large, and hashes those.
fn sort(client: &Client, repo: &str, items: &mut [Item], watch: &mut Watch) -> Result<Result<(), Fault>> {
    let mut files = Vec::new();
    for item in items.iter() {
        let mut sample = Vec::new();
        let file = File::open(&item.file).map_err(Error::read(&item.file))?;
        file.take(SAMPLE).read_to_end(&mut sample).map_err(Error::read(&item.file))?;
        files.push(json!({ "path": item.name, "sample": BASE64.encode(sample), "size": item.size }));
    }
    let url = format!("{}/api/models/{repo}/preupload/main", client.endpoint);
    let answer = match client.post_json(&url, &json!({ "files": files })) {
        Ok(answer) => answer,
        Err(fault) => return Ok(Err(fault)),
    };
    let modes = answer["files"].as_array().cloned().unwrap_or_default();
    for item in items {
        let mode = modes.iter().find(|file| file["path"] == item.name.as_str()).map(|file| &file["uploadMode"]);
        let Some(mode) = mode.and_then(Value::as_str) else {
            return Ok(Err(Fault::Strange(format!("no word about how to upload {}", item.name))));
        };
        item.large = mode == "lfs";
        if item.large {
            watch(Event::Note(&format!("hashing {}", item.name)));
            item.oid = sha256(&item.file)?;
        }
    }
    Ok(Ok(()))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::read(path))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::read(path))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn send_large(client: &Client, repo: &str, items: &[Item], watch: &mut Watch) -> Result<Result<(), Fault>> {
    let large: Vec<&Item> = items.iter().filter(|item| item.large).collect();
    if large.is_empty() {
        return Ok(Ok(()));
    }
    let objects: Vec<Value> = large.iter().map(|item| json!({ "oid": item.oid, "size": item.size })).collect();
    let body = json!({ "operation": "upload", "transfers": ["basic", "multipart"], "objects": objects,
        "hash_algo": "sha256", "ref": { "name": "main" } });
    let url = format!("{}/{repo}.git/info/lfs/objects/batch", client.endpoint);
    let answer = match client.post(&url, LFS, LFS, body.to_string().as_bytes()) {
        Ok(answer) => answer,
        Err(fault) => return Ok(Err(fault)),
    };
    for item in large {
        let object =
            answer["objects"].as_array().into_iter().flatten().find(|object| object["oid"] == item.oid.as_str());
        let Some(object) = object else {
            return Ok(Err(Fault::Strange(format!("no word about where {} goes", item.name))));
        };
        if let Some(message) = object["error"]["message"].as_str() {
            return Ok(Err(Fault::Strange(format!("{}: {message}", item.name))));
        }
        // without an action the Hub has these bytes already
        let upload = &object["actions"]["upload"];
        if let Some(to) = upload["href"].as_str() {
            watch(Event::File { name: &item.name, size: item.size, have: 0 });
            if let Err(fault) = send_one(client, item, to, &upload["header"], watch)? {
                return Ok(Err(fault));
            }
            watch(Event::Done);
        }
        if let Some(url) = object["actions"]["verify"]["href"].as_str() {
            let body = json!({ "oid": item.oid, "size": item.size }).to_string();
            if let Err(fault) = client.post(url, LFS, LFS, body.as_bytes()) {
                return Ok(Err(fault));
            }
        }
    }
    Ok(Ok(()))
}

/// One file to one address, or its parts to one each.
fn send_one(client: &Client, item: &Item, to: &str, header: &Value, watch: &mut Watch) -> Result<Result<(), Fault>> {
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    let Some(chunk) = number(&header["chunk_size"]).filter(|chunk| *chunk > 0) else {
        let sent = part(client, item, to, 0..item.size)?;
        return Ok(sent.map(|_| ()));
    };
    let mut parts = Vec::new();
    for (i, first) in (0..item.size).step_by(chunk as usize).enumerate() {
        let numbered = header.as_object().into_iter().flatten();
        let own = numbered.filter_map(|(key, url)| Some((key.parse::<usize>().ok()?, url.as_str()?)));
        let Some((_, url)) = own.into_iter().find(|(number, _)| *number == i + 1) else {
            return Ok(Err(Fault::Strange(format!("no address for part {} of {}", i + 1, item.name))));
        };
        let end = (first + chunk).min(item.size);
        match part(client, item, url, first..end)? {
            Ok(Some(etag)) => parts.push(json!({ "partNumber": i + 1, "etag": etag })),
            Ok(None) => return Ok(Err(Fault::Strange(format!("no etag for part {} of {}", i + 1, item.name)))),
            Err(fault) => return Ok(Err(fault)),
        }
        watch(Event::Bytes(end));
    }
    let body = json!({ "oid": item.oid, "parts": parts }).to_string();
    Ok(client.post(to, LFS, LFS, body.as_bytes()).map(|_| ()))
}

/// Some bytes of a file; each attempt reads them anew. The answer's etag.
fn part(client: &Client, item: &Item, url: &str, range: std::ops::Range<u64>) -> Result<Result<Option<String>, Fault>> {
    let len = range.end - range.start;
    let open = || {
        let mut file = File::open(&item.file)?;
        file.seek(SeekFrom::Start(range.start))?;
        Ok(file.take(len))
    };
    open().map_err(Error::read(&item.file))?;
    Ok(client.put(url, len, &open))
}

fn commit_lines(items: &[Item], message: &str) -> Result<Vec<u8>> {
    let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
    for item in items {
        lines.push(match item.large {
            true => json!({ "key": "lfsFile",
                "value": { "path": item.name, "algo": "sha256", "oid": item.oid, "size": item.size } }),
            false => {
                let content = std::fs::read(&item.file).map_err(Error::read(&item.file))?;
                json!({ "key": "file",
                    "value": { "content": BASE64.encode(content), "path": item.name, "encoding": "base64" } })
            }
        });
    }
    Ok(lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect())
}
