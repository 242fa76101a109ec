//! What a session keeps does not change what it computes, and what a rehearsal counts is what a run takes.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
use luthier::backend::{Backend, CudaRules, Memory, Use};
use luthier::dtype::DType;
use luthier::export::init;
use luthier::io::hub::Event;
use luthier::model::lora::LoraConfig;
use luthier::model::{Keep, LoadOptions, Model, Place, Places, Plan, Session, Tokens};
use luthier::train::config;
use luthier::train::metrics::{EvalMetrics, Reporter, StepMetrics};
use luthier::train::optim::Stay;
use luthier::train::plan::{self, Budget};
use luthier::train::run;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::rc::Rc;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

const LAYERS: usize = 6;
/// Of the families, those whose blocks differ; every backend tries these, the cpu all.
const DIFFERENT: [&str; 6] = ["llama", "gemma2", "deepseek_v3", "gpt_neox", "gpt_oss", "qwen2_moe"];

/// A golden's config with more layers, and random weights for it.
fn deeper(golden: &Path, dir: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(golden.join("config.json")).ok()?;
    let mut config: Value = serde_json::from_str(&text).unwrap();
    if config.get("quantization_config").is_some() {
        return None;
    }
    let key = if config.get("n_layer").is_some() { "n_layer" } else { "num_hidden_layers" };
    config[key] = LAYERS.into();
    for key in ["layer_types", "mlp_layer_types", "no_rope_layers"] {
        if let Some(Value::Array(old)) = config.get(key) {
            config[key] = old.iter().cycle().take(LAYERS).cloned().collect();
        }
    }
    let (file, out) = (dir.join("config.json"), dir.join("model"));
    std::fs::write(&file, config.to_string()).unwrap();
    init::init(&file, &out, DType::F32, None, 5).unwrap_or_else(|e| panic!("{}: {e}", golden.display()));
    Some(out)
}

/// The log-probabilities and every gradient of two steps on two sequences.
fn results(b: &dyn Backend, folder: &Path, lora: Option<LoraConfig>, plan: Plan) -> Vec<Vec<f32>> {
    let options = LoadOptions { train: true, lora, seed: 3, ..LoadOptions::frozen(DType::F32) };
    gradients(b, &mut Model::load(b, folder, &options).unwrap(), plan)
}

fn gradients(b: &dyn Backend, model: &mut Model, plan: Plan) -> Vec<Vec<f32>> {
    let (N, V) = (13, model.spec.V as u32);
    let mut session = Session::new(b, model, N, N, plan).unwrap();
    let mut all = Vec::new();
    for step in 0..2 {
        let ids: Vec<u32> = (0..N as u32).map(|n| (n * 37 + step * 11 + 5) % V).collect();
        let positions = (0..8).chain(0..5).collect();
        let labels: Vec<u32> = ids.iter().map(|id| (id * 7 + 1) % V).collect();
        let coef: Vec<f32> = (0..N).map(|n| 0.1 * (n as f32 - 6.0)).collect();
        session.set_dropout(Some(9));
        session.forward(model, &Tokens { ids, positions, cu_seqlens: vec![0, 8, 13] }).unwrap();
        session.backward(model, &labels, &coef).unwrap();
        all.push(session.backward_logprobs().unwrap());
    }
    all.extend(model.trained().map(|p| p.grad(b).unwrap()));
    all
}

/// Uniform ones and mixtures; of those on the host, some travel and some stay in their slots.
fn plans() -> Vec<Plan> {
    use Keep::*;
    let mut all = vec![Plan::Recompute];
    all.extend([Attention, Host].map(|keep| Plan::Layers(vec![keep; LAYERS])));
    all.push(Plan::Layers(vec![Host, Attention, Host, Host, All, Host]));
    all.push(Plan::Layers(vec![Input, Host, All, Host, Attention, Host]));
    all
}

