//! A consumer of committed records that goes along with a topic, by the relay's own reader. What it has read it never
//! reads again, as those do that commit their offsets.

use crate::support::PATIENCE;
use factlib::kafka::{Config, Consumer, Isolation};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use testkit::workload::Truth;
use testkit::{Kafka, Record, wait};
use tokio::runtime::Runtime;

/// Whether consumers of committed records do not see all that is written.
pub(crate) fn is_open(kafka: &Kafka, topic: &str) -> bool {
    let topic: Arc<str> = Arc::from(topic);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = Config::new(kafka.addresses());
        let mut consumer = Consumer::new(config, Isolation::Committed);
        for partition in consumer.partitions(&topic).await.unwrap() {
            // In this order: what is written in between is not taken for open.
            let written = consumer.written(&topic, partition).await.unwrap();
            if consumer.end(&topic, partition).await.unwrap() < written {
                return true;
            }
        }
        false
    })
}

/// A transaction is committed once its coordinator says so; its markers are written after that, and on a busy machine that
/// takes a while.
#[track_caller]
fn wait_for_markers(kafka: &Kafka, topic: &str) {
    wait::until("markers to be written", PATIENCE, || !is_open(kafka, topic));
}

/// All that consumers of committed records will see of a topic in which nothing is produced any more.
#[track_caller]
pub(crate) fn all_committed(kafka: &Kafka, topic: &str) -> Vec<Record> {
    wait_for_markers(kafka, topic);
    kafka.read_committed_by_java(topic)
}

pub(crate) struct Committed {
    runtime: Runtime,
    consumer: Consumer,
    topic: Arc<str>,
    /// The next offset of each partition.
    next: BTreeMap<i32, i64>,
    records: Vec<Record>,
    /// How many records there were after each look.
    looks: Vec<usize>,
}

impl Committed {
    /// At the beginning of a topic that is there.
    #[track_caller]
    pub(crate) fn of(kafka: &Kafka, topic: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let topic: Arc<str> = Arc::from(topic);
        let mut consumer = Consumer::new(Config::new(kafka.addresses()), Isolation::Committed);
        let partitions = runtime.block_on(consumer.partitions(&topic)).unwrap();
        assert!(!partitions.is_empty(), "no topic {topic}");
        let next = partitions.into_iter().map(|partition| (partition, 0)).collect();
        Self { runtime, consumer, topic, next, records: Vec::new(), looks: Vec::new() }
    }

    /// What has become visible since the last look, once nothing is open any more.
    #[track_caller]
    pub(crate) fn look_at_the_end(&mut self, kafka: &Kafka) -> &[Record] {
        wait_for_markers(kafka, &self.topic);
        self.look()
    }

    /// What has become visible since the last look.
    #[track_caller]
    pub(crate) fn look(&mut self) -> &[Record] {
        let Self { runtime, consumer, topic, next, records, looks } = self;
        let before = records.len();
        runtime.block_on(async {
            for (partition, next) in next {
                let end = consumer.end(topic, *partition).await.unwrap();
                let read = consumer.read_between(topic, *partition, *next, end, |found| {
                    let headers = found.headers();
                    records.push(Record {
                        topic: Arc::clone(topic),
                        partition: *partition,
                        offset: found.offset,
                        timestamp_ms: found.timestamp_ms,
                        key: found.key().map(<[u8]>::to_vec),
                        value: found.value().map(<[u8]>::to_vec),
                        headers: headers
                            .map(|(name, value)| {
                                (String::from_utf8(name.to_vec()).unwrap(), value.to_vec())
                            })
                            .collect(),
                    });
                });
                read.await.unwrap();
                assert!(*next <= end, "{topic}[{partition}] went back from {next} to {end}");
                *next = end;
            }
        });
        looks.push(records.len());
        &self.records[before..]
    }

    /// What was seen so far, in the order in which it was.
    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Of no transaction of PostgreSQL a part of what it has in a partition was seen before the rest.
    #[track_caller]
    pub(crate) fn assert_whole(&self, truth: &[Truth]) {
        let of: HashMap<&str, u64> = truth.iter().map(|it| (it.fact_id.as_str(), it.xid)).collect();
        let mut seen: HashMap<(u64, i32), usize> = HashMap::new();
        let mut begun = 0;
        for (look, end) in self.looks.iter().enumerate() {
            for record in &self.records[begun..*end] {
                let id = record.header("event_id").unwrap();
                let xid = *of.get(id).unwrap_or_else(|| panic!("{id} was never committed"));
                let first = *seen.entry((xid, record.partition)).or_insert(look);
                let place = (record.partition, record.offset);
                assert_eq!(
                    first, look,
                    "transaction {xid} was seen in part before {id}, {place:?}"
                );
            }
            begun = *end;
        }
    }
}
