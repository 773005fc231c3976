//! One partition: what is open, queued and in flight, its sequences, and what a failure leads to.
//!
//! ```text
//!  push ─▶ open ──full / nothing more to read──▶ queue ──▶ in flight ──stored──▶ settled
//!                                                  ▲           │
//!                                                  └───────────┘ anything else
//! ```
//!
//! After a failure nothing is sent until everything in flight is answered; then the oldest batch that
//! is not stored goes again, alone, the same bytes, and only when it is stored do others follow. So the
//! first occurrences of facts in a partition are always in order, and every disorder is a repeated
//! older run. The failures of batches behind it were its consequence (a gap in the sequences), and are
//! forgotten.

use super::tail::Tail;
use crate::relay::batch::{Batch, EncodedRecord, OpenBatch, Record, sequence_after};
use crate::relay::compression::Compression;
use crate::relay::kafka::{BrokerId, ProducerId};
use crate::relay::ledger::{Ledger, Place};
use crate::relay::policy::Verdict;
use crate::relay::position::Position;
use bytes::Bytes;
use factlib_protocol::Timestamp;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A broker that does not know a producer takes any sequence from it, also one behind a gap. It forgets
/// one that was silent for `producer.id.expiration.ms` (a day, where nobody shortened it), so that after
/// some silence one batch goes alone again.
const PROVEN_MAX: Duration = Duration::from_secs(60);

/// What a batch of a topic that refused larger ones is not made smaller than: below that it is not the
/// batch that is too large, but records.
const BATCH_BYTES_MIN: usize = 1024;

/// A batch that still grows.
#[derive(Debug)]
struct Open {
    batch: OpenBatch,
    place: Place,
}

/// A batch that is closed.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) batch: Batch,
    pub(super) place: Place,
    pub(super) lot: Lot,
    state: State,
    /// A copy of it may have been appended, or still be.
    ambiguous: bool,
}

impl Queued {
    fn new(batch: Batch, place: Place, lot: Lot) -> Self {
        Self { batch, place, lot, state: State::Ready, ambiguous: false }
    }
}

/// What a batch belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lot {
    /// See [`super::Producer::timeline_changed`].
    pub(super) generation: u32,
    /// Which transaction of ours it goes with; without transactions there is one group.
    pub(super) group: u32,
}

/// What may be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sending {
    /// So many batches may be in flight.
    pub(super) window: usize,
    /// Batches that could still grow are sent, too.
    pub(super) flush: bool,
    /// What is open belongs to this.
    pub(super) lot: Lot,
    /// Nothing of a later group is sent.
    pub(super) last_group: u32,
    /// As part of a transaction.
    pub(super) transactional: bool,
}

/// Takes records out of batches, but of those that stay as they are: how many facts, and how many encoded bytes less
/// that makes.
fn retain(
    queue: &mut VecDeque<Queued>,
    now: Lot,
    ledger: &mut Ledger,
    stays: impl Fn(&Queued) -> bool,
    mut keep: impl FnMut(&EncodedRecord<'_>) -> bool,
) -> (usize, usize) {
    let (mut facts, mut less) = (0, 0);
    for queued in std::mem::take(queue) {
        if stays(&queued) {
            queue.push_back(queued);
            continue;
        }
        let Queued { batch, place, lot, .. } = queued;
        let (bytes, records) = (batch.plain_len(), batch.records());
        let kept = batch.retain(&mut keep);
        let kept_records = kept.as_ref().map_or(0, Batch::records);
        facts += usize::try_from(records - kept_records).unwrap_or(0);
        less += bytes.saturating_sub(kept.as_ref().map_or(0, Batch::plain_len));
        // What is left keeps its place, if its first fact went, too: it may only hold more back.
        match kept {
            Some(batch) => queue.push_back(Queued::new(batch, place, lot)),
            None if lot.generation == now.generation => ledger.batch_settled(place),
            None => {}
        }
    }
    (facts, less)
}

#[derive(Debug)]
enum State {
    Ready,
    InFlight,
    /// Stored before an older one is known to be.
    Stored,
    Failed(Failure),
}

/// Why a batch is not stored, or not known to be.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) verdict: Verdict,
    /// Kafka's error code.
    pub(super) code: i16,
    pub(super) reason: String,
}

/// It does not take what it is given.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) reason: String,
    pub(super) since: Instant,
    pub(super) halted: bool,
    /// The first fact of what it does not take. What is in front of that goes again, and is taken, where a transaction
    /// was given up.
    pub(super) position: Option<Position>,
}

