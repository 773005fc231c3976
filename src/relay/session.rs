//! One stay in COPY mode: what was read, what to tell the server and when, and how long the slot is
//! surely ours.

use super::position::Unit;
use bytes::BytesMut;
use factlib_protocol::replication::{PrimaryKeepalive, StandbyStatusUpdate};
use factlib_protocol::{Lsn, Timestamp, pgoutput};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long an advance of the flush LSN may wait for company before it is reported.
const ADVANCE_DELAY: Duration = Duration::from_millis(250);

/// How long an unanswered ping waits before the next one. The server reads our messages only every
/// half `wal_sender_timeout` while it decodes a large transaction of other people's rows; a ping
/// that is fresh at that moment keeps the lease alive.
const PING_AGAIN: Duration = Duration::from_secs(1);

/// A server that waits for our confirmation to stop pings as fast as it is answered (more than
/// 10,000 times a second, measured); this bounds it.
const REPLY_INTERVAL_STOPPING: Duration = Duration::from_millis(10);

/// Ordinary pings of one position are half a `wal_sender_timeout` apart; those of a server that
/// wants to stop come at once.
const STOPPING_PINGS_WITHIN: Duration = Duration::from_secs(1);

/// How long a stopping server waits for facts that are on their way to Kafka before it is let go
/// without their confirmation. They stay in the slot.
const STOPPING_GRACE: Duration = Duration::from_secs(1);

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
    /// Highest position read.
    received: Lsn,
    status_at: Option<Instant>,
    flush_sent: Lsn,
    /// Bytes that were settled since the flush LSN that the server was told last.
    untold_bytes: usize,
    untold_bytes_max: usize,
    reply_due: bool,
    /// When each unanswered ping was sent, oldest first.
    pings: VecDeque<Instant>,
    ping_at: Option<Instant>,
    /// When the newest answered ping was sent.
    lease_from: Instant,
    last_request: Option<(Lsn, Instant)>,
    server_stopping: Option<Instant>,
}

impl Session {
    /// `asked_at` is when START_REPLICATION was sent: CopyBothResponse is an answer to it. When
    /// `untold_bytes_max` are settled, the server is told without delay.
    pub(super) fn new(asked_at: Instant, untold_bytes_max: usize) -> Self {
        Self {
            decoder: pgoutput::Decoder::default(),
            transaction: None,
            last_unit: None,
            received: Lsn::INVALID,
            status_at: None,
            flush_sent: Lsn::INVALID,
            untold_bytes: 0,
            untold_bytes_max,
            reply_due: false,
            pings: VecDeque::new(),
            ping_at: None,
            lease_from: asked_at,
            last_request: None,
            server_stopping: None,
        }
    }

    /// Highest position read in this session.
    pub(super) fn received(&self) -> Lsn {
        self.received
    }

    /// The flush LSN that the server was told last.
    pub(super) fn told(&self) -> Lsn {
        self.flush_sent
    }

    /// Something up to `lsn` was read.
    pub(super) fn receive(&mut self, lsn: Lsn) {
        self.received = self.received.max(lsn);
    }

    /// So many bytes are settled.
    pub(super) fn settled(&mut self, bytes: usize) {
        self.untold_bytes = self.untold_bytes.saturating_add(bytes);
    }

    /// Data came, so the server is not at its end.
    pub(super) fn data(&mut self) {
        self.server_stopping = None;
    }

    pub(super) fn keepalive(&mut self, now: Instant, keepalive: &PrimaryKeepalive) -> Keepalive {
        self.receive(keepalive.wal_end);
        if !keepalive.reply_requested {
            if let Some(sent) = self.pings.pop_front() {
                self.lease_from = self.lease_from.max(sent);
            }
            return Keepalive::Nothing;
        }
        self.reply_due = true;
        let before = self.last_request.replace((keepalive.wal_end, now));
        let repeated = before.is_some_and(|(wal_end, at)| {
            wal_end == keepalive.wal_end && now < at + STOPPING_PINGS_WITHIN
        });
        if repeated && self.server_stopping.is_none() {
            self.server_stopping = Some(now);
            return Keepalive::ServerStopping;
        }
        Keepalive::Nothing
    }

    /// Until when the slot is surely ours: the server cannot have given it to another one before.
    pub(super) fn lease_until(&self, lease: Duration) -> Instant {
        self.lease_from + lease
    }

    /// True when every ping was answered and the server was told of `flush`.
    pub(super) fn is_confirmed(&self, flush: Lsn) -> bool {
        self.pings.is_empty() && self.flush_sent == flush && self.status_at.is_some()
    }

    /// When the next status is due.
    pub(super) fn status_due(&self, flush: Lsn, interval: Duration) -> Option<Instant> {
        let status_at = self.status_at?;
        let ping_after = if self.pings.is_empty() { interval } else { PING_AGAIN.min(interval) };
        let mut due = self.ping_at.map_or(status_at, |at| at + ping_after);
        if flush > self.flush_sent {
            // What is not told is repeated after a crash, and on the way to a fast Kafka much more
            // than a window can be settled within the delay.
            let untold = self.untold_bytes >= self.untold_bytes_max;
            let wait = if untold { Duration::ZERO } else { ADVANCE_DELAY };
            due = due.min(status_at + wait);
        }
        if self.reply_due {
            let wait = self.server_stopping.map_or(Duration::ZERO, |_| REPLY_INTERVAL_STOPPING);
            due = due.min(status_at + wait);
        }
        Some(due)
    }

    /// Writes a status to `out` if one is due.
    pub(super) fn status_if_due(&mut self, now: &Status, interval: Duration, out: &mut BytesMut) {
        let due = self.status_due(now.flush, interval);
        if due.is_some_and(|due| due > now.at) {
            return;
        }
        let ping_after = if self.pings.is_empty() { interval } else { PING_AGAIN.min(interval) };
        let ping = self.ping_at.is_none_or(|at| at + ping_after <= now.at);
        self.status(now, ping, out);
    }

    /// Writes a status to `out`.
    pub(super) fn status(&mut self, now: &Status, ping: bool, out: &mut BytesMut) {
        // A server that stops waits until what it sent is flushed. While it cannot be, "no opinion"
        // on flush and the whole of it written lets it go, and the slot stays where it is.
        let let_go = self.server_stopping.is_some_and(|since| now.at >= since + STOPPING_GRACE);
        let unconfirmed = now.flush < self.received;
        // What has been settled since it was told last is told first: the server may not come back.
        let untold = now.flush > self.flush_sent;
        let flush = if let_go && unconfirmed && !untold { Lsn::INVALID } else { now.flush };
        let update = StandbyStatusUpdate {
            write: self.received.max(flush),
            flush,
            apply: flush,
            clock: now.clock,
            reply_requested: ping,
        };
        update.encode(out);
        if flush != Lsn::INVALID {
            self.flush_sent = flush;
        }
        self.untold_bytes = 0;
        self.status_at = Some(now.at);
        self.reply_due = false;
        if ping {
            self.ping_at = Some(now.at);
            self.pings.push_back(now.at);
        }
    }
}

/// What goes into a status.
pub(super) struct Status {
    pub(super) at: Instant,
    pub(super) clock: Timestamp,
    pub(super) flush: Lsn,
}

/// What a keepalive revealed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Keepalive {
    Nothing,
    /// For the first time in this session it is plain that the server wants to stop.
    ServerStopping,
}
