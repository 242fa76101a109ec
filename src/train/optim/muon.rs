//! The direction of a Muon step: a momentum matrix with all its singular values brought near 1.
//!
//! X = U/‖U‖, then some steps of  X ← a·X + (b·G + c·G²)·X,  G = X·Xᵀ   (Newton–Schulz; Keller Jordan 2024)
//! Where a matrix is tall, G = Xᵀ·X and X ← a·X + X·(b·G + c·G²): the same without turning it. Rows and columns of zeros (padded
//! ranks) stay zero. Several matrices of one shape (experts) go together, as products by group.
//!
//! Products are in bf16 with f32 sums where the model is stored in 16 bits, as the original's are: the polynomial pulls singular
//! values to 0.7 .. 1.2 and no closer, so more digits change nothing. In f32 where the model is, and where a 16-bit row would be odd.
use super::hyper::Hyper;
use crate::backend::{Backend, Buf, Charge, Use};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::param::Matrices;
use crate::ops::adamw::Chance;
use crate::ops::grouped::Grouped;
use crate::ops::matmul::MatMul;
use crate::ops::muon::{MuonMomentum, MuonNormalize, MuonStep};
use crate::ops::residual::Residual;

/// a, b and c, and what a norm is at least; as torch.optim.Muon.
const POLYNOMIAL: [f32; 3] = [3.4445, -4.7750, 2.0315];
const EPS: f32 = 1e-7;

/// Values of a stack that go together, at most; a single matrix may have more.
const AT_ONCE: usize = 1 << 24;

/// E matrices of one shape, one after the other.
#[derive(Clone, Copy)]
struct Chunk {
    E: usize,
    rows: usize,
    cols: usize,
}

impl Chunk {
    fn len(&self) -> usize {
        self.E * self.rows * self.cols
    }
    /// Rows of one G.
    fn side(&self) -> usize {
        self.rows.min(self.cols)
    }
    /// What the products are stored in, for weights of this dtype: 16-bit rows have an even length.
    fn dtype(&self, weight: DType) -> DType {
        let even = self.cols.is_multiple_of(2) && self.side().is_multiple_of(2);
        if weight != DType::F32 && even { DType::Bf16 } else { DType::F32 }
    }
}

/// The first chunks of a stack; the last may be smaller.
fn chunk(matrices: &Matrices) -> Chunk {
    let [rows, cols] = matrices.held;
    Chunk { E: (AT_ONCE / (rows * cols).max(1)).clamp(1, matrices.count), rows, cols }
}

/// Buffers for the largest chunks of one dtype.
struct Scratch {
    dtype: DType,
    x: [Buf; 2],
    gram: [Buf; 2],
}

pub(super) struct Muon {
    /// Of the weights.
    dtype: DType,
    scratch: Vec<Scratch>,
    /// A sum of squares for each row.
    square: Buf,
    /// Where each of E groups of so many rows begins.
    offsets: Vec<((usize, usize), Buf)>,
}

/// What one step of one weight takes.
pub(super) struct Moved<'a> {
    pub weight: &'a Buf,
    pub m: &'a Buf,
    pub grad: &'a Buf,
    /// [1], the clipping factor.
    pub scale: &'a Buf,
    /// Of a weight that is rounded by chance.
    pub chance: Option<Chance>,
}

impl Muon {
    /// For these weights, stored in this dtype.
    pub fn new(b: &dyn Backend, dtype: DType, weights: &[Matrices]) -> Result<Muon> {
        let chunks: Vec<Chunk> = weights.iter().map(chunk).collect();
        let most = |of: &dyn Fn(&Chunk) -> usize, chunks: &[Chunk]| chunks.iter().map(of).max().unwrap_or(0);
        let mut scratch = Vec::new();
        for dtype_of in [DType::F32, DType::Bf16] {
            let of: Vec<Chunk> = chunks.iter().copied().filter(|chunk| chunk.dtype(dtype) == dtype_of).collect();
            if of.is_empty() {
                continue;
            }
            let buf = |len| b.alloc(len, dtype_of);
            let (x, gram) = (most(&Chunk::len, &of), most(&|chunk| chunk.E * chunk.side().pow(2), &of));
            scratch.push(Scratch { dtype: dtype_of, x: [buf(x)?, buf(x)?], gram: [buf(gram)?, buf(gram)?] });
        }
        let square = b.alloc(most(&|chunk| chunk.E * chunk.rows, &chunks).max(1), DType::F32)?;
        Ok(Muon { dtype, scratch, square, offsets: Vec::new() })
    }

