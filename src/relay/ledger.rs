//! Which units are read but not settled: the only source of the flush LSN, and of how much a crash
//! would repeat.
//!
//! Units are named by the WAL and arrive in increasing order, and batches settle in order within
//! their partition. So one fact or ten thousand in a transaction cost the same: the ledger counts
//! batches, by the unit of their first fact, and never facts.

use super::position::Unit;
use super::seeded_bug::{Seeded, SeededBug};
use factlib_protocol::Lsn;
use std::collections::{BTreeMap, VecDeque};

/// What has been read, what of it is settled, and what may therefore be promised to the server.
#[derive(Debug, Default)]
pub struct Ledger {
    flush: Lsn,
    /// The unit whose facts are being read, until its end.
    open: Option<Unit>,
    /// Units read to their end, in order. Only one entry is kept between two places where the oldest
    /// unsettled unit can come to stand, so the queue is never longer than there are unsettled batches,
    /// plus one.
    ended: VecDeque<Ended>,
    /// The place of every unsettled batch, and how many batches have it.
    unsettled: BTreeMap<Place, usize>,
    /// Encoded bytes that were ever enqueued.
    enqueued: u64,
    /// How many of them had been when the unit that gave [`Ledger::flush`] ended.
    confirmed: u64,
    /// The same of the flush LSN that the server was told last.
    told: u64,
    /// Where the server is told only what a position in Kafka holds: that position.
    position: Option<Lsn>,
    pub(super) seeded: Seeded,
}

/// A batch's place: the unit of its first fact, and how many bytes were enqueued before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    unit: Unit,
    before: u64,
}

impl Place {
    /// The first place in `unit`.
    const fn start_of(unit: Unit) -> Self {
        Self { unit, before: 0 }
    }

    /// The last one.
    const fn end_of(unit: Unit) -> Self {
        Self { unit, before: u64::MAX }
    }
}

/// A unit that was read to its end.
#[derive(Debug, Clone, Copy)]
struct Ended {
    unit: Unit,
    /// What it lets us confirm.
    end: Lsn,
    /// Bytes that were enqueued by then.
    enqueued: u64,
}

impl Ledger {
    /// The position to report as flushed and applied: everything before it is in Kafka for good.
    /// [`Lsn::INVALID`], "no opinion", while there is no such position.
    pub fn flush(&self) -> Lsn {
        self.position.unwrap_or(self.flush)
    }

    /// From here on nothing is confirmed but what [`Ledger::positioned`] is told of.
    pub fn follow_positions(&mut self) {
        self.position = Some(Lsn::INVALID);
    }

    /// A position is in Kafka for good, before which everything is: the server may forget that.
    pub fn positioned(&mut self, at: Lsn) {
        if let Some(position) = &mut self.position {
            *position = (*position).max(at);
        }
    }

    /// Up to where everything was read, or was nobody's of ours. It could be confirmed if it were settled.
    pub fn read(&self) -> Lsn {
        self.ended.back().map_or(self.flush, |ended| ended.end.max(self.flush))
    }

    /// True when no fact is unsettled and no unit is half read.
    pub fn is_idle(&self) -> bool {
        self.unsettled.is_empty() && self.open.is_none()
    }

    /// True when no fact is unsettled. A unit may be half read.
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// Before anything is read: the server says that everything before `flush` was confirmed.
    pub fn confirmed_before(&mut self, flush: Lsn) {
        self.flush = self.flush.max(flush);
    }

    /// `Begin` was read, or a non-transactional message is about to be.
    pub fn begin(&mut self, unit: Unit) {
        self.open = Some(unit);
    }

    /// A batch was begun, and its first fact belongs to `unit`.
    pub fn batch_opened(&mut self, unit: Unit) -> Place {
        self.open(Place { unit, before: self.enqueued })
    }

    /// The batch at `place` was divided, and the first fact of its second part belongs to `unit`. The first
    /// part keeps the place.
    pub fn batch_divided(&mut self, place: Place, unit: Unit) -> Place {
        self.open(Place { unit, before: place.before })
    }

    fn open(&mut self, place: Place) -> Place {
        *self.unsettled.entry(place).or_default() += 1;
        place
    }

    /// The newest batch of a partition grew by so many encoded bytes.
    pub fn enqueued(&mut self, bytes: usize) {
        self.enqueued = self.enqueued.saturating_add(bytes as u64);
    }

