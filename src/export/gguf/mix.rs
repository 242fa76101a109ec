//! Which tensor of a GGUF file is stored in which format: llama.cpp's rules for its file types (`llama-quant.cpp`).
use crate::io::gguf::Format;
use crate::model::spec::Spec;

/// A file type: what most tensors are stored in, and how the rest is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quant {
    /// On a command line and in file names.
    pub name: &'static str,
    /// `general.file_type`
    pub id: u32,
    format: &'static str,
    mixture: Mixture,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mixture {
    /// Floats, or one format but for the output.
    Pure,
    Small,
    Medium,
}

const fn quant(name: &'static str, id: u32, format: &'static str, mixture: Mixture) -> Quant {
    Quant { name, id, format, mixture }
}

pub const QUANTS: [Quant; 13] = [
    quant("f32", 0, "F32", Mixture::Pure),
    quant("f16", 1, "F16", Mixture::Pure),
    quant("bf16", 32, "BF16", Mixture::Pure),
    quant("q8_0", 7, "Q8_0", Mixture::Pure),
    quant("q6_k", 18, "Q6_K", Mixture::Pure),
    quant("q5_k_m", 17, "Q5_K", Mixture::Medium),
    quant("q5_k_s", 16, "Q5_K", Mixture::Pure),
    quant("q5_1", 9, "Q5_1", Mixture::Pure),
    quant("q5_0", 8, "Q5_0", Mixture::Pure),
    quant("q4_k_m", 15, "Q4_K", Mixture::Medium),
    quant("q4_k_s", 14, "Q4_K", Mixture::Small),
    quant("q4_1", 3, "Q4_1", Mixture::Pure),
    quant("q4_0", 2, "Q4_0", Mixture::Pure),
];

fn named(name: &str) -> Format {
    Format::named(name).expect("the table names ggml's formats")
}

impl Quant {
    pub fn parse(name: &str) -> Option<Quant> {
        QUANTS.into_iter().find(|quant| quant.name.eq_ignore_ascii_case(name))
    }
    /// Of most tensors.
    pub fn format(self) -> Format {
        named(self.format)
    }
    fn packed(self) -> bool {
        self.format().len > 1
    }

    /// The format of each tensor, given by name and shape (slowest dimension first) in the order of layers.
    pub fn formats(self, spec: &Spec, tensors: &[(String, Vec<usize>)]) -> Vec<Format> {
        let values = tensors.iter().filter(|(name, _)| is_value(name)).count();
        let tied = !tensors.iter().any(|(name, _)| name == "output.weight");
        let mut seen = 0;
        let format = |(name, shape): &(String, Vec<usize>)| {
            if stays_float(name, shape) {
                return named("F32");
            }
            if !self.packed() {
                return self.format();
            }
            let place = Place { values, value: seen, tied };
            seen += usize::from(is_value(name));
            fitting(self.choose(spec, name, shape, &place), shape)
        };
        tensors.iter().map(format).collect()
    }

    fn choose(self, spec: &Spec, name: &str, shape: &[usize], place: &Place) -> Format {
        let (usual, eight) = (self.format(), spec.moe.as_ref().is_some_and(|moe| moe.E == 8));
        let (medium, small) = (self.mixture == Mixture::Medium, self.mixture == Mixture::Small);
        let layer = layer(name);
        if name == "output.weight" || place.tied && name == "token_embd.weight" {
            let whole = columns(shape).is_multiple_of(usual.len);
            return match usual.name {
                _ if !whole => named("Q8_0"),
                "Q8_0" => usual,
                _ => named("Q6_K"),
            };
        }
        if is_value(name) {
            let better = if medium && more_bits(place.value, place.values) {
                named("Q6_K")
            } else if small && place.value < 4 {
                named("Q5_K")
            } else {
                usual
            };
            // in these 8 heads share one of v, which is small then
            let seventy = spec.layers == 80 && spec.H != spec.K && better.name == "Q4_K";
            return match (eight, seventy) {
                (true, _) => named("Q8_0"),
                (_, true) => named("Q5_K"),
                _ => better,
            };
        }
        if name.contains("ffn_down") {
            return match () {
                _ if medium && more_bits(layer, spec.layers) => named("Q6_K"),
                _ if small && layer < spec.layers / 8 => named("Q5_K"),
                _ => usual,
            };
        }
        match () {
            _ if eight && name.contains("attn_k.weight") => named("Q8_0"),
            _ if eight && name.contains("attn_output.weight") && (medium || small) && usual.name == "Q4_K" => {
                named("Q5_K")
            }
            _ => usual,
        }
    }
}

/// Where a tensor stands among those that are like it.
struct Place {
    /// Tensors that make values.
    values: usize,
    /// Those of them before this one.
    value: usize,
    /// There is no output of its own.
    tied: bool,
}

/// What makes the values of attention, alone or among others.
fn is_value(name: &str) -> bool {
    ["attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"].iter().any(|end| name.ends_with(end))
}

/// The first eighth of n, the last, and every third between.
fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

fn layer(name: &str) -> usize {
    name.split('.').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn columns(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// Vectors, norms, positions, and what chooses experts are not stored smaller.
fn stays_float(name: &str, shape: &[usize]) -> bool {
    let dims = shape.iter().skip_while(|n| **n == 1).count();
    let kept = ["_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight"];
    dims < 2 || !name.ends_with(".weight") || kept.iter().any(|end| name.ends_with(end))
}

/// The format, or the one that llama.cpp takes where rows are not whole blocks.
fn fitting(format: Format, shape: &[usize]) -> Format {
    let fits = |format: Format| columns(shape).is_multiple_of(format.len);
    let other = match format.name {
        "Q4_K" => named("Q5_0"),
        "Q5_K" => named("Q5_1"),
        "Q6_K" => named("Q8_0"),
        _ => format,
    };
    [format, other].into_iter().find(|format| fits(*format)).unwrap_or(named("F16"))
}
