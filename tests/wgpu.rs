//! What the parity matrix is too small for: the large tiles of the products, long attention, folded grids, windows of big
//! buffers; and the memory and errors of the wgpu backend. Speeds are printed on the way.
#![cfg(feature = "wgpu")]
#![allow(non_snake_case, reason = "dims are named as in the ops")]
use device::open;
use luthier::backend::cpu::Cpu;
use luthier::backend::dry::Dry;
use luthier::backend::kernel_text::names;
use luthier::backend::wgpu::coop::{self, Operands};
use luthier::backend::wgpu::tune::Tiles;
use luthier::backend::wgpu::{Products, Wgpu, adapters, plan};
use luthier::backend::{Backend, Buf};
use luthier::dtype::DType::{self, Bf16, F16, F32};
use luthier::ops::Op;
use luthier::ops::attention::Attention;
use luthier::ops::dyn8::Dyn8;
use luthier::ops::embedding::Embedding;
use luthier::ops::gradnorm::GradNorm;
use luthier::ops::matmul::MatMul;
use luthier::ops::nf4::Nf4;
use luthier::ops::rmsnorm::RmsNorm;
use luthier::ops::rows::Rows;
use luthier::ops::swiglu::SwiGlu;
use std::time::Instant;

#[path = "support/device.rs"]
mod device;

fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let err: f64 = got.iter().zip(want).map(|(g, w)| square(*g as f64 - *w as f64)).sum();
    err / want.iter().map(|w| square(*w as f64)).sum::<f64>()
}

fn matmul(b: &dyn Backend, op: Op, bufs: [&mut Buf; 3], p: &MatMul) {
    let [out, x, y] = bufs;
    let done = match op {
        Op::matmul_nt => b.matmul_nt(out, x, y, p),
        Op::matmul_nn => b.matmul_nn(out, x, y, p),
        Op::matmul_tn => b.matmul_tn(out, x, y, p),
        Op::matmul_tn_add => b.matmul_tn_add(out, x, y, p),
        other => panic!("{other:?} is not tried here"),
    };
    done.unwrap();
}

fn dense(op: Op, [I, J, Q]: [u32; 3], alpha: f32) -> MatMul {
    let ld_a = if matches!(op, Op::matmul_tn | Op::matmul_tn_add) { I } else { Q };
    let ld_b = if op == Op::matmul_nt { Q } else { J };
    MatMul { I, J, Q, ld_out: J, ld_a, ld_b, alpha }
}

const OPS: [Op; 3] = [Op::matmul_nt, Op::matmul_nn, Op::matmul_tn_add];

/// One product on a backend, after a first run that compiles; the values and the seconds.
fn product(b: &dyn Backend, op: Op, p: &MatMul, dtype: DType) -> (Vec<f32>, f64) {
    let [I, J, Q] = [p.I, p.J, p.Q].map(|d| d as usize);
    let mut a = b.alloc_f32(&noise(I * Q, 1), dtype).unwrap();
    let mut y = b.alloc_f32(&noise(J * Q, 2), dtype).unwrap();
    let mut out = b.alloc_f32(&noise(I * J, 3), F32).unwrap();
    if b.name() == "wgpu" {
        let mut other = b.alloc(I * J, F32).unwrap();
        matmul(b, op, [&mut other, &mut a, &mut y], p);
        b.free(other);
    }
    b.sync().unwrap();
    let start = Instant::now();
    matmul(b, op, [&mut out, &mut a, &mut y], p);
    b.sync().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let values = b.download_f32(&out).unwrap();
    [a, y, out].into_iter().for_each(|buf| b.free(buf));
    (values, seconds)
}

