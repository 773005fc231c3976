//! Puts the engine's events and standing into words and numbers: log lines, the health board, metrics.

mod behind;
mod news;
mod repeats;

pub use behind::catching_up;

use crate::exit::ExitCode;
use crate::http::{self, Health, Snapshot};
use crate::metrics::Metrics;
use crate::relay::event::{Event, GivenUp, Halted, Phases};
use crate::relay::gone::{Exit, ExitKind};
use crate::relay::kafka::{Answer, Request};
use crate::relay::pages::Pages;
use crate::relay::poison::Policy;
use crate::relay::producer::{Blocked, TransactionState};
use crate::relay::{Standing, State};
use factlib_protocol::{Lsn, Timestamp};
use repeats::Repeats;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tracing::{debug, error, info, warn};

/// However much happens, what was counted is copied no more often, unless the state changes.
const COUNT_INTERVAL: Duration = Duration::from_millis(250);

/// Log, health and metrics of one relay.
#[derive(Debug)]
pub(crate) struct Report {
    slot: String,
    health: Arc<Health>,
    metrics: Metrics,
    /// When metrics were shown, and in which state.
    counted: Option<(Instant, http::State)>,
    /// What may be the last that is counted.
    is_last: bool,
    /// How far the server's clock is ahead of ours, in microseconds.
    server_ahead: i64,
    halted_since: Option<(Halted, SystemTime)>,
    repeats: Repeats,
    due: bool,
}

impl Report {
    pub(crate) fn new(slot: &str, health: Arc<Health>) -> Self {
        Self {
            slot: slot.to_owned(),
            health,
            metrics: Metrics::default(),
            counted: None,
            is_last: false,
            server_ahead: 0,
            halted_since: None,
            repeats: Repeats::default(),
            due: true,
        }
    }

    /// True when something happened that health should show at once.
    pub(crate) fn is_due(&self) -> bool {
        self.due
    }

    /// Publication and slot were made just now.
    pub(crate) fn created(&self, publication: &str, point: Lsn) {
        info!(
            slot = self.slot,
            publication,
            lsn = %point,
            "made publication and slot: facts committed from this point on are published, earlier ones \
             are not"
        );
    }

    /// So the server divides its log.
    pub(crate) fn pages(&self, pages: Pages) {
        self.health.pages(pages);
    }

    /// A request goes to Kafka.
    pub(crate) fn sent(&mut self, request: &Request, at: Instant) {
        self.metrics.sent(at, request);
    }

    /// A request to Kafka has come to its end.
    pub(crate) fn answered(&mut self, answer: &Answer, at: Instant) {
        self.metrics.answered(at, answer);
    }

    /// The relay has ended.
    pub(crate) fn ended(&self, exit: &Exit) {
        if !matches!(exit.kind, ExitKind::Stopped | ExitKind::Deadline) {
            let code = ExitCode::from(exit.kind);
            self.health.tell(tracing::Level::ERROR, format!("Ended: {}", exit.reason));
            self.health.fail(&exit.reason, code.number());
        }
    }

