//! NEFTune: noise on the embeddings of a training step, uniform in ±alpha/√(L·C) with L the length of the token's sequence.
//! Jain et al. 2023, arXiv:2310.05914.
use super::batch::Tokens;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::noise::Noise as Params;

pub(super) struct Neftune {
    /// Each token's, [N].
    magnitude: Buf,
    pub alpha: f64,
    /// `None`: there is no noise now.
    pub seed: Option<u32>,
}

impl Neftune {
    pub fn new(scope: &Scope, N: usize) -> Result<Neftune> {
        Ok(Neftune { magnitude: scope.alloc(N, DType::F32)?, alpha: 0.0, seed: None })
    }

    /// The magnitudes of these sequences.
    pub fn set(&mut self, b: &dyn Backend, tokens: &Tokens, C: usize) -> Result<()> {
        let length = |s: &[u32]| (s[1] - s[0]) as usize;
        let of = |s: &[u32]| std::iter::repeat_n((self.alpha / (length(s) as f64 * C as f64).sqrt()) as f32, length(s));
        let magnitude: Vec<f32> = tokens.cu_seqlens.windows(2).flat_map(of).collect();
        b.upload_f32(&mut self.magnitude, &magnitude)
    }

    /// x [N, C] with its noise.
    pub fn add(&self, b: &dyn Backend, x: &mut Buf, C: usize) -> Result<()> {
        let Some(seed) = self.seed else { return Ok(()) };
        let p = Params { N: self.magnitude.len() as u32, C: C as u32, seed, stream: 0 };
        b.noise_forward(x, &self.magnitude, &p)
    }
}
