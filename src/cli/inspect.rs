//! `luthier inspect`: what a model folder holds, and whatever does not fit together in it.
use super::out;
use clap::Args;
use luthier::data::{Template, Tokenizer};
use luthier::io::safetensors::Tensors;
use luthier::model::check::{Checked, check, ignored};
use luthier::model::quantized::Scheme;
use luthier::model::rope::{Rope, RopeScaling};
use luthier::model::spec::{Head, LayerKind, MlpKind, RopePairs, Spec};
use luthier::{Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Say what a model folder holds, and list every mismatch in it (exit code 65).
#[derive(Args)]
pub struct Inspect {
    /// The model: a folder as Hugging Face writes it.
    model: PathBuf,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let checked = check(&self.model)?;
        let mut text = format!("{}\n", self.model.display());
        if let Some(spec) = &checked.spec {
            text += &shapes(spec);
            text += &parts(spec);
        }
        text += &format!("quantization  {}\n", checked.scheme.map_or("none", Scheme::name));
        if let Some(tensors) = &checked.tensors {
            text += &stored(tensors)?;
            text += &checked.spec.as_ref().map_or_else(String::new, |spec| unread(spec, tensors));
        }
        text += &words(&checked);
        out(&text)?;
        let count = checked.mismatches.len();
        for mismatch in &checked.mismatches {
            out(&format!("mismatch      {mismatch}\n"))?;
        }
        match count {
            0 => out("no mismatch\n"),
            n => Err(Error::content(&self.model, "", format!("mismatches: {n}, as listed"))),
        }
    }
}

fn shapes(s: &Spec) -> String {
    let head = if s.head == Head::Tied { "the embedding's" } else { "its own" };
    let kind = |(i, k): (usize, &LayerKind)| {
        let layers = s.kind_of.iter().filter(|kind| **kind == i).count();
        let window = k.window.map_or("full attention".into(), |w| format!("a window of {w}"));
        let positions = k.rope.as_ref().map_or("no RoPE".into(), |rope| self::rope(s, rope));
        format!("              {layers} of {}: {window}, {positions}\n", s.layers)
    };
    let kinds = s.kinds.iter().enumerate().map(kind).collect::<String>();
    format!(
        "architecture  {}\nlayers        {}\nhidden        {}\nffn           {}\n\
         heads         {} query, {} key-value, of {}\nvocabulary    {}\nhead          {head}\n\
         positions     {}, in layers\n{kinds}",
        s.model_type, s.layers, s.C, s.F, s.H, s.K, s.D, s.V, s.max_positions
    ) + &latent(s)
        + &mixture(s)
}

/// The sizes of latent attention.
fn latent(s: &Spec) -> String {
    let Some(l) = &s.latent else { return String::new() };
    let q = l.q_rank.map_or("no rank".into(), |rank| format!("a rank of {rank}"));
    format!(
        "latent        {q} for q, one of {} for k and v; heads of {} + {} turning channels, values of {}\n",
        l.kv_rank, l.U, s.A, l.Y
    )
}

fn mixture(s: &Spec) -> String {
    let Some(moe) = &s.moe else { return String::new() };
    let shared = moe.shared.as_ref().map_or(String::new(), |shared| format!(", shared ones of {}", shared.F));
    let layers = (0..s.layers).filter(|l| s.mlp(*l) == MlpKind::Moe).count();
    format!("experts       {} of {} in {layers} layers, ffn {}{shared}\n", moe.S, moe.E, moe.F)
}

