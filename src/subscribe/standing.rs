//! Where a subscriber stands, for people and probes.

use super::delivery::Aggregate;
use factlib_protocol::Lsn;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// So many blocked aggregates are listed.
pub const BLOCKED_LISTED_MAX: usize = 20;

/// What a subscriber is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not connected to PostgreSQL, for this reason, if there is one yet. No handler is called.
    Connecting(Option<String>),
    /// Another session has the slot. No handler is called.
    WaitingForSlot(String),
    /// Facts flow, or would.
    Streaming,
    /// The window is full of facts whose handlers have not taken them, and none has for a while.
    Stalled(String),
    /// A fact ends the subscriber, as its policy says.
    Halted(String),
    /// Finishing: no handler is called any more.
    Stopping,
}

/// An aggregate whose next fact has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Which one; none for messages that are no facts.
    pub aggregate: Option<Arc<Aggregate>>,
    /// What was said last.
    pub error: String,
    /// How long it has been so.
    pub since: Duration,
    /// How often the fact was tried.
    pub attempts: u32,
    /// How many facts of it wait, this one included.
    pub facts: usize,
}

/// Where a subscriber stands. A copy is made once a second, and when something changes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// What it is doing.
    pub state: State,
    /// For how long it has been doing that, whatever the reason said meanwhile.
    pub state_for: Duration,
    /// How far the log was read in this session.
    pub received: Lsn,
    /// Everything before this is done with: the server may forget it.
    pub confirmed: Lsn,
    /// The end of the server's log, as far as it was told.
    pub wal_end: Lsn,
    /// Nothing is to be done, as far as is known.
    pub is_caught_up: bool,
    /// When the oldest fact that is not done with was committed, by the server's clock.
    pub oldest_commit: Option<SystemTime>,
    /// How long ago that was, by the same clock: the lag. None if nothing waits.
    pub lag: Option<Duration>,
    /// Facts that were read and are not done with.
    pub waiting: usize,
    /// Handlers under way.
    pub running: usize,
    /// The aggregate whose handler has been under way for longest, and for how long.
    pub slowest: Option<(Arc<Aggregate>, Duration)>,
    /// Facts that handlers took since the start.
    pub handled: u64,
    /// Facts that no handler is for.
    pub passed_over: u64,
    /// Facts, and messages that are none, that a callback took as dead letters.
    pub dead_letters: u64,
    /// Messages that are no facts and were skipped.
    pub skipped: u64,
    /// Calls that failed.
    pub failures: u64,
    /// How many aggregates are blocked.
    pub blocked_count: usize,
    /// Those that have been for longest, at most [`BLOCKED_LISTED_MAX`].
    pub blocked: Vec<Blocked>,
    /// Encoded bytes that take room in the window.
    pub window_bytes: u64,
    /// The window.
    pub window_limit: u64,
}

impl Standing {
    pub(super) fn before_the_start() -> Self {
        Self {
            state: State::Connecting(None),
            state_for: Duration::ZERO,
            received: Lsn::INVALID,
            confirmed: Lsn::INVALID,
            wal_end: Lsn::INVALID,
            is_caught_up: false,
            oldest_commit: None,
            lag: None,
            waiting: 0,
            running: 0,
            slowest: None,
            handled: 0,
            passed_over: 0,
            dead_letters: 0,
            skipped: 0,
            failures: 0,
            blocked_count: 0,
            blocked: Vec::new(),
            window_bytes: 0,
            window_limit: 0,
        }
    }

    /// True while facts flow, or would: what a readiness probe asks.
    pub fn is_ready(&self) -> bool {
        self.state == State::Streaming
    }

    /// Bytes of log that are written and not confirmed.
    pub fn lag_bytes(&self) -> u64 {
        self.wal_end.0.saturating_sub(self.confirmed.0)
    }
}
