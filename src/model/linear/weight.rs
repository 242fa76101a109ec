//! What a linear layer multiplies with: floats, or what is packed.
use super::super::fp8::Fp8Weight;
use super::super::param::Param;
use crate::backend::{Backend, Buf, Launch};
use crate::error::Result;
use crate::ops::fp8::Fp8;
use crate::ops::gguf::{Blocks32, Packed};
use crate::ops::int8::Int8;
use crate::ops::mxfp4::{self, Mxfp4};
use crate::ops::nf4::{Nf4, Nf4Double};

pub enum Weight {
    Dense(Param),
    Nf4(Nf4Weight),
    Int8(Int8Weight),
    Gguf(GgufWeight),
    Mxfp4(Mxfp4Weight),
    Fp8(Fp8Weight),
}

/// A frozen weight in 4 bits: 4.5 bits a value, 4.127 with double quantization.
pub struct Nf4Weight {
    pub codes: Buf,
    pub scales: Nf4Scales,
}

pub enum Nf4Scales {
    Single {
        absmax: Buf,
    },
    Double {
        qabsmax: Buf,
        nested: Buf,
        /// The 256 levels of `qabsmax`.
        map: Buf,
        offset: f32,
    },
}

/// A frozen weight in 8 bits with one scale a row.
pub struct Int8Weight {
    pub codes: Buf,
    pub scb: Buf,
}

/// A frozen weight in one of ggml's block formats.
pub struct GgufWeight {
    pub format: Packed,
    pub blocks: Buf,
}

impl Packed {
    /// out = the values of `blocks` in out's dtype.
    pub fn dequantize(self, b: &dyn Backend, out: &mut Buf, blocks: &Buf) -> Result<()> {
        // the params of all formats are alike; each op checks its own
        let p = Blocks32 { P: out.len() as u32 };
        b.launch(&Launch::new(self.op(), &[Some(out), Some(blocks)], bytemuck::bytes_of(&p))?)
    }
}

/// A frozen weight in 4.25 bits, of experts.
pub struct Mxfp4Weight {
    pub codes: Buf,
    pub scales: Buf,
    /// Values that are unpacked at a time: those of some whole experts.
    pub at_once: usize,
}

impl Weight {
    /// Values that are unpacked at a time, of `len`.
    pub(super) fn unpacked(&self, len: usize) -> usize {
        match self {
            // what is in e4m3 is multiplied so
            Weight::Dense(_) | Weight::Fp8(_) => 0,
            Weight::Nf4(_) | Weight::Int8(_) | Weight::Gguf(_) => len,
            Weight::Mxfp4(packed) => packed.at_once.min(len),
        }
    }
}

impl Mxfp4Weight {
    /// out = the values from `first` on, which begin at a word of scales.
    pub(super) fn dequantize(&self, b: &dyn Backend, out: &mut Buf, first: usize) -> Result<()> {
        let len = out.len();
        let codes = self.codes.view(first / 2, len.div_ceil(2));
        let scales = self.scales.view(first / mxfp4::BLOCK, len.div_ceil(mxfp4::BLOCK));
        b.mxfp4_dequantize(out, &codes, &scales, &Mxfp4 { P: len as u32 })
    }
}

impl Weight {
    /// out [O, C] = the weight in out's dtype.
    pub fn dequantize(&self, b: &dyn Backend, out: &mut Buf, (O, C): (usize, usize)) -> Result<()> {
        let P = (O * C) as u32;
        match self {
            Weight::Dense(param) => b.cast(out, &param.value),
            Weight::Gguf(q) => q.format.dequantize(b, out, &q.blocks),
            Weight::Mxfp4(packed) => packed.dequantize(b, out, 0),
            Weight::Fp8(q) => b.fp8_dequantize(out, &q.codes, &q.scales, &Fp8 { N: O as u32, C: C as u32 }),
            Weight::Int8(q) => b.int8_dequantize(out, &q.codes, &q.scb, &Int8 { O: O as u32, C: C as u32 }),
            Weight::Nf4(Nf4Weight { codes, scales }) => match scales {
                Nf4Scales::Single { absmax } => b.nf4_dequantize(out, codes, absmax, &Nf4 { P }),
                Nf4Scales::Double { qabsmax, nested, map, offset } => {
                    b.nf4_dequantize_double(out, codes, qabsmax, nested, map, &Nf4Double { P, offset: *offset })
                }
            },
        }
    }

    /// What a quantized weight lies in; a dense one is a parameter.
    pub fn quantized(&self) -> Vec<&Buf> {
        match self {
            Weight::Dense(_) => vec![],
            Weight::Int8(Int8Weight { codes, scb }) => vec![codes, scb],
            Weight::Fp8(Fp8Weight { codes, scales }) => vec![codes, scales],
            Weight::Gguf(GgufWeight { blocks, .. }) => vec![blocks],
            Weight::Mxfp4(Mxfp4Weight { codes, scales, .. }) => vec![codes, scales],
            Weight::Nf4(Nf4Weight { codes, scales }) => match scales {
                Nf4Scales::Single { absmax } => vec![codes, absmax],
                Nf4Scales::Double { qabsmax, nested, map, .. } => vec![codes, qabsmax, nested, map],
            },
        }
    }
}
