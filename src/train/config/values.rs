//! The types that a key may have: what they accept, and how the resolved config writes them.
use super::source::FromNode;
use super::tree::Value;
use crate::dtype::DType;
use crate::model::Compute;
use serde::{Serialize, Serializer};
use std::path::PathBuf;

/// An enum that is a word in the config; a word may have synonyms, which are read but never written.
macro_rules! words {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $variant:ident = $word:literal $(| $synonym:literal)* ),+ $(,)? } )+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[$vdoc])* $variant ),+ }
        impl $name {
            pub const ALL: &[$name] = &[ $( $name::$variant ),+ ];
            pub fn name(self) -> &'static str {
                match self { $( $name::$variant => $word ),+ }
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.name())
            }
        }
        impl FromNode for $name {
            fn wanted() -> String {
                one_of(&[ $( $word $(, $synonym)* ),+ ])
            }
            fn from_value(value: &Value) -> Option<Self> {
                let Value::Str(s) = value else { return None };
                match s.as_str() { $( $word $(| $synonym)* => Some($name::$variant), )+ _ => None }
            }
        }
    )+ };
}

words! {
    /// What is learned from the records.
    Method {
        /// Conversations or texts; the chosen tokens count.
        Sft = "sft",
        /// Documents end to end; every token counts.
        Pretrain = "pretrain" | "pt",
    }
    /// The optimizer, and how it stores its states.
    Optim {
        /// In f32.
        AdamW = "adamw" | "adamw_torch" | "adamw_torch_fused",
        /// In 8 bits per value, block-wise, as bitsandbytes does.
        AdamW8bit = "adamw_8bit" | "adamw_bnb_8bit",
        Lion = "lion_32bit" | "lion",
        Lion8bit = "lion_8bit",
        /// Paged: states in host memory.
        PagedAdamW = "paged_adamw_32bit" | "paged_adamw",
        PagedAdamW8bit = "paged_adamw_8bit",
        PagedLion = "paged_lion_32bit" | "paged_lion",
        PagedLion8bit = "paged_lion_8bit",
        Sgd = "sgd",
        Muon = "muon",
    }
    /// What Muon multiplies the learning rate of a matrix by.
    AdjustLr {
        /// √max(1, outputs/inputs).
        Original = "original",
        /// 0.2·√max(outputs, inputs).
        MatchRmsAdamw = "match_rms_adamw",
        /// √(outputs/inputs).
        SpectralUnclamped = "spectral_unclamped",
    }
    /// The shape of the learning rate over the run, named as in transformers.
    SchedulerType {
        Linear = "linear",
        Cosine = "cosine",
        CosineWithRestarts = "cosine_with_restarts",
        Polynomial = "polynomial",
        Constant = "constant",
        ConstantWithWarmup = "constant_with_warmup",
        InverseSqrt = "inverse_sqrt",
    }
    /// When the run evaluates.
    EvalStrategy {
        No = "no",
        Steps = "steps",
        /// After each epoch.
        Epoch = "epoch",
    }
    /// When the run saves a checkpoint, but for the last.
    SaveStrategy {
        No = "no",
        Steps = "steps",
        /// After each epoch.
        Epoch = "epoch",
        /// After an evaluation that was the best so far.
        Best = "best",
    }
    /// What tells the best evaluation.
    BestMetric {
        Loss = "eval_loss" | "loss",
        Perplexity = "eval_perplexity" | "perplexity",
    }
    /// Which biases are trained beside the adapters.
    LoraBias {
        None = "none",
    }
}

/// Who is told of a run as it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracker {
    TensorBoard,
}

/// Every tracker that is told; none where it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportTo(pub Vec<Tracker>);

impl FromNode for ReportTo {
    fn wanted() -> String {
        "\"tensorboard\", \"none\", or a list of these (others are not there)".into()
    }
    fn from_value(value: &Value) -> Option<ReportTo> {
        let words = Vec::<String>::from_value(value)?;
        let mut trackers = Vec::new();
        for word in words {
            match word.as_str() {
                "tensorboard" | "all" => trackers.push(Tracker::TensorBoard),
                "none" => {}
                _ => return None,
            }
        }
        trackers.dedup();
        Some(ReportTo(trackers))
    }
}