    /// One line for each change of state.
    pub(crate) fn event(&mut self, event: &Event) {
        self.metrics.event(event, self.server_clock());
        if let Some((level, sentence)) = news::sentence(event) {
            self.health.tell(level, sentence);
        }
        self.due |= !matches!(event, Event::Settled { .. } | Event::NotStored { .. });
        self.is_last |= matches!(event, Event::Fenced { waits: false, .. });
        if !self.repeats.admit(event, monotonic()) {
            return;
        }
        let slot = self.slot.as_str();
        match event {
            Event::Settled { .. } | Event::NotStored { .. } => {}
            Event::Streaming { start, timeline } => {
                self.health.stream_begun();
                info!(slot, lsn = %start, timeline, "streaming");
            }
            Event::Away { cause, delay, .. } => {
                warn!(slot, retry_in = ?delay, error = cause, "not connected to PostgreSQL");
            }
            Event::SlotInUse { cause, delay } => {
                info!(slot, every = ?delay, error = cause, "waiting for the slot, which another has");
            }
            Event::SlotMoved { from, to } => warn!(
                slot,
                lsn = %to,
                confirmed = %from,
                "the slot is further than this relay left it: another relay had it, or somebody \
                 advanced it; in the second case the facts between are not in Kafka"
            ),
            Event::SlotAhead { confirmed, wal_end } => error!(
                slot,
                lsn = %confirmed,
                %wal_end,
                bytes = confirmed.0 - wal_end.0,
                "the slot is confirmed up to a place that the server's log has not reached yet; facts committed \
                 before that place will never be published: stop what emits them, make the log pass it (SELECT \
                 pg_switch_wal(), or messages of a prefix that is nobody's), and let them go on"
            ),
            Event::TimelineChanged { from, to } if to < from => error!(
                slot,
                from,
                to,
                "the server is on an older timeline than before: an old primary that is still up? Consumers take the \
                 positions of its facts for repeats"
            ),
            Event::TimelineChanged { from, to } => {
                warn!(slot, from, to, "the server is on another timeline: a failover");
            }
            Event::ServerStopping { unsettled } => {
                info!(slot, unsettled, "PostgreSQL is shutting down; letting it go");
            }
            Event::Halted(halted) => error!(
                slot,
                lsn = %halted.lsn,
                position = %halted.position,
                topic = halted.topic,
                error = halted.reason,
                "halted: this fact cannot be published, and nothing after it is"
            ),
            Event::Foreign { prefix } => info!(
                prefix,
                "messages with this prefix are passed over; if they are this service's, add it to WAL_PREFIX"
            ),
            Event::PassedOver { position } => warn!(
                slot,
                %position,
                "the slot was moved past the fact that halted the relay: it is not in Kafka"
            ),
            Event::Resumed { position } => {
                info!(slot, %position, "the fact that halted the relay is published");
            }
            Event::KafkaReached { brokers } => info!(brokers, "Kafka is reached"),
            Event::KafkaUnreachable { cause } => warn!(error = cause, "no Kafka broker answers"),
            Event::ProducerId { id } => info!(producer_id = id, "idempotent producer is ready"),
            Event::NoProducerId { cause } => warn!(error = cause, "no producer id to be had"),
            Event::TopicCreated { topic } => info!(%topic, "the topic was missing and is created"),
            Event::TopicMadeAnew { topic } => {
                warn!(
                    %topic,
                    "the topic was deleted and made anew: what was in it is gone, and what is not stored yet \
                     goes to the new one"
                );
            }
            Event::TopicNotCreated { topic, cause } => {
                error!(%topic, error = cause, "the topic is missing and is not created");
            }
            Event::PartitionBlocked { blocked, attempt } => {
                let Blocked { topic, partition, position, reason, halted, .. } = blocked;
                if *halted {
                    error!(
                        %topic, partition, %position, attempt, error = reason,
                        "halted: Kafka refuses this fact, and nothing after it is confirmed"
                    );
                } else {
                    warn!(%topic, partition, %position, attempt, error = reason, "produce is repeated");
                }
            }
            Event::PartitionRecovered { topic, partition, after } => {
                info!(%topic, partition, ?after, "produce goes on");
            }
            Event::PartitionsChanged { topic, from, to } => warn!(
                %topic, from, to,
                "the topic's partitions have changed; once what waits for it is stored, keys may move to others"
            ),
            Event::SequencesLost { topic, partition, cause, facts } => warn!(
                %topic, partition, cause, facts,
                "the producer's sequence begins anew in this partition; so many facts may be repeated"
            ),
            Event::TailRead { topic, partition, facts: 0, other: None } => {
                debug!(%topic, partition, "the partition has nothing that may be read again");
            }
            Event::TailRead { topic, partition, facts, other } => info!(
                %topic, partition, facts, other_source = other,
                "the partition has so many facts that may be read again: they are not produced again"
            ),
            Event::TailUnread { topic, partition, cause } => warn!(
                %topic, partition, error = cause,
                "what the partition has cannot be read back: after a crash, facts may be repeated in it"
            ),
            Event::AlreadyStored { topic, partition, facts } => {
                info!(%topic, partition, facts, "facts that were there already are not repeated");
            }
            Event::GivenUp(given_up) => self.given_up(given_up),
            Event::Throttled { broker, throttle } => warn!(broker, ?throttle, "throttled by quota"),
            Event::Transactional { id, producer, version } => {
                info!(transactional_id = %id, producer_id = producer, ?version, "transactions are ours");
            }
            Event::PositionRead { lsn, fact } => {
                let position = fact.map(tracing::field::display);
                info!(slot, %lsn, position, "facts up to here are in Kafka, and are not produced again");
            }
            Event::PositionMissing { slot: stands } => warn!(
                slot,
                lsn = %stands,
                "Kafka keeps no position: a first start with DELIVERY=exactly-once, or it has expired or was deleted; \
                 reading starts where the slot stands"
            ),
            Event::PositionPassed { lsn, timeline, slot: stands } => warn!(
                slot,
                %lsn,
                timeline,
                stands = %stands,
                "the position in Kafka is of a part of another timeline that the server does not have; reading starts \
                 where the slot stands"
            ),
            Event::PositionLost { cause } => error!(
                slot,
                error = cause,
                "the position in Kafka is gone, while this relay runs: facts that were being committed may be seen twice"
            ),
            Event::TransactionCommitted { facts, bytes, position, phases } => {
                let Phases { producing, closing, ending } = phases;
                debug!(
                    slot, facts, bytes, lsn = %position, ?producing, ?closing, ?ending,
                    "committed in Kafka"
                );
            }
            Event::TransactionAborted { reason, cause } => {
                warn!(
                    slot,
                    reason = reason.as_str(),
                    error = cause,
                    "a Kafka transaction is ended, and its facts go again in another one"
                );
            }
            Event::TransactionsRecovered { after } => {
                info!(slot, ?after, "Kafka transactions go on");
            }
            Event::TransactionSplit { position, part, cause } => warn!(
                slot, %position, part, cause,
                "a transaction of PostgreSQL goes in several Kafka transactions: it is not atomic for consumers"
            ),
            Event::TransactionsRefused { request, error, remedy } => {
                error!(slot, ?request, error, remedy, "Kafka refuses what a transaction needs");
            }
            Event::Fenced { cause, waits: true } => warn!(
                slot,
                error = cause,
                "another relay publishes in our place; this one waits for the slot as its standby"
            ),
            // The end of the process says it.
            Event::Fenced { waits: false, .. } => {}
            Event::Stopping { unsettled } => {
                info!(slot, unsettled, "stopping: settling what was read");
            }
        }
    }

