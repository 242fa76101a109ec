//! A Llama written in Burn, its linear layers in NF4 with an adapter each, fine-tuned by Burn's AdamW on Rust's compiler errors:
//! `cargo run --release -p luthier-burn --example finetune -- OUT 40` (steps), from the repository's root. OUT becomes a PEFT adapter
//! of assets/base: for transformers, or for `luthier generate --model assets/base --adapter OUT`.
use burn::module::{Module, Param};
use burn::nn::{Linear, attention::generate_autoregressive_mask};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, DeviceKind, Int, Tensor, TensorData, activation};
use luthier::{Result, data::Tokenizer, io::safetensors::Tensors};
use luthier_burn::{Format, Head, LoraConfig, Named, Norm, Pairs, QLoraLinear, Rope, RopeScaling, RopeTable, Targets};
use luthier_burn::{linear_cross_entropy, peft, rmsnorm, rope, swiglu};
use std::path::Path;

/// Query heads and key heads, and a head's size, as assets/base/config.json has them.
const H: usize = 4;
const K: usize = 2;
const D: usize = 64;
/// Tokens of a sequence; four are a step.
const T: usize = 128;
const NORM: Norm = Norm { eps: 1e-5, shift: 0.0 };
const LINEARS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

#[derive(Module, Debug)]
struct Llama {
    embed: Param<Tensor<2>>,
    layers: Vec<Layer>,
    norm: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Layer {
    norms: Vec<Param<Tensor<1>>>,
    /// As in `LINEARS`.
    linears: Vec<QLoraLinear>,
}

/// A linear layer's name in the base model.
fn name(layer: usize, linear: usize) -> String {
    format!("model.layers.{layer}.{}.{}", if linear < 4 { "self_attn" } else { "mlp" }, LINEARS[linear])
}

/// A tensor of the file, not to be trained.
fn read<const N: usize>(file: &Tensors, name: &str, device: &Device) -> Result<Param<Tensor<N>>> {
    let tensor = file.get(name)?;
    let data = TensorData::new(tensor.to_f32().expect("floats"), tensor.shape.to_vec());
    Ok(Param::from_tensor(Tensor::from_data(data, device)).set_require_grad(false))
}

impl Layer {
    fn load(file: &Tensors, layer: usize, config: &LoraConfig, device: &Device) -> Result<Layer> {
        let linear = |i: usize| {
            let weight = read(file, &format!("{}.weight", name(layer, i)), device)?.map(Tensor::transpose);
            let lora = Named { config, module: &name(layer, i) };
            QLoraLinear::from_linear(Linear { weight, bias: None }, Format::Nf4Double, lora)
        };
        let norm = |norm: &str| read(file, &format!("model.layers.{layer}.{norm}_layernorm.weight"), device);
        let norms = vec![norm("input")?, norm("post_attention")?];
        Ok(Layer { norms, linears: (0..7).map(linear).collect::<Result<_>>()? })
    }

    fn forward(&self, x: Tensor<3>, table: &RopeTable, at: Tensor<2, Int>, unseen: Tensor<4, Bool>) -> Tensor<3> {
        let [b, t, _] = x.dims();
        let [q, k, v, o, gate, up, down] = &self.linears[..] else { unreachable!("seven linears") };
        let n = rmsnorm(x.clone(), self.norms[0].val(), NORM);
        let q = rope(q.forward(n.clone()).reshape([b, t, H, D]), table, at.clone()).swap_dims(1, 2);
        let k = rope(k.forward(n.clone()).reshape([b, t, K, D]), table, at);
        // a key head serves H/K query heads
        let each = |x: Tensor<4>| x.reshape([b, t, K, 1, D]).repeat_dim(3, H / K).reshape([b, t, H, D]).swap_dims(1, 2);
        let (k, v) = (each(k), each(v.forward(n).reshape([b, t, K, D])));
        let scores = q.matmul(k.swap_dims(2, 3)) * (D as f64).powf(-0.5);
        let seen = activation::softmax(scores.mask_fill(unseen, f32::NEG_INFINITY), 3).matmul(v);
        let x = x + o.forward(seen.swap_dims(1, 2).reshape([b, t, H * D]));
        let n = rmsnorm(x.clone(), self.norms[1].val(), NORM);
        x + down.forward(swiglu(gate.forward(n.clone()), up.forward(n)))
    }
}

impl Llama {
    /// The mean loss of `labels` [B*T] behind `ids` [B, T].
    fn loss(&self, ids: Tensor<2, Int>, labels: Tensor<1, Int>, table: &RopeTable) -> Tensor<1> {
        let ([b, t], device) = (ids.dims(), ids.device());
        let at = Tensor::arange(0..t as i64, &device).reshape([1, t]).repeat_dim(0, b);
        let unseen = generate_autoregressive_mask(1, t, &device).reshape([1, 1, t, t]);
        let x = self.embed.val().select(0, ids.reshape([b * t])).reshape([b, t, H * D]);
        let layer = |x, layer: &Layer| layer.forward(x, table, at.clone(), unseen.clone());
        let x = rmsnorm(self.layers.iter().fold(x, layer), self.norm.val(), NORM);
        linear_cross_entropy(x.reshape([b * t, H * D]), self.embed.val(), labels, &Head::default())
    }
}

fn main() -> Result<()> {
    let out = std::env::args().nth(1).expect("a folder for the adapter");
    let steps = std::env::args().nth(2).map_or(40, |n| n.parse().expect("a number of steps"));
    let device = Device::wgpu(DeviceKind::DefaultDevice).autodiff();
    let target_modules = Targets::Names(LINEARS.map(String::from).into());
    let config = LoraConfig { r: 16, lora_alpha: 32.0, target_modules, ..LoraConfig::default() };
    let file = Tensors::open_folder(Path::new("assets/base"), "model")?;
    let layers = (0..6).map(|i| Layer::load(&file, i, &config, &device)).collect::<Result<_>>()?;
    let (embed, norm) =
        (read(&file, "model.embed_tokens.weight", &device)?, read(&file, "model.norm.weight", &device)?);
    let mut model = Llama { embed, layers, norm };

    let text =
        std::fs::read_to_string("assets/rustc_explain.jsonl").expect("the repository's root is where to run this");
    let ids = Tokenizer::load(Path::new("assets/base"))?.encode(&text.replace("\\n", "\n"), false)?;
    let rope = Rope { theta: 10000.0, scaling: RopeScaling::Default };
    let table = RopeTable::new(&rope, T, D, Pairs::Halves, &device);
    let mut optimizer = AdamWConfig::new().init();
    for (step, ids) in ids.windows(4 * T + 1).step_by(4 * T).cycle().take(steps).enumerate() {
        let ids = TensorData::new(ids.iter().map(|id| *id as i32).collect(), [4 * T + 1]);
        let ids = Tensor::<1, Int>::from_data(ids, &device);
        let loss = model.loss(ids.clone().narrow(0, 0, 4 * T).reshape([4, T]), ids.narrow(0, 1, 4 * T), &table);
        println!("step {step}: loss {:.3}", loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-3, model, gradients);
    }
    let names: Vec<String> = (0..6 * 7).map(|i| name(i / 7, i % 7)).collect();
    let adapters = model.layers.iter().flat_map(|layer| &layer.linears).map(|linear| &linear.adapter);
    let modules: Vec<_> = names.iter().map(String::as_str).zip(adapters).collect();
    peft::save(&config, "assets/base", &modules, Path::new(&out))
}
