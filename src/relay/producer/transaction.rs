//! One Kafka transaction after another: who we are, what is open, how it ends, and what follows when that is not known.
//!
//! ```text
//!  Initialising ──▶ Reading ──▶ Judging ──▶ Idle ──facts, or a position──▶ Open ──all of it stored, EndTxn──▶ Idle
//!       ▲  │           ▲                                                    │
//!       │  └─▶ Fenced  │                                                    │ lost, refused, ended by the coordinator
//!       │              │                                                    ▼
//!       └──────── Aborting ◀──────────── nothing is in flight ────────── Quieting
//! ```
//!
//! There is one road back: whatever leaves open what became of a transaction ends it. First nothing of ours is in
//! flight any more. Then the transaction is aborted: a coordinator before `transaction.version` 2 that is asked for
//! the next epoch while one is open takes that for somebody else's question, and fences us. Who is told then that he is
//! fenced asks nothing more: the question would fence the one who has come. The next epoch (KIP-360)
//! shuts out whatever of ours is still on some wire, and is refused if somebody else has come. And the position, read
//! when no transaction is pending on it, says whether the facts are there.
//!
//! A position is never sent before the coordinator has said that the group is in the transaction: else the marker of
//! the one before, which may still be on its way, commits it without its facts.

use super::{SLOW_FROM_ATTEMPT, Single};
use crate::relay::backoff::Jitter;
use crate::relay::error_code;
use crate::relay::event::{AbortReason, Event, Phases};
use crate::relay::kafka::{
    BrokerId, Coordinated, CoordinatorOf, PositionPlace, ProducerId, Request, StoredPosition,
    Transaction, TransactionVersion, Unanswered,
};
use crate::relay::policy::{self, TransactionRequest, TransactionVerdict};
use crate::relay::seeded_bug::{Seeded, SeededBug};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The markers of a transaction are written within milliseconds; what follows it is refused until then. A loop on
/// one's toes costs the coordinator more than it wins.
const SOON_FIRST: Duration = Duration::from_millis(2);
const SOON_MAX: Duration = Duration::from_millis(100);

/// The delay before attempt `attempt` (the first repeat is 1) of what is refused because the transaction before is
/// not over.
pub(super) fn soon(attempt: u32) -> Duration {
    SOON_FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(SOON_MAX)
}

/// What the passing of time and chance has to do with it.
pub(super) struct Chance<'a> {
    pub(super) now: Instant,
    pub(super) jitter: &'a mut Jitter,
    pub(super) backoff_max: Duration,
}

/// A partition as transactions know it: topic, index, and its place in [`super::Producer::partitions`].
pub(super) type Member = (Arc<str>, i32, usize);

/// What is asked of a coordinator. One of its requests is under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Init,
    AddPartitions,
    AddOffsets,
    End { commit: bool },
    CommitPosition,
    FetchPosition,
}

/// What must come before something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Wanted,
    Done,
}

/// A transaction that may be open.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// The group is in it.
    offsets: Step,
    /// The position is in it.
    position: Step,
    /// All batches of the group are stored. Said when the group is closed.
    stored: bool,
}

impl Open {
    fn new(version: TransactionVersion) -> Self {
        let offsets = match version {
            TransactionVersion::Explicit => Step::Wanted,
            // By what is written to it.
            TransactionVersion::EpochPerTransaction => Step::Done,
        };
        Self { offsets, position: Step::Wanted, stored: false }
    }
}

/// When the group that is closed went from one state to the next.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    opened: Option<Instant>,
    closed: Option<Instant>,
    ending: Option<Instant>,
}

impl Marks {
    fn phases(self, now: Instant) -> Phases {
        let Self { opened, closed, ending } = self;
        let since = |from: Option<Instant>, to: Option<Instant>| {
            let elapsed = from.zip(to).map(|(from, to)| to.saturating_duration_since(from));
            elapsed.unwrap_or_default()
        };
        Phases {
            producing: since(opened, closed),
            closing: since(opened.max(closed), ending),
            ending: since(ending, Some(now)),
        }
    }
}

/// Why a transaction is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) reason: AbortReason,
    pub(super) cause: String,
}

impl Failed {
    pub(super) fn new(reason: AbortReason, cause: impl Into<String>) -> Self {
        Self { reason, cause: cause.into() }
    }

    fn refused(code: i16) -> Self {
        Self::new(AbortReason::Refused, error_code::name(code))
    }
}

#[derive(Debug)]
enum State {
    /// The transactional id is not known yet.
    Nameless,
    Initialising,
    /// The position is being read.
    Reading,
    /// It was read, and what it means is not decided yet.
    Judging(Option<StoredPosition>),
    Idle,
    Open(Open),
    /// Until nothing is in flight.
    Quieting,
    Aborting,
    Fenced(String),
}

/// What becomes of the facts that are held when a transaction is given up, from the mildest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Held {
    /// They go again.
    Repeated,
    /// Those of the newest unit, of which only a part was read, are dropped.
    Cut,
    /// None is kept: all that is not in Kafka will be read again.
    Dropped,
}

/// What an answer brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Nothing,
    /// These partitions are in the transaction.
    Added(Vec<usize>),
    /// The transaction is committed.
    Committed,
    /// The position was read: [`Transactions::judge`] says what follows.
    Read,
    /// It cannot be told whether somebody else has come: what is held is worth nothing.
    Unsure(String),
}

/// A coordinator, and what is under way to it.
#[derive(Debug)]
struct Line {
    of: CoordinatorOf,
    broker: Option<BrokerId>,
    find: Single,
    asked: Option<Ask>,
    not_before: Option<Instant>,
    /// Failures in a row.
    attempts: u32,
    /// What was told of them last.
    refused: Option<i16>,
}

impl Line {
    fn new(of: CoordinatorOf) -> Self {
        let find = Single::default();
        Self { of, broker: None, find, asked: None, not_before: None, attempts: 0, refused: None }
    }

    /// The broker, if it can be asked something now.
    fn ready(&self, now: Instant) -> Option<BrokerId> {
        let free = self.asked.is_none() && self.not_before.is_none_or(|at| at <= now);
        self.broker.filter(|_| free)
    }

    fn succeeded(&mut self) {
        self.attempts = 0;
        self.not_before = None;
        self.refused = None;
    }

    fn failed(&mut self, verdict: TransactionVerdict, chance: &mut Chance<'_>) {
        self.attempts = self.attempts.saturating_add(1);
        let delay = match verdict {
            TransactionVerdict::Soon => soon(self.attempts),
            TransactionVerdict::Refused => chance.backoff_max,
            _ => chance.jitter.delay(self.attempts, chance.backoff_max),
        };
        self.not_before = Some(chance.now + delay);
        if verdict == TransactionVerdict::Elsewhere {
            self.broker = None;
            self.find.want(chance.now);
        }
    }

    fn deadline(&self, wanted: Option<Ask>) -> Option<Instant> {
        match self.broker {
            None => self.find.deadline(),
            Some(_) => self.not_before.filter(|_| self.asked.is_none() && wanted.is_some()),
        }
    }
}

