//! A Hub of one's own: what the real one answers to HEAD and GET of `/ORG/NAME/resolve/REVISION/FILE`. Weights are redirected
//! to another host, as there.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A model on it.
#[derive(Clone, Default)]
pub struct Repo {
    pub commit: String,
    pub revisions: Vec<String>,
    pub files: BTreeMap<String, Vec<u8>>,
    /// The token that may read it; `None`: anybody.
    pub gated: Option<String>,
}

#[derive(Default)]
pub struct State {
    pub repos: BTreeMap<String, Repo>,
    /// `GET /a/b/resolve/… auth range`, in order; of both hosts.
    pub log: Vec<String>,
    /// GETs of weights end after so many bytes, as often as there are entries.
    pub cuts: Vec<usize>,
    /// GETs of weights ignore `Range`.
    pub whole: bool,
    /// What was uploaded apart from commits: bytes by SHA-256, or by that and a part's number.
    pub uploads: BTreeMap<String, Vec<u8>>,
    /// Bodies of commits.
    pub commits: Vec<String>,
    /// Large files come in parts of so many bytes.
    pub part: Option<usize>,
    /// So many requests that are no GET fail first.
    pub busy: usize,
}

pub struct Server {
    pub state: Arc<Mutex<State>>,
    pub url: String,
}

impl Server {
    pub fn start(repos: impl IntoIterator<Item = (&'static str, Repo)>) -> Server {
        let repos = repos.into_iter().map(|(name, repo)| (name.to_string(), repo)).collect();
        let state = Arc::new(Mutex::new(State { repos, ..State::default() }));
        let cdn = listen(state.clone(), "");
        let url = listen(state.clone(), &cdn);
        Server { state, url }
    }
    /// What was asked for since the last time.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

fn listen(state: Arc<Mutex<State>>, cdn: &str) -> String {
    let (listener, cdn) = (TcpListener::bind("127.0.0.1:0").unwrap(), cdn.to_string());
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (state, cdn) = (state.clone(), cdn.clone());
            // a client that hung up is its own business
            std::thread::spawn(move || drop(answer(stream.unwrap(), &state, &cdn)));
        }
    });
    url
}

struct Request {
    method: String,
    body: Vec<u8>,
    head: bool,
    path: String,
    token: Option<String>,
    from: usize,
}

fn read(stream: &TcpStream, log: &mut Vec<String>) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = BTreeMap::new();
    for line in reader.by_ref().lines() {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let mut body = vec![0; headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let token = headers.get("authorization").and_then(|v| v.strip_prefix("Bearer ")).map(str::to_string);
    let range = headers.get("range").cloned().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let auth = if token.is_some() { " token" } else { "" };
    log.push(format!("{} {path}{auth} {range}", first.split(' ').next().unwrap_or_default()).trim().to_string());
    let from = range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
    let method = first.split(' ').next().unwrap_or_default().to_string();
    Ok(Request { method, body, head: first.starts_with("HEAD"), path, token, from })
}

/// What `/api/datasets/ORG/NAME/revision/REVISION` answers.
fn listing(path: &str, state: &State) -> Result<String, (&'static str, &'static str)> {
    let (name, revision) = path.split_once("/revision/").ok_or(("404 Not Found", ""))?;
    let repo = state.repos.get(name).ok_or(("401 Unauthorized", "RepoNotFound"))?;
    if revision != repo.commit && !repo.revisions.contains(&revision.replace("%2F", "/")) {
        return Err(("404 Not Found", "RevisionNotFound"));
    }
    let files: Vec<_> = repo.files.keys().map(|file| serde_json::json!({ "rfilename": file })).collect();
    Ok(serde_json::json!({ "sha": repo.commit, "siblings": files }).to_string())
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, cdn: &str) -> std::io::Result<()> {
    let mut state = state.lock().unwrap();
    let request = read(&stream, &mut state.log)?;
    let send = |stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]| {
        write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n")?;
        stream.write_all(body)
    };
    let refuse = |stream: &mut TcpStream, status: &str, code: &str| {
        send(stream, status, &format!("X-Error-Code: {code}\r\nContent-Length: 0\r\n"), b"")
    };
    let path = request.path.trim_start_matches('/');
    if !["GET", "HEAD"].contains(&request.method.as_str()) {
        let (status, headers, body) = upload(&mut state, &request, cdn);
        return send(&mut stream, status, &format!("{headers}Content-Length: {}\r\n", body.len()), body.as_bytes());
    }
    if let Some(listed) = path.strip_prefix("api/") {
        return match listing(listed, &state) {
            Ok(text) => send(&mut stream, "200 OK", &format!("Content-Length: {}\r\n", text.len()), text.as_bytes()),
            Err((status, code)) => refuse(&mut stream, status, code),
        };
    }
    let (place, path) = path.strip_prefix("datasets/").map_or(("", path), |path| ("datasets/", path));
    let parts: Vec<&str> = path.splitn(5, '/').collect();
    let [org, name, kind, revision, file] = parts[..] else { return refuse(&mut stream, "404 Not Found", "") };
    let found = state.repos.get(&format!("{place}{org}/{name}")).cloned();
    let Some(repo) = found else { return refuse(&mut stream, "401 Unauthorized", "RepoNotFound") };
    let Some(bytes) = repo.files.get(file) else { return refuse(&mut stream, "404 Not Found", "EntryNotFound") };
    let length = bytes.len();
    if kind == "cdn" {
        let from = if state.whole { 0 } else { request.from };
        let end = if state.cuts.is_empty() { length } else { length.min(from + state.cuts.remove(0)) };
        let range = format!("Content-Range: bytes {from}-{}/{length}\r\n", length - 1);
        let (status, range) = if from > 0 { ("206 Partial Content", range) } else { ("200 OK", String::new()) };
        let headers = format!("{range}Content-Length: {}\r\n", length - from);
        return send(&mut stream, status, &headers, &bytes[from..end]);
    }
    if repo.gated.is_some() && request.token != repo.gated {
        let status = if request.token.is_some() { "403 Forbidden" } else { "401 Unauthorized" };
        return refuse(&mut stream, status, "GatedRepo");
    }
    if revision != repo.commit && !repo.revisions.contains(&revision.replace("%2F", "/")) {
        return refuse(&mut stream, "404 Not Found", "RevisionNotFound");
    }
    let etag = blake3::hash(bytes).to_hex();
    let mut headers = format!("X-Repo-Commit: {}\r\n", repo.commit);
    if file.ends_with(".safetensors") {
        headers += &format!("X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {length}\r\nETag: \"of-the-redirect\"\r\n");
        headers += &format!("Location: {cdn}/{org}/{name}/cdn/{revision}/{file}\r\nContent-Length: 0\r\n");
        return send(&mut stream, "302 Found", &headers, b"");
    }
    headers += &format!("ETag: W/\"{}\"\r\nContent-Length: {length}\r\n", &etag[..40]);
    send(&mut stream, "200 OK", &headers, if request.head { b"" } else { bytes })
}

