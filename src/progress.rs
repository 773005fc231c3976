//! How far something long is, as a bar on a terminal: what is left, how fast it goes, and when it will be done.
//!
//! Only where standard error is a terminal, and the log is for people. The bar is drawn by a thread of its own, which
//! asks what there is to show: a terminal that does not take it holds up nothing else. Log lines are written
//! beside it, never into it.

mod catch_up;
mod pace;

pub(crate) use catch_up::{CatchUp, CaughtUp, Stands, shortly};

use crate::size;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use pace::Pace;
use std::io::{self, IsTerminal as _, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a bar is drawn.
const TICK: Duration = Duration::from_millis(200);

/// What is done before that needs no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// A terminal that takes nothing is not waited for any longer.
const END_MAX: Duration = Duration::from_secs(1);

/// Standard error, where it is a terminal: who writes lines and who draws bars take turns.
#[derive(Debug, Clone)]
pub struct Terminal(MultiProgress);

impl Terminal {
    /// Standard error, if it is a terminal that a cursor can be moved on.
    pub(crate) fn of_standard_error() -> Option<Self> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let target = (io::stderr().is_terminal() && !dumb).then(ProgressDrawTarget::stderr)?;
        Some(Self(MultiProgress::with_draw_target(target)))
    }

    /// Writes something while no bar is in the way.
    pub(crate) fn beside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }

    /// Shows a bar for as long as `look` says so, which is asked five times a second.
    ///
    /// # Errors
    ///
    /// If there is no thread to be had.
    pub fn show(&self, look: impl FnMut() -> Step + Send + 'static) -> io::Result<Bar> {
        let (stop, stopped) = mpsc::channel();
        let (ending, ended) = mpsc::channel();
        let terminal = self.0.clone();
        std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
            draw(&terminal, look, &stopped);
            // Nobody may wait for it any more.
            let _ = ending.send(());
        })?;
        Ok(Bar { stop: Some(stop), ended })
    }
}

/// Standard error, beside the bars on it.
impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // All of it in one turn: a line that is half written would have a bar behind it.
        self.beside(|| io::stderr().write_all(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A bar. Dropping it removes it from the terminal.
#[derive(Debug)]
pub struct Bar {
    stop: Option<mpsc::Sender<()>>,
    ended: mpsc::Receiver<()>,
}

impl Drop for Bar {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Whatever comes of it, the process goes on.
        let _ = self.ended.recv_timeout(END_MAX);
    }
}

/// What a bar is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// There is nothing to show, for now.
    Hide,
    /// This is how far it is.
    Show(Seen),
    /// There is nothing more to show.
    End,
}

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What is being done, in a word or two.
    pub what: String,
    /// So much is done,
    pub done: u64,
    /// of so much.
    pub of: u64,
    /// What is counted.
    pub unit: Unit,
    /// Facts or dead letters so far, whatever the unit is.
    pub facts: u64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of write-ahead log.
    Bytes,
    /// Records of a topic.
    Records,
}

/// How far something is, said by who does it to who shows it.
#[derive(Debug, Clone, Default)]
pub struct Work(Arc<Mutex<Option<Seen>>>);

impl Work {
    /// So far it is now.
    pub fn is(&self, seen: Seen) {
        *self.lock() = Some(seen);
    }

    /// What a bar shows of it, once it takes long.
    pub fn look(&self) -> impl FnMut() -> Step + Send + use<> {
        let (work, begun) = (self.clone(), now());
        move || {
            let seen = work.lock().clone();
            seen.filter(|_| begun.elapsed() >= PATIENCE).map_or(Step::Hide, Step::Show)
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Seen>> {
        // A panic elsewhere leaves what is still good: each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Draws until there is nothing more to show, or the other end of `stopped` is gone.
fn draw(terminal: &MultiProgress, mut look: impl FnMut() -> Step, stopped: &mpsc::Receiver<()>) {
    let mut shown: Option<(ProgressBar, Pace)> = None;
    loop {
        match look() {
            Step::Show(seen) => {
                let is_new = shown.is_none();
                let (bar, pace) = shown.get_or_insert_with(|| {
                    // Each of the calls below may draw: not yet, while it has no words.
                    let bar = ProgressBar::hidden().with_style(style());
                    (bar, Pace::default())
                });
                pace.add(now(), seen.done, seen.facts);
                bar.set_message(words(&seen, pace));
                bar.set_prefix(seen.what.clone());
                bar.set_length(seen.of);
                bar.set_position(seen.done);
                if is_new {
                    *bar = terminal.add(bar.clone());
                }
                bar.tick();
            }
            Step::Hide => clear(shown.take()),
            Step::End => break,
        }
        if stopped.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    clear(shown);
}

fn clear(shown: Option<(ProgressBar, Pace)>) {
    if let Some((bar, _)) = shown {
        bar.finish_and_clear();
    }
}

fn style() -> ProgressStyle {
    // The template is a constant, and a test has drawn it.
    ProgressStyle::with_template("{prefix} [{bar:24}] {percent:>3}%  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// What is left, how fast it goes, and how long that takes.
fn words(seen: &Seen, pace: &Pace) -> String {
    let left = seen.of.saturating_sub(seen.done);
    let (left_words, noun) = match seen.unit {
        Unit::Bytes => (size::human(left), "facts"),
        Unit::Records => (format!("{left} records"), "records"),
    };
    let facts = pace.facts();
    let eta = match pace.left(left) {
        Some(eta) => format!(", {eta} to go"),
        None => String::new(),
    };
    format!("{left_words} left, {facts:.0} {noun}/s{eta}")
}

#[expect(clippy::disallowed_methods, reason = "bars are drawn in real time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_what_is_left_how_fast_it_goes_and_how_long_that_takes() {
        let mut seen = Seen {
            what: "catching up".to_owned(),
            done: 0,
            of: 64 << 20,
            unit: Unit::Bytes,
            facts: 0,
        };
        let mut pace = Pace::default();
        let begun = now();
        pace.add(begun, 0, 0);
        assert_eq!(words(&seen, &pace), "64.0 MiB left, 0 facts/s");
        (seen.done, seen.facts) = (16 << 20, 50_000);
        pace.add(begun + Duration::from_secs(2), seen.done, seen.facts);
        assert_eq!(words(&seen, &pace), "48.0 MiB left, 25000 facts/s, 6s to go");
        seen.unit = Unit::Records;
        (seen.done, seen.of) = (7, 10);
        assert!(words(&seen, &pace).starts_with("3 records left, 25000 records/s"));
    }

    #[test]
    fn the_template_is_one() {
        assert!(
            ProgressStyle::with_template("{prefix} [{bar:24}] {percent:>3}%  {wide_msg}").is_ok()
        );
    }
}
