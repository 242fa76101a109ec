//! Every CUDA kernel compiles to a cubin for every architecture that we name, in every mix of storage types that the trainer
//! uses. No GPU is wanted, NVRTC is: `pip install "nvidia-cuda-nvrtc==13.0.*"`.
#![cfg(feature = "cuda")]
use luthier::backend::cuda::fast::{
    ATTENTION_VARIANTS, DENSE_NARROW, DENSE_WIDE, FP8, FP8_SHORT, GROUPED, LONG_ROWS, LONG_ROWS_BACKWARD, THIN,
};
use luthier::backend::cuda::low_rank::JOINED;
use luthier::backend::cuda::nvrtc;
use luthier::backend::cuda::source::Kernel;
use luthier::dtype::DType;
use luthier::ops::{Access, Elem, Op, Spec};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const ARCHES: [&str; 6] = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_120"];

/// The storage type of each argument when its floats are `float`; `mixed` keeps what is written and 1-D weights in f32.
fn dtypes(spec: &Spec, float: DType, mixed: bool) -> Vec<DType> {
    let one = |arg: &luthier::ops::Arg| match arg.elem {
        Elem::F32 => DType::F32,
        Elem::U32 => DType::U32,
        Elem::U8 => DType::U8,
        Elem::Float if mixed && (arg.access != Access::Read || arg.name == "weight" || arg.name == "bias") => {
            DType::F32
        }
        Elem::Float => float,
    };
    spec.args.iter().map(one).collect()
}

/// (name, text, architecture), each text once.
fn plain_jobs() -> BTreeSet<(String, String, &'static str)> {
    let mut jobs = BTreeSet::new();
    for op in Op::ALL {
        for (float, mixed) in [(DType::F32, false), (DType::Bf16, false), (DType::F16, false), (DType::Bf16, true)] {
            let dtypes = dtypes(op.spec(), float, mixed);
            let text = Kernel::plain(*op, &dtypes).source().unwrap_or_else(|e| panic!("{e}"));
            jobs.extend(ARCHES.map(|arch| (op.spec().name.to_string(), text.clone(), arch)));
        }
    }
    jobs
}

/// The tensor-core kernels, which want sm_80: every head size, f16 at one of them.
fn fast_jobs() -> BTreeSet<(String, String, &'static str)> {
    let mut jobs = BTreeSet::new();
    for op in [Op::attention_forward, Op::attention_backward] {
        for (head, _, variant) in ATTENTION_VARIANTS {
            let floats = if *head == 128 { &[DType::Bf16, DType::F16][..] } else { &[DType::Bf16] };
            for dtypes in floats.iter().map(|float| dtypes(op.spec(), *float, false)) {
                let text =
                    Kernel { op, dtypes: &dtypes, variant: Some(*variant) }.source().unwrap_or_else(|e| panic!("{e}"));
                jobs.extend(
                    ARCHES[1..]
                        .iter()
                        .map(|arch| (format!("{}_{}", op.spec().name, variant.name), text.clone(), *arch)),
                );
            }
        }
    }
    // sm_89 is the first with tensor cores for it
    for (op, variant, first) in
        [(Op::fp8_matmul, FP8, 3), (Op::fp8_matmul_add, FP8, 3), (Op::fp8_quantize, FP8_SHORT, 1)]
    {
        for float in [DType::F32, DType::Bf16, DType::F16] {
            let dtypes = dtypes(op.spec(), float, false);
            let text =
                Kernel { op, dtypes: &dtypes, variant: Some(variant) }.source().unwrap_or_else(|e| panic!("{e}"));
            let name = format!("{}_{}", op.spec().name, variant.name);
            jobs.extend(ARCHES[first..].iter().map(|arch| (name.clone(), text.clone(), *arch)));
        }
    }
    for op in Op::ALL.iter().copied().filter(|op| op.spec().file == "grouped") {
        for (float, mixed) in [(DType::Bf16, false), (DType::F16, false), (DType::Bf16, true), (DType::F16, true)] {
            let dtypes = dtypes(op.spec(), float, mixed);
            let text =
                Kernel { op, dtypes: &dtypes, variant: Some(GROUPED) }.source().unwrap_or_else(|e| panic!("{e}"));
            let name = format!("{}_{}", op.spec().name, GROUPED.name);
            jobs.extend(ARCHES[1..].iter().map(|arch| (name.clone(), text.clone(), *arch)));
        }
    }
    for (op, known) in [
        (Op::rmsnorm_forward, LONG_ROWS),
        (Op::rmsnorm_residual_forward, LONG_ROWS),
        (Op::rmsnorm_backward, LONG_ROWS_BACKWARD),
    ] {
        for (float, (_, variant)) in
            [DType::Bf16, DType::F16].into_iter().flat_map(|f| known.iter().map(move |v| (f, v)))
        {
            let dtypes = dtypes(op.spec(), float, false);
            let text =
                Kernel { op, dtypes: &dtypes, variant: Some(*variant) }.source().unwrap_or_else(|e| panic!("{e}"));
            let name = format!("{}_{}", op.spec().name, variant.name);
            jobs.extend(ARCHES.iter().map(|arch| (name.clone(), text.clone(), *arch)));
        }
    }
    for (joined, float) in JOINED.iter().zip([DType::Bf16, DType::F16]) {
        let op = Op::low_rank_backward;
        let dtypes = dtypes(op.spec(), float, true);
        let text =
            Kernel { op, dtypes: &dtypes, variant: Some(joined.variant) }.source().unwrap_or_else(|e| panic!("{e}"));
        let name = format!("{}_{}", op.spec().name, joined.variant.name);
        jobs.extend(ARCHES[1..].iter().map(|arch| (name.clone(), text.clone(), *arch)));
    }
    let thin = Op::ALL.iter().copied().filter(|op| op.spec().file == "thin");
    let few = thin.flat_map(|op| THIN.into_iter().map(move |few| (op, few)));
    let dense = DENSE_NARROW.into_iter().chain([DENSE_WIDE]).map(|few| (Op::matmul_nt, few));
    for (i, (op, few)) in few.chain(dense).enumerate() {
        let float = if i % 3 == 1 { DType::F16 } else { DType::Bf16 };
        let dtypes = dtypes(op.spec(), float, false);
        let text =
            Kernel { op, dtypes: &dtypes, variant: Some(few.variant) }.source().unwrap_or_else(|e| panic!("{e}"));
        let name = format!("{}_{}", op.spec().name, few.variant.name);
        jobs.extend(ARCHES[1..].iter().map(|arch| (name.clone(), text.clone(), *arch)));
    }
    jobs
}