    fn given_up(&self, given_up: &GivenUp) {
        let GivenUp { policy, poison, partition, position, facts, .. } = given_up;
        let (slot, cause, topic) = (&self.slot, poison.cause.as_str(), poison.topic.as_deref());
        let reason = &poison.reason;
        if *policy == Policy::DeadLetter {
            error!(
                slot, topic, partition, %position, facts, cause, error = reason,
                "dead letter: facts that cannot be published go to the dead-letter topic"
            );
        } else {
            error!(
                slot, topic, partition, %position, facts, cause, error = reason,
                "skipped: facts that cannot be published are not in Kafka"
            );
        }
    }

    fn server_clock(&self) -> Timestamp {
        let unix = wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(unix.as_micros()).unwrap_or(i64::MAX);
        let ours = Timestamp::from_unix_micros(micros);
        Timestamp(ours.0.saturating_add(self.server_ahead))
    }

    /// Shows where the relay stands, and what was counted.
    pub(crate) fn standing(&mut self, standing: &Standing, now: Instant) {
        self.due = false;
        for (what, topic, lines) in self.repeats.withheld(now) {
            info!(topic = topic.as_deref(), lines, "so many lines were not written: {what}");
        }
        self.server_ahead = standing.server_ahead;
        let (state, reason) = match &standing.state {
            State::Connecting(cause) => (http::State::Connecting, cause.clone()),
            State::WaitingForSlot(cause) => (http::State::WaitingForSlot, Some(cause.clone())),
            State::Streaming if !standing.kafka_reached => {
                (http::State::Connecting, Some("no Kafka broker has answered yet".to_owned()))
            }
            State::Streaming => (http::State::Streaming, None),
            State::Halted(halted) => (http::State::Halted, Some(halted.reason.clone())),
            State::Stalled(reason) => (http::State::Stalled, Some(reason.clone())),
            State::Stopping => (http::State::Stopping, Some("asked to stop".to_owned())),
        };
        let ready = state == http::State::Streaming;
        let blocked = self.blocked(standing, now);
        let lsn =
            |lsn: Lsn| Some(lsn).filter(|lsn| *lsn != Lsn::INVALID).map(|lsn| lsn.to_string());
        let shown = self.health.snapshot();
        self.health.set(Snapshot {
            ready,
            state,
            reason,
            blocked,
            received_lsn: lsn(standing.received),
            confirmed_lsn: lsn(standing.confirmed),
            in_flight_bytes: standing.unsettled_bytes as u64,
            published: self.metrics.published_facts(),
            already_stored: standing.already_stored,
            skipped: self.metrics.skipped_facts(),
            dead_lettered: self.metrics.dead_lettered_facts(),
            delivery: Some(match standing.transaction {
                Some(_) => http::Delivery::ExactlyOnce,
                None => http::Delivery::AtLeastOnce,
            }),
            transaction: standing.transaction.map(TransactionState::as_str),
            ..shown
        });
        self.count(standing, state, now);
    }

