//! The producer in transactions: which batches go in which, and what becomes of them when one is not committed.
//!
//! Batches are pushed into the group that is gathering, and are produced while it grows. Once it is closed, and all of
//! it is stored, it is committed with its position; until then nothing of the next one is sent. What is stored stays in
//! memory until then: if the transaction is given up, the same records go again in another one.

use super::partition::{Lot, Partition, Sending};
use super::transaction::{Chance, Failed, Held, Judgement, Outcome, Transactions};
use super::{Producer, TransactionSettings, TransactionState};
use crate::relay::batch::Batch;
use crate::relay::error_code::{self, TOPIC_AUTHORIZATION_FAILED, UNKNOWN_TOPIC_OR_PARTITION};
use crate::relay::event::{AbortReason, Event};
use crate::relay::kafka::{Answer, Request, StoredPosition, TransactionVersion};
use crate::relay::ledger::Ledger;
use crate::relay::poison::Cause;
use crate::relay::position::Position;
use crate::relay::position_record::PositionRecord;
use crate::relay::seeded_bug::{Seeded, SeededBug};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// What was closed.
#[derive(Debug)]
struct Closed {
    position: PositionRecord,
    facts: usize,
    bytes: usize,
}

/// A partition does not take what it is given, until somebody sees to that.
#[derive(Debug)]
struct Halt {
    at: usize,
    /// It is tried again then, if that is not over.
    until: Option<Instant>,
    /// It is part of the group that is to be committed next: nothing else of that is sent.
    is_next: bool,
}

impl Halt {
    fn admits(&self, at: usize) -> bool {
        !self.is_next || (at == self.at && self.until.is_none())
    }
}

/// What the producer knows of its transactions.
#[derive(Debug)]
pub(super) struct Transactional {
    transactions: Transactions,
    /// The group before the one that is gathering, which is not known to be committed.
    closed: Option<Closed>,
    /// Facts of the group that is gathering behind this one are dropped when nothing is in flight any more.
    cut: Option<Option<Position>>,
    /// Why it cannot be told whether somebody else has come.
    unsure: Option<String>,
    /// The position that was found or committed last, so one must be there.
    last: Option<PositionRecord>,
    /// Something happened after which the closed group may be stored.
    stored_more: bool,
    halted: Option<Halt>,
    seeded: Seeded,
}

impl Transactional {
    pub(super) fn new(settings: &TransactionSettings) -> Self {
        let TransactionSettings { position_topic, timeout, .. } = settings;
        Self {
            transactions: Transactions::new(Arc::clone(position_topic), *timeout),
            closed: None,
            cut: None,
            unsure: None,
            last: None,
            stored_more: false,
            halted: None,
            seeded: Seeded::default(),
        }
    }

    pub(super) fn seed_bug(&mut self, seeded: Seeded) {
        self.seeded = seeded;
        self.transactions.seed_bug(seeded);
    }

    /// True if this partition may send what it has. Otherwise it waits, and is put into the transaction if it has
    /// something to send.
    pub(super) fn admits(
        &mut self,
        partition: &mut Partition,
        topic: Option<&Arc<str>>,
        at: usize,
        sending: &Sending,
    ) -> bool {
        let transactions = &mut self.transactions;
        let Some(producer) = transactions.sender() else { return false };
        if self.halted.as_ref().is_some_and(|halt| !halt.admits(at)) {
            return false;
        }
        if partition.producer != Some(producer) {
            partition.adopt(producer);
        }
        let is_added = !transactions.adds()
            || (transactions.opened().is_some() && partition.added == transactions.number());
        if !is_added
            && partition.retry_at.is_none()
            && partition.has_ready(sending) == Some(true)
            && let Some(topic) = topic
        {
            transactions.add((Arc::clone(topic), partition.index, at));
        }
        // One that has nothing to send is to be told so.
        is_added || partition.has_ready(sending).is_none()
    }

