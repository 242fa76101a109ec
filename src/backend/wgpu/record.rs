//! Commands on their way to the device: recorded in one long compute pass, submitted in batches.
use wgpu::{
    BindGroup, BindGroupLayout, Buffer, BufferUsages, CommandEncoder, ComputePass, ComputePipeline, Device, PollType,
    Queue,
};

/// Dispatches per submit: enough to hide what a submit costs (some 50 µs), few enough that the device starts early.
const BATCH: u32 = 256;
/// Work per submit, in multiply-adds: a slow GPU must not be kept from its screen, nor taken for hung.
const WORK: f64 = 2e11;
/// Bytes of params that a dispatch may have, and the stride between them in the uniform ring.
pub const PARAMS: usize = 256;
/// Bytes of uploads on the way; beyond it `upload` waits, because each holds a copy on the host.
const UPLOADS: u64 = 256 << 20;

pub struct Recorder {
    device: Device,
    queue: Queue,
    // before `encoder`: a pass must end before its encoder does
    pass: Option<ComputePass<'static>>,
    encoder: Option<CommandEncoder>,
    dispatches: u32,
    work: f64,
    uploads: u64,
    /// Where the params go when the device has no immediates.
    ring: Option<Ring>,
}

/// The params of one batch, in a uniform buffer that each dispatch sees at its own offset.
struct Ring {
    buffer: Buffer,
    group: BindGroup,
    bytes: Vec<u8>,
}

impl Recorder {
    pub fn new(device: &Device, queue: &Queue, uniform: Option<&BindGroupLayout>) -> Recorder {
        Recorder {
            device: device.clone(),
            queue: queue.clone(),
            pass: None,
            encoder: None,
            dispatches: 0,
            work: 0.0,
            uploads: 0,
            ring: uniform.map(|layout| ring(device, layout)),
        }
    }

    /// Queues one dispatch; `params` as the module's struct wants them, `work` in multiply-adds.
    pub fn dispatch(
        &mut self,
        pipeline: &ComputePipeline,
        group: &BindGroup,
        params: &[u8],
        grid: [u32; 3],
        work: f64,
    ) {
        self.open();
        let pass = self.pass.get_or_insert_with(|| {
            let encoder = self.encoder.as_mut().expect("opened");
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime()
        });
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, group, &[]);
        match &mut self.ring {
            None => pass.set_immediates(0, params),
            Some(ring) => {
                pass.set_bind_group(1, &ring.group, &[ring.bytes.len() as u32]);
                ring.bytes.extend_from_slice(params);
                ring.bytes.resize(ring.bytes.len().next_multiple_of(PARAMS), 0);
            }
        }
        pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
        (self.dispatches, self.work) = (self.dispatches + 1, self.work + work);
        if self.dispatches >= BATCH || self.work >= WORK {
            self.flush();
        }
    }

    fn open(&mut self) -> &mut CommandEncoder {
        self.encoder
            .get_or_insert_with(|| self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()))
    }

    /// The encoder outside a pass, for copies and clears.
    pub fn encoder(&mut self) -> &mut CommandEncoder {
        self.pass = None;
        self.open()
    }

    /// Seconds of one unit of a timestamp.
    pub fn timestamp_seconds(&self) -> f64 {
        self.queue.get_timestamp_period() as f64 * 1e-9
    }

    /// Submits what is recorded.
    pub fn flush(&mut self) {
        self.pass = None;
        if let Some(ring) = &mut self.ring
            && !ring.bytes.is_empty()
        {
            self.queue.write_buffer(&ring.buffer, 0, &ring.bytes);
            ring.bytes.clear();
        }
        if let Some(encoder) = self.encoder.take() {
            self.queue.submit([encoder.finish()]);
        }
        (self.dispatches, self.work) = (0, 0.0);
    }

    /// Waits until all that was submitted has run.
    pub fn wait(&mut self) -> Result<(), String> {
        self.flush();
        self.uploads = 0;
        self.device.poll(PollType::wait_indefinitely()).map(|_| ()).map_err(|e| e.to_string())
    }

    /// Writes whole words into a buffer, behind everything recorded so far.
    pub fn upload(&mut self, to: &Buffer, start: u64, bytes: &[u8]) -> Result<(), String> {
        self.flush();
        for (i, part) in bytes.chunks(UPLOADS as usize / 4).enumerate() {
            self.queue.write_buffer(to, start + i as u64 * (UPLOADS / 4), part);
            self.uploads += part.len() as u64;
            if self.uploads >= UPLOADS {
                self.queue.submit([]);
                self.wait()?;
            }
        }
        Ok(())
    }
}

fn ring(device: &Device, layout: &BindGroupLayout) -> Ring {
    let size = (BATCH as usize * PARAMS) as u64;
    let usage = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
    let buffer = device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    let window = wgpu::BufferBinding { buffer: &buffer, offset: 0, size: std::num::NonZeroU64::new(PARAMS as u64) };
    let entries = [wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(window) }];
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
    Ring { buffer, group, bytes: Vec::new() }
}
