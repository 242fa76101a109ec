//! `luthier serve`: a model behind OpenAI's API.
use super::chat::named;
use super::place::{self, Place};
use super::say;
use clap::Args;
use luthier::error::{Error, Result};
use luthier::infer::{Engine, Options, Prefixes};
use luthier::serve::{Adapter, Config, Patience, RuntimeAdapters, run};
use std::net::TcpListener;
use std::time::Duration;
use tokio::sync::watch;

/// Serve a model over HTTP, as OpenAI's API has it: /v1/chat/completions, /v1/completions, /v1/models, /metrics, /health.
#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    place: Place,
    /// Adapters that clients can name as a model: NAME=DIR, or DIR; may be given several times.
    #[arg(long)]
    adapter: Vec<String>,
    /// What clients call the model. Without it, the last part of --model.
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// 0: any that is free.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The key that clients have to send; /health wants none. Better in the environment, where others do not see it.
    #[arg(long, env = "LUTHIER_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Let clients load and unload adapters from folders on this machine.
    #[arg(long)]
    allow_runtime_adapters: bool,
    /// Answers that go on at the same time.
    #[arg(long, default_value_t = 64)]
    max_sequences: usize,
    /// Tokens of a step: longer prompts come in such pieces.
    #[arg(long, default_value_t = 512)]
    max_step_tokens: usize,
    /// Answers on their way, those that wait counted; beyond it clients are told to come back (429).
    #[arg(long, default_value_t = 256)]
    max_queue: usize,
    /// Answers that one request may ask for.
    #[arg(long, default_value_t = 16)]
    max_n: usize,
    /// Bytes of a request, at most.
    #[arg(long, default_value_t = 8 << 20)]
    max_body: usize,
    /// Keep nothing of a prompt for others that begin alike.
    #[arg(long)]
    no_prefix_cache: bool,
    /// Seconds that answers may go on after a stop was asked for.
    #[arg(long, default_value_t = 30)]
    grace: u64,
    /// Seconds that a connection may wait for its next request.
    #[arg(long, default_value_t = 75, value_parser = clap::value_parser!(u64).range(1..))]
    idle_timeout: u64,
    /// Seconds from a request's first byte to the end of its headers.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    header_timeout: u64,
    /// Seconds for a request's body.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    body_timeout: u64,
    /// Seconds that a client may take nothing of its answer.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    write_timeout: u64,
}

impl Serve {
    pub fn run(self) -> Result<()> {
        let name = self.served_model_name.clone().unwrap_or_else(|| named(&self.place.model.to_string_lossy()).0);
        let place = self.place.resolve()?;
        let adapters = self.adapter.iter().map(|text| named(text));
        let adapters = adapters
            .map(|(name, folder)| Ok(Adapter { name, folder: place::adapter(&folder)? }))
            .collect::<Result<Vec<_>>>()?;
        let address = (self.host.as_str(), self.port);
        let cannot = |e: std::io::Error| Error::Usage(format!("cannot listen on {}:{}: {e}", self.host, self.port));
        // first, so that a port that is taken shows before a model is loaded
        let listener = TcpListener::bind(address).map_err(cannot)?;
        let local = listener.local_addr().map_err(cannot)?;
        let (backend, which) = place.pick()?;
        say!("{which}");
        let model = place.load(&*backend, None)?;
        let options = Options {
            max_sequences: self.max_sequences,
            max_step_tokens: self.max_step_tokens,
            max_length: self.place.max_length,
            kv_cache: self.place.kv_cache,
            prefixes: if self.no_prefix_cache { Prefixes::Apart } else { Prefixes::Shared },
        };
        let engine = Engine::new(&*backend, model, &options)?;
        let config = Config {
            api_key: self.api_key.filter(|key| !key.is_empty()),
            runtime_adapters: match self.allow_runtime_adapters {
                true => RuntimeAdapters::Allowed,
                false => RuntimeAdapters::Refused,
            },
            max_queue: self.max_queue,
            max_n: self.max_n,
            max_body: self.max_body,
            grace: Duration::from_secs(self.grace),
            patience: Patience {
                idle: Duration::from_secs(self.idle_timeout),
                headers: Duration::from_secs(self.header_timeout),
                body: Duration::from_secs(self.body_timeout),
                write: Duration::from_secs(self.write_timeout),
            },
            ..Config::new(&name, place.model)
        };
        if config.api_key.is_none() && !local.ip().is_loopback() {
            say!("anyone who reaches {local} may use it: --api-key wants a key of them");
        }
        let stop = stop()?;
        let stats = engine.stats();
        say!(
            "{name} on http://{local}/v1: {} pages of 16 tokens, {} a request at most",
            stats.pages,
            engine.max_length()
        );
        run(config, engine, adapters, listener, stop)
    }
}

/// Has a value once Ctrl-C or SIGTERM came; a second one ends the process at once.
fn stop() -> Result<watch::Receiver<bool>> {
    let (asked, stop) = watch::channel(false);
    let caught = move || {
        if *asked.borrow() {
            std::process::exit(130);
        }
        say!("stopping: answers on their way are finished; once more ends at once");
        let _ = asked.send(true);
    };
    ctrlc::set_handler(caught).map_err(|e| Error::Bug(format!("cannot catch signals: {e}")))?;
    Ok(stop)
}
