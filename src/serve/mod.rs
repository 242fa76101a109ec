//! A model behind HTTP, as OpenAI's API has it: chats, completions, models, streams; adapters that come and go.
//!
//! The engine runs on the thread that calls [`run`]; the connections have threads of their own and reach it through a channel
//! ([`worker`]). What a client asked for is given up when it leaves.
#[cfg(feature = "serve")]
mod answer;
#[cfg(feature = "serve")]
mod api;
#[cfg(feature = "serve")]
mod http;
#[cfg(feature = "serve")]
mod metrics;
#[cfg(feature = "serve")]
mod patience;
pub mod voice;
#[cfg(feature = "serve")]
mod worker;
#[cfg(feature = "serve")]
pub use http::{Adapter, Config, RuntimeAdapters, run};
#[cfg(feature = "serve")]
pub use patience::Patience;
pub use voice::Voice;
