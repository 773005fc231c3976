//! What the log says of Kafka transactions, whatever became of them.

use std::collections::HashSet;
use testkit::{Kafka, Reader};

/// Where a committed transaction leaves its relay's position, and an end.
pub(crate) const GROUPS: &str = "__consumer_offsets";

/// What the coordinator of transactions keeps.
pub(crate) const COORDINATED: &str = "__transaction_state";

/// Knows whether one is open.
#[derive(Debug)]
pub(crate) struct Transactions {
    readers: Vec<Reader>,
}

/// What is in the log.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Transactions that left a position.
    pub(crate) committed: usize,
    /// Transactions that were aborted with facts in them, at least: each has an epoch of its own, but for those that a relay
    /// aborts itself where `transaction.version` is below 2.
    pub(crate) aborted: usize,
    /// Records, also of those that were aborted.
    pub(crate) records: usize,
}

impl Transactions {
    pub(crate) fn new(kafka: &Kafka, topics: &[String]) -> Self {
        Self { readers: topics.iter().map(|topic| kafka.reader(topic)).collect() }
    }

    /// Looks for partitions that are new.
    pub(crate) fn look_again(&mut self) {
        self.readers.iter_mut().for_each(Reader::look_again);
    }

    /// Whether one is open in a topic of facts; `None` where a broker does not say.
    pub(crate) fn is_open(&mut self) -> Option<bool> {
        let mut open = false;
        for reader in &mut self.readers {
            open |= reader.is_open().ok()?;
        }
        Some(open)
    }
}

impl Tally {
    pub(crate) fn of(kafka: &Kafka, topics: &[String]) -> Self {
        let facts: Vec<_> = topics.iter().flat_map(|topic| kafka.batches(topic)).collect();
        let aborted = facts.iter().filter(|batch| batch.ends == Some(false));
        let positions = kafka.batches(GROUPS);
        Self {
            committed: positions.iter().filter(|batch| batch.ends == Some(true)).count(),
            aborted: aborted.map(|batch| batch.producer).collect::<HashSet<_>>().len(),
            records: facts.iter().map(|batch| batch.records).sum(),
        }
    }
}
