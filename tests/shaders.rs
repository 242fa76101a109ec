//! Every module that the shader files can become, through naga's validator and its SPIR-V, MSL and HLSL writers, and through
//! tint where it is installed: no GPU needed. What the texts compute is the parity matrix's business.
#![cfg(feature = "wgpu")]
use luthier::backend::kernel_text;
use luthier::backend::wgpu::text::{self, ParamsIn, Request, TextArg};
use luthier::backend::wgpu::{MatrixUnit, attention, coop, plan};
use luthier::dtype::DType;
use luthier::ops::{Elem, Op, Spec};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// How the float arguments are stored: argument's place, whether it is written -> dtype.
type Storage = (&'static str, fn(usize, bool) -> DType);

const STORAGES: [Storage; 5] = [
    ("float32", |_, _| DType::F32),
    ("bfloat16", |_, _| DType::Bf16),
    ("float16", |_, _| DType::F16),
    ("written float32, read bfloat16", |_, written| if written { DType::F32 } else { DType::Bf16 }),
    ("every other one bfloat16", |i, _| if i % 2 == 0 { DType::Bf16 } else { DType::F32 }),
];

fn args(op: Op, storage: &Storage, scratch: bool, wide: bool) -> Vec<TextArg> {
    let spec: &Spec = op.spec();
    let is_wide = |name: &str| wide && plan::wide(op).iter().any(|(arg, _)| *arg == name);
    let dtype = |i: usize| match spec.args[i].elem {
        Elem::Float => storage.1(i, spec.args[i].access.writes()),
        Elem::F32 => DType::F32,
        Elem::U32 => DType::U32,
        Elem::U8 => DType::U8,
    };
    let row = |i: usize| TextArg {
        name: spec.args[i].name,
        elem: spec.args[i].elem,
        dtype: Some(dtype(i)),
        wide: is_wide(spec.args[i].name),
    };
    let scratch = scratch.then_some(TextArg { name: "scratch", elem: Elem::F32, dtype: Some(DType::F32), wide: false });
    (0..spec.args.len()).map(row).chain(scratch).collect()
}

/// Every distinct module: its name and text.
fn modules(params_in: ParamsIn) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for op in Op::ALL {
        let spec = op.spec();
        let (common, sections) = kernel_text::parse(op.wgsl()).unwrap_or_else(|e| panic!("{}: {e}", spec.file));
        let sections: Vec<_> = sections.iter().filter(|s| s.op() == spec.name).collect();
        assert!(!sections.is_empty(), "{} has no section in shaders/{}.wgsl", spec.name, spec.file);
        for (section, plan, storage, wide) in product(&sections, &plan::variants(*op), &STORAGES) {
            let extra = plan.extra.iter().map(|(name, _)| (*name, "u32"));
            let fields: Vec<_> = spec.fields.iter().copied().chain(extra).collect();
            let args = args(*op, storage, plan.scratch > 0, wide);
            let request = Request { common, section, fields: &fields, args: &args, consts: &plan.consts, params_in };
            let name = format!("{} {:?} {} wide {wide}", section.name, plan.consts, storage.0);
            let module = text::module(&request).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(4 * (fields.len() + module.bound.len()) <= 128, "{name}: more params than immediates hold");
            if out.iter().all(|(_, text)| *text != module.text) {
                out.push((name, module.text));
            }
        }
    }
    out
}

/// Every distinct module of products and attention on cooperative matrices.
fn coop_modules(unit: MatrixUnit) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    // out, a, b; the kernels without SCALED and the maxima are no different for f16
    let storages: [Storage; 2] =
        [STORAGES[3], ("out bfloat16, a float16", |i, _| [DType::Bf16, DType::F16, DType::Bf16][i.min(2)])];
    let fast = |op: &Op| [coop::variants(*op, unit), attention::variants(*op, unit)].concat();
    for (op, plan) in Op::ALL.iter().flat_map(|op| fast(op).into_iter().map(move |plan| (op, plan))) {
        let file = plan.fast.expect("a fast path");
        let (common, sections) = kernel_text::parse(file.text).unwrap();
        let stage = |s: &kernel_text::Section| s.name.split_once("__").map_or("", |(_, stage)| stage).to_string();
        let sections: Vec<_> = sections.iter().filter(|s| !plan.skip.contains(&&*stage(s))).collect();
        // attention has one type
        let storages = &storages[..if op.spec().file == "attention" { 1 } else { 2 }];
        for (section, plan, storage, wide) in product(&sections, std::slice::from_ref(&plan), storages) {
            let extra = plan.extra.iter().map(|(name, _)| (*name, "u32"));
            let fields: Vec<_> = op.spec().fields.iter().copied().chain(extra).collect();
            let mut args = args(*op, storage, plan.scratch > 0, wide);
            if plan.packed > 0 {
                args.push(text::TextArg { name: "packed", elem: Elem::Float, dtype: Some(DType::F16), wide: true });
            }
            if !plan.scaled.is_empty() {
                args.push(text::TextArg { name: "exponents", elem: Elem::F32, dtype: Some(DType::F32), wide: false });
            }
            let params_in = ParamsIn::Immediates;
            let request = Request { common, section, fields: &fields, args: &args, consts: &plan.consts, params_in };
            let name = format!("{} {:?} {} wide {wide}", section.name, plan.consts, storage.0);
            let module = text::module(&request).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(4 * (fields.len() + module.bound.len()) <= 128, "{name}: more params than immediates hold");
            out.push((name, module.text));
        }
    }
    let mut seen = std::collections::HashSet::new();
    out.retain(|(_, text)| seen.insert(text.clone()));
    out
}

