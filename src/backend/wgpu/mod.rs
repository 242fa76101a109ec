//! The portable backend: Vulkan, Metal and DX12 through wgpu, one WGSL shader per op.
//!
//! `text` makes a module for one entry point and the storage of its arguments, `plan` chooses constants by size, `pipeline`
//! compiles once, `record` queues. Always deterministic: no float atomics, every sum in a fixed order.
//! `LUTHIER_WGPU_CHECKED=1` runs as a browser would: with the shaders' bounds and loop checks, zeroed workgroup memory and
//! params in uniform buffers. `LUTHIER_WGPU_PRODUCTS` chooses what multiplies matrices ([`Products`]).
use super::kernel_text::{self, Names, Section};
use super::{Backend, Buf, HostBuf, Launch, Mark, Memory, Use, dry, same_bytes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Elem, Op};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use wgpu::{Features, Limits};

mod adapter;
pub mod attention;
pub mod coop;
pub mod expand;
pub mod exponents;
mod host;
mod launch;
mod marks;
mod memory;
mod pipeline;
pub mod plan;
mod record;
mod rules;
pub mod text;
pub mod tune;
mod windows;

pub use adapter::{AdapterReport, MatrixUnit, Shared, adapters};
pub use coop::Products;
use exponents::Exponents;
use memory::Heap;
use pipeline::{Pipelines, Window};
use plan::{Fast, Plan};
use record::{PARAMS, Recorder};
use rules::Rules;
use text::{ParamsIn, Request, TextArg};
use tune::Tiles;

/// A file's common text and its sections.
pub type Parsed = (&'static str, Vec<Section<'static>>);

/// One device.
pub struct Wgpu {
    report: AdapterReport,
    faults: adapter::Faults,
    device: wgpu::Device,
    shared: Shared,
    rules: Rc<Rules>,
    state: RefCell<State>,
}

/// Where a buffer lies in one of wgpu's.
pub struct Lent {
    pub buffer: wgpu::Buffer,
    pub start: u64,
    pub bytes: u64,
}

struct State {
    heap: Heap,
    pipelines: Pipelines,
    recorder: Recorder,
    marks: marks::Marks,
    /// By file: all ops of a file have the same text.
    files: HashMap<&'static str, Rc<Parsed>>,
    /// How often each text was run, by its name.
    calls: HashMap<&'static str, u64>,
    /// For stages that hand values to each other, as f32 and as f16; they grow, never shrink.
    scratch: Option<Buf>,
    packed: Option<Buf>,
    exponents: Exponents,
    /// What they lie in.
    exponent_values: Option<Buf>,
}

fn fail(what: impl std::fmt::Display) -> Error {
    Error::device("wgpu", what)
}

/// The copy between buffers, which wgpu's own refuses within one slab and for odd bytes.
const COPY: &str = include_str!("../../../shaders/shared/copy.wgsl");

/// What a dispatch takes besides its section.
struct Call<'a> {
    fields: &'a [(&'static str, &'static str)],
    params: &'a [u8],
    args: &'a [TextArg],
    bufs: &'a [Option<&'a Buf>],
    plan: &'a Plan,
}

impl Wgpu {
    /// Opens the adapter that `select` names (its place among [`adapters`], or a part of its name), or the best one.
    pub fn new(select: Option<&str>) -> Result<Wgpu> {
        let opened = adapter::open(select)?;
        let tiles = tune::tiles(&opened.report, || Self::with(adapter::open(select)?, Tiles::default()))?;
        Self::with(opened, tiles)
    }

