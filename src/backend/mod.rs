//! `Backend`: memory, one `launch`, and one provided method per row of the op table.
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{self, Op, table::for_each_op};
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod cuda_text;
pub mod dry;
pub mod foreign;
mod host;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod kept;
pub mod kernel_text;
mod launch;
mod ledger;
mod pass_on;
pub mod pick;
pub mod profile;
mod recording;
mod rules;
#[cfg(feature = "wgpu")]
pub mod wgpu;
pub use host::{HostBuf, HostScope};
pub use launch::Launch;
pub(crate) use ledger::Ledger;
pub use ledger::{ByUse, Memory, Use};
pub use profile::{Mark, Profile};
pub use recording::Recording;
pub use rules::{CpuRules, CudaRules};

/// A stretch of a backend's memory, in elements. The same type for every backend.
/// Not `Clone`: `&mut Buf` says who writes, and `Launch` refuses the views that say otherwise.
#[derive(Debug, PartialEq)]
pub struct Buf {
    /// Which allocation.
    pub(crate) slab: u32,
    /// First byte in it.
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) dtype: DType,
    /// Bytes of an element as the backend holds it: the cpu holds every float as f32.
    pub(crate) width: usize,
}

impl Buf {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Elements `offset..offset + len` of this buffer. GPUs address words: bytes start at multiples of 4, 16-bit values at
    /// multiples of 2.
    pub fn view(&self, offset: usize, len: usize) -> Buf {
        assert!(offset + len <= self.len, "a view of {offset}+{len} elements in a buffer of {}", self.len);
        assert!(
            (offset * self.dtype.size()).is_multiple_of(4),
            "a view at element {offset} of a {} buffer",
            self.dtype.name()
        );
        Buf { start: self.start + offset * self.width, len, ..*self }
    }
    /// All of them as one, if each begins where the one before ends.
    pub(crate) fn joined<'a>(mut bufs: impl Iterator<Item = &'a Buf>) -> Option<Buf> {
        let first = bufs.next()?;
        bufs.try_fold(first.view(0, first.len), |all, next| {
            let follows = next.slab == all.slab && next.dtype == all.dtype && next.start == all.start + all.bytes();
            follows.then_some(Buf { len: all.len + next.len, ..all })
        })
    }
    fn bytes(&self) -> usize {
        self.len * self.width
    }
    fn overlaps(&self, other: &Buf) -> bool {
        self.slab == other.slab && self.start < other.start + other.bytes() && other.start < self.start + self.bytes()
    }
}

/// The type of an argument, its handle, and the presence flag of an `opt` one.
#[rustfmt::skip]
macro_rules! buf {
    (type: opt read $($ty:ident)?) => { Option<&Buf> };
    (type: read $($ty:ident)?) => { &Buf };
    (type: $written:ident $($ty:ident)?) => { &mut Buf };
    (handle: $arg:ident, opt read $($ty:ident)?) => { $arg };
    (handle: $arg:ident, $($always:ident)+) => { Some(&*$arg) };
    (flag: $p:ident.$arg:ident, opt read $($ty:ident)?) => { $p.$arg = $arg.is_some() as u32; };
    (flag: $p:ident.$arg:ident, $($always:ident)+) => {};
}

