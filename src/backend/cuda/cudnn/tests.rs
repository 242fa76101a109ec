//! Plans for an H200 that is not there: whether cuDNN has an engine for what we ask of it.
use super::descriptor::Descriptor;
use super::plan::{Plan, Target};
use super::problem::{Direction, Layout, Mask, Problem};
use crate::backend::cuda::libs;
use crate::dtype::DType;
use crate::error::Result;
use cudarc::cudnn::sys;
use std::process::Command;
use sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type, cudnnBackendDescriptorType_t as Kind,
};

/// As cuDNN describes one.
const H200: &str = r#"{"deviceVer":900,"driverVer":13000,"cudaDeviceId":0,"maxGridSize":[2147483647,65535,65535],
"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"multiProcessorCount":132,"warpSize":32,"maxSharedMemoryPerBlock":49152,
"maxSharedMemoryPerBlockOptin":232448,"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,"maxCtasPerSM":32,
"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,
"smClockRateKHz":1980000,"memClockRateKHz":3201000,"memoryBusWidth":6144,"oversizedSharedMemoryPerBlock":0,"smCountOrigin":0,"l2CacheSize":62914560,"totalGlobalMem":150754820096,
"deviceName":"NVIDIA H200"}"#;

/// A driver for cuDNN to find where there is none: one device, on which kernels load and nothing runs.
const DRIVER: &str = r#"
#define HANDLE(name) int name(void** handle) { *handle = (void*)1; return 0; }
#define NOTHING(name) int name(void) { return 0; }
#define NEVER(name) int name(void) { return 100; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
HANDLE(cuLibraryLoadData) HANDLE(cuLibraryGetKernel) HANDLE(cuKernelGetFunction)
NOTHING(cuInit) NOTHING(cuLibraryUnload) NOTHING(cuKernelSetAttribute) NOTHING(cuFuncSetAttribute)
NEVER(cuCtxGetCurrent) NEVER(cuCtxGetDevice) NEVER(cuCtxGetLimit) NEVER(cuCtxPopCurrent) NEVER(cuCtxPushCurrent)
NEVER(cuDeviceGet) NEVER(cuDeviceGetAttribute) NEVER(cuDevicePrimaryCtxRelease) NEVER(cuDevicePrimaryCtxReset)
NEVER(cuDevicePrimaryCtxRetain) NEVER(cuFuncGetAttribute) NEVER(cuGetErrorName) NEVER(cuGetErrorString) NEVER(cuGetExportTable)
NEVER(cuKernelGetAttribute) NEVER(cuLaunchCooperativeKernel) NEVER(cuLaunchKernel) NEVER(cuLaunchKernelEx)
NEVER(cuLibraryLoadFromFile) NEVER(cuLinkAddData) NEVER(cuLinkAddData_v2) NEVER(cuLinkAddFile_v2) NEVER(cuLinkComplete)
NEVER(cuLinkCreate) NEVER(cuLinkCreate_v2) NEVER(cuLinkDestroy) NEVER(cuMemcpyDtoH_v2) NEVER(cuModuleGetFunction)
NEVER(cuModuleGetGlobal_v2) NEVER(cuModuleLoadData) NEVER(cuModuleLoadDataEx) NEVER(cuModuleLoadFatBinary)
NEVER(cuModuleUnload) NEVER(cuOccupancyMaxActiveBlocksPerMultiprocessor) NEVER(cuOccupancyMaxPotentialClusterSize)
NEVER(cuStreamGetCtx) NEVER(cuStreamSynchronize) NEVER(cuTensorMapEncodeTiled) NEVER(cuTensorMapEncodeIm2col)
"#;

/// Set in the process that finds that driver.
const INSIDE: &str = "LUTHIER_TEST_PLANS";

#[test]
fn cudnn_has_an_engine_for_all_that_we_give_it() {
    if let Some(missing) = libs::missing("cudnn") {
        return eprintln!("cuDNN's plans are NOT checked: {missing}");
    }
    if std::env::var_os(INSIDE).is_some() {
        return plan_all();
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("driver.c"), folder.path().join("libcuda.so.1"));
    std::fs::write(&source, DRIVER).unwrap();
    let flags = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o"];
    let built = Command::new("gcc").args(flags).arg(&library).arg(&source).status();
    assert!(built.expect("gcc is wanted").success());
    let here = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder.path().into()).chain(std::env::split_paths(&here)));
    let test = "backend::cuda::cudnn::tests::cudnn_has_an_engine_for_all_that_we_give_it";
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").env("LD_LIBRARY_PATH", path.unwrap());
    assert!(again.status().unwrap().success());
}

fn described() -> Result<Target> {
    let device = Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?;
    let name = Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION;
    device.set(name, Type::CUDNN_TYPE_CHAR, H200.replace('\n', "").as_bytes())?;
    Ok(Target::Described(device.finalize()?))
}

/// B, S, H, K, D, and elements that are not attention's after each row.
const SHAPES: &[([i64; 5], i64)] = &[
    ([16, 2048, 32, 8, 128], 0),
    ([1, 32768, 8, 1, 128], 0),
    ([64, 1024, 64, 8, 64], 8),
    ([4, 128, 4, 4, 80], 0),
    ([4, 512, 32, 32, 96], 64),
    ([4, 1024, 16, 8, 256], 0),
    ([4, 1024, 6, 2, 72], 0),
];

/// Every shape in both directions and layouts; masks and types take turns.
fn problems() -> Vec<Problem> {
    let mut problems = Vec::new();
    for (i, ([B, S, H, K, D], more)) in SHAPES.iter().copied().enumerate() {
        for (j, layout) in [Layout::Even, Layout::Ragged].into_iter().enumerate() {
            let ld = [H * D + more, K * D + more, K * D + more];
            let dtype = if i % 2 == 0 { DType::Bf16 } else { DType::F16 };
            let mask = if (i + j) % 3 == 0 { Mask::Sliding } else { Mask::Causal };
            let of = |direction| Problem { direction, dtype, B, S, H, K, D, ld, mask, layout };
            problems.extend([Direction::Forward, Direction::Backward].map(of));
        }
    }
    problems.retain(|p| p.fits((9, 0)));
    problems
}

fn plan_all() {
    // SAFETY: returns a number.
    println!("cuDNN {}", unsafe { sys::cudnnGetVersion() });
    let target = described().unwrap();
    let mut refused = Vec::new();
    for problem in problems() {
        let started = std::time::Instant::now();
        let planned = Plan::new(&problem, &target);
        let (words, took) = (problem.words(), started.elapsed().as_secs_f64());
        match planned {
            Ok(plan) => println!("{words}: {} MiB, {took:.2} s", plan.workspace >> 20),
            Err(e) => refused.push(format!("{words}: {e}")),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
