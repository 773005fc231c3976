//! The log as one reader sees it, beside what should be in it.

use crate::board::Board;
use crate::invariant::Invariant;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;
use testkit::envelope::OutboxEvent;
use testkit::traffic::{Emitted, digest};
use testkit::{Follower, Lsn, Reader, Record};

/// What a fact is called.
pub(crate) type Id = String;

/// How long a consumer in a process of its own may take to come to the end, while brokers come and go.
const END_MAX: Duration = Duration::from_secs(90);

/// What is known of what should be in Kafka, whoever reads it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) expected: HashMap<Id, Expected>,
    /// How many facts the transaction has that ends there.
    pub(crate) facts_of: HashMap<Lsn, usize>,
    /// Where Java would put each key, by the number of partitions.
    pub(crate) homes: BTreeMap<usize, HashMap<String, i32>>,
    /// How many partitions topics have, where it is not what it was at first.
    pub(crate) grown: HashMap<String, usize>,
    pub(crate) partitions: usize,
    pub(crate) topic_prefix: String,
}

/// A fact that belongs into Kafka.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) aggregate: String,
    event: String,
    digest: u64,
    /// The place in its aggregate; 0 outside of transactions.
    number: i64,
    pub(crate) lsn: Option<Lsn>,
    /// Whoever confirms this has promised the fact.
    pub(crate) end: Option<Lsn>,
}

/// Who reads.
#[derive(Debug)]
pub(crate) enum Source {
    /// All that is written, topic by topic.
    Readers(Vec<Reader>),
    /// What is committed, by a consumer that is not ours.
    Follower(Follower),
}

/// What was read by one of them, and what is missing.
#[derive(Debug)]
pub(crate) struct View {
    source: Source,
    firsts: HashMap<Id, First>,
    /// Records whose fact is not known yet.
    unexplained: HashMap<Id, Record>,
    logs: BTreeMap<(String, i32), Log>,
    /// The last number of each aggregate.
    numbers: HashMap<String, i64>,
    /// Of each aggregate in a topic that may grow: unbroken runs of its numbers in one partition.
    runs: HashMap<String, Vec<Run>>,
    /// Aggregates with a repeat in another partition than before, whose runs say nothing.
    moved: HashSet<String>,
    /// Transactions of PostgreSQL, by where they end, of which a part was seen.
    parts: HashMap<Lsn, Part>,
    source_header: Option<String>,
    pub(crate) records: usize,
    pub(crate) repeats: usize,
    repeats_before: usize,
    missing: HashSet<Id>,
}

/// A fact as it stands in Kafka for the first time.
#[derive(Debug, PartialEq, Eq)]
struct First {
    partition: i32,
    offset: i64,
    position: Box<str>,
    digest: u64,
}

/// What was seen of a transaction.
#[derive(Debug, Default)]
struct Part {
    facts: usize,
    /// No Kafka transaction was open then: what is still to come must say that it is another part.
    is_torn: bool,
}

/// Numbers of one aggregate that stand one behind the other in one partition.
#[derive(Debug, Clone, Copy)]
struct Run {
    partition: i32,
    first: i64,
    last: i64,
}

/// One partition.
#[derive(Debug, Default)]
struct Log {
    position: Box<str>,
    /// The offset behind the last record.
    next: i64,
    /// First occurrences whose place in their aggregate was not looked at.
    unordered: VecDeque<Id>,
}

impl Known {
    /// The partitions that the topic which grows has by now.
    fn most_partitions(&self) -> usize {
        self.grown.values().copied().max().unwrap_or(self.partitions)
    }

    /// Whether Java would put the key there, with as many partitions as there are or were.
    fn is_home(&self, record: &Record, key: &str) -> bool {
        let now = self.grown.get(&*record.topic).copied().unwrap_or(self.partitions);
        let mut counts = self.homes.range(..=now);
        counts.any(|(_, homes)| homes.get(key) == Some(&record.partition))
    }

    fn is_due(&self, id: &Id, upto: Lsn) -> bool {
        self.expected[id].end.is_some_and(|end| end <= upto)
    }
}

impl Expected {
    pub(crate) fn new(emitted: &Emitted, number: i64, lsn: Option<Lsn>, end: Option<Lsn>) -> Self {
        Self {
            aggregate: emitted.aggregate_id.clone(),
            event: emitted.event_type.clone(),
            digest: emitted.digest,
            number,
            lsn,
            end,
        }
    }
}

