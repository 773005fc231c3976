//! The commands beside `run`, `init` and `audit`, each in a file of its own: what it is told, what it says, how it
//! ends.
//!
//! Those that only ask or emit speak SQL ([`Queries`](crate::postgres::Queries)); `drain` is the relay itself; `tail`
//! and `status --facts` read along (`along.rs`); `redrive` uses the relay's own producer.

mod along;
mod barrier;
pub mod completions;
pub mod drain;
pub mod emit;
pub mod functions;
mod lag;
pub mod man;
pub mod position_topic;
mod printable;
mod record;
pub mod redrive;
pub mod status;
pub mod tail;
pub mod wait;

pub use barrier::Barrier;

use crate::config::Config;
use crate::exit::ExitCode;
use crate::kafka::Tls;
use crate::progress::{Bar, Step};
use crate::relay::gone::{Exit, ExitKind, Gone};
use crate::telemetry::Telemetry;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What is asked here takes milliseconds.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How often is looked whether anybody reads standard output.
const READ_INTERVAL: Duration = Duration::from_millis(250);

/// How long whoever reads standard error has to make room for a sentence.
const ROOM_MAX: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// One sentence to standard error. If nobody reads it, there is nobody to tell: a full pipe must not keep a process that
/// has failed from ending.
pub fn say(sentence: &str) {
    // Not locked: the log's thread may hang in a write to it.
    let error = rustix::stdio::stderr();
    let mut asked = [PollFd::from_borrowed_fd(error, PollFlags::OUT)];
    // Where it cannot be asked, the write tells.
    if poll(&mut asked, Some(&ROOM_MAX)) == Ok(0) {
        return;
    }
    // A server's words may be in it, and a stranger's before TLS.
    let lines: Vec<_> =
        sentence.lines().map(|line| printable::printable(line.as_bytes())).collect();
    let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
}

/// Says why the process ends, unless it was asked to, and with which number.
pub fn ended(exit: &Exit) -> ExitCode {
    if exit.kind != ExitKind::Stopped {
        say(&format!("owlpost: {}", exit.reason));
    }
    exit.kind.into()
}

/// The same for what PostgreSQL said.
fn refused(gone: Gone) -> ExitCode {
    ended(&gone.into())
}

/// The files for TLS to Kafka.
///
/// # Errors
///
/// The exit code, after saying why.
pub fn tls(config: &Config) -> Result<Option<Tls>, ExitCode> {
    config.kafka.tls.as_ref().map(Tls::load).transpose().map_err(|error| {
        say(&format!("owlpost: {error}"));
        ExitCode::Configuration
    })
}

/// SIGTERM or SIGINT.
pub async fn asked_to_stop() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "signals cannot be heard: only SIGKILL stops this process");
            std::future::pending().await
        }
    }
}

/// Returns once whoever read standard output, a pipe, has gone: at the latest a moment later. Of a file it never does.
async fn nobody_reads() {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let output = io::stdout();
        // What is asked for is nothing: that nobody reads is always told.
        let mut asked = [PollFd::new(&output, PollFlags::empty())];
        // Where it cannot be asked, the next write tells.
        let is_asked = poll(&mut asked, Some(&now)).is_ok();
        if is_asked && asked.iter().any(|output| output.revents().contains(PollFlags::ERR)) {
            return;
        }
        tokio::time::sleep(READ_INTERVAL).await;
    }
}

/// Whether standard output is a terminal that takes colours. <https://no-color.org>
fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A bar on the terminal, where there is one and it is for people.
pub fn bar(
    log: &Telemetry,
    json: bool,
    look: impl FnMut() -> Step + Send + 'static,
) -> Option<Bar> {
    let bar = log.terminal().filter(|_| !json)?.show(look);
    bar.inspect_err(
        |error| tracing::warn!(%error, "no thread for the bar: nothing else is missing"),
    )
    .ok()
}

/// A line, or several, to standard output, at once.
///
/// # Errors
///
/// [`io::ErrorKind::BrokenPipe`] if nobody reads any more, or why it cannot be written.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// How a command ends whose output could not be written: quietly, if nobody reads it any more.
fn unwritten(error: &io::Error) -> ExitCode {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return ExitCode::Stopped;
    }
    say(&format!("owlpost: standard output cannot be written: {error}"));
    ExitCode::Internal
}