    /// Moves all matrices of a weight at this learning rate.
    pub fn step(
        &mut self,
        b: &dyn Backend,
        hyper: &Hyper,
        of: &Moved,
        matrices: &Matrices,
        lr: f64,
        decay: f64,
    ) -> Result<()> {
        let first = chunk(matrices);
        let one = first.rows * first.cols;
        let (keep, lr) = ((1.0 - lr * decay) as f32, (lr * hyper.adjust_lr.factor(matrices.fan)) as f32);
        for start in (0..matrices.count).step_by(first.E) {
            let chunk = Chunk { E: first.E.min(matrices.count - start), ..first };
            let view = |buf: &Buf| buf.view(start * one, chunk.len());
            let moved = Moved { m: &view(of.m), grad: &view(of.grad), ..*of };
            let update = self.direction(b, hyper, &moved, chunk)?;
            let mut p = MuonStep::new(chunk.len(), keep, lr);
            if let Some(chance) = of.chance {
                p = p.by_chance(Chance { first: chance.first.wrapping_add((start * one) as u32), ..chance });
            }
            b.muon_step(&mut view(of.weight), &update, &p)?;
        }
        Ok(())
    }

    /// The momentum after this gradient, made orthogonal.
    fn direction(&mut self, b: &dyn Backend, hyper: &Hyper, of: &Moved, chunk: Chunk) -> Result<Buf> {
        let Chunk { E, rows, cols } = chunk;
        let dtype = chunk.dtype(self.dtype);
        let scratch = self.scratch.iter().find(|s| s.dtype == dtype).expect("made for every weight");
        let [mut x, mut next] = scratch.x.each_ref().map(|buf| buf.view(0, chunk.len()));
        let [mut g, mut poly] = scratch.gram.each_ref().map(|buf| buf.view(0, E * chunk.side().pow(2)));
        let mut square = self.square.view(0, E * rows);
        let p = MuonMomentum {
            N: (E * rows) as u32,
            C: cols as u32,
            momentum: hyper.momentum as f32,
            rest: (1.0 - hyper.momentum) as f32,
            nesterov: hyper.nesterov as u32,
        };
        b.muon_momentum(&mut of.m.view(0, chunk.len()), &mut x, &mut square, of.grad, of.scale, &p)?;
        b.muon_normalize(&mut x, &square, &MuonNormalize { E: E as u32, N: rows as u32, C: cols as u32, eps: EPS })?;
        for _ in 0..hyper.ns_steps {
            self.newton_schulz(b, chunk, [&mut next, &mut g, &mut poly], &x)?;
            std::mem::swap(&mut x, &mut next);
        }
        Ok(x)
    }

    /// next = one step from x; g and poly are overwritten.
    fn newton_schulz(&mut self, b: &dyn Backend, chunk: Chunk, [next, g, poly]: [&mut Buf; 3], x: &Buf) -> Result<()> {
        let [a, b1, c] = POLYNOMIAL;
        let (Chunk { E, rows, cols }, side) = (chunk, chunk.side());
        let add =
            |to: &mut Buf, from: &Buf, scale| b.residual_backward(to, from, &Residual { P: to.len() as u32, scale });
        self.gram(b, chunk, g, x)?;
        self.product(b, poly, (g, g), (E, side, side, side), c)?;
        add(poly, g, b1)?;
        let (left, right) = if rows > cols { (x, &*poly) } else { (&*poly, x) };
        self.product(b, next, (left, right), (E, rows, cols, side), 1.0)?;
        add(next, x, a)
    }

    /// g = X·Xᵀ or Xᵀ·X, whichever is smaller, of each matrix.
    fn gram(&mut self, b: &dyn Backend, Chunk { E, rows, cols }: Chunk, g: &mut Buf, x: &Buf) -> Result<()> {
        let tall = rows > cols;
        if E == 1 {
            let (side, Q) = if tall { (cols, rows) } else { (rows, cols) };
            let p = matmul((side, side, Q), [side, cols, cols], 1.0);
            return if tall { b.matmul_tn(g, x, x, &p) } else { b.matmul_nt(g, x, x, &p) };
        }
        let offsets = self.offsets(b, E, rows)?;
        let p = Grouped { M: (E * rows) as u32, E: E as u32, J: rows as u32, Q: cols as u32, alpha: 1.0 };
        if !tall {
            return b.grouped_nt(g, x, x, &offsets, &p);
        }
        b.fill(g, 0.0)?;
        b.grouped_tn_add(g, x, x, &offsets, &Grouped { J: cols as u32, ..p })
    }

    /// out [I, J] = alpha·left [I, Q]·right [Q, J], of each of E.
    fn product(
        &mut self,
        b: &dyn Backend,
        out: &mut Buf,
        (left, right): (&Buf, &Buf),
        (E, I, J, Q): (usize, usize, usize, usize),
        alpha: f32,
    ) -> Result<()> {
        if E == 1 {
            return b.matmul_nn(out, left, right, &matmul((I, J, Q), [J, Q, J], alpha));
        }
        let offsets = self.offsets(b, E, I)?;
        let p = Grouped { M: (E * I) as u32, E: E as u32, J: J as u32, Q: Q as u32, alpha };
        b.grouped_nn(out, left, right, &offsets, &p)
    }

