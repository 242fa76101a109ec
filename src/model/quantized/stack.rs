//! Quantized weights of one shape, one below the other: the experts of a layer, as files hold them one by one.
use super::{Nested, Stored, StoredGguf, StoredInt8, StoredNf4, upload};
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::linear::{GgufWeight, Int8Weight, Nf4Scales, Nf4Weight, Weight};
use crate::ops::{dyn8, nf4};

/// All of them as one weight; `None` where they have no such form: floats among them, several formats, or blocks that would go
/// over an edge.
pub fn stack(b: &dyn Backend, all: &[Stored]) -> Result<Option<Weight>> {
    let nf4s = all.iter().map(|s| if let Stored::Nf4(q) = s { Some(q) } else { None }).collect::<Option<Vec<_>>>();
    if let Some(all) = nf4s.filter(|all| all.iter().all(|q| q.P.is_multiple_of(nf4::BLOCK))) {
        return stack_nf4(b, &all).map(Weight::Nf4).map(Some);
    }
    let int8s = all.iter().map(|s| if let Stored::Int8(q) = s { Some(q) } else { None }).collect::<Option<Vec<_>>>();
    // parts of a buffer begin at whole words
    if let Some(all) = int8s.filter(|all| all.iter().all(|q| (q.O * q.C).is_multiple_of(4))) {
        return stack_int8(b, &all).map(Weight::Int8).map(Some);
    }
    let ggufs = all.iter().map(|s| if let Stored::Gguf(q) = s { Some(q) } else { None }).collect::<Option<Vec<_>>>();
    match ggufs.as_deref() {
        Some([first, rest @ ..]) if rest.iter().all(|q| q.format == first.format) => {
            stack_gguf(b, first, rest).map(Weight::Gguf).map(Some)
        }
        _ => Ok(None),
    }
}

/// Parts of equal length in one buffer.
fn joined<'a>(b: &dyn Backend, parts: impl ExactSizeIterator<Item = &'a [u8]>, each: usize) -> Result<Buf> {
    let all = b.alloc(parts.len() * each, DType::U8)?;
    for (i, part) in parts.enumerate() {
        b.upload(&mut all.view(i * each, each), part)?;
    }
    Ok(all)
}

/// Each of them has an offset of its own for its scales, so these become plain f32: the same values, at 4.5 bits a weight.
fn stack_nf4(b: &dyn Backend, all: &[&StoredNf4]) -> Result<Nf4Weight> {
    let each = all.first().map_or(0, |q| q.P / 2);
    let codes = joined(b, all.iter().map(|q| q.codes), each)?;
    let scales: Vec<f32> = all.iter().flat_map(|q| absmax(q)).collect();
    Ok(Nf4Weight { codes, scales: Nf4Scales::Single { absmax: b.alloc_f32(&scales, DType::F32)? } })
}

fn absmax(q: &StoredNf4) -> Vec<f32> {
    let Some(Nested { absmax, map, offset }) = &q.nested else { return DType::F32.decode(q.absmax) };
    let (nested, map) = (DType::F32.decode(absmax.bytes), DType::F32.decode(map.bytes));
    let scale = |(i, code): (usize, &u8)| map[*code as usize] * nested[i / dyn8::BLOCK] + offset;
    q.absmax.iter().enumerate().map(scale).collect()
}

/// Joined before they are uploaded, for blocks have odd numbers of bytes.
fn stack_gguf(b: &dyn Backend, first: &StoredGguf, rest: &[&StoredGguf]) -> Result<GgufWeight> {
    let bytes = [first].into_iter().chain(rest.iter().copied()).flat_map(|q| q.bytes.iter());
    let blocks = upload(b, &bytes.copied().collect::<Vec<u8>>(), DType::U8)?;
    Ok(GgufWeight { format: first.format, blocks })
}

fn stack_int8(b: &dyn Backend, all: &[&StoredInt8]) -> Result<Int8Weight> {
    let each = all.first().map_or(0, |q| q.O * q.C);
    let codes = joined(b, all.iter().map(|q| q.codes), each)?;
    let scb: Vec<u8> = all.iter().flat_map(|q| q.scb).copied().collect();
    Ok(Int8Weight { codes, scb: upload(b, &scb, DType::F32)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::ops::gguf::Packed;

    /// 34 bytes a block, so that the second part begins at no whole word.
    #[test]
    fn ggml_blocks_are_stacked_if_they_are_of_one_format() {
        let b = Cpu::new();
        let of = |format: Packed, P, bytes: &[u8]| {
            Stored::Gguf(StoredGguf { format, P, bytes: bytes.to_vec().into(), turned: None })
        };
        let (first, second): (Vec<u8>, Vec<u8>) = ((0..34).collect(), (34..68).collect());
        let Some(Weight::Gguf(q)) = stack(&b, &[of(Packed::Q8_0, 32, &first), of(Packed::Q8_0, 32, &second)]).unwrap()
        else {
            panic!("blocks of one format")
        };
        assert_eq!(b.download(&q.blocks).unwrap(), (0..68).collect::<Vec<u8>>());
        assert!(stack(&b, &[of(Packed::Q8_0, 32, &first), of(Packed::Q4_0, 32, &second[..18])]).unwrap().is_none());
    }
}
