//! `--ui tui`: a run on the whole terminal. The training thread writes a view and goes on; another thread reads the keys and
//! draws, at most so often.
mod draw;
mod history;
pub mod picture;
mod terminal;
mod view;
use super::interrupt;
use luthier::Result;
use luthier::io::hub::Event as Download;
use luthier::train::metrics::{EvalMetrics, Reporter, StepMetrics};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, poll, read};
use std::io::stdout;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use view::Pace;
pub use view::View;

/// Between two frames.
const FRAME: Duration = Duration::from_millis(100);
/// Lines that are said again once the terminal is given back.
const LAST_WORDS: usize = 12;

/// What both threads have.
#[derive(Default)]
struct Shared {
    view: Mutex<View>,
    /// A pause ended.
    resumed: Condvar,
    /// A checkpoint is wanted now.
    save: AtomicBool,
    /// The run is over.
    over: AtomicBool,
}

impl Shared {
    /// A panic of the other thread leaves a view that can still be shown.
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.view().pace = Pace::Ending;
        self.resumed.notify_all();
    }
}

pub struct Tui {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// When this start began, moved on by pauses.
    since: Option<Instant>,
}

impl Tui {
    /// `memory`: bytes on the device in all.
    pub fn new(title: String, memory: Option<u64>) -> Result<Tui> {
        let taken = terminal::take()?;
        let shared = Arc::new(Shared::default());
        (shared.view().title, shared.view().memory) = (title, memory);
        let told = shared.clone();
        interrupt::on_asked(move |text| {
            told.view().message(text);
            told.end();
        });
        interrupt::on_leaving(terminal::give_back);
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || {
            let _taken = taken;
            show(&theirs);
        });
        Ok(Tui { shared, thread: Some(thread), since: None })
    }

    /// Waits while the run is paused.
    fn pause(&mut self) {
        let began = Instant::now();
        let paused = |view: &mut View| view.pace == Pace::Paused && !interrupt::asked();
        let waited = self.shared.resumed.wait_while(self.shared.view(), paused);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.since = self.since.map(|since| since + began.elapsed());
    }
}

impl Reporter for Tui {
    fn start(&mut self, done: u64, total: u64) {
        self.since = Some(Instant::now());
        self.shared.view().start(done, total);
    }

    fn step(&mut self, m: &StepMetrics) {
        let mut view = self.shared.view();
        view.step(m);
        view.seconds = self.since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        drop(view);
        self.pause();
    }

    fn eval(&mut self, m: &EvalMetrics) {
        self.shared.view().eval(m);
    }

    fn sample(&mut self, prompt: &str, text: &str) {
        self.shared.view().sample(prompt, text);
    }

    fn saved(&mut self, path: &Path) {
        self.message(&format!("saved {}", path.display()));
    }

    fn message(&mut self, text: &str) {
        self.shared.view().message(text);
    }

    fn download(&mut self, event: Download) {
        let mut view = self.shared.view();
        match event {
            Download::File { name, size, have } => view.download = Some((name.to_string(), have, size)),
            Download::Bytes(have) => view.download.iter_mut().for_each(|(_, here, _)| *here = have),
            Download::Done => view.download = None,
            Download::Note(text) => view.message(&text),
        }
    }

    fn is_interrupted(&self) -> bool {
        interrupt::asked()
    }

    fn wants_checkpoint(&mut self) -> bool {
        self.shared.save.swap(false, Ordering::SeqCst)
    }
}

impl Drop for Tui {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic of it has printed itself.
            let _ = thread.join();
        }
        let view = self.shared.view();
        let m = &view.last;
        if m.step > view.done {
            super::say!("step {}/{} · loss {:.4}", m.step, view.total, m.loss);
        }
        let skip = view.messages.len().saturating_sub(LAST_WORDS);
        view.messages.iter().skip(skip).for_each(|text| super::say!("{text}"));
    }
}

/// Reads keys and draws until the run is over. A terminal that is gone ends the drawing, not the run.
fn show(shared: &Shared) {
    let Ok(mut terminal) = Terminal::new(CrosstermBackend::new(stdout())) else { return };
    while !shared.over.load(Ordering::SeqCst) {
        let view = shared.view().clone();
        if terminal.draw(|frame| draw::draw(frame, &view)).is_err() {
            return;
        }
        let next = Instant::now() + FRAME;
        while let Ok(true) = poll(next.saturating_duration_since(Instant::now())) {
            match read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => press(shared, key),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

fn press(shared: &Shared, key: KeyEvent) {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => interrupt::ask(),
        KeyCode::Char('q') => interrupt::ask(),
        KeyCode::Char('s') => {
            shared.save.store(true, Ordering::SeqCst);
            shared.view().message("a checkpoint will be saved after this step");
        }
        KeyCode::Char('p') | KeyCode::Char(' ') => {
            let mut view = shared.view();
            view.pace = match view.pace {
                Pace::Running => Pace::Paused,
                Pace::Paused => Pace::Running,
                Pace::Ending => Pace::Ending,
            };
            shared.resumed.notify_all();
        }
        KeyCode::Tab | KeyCode::Left | KeyCode::Right => shared.view().turn(),
        KeyCode::Up => scroll(shared, 1),
        KeyCode::Down => scroll(shared, -1),
        KeyCode::PageUp => scroll(shared, 10),
        KeyCode::PageDown => scroll(shared, -10),
        _ => {}
    }
}

fn scroll(shared: &Shared, by: i16) {
    let mut view = shared.view();
    view.scroll = view.scroll.saturating_add_signed(by);
}

#[cfg(test)]
mod tests {
    use super::view::Tab;
    use super::*;

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    #[test]
    fn keys_do_what_they_say() {
        let shared = Shared::default();
        press(&shared, key(KeyCode::Char('s')));
        assert!(shared.save.load(Ordering::SeqCst));
        press(&shared, key(KeyCode::Char('p')));
        assert_eq!(shared.view().pace, Pace::Paused);
        press(&shared, key(KeyCode::Char(' ')));
        assert_eq!(shared.view().pace, Pace::Running);
        press(&shared, key(KeyCode::Tab));
        assert_eq!(shared.view().tab, Tab::Messages);
        press(&shared, key(KeyCode::PageUp));
        press(&shared, key(KeyCode::Down));
        assert_eq!(shared.view().scroll, 9);
        press(&shared, key(KeyCode::PageDown));
        assert_eq!(shared.view().scroll, 0);
        shared.end();
        press(&shared, key(KeyCode::Char('p')));
        assert_eq!(shared.view().pace, Pace::Ending, "a run that ends is not paused any more");
    }

    #[test]
    fn a_paused_run_waits_until_it_goes_on() {
        let shared = Arc::new(Shared::default());
        let mut tui = Tui { shared: shared.clone(), thread: None, since: Some(Instant::now()) };
        press(&shared, key(KeyCode::Char('p')));
        let later = shared.clone();
        let wake = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            press(&later, key(KeyCode::Char('p')));
        });
        let began = Instant::now();
        tui.step(&StepMetrics { step: 1, ..StepMetrics::default() });
        assert!(began.elapsed() >= Duration::from_millis(50));
        assert!(tui.since.is_some_and(|since| since.elapsed() < Duration::from_millis(50)), "the pause does not count");
        wake.join().unwrap();
        assert!(tui.wants_checkpoint() == shared.save.load(Ordering::SeqCst));
    }
}