#[test]
fn products_of_every_tile() {
    let Some(wgpu) = open() else { return };
    wgpu.set_products(Products::Plain);
    let hardware = wgpu.report().hardware;
    // I, J, Q; BM, BN of the tile and whether the sum is split
    let mut shapes = vec![
        ([2046, 1022, 50], (128, 128, false)),
        ([2048, 1024, 128], (128, 128, false)),
        ([510, 258, 128], (64, 64, false)),
        ([256, 256, 1040], (64, 64, true)),
        ([130, 100, 200], (32, 32, false)),
        ([1030, 16, 4096], (128, 32, true)),
        ([16, 1030, 600], (32, 128, true)),
        ([16, 1030, 64], (32, 128, false)),
        ([24, 24, 1000], (32, 32, true)),
    ];
    if hardware {
        shapes.extend([
            ([4096, 4096, 4096], (128, 128, false)),
            ([8192, 64, 4096], (64, 64, true)),
            ([64, 4096, 8192], (64, 64, true)),
        ]);
    }
    for (shape, tile) in shapes {
        for op in OPS {
            let p = dense(op, shape, 0.5);
            let [I, J, Q] = shape;
            let plan = plan::plan(op, &names(op.spec().fields, bytemuck::bytes_of(&p)), 0);
            let value = |name| plan.consts.iter().find(|(n, _)| *n == name).unwrap().1;
            assert_eq!((value("BM"), value("BN"), value("SPLIT") == 1), tile, "{shape:?}");
            for dtype in [F32, Bf16] {
                let (want, _) = product(&Cpu::new(), op, &p, dtype);
                let (got, seconds) = product(&wgpu, op, &p, dtype);
                let err = nmse(&got, &want);
                let speed = 2e-9 * I as f64 * J as f64 * Q as f64 / seconds;
                eprintln!("{op:?} {shape:?} {} tile {tile:?}: {speed:.1} GFLOP/s, NMSE {err:.1e}", dtype.name());
                assert!(err <= 1e-11, "{op:?} {shape:?} {dtype:?}: NMSE {err:e}");
            }
        }
    }
}

#[test]
fn the_choice_of_a_large_tile_changes_no_bit() {
    let Some(wgpu) = open() else { return };
    wgpu.set_products(Products::Plain);
    // two parts: one of whole steps, one that ends within a step of any tile
    let shape = [1020, 2046, 523];
    for op in [Op::matmul_nt, Op::matmul_tn_add] {
        let p = dense(op, shape, 0.5);
        let plan = plan::plan(op, &names(op.spec().fields, bytemuck::bytes_of(&p)), 0);
        assert_eq!(plan.extra, [("splits", 2), ("part", 288)]);
        let mut first: Option<Vec<f32>> = None;
        for plain in wgpu.tiles() {
            wgpu.set_tiles(Tiles { plain, ..Tiles::default() });
            let (got, seconds) = product(&wgpu, op, &p, F32);
            eprintln!("{op:?} {shape:?} {:?}: {:.1} ms", plan::LARGE[plain], 1e3 * seconds);
            let same = first.get_or_insert(got.clone()).iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{op:?} {shape:?} {:?}", plan::LARGE[plain]);
        }
    }
}

/// A device with cooperative matrices, and the tiles that fit it.
fn open_coop() -> Option<(Wgpu, Vec<usize>)> {
    let wgpu = open()?;
    let Some(unit) = wgpu.report().matrix_unit else {
        let required = std::env::var("LUTHIER_REQUIRE").is_ok_and(|r| r.contains("coop"));
        assert!(!required, "LUTHIER_REQUIRE names coop, but {} has no cooperative matrices", wgpu.report().name);
        eprintln!("{}: no cooperative matrices", wgpu.report().name);
        return None;
    };
    let fits = |t: &usize| coop::TILES[*t].fits(unit, wgpu.limits());
    let tiles: Vec<usize> = (0..coop::TILES.len()).filter(fits).collect();
    eprintln!("{}: {unit:?}, tiles {tiles:?}", wgpu.report().name);
    Some((wgpu, tiles))
}

