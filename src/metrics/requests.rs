//! How long requests to Kafka take, seen from where they are handed to the driver and answered.

use super::histogram::{Histogram, SECONDS};
use super::topics::Topics;
use crate::relay::kafka::{Answer, BrokerId, PartitionBatch, Request};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What is asked of Kafka, by the protocol's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Api {
    Produce,
    Metadata,
    InitProducerId,
    CreateTopics,
    FindCoordinator,
    AddPartitionsToTxn,
    AddOffsetsToTxn,
    TxnOffsetCommit,
    EndTxn,
    OffsetFetch,
}

impl Api {
    /// Those of which every relay has some; the others are of transactions.
    const USUAL: [Self; 4] =
        [Self::Produce, Self::Metadata, Self::InitProducerId, Self::CreateTopics];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Produce => "Produce",
            Self::Metadata => "Metadata",
            Self::InitProducerId => "InitProducerId",
            Self::CreateTopics => "CreateTopics",
            Self::FindCoordinator => "FindCoordinator",
            Self::AddPartitionsToTxn => "AddPartitionsToTxn",
            Self::AddOffsetsToTxn => "AddOffsetsToTxn",
            Self::TxnOffsetCommit => "TxnOffsetCommit",
            Self::EndTxn => "EndTxn",
            Self::OffsetFetch => "OffsetFetch",
        }
    }
}

/// Requests of one kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Served {
    pub(crate) answered: u64,
    pub(crate) unanswered: u64,
    /// Of those that were answered.
    pub(crate) seconds: Histogram,
}

impl Default for Served {
    fn default() -> Self {
        Self { answered: 0, unanswered: 0, seconds: Histogram::new(SECONDS) }
    }
}

/// A batch that is on its way.
#[derive(Debug, Clone, PartialEq)]
struct Sent {
    topic: Arc<str>,
    partition: i32,
    base_sequence: i32,
    records: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct Produce {
    at: Instant,
    broker: BrokerId,
    batches: Vec<Sent>,
}

/// All requests.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Requests {
    served: BTreeMap<Api, Served>,
    /// Bytes of record batches in Produce requests, repetitions included.
    pub(crate) sent_bytes: u64,
    produces: Vec<Produce>,
    creates: Vec<(Vec<Arc<str>>, Instant)>,
    /// When the others were sent, of which one of a kind at a time is under way.
    others: BTreeMap<Api, Instant>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            served: Api::USUAL.into_iter().map(|api| (api, Served::default())).collect(),
            sent_bytes: 0,
            produces: Vec::new(),
            creates: Vec::new(),
            others: BTreeMap::new(),
        }
    }
}

impl Requests {
    /// What was asked for, and what every relay asks for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Api, &Served)> {
        self.served.iter().map(|(api, served)| (*api, served))
    }

    /// A request is handed to the driver.
    pub(crate) fn sent(&mut self, at: Instant, request: &Request) {
        match request {
            Request::Metadata { .. } => self.other(Api::Metadata, at),
            Request::InitProducerId | Request::InitTransactions { .. } => {
                self.other(Api::InitProducerId, at);
            }
            Request::FindCoordinator { .. } => self.other(Api::FindCoordinator, at),
            Request::AddPartitions { .. } => self.other(Api::AddPartitionsToTxn, at),
            Request::AddOffsets { .. } => self.other(Api::AddOffsetsToTxn, at),
            Request::CommitPosition { .. } => self.other(Api::TxnOffsetCommit, at),
            Request::EndTransaction { .. } => self.other(Api::EndTxn, at),
            Request::FetchPosition { .. } => self.other(Api::OffsetFetch, at),
            Request::CreateTopics { topics } => {
                let topics = topics.iter().map(|(topic, _)| Arc::clone(topic)).collect();
                self.creates.push((topics, at));
            }
            // Several of Kafka's requests, and none of those that facts wait for in the long run.
            Request::Tail { .. } => {}
            Request::Produce { broker, batches, .. } => {
                self.sent_bytes +=
                    batches.iter().map(|batch| batch.batch.len() as u64).sum::<u64>();
                let batches = batches.iter().map(|batch| Sent {
                    topic: Arc::clone(&batch.topic),
                    partition: batch.partition,
                    base_sequence: batch.base_sequence,
                    records: records(batch),
                });
                let batches = batches.collect();
                self.produces.push(Produce { at, broker: *broker, batches });
            }
        }
    }

    fn other(&mut self, api: Api, at: Instant) {
        self.others.insert(api, at);
    }

    /// Each request is answered once, with an answer or the lack of one.
    pub(crate) fn answered(&mut self, now: Instant, answer: &Answer, topics: &mut Topics) {
        let seconds = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let mut other = |api: Api| (api, self.others.remove(&api));
        let ((api, at), is_answered) = match answer {
            Answer::Tail { .. } => return,
            Answer::Metadata(answer) => (other(Api::Metadata), answer.is_ok()),
            Answer::ProducerId(answer) => (other(Api::InitProducerId), answer.is_ok()),
            Answer::TransactionsReady(answer) => (other(Api::InitProducerId), answer.is_ok()),
            Answer::Coordinator { answer, .. } => (other(Api::FindCoordinator), answer.is_ok()),
            Answer::PartitionsAdded(answer) => (other(Api::AddPartitionsToTxn), answer.is_ok()),
            Answer::OffsetsAdded(answer) => (other(Api::AddOffsetsToTxn), answer.is_ok()),
            Answer::PositionCommitted(answer) => (other(Api::TxnOffsetCommit), answer.is_ok()),
            Answer::TransactionEnded(answer) => (other(Api::EndTxn), answer.is_ok()),
            Answer::Position(answer) => (other(Api::OffsetFetch), answer.is_ok()),
            Answer::TopicsCreated { topics, answer } => {
                let at = self.creates.iter().position(|(names, _)| names == topics);
                let at = at.map(|at| self.creates.swap_remove(at).1);
                ((Api::CreateTopics, at), answer.is_ok())
            }
            Answer::Produced { broker, partitions, .. } => {
                let found = partitions.first().and_then(|first| {
                    take(
                        &mut self.produces,
                        *broker,
                        &first.topic,
                        first.partition,
                        first.base_sequence,
                    )
                });
                for sent in found.iter().flat_map(|found| &found.batches) {
                    let at = found.as_ref().map_or(now, |found| found.at);
                    if let Some(topic) = topics.of(&sent.topic) {
                        topic.produce.observe(seconds(at), sent.records);
                    }
                }
                ((Api::Produce, found.map(|found| found.at)), true)
            }
            Answer::ProduceUnanswered { broker, batches, .. } => {
                let found = batches.first().and_then(|first| {
                    take(
                        &mut self.produces,
                        *broker,
                        &first.topic,
                        first.partition,
                        first.base_sequence,
                    )
                });
                ((Api::Produce, found.map(|found| found.at)), false)
            }
        };
        let served = self.served.entry(api).or_default();
        if is_answered {
            served.answered += 1;
            if let Some(at) = at {
                served.seconds.observe(seconds(at), 1);
            }
        } else {
            served.unanswered += 1;
        }
    }
}

