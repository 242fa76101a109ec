//! Which GPUs there are, which one to take, and opening it.
use crate::error::{Error, Result};
use std::sync::{Arc, Mutex, OnceLock};
use wgpu::{Adapter, Backends, Device, DeviceType, Features, Instance, InstanceDescriptor, InstanceFlags, Queue};

/// An adapter, for people (`luthier doctor`) and for the choice of a backend.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub api: String,
    /// DiscreteGpu, IntegratedGpu, VirtualGpu, Cpu or Other.
    pub kind: String,
    pub driver: String,
    /// Those of the features that luthier looks for.
    pub features: Vec<&'static str>,
    /// Bytes: the largest buffer, the largest part of it that a shader sees, and a workgroup's own memory.
    pub max_buffer: u64,
    pub max_binding: u64,
    pub workgroup_memory: u64,
    /// Bytes on the device in all, where the driver says so.
    pub memory: Option<u64>,
    /// False for software on the CPU.
    pub hardware: bool,
    /// What it multiplies small matrices of f16 with, if it has that.
    pub matrix_unit: Option<MatrixUnit>,
}

/// Cooperative matrices: a subgroup multiplies f16 fragments of `size` x `size` into f32 sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixUnit {
    /// 16 or 8.
    pub size: u32,
    /// Threads of the largest subgroup and of the smallest.
    pub lanes: u32,
    pub least_lanes: u32,
    /// Values per element of the workgroup memory that fragments are loaded from: 4, or 1 where naga knows no more.
    pub vec: u32,
}

/// What luthier looks for, and its name for people.
const INTEREST: [(Features, &str); 7] = [
    (Features::IMMEDIATES, "immediates"),
    (Features::SUBGROUP, "subgroups"),
    (Features::SHADER_F16, "f16"),
    (Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrix"),
    (Features::TIMESTAMP_QUERY.union(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS), "timestamps"),
    (Features::PIPELINE_CACHE, "pipeline cache"),
    (Features::MAPPABLE_PRIMARY_BUFFERS, "host buffers"),
];

/// What others on our device ([`Shared`]) may count on where the adapter has it: cubecl asks the adapter, not the device.
const GUESTS: Features = Features::SHADER_INT64.union(Features::SHADER_F64).union(Features::SHADER_FLOAT32_ATOMIC);

/// What the device reported by itself; it comes out of the next call that waits or takes memory.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    errors: Vec<String>,
    /// Why the device is gone, for good: wgpu says so once, and takes every later call without a word.
    lost: Option<String>,
}

impl Faults {
    /// The errors since this was last asked. Of a lost device why it is gone, again and again: what else it says follows from that.
    pub fn check(&self) -> Result<()> {
        let mut told = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let errors = std::mem::take(&mut told.errors);
        if let Some(why) = &told.lost {
            let hint =
                "a reset or an update of its driver does that, and too little memory; it comes back with a new process";
            return Err(Error::device("wgpu", format!("the device was lost: {why} ({hint})")));
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::device("wgpu", errors.join("; "))) }
    }

    fn put(&self, tell: impl FnOnce(&mut Told)) {
        tell(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// An opened adapter.
pub struct Opened {
    pub report: AdapterReport,
    pub shared: Shared,
    pub faults: Faults,
}

/// What another user of the same device wants of it; all of it is handles.
#[derive(Clone, Debug)]
pub struct Shared {
    pub instance: Instance,
    pub adapter: Adapter,
    pub device: Device,
    pub queue: Queue,
}

/// The one of this process. It stays to the end: where the last one goes, NVIDIA's driver is unloaded, and threads that end later jump to
/// where its code was.
fn instance() -> Instance {
    static ONE: OnceLock<Instance> = OnceLock::new();
    let made = || {
        let mut descriptor = InstanceDescriptor::new_without_display_handle();
        descriptor.backends = Backends::PRIMARY;
        // the default flags would cut buffers to 4 GiB for the sake of indirect draws
        descriptor.flags = InstanceFlags::empty();
        Instance::new(descriptor)
    };
    ONE.get_or_init(made).clone()
}

/// Every adapter, best first: discrete, integrated, other, software.
fn found(instance: &Instance) -> Vec<Adapter> {
    let mut adapters = pollster::block_on(instance.enumerate_adapters(Backends::PRIMARY));
    adapters.sort_by_key(|a| match a.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    adapters
}

/// Every adapter of this machine, in the order in which they are preferred.
pub fn adapters() -> Vec<AdapterReport> {
    found(&instance()).iter().map(report).collect()
}

fn report(adapter: &Adapter) -> AdapterReport {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let driver = [info.driver, info.driver_info].join(" ");
    AdapterReport {
        name: info.name,
        api: format!("{:?}", info.backend),
        kind: format!("{:?}", info.device_type),
        driver: driver.trim().to_string(),
        features: INTEREST.iter().filter(|(f, _)| features.contains(*f)).map(|(_, name)| *name).collect(),
        max_buffer: limits.max_buffer_size,
        max_binding: limits.max_storage_buffer_binding_size,
        workgroup_memory: limits.max_compute_workgroup_storage_size.into(),
        memory: memory(adapter),
        hardware: info.device_type != DeviceType::Cpu,
        matrix_unit: matrix_unit(adapter),
    }
}

fn matrix_unit(adapter: &Adapter) -> Option<MatrixUnit> {
    let needed = Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16 | Features::SUBGROUP;
    if !adapter.features().contains(needed) {
        return None;
    }
    use wgpu::CooperativeScalarType::{F16, F32};
    let kinds = adapter.cooperative_matrix_properties();
    // WGSL has names for square ones only
    let has = |s: &u32| {
        kinds.iter().any(|k| {
            [k.m_size, k.n_size, k.k_size] == [*s; 3]
                && (k.ab_type, k.cr_type) == (F16, F32)
                && !k.saturating_accumulation
        })
    };
    let size = [16, 8].into_iter().find(has)?;
    let info = adapter.get_info();
    // Metal does not tell: Apple's GPUs have 32, and fragments are loaded through pointers to single values there
    let (lanes, least_lanes, vec) = match info.backend {
        wgpu::Backend::Metal => (32, 32, 1),
        _ => (info.subgroup_max_size, info.subgroup_min_size, 4),
    };
    (least_lanes > 0).then_some(MatrixUnit { size, lanes, least_lanes, vec })
}

/// Bytes of the largest heap on the device.
#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn memory(adapter: &Adapter) -> Option<u64> {
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handle is only asked about itself, while the adapter lives.
    unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        let memory = instance.get_physical_device_memory_properties(vulkan.raw_physical_device());
        let heaps = &memory.memory_heaps[..memory.memory_heap_count as usize];
        heaps.iter().filter(|h| h.flags.as_raw() & DEVICE_LOCAL != 0).map(|h| h.size).max()
    }
}
#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn memory(_: &Adapter) -> Option<u64> {
    None
}

