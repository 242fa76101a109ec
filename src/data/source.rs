//! Where records come from: files, folders and globs, each with how its columns are called and how often it is seen.
use crate::error::{Error, Result};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a folder is searched for; other files in it, say a README, are no data.
const KINDS: &[&str] = &["jsonl", "ndjson", "json", "csv", "tsv", "parquet"];
/// JSON files that Hugging Face's `datasets` puts beside its data.
const NO_DATA: &[&str] = &["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
/// The words for a split in the names of files and folders, as Hugging Face's `datasets` knows them.
const SPLITS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Folders within folders; a link that leads back ends here.
const MAX_DEPTH: usize = 8;

/// One entry of `dataset`.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// A file, a folder or a glob.
    pub path: String,
    /// A subset of a data set on the Hub.
    pub name: Option<String>,
    /// Of a folder's, a glob's or a data set's files only those of this split: `train`, `validation`, `test` ..
    pub split: Option<String>,
    /// How often an epoch sees each record: 2 twice, 0.25 a quarter of them, which `seed` chooses.
    pub weight: f64,
    /// Our name of a column (see [`COLUMNS`](super::record::COLUMNS)) -> the file's.
    pub columns: BTreeMap<String, String>,
    /// The file's name of a role -> ours.
    pub roles: BTreeMap<String, String>,
    /// The user's words, made of columns: `Age {Age}.[[ Name: {Name}.]]`; a `[[part]]` whose column is empty is left out.
    pub merged_prompt: Option<String>,
    /// Each chat goes on with this many others less one, chosen by `seed`.
    pub conversation_extension: usize,
    /// The files that a name on the Hub stands for, once they are here.
    pub found: Option<Vec<PathBuf>>,
}

impl Source {
    /// A path, and everything else as it is by itself.
    pub fn new(path: impl Into<String>) -> Source {
        Source {
            path: path.into(),
            name: None,
            split: None,
            weight: 1.0,
            columns: BTreeMap::new(),
            roles: BTreeMap::new(),
            merged_prompt: None,
            conversation_extension: 1,
            found: None,
        }
    }

    /// Whether it may have several splits, of which none is chosen: a folder or a data set.
    pub fn has_splits(&self) -> bool {
        let file = is_data(Path::new(&self.path), true) || self.path.contains(['*', '?', '[']);
        self.split.is_none() && !file
    }

    /// The file's name of our column `name`.
    pub fn column<'a>(&'a self, name: &'a str) -> &'a str {
        self.columns.get(name).map_or(name, String::as_str)
    }

    /// The files, at least one: a folder's and a glob's are sorted.
    pub fn files(&self, pretrain: bool) -> Result<Vec<PathBuf>> {
        if let Some(found) = &self.found {
            return Ok(found.clone());
        }
        let path = Path::new(&self.path);
        let fail = |what: String| Err(Error::content(path, "", what));
        let mut found = vec![];
        if path.is_dir() {
            search(path, pretrain, MAX_DEPTH, &mut found)?;
        } else if path.exists() || !self.path.contains(['*', '?', '[']) {
            return Ok(vec![path.to_path_buf()]);
        } else {
            found = matches(&self.path)?;
        }
        if found.is_empty() && path.is_dir() {
            return fail(format!("is a folder without data: it has no .{} file", KINDS.join(", .")));
        }
        if found.is_empty() {
            return fail("matches no file".into());
        }
        let Some(wanted) = &self.split else {
            let splits = splits_of(path, &found);
            return match path.is_dir() && splits.len() > 1 {
                true => fail(format!("holds the splits {}: choose one, as in split = \"train\"", splits.join(", "))),
                false => Ok(found),
            };
        };
        let chosen: Vec<PathBuf> =
            found.iter().filter(|f| split_below(path, f).as_ref() == Some(wanted)).cloned().collect();
        if chosen.is_empty() {
            return fail(format!("has no file of the split {wanted:?}, only {}", splits_of(path, &found).join(", ")));
        }
        Ok(chosen)
    }
}

/// As text where it is only a path, as a table otherwise: as one writes it.
impl Serialize for Source {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let plain = Source::new(&self.path);
        if *self == plain {
            return s.serialize_str(&self.path);
        }
        #[derive(Serialize)]
        struct Table<'a> {
            path: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            name: &'a Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            split: &'a Option<String>,
            weight: f64,
            #[serde(skip_serializing_if = "Option::is_none")]
            merged_prompt: &'a Option<String>,
            conversation_extension: usize,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            columns: &'a BTreeMap<String, String>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            roles: &'a BTreeMap<String, String>,
        }
        let Source { path, name, split, weight, columns, roles, merged_prompt, conversation_extension, .. } = self;
        let (weight, conversation_extension) = (*weight, *conversation_extension);
        Table { path, name, split, weight, merged_prompt, conversation_extension, columns, roles }.serialize(s)
    }
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let found = glob::glob(pattern).map_err(|e| Error::content(pattern, "", format!("bad glob: {e}")))?;
    let mut out = vec![];
    for path in found {
        let path = path.map_err(|e| Error::Read { file: e.path().to_path_buf(), source: e.into() })?;
        out.extend(path.is_file().then_some(path));
    }
    Ok(out)
}

