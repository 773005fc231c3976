//! Where the relay stands, for people: what health shows.

use super::engine::{Link, Relay};
use super::event::Halted;
use super::producer::{Blocked, TransactionState};
use super::tally::Kind;
use factlib_protocol::{Lsn, Timestamp};
use std::time::Instant;

/// What the relay is doing, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not connected to PostgreSQL, for this reason.
    Connecting(Option<String>),
    /// Another session has the slot.
    WaitingForSlot(String),
    /// Facts flow, or would.
    Streaming,
    /// A fact or a partition stops everything until somebody acts.
    Halted(Halted),
    /// Kafka does not take what was read, for this reason.
    Stalled(String),
    /// Finishing.
    Stopping,
}

/// So many blocked partitions are listed.
pub const BLOCKED_LISTED_MAX: usize = 20;

/// Where the relay stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it is doing.
    pub state: State,
    /// Highest position read in this session.
    pub received: Lsn,
    /// What may be forgotten by the server.
    pub confirmed: Lsn,
    /// What of it the server was told.
    pub told: Lsn,
    /// The end of the server's WAL, as far as it was told.
    pub wal_end: Lsn,
    /// Everything that the server had is read, settled and confirmed, or was nobody's of ours.
    pub is_caught_up: bool,
    /// When the oldest fact was committed that was read and is not settled, by the server's clock.
    pub oldest_commit: Option<Timestamp>,
    /// How far the server's clock is ahead of ours, in microseconds.
    pub server_ahead: i64,
    /// The server's timeline; 0 before it is known.
    pub timeline: u32,
    /// Facts that were read, by kind.
    pub kinds: Vec<Kind>,
    /// Those of further kinds: given to the producer, and given up.
    pub other_kinds: (u64, u64),
    /// Bytes that were read from PostgreSQL.
    pub received_bytes: u64,
    /// Encoded bytes without an acknowledgement.
    pub unsettled_bytes: usize,
    /// Facts without an acknowledgement.
    pub unsettled_facts: usize,
    /// Encoded bytes that take room in the window.
    pub window_bytes: u64,
    /// The window.
    pub window_limit: u64,
    /// Facts that were read again and not produced, because Kafka has them.
    pub already_stored: u64,
    /// The partition that has been in trouble for longest.
    pub blocked: Option<Blocked>,
    /// How many partitions are in trouble.
    pub blocked_count: usize,
    /// Those that have been for longest, at most [`BLOCKED_LISTED_MAX`].
    pub most_blocked: Vec<Blocked>,
    /// True once a broker has answered.
    pub kafka_reached: bool,
    /// Where Kafka transactions stand; none without them.
    pub transaction: Option<TransactionState>,
    /// Since when a Kafka transaction is open, if one may be.
    pub transaction_opened: Option<Instant>,
}

impl Relay {
    /// Where the relay stands at `now`.
    pub fn standing(&self, now: Instant) -> Standing {
        let (blocked_count, most_blocked) = self.producer.most_blocked(BLOCKED_LISTED_MAX);
        let blocked = most_blocked.first().cloned();
        let (received, told) = match &self.link {
            Link::Streaming(session) => {
                (session.feedback.received(), session.feedback.told().max(self.told))
            }
            _ => (Lsn::INVALID, self.told),
        };
        let is_ahead = self.is_ahead(received);
        let state = if self.stopping.is_some() {
            State::Stopping
        } else if let Some(halted) = &self.halted {
            State::Halted(halted.clone())
        } else if let Some(blocked) = blocked.as_ref().filter(|blocked| blocked.halted) {
            State::Halted(Halted {
                position: blocked.position,
                lsn: blocked.position.unit.lsn,
                topic: Some(blocked.topic.to_string()),
                reason: format!("partition {}: {}", blocked.partition, blocked.reason),
            })
        } else {
            match (&self.link, &self.slot_in_use) {
                (_, Some(cause)) => State::WaitingForSlot(cause.clone()),
                _ if self.stalled.is_some() => {
                    State::Stalled(self.stalled.clone().unwrap_or_default())
                }
                (Link::Streaming(_), _) if is_ahead => State::Stalled(format!(
                    "the slot stands at {}, which the server's log has not reached yet: facts committed before \
                     that are lost; stop what emits them, and make the log pass it",
                    self.ahead
                )),
                (Link::Streaming(_), _) => match &blocked {
                    // A retry or two is nothing to report; longer than a stall may last is.
                    Some(blocked) if now >= blocked.since + self.settings.stall_timeout => {
                        State::Stalled(Self::blocked_words(blocked))
                    }
                    _ => State::Streaming,
                },
                _ => State::Connecting(self.away_cause.clone()),
            }
        };
        // Of a place that the log has not reached nothing can be said to be in Kafka.
        let flush = self.ledger.flush();
        let confirmed = if is_ahead { flush.min(self.wal_flushed) } else { flush };
        Standing {
            state,
            received,
            confirmed,
            told,
            wal_end: self.wal_flushed.max(received).max(self.read_to),
            is_caught_up: !is_ahead && self.is_caught_up(),
            oldest_commit: self.producer.oldest_commit().into_iter().chain(self.open_since).min(),
            server_ahead: self.server_ahead,
            timeline: self.timelines.current(),
            kinds: self.tally.kinds().to_vec(),
            other_kinds: self.tally.others(),
            received_bytes: self.received_bytes,
            window_bytes: self.held() + self.ledger.untold(),
            window_limit: self.settings.in_flight_bytes_max as u64,
            unsettled_bytes: self.producer.unsettled_bytes(),
            unsettled_facts: self.producer.unsettled_facts(),
            already_stored: self.producer.already_stored(),
            blocked,
            blocked_count,
            most_blocked,
            kafka_reached: self.producer.reached(),
            transaction: self.producer.transaction_state(),
            transaction_opened: self.producer.transaction_opened(),
        }
    }

    /// Nothing of ours is on its way, as far as the server has said. A server that still reads others' log for us
    /// may find some.
    fn is_caught_up(&self) -> bool {
        let Link::Streaming(session) = &self.link else { return false };
        self.ledger.is_idle()
            && self.receive.is_empty()
            && !self.is_paused()
            && self.oversize.is_none()
            && session.feedback.received().max(self.ledger.flush()) >= self.wal_flushed
    }

    pub(super) fn blocked_words(blocked: &Blocked) -> String {
        let Blocked { partition, topic, reason, .. } = blocked;
        format!("partition {partition} of topic {topic} does not take what was read: {reason}")
    }
}
