//! Objects of cuDNN's backend API: made of a kind, told attributes one by one, then finalized and never changed again.
use crate::error::{Error, Result};
use cudarc::cudnn::sys::{self, cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type};
use std::ffi::{CStr, c_void};

/// One object, destroyed with its owner.
pub(super) struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created in `new`, owned here alone.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

impl Descriptor {
    pub fn new(kind: sys::cudnnBackendDescriptorType_t) -> Result<Descriptor> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: room for one pointer.
        check("a descriptor", unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut raw) })?;
        Ok(Descriptor(raw))
    }
    pub fn raw(&self) -> sys::cudnnBackendDescriptor_t {
        self.0
    }
    /// `ty` is the type of `values` as cuDNN calls it.
    pub fn set<V>(&self, name: Name, ty: Type, values: &[V]) -> Result<()> {
        // SAFETY: the values live until the call returns, which copies them.
        let status = unsafe {
            sys::cudnnBackendSetAttribute(self.0, name, ty, values.len() as i64, values.as_ptr() as *const c_void)
        };
        check(&format!("{name:?}"), status)
    }
    pub fn set_integers(&self, name: Name, values: &[i64]) -> Result<()> {
        self.set(name, Type::CUDNN_TYPE_INT64, values)
    }
    pub fn set_type(&self, name: Name, value: sys::cudnnDataType_t) -> Result<()> {
        self.set(name, Type::CUDNN_TYPE_DATA_TYPE, &[value])
    }
    pub fn set_descriptor(&self, name: Name, value: &Descriptor) -> Result<()> {
        self.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[value.0])
    }
    pub fn set_descriptors(&self, name: Name, values: &[Descriptor]) -> Result<()> {
        let raw: Vec<_> = values.iter().map(|d| d.0).collect();
        self.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &raw)
    }
    pub fn finalize(self) -> Result<Descriptor> {
        // SAFETY: the object is whole; cuDNN checks its attributes.
        check("an object", unsafe { sys::cudnnBackendFinalize(self.0) })?;
        Ok(self)
    }
    /// An attribute of one integer.
    pub fn integer(&self, name: Name) -> Result<i64> {
        let (mut value, mut count) = (0i64, 0);
        let at = &mut value as *mut i64 as *mut c_void;
        // SAFETY: room for the one integer asked for.
        let status = unsafe { sys::cudnnBackendGetAttribute(self.0, name, Type::CUDNN_TYPE_INT64, 1, &mut count, at) };
        check(&format!("{name:?}"), status).map(|()| value)
    }
    /// As many objects of a kind as an attribute holds.
    pub fn list(&self, name: Name, kind: sys::cudnnBackendDescriptorType_t) -> Result<Vec<Descriptor>> {
        let ty = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        let mut count = 0;
        // SAFETY: asks for the number alone.
        let status = unsafe { sys::cudnnBackendGetAttribute(self.0, name, ty, 0, &mut count, std::ptr::null_mut()) };
        check(&format!("{name:?}"), status)?;
        let mut found = (0..count).map(|_| Descriptor::new(kind)).collect::<Result<Vec<_>>>()?;
        let mut raw: Vec<_> = found.iter().map(|d| d.0).collect();
        let at = raw.as_mut_ptr() as *mut c_void;
        let mut written = 0;
        // SAFETY: `count` objects to be filled in.
        let status = unsafe { sys::cudnnBackendGetAttribute(self.0, name, ty, count, &mut written, at) };
        check(&format!("{name:?}"), status)?;
        found.truncate(written.max(0) as usize);
        Ok(found)
    }
}

/// cuDNN's status as ours, with its last words on this thread.
pub(super) fn check(what: &str, status: sys::cudnnStatus_t) -> Result<()> {
    if status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    let mut text = [0; 1024];
    // SAFETY: room for 1024 characters, the last of which stays 0.
    let said = unsafe {
        sys::cudnnGetLastErrorString(text.as_mut_ptr(), text.len() - 1);
        CStr::from_ptr(text.as_ptr()).to_string_lossy()
    };
    Err(Error::device("cuda", format!("cudnn: {what}: {status:?} {said}")))
}
