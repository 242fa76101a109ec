//! What the tests of broken inputs share: time limits, wounds, values that do not belong.
use luthier::error::Error;
use luthier::rng::Rng;
use serde_json::{Map, Value, json};
use std::sync::mpsc;
use std::time::Duration;

/// Most take milliseconds; the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Runs `f` on a thread of its own: it must come back in time, and not by a panic.
pub fn ends<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(move || send.send(f())).unwrap();
    match receive.recv_timeout(LIMIT) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name}: takes longer than {LIMIT:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{name}: panics: {:?}", thread.join().err()),
    }
}

/// A seeded wound: bits flipped, pieces cut out, doubled, zeroed, or the end lost.
pub fn wounded(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let (at, len) = (rng.below(out.len()), 1 + rng.below(40));
    let end = out.len().min(at + len);
    match rng.below(6) {
        0 => out.truncate(at),
        1 => (0..1 + rng.below(8)).for_each(|_| {
            let i = rng.below(out.len());
            out[i] ^= 1 << rng.below(8);
        }),
        2 => drop(out.drain(at..end)),
        3 => {
            let piece = out[at..end].to_vec();
            out.splice(at..at, piece);
        }
        4 => out[at..end].fill(0),
        _ => out[at..end].fill(0xFF),
    }
    out
}

/// An error that blames the content of `file`, in words that are safe for a terminal.
#[allow(dead_code, reason = "not every test that shares this file has it")]
pub fn blames(name: &str, error: &Error, file: &str) {
    let said = error.to_string();
    assert!(error.exit_code() == 65 && said.contains(file), "{name}: {error:?}");
    assert!(said.len() < 3000 && !said.contains('\u{1b}'), "{name}: {said:?}");
}

/// Values that few keys may have.
#[allow(dead_code, reason = "not every test that shares this file has it")]
pub fn odd_values() -> Vec<Value> {
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    vec![
        json!(null),
        json!(-1),
        json!(0),
        json!(3),
        json!(0.5),
        json!(1e300),
        json!(u64::MAX),
        json!(1u64 << 31),
        json!(""),
        json!("\u{1b}[2J"),
        json!([]),
        json!([-1, "x", null]),
        json!({}),
        json!(true),
        deep,
    ]
}

/// Each key of a JSON object taken away, doubled, and set to each of the odd values; as text.
#[allow(dead_code, reason = "not every test that shares this file has it")]
pub fn changed(sound: &Map<String, Value>) -> Vec<(String, String)> {
    let mut out = vec![];
    for key in sound.keys() {
        let mut less = sound.clone();
        less.shift_remove(key);
        let rest = Value::Object(less.clone()).to_string();
        out.push((format!("no {key}"), rest.clone()));
        let twice = format!("{{{}:{},{}", json!(key), sound[key], &Value::Object(sound.clone()).to_string()[1..]);
        out.push((format!("{key} twice"), twice));
        for (i, value) in odd_values().into_iter().enumerate() {
            let mut other = sound.clone();
            other[key] = value;
            out.push((format!("{key} {i}"), Value::Object(other).to_string()));
        }
    }
    out
}
