//! Every CUDA kernel runs on the CPU, block by block, and agrees with the reference: CI has no GPU, and an index is an index.
//!
//! The kernel's text is compiled by the host's C++ compiler (g++) behind `emulate/gpu.h`; inline PTX is replaced by C++ of the
//! same meaning. Threads in rising order with copies done at once, and in falling order with copies as late as allowed, must
//! give the same bits: a missing barrier shows there. `LUTHIER_KERNELS=rope` runs the cases whose name contains that.
#![allow(non_snake_case, reason = "N, C, O … are the dims of the docs, the WGSL and the CUDA")]
#![cfg(all(feature = "cuda", target_os = "linux"))]
use luthier::backend::cuda::fast::{
    ATTENTION_VARIANTS, DENSE_NARROW, DENSE_WIDE, FP8, GROUPED, LONG_ROWS, LONG_ROWS_BACKWARD, Scores, THIN,
};
use luthier::backend::cuda::low_rank::JOINED;
use luthier::backend::cuda::source::{Kernel, Variant};
use luthier::backend::kernel_text::eval;
use luthier::backend::{Backend, Launch, cpu::Cpu};
use luthier::dtype::DType;
use luthier::ops::{Elem, Op};
use std::fmt::Write;
use std::process::Command;

/// PTX that the host has no word for, and what stands for it.
const REPLACED: &[(&str, &str)] = &[
    ("extern __shared__ float memory[];", "#define memory ((float*)memory_bytes)"),
    ("extern __shared__ __align__(16) u8 memory[];", "#define memory memory_bytes"),
    (r#"asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));"#, "y = half_to_float(x.bits);"),
    (r#"asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));"#, "h = float_to_half(x);"),
    (r#"asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(s.v * p.correct2));"#, "root = sqrtf(s.v * p.correct2);"),
    (r#"asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));"#, "y = exp2f(x);"),
    ("extern \"C\" __global__ void", "static void"),
];

/// The statements of these functions, by the start of their head.
const BODIES: &[(&str, &str)] = &[
    ("INLINE void ldmatrix(u32", "emulate_ldmatrix(x, at, false);"),
    ("INLINE void ldmatrix_trans(u32", "emulate_ldmatrix(x, at, true);"),
    ("    template <> __device__ __forceinline__ void mma<TYPE>(", "emulate_mma<TYPE>(c, a, b0, b1);"),
    ("INLINE void copy16(u32", "start_copy(to, inside ? from : nullptr);"),
    ("INLINE void commit(", "commit_copies();"),
    ("template <int PENDING> INLINE void arrive(", "wait_copies(PENDING); __syncthreads();"),
];

const MMA: &str = r#"
static void emulate_ldmatrix(u32 (&x)[4], u32 at, bool trans) {
    struct Out { u32 x[4]; };
    Out out = exchange(at, [&](auto lane) {
        Out o;
        u32 l = now % 32;
        for (u32 m = 0; m < 4; m++) {
            u32 pair[2];
            for (u32 e = 0; e < 2; e++) {
                u32 row = trans ? l % 4 * 2 + e : l / 4, column = trans ? l / 4 : l % 4 * 2 + e;
                u16 value; u32 from = lane(m * 8 + row);
                if (from % 16) __trap();
                memcpy(&value, memory_bytes + from + column * 2, 2);
                pair[e] = value;
            }
            o.x[m] = pair[0] | pair[1] << 16;
        }
        return o;
    });
    memcpy(x, out.x, 16);
}
template <typename T> static float times(u16 x, u16 y) {
#ifdef FP8
    return e4m3_value(x & 255) * e4m3_value(y & 255) + e4m3_value(x >> 8) * e4m3_value(y >> 8);
#else
    T a, b;
    a.bits = x, b.bits = y;
    return widen(a) * widen(b);
#endif
}
template <typename T> static void emulate_mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct In { u32 a[4], b[2]; } in = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    struct Out { float c[4]; };
    Out out = exchange(in, [&](auto lane) {
        Out o;
        u32 g = now % 32 / 4, t = now % 4;
        for (u32 e = 0; e < 4; e++) {
            u32 row = g + e / 2 * 8, column = t * 2 + e % 2;
            float sum = c[e];
            for (u32 k = 0; k < 16; k++) {
                u32 wa = lane(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2], wb = lane(column * 4 + k % 8 / 2).b[k / 8];
                sum += times<T>((u16)(wa >> k % 2 * 16), (u16)(wb >> k % 2 * 16));
            }
            o.c[e] = sum;
        }
        return o;
    });
    memcpy(c, out.c, 16);
}
"#;

/// Replaces the statements of the function whose head starts with `head`.
fn replace_body(text: &str, head: &str, body: &str) -> String {
    let Some(start) = text.find(head) else { return text.to_string() };
    let open = start + text[start..].find('{').expect("a body");
    let mut depth = 0;
    let close = text[open..].char_indices().find(|(_, c)| {
        depth += (*c == '{') as i32 - (*c == '}') as i32;
        depth == 0
    });
    let close = open + close.expect("a body ends").0;
    let continued = if text[start..close].contains("\\\n") { "\\\n" } else { "" };
    format!("{}{{ {body} {continued}{}", &text[..open], &text[close..])
}

/// Whether a kernel is given memory for parts of its sums behind its arguments.
fn has_room(variant: &Variant) -> bool {
    JOINED.iter().any(|joined| joined.variant == *variant)
}
/// Bytes of it, for any case here.
const ROOM: usize = 8 << 20;

/// The kernel as C++ with one `run_<entry>` per stage.
fn host_text(kernel: &Kernel) -> String {
    let mut text = kernel.source().unwrap_or_else(|e| panic!("{e}"));
    // asm strings hold braces: those functions go first
    for (head, body) in BODIES {
        text = replace_body(&text, head, body);
    }
    for (from, to) in REPLACED {
        text = text.replace(from, to);
    }
    if let Some(at) = text.find("template <typename T> INLINE void mma(") {
        text.insert_str(at, MMA);
    }
    let spec = kernel.op.spec();
    let mut out = format!("{}\n{text}\n", include_str!("emulate/gpu.h"));
    for section in kernel.sections().unwrap() {
        let own = spec.args.iter().map(|a| format!("T_{}", a.name));
        let room = kernel.variant.filter(has_room).map(|_| "float".into());
        let args: Vec<String> = own.chain(room).enumerate().map(|(i, ty)| format!("({ty}*)args[{i}]")).collect();
        let _ = writeln!(
            out,
            "static void* args_{0}[16]; static Params params_{0};
static void body_{0}() {{ void** args = args_{0}; {0}({1}, params_{0}); }}
extern \"C\" void run_{0}(void** args, const void* params, unsigned gx, unsigned gy, unsigned gz, unsigned block) {{
    memcpy(args_{0}, args, {2} * sizeof(void*)); memcpy(&params_{0}, params, sizeof(Params));
    gridDim = {{gx, gy, gz}};
    for (unsigned z = 0; z < gz; z++) for (unsigned y = 0; y < gy; y++) for (unsigned x = 0; x < gx; x++)
        blockIdx = {{x, y, z}}, run_block(block, body_{0});
}}",
            section.name,
            args.join(", "),
            args.len()
        );
    }
    out
}

/// One run: an op, its params and buffers.
struct Case {
    op: Op,
    params: Vec<u8>,
    variant: Option<Variant>,
    /// Bytes by argument, as stored; outputs hold noise.
    buffers: Vec<(DType, Vec<u8>)>,
}

fn library(case: &Case) -> libloading::Library {
    let dtypes: Vec<DType> = case.buffers.iter().map(|b| b.0).collect();
    let kernel = Kernel { op: case.op, dtypes: &dtypes, variant: case.variant };
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let text = host_text(&kernel);
    let stem = format!("{}_{}", kernel.op.spec().name, &blake3::hash(text.as_bytes()).to_hex()[..16]);
    let (source, library) = (folder.join(format!("{stem}.cpp")), folder.join(format!("{stem}.so")));
    if !library.exists() {
        std::fs::write(&source, text).unwrap();
        let flags = ["-std=c++17", "-O1", "-w", "-fpermissive", "-ffp-contract=off", "-fPIC", "-shared", "-o"];
        let output = Command::new("g++").args(flags).arg(&library).arg(&source).output().expect("g++ is wanted");
        assert!(output.status.success(), "{stem}: {}", String::from_utf8_lossy(&output.stderr));
    }
    unsafe { libloading::Library::new(&library) }.unwrap()
}

/// The buffers after the kernel's stages.
fn emulate(case: &Case, order: u32) -> Vec<Vec<u8>> {
    let library = library(case);
    let dtypes: Vec<DType> = case.buffers.iter().map(|b| b.0).collect();
    let kernel = Kernel { op: case.op, dtypes: &dtypes, variant: case.variant };
    // 16-byte aligned, as on a device
    let mut memory: Vec<Vec<u128>> = Vec::new();
    for (_, bytes) in &case.buffers {
        let mut words = vec![0u128; bytes.len().div_ceil(16) + 1];
        bytemuck::cast_slice_mut::<u128, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        bytemuck::cast_slice_mut::<u128, u8>(&mut words)[bytes.len()..].fill(0xa5);
        memory.push(words);
    }
    if case.variant.as_ref().is_some_and(has_room) {
        memory.push(vec![u128::MAX; ROOM / 16]);
    }
    let pointers: Vec<*mut u128> = memory.iter_mut().map(|m| m.as_mut_ptr()).collect();
    let names = kernel.names(&case.params);
    for section in kernel.sections().unwrap() {
        let mut grid = [1u32; 3];
        section.grid.iter().zip(&mut grid).for_each(|(e, g)| *g = eval(e, &names).unwrap() as u32);
        type Run = unsafe extern "C" fn(*const *mut u128, *const u8, u32, u32, u32, u32);
        let run: libloading::Symbol<Run> = unsafe { library.get(format!("run_{}", section.name).as_bytes()) }.unwrap();
        let block = eval(section.block, &names).unwrap() as u32;
        let shared = eval(section.shared, &names).unwrap();
        assert!(shared <= 232448, "{shared}");
        let reversed: libloading::Symbol<*mut u32> = unsafe { library.get(b"reversed") }.unwrap();
        unsafe { **reversed = order };
        unsafe { run(pointers.as_ptr(), case.params.as_ptr(), grid[0], grid[1], grid[2], block) };
    }
    let mut out = Vec::new();
    for ((_, bytes), words) in case.buffers.iter().zip(&memory) {
        let all: &[u8] = bytemuck::cast_slice(words);
        assert!(all[bytes.len()..].iter().all(|b| *b == 0xa5), "{:?} wrote past a buffer's end", case.op);
        out.push(all[..bytes.len()].to_vec());
    }
    out
}

fn reference(case: &Case) -> Vec<Vec<u8>> {
    let cpu: &dyn Backend = &Cpu::plain();
    let mut buffers = Vec::new();
    for (dtype, bytes) in &case.buffers {
        let mut buf = cpu.alloc(bytes.len() / dtype.size(), *dtype).unwrap();
        cpu.upload(&mut buf, bytes).unwrap();
        buffers.push(buf);
    }
    let extents = case.op.extents(&case.params).1;
    let args: Vec<_> = buffers.iter().zip(&extents).map(|(b, e)| e.present.then_some(b)).collect();
    cpu.launch(&Launch::new(case.op, &args, &case.params).unwrap_or_else(|e| panic!("{e}"))).unwrap();
    buffers.iter().map(|b| cpu.download(b).unwrap()).collect()
}

struct Random(u64);
impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    /// About normal.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.next() as f32 / (1u32 << 31) as f32 - 0.5).sum::<f32>() * 1.4
    }
}

