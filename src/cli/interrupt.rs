//! Ctrl-C: the first asks the run to save and end, the second ends the process at once.
use luthier::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C, and SIGTERM and SIGHUP where there are any, from now on.
pub fn install() -> Result<()> {
    let caught = || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        super::say!("\ninterrupted: finishing this step and saving; once more ends at once");
    };
    ctrlc::set_handler(caught).map_err(|e| Error::Bug(format!("cannot catch signals: {e}")))
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
