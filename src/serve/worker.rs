//! The thread that has the engine: takes requests in between steps, and hands out what comes of them.
use super::metrics::Metrics;
use crate::error::{Error, Result};
use crate::export::peft;
use crate::infer::{AdapterId, Engine, Event, Request, RequestId};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

/// An event of the request with this number among those that share a channel.
pub type Sent = (usize, Event);

pub enum Command {
    /// Events end with the channel where the engine fails.
    Add {
        request: Request,
        number: usize,
        events: UnboundedSender<Sent>,
        reply: oneshot::Sender<Result<RequestId>>,
    },
    /// One answer is complete as it is.
    End {
        request: RequestId,
        index: usize,
    },
    Load {
        folder: PathBuf,
        reply: oneshot::Sender<Result<AdapterId>>,
    },
    Unload {
        id: AdapterId,
    },
}

/// Where a request's events go, and its answers that are not at their end.
struct Route {
    number: usize,
    events: UnboundedSender<Sent>,
    /// By their numbers.
    open: BTreeSet<usize>,
}

/// Works until every sender of commands is gone and nothing is left to do. `base` is the model's folder, for errors.
pub fn work(engine: &mut Engine, base: &Path, commands: &Receiver<Command>, metrics: &Metrics) -> Result<()> {
    let mut routes: HashMap<RequestId, Route> = HashMap::new();
    let mut open = true;
    while open || engine.is_busy() {
        loop {
            let next = match engine.is_busy() || !open {
                true => commands.try_recv(),
                false => commands.recv().map_err(|_| TryRecvError::Disconnected),
            };
            match next {
                Ok(command) => obey(engine, base, command, &mut routes),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        routes.retain(|id, route| {
            let stays = !route.events.is_closed();
            if !stays {
                engine.cancel(*id, None);
            }
            stays
        });
        if engine.is_busy() {
            for event in engine.step()? {
                let id = event.request;
                let Some(route) = routes.get_mut(&id) else { continue };
                if event.finish.is_some() {
                    route.open.remove(&event.index);
                }
                let (gone, done) = (route.events.send((route.number, event)).is_err(), route.open.is_empty());
                if gone {
                    engine.cancel(id, None);
                }
                if gone || done {
                    routes.remove(&id);
                }
            }
        }
        metrics.set(engine.stats());
    }
    Ok(())
}

fn obey(engine: &mut Engine, base: &Path, command: Command, routes: &mut HashMap<RequestId, Route>) {
    match command {
        Command::Add { request, number, events, reply } => {
            let open = (0..request.n).collect();
            let added = engine.add(request);
            if let Ok(id) = &added {
                routes.insert(*id, Route { number, events, open });
            }
            // who does not wait for the answer any more has closed the channel, too
            let _ = reply.send(added);
        }
        Command::End { request, index } => {
            engine.cancel(request, Some(index));
            if let Some(route) = routes.get_mut(&request) {
                // it may have ended by itself meanwhile
                route.open.remove(&index);
                if route.open.is_empty() {
                    routes.remove(&request);
                }
            }
        }
        Command::Load { folder, reply } => {
            let loaded = engine.add_adapter(|b, model| peft::detached(b, model, base, &folder));
            if let Err(Ok(id)) = reply.send(loaded) {
                engine.remove_adapter(id);
            }
        }
        Command::Unload { id } => engine.remove_adapter(id),
    }
}

/// The engine is gone.
pub fn gone() -> Error {
    Error::device("serve", "the model has stopped")
}
