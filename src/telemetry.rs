//! Logs: one line for each change of state, to standard error.
//!
//! A line goes through a bounded buffer to a thread of its own. When whoever reads standard error
//! stops reading, lines are dropped and counted, and the stream goes on.
//!
//! The keys are fixed, so that a search written once keeps working: `lsn`, `slot`, `topic`,
//! `partition`, `error`. Payloads and secrets are never logged.

use crate::config::{LogConfig, LogFormat};
use crate::progress::Terminal;
use std::io::{IsTerminal, Write};
use tracing::{Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines kept while the sink is slow; a few hundred bytes each.
const BUFFERED_LINES_MAX: usize = 4096;

/// Keeps the log running. Dropping it writes what is buffered, for at most about a second, so
/// `main` holds it to the end.
#[must_use = "dropping it ends the log"]
#[derive(Debug)]
pub struct Telemetry {
    dropped: ErrorCounter,
    terminal: Option<Terminal>,
    _worker: WorkerGuard,
}

impl Telemetry {
    /// How many lines were dropped because nobody read them.
    pub fn dropped_lines(&self) -> usize {
        self.dropped.dropped_lines()
    }

    /// The same, for whoever asks later.
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }

    /// Where bars may be drawn beside the lines; none unless standard error is a terminal, and the lines are for
    /// people.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }
}

/// Sends this process's log to standard error. To be called once; a second call changes nothing.
pub fn init(log: &LogConfig) -> Telemetry {
    let terminal = std::io::stderr().is_terminal();
    let human = match log.format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let colour = terminal && !no_color();
    let bars = human.then(Terminal::of_standard_error).flatten();
    let sink: Box<dyn Write + Send> = match &bars {
        Some(terminal) => Box::new(terminal.clone()),
        None => Box::new(std::io::stderr()),
    };
    let (subscriber, mut telemetry) = subscriber(&log.level, human, colour, sink);
    telemetry.terminal = bars;
    // An error means that there is a log already: in a program that embeds us, its own.
    let _ = subscriber.try_init();
    telemetry
}

/// Whether the user wants no colours anywhere: <https://no-color.org>.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

fn subscriber(
    level: &str,
    human: bool,
    colour: bool,
    sink: impl Write + Send + 'static,
) -> (Box<dyn Subscriber + Send + Sync>, Telemetry) {
    let (writer, worker) = NonBlockingBuilder::default()
        .buffered_lines_limit(BUFFERED_LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(sink);
    let dropped = writer.error_counter();
    let telemetry = Telemetry { dropped, terminal: None, _worker: worker };
    // The configuration has checked the level.
    let filter = level.parse().unwrap_or_else(|_| Targets::new().with_default(Level::INFO));
    let filtered = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let subscriber: Box<dyn Subscriber + Send + Sync> = if human {
        Box::new(filtered.with(layer.with_ansi(colour).with_target(false)))
    } else {
        let layer = layer.json().flatten_event(true);
        Box::new(filtered.with(layer.with_current_span(false).with_span_list(false)))
    };
    (subscriber, telemetry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex, mpsc};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, human: bool, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let (subscriber, telemetry) = subscriber(level, human, false, sink.clone());
        tracing::subscriber::with_default(subscriber, log);
        drop(telemetry);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_has_the_keys_at_the_top() {
        let line = logged("info", false, || {
            tracing::info!(slot = "factlib_slot", lsn = "0/1", "streaming");
            tracing::debug!("not shown");
        });
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["message"], "streaming");
        assert_eq!(line["slot"], "factlib_slot");
        assert_eq!(line["level"], "INFO");
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn a_human_line_is_plain_text() {
        let line = logged("warn", true, || tracing::warn!(topic = "orders.order", "stalled"));
        assert!(line.ends_with(" WARN stalled topic=\"orders.order\"\n"), "{line}");
    }

    /// A reader that has stopped reading: writes wait until the test ends.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_sink_drops_lines_and_blocks_nobody() {
        let (unstick, stuck) = mpsc::channel();
        let (subscriber, telemetry) = subscriber("info", false, false, Stuck(stuck));
        // Would hang here for ever if logging waited for the sink.
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..BUFFERED_LINES_MAX + 100 {
                tracing::info!("line");
            }
        });
        // One line is in the hands of the thread; the buffer holds the rest.
        assert!((99..=100).contains(&telemetry.dropped_lines()), "{}", telemetry.dropped_lines());
        drop(unstick);
    }
}
