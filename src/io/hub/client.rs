//! HTTP as the Hub speaks it: a HEAD for what a file is, a GET with `Range` for its bytes. The token goes to the Hub alone.
use crate::error::{Error, Result};
use std::io::{self, ErrorKind};
use std::time::Duration;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

/// A body that takes longer is asked for again, from where it got to.
const BODY_SECONDS: u64 = 300;
const MAX_REDIRECTS: usize = 10;
/// Between attempts at an upload.
const RETRY_SECONDS: [f64; 4] = [0.5, 2.0, 8.0, 30.0];

pub(super) struct Client {
    agent: Agent,
    pub endpoint: String,
    pub token: Option<String>,
}

/// What the Hub says about a file.
pub(super) struct Head {
    pub commit: String,
    /// Names the content.
    pub etag: String,
    pub size: u64,
}

/// Why there is no answer to work with.
pub(super) enum Fault {
    /// Nobody answered, or not in time.
    Unreachable(String),
    /// An answer that refuses, and the Hub's own word for why: `GatedRepo`, `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`.
    Refused { status: u16, code: String },
    /// An answer that no Hub gives.
    Strange(String),
}

impl Fault {
    fn strange(what: impl Into<String>) -> Fault {
        Fault::Strange(what.into())
    }
    /// The file alone is missing, not the model or its revision.
    pub fn is_missing_file(&self) -> bool {
        matches!(self, Fault::Refused { status: 404, code } if code.is_empty() || code == "EntryNotFound")
    }
    /// For what the caller cannot say better.
    pub fn error(self, at: &str) -> Error {
        let (kind, what) = match self {
            Fault::Unreachable(what) => (ErrorKind::NotConnected, what),
            Fault::Refused { status, code } => (ErrorKind::Other, format!("the server answered {status} {code}")),
            Fault::Strange(what) => (ErrorKind::InvalidData, what),
        };
        Error::Read { file: at.into(), source: io::Error::new(kind, what) }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Scheme and host of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |slash| &url[..host + slash])
}

impl Client {
    pub fn new(endpoint: &str, token: Option<String>) -> Client {
        let seconds = |s| Some(Duration::from_secs(s));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(seconds(10))
            .timeout_recv_response(seconds(60))
            .timeout_recv_body(seconds(BODY_SECONDS))
            .user_agent(concat!("luthier/", env!("CARGO_PKG_VERSION")));
        Client { agent: config.build().into(), endpoint: endpoint.trim_end_matches('/').to_string(), token }
    }

    pub fn url(&self, repo: &str, revision: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{}/{file}", self.endpoint, revision.replace('/', "%2F"))
    }

