//! A device that goes away in the middle of a run on wgpu.
#![cfg(feature = "wgpu")]
use crate::bench::{Bench, Log};
use crate::device::open;
use luthier::backend::wgpu::Wgpu;
use luthier::backend::{Backend, Launch};
use luthier::dtype::DType;
use luthier::error::Result;
use luthier::ops::Op;
use std::cell::RefCell;

/// The device is destroyed before the nth run of an op.
struct Dying {
    inner: Wgpu,
    at: Option<(Op, usize)>,
    ran: RefCell<Vec<Op>>,
}

impl Dying {
    fn new(at: Option<(Op, usize)>) -> Option<Dying> {
        Some(Dying { inner: open()?, at, ran: RefCell::default() })
    }
    fn count(&self, op: Op) -> usize {
        count(&self.ran.borrow(), op)
    }
}

fn count(ran: &[Op], op: Op) -> usize {
    ran.iter().filter(|other| **other == op).count()
}

impl Backend for Dying {
    luthier::pass_on! { inner: name device alloc free upload download copy sync memory available rules charge
    host_alloc host_free to_host from_host rows_from_host host_upload host_download }
    fn launch(&self, launch: &Launch) -> Result<()> {
        self.ran.borrow_mut().push(launch.op());
        if self.at.is_some_and(|(op, nth)| op == launch.op() && self.count(op) == nth) {
            self.inner.shared().device.destroy();
        }
        self.inner.launch(launch)
    }
}

const STEPS: usize = 4;
const KEYS: [&str; 3] = ["max_steps=4", "eval_strategy=\"no\"", "lora={r=4}"];

fn adapter(bench: &Bench, out: &str) -> Vec<u8> {
    std::fs::read(bench.at(out).join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_whose_device_is_lost_says_so_and_goes_on_from_its_checkpoint() {
    let Some(whole) = Dying::new(None) else { return };
    let bench = Bench::new();
    let mut log = Log::default();
    bench.run(&whole, "straight", &KEYS, &mut log).unwrap();
    let losses = |log: &Log| log.steps.iter().map(|s| (s.step, s.loss)).collect::<Vec<_>>();
    let straight = losses(&log);
    let ran = whole.ran.borrow();
    let moves = count(&ran, Op::adamw_step) / STEPS;
    let second = (0..ran.len()).filter(|i| ran[*i] == Op::adamw_step).nth(2 * moves - 1).unwrap();
    // in the third step: in its forward, its backward, and when the weights move
    for op in [Op::attention_forward, Op::attention_backward, Op::adamw_step] {
        let out = format!("{op:?}");
        let b = Dying::new(Some((op, count(&ran[..=second], op) + 1))).unwrap();
        let error = bench.run(&b, &out, &KEYS, &mut Log::default()).unwrap_err();
        assert_eq!(error.exit_code(), 69, "{op:?}: {error}");
        let (text, done) = (error.to_string(), bench.checkpoints(&out).last().copied());
        assert!(text.starts_with("wgpu: the device was lost: ") && done == Some(2), "{op:?}: {done:?}, {text}");
        assert!(text.ends_with("checkpoint-2 is whole: run the same command to go on"), "{op:?}: {text}");
        // and it stays lost
        assert!(b.alloc(1, DType::F32).is_err() && b.sync().is_err(), "{op:?}");

        let mut log = Log::default();
        bench.run(&open().unwrap(), &out, &KEYS, &mut log).unwrap();
        assert_eq!(losses(&log), straight[2..], "{op:?}");
        assert_eq!(adapter(&bench, &out), adapter(&bench, "straight"), "{op:?}");
    }
}
