//! MXFP4 as ggml has it: the byte of the scale, then 16 bytes of codes, value i in a low half and i + 16 in a high one; a folder
//! has codes of neighbours in a byte, and the scales in a tensor of their own.
pub use crate::ops::mxfp4::BLOCK;

/// Bytes of a block in a GGUF file.
const BYTES: usize = 1 + BLOCK / 2;

/// Code i of a block whose bytes have neighbours.
fn code(codes: &[u8], i: usize) -> u8 {
    codes[i / 2] >> (i % 2 * 4) & 15
}

/// Blocks from their codes and scales.
pub fn join(codes: &[u8], scales: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(scales.len() * BYTES);
    for (codes, scale) in codes.chunks(BLOCK / 2).zip(scales) {
        out.push(*scale);
        out.extend((0..BLOCK / 2).map(|i| code(codes, i) | code(codes, i + BLOCK / 2) << 4));
    }
    out
}

/// The reverse: codes and scales of whole blocks, at the end of what is there.
pub fn split(blocks: &[u8], codes: &mut Vec<u8>, scales: &mut Vec<u8>) {
    for block in blocks.chunks_exact(BYTES) {
        scales.push(block[0]);
        let of = |i: usize| block[1 + i % (BLOCK / 2)] >> (i / (BLOCK / 2) * 4) & 15;
        codes.extend((0..BLOCK / 2).map(|i| of(2 * i) | of(2 * i + 1) << 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_to_their_halves_and_back() {
        // values 0, 1, .. 15, 15, .. 1, 0 by their codes
        let values: Vec<u8> = (0..16).chain((0..16).rev()).collect();
        let codes: Vec<u8> = values.chunks(2).map(|two| two[0] | two[1] << 4).collect();
        let blocks = join(&codes, &[127]);
        assert_eq!((blocks.len(), blocks[0], blocks[1], blocks[16]), (17, 127, 0xf0, 0x0f));
        let (mut again, mut scales) = (Vec::new(), Vec::new());
        split(&blocks, &mut again, &mut scales);
        assert_eq!((again, scales), (codes, vec![127]));
    }
}
