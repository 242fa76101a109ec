//! `config.json` of a model folder: typed access with errors that name file and key.
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Larger configs are refused.
const MAX_CONFIG: u64 = 1 << 20;
/// No real model has a size beyond it; keeps products of sizes within 64 bits.
const MAX_SIZE: usize = 1 << 24;

/// A JSON object of a file.
pub struct Keys {
    pub file: PathBuf,
    prefix: String,
    value: Value,
}

impl Keys {
    pub fn read(file: &Path) -> Result<Keys> {
        let size = std::fs::metadata(file).map_err(Error::read(file))?.len();
        if size > MAX_CONFIG {
            return Err(Error::content(file, "", format!("{size} bytes are too many for a config")));
        }
        let text = std::fs::read(file).map_err(Error::read(file))?;
        let value: Value =
            serde_json::from_slice(&text).map_err(|e| Error::content(file, format!("line {}", e.line()), e))?;
        if !value.is_object() {
            return Err(Error::content(file, "", "a JSON object is wanted"));
        }
        Ok(Keys { file: file.to_path_buf(), prefix: String::new(), value })
    }

    /// `Err` about a key.
    pub fn wrong<T>(&self, key: &str, what: impl std::fmt::Display) -> Result<T> {
        Err(Error::content(&self.file, format!("{}{key}", self.prefix), what))
    }

    /// The key's value; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there; null counts.
    pub fn has(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    /// Takes a key away, by its path as errors have it (`rope_scaling.factor`), or what it is missing from; whether there was any.
    pub fn remove(&mut self, path: &str) -> bool {
        let Some((parents, key)) = path.rsplit_once('.') else {
            return self.value.as_object_mut().is_some_and(|keys| keys.remove(path).is_some());
        };
        let object = parents.split('.').try_fold(&mut self.value, |value, name| value.get_mut(name));
        let removed = object.and_then(Value::as_object_mut).and_then(|keys| keys.remove(key)).is_some();
        removed || self.remove(parents)
    }

    /// The object under a key, if there is one.
    pub fn object(&self, key: &str) -> Result<Option<Keys>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) if value.is_object() => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(Keys { file: self.file.clone(), prefix, value: value.clone() }))
            }
            Some(value) => self.wrong(key, format!("an object is wanted, got {value}")),
        }
    }

    fn typed<T>(&self, key: &str, default: Option<T>, want: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        match (self.get(key), default) {
            (Some(value), _) => {
                read(value).map_or_else(|| self.wrong(key, format!("{want} is wanted, got {value}")), Ok)
            }
            (None, Some(default)) => Ok(default),
            (None, None) => self.wrong(key, format!("{want} is wanted, but the key is missing")),
        }
    }

    /// A size: a whole number from 1.
    pub fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let read = |v: &Value| v.as_u64().map(|x| x as usize).filter(|x| (1..=MAX_SIZE).contains(x));
        self.typed(key, default, "a whole number of at least 1", read)
    }
    /// A whole number from 0.
    pub fn count(&self, key: &str, default: usize) -> Result<usize> {
        let read = |v: &Value| v.as_u64().map(|x| x as usize).filter(|x| *x <= MAX_SIZE);
        self.typed(key, Some(default), "a whole number of at least 0", read)
    }
    /// A number above zero.
    pub fn positive(&self, key: &str, default: Option<f64>) -> Result<f64> {
        self.typed(key, default, "a number above 0", |v| v.as_f64().filter(|x| x.is_finite() && *x > 0.0))
    }
    /// A size that null takes away; a missing key is the default.
    pub fn optional_size(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        match self.get(key) {
            Some(_) => self.size(key, None).map(Some),
            None if self.has(key) => Ok(None),
            None => Ok(default),
        }
    }
    /// A number above zero that null takes away; a missing key is the default.
    pub fn optional_positive(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        match self.get(key) {
            Some(_) => self.positive(key, None).map(Some),
            None if self.has(key) => Ok(None),
            None => Ok(default),
        }
    }
    /// A list of so many numbers above zero.
    pub fn positives(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let number = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        let read =
            |v: &Value| v.as_array()?.iter().map(number).collect::<Option<Vec<_>>>().filter(|x| x.len() == count);
        self.typed(key, None, &format!("a list of {count} numbers above 0"), read)
    }
    /// A list of whole numbers from 0; a missing key is an empty one.
    pub fn counts(&self, key: &str) -> Result<Vec<usize>> {
        let count = |v: &Value| v.as_u64().map(|x| x as usize);
        let read = |v: &Value| v.as_array()?.iter().map(count).collect::<Option<Vec<_>>>();
        self.typed(key, Some(Vec::new()), "a list of whole numbers", read)
    }
    /// A list of so many texts, if there is one.
    pub fn texts(&self, key: &str, count: usize) -> Result<Option<Vec<String>>> {
        let text = |v: &Value| v.as_str().map(str::to_string);
        let read = |v: &Value| v.as_array()?.iter().map(text).collect::<Option<Vec<_>>>().filter(|x| x.len() == count);
        if self.get(key).is_none() {
            return Ok(None);
        }
        self.typed(key, None, &format!("a list of {count} texts"), read).map(Some)
    }
    /// A list of at least so many truths (true, false, 1, 0), if there is one; more than that are not read.
    pub fn flags(&self, key: &str, count: usize) -> Result<Option<Vec<bool>>> {
        let truth = |v: &Value| v.as_bool().or(v.as_u64().filter(|x| *x < 2).map(|x| x == 1));
        let read = |v: &Value| v.as_array()?.get(..count)?.iter().map(truth).collect::<Option<Vec<_>>>();
        if self.get(key).is_none() {
            return Ok(None);
        }
        self.typed(key, None, &format!("a list of {count} ones and zeros"), read).map(Some)
    }
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.typed(key, Some(default), "true or false", Value::as_bool)
    }
    pub fn text(&self, key: &str, default: Option<&str>) -> Result<String> {
        self.typed(key, default.map(str::to_string), "a text", |v| v.as_str().map(str::to_string))
    }
}
