//! Products in e4m3, and what it takes to come to their operands.
use super::ops::{Line, Ops, random};
use luthier::Result;
use luthier::backend::{Buf, Scope};
use luthier::dtype::DType;
use luthier::ops::fp8::{Fp8, Fp8Quantize};
use luthier::ops::fp8_matmul::Fp8MatMul;

/// Of a layer and its MLP.
pub(super) fn lines(ops: &Ops) -> Vec<Line> {
    let (N, C, F) = (ops.tokens, ops.hidden, ops.hidden * 7 / 2);
    let products = [[N, F, C], [N, C, F], [N, C, C], [N, C / 4, C]];
    let products = products.into_iter().flat_map(|sizes| [false, true].map(|add| product(ops, sizes, add)));
    [quantize(ops, N, C, false), quantize(ops, N, F, true), transpose(F, C)].into_iter().chain(products).collect()
}

/// [N, C] values as codes and scales.
fn packed(s: &Scope<'_>, N: usize, C: usize, dtype: DType) -> Result<(Buf, Buf)> {
    let inp = random(s, N * C, dtype)?;
    let (mut codes, mut scales) = (s.alloc(N * C, DType::U8)?, s.alloc(N, DType::F32)?);
    let p = Fp8Quantize { N: N as u32, C: C as u32, by: 0 };
    s.backend().fp8_quantize(&mut codes, &mut scales, &inp, None, &p)?;
    Ok((codes, scales))
}

fn quantize(ops: &Ops, N: usize, C: usize, scaled: bool) -> Line {
    let dtype = ops.dtype;
    Line {
        name: format!("fp8_quantize{} {N}x{C}", if scaled { " by" } else { "" }),
        bytes: (N * C * (dtype.size() + 1)) as f64,
        flops: 0.0,
        make: Box::new(move |s| {
            let (b, inp, by) = (s.backend(), random(s, N * C, dtype)?, random(s, C, DType::F32)?);
            let (mut codes, mut scales) = (s.alloc(N * C, DType::U8)?, s.alloc(N, DType::F32)?);
            let p = Fp8Quantize { N: N as u32, C: C as u32, by: 0 };
            Ok(Box::new(move || b.fp8_quantize(&mut codes, &mut scales, &inp, scaled.then_some(&by), &p)))
        }),
    }
}

fn transpose(N: usize, C: usize) -> Line {
    Line {
        name: format!("fp8_transpose {N}x{C}"),
        bytes: (2 * N * C) as f64,
        flops: 0.0,
        make: Box::new(move |s| {
            let (b, mut out, inp) = (s.backend(), s.alloc(N * C, DType::U8)?, s.alloc(N * C, DType::U8)?);
            Ok(Box::new(move || b.fp8_transpose(&mut out, &inp, &Fp8 { N: N as u32, C: C as u32 })))
        }),
    }
}

fn product(ops: &Ops, [I, J, Q]: [usize; 3], add: bool) -> Line {
    let dtype = ops.dtype;
    Line {
        name: format!("fp8_matmul{} {I}x{J}x{Q}", if add { "_add" } else { "" }),
        bytes: ((I + J) * Q + I * J * dtype.size() * if add { 2 } else { 1 }) as f64,
        flops: 2.0 * I as f64 * J as f64 * Q as f64,
        make: Box::new(move |s| {
            let ((x, x_scales), (w, w_scales)) = (packed(s, I, Q, dtype)?, packed(s, J, Q, dtype)?);
            let (b, mut out) = (s.backend(), s.alloc(I * J, dtype)?);
            let p = Fp8MatMul { I: I as u32, J: J as u32, Q: Q as u32 };
            Ok(Box::new(move || match add {
                true => b.fp8_matmul_add(&mut out, &x, &x_scales, &w, &w_scales, &p),
                false => b.fp8_matmul(&mut out, &x, &x_scales, &w, &w_scales, &p),
            }))
        }),
    }
}