/// The transactions of a transactional id.
#[derive(Debug)]
pub(super) struct Transactions {
    id: Arc<str>,
    place: PositionPlace,
    timeout: Duration,
    /// As the coordinator named it last.
    producer: Option<ProducerId>,
    version: TransactionVersion,
    state: State,
    /// Counts transactions, so that a partition knows which one it is in.
    number: u64,
    /// When the transaction was opened that may be open.
    opened: Option<Instant>,
    marks: Marks,
    /// Since when it is not known what became of one.
    unknown_since: Option<Instant>,
    /// The group that is closed, and not known to be committed: the position at its end.
    closed: Option<StoredPosition>,
    /// Partitions that are to be in the transaction.
    to_add: Vec<Member>,
    /// Those that are being added.
    adding: Vec<Member>,
    held: Held,
    /// How often in a row a transaction was given up.
    recoveries: u32,
    /// A question of ours for an epoch was not answered. Where it comes late it fences ourselves: of a transaction that
    /// is open the coordinator does not look whose epoch it is asked for.
    late_init: bool,
    /// The same of one to add something, in this epoch: where it comes behind the abort, a transaction is open again.
    late_add: bool,
    /// Somebody has judged a position that was read, and what is enqueued goes by it.
    is_judged: bool,
    transactions: Line,
    group: Line,
    seeded: Seeded,
}

impl Transactions {
    pub(super) fn new(position_topic: Arc<str>, timeout: Duration) -> Self {
        let id: Arc<str> = Arc::from("");
        Self {
            place: PositionPlace { group: Arc::clone(&id), topic: position_topic },
            id,
            timeout,
            producer: None,
            version: TransactionVersion::Explicit,
            state: State::Nameless,
            number: 0,
            opened: None,
            marks: Marks::default(),
            unknown_since: None,
            closed: None,
            to_add: Vec::new(),
            adding: Vec::new(),
            held: Held::Dropped,
            recoveries: 0,
            late_init: false,
            late_add: false,
            is_judged: false,
            transactions: Line::new(CoordinatorOf::Transactions),
            group: Line::new(CoordinatorOf::Group),
            seeded: Seeded::default(),
        }
    }

    pub(super) fn seed_bug(&mut self, seeded: Seeded) {
        self.seeded = seeded;
    }

    /// The transactional id, which is the consumer group's name, too. It never changes.
    pub(super) fn name(&mut self, now: Instant, id: &str) {
        if matches!(self.state, State::Nameless) {
            self.id = Arc::from(id);
            self.place.group = Arc::clone(&self.id);
            self.state = match self.seeded.is(SeededBug::NoAbortOnRestart) {
                true => State::Reading,
                false => State::Initialising,
            };
            self.transactions.find.want(now);
            self.group.find.want(now);
        }
    }

    pub(super) fn id(&self) -> &Arc<str> {
        &self.id
    }

    pub(super) fn topic(&self) -> &Arc<str> {
        &self.place.topic
    }

    pub(super) fn version(&self) -> TransactionVersion {
        self.version
    }

    /// Who we are, if batches may be sent.
    pub(super) fn sender(&self) -> Option<ProducerId> {
        let sends = match &self.state {
            State::Idle => true,
            State::Open(_) => self.transactions.asked != Some(Ask::End { commit: true }),
            _ => false,
        };
        self.producer.filter(|_| sends)
    }

    /// True if the transactional id was ours once.
    pub(super) fn has_identity(&self) -> bool {
        self.producer.is_some()
    }

    /// Counts transactions. A partition that has this number is in the one that is open.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// True if partitions are added by requests of their own.
    pub(super) fn adds(&self) -> bool {
        self.version == TransactionVersion::Explicit
    }

    /// This partition has something to send.
    pub(super) fn add(&mut self, member: Member) {
        let is_it = |known: &Member| known.2 == member.2;
        if !self.to_add.iter().chain(&self.adding).any(is_it) {
            self.to_add.push(member);
        }
    }

    /// Something that belongs to a transaction is about to be sent.
    pub(super) fn open(&mut self, now: Instant) {
        if matches!(self.state, State::Idle) {
            self.number += 1;
            self.opened = Some(now);
            (self.marks.opened, self.marks.ending) = (Some(now), None);
            self.state = State::Open(Open::new(self.version));
        }
    }

    /// Since when a transaction has been open, if one may be.
    pub(super) fn opened(&self) -> Option<Instant> {
        self.opened
    }

    /// True if facts may be enqueued.
    pub(super) fn takes_facts(&self) -> bool {
        self.is_judged && self.held == Held::Repeated
    }

    /// True if the group that is gathering may be closed.
    pub(super) fn closes(&self) -> bool {
        self.takes_facts() && self.closed.is_none()
    }

    /// Nothing is added to the group any more.
    pub(super) fn close(&mut self, now: Instant, position: StoredPosition) {
        self.closed = Some(position);
        self.marks.closed = Some(now);
    }

    /// Where the time of the closed group went, now that it is committed.
    pub(super) fn phases(&self, now: Instant) -> Phases {
        self.marks.phases(now)
    }

    /// True if it is to be said when all batches of the closed group are stored.
    pub(super) fn awaits_stored(&self) -> bool {
        let open = match &self.state {
            State::Idle => true,
            State::Open(open) => !open.stored,
            _ => false,
        };
        open && self.closed.is_some()
    }

    /// All batches of the closed group are stored.
    pub(super) fn stored(&mut self, now: Instant) {
        self.open(now);
        if let State::Open(open) = &mut self.state {
            open.stored = true;
        }
    }

    /// Why nothing goes on, if that is so for a reason of transactions.
    pub(super) fn fenced(&self) -> Option<&str> {
        match &self.state {
            State::Fenced(cause) => Some(cause),
            _ => None,
        }
    }

    /// As health and metrics have it.
    pub(super) fn state(&self) -> TransactionState {
        match &self.state {
            State::Nameless | State::Initialising => TransactionState::Initialising,
            State::Reading | State::Judging(_) => TransactionState::Reading,
            State::Idle => TransactionState::Idle,
            State::Open(_) if self.closed.is_none() => TransactionState::Producing,
            State::Open(Open { stored: true, position: Step::Done, .. }) => {
                TransactionState::Ending
            }
            State::Open(_) => TransactionState::Closing,
            State::Quieting | State::Aborting => TransactionState::Recovering,
            State::Fenced(_) => TransactionState::Fenced,
        }
    }

    /// What is being waited for, while that goes wrong.
    pub(super) fn trouble(&self) -> Option<String> {
        let line = [&self.transactions, &self.group];
        let line = line.into_iter().find(|line| line.refused.is_some())?;
        let code = line.refused?;
        Some(format!("{}: {}", error_code::name(code), policy::transaction_remedy(code)))
    }

    // ---- the road back ----

    /// What became of the transaction is not known, or it is over. True if that is news.
    pub(super) fn recover(&mut self, held: Held) -> bool {
        self.held = self.held.max(held);
        match self.state {
            State::Idle | State::Open(_) => {
                self.to_add.clear();
                self.state = State::Quieting;
                true
            }
            _ => false,
        }
    }

