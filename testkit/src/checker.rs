//! Is what stands in Kafka what was committed?

use crate::envelope::OutboxEvent;
use crate::kafka::Record;
use crate::workload::Truth;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// Compares the truth with topics.
///
/// ```no_run
/// # let postgres = testkit::Postgres::builder().start();
/// # let kafka = testkit::Kafka::shared();
/// use testkit::checker::Checker;
///
/// let truth = testkit::workload::truth(&mut postgres.client());
/// let report = Checker::new(&truth).prefix("orders").check(&kafka.read_topic("orders.order"));
/// report.assert_clean();
/// ```
#[derive(Debug, Clone)]
pub struct Checker<'t> {
    truth: &'t [Truth],
    prefix: Option<String>,
    repeats_allowed: bool,
    partitions: HashMap<String, i32>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Facts that should be there.
    pub expected: usize,
    /// Records that were looked at.
    pub records: usize,
    /// Different facts among them.
    pub facts: usize,
    /// Records of a fact that had stood in its partition before.
    pub repeats: usize,
    /// Unbroken runs of such records: each is one step back of the relay.
    pub rewinds: Vec<Rewind>,
    /// Everything that is wrong.
    pub violations: Vec<Violation>,
}

/// An unbroken run of repeats in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewind {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// The offset of the run's first record.
    pub offset: i64,
    /// How many records it has.
    pub records: usize,
    /// Bytes of their keys, values and headers.
    pub bytes: usize,
}

/// Where a record stands: `topic/partition@offset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// There is no fact to look for: the test would prove nothing.
    EmptyTruth,
    /// The truth has this id more than once: the workload's seeds are not distinct.
    TruthRepeatsId(String),
    /// Committed, but not in Kafka.
    Lost(Truth),
    /// In Kafka, but never committed; or without an id.
    Phantom(Place, String),
    /// There before, where that is not allowed.
    Repeated(Place, String),
    /// There before, with other bytes; the text says what differs.
    AlteredRepeat(Place, String),
    /// A part of the first record is not what was committed.
    Wrong(Place, String),
    /// A fact stands behind a later one of its aggregate.
    OutOfOrder(Place, String),
    /// The position is not greater than that of the fact before it in its partition.
    PositionNotIncreasing(Place, String),
    /// The aggregate's facts are in more than one partition, or not where Java would put them.
    WrongPartition(Place, String),
}

impl<'t> Checker<'t> {
    /// Every fact exactly once.
    #[must_use]
    pub fn new(truth: &'t [Truth]) -> Self {
        Self { truth, prefix: None, repeats_allowed: false, partitions: HashMap::new() }
    }

    /// Every fact at least once, repeats identical to the byte.
    #[must_use]
    pub fn allow_repeats(mut self) -> Self {
        self.repeats_allowed = true;
        self
    }

    /// Topics must be `PREFIX.AGGREGATE_TYPE`.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_owned());
        self
    }

    /// Where each key must be, say by [`java_partitions`](crate::java_partitions).
    #[must_use]
    pub fn partitions(mut self, keys: &[String], partitions: &[i32]) -> Self {
        assert_eq!(keys.len(), partitions.len(), "a partition for each key");
        self.partitions = keys.iter().cloned().zip(partitions.iter().copied()).collect();
        self
    }

    /// Compares. The records may be of several topics and in any order.
    #[must_use]
    pub fn check(&self, records: &[Record]) -> Report {
        let mut check = Check {
            rules: self,
            truth: HashMap::new(),
            seen: HashMap::new(),
            homes: HashMap::new(),
            numbers: HashMap::new(),
            source: None,
            report: Report {
                expected: self.truth.len(),
                records: records.len(),
                ..Report::default()
            },
        };
        if self.truth.is_empty() {
            check.report.violations.push(Violation::EmptyTruth);
        }
        for fact in self.truth {
            if check.truth.insert(&fact.fact_id, fact).is_some() {
                let id = fact.fact_id.clone();
                check.report.violations.push(Violation::TruthRepeatsId(id));
            }
        }
        let mut partitions: BTreeMap<(&str, i32), Vec<&Record>> = BTreeMap::new();
        for record in records {
            partitions.entry((&record.topic, record.partition)).or_default().push(record);
        }
        for log in partitions.values_mut() {
            log.sort_by_key(|record| record.offset);
            check.partition(log);
        }
        let lost = self.truth.iter().filter(|fact| !check.seen.contains_key(fact.fact_id.as_str()));
        check.report.violations.extend(lost.cloned().map(Violation::Lost));
        check.report.facts = check.seen.len();
        check.report
    }
}

