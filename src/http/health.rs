//! The board between the relay and whoever asks how it is.

use super::history::{History, News};
use crate::metrics::{Metrics, SlotFacts, View};
use crate::relay::Standing;
use crate::relay::pages::Pages;
use factlib_protocol::{Lsn, Timestamp};
use serde::{Serialize, Serializer};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tracing_appender::non_blocking::ErrorCounter;

/// The main loop beats every few seconds even when there is nothing to do; this long without is a
/// hang.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What the relay says about itself; shown as JSON by `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Whether facts flow, or would if there were any.
    pub ready: bool,
    /// What it is doing.
    pub state: State,
    /// Why it is in this state, in a sentence that says what to do; none when all is well.
    pub reason: Option<String>,
    /// When it came into this state. [`Health::set`] fills this in.
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// The replication slot.
    pub slot: String,
    /// What holds everything up, if something does.
    pub blocked: Option<Blocked>,
    /// Everything before this was read, as PostgreSQL writes it: `0/16B3748`.
    pub received_lsn: Option<String>,
    /// Everything before this is in Kafka for good.
    pub confirmed_lsn: Option<String>,
    /// Encoded bytes that Kafka has not acknowledged.
    pub in_flight_bytes: u64,
    /// Facts published by this process.
    pub published: u64,
    /// Facts that were read again by this process and not published, because Kafka had them already.
    pub already_stored: u64,
    /// Facts that could not be published and were skipped, as the policy says.
    pub skipped: u64,
    /// Facts that could not be published and went to the dead-letter topic; `published` counts them, too.
    pub dead_lettered: u64,
    /// How often consumers see a fact; none before the relay has begun.
    pub delivery: Option<Delivery>,
    /// Where its Kafka transactions stand, with [`Delivery::ExactlyOnce`].
    pub transaction: Option<&'static str>,
    /// Log lines dropped because nobody read them.
    pub dropped_log_lines: u64,
    /// The exit code that the process ends with, once it has failed for good.
    pub exit_code: Option<u8>,
}

/// `DELIVERY`, as in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// Repeats after a fault are recognised by their position.
    AtLeastOnce,
    /// Each fact once, to who reads committed records.
    ExactlyOnce,
}

/// What the relay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing was contacted yet.
    Starting,
    /// PostgreSQL or Kafka is not reached yet, or not reached any more.
    Connecting,
    /// Another relay has the slot.
    WaitingForSlot,
    /// Facts flow.
    Streaming,
    /// Kafka does not take what was read: reading has paused, or the connection was given up.
    Stalled,
    /// A fact cannot be published, and the policy is to wait for a person.
    Halted,
    /// Asked to stop: finishing what was read.
    Stopping,
    /// It cannot go on: the process ends with its exit code.
    Failed,
}

impl State {
    /// What metrics call them, in the order of declaration.
    pub(super) const NAMES: &[&str] = &[
        "starting",
        "connecting",
        "waiting_for_slot",
        "streaming",
        "stalled",
        "halted",
        "stopping",
        "failed",
    ];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Connecting => "connecting",
            Self::WaitingForSlot => "waiting_for_slot",
            Self::Streaming => "streaming",
            Self::Stalled => "stalled",
            Self::Halted => "halted",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

/// What holds everything up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// The topic, if the fact could be read so far.
    pub topic: Option<String>,
    /// The partition, if it is known.
    pub partition: Option<i32>,
    /// The fact's position, as in the `factlib_position` header.
    pub position: String,
    /// Why, and what to do.
    pub reason: String,
    /// Since when.
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
}

pub(super) fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

/// The board: the relay writes, the health port reads. Neither waits for the other for longer than
/// it takes to copy a [`Snapshot`] or a pointer.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds from `started` to the last sign of life.
    beat: AtomicU64,
    silence_max: Duration,
    snapshot: Mutex<Snapshot>,
    counted: Mutex<Counted>,
    slot: Mutex<Option<Arc<SlotFacts>>>,
    slot_poll_failures: AtomicU64,
    /// How often the stream was begun.
    streams: AtomicU64,
    /// How the server divides its log; none before it was asked.
    pages: Mutex<Option<Pages>>,
    past: Mutex<Past>,
    dropped: OnceLock<ErrorCounter>,
}

