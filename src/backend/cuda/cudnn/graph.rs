//! A graph of cuDNN operations over tensors [B, H, S, D]. What only passes from one operation to the next is virtual: it never
//! reaches memory.
use super::descriptor::Descriptor;
use crate::error::Result;
use cudarc::cudnn::sys;
pub(super) use sys::cudnnDataType_t as DataType;
pub(super) use sys::cudnnPointwiseMode_t as Pointwise;
pub(super) use sys::cudnnReduceTensorOp_t as Reduce;
use sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type, cudnnBackendDescriptorType_t as Kind,
};

pub(super) type Dims = [i64; 4];
pub(super) const FLOAT: DataType = DataType::CUDNN_DATA_FLOAT;
const INT32: DataType = DataType::CUDNN_DATA_INT32;
const BOOLEAN: DataType = DataType::CUDNN_DATA_BOOLEAN;

/// A tensor of a [`Graph`]: its place in it.
#[derive(Clone, Copy)]
pub(super) struct Tensor(usize);

/// Where a tensor's values are.
pub(super) enum Place {
    /// At the address given for this id.
    Device(i64),
    /// A scalar on the host, given for this id.
    Host(i64),
    Virtual,
}

/// How many rows, columns and terms of a product count, per sequence; from tensors of lengths.
#[derive(Clone, Copy, Default)]
pub(super) struct Lengths {
    pub rows: Option<Tensor>,
    pub columns: Option<Tensor>,
    pub terms: Option<Tensor>,
}

#[derive(Default)]
pub(super) struct Graph {
    tensors: Vec<Descriptor>,
    operations: Vec<Descriptor>,
    /// What operations refer to.
    details: Vec<Descriptor>,
}

/// Row-major.
pub(super) fn packed([_, h, s, d]: Dims) -> Dims {
    [h * s * d, s * d, d, 1]
}

/// Ids of virtual tensors start here, above all that are given.
const VIRTUAL: i64 = 1000;