/// What there is to send.
pub(super) enum Next {
    /// Nothing, before an answer comes or a record.
    Nothing,
    /// Something, when the time has come, a leader or producer id is known, or no more is to be read.
    Later,
    /// This batch, with this base sequence.
    Send(Bytes, i32),
}

/// A partition's log, as far as it remembers producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Log {
    broker: BrokerId,
    /// A topic that is made anew has another log.
    topic: Option<Uuid>,
}

#[derive(Debug)]
pub(super) struct Partition {
    /// Index of its topic.
    pub(super) topic: usize,
    /// Its own, in the topic.
    pub(super) index: i32,
    pub(super) leader: Option<BrokerId>,
    pub(super) producer: Option<ProducerId>,
    pub(super) retry_at: Option<Instant>,
    /// Failures in a row.
    pub(super) attempts: u32,
    pub(super) trouble: Option<Trouble>,
    /// Since when it has waited for a leader, or for a producer id.
    pub(super) unled_since: Option<Instant>,
    /// It is in [`super::Producer::waiting`].
    pub(super) waiting: bool,
    /// What it had of us when this process began.
    pub(super) tail: Tail,
    compression: Compression,
    /// See [`crate::relay::Settings::keeps_order`].
    keeps_order: bool,
    open: Option<Open>,
    /// What was sent is at the front.
    queue: VecDeque<Queued>,
    /// What is stored and not committed, oldest first. Empty without transactions.
    uncommitted: VecDeque<Queued>,
    /// The transaction that it was added to last.
    pub(super) added: u64,
    in_flight: usize,
    /// Where what is in flight was sent.
    sent_to: Option<Log>,
    /// Something in flight was not stored.
    failed: bool,
    /// This log knows our producer id and sequence: it took a batch, and when. Only then does its broker refuse
    /// what is behind a gap.
    proven: Option<(Log, Instant)>,
    next_sequence: i32,
    /// Batches are not made larger, because the topic refused it.
    bytes_max: usize,
    /// About what the next batch will need: the length of the last one, or half of what it was for the one before,
    /// because large ones are followed by large ones even when a small one was sent in between.
    expected_len: usize,
}

impl Partition {
    pub(super) fn new(
        topic: usize,
        index: i32,
        leader: Option<BrokerId>,
        compression: Compression,
        keeps_order: bool,
        tail: Tail,
    ) -> Self {
        Self {
            tail,
            compression,
            keeps_order,
            topic,
            index,
            leader,
            producer: None,
            retry_at: None,
            attempts: 0,
            trouble: None,
            unled_since: None,
            waiting: false,
            open: None,
            queue: VecDeque::new(),
            uncommitted: VecDeque::new(),
            added: 0,
            in_flight: 0,
            sent_to: None,
            failed: false,
            proven: None,
            next_sequence: 0,
            bytes_max: usize::MAX,
            expected_len: 0,
        }
    }

