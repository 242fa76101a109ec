//! The contract of `backend::foreign`, on every op that it offers: what a host needs to know is in the texts, and nothing else is.
#![cfg(feature = "wgpu")]
use luthier::backend::foreign::{Arg, Language, Stage, check, stages};
use luthier::dtype::DType;
use luthier::ops::{Elem, Op, Spec, swiglu::SwiGlu};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess};

/// Files whose ops stay ours, and the languages in which they do.
const OURS: &[(&str, &[Language])] =
    &[("attention", &[Language::Wgsl, Language::Cuda]), ("grouped", &[Language::Wgsl]), ("matmul", &[Language::Wgsl])];

fn dtypes(spec: &Spec, float: DType) -> Vec<DType> {
    let one = |arg: &luthier::ops::Arg| match arg.elem {
        Elem::F32 => DType::F32,
        Elem::U32 => DType::U32,
        Elem::U8 => DType::U8,
        Elem::Float => float,
    };
    spec.args.iter().map(one).collect()
}

/// Every op's stages in a language.
fn offered(language: Language, float: DType) -> Vec<(Op, Vec<Stage>)> {
    let mut all = Vec::new();
    for op in Op::ALL {
        let spec = op.spec();
        let ours = OURS.iter().any(|(file, languages)| *file == spec.file && languages.contains(&language));
        match stages(*op, language, &dtypes(spec, float)) {
            Ok(stages) => {
                assert!(!ours, "{} is offered in {language:?}", spec.name);
                all.push((*op, stages));
            }
            Err(e) => assert!(ours && e.to_string().contains("not for other hosts"), "{}: {e}", spec.name),
        }
    }
    all
}

#[test]
fn shaders_bind_in_order_and_params_last() {
    for float in [DType::F32, DType::F16, DType::Bf16] {
        for (op, stage) in offered(Language::Wgsl, float).iter().flat_map(|(op, s)| s.iter().map(move |s| (op, s))) {
            let (name, text, spec) = (stage.name, &stage.text, op.spec());
            let module =
                naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(text)));
            let mut validator = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32);
            validator.validate(&module).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(text)));
            assert!(module.entry_points.len() == 1 && module.entry_points[0].name == name, "{name}: the entry point");
            let mut bound: Vec<_> = module.global_variables.iter().filter_map(|(_, v)| Some((v.binding?, v))).collect();
            bound.sort_by_key(|(at, _)| at.binding);
            assert!(bound.iter().enumerate().all(|(i, (at, _))| (at.group, at.binding) == (0, i as u32)), "{name}");
            let (params, buffers) = bound.split_last().unwrap();
            assert_eq!(params.1.space, AddressSpace::Uniform, "{name}: params are last");
            let named = |i: &usize| format!("{}_", spec.args[*i].name);
            let want: Vec<String> = stage.buffers.iter().map(named).collect();
            let got: Vec<String> = buffers.iter().map(|(_, v)| v.name.clone().unwrap()).collect();
            assert_eq!(got, want, "{name}: buffers in the row's order");
            let all = StorageAccess::LOAD | StorageAccess::STORE;
            assert!(
                buffers.iter().all(|(_, v)| v.space == AddressSpace::Storage { access: all }),
                "{name}: read_write"
            );
            assert!(!text.contains("base_"), "{name}: a buffer begins where its binding does");
            let naga::TypeInner::Struct { members, .. } = &module.types[params.1.ty].inner else { panic!("{name}") };
            let fields: Vec<_> = members.iter().map(|m| m.name.as_deref().unwrap()).collect();
            assert_eq!(fields, spec.fields.iter().map(|(f, _)| *f).collect::<Vec<_>>(), "{name}: the row's params");
        }
    }
}

#[test]
fn geometry_is_of_this_call() {
    let p = SwiGlu { N: 70_000, F: 300, ld_gate: 300, ld_up: 300, act: 0, slope: 1.0, cubic: 0.0 };
    let geometry = |language| {
        let stages = stages(Op::swiglu_forward, language, &[DType::F32; 3]).unwrap();
        stages[0].geometry(bytemuck::bytes_of(&p)).unwrap()
    };
    // 70,000·300/256 workgroups, folded at 65,535; a block of 2,048 values
    assert_eq!(geometry(Language::Wgsl), ([65_535, 2, 1], 256));
    assert_eq!(geometry(Language::Cuda), ([70_000, 1, 1], 256));
    let bytes = bytemuck::bytes_of(&p);
    let arg = |len| Arg { dtype: DType::F32, len };
    check(Op::swiglu_forward, &[arg(21_000_000); 3], bytes).unwrap();
    let e = check(Op::swiglu_forward, &[arg(21_000_000), arg(21_000_000), arg(1)], bytes).unwrap_err();
    assert!(e.to_string().contains("swiglu_forward") && e.to_string().contains("up"), "{e}");
}

/// As cubecl compiles: these options, and none of ours.
#[cfg(feature = "cuda")]
#[test]
fn kernels_compile_with_another_hosts_options() {
    use luthier::backend::cuda::nvrtc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    // every op for one of three, for `kernels` compiles all for all
    let thirds = [("80", DType::Bf16), ("90a", DType::F32), ("120a", DType::F16)].into_iter().enumerate();
    let third = |(i, (arch, float))| {
        let some = offered(Language::Cuda, float).into_iter().skip(i).step_by(3);
        some.map(move |(op, stages)| (arch, op, stages))
    };
    let all: Vec<_> = thirds.flat_map(third).collect();
    let (next, threads) = (AtomicUsize::new(0), std::thread::available_parallelism().map_or(2, |n| n.get()));
    let work = || {
        while let Some((arch, op, stages)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let arch = format!("--gpu-architecture=sm_{arch}");
            let options = [arch, "--include-path=include".into(), "-lineinfo".into()];
            let text = &stages[0].text;
            assert!(
                stages.iter().all(|s| s.text == *text && !text.contains("#include")),
                "{op:?}: the text stands alone"
            );
            nvrtc::compile_by(op.spec().name, text, &options).unwrap_or_else(|e| panic!("{e}"));
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    println!("{} texts", all.len());
    assert!(all.len() > 50);
}