    fn last_group(&self, lot: Lot) -> u32 {
        match self.closed {
            None => lot.group,
            Some(_) => lot.group - 1,
        }
    }
}

/// What is found where the position is kept.
pub type FoundPosition = Result<Option<PositionRecord>, String>;

fn read(stored: Option<&StoredPosition>) -> FoundPosition {
    stored.map(PositionRecord::from_stored).transpose()
}

impl Producer {
    pub(super) fn position_topic(&self) -> Option<Arc<str>> {
        self.transactional.as_ref().map(|it| Arc::clone(it.transactions.topic()))
    }

    pub(super) fn sending(&self, flush: bool) -> Sending {
        let last_group = self.transactional.as_ref().map_or(u32::MAX, |it| it.last_group(self.lot));
        Sending {
            window: self.settings.in_flight,
            flush,
            lot: self.lot,
            last_group,
            transactional: self.transactional.is_some(),
        }
    }

    /// Batches are about to be sent.
    pub(super) fn open_transaction(
        &mut self,
        now: Instant,
    ) -> Option<(Arc<str>, TransactionVersion)> {
        let transactions = &mut self.transactional.as_mut()?.transactions;
        transactions.open(now);
        Some((Arc::clone(transactions.id()), transactions.version()))
    }

    /// Somebody must see to what this partition does not take: what is open is ended, because consumers of all its
    /// partitions would wait. It alone is tried again, so that it costs little.
    pub(super) fn halt(
        &mut self,
        now: Instant,
        at: usize,
        until: Instant,
        cause: &str,
        events: &mut VecDeque<Event>,
    ) {
        let Some(it) = &mut self.transactional else { return };
        it.halted = Some(Halt { at, until: Some(until), is_next: true });
        self.look_at_halt(now);
        let Some(it) = &self.transactional else { return };
        let is_next = it.halted.as_ref().is_some_and(|halt| halt.is_next);
        if is_next && it.transactions.opened().is_some() {
            self.transaction_over(now, AbortReason::Halted, cause, events);
        }
    }

    /// Before anything is sent.
    pub(super) fn look_at_halt(&mut self, now: Instant) {
        let Some(it) = &mut self.transactional else { return };
        let last_group = it.last_group(self.lot);
        let Some(halt) = &mut it.halted else { return };
        let Some(group) = self.partitions.get(halt.at).and_then(Partition::halted) else {
            it.halted = None;
            return;
        };
        halt.until = halt.until.filter(|until| now < *until);
        halt.is_next = group <= last_group;
    }

    pub(super) fn poll_transactions(&mut self, now: Instant, produce: bool) -> Option<Request> {
        let it = self.transactional.as_mut()?;
        if produce && std::mem::take(&mut it.stored_more) && it.transactions.awaits_stored() {
            let last_group = it.last_group(self.lot);
            let passes = it.seeded.is(SeededBug::CommitWithFailedBatch);
            let is_stored = |partition: &Partition| {
                partition.has_stored(last_group)
                    || (passes && partition.attempts > 0 && !partition.is_waiting_for_answers())
            };
            if self.partitions.iter().all(is_stored) {
                it.transactions.stored(now);
            }
        }
        it.transactions.poll(now, produce)
    }

    pub(super) fn transactions_until(&self, produce: bool) -> Option<Instant> {
        let it = self.transactional.as_ref()?;
        let halted = it.halted.as_ref().and_then(|halt| halt.until).filter(|_| produce);
        it.transactions.deadline(produce).into_iter().chain(halted).min()
    }

    pub(super) fn transaction_over(
        &mut self,
        now: Instant,
        reason: AbortReason,
        cause: &str,
        events: &mut VecDeque<Event>,
    ) {
        if let Some(it) = &mut self.transactional {
            it.transactions.over(now, &Failed::new(reason, cause), Held::Repeated, events);
        }
    }

