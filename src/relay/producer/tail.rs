//! What a partition had of us when this process began, so that it is not produced again.
//!
//! ```text
//!  probing ──the first batch is stored──▶ asked ──read back as far as needed──▶ known ──passed──▶ off
//!                                           └────── no answer, or none that helps ──────────────▶ off
//! ```
//!
//! A fact is taken for stored only if the very record that would be produced, with key, value and headers, its
//! position and source among them, lies in this partition before one that Kafka has acknowledged to us, and the
//! broker that did so says that. All replicas that count then have it, and no change of leaders takes it away
//! that would not take what is acknowledged. So nothing follows from positions, routing or the order of the log,
//! and nobody who writes to the topic can hide a fact.
//!
//! The order matters: a record that is read first, however visible, may be on one replica only, and be cut off
//! before something behind it is acknowledged.

use super::Producer;
use crate::relay::batch::{Fingerprint, Record};
use crate::relay::event::Event;
use crate::relay::kafka::{self, BrokerId, Request, StoredRecord, Unanswered};
use crate::relay::ledger::Ledger;
use crate::relay::position::Position;
use crate::relay::seeded_bug::SeededBug;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So long a partition waits for what it has, altogether: shorter than by default a stall lasts.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// So many offsets are read first, and [`GROWTH`] times as many each time that is not enough: most relays begin where
/// they ended, and have nothing to find.
const OFFSETS_FIRST: i64 = 256;
const GROWTH: i64 = 4;

/// No more offsets of a partition are read back: that many of the smallest facts make a window of 8 MiB five
/// times over.
const OFFSETS_MAX: i64 = 100_000;

/// Of so many records at most, in all partitions, it is remembered that they are there: 16 bytes each, and as
/// much again for finding them.
const REMEMBERED_MAX: usize = 200_000;

/// What is known of it.
#[derive(Debug)]
pub(super) enum Tail {
    /// Nothing, and nothing is asked.
    Off,
    /// The next batch that is stored shows to where it can be relied on. It goes alone.
    Probing,
    Asked(Asked),
    Known(Known),
}

#[derive(Debug)]
pub(super) struct Asked {
    broker: BrokerId,
    /// Position of the first fact of the batch that was stored: nothing before it comes again.
    after: Position,
    /// The offset of that batch.
    end: i64,
    /// The first offset of what is being read; what is behind it was read.
    from: i64,
    /// Until when it is waited for.
    until: Instant,
    known: Known,
    other: Option<String>,
}

/// The records that are there, and did not come again yet.
#[derive(Debug, Default)]
pub(super) struct Known {
    records: HashSet<Fingerprint>,
    /// The highest position of one.
    last: Option<Position>,
    /// How many came again.
    came: usize,
    /// See [`SeededBug::SkipUpToLast`].
    up_to_last: bool,
}

/// What the producer knows of all tails.
#[derive(Debug, Default)]
pub(super) struct Tails {
    /// Our `factlib_source`.
    source: Option<Arc<str>>,
    /// Partitions that wait for an answer, or did.
    asked: Vec<usize>,
    /// Facts that were not produced again.
    already_stored: u64,
    events: VecDeque<Event>,
}

impl Tail {
    pub(super) fn new(wanted: bool) -> Self {
        if wanted { Self::Probing } else { Self::Off }
    }

    pub(super) fn is_probing(&self) -> bool {
        matches!(self, Self::Probing)
    }

    /// True if nothing may be sent now.
    pub(super) fn holds_back(&self, in_flight: bool) -> bool {
        match self {
            Self::Probing => in_flight,
            Self::Asked(_) => true,
            Self::Off | Self::Known(_) => false,
        }
    }

    /// True if this fact is there already. It is not said again of the same one.
    pub(super) fn has(&mut self, at: Position, fingerprint: impl FnOnce() -> Fingerprint) -> bool {
        let Self::Known(known) = self else { return false };
        if known.last.is_none_or(|last| last < at) {
            // Facts come in order.
            known.records = HashSet::new();
            return false;
        }
        let has = known.records.remove(&fingerprint()) || known.up_to_last;
        known.came += usize::from(has);
        has
    }