/// The data files below `dir`, sorted; hidden ones are not looked at.
fn search(dir: &Path, pretrain: bool, depth: usize, out: &mut Vec<PathBuf>) -> Result<()> {
    let listing = std::fs::read_dir(dir).map_err(Error::read(dir))?;
    let mut paths = listing.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(Error::read(dir))?;
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() && depth > 0 {
            search(&path, pretrain, depth - 1, out)?;
        } else if path.is_file() && is_data(&path, pretrain) {
            out.push(path);
        }
    }
    Ok(())
}

/// In lower case.
pub(super) fn extension(file: &Path) -> String {
    file.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase()
}

/// Whether a file's name says that it holds records; of pretraining, plain texts do, too.
pub(super) fn is_data(file: &Path, pretrain: bool) -> bool {
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let kind = extension(file);
    !name.starts_with('.') && !NO_DATA.contains(&name) && (KINDS.contains(&kind.as_str()) || pretrain && kind == "txt")
}

/// The split that a file's name, or else a folder's before it, speaks of: `data/train_sft-00000-of-00002.parquet` by its form,
/// `my-train.jsonl` and `test/a.csv` by their words.
pub(super) fn split_of(file: &str) -> Option<String> {
    let words = |part: &str| -> Vec<String> {
        part.to_ascii_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_string).collect()
    };
    file.rsplit(['/', '\\']).find_map(|part| {
        let words = words(part);
        let known = SPLITS.iter().find(|(_, names)| words.iter().any(|w| names.contains(&w.as_str())));
        numbered(part).or(known.map(|(split, _)| split.to_string()))
    })
}

/// `train` of `train-00000-of-00002`, with whatever follows.
fn numbered(name: &str) -> Option<String> {
    let digits = |text: &str| text.len() >= 5 && text.bytes().take(5).all(|b| b.is_ascii_digit());
    let (front, count) = name.split_once("-of-").filter(|(_, count)| digits(count))?;
    let (split, number) = front.rsplit_once('-').filter(|(split, number)| digits(number) && !split.is_empty())?;
    let plain = split.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
    (plain && number.len() == 5 && !count.is_empty()).then(|| split.to_string())
}

fn split_below(root: &Path, file: &Path) -> Option<String> {
    split_of(file.strip_prefix(root).unwrap_or(file).to_str()?)
}

fn splits_of(root: &Path, files: &[PathBuf]) -> Vec<String> {
    let mut splits: Vec<_> =
        files.iter().map(|f| split_below(root, f).unwrap_or_else(|| "without a name".into())).collect();
    splits.sort();
    splits.dedup();
    splits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(source: &Source, pretrain: bool) -> Result<Vec<String>> {
        let name = |f: &PathBuf| f.file_name().unwrap().to_str().unwrap().to_string();
        Ok(source.files(pretrain)?.iter().map(name).collect())
    }

    #[test]
    fn folders_globs_and_splits() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        std::fs::create_dir_all(dir.path().join("set/data")).unwrap();
        for name in
            ["README.md", "dataset_info.json", "data/train-00001.parquet", "data/train-00000.parquet", ".x.json"]
        {
            std::fs::write(path(&format!("set/{name}")), "x").unwrap();
        }
        let set = Source::new(path("set"));
        assert_eq!(names(&set, false).unwrap(), ["train-00000.parquet", "train-00001.parquet"]);
        std::fs::write(path("set/test.jsonl"), "x").unwrap();
        std::fs::write(path("set/notes.txt"), "x").unwrap();
        let err = names(&set, false).unwrap_err().to_string();
        assert!(err.contains("holds the splits test, train: choose one"), "{err}");
        let of = |split: &str| names(&Source { split: Some(split.into()), ..set.clone() }, false);
        assert_eq!(of("test").unwrap(), ["test.jsonl"]);
        assert!(
            of("validation").unwrap_err().to_string().contains("no file of the split \"validation\", only test, train")
        );
        assert_eq!(names(&Source::new(path("set/*.txt")), true).unwrap(), ["notes.txt"]);
        assert!(names(&Source::new(path("set/*.csv")), true).unwrap_err().to_string().contains("matches no file"));
        std::fs::create_dir(path("empty")).unwrap();
        assert!(names(&Source::new(path("empty")), true).unwrap_err().to_string().contains("a folder without data"));
    }
}
