//! The log, read through the relay's own engine beside a Kafka that has every topic and takes everything: what would
//! be published, without one.
//!
//! ```text
//!  temporary slot ──▶ engine ──Produce──▶ Along ──▶ each record, as it would be in Kafka
//! ```
//!
//! Batches go by topic. What is shown waits until the engine would confirm it, so that it is in delivery order.

use super::record::Record;
use crate::config::Config;
use crate::kafka::records;
use crate::postgres::{Ask, Temporary};
use crate::relay::compression::Compression;
use crate::relay::event::Event;
use crate::relay::gone::{Exit, ExitKind};
use crate::relay::kafka::{
    Answer, Broker, Metadata, PartitionAnswer, PartitionMetadata, ProducerId, Request,
    TopicMetadata, Unanswered,
};
use crate::relay::poison::{Policies, Policy};
use crate::relay::position::Position;
use crate::relay::seeded_bug::Seeded;
use crate::relay::{Relay, Settings, Standing};
use crate::run::{self, Surroundings, drive};
use factlib_protocol::Lsn;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// Where what cannot be published goes: no topic is called so.
pub(super) const NOWHERE: &str = "(nowhere)";

/// What waits for a commit may take so much memory. A transaction that is larger is shown by topic, in parts.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whether there is to be more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    Wanted,
    Enough,
}

/// What is to be read.
pub(super) struct Stretch {
    pub(super) slot: Temporary,
    /// Everything that was committed before this; without it, until there is enough or `stop`.
    pub(super) until: Option<Lsn>,
}

/// Calls `each` with the topic and the record of every fact, in delivery order, and `away` whenever the connection is
/// lost, which is tried for ever.
///
/// # Errors
///
/// Why it ended, if not because it was to.
pub(super) async fn read(
    config: &Config,
    stretch: Stretch,
    each: impl FnMut(&str, &Record) -> More,
    away: impl FnMut(&str),
    stop: impl Future<Output = ()>,
) -> Result<(), Exit> {
    let (answers, answered) = mpsc::unbounded_channel();
    let enough = Arc::new(Notify::new());
    let mut along = Along {
        answers,
        each,
        away,
        until: stretch.until,
        more: More::Wanted,
        held: BTreeMap::new(),
        held_bytes: 0,
        enough: Arc::clone(&enough),
        fault: None,
    };
    let relay = Relay::new(Settings {
        policies: Policies {
            general: Policy::DeadLetter,
            by_topic: Vec::new(),
            dead_letter_topic: Some(Arc::from(NOWHERE)),
        },
        create_topics: None,
        skip_stored: false,
        delivery: crate::relay::Delivery::AtLeastOnce,
        value_is_payload: false,
        timestamp_is_publish: false,
        compression: Compression::None,
        // Whoever calls has been let in by a walsender just now, and a new slot may have to wait for a transaction.
        startup_timeout: None,
        ..run::settings(config)
    });
    let attempts = AtomicU32::new(0);
    let ask = |known_system| Ask {
        // Anew at each attempt, because the server may not have noticed yet that the last one is over.
        slot: format!(
            "owlpost_looking_{}_{}",
            std::process::id(),
            attempts.fetch_add(1, Ordering::Relaxed)
        ),
        temporary: Some(stretch.slot.clone()),
        looks_on: true,
        ..run::ask(config, Seeded::default(), known_system, false)
    };
    let stop = async {
        tokio::select! {
            () = stop => {}
            () = enough.notified() => {}
        }
    };
    let exit = drive(relay, ask, answered, &mut along, stop).await;
    match (exit.kind, along.fault) {
        (_, Some(reason)) => Err(Exit { kind: ExitKind::Unsuitable, reason }),
        // The slot goes with the connection: what is confirmed to it is nobody's affair.
        (ExitKind::Stopped | ExitKind::Deadline, None) => Ok(()),
        _ => Err(exit),
    }
}