    /// A topic was made anew: what was stored in the one before, and is not committed, goes again.
    pub(super) fn lost_with_topic(
        &mut self,
        now: Instant,
        topic: usize,
        events: &mut VecDeque<Event>,
    ) {
        let of_it = |partition: &Partition| partition.topic == topic && partition.is_uncommitted();
        if self.partitions.iter().any(of_it) {
            let reason = AbortReason::TopicMadeAnew;
            self.transaction_over(now, reason, "a topic was made anew", events);
        }
    }

    // ---- for the engine ----

    /// The transactional id, once the server is known.
    pub fn name_transactions(&mut self, now: Instant, id: &str) {
        if let Some(it) = &mut self.transactional {
            it.transactions.name(now, id);
        }
    }

    /// True if the transactional id was ours once.
    pub fn has_identity(&self) -> bool {
        self.transactional.as_ref().is_some_and(|it| it.transactions.has_identity())
    }

    /// True if facts may be pushed. Not before it is known how far they are in Kafka.
    pub fn takes_facts(&self) -> bool {
        self.transactional
            .as_ref()
            .is_none_or(|it| it.transactions.takes_facts() && it.cut.is_none())
    }

    /// Where transactions stand; none without them.
    pub fn transaction_state(&self) -> Option<TransactionState> {
        Some(self.transactional.as_ref()?.transactions.state())
    }

    /// Why transactions do not go on.
    pub fn transaction_trouble(&self) -> Option<String> {
        self.transactional.as_ref()?.transactions.trouble()
    }

    /// Since when a transaction is open, if one may be.
    pub fn transaction_opened(&self) -> Option<Instant> {
        self.transactional.as_ref()?.transactions.opened()
    }

    /// True if the group that is gathering may be closed.
    pub fn closes(&self) -> bool {
        self.transactional
            .as_ref()
            .is_some_and(|it| it.transactions.closes() && it.closed.is_none() && it.cut.is_none())
    }

    /// Facts and encoded bytes of the group that is gathering.
    pub fn gathered(&self) -> (usize, usize) {
        let closed = self.transactional.as_ref().and_then(|it| it.closed.as_ref());
        let (facts, bytes) = closed.map_or((0, 0), |closed| (closed.facts, closed.bytes));
        (self.unsettled_facts.saturating_sub(facts), self.unsettled_bytes.saturating_sub(bytes))
    }

    /// Ends the group that is gathering, with this position behind it.
    pub fn close_group(&mut self, now: Instant, position: PositionRecord) {
        let (facts, bytes) = self.gathered();
        let Some(it) = &mut self.transactional else { return };
        for partition in &mut self.partitions {
            partition.seal(self.lot);
        }
        self.lot.group += 1;
        it.transactions.close(now, position.to_stored());
        it.closed = Some(Closed { position, facts, bytes });
        it.stored_more = true;
    }

    /// The position that was read, if it is to be compared with the server's. [`Producer::judged`] goes on.
    pub fn found_position(&self) -> Option<FoundPosition> {
        match self.transactional.as_ref()?.transactions.judge()? {
            Judgement::Server(found) => Some(read(found)),
            Judgement::Group(_) => None,
        }
    }

    /// What is pushed from now on goes by the position that was found.
    pub fn judged(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        if let Some(it) = &mut self.transactional {
            if let Some(Judgement::Server(found)) = it.transactions.judge() {
                it.last = read(found).ok().flatten();
            }
            it.transactions.judged(now, false, events);
        }
    }

    /// Why somebody else may be or is the one who publishes: nothing is sent any more.
    pub fn fenced(&self) -> Option<&str> {
        self.transactional.as_ref()?.transactions.fenced()
    }

    /// Why it cannot be told whether somebody else has published. Said once.
    pub fn take_unsure(&mut self) -> Option<String> {
        self.transactional.as_mut()?.unsure.take()
    }

