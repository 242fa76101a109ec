//! A model's files on their way here: a bar on a terminal, a line a file elsewhere.
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use luthier::Result;
use luthier::data::{self, Source};
use luthier::io::hub::{self, Event, Kind};
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};

/// The folder of a model or adapter that is one here, or has a name on the Hub.
pub fn resolve(path: &Path, kind: Kind) -> Result<PathBuf> {
    let mut download = Download::default();
    hub::resolve(path, kind, &mut |event| {
        download.show(event);
        true
    })
}

/// What a source of data needs of the Hub.
pub fn fetch(source: &mut Source, pretrain: bool) -> Result<()> {
    let mut download = Download::default();
    data::hub::fetch(source, pretrain, &mut |event| {
        download.show(event);
        true
    })
}

/// Texts to look at models with, named as for pretraining: what is on the Hub of them is here now.
pub fn sources(names: &[String]) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = names.iter().map(Source::new).collect();
    sources.iter_mut().try_for_each(|source| fetch(source, true))?;
    Ok(sources)
}

#[derive(Default)]
pub struct Download {
    bar: Option<ProgressBar>,
}

impl Download {
    pub fn show(&mut self, event: Event) {
        match event {
            Event::File { name, size, have } if stderr().is_terminal() => {
                let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                let style = ProgressStyle::with_template(style).expect("the template is a constant");
                let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr()).with_style(style);
                bar.set_message(name.to_string());
                bar.set_position(have);
                // what was there before does not count as speed
                bar.reset_eta();
                self.bar = Some(bar);
            }
            Event::File { name, size, have: 0 } => super::say!("downloading {name}, {size} bytes"),
            Event::File { name, size, have } => {
                super::say!("downloading {name}, {have} of {size} bytes are here already")
            }
            Event::Bytes(have) => self.bar.iter().for_each(|bar| bar.set_position(have)),
            Event::Done => self.bar.take().iter().for_each(ProgressBar::finish),
            Event::Note(text) => match &self.bar {
                Some(bar) => bar.suspend(|| super::say!("{text}")),
                None => super::say!("{text}"),
            },
        }
    }
}
