//! What the stamped methods promise, through `&dyn Backend`: every backend checks a call before it runs it.
use super::*;
use luthier::backend::{Backend, Buf, Launch, Scope, cpu::Cpu};
use luthier::dtype::DType::{self, Bf16, F16, F32, U8, U32};
use luthier::error::{Error, OpError};
use luthier::ops::attention::Attention;
use luthier::ops::bias::Bias;
use luthier::ops::embedding::Embedding;
use luthier::ops::nf4::Nf4;
use luthier::ops::residual::Residual;
use luthier::ops::rmsnorm::{RmsNorm, RmsNormResidual};
use luthier::ops::rope::Rope;

const NORM: RmsNorm = RmsNorm { N: 4, C: 8, eps: 1e-5, shift: 0.0 };
const BIAS: Bias = Bias { N: 5, O: 7, ld_out: 8 };

fn bufs<const K: usize>(b: &dyn Backend, of: [(usize, DType); K]) -> [Buf; K] {
    of.map(|(len, dtype)| b.alloc(len, dtype).unwrap())
}

fn text<T>(result: Result<T, Error>) -> String {
    result.map(|_| ()).expect_err("a wrong call").to_string()
}

#[test]
fn an_error_names_op_argument_wanted_and_got() {
    on_devices(|devices| {
        for b in devices.iter().map(|d| &*d.backend) {
            let [mut out, mut rstd, inp, weight] = bufs(b, [(32, F32), (4, F32), (30, F32), (8, F32)]);
            let e = text(b.rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, &NORM));
            assert_eq!(e, "rmsnorm_forward: `inp` must be [N, C] = 32 elements (N=4, C=8), got 30");

            let [mut codes, mut absmax, inp] = bufs(b, [(33, U8), (1, F32), (65, F32)]);
            let e = text(b.nf4_quantize(&mut codes, &mut absmax, &inp, &Nf4 { P: 65 }));
            assert_eq!(e, "nf4_quantize: `absmax` must be [ceil(P, 64)] = 2 elements (P=65), got 1");

            let [mut out, bias] = bufs(b, [(39, F32), (7, F32)]);
            let e = text(b.bias_forward(&mut out, &bias, &BIAS));
            assert_eq!(e, "bias_forward: `out` must be [N, O; ld_out] = 40 elements (N=5, O=7, ld_out=8), got 39");
            let e = text(b.bias_forward(&mut out, &bias, &Bias { ld_out: 6, ..BIAS }));
            assert_eq!(e, "bias_forward: `out` has rows of 7, but a row stride of 6");
        }
    });
}

#[test]
fn a_type_is_one_of_the_rows() {
    let cpu: &dyn Backend = &Cpu::new();
    let p = Embedding { N: 2, V: 3, C: 4, scale: 1.0 };
    let [mut out, ids, weight, floats] = bufs(cpu, [(8, F32), (2, U32), (12, Bf16), (2, F32)]);
    cpu.embedding_forward(&mut out, &ids, &weight, &p).unwrap();
    let e = text(cpu.embedding_forward(&mut out, &floats, &weight, &p));
    assert_eq!(e, "embedding_forward: `ids` must hold uint32, got float32");
    let [bytes] = bufs(cpu, [(12, U8)]);
    let e = text(cpu.embedding_forward(&mut out, &ids, &bytes, &p));
    assert_eq!(e, "embedding_forward: `weight` must hold float32, float16 or bfloat16, got uint8");
    // a statistic is always f32
    let [mut out, mut rstd, inp, weight] = bufs(cpu, [(32, F16), (4, F16), (32, F16), (8, F16)]);
    let e = text(cpu.rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, &NORM));
    assert_eq!(e, "rmsnorm_forward: `rstd` must hold float32, got float16");
}

#[test]
fn rows_of_16_bit_values_start_at_words() {
    let cpu: &dyn Backend = &Cpu::new();
    for (dtype, name) in [(F16, "float16"), (Bf16, "bfloat16")] {
        let [mut out, bias] = bufs(cpu, [(35, dtype), (7, dtype)]);
        let e = text(cpu.bias_forward(&mut out, &bias, &Bias { ld_out: 7, ..BIAS }));
        let want = format!(
            "bias_forward: `out` is {name} with a row stride of 7; 16-bit rows must be even (pad them, or use float32)"
        );
        assert_eq!(e, want);
        // one row, and rows of f32, may be odd
        let [mut row] = bufs(cpu, [(7, dtype)]);
        cpu.bias_forward(&mut row, &bias, &Bias { N: 1, O: 7, ld_out: 7 }).unwrap();
        let [mut wide] = bufs(cpu, [(35, F32)]);
        cpu.bias_forward(&mut wide, &bias, &Bias { ld_out: 7, ..BIAS }).unwrap();
    }
}

