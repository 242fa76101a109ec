//! Small sizes around the tiles: one more, one less, primes, aligned and not.
use super::*;
use luthier::ops::*;

/// Noise of the right kind for each argument; outputs too, since every element must be overwritten or added to.
fn case(op: Op, params: &impl bytemuck::NoUninit, float: DType, variant: Option<Variant>) -> Case {
    let params = bytemuck::bytes_of(params).to_vec();
    let (_, extents) = op.extents(&params);
    let mut random = Random(blake3::hash(format!("{op:?}{params:?}{float:?}").as_bytes()).as_bytes()[0] as u64 + 7);
    let mut buffers = Vec::new();
    for (arg, extent) in op.spec().args.iter().zip(&extents) {
        let dtype = match arg.elem {
            Elem::Float => float,
            Elem::F32 => DType::F32,
            Elem::U32 => DType::U32,
            Elem::U8 => DType::U8,
        };
        let bytes: Vec<u8> = match arg.elem {
            Elem::U8 => (0..extent.elements()).map(|_| random.next() as u8).collect(),
            Elem::U32 => vec![0; extent.elements() * 4],
            _ => dtype.encode(&(0..extent.elements()).map(|_| random.normal()).collect::<Vec<_>>()),
        };
        buffers.push((dtype, bytes));
    }
    Case { op, params, variant, buffers }
}

impl Case {
    fn at(&self, name: &str) -> usize {
        self.op.spec().args.iter().position(|a| a.name == name).unwrap()
    }
    fn u32s(mut self, name: &str, values: Vec<u32>) -> Case {
        let at = self.at(name);
        assert_eq!(self.buffers[at].1.len(), values.len() * 4);
        self.buffers[at].1 = bytemuck::cast_slice(&values).to_vec();
        self
    }
    fn floats(mut self, name: &str, values: impl IntoIterator<Item = f32>) -> Case {
        let at = self.at(name);
        let n = self.buffers[at].1.len() / self.buffers[at].0.size();
        let values: Vec<f32> = values.into_iter().take(n).collect();
        assert_eq!(values.len(), n);
        self.buffers[at].1 = self.buffers[at].0.encode(&values);
        self
    }
    /// Codes in e4m3 up to 4, none of NaN.
    fn numbers(mut self, names: &[&str]) -> Case {
        for name in names {
            let at = self.at(name);
            self.buffers[at].1.iter_mut().for_each(|code| *code = (*code & 0x80) | ((*code & 0x7f) % 0x48));
        }
        self
    }
    fn positive(self, names: &[&str]) -> Case {
        names.iter().fold(self, |case, name| {
            let at = case.at(name);
            let values: Vec<f32> =
                case.buffers[at].0.decode(&case.buffers[at].1).iter().map(|x| x.abs() + 0.01).collect();
            case.floats(name, values)
        })
    }
}

/// Spans of packed causal sequences of these lengths with a window, and the reaches that agree with them.
fn spans(lengths: &[u32], window: u32) -> (Vec<u32>, Vec<u32>) {
    let (mut span, mut reach, mut start) = (Vec::new(), Vec::new(), 0);
    for len in lengths {
        for i in 0..*len {
            span.extend([start + (i + 1).saturating_sub(window), start + i + 1]);
            reach.extend([start + i, start + (i + window).min(*len)]);
        }
        start += len;
    }
    (span, reach)
}