impl Serialize for ReportTo {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let name = |tracker: &Tracker| match tracker {
            Tracker::TensorBoard => "tensorboard",
        };
        match &self.0[..] {
            [] => s.serialize_str("none"),
            [one] => s.serialize_str(name(one)),
            several => s.collect_seq(several.iter().map(name)),
        }
    }
}

impl Optim {
    /// The same with its states on the device: what a paged optimizer computes.
    pub fn resident(self) -> Optim {
        match self {
            Optim::PagedAdamW => Optim::AdamW,
            Optim::PagedAdamW8bit => Optim::AdamW8bit,
            Optim::PagedLion => Optim::Lion,
            Optim::PagedLion8bit => Optim::Lion8bit,
            other => other,
        }
    }
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("{w:?}")).collect();
    match quoted.as_slice() {
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
        [] => String::new(),
    }
}

/// Whether the blocks' activations are recomputed in the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointing {
    /// Per block, as the device's memory allows.
    Auto,
    Always,
    Never,
    /// Always, and what it starts from is kept on the host.
    Offload,
}

/// An amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];

    /// As in `8GiB`, `1.5 GB`, `4096`.
    pub fn parse(text: &str) -> Option<Bytes> {
        let text = text.trim();
        let ends = |unit: &str| {
            let cut = text.len().checked_sub(unit.len())?;
            text.get(cut..)?.eq_ignore_ascii_case(unit).then(|| text[..cut].trim_end())
        };
        let unit = Self::UNITS.iter().find_map(|(unit, size)| ends(unit).map(|number| (number, *size)));
        let (number, size) = unit.unwrap_or((ends("B").unwrap_or(text), 1));
        let bytes = number.parse::<f64>().ok()? * size as f64;
        (bytes >= 1.0 && bytes < 2f64.powi(63)).then_some(Bytes(bytes as u64))
    }
}

/// Where a run starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Resume {
    /// At the newest whole checkpoint of `output_dir`; at step 0 where there is none.
    Auto,
    Never,
    /// At this checkpoint.
    Folder(PathBuf),
}

/// A distance between steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Every {
    Steps(u64),
    /// Of all the run's steps.
    Share(f64),
}

impl Every {
    /// In a run of so many steps; transformers' rounding.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Every::Steps(steps) => steps,
            Every::Share(share) => ((total as f64 * share).ceil() as u64).max(1),
        }
    }
}

impl FromNode for Every {
    fn wanted() -> String {
        "a whole number of steps, or a share between 0 and 1".into()
    }
    fn from_value(value: &Value) -> Option<Every> {
        match f64::from_value(value)? {
            x if x >= 1.0 && x.fract() == 0.0 => Some(Every::Steps(x as u64)),
            x if x > 0.0 && x < 1.0 => Some(Every::Share(x)),
            _ => None,
        }
    }
}

impl Serialize for Every {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Every::Steps(steps) => s.serialize_u64(*steps),
            Every::Share(share) => s.serialize_f64(*share),
        }
    }
}

impl FromNode for bool {
    fn wanted() -> String {
        "true or false".into()
    }
    fn from_value(value: &Value) -> Option<bool> {
        match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }
}

impl FromNode for String {
    fn wanted() -> String {
        "text that is not empty".into()
    }
    fn from_value(value: &Value) -> Option<String> {
        match value {
            Value::Str(s) if !s.is_empty() => Some(s.clone()),
            _ => None,
        }
    }
}

impl FromNode for PathBuf {
    fn wanted() -> String {
        "a path".into()
    }
    fn from_value(value: &Value) -> Option<PathBuf> {
        String::from_value(value).map(PathBuf::from)
    }
}

impl FromNode for i64 {
    fn wanted() -> String {
        "a whole number".into()
    }
    fn from_value(value: &Value) -> Option<i64> {
        match value {
            Value::Int(i) => Some(*i),
            _ => None,
        }
    }
}

impl FromNode for u64 {
    fn wanted() -> String {
        "a whole number, 0 or more".into()
    }
    fn from_value(value: &Value) -> Option<u64> {
        i64::from_value(value).and_then(|i| u64::try_from(i).ok())
    }
}

impl FromNode for usize {
    fn wanted() -> String {
        u64::wanted()
    }
    fn from_value(value: &Value) -> Option<usize> {
        u64::from_value(value).and_then(|i| usize::try_from(i).ok())
    }
}

