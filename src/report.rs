//! Puts the engine's events and standing into words: log lines and the health board.

use crate::http::{self, Health, Snapshot};
use crate::relay::event::{Event, GivenUp, Halted};
use crate::relay::poison::Policy;
use crate::relay::producer::Blocked;
use crate::relay::{Standing, State};
use factlib_protocol::Lsn;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tracing::{error, info, warn};

/// Log and health of one relay.
#[derive(Debug)]
pub(crate) struct Report {
    slot: String,
    health: Arc<Health>,
    published: u64,
    skipped: u64,
    dead_lettered: u64,
    halted_since: Option<(Halted, SystemTime)>,
    due: bool,
}

impl Report {
    pub(crate) fn new(slot: &str, health: Arc<Health>) -> Self {
        Self {
            slot: slot.to_owned(),
            health,
            published: 0,
            skipped: 0,
            dead_lettered: 0,
            halted_since: None,
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

    /// One line for each change of state.
    pub(crate) fn event(&mut self, event: &Event) {
        let slot = self.slot.as_str();
        self.due |= !matches!(event, Event::Settled { .. } | Event::NotStored { .. });
        match event {
            Event::Settled { facts, .. } => self.published += *facts as u64,
            Event::Streaming { start, timeline } => {
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
            Event::NotStored { .. } => {}
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
            Event::GivenUp(given_up) => self.given_up(given_up),
            Event::Throttled { broker, throttle } => warn!(broker, ?throttle, "throttled by quota"),
            Event::Stopping { unsettled } => {
                info!(slot, unsettled, "stopping: settling what was read");
            }
        }
    }

    fn given_up(&mut self, given_up: &GivenUp) {
        let GivenUp { policy, poison, partition, position, facts, .. } = given_up;
        let (slot, cause, topic) = (&self.slot, poison.cause.as_str(), poison.topic.as_deref());
        let reason = &poison.reason;
        if *policy == Policy::DeadLetter {
            self.dead_lettered += *facts as u64;
            error!(
                slot, topic, partition, %position, facts, cause, error = reason,
                "dead letter: facts that cannot be published go to the dead-letter topic"
            );
        } else {
            self.skipped += *facts as u64;
            error!(
                slot, topic, partition, %position, facts, cause, error = reason,
                "skipped: facts that cannot be published are not in Kafka"
            );
        }
    }

    /// Shows where the relay stands.
    pub(crate) fn standing(&mut self, standing: &Standing, now: Instant) {
        self.due = false;
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
            published: self.published,
            skipped: self.skipped,
            dead_lettered: self.dead_lettered,
            ..shown
        });
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