#[allow(clippy::too_many_arguments, reason = "a case has that many sides")]
fn attention(
    out: &mut Vec<(String, Case)>,
    lengths: &[u32],
    window: u32,
    [H, K, D]: [u32; 3],
    pad: u32,
    softcap: f32,
    float: DType,
    variant: Option<Variant>,
) {
    let n: u32 = lengths.iter().sum();
    let (mut span, reach) = spans(lengths, window);
    let p = attention::Attention {
        N: n,
        T: n,
        H,
        K,
        D,
        ld_q: H * D + pad,
        ld_k: K * D + pad,
        ld_v: K * D + 2 * pad,
        scale: (D as f32).powf(-0.5),
        softcap,
    };
    let name = |op: Op| {
        format!(
            "{} {lengths:?} w{window} H{H} K{K} D{D} +{pad} {float:?} {:?}",
            op.spec().name,
            variant.map(|v| v.name)
        )
    };
    let backward = case(Op::attention_backward, &p, float, variant).u32s("span", span.clone()).u32s("reach", reach);
    // lse as the forward gives it
    let forward = |like: &Case| {
        let mut f = case(Op::attention_forward, &p, float, None).u32s("span", span.clone());
        for arg in ["q", "k", "v"] {
            let (to, from) = (f.at(arg), like.at(arg));
            f.buffers[to].1 = like.buffers[from].1.clone();
        }
        reference(&f)
    };
    let results = forward(&backward);
    let mut backward = backward;
    let (at_out, at_lse) = (backward.at("out"), backward.at("lse"));
    (backward.buffers[at_out].1, backward.buffers[at_lse].1) = (results[0].clone(), results[1].clone());
    out.push((name(Op::attention_backward), backward));
    // one query that sees nothing
    span[0] = 3.min(n);
    span[1] = span[0];
    out.push((name(Op::attention_forward), case(Op::attention_forward, &p, float, variant).u32s("span", span)));
}

/// Few rows times packed weights, by both kernels.
fn thin(out: &mut Vec<(String, Case)>, float: DType) {
    let sizes = [
        (1, 2, 64, 5, 3),
        (3, 18, 130, 20, 2),
        (1, 33, 128, 40, 7),
        (11, 16, 256, 16, 0),
        (20, 34, 1152, 34, 0),
        (64, 20, 384, 20, 0),
    ];
    for (N, O, C, all, first) in sizes {
        let mut variants = vec![None];
        if float != DType::F32 && C % 128 == 0 {
            variants.extend(THIN.into_iter().filter(|few| N <= few.rows).map(|few| Some(few.variant)));
        }
        for variant in variants {
            let p = thin::Thin { N, O, C, P: all * C, first };
            let double = thin::ThinDouble { N, O, C, P: all * C, first, offset: 0.25 };
            let map = luthier::ops::dyn8::dynamic_map(true);
            let cases = [
                case(Op::thin_nf4, &p, float, variant).positive(&["absmax"]),
                case(Op::thin_nf4_double, &double, float, variant).positive(&["nested"]).floats("map", map),
                case(Op::thin_int8, &p, float, variant).positive(&["scb"]),
            ];
            let name = |case: &Case| format!("{} {p:?} {float:?} {:?}", case.op.spec().name, variant.map(|v| v.name));
            out.extend(cases.into_iter().map(|case| (name(&case), case)));
        }
    }
}

