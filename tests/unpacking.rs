//! Weights that are unpacked ahead of their products: whatever is queued around them, the bits are those of one call after the other.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
use luthier::backend::{Backend, Buf, HostBuf};
use luthier::dtype::DType::{F32, U8};
use luthier::ops::matmul::MatMul;
use luthier::ops::nf4::Nf4;
use luthier::rng::Rng;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

/// Rows that are multiplied, and weights.
const N: usize = 4;
const WEIGHTS: usize = 3;

/// Buffers of one run; weights are [C, C] at most.
struct Bench<'b> {
    b: &'b dyn Backend,
    C: usize,
    codes: Vec<Buf>,
    on_host: HostBuf,
    absmax: Buf,
    /// Where weights go, by turns, and what somebody copies them to.
    places: Vec<Buf>,
    copied: Buf,
    left: HostBuf,
    x: Buf,
    out: Buf,
    /// Codes, scales and a place of a weight that takes long.
    busy: [Buf; 3],
    seen: Vec<Vec<f32>>,
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97)) >> 7) as u8).collect()
}

impl<'b> Bench<'b> {
    fn new(b: &'b dyn Backend, C: usize, busy: usize) -> Bench<'b> {
        let floats = |len: usize| (0..len).map(|i| (i % 17) as f32 / 16.0 - 0.4).collect::<Vec<_>>();
        let (new, host) = (|len| b.alloc(len, F32).unwrap(), |len, dtype| b.host_alloc(len, dtype).unwrap());
        let codes = (0..WEIGHTS).map(|_| b.alloc(C * C / 2, U8).unwrap()).collect();
        let absmax = b.alloc_f32(&floats(C * C / 64), F32).unwrap();
        let (places, x) = (vec![new(C * C), new(C * C)], b.alloc_f32(&floats(N * C), F32).unwrap());
        let (on_host, left) = (host(C * C / 2, U8), host(C * C, F32));
        let (copied, out) = (new(C * C), new(N * C));
        let busy = [b.alloc(busy / 2, U8).unwrap(), new(busy / 64), new(busy)];
        Bench { b, C, codes, on_host, absmax, places, copied, left, x, out, busy, seen: Vec::new() }
    }

    /// Unpacks the first `J` rows of weight `w` to a place, `first` rows behind its start.
    fn unpack(&mut self, w: usize, place: usize, (first, J): (usize, usize)) {
        let P = J * self.C;
        let codes = self.codes[w].view(0, P / 2);
        let mut to = self.places[place].view(first * self.C, P);
        self.b.nf4_dequantize(&mut to, &codes, &self.absmax.view(0, P / 64), &Nf4 { P: P as u32 }).unwrap();
    }

    /// What is unpacked next is not there at once.
    fn be_busy(&mut self) {
        let [codes, absmax, place] = &mut self.busy;
        let P = place.len() as u32;
        self.b.nf4_dequantize(place, codes, absmax, &Nf4 { P }).unwrap();
    }

    fn write(&mut self, w: usize) {
        let from = self.codes[(w + 1) % WEIGHTS].view(0, self.codes[0].len());
        self.b.copy(&mut self.codes[w], &from).unwrap();
    }

    /// out += x·(the first `J` rows of what is in the place)ᵀ
    fn multiply(&mut self, place: usize, J: usize) {
        let [n, j, c] = [N, J, self.C].map(|dim| dim as u32);
        let p = MatMul { I: n, J: j, Q: c, ld_out: c, ld_a: c, ld_b: c, alpha: 1.0 };
        self.b.matmul_nt_add(&mut self.out, &self.x, &self.places[place].view(0, J * self.C), &p).unwrap();
    }

    /// Something that a run might do, by chance.
    fn next(&mut self, rng: &mut Rng, step: u64) {
        let (what, w, place) = (rng.below(14), rng.below(WEIGHTS), rng.below(2));
        let J = self.C / [1, 2, 4][rng.below(3)];
        if rng.below(2) == 0 {
            self.be_busy();
        }
        match what {
            0..3 => {
                self.unpack(w, place, (0, J));
                self.multiply(place, J);
            }
            3 => {
                // read while it is written anew
                self.unpack(w, place, (0, J));
                self.write(w);
                self.multiply(place, J);
            }
            4 => self.unpack(w, place, (0, J)),
            5 => self.multiply(place, self.C),
            6 => {
                let bytes = bytes(self.codes[w].len(), step);
                self.b.upload(&mut self.codes[w], &bytes).unwrap();
            }
            7 => self.write(w),
            8 => {
                let bytes = bytes(self.codes[w].len(), step);
                self.b.host_upload(&mut self.on_host, &bytes).unwrap();
                self.b.from_host(&mut self.codes[w], &self.on_host).unwrap();
            }
            9 => self.b.to_host(&mut self.left, &self.places[place]).unwrap(),
            10 => self.b.copy(&mut self.copied, &self.places[place]).unwrap(),
            11 => {
                // in vain as far as the second goes, and still read
                self.unpack(w, place, (0, self.C));
                self.unpack((w + 1) % WEIGHTS, place, (0, J));
                self.write(w);
                self.multiply(place, self.C);
            }
            12 => {
                // the place of the second begins within that of the first
                self.unpack(w, place, (0, self.C));
                self.unpack(w, place, (self.C / 2, J.min(self.C / 2)));
                self.multiply(place, self.C);
            }
            _ => {
                // what takes its memory next must find it unused
                let new = self.b.alloc(self.places[place].len(), F32).unwrap();
                self.b.free(std::mem::replace(&mut self.places[place], new));
            }
        }
    }

    fn see(&mut self) {
        let left = self.b.host_download(&self.left).unwrap();
        self.seen.push(bytemuck::pod_collect_to_vec(&left));
        for buf in [&self.out, &self.copied, &self.places[0], &self.places[1]] {
            self.seen.push(self.b.download_f32(buf).unwrap());
        }
    }
}

fn run(b: &dyn Backend, (C, busy): (usize, usize), seed: u64, one_by_one: bool) -> Vec<Vec<f32>> {
    let (mut bench, mut rng) = (Bench::new(b, C, busy), Rng::new(seed));
    for w in 0..WEIGHTS {
        let bytes = bytes(C * C / 2, w as u64);
        b.upload(&mut bench.codes[w], &bytes).unwrap();
    }
    for step in 0..60 {
        bench.next(&mut rng, step);
        if one_by_one {
            b.sync().unwrap();
        }
        if step % 20 == 19 {
            bench.see();
        }
    }
    let Bench { codes, on_host, absmax, places, copied, left, x, out, busy, seen, .. } = bench;
    codes.into_iter().chain(places).chain(busy).chain([absmax, copied, x, out]).for_each(|buf| b.free(buf));
    [on_host, left].into_iter().for_each(|buf| b.host_free(buf));
    seen
}

#[test]
fn no_order_of_calls_shows() {
    for b in support::backends() {
        // on a GPU large enough to be caught in the middle
        let (sizes, seeds) = if b.name() == "cuda" { ((2048, 64 << 20), 40) } else { ((64, 1024), 8) };
        for seed in 0..seeds {
            let (want, got) = (run(&*b, sizes, seed, true), run(&*b, sizes, seed, false));
            assert!(want.iter().flatten().any(|x| *x != 0.0), "{}: nothing was computed", b.name());
            let same = want.iter().flatten().zip(got.iter().flatten()).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && want.len() == got.len(), "{}, seed {seed}: other bits than one by one", b.name());
        }
    }
}
