//! What a QLoRA step holds on the device: Burn's own `apply_qlora` against `QLoraLinear`, one after the other in fresh processes.
//! `cargo run --release -p luthier-burn --example memory -- burn`, and `-- luthier`. 8 layers of 2048 x 2048, f32, batch 8, rank 8.
use burn::backend::{Backend, Cube};
use burn::module::{Lora, Module, QLora, Quantizer};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::quantization::{Calibration, QuantScheme, QuantValue, ScaleDtype};
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use burn_cubecl::CubeDevice;
use luthier_burn::{Format, LoraConfig, Named, QLoraLinear};

const LAYERS: usize = 8;
const SIZE: usize = 2048;

#[derive(Module, Debug)]
struct Plain {
    layers: Vec<Linear>,
}

#[derive(Module, Debug)]
struct Packed {
    layers: Vec<QLoraLinear>,
}

/// MiB in use and reserved, when all that was queued has run.
fn report(when: &str, device: &Device) {
    device.sync().expect("the device works");
    let usage = Cube::memory_pool_usage(&CubeDevice::Wgpu(Default::default())).expect("cubecl counts");
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    println!("{when:14} {:7.1} MiB in use, {:7.1} reserved", mib(usage.bytes_in_use), mib(usage.bytes_reserved));
}

fn step(forward: impl Fn(Tensor<2>) -> Tensor<2>, device: &Device) {
    device.sync().expect("the device works");
    device.memory_cleanup();
    report("weights", device);
    let x = Tensor::random([8, SIZE], Distribution::Normal(0.0, 1.0), device).require_grad();
    let loss = forward(x).powi_scalar(2).mean();
    report("after forward", device);
    let gradients = loss.backward();
    report("after backward", device);
    drop(gradients);
}

fn main() {
    let device = Device::wgpu(DeviceKind::DefaultDevice).autodiff();
    let linear = || LinearConfig::new(SIZE, SIZE).with_bias(false).init(&device);
    match std::env::args().nth(1).as_deref() {
        Some("burn") => {
            let scheme = QuantScheme::default().with_value(QuantValue::Q4S).per_block([32], ScaleDtype::F32);
            let quantizer = Quantizer::new(Calibration::MinMax, scheme);
            let model = Plain { layers: (0..LAYERS).map(|_| linear()).collect() };
            let model = model.apply_qlora(QLora::new(Lora::new(8, 16.0), quantizer));
            step(|x| model.layers.iter().fold(x, |x, layer| layer.forward(x)), &device);
        }
        Some("luthier") => {
            let config = LoraConfig { lora_alpha: 16.0, ..LoraConfig::default() };
            let lora = Named { config: &config, module: "proj" };
            let layer = |_| QLoraLinear::from_linear(linear(), Format::Nf4, lora).expect("a good config");
            let model = Packed { layers: (0..LAYERS).map(layer).collect() };
            step(|x| model.layers.iter().fold(x, |x, layer| layer.forward(x)), &device);
        }
        _ => println!("burn or luthier?"),
    }
}
