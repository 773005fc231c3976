//! One stay in COPY mode: what is being read, and what is told to the server.

use super::position::Unit;
use factlib_protocol::feedback::{Feedback, FeedbackPolicy};
use factlib_protocol::{Lsn, Timestamp, pgoutput};
use std::time::{Duration, Instant};

/// The transaction that is being read.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) unit: Unit,
    pub(super) commit_timestamp: Timestamp,
    /// Index of the next message, whatever its prefix.
    pub(super) next_index: u32,
}

/// The state of one stream, from CopyBothResponse to its end.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) decoder: pgoutput::Decoder,
    pub(super) transaction: Option<Transaction>,
    /// The unit read last, to notice a stream that is out of order.
    pub(super) last_unit: Option<Unit>,
    pub(super) feedback: Feedback<Instant>,
    /// When it began, and what was confirmed then.
    pub(super) begun: Instant,
    pub(super) begun_at: Lsn,
}

impl Session {
    /// `asked_at` is when START_REPLICATION was sent.
    pub(super) fn new(asked_at: Instant, status_interval: Duration, confirmed: Lsn) -> Self {
        let policy = FeedbackPolicy { status_interval, ..FeedbackPolicy::default() };
        Self {
            decoder: pgoutput::Decoder::default(),
            transaction: None,
            last_unit: None,
            feedback: Feedback::new(policy, asked_at),
            begun: asked_at,
            begun_at: confirmed,
        }
    }

    /// Until when the slot is surely ours: the server cannot have given it to another one before.
    pub(super) fn lease_until(&self, lease: Duration) -> Instant {
        self.feedback.alive_since() + lease
    }
}
