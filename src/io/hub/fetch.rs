//! One model from the Hub into the cache, file by file.
use super::cache::{self, Repo};
use super::client::{Client, Fault, Head};
use super::name::Name;
use super::{Event, Kind, Watch};
use crate::error::{Error, Result};
use crate::io::safetensors;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Attempts in a row that bring nothing, before a download is given up.
const ATTEMPTS: u32 = 5;
const PART: usize = 1 << 20;

pub(super) enum Stop {
    Fault(Fault),
    Error(Error),
}
impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        Stop::Error(e)
    }
}
impl From<Fault> for Stop {
    fn from(fault: Fault) -> Stop {
        Stop::Fault(fault)
    }
}

/// The folder of the model's revision, with all that was not there yet. Weights come last, so that where they are, all is.
pub(super) fn fetch(client: &Client, repo: &Repo, name: &Name, kind: Kind, watch: &mut Watch) -> Result<PathBuf, Stop> {
    let first = client.head(&client.url(&name.repo, &name.revision, kind.config()));
    let first = match first {
        Err(fault) if fault.is_missing_file() && is_coded(&fault) => {
            let what = format!("has no {}: not a model that transformers loads", kind.config());
            return Err(Error::content(name.to_string(), "", what).into());
        }
        other => other?,
    };
    let mut all = Fetch { client, repo, name, commit: first.commit.clone(), watch };
    let folder = repo.snapshot(&all.commit);
    all.bring(kind.config(), first)?;
    for file in super::COMPANIONS {
        all.want(file)?;
    }
    all.weights(kind.stem(), &folder)?;
    repo.set_commit(&name.revision, &all.commit)?;
    Ok(folder)
}

/// Whether the Hub itself said that it is the file that is missing.
fn is_coded(fault: &Fault) -> bool {
    matches!(fault, Fault::Refused { code, .. } if !code.is_empty())
}

pub(super) struct Fetch<'a, 'w> {
    pub client: &'a Client,
    pub repo: &'a Repo,
    pub name: &'a Name,
    pub commit: String,
    pub watch: &'a mut Watch<'w>,
}

impl Fetch<'_, '_> {
    fn url(&self, file: &str) -> String {
        self.client.url(&self.name.repo, &self.commit, file)
    }

    /// A file that may not exist; says whether it does.
    pub fn want(&mut self, file: &str) -> Result<bool, Stop> {
        if self.repo.snapshot(&self.commit).join(file).exists() {
            return Ok(true);
        }
        if self.repo.lacks(&self.commit, file) {
            return Ok(false);
        }
        match self.client.head(&self.url(file)) {
            Ok(head) => self.bring(file, head).map(|()| true),
            Err(fault) if fault.is_missing_file() => {
                self.repo.set_lacks(&self.commit, file)?;
                Ok(false)
            }
            Err(fault) => Err(fault.into()),
        }
    }

    fn weights(&mut self, stem: &str, folder: &Path) -> Result<(), Stop> {
        if self.want(&format!("{stem}.safetensors"))? {
            return Ok(());
        }
        let index = format!("{stem}.safetensors.index.json");
        if !self.want(&index)? {
            return Err(self.no_safetensors(stem)?.into());
        }
        for file in safetensors::files(folder, stem)? {
            let shard = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_string();
            if !self.want(&shard)? {
                let what = format!("names {shard}, which the model does not have");
                return Err(Error::content(folder.join(&index), "weight_map", what).into());
            }
        }
        Ok(())
    }

    /// Why there is nothing to load.
    fn no_safetensors(&self, stem: &str) -> Result<Error, Stop> {
        let torch = if stem == "model" { "pytorch_model" } else { stem };
        let mut old = None;
        for file in [format!("{torch}.bin"), format!("{torch}.bin.index.json")] {
            match self.client.head(&self.url(&file)) {
                Ok(_) => old = Some(file),
                Err(fault) if fault.is_missing_file() => {}
                Err(fault) => return Err(fault.into()),
            }
        }
        let what = match old {
            Some(file) => format!(
                "has {file} but no safetensors: pickled files can run code and are not read. Look for a revision that has \
                 them (often `{}@refs/pr/1`), or convert it with transformers: save_pretrained(..)",
                self.name.repo
            ),
            None => format!("has neither {stem}.safetensors nor {stem}.safetensors.index.json"),
        };
        Ok(Error::content(self.name.to_string(), "", what))
    }

