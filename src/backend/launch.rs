//! The proof that a call agrees with its row. A file of its own, so that not even a backend can forge one.
use super::Buf;
use crate::dtype::DType;
use crate::error::{Error, OpError, Result};
use crate::ops::{Extent, Op};

/// A call whose types, lengths, strides, presence and aliasing agree with its row. Holding one is the proof.
pub struct Launch<'a> {
    op: Op,
    args: &'a [Option<&'a Buf>],
    params: &'a [u8],
}

/// Where an argument ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Behind its last row's stride.
    Stride,
    /// Behind its last row, or in the pad behind that.
    Row,
}

impl<'a> Launch<'a> {
    /// `args` in the row's order, `params` the bytes of the row's params struct.
    pub fn new(op: Op, args: &'a [Option<&'a Buf>], params: &'a [u8]) -> Result<Self> {
        Launch::checked(op, args, params, End::Stride)
    }

    /// The same for arguments that are columns of larger ones, whose last row may end before its stride.
    #[cfg(feature = "wgpu")]
    pub(super) fn of_columns(op: Op, args: &'a [Option<&'a Buf>], params: &'a [u8]) -> Result<Self> {
        Launch::checked(op, args, params, End::Row)
    }

    fn checked(op: Op, args: &'a [Option<&'a Buf>], params: &'a [u8], end: End) -> Result<Self> {
        let spec = op.spec();
        assert_eq!(args.len(), spec.args.len(), "{}: one buffer per argument", spec.name);
        let fail = |arg, kind| Err(Error::Op { op: spec.name, arg, kind });
        if let Err(what) = op.check(params) {
            return fail(spec.params, OpError::Params(what));
        }
        let (values, extents) = op.extents(params);
        for (i, (arg, want)) in spec.args.iter().zip(&extents).enumerate() {
            if args[i].is_some() != want.present {
                return fail(arg.name, OpError::Presence { want: want.present });
            }
            let Some(got) = args[i] else { continue };
            if !arg.elem.admits(got.dtype) {
                return fail(arg.name, OpError::Type { want: arg.elem.name(), got: got.dtype.name() });
            }
            if let Err(kind) = check_stride(want, got.dtype) {
                return fail(arg.name, kind);
            }
            let pad = if end == End::Row { want.row().1 - want.row().0 } else { 0 };
            if got.len > want.elements() || got.len < want.elements().saturating_sub(pad) {
                let dims = spec.dims.iter().copied().zip(values).chain(want.ld);
                let dims = dims.map(|(d, v)| format!("{d}={v}")).collect::<Vec<_>>().join(", ");
                let kind = OpError::Length { shape: arg.shape, want: want.elements(), dims, got: got.len };
                return fail(arg.name, kind);
            }
            let shared = |j: &usize| *j != i && args[*j].is_some_and(|other| got.overlaps(other));
            if let Some(j) = (0..args.len()).find(shared).filter(|_| arg.access.writes()) {
                return fail(arg.name, OpError::Overlap { with: spec.args[j].name });
            }
        }
        Ok(Launch { op, args, params })
    }
    pub fn op(&self) -> Op {
        self.op
    }
    pub fn args(&self) -> &'a [Option<&'a Buf>] {
        self.args
    }
    pub fn params(&self) -> &'a [u8] {
        self.params
    }
}

/// Rows fit their stride, and 16-bit rows (two values to a GPU word) start at even elements.
fn check_stride(want: &Extent, dtype: DType) -> Result<(), OpError> {
    let (row, ld) = want.row();
    if ld < row {
        return Err(OpError::Stride { ld, row });
    }
    let rows: usize = want.dims[..want.dims.len() - 1].iter().product();
    if dtype.is_float() && dtype.size() == 2 && rows > 1 && ld % 2 == 1 {
        return Err(OpError::OddStride { ld, dtype: dtype.name() });
    }
    Ok(())
}