    /// Follows redirects: all of them, or those within the Hub (a renamed model), where a HEAD's headers are.
    fn ask(&self, url: &str, head: bool, from: u64) -> Result<Response<Body>, Fault> {
        let mut url = url.to_string();
        for _ in 0..MAX_REDIRECTS {
            let mut request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            // compressed answers would have other lengths
            request = request.header("Accept-Encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| Fault::Unreachable(e.to_string()))?;
            let status = response.status().as_u16();
            if (200..300).contains(&status) || status == 416 {
                return Ok(response);
            }
            if !(300..400).contains(&status) {
                let code = text(response.headers(), "x-error-code").unwrap_or_default().to_string();
                return Err(Fault::Refused { status, code });
            }
            let to = text(response.headers(), "location").ok_or(Fault::strange("a redirect to nowhere"))?;
            let next = match to {
                to if to.starts_with("http://") || to.starts_with("https://") => to.to_string(),
                to if to.starts_with('/') && !to.starts_with("//") => format!("{}{to}", origin(&url)),
                to => return Err(Fault::strange(format!("a redirect to `{to}`"))),
            };
            if head && origin(&next) != origin(&url) {
                return Ok(response);
            }
            if url.starts_with("https://") && next.starts_with("http://") {
                return Err(Fault::strange(format!("a redirect out of https, to {next}")));
            }
            url = next;
        }
        Err(Fault::strange("redirects without end"))
    }

    pub fn head(&self, url: &str) -> Result<Head, Fault> {
        let response = self.ask(url, true, 0)?;
        let headers = response.headers();
        let missing = |name: &str| Fault::strange(format!("no `{name}` in the answer: {} is no Hub", self.endpoint));
        let commit = text(headers, "x-repo-commit").ok_or_else(|| missing("x-repo-commit"))?;
        if !super::cache::is_commit(commit) {
            return Err(Fault::strange(format!("`{commit}` is no commit")));
        }
        let etag = text(headers, "x-linked-etag").or(text(headers, "etag")).ok_or_else(|| missing("etag"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        // it becomes a file's name
        if etag.is_empty() || etag.len() > 128 || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Fault::strange(format!("`{etag}` as an etag")));
        }
        let size = text(headers, "x-linked-size").or(text(headers, "content-length"));
        let size = size.and_then(|size| size.parse().ok()).ok_or_else(|| missing("content-length"))?;
        Ok(Head { commit: commit.to_string(), etag: etag.to_string(), size })
    }

    /// The file's bytes, and the byte they start at: `from`, or 0 where the server gives the whole.
    pub fn get(&self, url: &str, from: u64) -> Result<(u64, impl io::Read + use<>), Fault> {
        let response = self.ask(url, false, from)?;
        let start = match response.status().as_u16() {
            200 => 0,
            206 => {
                let range = text(response.headers(), "content-range").unwrap_or_default();
                let start = range.strip_prefix("bytes ").and_then(|r| r.split('-').next()?.parse().ok());
                start
                    .filter(|start| *start == from)
                    .ok_or(Fault::strange(format!("`{range}` for bytes from {from}")))?
            }
            status => return Err(Fault::Refused { status, code: String::new() }),
        };
        Ok((start, response.into_body().into_reader()))
    }

    /// The JSON that answers a POST of JSON.
    pub fn post_json(&self, url: &str, body: &serde_json::Value) -> Result<serde_json::Value, Fault> {
        self.post(url, "application/json", "application/json", body.to_string().as_bytes())
    }

    /// The JSON that answers a POST; `null` where the answer is empty. The token goes to the Hub alone.
    pub fn post(&self, url: &str, content: &str, accept: &str, body: &[u8]) -> Result<serde_json::Value, Fault> {
        self.again(|| {
            let mut request = self.agent.post(url).header("Content-Type", content).header("Accept", accept);
            if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = accepted(request.send(body))?;
            let text = response.into_body().read_to_string().map_err(|e| Fault::Unreachable(e.to_string()))?;
            if text.trim().is_empty() {
                return Ok(serde_json::Value::Null);
            }
            serde_json::from_str(&text).map_err(|e| Fault::strange(format!("an answer that is no JSON: {e}")))
        })
    }

    /// Sends `len` bytes to an address that carries its own permission. The answer's etag.
    pub fn put<R: io::Read>(
        &self,
        url: &str,
        len: u64,
        open: &dyn Fn() -> io::Result<R>,
    ) -> Result<Option<String>, Fault> {
        self.again(|| {
            let mut bytes = open().map_err(|e| Fault::Strange(e.to_string()))?;
            let request = self.agent.put(url).header("Content-Length", len.to_string());
            let response = accepted(request.send(ureq::SendBody::from_reader(&mut bytes)))?;
            Ok(text(response.headers(), "etag").map(str::to_string))
        })
    }

    /// What passes by itself is tried again.
    fn again<T>(&self, ask: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
        for pause in RETRY_SECONDS {
            match ask() {
                Err(Fault::Unreachable(_) | Fault::Refused { status: 429 | 500..=599, .. }) => {
                    std::thread::sleep(Duration::from_secs_f64(pause));
                }
                answer => return answer,
            }
        }
        ask()
    }
}

/// The response of a request that was answered well.
fn accepted(answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Fault> {
    let response = answer.map_err(|e| Fault::Unreachable(e.to_string()))?;
    let status = response.status().as_u16();
    if (200..300).contains(&status) {
        return Ok(response);
    }
    let code = text(response.headers(), "x-error-message").or(text(response.headers(), "x-error-code"));
    Err(Fault::Refused { status, code: code.unwrap_or_default().to_string() })
}
