//! Events to OpenAI's answers, whole or as a stream of chunks.
use super::api::{Endpoint, Job, Manner, Refusal};
use super::voice::Voice;
use super::worker::{Command, Sent};
use crate::infer::text::Text;
use crate::infer::{Event, Finish, RequestId};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use tokio::sync::mpsc;

/// What all chunks of an answer have in common.
pub struct Context {
    pub voice: Arc<Voice>,
    pub commands: Sender<Command>,
    pub model: String,
    pub id: String,
    pub created: u64,
    pub requests: Vec<RequestId>,
    pub job: Job,
}

/// One answer on its way.
struct Choice<'t> {
    text: Text<'t>,
    said: String,
    logs: Vec<Log>,
    tokens: usize,
    finish: Option<&'static str>,
}

/// A token as logprobs tell of it.
struct Log {
    /// As bytes: a token may be a part of a character.
    token: Vec<u8>,
    logprob: f32,
    top: Vec<(Vec<u8>, f32)>,
}

/// U+FFFD for what is no text.
fn shown(token: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(token)
}

impl Log {
    fn chat(&self) -> Value {
        let one = |token: &[u8], logprob: f32| json!({ "token": shown(token), "logprob": logprob, "bytes": token });
        let mut value = one(&self.token, self.logprob);
        value["top_logprobs"] = self.top.iter().map(|(token, logprob)| one(token, *logprob)).collect();
        value
    }
}

/// What an event adds to an answer.
struct Delta {
    text: String,
    logs: Vec<Log>,
}