/// What only an engine launches: pages of keys and values, and the next tokens.
fn decoding(out: &mut Vec<(String, Case)>, float: DType) {
    let mut add =
        |op: Op, p: &dyn std::fmt::Debug, case: Case| out.push((format!("{} {p:?} {float:?}", op.spec().name), case));
    for (N, T, C) in [(1, 1, 2), (5, 64, 16), (17, 100, 66), (3, 48, 1030)] {
        let p = pages::Pages { N, T, C };
        let slots = (0..N).map(|n| T - N + n).collect();
        add(Op::pages_write, &p, case(Op::pages_write, &p, float, None).u32s("slots", slots));
    }
    for ([H, K, D], page, softcap) in [
        ([2, 1, 4], 16, 0.0),
        ([6, 1, 64], 16, 5.0),
        ([4, 2, 128], 32, 0.0),
        ([3, 3, 6], 5, 0.0),
        ([2, 2, 256], 16, 0.0),
    ] {
        let spans = [[0, 1], [0, 77], [40, 101], [0, 0], [3, 130u32]];
        let each: Vec<u32> = spans.iter().map(|s| s[1].div_ceil(page).max(1)).collect();
        let starts: Vec<u32> = each.iter().scan(0, |at, count| Some(std::mem::replace(at, *at + count))).collect();
        let P: u32 = each.iter().sum();
        // five queries of a sequence each, or one whose keys are cut into five parts
        for (N, Z) in [(5, 1), (1, 5)] {
            let (T, scale) = ((P + 1) * page, (D as f32).powf(-0.5));
            let p = paged_attention::PagedAttention { N, Z, T, H, K, D, P, page, scale, softcap };
            let starts: Vec<u32> = starts.iter().take(N as usize).copied().collect();
            let case = case(Op::paged_attention_forward, &p, float, None);
            let case = case.u32s("span", spans.concat()).u32s("starts", starts);
            add(Op::paged_attention_forward, &p, case.u32s("pages", (0..P).map(|i| P - i).collect()));
        }
    }
    for (N, Z, H, D) in [(1, 1, 2, 4), (3, 5, 2, 64), (2, 32, 1, 256)] {
        let p = paged_attention::PagedAttentionJoin { N, Z, H, D };
        // of the last query every part sees nothing, of the others some
        let seen =
            |i: u32| if i / (Z * H) == N - 1 && N > 1 || i % 7 == 3 { f32::NEG_INFINITY } else { i as f32 % 5.0 - 2.0 };
        let join = case(Op::paged_attention_join, &p, float, None);
        add(Op::paged_attention_join, &p, join.floats("part_lse", (0..N * Z * H).map(seen)));
    }
    if float != DType::F32 {
        return; // logits are f32
    }
    for (V, pad) in [(1, 0), (77, 3), (1025, 63)] {
        let p = sample::SampleToken { N: 6, V, ld_logits: V + pad };
        let controls = [0., 1., 0., 1., 1., 0., 0.7, 0.9, 0., 3., 1., 0.2, 1., 1., 0., 2., 0.8, 0.05];
        let keys = [[1, 2, 0], [3, 4, 0], [5, 6, 0], [7, 8, 0], [9, 10, 5], [11, 12, 40]].concat();
        let token = case(Op::sample_token, &p, float, None).floats("controls", controls).u32s("keys", keys);
        add(Op::sample_token, &p, token);
        let p = sample::SampleAdjust { N: 3, V, P: 3, ld_logits: V + pad };
        let adjust = case(Op::sample_adjust, &p, float, None).u32s("at", vec![0, 0, 1, V - 1, 2, V / 2]);
        add(Op::sample_adjust, &p, adjust.floats("change", [1.3, -0.5, 0.8, 2.0, 1.0, 0.0]));
        let p = sample::SampleSoftcap { N: 3, V, ld_logits: V + pad, softcap: 2.0 };
        add(Op::sample_softcap, &p, case(Op::sample_softcap, &p, float, None));
    }
}

/// Few rows times weights of their own type.
fn dense(out: &mut Vec<(String, Case)>, float: DType) {
    for (I, J, Q, pad) in [(1, 16, 1152, 0), (8, 34, 256, 8), (13, 8, 128, 0), (32, 20, 640, 16), (64, 16, 384, 0)] {
        for few in DENSE_NARROW.into_iter().chain([DENSE_WIDE]).filter(|few| I <= few.rows) {
            let p = matmul::MatMul { I, J, Q, ld_out: J + pad, ld_a: Q + pad, ld_b: Q + 2 * pad, alpha: 0.5 };
            let name = format!("matmul_nt {p:?} {float:?} {}", few.variant.name);
            out.push((name, case(Op::matmul_nt, &p, float, Some(few.variant))));
        }
    }
}

/// Offsets of E groups of M rows, the second of them empty.
fn offsets(M: u32, E: u32) -> Vec<u32> {
    (0..=E).map(|e| if e == 2 { M / E } else { M * e / E }).collect()
}

fn grouped(out: &mut Vec<(String, Case)>, [M, E, J, Q]: [u32; 4], float: DType, variant: Option<Variant>) {
    let p = grouped::Grouped { M, E, J, Q, alpha: 0.5 };
    for op in Op::ALL.iter().copied().filter(|op| op.spec().file == "grouped") {
        let case = case(op, &p, float, variant).u32s("offsets", offsets(M, E));
        out.push((format!("{} {p:?} {float:?} {:?}", op.spec().name, variant.map(|v| v.name)), case));
    }
}

