//! Which files of a data set on the Hub are its data: what its card lists, else what the names of files and folders say, as Hugging
//! Face's `datasets` has it. Loading scripts are not run.
use super::source::{Source, is_data, split_of};
use crate::error::{Error, Result};
use crate::io::hub::Hub;
use crate::io::hub::dataset::{CARD, DatasetName};
use serde_json::Value;
use std::path::Path;

pub use crate::io::hub::Watch;

/// Fetches what a source needs, if its path is a name on the Hub and no file or folder here.
pub fn fetch(source: &mut Source, pretrain: bool, watch: &mut Watch) -> Result<()> {
    fetch_from(&Hub::from_env(), source, pretrain, watch)
}

/// As [`fetch`], from this Hub.
pub fn fetch_from(hub: &Hub, source: &mut Source, pretrain: bool, watch: &mut Watch) -> Result<()> {
    let text = source.path.clone();
    let path = Path::new(&text);
    let local = path.exists() || !text.starts_with("hf://") && (is_data(path, true) || text.contains(['*', '?', '[']));
    if source.found.is_some() || local {
        return Ok(());
    }
    let Some(name) = DatasetName::parse(&text) else { return Ok(()) };
    let name = name?;
    let choose = |card: Option<&str>, files: &[String]| {
        let wanted = Wanted { source, pretrain, pattern: name.pattern.as_deref() };
        wanted.choose(card, files).map_err(|what| Error::content(&text, "", what))
    };
    let (folder, chosen) = hub.dataset(&text, &name, &choose, watch)?;
    source.found = Some(chosen.iter().map(|file| folder.join(file)).collect());
    Ok(())
}

struct Wanted<'a> {
    source: &'a Source,
    pretrain: bool,
    pattern: Option<&'a str>,
}

/// A file and the split that it is of, if it says one.
type Placed = (Option<String>, String);

