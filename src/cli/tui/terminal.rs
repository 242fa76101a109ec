//! The terminal taken over and given back, whatever happens: an end, an error, a panic, a signal.
use luthier::{Error, Result};
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use std::io::{self, IsTerminal, stdin, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// The terminal is ours.
static TAKEN: AtomicBool = AtomicBool::new(false);
static PANICS: Once = Once::new();

/// Given back when it is dropped.
pub struct Taken;

/// Raw keys, and a screen of its own.
pub fn take() -> Result<Taken> {
    if !(stdin().is_terminal() && stdout().is_terminal()) {
        let what = "--ui tui wants a terminal on standard input and output: use --ui plain here, or leave it out";
        return Err(Error::Usage(what.into()));
    }
    PANICS.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
    });
    TAKEN.store(true, Ordering::SeqCst);
    let taken = Taken;
    let run = || -> io::Result<()> {
        enable_raw_mode()?;
        execute!(stdout(), EnterAlternateScreen)
    };
    run().map_err(|e| Error::Usage(format!("--ui tui: the terminal refuses: {e}; use --ui plain")))?;
    Ok(taken)
}

/// As it was before; the second time does nothing.
pub fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Nobody is left to be told if this fails.
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}