    /// Drops the facts of the group that is gathering that stand behind `last`: they will be read again.
    pub fn cut(
        &mut self,
        now: Instant,
        last: Option<Position>,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let group = self.lot.group;
        let Some(it) = &mut self.transactional else { return };
        let is_sent = self.partitions.iter().any(|one| one.has_sent_behind(last, group));
        if is_sent {
            it.cut = Some(last);
            let cause = "a transaction of PostgreSQL was read in part only";
            let failed = Failed::new(AbortReason::ReadInPart, cause);
            it.transactions.over(now, &failed, Held::Cut, events);
            self.go_on(now, ledger, events);
        } else if it.cut.is_none() {
            self.cut_now(last, ledger);
        }
    }

    fn cut_now(&mut self, last: Option<Position>, ledger: &mut Ledger) {
        for partition in &mut self.partitions {
            let (facts, bytes) = partition.cut(last, self.lot, ledger);
            self.unsettled_facts -= facts;
            self.unsettled_bytes -= bytes;
        }
    }

    /// Drops all that is held: what of it is not in Kafka will be read again. With `anew` we are nobody any more, and
    /// fence whoever has the transactional id.
    pub fn drop_held(
        &mut self,
        now: Instant,
        anew: bool,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let Some(it) = &mut self.transactional else { return };
        let at_once = it.transactions.drop_held(now, events);
        if anew {
            it.transactions.begin_anew();
        }
        if at_once && !anew {
            self.drop_now(ledger);
        }
        self.go_on(now, ledger, events);
    }

    fn drop_now(&mut self, ledger: &mut Ledger) {
        if let Some(it) = &mut self.transactional {
            (it.closed, it.cut, it.halted) = (None, None, None);
        }
        for partition in &mut self.partitions {
            let (facts, bytes) = partition.clear(self.lot, ledger);
            self.unsettled_facts -= facts;
            self.unsettled_bytes -= bytes;
        }
        self.lot.group += 1;
    }

    /// Ends the transaction that is open, if one is. What it has goes again in another one.
    pub fn end_transaction(
        &mut self,
        now: Instant,
        reason: AbortReason,
        cause: &str,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        if self.transaction_opened().is_some() {
            self.transaction_over(now, reason, cause, events);
            self.go_on(now, ledger, events);
        }
    }

    /// What ends an open transaction, for a relay that leaves.
    pub fn give_up_transaction(&self) -> Option<Request> {
        self.transactional.as_ref()?.transactions.give_up()
    }

    // ---- answers ----

    pub(super) fn coordinated(
        &mut self,
        now: Instant,
        answer: Answer,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let Some(it) = &mut self.transactional else { return };
        let backoff_max = self.settings.backoff_max;
        let mut chance = Chance { now, jitter: &mut self.jitter, backoff_max };
        let transactions = &mut it.transactions;
        let mut topics = Vec::new();
        let outcome = match answer {
            Answer::Coordinator { of, answer } => {
                transactions.found(of, answer, &mut chance, events);
                Outcome::Nothing
            }
            Answer::TransactionsReady(answer) => {
                transactions.initialised(answer, &mut chance, events)
            }
            Answer::PartitionsAdded(answer) => {
                let (outcome, refused) = transactions.partitions_added(answer, &mut chance, events);
                topics = refused;
                outcome
            }
            Answer::OffsetsAdded(answer) => {
                transactions.offsets_added(answer, &mut chance, events);
                Outcome::Nothing
            }
            Answer::PositionCommitted(answer) => {
                if answer == Ok(Err(UNKNOWN_TOPIC_OR_PARTITION)) {
                    self.metadata.want(now);
                }
                transactions.position_committed(answer, &mut chance, events);
                Outcome::Nothing
            }
            Answer::TransactionEnded(answer) => transactions.ended(answer, &mut chance, events),
            Answer::Position(answer) => transactions.position_read(answer, &mut chance, events),
            _ => Outcome::Nothing,
        };
        let number = transactions.number();
        match outcome {
            Outcome::Nothing | Outcome::Read => {}
            Outcome::Added(partitions) => {
                for at in partitions {
                    if let Some(partition) = self.partitions.get_mut(at) {
                        partition.added = number;
                    }
                }
            }
            Outcome::Committed => self.committed(now, ledger, events),
            Outcome::Unsure(cause) => it.unsure = Some(cause),
        }
        for (at, code) in topics {
            self.metadata.want(now);
            if code != UNKNOWN_TOPIC_OR_PARTITION
                && self.partitions.get(at).and_then(Partition::head).is_some()
            {
                let cause = match code {
                    TOPIC_AUTHORIZATION_FAILED => Cause::NotAuthorized,
                    _ => Cause::InvalidTopic,
                };
                let facts =
                    self.partitions.get(at).and_then(Partition::head).map_or(0, Batch::records);
                if let Some(topic) =
                    self.partitions.get(at).and_then(|partition| self.topics.get(partition.topic))
                {
                    let topic = Arc::clone(&topic.name);
                    events.push_back(Event::NotStored {
                        topic,
                        error: error_code::name(code),
                        facts,
                    });
                }
                self.refused(now, at, cause, error_code::name(code), ledger, events);
            }
        }
    }