impl Graph {
    /// `starts`, where there is one, holds the offset in elements of each sequence's first token, and the end of the last.
    pub fn tensor(
        &mut self,
        place: Place,
        data: DataType,
        dims: Dims,
        strides: Dims,
        starts: Option<Tensor>,
    ) -> Result<Tensor> {
        let id = match place {
            Place::Device(id) | Place::Host(id) => id,
            Place::Virtual => VIRTUAL + self.tensors.len() as i64,
        };
        let tensor = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
        tensor.set_type(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, data)?;
        tensor.set_integers(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &dims)?;
        tensor.set_integers(Name::CUDNN_ATTR_TENSOR_STRIDES, &strides)?;
        tensor.set_integers(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id])?;
        tensor.set_integers(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[16])?;
        if let Some(starts) = starts {
            tensor.set_descriptor(Name::CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, &self.tensors[starts.0])?;
        }
        match place {
            Place::Device(_) => {}
            Place::Host(_) => tensor.set(Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE, Type::CUDNN_TYPE_BOOLEAN, &[true])?,
            Place::Virtual => tensor.set(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, Type::CUDNN_TYPE_BOOLEAN, &[true])?,
        }
        self.tensors.push(tensor.finalize()?);
        Ok(Tensor(self.tensors.len() - 1))
    }
    /// A row-major tensor that never reaches memory.
    pub fn between(&mut self, data: DataType, dims: Dims) -> Result<Tensor> {
        self.tensor(Place::Virtual, data, dims, packed(dims), None)
    }
    /// A float that is given by the host at each run.
    pub fn scalar(&mut self, id: i64) -> Result<Tensor> {
        self.tensor(Place::Host(id), FLOAT, [1; 4], [1; 4], None)
    }

    /// out = mode(inputs…); `axis` is where an index counts.
    fn elementwise(
        &mut self,
        mode: Pointwise,
        compute: DataType,
        axis: Option<i64>,
        inputs: &[Tensor],
        out: Tensor,
    ) -> Result<()> {
        let how = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
        how.set(Name::CUDNN_ATTR_POINTWISE_MODE, Type::CUDNN_TYPE_POINTWISE_MODE, &[mode])?;
        how.set_type(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, compute)?;
        if let Some(axis) = axis {
            how.set_integers(Name::CUDNN_ATTR_POINTWISE_AXIS, &[axis])?;
        }
        let how = how.finalize()?;
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
        operation.set_descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, &how)?;
        let names = [
            Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
            Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
            Name::CUDNN_ATTR_OPERATION_POINTWISE_TDESC,
        ];
        for (name, input) in names.into_iter().zip(inputs) {
            operation.set_descriptor(name, &self.tensors[input.0])?;
        }
        operation.set_descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &self.tensors[out.0])?;
        self.push(operation, Some(how))
    }
    /// out = mode(inputs…) in f32.
    pub fn map_to(&mut self, mode: Pointwise, inputs: &[Tensor], out: Tensor) -> Result<()> {
        self.elementwise(mode, FLOAT, None, inputs, out)
    }
    pub fn map(&mut self, mode: Pointwise, inputs: &[Tensor], dims: Dims) -> Result<Tensor> {
        let out = self.between(FLOAT, dims)?;
        self.map_to(mode, inputs, out).map(|()| out)
    }
    /// The place of each element along an axis.
    fn index(&mut self, like: Tensor, axis: i64, dims: Dims) -> Result<Tensor> {
        let out = self.between(INT32, dims)?;
        self.elementwise(Pointwise::CUDNN_POINTWISE_GEN_INDEX, INT32, Some(axis), &[like], out).map(|()| out)
    }
    fn test(&mut self, mode: Pointwise, a: Tensor, b: Tensor, dims: Dims) -> Result<Tensor> {
        let out = self.between(BOOLEAN, dims)?;
        self.elementwise(mode, BOOLEAN, None, &[a, b], out).map(|()| out)
    }
    /// c = a·b.
    pub fn product_to(&mut self, a: Tensor, b: Tensor, lengths: Lengths, c: Tensor) -> Result<()> {
        let how = Descriptor::new(Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR)?;
        how.set_type(Name::CUDNN_ATTR_MATMUL_COMP_TYPE, FLOAT)?;
        let how = how.finalize()?;
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)?;
        let parts = [
            (Name::CUDNN_ATTR_OPERATION_MATMUL_ADESC, Some(a)),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_BDESC, Some(b)),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_CDESC, Some(c)),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, lengths.rows),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, lengths.columns),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, lengths.terms),
        ];
        for (name, tensor) in parts {
            if let Some(tensor) = tensor {
                operation.set_descriptor(name, &self.tensors[tensor.0])?;
            }
        }
        operation.set_descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_DESC, &how)?;
        self.push(operation, Some(how))
    }
    pub fn product(&mut self, a: Tensor, b: Tensor, lengths: Lengths, dims: Dims) -> Result<Tensor> {
        let c = self.between(FLOAT, dims)?;
        self.product_to(a, b, lengths, c).map(|()| c)
    }
    /// Over the dims where `out` has fewer than `inp`.
    pub fn reduce(&mut self, mode: Reduce, inp: Tensor, out: Tensor) -> Result<()> {
        let how = Descriptor::new(Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR)?;
        how.set_type(Name::CUDNN_ATTR_REDUCTION_COMP_TYPE, FLOAT)?;
        how.set(Name::CUDNN_ATTR_REDUCTION_OPERATOR, Type::CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, &[mode])?;
        let how = how.finalize()?;
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR)?;
        operation.set_descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_DESC, &how)?;
        operation.set_descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, &self.tensors[inp.0])?;
        operation.set_descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, &self.tensors[out.0])?;
        self.push(operation, Some(how))
    }
    /// The same values with other dims and strides.
    pub fn reshape(&mut self, inp: Tensor, out: Tensor) -> Result<()> {
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR)?;
        operation.set_descriptor(Name::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, &self.tensors[inp.0])?;
        operation.set_descriptor(Name::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, &self.tensors[out.0])?;
        self.push(operation, None)
    }
    fn push(&mut self, operation: Descriptor, how: Option<Descriptor>) -> Result<()> {
        self.operations.push(operation.finalize()?);
        self.details.extend(how);
        Ok(())
    }

    /// scores [B, H, S, S] where `keep`, else −inf.
    fn select(&mut self, scores: Tensor, never: Tensor, keep: Tensor, dims: Dims) -> Result<Tensor> {
        self.map(Pointwise::CUDNN_POINTWISE_BINARY_SELECT, &[scores, never, keep], dims)
    }
    /// −inf where the query or the key lies behind its sequence's end; `ends` are those of queries and of keys.
    pub fn mask_padding(&mut self, scores: Tensor, never: Tensor, ends: [Tensor; 2], dims: Dims) -> Result<Tensor> {
        let (rows, columns) = (self.index(scores, 2, dims)?, self.index(scores, 3, dims)?);
        let row = self.test(Pointwise::CUDNN_POINTWISE_CMP_LT, rows, ends[0], dims)?;
        let column = self.test(Pointwise::CUDNN_POINTWISE_CMP_LT, columns, ends[1], dims)?;
        let keep = self.test(Pointwise::CUDNN_POINTWISE_LOGICAL_AND, row, column, dims)?;
        self.select(scores, never, keep, dims)
    }
    /// −inf where the key comes after the query, or `window` keys or more before it.
    pub fn mask_causal(&mut self, scores: Tensor, never: Tensor, window: Option<Tensor>, dims: Dims) -> Result<Tensor> {
        let (rows, columns) = (self.index(scores, 2, dims)?, self.index(scores, 3, dims)?);
        let keep = self.test(Pointwise::CUDNN_POINTWISE_CMP_GE, rows, columns, dims)?;
        let scores = self.select(scores, never, keep, dims)?;
        let Some(window) = window else { return Ok(scores) };
        let (rows, columns) = (self.index(scores, 2, dims)?, self.index(scores, 3, dims)?);
        let reach = self.map(Pointwise::CUDNN_POINTWISE_ADD, &[columns, window], dims)?;
        let keep = self.test(Pointwise::CUDNN_POINTWISE_CMP_GT, reach, rows, dims)?;
        self.select(scores, never, keep, dims)
    }

    /// The whole as cuDNN takes it, and what it is made of.
    pub fn finish(self, handle: sys::cudnnHandle_t) -> Result<(Descriptor, Vec<Descriptor>)> {
        let graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        graph.set_descriptors(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &self.operations)?;
        if !handle.is_null() {
            graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Type::CUDNN_TYPE_HANDLE, &[handle])?;
        }
        let parts = self.tensors.into_iter().chain(self.operations).chain(self.details);
        Ok((graph.finalize()?, parts.collect()))
    }
}
