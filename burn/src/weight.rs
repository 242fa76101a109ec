//! A frozen weight in 4 or 8 bits as a Burn module: bitsandbytes' formats, made on the device or read from its checkpoints.
use crate::kernels::Kernels;
use crate::ops::Ops;
use crate::packed::Packed;
use crate::tensor::ours;
use burn::backend::Dispatch;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use luthier::io::safetensors::Tensors;
use luthier::model::quantized::{self, Nested, Stored};
use luthier::ops::{dyn8, nf4};
use luthier::{Error, Result};
use std::sync::{Mutex, PoisonError};

/// How a weight is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4.5 bits a value: NF4 in blocks of 64. Dettmers et al. 2023, arXiv:2305.14314.
    Nf4,
    /// 4.127 bits: its scales in 8 bits (`bnb_4bit_use_double_quant`).
    Nf4Double,
    /// One scale a row. Dettmers et al. 2022, arXiv:2208.07339.
    Int8,
}

/// A weight [O, C] of a linear layer, packed and frozen.
#[derive(Module, Debug)]
pub struct PackedWeight {
    parts: Parts,
    rows: usize,
    columns: usize,
}

/// The tensors of a format, as [`Packed`] describes them.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one for a layer, beside what its tensors take")]
enum Parts {
    Nf4(Nf4Parts),
    Nf4Double(Nf4DoubleParts),
    Int8(Int8Parts),
}

#[derive(Module, Debug)]
struct Nf4Parts {
    codes: Param<Tensor<1, Int>>,
    absmax: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Nf4DoubleParts {
    codes: Param<Tensor<1, Int>>,
    qabsmax: Param<Tensor<1, Int>>,
    nested: Param<Tensor<1>>,
    map: Param<Tensor<1>>,
    /// The mean of the scales.
    offset: Param<Tensor<1>>,
    #[module(skip)]
    known: Known,
}

/// A parameter of one value as the host knows it, since kernels' params come from there. A record brings its own id with its value.
#[derive(Debug, Default)]
struct Known(Mutex<Option<(ParamId, f32)>>);

impl Known {
    fn value(&self, param: &Param<Tensor<1>>) -> f32 {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            Some((id, value)) if id == param.id => value,
            _ => {
                let value = param.val().into_scalar::<f32>();
                *known = Some((param.id, value));
                value
            }
        }
    }
}