/// Those of the facts that are in none of the records.
#[must_use]
pub fn absent<'t>(facts: &[&'t Truth], records: &[Record]) -> Vec<&'t Truth> {
    let there: HashSet<&str> = records.iter().filter_map(|r| r.header("event_id")).collect();
    facts.iter().filter(|fact| !there.contains(fact.fact_id.as_str())).copied().collect()
}

struct Check<'t, 'r> {
    rules: &'r Checker<'t>,
    truth: HashMap<&'t str, &'t Truth>,
    /// The first record of each fact.
    seen: HashMap<&'t str, &'r Record>,
    /// Where each aggregate's facts are.
    homes: HashMap<(&'t str, &'t str), (&'r str, i32)>,
    /// The last number of each aggregate.
    numbers: HashMap<(&'t str, &'t str), i64>,
    source: Option<&'r str>,
    report: Report,
}

impl<'t, 'r> Check<'t, 'r> {
    fn partition(&mut self, log: &[&'r Record]) {
        let mut position: &[u8] = &[];
        let mut rewind: Option<Rewind> = None;
        for record in log {
            let id = record.header("event_id").unwrap_or_default();
            let Some(fact) = self.truth.get(id).copied() else {
                self.report.violations.push(Violation::Phantom(Place::of(record), id.to_owned()));
                continue;
            };
            if let Some(first) = self.seen.get(id).copied() {
                self.repeat(record, first, id);
                let rewind = rewind.get_or_insert_with(|| Rewind {
                    topic: record.topic.to_string(),
                    partition: record.partition,
                    offset: record.offset,
                    records: 0,
                    bytes: 0,
                });
                rewind.records += 1;
                rewind.bytes += size(record);
                continue;
            }
            self.report.rewinds.extend(rewind.take());
            self.seen.insert(&fact.fact_id, record);
            self.first(record, fact);
            self.place(record, fact);
            let next = find(record, "factlib_position").unwrap_or_default();
            if next <= position {
                let text = format!("{} after {}", lossy(next), lossy(position));
                self.report
                    .violations
                    .push(Violation::PositionNotIncreasing(Place::of(record), text));
            }
            position = position.max(next);
        }
        self.report.rewinds.extend(rewind);
    }

    fn repeat(&mut self, record: &Record, first: &Record, id: &str) {
        self.report.repeats += 1;
        let place = Place::of(record);
        if !self.rules.repeats_allowed {
            self.report.violations.push(Violation::Repeated(place, id.to_owned()));
            return;
        }
        let differs = [
            ("partition", (&record.topic, record.partition) == (&first.topic, first.partition)),
            ("key", record.key == first.key),
            ("value", record.value == first.value),
            ("headers", record.headers == first.headers),
            ("timestamp", record.timestamp_ms == first.timestamp_ms),
        ];
        for (what, _) in differs.into_iter().filter(|(_, same)| !same) {
            let text = format!("{what} of {id}, first at {}", Place::of(first));
            self.report.violations.push(Violation::AlteredRepeat(place.clone(), text));
        }
    }

    /// What the first record of a fact says.
    fn first(&mut self, record: &'r Record, fact: &Truth) {
        let mut wrong = Vec::new();
        if record.key.as_deref() != Some(fact.aggregate_id.as_bytes()) {
            wrong.push(format!("key {:?}", record.key.as_deref().map(lossy)));
        }
        if record.value.as_ref() != Some(&fact.content) {
            let length = record.value.as_ref().map(Vec::len);
            wrong
                .push(format!("value of {length:?} bytes, not the {} emitted", fact.content.len()));
        }
        if let Some(prefix) = &self.rules.prefix {
            let topic = format!("{prefix}.{}", fact.aggregate_type);
            if *record.topic != *topic {
                wrong.push(format!("topic, not {topic}"));
            }
        }
        let trace = OutboxEvent::from_bytes(&fact.content).ok().and_then(|event| event.trace_info);
        let lsn = fact.lsn.to_string();
        let expected = [
            ("event_type", Some(fact.event_type.as_str())),
            ("LSN", Some(lsn.as_str())),
            ("trace_id", trace.as_ref().map(|trace| trace.trace_id.as_str())),
            ("span_id", trace.as_ref().map(|trace| trace.span_id.as_str())),
        ];
        for (name, value) in expected {
            let found = find(record, name);
            if found != value.map(str::as_bytes) {
                wrong.push(format!("header {name} {:?}, not {value:?}", found.map(lossy)));
            }
        }
        let mut names = HashSet::new();
        for (name, _) in &record.headers {
            if !names.insert(name) {
                wrong.push(format!("header {name} twice"));
            }
        }
        match (record.header("factlib_source"), self.source) {
            (None, _) => wrong.push("no header factlib_source".to_owned()),
            (source, None) => self.source = source,
            (Some(source), Some(before)) if source != before => {
                wrong.push(format!("header factlib_source {source:?}, before {before:?}"));
            }
            _ => {}
        }
        let violation =
            |text| Violation::Wrong(Place::of(record), format!("{text} ({})", fact.fact_id));
        self.report.violations.extend(wrong.into_iter().map(violation));
    }

    /// Whether it stands in the right partition, and in its aggregate's order.
    fn place(&mut self, record: &'r Record, fact: &'t Truth) {
        let aggregate = (fact.aggregate_type.as_str(), fact.aggregate_id.as_str());
        let here = (&*record.topic, record.partition);
        let home = *self.homes.entry(aggregate).or_insert(here);
        if home != here {
            let text = format!("{} has facts in {}/{}", fact.aggregate_id, home.0, home.1);
            self.report.violations.push(Violation::WrongPartition(Place::of(record), text));
        }
        if let Some(expected) = self.rules.partitions.get(&fact.aggregate_id)
            && *expected != record.partition
        {
            let text = format!("{} belongs in partition {expected}", fact.aggregate_id);
            self.report.violations.push(Violation::WrongPartition(Place::of(record), text));
        }
        let last = self.numbers.entry(aggregate).or_insert(0);
        if fact.key_seq <= *last {
            let text = format!("{} {} after {last}", fact.aggregate_id, fact.key_seq);
            self.report.violations.push(Violation::OutOfOrder(Place::of(record), text));
        }
        *last = fact.key_seq.max(*last);
    }
}

impl Report {
    /// Panics with the first violations, in words.
    ///
    /// # Panics
    ///
    /// When there is any.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.violations.is_empty(), "{self}");
    }
}

impl Place {
    fn of(record: &Record) -> Self {
        Self { topic: record.topic.to_string(), partition: record.partition, offset: record.offset }
    }
}

fn find<'r>(record: &'r Record, name: &str) -> Option<&'r [u8]> {
    let (_, value) = record.headers.iter().find(|(key, _)| key == name)?;
    Some(value)
}

