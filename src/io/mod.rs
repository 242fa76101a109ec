//! Bytes to named tensors and back; nothing about models.
pub mod gguf;
pub mod safetensors;
