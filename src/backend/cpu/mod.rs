//! The reference backend: every op is the plain Rust function of its name at f32, rows in parallel; products go to the
//! gemm crate and attention to blocks of it (`fast.rs`).
use super::dry::Rules;
use super::{Backend, Buf, CpuRules, HostBuf, Launch, Ledger, Memory, Use, copy_bytes, host, same_bytes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::residual::Residual;
use crate::ops::rmsnorm::{RmsNorm, RmsNormResidual};
use crate::ops::{Elem, Extent, Op, Slice};
use rayon::prelude::*;
use std::cell::{RefCell, UnsafeCell};

mod fast;
mod fp8;
mod grouped;
mod thin;

/// 8-aligned memory that many buffers share.
type Slab = Box<[UnsafeCell<u64>]>;

/// Values of an upload that one thread decodes at a time.
const UPLOAD: usize = 1 << 18;

/// Zeros that take no memory before they are written; `None`: there is not enough.
fn zeroed(words: usize) -> Option<Slab> {
    if words == 0 {
        return Some(Slab::default());
    }
    let layout = std::alloc::Layout::array::<UnsafeCell<u64>>(words).ok()?;
    // SAFETY: the size is not 0; zeros are u64s, and `Box` frees them by the same layout.
    unsafe {
        let start = std::alloc::alloc_zeroed(layout) as *mut UnsafeCell<u64>;
        (!start.is_null()).then(|| Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, words)))
    }
}

/// Holds floats as f32 and rounds to the buffer's dtype at each store.
#[derive(Default)]
pub struct Cpu {
    /// The host's among them: to this backend, one memory is as good as the other.
    slabs: RefCell<Vec<Option<(Slab, Use)>>>,
    ledger: RefCell<Ledger>,
    /// Only references, no fast paths: for tests of the fast paths.
    plain: bool,
}

/// Where an argument lies, safe to hand to rayon: `Launch` proved that what is written overlaps nothing else.
#[derive(Clone, Copy)]
struct Place {
    ptr: *mut u8,
    len: usize,
    elem: Elem,
    writes: bool,
}
// SAFETY: a `Place` is only turned into slices of disjoint rows (written) or shared slices (read) within one launch.
unsafe impl Send for Place {}
unsafe impl Sync for Place {}

impl Place {
    /// Elements `start..start + len` as a reference receives them.
    ///
    /// # Safety
    /// The range lies in the argument, and no two written ranges that live at the same time overlap.
    unsafe fn slice<'a>(self, start: usize, len: usize) -> Slice<'a, f32> {
        assert!(start + len <= self.len);
        unsafe {
            match (self.elem, self.writes) {
                (Elem::U32, false) => Slice::U32(std::slice::from_raw_parts((self.ptr as *const u32).add(start), len)),
                (Elem::U32, true) => {
                    Slice::U32Mut(std::slice::from_raw_parts_mut((self.ptr as *mut u32).add(start), len))
                }
                (Elem::U8, false) => Slice::U8(std::slice::from_raw_parts(self.ptr.add(start), len)),
                (Elem::U8, true) => Slice::U8Mut(std::slice::from_raw_parts_mut(self.ptr.add(start), len)),
                (_, false) => Slice::Float(std::slice::from_raw_parts((self.ptr as *const f32).add(start), len)),
                (_, true) => Slice::FloatMut(std::slice::from_raw_parts_mut((self.ptr as *mut f32).add(start), len)),
            }
        }
    }
}