/// Products by one of the tiles: a test each, for compiling one takes a driver a minute.
macro_rules! products_on_cooperative_matrices {
    ($($name:ident: $tile:literal),+) => {
        $( #[test] fn $name() { products_by($tile); } )+
        #[test]
        fn every_tile_has_a_test() {
            assert!([$($tile),+].into_iter().eq(0..coop::TILES.len()));
        }
    };
}
products_on_cooperative_matrices!(products_by_tile_0: 0, products_by_tile_1: 1, products_by_tile_2: 2, products_by_tile_3: 3, products_by_tile_4: 4);

fn products_by(tile: usize) {
    let Some((wgpu, tiles)) = open_coop() else { return };
    if !tiles.contains(&tile) {
        eprintln!("tile {tile}: too large for this device");
        return;
    }
    for operands in [Operands::Stored, Operands::Packed] {
        wgpu.set_products(Products::Tile(tile, operands));
        let start = Instant::now();
        let shapes = [[130, 102, 200], [128, 256, 64], [18, 12, 34], [258, 36, 2080], [36, 258, 96]];
        // compiling a big tile takes software minutes: one shape shows its fragments' places
        let fragments = coop::TILES[tile].rm * coop::TILES[tile].rn;
        if fragments > 8 && !wgpu.report().hardware {
            eprintln!("tile {tile}: left to hardware");
            continue;
        }
        let big = fragments > 4 && !wgpu.report().hardware;
        for shape in &shapes[..if big { 1 } else { shapes.len() }] {
            for (op, dtype) in OPS.into_iter().flat_map(|op| [(op, Bf16), (op, F16)]) {
                if big && dtype == F16 {
                    continue;
                }
                let shape = *shape;
                let p = dense(op, shape, 0.5);
                let (want, _) = product(&Cpu::new(), op, &p, dtype);
                let (got, _) = product(&wgpu, op, &p, dtype);
                let err = nmse(&got, &want);
                // a matrix unit may cut off what it adds instead of rounding
                assert!(err <= 1e-10, "tile {tile} {operands:?} {op:?} {shape:?} {dtype:?}: NMSE {err:e}");
            }
        }
        eprintln!("tile {tile} {operands:?} {:?}: {:.1} s", coop::TILES[tile], start.elapsed().as_secs_f64());
    }
}

/// bf16 beyond f16's range on both sides, and values that are no numbers.
#[test]
fn products_on_cooperative_matrices_keep_the_range_of_bf16() {
    let Some((wgpu, tiles)) = open_coop() else { return };
    for operands in [Operands::Stored, Operands::Packed] {
        wgpu.set_products(Products::Tile(tiles[0], operands));
        keeps_the_range(&wgpu);
    }
}

fn keeps_the_range(wgpu: &dyn Backend) {
    let shape = [40, 48, 70];
    let [I, J, Q] = shape.map(|d| d as usize);
    let (a, b) = (noise(I * Q, 1), noise(J * Q, 2));
    let p = dense(Op::matmul_nt, shape, 1.0);
    let run = |on: &dyn Backend, a: &[f32], b: &[f32]| {
        let mut a = on.alloc_f32(a, Bf16).unwrap();
        let mut b = on.alloc_f32(b, Bf16).unwrap();
        let mut out = on.alloc(I * J, F32).unwrap();
        matmul(on, Op::matmul_nt, [&mut out, &mut a, &mut b], &p);
        on.download_f32(&out).unwrap()
    };
    let times = |x: &[f32], s: f32| x.iter().map(|x| x * s).collect::<Vec<_>>();
    let want = run(&Cpu::new(), &a, &b);
    // powers of two change nothing but the exponent
    for (by_a, by_b) in [(100, -100), (-100, 100), (120, -10), (-60, -50), (60, 60), (-110, 80), (0, 0)] {
        let [s, t] = [by_a, by_b].map(|e| 2f32.powi(e));
        let got = run(wgpu, &times(&a, s), &times(&b, t));
        let err = nmse(&times(&times(&got, 1.0 / s), 1.0 / t), &want);
        assert!(err <= 1e-10, "2^{by_a}, 2^{by_b}: NMSE {err:e}");
    }
    assert!(run(wgpu, &vec![0.0; I * Q], &b).iter().all(|x| *x == 0.0));
    // rows of a far below its largest
    let low: Vec<f32> = a.iter().enumerate().map(|(i, x)| if i / Q < 3 { x * 2f32.powi(-24) } else { *x }).collect();
    let (got, want) = (run(wgpu, &low, &b), run(&Cpu::new(), &low, &b));
    let err = nmse(&got[..3 * J], &want[..3 * J]);
    assert!(err <= 3e-5, "small rows: NMSE {err:e}");
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut with = a.clone();
        with[5 * Q + 7] = odd;
        let got = run(wgpu, &with, &b);
        assert!(got[5 * J..6 * J].iter().all(|x| !x.is_finite()), "{odd} in a is lost");
        let others = |x: &[f32]| [&x[..5 * J], &x[6 * J..]].concat();
        assert!(nmse(&others(&got), &others(&run(&Cpu::new(), &a, &b))) <= 1e-10, "{odd} in a spreads");
        let mut with = b.clone();
        with[9 * Q] = odd;
        let got = run(wgpu, &a, &with);
        assert!((0..I).all(|i| !got[i * J + 9].is_finite() && got[i * J + 8].is_finite()), "{odd} in b");
    }
}

