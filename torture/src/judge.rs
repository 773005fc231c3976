//! Compares what PostgreSQL says was committed with what stands in Kafka, while both go on.
//!
//! For each fact it keeps some numbers and no content, so that an hour fits into memory. Where facts go in Kafka transactions
//! it looks through the eyes of two consumers of committed records that are not ours, each by itself.

use crate::arguments::Delivery;
use crate::board::Board;
use crate::invariant::Invariant;
use crate::view::{Expected, Id, Known, Source, View};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::oracle::{self, Commits};
use testkit::traffic::{self, Running, Traffic};
use testkit::{Kafka, Lsn, Postgres, Record, wait};

/// Everything that is known of what should be in Kafka, and of what is.
#[derive(Debug)]
pub(crate) struct Judge {
    commits: Commits,
    known: Known,
    /// What readers see; with exactly-once delivery there are two.
    views: Vec<View>,
    /// Transactions that were committed, and where; their facts were not visible yet.
    unseen: HashMap<u64, Lsn>,
    /// How many of the messages outside of transactions were taken over.
    loose: usize,
    /// Those of them that a crash may still undo.
    fragile: Vec<usize>,
    pub(crate) facts: usize,
    pub(crate) transactions: usize,
}

/// How a judge is told what to expect.
#[derive(Debug)]
pub(crate) struct Case<'c> {
    pub(crate) postgres: &'c Postgres,
    pub(crate) kafka: &'c Kafka,
    pub(crate) traffic: &'c Traffic,
    /// Of all aggregates' types.
    pub(crate) topics: &'c [String],
    pub(crate) partitions: usize,
    /// How many they may become.
    pub(crate) growth: &'c [usize],
    pub(crate) delivery: Delivery,
    /// Has librdkafka.
    pub(crate) python: &'c Path,
}

