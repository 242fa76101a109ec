//! Tensors as others have them: views, any leading dims, other devices. `tests/ops.rs` has the plain ones.
#![cfg(feature = "wgpu")]
mod common;
use burn::module::Param;
use burn::nn::LinearConfig;
use burn::tensor::{FloatDType, Int, Tensor, TensorData, activation};
use common::*;
use luthier_burn::{Format, Head, LoraConfig, LoraLinear, Named, Norm, PackedWeight, Pairs, QLoraLinear};
use luthier_burn::{Rope, RopeScaling, RopeTable};

const NORM: Norm = Norm { eps: 1e-5, shift: 0.0 };

fn norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>) -> Tensor<D> {
    x.clone() / (x.powi_scalar(2).mean_dim(D - 1) + 1e-5).sqrt() * weight.unsqueeze()
}

fn named(config: &LoraConfig) -> Named<'_> {
    Named { config, module: "proj" }
}

/// Views of leaves: swapped, sliced and spread. Gradients come back to the leaves; each way there has its views to itself, for a
/// backward uses up what it went through.
#[test]
fn views_with_gradients() {
    let device = taped();
    let (one, other) = (random([48, 37], &device).require_grad(), random([40, 100], &device).require_grad());
    let (gate, up) = (|| one.clone().transpose(), || other.clone().slice([2..39, 5..53]));
    let (ours, theirs) = (luthier_burn::swiglu(gate(), up()), activation::silu(gate()) * up());
    compare("swiglu", &[&one, &other], (ours, theirs), (ELEMENTWISE, ELEMENTWISE));

    let row = random([1, 48], &device).require_grad();
    let gate = || row.clone().expand([37, 48]);
    let (ours, theirs) = (luthier_burn::swiglu(gate(), up()), activation::silu(gate()) * up());
    compare("swiglu of a spread row", &[&row, &other], (ours, theirs), (ELEMENTWISE, ELEMENTWISE));

    let (x, weight) = (random([3, 33, 5], &device).require_grad(), random([66], &device));
    let (view, weight) = (|| x.clone().swap_dims(1, 2), weight.narrow(0, 20, 33));
    let both = (luthier_burn::rmsnorm(view(), weight.clone(), NORM), norm(view(), weight));
    compare("norm", &[&x], both, (ELEMENTWISE, NORM_BACKWARD));

    let (o, c, n) = (24, 70, 9);
    let x = random([c, n], &device).require_grad();
    for format in [Format::Nf4, Format::Nf4Double, Format::Int8] {
        // packed from a view, too
        let weight = PackedWeight::quantize(random([c, o], &device).transpose() * 0.1, format);
        let dense = Tensor::from_data(weight.dequantize(FloatDType::F32).into_data(), &device);
        let both = (weight.linear(x.clone().transpose()), x.clone().transpose().matmul(dense.transpose()));
        compare(&format!("{format:?}"), &[&x], both, (product(c), product(o)));
    }
}

#[test]
fn views_of_heads() {
    let device = taped();
    // as attention has them, [B, H, T, D]
    let x = random([2, 3, 7, 16], &device).require_grad();
    let rope = Rope { theta: 10000.0, scaling: RopeScaling::Default };
    let table = RopeTable::new(&rope, 32, 16, Pairs::Halves, &device);
    let places = TensorData::new((0..40).map(|i| i * 5 % 32).collect(), [4, 10]);
    let places = Tensor::<2, Int>::from_data(places, &device).slice([1..3, 2..9]);
    let dense = Tensor::from_data(places.clone().into_data(), &device);
    let ours = luthier_burn::rope(x.clone().swap_dims(1, 2), &table, places);
    let copied = x.clone().swap_dims(1, 2).mul_scalar(1.0);
    compare("rope", &[&x], (ours, luthier_burn::rope(copied, &table, dense)), (0.0, 0.0));

    let (n, c, v) = (21, 32, 77);
    let hidden = random([c, n], &device).require_grad();
    let weight = random([v + 3, c + 1], &device).require_grad();
    let labels = Tensor::<1, Int>::from_data(TensorData::new((0..2 * n as i32).collect(), [2 * n]), &device);
    let head = Head { chunk: 8, ..Head::default() };
    let (rows, columns) = (|| hidden.clone().transpose(), || weight.clone().slice([3..v + 3, 0..c]));
    let ours = luthier_burn::linear_logprob(rows(), columns(), labels.clone().narrow(0, n, n), &head);
    let index = labels.narrow(0, n, n).reshape([n, 1]);
    let theirs = activation::log_softmax(rows().matmul(columns().transpose()), 1).gather(1, index).reshape([n]);
    let dout = random([n], &device);
    close("logp", &values(ours.clone()), &values(theirs.clone()), SOFTMAX);
    let both = (&(ours * dout.clone()).sum().backward(), &(theirs * dout).sum().backward());
    gradient("logp dhidden", &hidden, both, SOFTMAX);
    gradient("logp dweight", &weight, both, SOFTMAX);
}

/// x [C] to x [.., .., .., C], with the same rows in each.
#[test]
fn leading_dims() {
    let (device, config) = (taped(), LoraConfig { r: 3, ..LoraConfig::default() });
    let (o, c) = (37, 33);
    let mut packed =
        QLoraLinear::from_linear(LinearConfig::new(c, o).init(&device), Format::Nf4, named(&config)).unwrap();
    packed.adapter.b = Param::from_tensor(random([o, 3], &device));
    let mut floats = LoraLinear::from_linear(LinearConfig::new(c, o).init(&device), named(&config)).unwrap();
    floats.adapter.b = packed.adapter.b.clone();
    let x = random([2, 3, 2, c], &device);
    let rows = x.clone().reshape([12, c]);
    for (name, want, got) in [
        ("packed", packed.forward(rows.clone()), packed.forward(x.clone()).reshape([12, o])),
        ("packed", packed.forward(rows.clone()), packed.forward(x.clone().reshape([4, 3, c])).reshape([12, o])),
        ("floats", floats.forward(rows.clone()), floats.forward(x.clone()).reshape([12, o])),
    ] {
        assert_eq!(values(got), values(want), "{name}");
    }
    let one = packed.forward(rows.clone().slice([5..6, 0..c]).reshape([c]));
    assert_eq!(one.dims(), [o]);
    close("one row", &values(one), &values(packed.forward(rows).slice([5..6, 0..o])), product(c));
    assert_eq!(packed.forward(x.swap_dims(0, 1)).dims(), [3, 2, 2, o]);
}

#[cfg(feature = "tui")]
#[test]
fn other_devices_are_refused() {
    let x = random([2, 4], &burn::tensor::Device::flex());
    let said = std::panic::catch_unwind(|| luthier_burn::swiglu(x.clone(), x)).unwrap_err();
    let said = said.downcast_ref::<String>().expect("a message");
    assert!(said.contains("Flex") && said.contains("`wgpu` or `cuda` is wanted"), "{said}");
}
