//! One of luthier's ops on Burn's tensors: its text from the trainer's own preprocessor, compiled and launched by cubecl.
//!
//! What cubecl's two launchers do with a kernel that brings its own text, and what a text must be like for that, is
//! [`luthier::backend::foreign`]'s contract. A kernel is known by a hash of its text, everywhere and in caches on disk.
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeDevice;
pub use burn_cubecl::kernel::cast;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::Pod;
use cubecl::ir::UIntKind;
use cubecl::ir::metadata::Info;
use cubecl::prelude::*;
use cubecl::server::{KernelArguments, MetadataBindingInfo};
use cubecl::{CubeCount, CubeDim, CubeKernel, PrecompiledSource};
use luthier::backend::foreign::{self, Language, Stage};
use luthier::ops::Op;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// A tensor as an argument of a row: values of its own type, or bytes in words.
pub struct Arg<'a> {
    tensor: &'a CubeTensor,
    what: foreign::Arg,
}

/// All of a tensor's elements: floats, or words of 32 bits.
pub fn values(tensor: &CubeTensor) -> Arg<'_> {
    use luthier::dtype::DType as Stored;
    let dtype = match tensor.dtype {
        DType::F32 => Stored::F32,
        DType::F16 => Stored::F16,
        DType::BF16 => Stored::Bf16,
        DType::I32 | DType::U32 => Stored::U32,
        other => panic!("luthier-burn: a tensor of {other:?}; f32, f16, bf16, i32 and u32 have kernels"),
    };
    Arg { tensor, what: foreign::Arg { dtype, len: tensor.meta.shape().num_elements() } }
}

/// The first `len` bytes of a tensor of words.
pub fn bytes(tensor: &CubeTensor, len: usize) -> Arg<'_> {
    let held = tensor.meta.shape().num_elements() * tensor.dtype.size();
    assert!(len <= held && tensor.dtype.size() == 4, "luthier-burn: {len} bytes of codes in {held}, words of 4 each");
    Arg { tensor, what: foreign::Arg { dtype: luthier::dtype::DType::U8, len } }
}

/// A new tensor like `like`, of anything.
pub fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let shape = shape.into();
    let handle = like.client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// The same of zeros.
