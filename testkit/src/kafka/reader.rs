//! Reading a topic back, by an implementation that is not ours.

use super::fetch::{Batch, Fetch, FetchedPartition, Marker};
use super::wire::{Wire, block_on};
use super::{Kafka, LIMIT};
use crate::error::{Error, Result};
use crate::wait;
use rskafka::protocol::error::Error as ApiError;
use rskafka::protocol::messages::{
    FetchRequest, FetchRequestPartition, FetchRequestTopic, IsolationLevel, ListOffsetsRequest,
    ListOffsetsRequestPartition, ListOffsetsRequestTopic,
};
use rskafka::protocol::primitives::{Int32, Int64, String_};
use rskafka::protocol::record::{ControlBatchOrRecords, RecordBatch, RecordBatchTimestampType};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A record as it stands in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The topic it was read from.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// Its place in that partition.
    pub offset: i64,
    /// The producer's timestamp, or where the topic says so, the time of the append.
    pub timestamp_ms: i64,
    /// The key; a null key is `None`.
    pub key: Option<Vec<u8>>,
    /// The value; a tombstone is `None`.
    pub value: Option<Vec<u8>>,
    /// In the record's order, repeated names included.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// The first header of that name, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }
}

/// Reads a topic from its beginning, going on where it stopped.
#[derive(Debug)]
pub struct Reader {
    addresses: Vec<String>,
    topic: Arc<str>,
    isolation: IsolationLevel,
    /// The next offset of each partition.
    next: BTreeMap<i32, i64>,
    /// Connections, by the broker's address.
    wires: HashMap<String, Wire>,
    /// The address of each partition's leader.
    leaders: BTreeMap<i32, String>,
    records: Vec<Record>,
}