/// Causal attention of `N` tokens, forward and backward: out, dq, dk, dv and the seconds.
fn attention(b: &dyn Backend, p: &Attention, dtype: DType) -> (Vec<Vec<f32>>, [f64; 2]) {
    let [N, H, K, D] = [p.N, p.H, p.K, p.D].map(|d| d as usize);
    let new = |len, seed| b.alloc_f32(&noise(len, seed), dtype).unwrap();
    let (q, k, v, dout) = (new(N * H * D, 1), new(N * K * D, 2), new(N * K * D, 3), new(N * H * D, 4));
    let span = b.alloc_u32(&(0..p.N).flat_map(|n| [0, n + 1]).collect::<Vec<_>>()).unwrap();
    let reach = b.alloc_u32(&(0..p.N).flat_map(|j| [j, p.N]).collect::<Vec<_>>()).unwrap();
    let zeros = |len| b.alloc(len, dtype).unwrap();
    let (mut out, mut dq, mut dk, mut dv) = (zeros(N * H * D), zeros(N * H * D), zeros(N * K * D), zeros(N * K * D));
    let (mut lse, mut dot) = (b.alloc(N * H, F32).unwrap(), b.alloc(N * H, F32).unwrap());
    let mut seconds = [0.0; 2];
    // twice, because the first run compiles
    for _ in 0..if b.name() == "wgpu" { 2 } else { 1 } {
        let start = Instant::now();
        b.attention_forward(&mut out, &mut lse, &q, &k, &v, &span, p).unwrap();
        b.sync().unwrap();
        let forward = start.elapsed().as_secs_f64();
        let d = [&mut dq, &mut dk, &mut dv];
        let [dq, dk, dv] = d;
        b.attention_backward(dq, dk, dv, &mut dot, &dout, &out, &lse, &q, &k, &v, &span, &reach, p).unwrap();
        b.sync().unwrap();
        seconds = [forward, start.elapsed().as_secs_f64() - forward];
    }
    ([&out, &dq, &dk, &dv].map(|x| b.download_f32(x).unwrap()).into(), seconds)
}

fn causal(N: u32, H: u32, K: u32, D: u32) -> Attention {
    let (ld_q, ld_k) = (H * D, K * D);
    Attention { N, T: N, H, K, D, ld_q, ld_k, ld_v: ld_k, scale: (D as f32).powf(-0.5), softcap: 0.0 }
}

