//! A Hub of one's own: what the real one answers to HEAD and GET of `/ORG/NAME/resolve/REVISION/FILE`. Weights are redirected
//! to another host, as there.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
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
    head: bool,
    path: String,
    token: Option<String>,
    from: usize,
}

fn read(stream: &TcpStream, log: &mut Vec<String>) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let token = headers.get("authorization").and_then(|v| v.strip_prefix("Bearer ")).map(str::to_string);
    let range = headers.get("range").cloned().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let auth = if token.is_some() { " token" } else { "" };
    log.push(format!("{} {path}{auth} {range}", first.split(' ').next().unwrap_or_default()).trim().to_string());
    let from = range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
    Ok(Request { head: first.starts_with("HEAD"), path, token, from })
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
