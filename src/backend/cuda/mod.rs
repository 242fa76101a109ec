pub mod libs;
pub mod nvrtc;
pub mod source;
