//! A model card: README.md with the front matter that the Hub reads.
use super::product::Product;
use crate::error::{Error, Result};
use crate::io::hub;
use serde_json::Value;
use std::path::Path;

/// What a card tells.
#[derive(Clone, Copy, Debug)]
pub struct Card<'a> {
    /// Of the repository.
    pub name: &'a str,
    /// As the user names the base.
    pub base: &'a str,
    pub product: Product,
    /// The base's folder, whose own card may name a licence.
    pub model: &'a Path,
    /// The adapter's folder, which may be a run's.
    pub adapter: Option<&'a Path>,
}

/// Of a run's records, what a card shows.
const NUMBERS: [(&str, &str); 5] = [
    ("step", "steps"),
    ("epoch", "epochs"),
    ("num_input_tokens_seen", "tokens"),
    ("loss", "last training loss"),
    ("eval_loss", "last evaluation loss"),
];

impl Card<'_> {
    pub fn text(&self) -> Result<String> {
        let (base, _) = hub::split(self.base);
        let mut front = vec!["---".to_string()];
        // the Hub takes nothing but a name of its own here
        if hub::is_name(base) {
            front.push(format!("base_model: {base}"));
        }
        if let Some(library) = self.library() {
            front.push(format!("library_name: {library}"));
        }
        front.extend(self.licence().map(|licence| format!("license: {licence}")));
        let data: Vec<String> = self.datasets().into_iter().filter(|name| hub::is_name(name)).collect();
        if !data.is_empty() {
            front.push("datasets:".into());
            front.extend(data.iter().map(|name| format!("- {name}")));
        }
        front.push("tags:".into());
        front.extend(self.tags().iter().map(|tag| format!("- {tag}")));
        front.push("---".into());
        let mut text = front.join("\n");
        let (name, what, version) = (self.name, self.what(), env!("CARGO_PKG_VERSION"));
        text += &format!("\n\n# {name}\n\n{what}\n\nMade with luthier {version}.\n");
        if let Some(table) = self.training()? {
            text += &format!("\n## Training\n\n{table}");
        }
        Ok(text)
    }

    fn library(&self) -> Option<&'static str> {
        match self.product {
            Product::Adapter => Some("peft"),
            Product::Merged | Product::MergedNf4 => Some("transformers"),
            Product::Gguf(_) | Product::GgufLora => None,
        }
    }

    fn tags(&self) -> Vec<&'static str> {
        let own: &[&str] = match self.product {
            Product::Adapter => &["lora"],
            Product::Merged => &[],
            Product::MergedNf4 => &["bitsandbytes", "4-bit"],
            Product::Gguf(_) => &["gguf"],
            Product::GgufLora => &["gguf", "lora"],
        };
        [&["luthier", "text-generation"], own].concat()
    }

    fn what(&self) -> String {
        let of = if hub::is_name(hub::split(self.base).0) { format!(" of `{}`", self.base) } else { String::new() };
        match self.product {
            Product::Adapter => format!("An adapter{of}, as PEFT loads it."),
            Product::Merged => format!("A fine-tuned version{of}, its adapter merged into the weights."),
            Product::MergedNf4 => format!("A fine-tuned version{of}, its linear layers in 4 bits (NF4)."),
            Product::Gguf(quant) => format!("A version{of} for llama.cpp, {}.", quant.name.to_uppercase()),
            Product::GgufLora => format!("An adapter{of} for llama.cpp (`--lora`)."),
        }
    }

    /// What the base's own card says.
    fn licence(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.model.join("README.md")).ok()?;
        let front = text.strip_prefix("---")?.split("\n---").next()?;
        let value = front.lines().find_map(|line| line.strip_prefix("license:"))?.trim();
        let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        plain.then(|| value.to_string())
    }

    /// Names of the data that a run of ours was given.
    fn datasets(&self) -> Vec<String> {
        let read = || {
            let text = std::fs::read_to_string(self.adapter?.join("config.toml")).ok()?;
            let config: toml::Table = toml::from_str(&text).ok()?;
            let entries = config.get("dataset")?.clone();
            let entries = if let toml::Value::Array(all) = entries { all } else { vec![entries] };
            let name = |entry: &toml::Value| Some(entry.as_str().or(entry.get("path")?.as_str())?.to_string());
            Some(entries.iter().filter_map(name).collect())
        };
        read().unwrap_or_default()
    }

    /// The last of what a run of ours recorded.
    fn training(&self) -> Result<Option<String>> {
        let Some(file) = self.adapter.map(|adapter| adapter.join("metrics.jsonl")).filter(|file| file.is_file()) else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(&file).map_err(Error::read(&file))?;
        let records: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let last = |key: &str| records.iter().rev().find_map(|record| record[key].as_f64());
        let rows: Vec<String> = NUMBERS
            .iter()
            .filter_map(|(key, name)| {
                let value = last(key)?;
                let shown = if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.4}") };
                Some(format!("| {name} | {shown} |\n"))
            })
            .collect();
        Ok((!rows.is_empty()).then(|| format!("| | |\n|---|---|\n{}", rows.concat())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_says_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("README.md", "---\nlicense: apache-2.0\ntags: [x]\n---\n# Base\n");
        write("metrics.jsonl", "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 20, \"loss\": 1.25}\n{\"eval_loss\": 1.5}\n");
        write("config.toml", "[[dataset]]\npath = \"org/data\"\n[[dataset]]\npath = \"chats.jsonl\"\n");
        let card = Card {
            name: "mine",
            base: "org/base@v1",
            product: Product::Adapter,
            model: dir.path(),
            adapter: Some(dir.path()),
        };
        let text = card.text().unwrap();
        let front = "---\nbase_model: org/base\nlibrary_name: peft\nlicense: apache-2.0\ndatasets:\n- org/data\ntags:\n- luthier\n";
        assert!(text.starts_with(front), "{text}");
        for row in ["| steps | 20 |", "| last training loss | 1.2500 |", "| last evaluation loss | 1.5000 |"] {
            assert!(text.contains(row), "{text}");
        }
        let local = Card { base: "./base", adapter: None, ..card };
        assert!(!local.text().unwrap().contains("base_model") && !local.text().unwrap().contains("Training"));
    }
}
