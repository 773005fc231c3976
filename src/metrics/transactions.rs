//! What is counted of Kafka transactions, where facts go in some.

use super::histogram::{BYTES, Histogram, SECONDS, TRANSACTION_FACTS};
use crate::relay::event::{AbortReason, Event, Phases};
use std::collections::BTreeMap;

/// In which state the time went: as [`TransactionState`](crate::relay::producer::TransactionState) calls them.
pub(crate) const PHASES: [&str; 4] = ["producing", "closing", "ending", "recovering"];

/// Since the start.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Transactions {
    pub(crate) committed: u64,
    /// Those that were given up, by the reason's name.
    pub(crate) aborted: BTreeMap<&'static str, u64>,
    pub(crate) fenced: u64,
    pub(crate) initialised: u64,
    /// Transactions of PostgreSQL that went in several.
    pub(crate) split: u64,
    pub(crate) facts: Histogram,
    pub(crate) bytes: Histogram,
    producing: Histogram,
    closing: Histogram,
    ending: Histogram,
    recovering: Histogram,
}

impl Default for Transactions {
    fn default() -> Self {
        let seconds = || Histogram::new(SECONDS);
        Self {
            committed: 0,
            // So that a rate has something to begin with.
            aborted: AbortReason::ALL.iter().map(|reason| (reason.as_str(), 0)).collect(),
            fenced: 0,
            initialised: 0,
            split: 0,
            facts: Histogram::new(TRANSACTION_FACTS),
            bytes: Histogram::new(BYTES),
            producing: seconds(),
            closing: seconds(),
            ending: seconds(),
            recovering: seconds(),
        }
    }
}

impl Transactions {
    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::TransactionCommitted { facts, bytes, phases, .. } => {
                self.committed += 1;
                #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                let (facts, bytes) = (*facts as f64, *bytes as f64);
                self.facts.observe(facts, 1);
                self.bytes.observe(bytes, 1);
                let Phases { producing, closing, ending } = phases;
                self.producing.observe(producing.as_secs_f64(), 1);
                self.closing.observe(closing.as_secs_f64(), 1);
                self.ending.observe(ending.as_secs_f64(), 1);
            }
            Event::TransactionAborted { reason, .. } => {
                *self.aborted.entry(reason.as_str()).or_default() += 1;
            }
            Event::TransactionsRecovered { after } => {
                self.recovering.observe(after.as_secs_f64(), 1);
            }
            Event::Transactional { .. } => self.initialised += 1,
            Event::TransactionSplit { part: 1, .. } => self.split += 1,
            Event::Fenced { .. } => self.fenced += 1,
            _ => {}
        }
    }

    /// By [`PHASES`].
    pub(crate) fn phases(&self) -> [(&'static str, &Histogram); 4] {
        let [producing, closing, ending, recovering] = PHASES;
        [
            (producing, &self.producing),
            (closing, &self.closing),
            (ending, &self.ending),
            (recovering, &self.recovering),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::producer::TransactionState;

    #[test]
    fn phases_have_the_names_of_states() {
        for phase in PHASES {
            assert!(TransactionState::ALL.iter().any(|state| state.as_str() == phase), "{phase}");
        }
    }
}
