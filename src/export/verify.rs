//! Proof of a product: it is loaded again, and must compute, encode and render what went in.
use super::compare::{Comparison, Side, compare};
use super::gguf::unlora;
use super::product::{Input, Product};
use super::publish;
use crate::backend::Backend;
use crate::data::{Chat, Template, Tokenizer};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::gguf;
use crate::model::arch;
use serde_json::json;
use std::path::Path;

/// Texts that models are compared on, and tokenizers.
const TEXTS: [&str; 4] = [
    "The quick brown fox jumps over the lazy dog, and then writes about it.",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * i).collect();\n    println!(\"{x:?}\");\n}\n",
    "User: What is the capital of France?\nAssistant: The capital of France is Paris.",
    "Zażółć gęślą jaźń. 今日は良い天気です。 Привет, мир! 12345 + 678 = 13023",
];
/// Of each, where a model has no tokenizer.
const MADE_UP: u32 = 32;
/// Models up to so many parameters are compared in float32, larger ones in bfloat16.
const EXACT: u64 = 2_000_000_000;

/// The mean KL divergence, in nats, beyond which a product is no good. What 16-bit arithmetic adds is within all but the first.
pub fn limit(product: Product, stored: DType) -> f64 {
    match product {
        Product::Adapter | Product::GgufLora => 1e-6,
        Product::Merged => float_limit(stored),
        Product::MergedNf4 => 0.5,
        Product::Gguf(quant) => match quant.format().name {
            "F32" => float_limit(DType::F32),
            "F16" => float_limit(DType::F16),
            "BF16" => float_limit(DType::Bf16),
            "Q8_0" => 0.02,
            "Q6_K" => 0.05,
            name if name.starts_with("Q5") => 0.2,
            _ => 0.5,
        },
    }
}

fn float_limit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-6,
        DType::F16 => 1e-3,
        _ => 1e-2,
    }
}

/// Compares what lies at `at` with model and adapter.
pub fn verify(b: &dyn Backend, product: Product, input: &Input, at: &Path) -> Result<Comparison> {
    match product {
        Product::GgufLora => publish::scratch(at, |folder| {
            let file = gguf::find(at)?.unwrap_or_else(|| at.to_path_buf());
            unlora::read(&arch::read_spec(input.model)?, &file, folder)?;
            proved(b, product, input, &Side { model: input.model, adapter: Some(folder) })
        }),
        Product::Adapter => proved(b, product, input, &Side { model: input.model, adapter: Some(at) }),
        _ => proved(b, product, input, &Side { model: at, adapter: None }),
    }
}

fn proved(b: &dyn Backend, product: Product, input: &Input, made: &Side) -> Result<Comparison> {
    let trained = Side { model: input.model, adapter: input.adapter };
    let tokenizers = (trained.tokenizer()?, made.tokenizer()?);
    // a GGUF adapter has no tokenizer of its own
    if let (Some(a), Some(b), true) = (&tokenizers.0, &tokenizers.1, product != Product::GgufLora) {
        words(a, b, made.adapter.unwrap_or(made.model))?;
    }
    let spec = arch::read_spec(input.model)?;
    let texts: Vec<Vec<u32>> = match &tokenizers.0 {
        Some(tokenizer) => TEXTS.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<_>>()?,
        None => vec![(0..MADE_UP).map(|i| (i * 7 + 3) % spec.V as u32).collect()],
    };
    let exact = spec.parameters() <= EXACT;
    let stored = input.dtype.unwrap_or(DType::Bf16);
    let limit = limit(product, stored).max(if exact { 0.0 } else { float_limit(DType::Bf16) });
    let texts: Vec<Vec<u32>> = texts.into_iter().map(|t| t[..t.len().min(spec.max_positions)].to_vec()).collect();
    let found = compare(b, &trained, made, &texts, if exact { DType::F32 } else { DType::Bf16 })?;
    let good = found.mean_kl <= limit && found.max_logit.is_finite();
    if !good {
        let (kl, logit, top1) = (found.mean_kl, found.max_logit, found.top1 * 100.0);
        let what = format!(
            "what was written differs from what was trained: mean KL divergence {kl:.2e}, at most {limit:.0e} is expected of \
             this format; largest logit difference {logit:.2e}, top-1 agreement {top1:.1}%: take a finer format, or write it \
             as it is with --no-verify"
        );
        return Err(Error::content(input.model, "", what));
    }
    Ok(found)
}

/// Both tokenizers encode alike, and both templates render alike.
fn words(a: &Tokenizer, b: &Tokenizer, at: &Path) -> Result<()> {
    for text in TEXTS {
        for special in [false, true] {
            if a.encode(text, special)? != b.encode(text, special)? {
                return Err(Error::content(at, "tokenizer", format!("encodes otherwise than the model's: {text:?}")));
            }
        }
    }
    if a.chat_template().is_none() || gguf::find(at)?.is_some() && b.chat_template().is_none() {
        return Ok(());
    }
    let messages = [json!({"role": "user", "content": "Hello"}), json!({"role": "assistant", "content": "Hi there"})];
    let messages = messages.iter().filter_map(|message| message.as_object().cloned()).collect();
    let chat = Chat { messages, tools: None };
    let [a, b] = [a, b].map(|tokenizer| Template::load(None, tokenizer)?.render(&chat, false));
    // a template may refuse this chat; then both do
    match (a, b) {
        (Ok(a), Ok(b)) if a != b => {
            Err(Error::content(at, "chat_template", format!("renders {b:?}, the model's own renders {a:?}")))
        }
        (Ok(_), Err(e)) => Err(e),
        _ => Ok(()),
    }
}
