//! PiSSA: an adapter that starts as the principal part of its weight, which keeps the rest. Meng et al. 2024, arXiv:2404.02948.
//!
//! W ≈ U·S·Vᵀ of rank r;  A₀ = √(S/s)·Vᵀ,  B₀ = U·√(S/s),  W ← W − s·B₀·A₀, with the adapter's scale s
//! Singular vectors by iterated products with W (Halko, Martinsson & Tropp 2011, arXiv:0909.4061): rows X [K, C] are multiplied
//! to X·Wᵀ and back, made orthonormal on the host in between. Saved is what was learned, s·(B·A − B₀·A₀), as an adapter of rank
//! 2r on the weight as it was.
use super::super::linear::{Linear, Weight};
use super::super::param::Param;
use super::super::quantized;
use crate::backend::{Backend, Buf, Charge, Scope, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::matmul::MatMul;
use crate::rng::Rng;
use std::path::Path;

/// Vectors beyond the rank, which make those within it exact sooner.
const MORE: usize = 16;
/// Products forth and back at most, where their number is not given; and the change of the sum of squares that ends them.
const MOST: usize = 40;
const STILL: f64 = 1e-9;

/// What an adapter was before it was trained, as the device holds it; the weight lacks s·b·a.
pub struct Start {
    /// [R, C]
    pub a: Vec<f32>,
    /// [O, R]
    pub b: Vec<f32>,
}

/// How the weight is held afterwards: 4 bits, 8 bits, or as floats.
type Quantize = (bool, bool);

/// Gives the linear's adapter its start, and takes that from the weight. `niter`: iterations, `None`: until nothing changes.
pub fn start(
    b: &dyn Backend,
    linear: &mut Linear,
    niter: Option<usize>,
    (seed, quantize): (u64, Quantize),
    folder: &Path,
) -> Result<()> {
    let (O, C) = (linear.O, linear.C);
    let (Weight::Dense(param @ Param { train: None, .. }), Some(lora)) = (&linear.weight, &mut linear.lora) else {
        let what = "\"pissa\" starts from frozen weights in floats, and this one is stored quantized (take the model as it was \
                    before, with load_in_4bit or load_in_8bit) or trained itself";
        return Err(Error::content(folder, format!("lora.init_lora_weights: {}", linear.name), what));
    };
    let (r, R, s) = (lora.a.shape[0], lora.R, lora.scale);
    let charge = Charge::to(b, Use::Scratch);
    let scope = Scope::new(b);
    let mut w = scope.alloc(O * C, DType::F32)?;
    b.cast(&mut w, &param.value)?;
    let (left, right) = principal(b, &w, (O, C), r.min(O).min(C), niter, Rng::named(seed, &linear.name))?;

    // what the adapter holds is what the weight loses, so both are rounded as the adapter is
    let round = |x: f64| param.value.dtype().round((x / f64::from(s).sqrt()) as f32);
    let mut start = Start { a: vec![0.0; R * C], b: vec![0.0; O * R] };
    for (i, (u, v)) in left.iter().zip(&right).enumerate() {
        (0..C).for_each(|c| start.a[i * C + c] = round(v[c]));
        (0..O).for_each(|o| start.b[o * R + i] = round(u[o]));
    }
    let (a0, b0) = (scope.alloc_f32(&start.a, DType::F32)?, scope.alloc_f32(&start.b, DType::F32)?);
    b.matmul_nn_add(&mut w, &b0, &a0, &product(O, C, R, -s, C))?;
    hold(b, &mut lora.a, &start.a)?;
    hold(b, &mut lora.b, &start.b)?;
    lora.start = Some(start);

    let Weight::Dense(param) = &mut linear.weight else { unreachable!("it was dense") };
    drop(charge);
    let _charge = Charge::to(b, Use::Weights);
    let residual = match quantize {
        (true, _) => Some(Weight::Nf4(quantized::quantize_nf4(b, &w)?)),
        (_, true) => Some(Weight::Int8(quantized::quantize_int8(b, &w, O, C)?)),
        _ => {
            b.cast(&mut param.value, &w)?;
            None
        }
    };
    if let Some(residual) = residual {
        b.free(param.value.view(0, param.value.len()));
        linear.weight = residual;
    }
    Ok(())
}

fn product(I: usize, J: usize, Q: usize, alpha: f32, ld_b: usize) -> MatMul {
    let [I, J, Q, ld_b] = [I, J, Q, ld_b].map(|n| n as u32);
    MatMul { I, J, Q, ld_out: J, ld_a: Q, ld_b, alpha }
}

/// Sets a parameter's values as the device holds them.
fn hold(b: &dyn Backend, param: &mut Param, values: &[f32]) -> Result<()> {
    b.upload_f32(&mut param.value, values)?;
    let master = param.train.as_mut().and_then(|train| train.master.as_mut());
    master.map_or(Ok(()), |master| b.upload_f32(master, values))
}

type Rows = Vec<Vec<f64>>;

/// √S·Uᵀ [r, O] and √S·Vᵀ [r, C] of w [O, C], the greatest first.
fn principal(
    b: &dyn Backend,
    w: &Buf,
    (O, C): (usize, usize),
    r: usize,
    niter: Option<usize>,
    mut rng: Rng,
) -> Result<(Rows, Rows)> {
    let K = (r + MORE).min(O).min(C);
    let scope = Scope::new(b);
    let (mut x, mut y) = (scope.alloc(K * C, DType::F32)?, scope.alloc(K * O, DType::F32)?);
    if b.is_dry() {
        return Ok((vec![vec![0.0; O]; r], vec![vec![0.0; C]; r]));
    }
    let mut rows: Rows = (0..K).map(|_| (0..C).map(|_| f64::from(rng.normal())).collect()).collect();
    let mut power = 0.0;
    for i in 0.. {
        b.upload_f32(&mut x, &flat(&rows))?;
        b.matmul_nt(&mut y, &x, w, &product(K, O, C, 1.0, C))?;
        let q = orthonormal(unflat(&b.download_f32(&y)?, O));
        b.upload_f32(&mut y, &flat(&q))?;
        b.matmul_nn(&mut x, &y, w, &product(K, C, O, 1.0, C))?;
        rows = unflat(&b.download_f32(&x)?, C);
        // the singular values of what q sees of w are nearly those of w
        let (squares, vectors) = eigen(&gram(&rows));
        let now: f64 = squares[..r].iter().sum();
        if i >= niter.unwrap_or(MOST) || niter.is_none() && (now - power).abs() <= STILL * now {
            let root = |i: usize| squares[i].max(0.0).sqrt().sqrt();
            let left = (0..r).map(|i| combined(&vectors[i], &q, root(i))).collect();
            let over = |i: usize| if root(i) > 0.0 { 1.0 / root(i) } else { 0.0 };
            let right = (0..r).map(|i| combined(&vectors[i], &rows, over(i))).collect();
            return Ok((left, right));
        }
        power = now;
        rows = orthonormal(rows);
    }
    unreachable!("the iterations end")
}

fn flat(rows: &Rows) -> Vec<f32> {
    rows.iter().flatten().map(|x| *x as f32).collect()
}
fn unflat(values: &[f32], n: usize) -> Rows {
    values.chunks(n).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
}
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
/// scale·Σ weights·rows
fn combined(weights: &[f64], rows: &Rows, scale: f64) -> Vec<f64> {
    let mut out = vec![0.0; rows[0].len()];
    for (w, row) in weights.iter().zip(rows) {
        out.iter_mut().zip(row).for_each(|(out, x)| *out += scale * w * x);
    }
    out
}
fn gram(rows: &Rows) -> Rows {
    rows.iter().map(|a| rows.iter().map(|b| dot(a, b)).collect()).collect()
}

/// Gram and Schmidt, twice; a row that depends on those before it becomes 0.
fn orthonormal(mut rows: Rows) -> Rows {
    for i in 0..rows.len() {
        let (before, after) = rows.split_at_mut(i);
        let row = &mut after[0];
        let first = dot(row, row).sqrt();
        for _ in 0..2 {
            for other in before.iter() {
                let along = dot(row, other);
                row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
            }
        }
        let norm = dot(row, row).sqrt();
        let scale = if norm > 1e-10 * first { 1.0 / norm } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
    rows
}

/// Eigenvalues of a symmetric matrix, the greatest first, and their vectors as rows: Jacobi's rotations.
fn eigen(matrix: &Rows) -> (Vec<f64>, Rows) {
    let n = matrix.len();
    let mut m = matrix.clone();
    let mut vectors: Rows = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..30 {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| m[i][j].powi(2)).sum();
        let all: f64 = (0..n).map(|i| m[i][i].powi(2)).sum();
        if off <= 1e-28 * all {
            break;
        }
        for (p, q) in (0..n).flat_map(|p| (p + 1..n).map(move |q| (p, q))) {
            if m[p][q] == 0.0 {
                continue;
            }
            let theta = (m[q][q] - m[p][p]) / (2.0 * m[p][q]);
            let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
            let c = 1.0 / (t * t + 1.0).sqrt();
            let s = t * c;
            for k in 0..n {
                let (a, b) = (m[k][p], m[k][q]);
                (m[k][p], m[k][q]) = (c * a - s * b, s * a + c * b);
            }
            let [rp, rq] = m.get_disjoint_mut([p, q]).expect("two rows");
            rotate(rp, rq, c, s);
            let [vp, vq] = vectors.get_disjoint_mut([p, q]).expect("two rows");
            rotate(vp, vq, c, s);
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| m[*b][*b].total_cmp(&m[*a][*a]));
    (order.iter().map(|i| m[*i][*i]).collect(), order.iter().map(|i| vectors[*i].clone()).collect())
}

fn rotate(a: &mut [f64], b: &mut [f64], c: f64, s: f64) {
    for (x, y) in a.iter_mut().zip(b) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    /// Σ S·U·Vᵀ with known singular values and random orthonormal vectors.
    fn known(O: usize, C: usize, values: &[f64], rng: &mut Rng) -> Vec<f32> {
        let mut random =
            |n| orthonormal(values.iter().map(|_| (0..n).map(|_| f64::from(rng.normal())).collect()).collect());
        let (u, v) = (random(O), random(C));
        let at =
            |o: usize, c: usize| values.iter().zip(u.iter().zip(&v)).map(|(s, (u, v))| s * u[o] * v[c]).sum::<f64>();
        (0..O * C).map(|i| at(i / C, i % C) as f32).collect()
    }

    #[test]
    fn the_principal_part_is_that_of_the_greatest_singular_values() {
        let b: &dyn Backend = &Cpu::new();
        let mut rng = Rng::new(5);
        for (O, C, r) in [(40, 24, 3), (24, 40, 8), (9, 7, 7), (64, 64, 4)] {
            let n = O.min(C);
            let values: Vec<f64> = (0..n).map(|i| 10.0 * 0.8f64.powi(i as i32)).collect();
            let w = known(O, C, &values, &mut rng);
            let buf = b.alloc_f32(&w, DType::F32).unwrap();
            let (left, right) = principal(b, &buf, (O, C), r, None, Rng::new(1)).unwrap();
            for i in 0..r {
                let (s, t) = (dot(&left[i], &left[i]), dot(&right[i], &right[i]));
                assert!((s / values[i] - 1.0).abs() < 1e-4 && (t / values[i] - 1.0).abs() < 1e-4, "{i}: {s} {t}");
            }
            // what is left has exactly the other singular values: Eckart and Young
            let rest =
                |o: usize, c: usize| f64::from(w[o * C + c]) - (0..r).map(|i| left[i][o] * right[i][c]).sum::<f64>();
            let got: f64 = (0..O * C).map(|i| rest(i / C, i % C).powi(2)).sum();
            let want: f64 = values[r..].iter().map(|s| s * s).sum();
            assert!((got - want).abs() <= 1e-3 * want + 1e-8, "{O} {C} {r}: {got} {want}");
        }
        let zeros = b.alloc(6 * 5, DType::F32).unwrap();
        let (left, right) = principal(b, &zeros, (6, 5), 2, Some(2), Rng::new(1)).unwrap();
        assert!(left.iter().chain(&right).flatten().all(|x| *x == 0.0));
    }
}
