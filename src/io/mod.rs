//! Bytes to named tensors and back; nothing about models.
pub mod hub;
pub mod links;
pub mod safetensors;
