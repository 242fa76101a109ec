//! What the tape holds between forward and backward: never a weight in floats, never the logits of all tokens.
#![cfg(feature = "wgpu")]
mod common;
use burn::backend::{Backend, Cube};
use burn::nn::LinearConfig;
use burn::tensor::{Device, Int, Tensor};
use burn_cubecl::CubeDevice;
use common::*;
use luthier_burn::{Format, Head, LoraConfig, Named, QLoraLinear, linear_cross_entropy};

fn in_use(device: &Device) -> u64 {
    device.sync().unwrap();
    Cube::memory_pool_usage(&CubeDevice::Wgpu(Default::default())).unwrap().bytes_in_use
}

/// One test, for others beside it would count as well.
#[test]
fn between_forward_and_backward() {
    let (device, config) = (taped(), LoraConfig::default());
    let (n, size) = (100, 512);
    for format in [Format::Nf4, Format::Nf4Double, Format::Int8] {
        let base = LinearConfig::new(size, size).init(&device);
        let layer = QLoraLinear::from_linear(base, format, Named { config: &config, module: "proj" }).unwrap();
        let x = random([n, size], &device).require_grad();
        // whatever is made once, is
        drop(values(layer.forward(x.clone())));
        let before = in_use(&device);
        let y = layer.forward(x.clone());
        let held = in_use(&device) - before;
        // y itself, the bias' and the adapter's sums, X·Aᵀ: some rows of activations, against 1 MiB of weight
        println!("{format:?}: {held} bytes for a weight of {}", size * size * 4);
        assert!(held < 4 * (n * size * 4) as u64 && held < (size * size * 4) as u64, "{format:?}: {held} bytes");
        drop((y.sum().backward(), x));
    }
    let (n, c, v, chunk) = (512, 32, 4096, 64);
    let (hidden, weight) = (random([n, c], &device).require_grad(), random([v, c], &device));
    let labels = Tensor::<1, Int>::arange(0..n as i64, &device);
    let head = Head { chunk, ..Head::default() };
    let loss = || linear_cross_entropy(hidden.clone(), weight.clone(), labels.clone(), &head);
    drop(values(loss()));
    let before = in_use(&device);
    let kept = loss();
    let held = in_use(&device) - before;
    println!("head: {held} bytes, the logits would be {}", n * v * 4);
    assert!(held < (n * v * 4 / 16) as u64, "{held} bytes");
    kept.backward();
}