    /// What is in flight of ours is answered, as far as coordinators were asked.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.state, State::Quieting)
            && self.transactions.asked.is_none()
            && self.group.asked.is_none()
    }

    /// Nothing is in flight any more. What becomes of what is held.
    pub(super) fn quieted(&mut self, chance: &mut Chance<'_>) -> Held {
        // A cluster that ends every transaction is not to be asked for the next as fast as it answers.
        if self.recoveries > 0 {
            let delay = chance.jitter.delay(self.recoveries, chance.backoff_max);
            self.transactions.not_before =
                self.transactions.not_before.max(Some(chance.now + delay));
        }
        self.recoveries = self.recoveries.saturating_add(1);
        self.state = match self.opened {
            Some(_) => State::Aborting,
            None => State::Initialising,
        };
        if self.held == Held::Dropped {
            self.closed = None;
            self.is_judged = false;
        }
        let held = self.held;
        if held == Held::Cut {
            self.held = Held::Repeated;
        }
        held
    }

    /// The position that was read, if that is to be judged now by who knows the server; else whether the closed group
    /// is committed.
    pub(super) fn judge(&self) -> Option<Judgement<'_>> {
        let State::Judging(found) = &self.state else { return None };
        Some(match self.is_judged {
            true => Judgement::Group(found.as_ref()),
            false => Judgement::Server(found.as_ref()),
        })
    }

    /// It is decided. With `committed`, so is the closed group.
    pub(super) fn judged(&mut self, now: Instant, committed: bool, events: &mut VecDeque<Event>) {
        if matches!(self.state, State::Judging(_)) {
            self.state = match self.producer {
                Some(_) => State::Idle,
                None => State::Initialising,
            };
            self.held = Held::Repeated;
            self.is_judged = true;
            if committed {
                self.closed = None;
            }
            if self.producer.is_some()
                && let Some(since) = self.unknown_since.take()
            {
                let after = now.saturating_duration_since(since);
                events.push_back(Event::TransactionsRecovered { after });
            }
        }
    }

    /// What is held is not kept. True if that is now, false if something of it is in flight.
    pub(super) fn drop_held(&mut self, now: Instant, events: &mut VecDeque<Event>) -> bool {
        match self.state {
            State::Idle | State::Open(_) | State::Quieting => {
                self.held = Held::Dropped;
                let cause = "what was read does not count any more";
                let failed = Failed::new(AbortReason::Dropped, cause);
                self.over(now, &failed, Held::Dropped, events);
                false
            }
            _ => {
                self.held = Held::Dropped;
                self.closed = None;
                self.is_judged = false;
                true
            }
        }
    }

    /// Begins anew as somebody else would: fences whoever has the id.
    pub(super) fn begin_anew(&mut self) {
        self.held = Held::Dropped;
        self.producer = None;
        self.opened = None;
        self.to_add.clear();
        if !matches!(self.state, State::Nameless) {
            self.state = State::Quieting;
        }
    }

    // ---- requests ----

    fn wanted_of_transactions(&self, produce: bool) -> Option<Ask> {
        match &self.state {
            State::Initialising if produce => Some(Ask::Init),
            State::Aborting => Some(Ask::End { commit: false }),
            State::Idle if produce && !self.to_add.is_empty() => Some(Ask::AddPartitions),
            State::Open(_) if !produce => None,
            State::Open(_) if !self.to_add.is_empty() => Some(Ask::AddPartitions),
            State::Open(open) if open.offsets == Step::Wanted => Some(Ask::AddOffsets),
            State::Open(Open { stored: true, position: Step::Done, .. }) => {
                Some(Ask::End { commit: true })
            }
            _ => None,
        }
    }

    fn wanted_of_group(&self, produce: bool) -> Option<Ask> {
        match &self.state {
            State::Reading => Some(Ask::FetchPosition),
            State::Open(Open { offsets: Step::Done, position: Step::Wanted, .. })
                if produce && self.closed.is_some() =>
            {
                Some(Ask::CommitPosition)
            }
            _ => None,
        }
    }

    /// The next request, until none. `produce` says whether the slot is ours.
    pub(super) fn poll(&mut self, now: Instant, produce: bool) -> Option<Request> {
        if matches!(self.state, State::Nameless | State::Fenced(_)) {
            return None;
        }
        for line in [&mut self.transactions, &mut self.group] {
            if line.broker.is_none() && line.find.take(now) {
                return Some(Request::FindCoordinator { of: line.of, key: Arc::clone(&self.id) });
            }
        }
        if let Some(ask) = self.wanted_of_transactions(produce)
            && let Some(coordinator) = self.transactions.ready(now)
            && let Some(request) = self.ask_transactions(now, ask, coordinator)
        {
            self.transactions.asked = Some(ask);
            if ask == (Ask::End { commit: true }) {
                self.marks.ending.get_or_insert(now);
            }
            return Some(request);
        }
        let ask = self.wanted_of_group(produce)?;
        let coordinator = self.group.ready(now)?;
        let place = self.place.clone();
        let request = match ask {
            Ask::CommitPosition => Request::CommitPosition {
                coordinator,
                id: Arc::clone(&self.id),
                producer: self.producer?,
                version: self.version,
                place,
                position: self.closed.clone()?,
            },
            _ => Request::FetchPosition { coordinator, place },
        };
        self.group.asked = Some(ask);
        Some(request)
    }

    fn ask_transactions(
        &mut self,
        now: Instant,
        ask: Ask,
        coordinator: BrokerId,
    ) -> Option<Request> {
        let id = Arc::clone(&self.id);
        if ask == Ask::Init {
            let (timeout, producer) = (self.timeout, self.producer);
            return Some(Request::InitTransactions { coordinator, id, timeout, producer });
        }
        let transaction = Transaction { coordinator, id, producer: self.producer? };
        Some(match ask {
            Ask::AddPartitions => {
                self.open(now);
                self.adding = std::mem::take(&mut self.to_add);
                self.adding.sort_unstable();
                let named = |(topic, index, _): &Member| (Arc::clone(topic), *index);
                let partitions = self.adding.iter().map(named).collect();
                Request::AddPartitions { transaction, partitions }
            }
            Ask::AddOffsets => {
                Request::AddOffsets { transaction, group: Arc::clone(&self.place.group) }
            }
            Ask::End { commit } => {
                Request::EndTransaction { transaction, version: self.version, commit }
            }
            Ask::Init | Ask::CommitPosition | Ask::FetchPosition => return None,
        })
    }

    /// What ends an open transaction at once, when the relay leaves and cannot commit it.
    pub(super) fn give_up(&self) -> Option<Request> {
        self.opened?;
        if self.transactions.asked == Some(Ask::End { commit: true }) {
            return None;
        }
        let (coordinator, producer) = (self.transactions.broker?, self.producer?);
        let transaction = Transaction { coordinator, id: Arc::clone(&self.id), producer };
        Some(Request::EndTransaction { transaction, version: self.version, commit: false })
    }

    /// When [`Transactions::poll`], called with the same `produce`, may have something without another answer.
    pub(super) fn deadline(&self, produce: bool) -> Option<Instant> {
        if matches!(self.state, State::Nameless | State::Fenced(_)) {
            return None;
        }
        let transactions = self.transactions.deadline(self.wanted_of_transactions(produce));
        let group = self.group.deadline(self.wanted_of_group(produce));
        transactions.into_iter().chain(group).min()
    }

    // ---- answers ----

    pub(super) fn found(
        &mut self,
        of: CoordinatorOf,
        answer: Coordinated<BrokerId>,
        chance: &mut Chance<'_>,
        events: &mut VecDeque<Event>,
    ) {
        let line = match of {
            CoordinatorOf::Transactions => &mut self.transactions,
            CoordinatorOf::Group => &mut self.group,
        };
        line.find.in_flight = false;
        match answer {
            Ok(Ok(broker)) => {
                line.find.succeeded();
                line.broker = Some(broker);
                line.refused = None;
                return;
            }
            Ok(Err(code)) => {
                let verdict = policy::transaction(TransactionRequest::FindCoordinator, code);
                if verdict == TransactionVerdict::Refused {
                    line.find.attempts = line.find.attempts.max(SLOW_FROM_ATTEMPT);
                    refused(line, TransactionRequest::FindCoordinator, code, events);
                }
            }
            Err(Unanswered(_)) => {}
        }
        line.find.failed(chance.now, chance.jitter, chance.backoff_max);
    }

    /// What an answer to something that was asked leads to. None of it if that is not what is waited for.
    fn verdict<T>(
        &mut self,
        of: CoordinatorOf,
        request: TransactionRequest,
        answer: Coordinated<T>,
        chance: &mut Chance<'_>,
        events: &mut VecDeque<Event>,
    ) -> (TransactionVerdict, Result<T, Failed>) {
        let line = match of {
            CoordinatorOf::Transactions => &mut self.transactions,
            CoordinatorOf::Group => &mut self.group,
        };
        line.asked = None;
        let (verdict, result) = match answer {
            Ok(Ok(done)) => (TransactionVerdict::Done, Ok(done)),
            Ok(Err(code)) => {
                let verdict = policy::transaction(request, code);
                if verdict == TransactionVerdict::Refused {
                    refused(line, request, code, events);
                }
                (verdict, Err(Failed::refused(code)))
            }
            Err(Unanswered(cause)) => {
                let verdict = match request {
                    // A copy that comes late would do it to another transaction.
                    TransactionRequest::CommitPosition | TransactionRequest::EndTransaction => {
                        TransactionVerdict::Recover
                    }
                    _ => TransactionVerdict::Elsewhere,
                };
                if verdict == TransactionVerdict::Recover {
                    line.broker = None;
                    line.find.want(chance.now);
                }
                let cause = format!("no answer to {request:?}: {cause}");
                (verdict, Err(Failed::new(AbortReason::Unanswered, cause)))
            }
        };
        match verdict {
            TransactionVerdict::Done => line.succeeded(),
            TransactionVerdict::Recover | TransactionVerdict::Fenced => {}
            verdict => line.failed(verdict, chance),
        }
        (verdict, result)
    }

    /// The transaction is over, or not known to be: ends it, and says so once.
    pub(super) fn over(
        &mut self,
        now: Instant,
        failed: &Failed,
        held: Held,
        events: &mut VecDeque<Event>,
    ) {
        if self.recover(held) {
            self.unknown_since.get_or_insert(now);
            let Failed { reason, cause } = failed.clone();
            if matches!(reason, AbortReason::GivenUp | AbortReason::Halted) {
                // One fact fewer each time: a thousand that a broker refuses must not take seconds each. And who halts
                // waits before the next one anyway.
                self.recoveries = 0;
            }
            events.push_back(Event::TransactionAborted { reason, cause });
        }
    }

    pub(super) fn initialised(
        &mut self,
        answer: Coordinated<(ProducerId, TransactionVersion)>,
        chance: &mut Chance<'_>,
        events: &mut VecDeque<Event>,
    ) -> Outcome {
        let (of, request) = (CoordinatorOf::Transactions, TransactionRequest::InitProducerId);
        self.late_init |= answer.is_err();
        let (verdict, answer) = self.verdict(of, request, answer, chance, events);
        // Whoever began anew meanwhile asks again.
        if !matches!(self.state, State::Initialising) {
            return Outcome::Nothing;
        }
        match (verdict, answer) {
            (TransactionVerdict::Done, Ok((producer, version))) => {
                let before = self.producer.replace(producer);
                self.version = version;
                (self.opened, self.late_add) = (None, false);
                let skips = self.seeded.is(SeededBug::NoAbortOnRestart) && self.number == 0;
                self.state = if skips { State::Idle } else { State::Reading };
                let id = Arc::clone(&self.id);
                events.push_back(Event::Transactional { id, producer: producer.id, version });
                match before.is_some_and(|before| before.id != producer.id) {
                    // Its epochs were used up; or the coordinator had forgotten the id, and with it who came since.
                    true => Outcome::Unsure("Kafka gave another producer id".to_owned()),
                    false => Outcome::Nothing,
                }
            }
            // Nobody can have come after one who says nothing of himself.
            (TransactionVerdict::Fenced, _) if self.producer.is_none() => {
                self.transactions.failed(TransactionVerdict::Again, chance);
                Outcome::Nothing
            }
            (TransactionVerdict::Fenced, Err(Failed { cause, .. })) => {
                self.fenced_by(&cause, chance.now)
            }
            _ => Outcome::Nothing,
        }
    }

    /// The coordinator says that our epoch is over: somebody else has come, unless that was time, or we ourselves.
    fn fenced_by(&mut self, cause: &str, now: Instant) -> Outcome {
        let id = &self.id;
        if self.opened.is_some_and(|at| now >= at + self.timeout) {
            let timeout = self.timeout;
            return Outcome::Unsure(format!(
                "{cause}: the Kafka transaction was open for longer than TRANSACTION_TIMEOUT ({timeout:?})"
            ));
        }
        let (init, add) = (&mut self.late_init, &mut self.late_add);
        if std::mem::take(init) || std::mem::take(add) {
            return Outcome::Unsure(format!(
                "{cause}: a request of this relay may have come to Kafka late"
            ));
        }
        // A standby may wait for hours.
        self.unknown_since = None;
        self.state = State::Fenced(format!(
            "{cause}: another relay, or somebody else, has the transactional id {id} now"
        ));
        Outcome::Nothing
    }

    pub(super) fn partitions_added(
        &mut self,
        answer: Result<Vec<i16>, Unanswered>,
        chance: &mut Chance<'_>,
        events: &mut VecDeque<Event>,
    ) -> (Outcome, Vec<(usize, i16)>) {
        let request = TransactionRequest::AddPartitions;
        self.transactions.asked = None;
        let adding = std::mem::take(&mut self.adding);
        self.late_add |= answer.is_err();
        let codes = match answer {
            Ok(codes) if codes.len() == adding.len() => codes,
            _ => {
                self.transactions.failed(TransactionVerdict::Elsewhere, chance);
                if matches!(self.state, State::Open(_)) {
                    self.to_add.extend(adding);
                }
                return (Outcome::Nothing, Vec::new());
            }
        };
        if !matches!(self.state, State::Open(_)) {
            return (Outcome::Nothing, Vec::new());
        }
        let (mut added, mut topics, mut worst) = (Vec::new(), Vec::new(), None);
        for (member, code) in adding.into_iter().zip(codes) {
            match policy::transaction(request, code) {
                TransactionVerdict::Done => added.push(member.2),
                TransactionVerdict::Refused if is_about_topic(code) => {
                    topics.push((member.2, code))
                }
                verdict => {
                    // That another one was not attempted says nothing.
                    if worst.is_none_or(|(_, code)| code == error_code::OPERATION_NOT_ATTEMPTED) {
                        worst = Some((verdict, code));
                    }
                    if code == error_code::UNKNOWN_TOPIC_OR_PARTITION {
                        topics.push((member.2, code));
                    }
                    self.to_add.push(member);
                }
            }
        }
        match worst {
            None => self.transactions.succeeded(),
            Some((TransactionVerdict::Recover, code)) => {
                self.over(chance.now, &Failed::refused(code), Held::Repeated, events);
            }
            Some((verdict, code)) => {
                if verdict == TransactionVerdict::Refused {
                    refused(&mut self.transactions, request, code, events);
                }
                self.transactions.failed(verdict, chance);
            }
        }
        (Outcome::Added(added), topics)
    }

    pub(super) fn offsets_added(
        &mut self,
        answer: Coordinated<()>,
        chance: &mut Chance<'_>,
        events: &mut VecDeque<Event>,
    ) {
        let (of, request) = (CoordinatorOf::Transactions, TransactionRequest::AddOffsets);
        self.late_add |= answer.is_err();
        let early = self.seeded.is(SeededBug::PositionBeforeAddOffsets);
        let (verdict, answer) = self.verdict(of, request, answer, chance, events);
        match (verdict, answer, &mut self.state) {
            (TransactionVerdict::Done, _, State::Open(open)) => open.offsets = Step::Done,
            (TransactionVerdict::Soon, _, State::Open(open)) if early => open.offsets = Step::Done,
            (TransactionVerdict::Recover, Err(failed), _) => {
                self.over(chance.now, &failed, Held::Repeated, events);
            }
            _ => {}
        }
    }

    pub(super) fn position_committed(
        &mut self,
        answer: Coordinated<()>,
        chance: &mut Chance<'_>,
        events: &mut VecDeque<Event>,
    ) {
        let (of, request) = (CoordinatorOf::Group, TransactionRequest::CommitPosition);
        let (verdict, answer) = self.verdict(of, request, answer, chance, events);
        match (verdict, answer, &mut self.state) {
            (TransactionVerdict::Done, _, State::Open(open)) => open.position = Step::Done,
            (TransactionVerdict::Recover, Err(failed), _) => {
                self.over(chance.now, &failed, Held::Repeated, events);
            }
            _ => {}
        }
    }

    pub(super) fn ended(
        &mut self,
        answer: Coordinated<Option<ProducerId>>,
        chance: &mut Chance<'_>,
        events: &mut VecDeque<Event>,
    ) -> Outcome {
        let asked = self.transactions.asked;
        let request = match asked {
            Some(Ask::End { commit: false }) => TransactionRequest::AbortTransaction,
            _ => TransactionRequest::EndTransaction,
        };
        let of = CoordinatorOf::Transactions;
        let (verdict, answer) = self.verdict(of, request, answer, chance, events);
        if let Ok(Some(next)) = answer {
            self.producer = self.producer.map(|_| next);
        }
        match (&self.state, asked, verdict, answer) {
            (State::Open(_), Some(Ask::End { commit: true }), TransactionVerdict::Done, _) => {
                self.opened = None;
                self.closed = None;
                self.recoveries = 0;
                self.state = State::Idle;
                return Outcome::Committed;
            }
            (State::Open(_), _, TransactionVerdict::Recover, Err(failed)) => {
                self.over(chance.now, &failed, Held::Repeated, events);
            }
            // There is none any more; whether it was committed the position says, and who we are the next answer.
            (
                State::Aborting,
                Some(Ask::End { commit: false }),
                TransactionVerdict::Done | TransactionVerdict::Recover,
                _,
            ) => {
                self.transactions.succeeded();
                self.state = State::Initialising;
            }
            // To ask for the next epoch would be refused, too, and fence whoever has a transaction open.
            (State::Aborting, _, TransactionVerdict::Fenced, Err(Failed { cause, .. })) => {
                return self.fenced_by(&cause, chance.now);
            }
            _ => {}
        }
        Outcome::Nothing
    }

    pub(super) fn position_read(
        &mut self,
        answer: Coordinated<Option<StoredPosition>>,
        chance: &mut Chance<'_>,
        events: &mut VecDeque<Event>,
    ) -> Outcome {
        let (of, request) = (CoordinatorOf::Group, TransactionRequest::FetchPosition);
        let (verdict, answer) = self.verdict(of, request, answer, chance, events);
        match (verdict, answer) {
            (TransactionVerdict::Done, Ok(found)) if matches!(self.state, State::Reading) => {
                self.state = State::Judging(found);
                Outcome::Read
            }
            _ => Outcome::Nothing,
        }
    }
}