    fn with(opened: adapter::Opened, tiles: Tiles) -> Result<Wgpu> {
        let (device, limits) = (opened.shared.device.clone(), opened.report.clone());
        let checked = std::env::var("LUTHIER_WGPU_CHECKED").is_ok_and(|v| v == "1");
        let immediates = device.features().contains(Features::IMMEDIATES) && device.limits().max_immediate_size >= 128;
        let params_in = if immediates && !checked { ParamsIn::Immediates } else { ParamsIn::Uniform };
        let pipelines = Pipelines::new(&device, &opened.report, params_in, checked);
        let recorder = Recorder::new(&device, &opened.shared.queue, pipelines.uniform());
        let mut heap = Heap::new(limits.max_buffer, limits.memory);
        let exponent_values = match opened.report.matrix_unit {
            Some(_) => Some(heap.own_use(&device, exponents::SLOTS as usize, DType::F32)?),
            None => None,
        };
        let (files, calls, marks, scratch, packed, exponents) = Default::default();
        let state =
            State { heap, pipelines, recorder, marks, files, calls, scratch, packed, exponents, exponent_values };
        let limits = device.limits();
        let products = match std::env::var("LUTHIER_WGPU_PRODUCTS") {
            Ok(name) => Products::named(&name)?,
            // a browser has no cooperative matrices
            Err(_) if checked => Products::Plain,
            Err(_) => Products::Auto,
        };
        let (report, faults, shared) = (opened.report, opened.faults, opened.shared);
        let (matrix_unit, memory, products) = (report.matrix_unit, report.memory, Cell::new(products));
        let discrete = report.kind == "DiscreteGpu";
        let tiles = Cell::new(tiles.within(&limits));
        let rules = Rc::new(Rules { matrix_unit, limits, memory, products, tiles, discrete });
        Ok(Wgpu { report, faults, device, shared, rules, state: RefCell::new(state) })
    }

    /// What multiplies matrices from now on.
    pub fn set_products(&self, products: Products) {
        self.rules.products.set(products);
    }

    /// Places in [`plan::LARGE`] of the tiles that run here.
    pub fn tiles(&self) -> Vec<usize> {
        (0..plan::LARGE.len()).filter(|place| plan::LARGE[*place].fits(&self.rules.limits)).collect()
    }

    /// What large products run by from now on.
    pub fn set_tiles(&self, tiles: Tiles) {
        self.rules.tiles.set(tiles);
    }

    /// A device whose shaders see at most this many bytes of a buffer.
    pub fn with_binding(select: Option<&str>, bytes: u64) -> Result<Wgpu> {
        let mut wgpu = Wgpu::new(select)?;
        let rules = Rc::get_mut(&mut wgpu.rules).ok_or_else(|| Error::Bug("rules in use".into()))?;
        let limit = &mut rules.limits.max_storage_buffer_binding_size;
        *limit = bytes.min(*limit);
        Ok(wgpu)
    }

    /// For another user of this device and its queue.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Submits what is recorded and shows where `buf` lies: what another user submits now comes behind it, and before what is
    /// launched later.
    pub fn lend(&self, buf: &Buf) -> Lent {
        let state = &mut *self.state.borrow_mut();
        state.recorder.flush();
        let buffer = state.heap.buffer(buf.slab).clone();
        Lent { buffer, start: buf.start as u64, bytes: buf.bytes() as u64 }
    }

    /// What the device allows.
    pub fn limits(&self) -> &Limits {
        &self.rules.limits
    }

    /// Calls so far that ran by the text of this name: `matmul`, `matmul_coop`.
    pub fn calls(&self, name: &str) -> u64 {
        self.state.borrow().calls.get(name).copied().unwrap_or(0)
    }

    /// The adapter.
    pub fn report(&self) -> &AdapterReport {
        &self.report
    }

    /// What the device reported since it was last asked.
    fn check(&self) -> Result<()> {
        self.faults.check()
    }