/// The oldest request to this broker that has this batch.
fn take(
    produces: &mut Vec<Produce>,
    broker: BrokerId,
    topic: &str,
    partition: i32,
    base_sequence: i32,
) -> Option<Produce> {
    let has_it = |produce: &Produce| {
        produce.broker == broker
            && produce.batches.iter().any(|sent| {
                sent.base_sequence == base_sequence
                    && sent.partition == partition
                    && *sent.topic == *topic
            })
    };
    let at = produces.iter().position(has_it)?;
    Some(produces.remove(at))
}

/// How many records the batch says that it has; it is ours.
fn records(batch: &PartitionBatch) -> u64 {
    let count = batch.batch.get(57..61).and_then(|count| count.try_into().ok());
    count.map_or(0, |count| u64::from(u32::from_be_bytes(count)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::kafka::{PartitionAnswer, Unanswered};
    use bytes::Bytes;
    use std::time::Duration;

    fn batch(topic: &str, base_sequence: i32, records: u8) -> PartitionBatch {
        let mut bytes = vec![0; 61];
        bytes[60] = records;
        PartitionBatch {
            topic_id: None,
            topic: topic.into(),
            partition: 0,
            base_sequence,
            batch: Bytes::from(bytes),
        }
    }

    fn answer(topic: &str, base_sequence: i32) -> PartitionAnswer {
        PartitionAnswer {
            topic: topic.into(),
            partition: 0,
            base_sequence,
            error: 0,
            base_offset: -1,
        }
    }

    #[test]
    fn each_answer_finds_its_request_in_whatever_order_they_come() {
        let (mut requests, mut topics) = (Requests::default(), Topics::default());
        #[expect(clippy::disallowed_methods, reason = "a test")]
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let produce = |broker, batches| Request::Produce { broker, transaction: None, batches };
        requests.sent(at(0), &produce(1, vec![batch("a", 0, 7), batch("b", 0, 2)]));
        requests.sent(at(10), &produce(1, vec![batch("a", 7, 1)]));
        requests.sent(at(20), &produce(2, vec![batch("c", 0, 1)]));
        assert_eq!(requests.sent_bytes, 4 * 61);

        let produced =
            |broker, partitions| Answer::Produced { broker, partitions, throttle: Duration::ZERO };
        requests.answered(at(22), &produced(1, vec![answer("a", 7)]), &mut topics);
        // Its parts in another order.
        let both = vec![answer("b", 0), answer("a", 0)];
        requests.answered(at(40), &produced(1, both), &mut topics);
        let lost = Answer::ProduceUnanswered {
            broker: 2,
            batches: vec![batch("c", 0, 1)],
            sent: true,
            cause: Unanswered("gone".into()),
        };
        requests.answered(at(50), &lost, &mut topics);
        assert!(requests.produces.is_empty());
        let served = &requests.served[&Api::Produce];
        assert_eq!((served.answered, served.unanswered, served.seconds.count()), (2, 1, 2));
        assert!((served.seconds.sum() - 0.052).abs() < 1e-9);
        let a = topics.of("a").unwrap();
        assert_eq!(a.produce.count(), 8);
        assert!((a.produce.sum() - (7.0 * 0.040 + 0.012)).abs() < 1e-9);
        assert_eq!(topics.of("c").unwrap().produce.count(), 0);
    }
}