    /// How many facts were there, if no more of those that are there can come.
    fn passed(&mut self) -> Option<usize> {
        let Self::Known(Known { records, came, .. }) = self else { return None };
        let came = *came;
        records.is_empty().then(|| {
            *self = Self::Off;
            came
        })
    }

    fn remembered(&self) -> usize {
        match self {
            Self::Asked(Asked { known, .. }) | Self::Known(known) => known.records.len(),
            Self::Off | Self::Probing => 0,
        }
    }
}

impl Known {
    /// Takes the records behind `after`, if there are not too many; true if one is not behind it.
    fn add(&mut self, found: &[StoredRecord], after: Position, room: usize) -> bool {
        let behind = |record: &&StoredRecord| record.position > after;
        let wanted = found.iter().filter(behind).count();
        if wanted <= room {
            for record in found.iter().filter(behind) {
                self.records.insert(record.fingerprint);
                self.last = self.last.max(Some(record.position));
            }
        }
        wanted < found.len() || wanted > room
    }
}

impl Producer {
    /// The value of the `factlib_source` header of our records.
    pub fn set_source(&mut self, source: &str) {
        self.tails.source = Some(Arc::from(source));
    }

    /// Facts that were read, and not produced because the partition had them already.
    pub fn already_stored(&self) -> u64 {
        self.tails.already_stored
    }