/// Who judges a position that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement<'a> {
    /// Whoever knows where the server stands.
    Server(Option<&'a StoredPosition>),
    /// Whoever knows what was to be committed.
    Group(Option<&'a StoredPosition>),
}

/// Where a relay's transactions stand, for health and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionState {
    /// The transactional id is not ours yet.
    Initialising,
    /// The position is being read.
    Reading,
    /// Nothing is open.
    Idle,
    /// Facts are being produced.
    Producing,
    /// Facts and position of a group are being completed.
    Closing,
    /// It is being committed.
    Ending,
    /// What became of a transaction is being found out.
    Recovering,
    /// Somebody else has the transactional id.
    Fenced,
}

impl TransactionState {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Initialising,
        Self::Reading,
        Self::Idle,
        Self::Producing,
        Self::Closing,
        Self::Ending,
        Self::Recovering,
        Self::Fenced,
    ];

    /// As metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initialising => "initialising",
            Self::Reading => "reading",
            Self::Idle => "idle",
            Self::Producing => "producing",
            Self::Closing => "closing",
            Self::Ending => "ending",
            Self::Recovering => "recovering",
            Self::Fenced => "fenced",
        }
    }
}

/// True if it is a fact's topic that is refused, and not the transaction.
fn is_about_topic(code: i16) -> bool {
    matches!(code, error_code::TOPIC_AUTHORIZATION_FAILED | error_code::INVALID_TOPIC_EXCEPTION)
}

