//! `luthier generate`: a prompt in, text out as it comes.
use super::{download, dtype, out};
use clap::Args;
use luthier::Result;
use luthier::backend::{Backend, pick};
use luthier::data::template::{Chat, Template};
use luthier::data::tokenizer::Tokenizer;
use luthier::dtype::DType;
use luthier::export::peft;
use luthier::infer::{self, Sampling};
use luthier::io::hub::Kind;
use luthier::model::load::LoadOptions;
use luthier::model::{self, Model};
use serde_json::json;
use std::path::PathBuf;

/// Continue a prompt with a model.
#[derive(Args)]
pub struct Generate {
    /// The model: a folder as Hugging Face writes it, its name on the Hub (`org/name`, `org/name@revision`), or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// An adapter for it: a folder as PEFT writes it, or its name on the Hub.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What the user says; with --raw, the text to continue.
    #[arg(long)]
    prompt: String,
    /// Continue the prompt as it is, without the model's chat template.
    #[arg(long)]
    raw: bool,
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// 0: always the likeliest token.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Storage of weights and activations.
    #[arg(long, default_value = "bfloat16", value_parser = dtype)]
    dtype: DType,
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

impl Generate {
    pub fn run(mut self) -> Result<()> {
        self.model = download::resolve(&self.model, Kind::Model)?;
        if let Some(adapter) = &mut self.adapter {
            *adapter = download::resolve(adapter, Kind::Adapter)?;
        }
        let (spec, tokenizer) = model::check(&self.model)?.sound()?;
        let vocab = self.adapter.as_deref().map_or(Ok(spec.V), |adapter| peft::vocab(adapter, &spec))?;
        let tokenizer = peft::tokenizer(self.adapter.as_deref(), tokenizer, vocab)?;
        let prompt = self.ids(&tokenizer)?;
        let (backend, which) = pick::pick(&self.backend)?;
        super::say!("{which}");
        let model = self.load(&*backend, vocab)?;
        let sampling = Sampling { max_new_tokens: self.max_new_tokens, temperature: self.temperature, seed: self.seed };
        let mut stream = tokenizer.stream(true);
        let mut shown = Ok(());
        infer::generate(&*backend, &model, &prompt, &sampling, tokenizer.eos_ids(), |id| {
            shown = stream.push(id).and_then(|text| out(&text));
            shown.is_ok()
        })?;
        shown?;
        out(&format!("{}\n", stream.finish()?))
    }

    /// The prompt as the model wants it: through its chat template, where it has one.
    fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        if self.raw || tokenizer.chat_template().is_none() {
            return tokenizer.encode(&self.prompt, true);
        }
        let message = json!({ "role": "user", "content": self.prompt });
        let messages = message.as_object().cloned().into_iter().collect();
        let text = Template::load(None, tokenizer)?.render(&Chat { messages, tools: None }, true)?;
        // The template itself writes BOS.
        tokenizer.encode(&text, false)
    }

    fn load(&self, backend: &dyn Backend, vocab: usize) -> Result<Model> {
        let mut options = LoadOptions { vocab, ..LoadOptions::frozen(self.dtype) };
        if let Some(adapter) = &self.adapter {
            options.lora = Some(peft::read_config(adapter)?);
        }
        let mut model = Model::load(backend, &self.model, &options)?;
        if let Some(adapter) = &self.adapter {
            peft::load(backend, &mut model, adapter)?;
        }
        Ok(model)
    }
}