    /// Where a binding must begin and how much it must show for `buf`, and the words from there to its first element.
    fn window(&self, state: &State, op: &str, buf: &Buf) -> Result<(Window, u32)> {
        let whole = state.heap.buffer(buf.slab).size();
        let limit = self.rules.limits.max_storage_buffer_binding_size / 4 * 4;
        if whole <= limit {
            return Ok(((buf.slab, 0, whole), (buf.start / 4) as u32));
        }
        // a coarse grid, so that neighbouring tensors share their window and its bind group
        let step = (limit / 4).next_multiple_of(self.rules.limits.min_storage_buffer_offset_alignment.into()).max(256);
        let align = self.rules.limits.min_storage_buffer_offset_alignment as u64;
        let end = (buf.start + buf.bytes()) as u64 + text::SLACK as u64;
        for offset in [buf.start as u64 / step * step, buf.start as u64 / align * align] {
            let size = (whole - offset).min(limit);
            if offset + size >= end.min(whole) {
                return Ok(((buf.slab, offset, size), ((buf.start as u64 - offset) / 4) as u32));
            }
        }
        let (bytes, limit) = (buf.bytes() >> 20, limit >> 20);
        let hint = "shorter sequences or smaller batches make it smaller, or it wants another device";
        let what = format!(
            "{op}: an argument of {bytes} MiB; this device shows a shader {limit} MiB at once, and this call cannot be made in parts: {hint}"
        );
        Err(fail(what))
    }

    fn dispatch(&self, state: &mut State, common: &str, section: &Section<'static>, call: &Call) -> Result<()> {
        let mut names = kernel_text::names(call.fields, call.params);
        names.extend(call.plan.consts.iter().copied());
        names.extend(call.plan.extra.iter().map(|(name, v)| (*name, *v as u64)));
        names.insert("W", text::width(call.args));
        let Some(grid) = self.grid(section, &names)? else { return Ok(()) };

        let extra = call.plan.extra.iter().map(|(name, _)| (*name, "u32"));
        let fields: Vec<_> = call.fields.iter().copied().chain(extra).collect();
        let consts = &call.plan.consts;
        let params_in = state.pipelines.params_in;
        let request = Request { common, section, fields: &fields, args: call.args, consts, params_in };
        let pipeline = state.pipelines.get(section.name, &request)?;

        let mut params = Vec::with_capacity(PARAMS);
        params.extend_from_slice(call.params);
        call.plan.extra.iter().for_each(|(_, v)| params.extend_from_slice(&v.to_ne_bytes()));
        let mut windows = Vec::with_capacity(pipeline.bound.len());
        for i in &pipeline.bound {
            let buf = call.bufs[*i].expect("a bound argument is present");
            let (window, base) = self.window(state, section.name, buf)?;
            windows.push(window);
            params.extend_from_slice(&base.to_ne_bytes());
        }
        let State { pipelines, heap, recorder, .. } = state;
        let group = pipelines.group(heap, windows);
        recorder.dispatch(&pipeline.pipeline, group, &params, grid, call.plan.work);
        Ok(())
    }

    /// Workgroups in x, y, z; none when there is nothing to do.
    fn grid(&self, section: &Section, names: &Names) -> Result<Option<[u32; 3]>> {
        let most = (self.rules.limits.max_compute_workgroups_per_dimension as u64).min(65_535);
        let grid = kernel_text::folded_grid(section, names).map_err(Error::Bug)?;
        if grid.iter().any(|side| *side > most) {
            return Err(fail(format!("{}: {grid:?} workgroups, but the device allows {most} in a row", section.name)));
        }
        Ok((!grid.contains(&0)).then_some(grid.map(|side| side as u32)))
    }

