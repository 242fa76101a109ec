//! Burn's own autograd as the oracle: two ways to compute something, compared forward and backward.
#![allow(dead_code, reason = "each test uses its part")]
use burn::tensor::{DType, Device, DeviceKind, Gradients, Tensor, TensorCreationOptions, TensorData};
use luthier::rng::Rng;
use std::cell::Cell;
use std::ops::Deref;

/// What the parity matrix allows f32 (NMSE).
pub const ELEMENTWISE: f64 = 1e-11;
pub const NORM_BACKWARD: f64 = 1e-10;
pub const SOFTMAX: f64 = 1e-10;
/// Of a product with an inner length of `k`.
pub fn product(k: usize) -> f64 {
    (k as f64 * 4e-14).max(1e-12)
}

/// A device that has done all of its work when it goes: one that still works when the process ends takes software Vulkan down
/// with it. Declared before the tensors, it outlives them.
pub struct Bench(pub Device);

impl Deref for Bench {
    type Target = Device;
    fn deref(&self) -> &Device {
        &self.0
    }
}

impl From<&Bench> for TensorCreationOptions {
    fn from(bench: &Bench) -> Self {
        (&bench.0).into()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // what fails here has failed before, with a better message
        let _ = self.0.sync();
    }
}

/// Any adapter, the software one in CI.
pub fn plain() -> Bench {
    Bench(Device::wgpu(DeviceKind::DefaultDevice))
}

/// The same with a tape.
pub fn taped() -> Bench {
    Bench(plain().clone().autodiff())
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let tensor = if tensor.is_autodiff() { tensor.inner() } else { tensor };
    tensor.into_data().convert::<f32>().try_to_vec().unwrap()
}

/// Normal, and the same in every run of a test.
pub fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    thread_local!(static NEXT: Cell<u64> = const { Cell::new(0) });
    let mut rng = Rng::stream(1, NEXT.replace(NEXT.get() + 1));
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// ‖got − want‖² / ‖want‖².
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(usize) -> f64| (0..got.len()).map(f).sum::<f64>();
    let off = sum(&|i| (got[i] as f64 - want[i] as f64).powi(2));
    off / sum(&|i| (want[i] as f64).powi(2)).max(1e-30)
}

pub fn close(what: &str, got: &[f32], want: &[f32], limit: f64) {
    let off = nmse(got, want);
    println!("{what}: NMSE {off:.1e} of {limit:.0e} over {}", got.len());
    // so, because a NaN must fail
    assert!(off <= limit, "{what}: NMSE {off:e}, {limit:e} is allowed");
}

/// Forward within `limits.0`; the gradients of Σ out·dout by each input, for random `dout`, within `limits.1`.
pub fn compare<const D: usize, const I: usize>(
    what: &str,
    inputs: &[&Tensor<I>],
    (ours, theirs): (Tensor<D>, Tensor<D>),
    limits: (f64, f64),
) {
    let dout = random(ours.dims(), &ours.device());
    close(&format!("{what} forward"), &values(ours.clone()), &values(theirs.clone()), limits.0);
    let (ours, theirs) = ((ours * dout.clone()).sum().backward(), (theirs * dout).sum().backward());
    for (i, input) in inputs.iter().enumerate() {
        gradient(&format!("{what} gradient {i}"), input, (&ours, &theirs), limits.1);
    }
}

pub fn gradient<const D: usize>(what: &str, input: &Tensor<D>, (ours, theirs): (&Gradients, &Gradients), limit: f64) {
    let of = |all: &Gradients| values(input.grad(all).unwrap_or_else(|| panic!("{what}: there is none")));
    close(what, &of(ours), &of(theirs), limit);
}
