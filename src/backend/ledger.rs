//! What memory is taken, and for what: counted alike by every backend.

/// What device memory is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// Base weights, and whatever nobody named.
    #[default]
    Weights,
    /// The embedding, and a head of its own.
    Tables,
    Adapter,
    Gradients,
    /// f32 values of weights that are trained in 16 bits.
    Master,
    Optimizer,
    /// What the forward leaves for the backward.
    Activations,
    /// Where packed weights are unpacked, one after the other.
    Unpacked,
    /// What takes turns: logits, an MLP's hidden states, attention's gradients.
    Turns,
    /// What else layers share while they run: inputs, outputs, gradients of the stream.
    Scratch,
    /// What a backend takes for itself.
    Workspace,
}

impl Use {
    pub const ALL: [Use; 11] = [
        Use::Weights,
        Use::Tables,
        Use::Adapter,
        Use::Gradients,
        Use::Master,
        Use::Optimizer,
        Use::Activations,
        Use::Unpacked,
        Use::Turns,
        Use::Scratch,
        Use::Workspace,
    ];
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Use::Weights => "weights",
            Use::Tables => "embedding and head",
            Use::Adapter => "adapter",
            Use::Gradients => "gradients",
            Use::Master => "master weights",
            Use::Optimizer => "optimizer",
            Use::Activations => "activations",
            Use::Unpacked => "unpacked weights",
            Use::Turns => "logits, MLP, attention",
            Use::Scratch => "scratch",
            Use::Workspace => "workspace",
        }
    }
}

/// Bytes by what they are for, as in [`Use::ALL`].
pub type ByUse = [u64; Use::ALL.len()];

/// Bytes as allocated by this process through its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// On the device.
    pub used: u64,
    pub peak: u64,
    /// What the device has in all, where it says so.
    pub total: Option<u64>,
    /// Now, and when `used` was at its peak.
    pub by_use: ByUse,
    pub at_peak: ByUse,
    /// In host memory that the device copies from and to.
    pub host: u64,
    pub host_peak: u64,
}

/// A backend's count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ledger {
    pub memory: Memory,
    now: Use,
}

impl Ledger {
    /// Of a device that has `total` bytes.
    pub fn new(total: Option<u64>) -> Ledger {
        Ledger { memory: Memory { total, ..Memory::default() }, now: Use::default() }
    }
    /// What is taken from now on is for this; returns what it was for.
    pub fn charge(&mut self, to: Use) -> Use {
        std::mem::replace(&mut self.now, to)
    }
    /// Whoever takes memory keeps what this returns, for `give`.
    pub fn take(&mut self, bytes: u64) -> Use {
        self.take_for(self.now, bytes)
    }
    /// The same, for something else.
    pub fn take_for(&mut self, what: Use, bytes: u64) -> Use {
        let m = &mut self.memory;
        m.used += bytes;
        m.by_use[what as usize] += bytes;
        if m.used > m.peak {
            (m.peak, m.at_peak) = (m.used, m.by_use);
        }
        what
    }
    pub fn give(&mut self, what: Use, bytes: u64) {
        self.memory.used -= bytes;
        self.memory.by_use[what as usize] -= bytes;
    }
    pub fn take_host(&mut self, bytes: u64) {
        self.memory.host += bytes;
        self.memory.host_peak = self.memory.host_peak.max(self.memory.host);
    }
    pub fn give_host(&mut self, bytes: u64) {
        self.memory.host -= bytes;
    }
}
