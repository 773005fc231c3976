//! The engine's events in one sentence each, for the page's list of what happened last.

use crate::relay::event::{Event, GivenUp, Halted};
use crate::relay::poison::Policy;
use crate::relay::producer::Blocked;
use factlib_protocol::Lsn;
use std::time::Duration;
use tracing::Level;

/// What people read of an event; nothing of those that come all the time.
pub(super) fn sentence(event: &Event) -> Option<(Level, String)> {
    let told = match event {
        Event::Settled { .. } | Event::NotStored { .. } | Event::TransactionCommitted { .. } => {
            return None;
        }
        Event::Streaming { start, timeline } if *start == Lsn::INVALID => {
            (Level::INFO, format!("Streaming from where the slot stands, timeline {timeline}."))
        }
        Event::Streaming { start, timeline } => {
            (Level::INFO, format!("Streaming from {start}, timeline {timeline}."))
        }
        Event::Away { cause, delay, .. } => (
            Level::WARN,
            format!("Not connected to PostgreSQL ({cause}); again in {}.", short(*delay)),
        ),
        Event::SlotInUse { cause, .. } => {
            (Level::INFO, format!("Waiting for the slot, which another has: {cause}"))
        }
        Event::SlotMoved { from, to } => (
            Level::WARN,
            format!(
                "The slot is at {to}, further than this relay left it ({from}): another relay had it, or somebody advanced it."
            ),
        ),
        Event::SlotAhead { confirmed, wal_end } => (
            Level::ERROR,
            format!(
                "The slot stands at {confirmed}, {} bytes past the end of the server's log ({wal_end}): facts committed before it will not be published.",
                confirmed.0.saturating_sub(wal_end.0)
            ),
        ),
        Event::TimelineChanged { from, to } if to < from => (
            Level::ERROR,
            format!(
                "The server is on timeline {to} after {from}: an old primary that is still up?"
            ),
        ),
        Event::TimelineChanged { from, to } => {
            (Level::WARN, format!("A failover: timeline {to} after {from}."))
        }
        Event::ServerStopping { unsettled } => (
            Level::INFO,
            format!("PostgreSQL is shutting down; {unsettled} facts will be read again."),
        ),
        Event::Halted(Halted { lsn, topic, reason, .. }) => {
            let topic = topic.as_ref().map_or(String::new(), |topic| format!(" for topic {topic}"));
            (Level::ERROR, format!("Halted at the fact {lsn}{topic}: {reason}"))
        }
        Event::Foreign { prefix } => (
            Level::INFO,
            format!("Messages with the prefix {prefix} are passed over: it is not in WAL_PREFIX."),
        ),
        Event::PassedOver { position } => (
            Level::WARN,
            format!("The slot was moved past the fact {position}, which is not in Kafka."),
        ),
        Event::Resumed { position } => {
            (Level::INFO, format!("The fact {position}, which halted the relay, is published."))
        }
        Event::KafkaReached { brokers } => {
            (Level::INFO, format!("Kafka is reached, brokers: {brokers}."))
        }
        Event::KafkaUnreachable { cause } => {
            (Level::WARN, format!("No Kafka broker answers: {cause}"))
        }
        Event::ProducerId { id } => {
            (Level::INFO, format!("The idempotent producer is ready: id {id}."))
        }
        Event::NoProducerId { cause } => {
            (Level::WARN, format!("No producer id is to be had: {cause}"))
        }
        Event::TopicCreated { topic } => {
            (Level::INFO, format!("Topic {topic} was missing and is created."))
        }
        Event::TailRead { facts: 0, other: None, .. } => return None,
        Event::TailRead { topic, partition, facts, .. } => (
            Level::INFO,
            format!(
                "{topic}, partition {partition}, has {facts} facts that need not be published again."
            ),
        ),
        Event::TailUnread { topic, partition, cause } => (
            Level::WARN,
            format!("What {topic}, partition {partition}, has already is not known: {cause}"),
        ),
        Event::AlreadyStored { topic, partition, facts } => (
            Level::INFO,
            format!("{facts} facts of {topic}, partition {partition}, were there already."),
        ),
        Event::TopicMadeAnew { topic } => {
            (Level::WARN, format!("Topic {topic} was deleted and made anew."))
        }
        Event::TopicNotCreated { topic, cause } => {
            (Level::ERROR, format!("Topic {topic} is missing and is not created: {cause}"))
        }
        Event::PartitionBlocked { blocked, attempt } => {
            let Blocked { topic, partition, reason, halted, .. } = blocked;
            match halted {
                true => (
                    Level::ERROR,
                    format!("Halted: {topic}, partition {partition}, refuses a fact: {reason}"),
                ),
                false => (
                    Level::WARN,
                    format!(
                        "{topic}, partition {partition}, did not take a batch (attempt {attempt}): {reason}"
                    ),
                ),
            }
        }
        Event::PartitionRecovered { topic, partition, after } => (
            Level::INFO,
            format!(
                "{topic}, partition {partition}, takes batches again, after {}.",
                short(*after)
            ),
        ),
        Event::PartitionsChanged { topic, from, to } => (
            Level::WARN,
            format!("Topic {topic} has {to} partitions, and had {from}: keys may move."),
        ),
        Event::SequencesLost { topic, partition, cause, facts } => (
            Level::WARN,
            format!(
                "{topic}, partition {partition}: the sequence begins anew ({cause}); {facts} facts may be repeated."
            ),
        ),
        Event::GivenUp(GivenUp { policy, poison, facts, .. }) => {
            let what = match policy {
                Policy::DeadLetter => "Dead letters",
                Policy::Skip | Policy::Halt => "Skipped",
            };
            (Level::ERROR, format!("{what}, {facts}: {} ({})", poison.reason, poison.cause))
        }
        Event::Throttled { broker, throttle } => (
            Level::WARN,
            format!("Broker {broker} asks to be left alone for {}, by quota.", short(*throttle)),
        ),
        Event::Transactional { id, .. } => (Level::INFO, format!("Kafka transactions under {id}.")),
        Event::PositionRead { lsn, .. } => {
            (Level::INFO, format!("Facts up to {lsn} are in Kafka, and are not produced again."))
        }
        Event::PositionMissing { slot } => (
            Level::WARN,
            format!("Kafka keeps no position; reading starts where the slot stands ({slot})."),
        ),
        Event::PositionPassed { lsn, timeline, slot } => (
            Level::WARN,
            format!(
                "The position in Kafka ({lsn}, timeline {timeline}) is of what the server does not have; reading \
                 starts where the slot stands ({slot})."
            ),
        ),
        Event::PositionLost { .. } => (
            Level::ERROR,
            "The position in Kafka is gone: facts that were being committed may be seen twice."
                .to_owned(),
        ),
        Event::TransactionAborted { cause, .. } => (
            Level::WARN,
            format!("A Kafka transaction is ended ({cause}); its facts go again in another one."),
        ),
        Event::TransactionsRecovered { after } => {
            (Level::INFO, format!("Kafka transactions go on, after {}.", short(*after)))
        }
        Event::TransactionSplit { position, part, cause } => (
            Level::WARN,
            format!(
                "The transaction at {} goes in several Kafka transactions ({cause}); this is part {part}.",
                position.unit.lsn
            ),
        ),
        Event::TransactionsRefused { request, error, remedy } => {
            (Level::ERROR, format!("Kafka refuses {request:?} ({error}): {remedy}."))
        }
        // The end of the process says it.
        Event::Fenced { waits: false, .. } => return None,
        Event::Fenced { cause, waits: true } => (
            Level::WARN,
            format!("Another relay publishes in our place ({cause}); waiting for the slot."),
        ),
        Event::Stopping { unsettled } => {
            (Level::INFO, format!("Stopping; {unsettled} facts are to be settled first."))
        }
    };
    Some(told)
}

/// With three digits, roughly.
fn short(duration: Duration) -> humantime::FormattedDuration {
    let whole = if duration >= Duration::from_secs(10) {
        Duration::from_secs(duration.as_secs())
    } else {
        Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    };
    humantime::format_duration(whole)
}
