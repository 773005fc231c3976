//! Which units are read but not settled: the only source of the flush LSN.
//!
//! Units are named by the WAL and arrive in increasing order, and batches settle in order within
//! their partition. So one fact or ten thousand in a transaction cost the same: the ledger counts
//! batches, by the unit of their first fact, and never facts.

use super::position::Unit;
use factlib_protocol::Lsn;
use std::collections::{BTreeMap, VecDeque};

/// What has been read, what of it is settled, and what may therefore be promised to the server.
#[derive(Debug, Default)]
pub struct Ledger {
    flush: Lsn,
    /// The unit whose facts are being read, until its end.
    open: Option<Unit>,
    /// Units read to their end, in order, and the LSN each lets us confirm. Only one entry is kept
    /// between two places where the oldest unsettled unit can come to stand, so the queue is never
    /// longer than there are unsettled batches, plus one.
    ended: VecDeque<(Unit, Lsn)>,
    /// First unit of every unsettled batch, and how many batches start there.
    unsettled: BTreeMap<Unit, usize>,
}

impl Ledger {
    /// The position to report as flushed and applied: everything before it is in Kafka for good.
    /// [`Lsn::INVALID`], "no opinion", while there is no such position.
    pub fn flush(&self) -> Lsn {
        self.flush
    }

    /// True when no fact is unsettled and no unit is half read.
    pub fn is_idle(&self) -> bool {
        self.unsettled.is_empty() && self.open.is_none()
    }

    /// True when no fact is unsettled. A unit may be half read.
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// `Begin` was read, or a non-transactional message is about to be.
    pub fn begin(&mut self, unit: Unit) {
        self.open = Some(unit);
    }

    /// A batch was begun, and its first fact belongs to `unit`.
    pub fn batch_opened(&mut self, unit: Unit) {
        *self.unsettled.entry(unit).or_default() += 1;
    }

    /// The batch that was opened with `unit` is settled. Batches settle in any order.
    pub fn batch_settled(&mut self, unit: Unit) {
        if let Some(batches) = self.unsettled.get_mut(&unit) {
            *batches -= 1;
            if *batches == 0 {
                self.unsettled.remove(&unit);
            }
        }
        self.advance();
    }

    /// The end of the unit was read: `Commit`, whose `end_lsn` is `end`, or a non-transactional
    /// message, whose own LSN is.
    pub fn end(&mut self, unit: Unit, end: Lsn) {
        self.open = None;
        match self.ended.back_mut() {
            Some(last) if last.0 >= unit => {}
            // Nothing can settle between the two, so the earlier one need not be remembered.
            Some(last)
                if self.unsettled.range(last.0..=unit).all(|(first, _)| *first == last.0) =>
            {
                *last = (unit, end);
            }
            _ => self.ended.push_back((unit, end)),
        }
        self.advance();
    }