impl Wanted<'_> {
    fn choose(&self, card: Option<&str>, files: &[String]) -> Result<Vec<String>, String> {
        if let Some(pattern) = self.pattern {
            let found = matching(pattern, files)?;
            return if found.is_empty() { Err(format!("has no file {pattern}")) } else { Ok(found) };
        }
        let placed = match listed(card)? {
            configs if !configs.is_empty() => self.of_config(&configs, files)?,
            _ => self.by_names(files)?,
        };
        if placed.is_empty() {
            return Err(nothing(files));
        }
        self.of_split(placed)
    }

    /// The files of the wanted subset among those that a card lists.
    fn of_config(&self, configs: &[Value], files: &[String]) -> Result<Vec<Placed>, String> {
        let name = |config: &Value| config["config_name"].as_str().unwrap_or("default").to_string();
        let is_default = |config: &&Value| config["default"] == true || name(config) == "default";
        let known = || configs.iter().map(name).collect::<Vec<_>>().join(", ");
        let config = match (&self.source.name, configs) {
            (Some(wanted), _) => configs
                .iter()
                .find(|c| name(c) == *wanted)
                .ok_or_else(|| format!("has no subset {wanted:?}; {CARD} lists {}", known()))?,
            (None, [one]) => one,
            (None, _) => configs.iter().find(is_default).ok_or_else(|| {
                format!("has the subsets {}: choose one, as in name = {:?}", known(), name(&configs[0]))
            })?,
        };
        let dir = config["data_dir"].as_str().map(|dir| dir.trim_matches('/'));
        let below = |path: &str| dir.map_or(path.to_string(), |dir| format!("{dir}/{path}"));
        let of = |split: Option<&str>, paths: &Value| -> Result<Vec<Placed>, String> {
            let mut out = vec![];
            for path in texts(paths) {
                let found = matching(&below(path), files)?;
                out.extend(
                    found.into_iter().map(|file| (split.map_or_else(|| split_of(&file), |s| Some(s.into())), file)),
                );
            }
            Ok(out)
        };
        match (&config["data_files"], dir) {
            (Value::Null, Some(dir)) => {
                let inside: Vec<String> = files.iter().filter(|f| f.starts_with(&format!("{dir}/"))).cloned().collect();
                Ok(self.by_splits(&inside))
            }
            (Value::Null, None) => self.by_names(files),
            (Value::Array(list), _) if list.iter().any(Value::is_object) => {
                let each = list.iter().map(|entry| of(entry["split"].as_str(), &entry["path"]));
                Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
            }
            (Value::Object(splits), _) => {
                let each = splits.iter().map(|(split, paths)| of(Some(split), paths));
                Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
            }
            (paths, _) => of(None, paths),
        }
    }

    /// Every file of data, with the split that its name says.
    fn by_splits(&self, files: &[String]) -> Vec<Placed> {
        let data = files.iter().filter(|file| is_data(file.as_ref(), self.pretrain));
        data.map(|file| (split_of(file), file.clone())).collect()
    }

    /// What names say. A subset is a folder, as in the Hub's own `refs/convert/parquet`.
    fn by_names(&self, files: &[String]) -> Result<Vec<Placed>, String> {
        let inside = |(_, file): &Placed| match &self.source.name {
            Some(name) => file.starts_with(&format!("{name}/")) || file.contains(&format!("/{name}/")),
            None => true,
        };
        let found: Vec<Placed> = self.by_splits(files).into_iter().filter(inside).collect();
        match &self.source.name {
            Some(name) if found.is_empty() && files.iter().any(|file| is_data(file.as_ref(), self.pretrain)) => {
                Err(format!("has no subset {name:?}: neither {CARD} nor a folder is called so"))
            }
            _ => Ok(found),
        }
    }

    /// The wanted split; where none is, the only one, or `train` among several.
    fn of_split(&self, placed: Vec<Placed>) -> Result<Vec<String>, String> {
        let mut splits: Vec<&str> = placed.iter().map(|(split, _)| split.as_deref().unwrap_or("train")).collect();
        splits.sort();
        splits.dedup();
        let wanted = match (&self.source.split, &splits[..]) {
            (Some(split), _) => split.clone(),
            (None, [one]) => one.to_string(),
            (None, _) => "train".to_string(),
        };
        let mine: Vec<String> = placed
            .iter()
            .filter(|(split, _)| split.as_deref().unwrap_or("train") == wanted)
            .map(|(_, file)| file.clone())
            .collect();
        match mine.is_empty() {
            true => Err(format!("has no split {wanted:?}, only {}: choose one with split", splits.join(", "))),
            false => Ok(mine),
        }
    }
}

fn nothing(files: &[String]) -> String {
    let script = files.iter().any(|file| file.ends_with(".py") && !file.contains('/'));
    if script {
        return "has a loading script and no data files, and scripts are not run: the Hub keeps many such data sets as Parquet \
            in the revision `refs/convert/parquet`; add `@refs/convert/parquet` to the name"
            .into();
    }
    format!("has no data file among its {}: .jsonl, .json, .csv, .tsv or .parquet is wanted", files.len())
}

/// `configs` of a card's front matter.
fn listed(card: Option<&str>) -> Result<Vec<Value>, String> {
    let Some(front) = card.and_then(front_matter) else { return Ok(vec![]) };
    let front: Value = serde_saphyr::from_str(front).map_err(|e| {
        let what = e.without_snippet().to_string();
        format!("{CARD} is not valid YAML: {}", what.lines().next().unwrap_or_default())
    })?;
    Ok(front["configs"].as_array().cloned().unwrap_or_default())
}

/// What stands between the first two lines of three dashes.
fn front_matter(card: &str) -> Option<&str> {
    let rest = card.trim_start_matches('\u{FEFF}').strip_prefix("---")?;
    let start = rest.find('\n')? + 1;
    let end = rest[start..].find("\n---").map(|at| start + at + 1)?;
    Some(&rest[start..end])
}

fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    }
}

