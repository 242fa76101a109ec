//! The wgpu device that a test is about.
use luthier::backend::wgpu::Wgpu;

/// The device, or none where there is none and none is required.
pub fn open() -> Option<Wgpu> {
    match Wgpu::new(None) {
        Ok(wgpu) => Some(wgpu),
        Err(e) if std::env::var("LUTHIER_REQUIRE").is_ok_and(|r| r.contains("wgpu")) => panic!("{e}"),
        Err(e) => {
            eprintln!("wgpu: skipped, {e}");
            None
        }
    }
}
