//! The engine: many sequences on one paged cache say what each would say alone.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
use luthier::backend::{Backend, cpu::Cpu};
use luthier::dtype::DType;
use luthier::export::peft;
use luthier::infer::{Engine, Event, Finish, Options, Prefixes, Request, RequestId, Sampling, generate};
use luthier::model::quantized;
use luthier::model::{LoadOptions, Model, arch};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
use support::*;

fn golden(name: &str) -> PathBuf {
    golden_root().join(name)
}

fn frozen(b: &dyn Backend, folder: &Path) -> Model {
    Model::load(b, folder, &LoadOptions::frozen(DType::F32)).unwrap_or_else(|e| panic!("{e}"))
}

fn greedy(tokens: usize) -> Sampling {
    Sampling { max_new_tokens: tokens, ..Sampling::default() }
}

/// Tokens that every golden has in its vocabulary.
fn prompt(length: usize, salt: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * i * 7 + i * salt + salt * 31) % 60).collect()
}

type Answers = BTreeMap<(RequestId, usize), Vec<u32>>;

/// Steps until nothing is left; `each` sees the engine after every step.
fn finish(engine: &mut Engine, mut each: impl FnMut(&mut Engine, usize)) -> (Answers, Vec<Event>) {
    let (mut answers, mut events, mut steps) = (Answers::new(), Vec::new(), 0);
    while engine.is_busy() {
        let new = engine.step().unwrap_or_else(|e| panic!("{e}"));
        for event in &new {
            let answer = answers.entry((event.request, event.index)).or_default();
            answer.extend(event.token.iter().map(|token| token.id));
        }
        events.extend(new);
        steps += 1;
        assert!(steps < 5000, "no end");
        each(engine, steps);
    }
    (answers, events)
}

fn options(sequences: usize, tokens: usize, length: usize) -> Options {
    Options {
        max_sequences: sequences,
        max_step_tokens: tokens,
        max_length: Some(length),
        kv_cache: None,
        prefixes: Prefixes::Shared,
    }
}

/// Every architecture: prompts of several lengths in pieces of 8 tokens, joining as others go on, say what each says alone.
#[test]
fn together_as_alone() {
    let b: &dyn Backend = &Cpu::new();
    let mut seen = 0;
    for folder in std::fs::read_dir(golden_root()).unwrap().map(|e| e.unwrap().path()) {
        let unquantized = || {
            luthier::model::arch::read_spec(&folder).is_ok() && quantized::scheme(&folder).is_ok_and(|s| s.is_none())
        };
        if !folder.join("config.json").exists() || !unquantized() {
            continue;
        }
        let model = frozen(b, &folder);
        let prompts: Vec<Vec<u32>> = [5, 21, 1, 17, 9].iter().zip(1..).map(|(len, salt)| prompt(*len, salt)).collect();
        let alone: Vec<_> =
            prompts.iter().map(|p| generate(b, &model, p, &greedy(14), &[], |_| true).unwrap()).collect();
        let mut engine = Engine::lend(b, &model, &options(4, 8, 40)).unwrap();
        let mut ids = Vec::new();
        for prompt in &prompts[..2] {
            ids.push(engine.add(Request::new(prompt.clone(), greedy(14), vec![])).unwrap());
        }
        let mut late: Vec<_> = prompts[2..].iter().rev().collect();
        let (answers, _) = finish(&mut engine, |engine, step| {
            if let Some(prompt) = late.pop_if(|_| step % 2 == 0) {
                ids.push(engine.add(Request::new(prompt.clone(), greedy(14), vec![])).unwrap());
            }
        });
        let together: Vec<_> = ids.iter().map(|id| answers[&(*id, 0)].clone()).collect();
        assert_eq!(together, alone, "{}", folder.display());
        let stats = engine.stats();
        assert_eq!((stats.running, stats.waiting, stats.pages_used), (0, 0, 0), "{}", folder.display());
        seen += 1;
    }
    assert!(seen >= 33, "{seen} models");
}

