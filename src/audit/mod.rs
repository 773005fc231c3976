//! `owlpost audit`: is every fact that was confirmed in Kafka, once, and in order?
//!
//! A slot cannot look back. So a second one trails the relay's, and an audit reads the write-ahead log from
//! there to what the relay has confirmed, through a temporary copy of it, by the relay's own engine: what that
//! would produce is what must be there. Then the topics are read, from a while before the first of these facts,
//! and each record says by its headers which fact it is.
//!
//! ```text
//!  trailing slot ──copy──▶ engine ──Produce──▶ Collector ──facts──▶ Comparison ◀──records── Consumer
//! ```

pub mod comparison;

use crate::config::Config;
use crate::kafka::{Consumer, Kafka, Tls, records};
use crate::postgres::audit_slot::{self, Bound};
use crate::postgres::{Ask, Temporary};
use crate::progress::{Seen, Unit, Work};
use crate::relay::event::Event;
use crate::relay::gone::{Exit, ExitKind, Gone};
use crate::relay::kafka::{Answer, PartitionAnswer, ProducerId, Request, Unanswered};
use crate::relay::poison::{Cause, Policies, Policy};
use crate::relay::position::{Class, Position};
use crate::relay::seeded_bug::Seeded;
use crate::relay::{Relay, Settings, Standing};
use crate::run::{self, Surroundings, drive};
use comparison::{Belongs, Comparison, Fact, Outcome, Place};
use factlib_protocol::Lsn;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

/// Records are looked for from so long before the first fact's commit, in milliseconds: their time may be that of
/// the relay or of a broker, whose clocks are not PostgreSQL's.
const CLOCKS_APART_MS: i64 = 600_000;

/// How far the reading of topics is, is said once in so many records.
const RECORDS_SAID: u64 = 256;

/// How often the trailing slot is looked at while the relay runs, how often whether there is one, and when first:
/// each time on a connection of its own, which must not be in the way of the relay's first.
const BOUND_INTERVAL: Duration = Duration::from_secs(60);
const ABSENT_INTERVAL: Duration = Duration::from_secs(600);
const BOUND_FIRST: Duration = Duration::from_secs(5);

/// What does not keep the trailing slot where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepted {
    /// Facts that are repeated.
    pub repeats: bool,
    /// Whatever is found.
    pub all: bool,
}

/// What was compared, and what came out.
#[derive(Debug)]
pub struct Audited {
    /// From here on; the trailing slot's position.
    pub from: Lsn,
    /// Up to here; the relay's slot's position.
    pub until: Lsn,
    /// The outcome.
    pub outcome: Outcome,
    /// Nothing is wrong but what is accepted.
    pub is_well: bool,
}

/// Compares what the relay has confirmed with what is in Kafka, from where the last audit ended. The trailing
/// slot is moved on if nothing is wrong. How far it is can be seen in `work`.
///
/// # Errors
///
/// [`Exit`] if there is no trailing slot, or one of the servers cannot be read.
pub async fn audit(
    config: &Config,
    tls: Option<Tls>,
    accepted: Accepted,
    work: &Work,
) -> Result<Audited, Exit> {
    let ask = run::ask(config, Seeded::default(), None, false);
    let marks = audit_slot::marks(&ask).await?;
    let (from, until, source) = (marks.audited, marks.confirmed, marks.source);
    let mut outcome = Outcome::default();
    if from < until {
        let written = written(config, tls.clone(), &ask, from..until, work).await?;
        outcome = compare(config, tls, &source, written, work)
            .await
            .map_err(|reason| Exit { kind: ExitKind::Unreachable, reason })?;
    }
    let is_well = outcome.is_well(accepted.repeats);
    if is_well || accepted.all {
        audit_slot::advance(&ask, until).await?;
    }
    Ok(Audited { from, until, outcome, is_well })
}

/// Makes the trailing slot, unless it is there; where it is.
///
/// # Errors
///
/// [`Exit`], if the server does not.
pub async fn prepare(config: &Config) -> Result<Lsn, Exit> {
    let ask = run::ask(config, Seeded::default(), None, false);
    Ok(audit_slot::make(&ask).await?)
}