/// Opens the adapter that `select` names: its place in the list, or a part of its name in any case; the best without one.
pub fn open(select: Option<&str>) -> Result<Opened> {
    let instance = instance();
    let adapters = found(&instance);
    let reports: Vec<AdapterReport> = adapters.iter().map(report).collect();
    let list = || {
        reports.iter().enumerate().map(|(i, r)| format!("{i} {} ({})", r.name, r.api)).collect::<Vec<_>>().join(", ")
    };
    let named = |name: &str| match name.parse::<usize>() {
        Ok(place) => (place < reports.len()).then_some(place),
        Err(_) => reports.iter().position(|r| r.name.to_lowercase().contains(&name.to_lowercase())),
    };
    let place = match select {
        _ if reports.is_empty() => return Err(none()),
        None => 0,
        Some(name) => {
            named(name).ok_or_else(|| Error::device("wgpu", format!("no adapter `{name}`; there are: {}", list())))?
        }
    };
    let (device, queue) = request(&adapters[place])?;
    let faults = Faults::default();
    watch(&device, &faults);
    let shared = Shared { instance, adapter: adapters[place].clone(), device, queue };
    Ok(Opened { report: reports[place].clone(), shared, faults })
}

fn none() -> Error {
    Error::device(
        "wgpu",
        "no adapter was found; install the GPU's driver (Linux: its Vulkan driver and libvulkan1; without a GPU, mesa-vulkan-drivers)",
    )
}

fn request(adapter: &Adapter) -> Result<(Device, Queue)> {
    let wanted = INTEREST.iter().fold(GUESTS, |all, (f, _)| all | *f);
    let experimental = Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let (wanted, experimental_features) = match matrix_unit(adapter) {
        // SAFETY: wgpu vouches for none of its experimental features; ours is used by two shaders of ours, whose results
        // the parity matrix compares
        Some(_) => (wanted, unsafe { wgpu::ExperimentalFeatures::enabled() }),
        None => (wanted - experimental, wgpu::ExperimentalFeatures::disabled()),
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: None,
        required_features: adapter.features() & wanted,
        required_limits: adapter.limits(),
        experimental_features,
        // tensors are sub-allocated here already
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        trace: wgpu::Trace::Off,
    };
    pollster::block_on(adapter.request_device(&descriptor))
        .map_err(|e| Error::device("wgpu", format!("cannot open the device: {e}")))
}

/// Collects what would otherwise panic (wgpu's default handler) or be lost.
fn watch(device: &Device, faults: &Faults) {
    let uncaptured = faults.clone();
    device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
        uncaptured.put(|told| {
            // the first errors tell the cause; a broken device repeats itself
            if told.errors.len() < 8 {
                told.errors.push(e.to_string());
            }
        })
    }));
    let lost = faults.clone();
    device.set_device_lost_callback(move |reason, what| {
        let why = if what.is_empty() { format!("{reason:?}") } else { what };
        lost.put(|told| told.lost = Some(why));
    });
}