impl Context {
    fn choices(&self) -> Vec<Choice<'_>> {
        let count: usize = self.job.requests.iter().map(|request| request.n).sum();
        let choice = |_| Choice {
            text: self.voice.text(&self.job.stops),
            said: String::new(),
            logs: Vec::new(),
            tokens: 0,
            finish: None,
        };
        (0..count).map(choice).collect()
    }

    /// Which choice an event is about.
    fn place(&self, number: usize, event: &Event) -> usize {
        number * self.job.requests[0].n + event.index
    }

    fn absorb(&self, choice: &mut Choice, number: usize, event: &Event) -> Result<Delta, Refusal> {
        let mut delta = Delta { text: String::new(), logs: Vec::new() };
        if choice.finish.is_some() {
            return Ok(delta);
        }
        if let Some(token) = &event.token {
            choice.tokens += 1;
            delta.text += &choice.text.push(token.id).map_err(Refusal::of)?;
            if self.job.logprobs.is_some() {
                let bytes = |id: u32| self.voice.tokenizer.bytes(id);
                let top = token.top.iter().map(|(id, logprob)| (bytes(*id), *logprob)).collect();
                delta.logs.push(Log { token: bytes(token.id), logprob: token.logprob, top });
            }
        }
        if choice.text.ended() {
            choice.finish = Some("stop");
            if event.finish.is_none() {
                let _ = self.commands.send(Command::End { request: self.requests[number], index: event.index });
            }
        } else if let Some(finish) = event.finish {
            delta.text += &choice.text.finish().map_err(Refusal::of)?;
            let stopped = finish == Finish::Stop || choice.text.ended();
            choice.finish = Some(if stopped { "stop" } else { "length" });
        }
        Ok(delta)
    }

    fn usage(&self, choices: &[Choice]) -> Value {
        let prompt: usize = self.job.requests.iter().map(|request| request.prompt.len()).sum();
        let completion: usize = choices.iter().map(|choice| choice.tokens).sum();
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
    }

    fn frame(&self, object: &str, choices: Value) -> Value {
        let Context { id, created, model, .. } = self;
        json!({ "id": id, "object": object, "created": created, "model": model, "choices": choices })
    }

    /// What stands before a choice's own text.
    fn echo(&self, place: usize) -> &str {
        self.job.echo.get(place / self.job.requests[0].n).map_or("", String::as_str)
    }

    fn logprobs(&self, logs: &[Log], offset: usize) -> Value {
        if self.job.logprobs.is_none() {
            return Value::Null;
        }
        if self.job.endpoint == Endpoint::Chat {
            return json!({ "content": logs.iter().map(Log::chat).collect::<Vec<_>>() });
        }
        let starts =
            logs.iter().scan(offset, |at, log| Some(std::mem::replace(at, *at + shown(&log.token).chars().count())));
        let top = |log: &Log| Value::Object(log.top.iter().map(|(t, p)| (shown(t).into_owned(), json!(p))).collect());
        json!({
            "tokens": logs.iter().map(|log| shown(&log.token)).collect::<Vec<_>>(),
            "token_logprobs": logs.iter().map(|log| log.logprob).collect::<Vec<_>>(),
            "top_logprobs": logs.iter().map(top).collect::<Vec<_>>(),
            "text_offset": starts.collect::<Vec<_>>(),
        })
    }

    /// The answer at once.
    pub async fn whole(&self, mut events: mpsc::UnboundedReceiver<Sent>, first: impl Fn()) -> Result<Value, Refusal> {
        let mut choices = self.choices();
        let mut fresh = true;
        while choices.iter().any(|choice| choice.finish.is_none()) {
            let Some((number, event)) = events.recv().await else { return Err(stopped()) };
            if std::mem::take(&mut fresh) {
                first();
            }
            let choice = &mut choices[self.place(number, &event)];
            let delta = self.absorb(choice, number, &event)?;
            choice.said += &delta.text;
            choice.logs.extend(delta.logs);
        }
        let (mut all, usage) = (Vec::new(), self.usage(&choices));
        for (index, choice) in choices.into_iter().enumerate() {
            let (logprobs, reason) = (self.logprobs(&choice.logs, 0), choice.finish);
            all.push(match self.job.endpoint {
                Endpoint::Chat => json!({ "index": index, "message": { "role": "assistant", "content": choice.said },
                    "logprobs": logprobs, "finish_reason": reason }),
                Endpoint::Completions => {
                    let text = [self.echo(index), &choice.said].concat();
                    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
                }
            });
        }
        let object = if self.job.endpoint == Endpoint::Chat { "chat.completion" } else { "text_completion" };
        let mut value = self.frame(object, all.into());
        value["usage"] = usage;
        Ok(value)
    }

    /// The answer in chunks of server-sent events; ends when the reader goes.
    pub async fn stream(self, events: mpsc::UnboundedReceiver<Sent>, to: mpsc::Sender<String>, first: impl Fn()) {
        if let Err(Broken::Here(refusal)) = self.chunks(events, &to, first).await {
            let _ = to.send(format!("data: {}\n\n", refusal.body())).await;
        }
    }

    async fn chunks(
        &self,
        mut events: mpsc::UnboundedReceiver<Sent>,
        to: &mpsc::Sender<String>,
        first: impl Fn(),
    ) -> Result<(), Broken> {
        let Manner::Stream { usage } = self.job.manner else { return Ok(()) };
        let mut choices = self.choices();
        let mut fresh = true;
        let begin = |index: usize| match (self.job.endpoint, self.echo(index)) {
            (Endpoint::Chat, _) => Some(json!({ "role": "assistant", "content": "" })),
            (_, "") => None,
            (_, echo) => Some(json!(echo)),
        };
        for (index, start) in (0..choices.len()).filter_map(|index| Some((index, begin(index)?))) {
            self.chunk(to, index, start, &[], 0, None, usage).await?;
        }
        while choices.iter().any(|choice| choice.finish.is_none()) {
            let next = tokio::select! {
                next = events.recv() => next.ok_or_else(|| Broken::Here(stopped()))?,
                () = to.closed() => return Err(Broken::Reader),
            };
            let (number, event) = next;
            if std::mem::take(&mut fresh) {
                first();
            }
            let place = self.place(number, &event);
            let choice = &mut choices[place];
            // events that were on their way when a stop string ended the answer say nothing more
            let open = choice.finish.is_none();
            let delta = self.absorb(choice, number, &event).map_err(Broken::Here)?;
            let (text, offset) = (delta.text, choice.said.chars().count());
            if !text.is_empty() || !delta.logs.is_empty() {
                let value = match self.job.endpoint {
                    Endpoint::Chat => json!({ "content": text }),
                    Endpoint::Completions => json!(text),
                };
                self.chunk(to, place, value, &delta.logs, offset, None, usage).await?;
            }
            if self.job.logprobs.is_some() {
                choice.said += &text;
            }
            if let Some(reason) = choice.finish.filter(|_| open) {
                let value = if self.job.endpoint == Endpoint::Chat { json!({}) } else { json!("") };
                self.chunk(to, place, value, &[], offset, Some(reason), usage).await?;
            }
        }
        if usage {
            let mut value = self.frame(self.chunk_name(), json!([]));
            value["usage"] = self.usage(&choices);
            send(to, &value.to_string()).await?;
        }
        send(to, "[DONE]").await
    }

    fn chunk_name(&self) -> &'static str {
        if self.job.endpoint == Endpoint::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    async fn chunk(
        &self,
        to: &mpsc::Sender<String>,
        index: usize,
        value: Value,
        logs: &[Log],
        offset: usize,
        reason: Option<&str>,
        usage: bool,
    ) -> Result<(), Broken> {
        let field = if self.job.endpoint == Endpoint::Chat { "delta" } else { "text" };
        let logprobs = if logs.is_empty() { Value::Null } else { self.logprobs(logs, offset) };
        let choice = json!({ "index": index, field: value, "logprobs": logprobs, "finish_reason": reason });
        let mut value = self.frame(self.chunk_name(), json!([choice]));
        if usage {
            value["usage"] = Value::Null;
        }
        send(to, &value.to_string()).await
    }
}

/// Why a stream ended early.
enum Broken {
    /// Nobody reads it any more.
    Reader,
    Here(Refusal),
}

async fn send(to: &mpsc::Sender<String>, data: &str) -> Result<(), Broken> {
    to.send(format!("data: {data}\n\n")).await.map_err(|_| Broken::Reader)
}

fn stopped() -> Refusal {
    Refusal::new(503, None, super::worker::gone().to_string())
}