/// Norms of long rows, at each of the kernel's sizes.
fn long_rows(out: &mut Vec<(String, Case)>, float: DType) {
    for (op, known) in [(Op::rmsnorm_forward, LONG_ROWS), (Op::rmsnorm_backward, LONG_ROWS_BACKWARD)] {
        for ((longest, variant), less) in known.iter().zip([1016, 0, 4088, 0]) {
            let p = rmsnorm::RmsNorm { N: 5, C: longest - less, eps: 0.1, shift: 1.0 };
            let case = case(op, &p, float, Some(*variant));
            out.push((format!("{} {p:?} {float:?} {}", op.spec().name, variant.name), case));
        }
    }
    for ((longest, variant), less) in LONG_ROWS.iter().zip([1016, 0, 4088, 0]) {
        let p = rmsnorm::RmsNormResidual { N: 5, C: longest - less, eps: 0.1, shift: 1.0, scale: 0.5 };
        let case = case(Op::rmsnorm_residual_forward, &p, float, Some(*variant));
        out.push((format!("rmsnorm_residual_forward {p:?} {float:?} {}", variant.name), case));
    }
}

/// An adapter's gradients in one pass.
fn low_rank(out: &mut Vec<(String, Case)>, float: DType) {
    let kernels = [None, Some(JOINED[0].variant), Some(JOINED[1].variant)];
    for (N, O, R, pad) in [(1, 8, 8, 0), (40, 72, 16, 8), (70, 1032, 8, 16)] {
        let p = low_rank::LowRank { N, O, R, ld_dt: R + pad, ld_t: R + 2 * pad, scale: 0.5 };
        for variant in kernels.into_iter().filter(|v| v.is_none() || float != DType::F32) {
            let name = format!("low_rank_backward {p:?} {float:?} {:?}", variant.map(|v| v.name));
            out.push((name, case(Op::low_rank_backward, &p, float, variant)));
        }
    }
}

/// Rows in e4m3 on tensor cores.
fn fp8(out: &mut Vec<(String, Case)>, float: DType) {
    for (I, J, Q) in [(1, 2, 16), (70, 34, 80), (130, 200, 128), (64, 128, 272)] {
        let p = fp8_matmul::Fp8MatMul { I, J, Q };
        for op in [Op::fp8_matmul, Op::fp8_matmul_add] {
            let case = case(op, &p, float, Some(FP8)).numbers(&["a", "b"]).positive(&["a_scales", "b_scales"]);
            out.push((format!("{} {p:?} {float:?} e4m3", op.spec().name), case));
        }
    }
}

/// What gpt-oss has beside what others have.
fn gpt_oss(out: &mut Vec<(String, Case)>, float: DType) {
    for (N, H, D) in [(1, 1, 2), (9, 3, 34), (70, 2, 64), (3, 5, 256)] {
        let p = attention_sink::AttentionSink { N, H, D };
        for op in [Op::attention_sink_forward, Op::attention_sink_backward] {
            out.push((format!("{} {p:?} {float:?}", op.spec().name), case(op, &p, float, None)));
        }
    }
    for (M, E, width) in [(1, 1, 2), (90, 5, 34), (40, 3, 1034)] {
        let rows: Vec<u32> = (0..M).rev().collect();
        for weighted in [0, 1] {
            let p = expert_bias::ExpertBias { M, E, O: width, weighted };
            for op in Op::ALL.iter().copied().filter(|op| op.spec().file == "expert_bias") {
                let case = case(op, &p, float, None).u32s("offsets", offsets(M, E)).u32s("rows", rows.clone());
                out.push((format!("{} {p:?} {float:?}", op.spec().name), case));
            }
        }
        let p = clamped_swiglu::ClampedSwiGlu { M, F: width, alpha: 1.702, limit: 0.8 };
        for op in [Op::clamped_swiglu_forward, Op::clamped_swiglu_backward] {
            let case = case(op, &p, float, None).u32s("rows", rows.clone());
            out.push((format!("{} {p:?} {float:?}", op.spec().name), case));
        }
    }
}

