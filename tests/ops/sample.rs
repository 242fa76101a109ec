use super::*;
use luthier::ops::sample::{SampleAdjust, SampleSoftcap, SampleToken};
use values::Data;

/// Rows with these settings: temperature, top_p, min_p; top_k.
fn token(name: &str, V: u32, pad: u32, rows: &[([f64; 3], u32)]) -> Case {
    let p = SampleToken { N: rows.len() as u32, V, ld_logits: V + pad };
    let controls: Vec<f64> = rows.iter().flat_map(|row| row.0).collect();
    let keys: Vec<u32> = rows.iter().enumerate().flat_map(|(n, row)| [n as u32 * 77777 + V, n as u32, row.1]).collect();
    Case::new(Op::sample_token, p).with(name, move |values| {
        values.get_mut("logits").unwrap().floats_mut().iter_mut().for_each(|z| *z *= 6.0);
        values.insert("controls", Data::Float(controls.iter().map(|x| *x as f32 as f64).collect()));
        values.insert("keys", Data::U32(keys.clone()));
    })
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let (plain, all) = ([1.0, 1.0, 0.0], 0);
    for (V, pad) in [(1, 0), (2, 62), (77, 3), (256, 0), (257, 63), (1000, 24), (5003, 1)] {
        cases.push(token("greedy", V, pad, &[([0.0, 1.0, 0.0], all), ([0.0, 0.5, 0.5], 1)]));
        cases.push(token("plain", V, pad, &[(plain, all), ([0.7, 1.0, 0.0], all), ([3.0, 1.0, 0.0], all)]));
        cases.push(token("top_k", V, pad, &[(plain, 1), (plain, 5), ([9.0, 1.0, 0.0], 50)]));
        cases.push(token("top_p", V, pad, &[([1.0, 0.9, 0.0], all), ([2.0, 0.3, 0.0], all), ([9.0, 0.99, 0.0], all)]));
        cases.push(token("mixed", V, pad, &[([5.0, 0.8, 0.05], 40), ([5.0, 1.0, 0.3], all), ([0.0, 1.0, 0.0], all), (plain, 3)]));
    }
    let equals = token("equals", 700, 0, &[([0.0, 1.0, 0.0], all), ([1.0, 1.0, 0.0], 2)]);
    cases.push(equals.with("first of equals", |values| {
        values.insert("controls", Data::Float(vec![0.0, 1.0, 0.0, 1.0, 1.0, 0.0]));
        values.insert("keys", Data::U32(vec![1, 2, 0, 3, 4, 2]));
        let z = values.get_mut("logits").unwrap().floats_mut();
        [300, 10, 699, 700, 1000, 1399].into_iter().for_each(|i| z[i] = 2.0);
    }));
    for (N, V, P, pad) in [(1, 1, 1, 0), (3, 50, 100, 7), (2, 999, 700, 1)] {
        let at: Vec<u32> = (0..P).flat_map(|e| { let i = (e * 13) % (N * V); [i / V, i % V] }).collect();
        let distinct: std::collections::BTreeSet<_> = at.chunks(2).collect();
        assert_eq!(distinct.len(), P as usize);
        cases.push(Case::new(Op::sample_adjust, SampleAdjust { N, V, P, ld_logits: V + pad }).with("places", move |values| {
            values.insert("at", Data::U32(at.clone()));
            let change = values.get_mut("change").unwrap().floats_mut();
            change.iter_mut().step_by(2).for_each(|factor| *factor = (factor.abs() + 0.5) as f32 as f64);
        }));
        cases.push(Case::new(Op::sample_softcap, SampleSoftcap { N, V, ld_logits: V + pad, softcap: 0.5 }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