/// Looks after the trailing slot for as long as it is polled: it is dropped before it holds back more log than
/// `AUDIT_WAL_BYTES`.
pub async fn look_after(config: &Config) -> Infallible {
    let ask = run::ask(config, Seeded::default(), None, false);
    let slot = audit_slot::audit_slot(&config.slot);
    sleep(BOUND_FIRST).await;
    loop {
        let mut pause = BOUND_INTERVAL;
        match audit_slot::bound(&ask, config.limits.audit_wal_bytes as u64).await {
            Ok(Bound::Absent) => pause = ABSENT_INTERVAL,
            Ok(Bound::Within) => {}
            Ok(Bound::Dropped(held)) => tracing::error!(
                slot,
                held,
                "dropped the slot of `owlpost audit`: it held back more write-ahead log than AUDIT_WAL_BYTES; what \
                 it still had to look at is not audited; `owlpost init --audit` makes it anew"
            ),
            // The relay itself says so, louder.
            Err(Gone::Lost(error) | Gone::Refused(_, error) | Gone::SlotInUse(error)) => {
                tracing::debug!(slot, error, "cannot look after the slot of `owlpost audit`");
            }
            Err(Gone::Terminal(_, error)) => {
                tracing::warn!(slot, error, "cannot look after the slot of `owlpost audit`");
            }
        }
        sleep(pause).await;
    }
}

/// What the relay should have written.
struct Written {
    facts: Vec<Fact>,
    /// The oldest create time, in milliseconds since 1970.
    oldest_ms: i64,
}

/// Reads the log through the relay's own engine.
async fn written(
    config: &Config,
    tls: Option<Tls>,
    ask: &Ask,
    log: Range<Lsn>,
    work: &Work,
) -> Result<Written, Exit> {
    let (answers, answered) = mpsc::unbounded_channel();
    let reached = Arc::new(Notify::new());
    let mut collector = Collector {
        kafka: Kafka::new(run::kafka_config(config, tls), answers.clone()),
        answers,
        policies: &config.policies,
        work,
        from: log.start,
        until: log.end,
        reached: Arc::clone(&reached),
        facts: Vec::new(),
        oldest_ms: i64::MAX,
        fault: None,
    };
    let relay = Relay::new(Settings {
        // What stops the relay must not stop the audit: somebody has moved the slot past it.
        policies: Policies { general: Policy::Skip, ..Policies::HALT },
        create_topics: None,
        skip_stored: false,
        delivery: crate::relay::Delivery::AtLeastOnce,
        timestamp_is_publish: false,
        compression: crate::relay::compression::Compression::None,
        ..run::settings(config)
    });
    let attempts = AtomicU32::new(0);
    let ask = |known_system| Ask {
        // Anew at each attempt, because the server may not have noticed yet that the last one is over.
        slot: format!(
            "owlpost_reading_{}_{}",
            std::process::id(),
            attempts.fetch_add(1, Ordering::Relaxed)
        ),
        temporary: Some(Temporary::CopyOf {
            slot: audit_slot::audit_slot(&config.slot),
            from: None,
        }),
        known_system,
        ..ask.clone()
    };
    let exit = drive(relay, ask, answered, &mut collector, reached.notified()).await;
    let Collector { facts, oldest_ms, fault, .. } = collector;
    match (exit.kind, fault) {
        (ExitKind::Stopped, None) => {}
        (ExitKind::Stopped, Some(reason)) => {
            return Err(Exit { kind: ExitKind::Unsuitable, reason });
        }
        _ => return Err(exit),
    }
    Ok(Written { facts, oldest_ms })
}

/// Reads the topics.
async fn compare(
    config: &Config,
    tls: Option<Tls>,
    source: &str,
    written: Written,
    work: &Work,
) -> Result<Outcome, String> {
    let Written { facts, oldest_ms } = written;
    let mut comparison = Comparison::new(facts, config.policies.dead_letter_topic.clone());
    let mut consumer = Consumer::new(run::kafka_config(config, tls));
    let from_ms = oldest_ms.saturating_sub(CLOCKS_APART_MS).max(0);
    let mut stretches = Vec::new();
    for topic in comparison.topics() {
        for partition in consumer.partitions(&topic).await.map_err(|cause| cause.0)? {
            let offsets = consumer.offsets_from(&topic, partition, from_ms).await;
            stretches.push((Arc::clone(&topic), partition, offsets.map_err(|cause| cause.0)?));
        }
    }
    let records = |offsets: &Range<i64>| u64::try_from(offsets.end - offsets.start).unwrap_or(0);
    let of = stretches.iter().map(|(.., offsets)| records(offsets)).sum();
    let mut before = 0;
    for (topic, partition, offsets) in stretches {
        let Range { start, end } = offsets;
        let each = |found: crate::kafka::Found<'_>| {
            let done = before + records(&(start..found.offset));
            if done % RECORDS_SAID == 0 {
                let what = "reading topics".to_owned();
                work.is(Seen { what, done, of, unit: Unit::Records, facts: done });
            }
            let ours = found.source == Some(source.as_bytes());
            if let Some(position) = found.position.filter(|_| ours).and_then(Position::from_text) {
                let topic = Arc::clone(&topic);
                comparison.found(position, Place { topic, partition, offset: found.offset });
            }
        };
        let read = consumer.read_between(&topic, partition, start, end, each).await;
        read.map_err(|cause| cause.0)?;
        before += records(&(start..end));
    }
    Ok(comparison.outcome())
}

