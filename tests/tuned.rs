//! Products by the algorithm that is fastest on the device, next to those by the first that cuBLASLt proposes.
//!
//! `LUTHIER_REQUIRE=cuda cargo test --release --test tuned -- --nocapture`
#![cfg(feature = "cuda")]
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= limit)`, so that NaN fails")]
use luthier::backend::Backend;
use luthier::backend::cuda::Cuda;
use luthier::dtype::DType::{self, Bf16, F32};
use luthier::ops::matmul::MatMul;
use std::time::Instant;

fn open() -> Option<Cuda> {
    match Cuda::new(0) {
        Ok(cuda) => Some(cuda),
        Err(e) if std::env::var("LUTHIER_REQUIRE").is_ok_and(|r| r.contains("cuda")) => panic!("{e}"),
        Err(e) => {
            eprintln!("cuda: skipped, {e}");
            None
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Product {
    Nt,
    NtAdd,
    NnAdd,
    TnAdd,
}

/// The product after two calls on noise that starts from noise, and the microseconds of a call.
fn run(cuda: &Cuda, product: Product, [I, J, Q]: [u32; 3], out_dtype: DType) -> (Vec<f32>, f64) {
    let b: &dyn Backend = cuda;
    let noise = |len: u32, by: u32| -> Vec<f32> {
        (0..len).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_mul(by | 1) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
    };
    let x = b.alloc_f32(&noise(I * Q, 3), Bf16).unwrap();
    let y = b.alloc_f32(&noise(J * Q, 5), Bf16).unwrap();
    let mut out = b.alloc_f32(&noise(I * J, 7), out_dtype).unwrap();
    let (ld_a, ld_b) = match product {
        Product::Nt | Product::NtAdd => (Q, Q),
        Product::NnAdd => (Q, J),
        Product::TnAdd => (I, J),
    };
    let p = MatMul { I, J, Q, ld_out: J, ld_a, ld_b, alpha: 0.5 };
    let mut call = || match product {
        Product::Nt => b.matmul_nt(&mut out, &x, &y, &p),
        Product::NtAdd => b.matmul_nt_add(&mut out, &x, &y, &p),
        Product::NnAdd => b.matmul_nn_add(&mut out, &x, &y, &p),
        Product::TnAdd => b.matmul_tn_add(&mut out, &x, &y, &p),
    };
    call().unwrap();
    call().unwrap();
    b.sync().unwrap();
    let values = b.download_f32(&out).unwrap();
    const CALLS: u32 = 20;
    let mut call = || match product {
        Product::Nt => b.matmul_nt(&mut out, &x, &y, &p),
        Product::NtAdd => b.matmul_nt_add(&mut out, &x, &y, &p),
        Product::NnAdd => b.matmul_nn_add(&mut out, &x, &y, &p),
        Product::TnAdd => b.matmul_tn_add(&mut out, &x, &y, &p),
    };
    let start = Instant::now();
    (0..CALLS).for_each(|_| call().unwrap());
    b.sync().unwrap();
    let us = start.elapsed().as_secs_f64() * 1e6 / CALLS as f64;
    [x, y, out].into_iter().for_each(|buf| b.free(buf));
    (values, us)
}

/// Thin products of adapters, and those of an 8B model's layers. Trying algorithms must add nothing to what is added to.
#[test]
fn the_fastest_algorithm_computes_the_same_product_and_is_found_again() {
    let (Some(first), Some(tuned), Some(again)) = (open(), open(), open()) else { return };
    [&tuned, &again].into_iter().for_each(|cuda| cuda.set_deterministic(false));
    let mut failures = Vec::new();
    for (product, sizes, out) in [
        (Product::Nt, [4096, 16, 4096], Bf16),
        (Product::NtAdd, [4096, 14336, 16], Bf16),
        (Product::NnAdd, [4096, 4096, 16], Bf16),
        (Product::TnAdd, [16, 4096, 4096], F32),
        (Product::Nt, [4096, 4096, 4096], Bf16),
        (Product::NnAdd, [4096, 4096, 14336], Bf16),
        (Product::TnAdd, [1024, 4096, 4096], F32),
    ] {
        let ((want, us_first), (got, us_tuned)) = (run(&first, product, sizes, out), run(&tuned, product, sizes, out));
        let error: f64 = got.iter().zip(&want).map(|(g, w)| (*g as f64 - *w as f64).powi(2)).sum();
        let error = error / want.iter().map(|w| (*w as f64).powi(2)).sum::<f64>();
        let same = run(&again, product, sizes, out).0 == got;
        println!("{product:?} {sizes:?}: first {us_first:.1} us, fastest {us_tuned:.1} us, differ by {error:.0e}");
        if !(error <= 3e-5) || !same {
            failures.push(format!("{product:?} {sizes:?}: {error:e}, the same again: {same}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