    /// Every stage of `entry` that the plan has, pass after pass.
    fn stages(&self, state: &mut State, parsed: &Parsed, call: &Call, entry: &str) -> Result<()> {
        fn stage<'s>(s: &Section<'s>) -> &'s str {
            s.name.split_once("__").map_or("", |(_, stage)| stage)
        }
        let sections = || parsed.1.iter().filter(|s| s.op() == entry && !call.plan.skip.contains(&stage(s)));
        if call.plan.passes.is_empty() {
            return sections().try_for_each(|s| self.dispatch(state, parsed.0, s, call));
        }
        for (n, pass) in call.plan.passes.iter().enumerate() {
            let value = |(name, v): &(&'static str, u32)| {
                (*name, pass.iter().find(|(other, _)| other == name).map_or(*v, |(_, v)| *v))
            };
            let plan = Plan { extra: call.plan.extra.iter().map(value).collect(), ..call.plan.clone() };
            let call = Call { plan: &plan, ..*call };
            let again = |s: &&Section| n == 0 || !plan.once.contains(&stage(s));
            sections().filter(again).try_for_each(|s| self.dispatch(state, parsed.0, s, &call))?;
        }
        Ok(())
    }

    fn parsed(state: &mut State, op: Op, fast: Option<Fast>) -> Result<Rc<Parsed>> {
        let (file, text) = fast.map_or((op.spec().file, op.wgsl()), |f| (f.file, f.text));
        *state.calls.entry(fast.map_or(op.spec().file, |f| f.name)).or_default() += 1;
        if let Some(parsed) = state.files.get(file) {
            return Ok(parsed.clone());
        }
        let parsed = kernel_text::parse(text).map_err(|e| Error::Bug(format!("shader {file}: {e}")))?;
        Ok(state.files.entry(file).or_insert(Rc::new(parsed)).clone())
    }

    /// `old` if it has `len` values, or another in its place; none where none are wanted.
    fn grown(&self, state: &mut State, old: &mut Option<Buf>, len: usize, dtype: DType) -> Result<()> {
        if len > 0 && old.as_ref().is_none_or(|buf| buf.len < len) {
            if let Some(old) = old.take() {
                self.release(state, old);
            }
            let before = state.heap.ledger.charge(Use::Workspace);
            let made = self.take(state, len, dtype);
            state.heap.ledger.charge(before);
            *old = Some(made?);
        }
        Ok(())
    }

    fn take(&self, state: &mut State, len: usize, dtype: DType) -> Result<Buf> {
        // a lost device gives buffers that are none
        self.check()?;
        let place = state.heap.alloc(&self.device, len, dtype)?;
        let buf = Buf { slab: place.slab, start: place.start as usize, len, dtype, width: dtype.size() };
        if place.dirty {
            let State { heap, recorder, exponents, .. } = state;
            recorder.encoder().clear_buffer(heap.buffer(place.slab), place.start, Some(place.bytes));
            exponents.forget(&buf);
        }
        Ok(buf)
    }

    fn release(&self, state: &mut State, buf: Buf) {
        state.exponents.forget(&buf);
        if state.heap.free(&buf) {
            // what is recorded still uses the buffer; the device keeps it until that has run
            state.recorder.flush();
            state.pipelines.forget(buf.slab);
        }
    }

    /// Words of `from` into `to`; of the last word only `tail` bytes.
    fn copy_words(&self, state: &mut State, to: &Buf, from: &Buf, words: usize, tail: usize) -> Result<()> {
        let (_, sections) = kernel_text::parse(COPY).map_err(Error::Bug)?;
        let last = if tail == 0 { u32::MAX } else { (1 << (8 * tail)) - 1 };
        let params = [words as u32, last];
        let args = ["to", "from"].map(|name| TextArg { name, elem: Elem::U32, dtype: Some(DType::U32), wide: false });
        let call = Call {
            fields: &[("words", "u32"), ("last", "u32")],
            params: bytemuck::bytes_of(&params),
            args: &args,
            bufs: &[Some(to), Some(from)],
            plan: &Plan::default(),
        };
        self.dispatch(state, "", &sections[0], &call)
    }
}

