//! What was trained, as folders that other tools load.
mod folder;
pub mod full;
pub mod init;
pub mod peft;
pub use folder::copy_companions;