fn size(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    headers + record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.partition, self.offset)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyTruth => f.write_str("nothing was committed, so nothing is proved"),
            Self::TruthRepeatsId(id) => write!(f, "the truth has {id} twice"),
            Self::Lost(fact) => write!(
                f,
                "lost: {} ({} {}, transaction {}, {})",
                fact.fact_id, fact.aggregate_id, fact.key_seq, fact.xid, fact.lsn
            ),
            Self::Phantom(place, id) => write!(f, "{place}: never committed: {id:?}"),
            Self::Repeated(place, id) => write!(f, "{place}: repeated: {id}"),
            Self::AlteredRepeat(place, what) => write!(f, "{place}: repeat differs: {what}"),
            Self::Wrong(place, what) => write!(f, "{place}: wrong {what}"),
            Self::OutOfOrder(place, what) => write!(f, "{place}: out of order: {what}"),
            Self::PositionNotIncreasing(place, what) => {
                write!(f, "{place}: position not increasing: {what}")
            }
            Self::WrongPartition(place, what) => write!(f, "{place}: wrong partition: {what}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, records, facts, repeats, violations, .. } = self;
        let lost = violations.iter().filter(|v| matches!(v, Violation::Lost(_))).count();
        writeln!(
            f,
            "{facts} of {expected} facts in {records} records, {lost} lost, {repeats} repeats, \
             {} violations",
            violations.len()
        )?;
        for violation in violations.iter().take(20) {
            writeln!(f, "  {violation}")?;
        }
        match violations.len().saturating_sub(20) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more"),
        }
    }
}