impl Backend for Wgpu {
    fn name(&self) -> &'static str {
        "wgpu"
    }

    fn device(&self) -> String {
        format!("{} ({}, {})", self.report.name, self.report.api, self.report.driver)
    }

    fn driver(&self) -> Option<String> {
        Some(self.report.driver.clone()).filter(|driver| !driver.is_empty())
    }

    fn alloc(&self, len: usize, dtype: DType) -> Result<Buf> {
        self.take(&mut self.state.borrow_mut(), len, dtype)
    }

    fn free(&self, buf: Buf) {
        self.release(&mut self.state.borrow_mut(), buf)
    }

    fn upload(&self, to: &mut Buf, bytes: &[u8]) -> Result<()> {
        same_bytes("upload", to.bytes(), bytes.len())?;
        let state = &mut *self.state.borrow_mut();
        let (body, tail) = bytes.split_at(bytes.len() / 4 * 4);
        state.exponents.forget(to);
        let State { heap, recorder, .. } = state;
        if !body.is_empty() {
            recorder.upload(heap.buffer(to.slab), to.start as u64, body).map_err(fail)?;
        }
        if !tail.is_empty() {
            let mut word = [0; 4];
            word[..tail.len()].copy_from_slice(tail);
            self.merge_tail(state, to, |heap, recorder, to| {
                recorder.upload(heap.buffer(to.slab), to.start as u64, &word)
            })?;
        }
        self.check()
    }

    fn download(&self, from: &Buf) -> Result<Vec<u8>> {
        /// Bytes on the host side at a time.
        const PART: u64 = 64 << 20;
        let state = &mut *self.state.borrow_mut();
        let mut out = Vec::with_capacity(from.bytes() + 4);
        let end = (from.start + from.bytes()).next_multiple_of(4) as u64;
        let size = PART.min(end - from.start as u64).max(4);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let host =
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        for start in (from.start as u64..end).step_by(size as usize) {
            let len = size.min(end - start);
            let State { heap, recorder, .. } = state;
            recorder.encoder().copy_buffer_to_buffer(heap.buffer(from.slab), start, &host, 0, len);
            self.read(recorder, &host, 0..len, &mut out)?;
        }
        out.truncate(from.bytes());
        Ok(out)
    }

    fn copy(&self, to: &mut Buf, from: &Buf) -> Result<()> {
        same_bytes("copy", to.bytes(), from.bytes())?;
        assert!(to.dtype == from.dtype && !to.overlaps(from), "copy: other dtype or overlap");
        let state = &mut *self.state.borrow_mut();
        state.exponents.forget(to);
        let part = (self.room() / 4 * 4 / to.width).max(4);
        (0..to.len).step_by(part).try_for_each(|first| {
            let (to, from) = (to.view(first, part.min(to.len - first)), from.view(first, part.min(to.len - first)));
            self.copy_words(state, &to, &from, to.bytes().div_ceil(4), to.bytes() % 4)
        })
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        // a part may be too large along another dim
        if self.rules.in_parts(launch, |part| self.launch(part))? { Ok(()) } else { self.launch_whole(launch) }
    }

    fn sync(&self) -> Result<()> {
        let waited = self.state.borrow_mut().recorder.wait();
        self.check()?;
        waited.map_err(fail)
    }

    fn mark(&self) -> Result<Mark> {
        self.timestamp()
    }

    fn elapsed(&self, marks: Vec<Mark>) -> Result<Vec<f64>> {
        self.seconds_between(marks)
    }

    fn memory(&self) -> Memory {
        self.state.borrow().heap.ledger.memory
    }

    /// Not what other programs have taken: the device does not say.
    fn available(&self) -> Option<u64> {
        let memory = self.memory();
        memory.total.map(|total| (total - total / 10).saturating_sub(memory.used))
    }

    fn rules(&self) -> Rc<dyn dry::Rules> {
        self.rules.clone()
    }

    fn charge(&self, to: Use) -> Use {
        self.state.borrow_mut().heap.ledger.charge(to)
    }

    fn host_alloc(&self, len: usize, dtype: DType) -> Result<HostBuf> {
        self.check()?;
        self.state.borrow_mut().heap.host_alloc(&self.device, len, dtype)
    }

    fn host_free(&self, buf: HostBuf) {
        let state = &mut *self.state.borrow_mut();
        // what is recorded may still copy
        state.recorder.flush();
        state.heap.host_free(buf)
    }

    fn to_host(&self, to: &mut HostBuf, from: &Buf) -> Result<()> {
        self.copy_to_host(to, from)
    }

    fn from_host(&self, to: &mut Buf, from: &HostBuf) -> Result<()> {
        self.copy_from_host(to, from)
    }

    fn rows_from_host(&self, to: &mut Buf, from: &HostBuf, ids: &[u32]) -> Result<()> {
        self.copy_rows_from_host(to, from, ids)
    }

    fn host_upload(&self, to: &mut HostBuf, bytes: &[u8]) -> Result<()> {
        self.write_host(to, bytes)
    }

    fn host_download(&self, from: &HostBuf) -> Result<Vec<u8>> {
        self.read_host(from)
    }
}