#[test]
fn long_attention() {
    let Some(wgpu) = open() else { return };
    let mut shapes = vec![(300, 4, 2, 64), (520, 2, 1, 128), (200, 1, 1, 256)];
    if wgpu.report().hardware {
        shapes.push((4096, 16, 4, 128));
    }
    for (N, H, K, D) in shapes {
        let p = causal(N, H, K, D);
        for (dtype, limit) in [(F32, 1e-10), (Bf16, 3e-4)] {
            let (want, _) = attention(&Cpu::new(), &p, dtype);
            let (got, seconds) = attention(&wgpu, &p, dtype);
            let flop = 2.0 * H as f64 * D as f64 * (N as f64).powi(2);
            let [forward, backward] = [flop / seconds[0] * 1e-9, 2.5 * flop / seconds[1] * 1e-9];
            eprintln!("N {N} H {H} D {D} {}: forward {forward:.1}, backward {backward:.1} GFLOP/s", dtype.name());
            for (i, name) in ["out", "dq", "dk", "dv"].into_iter().enumerate() {
                let err = nmse(&got[i], &want[i]);
                assert!(err <= limit, "N {N} H {H} D {D} {dtype:?}: {name}: NMSE {err:e}");
            }
        }
    }
}

#[test]
fn wide_grids_are_folded() {
    let Some(wgpu) = open() else { return };
    // more than 65,535 workgroups of 256
    let len = 65_535 * 256 + 70_001;
    let wgpu: &dyn Backend = &wgpu;
    let mut out = wgpu.alloc(len, F32).unwrap();
    wgpu.fill(&mut out, 2.5).unwrap();
    assert!(wgpu.download_f32(&out).unwrap().iter().all(|x| *x == 2.5));
}

#[test]
fn buffers_beyond_a_binding_are_seen_through_windows() {
    let Some(wgpu) = open() else { return };
    let limit = wgpu.report().max_binding as usize;
    if limit > 1 << 28 {
        eprintln!("a binding of {} MiB: not tried", limit >> 20);
        return;
    }
    let wgpu: &dyn Backend = &wgpu;
    let mut big = wgpu.alloc(limit / 4 + (40 << 18), F32).unwrap();
    wgpu.fill(&mut big, -1.0).unwrap();
    let len = limit / 8 + 12_345;
    let mut want = vec![-1.0; big.len()];
    for offset in [0, 1, big.len() / 3, big.len() - len] {
        let value = offset as f32 + 1.0;
        wgpu.fill(&mut big.view(offset, len), value).unwrap();
        want[offset..][..len].fill(value);
    }
    assert!(wgpu.download_f32(&big).unwrap() == want, "a window was off its place");
}

/// Calls on tensors that a shader sees a part of at a time: the same values as on a device that shows them whole.
#[test]
fn calls_on_large_tensors_are_made_in_parts() {
    let Some(whole) = open() else { return };
    for dtype in [F32, Bf16] {
        let small = Wgpu::with_binding(None, 64 << 10).unwrap();
        let (want, got) = (large(&whole, dtype), large(&small, dtype));
        let dry = Dry::new(small.rules(), None);
        large(&dry, dtype);
        assert_eq!(dry.memory().peak, small.memory().peak, "{}: a rehearsal counts another peak", dtype.name());
        for ((name, want), (_, got)) in want.iter().zip(&got) {
            assert!(want.iter().any(|x| *x != 0.0), "{name}: nothing to compare");
            let err = nmse(got, want);
            let limit = if dtype == F32 { 1e-11 } else { 3e-5 };
            assert!(err <= limit, "{name} {}: NMSE {err:e}", dtype.name());
        }
    }
    // what cannot be made in parts says so
    let small: &dyn Backend = &Wgpu::with_binding(None, 64 << 10).unwrap();
    let p = causal(300, 1, 1, 64);
    let new = |len| small.alloc(len, F32).unwrap();
    let mut d = [new(300 * 64), new(300 * 64), new(300 * 64), new(300)];
    let [dq, dk, dv, dot] = &mut d;
    let (x, lse, span) = (new(300 * 64), new(300), small.alloc(600, DType::U32).unwrap());
    let e = small.attention_backward(dq, dk, dv, dot, &x, &x, &lse, &x, &x, &x, &span, &span, &p).unwrap_err();
    assert!(e.to_string().contains("at once") && e.exit_code() == 69, "{e}");
}