/// What was counted, and where the relay stood then.
#[derive(Debug, Clone, Default)]
struct Counted {
    metrics: Arc<Metrics>,
    standing: Option<Arc<Standing>>,
}

/// What the page shows of the last minutes.
#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    pub(super) history: History,
    pub(super) news: News,
}

impl Health {
    /// A board for the relay on this slot, which is starting.
    pub fn new(slot: impl Into<String>) -> Self {
        Self::with_silence_max(slot, SILENCE_MAX)
    }

    pub(super) fn with_silence_max(slot: impl Into<String>, silence_max: Duration) -> Self {
        Self {
            started: monotonic(),
            beat: AtomicU64::new(0),
            silence_max,
            snapshot: Mutex::new(Snapshot {
                ready: false,
                state: State::Starting,
                reason: None,
                since: now(),
                slot: slot.into(),
                blocked: None,
                received_lsn: None,
                confirmed_lsn: None,
                in_flight_bytes: 0,
                published: 0,
                already_stored: 0,
                skipped: 0,
                dead_lettered: 0,
                delivery: None,
                transaction: None,
                dropped_log_lines: 0,
                exit_code: None,
            }),
            counted: Mutex::default(),
            slot: Mutex::default(),
            slot_poll_failures: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            pages: Mutex::default(),
            past: Mutex::default(),
            dropped: OnceLock::new(),
        }
    }

    /// Says that the main loop moves; wanted at least every 10 s. Cheap: one clock and one store.
    pub fn beat(&self) {
        self.beat.store(self.age_ms(), Ordering::Relaxed);
    }

    /// Shows a new snapshot. `since` is the moment of the last change of state or readiness,
    /// whatever the caller put there. It is a sign of life too.
    pub fn set(&self, mut snapshot: Snapshot) {
        self.beat();
        let mut shown = lock(&self.snapshot);
        let same = (shown.state, shown.ready) == (snapshot.state, snapshot.ready);
        snapshot.since = if same { shown.since } else { now() };
        *shown = snapshot;
    }

