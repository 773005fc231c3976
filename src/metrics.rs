//! What is counted: plain numbers, written by the relay's own thread and copied for whoever asks.
//!
//! ```text
//!  engine ──events, a standing a second──▶ Metrics ──a copy a second──▶ board ◀── scrape, page
//! ```
//!
//! Nothing is counted under a lock, and nothing waits for a scrape: once a second the numbers are copied for
//! the [board](crate::http::Health), and the text is made from the copy, on the health port's thread. So what a
//! scrape shows may be a second old. Labels are bounded, whatever services emit: [`TOPICS_LABELLED_MAX`],
//! [`KINDS_MAX`](crate::relay::KINDS_MAX).

mod histogram;
mod process;
mod render;
mod requests;
mod slot;
mod table;
mod topics;
mod transactions;

pub use render::{Format, View, render};
pub use slot::{OtherSlots, SlotFacts, WalRate};
pub use table::markdown;
pub use topics::{NONE, OTHER, TOPICS_LABELLED_MAX};

use crate::relay::batch::Committed;
use crate::relay::event::{End, Event};
use crate::relay::kafka::{Answer, Request};
use crate::relay::poison::Policy;
use factlib_protocol::Timestamp;
use histogram::{BYTES, Histogram, RECORDS, SECONDS};
use requests::Requests;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use topics::Topics;
use transactions::Transactions;

/// What was counted since the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    topics: Topics,
    requests: Requests,
    batch_records: Histogram,
    batch_bytes: Histogram,
    commit_to_ack: Histogram,
    /// Batches that were not stored when they were sent, by Kafka's error.
    not_stored: BTreeMap<&'static str, u64>,
    ends: BTreeMap<&'static str, u64>,
    streams: u64,
    slot_waits: u64,
    slot_moves: u64,
    timeline_changes: u64,
    halts: u64,
    stalls: u64,
    sequences_lost: u64,
    facts_maybe_repeated: u64,
    throttled: Duration,
    topics_created: u64,
    topics_not_created: u64,
    transactions: Transactions,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            topics: Topics::default(),
            requests: Requests::default(),
            batch_records: Histogram::new(RECORDS),
            batch_bytes: Histogram::new(BYTES),
            commit_to_ack: Histogram::new(SECONDS),
            not_stored: BTreeMap::new(),
            // So that a rate has something to begin with.
            ends: End::ALL.iter().map(|end| (end.as_str(), 0)).collect(),
            streams: 0,
            slot_waits: 0,
            slot_moves: 0,
            timeline_changes: 0,
            halts: 0,
            stalls: 0,
            sequences_lost: 0,
            facts_maybe_repeated: 0,
            throttled: Duration::ZERO,
            topics_created: 0,
            topics_not_created: 0,
            transactions: Transactions::default(),
        }
    }
}

impl Metrics {
    /// A request goes to Kafka.
    pub(crate) fn sent(&mut self, at: Instant, request: &Request) {
        self.requests.sent(at, request);
    }

    /// A request to Kafka has come to its end.
    pub(crate) fn answered(&mut self, at: Instant, answer: &Answer) {
        self.requests.answered(at, answer, &mut self.topics);
    }

    /// The relay is stalled, and was not.
    pub(crate) fn stalled(&mut self) {
        self.stalls += 1;
    }

    /// The relay is halted, and was not.
    pub(crate) fn halted(&mut self) {
        self.halts += 1;
    }

    /// Something happened, when the server's clock showed `server_clock`.
    pub(crate) fn event(&mut self, event: &Event, server_clock: Timestamp) {
        match event {
            Event::Settled { topic, facts, bytes, committed } => {
                if let Some(topic) = self.topics.of(topic) {
                    topic.published.add(*facts, *bytes);
                }
                #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                let (records, size) = (*facts as f64, *bytes as f64);
                self.batch_records.observe(records, 1);
                self.batch_bytes.observe(size, 1);
                if let Some(committed) = committed {
                    self.acknowledged(*facts as u64, *committed, server_clock);
                }
            }
            Event::NotStored { topic, error, facts } => {
                *self.not_stored.entry(error).or_default() += 1;
                if let Some(topic) = self.topics.of(topic) {
                    topic.not_stored += u64::try_from(*facts).unwrap_or(0);
                }
            }
            Event::GivenUp(given_up) => {
                let name = given_up.poison.topic.as_deref();
                let name = name.filter(|name| crate::relay::route::is_topic(name)).unwrap_or(NONE);
                if let Some(topic) = self.topics.of(name) {
                    let amount = match given_up.policy {
                        Policy::DeadLetter => &mut topic.dead_lettered,
                        Policy::Skip | Policy::Halt => &mut topic.skipped,
                    };
                    amount.add(given_up.facts, given_up.bytes);
                }
            }
            Event::Streaming { .. } => self.streams += 1,
            Event::Away { end, .. } => *self.ends.entry(end.as_str()).or_default() += 1,
            Event::SlotInUse { .. } => self.slot_waits += 1,
            Event::SlotMoved { .. } => self.slot_moves += 1,
            Event::TimelineChanged { .. } => self.timeline_changes += 1,
            Event::SequencesLost { facts, .. } => {
                self.sequences_lost += 1;
                self.facts_maybe_repeated += *facts as u64;
            }
            Event::Throttled { throttle, .. } => self.throttled += *throttle,
            Event::TopicCreated { .. } => self.topics_created += 1,
            Event::TopicNotCreated { .. } => self.topics_not_created += 1,
            event => self.transactions.event(event),
        }
    }

    /// Half of the facts count as old as the oldest, half as young as the youngest: only two commit times are
    /// kept of a batch. Of a batch with one fact, or one transaction, that is exact.
    fn acknowledged(&mut self, facts: u64, committed: Committed, now: Timestamp) {
        let age = |at: Timestamp| seconds_between(at, now);
        let young = facts / 2;
        self.commit_to_ack.observe(age(committed.first), facts - young);
        self.commit_to_ack.observe(age(committed.last), young);
    }

    pub(crate) fn published_facts(&self) -> u64 {
        self.topics.iter().map(|topic| topic.published.facts).sum()
    }

    pub(crate) fn skipped_facts(&self) -> u64 {
        self.topics.iter().map(|topic| topic.skipped.facts).sum()
    }

    pub(crate) fn dead_lettered_facts(&self) -> u64 {
        self.topics.iter().map(|topic| topic.dead_lettered.facts).sum()
    }

    /// Below this the middle one, and 99 of 100, of the delays from commit to acknowledgement lay.
    pub(crate) fn delays(&self) -> (Option<f64>, Option<f64>) {
        (self.commit_to_ack.quantile(0.5), self.commit_to_ack.quantile(0.99))
    }
}

/// From one moment to another by the same clock; 0 if that was set back.
pub(crate) fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    Duration::from_micros(u64::try_from(to.0.saturating_sub(from.0)).unwrap_or(0)).as_secs_f64()
}