/// What the log says of each kernel's registers and spilled bytes: (kernel, registers, spills).
fn usage(log: &str) -> Vec<(String, u32, u32)> {
    let number = |line: &str, before: &str| -> u32 {
        let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
        let at = words.windows(2).position(|w| w[1].starts_with(before));
        at.and_then(|i| words[i].parse().ok()).unwrap_or(0)
    };
    let (mut kernels, mut name, mut spills) = (Vec::new(), String::new(), 0);
    for line in log.lines() {
        if let Some(quoted) = line.split('\'').nth(1).filter(|_| line.contains("Compiling entry function")) {
            name = quoted.to_string();
        } else if let Some((_, tail)) = line.split_once("stack frame,") {
            spills = number(tail, "bytes");
        } else if line.contains("registers") {
            kernels.push((name.clone(), number(line, "registers"), spills));
        }
    }
    kernels
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let (major, minor) = nvrtc::version().unwrap_or_else(|e| panic!("{e}"));
    let only = std::env::var("LUTHIER_KERNELS").unwrap_or_default();
    let jobs: Vec<_> =
        plain_jobs().into_iter().chain(fast_jobs()).filter(|j| format!("{} {}", j.0, j.2).contains(&only)).collect();
    assert!(!jobs.is_empty(), "no kernel's name contains LUTHIER_KERNELS={only}");
    let (next, failed, most) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(BTreeSet::new()));
    let work = || {
        while let Some((name, text, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match nvrtc::compile(name, text, arch, &[nvrtc::VERBOSE]) {
                Ok(compiled) => {
                    let seen = usage(&compiled.log);
                    if seen.is_empty() {
                        failed
                            .lock()
                            .unwrap()
                            .push(format!("{name} {arch}: no entry point in the log:\n{}", compiled.log));
                    }
                    let warned = compiled.log.lines().any(|l| l.contains("warning"));
                    if warned {
                        failed.lock().unwrap().push(format!("{name} {arch}: {}", compiled.log));
                    }
                    let shown = |k: &(String, u32, u32)| k.2 > 0 || !only.is_empty();
                    most.lock().unwrap().extend(seen.into_iter().filter(shown).map(|k| (arch, name, k)));
                }
                Err(e) => failed.lock().unwrap().push(format!("{name} {arch}: {e}")),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().unwrap();
    println!("NVRTC {major}.{minor}: {} compilations", jobs.len());
    most.into_inner().unwrap().iter().for_each(|(arch, name, (kernel, registers, spills))| {
        println!("{name} {arch}: {kernel} {registers} registers, {spills} bytes spilled");
    });
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), jobs.len(), failed.join("\n"));
}