/// Tensors of 200 to 600 KiB: by rows with a stride, by elements, by blocks of 64, sums over rows, a table, a copy.
fn large(b: &dyn Backend, dtype: DType) -> Vec<(&'static str, Vec<f32>)> {
    let (N, F, ld) = (1030usize, 70usize, 140usize);
    let new = |len, seed| b.alloc_f32(&noise(len, seed), dtype).unwrap();
    let zeros = |len, dtype| b.alloc(len, dtype).unwrap();
    let mut all: Vec<(&'static str, Buf)> = Vec::new();
    let (gate, up) = (new(N * ld, 1), new(N * F, 2));
    let mut out = zeros(N * F, dtype);
    let (n, f) = (N as u32, F as u32);
    let p = SwiGlu { N: n, F: f, ld_gate: ld as u32, ld_up: f, act: 0, slope: 1.0, cubic: 0.0 };
    b.swiglu_forward(&mut out, &gate, &up, &p).unwrap();
    all.push(("swiglu", out));
    let (mut normed, mut rstd) = (zeros(N * ld, dtype), zeros(N, F32));
    let p = RmsNorm { N: n, C: ld as u32, eps: 1e-5, shift: 0.0 };
    b.rmsnorm_forward(&mut normed, &mut rstd, &gate, &new(ld, 3), &p).unwrap();
    let mut dweight = zeros(ld, F32);
    b.rmsnorm_backward_weight(&mut dweight, &normed, &gate, &rstd, &p).unwrap();
    all.extend([("rmsnorm", normed), ("rmsnorm_backward_weight", dweight)]);
    let mut product = zeros(N * 80, dtype);
    b.matmul_nt(&mut product, &gate, &new(80 * ld, 4), &dense(Op::matmul_nt, [n, 80, ld as u32], 0.5)).unwrap();
    all.push(("matmul_nt", product));
    let mut grad = zeros(F * ld, F32);
    b.matmul_tn_add(&mut grad, &up, &gate, &dense(Op::matmul_tn_add, [f, ld as u32, n], 0.5)).unwrap();
    all.push(("matmul_tn_add", grad));
    // the second operand alone, what is summed over, and all three
    for (name, op, [I, J, Q]) in [
        ("rows of b", Op::matmul_nt, [6, 2046, 70]),
        ("a sum of nn", Op::matmul_nn, [6, 70, 2046]),
        ("a sum of tn", Op::matmul_tn, [6, 70, 4100]),
        ("rows of out, then of b", Op::matmul_nt, [n, 200, 140]),
        ("rows of out, then a sum", Op::matmul_nn, [n, 200, 140]),
    ] {
        let mut out = zeros((I * J) as usize, dtype);
        let (a, y) = (new((I * Q) as usize, 7), new((J * Q) as usize, 8));
        let p = dense(op, [I, J, Q], 0.5);
        matmul(b, op, [&mut out, &mut a.view(0, a.len()), &mut y.view(0, y.len())], &p);
        all.push((name, out));
    }
    let (P, V, C) = (150_016usize, 3001usize, 50usize);
    let (mut codes, mut absmax, mut values) = (zeros(P / 2, DType::U8), zeros(P / 64, F32), zeros(P, dtype));
    let p = Nf4 { P: P as u32 };
    b.nf4_quantize(&mut codes, &mut absmax, &new(P, 5), &p).unwrap();
    b.nf4_dequantize(&mut values, &codes, &absmax, &p).unwrap();
    let mut copied = zeros(P, dtype);
    b.copy(&mut copied, &values).unwrap();
    let mut squares = zeros(P.div_ceil(4096), F32);
    let p = GradNorm { P: P as u32 };
    b.gradnorm_partial(&mut squares, &values, &p).unwrap();
    all.extend([("nf4", values), ("copy", copied), ("gradnorm", squares)]);
    let map = b.alloc_f32(&(0..256).map(|i| (i as f32 - 128.0) / 128.0).collect::<Vec<_>>(), F32).unwrap();
    let (mut codes, mut absmax, mut values) = (zeros(P, DType::U8), zeros(P.div_ceil(256), F32), zeros(P, dtype));
    b.dyn8_quantize(&mut codes, &mut absmax, &new(P, 11), &map, &Dyn8 { P: P as u32 }).unwrap();
    b.dyn8_dequantize(&mut values, &codes, &absmax, &map, &Dyn8 { P: P as u32 }).unwrap();
    all.push(("dyn8", values));
    let ids: Vec<u32> = (0..N as u32).map(|i| i * 1_237 % V as u32).collect();
    let (ids, mut rows) = (b.alloc_u32(&ids).unwrap(), zeros(N * C, dtype));
    let p = Embedding { N: n, V: V as u32, C: C as u32, scale: 2.0 };
    b.embedding_forward(&mut rows, &ids, &new(V * C, 6), &p).unwrap();
    all.push(("embedding", rows));
    // each row twice, of tokens that do not follow each other
    let some: Vec<u32> = (0..300).map(|i| i % 150 * 19).collect();
    let mut sorted: Vec<u32> = (0..300).collect();
    sorted.sort_by_key(|i| some[*i as usize]);
    let (some, order, mut grad) = (b.alloc_u32(&some).unwrap(), b.alloc_u32(&sorted).unwrap(), new(V * C, 9));
    let p = Embedding { N: 300, V: V as u32, C: C as u32, scale: 0.5 };
    b.embedding_backward(&mut grad, &new(300 * C, 10), &some, &order, &p).unwrap();
    all.push(("embedding_backward", grad));
    // rows of odd length, which share words
    let (mut packed, mut table) = (zeros(N * 51, DType::U8), zeros(V * 51, DType::U8));
    b.upload(&mut table, &(0..V * 51).map(|i| (i * 7 + i / 51) as u8).collect::<Vec<_>>()).unwrap();
    b.rows_gather(&mut packed, &ids, &table, &Rows { N: n, V: V as u32, C: 51 }).unwrap();
    all.push(("rows_gather", packed));
    all.iter().map(|(name, buf)| (*name, b.download_f32(buf).unwrap())).collect()
}

#[test]
fn memory_is_reused_as_zeros_and_counted() {
    let Some(wgpu) = open() else { return };
    let wgpu: &dyn Backend = &wgpu;
    let before = wgpu.memory().used;
    for len in [1, 100, 3_000_000] {
        let held: Vec<Buf> = (0..5).map(|i| wgpu.alloc_f32(&vec![i as f32 + 1.0; len], Bf16).unwrap()).collect();
        for (i, buf) in held.into_iter().enumerate() {
            assert_eq!(wgpu.download_f32(&buf).unwrap()[len - 1], i as f32 + 1.0);
            if i != 2 {
                wgpu.free(buf);
            }
        }
        let again: Vec<Buf> = (0..6).map(|_| wgpu.alloc(len, Bf16).unwrap()).collect();
        assert!(again.iter().all(|buf| wgpu.download(buf).unwrap().iter().all(|byte| *byte == 0)));
        again.into_iter().for_each(|buf| wgpu.free(buf));
    }
    assert!(wgpu.memory().used > before && wgpu.memory().peak > wgpu.memory().used);
    let e = wgpu.alloc(1 << 50, F32).unwrap_err();
    assert_eq!(e.exit_code(), 69, "{e}");
    assert_eq!(wgpu.download_f32(&wgpu.alloc_f32(&[3.0], F32).unwrap()).unwrap(), [3.0]);
}

#[test]
fn adapters_are_found_by_place_and_by_part_of_the_name() {
    let reports = adapters();
    if open().is_none() {
        return;
    }
    let first = &reports[0];
    assert!(reports.iter().is_sorted_by_key(|r| !r.hardware), "hardware comes first");
    for select in ["0", &first.name.to_uppercase()] {
        assert_eq!(Wgpu::new(Some(select)).unwrap().report().name, first.name);
    }
    let Err(e) = Wgpu::new(Some("no such gpu")) else { panic!("an adapter that is not there was opened") };
    assert!(e.to_string().contains(&first.name), "{e}");
}
