//! A backend that stands before another and notes how long each call takes: what runs on it runs unchanged.
//!
//! What would be recorded is asked for again, call by call. A call's time is from its mark to the next call's ([`Backend::mark`]): where the device marks its own queue, nothing waits in
//! between, and what the host leaves idle counts to the call before.
use super::{Backend, Buf, Launch};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{Access, Op};
use std::cell::RefCell;

/// A moment in a backend's queue.
#[derive(Debug)]
pub enum Mark {
    /// Everything before it had ended then.
    Host(std::time::Instant),
    /// The backend's own.
    Device(u64),
}

/// A call that was noted.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// `None`: a copy.
    pub op: Option<Op>,
    /// The values of the row's dims, in its order.
    pub dims: Vec<usize>,
    /// The storage of the first argument.
    pub dtype: DType,
    /// Each argument moved as often as its access says.
    pub bytes: u64,
}

impl Call {
    fn of(launch: &Launch) -> Call {
        let (op, args) = (launch.op(), launch.args());
        let moved = |(arg, buf): (&crate::ops::Arg, &Option<&Buf>)| {
            let times = if matches!(arg.access, Access::Add | Access::Update) { 2 } else { 1 };
            buf.map_or(0, |buf| times * (buf.len * buf.dtype.size()) as u64)
        };
        let bytes = op.spec().args.iter().zip(args).map(moved).sum();
        let dtype = args.iter().flatten().next().map_or(DType::F32, |buf| buf.dtype);
        Call { op: Some(op), dims: op.extents(launch.params()).0, dtype, bytes }
    }
}

/// Notes calls between `start` and `stop`.
pub struct Profile<'b> {
    inner: &'b dyn Backend,
    noted: RefCell<Option<(Vec<Call>, Vec<Mark>)>>,
}

impl<'b> Profile<'b> {
    pub fn new(inner: &'b dyn Backend) -> Profile<'b> {
        Profile { inner, noted: RefCell::new(None) }
    }
    pub fn start(&self) {
        *self.noted.borrow_mut() = Some(Default::default());
    }
    /// Every call since `start` and its seconds. Waits.
    pub fn stop(&self) -> Result<Vec<(Call, f64)>> {
        let Some((calls, mut marks)) = self.noted.take() else { return Ok(Vec::new()) };
        marks.push(self.inner.mark()?);
        Ok(calls.into_iter().zip(self.inner.elapsed(marks)?).collect())
    }
    fn note(&self, call: impl FnOnce() -> Call) -> Result<()> {
        if let Some((calls, marks)) = &mut *self.noted.borrow_mut() {
            marks.push(self.inner.mark()?);
            calls.push(call());
        }
        Ok(())
    }
}

impl Backend for Profile<'_> {
    crate::pass_on! { inner: name device driver alloc free upload download sequences set_deterministic sync mark
    elapsed memory available rules is_dry has_fp8 has_low_rank charge host_alloc host_free to_host from_host rows_from_host
    host_upload host_download }
    fn launch(&self, launch: &Launch) -> Result<()> {
        self.note(|| Call::of(launch))?;
        self.inner.launch(launch)
    }
    fn copy(&self, to: &mut Buf, from: &Buf) -> Result<()> {
        let bytes = 2 * (to.len * to.dtype.size()) as u64;
        self.note(|| Call { op: None, dims: vec![to.len], dtype: to.dtype, bytes })?;
        self.inner.copy(to, from)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cpu::Cpu;
    use super::*;

    #[test]
    fn calls_are_noted_between_start_and_stop_alone() {
        let cpu = Cpu::new();
        let profile = Profile::new(&cpu);
        let b: &dyn Backend = &profile;
        let (mut out, inp) = (b.alloc(6, DType::Bf16).unwrap(), b.alloc_f32(&[1.0; 6], DType::Bf16).unwrap());
        b.fill(&mut out, 1.0).unwrap();
        profile.start();
        let p = crate::ops::residual::Residual { P: 6, scale: 2.0 };
        b.residual_backward(&mut out, &inp, &p).unwrap();
        b.copy(&mut b.alloc(6, DType::Bf16).unwrap(), &out).unwrap();
        let calls = profile.stop().unwrap();
        b.fill(&mut out, 0.0).unwrap();
        let [(add, add_time), (copy, _)] = &calls[..] else { panic!("{calls:?}") };
        // the sum is read and written, what is added is read
        let want = Call { op: Some(Op::residual_backward), dims: vec![6], dtype: DType::Bf16, bytes: 36 };
        assert!(*add == want && *add_time > 0.0, "{add:?}, {add_time}");
        assert_eq!((copy.op, copy.bytes), (None, 24));
        assert!(profile.stop().unwrap().is_empty());
    }
}
