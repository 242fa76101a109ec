//! A device whose own floats have 16 bits: the same as in 32 of the same values, in rows of even and odd lengths; what must be exact
//! stays in 32. A process of its own, for a device is told once.
#![cfg(feature = "wgpu")]
mod common;
use burn::module::Param;
use burn::nn::LinearConfig;
use burn::tensor::{DType, Device, DeviceKind, FloatDType, Int, Tensor, TensorData};
use common::*;
use luthier_burn::{
    Format, Head, LoraConfig, Named, Norm, PackedWeight, Pairs, QLoraLinear, Rope, RopeScaling, RopeTable,
};

/// What is rounded to 11 bits is within this, and a sum of products of such within four times as much.
const ROUNDED: f64 = 1e-6;
const SUMMED: f64 = 4.0 * ROUNDED;

/// A leaf in 32 bits whose values have 16.
fn leaf<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    random(shape, device).cast(FloatDType::F16).cast(FloatDType::F32).detach().require_grad()
}

fn half<const D: usize>(wide: &Tensor<D>) -> Tensor<D> {
    wide.clone().cast(FloatDType::F16)
}

/// `half` is in 16 bits, and otherwise `wide`; so are the gradients of leaves.
fn same<const D: usize, const I: usize>(
    what: &str,
    leaves: &[&Tensor<I>],
    half: Tensor<D>,
    wide: Tensor<D>,
    limit: f64,
) {
    assert_eq!((half.dtype(), wide.dtype()), (DType::F16, DType::F32), "{what}");
    compare(what, leaves, (half.cast(FloatDType::F32), wide), (limit, 2.0 * limit));
}

#[test]
fn sixteen_bits() {
    let mut own = Device::wgpu(DeviceKind::DefaultDevice);
    own.configure(FloatDType::F16).expect("software Vulkan has f16, and so has every GPU of these years");
    let device = taped();
    assert_eq!(Tensor::<1>::zeros([1], &device).dtype(), DType::F16);
    let norm = Norm { eps: 1e-5, shift: 0.0 };
    for (n, c, o) in [(5, 64, 48), (70, 33, 37), (3, 34, 37), (1, 7, 8)] {
        let at = format!("{n} {c} {o}");
        let (x, up) = (leaf([n, c], &device), leaf([n, c], &device));
        let (ours, want) = (luthier_burn::swiglu(half(&x), half(&up)), luthier_burn::swiglu(x.clone(), up.clone()));
        same(&format!("swiglu {at}"), &[&x, &up], ours, want, ROUNDED);

        let weight = leaf([c], &device);
        let ours = || luthier_burn::rmsnorm(half(&x), half(&weight), norm);
        let want = || luthier_burn::rmsnorm(x.clone(), weight.clone(), norm);
        same(&format!("norm {at}"), &[&x], ours(), want(), ROUNDED);
        same(&format!("norm {at}"), &[&weight], ours(), want(), ROUNDED);

        for format in [Format::Nf4, Format::Nf4Double, Format::Int8] {
            let weight = PackedWeight::quantize(half(&leaf([o, c], &device)), format);
            same(&format!("{format:?} {at}"), &[&x], weight.linear(half(&x)), weight.linear(x.clone()), SUMMED);
        }

        let config = LoraConfig { r: 4, ..LoraConfig::default() };
        let lora = Named { config: &config, module: "proj" };
        let mut layer = QLoraLinear::from_linear(LinearConfig::new(c, o).init(&device), Format::Nf4, lora).unwrap();
        let (a, b) = (layer.adapter.a.val(), random([o, 4], &device).require_grad());
        assert_eq!(a.dtype(), DType::F32, "adapters are in f32, as PEFT's");
        layer.adapter.b = Param::from_tensor(b.clone());
        same(&format!("layer {at}"), &[&x, &a, &b], layer.forward(half(&x)), layer.forward(x.clone()), SUMMED);

        let weight = leaf([o, c], &device);
        let labels = Tensor::<1, Int>::from_data(TensorData::new(vec![o as i32 - 1; n], [n]), &device);
        let loss = |x, w| luthier_burn::linear_cross_entropy(x, w, labels.clone(), &Head::default());
        let both = (loss(half(&x), half(&weight)), loss(x.clone(), weight.clone()));
        compare(&format!("loss {at}"), &[&x, &weight], both, (SUMMED, 1e-5));
    }

    let rope = Rope { theta: 10000.0, scaling: RopeScaling::Default };
    let table = RopeTable::new(&rope, 3000, 6, Pairs::Halves, &device);
    let places = Tensor::<2, Int>::from_data([[2047, 2999, 5]], &device);
    for shape in [[1, 3, 2, 6], [1, 3, 1, 10]] {
        let x = leaf(shape, &device);
        let ours = luthier_burn::rope(half(&x), &table, places.clone());
        let want = luthier_burn::rope(x.clone(), &table, places.clone());
        same(&format!("rope {shape:?}"), &[&x], ours, want, ROUNDED);
    }

    // more labels than a sum in 16 bits counts to
    let (n, c, v) = (3000, 2, 3);
    let (hidden, weight) = (half(&leaf([n, c], &device)), half(&leaf([v, c], &device)));
    let labels = Tensor::<1, Int>::from_data(TensorData::new(vec![1i32; n], [n]), &device);
    let each = luthier_burn::linear_logprob(hidden.clone(), weight.clone(), labels.clone(), &Head::default());
    let mean = -values(each).iter().map(|x| *x as f64).sum::<f64>() / n as f64;
    let loss = luthier_burn::linear_cross_entropy(hidden, weight, labels, &Head::default());
    close("the mean of 3,000", &values(loss), &[mean as f32], 1e-10);
}