type Variant<'a> = (&'a kernel_text::Section<'a>, &'a plan::Plan, &'a Storage, bool);

fn product<'a>(
    sections: &[&'a kernel_text::Section<'a>],
    plans: &'a [plan::Plan],
    storages: &'a [Storage],
) -> Vec<Variant<'a>> {
    let with_plan = sections.iter().flat_map(|s| plans.iter().map(move |p| (*s, p)));
    let with_storage = with_plan.flat_map(|(s, p)| storages.iter().map(move |storage| (s, p, storage)));
    with_storage.flat_map(|(s, p, storage)| [false, true].map(|wide| (s, p, storage, wide))).collect()
}

fn validate(name: &str, text: &str, extra: Capabilities) -> (naga::Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(text)));
    let capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32 | extra;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(text)));
    (module, info)
}

#[test]
fn every_module_is_valid_and_becomes_spirv_msl_and_hlsl() {
    let modules = modules(ParamsIn::Immediates);
    assert!(modules.len() > 100, "only {} modules", modules.len());
    for (name, text) in &modules {
        let (module, info) = validate(name, text, Capabilities::empty());
        spv::write_vec(&module, &info, &spv::Options::default(), None)
            .unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
        let options = msl::Options { fake_missing_bindings: true, lang_version: (2, 4), ..Default::default() };
        msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
        let shader_model = hlsl::ShaderModel::V6_0;
        let immediates_target = Some(hlsl::BindTarget::default());
        let options =
            hlsl::Options { fake_missing_bindings: true, shader_model, immediates_target, ..Default::default() };
        let mut out = String::new();
        let pipeline = hlsl::PipelineOptions::default();
        let mut writer = hlsl::Writer::new(&mut out, &options, &pipeline);
        writer.write(&module, &info, None).unwrap_or_else(|e| panic!("{name}: HLSL: {e}"));
    }
}

/// HLSL has no cooperative matrices, and MSL those of 8 x 8 alone.
#[test]
fn products_on_cooperative_matrices_are_valid_and_become_spirv_and_msl() {
    let capabilities = Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    for (unit, metal) in [
        (MatrixUnit { size: 16, lanes: 32, least_lanes: 32, vec: 4 }, false),
        (MatrixUnit { size: 8, lanes: 8, least_lanes: 4, vec: 4 }, false),
        (MatrixUnit { size: 8, lanes: 32, least_lanes: 32, vec: 1 }, true),
    ] {
        let modules = coop_modules(unit);
        assert!(modules.len() > 100, "only {} modules", modules.len());
        for (name, text) in &modules {
            let (module, info) = validate(name, text, capabilities);
            let options = spv::Options { lang_version: (1, 4), capabilities: None, ..Default::default() };
            spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
            if metal {
                let options = msl::Options { fake_missing_bindings: true, lang_version: (2, 4), ..Default::default() };
                msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
                    .unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
            }
        }
    }
}

#[test]
fn a_wrong_module_is_refused() {
    let broken =
        std::panic::catch_unwind(|| validate("broken", "fn f() -> u32 { return 1.5; }", Capabilities::empty()));
    assert!(broken.is_err());
}

/// tint checks what naga does not: that barriers are reached by all threads or none.
#[test]
fn tint_agrees() {
    if std::process::Command::new("tint").arg("--version").output().is_err() {
        eprintln!("tint is not installed; its half of the check did not run");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in modules(ParamsIn::Uniform) {
        validate(&name, &text, Capabilities::empty());
        let file = folder.path().join("m.wgsl");
        std::fs::write(&file, &text).unwrap();
        let out = std::process::Command::new("tint").args(["--format", "wgsl"]).arg(&file).output().unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
