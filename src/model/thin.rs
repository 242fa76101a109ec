//! Few tokens times a packed weight: decoding. The weight is not unpacked to memory, of which it would fill as much as it saves.
use super::linear::{GgufWeight, Int8Weight, Linear, Nf4Scales, Nf4Weight, Weight};
use crate::backend::{Backend, Buf};
use crate::error::Result;
use crate::ops::gguf::ThinGguf;
use crate::ops::thin::{Thin, ThinDouble};

/// Tokens up to which it is faster so.
pub(super) const FEW: usize = 64;
/// The same of ggml's formats, which are unpacked anew for each 8 tokens.
const FEW_BLOCKS: usize = 16;

impl Linear {
    /// Whether a product with N tokens reads the weight packed. DoRA measures the whole weight.
    pub(super) fn is_thin(&self, N: usize) -> bool {
        let measured = self.lora.as_ref().is_some_and(|lora| lora.dora.is_some());
        let few = match self.weight {
            Weight::Nf4(_) | Weight::Int8(_) => FEW,
            Weight::Gguf(_) => FEW_BLOCKS,
            Weight::Dense(_) | Weight::Mxfp4(_) | Weight::Fp8(_) => 0,
        };
        N <= few && !measured
    }

    /// out [N, O] = inp [N, C] times rows first..first + O.
    pub(super) fn forward_thin(
        &self,
        b: &dyn Backend,
        out: &mut Buf,
        inp: &Buf,
        (first, O): (usize, usize),
        N: usize,
    ) -> Result<()> {
        let [n, o, c, values, first] = [N, O, self.C, self.O * self.C, first].map(|x| x as u32);
        let p = Thin { N: n, O: o, C: c, P: values, first };
        match &self.weight {
            Weight::Nf4(Nf4Weight { codes, scales: Nf4Scales::Single { absmax } }) => {
                b.thin_nf4(out, inp, codes, absmax, &p)
            }
            Weight::Nf4(Nf4Weight { codes, scales: Nf4Scales::Double { qabsmax, nested, map, offset } }) => {
                let p = ThinDouble { N: n, O: o, C: c, P: values, first, offset: *offset };
                b.thin_nf4_double(out, inp, codes, qabsmax, nested, map, &p)
            }
            Weight::Int8(Int8Weight { codes, scb }) => b.thin_int8(out, inp, codes, scb, &p),
            Weight::Gguf(GgufWeight { format, blocks }) => {
                let p = ThinGguf { N: n, O: o, C: c, P: blocks.len() as u32, first: p.first, format: format.place() };
                b.thin_gguf(out, inp, blocks, &p)
            }
            _ => unreachable!("`is_thin` said so"),
        }
    }
}