/// What routes tokens to experts and back.
fn mixtures(out: &mut Vec<(String, Case)>, float: DType) {
    for (N, E, S) in [(1, 1, 1), (9, 6, 2), (13, 70, 8)] {
        let experts: Vec<u32> = (0..N * S).map(|i| (i * 7 + i / S) % E).collect();
        let places: Vec<u32> = (0..N * S).rev().collect();
        for norm in [0, 1] {
            let p = router::Router { N, E, S, norm };
            out.push((format!("router_forward {p:?} {float:?}"), case(Op::router_forward, &p, float, None)));
            let distinct = (0..N * S).map(|i| (i % S + i / S) % E).collect();
            let backward = case(Op::router_backward, &p, float, None).u32s("experts", distinct);
            out.push((format!("router_backward {p:?} {float:?}"), backward));
        }
        let p = expert_count::ExpertCount { N, E, S };
        let count = case(Op::expert_count, &p, float, None).u32s("experts", experts.clone());
        out.push((format!("expert_count {p:?} {float:?}"), count));
        let p = balance::Balance { N, E };
        out.push((format!("balance_forward {p:?} {float:?}"), case(Op::balance_forward, &p, float, None)));
        let p = balance::BalanceBackward { N, E, scale: 0.5 };
        out.push((format!("balance_backward {p:?} {float:?}"), case(Op::balance_backward, &p, float, None)));
        let p = route::RouteIndex { N, E, S };
        let index = case(Op::route_index, &p, float, None).u32s("experts", experts);
        out.push((format!("route_index {p:?} {float:?}"), index));
        let p = route::RouteGather { N, S, C: 34 };
        for op in [Op::route_gather_forward, Op::route_gather_backward] {
            let gather = case(op, &p, float, None).u32s("places", places.clone());
            out.push((format!("{} {p:?} {float:?}", op.spec().name), gather));
        }
        let p = routed_swiglu::RoutedSwiGlu { M: N * S, F: 1034 };
        for op in [Op::routed_swiglu_forward, Op::routed_swiglu_backward] {
            let swiglu = case(op, &p, float, None).u32s("rows", places.clone());
            out.push((format!("{} {p:?} {float:?}", op.spec().name), swiglu));
        }
    }
    for (N, E, S, groups, kept) in [(1, 1, 1, 1, 1), (9, 6, 2, 3, 1), (13, 70, 8, 7, 3), (3, 130, 6, 65, 40)] {
        for norm in [0, 1] {
            let p = group_router::GroupRouter { N, E, S, groups, kept, norm, scale: 2.5 };
            out.push((
                format!("group_router_forward {p:?} {float:?}"),
                case(Op::group_router_forward, &p, float, None),
            ));
            let distinct = (0..N * S).map(|i| (i % S + i / S) % E).collect();
            let backward = case(Op::group_router_backward, &p, float, None).u32s("experts", distinct);
            out.push((format!("group_router_backward {p:?} {float:?}"), backward));
        }
    }
    for (N, H, D, A, U, Y) in [(1, 1, 2, 2, 0, 1), (3, 5, 24, 8, 16, 14), (2, 7, 192, 64, 128, 128)] {
        let p = latent::Latent { N, H, D, A, U, Y };
        for op in Op::ALL.iter().copied().filter(|op| op.spec().file == "latent") {
            out.push((format!("{} {p:?} {float:?}", op.spec().name), case(op, &p, float, None)));
        }
    }
    gpt_oss(out, float);
    for sizes in [[1, 1, 2, 4], [70, 3, 34, 18], [150, 4, 70, 66]] {
        grouped(out, sizes, float, None);
    }
    if float != DType::F32 {
        for sizes in [[1, 1, 8, 8], [300, 4, 136, 72], [90, 3, 40, 264]] {
            grouped(out, sizes, float, Some(GROUPED));
        }
    }
}