pub fn zeros(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    burn_cubecl::ops::numeric::zeros_client(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// The tensor without gaps between its rows.
pub fn dense(tensor: CubeTensor) -> CubeTensor {
    burn_cubecl::kernel::into_contiguous(tensor)
}

/// What rows of so many values are for our kernels: in 16 bits they begin at even ones, so odd rows are in f32.
pub fn stored(dtype: DType, columns: usize) -> DType {
    if columns % 2 == 1 && dtype.size() == 2 { DType::F32 } else { dtype }
}

/// Rows without gaps, stored so.
pub fn row_wise(tensor: CubeTensor, columns: usize) -> CubeTensor {
    let dtype = stored(tensor.dtype, columns);
    dense(cast(tensor, dtype))
}

/// The same, and nobody else's: what a kernel changes in place.
pub fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = dense(tensor);
    if tensor.handle.can_mut() { tensor } else { tensor.copy() }
}

/// Queues `op` on arguments in the row's order. A call that disagrees with its row panics and says how.
pub fn run(op: Op, args: &[Arg], params: &impl Pod) {
    let (params, what) = (bytemuck::bytes_of(params), args.iter().map(|arg| arg.what).collect::<Vec<_>>());
    let client = &args[0].tensor.client;
    let language = language(&args[0].tensor.device, client.name()).unwrap_or_else(|why| panic!("luthier-burn: {why}"));
    let ready = foreign::check(op, &what, params).and_then(|()| prepared(op, language, &what));
    let stages = ready.unwrap_or_else(|e| panic!("luthier-burn: {e}"));
    for stage in stages.iter() {
        let ([x, y, z], block) = stage.stage.geometry(params).unwrap_or_else(|e| panic!("luthier-burn: {e}"));
        if x == 0 || y == 0 || z == 0 {
            continue;
        }
        let buffers = stage.stage.buffers.iter().map(|i| args[*i].tensor.handle.clone().binding()).collect();
        let mut padded = params.to_vec();
        padded.resize(params.len().next_multiple_of(16), 0);
        let words: Vec<u64> = bytemuck::pod_collect_to_vec(&padded);
        // all of it static: behind the buffers, and no tail in a buffer of its own
        let fixed = words.len();
        let arguments = KernelArguments::new().with_buffers(buffers).with_info(MetadataBindingInfo::new(words, fixed));
        let kernel = Text { prepared: stage.clone(), dim: CubeDim::new_1d(block) };
        client.launch(Box::new(kernel), CubeCount::Static(x, y, z), arguments);
    }
}

/// What the device's compiler reads; or why it reads neither of our languages, and what to do.
fn language(device: &CubeDevice, compiler: &str) -> Result<Language, String> {
    match (device, compiler) {
        (CubeDevice::Cuda(_), _) => Ok(Language::Cuda),
        #[cfg(feature = "wgpu")]
        (CubeDevice::Wgpu(_), "wgpu<wgsl>") => Ok(Language::Wgsl),
        (CubeDevice::Wgpu(_), other) => Err(format!(
            "this device's compiler is {other}, which refuses WGSL, the language of our kernels on wgpu: build without the \
             features `vulkan` and `metal` of burn (`cargo tree -e features -i burn-wgpu` says who turns them on)"
        )),
        (other, _) => Err(format!("no kernel for {other:?}: a device of burn's `wgpu` or `cuda` is wanted")),
    }
}

/// A stage and what tells it from all others.
struct Prepared {
    stage: Stage,
    hash: u64,
}

type Key = (Op, Language, Vec<luthier::dtype::DType>);
type Stages = Arc<[Arc<Prepared>]>;
static PREPARED: LazyLock<Mutex<HashMap<Key, Stages>>> = LazyLock::new(Default::default);

/// The op's stages for arguments that are stored so; texts are made once.
fn prepared(op: Op, language: Language, args: &[foreign::Arg]) -> luthier::Result<Stages> {
    let key = (op, language, args.iter().map(|arg| arg.dtype).collect::<Vec<_>>());
    let mut made = PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = made.get(&key) {
        return Ok(found.clone());
    }
    let with_hash = |stage: Stage| {
        let mut hasher = DefaultHasher::new();
        stage.text.hash(&mut hasher);
        Arc::new(Prepared { stage, hash: hasher.finish() })
    };
    let stages: Stages = foreign::stages(op, language, &key.2)?.into_iter().map(with_hash).collect();
    made.insert(key, stages.clone());
    Ok(stages)
}

/// Our loops end by themselves, and `foreign::check` has seen that all indices are inside.
const MODE: ExecutionMode = ExecutionMode::Unchecked;

/// A stage as cubecl takes it: no representation of its own, only text.
struct Text {
    prepared: Arc<Prepared>,
    dim: CubeDim,
}

impl KernelMetadata for Text {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.prepared.stage.name, self.prepared.hash)).cube_dim(self.dim.0).mode(MODE)
    }
    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

impl CubeKernel for Text {
    fn define(&self) -> KernelDefinition {
        let settings = KernelSettings::new(self.dim.0, MODE, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }
    fn source(&self) -> Option<PrecompiledSource> {
        let Stage { text, name, .. } = &self.prepared.stage;
        let lang = self.prepared.stage.language().tag();
        Some(PrecompiledSource { source: text.clone(), entrypoint_name: name.to_string(), lang })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_compilers_are_refused_with_a_way_out() {
        let device = CubeDevice::Wgpu(Default::default());
        assert!(language(&device, "wgpu<wgsl>").is_ok());
        for other in ["wgpu<spirv>", "wgpu<msl>"] {
            let why = language(&device, other).unwrap_err();
            assert!(why.contains(other) && why.contains("without the features `vulkan` and `metal`"), "{why}");
        }
        let why = language(&CubeDevice::Cpu(Default::default()), "cpu").unwrap_err();
        assert!(why.contains("`wgpu` or `cuda` is wanted"), "{why}");
    }
}