/// On every backend; f32 may round otherwise in another batch, so tokens are compared where they are not nearly equal.
#[test]
fn every_backend_says_the_same() {
    let want = {
        let b: &dyn Backend = &Cpu::new();
        let model = frozen(b, &golden("llama"));
        generate(b, &model, &prompt(19, 3), &greedy(20), &[], |_| true).unwrap()
    };
    for b in backends() {
        let b = &*b;
        let model = frozen(b, &golden("llama"));
        let mut engine = Engine::lend(b, &model, &options(3, 16, 64)).unwrap();
        let first = engine.add(Request::new(prompt(19, 3), greedy(20), vec![])).unwrap();
        for salt in 4..8 {
            engine.add(Request::new(prompt(10 + salt as usize, salt), greedy(9), vec![])).unwrap();
        }
        let (answers, _) = finish(&mut engine, |_, _| ());
        assert_eq!(answers[&(first, 0)], want, "{}", b.name());
    }
}

/// Steps that are recorded have the bits of steps that are not, in graphs of both kinds, as sequences grow, join and leave.
#[cfg(feature = "cuda")]
#[test]
fn recorded_steps_have_the_same_bits() {
    use luthier::backend::cuda::{Cuda, Graphs};
    let b = match Cuda::new(0) {
        Ok(b) => b,
        Err(e) if std::env::var("LUTHIER_REQUIRE").is_ok_and(|r| r.contains("cuda")) => panic!("{e}"),
        Err(e) => return println!("cuda: skipped: {e}"),
    };
    for name in
        ["llama", "bnb_4bit", "bnb_8bit", "gemma2", "gpt_oss", "qwen3_moe", "deepseek_v3", "gpt2", "phi3_longrope"]
    {
        let model = Model::load(&b, &golden(name), &LoadOptions::frozen(DType::Bf16)).unwrap_or_else(|e| panic!("{e}"));
        let say = |graphs| {
            b.set_graphs(graphs);
            let mut engine = Engine::lend(&b, &model, &options(6, 16, 64)).unwrap();
            for salt in 1..9 {
                let sampling = Sampling { temperature: 0.7, seed: salt as u64, ..greedy(12 + 5 * salt as usize) };
                engine.add(Request::new(prompt(2 + salt as usize, salt), sampling, vec![])).unwrap();
            }
            finish(&mut engine, |_, _| ()).1
        };
        let want = say(Graphs::Off);
        for graphs in [Graphs::Chain, Graphs::Branches] {
            let got = say(graphs);
            assert!(got == want, "{name}, {graphs:?}");
        }
    }
}

/// 512 answers to one prompt have its pages in common: each has what it adds, and the page that the prompt's last token is in.
#[test]
fn many_answers_share_their_prompt() {
    let b: &dyn Backend = &Cpu::new();
    let model = frozen(b, &golden("llama"));
    let (prompt, new, n) = (prompt(83, 5), 10, 512);
    let mut engine = Engine::lend(b, &model, &options(n, 4 * n, 128)).unwrap();
    let sampling = Sampling { temperature: 1.0, seed: 9, ..greedy(new) };
    engine.add(Request { n, ..Request::new(prompt.clone(), sampling, vec![]) }).unwrap();
    let mut most = 0;
    let (answers, _) = finish(&mut engine, |engine, _| most = most.max(engine.stats().pages_used));
    // 83 tokens fill 5 pages; the rest of the prompt and an answer of 10, whose last token is never read, are in one more
    assert_eq!(most, 5 + n, "apart, they would have {}", n * 6);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (83 + 3 * (n as u64 - 1), 80 * (n as u64 - 1)), "{stats:?}");
    assert!(answers.len() == n && answers.values().all(|answer| answer.len() == new));
    let distinct: std::collections::BTreeSet<_> = answers.values().collect();
    assert!(distinct.len() > n / 2, "{} of {n}", distinct.len());
}

