//! The model Kafka's transactions: a coordinator, markers that come late, and a group's offset, as they were read in
//! Apache Kafka and seen on 3.9.1 and 4.3.1.

use factlib::relay::error_code::*;
use factlib::relay::kafka::{ProducerId, StoredPosition, TransactionVersion};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A partition, or the group's offset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Member {
    Partition(String, i32),
    Offsets,
}

/// What ends a transaction somewhere.
#[derive(Debug, Clone)]
pub(crate) struct Marker {
    pub(crate) member: Member,
    pub(crate) producer: ProducerId,
    pub(crate) commit: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Ongoing(Instant),
    Prepare { commit: bool },
    Complete { commit: bool },
}

/// The coordinator of the only transactional id, and of the only group.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) version: TransactionVersion,
    /// The brokers that are it: of the transactional id, and of the group.
    pub(crate) brokers: [usize; 2],
    producer: Option<ProducerId>,
    /// The epoch before, where that is remembered.
    last_epoch: Option<i16>,
    timeout: Duration,
    state: State,
    members: BTreeSet<Member>,
    /// Of transactions that are decided.
    markers: VecDeque<Marker>,
    pub(crate) offset: Option<StoredPosition>,
    /// By producer id.
    pending: BTreeMap<i64, StoredPosition>,
    /// The highest epoch that the offsets' partition has seen, by producer id.
    offsets_epoch: BTreeMap<i64, i16>,
    next_id: i64,
    /// The highest position that was ever decided.
    pub(crate) highest: i64,
    /// Transactions that were ended because they were open for too long.
    pub(crate) expired: usize,
}

/// What a request led to, beside its answer.
#[derive(Debug)]
pub(crate) enum Decided {
    Nothing,
    /// These members' records of this producer are committed.
    Committed(Vec<Member>, ProducerId),
    Aborted,
}

impl Coordinator {
    pub(crate) fn new(version: TransactionVersion) -> Self {
        Self {
            version,
            brokers: [0, 1],
            producer: None,
            last_epoch: None,
            timeout: Duration::ZERO,
            state: State::Empty,
            members: BTreeSet::new(),
            markers: VecDeque::new(),
            offset: None,
            pending: BTreeMap::new(),
            offsets_epoch: BTreeMap::new(),
            next_id: 100,
            highest: 0,
            expired: 0,
        }
    }