    /// A keepalive said that the server has handed on everything before `wal_end`.
    ///
    /// `walEnd` is the end of the last record that went through the output plugin before the
    /// keepalive, so it may be confirmed if and only if nothing read before it is unsettled;
    /// without this, traffic that carries no facts keeps the WAL for ever.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if self.is_idle() {
            self.flush = self.flush.max(wal_end);
        }
    }

    /// The connection is gone: units that were not confirmed come again, under the same names.
    /// Batches stay; what settles meanwhile counts.
    pub fn disconnected(&mut self) {
        self.open = None;
        self.ended.clear();
    }

    /// Another timeline: LSNs of the old one mean nothing here, and its batches hold nothing back.
    pub fn timeline_changed(&mut self) {
        *self = Self::default();
    }

    /// A deliberate defect for tests that must go red: confirms what is merely read.
    #[cfg(feature = "seeded-bugs")]
    pub(super) fn confirm_on_read(&mut self, end: Lsn) {
        self.flush = self.flush.max(end);
    }

    fn advance(&mut self) {
        let oldest = self.unsettled.keys().next().copied();
        while let Some((unit, end)) = self.ended.front().copied() {
            if oldest.is_some_and(|oldest| oldest <= unit) {
                break;
            }
            self.flush = self.flush.max(end);
            self.ended.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tx(lsn: u64) -> Unit {
        Unit::transaction(Lsn(lsn))
    }

    #[test]
    fn a_late_settlement_holds_everything_after_it() {
        let mut ledger = Ledger::default();
        for lsn in [10, 20, 30] {
            ledger.begin(tx(lsn));
            ledger.batch_opened(tx(lsn));
            ledger.end(tx(lsn), Lsn(lsn + 5));
        }
        ledger.batch_settled(tx(30));
        ledger.batch_settled(tx(20));
        assert_eq!(ledger.flush(), Lsn::INVALID);
        ledger.batch_settled(tx(10));
        assert_eq!(ledger.flush(), Lsn(35));
    }

    #[test]
    fn a_transaction_is_not_confirmed_before_its_commit_is_read() {
        let mut ledger = Ledger::default();
        ledger.begin(tx(10));
        ledger.batch_opened(tx(10));
        ledger.batch_settled(tx(10));
        ledger.keepalive(Lsn(12));
        assert_eq!(ledger.flush(), Lsn::INVALID);
        ledger.end(tx(10), Lsn(15));
        assert_eq!(ledger.flush(), Lsn(15));
    }

    #[test]
    fn a_keepalive_advances_only_when_nothing_is_unsettled() {
        let mut ledger = Ledger::default();
        ledger.keepalive(Lsn(5));
        assert_eq!(ledger.flush(), Lsn(5));
        ledger.begin(tx(10));
        ledger.batch_opened(tx(10));
        ledger.end(tx(10), Lsn(15));
        ledger.keepalive(Lsn(99));
        assert_eq!(ledger.flush(), Lsn(5));
        ledger.batch_settled(tx(10));
        assert_eq!(ledger.flush(), Lsn(15));
        ledger.keepalive(Lsn(99));
        ledger.keepalive(Lsn(50));
        assert_eq!(ledger.flush(), Lsn(99));
    }

    #[test]
    fn units_without_facts_are_confirmed_behind_settled_ones_and_cost_nothing() {
        let mut ledger = Ledger::default();
        ledger.batch_opened(tx(10));
        ledger.end(tx(10), Lsn(15));
        for lsn in 0..100_000 {
            ledger.end(tx(20 + lsn), Lsn(21 + lsn));
        }
        assert!(ledger.ended.len() <= 2, "{}", ledger.ended.len());
        ledger.batch_settled(tx(10));
        assert_eq!(ledger.flush(), Lsn(100_020));
    }

    #[test]
    fn a_reconnect_joins_what_comes_again_to_what_is_in_flight() {
        let mut ledger = Ledger::default();
        for lsn in [10, 20] {
            ledger.batch_opened(tx(lsn));
            ledger.end(tx(lsn), Lsn(lsn + 5));
        }
        ledger.disconnected();
        ledger.batch_settled(tx(10));
        ledger.keepalive(Lsn(8));
        assert_eq!(ledger.flush(), Lsn::INVALID, "20 is still unsettled");
        ledger.begin(tx(10));
        ledger.end(tx(10), Lsn(15));
        assert_eq!(ledger.flush(), Lsn(15));
        ledger.begin(tx(20));
        ledger.end(tx(20), Lsn(25));
        assert_eq!(ledger.flush(), Lsn(15));
        ledger.batch_settled(tx(20));
        assert_eq!(ledger.flush(), Lsn(25));
    }

    #[derive(Debug, Clone)]
    enum Op {
        /// A transaction with a fact in each of these partitions, in this order.
        Transaction(Vec<usize>),
        Seal(usize),
        Settle(usize),
        Reconnect,
        Keepalive,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => proptest::collection::vec(0..3_usize, 0..5).prop_map(Op::Transaction),
            2 => (0..3_usize).prop_map(Op::Seal),
            4 => (0..3_usize).prop_map(Op::Settle),
            1 => Just(Op::Reconnect),
            1 => Just(Op::Keepalive),
        ]
    }

    proptest! {
        /// Against a model that remembers every single fact.
        #[test]
        fn the_flush_lsn_never_passes_an_unsettled_fact(ops in proptest::collection::vec(op(), 1..120)) {
            let mut ledger = Ledger::default();
            // Per partition: batches, each the units of its facts; the last one is open.
            let mut partitions: Vec<VecDeque<(bool, Vec<u64>)>> = vec![VecDeque::new(); 3];
            let mut wal: Vec<(u64, Vec<usize>)> = Vec::new();
            let mut read = 0;
            let mut enqueued = 0;
            let mut before = Lsn::INVALID;
            for op in ops {
                match op {
                    Op::Transaction(facts) => wal.push((10 * (wal.len() as u64 + 1), facts)),
                    Op::Seal(p) => if let Some(last) = partitions[p].back_mut() { last.0 = true },
                    Op::Settle(p) => {
                        if partitions[p].front().is_some_and(|batch| batch.0) {
                            let (_, units) = partitions[p].pop_front().unwrap();
                            ledger.batch_settled(tx(units[0]));
                        }
                    }
                    Op::Reconnect => {
                        ledger.disconnected();
                        read = wal.iter().position(|(lsn, _)| Lsn(lsn + 5) > ledger.flush()).unwrap_or(wal.len());
                    }
                    Op::Keepalive => {
                        let end = if read == 0 { 0 } else { wal[read - 1].0 + 7 };
                        ledger.keepalive(Lsn(end));
                    }
                }
                while read < wal.len() {
                    let (lsn, facts) = &wal[read];
                    ledger.begin(tx(*lsn));
                    for p in facts {
                        if *lsn <= enqueued { continue }
                        match partitions[*p].back_mut() {
                            Some((false, units)) => units.push(*lsn),
                            _ => {
                                partitions[*p].push_back((false, vec![*lsn]));
                                ledger.batch_opened(tx(*lsn));
                            }
                        }
                    }
                    enqueued = enqueued.max(*lsn);
                    ledger.end(tx(*lsn), Lsn(lsn + 5));
                    read += 1;
                }
                let oldest = partitions.iter().flatten().flat_map(|(_, units)| units).min();
                if let Some(oldest) = oldest {
                    prop_assert!(ledger.flush() <= Lsn(*oldest), "{:?} passes {oldest}", ledger.flush());
                } else if let Some((last, _)) = wal.last() {
                    prop_assert!(ledger.flush() >= Lsn(last + 5), "all settled, but not confirmed");
                }
                prop_assert!(ledger.flush() >= before);
                before = ledger.flush();
            }
        }
    }
}
