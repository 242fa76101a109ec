//! Connections: what is asked, by whom, and how much of it at a time.
use super::answer::Context;
use super::api::{Body, Endpoint, Limits, Manner, Refusal};
use super::metrics::Metrics;
use super::patience::{self, Busy, Patience, Presence};
use super::voice::Voice;
use super::worker::{self, Command, Sent};
use crate::error::{Error, Result};
use crate::export::peft;
use crate::infer::{AdapterId, Engine};
use axum::Router;
use axum::body::{self, Body as Content, Bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use futures_core::Stream;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, RwLock};
use std::task::{Context as Wakers, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// What clients call the model.
    pub name: String,
    /// The model's folder.
    pub folder: PathBuf,
    /// Wanted as `Authorization: Bearer KEY` for everything but /health.
    pub api_key: Option<String>,
    pub runtime_adapters: RuntimeAdapters,
    /// Answers on their way, those that wait counted; more are told to come back.
    pub max_queue: usize,
    /// Answers that one request may ask for.
    pub max_n: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// How long answers on their way may go on after a stop was asked for.
    pub grace: Duration,
    /// How long clients may take.
    pub patience: Patience,
}

impl Config {
    pub fn new(name: &str, folder: PathBuf) -> Config {
        Config {
            name: name.into(),
            folder,
            api_key: None,
            runtime_adapters: RuntimeAdapters::Refused,
            max_queue: 256,
            max_n: 16,
            max_body: 8 << 20,
            grace: Duration::from_secs(30),
            patience: Patience::default(),
        }
    }
}

/// Whether clients may load adapters from folders on this machine, and unload them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeAdapters {
    Allowed,
    Refused,
}

/// An adapter that is there from the start.
pub struct Adapter {
    pub name: String,
    pub folder: PathBuf,
}

/// A model that clients can name: the base, or an adapter on it.
#[derive(Clone)]
struct Named {
    voice: Arc<Voice>,
    id: AdapterId,
    folder: PathBuf,
}

/// What the connections share.
struct App {
    config: Config,
    commands: Sender<Command>,
    models: RwLock<BTreeMap<String, Named>>,
    metrics: Arc<Metrics>,
    max_length: usize,
    started: u64,
    /// Answers on their way.
    open: AtomicUsize,
    /// Counts requests, for their names and their seeds.
    serial: AtomicU64,
}

/// A place in the queue, until it is dropped.
struct Ticket {
    app: Arc<App>,
    answers: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.app.open.fetch_sub(self.answers, Ordering::Relaxed);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Serves `engine`'s model on `listener` until `stop` has a value, and answers on their way are done or out of time.
pub fn run(
    config: Config,
    mut engine: Engine,
    adapters: Vec<Adapter>,
    listener: TcpListener,
    stop: tokio::sync::watch::Receiver<bool>,
) -> Result<()> {
    let voice = Arc::new(Voice::load(&config.folder, None)?);
    let folder = config.folder.clone();
    let mut models = BTreeMap::from([(config.name.clone(), Named { voice, id: 0, folder: folder.clone() })]);
    for Adapter { name, folder: own } in adapters {
        let voice = Arc::new(Voice::load(&folder, Some(&own))?);
        let id = engine.add_adapter(|b, model| peft::detached(b, model, &folder, &own))?;
        if models.insert(name.clone(), Named { voice, id, folder: own }).is_some() {
            return Err(Error::Usage(format!("two models are called {name:?}")));
        }
    }
    let (commands, work) = channel();
    let (metrics, grace, patience) = (Arc::new(Metrics::default()), config.grace, config.patience);
    let app = App {
        config,
        commands,
        models: RwLock::new(models),
        metrics: metrics.clone(),
        max_length: engine.max_length(),
        started: now(),
        open: AtomicUsize::new(0),
        serial: AtomicU64::new(0),
    };
    let failed = |e: std::io::Error| Error::Device { backend: "serve", what: e.to_string() };
    listener.set_nonblocking(true).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)?;
    let connections = std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = patience::Listener::new(tokio::net::TcpListener::from_std(listener)?, patience);
            let router = Router::new().fallback(handle).with_state(Arc::new(app));
            let router = router.into_make_service_with_connect_info::<Presence>();
            let asked = |mut stop: tokio::sync::watch::Receiver<bool>| async move {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            let serve = axum::serve(listener, router).with_graceful_shutdown(asked(stop.clone()));
            tokio::select! {
                done = serve.into_future() => done,
                () = async { asked(stop).await; tokio::time::sleep(grace).await } => Ok(()),
            }
        })
    });
    let worked = worker::work(&mut engine, &folder, &work, &metrics);
    // without a worker every request is refused, and the connections end as if they had been asked to
    drop(work);
    worked?;
    match connections.join() {
        Ok(served) => served.map_err(failed),
        Err(_) => Err(Error::Bug("the connections' thread panicked".into())),
    }
}

