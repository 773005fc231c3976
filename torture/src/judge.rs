//! Compares what PostgreSQL says was committed with what stands in Kafka, while both go on.
//!
//! For each fact it keeps some numbers and no content, so that an hour fits into memory.

use crate::board::Board;
use crate::invariant::Invariant;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};
use testkit::envelope::OutboxEvent;
use testkit::oracle::{self, Commits};
use testkit::traffic::{self, Emitted, Running, Traffic, digest};
use testkit::{Kafka, Lsn, Postgres, Reader, Record, wait};

/// What a fact is called.
type Id = String;

/// Everything that is known of what should be in Kafka, and of what is.
#[derive(Debug)]
pub(crate) struct Judge {
    commits: Commits,
    readers: Vec<Reader>,
    /// Where Java would put each key, by the number of partitions.
    homes: BTreeMap<usize, HashMap<String, i32>>,
    /// How many partitions topics have, where it is not what it was at first.
    grown: HashMap<String, usize>,
    partitions: usize,
    topic_prefix: String,
    expected: HashMap<Id, Expected>,
    /// Transactions that were committed, and where; their facts were not visible yet.
    unseen: HashMap<u64, Lsn>,
    /// How many of the messages outside of transactions were taken over.
    loose: usize,
    /// Those of them that a crash may still undo.
    fragile: Vec<usize>,
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
    source: Option<String>,
    pub(crate) facts: usize,
    pub(crate) transactions: usize,
    pub(crate) records: usize,
    pub(crate) repeats: usize,
    repeats_before: usize,
    missing: HashSet<Id>,
}

/// A fact that belongs into Kafka.
#[derive(Debug, Clone)]
struct Expected {
    aggregate: String,
    event: String,
    digest: u64,
    /// The place in its aggregate; 0 outside of transactions.
    number: i64,
    lsn: Option<Lsn>,
    /// Whoever confirms this has promised the fact.
    end: Option<Lsn>,
}

/// A fact as it stands in Kafka for the first time.
#[derive(Debug)]
struct First {
    partition: i32,
    position: Box<str>,
    digest: u64,
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
    /// First occurrences whose place in their aggregate was not looked at.
    unordered: VecDeque<Id>,
}

/// How a judge is told what to expect.
#[derive(Debug)]
pub(crate) struct Case<'c> {
    pub(crate) postgres: &'c Postgres,
    pub(crate) kafka: &'c Kafka,
    pub(crate) traffic: &'c Traffic,
    pub(crate) partitions: usize,
    /// How many they may become.
    pub(crate) growth: &'c [usize],
}

impl Judge {
    /// Before the first fact.
    pub(crate) fn new(case: &Case<'_>) -> Self {
        let keys = case.traffic.keys();
        let mut homes = BTreeMap::new();
        for count in [case.partitions].iter().chain(case.growth) {
            let places = testkit::java_partitions(&keys, *count);
            homes.insert(*count, keys.iter().cloned().zip(places).collect());
        }
        let topic = |kind: &String| format!("{}.{kind}", case.traffic.prefix);
        Self {
            commits: Commits::watch(&mut case.postgres.client(), "oracle"),
            readers: case
                .traffic
                .aggregate_types
                .iter()
                .map(|kind| case.kafka.reader(&topic(kind)))
                .collect(),
            homes,
            grown: HashMap::new(),
            partitions: case.partitions,
            topic_prefix: case.traffic.prefix.clone(),
            expected: HashMap::new(),
            unseen: HashMap::new(),
            loose: 0,
            fragile: Vec::new(),
            firsts: HashMap::new(),
            unexplained: HashMap::new(),
            logs: BTreeMap::new(),
            numbers: HashMap::new(),
            runs: HashMap::new(),
            moved: HashSet::new(),
            source: None,
            facts: 0,
            transactions: 0,
            records: 0,
            repeats: 0,
            repeats_before: 0,
            missing: HashSet::new(),
        }
    }