    /// The batch at `place` is settled. Batches settle in any order.
    pub fn batch_settled(&mut self, place: Place) {
        if let Some(batches) = self.unsettled.get_mut(&place) {
            *batches -= 1;
            if *batches == 0 {
                self.unsettled.remove(&place);
                self.join_around(place.unit);
            }
        }
        self.advance();
    }

    /// The oldest unsettled unit cannot come to stand at `unit` any more, unless another batch begins there.
    fn join_around(&mut self, unit: Unit) {
        let here = Place::start_of(unit);
        let next = self.unsettled.range(here..).next().map(|(place, _)| place.unit);
        let last = self.unsettled.range(..here).next_back().map(|(place, _)| place.unit);
        let at = self.ended.partition_point(|ended| ended.unit < unit);
        let behind = |ended: &Ended| next.is_none_or(|next| ended.unit < next);
        let before = |ended: &Ended| last.is_none_or(|last| last <= ended.unit);
        if let Some(earlier) = at.checked_sub(1)
            && self.ended.get(earlier).is_some_and(before)
            && self.ended.get(at).is_some_and(behind)
        {
            self.ended.remove(earlier);
        }
    }

    /// How many encoded bytes were enqueued since the oldest unsettled batch was begun, settled or not.
    ///
    /// A crash repeats these, those that are [untold](Ledger::untold), and what is settled of the
    /// transaction in which that batch begins.
    pub fn held(&self) -> u64 {
        let oldest = self.unsettled.keys().next().map_or(self.enqueued, |place| place.before);
        self.enqueued - oldest
    }

    /// How many encoded bytes are confirmed, and the server was not told so.
    pub fn untold(&self) -> u64 {
        self.confirmed - self.told
    }

    /// The server was told [`Ledger::flush`].
    pub fn told(&mut self) {
        self.told = self.confirmed;
    }

    /// The end of the unit was read: `Commit`, whose `end_lsn` is `end`, or a non-transactional
    /// message, whose own LSN is.
    pub fn end(&mut self, unit: Unit, end: Lsn) {
        self.open = None;
        let ended = Ended { unit, end, enqueued: self.enqueued };
        match self.ended.back_mut() {
            Some(last) if last.unit >= unit => {}
            // Nothing can settle between the two, so the earlier one need not be remembered.
            Some(last)
                if self
                    .unsettled
                    .range(Place::start_of(last.unit)..=Place::end_of(unit))
                    .all(|(place, _)| place.unit == last.unit) =>
            {
                *last = ended;
            }
            _ => self.ended.push_back(ended),
        }
        self.advance();
    }