async fn handle(
    State(app): State<Arc<App>>,
    ConnectInfo(presence): ConnectInfo<Presence>,
    request: Request,
) -> Response {
    let busy = Arc::new(presence.begin());
    let response =
        route(&app, request, &busy).await.unwrap_or_else(|refusal| json_response(refusal.status, &refusal.body()));
    app.metrics.response(response.status().as_u16());
    response
}

fn json_response(status: u16, value: &Value) -> Response {
    content(status, "application/json", Content::from(value.to_string()))
}

fn content(status: u16, kind: &'static str, body: Content) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

async fn route(app: &Arc<App>, request: Request, busy: &Arc<Busy>) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_end_matches('/').to_string();
    if path == "/health" {
        return Ok(content(200, "text/plain", Content::empty()));
    }
    authorize(app, &parts.headers)?;
    match (parts.method, path.as_str()) {
        (Method::GET, "/metrics") => Ok(content(200, "text/plain; version=0.0.4", Content::from(app.metrics.text()))),
        (Method::GET, "/v1/models") => Ok(json_response(200, &app.list())),
        (Method::GET, path) if path.starts_with("/v1/models/") => {
            let name = path.trim_start_matches("/v1/models/");
            Ok(json_response(200, &app.card(name, &app.named(name)?)))
        }
        (Method::POST, "/v1/chat/completions") => complete(app, Endpoint::Chat, body, busy).await,
        (Method::POST, "/v1/completions") => complete(app, Endpoint::Completions, body, busy).await,
        (Method::POST, "/v1/load_lora_adapter") => load(app, body).await,
        (Method::POST, "/v1/unload_lora_adapter") => unload(app, body).await,
        (
            _,
            "/metrics"
            | "/v1/models"
            | "/v1/chat/completions"
            | "/v1/completions"
            | "/v1/load_lora_adapter"
            | "/v1/unload_lora_adapter",
        ) => Err(Refusal::new(405, None, format!("{path} does not take this method"))),
        _ => Err(Refusal::new(404, None, format!("there is no {path}"))),
    }
}

/// Compares hashes, which takes the same time wherever two keys differ.
fn authorize(app: &App, headers: &header::HeaderMap) -> Result<(), Refusal> {
    let Some(key) = &app.config.api_key else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = given.strip_prefix("Bearer ").unwrap_or_default();
    match blake3::hash(given.as_bytes()) == blake3::hash(key.as_bytes()) {
        true => Ok(()),
        false => Err(Refusal::new(401, Some("invalid_api_key"), "a valid key is wanted: Authorization: Bearer KEY")),
    }
}

async fn read(app: &App, content: Content) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(app.config.patience.body, body::to_bytes(content, app.config.max_body)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Refusal::new(
            413,
            None,
            format!("the body must come whole, and have at most {} bytes", app.config.max_body),
        )),
        Err(_) => Err(Refusal::new(408, None, "the body did not come in time")),
    }
}

impl App {
    fn named(&self, name: &str) -> Result<Named, Refusal> {
        let models = self.models.read().unwrap_or_else(|e| e.into_inner());
        let missing = || Refusal {
            param: Some("model"),
            ..Refusal::new(404, Some("model_not_found"), format!("the model {name:?} does not exist"))
        };
        models.get(name).cloned().ok_or_else(missing)
    }

    fn card(&self, name: &str, named: &Named) -> Value {
        let parent = if named.id == 0 { Value::Null } else { json!(self.config.name) };
        json!({ "id": name, "object": "model", "created": self.started, "owned_by": "luthier", "parent": parent,
            "root": named.folder.display().to_string(), "max_model_len": self.max_length })
    }

    fn list(&self) -> Value {
        let models = self.models.read().unwrap_or_else(|e| e.into_inner());
        let cards: Vec<Value> = models.iter().map(|(name, named)| self.card(name, named)).collect();
        json!({ "object": "list", "data": cards })
    }

    fn send(&self, command: Command) -> Result<(), Refusal> {
        self.commands.send(command).map_err(|_| Refusal::of(worker::gone()))
    }

    /// A place for so many answers, or the client is told to come back.
    fn ticket(self: &Arc<App>, answers: usize) -> Result<Ticket, Refusal> {
        let room = |open: usize| (open + answers <= self.config.max_queue).then_some(open + answers);
        match self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => Ok(Ticket { app: self.clone(), answers }),
            Err(_) => Err(Refusal::new(429, Some("queue_full"), "too many requests wait already: try again later")),
        }
    }
}