    /// Takes over what was committed since; the server must run and go on running. True if nothing of it is
    /// still to become visible.
    pub(crate) fn read_truth(
        &mut self,
        postgres: &Postgres,
        traffic: &Running,
        board: &Board,
    ) -> bool {
        let Ok(mut client) = postgres.try_client() else { return false };
        let commits = self.commits.read(&mut client);
        self.unseen.extend(commits);
        let xids: Vec<u64> = self.unseen.keys().copied().collect();
        let xids = oracle::visible(&mut client, &xids);
        let ends: HashMap<u64, Lsn> =
            xids.iter().filter_map(|xid| self.unseen.remove_entry(xid)).collect();
        let committed = traffic::committed(&mut client, &xids)
            .unwrap_or_else(|e| panic!("reading what was committed: {e}"));
        let mut transactions = HashSet::new();
        for fact in committed {
            if self.expected.contains_key(&fact.emitted.fact_id) {
                continue;
            }
            transactions.insert(fact.xid);
            self.facts += 1;
            let id = fact.emitted.fact_id.clone();
            self.missing.insert(id.clone());
            let expected =
                Expected::new(&fact.emitted, fact.key_seq, Some(fact.lsn), Some(ends[&fact.xid]));
            self.expect(id, expected, board);
        }
        self.transactions += transactions.len();
        self.read_loose(traffic, board);
        self.order(board);
        self.unseen.is_empty()
    }

    /// The same for what was emitted outside of transactions.
    fn read_loose(&mut self, traffic: &Running, board: &Board) {
        let from = self.fragile.first().copied().unwrap_or(self.loose).min(self.loose);
        for (place, message) in traffic.loose(from).into_iter().enumerate() {
            let place = from + place;
            let id = message.emitted.fact_id.clone();
            if place >= self.loose {
                self.loose = place + 1;
                self.fragile.push(place);
                self.expect(id.clone(), Expected::new(&message.emitted, 0, None, None), board);
            }
            if !message.durable {
                continue;
            }
            if let Some(expected) = self.expected.get_mut(&id)
                && expected.end.is_none()
            {
                (expected.lsn, expected.end) = (message.lsn, message.lsn);
                if !self.firsts.contains_key(&id) {
                    self.missing.insert(id);
                }
            }
            self.fragile.retain(|fragile| *fragile != place);
        }
        // What was not flushed before a crash never will be.
        let old = self.fragile.len().saturating_sub(200);
        self.fragile.drain(..old);
    }

    fn expect(&mut self, id: Id, expected: Expected, board: &Board) {
        if let Some(record) = self.unexplained.remove(&id) {
            self.compare(&record, &expected, board);
        }
        if self.firsts.contains_key(&id) {
            self.missing.remove(&id);
        }
        self.expected.insert(id, expected);
    }

    /// Takes what has come to Kafka since; brokers may be away.
    pub(crate) fn read_some(&mut self, board: &Board) {
        for place in 0..self.readers.len() {
            let _ = self.readers[place].poll(Duration::from_millis(50));
            let records = self.readers[place].take_records();
            records.into_iter().for_each(|record| self.take(record, board));
        }
        self.order(board);
    }

    /// Takes everything that is in Kafka by now.
    pub(crate) fn read_to_end(&mut self, board: &Board) {
        for place in 0..self.readers.len() {
            self.readers[place].read_to_end();
            let records = self.readers[place].take_records();
            records.into_iter().for_each(|record| self.take(record, board));
        }
        self.order(board);
    }

    /// A topic has so many partitions, or will in a moment.
    pub(crate) fn grows(&mut self, topic: &str, partitions: usize) {
        self.grown.insert(topic.to_owned(), partitions);
    }

    /// Looks for partitions that are new.
    pub(crate) fn look_again(&mut self) {
        self.readers.iter_mut().for_each(Reader::look_again);
    }

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