impl Clone for Known {
    fn clone(&self) -> Self {
        Known(Mutex::new(*self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[derive(Module, Debug)]
struct Int8Parts {
    codes: Param<Tensor<1, Int>>,
    scb: Param<Tensor<1>>,
}

fn int(tensor: Tensor<1, Int>) -> Param<Tensor<1, Int>> {
    Param::initialized(ParamId::new(), tensor)
}

fn frozen(tensor: Tensor<1>) -> Param<Tensor<1>> {
    Param::from_tensor(tensor).set_require_grad(false)
}

/// Bytes as words on the device, zeros behind them.
fn words(bytes: &[u8], device: &Device) -> Param<Tensor<1, Int>> {
    let word = |four: &[u8]| {
        let mut word = [0; 4];
        word[..four.len()].copy_from_slice(four);
        i32::from_le_bytes(word)
    };
    let words: Vec<i32> = bytes.chunks(4).map(word).collect();
    let len = words.len();
    int(Tensor::from_data(TensorData::new(words, [len]), (device, DType::I32)))
}

fn floats(values: Vec<f32>, device: &Device) -> Param<Tensor<1>> {
    let len = values.len();
    frozen(Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32)))
}

impl PackedWeight {
    /// Packs `weight` [O, C] on its device.
    pub fn quantize(weight: Tensor<2>, format: Format) -> PackedWeight {
        let ([rows, columns], device) = (weight.dims(), weight.device());
        // packed weights are constants to the tape
        let weight = ours(if weight.is_autodiff() { weight.inner() } else { weight });
        let nf4 = |weight| {
            let (codes, absmax) = Dispatch::nf4_quantize(weight);
            (int(Tensor::from_dispatch(codes)), Tensor::<1>::from_dispatch(absmax))
        };
        let parts = match format {
            Format::Nf4 => {
                let (codes, absmax) = nf4(weight);
                Parts::Nf4(Nf4Parts { codes, absmax: frozen(absmax) })
            }
            Format::Nf4Double => {
                let (codes, absmax) = nf4(weight);
                let absmax = absmax.into_data().try_to_vec::<f32>().expect("scales are f32");
                let (qabsmax, nested, offset) = nf4::double_quantize(&absmax);
                Parts::Nf4Double(Nf4DoubleParts {
                    codes,
                    qabsmax: words(&qabsmax, &device),
                    nested: floats(nested, &device),
                    map: floats(dyn8::dynamic_map(true).to_vec(), &device),
                    offset: floats(vec![offset], &device),
                    known: Known::default(),
                })
            }
            Format::Int8 => {
                let (codes, scb) = Dispatch::int8_quantize(weight);
                let (codes, scb) = (int(Tensor::from_dispatch(codes)), frozen(Tensor::from_dispatch(scb)));
                Parts::Int8(Int8Parts { codes, scb })
            }
        };
        PackedWeight { parts, rows, columns }
    }

    /// The weight `name` of a bitsandbytes checkpoint in 4 or 8 bits, as it is there: nothing is quantized again.
    pub fn from_safetensors(tensors: &Tensors, name: &str, shape: [usize; 2], device: &Device) -> Result<PackedWeight> {
        let parts = match quantized::find(tensors, name, &shape)? {
            Stored::Nf4(q) => {
                let codes = words(q.codes, device);
                match &q.nested {
                    None => Parts::Nf4(Nf4Parts { codes, absmax: floats(f32s(q.absmax), device) }),
                    Some(Nested { absmax, map, offset }) => Parts::Nf4Double(Nf4DoubleParts {
                        codes,
                        qabsmax: words(q.absmax, device),
                        nested: floats(f32s(absmax.bytes), device),
                        map: floats(f32s(map.bytes), device),
                        offset: floats(vec![*offset], device),
                        known: Known::default(),
                    }),
                }
            }
            Stored::Int8(q) => {
                Parts::Int8(Int8Parts { codes: words(q.codes, device), scb: floats(f32s(q.scb), device) })
            }
            _ => {
                let what = "is not in bitsandbytes' 4 or 8 bits: load it as a `Linear`, and pack that";
                return Err(Error::content(tensors.path(), name, what));
            }
        };
        Ok(PackedWeight { parts, rows: shape[0], columns: shape[1] })
    }

    /// O, C.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// x [N, C] · Wᵀ. For the backward the packed weight is kept, and no other.
    pub fn linear(&self, x: Tensor<2>) -> Tensor<2> {
        assert_eq!(x.dims()[1], self.columns, "x has as many channels as the weight");
        Tensor::from_dispatch(Dispatch::packed_linear(ours(x), self.packed(), self.dims()))
    }

    /// W [O, C] in floats.
    pub fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        // no op on the tape, so without it
        Tensor::from_dispatch(Dispatch::unpack(self.valid().packed(), self.dims(), dtype.into()))
    }

    fn packed(&self) -> Packed<Dispatch> {
        let int = |param: &Param<Tensor<1, Int>>| ours(param.val());
        let float = |param: &Param<Tensor<1>>| ours(param.val());
        match &self.parts {
            Parts::Nf4(p) => Packed::Nf4 { codes: int(&p.codes), absmax: float(&p.absmax) },
            Parts::Nf4Double(p) => Packed::Nf4Double {
                codes: int(&p.codes),
                qabsmax: int(&p.qabsmax),
                nested: float(&p.nested),
                map: float(&p.map),
                offset: p.known.value(&p.offset),
            },
            Parts::Int8(p) => Packed::Int8 { codes: int(&p.codes), scb: float(&p.scb) },
        }
    }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    luthier::dtype::DType::F32.decode(bytes)
}
