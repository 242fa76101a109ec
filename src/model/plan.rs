//! What a session keeps of the forward pass for the backward: a choice for each layer, between memory and time.

/// What a layer keeps, besides its weights' gradients; what is not kept is computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keep {
    /// Every activation that its backward reads.
    All,
    /// Its input, and what attention and the projections behind it made: neither is computed again, which saves about a third of
    /// the products of a forward.
    Attention,
    /// Its input (activation checkpointing, Chen et al. 2016, arXiv:1604.06174).
    Input,
    /// As `Attention`, but in host memory: on its way there behind the forward, on its way back ahead of the backward.
    Host,
}

impl Keep {
    pub const ALL: [Keep; 4] = [Keep::All, Keep::Attention, Keep::Input, Keep::Host];
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Keep::All => "keep",
            Keep::Attention => "recompute, but for attention",
            Keep::Input => "recompute",
            Keep::Host => "offload",
        }
    }
}

/// What is kept of the forward pass for the backward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: there is no backward.
    Inference,
    /// [`Keep::All`] in every layer.
    Keep,
    /// [`Keep::Input`] in every layer.
    Recompute,
    /// A choice for each layer.
    Layers(Vec<Keep>),
    /// The same, none of them [`Keep::All`]; and MLPs without experts run so many tokens at a time, so that gate and up of all tokens
    /// never exist. Weight gradients are then sums of sums.
    Tiled(Vec<Keep>, usize),
}

impl Plan {
    /// The choice for each of so many layers; `None`: there is no backward.
    pub fn layers(&self, layers: usize) -> Option<Vec<Keep>> {
        match self {
            Plan::Inference => None,
            Plan::Keep => Some(vec![Keep::All; layers]),
            Plan::Recompute => Some(vec![Keep::Input; layers]),
            Plan::Layers(each) | Plan::Tiled(each, _) => {
                assert_eq!(each.len(), layers, "a plan for each layer");
                Some(each.clone())
            }
        }
    }
}

impl Plan {
    /// Nothing is computed again.
    pub fn keeps_all(&self) -> bool {
        match self {
            Plan::Keep => true,
            Plan::Inference | Plan::Recompute => false,
            Plan::Layers(each) | Plan::Tiled(each, _) => each.iter().all(|keep| *keep == Keep::All),
        }
    }
    /// Tokens that an MLP runs at a time, of N; `None`: all.
    pub(super) fn tile(&self, N: usize) -> Option<usize> {
        match self {
            Plan::Tiled(each, rows) if !each.contains(&Keep::All) && (1..N).contains(rows) => Some(*rows),
            _ => None,
        }
    }
}

/// As in `activations: 20 layers keep, 12 layers recompute`.
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Plan::Inference => f.write_str("nothing is kept"),
            Plan::Keep => f.write_str("all layers keep"),
            Plan::Recompute => f.write_str("all layers recompute"),
            Plan::Layers(each) | Plan::Tiled(each, _) => {
                let count = |keep: &Keep| each.iter().filter(|k| *k == keep).count();
                let parts = Keep::ALL.iter().map(|keep| (count(keep), keep.name())).filter(|(n, _)| *n > 0);
                let part = |(n, name)| match n == each.len() {
                    true => format!("all layers {name}"),
                    false => format!("{n} layers {name}"),
                };
                f.write_str(&parts.map(part).collect::<Vec<_>>().join(", "))?;
                match self {
                    Plan::Tiled(_, rows) => write!(f, ", MLPs {rows} tokens at a time"),
                    _ => Ok(()),
                }
            }
        }
    }
}
