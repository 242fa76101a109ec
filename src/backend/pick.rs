//! Which backend: the one that is named, or the best there is.
use super::Backend;
use super::cpu::Cpu;
use crate::error::{Error, Result};

pub fn pick(name: &str) -> Result<(Box<dyn Backend>, String)> {
    match name {
        "cpu" => Ok((Box::new(Cpu::new()), "named".into())),
        _ => Err(Error::Usage(format!("no backend {name}"))),
    }
}
