//! Bytes to named tensors and back; nothing about models.
pub mod disk;
pub mod gguf;
pub mod hub;
pub mod links;
pub mod safetensors;
