//! What CUDA has to offer here, for `luthier doctor`; asks and never fails.
use super::driver::failed;
use super::libs::{self, Library};
use crate::error::Result;
use cudarc::driver::{CudaContext, result, sys};

#[derive(Clone, Debug)]
pub struct CudaDevice {
    pub ordinal: usize,
    pub name: String,
    /// Compute capability, (major, minor).
    pub capability: (i32, i32),
    /// Bytes.
    pub memory: u64,
}

#[derive(Clone, Debug)]
pub struct CudaReport {
    /// The CUDA version that the driver speaks, (major, minor).
    pub driver: Option<(i32, i32)>,
    pub devices: Vec<CudaDevice>,
    /// Why there is no driver or no device.
    pub problem: Option<String>,
    pub libraries: Vec<Library>,
}

impl CudaReport {
    /// Can training run on a device?
    pub fn usable(&self) -> bool {
        !self.devices.is_empty() && ["nvrtc", "cublasLt"].iter().all(|name| libs::missing(name).is_none())
    }
    /// What to install, a line each.
    pub fn advice(&self) -> Vec<String> {
        let missing = self.libraries.iter().filter(|l| l.found.is_none());
        missing.map(|l| format!("lib{} is missing ({}): {}", l.name, l.used_for, l.get)).collect()
    }
}

/// Looks for the driver, its devices and the libraries.
pub fn report() -> CudaReport {
    let libraries = libs::open().to_vec();
    let mut report = CudaReport { driver: None, devices: Vec::new(), problem: None, libraries };
    if let Err(e) = devices(&mut report) {
        report.problem = Some(e.to_string());
    }
    report
}

/// The CUDA version that the driver speaks, (major, minor).
pub fn driver_version() -> Result<(i32, i32)> {
    super::driver::driver_present()?;
    let mut version = 0;
    // SAFETY: one integer to write to.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed("the driver's version"))?;
    Ok((version / 1000, version % 1000 / 10))
}

fn devices(report: &mut CudaReport) -> Result<()> {
    report.driver = Some(driver_version()?);
    for ordinal in 0..CudaContext::device_count().map_err(failed("counting devices"))?.max(0) as usize {
        let device = result::device::get(ordinal as i32).map_err(failed("a device"))?;
        // Without a context: that would take memory on every device. SAFETY: the device exists.
        let attribute = |a| unsafe { result::device::get_attribute(device, a) }.map_err(failed("a device"));
        use sys::CUdevice_attribute_enum as A;
        report.devices.push(CudaDevice {
            ordinal,
            name: result::device::get_name(device).map_err(failed("a device"))?,
            capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            // SAFETY: the device exists.
            memory: unsafe { result::device::total_mem(device) }.map_err(failed("a device"))? as u64,
        });
    }
    Ok(())
}
