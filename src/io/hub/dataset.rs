//! Data sets by name: `org/name`, `org/name@revision`, or some files of one, `hf://datasets/org/name@revision/data/*.parquet`.
//! The Hub's listing says what there is, the caller which of it is wanted, and only that comes.
use super::cache::{self, Repo};
use super::client::{Client, Fault};
use super::fetch::{Fetch, Stop};
use super::name::Name;
use super::{Event, Hub, Watch, absent};
use crate::error::{Error, Result};
use crate::io::links;
use serde::Deserialize;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

const SCHEME: &str = "hf://datasets/";
/// Of the listing.
const MAX_LISTING: u64 = 64 << 20;
/// Folders within folders of a data set in the cache.
const MAX_DEPTH: usize = 8;
/// It says which files are data of what.
pub const CARD: &str = "README.md";

/// Which files are wanted: from the card's text, if there is one, and the paths of all files, sorted.
pub type Choose<'c> = dyn Fn(Option<&str>, &[String]) -> Result<Vec<String>> + 'c;

/// A data set's name and, where it goes on, the pattern of its files.
pub struct DatasetName {
    name: Name,
    pub pattern: Option<String>,
}

impl DatasetName {
    /// `None`: a path, and no name on the Hub.
    pub fn parse(text: &str) -> Option<Result<DatasetName>> {
        let Some(rest) = text.strip_prefix(SCHEME) else {
            let name = Name::parse(text.as_ref()).ok()?;
            return Some(Ok(DatasetName { name, pattern: None }));
        };
        let mut parts = rest.splitn(3, '/');
        let repo: Vec<&str> = parts.by_ref().take(2).collect();
        // a revision with slashes has them escaped, as huggingface_hub writes it
        let repo = repo.join("/").replace("%2F", "/");
        let pattern = parts.next().filter(|pattern| !pattern.is_empty()).map(str::to_string);
        Some(Name::parse(repo.as_ref()).map(|name| DatasetName { name, pattern }).map_err(|_| {
            Error::content(text, "", format!("is no name of a data set: that would be {SCHEME}org/name/path/of/files"))
        }))
    }
}

/// As the Hub tells of a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    /// The snapshot's folder with the files of a data set that `choose` wants, and their paths in it.
    pub fn dataset(
        &self,
        text: &str,
        wanted: &DatasetName,
        choose: &Choose,
        watch: &mut Watch,
    ) -> Result<(PathBuf, Vec<String>)> {
        let (name, path) = (&wanted.name, Path::new(text));
        let repo = Repo::of_dataset(&self.cache, &name.repo);
        let cached = || cached(&repo, name, choose);
        if self.offline {
            return cached()?.ok_or_else(|| {
                let what = format!("{name} is not in the cache {}, and HF_HUB_OFFLINE is set", repo.path().display());
                absent(path, ErrorKind::NotFound, what)
            });
        }
        let client = Client::new(&self.endpoint, self.token.clone());
        match fetch(&client, &repo, name, choose, watch) {
            Ok(found) => Ok(found),
            Err(Stop::Error(e)) => Err(e),
            Err(Stop::Fault(Fault::Unreachable(why))) => match cached()? {
                Some(found) => {
                    watch(Event::Note(&format!("{}: {why}: {name} as cached is used", self.endpoint)));
                    Ok(found)
                }
                None => {
                    let what = format!("no such file here, and {} does not answer: {why}", self.endpoint);
                    Err(absent(path, ErrorKind::NotConnected, what))
                }
            },
            Err(Stop::Fault(fault)) => Err(self.refusal(path, name, fault, "data set")),
        }
    }
}

