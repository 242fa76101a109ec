use super::*;
use luthier::dtype::DType;
use luthier::io::safetensors::Tensors;
use luthier::ops::gguf::{Blocks32, Blocks256, ThinGguf};
use luthier::ops::{Params, Slice};
use values::{Data, Values};

/// (op, values of a block, its bytes, where its f16 scales are).
const FORMATS: [(Op, u32, usize, &[usize]); 8] = [
    (Op::q4_0_dequantize, 32, 18, &[0]),
    (Op::q4_1_dequantize, 32, 20, &[0, 2]),
    (Op::q5_0_dequantize, 32, 22, &[0]),
    (Op::q5_1_dequantize, 32, 24, &[0, 2]),
    (Op::q8_0_dequantize, 32, 34, &[0]),
    (Op::q4_k_dequantize, 256, 144, &[0, 2]),
    (Op::q5_k_dequantize, 256, 176, &[0, 2]),
    (Op::q6_k_dequantize, 256, 210, &[208]),
];

/// Scales that a model may have: of either sign, zero and subnormal, too. Any byte is a code.
fn scales(bytes: usize, places: &'static [usize]) -> impl Fn(&mut Values) + Send + Sync {
    move |values| {
        let Some(Data::U8(blocks)) = values.get_mut("blocks") else { panic!("blocks are bytes") };
        for (b, block) in blocks.chunks_mut(bytes).enumerate() {
            for place in places {
                let scale = match b % 5 {
                    0 => 0.01 + (b + place) as f32 * 1e-4,
                    1 => -0.3,
                    2 => 2e-6,
                    3 => -5.9604645e-8,
                    _ => 0.0,
                };
                block[*place..place + 2].copy_from_slice(&DType::F16.encode(&[scale]));
            }
        }
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (op, len, bytes, places) in FORMATS {
        for blocks in [1, 2, 3, 7, 33, 131, 1025] {
            let P = blocks * len;
            let case = if len == 32 { Case::new(op, Blocks32 { P }) } else { Case::new(op, Blocks256 { P }) };
            cases.push(case.with("scales", scales(bytes, places)));
        }
    }
    for (format, (_, len, bytes, places)) in FORMATS.into_iter().enumerate() {
        // rows of inp, outputs, blocks of a row, rows of the weight in all, the first of them
        for (N, O, blocks, all, first) in [(1, 1, 1, 1, 0), (3, 18, 2, 21, 3), (9, 34, 3, 40, 6), (2, 5, 9, 5, 0), (1, 33, 17, 34, 1)] {
            let p = ThinGguf { N, O, C: blocks * len, P: all * blocks * bytes as u32, first, format: format as u32 };
            cases.push(Case::new(Op::thin_gguf, p).with("scales", scales(bytes, places)));
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

/// Blocks and what gguf's own Python package makes of them (tests/golden/make_gguf.py).
#[test]
fn blocks_are_ggmls() {
    let golden = Tensors::open(&["tests/golden/gguf/blocks.safetensors".into()]).unwrap();
    for (op, len, bytes, _) in FORMATS {
        let name = op.spec().name.strip_suffix("_dequantize").unwrap();
        let blocks = golden.get(&format!("{name}.blocks")).unwrap();
        let want = golden.get(&format!("{name}.values")).unwrap().to_f32().unwrap();
        assert_eq!((blocks.bytes.len() / bytes * len as usize, want.len() % len as usize), (want.len(), 0), "{name}");
        let mut got = vec![f32::NAN; want.len()];
        let P = want.len() as u32;
        op.reference([Slice::FloatMut(&mut got), Slice::U8(blocks.bytes)], bytemuck::bytes_of(&Blocks32 { P }));
        assert!(want.iter().any(|x| *x != 0.0));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-6), "{name} [{i}]: {got} is not {want}");
        }
    }
}

#[test]
fn parts_of_blocks_are_refused() {
    assert!(Blocks32 { P: 33 }.check().unwrap_err().contains("whole blocks of 32"));
    let thin = ThinGguf { N: 1, O: 2, C: 64, P: 4 * 36, first: 2, format: 0 };
    assert_eq!(thin.check(), Ok(()));
    assert!(ThinGguf { first: 3, ..thin }.check().unwrap_err().contains("within the weight"));
    assert!(ThinGguf { C: 48, ..thin }.check().unwrap_err().contains("whole blocks"));
    assert!(ThinGguf { format: 8, ..thin }.check().unwrap_err().contains("format"));
    assert!(Blocks256 { P: 32 }.check().unwrap_err().contains("whole blocks of 256"));
}
