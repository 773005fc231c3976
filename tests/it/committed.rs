//! A consumer of committed records that goes along with a topic, by the relay's own reader. What it has read it never
//! reads again, as those do that commit their offsets.

use factlib::kafka::{Config, Consumer, Isolation};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use testkit::workload::Truth;
use testkit::{Kafka, Record};
use tokio::runtime::Runtime;

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
