//! One wgpu device for luthier and Burn: one queue, and copies that never leave the device.
//!
//! Burn cannot adopt memory that it did not allocate, so a buffer of luthier's comes to it by a copy on the device, and goes back
//! so; Burn's own tensors lend their memory as it is ([`with_buffer`]). What both submit runs in the order in which it came.
use burn::backend::Cube;
use burn::tensor::wgpu::{WgpuSetup, wgpu};
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::wgpu::{AutoCompiler, WgpuServer};
use luthier::backend::Buf;
use luthier::backend::wgpu::Wgpu;
use luthier::{Error, Result};

/// A Burn device on luthier's adapter, device and queue. Once for each [`Wgpu`].
pub fn device(wgpu: &Wgpu) -> Result<Device> {
    let luthier::backend::wgpu::Shared { instance, adapter, device, queue } = wgpu.shared().clone();
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup { instance, adapter, device, queue, backend };
    Device::wgpu_options().setup(setup).init().map_err(|e| fail(format!("{e:?}")))
}

/// A stretch of a wgpu buffer.
pub struct Place<'a> {
    pub buffer: &'a wgpu::Buffer,
    pub start: u64,
    pub bytes: u64,
}

/// Runs `f` on where the tensor lies; what Burn has queued for it is submitted before. Other tensors lie in the same buffer: touch
/// nothing outside. What is written shows in the tensor and in its clones, which share its memory.
pub fn with_buffer<const D: usize, R>(tensor: &Tensor<D>, f: impl FnOnce(Place) -> R) -> Result<R> {
    let tensor = primitive(tensor.clone())?;
    if !tensor.is_contiguous() {
        return Err(fail("a view without a memory of its own has no buffer to lend; copy it first"));
    }
    let lent = tensor.client.get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone());
    let lent = lent.map_err(|e| fail(format!("{e:?}")))?;
    tensor.client.flush().map_err(|e| fail(format!("{e:?}")))?;
    let resource = lent.resource();
    Ok(f(Place { buffer: &resource.buffer, start: resource.offset, bytes: resource.size }))
}

/// A new tensor that holds what `from` does, in its storage type. `device` is [`device`]'s.
pub fn to_tensor<const D: usize>(wgpu: &Wgpu, device: &Device, from: &Buf, shape: [usize; D]) -> Result<Tensor<D>> {
    let dtype = match from.dtype() {
        luthier::dtype::DType::F32 => DType::F32,
        luthier::dtype::DType::F16 => DType::F16,
        luthier::dtype::DType::Bf16 => DType::BF16,
        other => return Err(fail(format!("a buffer of {}; floats become tensors", other.name()))),
    };
    let tensor = Tensor::empty(shape, (device, dtype));
    let lent = wgpu.lend(from);
    let ours = Place { buffer: &lent.buffer, start: lent.start, bytes: lent.bytes };
    with_buffer(&tensor, |theirs| copy(wgpu, &ours, &theirs))??;
    Ok(tensor)
}

/// `to` holds what the tensor does, which is of its storage type.
pub fn from_tensor<const D: usize>(wgpu: &Wgpu, to: &mut Buf, tensor: &Tensor<D>) -> Result<()> {
    let lent = wgpu.lend(to);
    let ours = Place { buffer: &lent.buffer, start: lent.start, bytes: lent.bytes };
    with_buffer(tensor, |theirs| copy(wgpu, &theirs, &ours))?
}

/// Both lie at whole words, and the last word of each is its own.
fn copy(wgpu: &Wgpu, from: &Place, to: &Place) -> Result<()> {
    if from.bytes != to.bytes {
        return Err(fail(format!("{} bytes are wanted, got {}", to.bytes, from.bytes)));
    }
    let shared = wgpu.shared();
    let mut encoder = shared.device.create_command_encoder(&Default::default());
    let bytes = from.bytes.next_multiple_of(4);
    encoder.copy_buffer_to_buffer(from.buffer, from.start, to.buffer, to.start, bytes);
    shared.queue.submit([encoder.finish()]);
    Ok(())
}

#[cfg(not(feature = "fusion"))]
fn primitive<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor> {
    tensor.try_into_primitive::<Cube>().map_err(|e| fail(format!("{e:?}; of a tensor on the tape take `inner()`")))
}

#[cfg(feature = "fusion")]
fn primitive<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor> {
    let tensor = tensor.try_into_primitive::<Cube>();
    let tensor = tensor.map_err(|e| fail(format!("{e:?}; of a tensor on the tape take `inner()`")))?;
    let client = tensor.client.clone();
    Ok(client.resolve_tensor_float::<burn_cubecl::CubeBackend>(tensor))
}

fn fail(what: impl std::fmt::Display) -> Error {
    Error::device("wgpu", format!("burn: {what}"))
}