    /// The file of this head in the snapshot.
    fn bring(&mut self, file: &str, head: Head) -> Result<(), Stop> {
        if self.repo.snapshot(&self.commit).join(file).exists() {
            return Ok(());
        }
        if head.commit != self.commit {
            return Err(Fault::Strange(format!("commit {} where {} was asked for", head.commit, self.commit)).into());
        }
        let blob = self.repo.blob(&head.etag);
        cache::make_parent(&blob)?;
        let _lock = self.repo.lock(&head.etag)?;
        if !blob.exists() {
            let part = blob.with_file_name(format!("{}.incomplete", head.etag));
            self.download(file, &head, &part)?;
            std::fs::rename(&part, &blob).map_err(Error::write(&blob))?;
        }
        Ok(self.repo.link(&self.commit, file, &head.etag)?)
    }

    /// Goes on where an earlier attempt, of this process or another, stopped.
    fn download(&mut self, file: &str, head: &Head, path: &Path) -> Result<(), Stop> {
        let mut part = OpenOptions::new().create(true).append(true).open(path).map_err(Error::write(path))?;
        let mut have = part.metadata().map_err(Error::write(path))?.len();
        if have > head.size {
            have = restart(&mut part, path)?;
        }
        self.tell(Event::File { name: file, size: head.size, have })?;
        let mut failures = 0;
        while have < head.size {
            let before = have;
            match self.receive(file, head, &mut part, path, &mut have) {
                Ok(()) => {}
                // the server knows fewer bytes than are here: they are of something else
                Err(Stop::Fault(Fault::Refused { status: 416, .. })) if have > 0 => have = restart(&mut part, path)?,
                Err(Stop::Fault(Fault::Refused { status, code })) if !(500..600).contains(&status) => {
                    return Err(Fault::Refused { status, code }.into());
                }
                Err(Stop::Fault(fault)) => {
                    failures = if have > before { 0 } else { failures + 1 };
                    if failures == ATTEMPTS {
                        let e = fault.error(&self.url(file));
                        self.tell(Event::Note("the download broke off; the same command goes on from there"))?;
                        return Err(e.into());
                    }
                    std::thread::sleep(std::time::Duration::from_millis(100 << failures));
                }
                Err(stop) => return Err(stop),
            }
        }
        part.sync_all().map_err(Error::write(path))?;
        self.tell(Event::Done)
    }

    /// One answer's bytes, up to its end or its failure.
    fn receive(&mut self, file: &str, head: &Head, part: &mut File, path: &Path, have: &mut u64) -> Result<(), Stop> {
        let (start, mut body) = self.client.get(&self.url(file), *have)?;
        if start != *have {
            *have = restart(part, path)?;
        }
        let mut buffer = vec![0; PART];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) if *have < head.size => {
                    return Err(Fault::Unreachable("the connection ended early".into()).into());
                }
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(Fault::Unreachable(e.to_string()).into()),
            };
            if *have + n as u64 > head.size {
                restart(part, path)?;
                let what = format!("{file}: more than the {} bytes that were promised", head.size);
                return Err(Fault::Strange(what).error(&self.url(file)).into());
            }
            part.write_all(&buffer[..n]).map_err(Error::write(path))?;
            *have += n as u64;
            self.tell(Event::Bytes(*have))?;
        }
    }

    fn tell(&mut self, event: Event) -> Result<(), Stop> {
        match (self.watch)(event) {
            true => Ok(()),
            false => {
                let what =
                    format!("the download of {} was interrupted; the same command goes on from there", self.name);
                Err(Error::Interrupted(what).into())
            }
        }
    }
}

fn restart(part: &mut File, path: &Path) -> Result<u64> {
    part.set_len(0).map_err(Error::write(path))?;
    Ok(0)
}
