//! A rehearsal: counts the memory that a run takes and computes nothing. The code that runs on a backend runs on this one
//! unchanged, by the same [`Rules`] as the backend's own allocator, so that what is counted is what will be taken.
use super::{Backend, Buf, HostBuf, Launch, Ledger, Memory, Use, host, same_bytes};
use crate::dtype::DType;
use crate::error::Result;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// How a backend takes memory.
pub trait Rules {
    /// The backend's name.
    fn name(&self) -> &'static str;
    /// Bytes of an element as the backend holds it.
    fn width(&self, dtype: DType) -> usize {
        dtype.size()
    }
    /// What an allocation takes.
    fn bytes(&self, len: usize, dtype: DType) -> u64;
    /// The same in host memory.
    fn host_bytes(&self, len: usize, dtype: DType) -> u64;
    /// Elements of f32 and of f16 that a call needs besides its arguments; they stay, and grow with the largest call.
    fn scratch(&self, _: &Launch) -> Result<[usize; 2]> {
        Ok([0; 2])
    }
    /// Whether the host's memory is another than the device's.
    fn host_is_apart(&self) -> bool {
        true
    }
    /// u32s that are taken for a moment where so many bytes are written to a buffer.
    fn patch(&self, _: usize) -> usize {
        0
    }
    /// Bytes of f32 logits that may be alive at a time, where that is more than what suits any device.
    fn logits(&self) -> usize {
        0
    }
    /// Bytes of a tensor that a call sees, at most.
    fn room(&self) -> usize {
        usize::MAX
    }
    /// Places that weights are unpacked to by turns: with two, one is unpacked while another is multiplied.
    fn turns(&self) -> usize {
        1
    }
    /// What the backend takes for itself when it opens.
    fn workspace(&self) -> u64 {
        0
    }
}

/// The storage of each kind of scratch.
pub const SCRATCH: [DType; 2] = [DType::F32, DType::F16];

pub struct Dry {
    rules: Rc<dyn Rules>,
    ledger: RefCell<Ledger>,
    /// Bytes and purpose, by `Buf::slab`; the host's have no purpose.
    taken: RefCell<Vec<Option<(u64, Use)>>>,
    /// As `Rules::scratch` says, the largest so far.
    scratch: Cell<[usize; 2]>,
}

impl Dry {
    pub fn new(rules: Rc<dyn Rules>, total: Option<u64>) -> Dry {
        let mut ledger = Ledger::new(total);
        ledger.take_for(Use::Workspace, rules.workspace());
        Dry { rules, ledger: RefCell::new(ledger), taken: RefCell::default(), scratch: Cell::default() }
    }

    fn made(&self, len: usize, dtype: DType, taken: (u64, Use)) -> Buf {
        let mut all = self.taken.borrow_mut();
        all.push(Some(taken));
        Buf { slab: all.len() as u32 - 1, start: 0, len, dtype, width: self.rules.width(dtype) }
    }

    /// What is taken for a moment where `to` is written from the host.
    fn patch(&self, to: &Buf) {
        let len = self.rules.patch(to.bytes());
        if len > 0 {
            let (bytes, mut ledger) = (self.rules.bytes(len, DType::U32), self.ledger.borrow_mut());
            let what = ledger.take(bytes);
            ledger.give(what, bytes);
        }
    }
}

impl Backend for Dry {
    fn name(&self) -> &'static str {
        self.rules.name()
    }
    fn device(&self) -> String {
        "a rehearsal".into()
    }
    fn is_dry(&self) -> bool {
        true
    }
    fn rules(&self) -> Rc<dyn Rules> {
        self.rules.clone()
    }
    fn alloc(&self, len: usize, dtype: DType) -> Result<Buf> {
        let bytes = self.rules.bytes(len, dtype);
        let what = self.ledger.borrow_mut().take(bytes);
        Ok(self.made(len, dtype, (bytes, what)))
    }
    fn free(&self, buf: Buf) {
        if let Some((bytes, what)) = self.taken.borrow_mut()[buf.slab as usize].take() {
            self.ledger.borrow_mut().give(what, bytes);
        }
    }
    fn upload(&self, to: &mut Buf, bytes: &[u8]) -> Result<()> {
        same_bytes("upload", to.len * to.dtype.size(), bytes.len())?;
        self.patch(to);
        Ok(())
    }
    /// Zeros.
    fn download(&self, from: &Buf) -> Result<Vec<u8>> {
        Ok(vec![0; from.len * from.dtype.size()])
    }
    fn copy(&self, _: &mut Buf, _: &Buf) -> Result<()> {
        Ok(())
    }
    fn launch(&self, launch: &Launch) -> Result<()> {
        let (mut held, wanted) = (self.scratch.get(), self.rules.scratch(launch)?);
        let mut ledger = self.ledger.borrow_mut();
        for ((held, wanted), dtype) in
            held.iter_mut().zip(wanted).zip(SCRATCH).filter(|((held, wanted), _)| *wanted > **held)
        {
            if *held > 0 {
                ledger.give(Use::Workspace, self.rules.bytes(*held, dtype));
            }
            ledger.take_for(Use::Workspace, self.rules.bytes(wanted, dtype));
            *held = wanted;
        }
        self.scratch.set(held);
        Ok(())
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn memory(&self) -> Memory {
        self.ledger.borrow().memory
    }
    fn available(&self) -> Option<u64> {
        let memory = self.memory();
        memory.total.map(|total| total.saturating_sub(memory.used))
    }
    fn charge(&self, to: Use) -> Use {
        self.ledger.borrow_mut().charge(to)
    }
    fn host_alloc(&self, len: usize, dtype: DType) -> Result<HostBuf> {
        let bytes = self.rules.host_bytes(len, dtype);
        self.ledger.borrow_mut().take_host(bytes);
        Ok(HostBuf(self.made(len, dtype, (bytes, Use::default()))))
    }
    fn host_free(&self, buf: HostBuf) {
        if let Some((bytes, _)) = self.taken.borrow_mut()[buf.0.slab as usize].take() {
            self.ledger.borrow_mut().give_host(bytes);
        }
    }
    fn to_host(&self, to: &mut HostBuf, from: &Buf) -> Result<()> {
        host::check(&to.0, from)
    }
    fn from_host(&self, to: &mut Buf, from: &HostBuf) -> Result<()> {
        host::check(to, &from.0)?;
        self.patch(to);
        Ok(())
    }
    fn rows_from_host(&self, to: &mut Buf, from: &HostBuf, ids: &[u32]) -> Result<()> {
        host::check_rows(to, &from.0, ids).map(|_| ())
    }
    fn host_upload(&self, to: &mut HostBuf, bytes: &[u8]) -> Result<()> {
        same_bytes("host_upload", to.0.len * to.0.dtype.size(), bytes.len())
    }
    fn host_download(&self, from: &HostBuf) -> Result<Vec<u8>> {
        Ok(vec![0; from.0.len * from.0.dtype.size()])
    }
}