impl Case<'_> {
    fn views(&self) -> Vec<View> {
        let Self { kafka, topics, .. } = self;
        let sources = match self.delivery {
            Delivery::AtLeastOnce => {
                let readers = topics.iter().map(|topic| kafka.reader(topic));
                vec![Source::Readers(readers.collect())]
            }
            Delivery::ExactlyOnce => vec![
                Source::Follower(kafka.follow_by_java(topics)),
                Source::Follower(kafka.follow_by_librdkafka(self.python, topics)),
            ],
        };
        sources.into_iter().map(View::new).collect()
    }
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
        Self {
            commits: Commits::watch(&mut case.postgres.client(), "oracle"),
            known: Known {
                expected: HashMap::new(),
                facts_of: HashMap::new(),
                homes,
                grown: HashMap::new(),
                partitions: case.partitions,
                topic_prefix: case.traffic.prefix.clone(),
            },
            views: case.views(),
            unseen: HashMap::new(),
            loose: 0,
            fragile: Vec::new(),
            facts: 0,
            transactions: 0,
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
        let mut facts_of: HashMap<Lsn, usize> = HashMap::new();
        committed.iter().for_each(|fact| *facts_of.entry(ends[&fact.xid]).or_default() += 1);
        self.known.facts_of.extend(facts_of);
        let mut transactions = HashSet::new();
        for fact in committed {
            if self.known.expected.contains_key(&fact.emitted.fact_id) {
                continue;
            }
            transactions.insert(fact.xid);
            self.facts += 1;
            let id = fact.emitted.fact_id.clone();
            let expected =
                Expected::new(&fact.emitted, fact.key_seq, Some(fact.lsn), Some(ends[&fact.xid]));
            self.known.expected.insert(id.clone(), expected);
            self.expect(&id, true, board);
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
                let expected = Expected::new(&message.emitted, 0, None, None);
                self.known.expected.insert(id.clone(), expected);
                self.expect(&id, false, board);
            }
            if !message.durable {
                continue;
            }
            if let Some(expected) = self.known.expected.get_mut(&id)
                && expected.end.is_none()
            {
                (expected.lsn, expected.end) = (message.lsn, message.lsn);
                self.expect(&id, true, board);
            }
            self.fragile.retain(|fragile| *fragile != place);
        }
        // What was not flushed before a crash never will be.
        let old = self.fragile.len().saturating_sub(200);
        self.fragile.drain(..old);
    }

    fn expect(&mut self, id: &Id, is_due: bool, board: &Board) {
        self.views.iter_mut().for_each(|view| view.expect(&self.known, id, is_due, board));
    }

    fn order(&mut self, board: &Board) {
        self.views.iter_mut().for_each(|view| view.order(&self.known, board));
    }

    /// Takes what has come to Kafka since; brokers may be away.
    pub(crate) fn read_some(&mut self, board: &Board) {
        self.read(View::some, board);
    }

    /// Takes everything that is in Kafka by now.
    pub(crate) fn read_to_end(&mut self, board: &Board) {
        self.read(View::all, board);
    }

    fn read(&mut self, source: impl Fn(&mut View) -> Vec<Record>, board: &Board) {
        for place in 0..self.views.len() {
            for record in source(&mut self.views[place]) {
                let others = self.views.iter().enumerate().filter(|(other, _)| *other != place);
                others.for_each(|(_, other)| other.agree(&record, board));
                self.views[place].take(&self.known, record, board);
            }
        }
        self.order(board);
    }

    /// A topic has so many partitions, or will in a moment.
    pub(crate) fn grows(&mut self, topic: &str, partitions: usize) {
        self.known.grown.insert(topic.to_owned(), partitions);
    }

    /// Looks for partitions that are new.
    pub(crate) fn look_again(&mut self) {
        self.views.iter_mut().for_each(View::look_again);
    }

    /// After a kill and before a restart: is everything that the server may forget in Kafka? How many
    /// facts that were.
    pub(crate) fn acknowledged(&mut self, confirmed: Lsn, board: &Board) -> usize {
        self.read_to_end(board);
        for view in &self.views {
            let lost = view.missing(&self.known, confirmed);
            board.check(Invariant::Acknowledged, lost.is_empty(), || {
                let some = &lost[..lost.len().min(3)];
                let count = lost.len();
                format!("{confirmed} is confirmed, and {count} facts are not in Kafka: {some:?}")
            });
        }
        let promised = |expected: &&Expected| expected.end.is_some_and(|end| end <= confirmed);
        self.known.expected.values().filter(promised).count()
    }

    /// How many facts that end at or before `upto` some reader has not seen.
    pub(crate) fn missing(&self, upto: Lsn) -> usize {
        let missing = self.views.iter().map(|view| view.missing(&self.known, upto).len());
        missing.max().unwrap_or_default()
    }

    /// How many facts are known that some reader has not seen.
    pub(crate) fn backlog(&self) -> usize {
        self.views.iter().map(View::backlog).max().unwrap_or_default()
    }

    /// How many different facts all readers have seen.
    pub(crate) fn published(&self) -> usize {
        self.views.iter().map(View::published).min().unwrap_or_default()
    }

    /// How many records were read.
    pub(crate) fn records(&self) -> usize {
        self.views.iter().map(|view| view.records).max().unwrap_or_default()
    }

    /// How many of them again.
    pub(crate) fn repeats(&self) -> usize {
        self.views.iter().map(|view| view.repeats).max().unwrap_or_default()
    }

    /// No Kafka transaction is open and nobody publishes: is each transaction of PostgreSQL seen as a whole, or not at all?
    pub(crate) fn look_whole(&mut self, board: &Board) {
        self.views.iter_mut().for_each(|view| view.look_whole(board));
    }

    /// At the end of a round, when everything was healed and drained.
    pub(crate) fn close_round(&mut self, upto: Lsn, board: &Board) {
        self.views.iter_mut().for_each(|view| view.close_round(&self.known, upto, board));
        board.end_round();
    }
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