impl Cpu {
    pub fn new() -> Cpu {
        Cpu::default()
    }
    /// Without fast paths: every op is its reference.
    pub fn plain() -> Cpu {
        Cpu { plain: true, ..Cpu::default() }
    }
    /// The buffer's first byte; a buffer of another backend panics here.
    fn ptr(&self, buf: &Buf) -> *mut u8 {
        let slabs = self.slabs.borrow();
        let (slab, _) = slabs[buf.slab as usize].as_ref().expect("the buffer was freed");
        assert!(buf.start + buf.bytes() <= slab.len() * 8);
        // SAFETY: within the slab.
        unsafe { (slab.as_ptr() as *mut u8).add(buf.start) }
    }
    /// Zeros in a slab of their own; `count` enters its bytes.
    fn make(&self, len: usize, dtype: DType, count: impl FnOnce(&mut Ledger, u64) -> Use) -> Result<Buf> {
        let (width, words) = (CpuRules.width(dtype), (CpuRules.bytes(len, dtype) / 8) as usize);
        let slab =
            zeroed(words).ok_or_else(|| Error::device("cpu", format!("out of memory: {} MiB wanted", words >> 17)))?;
        let mut slabs = self.slabs.borrow_mut();
        slabs.push(Some((slab, count(&mut self.ledger.borrow_mut(), words as u64 * 8))));
        Ok(Buf { slab: slabs.len() as u32 - 1, start: 0, len, dtype, width })
    }
    #[allow(clippy::mut_from_ref, reason = "a slab is memory of its own; see SAFETY")]
    fn floats(&self, buf: &Buf) -> &mut [f32] {
        // SAFETY: `ptr` checked the range, and no slice of a slab outlives a method of `Cpu`, which is not Sync.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(buf) as *mut f32, buf.len) }
    }
    /// The norm of a sum as it is stored, as two calls: what is written is rounded when its call ends.
    fn sum_then_norm(&self, launch: &Launch) -> Result<()> {
        let &[out, rstd, sum, a, b, weight] = launch.args() else {
            return Err(Error::Bug("the norm of a sum has six arguments".into()));
        };
        let RmsNormResidual { N, C, eps, shift, scale } = bytemuck::pod_read_unaligned(launch.params());
        let residual = Residual { P: N * C, scale };
        self.launch(&Launch::new(Op::residual_forward, &[sum, a, b], bytemuck::bytes_of(&residual))?)?;
        let norm = RmsNorm { N, C, eps, shift };
        self.launch(&Launch::new(Op::rmsnorm_forward, &[out, rstd, sum, weight], bytemuck::bytes_of(&norm))?)
    }
    fn places(&self, launch: &Launch) -> Vec<Option<Place>> {
        let args = launch.op().spec().args.iter().zip(launch.args());
        args.map(|(arg, buf)| {
            buf.map(|b| Place { ptr: self.ptr(b), len: b.len, elem: arg.elem, writes: arg.access.writes() })
        })
        .collect()
    }
}

/// Ops whose rows depend on no other row of a written argument: they run in chunks of rows, in parallel.
fn by_rows(op: Op) -> bool {
    matches!(
        op,
        Op::embedding_forward
            | Op::rmsnorm_forward
            | Op::rmsnorm_backward
            | Op::layernorm_forward
            | Op::layernorm_backward
            | Op::attention_sink_forward
            | Op::paged_attention_forward
            | Op::paged_attention_join
            | Op::bias_forward
            | Op::rope_forward
            | Op::rope_backward
            | Op::activation_forward
            | Op::activation_backward
            | Op::swiglu_forward
            | Op::swiglu_backward
            | Op::logprob_forward
            | Op::logprob_backward
            | Op::router_forward
            | Op::router_backward
            | Op::muon_momentum
    )
}

/// Rows a task takes at least: below it, splitting costs more than it brings.
const MIN_ROWS: usize = 16;