struct Along<E, A> {
    answers: mpsc::UnboundedSender<Answer>,
    each: E,
    away: A,
    until: Option<Lsn>,
    more: More,
    /// What was read and is not confirmed, with its topic.
    held: BTreeMap<Position, (Arc<str>, Record)>,
    held_bytes: usize,
    enough: Arc<Notify>,
    /// Why what the engine would produce cannot be read.
    fault: Option<String>,
}

impl<E: FnMut(&str, &Record) -> More, A> Along<E, A> {
    fn hold(&mut self, topic: &Arc<str>, batch: &[u8]) {
        let read = records(batch, |found| {
            if let Some(position) = found.position.and_then(Position::from_text) {
                let record = Record::of(&found);
                self.held_bytes += record.bytes();
                self.held.insert(position, (Arc::clone(topic), record));
            }
        });
        if let Err(what) = read {
            self.fault = Some(format!("what the relay would produce is no batch: {what}"));
            self.enough.notify_one();
        }
        if self.held_bytes > HELD_BYTES_MAX {
            self.release(|_| true);
        }
    }

    fn release(&mut self, is_due: impl Fn(Position) -> bool) {
        while self.more == More::Wanted
            && let Some(first) = self.held.first_entry().filter(|first| is_due(*first.key()))
        {
            let (topic, record) = first.remove();
            self.held_bytes -= record.bytes();
            self.more = (self.each)(&topic, &record);
        }
        if self.more == More::Enough {
            self.enough.notify_one();
        }
    }
}

impl<E: FnMut(&str, &Record) -> More, A: FnMut(&str)> Surroundings for Along<E, A> {
    fn send(&mut self, request: Request) {
        let answer = match request {
            Request::Metadata { topics } => Answer::Metadata(Ok(Metadata {
                cluster_id: None,
                brokers: vec![Broker { id: 0, host: String::new(), port: 0 }],
                topics: topics.iter().map(there).collect(),
            })),
            Request::InitProducerId => Answer::ProducerId(Ok(Ok(ProducerId { id: 0, epoch: 0 }))),
            Request::CreateTopics { topics } => Answer::TopicsCreated {
                answer: Ok(vec![Ok(()); topics.len()]),
                topics: topics.into_iter().map(|(topic, _)| topic).collect(),
            },
            Request::Produce { broker, batches, .. } => {
                let mut partitions = Vec::with_capacity(batches.len());
                for batch in batches {
                    self.hold(&batch.topic, &batch.batch);
                    partitions.push(PartitionAnswer {
                        topic: batch.topic,
                        partition: batch.partition,
                        base_sequence: batch.base_sequence,
                        error: 0,
                        base_offset: -1,
                    });
                }
                Answer::Produced { broker, partitions, throttle: Duration::ZERO }
            }
            // Tail, and what transactions need: they are not asked for.
            request => request.unanswered(Unanswered("this Kafka remembers nothing".to_owned())),
        };
        // Nobody listens: the engine has ended.
        let _ = self.answers.send(answer);
    }

    fn lease_until(&mut self, _: Instant) {}

    fn event(&mut self, event: &Event) {
        match event {
            Event::Away { cause, .. } => (self.away)(cause),
            event => tracing::debug!(?event, "looking on"),
        }
    }

    fn created(&mut self, _: Lsn) {}

    fn wants_standing(&self) -> bool {
        !self.held.is_empty() || self.until.is_some()
    }

    fn standing(&mut self, standing: &Standing, _: Instant) {
        self.release(|position| position.unit.lies_before(standing.confirmed));
        if self.until.is_some_and(|until| standing.confirmed >= until) {
            self.enough.notify_one();
        }
    }
}

/// A topic with one partition, so that all facts of it stay in order.
fn there(topic: &Arc<str>) -> TopicMetadata {
    TopicMetadata {
        name: topic.to_string(),
        id: None,
        error: 0,
        partitions: vec![PartitionMetadata { index: 0, leader: Some(0) }],
    }
}
