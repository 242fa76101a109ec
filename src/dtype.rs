//! How values are stored (`DType`) and what references compute with (`Real`).
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// The storage type: a tag on a buffer, never another row of the op table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    F32,
    F16,
    Bf16,
    /// Token ids, positions, spans.
    U32,
    /// Packed quantized codes.
    U8,
}

impl DType {
    /// Bytes of one element in files and on GPUs.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::U8 => 1,
        }
    }
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::Bf16)
    }
    /// The name in Hugging Face configs.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::Bf16 => "bfloat16",
            DType::U32 => "uint32",
            DType::U8 => "uint8",
        }
    }
    /// `bfloat16`, `torch.bfloat16`, `bf16` and the like.
    pub fn parse(name: &str) -> Option<DType> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" | "float" | "f32" | "fp32" => Some(DType::F32),
            "float16" | "half" | "f16" | "fp16" => Some(DType::F16),
            "bfloat16" | "bf16" => Some(DType::Bf16),
            _ => None,
        }
    }
    /// The nearest value this type can store, ties to even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::F16 => half::f16::from_f32(x).to_f32(),
            DType::Bf16 => half::bf16::from_f32(x).to_f32(),
            _ => x,
        }
    }
    /// Values as this type stores them, little-endian.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            DType::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
            DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DType::U32 => values.iter().flat_map(|x| (*x as u32).to_le_bytes()).collect(),
            DType::U8 => values.iter().map(|x| *x as u8).collect(),
        }
    }
    /// The reverse of [`DType::encode`]; a trailing part of an element is left out.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / self.size()];
        self.decode_to(&mut out, bytes);
        out
    }
    /// The same into `out`, as far as both reach.
    pub fn decode_to(self, out: &mut [f32], bytes: &[u8]) {
        fn each<const S: usize>(out: &mut [f32], bytes: &[u8], value: impl Fn([u8; S]) -> f32) {
            out.iter_mut().zip(bytes.as_chunks::<S>().0).for_each(|(out, b)| *out = value(*b));
        }
        match self {
            DType::F16 => each(out, bytes, |b| half::f16::from_le_bytes(b).to_f32()),
            DType::Bf16 => each(out, bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            DType::F32 => each(out, bytes, f32::from_le_bytes),
            DType::U32 => each(out, bytes, |b| u32::from_le_bytes(b) as f32),
            DType::U8 => each(out, bytes, |[b]| b as f32),
        }
    }
}

/// x as bf16 holds it, up or down by the upper 16 bits of `word`, so that the mean over them is x; what is not finite stays.
pub fn bf16_by_chance(x: f32, word: u32) -> f32 {
    if !x.is_finite() { x } else { f32::from_bits(x.to_bits().wrapping_add(word >> 16) & 0xffff_0000) }
}

/// The backend runs a reference at f32; the tests run the same code at f64.
#[rustfmt::skip]
pub trait Real:
    Copy + From<f32> + PartialOrd + AddAssign + Neg<Output = Self> + Sum
    + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
    + Send + Sync
{
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn abs(self) -> Self;
    fn tanh(self) -> Self;
    /// Φ: the share of a normal distribution that lies below.
    fn normal_cdf(self) -> Self;
    fn to_f32(self) -> f32;
}

/// eˣ to 2e-7 relative, without branches or calls, so that loops over it vectorize: 2ⁿ·eʳ with a polynomial for eʳ. Cephes' expf.
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // adding and taking off 1.5·2²³ rounds to an integer
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let poly = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let p = poly.iter().fold(0.0f32, |acc, c| acc * r + c);
    let y = p * (r * r) + r + 1.0;
    y * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

/// Φ(x) to 3e-7 relative for x > -14. The tail is e^(−x²/2) times a polynomial of t = 1/(1 + 0.3·|x|), fitted to it.
fn normal_cdf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3 * x.abs());
    let poly = [
        0.035_674_773,
        -0.157_202_91,
        0.206_352_96,
        -0.053_682_942,
        0.128_561_15,
        0.099_913_66,
        0.120_753_93,
        0.119_629_3,
        0.0,
    ];
    let tail = poly.iter().fold(0.0f32, |acc, c| acc * t + c) * exp(-0.5 * x * x);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// The same in full: Φ(x) = 1/2 + φ(x)·(x + x³/3 + x⁵/(3·5) + …). Marsaglia 2004, J. Stat. Software 11(4).
fn normal_cdf_f64(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let (mut term, mut sum, mut odd) = (x, 0.0, 1.0);
    // beyond it the sum would overflow, and Φ is 0 or 1
    let near = x.abs() < 30.0;
    while near && sum + term != sum {
        sum += term;
        odd += 2.0;
        term *= x * x / odd;
    }
    if near { 0.5 + density * sum } else { (x > 0.0) as u8 as f64 }
}

macro_rules! real {
    ($($t:ty: $exp:expr, $cdf:expr);*) => { $(
        impl Real for $t {
            fn sqrt(self) -> Self { self.sqrt() }
            fn exp(self) -> Self { $exp(self) }
            fn ln(self) -> Self { self.ln() }
            fn abs(self) -> Self { self.abs() }
            fn tanh(self) -> Self { self.tanh() }
            fn normal_cdf(self) -> Self { $cdf(self) }
            fn to_f32(self) -> f32 { self as f32 }
        }
    )* };
}
real!(f32: exp, normal_cdf; f64: f64::exp, normal_cdf_f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_good_to_2e_7_and_ends_softly() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (got, want) = (exp(x) as f64, (x as f64).exp());
            assert!(((got - want) / want).abs() < 2e-7, "{x}: {got} {want}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::NAN).is_nan());
    }

    /// 95 in 100 lie within 1.959964 of the middle.
    #[test]
    fn the_normal_distribution() {
        assert!((normal_cdf_f64(1.959_963_984_540_054) - 0.975).abs() < 1e-15);
        for i in -4000..=4000 {
            let x = i as f64 / 100.0;
            let (exact, mirrored) = (normal_cdf_f64(x), normal_cdf_f64(-x));
            assert!((exact + mirrored - 1.0).abs() < 1e-15, "{x}: {exact} {mirrored}");
            let (got, want) = (normal_cdf(x as f32) as f64, normal_cdf_f64(x as f32 as f64));
            assert!(
                (got - want).abs() < 2e-7 && (x.abs() > 4.0 || (got - want).abs() < 1e-6 * want),
                "{x}: {got} {want}"
            );
        }
    }

    #[test]
    fn encode_then_decode_rounds_once() {
        let x = [1.0 + 1.0 / 256.0, -0.3, 65504.0, 1e-30, f32::INFINITY];
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let want: Vec<f32> = x.iter().map(|x| dtype.round(*x)).collect();
            assert_eq!(dtype.decode(&dtype.encode(&x)), want, "{dtype:?}");
        }
    }
}