    fn bumps(&self) -> bool {
        self.version == TransactionVersion::EpochPerTransaction
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Ongoing(_) | State::Prepare { .. })
    }

    fn current(&self, asked: ProducerId) -> Result<(), i16> {
        match self.producer {
            Some(known) if known == asked => Ok(()),
            Some(known) if known.id == asked.id => Err(PRODUCER_FENCED),
            _ => Err(INVALID_PRODUCER_ID_MAPPING),
        }
    }

    pub(crate) fn init(
        &mut self,
        timeout: Duration,
        asked: Option<ProducerId>,
    ) -> (Result<ProducerId, i16>, Decided) {
        let Some(known) = self.producer else {
            self.next_id += 1;
            self.timeout = timeout;
            let producer = ProducerId { id: self.next_id, epoch: 0 };
            (self.producer, self.last_epoch) = (Some(producer), None);
            return (Ok(producer), Decided::Nothing);
        };
        if asked.is_some_and(|asked| asked.id != known.id) {
            return (Err(PRODUCER_FENCED), Decided::Nothing);
        }
        match self.state {
            State::Prepare { .. } => (Err(CONCURRENT_TRANSACTIONS), Decided::Nothing),
            State::Ongoing(_) => {
                self.fence();
                (Err(CONCURRENT_TRANSACTIONS), Decided::Aborted)
            }
            State::Empty | State::Complete { .. } => {
                let epoch = known.epoch + 1;
                let (epoch, last) = match asked.map(|asked| asked.epoch) {
                    None => (epoch, None),
                    Some(asked) if asked == known.epoch => (epoch, Some(asked)),
                    Some(asked) if Some(asked) == self.last_epoch => (known.epoch, Some(asked)),
                    Some(_) => return (Err(PRODUCER_FENCED), Decided::Nothing),
                };
                let producer = ProducerId { epoch, ..known };
                (self.producer, self.last_epoch) = (Some(producer), last);
                self.timeout = timeout;
                self.state = State::Empty;
                (Ok(producer), Decided::Nothing)
            }
        }
    }

    /// Ends what is open in the next epoch: whoever has this one is fenced.
    fn fence(&mut self) {
        let Some(known) = self.producer else { return };
        let next = ProducerId { epoch: known.epoch + 1, ..known };
        self.producer = Some(next);
        self.last_epoch = self.bumps().then_some(known.epoch);
        self.prepare(false, next);
    }

    fn prepare(&mut self, commit: bool, marked: ProducerId) -> Vec<Member> {
        self.state = State::Prepare { commit };
        let members: Vec<Member> = std::mem::take(&mut self.members).into_iter().collect();
        for member in &members {
            self.markers.push_back(Marker { member: member.clone(), producer: marked, commit });
        }
        if members.is_empty() {
            self.state = State::Complete { commit };
        }
        members
    }

    /// Is in the transaction from now on.
    pub(crate) fn add(&mut self, now: Instant, asked: ProducerId, member: Member) -> i16 {
        if let Err(code) = self.current(asked) {
            return code;
        }
        match self.state {
            State::Prepare { .. } => return CONCURRENT_TRANSACTIONS,
            State::Ongoing(_) => {}
            State::Empty | State::Complete { .. } => self.state = State::Ongoing(now),
        }
        self.members.insert(member);
        NONE
    }

    /// Whether a partition may take a batch of it, if it has none of this transaction yet.
    pub(crate) fn verify(&mut self, now: Instant, asked: ProducerId, member: Member) -> i16 {
        let stale = match self.producer {
            Some(known) => known.id == asked.id && asked.epoch < known.epoch,
            None => false,
        };
        if stale {
            return INVALID_PRODUCER_EPOCH;
        }
        if self.bumps() {
            return match self.add(now, asked, member) {
                PRODUCER_FENCED => INVALID_PRODUCER_EPOCH,
                code => code,
            };
        }
        if let Err(code) = self.current(asked) {
            return code;
        }
        let is_in = matches!(self.state, State::Ongoing(_)) && self.members.contains(&member);
        if is_in { NONE } else { TRANSACTION_ABORTABLE }
    }

    pub(crate) fn commit_position(
        &mut self,
        now: Instant,
        asked: ProducerId,
        position: StoredPosition,
    ) -> i16 {
        let known = self.offsets_epoch.entry(asked.id).or_insert(asked.epoch);
        if asked.epoch < *known {
            return INVALID_PRODUCER_EPOCH;
        }
        *known = asked.epoch;
        let trapped = !self.bumps() && self.pending_markers_of_offsets(asked);
        let code = match trapped {
            // Where the marker before is not written yet, nobody notices that this is not part of what it ends.
            true => NONE,
            false => self.verify(now, asked, Member::Offsets),
        };
        if code == NONE {
            self.pending.insert(asked.id, position);
        }
        code
    }

    fn pending_markers_of_offsets(&self, asked: ProducerId) -> bool {
        let is_it =
            |marker: &Marker| marker.member == Member::Offsets && marker.producer.id == asked.id;
        self.markers.iter().any(is_it)
    }

    pub(crate) fn end(
        &mut self,
        asked: ProducerId,
        commit: bool,
    ) -> (Result<Option<ProducerId>, i16>, Decided) {
        let Some(known) = self.producer.filter(|known| known.id == asked.id) else {
            return (Err(INVALID_PRODUCER_ID_MAPPING), Decided::Nothing);
        };
        let repeats = self.bumps() && Some(asked.epoch) == self.last_epoch;
        if known.epoch != asked.epoch && !repeats {
            return (Err(PRODUCER_FENCED), Decided::Nothing);
        }
        let next = self.bumps().then_some(known);
        match self.state {
            State::Ongoing(_) if repeats => (Err(PRODUCER_FENCED), Decided::Nothing),
            State::Ongoing(_) => {
                if let Some(pending) = self.pending.get(&asked.id).filter(|_| commit) {
                    self.highest = self.highest.max(pending.offset);
                }
                let (marked, answer) = self.next_epoch(known);
                let members = self.prepare(commit, marked);
                let decided = match commit {
                    true => Decided::Committed(members, asked),
                    false => Decided::Aborted,
                };
                (Ok(answer), decided)
            }
            State::Prepare { commit: before } if before == commit => {
                (Err(CONCURRENT_TRANSACTIONS), Decided::Nothing)
            }
            State::Complete { commit: before }
                if before == commit && (repeats || !self.bumps()) =>
            {
                (Ok(next), Decided::Nothing)
            }
            State::Empty | State::Complete { .. } if self.bumps() && !commit && !repeats => {
                let (_, answer) = self.next_epoch(known);
                self.state = State::Complete { commit };
                (Ok(answer), Decided::Nothing)
            }
            _ => (Err(INVALID_TXN_STATE), Decided::Nothing),
        }
    }

    /// Of the marker, and what is answered.
    fn next_epoch(&mut self, known: ProducerId) -> (ProducerId, Option<ProducerId>) {
        if !self.bumps() {
            return (known, None);
        }
        let next = ProducerId { epoch: known.epoch + 1, ..known };
        (self.producer, self.last_epoch) = (Some(next), Some(known.epoch));
        (next, Some(next))
    }

    /// The position, if no transaction is pending on it.
    pub(crate) fn fetch(&self) -> Result<Option<StoredPosition>, i16> {
        match self.pending.is_empty() {
            true => Ok(self.offset.clone()),
            false => Err(UNSTABLE_OFFSET_COMMIT),
        }
    }

    /// The next marker to be written. That of the offsets is written here.
    pub(crate) fn next_marker(&mut self) -> Option<Marker> {
        let marker = self.markers.pop_front()?;
        if marker.member == Member::Offsets {
            let epoch = self.offsets_epoch.entry(marker.producer.id).or_insert(0);
            *epoch = marker.producer.epoch.max(*epoch);
            let pending = self.pending.remove(&marker.producer.id);
            if let Some(position) = pending.filter(|_| marker.commit) {
                self.offset = Some(position);
            }
        }
        if self.markers.is_empty()
            && let State::Prepare { commit } = self.state
        {
            self.state = State::Complete { commit };
        }
        Some(marker)
    }

    /// What is open for too long is ended. True if that happens now.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let State::Ongoing(since) = self.state else { return false };
        let is_old = now >= since + self.timeout;
        if is_old {
            self.expired += 1;
            self.fence();
        }
        is_old
    }

    /// The transactional id is forgotten, as one that nobody used for a week is.
    pub(crate) fn forget(&mut self) -> bool {
        let forgets = !self.is_open() && self.producer.is_some();
        if forgets {
            self.producer = None;
            self.state = State::Empty;
        }
        forgets
    }
}
