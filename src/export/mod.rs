//! What was trained, as folders that other tools load.
pub mod bnb;
pub mod dynamic;
pub mod folder;
pub mod full;
pub mod gguf;
pub mod init;
pub mod merge;
pub mod peft;
pub mod product;
pub mod publish;
pub mod quantize;