#[path = "emulate/cases.rs"]
mod cases;

/// Σ(got − want)² / Σ want².
fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        if !(w.is_finite() || g.to_bits() == w.to_bits()) {
            return f64::NAN;
        }
        if w.is_finite() {
            error += (*g as f64 - *w as f64).powi(2);
            norm += (*w as f64).powi(2);
        }
    }
    // a result that is zero but for cancellation has no relative error
    error / norm.max(1e-3 * got.len() as f64)
}

#[test]
fn kernels_agree_with_their_references() {
    let only = std::env::var("LUTHIER_KERNELS").unwrap_or_default();
    let mut bad = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (name, case) in cases::all() {
        seen.insert(case.op.spec().name);
        if !name.contains(&only) {
            continue;
        }
        println!("{name}");
        let (got, other, want) = (emulate(&case, 0), emulate(&case, 1), reference(&case));
        for (i, arg) in case.op.spec().args.iter().enumerate() {
            // of a sum as it is stored
            let coarse = (case.op == Op::rmsnorm_residual_forward).then(|| case.buffers[0].0);
            let dtype = case.buffers[i].0;
            if got[i] != other[i] {
                bad.push(format!("{name}: {} depends on the order of threads", arg.name));
            }
            if !arg.access.writes() {
                assert!(got[i] == case.buffers[i].1, "{name}: {} is read-only", arg.name);
                continue;
            }
            let limit = match (arg.elem, coarse.unwrap_or(dtype), case.variant.is_some()) {
                (Elem::U8, ..) => {
                    let wrong = got[i].iter().zip(&want[i]).filter(|(a, b)| a != b).count();
                    if wrong > 0 {
                        bad.push(format!("{name}: {}: {wrong} of {} codes differ", arg.name, got[i].len()));
                    }
                    continue;
                }
                (_, DType::F32, false) => 1e-10,
                (_, DType::F16, false) => 1e-6,
                _ => 1e-4,
            };
            let error = nmse(&dtype.decode(&got[i]), &dtype.decode(&want[i]));
            #[allow(clippy::neg_cmp_op_on_partial_ord, reason = "NaN must fail")]
            if !(error <= limit) {
                bad.push(format!("{name}: {} NMSE {error:.2e} > {limit:.0e}", arg.name));
            }
        }
    }
    assert!(!only.is_empty() || Op::ALL.iter().all(|op| seen.contains(op.spec().name)), "an op has no case");
    assert!(bad.is_empty(), "{} failures:\n{}", bad.len(), bad.join("\n"));
}