/// A pool too small for all: some give their pages back and begin again, and still say the same.
#[test]
fn pages_that_run_out() {
    let b: &dyn Backend = &Cpu::new();
    let model = frozen(b, &golden("qwen3"));
    let prompts: Vec<_> = (1..7).map(|salt| prompt(12 + salt as usize, salt)).collect();
    let alone: Vec<_> = prompts.iter().map(|p| generate(b, &model, p, &greedy(30), &[], |_| true).unwrap()).collect();
    for prefixes in [Prefixes::Shared, Prefixes::Apart] {
        // 9 pages, where six sequences of up to 48 tokens would have 18
        let page = luthier::model::paged::Pool::page_bytes(&model.spec, DType::F32);
        let mut engine =
            Engine::lend(b, &model, &Options { kv_cache: Some(9 * page), prefixes, ..options(6, 24, 64) }).unwrap();
        let ids: Vec<_> =
            prompts.iter().map(|p| engine.add(Request::new(p.clone(), greedy(30), vec![])).unwrap()).collect();
        let (answers, _) = finish(&mut engine, |_, _| ());
        let together: Vec<_> = ids.iter().map(|id| answers[&(*id, 0)].clone()).collect();
        assert_eq!(together, alone, "{prefixes:?}");
        assert!(engine.stats().preempted > 0 && engine.stats().pages_used == 0, "{:?}", engine.stats());
    }
}

/// Requests that begin alike share pages, while they run and afterwards.
#[test]
fn what_begins_alike_is_computed_once() {
    let b: &dyn Backend = &Cpu::new();
    let model = frozen(b, &golden("llama"));
    let (head, tails) = (prompt(50, 2), [[1, 2, 3], [4, 5, 6]]);
    let mut engine = Engine::lend(b, &model, &options(4, 64, 128)).unwrap();
    let mut alone = Vec::new();
    let mut ids = Vec::new();
    for tail in tails {
        let whole = [&head[..], &tail].concat();
        alone.push(generate(b, &model, &whole, &greedy(8), &[], |_| true).unwrap());
        ids.push(engine.add(Request::new(whole, greedy(8), vec![])).unwrap());
        let (answers, _) = finish(&mut engine, |_, _| ());
        assert_eq!(answers[&(ids[ids.len() - 1], 0)], alone[alone.len() - 1]);
    }
    assert_eq!(engine.stats().cached_tokens, 48, "three whole pages of the second prompt");
    // several answers to one prompt have its pages together
    engine.clear_prefixes();
    let sampling = Sampling { temperature: 1.0, seed: 5, ..greedy(6) };
    let request = Request { n: 4, ..Request::new(prompt(65, 9), sampling, vec![]) };
    let id = engine.add(request).unwrap();
    let mut most = 0;
    let (answers, _) = finish(&mut engine, |engine, _| most = most.max(engine.stats().pages_used));
    assert_eq!(most, 4 + 4, "four pages for all, and one for each");
    let distinct: std::collections::BTreeSet<_> = (0..4).map(|index| answers[&(id, index)].clone()).collect();
    assert!(distinct.len() > 1, "answers of their own");
}

/// A seed and a length give a token, whatever runs beside; several adapters' worth of noise does not change it.
#[test]
fn seeds_hold_in_any_company() {
    let b: &dyn Backend = &Cpu::new();
    let model = frozen(b, &golden("llama"));
    let warm = |seed| Sampling { temperature: 0.8, top_k: 20, top_p: 0.95, min_p: 0.01, seed, ..greedy(24) };
    let alone = generate(b, &model, &prompt(7, 1), &warm(11), &[], |_| true).unwrap();
    assert_ne!(alone, generate(b, &model, &prompt(7, 1), &warm(12), &[], |_| true).unwrap());
    let mut engine = Engine::lend(b, &model, &options(5, 16, 64)).unwrap();
    for seed in 0..4 {
        engine.add(Request::new(prompt(9, seed as u32), warm(seed), vec![])).unwrap();
    }
    let id = engine.add(Request::new(prompt(7, 1), warm(11), vec![])).unwrap();
    let (answers, _) = finish(&mut engine, |_, _| ());
    assert_eq!(answers[&(id, 0)], alone);
}