fn fetch(
    client: &Client,
    repo: &Repo,
    name: &Name,
    choose: &Choose,
    watch: &mut Watch,
) -> Result<(PathBuf, Vec<String>), Stop> {
    let listing = list(client, name)?;
    let mut files: Vec<String> = listing.siblings.into_iter().map(|file| file.rfilename).collect();
    files.retain(|file| is_inside(file));
    files.sort();
    let own = Name { repo: format!("datasets/{}", name.repo), revision: name.revision.clone() };
    let mut all = Fetch { client, repo, name: &own, commit: listing.sha, watch };
    let folder = repo.snapshot(&all.commit);
    let card = match files.iter().any(|file| file == CARD) && all.want(CARD)? {
        true => Some(read_card(&folder)?),
        false => None,
    };
    let chosen = choose(card.as_deref(), &files)?;
    for file in &chosen {
        if !all.want(file)? {
            return Err(Error::content(name.to_string(), file, "is listed, but the Hub does not have it").into());
        }
    }
    repo.set_commit(&name.revision, &all.commit)?;
    chosen.iter().try_for_each(|file| links::check(&folder, file))?;
    Ok((folder, chosen))
}

fn list(client: &Client, name: &Name) -> Result<Listing, Stop> {
    let revision = name.revision.replace('/', "%2F");
    let url = format!("{}/api/datasets/{}/revision/{revision}", client.endpoint, name.repo);
    let (_, body) = client.get(&url, 0)?;
    let mut text = vec![];
    body.take(MAX_LISTING).read_to_end(&mut text).map_err(|e| Fault::Unreachable(e.to_string()))?;
    let listing: Listing =
        serde_json::from_slice(&text).map_err(|e| Fault::Strange(format!("a listing that is none: {e}")))?;
    match cache::is_commit(&listing.sha) {
        true => Ok(listing),
        false => Err(Fault::Strange(format!("`{}` is no commit", listing.sha)).into()),
    }
}

fn read_card(folder: &Path) -> Result<String> {
    let file = folder.join(CARD);
    let bytes = std::fs::read(&file).map_err(Error::read(&file))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is there of a revision, where it is all that is wanted of it as far as can be told.
fn cached(repo: &Repo, name: &Name, choose: &Choose) -> Result<Option<(PathBuf, Vec<String>)>> {
    let Some(commit) = repo.commit(&name.revision) else { return Ok(None) };
    let folder = repo.snapshot(&commit);
    let mut files = vec![];
    search(&folder, "", MAX_DEPTH, &mut files);
    files.sort();
    if files.is_empty() {
        return Ok(None);
    }
    let card = if files.iter().any(|file| file == CARD) { Some(read_card(&folder)?) } else { None };
    let chosen = choose(card.as_deref(), &files)?;
    chosen.iter().try_for_each(|file| links::check(&folder, file))?;
    Ok(Some((folder, chosen)))
}

fn search(folder: &Path, below: &str, depth: usize, out: &mut Vec<String>) {
    let entries = std::fs::read_dir(folder.join(below)).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        match folder.join(&path).is_dir() {
            true if depth > 0 => search(folder, &path, depth - 1, out),
            true => {}
            false => out.push(path),
        }
    }
}

/// A path that stays in the snapshot on every system.
fn is_inside(file: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    file.len() < 1024 && file.split('/').all(part) && file.split('/').count() <= MAX_DEPTH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_patterns_and_paths() {
        let parse = |text: &str| DatasetName::parse(text).map(|name| name.map(|n| (n.name.to_string(), n.pattern)));
        assert_eq!(parse("a/b").unwrap().unwrap(), ("a/b".into(), None));
        let (name, pattern) = parse("hf://datasets/a/b@refs%2Fconvert%2Fparquet/x/*.parquet").unwrap().unwrap();
        assert_eq!((name.as_str(), pattern.as_deref()), ("a/b@refs/convert/parquet", Some("x/*.parquet")));
        assert!(parse("chats.jsonl").is_none() && parse("./a/b").is_none() && parse("a/b/c.jsonl").is_none());
        assert!(parse("hf://datasets/a").unwrap().is_err());
        assert!(is_inside("data/train.parquet"));
        assert!(["../x", "/x", "a//b", "a\\b", "C:x", "a/./b"].iter().all(|file| !is_inside(file)));
    }
}