#[test]
fn what_is_written_is_shared_with_nothing() {
    let cpu: &dyn Backend = &Cpu::new();
    let [slab] = bufs(cpu, [(80, F32)]);
    let p = Residual { P: 35, scale: 1.0 };
    let (mut out, a, b, beside) = (slab.view(0, 35), slab.view(34, 35), slab.view(35, 35), slab.view(35, 35));
    let e = text(cpu.residual_forward(&mut out, &a, &b, &p));
    assert_eq!(e, "residual_forward: `out` is written, but shares memory with `a`");
    // what is only read may be shared
    cpu.residual_forward(&mut out, &b, &beside, &p).unwrap();
    let (mut dinp, mut same) = (slab.view(0, 32), slab.view(0, 4));
    let [inp, weight] = bufs(cpu, [(32, F32), (8, F32)]);
    let e = text(cpu.rmsnorm_forward(&mut dinp, &mut same, &inp, &weight, &NORM));
    assert_eq!(e, "rmsnorm_forward: `out` is written, but shares memory with `rstd`");
}

#[test]
fn an_argument_is_there_exactly_when_the_row_wants_it() {
    let cpu: &dyn Backend = &Cpu::new();
    let [out, bias] = bufs(cpu, [(40, F32), (7, F32)]);
    let params = bytemuck::bytes_of(&BIAS);
    Launch::new(Op::bias_forward, &[Some(&out), Some(&bias)], params).map(|_| ()).unwrap();
    let Err(Error::Op { op: "bias_forward", arg: "bias", kind }) =
        Launch::new(Op::bias_forward, &[Some(&out), None], params)
    else {
        panic!("the bias is absent")
    };
    assert_eq!(kind, OpError::Presence { want: true });
    assert_eq!(kind.to_string(), "is wanted, but absent");
}

#[test]
fn params_may_not_contradict_themselves() {
    let cpu: &dyn Backend = &Cpu::new();
    let p = Rope { N: 1, H: 1, D: 3, A: 2, T: 1, ld_x: 3, interleaved: 0 };
    let [mut x, table, positions] = bufs(cpu, [(3, F32), (3, F32), (1, U32)]);
    let e = text(cpu.rope_forward(&mut x, &table, &positions, &p));
    assert!(e.contains("D must be even, got Rope { N: 1, H: 1, D: 3"), "{e}");

    let p = Attention { N: 1, T: 1, H: 3, K: 2, D: 2, ld_q: 6, ld_k: 4, ld_v: 4, scale: 1.0, softcap: 0.0 };
    let [mut out, mut lse, q, k, v, span] = bufs(cpu, [(6, F32), (3, F32), (6, F32), (4, F32), (4, F32), (2, U32)]);
    let e = text(cpu.attention_forward(&mut out, &mut lse, &q, &k, &v, &span, &p));
    assert!(e.contains("must be a multiple of the kv heads K, got Attention"), "{e}");
}

#[test]
fn what_is_stored_is_what_the_dtype_can_hold() {
    on_devices(|devices| {
        for d in devices {
            let b = &*d.backend;
            let inp = b.alloc_f32(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 0.3, f32::NAN], F32).unwrap();
            let mut out = b.alloc(4, Bf16).unwrap();
            b.cast(&mut out, &inp).unwrap();
            let out = b.download_f32(&out).unwrap();
            assert!(out[..3] == [1.0, 1.015625, 0.30078125] && out[3].is_nan(), "{}: ties to even: {out:?}", d.name);
        }
    });
}

#[test]
fn memory_starts_as_zeros_is_copied_and_counted() {
    on_devices(|devices| {
        for d in devices {
            let b = &*d.backend;
            let before = b.memory().used;
            let [mut to, mut from] = bufs(b, [(1000, Bf16), (1000, Bf16)]);
            assert_eq!(b.download_f32(&to).unwrap(), [0.0; 1000], "{}", d.name);
            assert!(
                b.memory().used >= before + 4000 && b.memory().peak >= b.memory().used,
                "{}: {:?}",
                d.name,
                b.memory()
            );
            let values: Vec<f32> = (0..1000).map(|i| (i % 256) as f32).collect();
            b.upload_f32(&mut from, &values).unwrap();
            b.copy(&mut to, &from).unwrap();
            assert_eq!(b.download_f32(&to).unwrap(), values, "{}", d.name);
            // a view is the same memory
            b.fill(&mut to.view(10, 20), -1.0).unwrap();
            let got = b.download_f32(&to).unwrap();
            let want: Vec<f32> = (0..1000).map(|i| if (10..30).contains(&i) { -1.0 } else { values[i] }).collect();
            assert_eq!(got, want, "{}", d.name);
            b.sync().unwrap();
            b.free(to);
            b.free(from);
            let e = text(b.upload(&mut b.alloc(3, F32).unwrap(), &[0; 11]));
            assert!(e.contains("12 bytes wanted, 11 given"), "{}: {e}", d.name);
        }
    });
}