fn rope(s: &Spec, rope: &Rope) -> String {
    let scaling = match &rope.scaling {
        RopeScaling::Default => "default".into(),
        RopeScaling::Linear { factor } => format!("linear, factor {factor}"),
        RopeScaling::Dynamic { factor, trained } => format!("dynamic, factor {factor} beyond {trained} tokens"),
        RopeScaling::Llama3 { factor, original, .. } => format!("llama3, factor {factor} from {original} tokens"),
        RopeScaling::Yarn(yarn) => format!("yarn, factor {} from {} tokens", yarn.factor, yarn.original),
        RopeScaling::LongRope { original, .. } => format!("longrope from {original} tokens"),
    };
    let part = if s.A < s.D { format!("{} of {} channels, ", s.A, s.D) } else { String::new() };
    let pairs = if s.rope_pairs == RopePairs::Interleaved { "interleaved, " } else { "" };
    format!("RoPE: {part}{pairs}theta {}, {scaling}", rope.theta)
}

/// Parameters by part: layers (and experts) together, in the order of the forward pass.
fn parts(spec: &Spec) -> String {
    let star = |name: &str| {
        let parts = name.split('.').map(|part| if part.bytes().all(|b| b.is_ascii_digit()) { "*" } else { part });
        parts.collect::<Vec<_>>().join(".")
    };
    let mut rows: Vec<(String, String, u64, u64)> = Vec::new();
    for w in spec.weights() {
        let (name, shape) = (star(&w.name), format!("{:?}", w.shape));
        let count = w.shape.iter().product::<usize>() as u64;
        match rows.iter_mut().find(|(n, s, ..)| *n == name && *s == shape) {
            Some((.., times, total)) => (*times, *total) = (*times + 1, *total + count),
            None => rows.push((name, shape, 1, count)),
        }
    }
    let wide = |f: fn(&(String, String, u64, u64)) -> usize| rows.iter().map(f).max().unwrap_or(0);
    let (name, shape) = (wide(|r| r.0.len()), wide(|r| r.1.len()));
    let total: u64 = rows.iter().map(|r| r.3).sum();
    let row = |(n, s, times, count): &(String, String, u64, u64)| {
        format!("  {n:name$}  {s:shape$}  x {times:<5} {count:>14}\n")
    };
    format!("parameters    {total}\n") + &rows.iter().map(row).collect::<String>()
}

/// Bytes by type.
fn stored(tensors: &Tensors) -> Result<String> {
    let mut types: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for name in tensors.names() {
        let tensor = tensors.get(name)?;
        let (count, bytes) = types.entry(format!("{:?}", tensor.dtype)).or_default();
        (*count, *bytes) = (*count + 1, *bytes + tensor.bytes.len() as u64);
    }
    let one = |(dtype, (count, bytes)): (String, (u64, u64))| format!("{dtype} ({count} tensors, {bytes} bytes)");
    Ok(format!("dtype         {}\n", types.into_iter().map(one).collect::<Vec<_>>().join(", ")))
}

/// What the files hold and nothing reads.
fn unread(spec: &Spec, tensors: &Tensors) -> String {
    match tensors.names().filter(|name| ignored(spec, name)).count() {
        0 => String::new(),
        n => format!("ignored       {n} tensors of layers after the last (multi-token prediction)\n"),
    }
}

fn words(checked: &Checked) -> String {
    let Some(tokenizer) = &checked.tokenizer else { return "tokenizer     none\n".into() };
    let id = |id: Option<u32>| match id.and_then(|id| tokenizer.id_to_token(id).map(|token| (id, token))) {
        Some((id, token)) => format!("{token:?} ({id})"),
        None => "none".into(),
    };
    format!(
        "tokenizer     {} tokens, BOS {}, EOS {}\nchat template {}\n",
        tokenizer.vocab_size(),
        id(tokenizer.bos_id()),
        id(tokenizer.eos_id()),
        template(tokenizer)
    )
}

fn template(tokenizer: &Tokenizer) -> String {
    match tokenizer.chat_template() {
        None => "none".into(),
        Some(text) => match Template::new(text, tokenizer) {
            Ok(_) => format!("{}, {} bytes", text.file.display(), text.text.len()),
            Err(e) => format!("unusable: {e}"),
        },
    }
}
