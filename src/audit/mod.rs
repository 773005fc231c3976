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
use crate::relay::{Delivery, Relay, Settings, Standing};
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

/// How often a partition is looked at in which a transaction is open.
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// A coordinator looks for what has expired every ten seconds (`transaction.abort.timed.out.transaction.cleanup.interval.ms`).
const ENDED_LATE: Duration = Duration::from_secs(15);

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
            .map_err(|Unanswered(reason)| Exit { kind: ExitKind::Unreachable, reason })?;
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
        delivery: Delivery::AtLeastOnce,
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
) -> Result<Outcome, Unanswered> {
    let Written { facts, oldest_ms } = written;
    let comparison = Comparison::new(facts, config.policies.dead_letter_topic.clone());
    let consumer = Consumer::new(run::kafka_config(config, tls), run::isolation(config));
    let mut reading = Reading { consumer, source, comparison, work, before: 0, of: 0 };
    let from_ms = oldest_ms.saturating_sub(CLOCKS_APART_MS).max(0);
    let mut stretches = Vec::new();
    for topic in reading.comparison.topics() {
        let consumer = &mut reading.consumer;
        for partition in consumer.partitions(&topic).await? {
            // In this order: what is behind the first that is open now is in a transaction, or behind one.
            let written = consumer.written(&topic, partition).await?;
            let offsets = consumer.offsets_from(&topic, partition, from_ms).await?;
            reading.of += records_between(&offsets);
            stretches.push(Stretch { topic: Arc::clone(&topic), partition, offsets, written });
        }
    }
    for stretch in &stretches {
        reading.read(stretch).await?;
    }
    if let Delivery::ExactlyOnce(settings) = &config.delivery {
        let open = stretches.into_iter().filter(|stretch| stretch.offsets.end < stretch.written);
        reading.wait(open.collect(), settings.timeout + ENDED_LATE).await?;
    }
    Ok(reading.comparison.outcome())
}

/// Records of a partition.
#[derive(Debug)]
struct Stretch {
    topic: Arc<str>,
    partition: i32,
    /// Those that are to be read.
    offsets: Range<i64>,
    /// Where the partition ended, with what was in transactions that were open.
    written: i64,
}

fn records_between(offsets: &Range<i64>) -> u64 {
    u64::try_from(offsets.end - offsets.start).unwrap_or(0)
}

/// Topics that are being read.
struct Reading<'r> {
    consumer: Consumer,
    source: &'r str,
    comparison: Comparison,
    work: &'r Work,
    /// How many records were read in other stretches, and how many there are in all.
    before: u64,
    of: u64,
}

impl Reading<'_> {
    async fn read(&mut self, stretch: &Stretch) -> Result<(), Unanswered> {
        let Self { consumer, source, comparison, work, before, of } = self;
        let Stretch { topic, partition, offsets, .. } = stretch;
        let Range { start, end } = *offsets;
        let each = |found: crate::kafka::Found<'_>| {
            let done = *before + records_between(&(start..found.offset));
            if done.is_multiple_of(RECORDS_SAID) {
                let what = "reading topics".to_owned();
                work.is(Seen { what, done, of: *of, unit: Unit::Records, facts: done });
            }
            let ours = found.source == Some(source.as_bytes());
            if let Some(position) = found.position.filter(|_| ours).and_then(Position::from_text) {
                let (topic, partition) = (Arc::clone(topic), *partition);
                comparison.found(position, Place { topic, partition, offset: found.offset });
            }
        };
        consumer.read_between(topic, *partition, start, end, each).await?;
        self.before += records_between(offsets);
        Ok(())
    }

    /// A transaction that is committed has its marker in one partition after the other: where facts are missing, and
    /// something was not over yet, that is waited for.
    async fn wait(&mut self, mut open: Vec<Stretch>, limit: Duration) -> Result<(), Unanswered> {
        let deadline = tokio::time::Instant::now() + limit;
        while !self.comparison.has_all() {
            let Some(first) = open.first() else { return Ok(()) };
            if tokio::time::Instant::now() >= deadline {
                return Err(Unanswered(format!(
                    "facts are missing, perhaps because a Kafka transaction has been open in partition {} of topic {} \
                     at offset {} for {}, which is longer than TRANSACTION_TIMEOUT: consumers of committed records see \
                     nothing behind it (kafka-transactions.sh find-hanging names it)",
                    first.partition,
                    first.topic,
                    first.offsets.end,
                    humantime::format_duration(limit)
                )));
            }
            sleep(OPEN_PAUSE).await;
            for stretch in &mut open {
                let end = self.consumer.end(&stretch.topic, stretch.partition).await?;
                stretch.offsets = stretch.offsets.end..end.max(stretch.offsets.end);
                self.of += records_between(&stretch.offsets);
                self.read(stretch).await?;
            }
            open.retain(|stretch| stretch.offsets.end < stretch.written);
        }
        Ok(())
    }
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
