use super::*;
use luthier::dtype::DType::{Bf16, F16, F32};
use luthier::ops::cast::Cast;
use values::{Data, Values};

/// Ties to even, the largest, subnormals of both halves, infinities.
fn hard(values: &mut Values) {
    let Some(Data::Float(x)) = values.get_mut("inp") else { panic!("inp is float") };
    let ulp = |bits: i32, half: f64| 1.0 + half * 2f64.powi(-bits);
    let special = [
        ulp(7, 0.5), ulp(7, 1.5), ulp(10, 0.5), ulp(10, 1.5), ulp(8, 1.01), 65504.0, 65519.0, 65520.0, 6e-8, 2.9e-8, -3.1e-5, 1e-40,
        3.38e38, f64::INFINITY, f64::NEG_INFINITY, -0.0,
    ];
    x.iter_mut().zip(special).for_each(|(x, s)| *x = s as f32 as f64);
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for P in [1, 2, 3, 16, 63, 65, 255, 1021, 70_001] {
        let case = Case::new(Op::cast_forward, Cast { P });
        let case = case.mixed(F32, &[("out", Bf16)]).mixed(F32, &[("out", F16)]).mixed(Bf16, &[("out", F32)]);
        cases.push(case.mixed(F16, &[("out", F32)]).mixed(F16, &[("out", Bf16)]).mixed(Bf16, &[("out", F16)]).with("hard", hard));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}