    /// What is shown, for changing a part of it.
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.snapshot).clone()
    }

    /// The relay cannot go on, for this reason; the process ends with this exit code.
    pub fn fail(&self, reason: &str, exit_code: u8) {
        self.set(Snapshot {
            ready: false,
            state: State::Failed,
            reason: Some(reason.to_owned()),
            exit_code: Some(exit_code),
            ..self.snapshot()
        });
    }

    /// Shows what was counted, and where the relay stands.
    pub fn count(&self, metrics: Metrics, standing: Standing) {
        let published = metrics.published_facts();
        *lock(&self.counted) =
            Counted { metrics: Arc::new(metrics), standing: Some(Arc::new(standing)) };
        let at = monotonic();
        // Looked at outside of the lock, because a view takes others.
        if lock(&self.past).history.is_due(at) {
            let view = self.view();
            lock(&self.past).history.add(at, published, &view);
        }
    }

    /// Something happened that people want to know.
    pub fn tell(&self, level: tracing::Level, sentence: String) {
        lock(&self.past).news.add(now(), level, sentence);
    }

    /// The server said this of the slot, or that there is none.
    pub fn slot_polled(&self, found: Option<SlotFacts>) {
        *lock(&self.slot) = found.map(Arc::new);
    }

    /// The server could not be asked: what it said before is old.
    pub fn slot_not_polled(&self) {
        self.slot_poll_failures.fetch_add(1, Ordering::Relaxed);
        *lock(&self.slot) = None;
    }

    /// A stream has begun, perhaps at another server.
    pub fn stream_begun(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    /// So the server divides its log.
    pub fn pages(&self, pages: Pages) {
        *lock(&self.pages) = Some(pages);
    }

    /// What must be confirmed so that everything before `lsn` is.
    pub(super) fn wanted(&self, lsn: Lsn) -> Lsn {
        lock(&self.pages).map_or(lsn, |pages| pages.wanted(lsn))
    }

    /// How many streams have begun.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// All that can be counted or measured, as of now.
    pub fn view(&self) -> View {
        let snapshot = self.snapshot();
        let (live, ready) = (self.ill(&snapshot).is_none(), self.is_ready(&snapshot));
        let Counted { metrics, standing } = lock(&self.counted).clone();
        let unix = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        View {
            metrics,
            standing,
            slot: lock(&self.slot).clone(),
            slot_poll_failures: self.slot_poll_failures.load(Ordering::Relaxed),
            ready,
            live,
            state: snapshot.state.name(),
            states: State::NAMES,
            exit_code: snapshot.exit_code,
            dropped_log_lines: self.dropped_lines(),
            slot_name: snapshot.slot,
            now: monotonic(),
            clock: Timestamp::from_unix_micros(i64::try_from(unix.as_micros()).unwrap_or(i64::MAX)),
        }
    }

    /// Where log lines are counted that nobody read. To be called once.
    pub fn count_dropped(&self, counter: ErrorCounter) {
        // A second log would be counted with the first.
        let _ = self.dropped.set(counter);
    }

    fn dropped_lines(&self) -> u64 {
        self.dropped.get().map_or(0, |counter| counter.dropped_lines() as u64)
    }

    pub(super) fn past(&self) -> Past {
        lock(&self.past).clone()
    }

    pub(super) fn uptime(&self) -> Duration {
        monotonic().duration_since(self.started)
    }

    /// How long the main loop has been silent, if that is too long.
    pub(super) fn hung(&self) -> Option<Duration> {
        let silence_ms = self.age_ms().saturating_sub(self.beat.load(Ordering::Relaxed));
        Some(Duration::from_millis(silence_ms)).filter(|silence| *silence > self.silence_max)
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(monotonic().duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// Why a restart is wanted, or comes by itself.
    fn ill(&self, snapshot: &Snapshot) -> Option<String> {
        match snapshot.state {
            State::Failed => Some(snapshot.reason.clone().unwrap_or_default()),
            _ => self.hung().map(hung_reason),
        }
    }

    fn is_ready(&self, snapshot: &Snapshot) -> bool {
        snapshot.ready && self.hung().is_none()
    }

    pub(super) fn liveness(&self) -> (bool, String) {
        let reason = self.ill(&self.snapshot());
        let live = reason.is_none();
        (live, serde_json::json!({ "live": live, "reason": reason }).to_string())
    }

    /// What is shown; of a main loop that hangs, that it does.
    pub(super) fn shown(&self) -> Snapshot {
        let mut snapshot = self.snapshot();
        snapshot.dropped_log_lines = self.dropped_lines();
        if snapshot.state != State::Failed
            && let Some(silence) = self.hung()
        {
            snapshot.ready = false;
            snapshot.reason = Some(hung_reason(silence));
        }
        snapshot
    }

    /// Whether it is ready, and why not; one that stands by for the slot is if `standby` says so.
    pub(super) fn readiness(&self, standby: bool) -> (bool, String) {
        let mut snapshot = self.shown();
        snapshot.ready |=
            standby && snapshot.state == State::WaitingForSlot && self.hung().is_none();
        // Only a map with keys that are no strings cannot be written.
        let body = serde_json::to_string(&snapshot).unwrap_or_default();
        (snapshot.ready, body)
    }
}

/// A panic elsewhere leaves what is still good: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hung_reason(silence: Duration) -> String {
    format!("the main loop has not moved for {}s; restart the process", silence.as_secs())
}

#[expect(clippy::disallowed_methods, reason = "the board is part of a driver")]
fn monotonic() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the board is part of a driver")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_moves_with_the_state_only() {
        let health = Health::new("factlib_slot");
        let first = health.snapshot();
        health.set(Snapshot { in_flight_bytes: 7, since: SystemTime::UNIX_EPOCH, ..first.clone() });
        assert_eq!(health.snapshot().since, first.since);
        std::thread::sleep(Duration::from_millis(2));
        health.set(Snapshot { state: State::Connecting, ..first.clone() });
        assert!(health.snapshot().since > first.since);
    }
}
