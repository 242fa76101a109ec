//! What a forward pass reads: packed tokens and who sees whom, on the device.
use crate::backend::{Backend, Buf, Scope};
use crate::error::Result;

/// Packed tokens on the host. All are `N` long but `cu_seqlens`: sequence s is the tokens cu_seqlens[s]..cu_seqlens[s+1].
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub cu_seqlens: Vec<u32>,
}

impl Tokens {
    /// One sequence from position 0.
    pub fn single(ids: &[u32]) -> Tokens {
        let N = ids.len() as u32;
        Tokens { ids: ids.to_vec(), positions: (0..N).collect(), cu_seqlens: vec![0, N] }
    }

    /// Causal attention within each sequence: the keys query n sees, and the queries that see key j, as [first, end).
    fn visibility(&self) -> (Vec<u32>, Vec<u32>) {
        let (mut span, mut reach) = (Vec::new(), Vec::new());
        for seq in self.cu_seqlens.windows(2) {
            for n in seq[0]..seq[1] {
                span.extend([seq[0], n + 1]);
                reach.extend([n, seq[1]]);
            }
        }
        (span, reach)
    }
}

/// [`Tokens`] on the device, reused step after step.
pub struct Inputs {
    pub N: usize,
    pub ids: Buf,
    /// Tokens sorted by id, for the embedding's gradient.
    pub order: Buf,
    pub positions: Buf,
    pub span: Buf,
    pub reach: Buf,
}

impl Inputs {
    pub fn new(scope: &Scope, N: usize) -> Result<Inputs> {
        let u32s = |len| scope.alloc(len, crate::dtype::DType::U32);
        Ok(Inputs { N, ids: u32s(N)?, order: u32s(N)?, positions: u32s(N)?, span: u32s(2 * N)?, reach: u32s(2 * N)? })
    }

    pub fn set(&mut self, b: &dyn Backend, tokens: &Tokens) -> Result<()> {
        assert_eq!(tokens.ids.len(), self.N, "a batch fills its inputs");
        let (span, reach) = tokens.visibility();
        b.upload_u32(&mut self.ids, &tokens.ids)?;
        b.upload_u32(&mut self.order, &crate::ops::embedding::order(&tokens.ids))?;
        b.upload_u32(&mut self.positions, &tokens.positions)?;
        b.upload_u32(&mut self.span, &span)?;
        b.upload_u32(&mut self.reach, &reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_and_reach_say_the_same() {
        let tokens = Tokens { ids: vec![0; 6], positions: vec![0, 1, 2, 0, 1, 0], cu_seqlens: vec![0, 3, 5, 6] };
        let (span, reach) = tokens.visibility();
        for n in 0..6 {
            for j in 0..6 {
                let sees = span[2 * n] as usize <= j && j < span[2 * n + 1] as usize;
                let seen = reach[2 * j] as usize <= n && n < reach[2 * j + 1] as usize;
                let same = tokens
                    .cu_seqlens
                    .windows(2)
                    .any(|s| (s[0]..s[1]).contains(&(n as u32)) && (s[0]..s[1]).contains(&(j as u32)));
                assert_eq!((sees, seen), (same && j <= n, same && j <= n), "{n} {j}");
            }
        }
    }
}
