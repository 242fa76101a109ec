//! `luthier chat`: a conversation in the terminal.
use super::generate::Choice;
use super::place::{self, Place};
use super::{out, say};
use clap::Args;
use luthier::error::{Error, Result};
use luthier::export::peft;
use luthier::infer::{AdapterId, Engine, Request};
use luthier::serve::Voice;
use luthier::serve::voice::message;
use serde_json::{Map, Value, json};
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

/// Talk with a model; the cache is kept from turn to turn.
#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    place: Place,
    /// Adapters to choose from with /adapter: NAME=DIR, or DIR; the first is on from the start. May be given several times.
    #[arg(long)]
    adapter: Vec<String>,
    /// What the model is told before the conversation.
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    sampling: Choice,
}

const HELP: &str = "\
/reset            forget the conversation
/system TEXT      another system prompt, and a new conversation
/adapter NAME     another adapter from now on; `none` is the model alone
/save FILE        the conversation as JSON Lines, as training data has it
/quit             the end";

/// An adapter by its name, and what goes with it.
struct Adapter {
    name: String,
    id: AdapterId,
    voice: Voice,
}

struct Talk<'b> {
    engine: Engine<'b>,
    adapters: Vec<Adapter>,
    /// Among `adapters`.
    on: usize,
    system: Option<String>,
    messages: Vec<Map<String, Value>>,
    sampling: Choice,
    turns: u64,
}

/// `NAME=DIR`, or a folder that gives its own name.
pub fn named(text: &str) -> (String, PathBuf) {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() => (name.to_string(), dir.into()),
        _ => {
            let name = Path::new(text).file_name().map_or(text.into(), |name| name.to_string_lossy());
            (name.into_owned(), text.into())
        }
    }
}

impl Chat {
    pub fn run(self) -> Result<()> {
        let place = self.place.resolve()?;
        let voice = Voice::load(&place.model, None)?;
        let wanted: Vec<(String, PathBuf)> = self
            .adapter
            .iter()
            .map(|text| named(text))
            .map(|(name, dir)| Ok((name, place::adapter(&dir)?)))
            .collect::<Result<_>>()?;
        let (backend, which) = place.pick()?;
        say!("{which}");
        let model = place.load(&*backend, None)?;
        let options = place.options(&model, model.spec.max_positions.min(8192), 1)?;
        let mut engine = Engine::new(&*backend, model, &options)?;
        let mut adapters = vec![Adapter { name: "none".into(), id: 0, voice }];
        for (name, dir) in wanted {
            let id = engine.add_adapter(|b, model| peft::detached(b, model, &place.model, &dir))?;
            adapters.push(Adapter { name, id, voice: Voice::load(&place.model, Some(&dir))? });
        }
        let on = usize::from(adapters.len() > 1);
        let (messages, turns) = (Vec::new(), 0);
        let mut talk = Talk { engine, adapters, on, system: self.system, messages, sampling: self.sampling, turns };
        talk.reset();
        if std::io::stdin().is_terminal() {
            say!("{HELP}");
        }
        talk.listen()
    }
}

impl Talk<'_> {
    fn reset(&mut self) {
        self.messages = self.system.iter().map(|text| message("system", text)).collect();
    }

    fn listen(&mut self) -> Result<()> {
        let prompt = std::io::stdin().is_terminal();
        let mut lines = std::io::stdin().lock().lines();
        loop {
            if prompt {
                out("> ")?;
            }
            let Some(line) = lines.next() else { return Ok(()) };
            let line = line.map_err(Error::read("standard input"))?;
            let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            match word {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                "/reset" => self.reset(),
                "/system" => {
                    self.system = Some(rest.to_string()).filter(|text| !text.is_empty());
                    self.reset();
                }
                "/adapter" => match self.adapters.iter().position(|adapter| adapter.name == rest.trim()) {
                    Some(on) => self.on = on,
                    None => {
                        let names: Vec<_> = self.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
                        say!("no adapter is called {rest:?}; there are {}", names.join(", "));
                    }
                },
                "/save" => match self.save(Path::new(rest.trim())) {
                    Ok(()) => say!("saved"),
                    Err(e) => say!("{e}"),
                },
                _ if word.starts_with('/') => say!("{HELP}"),
                _ => self.answer(&line)?,
            }
        }
    }

    /// Appends the conversation to a file.
    fn save(&self, file: &Path) -> Result<()> {
        use std::io::Write;
        let mut to = std::fs::OpenOptions::new().create(true).append(true).open(file).map_err(Error::write(file))?;
        writeln!(to, "{}", json!({ "messages": self.messages })).map_err(Error::write(file))
    }

    fn answer(&mut self, line: &str) -> Result<()> {
        self.messages.push(message("user", line));
        let Adapter { id, voice, .. } = &self.adapters[self.on];
        let prompt = voice.chat(self.messages.clone(), None)?;
        let mut sampling = self.sampling.sampling();
        // another draw each turn, and the same ones in each run
        sampling.seed = sampling.seed.wrapping_add(self.turns);
        self.turns += 1;
        let request = Request { adapter: *id, ..Request::new(prompt, sampling, voice.tokenizer.eos_ids().to_vec()) };
        let request = match self.engine.add(request) {
            Ok(request) => request,
            Err(e) => {
                say!("{e} (/reset begins anew)");
                self.messages.pop();
                return Ok(());
            }
        };
        let (mut text, mut said) = (voice.text(&self.sampling.stop), String::new());
        while self.engine.is_busy() {
            for event in self.engine.step()? {
                let mut more = String::new();
                if let Some(token) = &event.token {
                    more += &text.push(token.id)?;
                }
                if event.finish.is_some() {
                    more += &text.finish()?;
                }
                out(&more)?;
                said += &more;
                if text.ended() {
                    self.engine.cancel(request, None);
                }
            }
        }
        self.messages.push(message("assistant", &said));
        out("\n")
    }
}