macro_rules! declare {
    ($( $(#[$doc:meta])* $file:ident :: $op:ident { $($D:ident),+ } (
        $( $arg:ident : $($acc:ident)+ [ $($shape:tt)+ ] ),+ ; $params:ident ); )*) => {
        /// Object-safe: model and trainer take `&dyn Backend` and compile once. Calls are queued in order; only
        /// `download` and `sync` wait, and only they prove that what was queued has run. [`Profile`] passes every method on that is
        /// not stamped from a row, also one that has a default here, but for `record`.
        pub trait Backend {
            /// `cpu`, `wgpu` or `cuda`.
            fn name(&self) -> &'static str;
            /// The device, for people.
            fn device(&self) -> String;
            /// The version of its driver, where it has one.
            fn driver(&self) -> Option<String> {
                None
            }
            /// `len` elements of zeros.
            fn alloc(&self, len: usize, dtype: DType) -> Result<Buf>;
            /// Gives back what `alloc` returned, as a whole; calls already queued may still use it.
            fn free(&self, buf: Buf);
            /// `bytes` as the dtype stores them, little-endian.
            fn upload(&self, to: &mut Buf, bytes: &[u8]) -> Result<()>;
            /// The bytes as the dtype stores them, little-endian. Waits.
            fn download(&self, from: &Buf) -> Result<Vec<u8>>;
            /// Same dtype, same length, no overlap.
            fn copy(&self, to: &mut Buf, from: &Buf) -> Result<()>;
            /// Runs a checked call. A fast path is a `match launch.op()` in here.
            fn launch(&self, launch: &Launch) -> Result<()>;
            /// Runs `calls`, which queue launches and copies and nothing else: the same on the same buffers each time that they come
            /// with this recording. A backend may keep what they queue, and queue it as a whole from then on without asking them.
            /// The results have the same bits either way.
            fn record(&self, _recording: &mut Recording, calls: &mut dyn FnMut() -> Result<()>) -> Result<()> {
                calls()
            }
            /// Waits until everything queued has run; an error of any of it comes out here.
            fn sync(&self) -> Result<()>;
            /// The moment when everything queued before has run.
            fn mark(&self) -> Result<Mark> {
                self.sync()?;
                Ok(Mark::Host(std::time::Instant::now()))
            }
            /// Seconds from each of these marks to the next, in their order. Waits.
            fn elapsed(&self, marks: Vec<Mark>) -> Result<Vec<f64>> {
                let at = |mark: &Mark| match mark {
                    Mark::Host(at) => Ok(*at),
                    Mark::Device(_) => Err(Error::Bug("a mark of another backend".into())),
                };
                marks.windows(2).map(|pair| Ok((at(&pair[1])? - at(&pair[0])?).as_secs_f64())).collect()
            }
            fn memory(&self) -> Memory;
            /// Bytes that can be taken now, where the device says so.
            fn available(&self) -> Option<u64>;
            /// How this backend takes memory.
            fn rules(&self) -> std::rc::Rc<dyn dry::Rules>;
            /// It only counts: values need not be made for it.
            fn is_dry(&self) -> bool {
                false
            }
            /// Whether its products in e4m3 are faster than those of 16-bit floats.
            fn has_fp8(&self) -> bool {
                false
            }
            /// Whether `low_rank_backward` is faster than the two products that it stands for.
            fn has_low_rank(&self) -> bool {
                false
            }
            /// What is allocated from now on counts as this; returns what it counted as before. See [`Charge`].
            fn charge(&self, to: Use) -> Use;

            /// `len` elements of zeros in host memory that the device copies from and to.
            fn host_alloc(&self, len: usize, dtype: DType) -> Result<HostBuf>;
            /// Gives back what `host_alloc` returned, as a whole, once no copy uses it.
            fn host_free(&self, buf: HostBuf);
            /// Same dtype, same length. Queued: it sees what earlier calls wrote, and later calls that write `from` wait for it;
            /// where a device can, it runs beside the calls that do not.
            fn to_host(&self, to: &mut HostBuf, from: &Buf) -> Result<()>;
            /// The same in the other direction: earlier calls on `to` come first, later ones wait for it.
            #[allow(clippy::wrong_self_convention, reason = "it is `to_host` the other way round")]
            fn from_host(&self, to: &mut Buf, from: &HostBuf) -> Result<()>;
            /// to[n,:] = from[ids[n],:]: rows of host memory, all of to.len/ids.len elements. Queued like `upload`.
            fn rows_from_host(&self, to: &mut Buf, from: &HostBuf, ids: &[u32]) -> Result<()>;
            /// As `upload`, to host memory; waits for copies that use it.
            fn host_upload(&self, to: &mut HostBuf, bytes: &[u8]) -> Result<()>;
            /// As `download`, from host memory; waits for the copies to it.
            fn host_download(&self, from: &HostBuf) -> Result<Vec<u8>>;
            /// A hint: `span` [N, 2] now holds causal attention within these sequences, query n seeing at most `window` keys; sequence
            /// s is the tokens cu_seqlens[s]..cu_seqlens[s+1]. It holds until `span` is written.
            fn sequences(&self, _span: &Buf, _cu_seqlens: &[u32], _window: Option<u32>) {}
            /// A run of many like steps begins: whether it must give the same bits wherever it runs, or whatever is fastest may be
            /// sought out.
            fn set_deterministic(&self, _wanted: bool) {}

            $( $(#[$doc])*
            #[allow(unused_mut, reason = "only an `opt` argument has a flag to fill in")]
            fn $op(&self, $( $arg: buf!(type: $($acc)+), )+ p: &ops::$file::$params) -> Result<()> {
                let mut p = *p;
                $( buf!(flag: p.$arg, $($acc)+); )+
                let args = [ $( buf!(handle: $arg, $($acc)+) ),+ ];
                self.launch(&Launch::new(Op::$op, &args, bytemuck::bytes_of(&p))?)
            } )*
        }
    };
}
for_each_op!(declare);

impl dyn Backend + '_ {
    /// Uploads values, rounded to the buffer's dtype.
    pub fn upload_f32(&self, to: &mut Buf, values: &[f32]) -> Result<()> {
        let bytes = to.dtype.encode(values);
        self.upload(to, &bytes)
    }
    pub fn upload_u32(&self, to: &mut Buf, values: &[u32]) -> Result<()> {
        self.upload(to, bytemuck::cast_slice(values))
    }
    pub fn download_u32(&self, from: &Buf) -> Result<Vec<u32>> {
        Ok(self.download(from)?.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
    pub fn download_f32(&self, from: &Buf) -> Result<Vec<f32>> {
        Ok(from.dtype.decode(&self.download(from)?))
    }
    /// A new buffer that holds `values`.
    pub fn alloc_f32(&self, values: &[f32], dtype: DType) -> Result<Buf> {
        let mut buf = self.alloc(values.len(), dtype)?;
        self.upload_f32(&mut buf, values)?;
        Ok(buf)
    }
    pub fn alloc_u32(&self, values: &[u32]) -> Result<Buf> {
        let mut buf = self.alloc(values.len(), DType::U32)?;
        self.upload_u32(&mut buf, values)?;
        Ok(buf)
    }
    /// out = value everywhere.
    pub fn fill(&self, out: &mut Buf, value: f32) -> Result<()> {
        let p = ops::fill::Fill { P: out.len as u32, value };
        self.fill_forward(out, &p)
    }
    /// out = inp in out's dtype.
    pub fn cast(&self, out: &mut Buf, inp: &Buf) -> Result<()> {
        let p = ops::cast::Cast { P: out.len as u32 };
        self.cast_forward(out, inp, &p)
    }
}

/// While it lives, allocations count as what it was made for.
pub struct Charge<'b> {
    b: &'b dyn Backend,
    before: Use,
}

impl<'b> Charge<'b> {
    pub fn to(b: &'b dyn Backend, to: Use) -> Charge<'b> {
        Charge { b, before: b.charge(to) }
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.b.charge(self.before);
    }
}

/// Buffers that are given back together, when the scope ends.
pub struct Scope<'b> {
    b: &'b dyn Backend,
    held: std::cell::RefCell<Vec<Buf>>,
}

impl<'b> Scope<'b> {
    pub fn new(b: &'b dyn Backend) -> Scope<'b> {
        Scope { b, held: Default::default() }
    }
    pub fn backend(&self) -> &'b dyn Backend {
        self.b
    }
    /// As [`Backend::alloc`].
    pub fn alloc(&self, len: usize, dtype: DType) -> Result<Buf> {
        let buf = self.b.alloc(len, dtype)?;
        self.held.borrow_mut().push(buf.view(0, len));
        Ok(buf)
    }
    /// Buffers of phases that do not overlap in time, a list of lengths and types for each: those of one phase lie apart, those of
    /// different phases in the same memory, so that what one leaves is gone in the next.
    pub fn by_turns(&self, phases: &[Vec<(usize, DType)>]) -> Result<Vec<Vec<Buf>>> {
        let rules = self.b.rules();
        let bytes = |(len, dtype): (usize, DType)| rules.bytes(len, dtype);
        let ranked = |phase: &Vec<(usize, DType)>| {
            let mut order: Vec<usize> = (0..phase.len()).collect();
            order.sort_by_key(|i| std::cmp::Reverse(bytes(phase[*i])));
            order
        };
        let ranked: Vec<Vec<usize>> = phases.iter().map(ranked).collect();
        let mut dealt: Vec<Vec<Option<Buf>>> =
            phases.iter().map(|phase| phase.iter().map(|_| None).collect()).collect();
        // the largest of all phases lie in one place, then the second largest
        for k in 0..phases.iter().map(Vec::len).max().unwrap_or(0) {
            let there = || (0..phases.len()).filter_map(|i| Some((i, *ranked[i].get(k)?)));
            let Some((len, dtype)) = there().map(|(i, j)| phases[i][j]).max_by_key(|want| bytes(*want)) else { break };
            let place = self.alloc(len, dtype)?;
            for (i, j) in there() {
                let (len, dtype) = phases[i][j];
                dealt[i][j] = Some(Buf { len, dtype, width: rules.width(dtype), ..place.view(0, place.len) });
            }
        }
        Ok(dealt.into_iter().map(|phase| phase.into_iter().flatten().collect()).collect())
    }
    /// A new buffer that holds `values`.
    pub fn alloc_f32(&self, values: &[f32], dtype: DType) -> Result<Buf> {
        let mut buf = self.alloc(values.len(), dtype)?;
        self.b.upload_f32(&mut buf, values)?;
        Ok(buf)
    }
    /// Gives this back, too, when the scope ends.
    pub fn hold(&self, buf: &Buf) {
        self.held.borrow_mut().push(buf.view(0, buf.len()));
    }
    /// Nothing is given back: all went well, and the buffers have another owner.
    pub fn keep(self) {
        self.held.take();
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.held.take().into_iter().for_each(|buf| self.b.free(buf));
    }
}

/// `upload` and `copy` of every backend start with this.
pub(crate) fn same_bytes(what: &'static str, want: usize, got: usize) -> Result<()> {
    if want == got { Ok(()) } else { Err(Error::Bug(format!("{what}: {want} bytes wanted, {got} given"))) }
}

/// Copies large pieces with all threads, small ones at once: one thread is slower than a bus out of a mapped file, where each
/// page is a fault.
pub(crate) fn copy_bytes(to: &mut [u8], from: &[u8]) {
    use rayon::prelude::*;
    const PART: usize = 512 << 10;
    match from.len() {
        ..=PART => to.copy_from_slice(from),
        _ => to.par_chunks_mut(PART).zip(from.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from)),
    }
}