#[test]
fn calls_run_in_order() {
    on_devices(|devices| {
        for d in devices {
            let b = &*d.backend;
            let p = Residual { P: 3001, scale: 1.0 };
            let [mut sum, mut other] = bufs(b, [(3001, F32), (3001, F32)]);
            let one = b.alloc_f32(&vec![1.0; 3001], F32).unwrap();
            for _ in 0..600 {
                b.residual_forward(&mut other, &sum, &one, &p).unwrap();
                b.residual_forward(&mut sum, &other, &one, &p).unwrap();
            }
            assert_eq!(b.download_f32(&sum).unwrap(), vec![1200.0; 3001], "{}", d.name);
            [sum, other, one].into_iter().for_each(|buf| b.free(buf));
        }
    });
}

/// What the forward has made by one op, the backward makes again by the other.
#[test]
fn the_norm_of_a_sum_is_that_of_the_sum_bit_for_bit() {
    on_devices(|devices| {
        for (d, dtype) in devices.iter().flat_map(|d| [F32, F16, Bf16].map(|dtype| (d, dtype))) {
            for (N, C) in
                [(5, 66), (9, 1024), (7, 1288), (6, 2048), (5, 2056), (70, 4096), (3, 4104), (3, 8192), (2, 16384)]
            {
                let b = &*d.backend;
                let (n, c) = (N as usize, C as usize);
                let noise = |len: usize, seed: usize| {
                    let values = (0..len).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.5 - 1.0);
                    b.alloc_f32(&values.collect::<Vec<_>>(), dtype).unwrap()
                };
                let [x, y, weight] = [noise(n * c, 1), noise(n * c, 2), noise(c, 3)];
                let [mut out, mut again, mut sum] = bufs(b, [(n * c, dtype), (n * c, dtype), (n * c, dtype)]);
                let [mut rstd, mut rstd_again] = bufs(b, [(n, F32), (n, F32)]);
                let p = RmsNormResidual { N, C, eps: 1e-5, shift: 0.0, scale: 0.375 };
                b.rmsnorm_residual_forward(&mut out, &mut rstd, &mut sum, &x, &y, &weight, &p).unwrap();
                let p = RmsNorm { N, C, eps: 1e-5, shift: 0.0 };
                b.rmsnorm_forward(&mut again, &mut rstd_again, &sum, &weight, &p).unwrap();
                let same = |a: &Buf, b_: &Buf| b.download(a).unwrap() == b.download(b_).unwrap();
                assert!(same(&rstd, &rstd_again) && same(&out, &again), "{} {dtype:?} {N} x {C}", d.name);
                [x, y, weight, out, again, sum, rstd, rstd_again].into_iter().for_each(|buf| b.free(buf));
            }
        }
    });
}

#[test]
fn the_same_call_twice_gives_the_same_bits() {
    let p = RmsNorm { N: 700, C: 66, eps: 1e-5, shift: 0.0 };
    let case = Case::new(Op::rmsnorm_backward_weight, p);
    let trial = Trial::new(&case, &case.storages()[0]);
    let again = [on_every_device(&trial), on_every_device(&trial)];
    assert_eq!(again[0], again[1]);
}

#[test]
fn rows_come_from_the_host() {
    on_devices(|devices| {
        for d in devices {
            let b = &*d.backend;
            let (V, C) = (50, 6);
            let values: Vec<f32> = (0..V * C).map(|i| i as f32).collect();
            for dtype in [F32, Bf16] {
                let mut host = b.host_alloc(V * C, dtype).unwrap();
                b.host_upload(&mut host, &dtype.encode(&values)).unwrap();
                // neighbours, again and again, and within a larger buffer; earlier calls on it come first
                let ids = [49, 3, 4, 5, 3, 3, 0];
                let mut x = b.alloc((ids.len() + 4) * C, dtype).unwrap();
                b.fill(&mut x, -1.0).unwrap();
                b.rows_from_host(&mut x.view(2 * C, ids.len() * C), &host, &ids).unwrap();
                let row =
                    |id: &u32| values[*id as usize * C..][..C].iter().map(|v| dtype.round(*v)).collect::<Vec<_>>();
                let ends = vec![-1.0; 2 * C];
                let want = [ends.clone(), ids.iter().flat_map(row).collect(), ends].concat();
                assert_eq!(b.download_f32(&x).unwrap(), want, "{} {dtype:?}", d.name);
                let e = text(b.rows_from_host(&mut x.view(0, 2 * C), &host, &[0, 50]));
                assert!(e.contains("there is no row 50"), "{}: {e}", d.name);
                assert!(b.rows_from_host(&mut x.view(0, 2 * C), &host, &[0, 1, 2, 3, 4]).is_err(), "{}", d.name);
                b.free(x);
                b.host_free(host);
            }
        }
    });
}