    /// What follows once nothing is in flight, or the position is known.
    pub(super) fn go_on(
        &mut self,
        now: Instant,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let Some(it) = &mut self.transactional else { return };
        it.stored_more = true;
        if it.transactions.is_quiet()
            && !self.partitions.iter().any(Partition::is_waiting_for_answers)
        {
            let backoff_max = self.settings.backoff_max;
            let mut chance = Chance { now, jitter: &mut self.jitter, backoff_max };
            let held = it.transactions.quieted(&mut chance);
            let cut = it.cut.take();
            // What is closed may be committed; before that is known none of it goes again.
            if it.closed.is_none() {
                self.partitions.iter_mut().for_each(Partition::repeat);
            }
            match (held, cut) {
                (Held::Dropped, _) => self.drop_now(ledger),
                (_, Some(last)) => self.cut_now(last, ledger),
                _ => {}
            }
        }
        let Some(it) = &mut self.transactional else { return };
        let Some(Judgement::Group(found)) = it.transactions.judge() else { return };
        let found = read(found);
        let is_committed = match (&it.closed, &found) {
            (Some(closed), Ok(Some(found))) => *found == closed.position,
            _ => false,
        };
        if let Ok(Some(found)) = &found
            && !is_committed
            && it.last.as_ref() != Some(found)
        {
            it.unsure =
                Some(format!("the position in Kafka, {}, is not one of this relay's", found.lsn));
            return;
        }
        if it.last.is_some() && !matches!(found, Ok(Some(_))) {
            events.push_back(Event::PositionLost { cause: found.err() });
        }
        it.transactions.judged(now, is_committed, events);
        if is_committed {
            self.committed(now, ledger, events);
        }
        for at in 0..self.partitions.len() {
            if let Some(partition) = self.partitions.get_mut(at) {
                partition.repeat();
            }
            self.wait(at);
        }
    }

    /// The closed group is committed, and the position behind it.
    fn committed(&mut self, now: Instant, ledger: &mut Ledger, events: &mut VecDeque<Event>) {
        let Some(it) = &mut self.transactional else { return };
        let last_group = it.last_group(self.lot);
        let Some(closed) = it.closed.take() else { return };
        it.last = Some(closed.position.clone());
        let phases = it.transactions.phases(now);
        for at in 0..self.partitions.len() {
            while let Some(stored) =
                self.partitions.get_mut(at).and_then(|it| it.take_committed(last_group))
            {
                self.settled(at, &stored, ledger, events);
            }
            self.wait(at);
        }
        let Closed { position, facts, bytes } = closed;
        ledger.positioned(position.lsn);
        let position = position.lsn;
        events.push_back(Event::TransactionCommitted { facts, bytes, position, phases });
    }
}