async fn complete(app: &Arc<App>, endpoint: Endpoint, content: Content, busy: &Arc<Busy>) -> Result<Response, Refusal> {
    let started = Instant::now();
    let body = Body::parse(&read(app, content).await?)?;
    let (model, named) = (body.model.clone(), app.named(&body.model)?);
    let serial = app.serial.fetch_add(1, Ordering::Relaxed);
    let limits = Limits { n: app.config.max_n, stops: 16, logprobs: 20, max_length: app.max_length };
    let seed = crate::rng::Rng::stream(app.started, serial).bits();
    let voice = named.voice.clone();
    // templates and tokenizers take a while for long texts: not on the thread of other connections
    let job = tokio::task::spawn_blocking(move || body.job(endpoint, &voice, named.id, limits, seed));
    let job = job.await.map_err(|_| Refusal::new(500, None, "the request could not be read"))??;
    let ticket = app.ticket(job.requests.iter().map(|request| request.n).sum())?;
    let (sender, events) = mpsc::unbounded_channel::<Sent>();
    let mut requests = Vec::new();
    for (number, request) in job.requests.iter().enumerate() {
        let (reply, added) = oneshot::channel();
        app.send(Command::Add { request: request.clone(), number, events: sender.clone(), reply })?;
        let added = added.await.map_err(|_| Refusal::of(worker::gone()))?;
        requests.push(added.map_err(Refusal::of)?);
    }
    drop(sender);
    let kind = if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
    let (id, commands) = (format!("{kind}-{:x}-{serial:x}", app.started), app.commands.clone());
    let (manner, voice) = (job.manner, named.voice);
    let context = Context { voice, commands, model, id, created: now(), requests, job };
    let metrics = app.metrics.clone();
    let first = move || metrics.first_token(started.elapsed().as_secs_f64());
    if manner == Manner::Whole {
        return Ok(json_response(200, &context.whole(events, first).await?));
    }
    let (to, chunks) = mpsc::channel(64);
    tokio::spawn(async move {
        let _ticket = ticket;
        context.stream(events, to, first).await;
    });
    let mut response =
        self::content(200, "text/event-stream", Content::from_stream(Chunks { chunks, _busy: busy.clone() }));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Chunks as they come.
struct Chunks {
    chunks: mpsc::Receiver<String>,
    /// The request is being answered until the last of them.
    _busy: Arc<Busy>,
}

impl Stream for Chunks {
    type Item = Result<String, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, wakers: &mut Wakers<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(wakers).map(|chunk| chunk.map(Ok))
    }
}

/// A text of a body for adapters.
fn field(value: &Value, name: &'static str) -> Result<String, Refusal> {
    let text = value[name].as_str().filter(|text| !text.is_empty());
    text.map(str::to_string).ok_or_else(|| Refusal::bad(name, "is wanted"))
}

async fn adapter_body(app: &App, content: Content) -> Result<Value, Refusal> {
    if app.config.runtime_adapters == RuntimeAdapters::Refused {
        let what = "this server does not load or unload adapters: start it with --allow-runtime-adapters";
        return Err(Refusal::new(403, None, what));
    }
    serde_json::from_slice(&read(app, content).await?).map_err(|e| Refusal::new(400, None, format!("bad JSON: {e}")))
}

async fn load(app: &Arc<App>, content: Content) -> Result<Response, Refusal> {
    let body = adapter_body(app, content).await?;
    let (name, folder) = (field(&body, "lora_name")?, PathBuf::from(field(&body, "lora_path")?));
    if app.named(&name).is_ok() {
        return Err(Refusal::bad("lora_name", format!("{name:?} has been loaded already")));
    }
    let (base, own) = (app.config.folder.clone(), folder.clone());
    let voice = tokio::task::spawn_blocking(move || Voice::load(&base, Some(&own))).await;
    let voice = voice.map_err(|_| Refusal::new(500, None, "the adapter could not be read"))?.map_err(Refusal::of)?;
    let (reply, loaded) = oneshot::channel();
    app.send(Command::Load { folder: folder.clone(), reply })?;
    let id = loaded.await.map_err(|_| Refusal::of(worker::gone()))?.map_err(Refusal::of)?;
    let mut models = app.models.write().unwrap_or_else(|e| e.into_inner());
    if models.contains_key(&name) {
        app.send(Command::Unload { id })?;
        return Err(Refusal::bad("lora_name", format!("{name:?} has been loaded already")));
    }
    models.insert(name.clone(), Named { voice: Arc::new(voice), id, folder });
    Ok(content_of(format!("Success: LoRA adapter '{name}' added successfully.")))
}

async fn unload(app: &Arc<App>, content: Content) -> Result<Response, Refusal> {
    let name = field(&adapter_body(app, content).await?, "lora_name")?;
    let id = app.named(&name)?.id;
    if id == 0 {
        return Err(Refusal::bad("lora_name", "is the model itself"));
    }
    app.models.write().unwrap_or_else(|e| e.into_inner()).remove(&name);
    app.send(Command::Unload { id })?;
    Ok(content_of(format!("Success: LoRA adapter '{name}' removed successfully.")))
}

fn content_of(text: String) -> Response {
    content(200, "text/plain", Content::from(text))
}
