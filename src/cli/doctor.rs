//! `luthier doctor`: what there is to run on, what is missing, and a first sum on each.
use super::out;
use clap::Args;
use luthier::Result;
use luthier::backend::{Backend, pick};
use luthier::dtype::DType;
use luthier::ops::residual::Residual;

/// Say what luthier can run on here, and what is missing.
#[derive(Args)]
pub struct Doctor {}

impl Doctor {
    pub fn run(self) -> Result<()> {
        out(&format!("luthier {}\n", env!("CARGO_PKG_VERSION")))?;
        for (name, lines) in pick::survey() {
            out(&format!("\n{name}\n"))?;
            for line in lines {
                out(&format!("  {line}\n"))?;
            }
            out(&format!("  {}\n", verdict(name)))?;
        }
        let (_, which) = pick::pick("auto")?;
        out(&format!("\nauto chooses {which}\n"))
    }
}

fn verdict(name: &str) -> String {
    match pick::pick(name).and_then(|(backend, _)| Ok((first_sum(&*backend)?, backend.device()))) {
        Ok((true, device)) => format!("works: {device}"),
        Ok((false, device)) => format!("WRONG: {device} adds wrongly; its driver is not to be trusted"),
        Err(e) => format!("does not work: {e}"),
    }
}

/// Whether a + b is what it should be; odd and longer than any vector width.
fn first_sum(backend: &dyn Backend) -> Result<bool> {
    let a: Vec<f32> = (0..4099).map(|i| i as f32).collect();
    let b: Vec<f32> = a.iter().map(|x| 0.5 - x).collect();
    let (a, b) = (backend.alloc_f32(&a, DType::F32)?, backend.alloc_f32(&b, DType::F32)?);
    let mut sum = backend.alloc(4099, DType::F32)?;
    backend.residual_forward(&mut sum, &a, &b, &Residual { P: 4099, scale: 1.0 })?;
    Ok(backend.download_f32(&sum)?.iter().all(|x| *x == 0.5))
}
