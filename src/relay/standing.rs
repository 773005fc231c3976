//! Where the relay stands, for people: what health shows.

use super::engine::{Link, Relay};
use super::event::Halted;
use super::producer::Blocked;
use factlib_protocol::Lsn;
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

/// Where the relay stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it is doing.
    pub state: State,
    /// Highest position read in this session.
    pub received: Lsn,
    /// What may be forgotten by the server.
    pub confirmed: Lsn,
    /// Encoded bytes without an acknowledgement.
    pub unsettled_bytes: usize,
    /// Facts without an acknowledgement.
    pub unsettled_facts: usize,
    /// The partition that has been in trouble for longest.
    pub blocked: Option<Blocked>,
    /// True once a broker has answered.
    pub kafka_reached: bool,
}

impl Relay {
    /// Where the relay stands at `now`.
    pub fn standing(&self, now: Instant) -> Standing {
        let blocked = self.producer.blocked();
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
        let received = match &self.link {
            Link::Streaming(session) => session.feedback.received(),
            _ => Lsn::INVALID,
        };
        Standing {
            state,
            received,
            confirmed: self.ledger.flush(),
            unsettled_bytes: self.producer.unsettled_bytes(),
            unsettled_facts: self.producer.unsettled_facts(),
            blocked,
            kafka_reached: self.producer.reached(),
        }
    }

    pub(super) fn blocked_words(blocked: &Blocked) -> String {
        let Blocked { partition, topic, reason, .. } = blocked;
        format!("partition {partition} of topic {topic} does not take what was read: {reason}")
    }
}