/// Says once that somebody must change something.
fn refused(line: &mut Line, request: TransactionRequest, code: i16, events: &mut VecDeque<Event>) {
    if line.refused.replace(code) != Some(code) {
        let (error, remedy) = (error_code::name(code), policy::transaction_remedy(code));
        events.push_back(Event::TransactionsRefused { request, error, remedy });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::error_code::{
        CONCURRENT_TRANSACTIONS, COORDINATOR_LOAD_IN_PROGRESS, INVALID_PRODUCER_EPOCH,
        INVALID_TXN_STATE, NOT_COORDINATOR, PRODUCER_FENCED, TOPIC_AUTHORIZATION_FAILED,
        TRANSACTIONAL_ID_AUTHORIZATION_FAILED, UNKNOWN_TOPIC_OR_PARTITION, UNSTABLE_OFFSET_COMMIT,
    };

    const MS: Duration = Duration::from_millis(1);
    const TIMEOUT: Duration = Duration::from_secs(60);
    const EXPLICIT: TransactionVersion = TransactionVersion::Explicit;
    const PER_TRANSACTION: TransactionVersion = TransactionVersion::EpochPerTransaction;

    struct Rig {
        transactions: Transactions,
        now: Instant,
        jitter: Jitter,
        events: VecDeque<Event>,
    }

    fn producer(epoch: i16) -> ProducerId {
        ProducerId { id: 7, epoch }
    }

    fn position(offset: i64) -> StoredPosition {
        StoredPosition { offset, metadata: String::new() }
    }

    fn member(index: i32) -> Member {
        (Arc::from("t"), index, usize::try_from(index).unwrap())
    }

    fn unanswered<T>() -> Coordinated<T> {
        Err(Unanswered("reset".to_owned()))
    }

    impl Rig {
        fn new() -> Self {
            let mut transactions = Transactions::new(Arc::from("owlpost.position"), TIMEOUT);
            #[expect(clippy::disallowed_methods, reason = "any moment will do")]
            let now = Instant::now();
            transactions.name(now, "owlpost-1-2-slot");
            Self { transactions, now, jitter: Jitter::new(1), events: VecDeque::new() }
        }

        /// Idle, in epoch 3.
        fn idle(version: TransactionVersion) -> Self {
            let mut rig = Self::new();
            rig.find();
            assert!(matches!(rig.poll(), Some(Request::InitTransactions { producer: None, .. })));
            rig.initialised(Ok(Ok((producer(3), version))));
            assert!(matches!(rig.poll(), Some(Request::FetchPosition { .. })));
            assert_eq!(rig.position_read(Ok(Ok(None))), Outcome::Read);
            assert_eq!(rig.transactions.judge(), Some(Judgement::Server(None)));
            rig.judged(false);
            rig.is(TransactionState::Idle);
            rig
        }

        /// Both coordinators are found.
        fn find(&mut self) {
            for _ in 0..2 {
                let Some(Request::FindCoordinator { of, key }) = self.poll() else {
                    panic!("nobody asks for a coordinator")
                };
                assert_eq!(&*key, "owlpost-1-2-slot");
                self.found(of);
            }
        }

        fn found(&mut self, of: CoordinatorOf) {
            let mut chance =
                Chance { now: self.now, jitter: &mut self.jitter, backoff_max: 5 * 1000 * MS };
            self.transactions.found(of, Ok(Ok(1)), &mut chance, &mut self.events);
        }

        fn poll(&mut self) -> Option<Request> {
            self.transactions.poll(self.now, true)
        }

        /// The next request, which is there within a second.
        fn next(&mut self) -> Request {
            for _ in 0..1000 {
                match self.poll() {
                    Some(Request::FindCoordinator { of, .. }) => self.found(of),
                    Some(request) => return request,
                    None => self.now += MS,
                }
            }
            panic!("nothing is asked any more: {:?}", self.transactions)
        }

        fn is(&self, state: TransactionState) {
            assert_eq!(self.transactions.state(), state);
        }

        fn closed_and_stored(&mut self, at: i64) {
            self.transactions.close(self.now, position(at));
            self.transactions.stored(self.now);
        }

        fn judged(&mut self, committed: bool) {
            self.transactions.judged(self.now, committed, &mut self.events);
        }

        fn give_up(&mut self, cause: &str) {
            let failed = Failed::new(AbortReason::Refused, cause);
            self.transactions.over(self.now, &failed, Held::Repeated, &mut self.events);
        }

        fn quiet(&mut self) -> Held {
            assert!(self.transactions.is_quiet());
            let mut chance =
                Chance { now: self.now, jitter: &mut self.jitter, backoff_max: 5 * 1000 * MS };
            self.transactions.quieted(&mut chance)
        }
    }

    macro_rules! answers {
        ($($name:ident($answer:ty) -> $outcome:ty;)*) => {
            impl Rig {
                $(fn $name(&mut self, answer: $answer) -> $outcome {
                    let mut chance = Chance {
                        now: self.now,
                        jitter: &mut self.jitter,
                        backoff_max: 5 * 1000 * MS,
                    };
                    self.transactions.$name(answer, &mut chance, &mut self.events)
                })*
            }
        };
    }

    answers! {
        initialised(Coordinated<(ProducerId, TransactionVersion)>) -> Outcome;
        partitions_added(Result<Vec<i16>, Unanswered>) -> (Outcome, Vec<(usize, i16)>);
        offsets_added(Coordinated<()>) -> ();
        position_committed(Coordinated<()>) -> ();
        ended(Coordinated<Option<ProducerId>>) -> Outcome;
        position_read(Coordinated<Option<StoredPosition>>) -> Outcome;
    }

    #[test]
    fn nothing_is_initialised_without_the_slot() {
        let mut rig = Rig::new();
        for _ in 0..2 {
            let Some(Request::FindCoordinator { of, .. }) = rig.transactions.poll(rig.now, false)
            else {
                panic!("nobody asks for a coordinator")
            };
            rig.found(of);
        }
        assert_eq!(rig.transactions.poll(rig.now, false), None);
        assert_eq!(rig.transactions.deadline(false), None);
        assert!(matches!(rig.poll(), Some(Request::InitTransactions { .. })));
    }

    #[test]
    fn the_position_is_read_after_the_id_is_ours_and_before_any_fact_is_taken() {
        let mut rig = Rig::new();
        rig.find();
        assert!(matches!(rig.next(), Request::InitTransactions { .. }));
        rig.initialised(Ok(Err(CONCURRENT_TRANSACTIONS)));
        assert_eq!(rig.poll(), None);
        assert!(matches!(rig.next(), Request::InitTransactions { producer: None, .. }));
        rig.initialised(Ok(Ok((producer(0), EXPLICIT))));
        assert!(matches!(rig.next(), Request::FetchPosition { .. }));
        assert_eq!(rig.position_read(Ok(Err(UNSTABLE_OFFSET_COMMIT))), Outcome::Nothing);
        assert!(!rig.transactions.takes_facts());
        assert!(matches!(rig.next(), Request::FetchPosition { .. }));
        assert_eq!(rig.position_read(Ok(Ok(Some(position(9))))), Outcome::Read);
        assert_eq!(rig.transactions.judge(), Some(Judgement::Server(Some(&position(9)))));
        assert_eq!((rig.transactions.sender(), rig.transactions.takes_facts()), (None, false));
        rig.judged(false);
        assert_eq!(rig.transactions.sender(), Some(producer(0)));
        assert!(rig.transactions.takes_facts());
    }

    #[test]
    fn a_transaction_has_its_partitions_its_group_its_position_and_its_end_in_this_order() {
        let mut rig = Rig::idle(EXPLICIT);
        rig.transactions.add(member(1));
        rig.transactions.add(member(0));
        rig.transactions.add(member(1));
        let Request::AddPartitions { transaction, partitions } = rig.next() else { panic!("?") };
        assert_eq!(transaction.producer, producer(3));
        assert_eq!(partitions, [(Arc::from("t"), 0), (Arc::from("t"), 1)]);
        let (outcome, _) = rig.partitions_added(Ok(vec![0, 0]));
        assert_eq!(outcome, Outcome::Added(vec![0, 1]));
        rig.is(TransactionState::Producing);
        assert!(matches!(rig.next(), Request::AddOffsets { .. }));
        rig.transactions.close(rig.now, position(50));
        assert_eq!(rig.poll(), None, "no position before the group is in the transaction");
        rig.offsets_added(Ok(Ok(())));
        let Request::CommitPosition { position: sent, version: EXPLICIT, .. } = rig.next() else {
            panic!("?")
        };
        assert_eq!(sent, position(50));
        rig.position_committed(Ok(Ok(())));
        assert_eq!(rig.poll(), None, "not before all of it is stored");
        assert!(rig.transactions.awaits_stored());
        rig.transactions.stored(rig.now);
        let Request::EndTransaction { commit: true, .. } = rig.next() else { panic!("?") };
        assert_eq!(rig.transactions.sender(), None);
        assert_eq!(rig.ended(Ok(Ok(None))), Outcome::Committed);
        rig.is(TransactionState::Idle);
        assert_eq!(rig.transactions.sender(), Some(producer(3)));
    }

    #[test]
    fn the_time_of_a_transaction_is_told_by_its_states() {
        let mut rig = Rig::idle(PER_TRANSACTION);
        rig.transactions.open(rig.now);
        rig.now += 50 * MS;
        rig.transactions.close(rig.now, position(50));
        rig.now += 7 * MS;
        rig.transactions.stored(rig.now);
        assert!(matches!(rig.poll(), Some(Request::CommitPosition { .. })));
        rig.now += 2 * MS;
        rig.position_committed(Ok(Ok(())));
        assert!(matches!(rig.poll(), Some(Request::EndTransaction { commit: true, .. })));
        rig.now += 3 * MS;
        // It is asked for again, of another coordinator.
        rig.ended(Ok(Err(NOT_COORDINATOR)));
        assert!(matches!(rig.next(), Request::EndTransaction { commit: true, .. }));
        rig.now += MS;
        let ending = rig.now;
        assert_eq!(rig.ended(Ok(Ok(Some(producer(4))))), Outcome::Committed);
        let phases = rig.transactions.phases(ending);
        assert_eq!((phases.producing, phases.closing), (50 * MS, 9 * MS));
        assert!(phases.ending >= 4 * MS, "{phases:?}");

        // One of nothing but a position is begun once it is closed.
        rig.now += 1000 * MS;
        rig.transactions.close(rig.now, position(60));
        rig.now += MS;
        rig.transactions.stored(rig.now);
        rig.poll();
        rig.position_committed(Ok(Ok(())));
        assert!(matches!(rig.poll(), Some(Request::EndTransaction { commit: true, .. })));
        rig.now += 2 * MS;
        rig.ended(Ok(Ok(Some(producer(5)))));
        let expected = Phases { ending: 2 * MS, ..Phases::default() };
        assert_eq!(rig.transactions.phases(rig.now), expected);
    }

    #[test]
    fn with_an_epoch_per_transaction_nothing_is_added_and_the_end_names_the_next() {
        let mut rig = Rig::idle(PER_TRANSACTION);
        assert!(!rig.transactions.adds());
        rig.transactions.open(rig.now);
        rig.closed_and_stored(50);
        assert!(matches!(rig.next(), Request::CommitPosition { version: PER_TRANSACTION, .. }));
        rig.position_committed(Ok(Ok(())));
        assert!(matches!(rig.next(), Request::EndTransaction { commit: true, .. }));
        assert_eq!(rig.ended(Ok(Ok(Some(producer(4))))), Outcome::Committed);
        assert_eq!(rig.transactions.sender(), Some(producer(4)));
    }

    #[test]
    fn what_comes_before_the_markers_are_written_comes_again_in_milliseconds() {
        let mut rig = Rig::idle(EXPLICIT);
        rig.transactions.add(member(0));
        let begun = rig.now;
        for _ in 0..5 {
            assert!(matches!(rig.next(), Request::AddPartitions { .. }));
            rig.partitions_added(Ok(vec![CONCURRENT_TRANSACTIONS]));
            assert_eq!(rig.poll(), None);
            let until = rig.transactions.deadline(true).unwrap();
            assert!(until > rig.now && until <= rig.now + SOON_MAX);
        }
        rig.next();
        assert_eq!(rig.now - begun, (2 + 4 + 8 + 16 + 32) * MS);
        rig.partitions_added(Ok(vec![0]));
        rig.next();
        rig.offsets_added(Ok(Err(CONCURRENT_TRANSACTIONS)));
        rig.transactions.close(rig.now, position(1));
        assert!(matches!(rig.next(), Request::AddOffsets { .. }), "and nothing else before it");
    }

    #[test]
    fn a_coordinator_that_has_moved_is_looked_for_and_asked_the_same() {
        let mut rig = Rig::idle(EXPLICIT);
        rig.transactions.add(member(0));
        let asked = rig.next();
        rig.partitions_added(Ok(vec![NOT_COORDINATOR]));
        let Some(Request::FindCoordinator { of, .. }) = rig.poll() else { panic!("?") };
        assert_eq!(of, CoordinatorOf::Transactions);
        rig.found(of);
        assert_eq!(rig.next(), asked);
        rig.partitions_added(Err(Unanswered("reset".to_owned())));
        assert_eq!(rig.next(), asked, "to be added twice is to be added");
    }

    #[test]
    fn a_topic_that_is_refused_is_not_the_transactions_trouble() {
        let mut rig = Rig::idle(EXPLICIT);
        (0..3).for_each(|index| rig.transactions.add(member(index)));
        rig.next();
        let codes = vec![55, TOPIC_AUTHORIZATION_FAILED, UNKNOWN_TOPIC_OR_PARTITION];
        let (outcome, topics) = rig.partitions_added(Ok(codes));
        assert_eq!(outcome, Outcome::Added(Vec::new()));
        assert_eq!(topics, [(1, TOPIC_AUTHORIZATION_FAILED), (2, UNKNOWN_TOPIC_OR_PARTITION)]);
        let Request::AddPartitions { partitions, .. } = rig.next() else { panic!("?") };
        assert_eq!(partitions, [(Arc::from("t"), 0), (Arc::from("t"), 2)]);
    }

    #[test]
    fn a_right_that_is_missing_is_told_once_and_asked_for_slowly() {
        let mut rig = Rig::new();
        rig.find();
        for _ in 0..3 {
            assert!(matches!(rig.poll(), Some(Request::InitTransactions { .. })));
            rig.initialised(Ok(Err(TRANSACTIONAL_ID_AUTHORIZATION_FAILED)));
            assert_eq!(rig.poll(), None);
            rig.now += 5000 * MS;
        }
        let refusals = rig.events.iter().filter(|e| matches!(e, Event::TransactionsRefused { .. }));
        assert_eq!(refusals.count(), 1);
        assert!(rig.transactions.trouble().unwrap().contains("Write and Describe"));
    }

    /// From an end that nobody answered to the judgement.
    fn recover(rig: &mut Rig) {
        assert_eq!(rig.ended(unanswered()), Outcome::Nothing);
        rig.is(TransactionState::Recovering);
        assert_eq!(rig.transactions.sender(), None);
        assert_eq!(rig.quiet(), Held::Repeated);
        assert!(matches!(rig.next(), Request::EndTransaction { commit: false, .. }));
    }

    fn ending(version: TransactionVersion) -> Rig {
        let mut rig = Rig::idle(version);
        rig.transactions.open(rig.now);
        rig.closed_and_stored(50);
        if version == EXPLICIT {
            assert!(matches!(rig.next(), Request::AddOffsets { .. }));
            rig.offsets_added(Ok(Ok(())));
        }
        rig.next();
        rig.position_committed(Ok(Ok(())));
        assert!(matches!(rig.next(), Request::EndTransaction { commit: true, .. }));
        rig
    }

    #[test]
    fn an_end_that_is_not_answered_is_looked_up_in_the_next_epoch() {
        for version in [EXPLICIT, PER_TRANSACTION] {
            let mut rig = ending(version);
            recover(&mut rig);
            // It was committed, so there is nothing to abort.
            rig.ended(Ok(Err(INVALID_TXN_STATE)));
            let Request::InitTransactions { producer: ours, .. } = rig.next() else { panic!("?") };
            assert_eq!(ours, Some(producer(3)));
            rig.initialised(Ok(Ok((producer(4), version))));
            assert!(matches!(rig.next(), Request::FetchPosition { .. }));
            rig.position_read(Ok(Ok(Some(position(50)))));
            let judgement = rig.transactions.judge();
            assert_eq!(judgement, Some(Judgement::Group(Some(&position(50)))));
            rig.now += 5 * MS;
            rig.judged(true);
            rig.is(TransactionState::Idle);
            let is_given_up = |event: &Event| {
                matches!(event, Event::TransactionAborted { reason: AbortReason::Unanswered, .. })
            };
            assert_eq!(rig.events.iter().filter(|event| is_given_up(event)).count(), 1);
            let Some(Event::TransactionsRecovered { after }) = rig.events.back() else {
                panic!("{:?}", rig.events)
            };
            assert!(*after >= 5 * MS, "{after:?}");
            assert!(!rig.transactions.awaits_stored());
        }
    }

    #[test]
    fn a_group_that_was_not_committed_is_ended_again_with_its_position() {
        let mut rig = ending(EXPLICIT);
        recover(&mut rig);
        rig.ended(unanswered());
        assert!(
            matches!(rig.next(), Request::EndTransaction { commit: false, .. }),
            "until it is known"
        );
        rig.ended(Ok(Ok(None)));
        rig.next();
        rig.initialised(Ok(Ok((producer(4), EXPLICIT))));
        rig.next();
        rig.position_read(Ok(Ok(Some(position(20)))));
        rig.judged(false);
        assert!(rig.transactions.awaits_stored());
        rig.transactions.stored(rig.now);
        assert!(matches!(rig.next(), Request::AddOffsets { .. }));
        rig.offsets_added(Ok(Ok(())));
        let Request::CommitPosition { position: sent, .. } = rig.next() else { panic!("?") };
        assert_eq!(sent, position(50));
    }

    #[test]
    fn nothing_is_aborted_or_asked_while_something_is_in_flight() {
        let mut rig = Rig::idle(EXPLICIT);
        rig.transactions.add(member(0));
        rig.next();
        rig.give_up("a batch was refused");
        assert!(!rig.transactions.is_quiet());
        assert_eq!(rig.poll(), None);
        rig.partitions_added(Ok(vec![0]));
        assert!(rig.transactions.is_quiet());
        rig.give_up("another one, too");
        let aborted = rig.events.iter().filter(|e| matches!(e, Event::TransactionAborted { .. }));
        assert_eq!(aborted.count(), 1);
    }

    #[test]
    fn who_is_refused_the_next_epoch_is_fenced_and_asks_nothing_more() {
        for code in [PRODUCER_FENCED, INVALID_PRODUCER_EPOCH] {
            let mut rig = ending(EXPLICIT);
            assert_eq!(rig.ended(Ok(Err(code))), Outcome::Nothing);
            assert_eq!(rig.transactions.fenced(), None, "it may have expired");
            rig.quiet();
            assert!(matches!(rig.next(), Request::EndTransaction { commit: false, .. }));
            rig.ended(Ok(Err(INVALID_PRODUCER_EPOCH)));
            assert!(matches!(rig.next(), Request::InitTransactions { producer: Some(_), .. }));
            rig.initialised(Ok(Err(code)));
            assert!(rig.transactions.fenced().unwrap().contains("owlpost-1-2-slot"));
            assert_eq!((rig.poll(), rig.transactions.deadline(true)), (None, None));
        }
    }

    /// Symptom: a relay that had been frozen fenced the one that had taken over, and both ended with exit code 14.
    #[test]
    fn who_is_told_at_the_abort_that_he_is_fenced_does_not_ask_for_an_epoch() {
        for version in [EXPLICIT, PER_TRANSACTION] {
            let mut rig = ending(version);
            rig.ended(Ok(Err(PRODUCER_FENCED)));
            rig.quiet();
            assert!(matches!(rig.next(), Request::EndTransaction { commit: false, .. }));
            assert_eq!(rig.ended(Ok(Err(PRODUCER_FENCED))), Outcome::Nothing);
            assert!(rig.transactions.fenced().unwrap().contains("owlpost-1-2-slot"));
            assert_eq!((rig.poll(), rig.transactions.deadline(true)), (None, None));
        }
    }

    #[test]
    fn a_transaction_that_was_open_too_long_is_not_taken_for_somebody_else() {
        let mut rig = ending(EXPLICIT);
        rig.now += TIMEOUT;
        rig.ended(Ok(Err(PRODUCER_FENCED)));
        rig.quiet();
        rig.next();
        let Outcome::Unsure(cause) = rig.ended(Ok(Err(PRODUCER_FENCED))) else { panic!("?") };
        assert!(cause.contains("TRANSACTION_TIMEOUT"), "{cause}");
        rig.transactions.begin_anew();
        assert_eq!(rig.quiet(), Held::Dropped);
        assert!(matches!(rig.next(), Request::InitTransactions { producer: None, .. }));
        rig.initialised(Ok(Ok((producer(9), EXPLICIT))));
        rig.next();
        rig.position_read(Ok(Ok(None)));
        assert_eq!(rig.transactions.judge(), Some(Judgement::Server(None)));
    }

    #[test]
    fn who_may_have_fenced_itself_begins_anew_once() {
        let mut rig = ending(EXPLICIT);
        rig.ended(Ok(Err(PRODUCER_FENCED)));
        rig.quiet();
        rig.next();
        for times in 0..2 {
            rig.ended(Ok(Ok(None)));
            if times == 0 {
                rig.next();
                rig.initialised(unanswered());
            }
            rig.next();
            let outcome = rig.initialised(Ok(Err(PRODUCER_FENCED)));
            assert_eq!(matches!(outcome, Outcome::Unsure(_)), times == 0, "{outcome:?}");
            assert_eq!(rig.transactions.fenced().is_some(), times == 1);
            if times == 0 {
                rig.transactions.begin_anew();
                rig.quiet();
                rig.next();
                rig.initialised(Ok(Ok((producer(9), EXPLICIT))));
                rig.next();
                rig.position_read(Ok(Ok(None)));
                rig.judged(false);
                rig.transactions.open(rig.now);
                rig.give_up("another epoch");
                rig.quiet();
                rig.next();
            }
        }
    }

    #[test]
    fn another_producer_id_says_nothing_of_who_has_come() {
        let mut rig = ending(EXPLICIT);
        recover(&mut rig);
        rig.ended(Ok(Err(error_code::INVALID_PRODUCER_ID_MAPPING)));
        rig.next();
        let other = ProducerId { id: 8, epoch: 0 };
        let outcome = rig.initialised(Ok(Ok((other, EXPLICIT))));
        assert!(matches!(outcome, Outcome::Unsure(_)), "{outcome:?}");
    }

    #[test]
    fn a_cluster_that_ends_every_transaction_is_asked_more_and_more_slowly() {
        let mut rig = Rig::idle(EXPLICIT);
        let mut last = Duration::ZERO;
        for _ in 0..6 {
            let begun = rig.now;
            rig.transactions.open(rig.now);
            rig.give_up("INVALID_TXN_STATE");
            rig.quiet();
            rig.now += 4000 * MS;
            rig.next();
            rig.ended(Ok(Ok(None)));
            last = rig.now - begun;
            rig.next();
            rig.initialised(Ok(Ok((producer(4), EXPLICIT))));
            rig.next();
            rig.position_read(Ok(Ok(None)));
            rig.judged(false);
        }
        assert!(last >= 4000 * MS);
        assert_eq!(rig.transactions.recoveries, 6);
    }

    #[test]
    fn what_a_coordinator_that_loads_is_asked_waits() {
        let mut rig = ending(EXPLICIT);
        rig.ended(Ok(Err(COORDINATOR_LOAD_IN_PROGRESS)));
        assert_eq!(rig.poll(), None);
        assert!(matches!(rig.next(), Request::EndTransaction { commit: true, .. }));
    }

    #[test]
    fn a_relay_that_leaves_ends_what_is_open_unless_it_is_being_committed() {
        let rig = Rig::idle(EXPLICIT);
        assert_eq!(rig.transactions.give_up(), None);
        let mut rig = Rig::idle(EXPLICIT);
        rig.transactions.add(member(0));
        rig.next();
        let given_up = rig.transactions.give_up();
        assert!(matches!(given_up, Some(Request::EndTransaction { commit: false, .. })));
        assert_eq!(ending(EXPLICIT).transactions.give_up(), None);
    }
}
