//! Learning rates against transformers' `get_scheduler`.
use luthier::train::config::{SchedulerKwargs, SchedulerType};
use luthier::train::schedule::Schedule;
use serde_json::Value;

fn golden() -> Value {
    let text = std::fs::read_to_string("tests/golden/schedules/golden.json").unwrap();
    serde_json::from_str(&text).unwrap()
}

fn schedule(kind: SchedulerType, warmup: u64, total: u64) -> Schedule {
    Schedule { kind, kwargs: SchedulerKwargs::default(), learning_rate: 2e-4, warmup, total }
}

fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-12 * want.abs()
}

#[test]
fn every_schedule_equals_transformers() {
    let golden = golden();
    let (warmup, total) = (golden["warmup"].as_u64().unwrap(), golden["total"].as_u64().unwrap());
    for kind in SchedulerType::ALL {
        let values = golden["values"][kind.name()].as_array().unwrap_or_else(|| panic!("no golden {}", kind.name()));
        assert_eq!(values.len() as u64, total);
        let schedule = schedule(*kind, warmup, total);
        for (step, want) in values.iter().enumerate() {
            let (got, want) = (schedule.lr(step as u64), want.as_f64().unwrap());
            assert!(close(got, want), "{} at step {step}: {got} != {want}", kind.name());
        }
    }
}

#[test]
fn beyond_the_end_and_without_warmup() {
    let lr = |kind, warmup, step| schedule(kind, warmup, 20).lr(step);
    assert_eq!(lr(SchedulerType::Linear, 0, 0), 2e-4);
    assert_eq!(lr(SchedulerType::Linear, 0, 25), 0.0);
    assert_eq!(lr(SchedulerType::Cosine, 0, 20), 0.0);
    assert_eq!(lr(SchedulerType::CosineWithRestarts, 5, 21), 0.0);
    assert!(close(lr(SchedulerType::Polynomial, 0, 21), 1e-7));
    assert_eq!(lr(SchedulerType::Linear, 20, 20), 0.0, "all of it warmup");
    assert!(close(lr(SchedulerType::InverseSqrt, 0, 30_000), 1e-4), "timescale 10000: 1/√4");
}

#[test]
fn settings_change_the_course() {
    let mut s = schedule(SchedulerType::CosineWithRestarts, 0, 100);
    s.kwargs.num_cycles = Some(2.0);
    assert!(close(s.lr(50), 2e-4), "the second cycle starts at the top");
    let mut s = schedule(SchedulerType::Polynomial, 0, 100);
    (s.kwargs.power, s.kwargs.lr_end) = (Some(2.0), Some(0.0));
    assert!(close(s.lr(50), 0.5e-4), "2e-4 · 0.5²");
    let mut s = schedule(SchedulerType::InverseSqrt, 10, 100);
    s.kwargs.timescale = Some(40.0);
    assert!(close(s.lr(10 + 120), 1e-4), "1/√((120 + 40)/40)");
}