#[test]
fn penalties_stops_logprobs_and_limits() {
    let b: &dyn Backend = &Cpu::new();
    let model = frozen(b, &golden("llama"));
    let run = |sampling: Sampling, stop: Vec<u32>| {
        let mut engine = Engine::lend(b, &model, &options(2, 16, 48)).unwrap();
        engine.add(Request::new(prompt(6, 1), sampling, stop)).unwrap();
        finish(&mut engine, |_, _| ()).1
    };
    let tokens = |events: &[Event]| events.iter().filter_map(|e| e.token.as_ref().map(|t| t.id)).collect::<Vec<_>>();
    let plain = run(Sampling { logprobs: Some(3), ..greedy(20) }, vec![]);
    assert_eq!((plain.len(), plain[19].finish), (20, Some(Finish::Length)));
    for token in plain.iter().filter_map(|e| e.token.as_ref()) {
        assert_eq!((token.top.len(), token.top[0].0, token.top[0].1), (3, token.id, token.logprob));
        assert!(token.top.is_sorted_by(|a, b| a.1 >= b.1) && token.logprob <= 0.0);
    }
    // the answer ends before the stop token, which is not part of it
    let stop = tokens(&plain)[4];
    let first = tokens(&plain).iter().position(|id| *id == stop).unwrap();
    let stopped = run(greedy(20), vec![stop]);
    assert_eq!(tokens(&stopped), tokens(&plain)[..first]);
    assert_eq!(stopped.last().unwrap().finish, Some(Finish::Stop));
    // no token twice, nor one of the prompt
    let unlike = run(Sampling { repetition_penalty: 100.0, presence_penalty: 100.0, ..greedy(20) }, vec![]);
    let distinct: std::collections::BTreeSet<_> = tokens(&unlike).into_iter().collect();
    assert_eq!(distinct.len(), 20);
    let forced = run(Sampling { logit_bias: vec![(33, 100.0)], ..greedy(3) }, vec![]);
    assert_eq!(tokens(&forced), [33, 33, 33]);
    // the model's length ends it, too
    assert_eq!(run(greedy(1000), vec![]).len(), 48 - 6);
    let mut engine = Engine::lend(b, &model, &options(2, 16, 48)).unwrap();
    for wrong in [vec![], vec![1 << 30], prompt(48, 1)] {
        assert!(engine.add(Request::new(wrong, greedy(1), vec![])).is_err());
    }
    let hot = Sampling { temperature: f32::NAN, ..greedy(1) };
    assert!(engine.add(Request::new(vec![1], hot, vec![])).is_err());
}

/// Cancelled at any point, a request leaves nothing behind, and the others go on.
#[test]
fn cancelled_requests_leave_nothing() {
    let b: &dyn Backend = &Cpu::new();
    let model = frozen(b, &golden("llama"));
    let alone = generate(b, &model, &prompt(20, 1), &greedy(12), &[], |_| true).unwrap();
    for after in 0..8 {
        let mut engine = Engine::lend(b, &model, &options(3, 8, 64)).unwrap();
        let stays = engine.add(Request::new(prompt(20, 1), greedy(12), vec![])).unwrap();
        let gone = engine.add(Request { n: 3, ..Request::new(prompt(30, 2), greedy(20), vec![]) }).unwrap();
        let part = engine.add(Request { n: 2, ..Request::new(prompt(5, 3), greedy(20), vec![]) }).unwrap();
        let mut answers = Answers::new();
        for step in 0.. {
            if step == after {
                engine.cancel(gone, None);
                engine.cancel(part, Some(0));
            }
            if !engine.is_busy() {
                break;
            }
            for event in engine.step().unwrap() {
                assert!(event.request != gone || step < after);
                answers.entry((event.request, event.index)).or_default().extend(event.token.map(|t| t.id));
            }
        }
        assert_eq!(answers[&(stays, 0)], alone);
        assert_eq!(answers[&(part, 1)].len(), 20, "the other answer goes on");
        let stats = engine.stats();
        assert_eq!((stats.running, stats.waiting, stats.pages_used), (0, 0, 0));
    }
    let before = b.memory().used;
    drop(Engine::lend(b, &model, &options(3, 8, 64)).unwrap());
    assert_eq!(b.memory().used, before, "an engine gives its memory back");
}

