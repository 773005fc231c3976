//! A model Kafka: two brokers, a few topics, what brokers do with sequences, and replicas that may lag.

use crate::model::{Dice, Fate, Producers};
use crate::transactions::{Coordinator, Marker, Member};
use crate::truth::{Stored, Truth};
use factlib::kafka::add_to_tail;
use factlib::relay::error_code::*;
use factlib::relay::kafka::{PartitionBatch, ProducerId, Tail};
use factlib::relay::route;
use rskafka::protocol::record::{ControlBatchOrRecords, Record, RecordBatch};
use rskafka::protocol::traits::ReadType;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Instant;
use uuid::Uuid;

pub(crate) const FACTS: &str = "sim.fact";
/// A topic that is not there before somebody creates it.
pub(crate) const LATE: &str = "sim.late";
pub(crate) const DEAD: &str = "sim.dead";
/// Of its partition 0 the position is kept; nothing is in it.
pub(crate) const POSITION: &str = "owlpost.position";
pub(crate) const BROKERS: usize = 2;

/// A record of this size is over every topic's limit.
const RECORD_MAX: usize = 2500;

#[derive(Debug)]
struct Appended {
    producer: (i64, i16),
    base: i32,
    records: Vec<Stored>,
    /// Of a transaction that is not ended here: consumers do not see it yet.
    pending: bool,
    /// As it is handed out, with the offset of its first record.
    bytes: Vec<u8>,
    offset: i64,
}

/// One partition, as its leader has it.
#[derive(Debug, Default)]
struct Log {
    leader: usize,
    batches: Vec<Appended>,
    /// So many of them are on all replicas.
    replicated: usize,
    producers: Producers,
    /// The transactions that ended here: who ended them.
    marked: Vec<ProducerId>,
    /// The highest position that is committed.
    committed: String,
}

impl Log {
    fn highest(&self) -> &str {
        let records = self.batches.iter().flat_map(|batch| &batch.records);
        records.map(|record| record.position.as_str()).max().unwrap_or_default()
    }

    fn end(&self) -> i64 {
        let behind = |last: &Appended| last.offset + i64::try_from(last.records.len()).unwrap();
        self.batches.last().map_or(0, behind)
    }

    fn is_in_transaction(&self) -> bool {
        self.batches.iter().any(|batch| batch.pending)
    }

    fn replicate(&mut self, truth: &mut Truth) {
        for batch in &self.batches[self.replicated..] {
            batch.records.iter().for_each(|record| truth.replicated(record));
        }
        self.replicated = self.batches.len();
    }
}

#[derive(Debug)]
pub(crate) struct Topic {
    logs: Vec<Log>,
    /// Numbers of partitions that it has had.
    counts: Vec<u32>,
    pub(crate) there: bool,
    /// Which topic of this name it is.
    pub(crate) id: Option<Uuid>,
    /// Which one was before it.
    pub(crate) former_id: Option<Uuid>,
    /// A batch may have so many bytes.
    bytes_max: usize,
}

impl Topic {
    /// Somebody may believe that it has so many partitions.
    pub(crate) fn had(&mut self, partitions: usize) {
        self.counts.push(u32::try_from(partitions).unwrap());
    }
}

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) id: &'static str,
    pub(crate) topics: BTreeMap<&'static str, Topic>,
    /// Relays produce in transactions.
    pub(crate) coordinator: Option<Coordinator>,
}

/// What a broker does with a batch besides the usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Before(i16),
    After(i16),
}