    /// A keepalive said that the server has handed on everything before `wal_end`.
    ///
    /// `walEnd` is the end of the last record that went through the output plugin before the
    /// keepalive, so it may be confirmed if and only if nothing read before it is unsettled;
    /// without this, traffic that carries no facts keeps the WAL for ever.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        let idle = self.is_idle() || self.seeded.is(SeededBug::KeepaliveInFlight);
        if idle && wal_end > self.flush {
            self.flush = wal_end;
            self.confirmed = self.enqueued;
        }
    }

    /// The connection is gone: units that were not confirmed come again, under the same names and with the
    /// same ends. Batches stay; what settles meanwhile counts.
    pub fn disconnected(&mut self) {
        self.open = None;
    }

    /// Another timeline: LSNs of the old one mean nothing here, and its batches hold nothing back.
    pub fn timeline_changed(&mut self) {
        let Self { enqueued, seeded, .. } = *self;
        let position = self.position.map(|_| Lsn::INVALID);
        let (confirmed, told) = (enqueued, enqueued);
        *self = Self { enqueued, confirmed, told, position, seeded, ..Self::default() };
    }

    /// A deliberate defect for tests that must go red: confirms what is merely read.
    pub(super) fn confirm_on_read(&mut self, end: Lsn) {
        self.flush = self.flush.max(end);
    }

    fn advance(&mut self) {
        let mut unsettled = self.unsettled.keys();
        let oldest = match self.seeded.is(SeededBug::ConfirmNewest) {
            true => unsettled.next_back(),
            false => unsettled.next(),
        };
        let oldest = oldest.map(|place| place.unit);
        while let Some(Ended { unit, end, enqueued }) = self.ended.front().copied() {
            if oldest.is_some_and(|oldest| oldest <= unit) {
                break;
            }
            if end > self.flush {
                self.flush = end;
                self.confirmed = enqueued;
            }
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
        let mut places = Vec::new();
        for lsn in [10, 20, 30] {
            ledger.begin(tx(lsn));
            places.push(ledger.batch_opened(tx(lsn)));
            ledger.end(tx(lsn), Lsn(lsn + 5));
        }
        ledger.batch_settled(places[2]);
        ledger.batch_settled(places[1]);
        assert_eq!(ledger.flush(), Lsn::INVALID);
        ledger.batch_settled(places[0]);
        assert_eq!(ledger.flush(), Lsn(35));
    }

    #[test]
    fn a_transaction_is_not_confirmed_before_its_commit_is_read() {
        let mut ledger = Ledger::default();
        ledger.begin(tx(10));
        let place = ledger.batch_opened(tx(10));
        ledger.batch_settled(place);
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
        let place = ledger.batch_opened(tx(10));
        ledger.end(tx(10), Lsn(15));
        ledger.keepalive(Lsn(99));
        assert_eq!(ledger.flush(), Lsn(5));
        ledger.batch_settled(place);
        assert_eq!(ledger.flush(), Lsn(15));
        ledger.keepalive(Lsn(99));
        ledger.keepalive(Lsn(50));
        assert_eq!(ledger.flush(), Lsn(99));
    }

    #[test]
    fn units_without_facts_are_confirmed_behind_settled_ones_and_cost_nothing() {
        let mut ledger = Ledger::default();
        let place = ledger.batch_opened(tx(10));
        ledger.end(tx(10), Lsn(15));
        for lsn in 0..100_000 {
            ledger.end(tx(20 + lsn), Lsn(21 + lsn));
        }
        assert!(ledger.ended.len() <= 2, "{}", ledger.ended.len());
        ledger.batch_settled(place);
        assert_eq!(ledger.flush(), Lsn(100_020));
    }

    /// Symptom: while one partition was blocked, the ledger grew with each batch of the others.
    #[test]
    fn what_settles_behind_a_late_settlement_costs_no_memory_and_is_counted() {
        let mut ledger = Ledger::default();
        let late = ledger.batch_opened(tx(10));
        ledger.enqueued(100);
        ledger.end(tx(10), Lsn(15));
        for lsn in 1..10_000 {
            ledger.begin(tx(10 + lsn * 10));
            let place = ledger.batch_opened(tx(10 + lsn * 10));
            ledger.enqueued(7);
            ledger.end(tx(10 + lsn * 10), Lsn(15 + lsn * 10));
            ledger.batch_settled(place);
            assert!(ledger.ended.len() <= 2, "{}", ledger.ended.len());
            assert_eq!(ledger.held(), 100 + lsn * 7);
        }
        ledger.batch_settled(late);
        assert_eq!(ledger.flush(), Lsn(100_005));
        assert_eq!((ledger.held(), ledger.untold()), (0, 70_093));
        ledger.told();
        assert_eq!(ledger.untold(), 0);
    }

    #[test]
    fn what_is_settled_of_an_open_transaction_does_not_fill_the_window() {
        let mut ledger = Ledger::default();
        ledger.begin(tx(10));
        for _ in 0..1000 {
            let place = ledger.batch_opened(tx(10));
            ledger.enqueued(1000);
            assert_eq!((ledger.held(), ledger.untold()), (1000, 0));
            ledger.batch_settled(place);
        }
        assert_eq!(ledger.held(), 0);
        ledger.end(tx(10), Lsn(15));
        assert_eq!(ledger.untold(), 1_000_000);
    }

    #[test]
    fn a_reconnect_joins_what_comes_again_to_what_is_in_flight() {
        let mut ledger = Ledger::default();
        let places = [10, 20].map(|lsn| {
            let place = ledger.batch_opened(tx(lsn));
            ledger.end(tx(lsn), Lsn(lsn + 5));
            place
        });
        ledger.disconnected();
        ledger.batch_settled(places[0]);
        ledger.keepalive(Lsn(18));
        assert_eq!(ledger.flush(), Lsn(15), "it was read to its end, and 20 is still unsettled");
        ledger.begin(tx(10));
        ledger.end(tx(10), Lsn(15));
        assert_eq!(ledger.flush(), Lsn(15));
        ledger.begin(tx(20));
        ledger.end(tx(20), Lsn(25));
        assert_eq!(ledger.flush(), Lsn(15));
        ledger.batch_settled(places[1]);
        assert_eq!(ledger.flush(), Lsn(25));
    }

    #[test]
    fn the_server_is_told_only_what_a_position_holds_where_there_are_positions() {
        let mut ledger = Ledger::default();
        ledger.follow_positions();
        ledger.confirmed_before(Lsn(5));
        ledger.keepalive(Lsn(7));
        assert_eq!((ledger.flush(), ledger.read()), (Lsn::INVALID, Lsn(7)));
        ledger.positioned(Lsn(7));
        ledger.begin(tx(10));
        let place = ledger.batch_opened(tx(10));
        ledger.enqueued(100);
        assert_eq!(ledger.read(), Lsn(7), "a unit counts when it is read to its end");
        ledger.end(tx(10), Lsn(15));
        ledger.end(tx(20), Lsn(25));
        assert_eq!((ledger.flush(), ledger.read()), (Lsn(7), Lsn(25)));
        ledger.batch_settled(place);
        assert_eq!(ledger.flush(), Lsn(7), "settled, and no position says so");
        ledger.positioned(Lsn(15));
        assert_eq!((ledger.flush(), ledger.untold()), (Lsn(15), 100));
        ledger.told();
        ledger.positioned(Lsn(12));
        assert_eq!((ledger.flush(), ledger.untold()), (Lsn(15), 0), "it never goes back");
        ledger.timeline_changed();
        assert_eq!(ledger.flush(), Lsn::INVALID);
    }

    #[derive(Debug, Clone)]
    enum Op {
        /// A transaction with a fact in each of these partitions, in this order.
        Transaction(Vec<usize>),
        Seal(usize),
        Settle(usize),
        Reconnect,
        Keepalive,
        Tell,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => proptest::collection::vec(0..3_usize, 0..5).prop_map(Op::Transaction),
            2 => (0..3_usize).prop_map(Op::Seal),
            4 => (0..3_usize).prop_map(Op::Settle),
            1 => Just(Op::Reconnect),
            1 => Just(Op::Keepalive),
            1 => Just(Op::Tell),
        ]
    }

    proptest! {
        /// Against a model that remembers every single fact.
        #[test]
        fn the_flush_lsn_never_passes_an_unsettled_fact(ops in proptest::collection::vec(op(), 1..120)) {
            let mut ledger = Ledger::default();
            // Per partition: batches, each the units of its facts; the last one is open.
            let mut partitions: Vec<VecDeque<(bool, Place, Vec<u64>)>> = vec![VecDeque::new(); 3];
            let mut wal: Vec<(u64, Vec<usize>)> = Vec::new();
            let mut read = 0;
            let mut enqueued = 0;
            let mut facts_of = Vec::new();
            let mut told = Lsn::INVALID;
            let mut before = Lsn::INVALID;
            for op in ops {
                match op {
                    Op::Transaction(facts) => wal.push((10 * (wal.len() as u64 + 1), facts)),
                    Op::Seal(p) => if let Some(last) = partitions[p].back_mut() { last.0 = true },
                    Op::Settle(p) => {
                        if partitions[p].front().is_some_and(|batch| batch.0) {
                            let (_, place, _) = partitions[p].pop_front().unwrap();
                            ledger.batch_settled(place);
                        }
                    }
                    Op::Reconnect => {
                        ledger.disconnected();
                        read = wal.iter().position(|(lsn, _)| Lsn(lsn + 5) > ledger.flush()).unwrap_or(wal.len());
                    }
                    Op::Tell => {
                        ledger.told();
                        told = ledger.flush();
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
                            Some((false, _, units)) => units.push(*lsn),
                            _ => {
                                let place = ledger.batch_opened(tx(*lsn));
                                partitions[*p].push_back((false, place, vec![*lsn]));
                            }
                        }
                        // A fact is a byte here, and so each has a number.
                        ledger.enqueued(1);
                        facts_of.push(*lsn);
                    }
                    enqueued = enqueued.max(*lsn);
                    ledger.end(tx(*lsn), Lsn(lsn + 5));
                    read += 1;
                }
                let batches = partitions.iter().map(VecDeque::len).sum::<usize>();
                prop_assert!(ledger.ended.len() <= batches + 1, "{:?}", ledger.ended);
                // A transaction has up to four facts.
                let untold = facts_of.iter().filter(|lsn| Lsn(**lsn + 5) > told).count() as u64;
                let counted = ledger.held() + ledger.untold();
                prop_assert!(counted + 4 >= untold, "{counted} of {untold}");
                prop_assert!(counted <= facts_of.len() as u64);
                let oldest = partitions.iter().flatten().flat_map(|(_, _, units)| units).min();
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