    /// True if all of it is stored.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.open.is_none()
    }

    /// The group of what it does not take, if somebody must see to that.
    pub(super) fn halted(&self) -> Option<u32> {
        self.trouble.as_ref().filter(|trouble| trouble.halted)?;
        self.queue.front().map(|queued| queued.lot.group)
    }

    /// True if all of these groups is stored.
    pub(super) fn has_stored(&self, last_group: u32) -> bool {
        self.queue.front().is_none_or(|queued| queued.lot.group > last_group)
    }

    /// True if something is in flight.
    pub(super) fn is_waiting_for_answers(&self) -> bool {
        self.in_flight > 0
    }

    /// When the oldest fact that is not settled was committed, as far as it is known.
    pub(super) fn oldest_commit(&self) -> Option<Timestamp> {
        let committed = match self.uncommitted.front().or_else(|| self.queue.front()) {
            Some(queued) => queued.batch.committed(),
            None => self.open.as_ref()?.batch.committed(),
        };
        committed.map(|committed| committed.first)
    }

    /// Position of the oldest fact that is not settled, if its batch is closed.
    pub(super) fn first(&self) -> Option<Position> {
        self.queue.front().map(|queued| queued.batch.first())
    }

    /// Adds a record; how many encoded bytes that makes more. A new batch reserves at most `room`.
    pub(super) fn push(
        &mut self,
        position: Position,
        committed: Timestamp,
        record: &Record<'_>,
        room: usize,
        lot: Lot,
        ledger: &mut Ledger,
    ) -> usize {
        if self.open.as_ref().is_some_and(|open| !open.batch.has_room_for(record, self.bytes_max)) {
            self.seal(lot);
        }
        let (open, before) = match &mut self.open {
            Some(open) => {
                let len = open.batch.encoded_len();
                (open, len)
            }
            none => {
                let place = ledger.batch_opened(position.unit);
                let expected = self.expected_len.min(room);
                let batch = OpenBatch::with_capacity(position, self.compression, expected);
                (none.insert(Open { batch, place }), 0)
            }
        };
        open.batch.committed_at(committed);
        open.batch.push(record);
        open.batch.encoded_len() - before
    }

    /// True if the open batch should be closed rather than grow.
    pub(super) fn is_full(&self, bytes: usize, records: usize) -> bool {
        // The smallest batch proves as much as a large one.
        let probes = self.tail.is_probing() && self.queue.is_empty();
        self.open.as_ref().is_some_and(|open| {
            probes
                || open.batch.encoded_len() >= bytes.min(self.bytes_max)
                || usize::try_from(open.batch.records()).is_ok_and(|count| count >= records)
        })
    }

    /// Closes the open batch, if there is one.
    pub(super) fn seal(&mut self, lot: Lot) {
        if let Some(Open { batch, place }) = self.open.take() {
            let batch = batch.seal();
            self.queue.push_back(Queued::new(batch, place, lot));
        }
    }

    /// Whether there is something that `sending` allows; none if there is nothing that it would wait for.
    pub(super) fn has_ready(&self, sending: &Sending) -> Option<bool> {
        if self.failed {
            return None;
        }
        match self.first_ready().and_then(|at| self.queue.get(at)) {
            Some(queued) => Some(queued.lot.group <= sending.last_group),
            None if self.open.is_none() => None,
            None => Some(sending.flush && sending.lot.group <= sending.last_group),
        }
    }

    /// What to send at `now` to `topic`. A batch that could still grow is sent if `sending` says so and nothing else
    /// is in flight: what comes until the answer goes with it.
    pub(super) fn next(&mut self, now: Instant, topic: Option<Uuid>, sending: &Sending) -> Next {
        if self.failed || self.tail.holds_back(self.in_flight > 0) {
            return Next::Nothing;
        }
        let mut at = self.first_ready();
        if at.is_none() {
            if self.open.is_none() || (self.in_flight > 0 && !self.keeps_order) {
                return Next::Nothing;
            }
            if !sending.flush || sending.lot.group > sending.last_group {
                return Next::Later;
            }
            at = Some(self.queue.len());
            self.seal(sending.lot);
        }
        let log = self.leader.map(|broker| Log { broker, topic });
        let follows = || self.in_flight < sending.window && self.is_proven(now, log);
        if self.in_flight > 0 && !self.keeps_order && !follows() {
            return Next::Nothing;
        }
        let (Some(queued), Some(_), Some(producer), true) = (
            at.and_then(|at| self.queue.get_mut(at)),
            log,
            self.producer,
            self.retry_at.is_none_or(|at| at <= now),
        ) else {
            return Next::Later;
        };
        if queued.lot.group > sending.last_group {
            return Next::Later;
        }
        let base_sequence = match queued.batch.stamp() {
            Some((_, base_sequence)) => base_sequence,
            None => {
                let base_sequence = self.next_sequence;
                self.next_sequence = sequence_after(base_sequence, queued.batch.records());
                match sending.transactional {
                    false => queued.batch.set_stamp(producer, base_sequence),
                    true => queued.batch.set_transactional_stamp(producer, base_sequence),
                }
                base_sequence
            }
        };
        queued.state = State::InFlight;
        self.in_flight += 1;
        self.sent_to = log;
        self.retry_at = None;
        Next::Send(queued.batch.encoded(), base_sequence)
    }

    /// The oldest batch that is to be sent.
    fn first_ready(&self) -> Option<usize> {
        let is_ready = |queued: &Queued| matches!(queued.state, State::Ready);
        if !self.keeps_order {
            return self.queue.iter().position(is_ready);
        }
        // Nothing fails, so what was sent is in front of what was not; and there may be tens of thousands.
        let at = self.queue.partition_point(|queued| !is_ready(queued));
        (at < self.queue.len()).then_some(at)
    }

    /// The batch that was sent with this base sequence.
    fn sent(&mut self, base_sequence: i32) -> Option<&mut Queued> {
        let is_it = |queued: &&mut Queued| {
            matches!(queued.state, State::InFlight)
                && queued.batch.stamp().is_some_and(|(_, base)| base == base_sequence)
        };
        if !self.keeps_order {
            return self.queue.iter_mut().find(is_it);
        }
        // Sequences rise from the front on, and begin at 0 again behind the largest.
        let (_, front) = self.queue.front()?.batch.stamp()?;
        let distance = |sequence: i32| sequence.wrapping_sub(front) & i32::MAX;
        let lies_before = |queued: &Queued| {
            queued.batch.stamp().is_some_and(|(_, base)| distance(base) < distance(base_sequence))
        };
        let at = self.queue.partition_point(lies_before);
        self.queue.get_mut(at).filter(|queued| is_it(queued))
    }

    /// The partition is not there any more: whoever leads it next has nothing of us.
    pub(super) fn forget_broker(&mut self) {
        self.proven = None;
        self.tail = Tail::Off;
    }

    /// What was sent last, if it is answered and not settled yet: where it was sent, and the position of its
    /// first fact.
    pub(super) fn probe(&self) -> Option<(BrokerId, Position)> {
        Some((self.sent_to?.broker, self.first()?))
    }

    /// Takes the facts out of what was not sent yet that are there already: how many, and how many encoded bytes
    /// less that makes.
    pub(super) fn take_already_stored(&mut self, now: Lot, ledger: &mut Ledger) -> (usize, usize) {
        self.seal(now);
        let was_sent = |queued: &Queued| {
            !matches!(queued.state, State::Ready) || queued.batch.stamp().is_some()
        };
        retain(&mut self.queue, now, ledger, was_sent, |record| {
            let position = record.position();
            !position.is_some_and(|at| self.tail.has(at, || record.fingerprint()))
        })
    }

    fn is_proven(&self, now: Instant, log: Option<Log>) -> bool {
        self.proven.is_some_and(|(proven, at)| {
            Some(proven) == log && Some(proven) == self.sent_to && now < at + PROVEN_MAX
        })
    }

    /// The batch in flight with this base sequence is answered. False if there is none.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        base_sequence: i32,
        answer: Result<(), Failure>,
    ) -> bool {
        let Some(queued) = self.sent(base_sequence) else { return false };
        match answer {
            Ok(()) => {
                queued.state = State::Stored;
                self.proven = self.sent_to.map(|log| (log, now));
            }
            Err(failure) => {
                queued.state = State::Failed(failure);
                self.failed = true;
            }
        }
        self.in_flight -= 1;
        true
    }

    /// Takes the oldest batch off the queue if it is stored.
    pub(super) fn take_stored(&mut self) -> Option<Queued> {
        self.queue.front().filter(|queued| matches!(queued.state, State::Stored))?;
        let queued = self.queue.pop_front()?;
        self.attempts = 0;
        self.expected_len = queued.batch.plain_len().max(self.expected_len / 2);
        Some(queued)
    }

    /// What is to be done about a failure, once nothing is in flight any more: the oldest batch's.
    pub(super) fn take_failure(&mut self) -> Option<Failure> {
        if !self.failed || self.in_flight > 0 {
            return None;
        }
        self.failed = false;
        self.proven = None;
        let mut first = None;
        for queued in &mut self.queue {
            if let State::Failed(failure) = &mut queued.state {
                queued.ambiguous |= failure.verdict.is_ambiguous();
                first = first.or_else(|| Some(failure.clone()));
                queued.state = State::Ready;
            }
        }
        first
    }

    /// See [`super::SeededBug::NewSequenceOnRetry`].
    pub(super) fn forget_sequences(&mut self) {
        self.queue.iter_mut().for_each(|queued| queued.batch.clear_stamp());
    }

    /// See [`super::SeededBug::SettleDeadLetterEarly`].
    pub(super) fn disown_last(&mut self) -> Option<Place> {
        let queued = self.queue.back_mut()?;
        queued.lot.generation = u32::MAX;
        Some(queued.place)
    }

    /// Goes on under another identity, or none for the moment. What was sent and is not known to be stored
    /// is encoded anew, and no broker can recognise a repeat of it; of so many records there may be one.
    pub(super) fn start_over(&mut self, producer: Option<ProducerId>) -> usize {
        self.producer = producer;
        self.next_sequence = 0;
        let mut records = 0;
        for queued in &mut self.queue {
            if matches!(queued.state, State::Ready) && queued.batch.stamp().is_some() {
                if std::mem::take(&mut queued.ambiguous) {
                    records += usize::try_from(queued.batch.records()).unwrap_or(0);
                }
                queued.batch.clear_stamp();
            }
        }
        records
    }

    /// Divides the oldest batch, which its topic finds too large or of which it refuses some record; how
    /// many encoded bytes that makes more. None if it is one record.
    pub(super) fn divide(
        &mut self,
        too_large: bool,
        now: Lot,
        ledger: &mut Ledger,
    ) -> Option<isize> {
        let len = self.first_len();
        let mut grown = self.divide_at(0, now, ledger)?;
        if too_large {
            self.bytes_max = self.bytes_max.min((len / 2).max(BATCH_BYTES_MIN));
            // What was never sent need not be refused first.
            let mut at = 2;
            while let Some(queued) = self.queue.get(at) {
                let too_large = queued.batch.plain_len() > self.bytes_max;
                let divided = match too_large && queued.batch.stamp().is_none() {
                    true => self.divide_at(at, now, ledger),
                    false => None,
                };
                match divided {
                    Some(more) => grown += more,
                    None => at += 1,
                }
            }
        }
        Some(grown)
    }

    /// The same for one batch, which is not appended.
    fn divide_at(&mut self, at: usize, now: Lot, ledger: &mut Ledger) -> Option<isize> {
        let Queued { batch, place, lot, state, ambiguous } = self.queue.remove(at)?;
        let (len, stamp) = (batch.plain_len(), batch.stamp());
        let transactional = batch.is_transactional();
        let mut parts = match batch.split() {
            Ok(parts) => parts,
            Err(batch) => {
                let whole = Queued { batch, place, lot, state, ambiguous };
                self.queue.insert(at, whole);
                return None;
            }
        };
        // Its sequences are free, and those of the batches behind it are theirs.
        if let Some((producer, base)) = stamp {
            let [first, second] = &mut parts;
            let next = sequence_after(base, first.records());
            for (part, base) in [(first, base), (second, next)] {
                match transactional {
                    false => part.set_stamp(producer, base),
                    true => part.set_transactional_stamp(producer, base),
                }
            }
        }
        let [first, second] = parts;
        let behind = match lot.generation == now.generation {
            true => ledger.batch_divided(place, second.first().unit),
            false => place,
        };
        // There is one header more, and the records of the second part have smaller deltas.
        let grown = (first.plain_len() + second.plain_len()).cast_signed() - len.cast_signed();
        for (batch, place) in [(second, behind), (first, place)] {
            self.queue.insert(at, Queued::new(batch, place, lot));
        }
        Some(grown)
    }

    /// Takes the oldest batch away, which is given up. A hole in the sequences is not filled: the others must
    /// go under another identity.
    pub(super) fn give_up(&mut self) -> Option<Queued> {
        self.attempts = 0;
        self.retry_at = None;
        self.queue.pop_front()
    }

    /// The oldest batch, if nothing is in flight.
    pub(super) fn head(&self) -> Option<&Batch> {
        self.queue.front().filter(|_| self.in_flight == 0).map(|queued| &queued.batch)
    }

    /// Another batch stands for the oldest one, with as many records.
    pub(super) fn replace_head(&mut self, batch: Batch) {
        if let Some(queued) = self.queue.front_mut() {
            queued.batch = batch;
        }
    }

    /// Puts a batch behind all others of its group, the open one included.
    pub(super) fn enqueue(&mut self, batch: Batch, place: Place, lot: Lot, now: Lot) {
        let queued = Queued::new(batch, place, lot);
        if lot.group >= now.group {
            self.seal(now);
            self.queue.push_back(queued);
            return;
        }
        let at = self.queue.partition_point(|other| other.lot.group <= lot.group);
        self.queue.insert(at, queued);
    }

    // ---- in transactions ----

    /// What was stored is not committed yet.
    pub(super) fn keep(&mut self, queued: Queued) {
        self.uncommitted.push_back(queued);
    }

    /// Takes the oldest batch of these groups that is committed now.
    pub(super) fn take_committed(&mut self, last_group: u32) -> Option<Queued> {
        self.uncommitted.front().filter(|queued| queued.lot.group <= last_group)?;
        self.uncommitted.pop_front()
    }

    /// True if something of it is in the transaction that is open, or on the way there.
    pub(super) fn is_uncommitted(&self) -> bool {
        !self.uncommitted.is_empty() || self.in_flight > 0
    }

    /// Goes on as another producer, or in another epoch, in which sequences begin anew.
    pub(super) fn adopt(&mut self, producer: ProducerId) {
        if self.producer.map(|known| known.id) != Some(producer.id) {
            self.proven = None;
        }
        self.start_over(Some(producer));
    }

    /// The transaction is over, and nothing of it is in flight: what was stored in it goes again.
    pub(super) fn repeat(&mut self) {
        while let Some(stored) = self.uncommitted.pop_back() {
            self.queue.push_front(stored);
        }
        for queued in &mut self.queue {
            queued.state = State::Ready;
            queued.ambiguous = false;
        }
        self.failed = false;
        self.proven = None;
        self.retry_at = None;
        self.start_over(None);
    }

    /// True if a fact behind `last` of this group was sent.
    pub(super) fn has_sent_behind(&self, last: Option<Position>, group: u32) -> bool {
        let sent = self.queue.iter().filter(|queued| queued.batch.stamp().is_some());
        let mut sent = self.uncommitted.iter().chain(sent);
        sent.any(|queued| queued.lot.group == group && !queued.batch.lies_within(last))
    }

    /// Drops the facts behind `last` of this group, none of which may have been sent: how many, and how many encoded
    /// bytes less that makes.
    pub(super) fn cut(
        &mut self,
        last: Option<Position>,
        now: Lot,
        ledger: &mut Ledger,
    ) -> (usize, usize) {
        self.seal(now);
        if self.trouble.take_if(|trouble| trouble.position > last).is_some() {
            self.attempts = 0;
        }
        let stays =
            |queued: &Queued| queued.lot.group != now.group || queued.batch.lies_within(last);
        retain(&mut self.queue, now, ledger, stays, |record| record.position() <= last)
    }

    /// Drops everything, of which nothing may be in flight: how many facts, and how many encoded bytes.
    pub(super) fn clear(&mut self, now: Lot, ledger: &mut Ledger) -> (usize, usize) {
        self.seal(now);
        self.repeat();
        self.trouble = None;
        self.attempts = 0;
        let (mut facts, mut bytes) = (0, 0);
        for Queued { batch, place, lot, .. } in self.queue.drain(..) {
            facts += usize::try_from(batch.records()).unwrap_or(0);
            bytes += batch.plain_len();
            if lot.generation == now.generation {
                ledger.batch_settled(place);
            }
        }
        (facts, bytes)
    }

    /// Length of the oldest batch, encoded, before compression.
    pub(super) fn first_len(&self) -> usize {
        self.queue.front().map_or(0, |queued| queued.batch.plain_len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::position::Unit;
    use crate::relay::route::Headers;
    use factlib_protocol::Lsn;

    #[test]
    fn a_batch_is_found_by_its_sequence_also_where_sequences_begin_again() {
        let mut ledger = Ledger::default();
        let mut partition = Partition::new(0, 0, Some(1), Compression::None, true, Tail::Off);
        partition.producer = Some(ProducerId { id: 1, epoch: 0 });
        partition.next_sequence = i32::MAX - 1;
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let now = Instant::now();
        let headers = Headers::default();
        let mut sequences = Vec::new();
        for n in 1..=5 {
            let unit = Unit::transaction(Lsn(n));
            let position = Position { timeline: 1, unit, index: 0 };
            let record =
                Record { timestamp_ms: 0, key: None, value: Some(b"fact"), headers: &headers };
            ledger.begin(unit);
            let lot = Lot { generation: 0, group: 0 };
            partition.push(position, Timestamp(0), &record, 0, lot, &mut ledger);
            partition.seal(lot);
            let sending =
                Sending { window: 1, flush: true, lot, last_group: 0, transactional: false };
            match partition.next(now, None, &sending) {
                Next::Send(_, sequence) => sequences.push(sequence),
                Next::Nothing | Next::Later => panic!("batch {n} is not sent"),
            }
        }
        assert_eq!(sequences, [i32::MAX - 1, i32::MAX, 0, 1, 2]);
        for at in [4, 2, 0, 1, 3] {
            assert!(partition.answered(now, sequences[at], Ok(())), "{at}");
            assert!(!partition.answered(now, sequences[at], Ok(())), "{at} is answered once");
        }
        let settled = std::iter::from_fn(|| partition.take_stored()).count();
        assert_eq!((settled, partition.in_flight), (5, 0));
    }
}