    fn count(&mut self, standing: &Standing, state: http::State, now: Instant) {
        let before = self.counted.map(|(_, state)| state);
        if before != Some(state) {
            match state {
                http::State::Stalled => self.metrics.stalled(),
                http::State::Halted => self.metrics.halted(),
                _ => {}
            }
        } else if !self.is_last && self.counted.is_some_and(|(at, _)| now < at + COUNT_INTERVAL) {
            // A second later at the latest it is called again.
            return;
        }
        self.counted = Some((now, state));
        self.health.count(self.metrics.clone(), standing.clone());
    }

    fn blocked(&mut self, standing: &Standing, now: Instant) -> Option<http::Blocked> {
        let clock = wall_clock();
        if let State::Halted(halted) = &standing.state
            && standing.blocked.as_ref().is_none_or(|blocked| !blocked.halted)
        {
            let known = self.halted_since.take().filter(|(known, _)| known == halted);
            let (_, since) = self.halted_since.insert(known.unwrap_or((halted.clone(), clock)));
            return Some(http::Blocked {
                topic: halted.topic.clone(),
                partition: None,
                position: halted.position.to_string(),
                reason: halted.reason.clone(),
                since: *since,
            });
        }
        self.halted_since = None;
        let blocked = standing.blocked.as_ref()?;
        let age = now.saturating_duration_since(blocked.since);
        Some(http::Blocked {
            topic: Some(blocked.topic.to_string()),
            partition: Some(blocked.partition),
            position: blocked.position.to_string(),
            reason: blocked.reason.clone(),
            since: clock.checked_sub(age).unwrap_or(clock),
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "what people read is in wall-clock time")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "how often lines are written is no decision of the engine's"
)]
fn monotonic() -> Instant {
    Instant::now()
}