#[test]
fn what_is_kept_changes_nothing() {
    let mut tried = 0;
    for folder in std::fs::read_dir(golden_root()).unwrap().map(|entry| entry.unwrap().path()) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let dir = tempfile::tempdir().unwrap();
        let Some(model) = deeper(&folder, dir.path()) else { continue };
        for b in backends() {
            if b.name() != "cpu" && !DIFFERENT.contains(&name.as_str()) {
                continue;
            }
            let want = results(&*b, &model, None, Plan::Keep);
            assert!(want.iter().all(|values| values.iter().all(|x| x.is_finite())), "{name}");
            assert!(want.iter().filter(|values| values.iter().any(|x| *x != 0.0)).count() > want.len() / 2, "{name}");
            for plan in plans() {
                assert!(results(&*b, &model, None, plan.clone()) == want, "{name} on {}: {plan}", b.name());
                tried += 1;
            }
        }
        println!("{name} ok");
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn adapters_with_dropout_are_no_exception() {
    let dir = tempfile::tempdir().unwrap();
    let model = deeper(&golden_root().join("llama"), dir.path()).unwrap();
    for b in backends() {
        let lora = LoraConfig { r: 4, lora_dropout: 0.3, ..LoraConfig::default() };
        let of = |plan| results(&*b, &model, Some(lora.clone()), plan);
        let want = of(Plan::Keep);
        for plan in plans() {
            assert!(of(plan.clone()) == want, "{}: {plan}", b.name());
        }
    }
}

/// Within rounding, for weight gradients are summed in another order.
#[test]
fn an_mlp_may_run_in_tiles() {
    for name in ["llama", "gemma2", "gpt_neox", "granite", "cohere2", "qwen2_moe"] {
        let dir = tempfile::tempdir().unwrap();
        let model = deeper(&golden_root().join(name), dir.path()).unwrap();
        for b in backends() {
            let lora = (name == "llama").then(|| LoraConfig { r: 4, ..LoraConfig::default() });
            let of = |plan| results(&*b, &model, lora.clone(), plan);
            let want = of(Plan::Keep);
            for keep in [Keep::Attention, Keep::Input, Keep::Host] {
                for rows in [1, 4, 13, 20] {
                    let got = of(Plan::Tiled(vec![keep; LAYERS], rows));
                    for (got, want) in got.iter().zip(&want) {
                        let error = nmse(got, want);
                        assert!(
                            want.iter().all(|x| *x == 0.0) || error <= 1e-9,
                            "{name} on {}, {keep:?}, {rows}: {error:e}",
                            b.name()
                        );
                    }
                }
            }
        }
    }
}

/// Dense and quantized, of all layers alike and of two kinds.
#[test]
fn where_frozen_weights_are_changes_nothing() {
    let names = ["llama", "qwen2_moe", "deepseek_v3", "gpt_oss", "granite"];
    for (name, four) in names.map(|name| (name, false)).into_iter().chain([("llama", true)]) {
        let dir = tempfile::tempdir().unwrap();
        let folder = deeper(&golden_root().join(name), dir.path()).unwrap();
        for b in backends() {
            let of = |blocks, embed, plan: Plan| {
                let lora = Some(LoraConfig { r: 4, ..LoraConfig::default() });
                let options = LoadOptions {
                    train: true,
                    lora,
                    seed: 3,
                    load_in_4bit: four,
                    places: Places { blocks, embed },
                    ..LoadOptions::frozen(DType::F32)
                };
                let before = (b.memory().used, b.memory().host);
                let mut model = Model::load(&*b, &folder, &options).unwrap();
                let (used, host) = (b.memory().used - before.0, b.memory().host - before.1);
                let all = gradients(&*b, &mut model, plan);
                let own: Vec<_> = model.trained().map(|p| p.name.clone()).collect();
                assert!(own.iter().all(|name| name.contains("lora_")));
                model.free(&*b);
                assert_eq!(b.memory().host, before.1, "{name}");
                (used, host, all)
            };
            use Place::*;
            let here = of(Device, Device, Plan::Keep);
            assert_eq!(here.1, 0);
            for (blocks, embed) in [(Host, Device), (Device, Host), (Host, Host)] {
                let away = of(blocks, embed, Plan::Keep);
                let sizes = ((away.0, away.1), here.0);
                assert!(away.2 == here.2, "{name} on {}: {blocks:?} {embed:?}", b.name());
                assert!(away.1 > 0 && away.0 < here.0, "{name} on {}: {blocks:?} {embed:?} {sizes:?}", b.name());
            }
            let both = of(Host, Host, Plan::Layers(vec![Keep::Host; LAYERS]));
            assert!(both.2 == here.2, "{name} on {}", b.name());
        }
    }
}

#[derive(Default)]
struct Quiet {
    said: Vec<String>,
}

impl Reporter for Quiet {
    fn start(&mut self, _: u64, _: u64) {}
    fn step(&mut self, _: &StepMetrics) {}
    fn eval(&mut self, _: &EvalMetrics) {}
    fn sample(&mut self, _: &str, _: &str) {}
    fn saved(&mut self, _: &Path) {}
    fn message(&mut self, text: &str) {
        self.said.push(text.into());
    }
    fn download(&mut self, _: Event) {}
}

/// A model folder with a tokenizer, and chats.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        let own = json!({ "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 64 });
        let kinds = [
            ("dense", json!({ "model_type": "llama", "tie_word_embeddings": true })),
            ("moe", json!({ "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2 })),
            ("after", json!({ "model_type": "olmo2" })),
        ];
        for (name, kind) in kinds {
            let mut config = own.clone();
            config.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
            std::fs::write(bench.at("config.json"), config.to_string()).unwrap();
            init::init(&bench.at("config.json"), &bench.at(name), DType::Bf16, None, 1).unwrap();
            for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
            {
                std::fs::copy(Path::new("assets/base").join(file), bench.at(name).join(file)).unwrap();
            }
        }
        let chat = |i: usize| {
            let said = |role: &str, content: String| json!({ "role": role, "content": content });
            json!({ "messages": [said("user", format!("{i} + 1?")), said("assistant", (i + 1).to_string())] })
                .to_string()
        };
        std::fs::write(bench.at("chats.jsonl"), (0..30).map(chat).collect::<Vec<_>>().join("\n")).unwrap();
        bench
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn config(&self, model: &str, keys: &str) -> config::TrainConfig {
        let text = format!(
            "model_name_or_path = {:?}\ndataset = {:?}\noutput_dir = {:?}\nmax_length = 64\nper_device_train_batch_size = 2\n\
             max_steps = 2\nlearning_rate = 1e-3\nresume_from_checkpoint = false\n{keys}",
            self.at(model),
            self.at("chats.jsonl"),
            self.at("out")
        );
        std::fs::write(self.at("run.toml"), text).unwrap();
        config::load(&self.at("run.toml"), &[]).unwrap_or_else(|e| panic!("{keys}: {e}"))
    }
}

/// Every other one is for all backends.
const RUNS: [(&str, &str); 19] = [
    (
        "dense",
        "load_in_4bit = true\noptim = \"adamw_8bit\"\ngradient_checkpointing = \"offload\"\n[lora]\nr = 16\nlora_dropout = 0.1",
    ),
    ("dense", "dtype = \"float32\"\ngradient_checkpointing = false"),
    (
        "dense",
        "packing = true\neval_split = 0.2\ngradient_accumulation_steps = 2\n[lora]\nr = 4\nmodules_to_save = [\"embed_tokens\"]",
    ),
    ("dense", "optim = \"adamw_8bit\"\ngradient_checkpointing = true"),
    ("dense", "optim = \"paged_adamw_8bit\""),
    ("moe", "optim = \"muon\""),
    ("dense", "optim = \"sgd\"\nlearning_rates = { q_proj = 0, down_proj = 1e-4 }"),
    ("moe", "gradient_checkpointing = \"unsloth\""),
    ("dense", "load_in_8bit = true\n[lora]\nuse_dora = true"),
    ("dense", "load_in_4bit = true\noffload_weights = true\ngradient_checkpointing = \"offload\"\n[lora]\nr = 8"),
    ("moe", "load_in_4bit = true\n[lora]\nr = 4"),
    ("after", "gradient_checkpointing = true"),
    ("after", "dtype = \"float32\"\ngradient_checkpointing = \"offload\"\n[lora]\nr = 4"),
    ("moe", "compute = \"fp8\"\n[lora]\nr = 4"),
    ("dense", "compute = \"fp8\"\noffload_weights = true\ngradient_checkpointing = \"offload\"\n[lora]\nr = 8"),
    ("moe", "bf16_stochastic_round = true\nmax_grad_norm = 0"),
    (
        "after",
        "bf16_stochastic_round = true\ngradient_accumulation_dtype = \"bfloat16\"\noffload_gradients = true\noptim = \"adamw_8bit\"",
    ),
    ("dense", "dtype = \"float32\"\noffload_gradients = true\ngradient_accumulation_steps = 2"),
    ("after", "gradient_accumulation_dtype = \"bfloat16\"\nmax_grad_norm = 0\noptim = \"muon\""),
];

fn fresh() -> impl Iterator<Item = Box<dyn Backend>> {
    let names: Vec<&'static str> = backends().iter().map(|b| b.name()).collect();
    names.into_iter().map(|name| luthier::backend::pick::pick(name).unwrap().0)
}

/// All but what the device has.
fn counted(memory: Memory) -> Memory {
    Memory { total: None, used: 0, by_use: Default::default(), host: 0, ..memory }
}

#[test]
fn a_rehearsal_counts_what_a_run_takes() {
    let bench = Bench::new();
    for (i, (model, keys)) in RUNS.into_iter().enumerate() {
        let config = bench.config(model, keys);
        for b in fresh().filter(|b| b.name() == "cpu" || i.is_multiple_of(2)) {
            let opened = b.memory();
            let layout = plan::plan(&config, b.rules(), Budget::of(&*b, &config), &mut Quiet::default()).unwrap();
            assert_eq!(b.memory(), opened, "planning takes nothing");
            run::train(&config, &*b, &mut Quiet::default()).unwrap_or_else(|e| panic!("{model} {keys}: {e}"));
            assert_eq!(counted(b.memory()), counted(layout.memory), "{model} {keys} on {}: {}", b.name(), layout.plan);
            let part = |what: Use| layout.memory.at_peak[what as usize];
            assert!(
                part(Use::Weights) > 0 && part(Use::Gradients) > 0 && part(Use::Optimizer) > 0,
                "{:?}",
                layout.memory
            );
            assert_eq!(part(Use::Adapter) > 0, keys.contains("[lora]"), "{keys}: {:?}", layout.memory);
            let away = ["offload", "unsloth", "paged"].iter().any(|word| keys.contains(word));
            assert_eq!(layout.memory.host_peak > 0, away, "{keys}");
        }
    }
}

#[test]
fn a_limit_is_kept_with_as_much_as_fits() {
    let bench = Bench::new();
    for b in fresh() {
        let plan_of = |keys: &str| {
            let config = bench.config("dense", keys);
            let layout = plan::plan(&config, b.rules(), Budget::of(&*b, &config), &mut Quiet::default()).unwrap();
            (config, layout)
        };
        let most = plan_of("gradient_checkpointing = false").1.memory.peak;
        let least = plan_of("gradient_checkpointing = true\nmemory_limit = 1").1;
        assert!(!least.fits() && least.memory.peak < most);
        let e = least.error(b.name());
        assert!(e.exit_code() == 69 && e.to_string().contains("logits, MLP, attention 0.00 GiB"), "{e}");
        let limit = (2 * most + least.memory.peak) / 3;
        let (config, layout) = plan_of(&format!("memory_limit = {limit}"));
        let Plan::Layers(each) = &layout.plan else { panic!("a plan for each layer") };
        assert!(
            layout.fits() && each.contains(&Keep::All) && each.iter().any(|keep| *keep != Keep::All),
            "{}",
            layout.plan
        );
        let mut said = Quiet::default();
        run::train(&config, &*b, &mut said).unwrap();
        assert!(b.memory().peak <= limit && b.memory().peak == layout.memory.peak);
        assert!(said.said.iter().any(|line| line.contains("layers keep")), "{:?}", said.said);
        let config = bench.config("dense", "memory_limit = \"1MiB\"");
        let e = run::train(&config, &*b, &mut Quiet::default()).unwrap_err();
        assert!(e.to_string().contains("are there"), "{e}");
    }
}

/// Before anything is computed again; and not where the whole weight is wanted on the device.
#[test]
fn an_embedding_waits_on_the_host_where_memory_is_short() {
    let bench = Bench::new();
    let layout = |model: &str, keys: &str| {
        let config = bench.config(model, &format!("{keys}\n[lora]\nr = 4"));
        plan::plan(&config, Rc::new(CudaRules::FULL), Budget::given(1 << 40, &config), &mut Quiet::default())
    };
    let whole = layout("after", "").unwrap();
    assert!(whole.places == Places::default() && whole.plan.keeps_all(), "{:?} {}", whole.places, whole.plan);
    let limit = format!("memory_limit = {}", whole.memory.peak - 1);
    let short = layout("after", &limit).unwrap();
    assert!(short.fits() && short.places.embed == Place::Host && short.plan.keeps_all(), "{}", short.plan);
    let embed = |model: &str, keys: &str| layout(model, keys).unwrap().places.embed;
    assert_eq!(embed("after", &format!("{limit}\noffload_embedding = false")), Place::Device);
    assert_eq!(embed("after", "offload_embedding = true"), Place::Host);
    assert_eq!(embed("after", "gradient_checkpointing = \"offload\""), Place::Host);
    assert_eq!(embed("dense", "gradient_checkpointing = \"offload\""), Place::Device, "it is tied");
    let e = layout("dense", "offload_embedding = true").err().unwrap();
    assert!(e.exit_code() == 2 && e.to_string().contains("the head multiplies with the same weight"), "{e}");
}

/// The same numbers with weights and with their shapes alone.
#[test]
fn a_config_can_be_planned_without_weights() {
    let bench = Bench::new();
    let b = luthier::backend::pick::pick("cpu").unwrap().0;
    let memory = |model: &str, keys: &str| {
        let config = bench.config(model, keys);
        plan::plan(&config, b.rules(), Budget::default(), &mut Quiet::default()).unwrap().memory
    };
    for keys in ["optim = \"adamw_8bit\"", "load_in_4bit = true\n[lora]\nr = 4"] {
        let (with, without) = (memory("dense", keys), memory("dense/config.json", keys));
        for what in [Use::Weights, Use::Adapter, Use::Gradients, Use::Master, Use::Optimizer, Use::Activations] {
            assert_eq!(with.at_peak[what as usize], without.at_peak[what as usize], "{what:?} {keys}");
        }
    }
}

/// Of no more layers than memory asks for, and never where the config says no; nothing at all where weights move in the backward.
#[test]
fn gradients_leave_as_memory_asks() {
    let bench = Bench::new();
    let cuda = || luthier::backend::pick::rules("cuda").unwrap();
    let lean = "bf16_stochastic_round = true\ngradient_accumulation_dtype = \"bfloat16\"\ngradient_checkpointing = \"offload\"";
    let plan_of = |keys: &str, bytes: u64| {
        let config = bench.config("after", &format!("{lean}\n{keys}"));
        plan::plan(&config, cuda(), Budget::given(bytes, &config), &mut Quiet::default()).unwrap()
    };
    let layers = |layout: &plan::Layout| match layout.stay {
        Stay::Host { layers, .. } => layers.min(LAYERS),
        _ => 0,
    };
    let (most, least) = (plan_of("", 1 << 40), plan_of("offload_gradients = true", 1 << 40));
    assert_eq!((most.stay, layers(&least)), (Stay::Device, LAYERS));
    let (high, low) = (most.memory.peak, least.memory.peak);
    assert!(low < high, "{low} {high}");
    let mut seen = vec![0];
    // a driver keeps a 32nd for itself
    for i in 0..=8 {
        let room = low + (high - low) * i / 8;
        let layout = plan_of("", room + room / 31 + 1);
        assert!(layout.fits() && layout.memory.peak <= room, "{i}: {} of {room}", layout.memory.peak);
        assert!(layers(&layout) <= *seen.last().unwrap() || i == 0, "more room, fewer layers: {seen:?}");
        if i == 0 {
            seen.clear();
        }
        seen.push(layers(&layout));
    }
    assert_eq!((seen[0], seen[8]), (LAYERS, 0));
    assert!(seen.iter().any(|n| (1..LAYERS).contains(n)), "{seen:?}");
    assert_eq!(plan_of("offload_gradients = false", low).memory.peak, high);
    let fused = plan_of("max_grad_norm = 0", low);
    assert!(fused.stay == Stay::Fused && fused.memory.peak < high, "{:?}", fused.stay);
}