#[test]
fn phases_take_turns_in_the_same_memory() {
    on_devices(|devices| {
        for d in devices {
            let b = &*d.backend;
            let before = b.memory();
            let scope = Scope::new(b);
            let phases = [vec![(70, Bf16), (4000, F32)], vec![(3000, F32), (3000, F32), (50, F32)], vec![]];
            let all = scope.by_turns(&phases).unwrap();
            let sizes = |bufs: &[Buf]| bufs.iter().map(|buf| (buf.len(), buf.dtype())).collect::<Vec<_>>();
            assert_eq!(all.iter().map(|bufs| sizes(bufs)).collect::<Vec<_>>(), phases, "{}", d.name);
            let most: u64 =
                [(4000, F32), (3000, F32), (50, F32)].map(|(len, dtype)| b.rules().bytes(len, dtype)).iter().sum();
            assert_eq!(b.memory().by_use.iter().sum::<u64>() - before.by_use.iter().sum::<u64>(), most, "{}", d.name);
            for bufs in &all {
                for (i, buf) in bufs.iter().enumerate() {
                    b.fill(&mut buf.view(0, buf.len()), i as f32 + 1.0).unwrap();
                }
                for (i, buf) in bufs.iter().enumerate() {
                    let want = vec![i as f32 + 1.0; buf.len()];
                    assert_eq!(b.download_f32(buf).unwrap(), want, "{} {i}", d.name);
                }
            }
        }
    });
}

#[test]
fn what_goes_to_the_host_comes_back() {
    on_devices(|devices| {
        for d in devices {
            let b = &*d.backend;
            let (before, host_before) = (b.memory().used, b.memory().host);
            let [mut x, mut y] = bufs(b, [(3000, Bf16), (3000, Bf16)]);
            let host = b.host_alloc(6000, Bf16).unwrap();
            assert!(b.memory().host >= host_before + 12000 && b.memory().used >= before + 12000, "{}", d.name);
            let halves = [host.view(0, 3000), host.view(3000, 3000)];
            // each copy sees what was queued before it, and what comes after waits for it
            for i in 0..20 {
                let [mut half, other] = if i % 2 == 0 {
                    [halves[0].view(0, 3000), halves[1].view(0, 3000)]
                } else {
                    [halves[1].view(0, 3000), halves[0].view(0, 3000)]
                };
                b.fill(&mut x, i as f32).unwrap();
                b.to_host(&mut half, &x).unwrap();
                b.fill(&mut x, -1.0).unwrap();
                b.from_host(&mut y, &other).unwrap();
                b.cast(&mut x, &y).unwrap();
                let want = if i == 0 { 0.0 } else { (i - 1) as f32 };
                assert_eq!(b.download_f32(&x).unwrap(), [want; 3000], "{} {i}", d.name);
            }
            assert_eq!(Bf16.decode(&b.host_download(&host).unwrap())[2999..3001], [18.0, 19.0], "{}", d.name);
            // parts, and ends within a word
            b.host_upload(&mut host.view(10, 4), &Bf16.encode(&[5.0, 6.0, 7.0, 8.0])).unwrap();
            b.fill(&mut y, 2.0).unwrap();
            b.from_host(&mut y.view(100, 3), &host.view(10, 3)).unwrap();
            assert_eq!(b.download_f32(&y).unwrap()[99..104], [2.0, 5.0, 6.0, 7.0, 2.0], "{}", d.name);
            let e = text(b.from_host(&mut y, &host));
            assert!(e.contains("3000 of bfloat16 wanted, 6000 of bfloat16 given"), "{}: {e}", d.name);
            b.free(x);
            b.free(y);
            b.host_free(host);
            assert_eq!((b.memory().used, b.memory().host), (before, host_before), "{}", d.name);

            let mut codes = b.alloc(5, U8).unwrap();
            b.upload(&mut codes, &[1, 2, 3, 4, 5]).unwrap();
            let mut host = b.host_alloc(5, U8).unwrap();
            b.to_host(&mut host, &codes).unwrap();
            assert_eq!(b.host_download(&host).unwrap(), [1, 2, 3, 4, 5], "{}", d.name);
            b.host_upload(&mut host, &[9, 8, 7, 6, 5]).unwrap();
            b.from_host(&mut codes, &host).unwrap();
            assert_eq!(b.download(&codes).unwrap(), [9, 8, 7, 6, 5], "{}", d.name);
            b.free(codes);
            b.host_free(host);
        }
    });
}