/// Adapters on one base, a request each, all at once: each says what it says when it is loaded with its model.
#[test]
fn adapters_side_by_side() {
    let b: &dyn Backend = &Cpu::new();
    for base in std::fs::read_dir(golden("adapters")).unwrap().map(|e| e.unwrap().path()) {
        let folder = base.join("model");
        let mut adapters: Vec<PathBuf> = std::fs::read_dir(&base).unwrap().map(|e| e.unwrap().path()).collect();
        adapters.retain(|path| path.join("adapter_config.json").exists());
        adapters.sort();
        assert!(!adapters.is_empty(), "{}", base.display());
        // rows of tokens of its own would change what all others share
        let spec = arch::read_spec(&folder).unwrap();
        let (adapters, others): (Vec<_>, Vec<_>) = adapters.into_iter().partition(|path| {
            let own_rows = peft::read_config(path).unwrap().trainable_token_indices.is_some();
            !own_rows && peft::vocab(path, &spec).unwrap() == spec.V
        });
        let alone = |adapter: Option<&PathBuf>| {
            let lora = adapter.map(|path| peft::read_config(path).unwrap());
            let mut model = Model::load(b, &folder, &LoadOptions { lora, ..LoadOptions::frozen(DType::F32) }).unwrap();
            adapter.into_iter().for_each(|path| peft::load(b, &mut model, path).unwrap());
            generate(b, &model, &prompt(11, 4), &greedy(12), &[], |_| true).unwrap()
        };
        let mut engine = Engine::new(b, frozen(b, &folder), &options(8, 32, 64)).unwrap();
        let mut ids = vec![0];
        for path in &adapters {
            let load = |b: &dyn Backend, model: &mut Model| peft::detached(b, model, &folder, path);
            ids.push(engine.add_adapter(load).unwrap_or_else(|e| panic!("{e}")));
        }
        for path in &others {
            let load = |b: &dyn Backend, model: &mut Model| peft::detached(b, model, &folder, path);
            assert_eq!(engine.add_adapter(load).unwrap_err().exit_code(), 65, "{}", path.display());
        }
        if adapters.is_empty() {
            continue;
        }
        let request = |id: &u64| Request { adapter: *id, ..Request::new(prompt(11, 4), greedy(12), vec![]) };
        let requests: Vec<_> = ids.iter().map(|id| engine.add(request(id)).unwrap()).collect();
        // removed while it is wanted: it stays until its request is done
        engine.remove_adapter(ids[1]);
        assert!(engine.add(request(&ids[1])).is_err());
        let (answers, _) = finish(&mut engine, |_, _| ());
        let want: Vec<_> = [None].into_iter().chain(adapters.iter().map(Some)).map(alone).collect();
        let got: Vec<_> = requests.iter().map(|id| answers[&(*id, 0)].clone()).collect();
        assert_eq!(got, want, "{}", base.display());
        assert!(want.iter().skip(1).any(|answer| *answer != want[0]), "{}: adapters change nothing", base.display());
        // and the model is its own again
        let last = engine.add(request(&0)).unwrap();
        assert_eq!(finish(&mut engine, |_, _| ()).0[&(last, 0)], want[0], "{}", base.display());
    }
}