    fn offsets(&mut self, b: &dyn Backend, E: usize, rows: usize) -> Result<Buf> {
        if let Some((_, buf)) = self.offsets.iter().find(|(of, _)| *of == (E, rows)) {
            return Ok(buf.view(0, E + 1));
        }
        let _charge = Charge::to(b, Use::Optimizer);
        let values: Vec<u32> = (0..=E).map(|e| (e * rows) as u32).collect();
        let buf = b.alloc_u32(&values)?;
        let view = buf.view(0, E + 1);
        self.offsets.push(((E, rows), buf));
        Ok(view)
    }
}

fn matmul((I, J, Q): (usize, usize, usize), [ld_out, ld_a, ld_b]: [usize; 3], alpha: f32) -> MatMul {
    let [I, J, Q, ld_out, ld_a, ld_b] = [I, J, Q, ld_out, ld_a, ld_b].map(|n| n as u32);
    MatMul { I, J, Q, ld_out, ld_a, ld_b, alpha }
}

#[cfg(test)]
mod tests {
    use super::super::hyper::Rule;
    use super::*;
    use crate::backend::{cpu::Cpu, pick};
    use crate::rng::Rng;

    fn hyper() -> Hyper {
        Hyper { rule: Rule::Muon, momentum: 0.95, nesterov: true, ..Hyper::default() }
    }

    fn backends() -> Vec<Box<dyn Backend>> {
        let others = ["wgpu", "cuda"].into_iter().filter_map(|name| pick::pick(name).ok());
        std::iter::once(Box::new(Cpu::new()) as Box<dyn Backend>).chain(others.map(|(b, _)| b)).collect()
    }

    /// What one step from zero takes off `count` weights [rows, cols], all at once.
    fn moved(b: &dyn Backend, dtype: DType, (count, held): (usize, [usize; 2]), grad: &[f32]) -> Vec<f32> {
        let matrices = Matrices { count, held, fan: held };
        let mut muon = Muon::new(b, dtype, &[matrices]).unwrap();
        let zeros = || b.alloc(grad.len(), DType::F32).unwrap();
        let (weight, m, scale) = (zeros(), zeros(), b.alloc_f32(&[1.0], DType::F32).unwrap());
        let of = Moved {
            weight: &weight,
            m: &m,
            grad: &b.alloc_f32(grad, DType::F32).unwrap(),
            scale: &scale,
            chance: None,
        };
        muon.step(b, &hyper(), &of, &matrices, -1.0, 0.0).unwrap();
        b.download_f32(&weight).unwrap()
    }

    fn noise(len: usize) -> Vec<f32> {
        let mut rng = Rng::new(5);
        (0..len).map(|_| rng.uniform() - 0.5).collect()
    }

    fn distance(a: &[f32], b: &[f32]) -> f32 {
        let square = |x: f32| x * x;
        let error: f32 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (error / b.iter().map(|b| square(*b)).sum::<f32>()).sqrt()
    }

    #[test]
    fn a_stack_moves_as_its_matrices_do() {
        for b in backends() {
            for held @ [rows, cols] in [[6, 10], [10, 6], [5, 7], [9, 3], [1, 8]] {
                let grad = noise(3 * rows * cols);
                for (dtype, most) in [(DType::F32, 1e-4), (DType::Bf16, 3e-2)] {
                    let stack = moved(&*b, dtype, (3, held), &grad);
                    let single = |grad: &[f32]| moved(&*b, dtype, (1, held), grad);
                    let singles: Vec<f32> = grad.chunks(rows * cols).flat_map(single).collect();
                    let off = distance(&stack, &singles);
                    assert!(off <= most, "{}: {held:?} in {}: {off}", b.name(), dtype.name());
                }
            }
        }
    }

    /// Singular values come near 1, whatever they were; padding stays zero.
    #[test]
    fn a_matrix_becomes_nearly_orthogonal() {
        for b in backends() {
            for (dtype, held @ [rows, cols]) in [(DType::F32, [8, 40]), (DType::Bf16, [8, 40]), (DType::Bf16, [40, 8])]
            {
                let mut grad = noise(rows * cols);
                // the last row of an A, or column of a B, is padding
                let pad = |i: usize| if rows < cols { i / cols == rows - 1 } else { i % cols == cols - 1 };
                grad.iter_mut().enumerate().filter(|(i, _)| pad(*i)).for_each(|(_, g)| *g = 0.0);
                let x = moved(&*b, dtype, (1, held), &grad);
                let at = |i: usize, k: usize| if rows < cols { x[i * cols + k] } else { x[k * cols + i] };
                let factor = hyper().adjust_lr.factor(held).powi(2) as f32;
                let dot = |i: usize, j: usize| (0..40).map(|k| at(i, k) * at(j, k)).sum::<f32>() / factor;
                for i in 0..7 {
                    assert!((0.4..1.5).contains(&dot(i, i)), "{} {i}: {}", b.name(), dot(i, i));
                    assert!((0..i).all(|j| dot(i, j).abs() < 0.4), "{}: row {i}", b.name());
                }
                assert!((0..40).all(|k| at(7, k) == 0.0), "{}: padding moved", b.name());
            }
        }
    }
}