/// A Kafka that takes everything, and remembers it.
struct Collector<'c> {
    /// For the topics' partitions.
    kafka: Kafka,
    answers: mpsc::UnboundedSender<Answer>,
    policies: &'c Policies,
    work: &'c Work,
    from: Lsn,
    until: Lsn,
    reached: Arc<Notify>,
    facts: Vec<Fact>,
    oldest_ms: i64,
    /// Why what the engine would produce cannot be read.
    fault: Option<String>,
}

impl Collector<'_> {
    /// Notes a fact, if it is of a unit that is confirmed.
    fn note(&mut self, position: Position, belongs: Belongs) {
        if position.unit.lies_before(self.until) {
            self.facts.push(Fact { position, belongs });
        }
    }
}

impl Surroundings for Collector<'_> {
    fn send(&mut self, request: Request) {
        let answer = match request {
            Request::Produce { broker, batches, .. } => {
                for batch in &batches {
                    let mut found = Vec::new();
                    let read = records(&batch.batch, |record| {
                        let position = record.position.and_then(Position::from_text);
                        found.push((position, record.timestamp_ms));
                    });
                    if let Err(what) = read {
                        self.fault =
                            Some(format!("what the relay would produce is no batch: {what}"));
                    }
                    for (position, timestamp_ms) in found {
                        let Some(position) = position else { continue };
                        // The server tells when a transaction was committed, but of a message outside of one
                        // only when it sends it. What is behind a transaction in the log is younger.
                        let first = self.facts.is_empty();
                        self.oldest_ms = match position.unit.class {
                            Class::Transaction => self.oldest_ms.min(timestamp_ms),
                            Class::Message if first => 0,
                            Class::Message => self.oldest_ms,
                        };
                        self.note(position, Belongs::To(Arc::clone(&batch.topic)));
                    }
                }
                let partitions = batches
                    .into_iter()
                    .map(|batch| PartitionAnswer {
                        topic: batch.topic,
                        partition: batch.partition,
                        base_sequence: batch.base_sequence,
                        error: 0,
                        base_offset: -1,
                    })
                    .collect();
                Answer::Produced { broker, partitions, throttle: Duration::ZERO }
            }
            Request::InitProducerId => Answer::ProducerId(Ok(Ok(ProducerId { id: 0, epoch: 0 }))),
            request @ (Request::Metadata { .. }
            | Request::CreateTopics { .. }
            | Request::Tail { .. }) => {
                return self.kafka.send(request);
            }
            // Of transactions, of which an audit has none.
            request => request.unanswered(Unanswered("nothing is produced here".to_owned())),
        };
        // Nobody listens: the engine has ended.
        let _ = self.answers.send(answer);
    }

    fn lease_until(&mut self, _: Instant) {}

    fn event(&mut self, event: &Event) {
        match event {
            Event::GivenUp(given_up) => {
                let poison = &given_up.poison;
                // What depends on the topic may have been otherwise when the relay was there.
                let for_ever =
                    matches!(poison.cause, Cause::UnreadableEnvelope | Cause::InvalidTopic);
                let belongs = match self.policies.of(poison.topic.as_deref()) {
                    Policy::Skip if for_ever => Belongs::Skipped,
                    _ => Belongs::Nowhere(poison.reason.clone()),
                };
                // Its commit's time is not told.
                self.oldest_ms = 0;
                self.note(given_up.position, belongs);
            }
            Event::Away { cause, .. } => {
                tracing::warn!(error = cause, "not connected to PostgreSQL")
            }
            event => tracing::debug!(?event, "audit"),
        }
    }

    fn created(&mut self, _: Lsn) {}

    fn wants_standing(&self) -> bool {
        true
    }

    fn standing(&mut self, standing: &Standing, _: Instant) {
        let bytes = |to: Lsn| to.0.saturating_sub(self.from.0);
        self.work.is(Seen {
            what: "reading the log".to_owned(),
            done: bytes(standing.confirmed),
            of: bytes(self.until),
            unit: Unit::Bytes,
            facts: self.facts.len() as u64,
        });
        if standing.confirmed >= self.until {
            self.reached.notify_one();
        }
    }
}