    /// What there is to tell, until none.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.tails.events.pop_front()
    }

    /// True if the partition has this fact already.
    pub(super) fn is_stored(&mut self, at: usize, position: Position, record: &Record<'_>) -> bool {
        let Some(partition) = self.partitions.get_mut(at) else { return false };
        if !matches!(partition.tail, Tail::Known(_)) {
            return false;
        }
        let stored = partition.tail.has(position, || record.fingerprint());
        self.tails.already_stored += u64::from(stored);
        self.pass(at);
        stored
    }

    /// A batch is stored, at this offset.
    pub(super) fn probed(&mut self, now: Instant, at: usize, offset: i64) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        if !partition.tail.is_probing() {
            return;
        }
        let probe = partition.probe();
        partition.tail = Tail::Off;
        match probe {
            // Nothing is before it.
            Some(_) if offset == 0 => {}
            Some((broker, first)) if offset > 0 => {
                self.ask(now, at, broker, first, offset);
                self.ask_more(at, OFFSETS_FIRST);
            }
            _ => {
                self.tail_unread(at, "the broker did not say at which offset it stored".to_owned())
            }
        }
    }

    fn ask(&mut self, now: Instant, at: usize, broker: BrokerId, after: Position, end: i64) {
        let up_to_last = self.seeded.is(SeededBug::SkipUpToLast);
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let known = Known { up_to_last, ..Known::default() };
        let (from, until) = (end, now + WAIT_MAX);
        partition.tail = Tail::Asked(Asked { broker, after, end, from, until, known, other: None });
        self.tails.asked.push(at);
    }

    /// Asks for so many offsets before those that are read.
    fn ask_more(&mut self, at: usize, offsets: i64) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let (Tail::Asked(asked), Some(topic), Some(source)) =
            (&mut partition.tail, self.topics.get(partition.topic), &self.tails.source)
        else {
            return;
        };
        let to = asked.from;
        asked.from = to.saturating_sub(offsets).max(asked.end - OFFSETS_MAX).max(0);
        self.requests.push_back(Request::Tail {
            broker: asked.broker,
            topic: Arc::clone(&topic.name),
            partition: partition.index,
            from: asked.from,
            to,
            source: Arc::clone(source),
        });
    }

    /// What was asked for last is read, or not to be.
    pub(super) fn tail_answered(
        &mut self,
        now: Instant,
        at: usize,
        from: i64,
        answer: Result<kafka::Tail, Unanswered>,
        ledger: &mut Ledger,
    ) {
        let remembered: usize = self.partitions.iter().map(|p| p.tail.remembered()).sum();
        let Some(partition) = self.partitions.get_mut(at) else { return };
        // It may have been too late for an earlier answer.
        let Tail::Asked(asked) = &mut partition.tail else { return };
        if asked.from != from {
            return;
        }
        let kafka::Tail { first, records, other } = match answer {
            Ok(tail) => tail,
            Err(Unanswered(cause)) => {
                self.tail_unread(at, cause);
                return self.tail_read(at, ledger);
            }
        };
        asked.other = asked.other.take().or(other);
        let room = REMEMBERED_MAX.saturating_sub(remembered);
        let reached = asked.known.add(&records, asked.after, room);
        let read = asked.end - asked.from;
        if reached
            || first > asked.from
            || asked.from == 0
            || read >= OFFSETS_MAX
            || now >= asked.until
        {
            return self.tail_read(at, ledger);
        }
        // All before this was as much as a third of what comes.
        self.ask_more(at, read.saturating_mul(GROWTH - 1).max(OFFSETS_FIRST));
    }

    /// No more is asked. What was not sent yet may be there already.
    fn tail_read(&mut self, at: usize, ledger: &mut Ledger) {
        let lot = self.lot;
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let Tail::Asked(asked) = std::mem::replace(&mut partition.tail, Tail::Off) else { return };
        let (facts, other) = (asked.known.records.len(), asked.other);
        partition.tail = Tail::Known(asked.known);
        let (came, bytes) = partition.take_already_stored(lot, ledger);
        if let Some(topic) = self.topics.get(partition.topic) {
            let (topic, partition) = (Arc::clone(&topic.name), partition.index);
            self.tails.events.push_back(Event::TailRead { topic, partition, facts, other });
        }
        self.unsettled_bytes -= bytes;
        self.unsettled_facts -= came;
        self.tails.already_stored += came as u64;
        self.tails.asked.retain(|asked| *asked != at);
        self.pass(at);
        self.wait(at);
    }

    /// Tells of the partition's tail if it is passed.
    fn pass(&mut self, at: usize) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        if let Some(facts) = partition.tail.passed().filter(|facts| *facts > 0)
            && let Some(topic) = self.topics.get(partition.topic)
        {
            let (topic, partition) = (Arc::clone(&topic.name), partition.index);
            self.tails.events.push_back(Event::AlreadyStored { topic, partition, facts });
        }
    }

    fn tail_unread(&mut self, at: usize, cause: String) {
        let Some(partition) = self.partitions.get(at) else { return };
        if let Some(topic) = self.topics.get(partition.topic) {
            let (topic, partition) = (Arc::clone(&topic.name), partition.index);
            self.tails.events.push_back(Event::TailUnread { topic, partition, cause });
        }
    }

    fn until(&self, at: usize) -> Option<Instant> {
        match &self.partitions.get(at)?.tail {
            Tail::Asked(asked) => Some(asked.until),
            _ => None,
        }
    }

    /// Partitions that have waited for long enough go on without.
    pub(super) fn give_up_tails(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(&asked) = self.tails.asked.get(at) {
            match self.until(asked) {
                Some(until) if now < until => at += 1,
                until => {
                    self.tails.asked.swap_remove(at);
                    if until.is_some()
                        && let Some(partition) = self.partitions.get_mut(asked)
                    {
                        partition.tail = Tail::Off;
                        self.tail_unread(asked, format!("no answer within {WAIT_MAX:?}"));
                        self.wait(asked);
                    }
                }
            }
        }
        if self.seeded.is(SeededBug::TrustVisible) {
            self.trust_visible(now);
        }
    }

    /// See [`SeededBug::TrustVisible`].
    fn trust_visible(&mut self, now: Instant) {
        for at in 0..self.partitions.len() {
            let Some(partition) = self.partitions.get(at) else { continue };
            let Some((leader, first)) = partition.leader.zip(partition.first()) else { continue };
            if partition.tail.is_probing() {
                self.ask(now, at, leader, first, OFFSETS_MAX);
                self.ask_more(at, OFFSETS_MAX);
            }
        }
    }

    /// When one of them has.
    pub(super) fn tails_until(&self) -> Option<Instant> {
        self.tails.asked.iter().filter_map(|at| self.until(*at)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Route, Settings};
    use super::*;
    use crate::relay::backoff::Jitter;
    use crate::relay::batch::EncodedRecord;
    use crate::relay::compression::Compression;
    use crate::relay::error_code::UNKNOWN_TOPIC_OR_PARTITION;
    use crate::relay::kafka::{
        Answer, Broker, Metadata, PartitionAnswer, PartitionBatch, PartitionMetadata, ProducerId,
        TopicMetadata,
    };
    use crate::relay::poison::{Policies, Policy};
    use crate::relay::position::Unit;
    use crate::relay::route::{Headers, Source};
    use factlib_protocol::{Lsn, Timestamp};

    const TOPIC: &str = "orders.order";
    const DEAD: &str = "dead";

    fn position(number: u64) -> Position {
        Position { timeline: 1, unit: Unit::transaction(Lsn(10 * number)), index: 0 }
    }

    /// A producer of which everything but the tail is ready, and its only partition's broker.
    struct Rig {
        producer: Producer,
        ledger: Ledger,
        now: Instant,
        events: VecDeque<Event>,
    }

    impl Rig {
        fn new(skip_stored: bool) -> Self {
            let settings = Settings {
                backoff_max: Duration::from_secs(5),
                metadata_age_max: Duration::from_secs(3600),
                batch_bytes: 1_000_000,
                batch_records: 1000,
                in_flight: 5,
                keeps_order: false,
                transactions: None,
                compression: Compression::None,
                policies: Policies {
                    general: Policy::DeadLetter,
                    by_topic: Vec::new(),
                    dead_letter_topic: Some(DEAD.into()),
                },
                create_topics: None,
                skip_stored,
            };
            let mut rig = Self {
                producer: Producer::new(settings, Jitter::new(1)),
                ledger: Ledger::default(),
                now: beginning(),
                events: VecDeque::new(),
            };
            rig.producer.begin(rig.now);
            rig.producer.set_source("7/5");
            assert_eq!(rig.producer.route(rig.now, TOPIC), Route::Wait);
            assert!(rig.requests().len() > 1);
            rig.answer(Answer::ProducerId(Ok(Ok(ProducerId { id: 1, epoch: 0 }))));
            rig.metadata(0);
            rig
        }

        fn answer(&mut self, answer: Answer) {
            self.producer.handle(self.now, answer, &mut self.ledger, &mut self.events);
        }

        fn metadata(&mut self, error: i16) {
            let partitions = vec![PartitionMetadata { index: 0, leader: Some(1) }];
            let topic = |name: &str| TopicMetadata {
                name: name.to_owned(),
                id: None,
                error,
                partitions: if error == 0 { partitions.clone() } else { Vec::new() },
            };
            let brokers = vec![Broker { id: 1, host: "kafka".to_owned(), port: 9092 }];
            let topics = vec![topic(TOPIC), topic(DEAD)];
            self.answer(Answer::Metadata(Ok(Metadata { cluster_id: None, brokers, topics })));
        }

        /// Fact number n has position 10 n, and is confirmed at 10 n + 5.
        fn push_to(&mut self, topic: &str, number: u64, value: &str) {
            let Route::Ready(topic, _) = self.producer.route(self.now, topic) else {
                panic!("the topic is not ready")
            };
            let at = position(number);
            let mut headers = Headers::default();
            headers.fill_unreadable(&Source::new(7, 5), &at, at.unit.lsn);
            let (key, value) = (Some(&b"key"[..]), Some(value.as_bytes()));
            let record = Record { timestamp_ms: 0, key, value, headers: &headers };
            self.ledger.begin(at.unit);
            self.producer.push(topic, 0, at, Timestamp(0), &record, &mut self.ledger);
            self.ledger.end(at.unit, Lsn(10 * number + 5));
        }

        fn push(&mut self, numbers: impl IntoIterator<Item = u64>) {
            numbers.into_iter().for_each(|number| self.push_to(TOPIC, number, "value"));
        }

        fn requests(&mut self) -> Vec<Request> {
            std::iter::from_fn(|| self.producer.poll(self.now, true, true)).collect()
        }

        /// The batches that are sent now, each with the numbers of its facts.
        fn produced(&mut self) -> Vec<(PartitionBatch, Vec<u64>)> {
            let batches = self.requests().into_iter().flat_map(|request| match request {
                Request::Produce { batches, .. } => batches,
                other => panic!("{other:?}"),
            });
            batches.map(|batch| (batch.clone(), numbers(&records(&batch)))).collect()
        }

        fn stored(&mut self, batch: &PartitionBatch, base_offset: i64) {
            let PartitionBatch { topic, partition, base_sequence, .. } = batch.clone();
            let error = 0;
            let partitions =
                vec![PartitionAnswer { topic, partition, base_sequence, error, base_offset }];
            let throttle = Duration::ZERO;
            self.answer(Answer::Produced { broker: 1, partitions, throttle });
        }

        /// The first fact is stored at this offset.
        fn probe(&mut self, offset: i64) {
            let sent = self.produced();
            let [(batch, facts)] = &sent[..] else { panic!("{sent:?}") };
            assert_eq!(facts.len(), 1, "the smallest batch proves as much as a large one");
            self.stored(batch, offset);
        }

        /// What is asked for, from where to where.
        fn asked(&mut self) -> Option<(i64, i64)> {
            match self.requests().pop()? {
                Request::Tail { broker: 1, topic, partition: 0, from, to, source } => {
                    assert_eq!((&*topic, &*source), (TOPIC, "7/5"));
                    Some((from, to))
                }
                other => panic!("{other:?}"),
            }
        }

        fn found(&mut self, from: i64, records: Vec<StoredRecord>) {
            self.tail(from, Ok(kafka::Tail { first: from, records, other: None }));
        }

        fn tail(&mut self, from: i64, answer: Result<kafka::Tail, Unanswered>) {
            let topic = Arc::from(TOPIC);
            self.answer(Answer::Tail { topic, partition: 0, from, answer });
        }

        fn told(&mut self) -> Vec<Event> {
            std::iter::from_fn(|| self.producer.poll_event()).collect()
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the start of a clock that stands still")]
    fn beginning() -> Instant {
        Instant::now()
    }

    /// As they are read back.
    fn records(batch: &PartitionBatch) -> Vec<StoredRecord> {
        let mut rest = &batch.batch[61..];
        let records = std::iter::from_fn(|| EncodedRecord::read(&mut rest, 0));
        let stored = records.map(|record| StoredRecord {
            position: record.position().unwrap(),
            fingerprint: record.fingerprint(),
        });
        stored.collect()
    }

    fn numbers(records: &[StoredRecord]) -> Vec<u64> {
        records.iter().map(|record| record.position.unit.lsn.0 / 10).collect()
    }

    /// What another process of the relay has stored.
    fn earlier(numbers: impl IntoIterator<Item = u64>) -> Vec<StoredRecord> {
        let mut rig = Rig::new(false);
        rig.push(numbers);
        rig.produced().iter().flat_map(|(batch, _)| records(batch)).collect()
    }

    fn tail_read(facts: usize) -> Event {
        Event::TailRead { topic: TOPIC.into(), partition: 0, facts, other: None }
    }

    fn already_stored(facts: usize) -> Event {
        Event::AlreadyStored { topic: TOPIC.into(), partition: 0, facts }
    }

    #[test]
    fn facts_that_lie_before_an_acknowledged_one_are_not_produced_again() {
        let mut rig = Rig::new(true);
        rig.push(1..=5);
        rig.probe(100);
        assert_eq!(rig.asked(), Some((0, 100)));
        assert!(rig.requests().is_empty(), "it is not known yet what is there");
        assert_eq!(rig.ledger.flush(), Lsn(15));
        rig.found(0, earlier([1, 2, 3, 4]));
        assert_eq!(rig.told(), [tail_read(3), already_stored(3)]);
        rig.push([6]);
        let sent = rig.produced();
        assert_eq!(sent[0].1, [5]);
        rig.stored(&sent[0].0, 101);
        let sent = rig.produced();
        assert_eq!(sent[0].1, [6]);
        rig.stored(&sent[0].0, 102);
        assert_eq!(rig.ledger.flush(), Lsn(65));
        assert_eq!(rig.producer.already_stored(), 3);
        assert_eq!((rig.producer.unsettled_facts(), rig.producer.unsettled_bytes()), (0, 0));
    }

    #[test]
    fn where_all_that_waits_is_there_nothing_is_produced_and_all_is_settled() {
        let mut rig = Rig::new(true);
        rig.push(1..=5);
        rig.probe(100);
        assert_eq!(rig.asked(), Some((0, 100)));
        rig.found(0, earlier(1..=5));
        assert_eq!(rig.ledger.flush(), Lsn(55));
        assert!(rig.ledger.is_idle() && rig.requests().is_empty());
        assert_eq!((rig.producer.unsettled_facts(), rig.producer.unsettled_bytes()), (0, 0));
        assert_eq!(rig.told(), [tail_read(4), already_stored(4)]);
    }

    #[test]
    fn facts_that_are_read_later_are_compared_when_they_are_read() {
        let mut rig = Rig::new(true);
        rig.push([1]);
        rig.probe(100);
        assert_eq!(rig.asked(), Some((0, 100)));
        rig.found(0, earlier([2, 4]));
        rig.push([2, 3]);
        assert_eq!(rig.ledger.flush(), Lsn(25), "3 is not there, whatever is behind it");
        rig.push([4, 5]);
        let sent = rig.produced();
        assert_eq!(sent[0].1, [3, 5]);
        rig.stored(&sent[0].0, 101);
        assert_eq!(rig.ledger.flush(), Lsn(55));
        assert_eq!(rig.told(), [tail_read(2), already_stored(2)]);
    }

    #[test]
    fn a_fact_that_never_comes_again_holds_nothing_up() {
        let mut rig = Rig::new(true);
        rig.push([1]);
        rig.probe(100);
        rig.asked().unwrap();
        rig.found(0, earlier([2, 3, 7]));
        rig.push([2, 9]);
        assert_eq!(rig.told(), [tail_read(3), already_stored(1)], "9 is behind all that is there");
        assert_eq!(rig.produced()[0].1, [9]);
    }

    #[test]
    fn a_record_that_is_not_the_same_in_every_byte_is_produced_again() {
        let mut rig = Rig::new(true);
        rig.push([1]);
        rig.push_to(TOPIC, 2, "another value");
        rig.probe(100);
        rig.asked().unwrap();
        rig.found(0, earlier([2, 3]));
        assert_eq!(rig.produced()[0].1, [2]);
    }

    #[test]
    fn it_is_read_back_to_what_cannot_come_again_and_no_further() {
        let mut rig = Rig::new(true);
        rig.push(10..=13);
        rig.probe(50_000);
        assert_eq!(rig.asked(), Some((49_744, 50_000)));
        rig.found(49_744, earlier([13]));
        assert_eq!(rig.asked(), Some((48_976, 49_744)));
        rig.found(48_976, Vec::new());
        assert_eq!(rig.asked(), Some((45_904, 48_976)));
        rig.found(45_904, earlier([9, 10, 11]));
        assert_eq!(rig.produced()[0].1, [12]);
    }

    #[test]
    fn it_is_not_read_back_for_ever() {
        let mut rig = Rig::new(true);
        rig.push([1]);
        rig.probe(1_000_000);
        let mut asked = Vec::new();
        while let Some((from, to)) = rig.asked() {
            asked.push(from);
            assert!(from < to && asked.len() < 10);
            rig.found(from, Vec::new());
        }
        assert_eq!(asked.last(), Some(&(1_000_000 - OFFSETS_MAX)));
        // What is older was deleted.
        let mut rig = Rig::new(true);
        rig.push([1]);
        rig.probe(1_000_000);
        let (from, _) = rig.asked().unwrap();
        rig.tail(from, Ok(kafka::Tail { first: from + 1, records: Vec::new(), other: None }));
        assert_eq!(rig.asked(), None);
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let mut known = Known::default();
        let records = earlier(1..=10);
        assert!(!known.add(&records, position(0), 10));
        assert_eq!(known.records.len(), 10);
        let mut known = Known::default();
        assert!(known.add(&records, position(0), 9), "nothing more is asked for");
        assert!(known.records.is_empty());
    }

    #[test]
    fn who_does_not_answer_is_waited_for_no_longer_than_that() {
        let mut rig = Rig::new(true);
        rig.push(1..=3);
        rig.probe(100);
        rig.asked().unwrap();
        assert_eq!(rig.producer.deadline(true), Some(rig.now + WAIT_MAX));
        rig.now += WAIT_MAX;
        let sent = rig.produced();
        assert_eq!(sent[0].1, [2, 3]);
        let told = rig.told();
        assert!(matches!(told[..], [Event::TailUnread { .. }]), "{told:?}");
        rig.found(0, earlier([2, 3, 4]));
        rig.push([4]);
        rig.stored(&sent[0].0, 101);
        assert_eq!(rig.produced()[0].1, [4], "an answer that is too late changes nothing");
    }

    #[test]
    fn an_answer_that_says_nothing_lets_everything_be_produced() {
        let mut rig = Rig::new(true);
        rig.push(1..=3);
        rig.probe(100);
        rig.asked().unwrap();
        rig.tail(0, Err(Unanswered("TOPIC_AUTHORIZATION_FAILED".to_owned())));
        assert_eq!(rig.produced()[0].1, [2, 3]);
        let told = rig.told();
        assert!(matches!(&told[0], Event::TailUnread { cause, .. } if cause.contains("AUTHORI")));
    }

    #[test]
    fn where_nothing_can_be_known_nothing_is_asked() {
        for offset in [0, -1] {
            let mut rig = Rig::new(true);
            rig.push(1..=3);
            rig.probe(offset);
            assert_eq!(rig.produced()[0].1, [2, 3], "{offset}");
            assert_eq!(rig.told().len(), usize::from(offset < 0));
        }
        let mut rig = Rig::new(false);
        rig.push(1..=3);
        assert_eq!(rig.produced()[0].1, [1, 2, 3]);
        // Dead letters say how often they were tried, and are never the same.
        let mut rig = Rig::new(true);
        (1..=3).for_each(|number| rig.push_to(DEAD, number, "value"));
        assert_eq!(rig.produced()[0].1, [1, 2, 3]);
    }

    #[test]
    fn a_topic_that_was_deleted_has_nothing_any_more() {
        let mut rig = Rig::new(true);
        rig.push([1]);
        rig.probe(100);
        rig.asked().unwrap();
        rig.metadata(UNKNOWN_TOPIC_OR_PARTITION);
        rig.metadata(0);
        rig.found(0, earlier([2, 3]));
        rig.push([2, 3]);
        assert_eq!(rig.produced()[0].1, [2, 3]);
    }
}
