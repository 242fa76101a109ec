//! Every op against the same written in Burn's own: forward and gradients, in f32 within the limits of the parity matrix.
#![cfg(feature = "wgpu")]
mod common;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData, activation};
use common::*;
use luthier_burn::{Activation, Format, Head, Norm, PackedWeight, Pairs, Rope, RopeScaling, RopeTable};

fn sigmoid_gate(x: Tensor<2>, slope: f32, cubic: f32) -> Tensor<2> {
    let bow = x.clone().powi_scalar(2) * cubic + slope;
    x.clone() * activation::sigmoid(x * bow)
}

fn act(x: Tensor<2>, act: Activation) -> Tensor<2> {
    let c = (8.0f64 / std::f64::consts::PI).sqrt() as f32;
    match act {
        Activation::Silu => activation::silu(x),
        // Burn's `gelu` has the gradient of the tanh formula
        Activation::Gelu => x.clone() * ((x * std::f32::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5,
        Activation::GeluTanh => sigmoid_gate(x, c, c * 0.044715),
        Activation::QuickGelu => sigmoid_gate(x, 1.702, 0.0),
        Activation::Relu => activation::relu(x),
        Activation::Relu2 => activation::relu(x).powi_scalar(2),
    }
}

#[test]
fn gated_activations() {
    let device = taped();
    let acts = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];
    for kind in acts.into_iter().chain([Activation::Relu2]) {
        for shape in [[1, 33], [37, 130], [5, 257]] {
            let [gate, up] = [random(shape, &device).require_grad(), random(shape, &device).require_grad()];
            let ours = luthier_burn::gated(gate.clone(), up.clone(), kind);
            let theirs = act(gate.clone(), kind) * up.clone();
            compare(&format!("{kind:?} {shape:?}"), &[&gate, &up], (ours, theirs), (ELEMENTWISE, ELEMENTWISE));
        }
    }
}

#[test]
fn views_are_read_as_they_are() {
    let device = plain();
    let (gate, up) = (random([64, 48], &device).swap_dims(0, 1), random([48, 64], &device));
    let want = activation::silu(gate.clone()) * up.clone();
    close("a transposed gate", &values(luthier_burn::swiglu(gate, up)), &values(want), ELEMENTWISE);
    let x = random([3, 10, 16], &device).slice([0..3, 2..9, 4..13]);
    // rows that begin at no multiple of anything
    let rows = random([5, 9], &device).slice([1..4, 0..9]);
    let want = activation::silu(rows.clone()) * rows.clone();
    close("unaligned rows", &values(luthier_burn::swiglu(rows.clone(), rows)), &values(want), ELEMENTWISE);
    let norm = Norm { eps: 1e-5, shift: 0.0 };
    let want = x.clone() / (x.clone().powi_scalar(2).mean_dim(2) + 1e-5).sqrt();
    let got = luthier_burn::rmsnorm(x, Tensor::ones([9], &device), norm);
    close("a slice's norm", &values(got), &values(want), ELEMENTWISE);
}

/// An op that works in place must not change what others still hold.
#[test]
fn inputs_stay_what_they_are() {
    let device = taped();
    let [gate, up] = [random([8, 32], &device).require_grad(), random([8, 32], &device).require_grad()];
    let before = [values(gate.clone()), values(up.clone())];
    luthier_burn::swiglu(gate.clone(), up.clone()).sum().backward();
    let x = random([1, 8, 2, 16], &device).require_grad();
    let kept = values(x.clone());
    let y = luthier_burn::rope(x.clone(), &table(16, Pairs::Halves, &device), positions(1, 8, &device));
    y.sum().backward();
    assert_eq!([values(gate), values(up)], before);
    assert_eq!(values(x), kept);
}

#[test]
fn rms_norms() {
    let device = taped();
    for (shape, shift) in [([1, 1, 1], 0.0), ([2, 19, 96], 0.0), ([3, 5, 257], 1.0), ([1, 300, 64], 1.0)] {
        let x = random(shape, &device).require_grad();
        let weight = random([shape[2]], &device).require_grad();
        let norm = Norm { eps: 1e-6, shift };
        let ours = luthier_burn::rmsnorm(x.clone(), weight.clone(), norm);
        let unit = x.clone() / (x.clone().powi_scalar(2).mean_dim(2) + 1e-6).sqrt();
        let theirs = unit * (weight.clone() + shift).unsqueeze();
        let dout = random(shape, &device);
        close("norm", &values(ours.clone()), &values(theirs.clone()), ELEMENTWISE);
        let both = (&(ours * dout.clone()).sum().backward(), &(theirs * dout).sum().backward());
        // a row of one channel has no gradient but by eps: it is what rounding leaves
        if shape[2] > 1 {
            gradient("norm dx", &x, both, NORM_BACKWARD);
        }
        gradient("norm dweight", &weight, both, NORM_BACKWARD);
    }
}

fn table(channels: usize, pairs: Pairs, device: &Device) -> RopeTable {
    let rope = Rope { theta: 10000.0, scaling: RopeScaling::Default };
    RopeTable::new(&rope, 64, channels, pairs, device)
}

fn positions(b: usize, t: usize, device: &Device) -> Tensor<2, Int> {
    let all: Vec<i32> = (0..b * t).map(|i| ((i * 7 + 3) % 64) as i32).collect();
    Tensor::from_data(TensorData::new(all, [b, t]), device)
}

/// The first `channels` of x [B, T, H, D], turned by angles [B, T, 1, A/2].
fn turned(x: Tensor<4>, channels: usize, pairs: Pairs, positions: Tensor<2, Int>) -> Tensor<4> {
    let ([b, t, h, d], half) = (x.dims(), channels / 2);
    // on the host, for a device's sin and cos are good to 1e-5 or so
    let freq = |i: usize| 10000f64.powf(-2.0 * i as f64 / channels as f64) as f32;
    let places = positions.into_data().convert::<i32>().try_to_vec::<i32>().unwrap();
    let angles: Vec<f64> = places.iter().flat_map(|t| (0..half).map(move |i| (*t as f32 * freq(i)) as f64)).collect();
    let table = |f: fn(f64) -> f64| {
        let values = angles.iter().map(|angle| f(*angle) as f32).collect::<Vec<_>>();
        Tensor::<4>::from_data(TensorData::new(values, [b, t, 1, half]), &x.device())
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let (head, rest) = (x.clone().slice([0..b, 0..t, 0..h, 0..channels]), x.slice([0..b, 0..t, 0..h, channels..d]));
    let turned = match pairs {
        Pairs::Halves => {
            let (a, c) =
                (head.clone().slice([0..b, 0..t, 0..h, 0..half]), head.slice([0..b, 0..t, 0..h, half..channels]));
            Tensor::cat(vec![a.clone() * cos.clone() - c.clone() * sin.clone(), c * cos + a * sin], 3)
        }
        Pairs::Interleaved => {
            let two = head.reshape([b, t, h * half, 2]);
            let part = |i: usize| two.clone().slice([0..b, 0..t, 0..h * half, i..i + 1]).reshape([b, t, h, half]);
            let (a, c) = (part(0), part(1));
            let (first, second) = (a.clone() * cos.clone() - c.clone() * sin.clone(), c * cos + a * sin);
            let column = |x: Tensor<4>| x.reshape([b, t, h * half, 1]);
            Tensor::cat(vec![column(first), column(second)], 3).reshape([b, t, h, channels])
        }
    };
    if channels == d { turned } else { Tensor::cat(vec![turned, rest], 3) }
}

#[test]
fn rotary_positions() {
    let device = taped();
    for (shape, channels) in [([1, 1, 1, 2], 2), ([2, 9, 3, 16], 16), ([2, 5, 4, 20], 12), ([1, 64, 2, 14], 14)] {
        for pairs in [Pairs::Halves, Pairs::Interleaved] {
            let x = random(shape, &device).require_grad();
            let places = positions(shape[0], shape[1], &device);
            let ours = luthier_burn::rope(x.clone(), &table(channels, pairs, &device), places.clone());
            let theirs = turned(x.clone(), channels, pairs, places);
            compare(&format!("{pairs:?} {shape:?}"), &[&x], (ours, theirs), (ELEMENTWISE, ELEMENTWISE));
        }
    }
}

#[test]
fn packed_linears() {
    let device = taped();
    for format in [Format::Nf4, Format::Nf4Double, Format::Int8] {
        // both kernels: few rows, and many; whole blocks and torn ones
        for (n, o, c) in [(1, 1, 2), (5, 48, 128), (64, 37, 70), (65, 37, 70), (200, 130, 257)] {
            let weight = PackedWeight::quantize(random([o, c], &device) * 0.1, format);
            let dense = Tensor::from_data(weight.dequantize(FloatDType::F32).into_data(), &device);
            let x = random([n, c], &device).require_grad();
            let theirs = x.clone().matmul(dense.transpose());
            let limits = (product(c), product(o));
            compare(&format!("{format:?} {n} {o} {c}"), &[&x], (weight.linear(x.clone()), theirs), limits);
        }
    }
}

#[test]
fn adapters_products() {
    let device = taped();
    for (n, o, c, r) in [(1, 1, 1, 1), (19, 48, 96, 8), (130, 37, 65, 5)] {
        let [x, a, b] = [[n, c], [r, c], [o, r]].map(|shape| random(shape, &device).require_grad());
        let ours = lora(x.clone(), a.clone(), b.clone(), 0.75);
        let theirs = x.clone().matmul(a.clone().transpose()).matmul(b.clone().transpose()) * 0.75;
        let limit = product(n.max(o).max(c) * r);
        compare(&format!("LoRA {n} {o} {c} {r}"), &[&x, &a, &b], (ours, theirs), (limit, limit));
    }
}

fn lora(x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f32) -> Tensor<2> {
    use burn::backend::Dispatch;
    use luthier_burn::ops::Ops;
    Tensor::from_dispatch(Dispatch::lora(x.into_dispatch(), a.into_dispatch(), b.into_dispatch(), scale))
}

fn logprobs(hidden: Tensor<2>, weight: Tensor<2>, labels: &[i32], softcap: f32) -> Tensor<1> {
    let (n, device) = (labels.len(), hidden.device());
    let logits = hidden.matmul(weight.transpose());
    let logits = if softcap > 0.0 { (logits / softcap).tanh() * softcap } else { logits };
    let index: Vec<i32> = labels.iter().map(|l| (*l).max(0)).collect();
    let counts: Vec<f32> = labels.iter().map(|l| (*l >= 0) as u32 as f32).collect();
    let index = Tensor::<2, Int>::from_data(TensorData::new(index, [n, 1]), &device);
    let counts = Tensor::<1>::from_data(TensorData::new(counts, [n]), &device);
    activation::log_softmax(logits, 1).gather(1, index).reshape([n]) * counts
}

#[test]
fn heads_and_their_losses() {
    let device = taped();
    for (n, c, v, chunk, softcap) in [(1, 1, 2, 1, 0.0), (50, 33, 301, 16, 0.0), (33, 64, 1000, 1024, 30.0)] {
        let hidden = random([n, c], &device).require_grad();
        let weight = (random([v, c], &device) * 0.3).detach().require_grad();
        let labels: Vec<i32> = (0..n).map(|i| if i % 5 == 3 { -100 } else { (i * 31 % v) as i32 }).collect();
        let ints = Tensor::<1, Int>::from_data(TensorData::new(labels.clone(), [n]), &device);
        let head = Head { softcap, chunk, ..Head::default() };
        let ours = luthier_burn::linear_logprob(hidden.clone(), weight.clone(), ints.clone(), &head);
        let theirs = logprobs(hidden.clone(), weight.clone(), &labels, softcap);
        compare(&format!("logp {n} {c} {v}"), &[&hidden, &weight], (ours, theirs), (SOFTMAX, SOFTMAX));

        let counted = labels.iter().filter(|l| **l >= 0).count() as f32;
        let ours = luthier_burn::linear_cross_entropy(hidden.clone(), weight.clone(), ints, &head);
        let theirs = -logprobs(hidden.clone(), weight.clone(), &labels, softcap).sum() / counted;
        close("loss", &values(ours.clone()), &values(theirs.clone()), SOFTMAX);
        let both = (&ours.backward(), &theirs.backward());
        gradient("loss dhidden", &hidden, both, SOFTMAX);
        gradient("loss dweight", &weight, both, SOFTMAX);
    }
}

/// What is not trained gets no gradient, and costs none.
#[test]
fn frozen_inputs_have_no_gradient() {
    let device = taped();
    let (hidden, weight) = (random([6, 8], &device).require_grad(), random([12, 8], &device));
    let labels = Tensor::<1, Int>::from_data([1, 2, 3, 4, 5, 6], &device);
    let loss = luthier_burn::linear_cross_entropy(hidden.clone(), weight.clone(), labels, &Head::default());
    let gradients = loss.backward();
    assert!(hidden.grad(&gradients).is_some() && weight.grad(&gradients).is_none());
}

/// Burn may drop what is kept and compute it again: the same gradients.
#[test]
fn gradient_checkpointing() {
    let gradients = |device: &Device| {
        let of = |seed: usize| (0..24 * 32).map(|i| ((i * 37 + seed) % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
        let input = |seed| Tensor::<2>::from_data(TensorData::new(of(seed), [24, 32]), device).require_grad();
        let [gate, up] = [input(1), input(2)];
        let norm = Norm { eps: 1e-6, shift: 0.0 };
        // elementwise inputs, which Burn would rather compute again than keep
        let y = luthier_burn::swiglu(gate.clone() * 2.0, up.clone() + 1.0);
        let y = luthier_burn::rmsnorm(y, Tensor::ones([32], device), norm);
        let all = y.powi_scalar(2).sum().backward();
        [values(gate.grad(&all).unwrap()), values(up.grad(&all).unwrap())]
    };
    let kept = gradients(&taped());
    let again = gradients(&plain().clone().autodiff().gradient_checkpointing());
    for (kept, again) in kept.iter().zip(&again) {
        close("computed again", again, kept, ELEMENTWISE);
    }
}