impl Cluster {
    pub(crate) fn new(dice: &mut Dice, absent: &[&str], topic_ids: bool) -> Self {
        let mut topic = |name: &'static str, partitions: u32| {
            let logs = (0..partitions)
                .map(|_| Log { leader: dice.below(BROKERS), ..Log::default() })
                .collect();
            let there = !absent.contains(&name);
            let bytes_max = if dice.percent(30) { 700 } else { RECORD_MAX };
            let id = topic_ids.then(|| Uuid::from_u128(dice.next().into()));
            let counts = vec![partitions];
            (name, Topic { logs, counts, there, id, former_id: None, bytes_max })
        };
        let topics = BTreeMap::from([topic(FACTS, 3), topic(LATE, 1), topic(DEAD, 2)]);
        Self { id: "cluster", topics, coordinator: None }
    }

    /// Relays produce in transactions.
    pub(crate) fn coordinates(&mut self, coordinator: Coordinator) {
        let (logs, counts) = (vec![Log::default()], vec![1]);
        let (id, former_id, bytes_max) = (None, None, RECORD_MAX);
        let position = Topic { logs, counts, there: false, id, former_id, bytes_max };
        self.topics.insert(POSITION, position);
        self.coordinator = Some(coordinator);
    }

    pub(crate) fn topic(&mut self, name: &str) -> &mut Topic {
        self.topics.get_mut(name).unwrap()
    }

    pub(crate) fn leaders(&mut self, name: &str) -> Vec<usize> {
        self.topic(name).logs.iter().map(|log| log.leader).collect()
    }

    pub(crate) fn grow(&mut self, name: &str) {
        let topic = self.topic(name);
        topic.logs.push(Log::default());
        topic.logs.push(Log { leader: 1, ..Log::default() });
        topic.had(topic.logs.len());
    }

    /// Another replica of some partition leads, which may lack what was not acknowledged. True if it does.
    pub(crate) fn move_leader(&mut self, dice: &mut Dice, name: &str, truth: &mut Truth) -> bool {
        let at = dice.below(self.topics[name].logs.len());
        self.move_leader_of(dice, name, at, truth)
    }

    /// The same of this partition.
    pub(crate) fn move_leader_of(
        &mut self,
        dice: &mut Dice,
        name: &str,
        at: usize,
        truth: &mut Truth,
    ) -> bool {
        let log = &mut self.topics.get_mut(name).unwrap().logs[at];
        log.leader = dice.below(BROKERS);
        let kept = log.replicated + dice.below(log.batches.len() - log.replicated + 1);
        let lost = log.batches.split_off(kept);
        for batch in &lost {
            batch.records.iter().for_each(|record| truth.cut(record));
        }
        log.producers = Producers::default();
        for marked in &log.marked {
            log.producers.marked(marked.id, marked.epoch);
        }
        for batch in &log.batches {
            let ((id, epoch), count) = (batch.producer, batch.records.len());
            log.producers.arrive(id, epoch, batch.base, i32::try_from(count).unwrap());
        }
        !lost.is_empty()
    }

    /// A topic of the same name takes its place, in which nothing is.
    pub(crate) fn make_anew(&mut self, name: &str, truth: &mut Truth) {
        let topic = self.topic(name);
        topic.former_id = topic.id;
        topic.id = topic.id.map(|id| Uuid::from_u128(id.as_u128() + 1));
        for log in &mut topic.logs {
            for (at, batch) in std::mem::take(&mut log.batches).into_iter().enumerate() {
                let safe = at < log.replicated;
                batch.records.iter().for_each(|record| truth.buried(record, safe));
            }
            *log = Log { leader: log.leader, ..Log::default() };
        }
    }

    /// Brokers have forgotten who produced.
    pub(crate) fn forget(&mut self) {
        for topic in self.topics.values_mut() {
            // Of whoever is in a transaction they remember.
            for log in topic.logs.iter_mut().filter(|log| !log.is_in_transaction()) {
                log.producers = Producers::default();
            }
        }
    }

    /// What a partition hands out between two offsets. It shows what not all replicas have, too: as where no
    /// others are in sync for the moment. What is at the first few of them is deleted.
    pub(crate) fn tail(
        &self,
        broker: usize,
        (topic, partition): (&str, i32),
        (from, to): (i64, i64),
        deleted: i64,
        source: &str,
    ) -> Result<Tail, i16> {
        let topic = &self.topics[topic];
        if !topic.there {
            return Err(UNKNOWN_TOPIC_OR_PARTITION);
        }
        let log = &topic.logs[usize::try_from(partition).unwrap()];
        if log.leader != broker {
            return Err(NOT_LEADER_OR_FOLLOWER);
        }
        let first = from + deleted;
        let mut tail = Tail { first, records: Vec::new(), other: None };
        for batch in &log.batches {
            add_to_tail(&mut tail, &batch.bytes, first..to, source).unwrap();
        }
        Ok(tail)
    }

    /// A batch comes to a broker: the error code that it answers, and the offset of its first record.
    pub(crate) fn arrive(
        &mut self,
        broker: usize,
        batch: &PartitionBatch,
        fault: Fault,
        now: Instant,
        truth: &mut Truth,
    ) -> (i16, i64) {
        let refused = |error| (error, -1);
        let (name, topic) = self
            .topics
            .iter_mut()
            .find(|(name, _)| ***name == *batch.topic)
            .expect("a batch for a topic that nobody has");
        if batch.topic_id.is_some_and(|id| Some(id) != topic.id) {
            return (UNKNOWN_TOPIC_ID, -1);
        }
        if !topic.there {
            return refused(UNKNOWN_TOPIC_OR_PARTITION);
        }
        let counts = &topic.counts;
        let log = &mut topic.logs[usize::try_from(batch.partition).unwrap()];
        if log.leader != broker {
            return refused(NOT_LEADER_OR_FOLLOWER);
        }
        if let Fault::Before(code) = fault {
            return refused(code);
        }
        let decoded = RecordBatch::read(&mut Cursor::new(&batch.batch)).unwrap();
        let ControlBatchOrRecords::Records(records) = decoded.records else { panic!("control") };
        // A dead letter that cannot be cut shorter fits everywhere.
        let fits = *name == DEAD && records.len() == 1 && batch.batch.len() < RECORD_MAX;
        if batch.batch.len() > topic.bytes_max && !fits && !is_lone(&records, topic.bytes_max) {
            return refused(MESSAGE_TOO_LARGE);
        }
        let count = i32::try_from(records.len()).unwrap();
        let (producer, base) =
            ((decoded.producer_id, decoded.producer_epoch), decoded.base_sequence);
        assert_eq!(decoded.is_transactional, self.coordinator.is_some());
        if let Some(coordinator) = &mut self.coordinator {
            let ours = ProducerId { id: producer.0, epoch: producer.1 };
            let is_in = |known: &Appended| known.pending && known.producer == producer;
            let member = Member::Partition(batch.topic.to_string(), batch.partition);
            if !log.batches.iter().any(is_in) {
                let code = coordinator.verify(now, ours, member);
                if code != NONE {
                    return refused(code);
                }
            }
        }
        match log.producers.arrive(producer.0, producer.1, base, count) {
            Fate::Appended => {}
            Fate::Repeated => {
                log.replicate(truth);
                let is_it = |known: &&Appended| (known.producer, known.base) == (producer, base);
                let known = log.batches.iter().find(is_it);
                return (NONE, known.expect("a repeat of nothing").offset);
            }
            Fate::Refused(error) => return refused(error),
        }
        let offset = log.end();
        let mut bytes = batch.batch.to_vec();
        bytes[..8].copy_from_slice(&offset.to_be_bytes());
        let pending = self.coordinator.is_some();
        log.batches.push(Appended { producer, base, records: Vec::new(), pending, bytes, offset });
        for record in records {
            let (stored, value) = read(&record);
            let highest = (*name != DEAD).then(|| log.highest().to_owned());
            match pending {
                false => truth.appended(&stored, value, highest.as_deref()),
                true => truth.pending(&stored, value, *name == DEAD),
            }
            if *name != DEAD {
                let key = record.key.as_deref().unwrap();
                let fact = truth.fact(stored.fact);
                assert_eq!(key, fact.key.as_bytes(), "fact {} has another key", stored.fact);
                assert_eq!(*name, fact.topic, "fact {} is in another topic", stored.fact);
                let home = |count: &u32| i64::from(route::partition(key, *count));
                let at = i64::from(batch.partition);
                assert!(counts.iter().any(|count| home(count) == at), "{stored:?} is not at home");
            }
            log.batches.last_mut().unwrap().records.push(stored);
        }
        if let Fault::After(code) = fault {
            return refused(code);
        }
        log.replicate(truth);
        (NONE, offset)
    }
}

