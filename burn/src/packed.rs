//! A weight in 4 or 8 bits as backends see it. Codes are bytes in Int tensors of 32-bit words, the first byte in the low bits.
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, ExtensionType, autodiff::checkpoint::strategy::CheckpointStrategy};

/// The tensors of a packed weight, [O, C] in all. The formats are bitsandbytes', see [`luthier::ops::nf4`] and
/// [`luthier::ops::int8`].
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum Packed<B: Backend> {
    /// codes: ceil(O·C/8) words · absmax: ceil(O·C/64)
    Nf4 { codes: IntTensor<B>, absmax: FloatTensor<B> },
    /// qabsmax: ceil(O·C/64) bytes in words · nested: ceil(O·C/16384) · map: 256
    Nf4Double { codes: IntTensor<B>, qabsmax: IntTensor<B>, nested: FloatTensor<B>, map: FloatTensor<B>, offset: f32 },
    /// codes: ceil(O·C/4) words · scb: O
    Int8 { codes: IntTensor<B>, scb: FloatTensor<B> },
}

/// The same weight below the tape: it is frozen.
pub fn inner<B: Backend, C: CheckpointStrategy>(weight: Packed<Autodiff<B, C>>) -> Packed<B> {
    match weight {
        Packed::Nf4 { codes, absmax } => Packed::Nf4 { codes, absmax: absmax.into_primitive() },
        Packed::Nf4Double { codes, qabsmax, nested, map, offset } => {
            let (nested, map) = (nested.into_primitive(), map.into_primitive());
            Packed::Nf4Double { codes, qabsmax, nested, map, offset }
        }
        Packed::Int8 { codes, scb } => Packed::Int8 { codes, scb: scb.into_primitive() },
    }
}
