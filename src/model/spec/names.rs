//! What an architecture calls its modules.

/// What an architecture calls its modules; weights are `<module>.weight` and `<module>.bias`. Where q, k and v (gate and up)
/// have one name they are one module, their rows in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    pub embed: &'static str,
    /// `{}` is the layer's number.
    pub layer: &'static str,
    /// Read with [`Positions::Learned`] only.
    pub positions: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    /// Norms of inputs; not read with [`NormPlace::After`].
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    /// Norms of outputs; not read with [`NormPlace::Before`].
    pub attention_post_norm: &'static str,
    pub mlp_post_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    /// Not read with [`QkNorm::Absent`].
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// A weight's own name; read with [`Sinks::PerHead`] only.
    pub sinks: &'static str,
    pub o: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

impl Names {
    /// A module of a layer: `model.layers.3.self_attn.q_proj`.
    pub fn of(&self, layer: usize, module: &str) -> String {
        format!("{}.{module}", self.layer.replace("{}", &layer.to_string()))
    }
}