impl Cluster {
    /// A transaction is committed: its records will be seen, in this order in each partition.
    pub(crate) fn decided(&mut self, members: &[Member], ours: ProducerId, truth: &mut Truth) {
        for member in members {
            let Member::Partition(name, partition) = member else { continue };
            let topic = self.topics.get_mut(name.as_str()).unwrap();
            let log = &mut topic.logs[usize::try_from(*partition).unwrap()];
            let (batches, highest) = (&log.batches, &mut log.committed);
            let of_it = |batch: &&Appended| batch.pending && batch.producer.0 == ours.id;
            for record in batches.iter().filter(of_it).flat_map(|batch| &batch.records) {
                let highest = (name != DEAD).then_some(&mut *highest);
                truth.seen(record, highest);
            }
        }
    }

    /// A marker is written.
    pub(crate) fn marked(&mut self, marker: &Marker) {
        let Member::Partition(name, partition) = &marker.member else { return };
        let topic = self.topics.get_mut(name.as_str()).unwrap();
        let log = &mut topic.logs[usize::try_from(*partition).unwrap()];
        for batch in &mut log.batches {
            batch.pending &= batch.producer.0 != marker.producer.id;
        }
        log.producers.marked(marker.producer.id, marker.producer.epoch);
        log.marked.push(marker.producer);
    }

    /// Batches whose transaction is not ended.
    pub(crate) fn pending(&self) -> usize {
        let logs = self.topics.values().flat_map(|topic| &topic.logs);
        logs.flat_map(|log| &log.batches).filter(|batch| batch.pending).count()
    }
}

/// A batch of one record that is not over every limit passes: nobody is to wait for ever.
fn is_lone(records: &[Record], bytes_max: usize) -> bool {
    let len = |record: &Record| record.value.as_ref().map_or(0, Vec::len);
    bytes_max < RECORD_MAX && matches!(records, [record] if len(record) < bytes_max)
}

/// Which fact a record is of, and its value.
pub(crate) fn read(record: &Record) -> (Stored, &[u8]) {
    let value = record.value.as_deref().unwrap();
    let digits = value.iter().skip_while(|c| !c.is_ascii_digit());
    let digits: String =
        digits.take_while(|c| c.is_ascii_digit()).map(|c| char::from(*c)).collect();
    let position = record.headers.iter().find(|header| header.key == "factlib_position").unwrap();
    let position = String::from_utf8(position.value.clone()).unwrap();
    (Stored { fact: digits.parse().unwrap(), position }, value)
}
