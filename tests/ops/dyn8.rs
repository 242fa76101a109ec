use super::*;
use luthier::ops::dyn8::{Dyn8, dynamic_map};
use values::{Data, Values};

/// A block of zeros, one of tiny values, an outlier, and the levels themselves.
fn hard(values: &mut Values) {
    let Some(Data::Float(x)) = values.get_mut("inp") else { panic!("inp is float") };
    let map = dynamic_map(true);
    for (i, x) in x.iter_mut().enumerate() {
        match i / 256 {
            1 => *x = 0.0,
            2 => *x *= *x * *x * 1e-3,
            3 if i % 256 == 5 => *x = 40.0,
            4 => *x = map[i % 256] as f64,
            _ => {}
        }
    }
}

/// Second moments are never negative, and have their own map.
fn unsigned(values: &mut Values) {
    let Some(Data::Float(x)) = values.get_mut("inp") else { panic!("inp is float") };
    x.iter_mut().for_each(|x| *x = x.powi(4));
    values.insert("map", Data::Float(dynamic_map(false).map(f64::from).to_vec()));
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for P in [1, 2, 255, 256, 257, 1021, 1536, 4099, 70_001] {
        cases.push(Case::new(Op::dyn8_quantize, Dyn8 { P }).with("hard", hard));
        cases.push(Case::new(Op::dyn8_quantize, Dyn8 { P }).with("unsigned", unsigned));
        cases.push(Case::new(Op::dyn8_dequantize, Dyn8 { P }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

#[test]
fn maps_rise_from_their_least_level_to_one() {
    for (signed, least, zero) in [(true, -0.99296875, 127), (false, 0.0, 0)] {
        let map = dynamic_map(signed);
        assert!(map.is_sorted_by(|a, b| a < b), "signed {signed}: {map:?}");
        assert_eq!((map[0], map[zero], map[255]), (least, 0.0, 1.0));
    }
}