    fn take(&mut self, record: Record, board: &Board) {
        self.records += 1;
        let id = record.header("event_id").unwrap_or_default().to_owned();
        let position = record.header("factlib_position").unwrap_or_default().to_owned();
        let now = digest_record(&record);
        if let Some(first) = self.firsts.get(&id) {
            self.repeats += 1;
            // A crash just after a topic has grown repeats facts where their keys belong now.
            let elsewhere = first.partition != record.partition;
            let moves = elsewhere && self.grown.contains_key(&*record.topic) && !board.is_strict();
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
        log.position = position.clone().into();
        log.unordered.push_back(id.clone());
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        board.check(Invariant::Routing, self.is_home(&record, &key), || {
            format!("key {key:?} at {}, where Java would not put it", place(&record))
        });
        let first = First { partition: record.partition, position: position.into(), digest: now };
        self.firsts.insert(id.clone(), first);
        match self.expected.get(&id).cloned() {
            Some(expected) => self.compare(&record, &expected, board),
            None => {
                self.unexplained.insert(id, record);
            }
        }
    }

    /// Whether a record is what was emitted.
    fn compare(&mut self, record: &Record, expected: &Expected, board: &Board) {
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
        if *record.topic != format!("{}.{}", self.topic_prefix, event.aggregate_type) {
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
            || *self.source.get_or_insert(source.clone().unwrap_or_default())
                != source.clone().unwrap_or_default()
        {
            wrong.push(format!("header factlib_source {source:?}, before {:?}", self.source));
        }
        board.check(Invariant::Exact, wrong.is_empty(), || {
            format!("wrong {} at {}", wrong.join(", "), place(record))
        });
    }

    /// Looks at the order within aggregates, as far as facts are known.
    fn order(&mut self, board: &Board) {
        for ((topic, partition), log) in &mut self.logs {
            while let Some(id) = log.unordered.front() {
                let Some(expected) = self.expected.get(id) else { break };
                let Expected { aggregate, number, .. } = expected;
                if expected.number > 0 && self.grown.contains_key(topic) {
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

    /// After a kill and before a restart: is everything that the server may forget in Kafka? How many
    /// facts that were.
    pub(crate) fn acknowledged(&mut self, confirmed: Lsn, board: &Board) -> usize {
        self.read_to_end(board);
        let promised = |expected: &Expected| expected.end.is_some_and(|end| end <= confirmed);
        let lost: Vec<&Id> =
            self.missing.iter().filter(|id| promised(&self.expected[*id])).collect();
        board.check(Invariant::Acknowledged, lost.is_empty(), || {
            format!("{confirmed} is confirmed, and {} facts are not in Kafka: {:?}", lost.len(), {
                lost.iter().take(3).collect::<Vec<_>>()
            })
        });
        self.expected.values().filter(|expected| promised(expected)).count()
    }

    /// How many facts that end at or before `upto` are not in Kafka.
    pub(crate) fn missing(&self, upto: Lsn) -> usize {
        let due = |id: &&Id| self.expected[*id].end.is_some_and(|end| end <= upto);
        self.missing.iter().filter(due).count()
    }

    /// How many facts are known that are not in Kafka.
    pub(crate) fn backlog(&self) -> usize {
        self.missing.len()
    }

    /// How many different facts are in Kafka.
    pub(crate) fn published(&self) -> usize {
        self.firsts.len()
    }

    /// At the end of a round, when everything was healed and drained.
    pub(crate) fn close_round(&mut self, upto: Lsn, board: &Board) {
        let lost = self.missing(upto);
        board.check(Invariant::Loss, lost == 0, || {
            let due = |id: &&Id| self.expected[*id].end.is_some_and(|end| end <= upto);
            let some: Vec<_> = self.missing.iter().filter(due).take(3).collect();
            format!("{lost} facts that end before {upto} are not in Kafka: {some:?}")
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
            let steps = self.homes.range(..=self.most_partitions()).count();
            board.check(Invariant::Order, whole && runs.len() <= steps, || {
                format!("{aggregate} is in these partitions, with these numbers: {ordered:?}")
            });
        }
        for (id, record) in self.unexplained.drain() {
            board.check(Invariant::Phantom, false, || format!("{id} at {}", place(&record)));
        }
        if board.is_strict() {
            let repeats = self.repeats - self.repeats_before;
            board.check(Invariant::Repeats, repeats == 0, || {
                format!("{repeats} repeats in a round in which the relay lived")
            });
        }
        self.repeats_before = self.repeats;
        board.end_round();
    }
}

impl Expected {
    fn new(emitted: &Emitted, number: i64, lsn: Option<Lsn>, end: Option<Lsn>) -> Self {
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

fn place(record: &Record) -> String {
    format!("{}/{}@{}", record.topic, record.partition, record.offset)
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

/// When facts last came to Kafka, and the longest time without while there were some to come and
/// nothing was wrong.
#[derive(Debug)]
pub(crate) struct Stall {
    published: usize,
    moved: Instant,
    pub(crate) longest: Duration,
}

impl Stall {
    pub(crate) fn new() -> Self {
        Self { published: 0, moved: Instant::now(), longest: Duration::ZERO }
    }

    pub(crate) fn look(&mut self, judge: &Judge, board: &Board) {
        let now = Instant::now();
        let moves = judge.published() != self.published || judge.backlog() == 0;
        match board.quiet_since() {
            Some(healed) if !moves => {
                self.longest = self.longest.max(now - self.moved.max(healed));
            }
            _ => self.moved = now,
        }
        self.published = judge.published();
    }
}

/// Waits, looking every now and then.
pub(crate) fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    wait::poll(what, limit, || {
        if holds() {
            return Some(());
        }
        std::thread::sleep(Duration::from_millis(100));
        None
    })
    .is_ok()
}
