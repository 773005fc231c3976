//! The relay's own producer, driven for a list of records.

use super::STORED_MAX;
use super::letter::Back;
use crate::kafka::{self, Kafka};
use crate::relay::Settings;
use crate::relay::backoff::Jitter;
use crate::relay::batch::Record;
use crate::relay::error_code;
use crate::relay::event::Event;
use crate::relay::kafka::Answer;
use crate::relay::ledger::Ledger;
use crate::relay::poison::{Policies, Policy};
use crate::relay::position::{Position, Unit};
use crate::relay::producer::{self, Producer, Route};
use crate::relay::route::{Headers, partition};
use crate::run::now;
use factlib_protocol::{Lsn, Timestamp};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a request may leave after it was asked for: nobody else has a claim on these records.
const LEASE: Duration = Duration::from_secs(60);

/// How long at most until the producer is looked at again.
const TURN_MAX: Duration = Duration::from_secs(1);

pub(super) struct Sender {
    producer: Producer,
    /// Of what is unsettled; nothing is confirmed by it.
    ledger: Ledger,
    kafka: Kafka,
    answered: mpsc::UnboundedReceiver<Answer>,
    /// How many records there were so far: their position is their number.
    sent: u64,
    /// Numbers of records that Kafka refuses for good, and why.
    refused: Vec<(u64, String)>,
    begun: bool,
}

impl Sender {
    /// One that has contacted nobody yet.
    pub(super) fn new(settings: Settings, kafka: kafka::Config) -> Self {
        let (answers, answered) = mpsc::unbounded_channel();
        let producer = producer::Settings {
            backoff_max: settings.backoff_max,
            metadata_age_max: settings.metadata_age_max,
            batch_bytes: settings.batch_bytes,
            // One that is refused takes none with it, and can be named.
            batch_records: 1,
            in_flight: settings.in_flight_per_partition,
            keeps_order: settings.keeps_order,
            compression: settings.compression,
            policies: Policies { general: Policy::Skip, ..Policies::HALT },
            create_topics: None,
            transactions: None,
            skip_stored: false,
        };
        Self {
            producer: Producer::new(producer, Jitter::new(settings.seed)),
            ledger: Ledger::default(),
            kafka: Kafka::new(kafka, answers),
            answered,
            sent: 0,
            refused: Vec::new(),
            begun: false,
        }
    }

    /// Sends them in this order, and returns when each is stored by all in-sync replicas, or refused: why, for each.
    ///
    /// # Errors
    ///
    /// A sentence, if that is not known in time.
    pub(super) async fn send(
        &mut self,
        letters: &[Back],
    ) -> Result<Vec<Result<(), String>>, String> {
        let mut outcomes = Vec::with_capacity(letters.len());
        if letters.is_empty() {
            return Ok(outcomes);
        }
        if !std::mem::replace(&mut self.begun, true) {
            self.producer.begin(now().at);
        }
        let first = self.sent;
        for letter in letters {
            outcomes.push(self.push(letter).await?);
        }
        let begun = now().at;
        while self.producer.unsettled_facts() > 0 {
            if let Some(blocked) = self.producer.blocked().filter(|blocked| blocked.halted) {
                return Err(format!(
                    "partition {} of topic {} takes nothing: {}",
                    blocked.partition, blocked.topic, blocked.reason
                ));
            }
            self.in_time(begun)?;
            self.turn().await;
        }
        for (number, reason) in std::mem::take(&mut self.refused) {
            let at = number.checked_sub(first).and_then(|at| usize::try_from(at).ok());
            if let Some(outcome) = at.and_then(|at| outcomes.get_mut(at)) {
                *outcome = Err(reason);
            }
        }
        Ok(outcomes)
    }

    /// Gives one to the producer, or says why it cannot go.
    async fn push(&mut self, letter: &Back) -> Result<Result<(), String>, String> {
        let number = self.sent;
        self.sent += 1;
        let begun = now().at;
        let (topic, partitions) = loop {
            match self.producer.route(now().at, &letter.topic) {
                Route::Ready(topic, partitions) => break (topic, partitions),
                Route::Wait => {
                    self.in_time(begun)?;
                    self.turn().await;
                }
                Route::Missing(code) => {
                    let name = error_code::name(code);
                    return Ok(Err(format!("topic {} cannot be used ({name})", letter.topic)));
                }
            }
        };
        let mut headers = Headers::default();
        letter.headers.iter().for_each(|(name, value)| headers.push(name, value));
        let (key, value) = (letter.key.as_deref(), letter.value.as_deref());
        let record = Record { timestamp_ms: letter.timestamp_ms, key, value, headers: &headers };
        let partition = partition(key.unwrap_or_default(), partitions);
        let position = Position { timeline: 0, unit: Unit::message(Lsn(number)), index: 0 };
        let committed = Timestamp::from_unix_micros(letter.timestamp_ms.saturating_mul(1000));
        self.producer.push(topic, partition, position, committed, &record, &mut self.ledger);
        Ok(Ok(()))
    }

    fn in_time(&self, begun: Instant) -> Result<(), String> {
        if now().at < begun + STORED_MAX {
            return Ok(());
        }
        let blocked = self.producer.blocked().map(|blocked| blocked.reason);
        let cause = blocked.as_deref().or(self.producer.unreached()).unwrap_or("no answer");
        Err(format!("not stored after {} s: {cause}", STORED_MAX.as_secs()))
    }

    /// Sends what there is to send, and takes an answer.
    async fn turn(&mut self) {
        let at = now().at;
        self.kafka.lease_until(at + LEASE);
        while let Some(request) = self.producer.poll(at, true, true) {
            self.kafka.send(request);
        }
        let due = self.producer.deadline(true).map(|due| due.saturating_duration_since(at));
        let limit = due.unwrap_or(TURN_MAX).min(TURN_MAX);
        let Ok(Some(answer)) = timeout(limit, self.answered.recv()).await else { return };
        let mut events = VecDeque::new();
        self.producer.handle(now().at, answer, &mut self.ledger, &mut events);
        for event in events {
            match event {
                Event::KafkaUnreachable { cause } | Event::NoProducerId { cause } => {
                    tracing::warn!(error = cause, "Kafka does not answer");
                }
                Event::PartitionBlocked { blocked, attempt } => tracing::warn!(
                    topic = %blocked.topic, partition = blocked.partition, attempt, error = blocked.reason,
                    "produce is repeated"
                ),
                Event::GivenUp(given_up) => {
                    self.refused.push((given_up.position.unit.lsn.0, given_up.poison.reason));
                }
                event => tracing::debug!(?event, "redrive"),
            }
        }
    }
}