/// Runs `op` on chunks of its rows; `N` is the first field of such an op's params.
fn run_rows(op: Op, places: &[Option<Place>], extents: &[Extent], params: &[u8]) {
    assert_eq!(op.spec().fields[0].0, "N", "{op:?} runs by rows");
    let rows = u32::from_ne_bytes(params[..4].try_into().expect("4 bytes")) as usize;
    let chunk = rows.div_ceil(4 * rayon::current_num_threads()).max(MIN_ROWS);
    (0..rows.div_ceil(chunk)).into_par_iter().for_each(|c| {
        let (first, count) = (c * chunk, chunk.min(rows - c * chunk));
        let mut params = params.to_vec();
        params[..4].copy_from_slice(&(count as u32).to_ne_bytes());
        let slices = places.iter().zip(extents).zip(op.spec().args).map(|((place, extent), arg)| match place {
            None => Slice::Absent,
            // SAFETY: chunks of rows are disjoint.
            Some(p) if arg.shape.starts_with("[N") => unsafe {
                let row = extent.elements() / rows;
                p.slice(first * row, count * row)
            },
            Some(p) => unsafe { p.slice(0, p.len) },
        });
        op.reference(slices, &params);
    });
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }
    fn device(&self) -> String {
        format!("CPU, {} threads", rayon::current_num_threads())
    }
    fn alloc(&self, len: usize, dtype: DType) -> Result<Buf> {
        self.make(len, dtype, Ledger::take)
    }

    fn free(&self, buf: Buf) {
        if let Some((slab, what)) = self.slabs.borrow_mut()[buf.slab as usize].take() {
            self.ledger.borrow_mut().give(what, slab.len() as u64 * 8);
        }
    }

    fn upload(&self, to: &mut Buf, bytes: &[u8]) -> Result<()> {
        same_bytes("upload", to.len * to.dtype.size(), bytes.len())?;
        let dtype = to.dtype;
        if dtype.is_float() {
            let parts = bytes.par_chunks(UPLOAD * to.dtype.size());
            let to_part = |(to, from): (&mut [f32], &[u8])| dtype.decode_to(to, from);
            self.floats(to).par_chunks_mut(UPLOAD).zip(parts).for_each(to_part);
        } else {
            // SAFETY: as in `floats`.
            let to = unsafe { std::slice::from_raw_parts_mut(self.ptr(to), bytes.len()) };
            copy_bytes(to, bytes);
        }
        Ok(())
    }

    fn download(&self, from: &Buf) -> Result<Vec<u8>> {
        if from.dtype.is_float() {
            return Ok(from.dtype.encode(self.floats(from)));
        }
        // SAFETY: as in `floats`.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr(from), from.bytes()) }.to_vec())
    }

    fn copy(&self, to: &mut Buf, from: &Buf) -> Result<()> {
        same_bytes("copy", to.len * to.dtype.size(), from.len * from.dtype.size())?;
        assert!(to.dtype == from.dtype && !to.overlaps(from), "copy: other dtype or overlap");
        // SAFETY: both ranges were checked by `ptr`, and they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr(from), self.ptr(to), to.bytes()) };
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let (op, params) = (launch.op(), launch.params());
        if op == Op::rmsnorm_residual_forward {
            return self.sum_then_norm(launch);
        }
        let (places, extents) = (self.places(launch), op.extents(params).1);
        // SAFETY: each argument once, as a whole; `Launch` proved that what is written overlaps nothing else.
        let whole = || places.iter().map(|p| p.map_or(Slice::Absent, |p| unsafe { p.slice(0, p.len) }));
        if self.plain || !fast::run(op, whole(), params) {
            match by_rows(op) {
                true => run_rows(op, &places, &extents, params),
                false => op.reference(whole(), params),
            }
        }
        // rows copied within a type are rounded already, and the pool they go to is large
        let copied = op == Op::pages_write && launch.args()[0].map(Buf::dtype) == launch.args()[1].map(Buf::dtype);
        for (slice, buf) in whole().zip(launch.args()) {
            if let (Slice::FloatMut(s), Some(b)) = (slice, buf)
                && b.dtype != DType::F32
                && !copied
            {
                s.par_chunks_mut(1 << 14).for_each(|s| s.iter_mut().for_each(|x| *x = b.dtype.round(*x)));
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> Memory {
        self.ledger.borrow().memory
    }

    fn available(&self) -> Option<u64> {
        available()
    }

    fn rules(&self) -> std::rc::Rc<dyn Rules> {
        std::rc::Rc::new(CpuRules)
    }

    fn charge(&self, to: Use) -> Use {
        self.ledger.borrow_mut().charge(to)
    }

    fn host_alloc(&self, len: usize, dtype: DType) -> Result<HostBuf> {
        let count = |ledger: &mut Ledger, bytes| {
            ledger.take_host(bytes);
            Use::default()
        };
        self.make(len, dtype, count).map(HostBuf)
    }

    fn host_free(&self, buf: HostBuf) {
        if let Some((slab, _)) = self.slabs.borrow_mut()[buf.0.slab as usize].take() {
            self.ledger.borrow_mut().give_host(slab.len() as u64 * 8);
        }
    }

    fn to_host(&self, to: &mut HostBuf, from: &Buf) -> Result<()> {
        host::check(&to.0, from)?;
        self.copy(&mut to.0, from)
    }

    fn from_host(&self, to: &mut Buf, from: &HostBuf) -> Result<()> {
        host::check(to, &from.0)?;
        self.copy(to, &from.0)
    }

    fn rows_from_host(&self, to: &mut Buf, from: &HostBuf, ids: &[u32]) -> Result<()> {
        let row = host::check_rows(to, &from.0, ids)?;
        let at = |buf: &Buf, n: usize| Buf { start: buf.start + n * row * buf.width, len: row, ..*buf };
        ids.iter().enumerate().try_for_each(|(n, id)| self.copy(&mut at(to, n), &at(&from.0, *id as usize)))
    }

    fn host_upload(&self, to: &mut HostBuf, bytes: &[u8]) -> Result<()> {
        self.upload(&mut to.0, bytes)
    }

    fn host_download(&self, from: &HostBuf) -> Result<Vec<u8>> {
        self.download(&from.0)
    }
}

/// What Linux says could be taken without swapping.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}
