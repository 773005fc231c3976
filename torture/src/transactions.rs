//! What the log says of Kafka transactions, read by nobody's rules: how many were committed and aborted, and whether
//! one is open.

use std::collections::HashSet;
use std::time::Duration;
use testkit::{Kafka, Reader};

/// Where a committed transaction leaves its relay's position, and a marker.
pub(crate) const GROUPS: &str = "__consumer_offsets";

/// What the coordinator of transactions keeps.
pub(crate) const COORDINATED: &str = "__transaction_state";

/// Reads everything that is written, whatever became of it.
#[derive(Debug)]
pub(crate) struct Transactions {
    facts: Vec<Reader>,
    positions: Reader,
    records: usize,
    committed: usize,
    /// Producers whose transaction was aborted. Each has an epoch of its own, but for a relay's own abort where
    /// `transaction.version` is below 2.
    aborted: HashSet<(i64, i16)>,
}

impl Transactions {
    pub(crate) fn new(kafka: &Kafka, topics: &[String]) -> Self {
        Self {
            facts: topics.iter().map(|topic| kafka.reader(topic)).collect(),
            positions: kafka.reader(GROUPS),
            records: 0,
            committed: 0,
            aborted: HashSet::new(),
        }
    }

    /// Takes what has come since; brokers may be away.
    pub(crate) fn read_some(&mut self) {
        for reader in self.facts.iter_mut().chain([&mut self.positions]) {
            let _ = reader.poll(Duration::ZERO);
        }
        self.count();
    }

    /// Takes everything that is written by now.
    pub(crate) fn read_to_end(&mut self) {
        for reader in self.facts.iter_mut().chain([&mut self.positions]) {
            reader.read_to_end();
        }
        self.count();
    }

    fn count(&mut self) {
        for reader in &mut self.facts {
            self.records += reader.take_records().len();
            let ends = reader.take_markers();
            let aborted = ends.iter().filter(|end| !end.commits).map(|end| end.producer);
            self.aborted.extend(aborted);
        }
        let _ = self.positions.take_records();
        self.committed += self.positions.take_markers().iter().filter(|end| end.commits).count();
    }

    /// Looks for partitions that are new.
    pub(crate) fn look_again(&mut self) {
        self.facts.iter_mut().for_each(Reader::look_again);
    }

    /// Whether a transaction is open in a topic of facts; `None` where a broker does not say.
    pub(crate) fn is_open(&mut self) -> Option<bool> {
        let mut open = false;
        for reader in &mut self.facts {
            open |= reader.is_open().ok()?;
        }
        Some(open)
    }

    /// How many left a position.
    pub(crate) fn committed(&self) -> usize {
        self.committed
    }

    /// At least so many were aborted with facts in them.
    pub(crate) fn aborted(&self) -> usize {
        self.aborted.len()
    }

    /// How many records were written, also those that were aborted.
    pub(crate) fn records(&self) -> usize {
        self.records
    }
}