impl Source {
    /// Takes what has come since; brokers may be away.
    fn some(&mut self) -> Vec<Record> {
        match self {
            Self::Readers(readers) => {
                let polled = readers.iter_mut().flat_map(|reader| {
                    let _ = reader.poll(Duration::from_millis(50));
                    reader.take_records()
                });
                polled.collect()
            }
            Self::Follower(follower) => taken(follower),
        }
    }

    /// Takes everything that can be seen by now.
    fn all(&mut self) -> Vec<Record> {
        match self {
            Self::Readers(readers) => {
                let read = readers.iter_mut().flat_map(|reader| {
                    reader.read_to_end();
                    reader.take_records()
                });
                read.collect()
            }
            Self::Follower(follower) => {
                follower.read_to_end(END_MAX).unwrap_or_else(|e| panic!("{e}"));
                taken(follower)
            }
        }
    }

    fn is_committed(&self) -> bool {
        matches!(self, Self::Follower(_))
    }
}

fn taken(follower: &mut Follower) -> Vec<Record> {
    follower.take_records().unwrap_or_else(|e| panic!("{e}"))
}

impl View {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            firsts: HashMap::new(),
            unexplained: HashMap::new(),
            logs: BTreeMap::new(),
            numbers: HashMap::new(),
            runs: HashMap::new(),
            moved: HashSet::new(),
            parts: HashMap::new(),
            source_header: None,
            records: 0,
            repeats: 0,
            repeats_before: 0,
            missing: HashSet::new(),
        }
    }

    /// What has come since; brokers may be away. [`take`](Self::take) is to be told of each.
    pub(crate) fn some(&mut self) -> Vec<Record> {
        self.source.some()
    }

    /// The same, to the end.
    pub(crate) fn all(&mut self) -> Vec<Record> {
        self.source.all()
    }

    /// Looks for partitions that are new.
    pub(crate) fn look_again(&mut self) {
        match &mut self.source {
            Source::Readers(readers) => readers.iter_mut().for_each(Reader::look_again),
            // They look all the time.
            Source::Follower(_) => {}
        }
    }

    /// A fact is known now; with `is_due` it belongs into Kafka for certain.
    pub(crate) fn expect(&mut self, known: &Known, id: &Id, is_due: bool, board: &Board) {
        if let Some(record) = self.unexplained.remove(id) {
            self.compare(&record, known, id, board);
        }
        if is_due && !self.firsts.contains_key(id) {
            self.missing.insert(id.clone());
        }
    }

    /// Whether the other one has the record at the same place, if it has it.
    pub(crate) fn agree(&self, record: &Record, board: &Board) {
        let Some(first) = self.firsts.get(record.header("event_id").unwrap_or_default()) else {
            return;
        };
        let same = (first.partition, first.offset, first.digest)
            == (record.partition, record.offset, digest_record(record));
        board.check(Invariant::Agreed, same, || {
            format!(
                "one has {first:?}, the other {}, digest {}",
                place(record),
                digest_record(record)
            )
        });
    }

    pub(crate) fn take(&mut self, known: &Known, record: Record, board: &Board) {
        self.records += 1;
        let id = record.header("event_id").unwrap_or_default().to_owned();
        let position = record.header("factlib_position").unwrap_or_default().to_owned();
        let now = digest_record(&record);
        let is_committed = self.source.is_committed();
        if is_committed {
            let first = self.firsts.get(&id);
            board.check(Invariant::Once, first.is_none(), || {
                format!("{id} again at {}, first {first:?}", place(&record))
            });
        }
        if let Some(first) = self.firsts.get(&id) {
            self.repeats += 1;
            // A crash just after a topic has grown repeats facts where their keys belong now.
            let elsewhere = first.partition != record.partition;
            let moves = elsewhere && known.grown.contains_key(&*record.topic) && !board.is_strict();
            if moves {
                self.moved.insert(
                    record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default().into(),
                );
            }
            let same = (moves || !elsewhere) && *first.position == *position && first.digest == now;
            let held = (first.partition, first.position.clone());
            board.check(Invariant::Repeats, same, || {
                format!("{id} again and otherwise at {}, first {held:?}", place(&record))
            });
            board.check(Invariant::Repeats, !board.is_strict(), || {
                format!("{id} again at {} while the relay lived", place(&record))
            });
            return;
        }
        self.missing.remove(&id);
        let key = (record.topic.to_string(), record.partition);
        let log = self.logs.entry(key).or_default();
        let before = log.position.clone();
        board.check(Invariant::Order, *position > *before, || {
            format!("position {position} behind {before} at {}", place(&record))
        });
        if is_committed {
            // An offset that is no record's: a marker was passed, and more of the same transaction must say so.
            let passed = record.offset > log.next;
            let divided = passed && unit(&position) == unit(&before) && !is_another_part(&record);
            board.check(Invariant::Whole, !divided, || {
                format!(
                    "{position} stands behind a marker, and {before} before it, at {}",
                    place(&record)
                )
            });
            log.next = record.offset + 1;
        }
        log.position = position.clone().into();
        log.unordered.push_back(id.clone());
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        board.check(Invariant::Routing, known.is_home(&record, &key), || {
            format!("key {key:?} at {}, where Java would not put it", place(&record))
        });
        let Record { partition, offset, .. } = record;
        let first = First { partition, offset, position: position.into(), digest: now };
        self.firsts.insert(id.clone(), first);
        if known.expected.contains_key(&id) {
            self.compare(&record, known, &id, board);
        } else {
            self.unexplained.insert(id, record);
        }
    }

    /// Whether a record is what was emitted.
    fn compare(&mut self, record: &Record, known: &Known, id: &Id, board: &Board) {
        let expected = &known.expected[id];
        board.check(Invariant::Phantom, true, String::new);
        let mut wrong = Vec::new();
        if record.key.as_deref() != Some(expected.aggregate.as_bytes()) {
            wrong.push("key".to_owned());
        }
        let value = record.value.as_deref().unwrap_or_default();
        if digest(value) != expected.digest {
            wrong.push(format!("value of {} bytes", value.len()));
        }
        let event = OutboxEvent::from_bytes(value).unwrap_or_default();
        if *record.topic != format!("{}.{}", known.topic_prefix, event.aggregate_type) {
            wrong.push("topic".to_owned());
        }
        let trace = event.trace_info.as_ref();
        let headers = [
            ("event_type", Some(expected.event.clone())),
            ("trace_id", trace.map(|trace| trace.trace_id.clone())),
            ("span_id", trace.map(|trace| trace.span_id.clone())),
        ];
        for (name, value) in headers {
            if record.header(name) != value.as_deref() {
                wrong.push(format!("header {name} {:?}", record.header(name)));
            }
        }
        if let Some(lsn) = expected.lsn
            && record.header("LSN") != Some(&lsn.to_string())
        {
            wrong.push(format!("header LSN {:?}, not {lsn}", record.header("LSN")));
        }
        let names: HashSet<&String> = record.headers.iter().map(|(name, _)| name).collect();
        if names.len() != record.headers.len() {
            wrong.push("a header twice".to_owned());
        }
        let source = record.header("factlib_source").map(str::to_owned);
        if source.is_none()
            || *self.source_header.get_or_insert(source.clone().unwrap_or_default())
                != source.clone().unwrap_or_default()
        {
            let before = &self.source_header;
            wrong.push(format!("header factlib_source {source:?}, before {before:?}"));
        }
        board.check(Invariant::Exact, wrong.is_empty(), || {
            format!("wrong {} at {}", wrong.join(", "), place(record))
        });
        self.count(record, known, expected, board);
    }

    /// One more fact of a transaction is seen.
    fn count(&mut self, record: &Record, known: &Known, expected: &Expected, board: &Board) {
        let Some(end) = expected.end.filter(|_| self.source.is_committed()) else { return };
        let Some(all) = known.facts_of.get(&end) else { return };
        let part = self.parts.entry(end).or_default();
        part.facts += 1;
        if part.is_torn {
            board.check(Invariant::Whole, is_another_part(record), || {
                format!(
                    "of the transaction that ends at {end} a part was seen, and then {}, which does not say that it is \
                     another",
                    place(record)
                )
            });
        }
        if part.facts == *all {
            self.parts.remove(&end);
        }
    }

    /// No Kafka transaction is open, and all that is committed was read: each transaction of PostgreSQL is seen as a whole
    /// or not at all, or is one that goes in parts.
    pub(crate) fn look_whole(&mut self, board: &Board) {
        // Whether it is in parts the next one says.
        board.check(Invariant::Whole, true, String::new);
        self.parts.values_mut().for_each(|part| part.is_torn = true);
    }

    /// Looks at the order within aggregates, as far as facts are known.
    pub(crate) fn order(&mut self, known: &Known, board: &Board) {
        for ((topic, partition), log) in &mut self.logs {
            while let Some(id) = log.unordered.front() {
                let Some(expected) = known.expected.get(id) else { break };
                let Expected { aggregate, number, .. } = expected;
                if expected.number > 0 && known.grown.contains_key(topic) {
                    let runs = self.runs.entry(aggregate.clone()).or_default();
                    let run = runs.iter_mut().rev().find(|run| run.partition == *partition);
                    let last = run.as_ref().map_or(0, |run| run.last);
                    board.check(Invariant::Order, *number > last, || {
                        format!("{aggregate} {number} in {topic}/{partition} behind {last} ({id})")
                    });
                    match run {
                        Some(run) if *number == last + 1 => run.last = *number,
                        // It was elsewhere in between, or is here for the first time.
                        _ => {
                            let (first, last) = (*number, *number);
                            runs.push(Run { partition: *partition, first, last });
                        }
                    }
                } else if expected.number > 0 {
                    let last = self.numbers.entry(expected.aggregate.clone()).or_default();
                    let next = *last + 1;
                    board.check(Invariant::Order, expected.number == next, || {
                        format!("{aggregate} {number} in {topic}/{partition}, not {next} ({id})")
                    });
                    *last = expected.number.max(*last);
                }
                log.unordered.pop_front();
            }
        }
    }

    /// Facts that end at or before `upto` and were not seen.
    pub(crate) fn missing(&self, known: &Known, upto: Lsn) -> Vec<&Id> {
        self.missing.iter().filter(|id| known.is_due(id, upto)).collect()
    }

    /// How many facts are known that were not seen.
    pub(crate) fn backlog(&self) -> usize {
        self.missing.len()
    }

    /// How many different facts were seen.
    pub(crate) fn published(&self) -> usize {
        self.firsts.len()
    }

    /// At the end of a round, when everything was healed and drained.
    pub(crate) fn close_round(&mut self, known: &Known, upto: Lsn, board: &Board) {
        let lost = self.missing(known, upto);
        board.check(Invariant::Loss, lost.is_empty(), || {
            let some = &lost[..lost.len().min(3)];
            format!("{} facts that end before {upto} are not in Kafka: {some:?}", lost.len())
        });
        for (aggregate, runs) in &self.runs {
            if self.moved.contains(aggregate) {
                continue;
            }
            let mut ordered = runs.clone();
            ordered.sort_unstable_by_key(|run| run.first);
            let whole = ordered.windows(2).all(|pair| pair[0].last + 1 == pair[1].first);
            let whole = whole && ordered.first().is_some_and(|run| run.first == 1);
            // At most one step for each time that the topic has grown.
            let steps = known.homes.range(..=known.most_partitions()).count();
            board.check(Invariant::Order, whole && runs.len() <= steps, || {
                format!("{aggregate} is in these partitions, with these numbers: {ordered:?}")
            });
        }
        for (id, record) in self.unexplained.drain() {
            board.check(Invariant::Phantom, false, || format!("{id} at {}", place(&record)));
        }
        for end in self.parts.keys().filter(|end| **end <= upto) {
            board.check(Invariant::Whole, false, || {
                format!("of the transaction that ends at {end} only a part is seen")
            });
        }
        if board.is_strict() {
            let repeats = self.repeats - self.repeats_before;
            board.check(Invariant::Repeats, repeats == 0, || {
                format!("{repeats} repeats in a round in which the relay lived")
            });
        }
        self.repeats_before = self.repeats;
    }
}

pub(crate) fn place(record: &Record) -> String {
    format!("{}/{}@{}", record.topic, record.partition, record.offset)
}

/// What of a position names the transaction.
fn unit(position: &str) -> Option<&str> {
    Some(position.rsplit_once('.')?.0)
}

/// Whether a record says that what was before it of its transaction is in another Kafka transaction.
fn is_another_part(record: &Record) -> bool {
    record.header("factlib_part").is_some()
}

/// A number for everything in a record that a repeat must have the same. A message outside of a
/// transaction has no time of its own: its timestamp is when the server sent it.
fn digest_record(record: &Record) -> u64 {
    let mut all = Vec::new();
    let mut push = |bytes: Option<&[u8]>| {
        all.extend_from_slice(&bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        all.extend_from_slice(bytes.unwrap_or_default());
    };
    push(record.key.as_deref());
    push(record.value.as_deref());
    for (name, value) in &record.headers {
        push(Some(name.as_bytes()));
        push(Some(value));
    }
    let position = record.header("factlib_position").unwrap_or_default();
    if position.split('.').nth(2) != Some("0") {
        push(Some(&record.timestamp_ms.to_le_bytes()));
    }
    digest(&all)
}