/// Also text: a YAML 1.1 parser reads `2e-4` as text, so people quote it.
impl FromNode for f64 {
    fn wanted() -> String {
        "a finite number".into()
    }
    fn from_value(value: &Value) -> Option<f64> {
        let x = match value {
            Value::Int(i) => *i as f64,
            Value::Float(x) => *x,
            Value::Str(s) => s.parse().ok()?,
            _ => return None,
        };
        x.is_finite().then_some(x)
    }
}

impl<T: FromNode> FromNode for Option<T> {
    fn wanted() -> String {
        T::wanted()
    }
    fn from_value(value: &Value) -> Option<Option<T>> {
        T::from_value(value).map(Some)
    }
}

/// One or a list of them.
impl FromNode for Vec<String> {
    fn wanted() -> String {
        "text or a list of texts".into()
    }
    fn from_value(value: &Value) -> Option<Vec<String>> {
        let Value::List(items) = value else { return String::from_value(value).map(|s| vec![s]) };
        items.iter().map(|node| String::from_value(&node.value)).collect()
    }
}

impl FromNode for DType {
    fn wanted() -> String {
        one_of(&["bfloat16", "float16", "float32"])
    }
    fn from_value(value: &Value) -> Option<DType> {
        let Value::Str(s) = value else { return None };
        DType::parse(s)
    }
}

impl Serialize for DType {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl FromNode for Compute {
    fn wanted() -> String {
        one_of(&Compute::ALL.map(Compute::name))
    }
    fn from_value(value: &Value) -> Option<Compute> {
        let Value::Str(word) = value else { return None };
        Compute::parse(word)
    }
}

impl Serialize for Compute {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl FromNode for Checkpointing {
    fn wanted() -> String {
        "\"auto\", true, false or \"offload\"".into()
    }
    fn from_value(value: &Value) -> Option<Checkpointing> {
        match value {
            Value::Str(s) if s == "auto" => Some(Checkpointing::Auto),
            Value::Str(s) if s == "offload" || s == "unsloth" => Some(Checkpointing::Offload),
            Value::Bool(true) => Some(Checkpointing::Always),
            Value::Bool(false) => Some(Checkpointing::Never),
            _ => None,
        }
    }
}

impl Serialize for Checkpointing {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Checkpointing::Auto => s.serialize_str("auto"),
            Checkpointing::Always => s.serialize_bool(true),
            Checkpointing::Never => s.serialize_bool(false),
            Checkpointing::Offload => s.serialize_str("offload"),
        }
    }
}

impl FromNode for Bytes {
    fn wanted() -> String {
        "an amount of memory, as in \"8GiB\"".into()
    }
    fn from_value(value: &Value) -> Option<Bytes> {
        match value {
            Value::Str(s) => Bytes::parse(s),
            Value::Int(i) => u64::try_from(*i).ok().filter(|bytes| *bytes > 0).map(Bytes),
            _ => None,
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

impl FromNode for Resume {
    fn wanted() -> String {
        "\"auto\", a checkpoint's folder or false".into()
    }
    fn from_value(value: &Value) -> Option<Resume> {
        match value {
            Value::Bool(false) => Some(Resume::Never),
            Value::Str(s) if s == "auto" => Some(Resume::Auto),
            _ => PathBuf::from_value(value).map(Resume::Folder),
        }
    }
}

impl Serialize for Resume {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Resume::Auto => s.serialize_str("auto"),
            Resume::Never => s.serialize_bool(false),
            Resume::Folder(path) => path.serialize(s),
        }
    }
}

/// One or a list of them.
impl FromNode for Vec<usize> {
    fn wanted() -> String {
        "a whole number or a list of them".into()
    }
    fn from_value(value: &Value) -> Option<Vec<usize>> {
        let Value::List(items) = value else { return usize::from_value(value).map(|n| vec![n]) };
        items.iter().map(|node| usize::from_value(&node.value)).collect()
    }
}

impl FromNode for Vec<u32> {
    fn wanted() -> String {
        "a list of ids".into()
    }
    fn from_value(value: &Value) -> Option<Vec<u32>> {
        Vec::<usize>::from_value(value)?.into_iter().map(|id| u32::try_from(id).ok()).collect()
    }
}
