//! Burn's own `Learner`, with its checkpoints and (on a terminal) its TUI, on layers with packed weights:
//! `cargo run --release -p luthier-burn --features tui --example learner -- OUT [EPOCHS]`. Only A and B are trained: the layers learn to
//! undo a rotation of their inputs' channels.
use burn::data::dataloader::{DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::constant::ConstantLr;
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use burn::train::metric::LossMetric;
use burn::train::{InferenceStep, Learner, RegressionOutput, SupervisedTraining, TrainOutput, TrainStep};
use luthier::rng::Rng;
use luthier_burn::{Format, LoraConfig, Named, QLoraLinear, swiglu};

const C: usize = 64;
type Pair = (Tensor<2>, Tensor<2>);

#[derive(Module, Debug)]
struct Model {
    gate: QLoraLinear,
    up: QLoraLinear,
    down: QLoraLinear,
}

impl Model {
    fn run(&self, (x, targets): Pair) -> RegressionOutput {
        let output = self.down.forward(swiglu(self.gate.forward(x.clone()), self.up.forward(x)));
        let loss = (output.clone() - targets.clone()).powi_scalar(2).mean();
        RegressionOutput::new(loss, output, targets)
    }
}

impl TrainStep for Model {
    type Input = Pair;
    type Output = RegressionOutput;
    fn step(&self, item: Pair) -> TrainOutput<RegressionOutput> {
        let output = self.run(item);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for Model {
    type Input = Pair;
    type Output = RegressionOutput;
    fn step(&self, item: Pair) -> RegressionOutput {
        self.run(item)
    }
}

#[derive(Clone)]
struct Rotated;
impl Batcher<u64, Pair> for Rotated {
    fn batch(&self, seeds: Vec<u64>, device: &Device) -> Pair {
        let row = |seed: u64| (0..C).map(move |i| Rng::stream(seed, i as u64).normal());
        let values: Vec<f32> = seeds.iter().flat_map(|seed| row(*seed)).collect();
        let x = Tensor::<2>::from_data(TensorData::new(values, [seeds.len(), C]), device);
        (x.clone(), Tensor::cat(vec![x.clone().narrow(1, 1, C - 1), x.narrow(1, 0, 1)], 1))
    }
}

fn main() {
    let (out, epochs) = (std::env::args().nth(1), std::env::args().nth(2));
    let (out, epochs) = (out.expect("a folder"), epochs.map_or(4, |n| n.parse().expect("a number of epochs")));
    let device = Device::wgpu(DeviceKind::DefaultDevice).autodiff();
    let config = LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::default() };
    let layer = |module, input, output| {
        let linear = LinearConfig::new(input, output).init(&device);
        QLoraLinear::from_linear(linear, Format::Nf4, Named { config: &config, module }).expect("a good config")
    };
    let model = Model { gate: layer("gate", C, 128), up: layer("up", C, 128), down: layer("down", 128, C) };
    let loader = |seeds: std::ops::Range<u64>| {
        DataLoaderBuilder::new(Rotated)
            .batch_size(32)
            .set_device(device.clone())
            .build(InMemDataset::new(seeds.collect()))
    };
    let training = SupervisedTraining::new(&out, loader(0..640), loader(1000..1064))
        .metrics((LossMetric::new(),))
        .with_default_checkpointers()
        .num_epochs(epochs)
        .summary();
    let result = training.launch(Learner::new(model, AdamWConfig::new().init(), ConstantLr::new(5e-3)));
    assert!(result.error.is_none(), "{:?}", result.error);
}
