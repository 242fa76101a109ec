//! Ctrl-C: the first asks the run to save and end, the second ends the process at once.
use luthier::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

type Tell = Box<dyn Fn(&str) + Send>;
/// Who is told instead of standard error, and what is to be done before the process ends at once: the terminal's UI.
static TELL: Mutex<Option<Tell>> = Mutex::new(None);
static LEAVE: Mutex<Option<fn()>> = Mutex::new(None);

/// Catches Ctrl-C, and SIGTERM and SIGHUP where there are any, from now on.
pub fn install() -> Result<()> {
    ctrlc::set_handler(ask).map_err(|e| Error::Bug(format!("cannot catch signals: {e}")))
}

/// As one Ctrl-C.
pub fn ask() {
    if ASKED.swap(true, Ordering::SeqCst) {
        if let Ok(Some(leave)) = LEAVE.lock().as_deref() {
            leave();
        }
        std::process::exit(130);
    }
    let text = "interrupted: finishing this step and saving; once more ends at once";
    match TELL.lock().as_deref() {
        Ok(Some(tell)) => tell(text),
        _ => super::say!("\n{text}"),
    }
}

pub fn on_asked(tell: impl Fn(&str) + Send + 'static) {
    if let Ok(mut to) = TELL.lock() {
        *to = Some(Box::new(tell));
    }
}

pub fn on_leaving(leave: fn()) {
    if let Ok(mut to) = LEAVE.lock() {
        *to = Some(leave);
    }
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
