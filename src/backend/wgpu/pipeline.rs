//! Pipelines and bind groups, made once each.
use super::adapter::AdapterReport;
use super::memory::Heap;
use super::record::PARAMS;
use super::text::{self, ParamsIn, Request};
use crate::backend::kept::Kept;
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::rc::Rc;
use wgpu::{
    BindGroup, BindGroupLayout, BindGroupLayoutEntry, BindingType, BufferBindingType, ComputePipeline, Device,
    Features, PipelineCache, PipelineCacheDescriptor,
};

/// What tells one pipeline from another: entry point, storage (and whether it is wide), constants.
type Key = (&'static str, Vec<(Option<DType>, bool)>, Vec<(&'static str, u64)>);

/// A pipeline and the arguments that it binds, in order.
pub struct Pipeline {
    pub pipeline: ComputePipeline,
    pub bound: Vec<usize>,
}

/// A part of a slab as a binding sees it: slab, first byte, bytes.
pub type Window = (u32, u64, u64);

pub struct Pipelines {
    device: Device,
    pub params_in: ParamsIn,
    checked: bool,
    made: HashMap<Key, Rc<Pipeline>>,
    /// By number of bindings: every argument is a read_write storage buffer, because tensors share slabs and one buffer
    /// cannot be bound both ways in a dispatch.
    layouts: HashMap<usize, BindGroupLayout>,
    uniform: BindGroupLayout,
    groups: HashMap<Vec<Window>, BindGroup>,
    cache: Option<Cache>,
}

/// What the driver compiled, also in earlier processes, where it lets that be kept.
struct Cache {
    cache: PipelineCache,
    kept: Kept,
    /// As it was read.
    old: Option<Vec<u8>>,
}

impl Cache {
    fn new(device: &Device, report: &AdapterReport) -> Option<Cache> {
        if !device.features().contains(Features::PIPELINE_CACHE) {
            return None;
        }
        let kept = Kept::new("wgpu-pipelines", "bin", &[&report.name, &report.api, &report.driver]);
        let old = kept.read();
        let descriptor = PipelineCacheDescriptor { label: None, data: old.as_deref(), fallback: true };
        // SAFETY: the data is as `get_data` gave it, or its hash would not be what it is; the driver looks whether it is its own.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Cache { cache, kept, old })
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let new = self.cache.get_data();
        if let Some(new) = new.filter(|new| self.old.as_ref() != Some(new)) {
            self.kept.write(&new);
        }
    }
}

impl Pipelines {
    pub fn new(device: &Device, report: &AdapterReport, params_in: ParamsIn, checked: bool) -> Pipelines {
        let ty = BufferBindingType::Uniform;
        let uniform = layout(device, &[entry(0, ty, true)]);
        let (made, layouts, groups) = Default::default();
        let cache = Cache::new(device, report);
        Pipelines { device: device.clone(), params_in, checked, made, layouts, uniform, groups, cache }
    }
    pub fn uniform(&self) -> Option<&BindGroupLayout> {
        (self.params_in == ParamsIn::Uniform).then_some(&self.uniform)
    }

    /// The pipeline for `request`, made at its first use.
    pub fn get(&mut self, name: &'static str, request: &Request) -> Result<Rc<Pipeline>> {
        let dtypes = request.args.iter().map(|a| (a.dtype, a.wide)).collect();
        let key: Key = (name, dtypes, request.consts.to_vec());
        if let Some(found) = self.made.get(&key) {
            return Ok(found.clone());
        }
        let made = Rc::new(self.make(name, request)?);
        self.made.insert(key, made.clone());
        Ok(made)
    }

    fn make(&mut self, name: &str, request: &Request) -> Result<Pipeline> {
        let bug = |what: String| Error::Bug(format!("shader {name}: {what}"));
        let text::Module { text, bound } = text::module(request).map_err(bug)?;
        let size = 4 * (request.fields.len() + bound.len());
        if size > PARAMS {
            return Err(bug(format!("{size} bytes of params, {PARAMS} at most")));
        }
        self.layout(bound.len());
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(name), source };
        let checks = match self.checked {
            true => wgpu::ShaderRuntimeChecks::checked(),
            false => wgpu::ShaderRuntimeChecks::unchecked(),
        };
        // SAFETY: the shaders are ours. Their indices come from dims, strides and lengths that `Launch` has checked against
        // the buffers, their loops end, and they read no workgroup memory that they have not written; the parity matrix is
        // also run with all checks on (LUTHIER_WGPU_CHECKED=1), so a slip shows. Ids, labels, positions and spans are data
        // that nothing here looks at: whoever uploads them answers for their range (`train` checks the vocabulary).
        let module = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
        let groups = [Some(&self.layouts[&bound.len()]), self.uniform()];
        let immediate_size = if self.params_in == ParamsIn::Immediates { size as u32 } else { 0 };
        let descriptor = wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &groups[..1 + groups[1].is_some() as usize],
            immediate_size,
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&self.device.create_pipeline_layout(&descriptor)),
            module: &module,
            entry_point: Some(name),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: self.checked,
                ..Default::default()
            },
            cache: self.cache.as_ref().map(|c| &c.cache),
        });
        match pollster::block_on(scope.pop()) {
            Some(error) => Err(bug(error.to_string())),
            None => Ok(Pipeline { pipeline, bound }),
        }
    }

    fn layout(&mut self, bindings: usize) -> &BindGroupLayout {
        let ty = BufferBindingType::Storage { read_only: false };
        let entries: Vec<_> = (0..bindings).map(|i| entry(i, ty, false)).collect();
        self.layouts.entry(bindings).or_insert_with(|| layout(&self.device, &entries))
    }

    /// The bind group that shows these windows.
    pub fn group(&mut self, heap: &Heap, windows: Vec<Window>) -> &BindGroup {
        // far more than a model's step uses; only a stream of fresh tensors gets there
        if self.groups.len() > 1 << 14 {
            self.groups.clear();
        }
        if !self.groups.contains_key(&windows) {
            let buffers = windows.iter().map(|(slab, offset, size)| {
                let size = std::num::NonZeroU64::new(*size);
                wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: heap.buffer(*slab), offset: *offset, size })
            });
            let bindings =
                buffers.enumerate().map(|(i, resource)| wgpu::BindGroupEntry { binding: i as u32, resource });
            let entries: Vec<_> = bindings.collect();
            self.layout(windows.len());
            let layout = &self.layouts[&windows.len()];
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
            self.groups.insert(windows.clone(), self.device.create_bind_group(&descriptor));
        }
        &self.groups[&windows]
    }

    /// Lets go of a buffer that is gone: bind groups would keep its memory.
    pub fn forget(&mut self, slab: u32) {
        self.groups.retain(|windows, _| windows.iter().all(|(s, ..)| *s != slab));
    }
}

fn entry(binding: usize, ty: BufferBindingType, has_dynamic_offset: bool) -> BindGroupLayoutEntry {
    BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    }
}

fn layout(device: &Device, entries: &[BindGroupLayoutEntry]) -> BindGroupLayout {
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries })
}
