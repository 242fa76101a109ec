//! What is odd about data, counted while it is encoded: it trains, but perhaps not what was meant.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Finding {
    /// Cut to max_length.
    Truncated,
    /// Cut to max_length within what is trained: the model learns to stop nowhere.
    AnswerCut,
    /// Left out, for the loss counts none of its tokens.
    WithoutTargets,
    /// The text ended without a special token, so EOS was appended.
    EosAdded,
    /// What is trained ends with a token that ends no generation.
    OpenEnd,
    /// Two BOS at the start.
    DoubleBos,
    /// A message holds the text of a special token; it is encoded as that token, as Hugging Face does.
    SpecialInContent,
    /// The same tokens as an earlier one.
    Repeated,
    /// The same tokens as one that is trained on.
    EvalInTrain,
    /// The chat template writes a control token that the tokenizer does not have.
    TemplateTokens,
}

impl Finding {
    /// Whether it is wrong more often than right.
    pub fn is_warning(self) -> bool {
        !matches!(self, Finding::Truncated | Finding::EosAdded | Finding::SpecialInContent)
    }

    /// What `n` of them are, and what to do.
    fn says(self) -> &'static str {
        match self {
            Finding::Truncated => "examples were cut to max_length",
            Finding::AnswerCut => "examples lost the end of what is trained: raise max_length",
            Finding::WithoutTargets => "records have no token to train on and were left out",
            Finding::EosAdded => "examples did not end with a special token, and EOS was appended",
            Finding::OpenEnd => {
                "examples end what is trained with a token that ends no generation, so the tuned model may not stop: \
                choose a chat_template whose end token the model's generation_config.json or eos_token names"
            }
            Finding::DoubleBos => "examples begin with two BOS: take one out of the template or the text",
            Finding::SpecialInContent => {
                "chats hold the text of a special token in a message, which becomes that token"
            }
            Finding::Repeated => "examples are the same as an earlier one",
            Finding::EvalInTrain => "examples of the evaluation are trained on, too",
            Finding::TemplateTokens => {
                "control tokens of the chat template are unknown to the tokenizer, which will spell them out: choose a \
                chat_template that fits the model, or add them with new_tokens or [special_tokens]"
            }
        }
    }
}

/// How often each finding was made, and where first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(BTreeMap<Finding, (usize, String)>);

impl Findings {
    pub fn add(&mut self, finding: Finding, n: usize, place: impl FnOnce() -> String) {
        if n > 0 {
            self.0.entry(finding).or_insert_with(|| (0, place())).0 += n;
        }
    }
    pub fn count(&self, finding: Finding) -> usize {
        self.0.get(&finding).map_or(0, |(n, _)| *n)
    }
    pub fn iter(&self) -> impl Iterator<Item = Found<'_>> {
        self.0.iter().map(|(finding, (count, first))| Found { finding: *finding, count: *count, first })
    }
}

/// One kind of finding; it prints as a sentence.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub finding: Finding,
    pub count: usize,
    /// `a.jsonl: line 12`, or what; may be empty.
    pub first: &'a str,
}

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.count, self.finding.says())?;
        match (self.first, self.finding) {
            ("", _) => Ok(()),
            (tokens, Finding::TemplateTokens) => write!(f, " ({tokens})"),
            (place, _) => write!(f, " (first: {place})"),
        }
    }
}
