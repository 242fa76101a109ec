use super::*;
use luthier::ops::rope::Rope;
use values::{Data, Values};

/// A table as the host makes it: row t holds cos(t·θ_d), then sin(t·θ_d).
fn angles(A: usize) -> impl Fn(&mut Values) + Send + Sync {
    move |values| {
        let Some(Data::Float(table)) = values.get_mut("table") else { panic!("the table is f32") };
        for (i, x) in table.iter_mut().enumerate() {
            let (t, d, half) = (i / A, i % A % (A / 2), A / 2);
            let angle = t as f64 * 1e4f64.powf(-(d as f64) / half as f64);
            *x = if i % A < half { angle.cos() } else { angle.sin() };
        }
    }
}

pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 2, 1, 0), (1, 2, 4, 3, 0), (7, 3, 6, 11, 1), (5, 2, 16, 40, 2), (65, 4, 64, 128, 64), (33, 1, 80, 70, 0),
        (13, 8, 128, 300, 256), (3, 2, 256, 9, 0), (2, 3, 12, 5, 4),
    ];
    let mut cases = Vec::new();
    for (N, H, D, T, pad) in shapes {
        // whole heads, and three quarters of them
        let parts = [D, D * 3 / 8 * 2].into_iter().filter(|A| *A > 0);
        for (A, interleaved) in parts.flat_map(|A| [(A, 0), (A, 1)]) {
            let p = Rope { N, H, D, A, T, ld_x: H * D + pad, interleaved };
            for op in [Op::rope_forward, Op::rope_backward] {
                let case = Case::new(op, p).with("angles", angles(A as usize));
                // two 16-bit values to a word: rows must be words, and of halves each half
                let words = if interleaved == 1 { p.ld_x.is_multiple_of(2) } else { D % 4 == 0 && A % 4 == 0 };
                cases.push(if words { case } else { case.only_f32() });
            }
        }
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, H, D, A, T, ld_x, interleaved| {
        let p = Rope { N, H, D, A, T, ld_x, interleaved };
        Gradient::new(Op::rope_forward, p, Op::rope_backward, p)
    };
    vec![of(1, 1, 2, 2, 1, 2, 0), of(4, 2, 6, 6, 9, 13, 0), of(3, 3, 4, 4, 5, 12, 1), of(4, 2, 8, 6, 9, 16, 0), of(4, 2, 8, 6, 9, 17, 1)]
}