/// The files of a pattern; a folder stands for what is in it.
fn matching(pattern: &str, files: &[String]) -> Result<Vec<String>, String> {
    let pattern = pattern.trim_start_matches("./").trim_end_matches('/');
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    let one = glob::Pattern::new(pattern).map_err(|e| format!("{pattern:?} is a bad pattern: {e}"))?;
    let folder = format!("{pattern}/");
    let hit = |file: &&String| one.matches_with(file, options) || file.starts_with(&folder);
    Ok(files.iter().filter(hit).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(source: &Source, card: Option<&str>, files: &[&str]) -> Result<Vec<String>, String> {
        let mut files: Vec<String> = files.iter().map(|file| file.to_string()).collect();
        files.sort();
        Wanted { source, pretrain: false, pattern: None }.choose(card, &files)
    }

    #[test]
    fn names_say_splits() {
        let files = [
            "README.md",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test_sft-00000-of-00001-0a1b.parquet",
            "dataset_infos.json",
        ];
        let source = Source::new("a/b");
        assert_eq!(choose(&source, None, &files).unwrap(), files[1..3]);
        let of = |split: &str| choose(&Source { split: Some(split.into()), ..Source::new("a/b") }, None, &files);
        assert_eq!(of("test_sft").unwrap(), [files[3]]);
        assert!(of("test").unwrap_err().contains("has no split \"test\", only test_sft, train"));
        assert_eq!(choose(&source, None, &["x/a.jsonl", "b.csv"]).unwrap(), ["b.csv", "x/a.jsonl"]);
        assert!(choose(&source, None, &["b.py", "README.md"]).unwrap_err().contains("refs/convert/parquet"));
        assert!(choose(&source, None, &["a.png"]).unwrap_err().contains("has no data file"));
        let parquet = ["en/train/0000.parquet", "en/test/0000.parquet", "fr/train/0000.parquet"];
        let fr = Source { name: Some("fr".into()), ..Source::new("a/b") };
        assert_eq!(choose(&fr, None, &parquet).unwrap(), ["fr/train/0000.parquet"]);
        let no = Source { name: Some("de".into()), ..Source::new("a/b") };
        assert!(choose(&no, None, &parquet).unwrap_err().contains("has no subset \"de\""));
    }

    #[test]
    fn a_card_says_more() {
        let card = "---\nlicense: mit\nconfigs:\n- config_name: main\n  default: true\n  data_files:\n  - split: train\n    path: \
            \"main/t*.jsonl\"\n  - split: test\n    path:\n    - main/e1.jsonl\n    - main/e2.jsonl\n- config_name: extra\n  \
            data_files: extra/*.csv\n- config_name: dir\n  data_dir: deep\n---\n# Card\n";
        let files = [
            "main/t1.jsonl",
            "main/t2.jsonl",
            "main/e1.jsonl",
            "main/e2.jsonl",
            "main/sub/t3.jsonl",
            "extra/a.csv",
            "deep/train.jsonl",
            "deep/test.jsonl",
            "train.jsonl",
        ];
        let of = |name: Option<&str>, split: Option<&str>| {
            let (name, split) = (name.map(str::to_string), split.map(str::to_string));
            choose(&Source { name, split, ..Source::new("a/b") }, Some(card), &files)
        };
        assert_eq!(of(None, None).unwrap(), ["main/t1.jsonl", "main/t2.jsonl"]);
        assert_eq!(of(Some("main"), Some("test")).unwrap(), ["main/e1.jsonl", "main/e2.jsonl"]);
        assert_eq!(of(Some("extra"), None).unwrap(), ["extra/a.csv"]);
        assert_eq!(of(Some("dir"), None).unwrap(), ["deep/train.jsonl"]);
        assert!(of(Some("other"), None).unwrap_err().contains("README.md lists main, extra, dir"));
        let two = card.replace("  default: true\n", "");
        let e = choose(&Source::new("a/b"), Some(&two), &files).unwrap_err();
        assert!(e.contains("has the subsets main, extra, dir: choose one"), "{e}");
        assert!(choose(&Source::new("a/b"), Some("---\na: [\n---\n"), &files).unwrap_err().contains("not valid YAML"));
        assert_eq!(choose(&Source::new("a/b"), Some("no front matter"), &["a.csv"]).unwrap(), ["a.csv"]);
    }
}
