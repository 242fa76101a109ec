//! How the values of an adapter's keys are written.
use super::source::FromNode;
use super::tree::{Node, Value};
use crate::model::lora::{Init, Patterns, Targets, TokenIndices};
use serde::{Serialize, Serializer};

impl FromNode for Init {
    fn wanted() -> String {
        "true, \"gaussian\", \"pissa\" or \"pissa_niter_[number]\"".into()
    }
    fn from_value(value: &Value) -> Option<Init> {
        match value {
            Value::Bool(true) => Some(Init::Plain),
            Value::Str(s) if s == "gaussian" => Some(Init::Gaussian),
            Value::Str(s) if s == "pissa" => Some(Init::Pissa { niter: None }),
            Value::Str(s) => s.strip_prefix("pissa_niter_")?.parse().ok().map(|n| Init::Pissa { niter: Some(n) }),
            _ => None,
        }
    }
}

impl Serialize for Init {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Init::Plain => s.serialize_bool(true),
            Init::Gaussian => s.serialize_str("gaussian"),
            Init::Pissa { niter: None } => s.serialize_str("pissa"),
            Init::Pissa { niter: Some(n) } => s.serialize_str(&format!("pissa_niter_{n}")),
        }
    }
}

impl FromNode for Targets {
    fn wanted() -> String {
        "\"all-linear\", a regular expression, or a list of layer names, as in [\"q_proj\", \"v_proj\"]".into()
    }
    fn from_value(value: &Value) -> Option<Targets> {
        match value {
            Value::Str(s) if !s.is_empty() => Some(Targets::Word(s.clone())),
            Value::List(items) if !items.is_empty() => Vec::from_value(value).map(Targets::Names),
            _ => None,
        }
    }
}

impl FromNode for TokenIndices {
    fn wanted() -> String {
        "a list of ids, or a table of names of modules with such lists".into()
    }
    fn from_value(value: &Value) -> Option<TokenIndices> {
        let Value::Table(modules) = value else { return Vec::from_value(value).map(TokenIndices::Embedding) };
        let module = |(name, node): &(String, Node)| Some((name.clone(), Vec::from_value(&node.value)?));
        modules.iter().map(module).collect::<Option<_>>().map(TokenIndices::Named)
    }
}

impl<T: FromNode> FromNode for Patterns<T> {
    fn wanted() -> String {
        format!("a table of regular expressions, each with {}", T::wanted())
    }
    fn from_value(value: &Value) -> Option<Patterns<T>> {
        let Value::Table(keys) = value else { return None };
        let entry = |(key, node): &(String, Node)| Some((key.clone(), T::from_value(&node.value)?));
        keys.iter().map(entry).collect::<Option<_>>().map(Patterns)
    }
}