pub fn all() -> Vec<(String, Case)> {
    let mut out: Vec<(String, Case)> = Vec::new();
    for float in [DType::F32, DType::Bf16, DType::F16] {
        fp8(&mut out, float);
        low_rank(&mut out, float);
        macro_rules! add {
            ($op:ident, $p:expr $(, $change:expr)?) => {{
                let p = $p;
                let case = case(Op::$op, &p, float, None);
                $( let case = $change(case); )?
                out.push((format!("{} {p:?} {float:?}", stringify!($op)), case));
            }};
        }
        for P in [1, 7, 64, 255, 4099, 8200, 20_002] {
            add!(fill_forward, fill::Fill { P, value: 0.3 });
            add!(cast_forward, cast::Cast { P });
            add!(residual_forward, residual::Residual { P, scale: 0.5 });
            add!(residual_backward, residual::Residual { P, scale: 0.5 });
            let moderate = |mut c: Case| {
                let at = c.at("scales");
                c.buffers[at].1.iter_mut().for_each(|x| *x = 120 + *x % 16);
                c
            };
            add!(mxfp4_dequantize, mxfp4::Mxfp4 { P }, moderate);
            add!(nf4_quantize, nf4::Nf4 { P });
            add!(nf4_dequantize, nf4::Nf4 { P });
            add!(nf4_dequantize_double, nf4::Nf4Double { P, offset: 0.1 });
            let (O, C) = (1 + P % 3, 2 * (P % 1100) + 2);
            add!(int8_quantize, int8::Int8 { O, C });
            add!(int8_dequantize, int8::Int8 { O, C }, |c: Case| c.positive(&["scb"]));
            for by in [0, 1] {
                add!(fp8_quantize, fp8::Fp8Quantize { N: O, C, by });
            }
            add!(fp8_transpose, fp8::Fp8 { N: O * 37, C: C / O });
            add!(fp8_dequantize, fp8::Fp8 { N: O, C }, |c: Case| c.numbers(&["codes"]));
            let p = fp8_matmul::Fp8MatMul { I: 1 + P % 70, J: 2 * (P % 40) + 2, Q: 1 + P % 131 };
            add!(fp8_matmul, p, |c: Case| c.numbers(&["a", "b"]).positive(&["a_scales", "b_scales"]));
            add!(fp8_matmul_add, p, |c: Case| c.numbers(&["a", "b"]).positive(&["a_scales", "b_scales"]));
            let signed = |c: Case| c.floats("map", dyn8::dynamic_map(true));
            add!(dyn8_quantize, dyn8::Dyn8 { P }, signed);
            add!(dyn8_dequantize, dyn8::Dyn8 { P }, signed);
            let p = adamw::AdamW {
                P,
                lr: 1e-2,
                beta1: 0.9,
                rest1: 0.1,
                rest2: 0.01,
                beta2: 0.99,
                eps: 1e-8,
                decay: 0.1,
                correct1: 1.3,
                correct2: 1.7,
                ..adamw::AdamW::new(P as usize, 1, 0.0, (0.9, 0.99), 0.0, 0.0)
            };
            add!(adamw_step, p, |c: Case| c.positive(&["v"]));
            add!(adamw_step_8bit, p, |c: Case| c
                .floats("map1", dyn8::dynamic_map(true))
                .floats("map2", dyn8::dynamic_map(false))
                .positive(&["absmax1", "absmax2"]));
            let p = lion::Lion::new(P as usize, 1e-2, (0.9, 0.99), 0.1);
            add!(lion_step, p);
            add!(lion_step_8bit, p, |c: Case| c.floats("map", dyn8::dynamic_map(true)).positive(&["absmax"]));
            for nesterov in [0, 1] {
                let p = sgd::Sgd { rest: 0.8, nesterov, ..sgd::Sgd::new(P as usize, 1, 1e-2, (0.9, 0.2), false, 0.1) };
                add!(sgd_step, p);
                add!(sgd_step_momentum, p);
            }
            add!(muon_step, muon::MuonStep::new(P as usize, 0.99, 0.02));
            add!(gradnorm_partial, gradnorm::GradNorm { P });
            add!(gradnorm_finish, gradnorm::GradNormFinish { P, max_norm: 0.5, unscale: 0.25 }, |c: Case| c
                .positive(&["partial"]));
        }
        for (N, O, pad) in [(1, 8, 0), (3, 34, 2), (70, 2056, 8), (65, 31, 1), (5, 2055, 1)] {
            if float != DType::F32 && (O + pad) % 2 == 1 {
                continue; // 16-bit rows must be even
            }
            add!(bias_forward, bias::Bias { N, O, ld_out: O + pad });
            add!(bias_backward, bias::BiasBackward { N, O, ld_dout: O + pad });
        }
        for (N, O) in [(1, 8), (3, 34), (70, 2056), (65, 30)] {
            let p = dora::Dora { N, O };
            add!(dora_forward, p, |c: Case| c.positive(&["norm"]));
            add!(dora_backward, p, |c: Case| c.positive(&["norm"]));
            add!(dora_backward_weight, p, |c: Case| c.positive(&["norm"]));
        }
        for P in [1, 2049, 4096] {
            let p = dropout::Dropout::new(P, 0.3, 5, 6);
            add!(dropout_forward, p);
            add!(dropout_backward, p);
        }
        for (N, C) in [(1, 8), (3, 34), (2, 2056)] {
            add!(noise_forward, noise::Noise { N, C, seed: 5, stream: 6 });
        }
        for (O, C, R) in [(3, 34, 8), (2, 2056, 24)] {
            let p = dora::DoraNorm { O, C, R, scale: 0.5 };
            add!(dora_norm, p, |c: Case| c.positive(&["wa", "b", "gram"]));
        }
        for (N, F, a, b) in [(1, 8, 0, 0), (3, 34, 2, 4), (7, 2056, 8, 0), (5, 2054, 2, 0)] {
            let act = F % 4;
            let p = swiglu::SwiGlu { N, F, ld_gate: F + a, ld_up: F + b, act, slope: 1.5, cubic: 0.07 };
            add!(swiglu_forward, p);
            add!(swiglu_backward, p);
            for act in 0..4 {
                let p = activation::Activation { N, F, act, slope: 1.5, cubic: 0.07 };
                add!(activation_forward, p);
                add!(activation_backward, p);
            }
        }
        for (E, N, C) in [(1, 1, 8), (2, 9, 128), (3, 3, 34), (1, 17, 1024), (2, 3, 1032), (1, 2, 4098), (2, 2050, 2)] {
            let p = muon::MuonMomentum { N: E * N, C, momentum: 0.95, rest: 0.05, nesterov: C % 4 / 2 };
            add!(muon_momentum, p);
            add!(muon_normalize, muon::MuonNormalize { E, N, C, eps: 1e-7 }, |c: Case| c.positive(&["square"]));
        }
        for (N, C) in [(1, 8), (9, 128), (3, 34), (17, 1024), (3, 1032), (2, 4096), (2, 8192), (2, 10_248), (3, 2050)] {
            let p = rmsnorm::RmsNorm { N, C, eps: 1e-5, shift: 0.5 };
            add!(rmsnorm_forward, p);
            add!(rmsnorm_backward, p);
            add!(rmsnorm_residual_forward, rmsnorm::RmsNormResidual { N, C, eps: 1e-5, shift: 0.5, scale: 0.25 });
        }
        for (N, H, C, bias) in [
            (1, 1, 8, 1),
            (9, 3, 128, 0),
            (3, 1, 34, 0),
            (17, 2, 1024, 1),
            (3, 1, 1032, 1),
            (2, 1, 10_248, 1),
            (3, 2, 2050, 0),
        ] {
            let p = layernorm::LayerNorm { N, H, C, eps: 1e-5, bias };
            add!(layernorm_forward, p);
            add!(layernorm_backward, p);
            if C < 200 {
                add!(layernorm_backward_weight, p);
            }
        }
        // codes without a sign bit where the scales are, so that those are numbers
        let plain = |mut c: Case| {
            let at = c.at("blocks");
            c.buffers[at].1.iter_mut().for_each(|byte| *byte &= 0x3f);
            c
        };
        for n in [1, 7, 65, 300] {
            let (p, k) = (gguf::Blocks32 { P: 32 * n }, gguf::Blocks256 { P: 256 * n });
            add!(q4_0_dequantize, p, plain);
            add!(q4_1_dequantize, p, plain);
            add!(q5_0_dequantize, p, plain);
            add!(q5_1_dequantize, p, plain);
            add!(q8_0_dequantize, p, plain);
            add!(q4_k_dequantize, k, plain);
            add!(q5_k_dequantize, k, plain);
            add!(q6_k_dequantize, k, plain);
        }
        for (format, (packed, _)) in gguf::Packed::ALL.into_iter().enumerate() {
            let (len, bytes) = packed.block();
            for (N, O, blocks, rows, first) in [(1, 1, 1, 1, 0), (3, 18, 2, 21, 3), (9, 34, 3, 40, 6)] {
                let (C, P) = (blocks * len as u32, rows * blocks * bytes as u32);
                add!(thin_gguf, gguf::ThinGguf { N, O, C, P, first, format: format as u32 }, plain);
            }
        }
        for (N, C) in [(1, 8), (70, 34), (33, 66)] {
            add!(rmsnorm_backward_weight, rmsnorm::RmsNorm { N, C, eps: 1e-5, shift: 0.5 });
            let ids: Vec<u32> = (0..N).map(|n| if n % 3 == 0 { 1 } else { n * 7 % 5 }).collect();
            let mut order: Vec<u32> = (0..N).collect();
            order.sort_by_key(|n| ids[*n as usize]);
            let p = embedding::Embedding { N, V: 5, C, scale: 3.0 };
            add!(rows_gather, rows::Rows { N, V: 5, C: C + N % 3 }, |c: Case| c.u32s("ids", ids.clone()));
            add!(embedding_forward, p, |c: Case| c.u32s("ids", ids.clone()));
            add!(embedding_backward, p, |c: Case| c.u32s("ids", ids.clone()).u32s("order", order.clone()));
        }
        let heads = [(3, 2, 128, 128, 0), (5, 3, 6, 6, 2), (2, 40, 64, 32, 8), (3, 5, 80, 80, 16)];
        for ((N, H, D, A, pad), interleaved) in heads.into_iter().flat_map(|heads| [(heads, 0), (heads, 1)]) {
            let p = rope::Rope { N, H, D, A, T: 11, ld_x: H * D + pad, interleaved };
            let positions = |c: Case| c.u32s("positions", (0..N).map(|n| (n * 5 + 1) % 11).collect());
            add!(rope_forward, p, positions);
            add!(rope_backward, p, positions);
        }
        for (N, V, pad) in [(3, 10, 0), (2, 5003, 1), (2, 20_000, 8), (4, 8192, 0)] {
            let p = logprob::LogProb {
                N,
                V,
                ld_logits: V + pad,
                ld_dlogits: V + pad,
                softcap: if pad == 8 { 2.0 } else { 0.0 },
            };
            let labels = |c: Case| {
                c.u32s("labels", (0..N).map(|n| if n == 1 { logprob::IGNORE } else { n * 977 % V }).collect())
            };
            add!(logprob_forward, p, labels);
            add!(logprob_backward, p, |c: Case| labels(c).floats("lse", std::iter::repeat(3.0)));
        }
        for (I, J, Q, pad) in [(1, 2, 4, 0), (65, 66, 18, 2), (64, 64, 64, 0), (6, 130, 34, 4)] {
            let p = |a: u32, b: u32| matmul::MatMul {
                I,
                J,
                Q,
                ld_out: J + pad,
                ld_a: a + a % 2 + pad,
                ld_b: b + b % 2 + pad,
                alpha: 0.5,
            };
            add!(matmul_nt, p(Q, Q));
            add!(matmul_nt_add, p(Q, Q));
            add!(matmul_nn, p(Q, J));
            add!(matmul_nn_add, p(Q, J));
            add!(matmul_tn, p(I, J));
            add!(matmul_tn_add, p(I, J));
        }
        decoding(&mut out, float);
        thin(&mut out, float);
        if float != DType::F32 {
            dense(&mut out, float);
        }
        mixtures(&mut out, float);
        if float != DType::F32 {
            long_rows(&mut out, float);
        }
        attention(&mut out, &[1], 9, [2, 1, 4], 0, 0.0, float, None);
        attention(&mut out, &[5, 33, 12], 99, [4, 2, 20], 2, 1.5, float, None);
        attention(&mut out, &[40], 7, [2, 2, 256], 0, 0.0, float, None);
    }
    for (head, scores, variant) in ATTENTION_VARIANTS {
        let softcap = if *scores == Scores::Capped { 1.5 } else { 0.0 };
        attention(&mut out, &[70, 65, 30], 1000, [2, 1, *head], 8, softcap, DType::Bf16, Some(*variant));
        if *head == 64 {
            attention(&mut out, &[3, 150, 1], 40, [2, 2, 64], 0, softcap, DType::F16, Some(*variant));
        }
    }
    out
}