impl Kafka {
    /// All records up to the present high watermarks, partition by partition in offset order.
    ///
    /// # Panics
    ///
    /// When the topic cannot be read.
    #[must_use]
    #[track_caller]
    pub fn read_topic(&self, topic: &str) -> Vec<Record> {
        let mut reader = self.reader(topic);
        reader.read_to_end();
        let mut records = reader.into_records();
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// What of them is committed, up to the oldest transaction that is open.
    ///
    /// # Panics
    ///
    /// When the topic cannot be read.
    #[must_use]
    #[track_caller]
    pub fn read_committed(&self, topic: &str) -> Vec<Record> {
        let mut reader = self.committed_reader(topic);
        reader.read_to_end();
        let mut records = reader.into_records();
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// A reader that stands at the topic's beginning.
    #[must_use]
    pub fn reader(&self, topic: &str) -> Reader {
        self.reader_of(topic, IsolationLevel::ReadUncommitted)
    }

    /// The same, which reads committed records only. Its ends are where the oldest transaction that is open begins.
    #[must_use]
    pub fn committed_reader(&self, topic: &str) -> Reader {
        self.reader_of(topic, IsolationLevel::ReadCommitted)
    }

    fn reader_of(&self, topic: &str, isolation: IsolationLevel) -> Reader {
        Reader {
            addresses: self.addresses(),
            topic: Arc::from(topic),
            isolation,
            next: BTreeMap::new(),
            wires: HashMap::new(),
            leaders: BTreeMap::new(),
            records: Vec::new(),
        }
    }

    /// The high watermark of each partition: the offset that the next record gets.
    ///
    /// # Panics
    ///
    /// When the brokers do not tell.
    #[must_use]
    #[track_caller]
    pub fn end_offsets(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.reader(topic).end_offsets()
    }
}

impl Reader {
    /// What has been read so far, in the order of arrival: offset order within each partition.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What has been read since this was called last; the reader keeps nothing of it.
    #[must_use]
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// What has been read so far.
    #[must_use]
    pub fn into_records(self) -> Vec<Record> {
        self.records
    }

    /// Reads up to the present high watermarks.
    ///
    /// # Panics
    ///
    /// When the topic cannot be read.
    #[track_caller]
    pub fn read_to_end(&mut self) -> &[Record] {
        let ends = self.retry(Self::ends);
        let behind =
            |reader: &Self| ends.iter().any(|(p, end)| reader.next.get(p).is_none_or(|n| n < end));
        while behind(self) {
            self.retry(|reader| reader.fetch(Duration::ZERO));
        }
        &self.records
    }

    /// Reads on until `enough` says so about all records read so far.
    ///
    /// # Panics
    ///
    /// When that takes longer than `limit`.
    #[track_caller]
    pub fn read_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut enough: impl FnMut(&[Record]) -> bool,
    ) -> &[Record] {
        let read = wait::poll(what, limit, || {
            // Brokers may be down for now.
            let _ = self.poll(Duration::from_millis(100));
            enough(&self.records).then_some(())
        });
        if let Err(e) = read {
            panic!("{e}; {} records of {} were read", self.records.len(), self.topic);
        }
        &self.records
    }

    /// The high watermark of each partition, over the connections that this reader has: for who asks often.
    ///
    /// # Panics
    ///
    /// When the brokers do not tell.
    #[must_use]
    #[track_caller]
    pub fn end_offsets(&mut self) -> BTreeMap<i32, i64> {
        self.retry(Self::ends)
    }

    /// Whether consumers of committed records do not see all that is written: a transaction is open.
    ///
    /// # Errors
    ///
    /// When a broker does not answer; the next call connects anew.
    pub fn is_open(&mut self) -> Result<bool> {
        // In this order: what is written in between is not taken for open.
        let looked = self.offsets(IsolationLevel::ReadUncommitted).and_then(|written| {
            let committed = self.offsets(IsolationLevel::ReadCommitted)?;
            Ok(written
                .iter()
                .any(|(partition, end)| committed.get(partition).is_none_or(|it| it < end)))
        });
        if looked.is_err() {
            self.forget();
        }
        looked
    }

    /// Takes what is there, waiting up to `patience` for the first record; how many came.
    ///
    /// # Errors
    ///
    /// When a broker does not answer; the next call connects anew.
    pub fn poll(&mut self, patience: Duration) -> Result<usize> {
        let before = self.records.len();
        let fetched = self.fetch(patience);
        if fetched.is_err() {
            self.forget();
        }
        fetched.map(|()| self.records.len() - before)
    }

    /// Stands so many offsets before the present ends, or at the beginning.
    ///
    /// # Panics
    ///
    /// When the brokers do not tell.
    #[track_caller]
    pub fn stand_before_ends(&mut self, offsets: i64) {
        let ends = self.retry(Self::ends);
        self.next = ends.into_iter().map(|(p, end)| (p, (end - offsets).max(0))).collect();
    }

    /// Asks anew which partitions there are: a topic may have grown.
    pub fn look_again(&mut self) {
        self.forget();
    }

    fn forget(&mut self) {
        self.wires.clear();
        self.leaders.clear();
    }

    #[track_caller]
    fn retry<T>(&mut self, mut act: impl FnMut(&mut Self) -> Result<T>) -> T {
        let mut last = None;
        let what = format!("reading topic {}", self.topic);
        let done = wait::poll(&what, LIMIT, || match act(self) {
            Ok(value) => Some(value),
            Err(e) => {
                self.forget();
                last = Some(e);
                None
            }
        });
        done.unwrap_or_else(|e| panic!("{e}: {}", last.map_or_else(String::new, |e| e.to_string())))
    }

    /// Finds each partition's leader and connects to it.
    fn connect(&mut self) -> Result<()> {
        if !self.leaders.is_empty() {
            return Ok(());
        }
        let (addresses, topic) = (self.addresses.clone(), self.topic.to_string());
        let (leaders, wires) = block_on(async move {
            let found = Wire::any(&addresses).await?.metadata(Some(&[topic])).await?;
            let address: HashMap<i32, String> = found
                .brokers
                .iter()
                .map(|b| (b.node_id.0, format!("{}:{}", b.host.0, b.port.0)))
                .collect();
            let mut leaders = BTreeMap::new();
            let mut wires = HashMap::new();
            for topic in &found.topics {
                fail(topic.error, "its metadata")?;
                for partition in &topic.partitions {
                    let leader = address.get(&partition.leader_id.0);
                    let leader = leader.ok_or_else(|| Error::new("a partition has no leader"))?;
                    leaders.insert(partition.partition_index.0, leader.clone());
                    if !wires.contains_key(leader) {
                        wires.insert(leader.clone(), Wire::connect(leader.clone()).await?);
                    }
                }
            }
            Ok::<_, Error>((leaders, wires))
        })?;
        for partition in leaders.keys() {
            self.next.entry(*partition).or_insert(0);
        }
        (self.leaders, self.wires) = (leaders, wires);
        Ok(())
    }

    /// Each connection with the partitions it is asked about.
    fn shares(&mut self) -> Result<Vec<(Wire, Vec<i32>)>> {
        self.connect()?;
        let share = |(address, wire): (&String, &Wire)| {
            let led = self.leaders.iter().filter(|(_, leader)| *leader == address);
            (wire.clone(), led.map(|(partition, _)| *partition).collect())
        };
        Ok(self.wires.iter().map(share).collect())
    }

    fn ends(&mut self) -> Result<BTreeMap<i32, i64>> {
        self.offsets(self.isolation)
    }

    /// Where each partition ends for a consumer of this kind.
    fn offsets(&mut self, isolation: IsolationLevel) -> Result<BTreeMap<i32, i64>> {
        const LATEST: Int64 = Int64(-1);
        let mut ends = BTreeMap::new();
        for (wire, partitions) in self.shares()? {
            let partitions = partitions
                .into_iter()
                .map(|partition| ListOffsetsRequestPartition {
                    partition_index: Int32(partition),
                    timestamp: LATEST,
                    max_num_offsets: None,
                })
                .collect();
            let name = String_(self.topic.to_string());
            let request = ListOffsetsRequest {
                replica_id: Int32(-1),
                isolation_level: Some(isolation),
                topics: vec![ListOffsetsRequestTopic { name, partitions }],
            };
            let answer = block_on(async move { wire.ask(request).await })?;
            for partition in answer.topics.into_iter().flat_map(|topic| topic.partitions) {
                fail(partition.error_code, "its end offsets")?;
                let end = partition.offset.ok_or_else(|| Error::new("no end offset"))?;
                ends.insert(partition.partition_index.0, end.0);
            }
        }
        Ok(ends)
    }

    fn fetch(&mut self, patience: Duration) -> Result<()> {
        for (wire, partitions) in self.shares()? {
            let partitions = partitions
                .into_iter()
                .map(|partition| FetchRequestPartition {
                    partition: Int32(partition),
                    fetch_offset: Int64(self.next.get(&partition).copied().unwrap_or(0)),
                    partition_max_bytes: Int32(4 << 20),
                })
                .collect();
            let topic = String_(self.topic.to_string());
            let request = FetchRequest {
                replica_id: Int32(-1),
                max_wait_ms: Int32(patience.as_millis() as i32),
                min_bytes: Int32(1),
                max_bytes: Some(Int32(32 << 20)),
                isolation_level: Some(self.isolation),
                topics: vec![FetchRequestTopic { topic, partitions }],
            };
            let answer = block_on(async move { wire.ask(Fetch(request)).await })?;
            for partition in answer.0 {
                self.take(partition)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, partition: FetchedPartition) -> Result<()> {
        let FetchedPartition { index, error, aborted, batches } = partition;
        fail(error, "a fetch")?;
        let next = self.next.entry(index).or_insert(0);
        let mut aborted = Aborted::new(aborted);
        for batch in batches {
            let batch = match batch {
                Batch::Records(batch) => batch,
                Batch::Marker(marker) => {
                    *next = (*next).max(marker.offset + 1);
                    aborted.end(marker);
                    continue;
                }
            };
            // A broker sends whole batches, also where the wanted offset is in the middle.
            let wanted = *next;
            let last = batch.base_offset + i64::from(batch.last_offset_delta);
            *next = wanted.max(last + 1);
            if !aborted.has(&batch, last) {
                let read = records(&self.topic, index, batch);
                self.records.extend(read.filter(|record| record.offset >= wanted));
            }
        }
        Ok(())
    }
}

/// Aborted transactions that begin before the end of what was fetched, of which a broker tells who wants committed
/// records.
struct Aborted {
    /// Producer and first offset, the last first.
    coming: Vec<(i64, i64)>,
    /// Producers whose transaction is aborted by a marker further on.
    open: HashSet<i64>,
}

impl Aborted {
    fn new(mut coming: Vec<(i64, i64)>) -> Self {
        coming.sort_by_key(|(_, first)| std::cmp::Reverse(*first));
        Self { coming, open: HashSet::new() }
    }

    /// Whether this batch, up to `last`, is in one. To be asked of all, in their order.
    fn has(&mut self, batch: &RecordBatch, last: i64) -> bool {
        while let Some((producer, _)) = self.coming.pop_if(|(_, first)| *first <= last) {
            self.open.insert(producer);
        }
        batch.is_transactional && self.open.contains(&batch.producer_id)
    }

    fn end(&mut self, marker: Marker) {
        if marker.is_abort {
            self.open.remove(&marker.producer);
        }
    }
}

fn records(topic: &Arc<str>, partition: i32, batch: RecordBatch) -> impl Iterator<Item = Record> {
    let records = match batch.records {
        ControlBatchOrRecords::Records(records) => records,
        // These do not come here.
        ControlBatchOrRecords::ControlBatch(_) => Vec::new(),
    };
    let topic = Arc::clone(topic);
    let appended = batch.timestamp_type == RecordBatchTimestampType::LogAppendTime;
    records.into_iter().map(move |record| Record {
        topic: Arc::clone(&topic),
        partition,
        offset: batch.base_offset + i64::from(record.offset_delta),
        timestamp_ms: match appended {
            true => batch.max_timestamp,
            false => batch.first_timestamp + record.timestamp_delta,
        },
        key: record.key,
        value: record.value,
        headers: record.headers.into_iter().map(|header| (header.key, header.value)).collect(),
    })
}

fn fail(error: Option<ApiError>, what: &str) -> Result<()> {
    error.map_or(Ok(()), |error| Err(Error(format!("{what}: {error} ({error:?})"))))
}