/// What the Hub answers to requests of an upload, and what the place does where large files go: status, headers, body.
fn upload(state: &mut State, request: &Request, cdn: &str) -> (&'static str, String, String) {
    if state.busy > 0 {
        state.busy -= 1;
        return ("503 Service Unavailable", String::new(), String::new());
    }
    let ok = |body: serde_json::Value| ("200 OK", String::new(), body.to_string());
    let json = || serde_json::from_slice::<serde_json::Value>(&request.body).unwrap();
    let path = request.path.as_str();
    if let Some(key) = path.strip_prefix("/upload/") {
        // these addresses are permission enough, and a token has no business here
        assert!(request.token.is_none(), "{path} was shown the token");
        state.uploads.insert(key.into(), request.body.clone());
        return ("200 OK", "ETag: \"of-a-part\"\r\n".into(), String::new());
    }
    if let Some(oid) = path.strip_prefix("/complete/") {
        let parts = json()["parts"].as_array().unwrap().len();
        let whole = (1..=parts).flat_map(|i| state.uploads.remove(&format!("{oid}/{i}")).unwrap()).collect();
        state.uploads.insert(oid.into(), whole);
        return ok(serde_json::json!({}));
    }
    if request.token.as_deref() != Some("writer") {
        return ("403 Forbidden", String::new(), String::new());
    }
    if path == "/api/repos/create" {
        let repo = format!("{}/{}", json()["organization"].as_str().unwrap(), json()["name"].as_str().unwrap());
        return match state.repos.insert(repo, Repo::default()) {
            None => ok(serde_json::json!({})),
            Some(_) => ("409 Conflict", String::new(), String::new()),
        };
    }
    if path.ends_with("/preupload/main") {
        let mode = |file: &serde_json::Value| {
            let large = file["path"].as_str().unwrap().ends_with(".safetensors");
            serde_json::json!({ "path": file["path"], "uploadMode": if large { "lfs" } else { "regular" } })
        };
        let files: Vec<_> = json()["files"].as_array().unwrap().iter().map(mode).collect();
        return ok(serde_json::json!({ "files": files }));
    }
    if path.ends_with(".git/info/lfs/objects/batch") {
        let place = |object: &serde_json::Value| {
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
            if state.uploads.contains_key(oid) {
                return serde_json::json!({ "oid": oid, "size": size });
            }
            let upload = match state.part {
                None => serde_json::json!({ "href": format!("{cdn}/upload/{oid}") }),
                Some(chunk) => {
                    let mut header = serde_json::json!({ "chunk_size": chunk.to_string() });
                    for i in 1..=size.div_ceil(chunk) {
                        header[i.to_string()] = format!("{cdn}/upload/{oid}/{i}").into();
                    }
                    serde_json::json!({ "href": format!("{cdn}/complete/{oid}"), "header": header })
                }
            };
            serde_json::json!({ "oid": oid, "size": size, "actions": { "upload": upload } })
        };
        let objects: Vec<_> = json()["objects"].as_array().unwrap().iter().map(place).collect();
        return ok(serde_json::json!({ "objects": objects }));
    }
    assert!(path.ends_with("/commit/main"), "{path}");
    state.commits.push(String::from_utf8(request.body.clone()).unwrap());
    ok(serde_json::json!({ "commitUrl": "https://hub/commit/1" }))
}
