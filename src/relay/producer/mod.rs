//! The idempotent producer: which batch goes to which broker, and when again.
//!
//! `partition` has the rules of one partition (sequences, what is in flight, what a failure leads to),
//! `topic` what is known of a topic; here is the cluster: metadata, producer id, requests, throttling.

mod create;
mod partition;
mod refused;
mod tail;
mod topic;
mod transaction;
mod transactional;

pub use transaction::TransactionState;
pub use transactional::FoundPosition;

use crate::relay::backoff::Jitter;
use crate::relay::batch::{Batch, Record};
use crate::relay::compression::Compression;
use crate::relay::error_code::{
    self, CONCURRENT_TRANSACTIONS, INVALID_TOPIC_EXCEPTION, NETWORK_EXCEPTION,
    TOPIC_AUTHORIZATION_FAILED, UNKNOWN_TOPIC_OR_PARTITION,
};
use crate::relay::event::{AbortReason, Event};
use crate::relay::kafka::{
    Answer, BrokerId, Metadata, NewTopic, PartitionAnswer, PartitionBatch, PartitionMetadata,
    ProducerId, Request, TopicMetadata,
};
use crate::relay::ledger::Ledger;
use crate::relay::poison::{Cause, Policies, Policy};
use crate::relay::policy::{self, InitVerdict, TopicVerdict, Verdict};
use crate::relay::position::Position;
use crate::relay::seeded_bug::{Seeded, SeededBug};
use factlib_protocol::Timestamp;
use partition::{Failure, Lot, Next, Partition, Queued, Trouble};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tail::{Tail, Tails};
use topic::{
    Fewer, MISSING_AGE_MAX, MISSING_GRACE, MISSING_MEMORY, MISSING_TOPICS_MAX, Missing, Topic,
    TopicState,
};
use transactional::Transactional;

/// Attempts from here on are as far apart as they may be, and the next one is told.
const SLOW_FROM_ATTEMPT: u32 = 15;

/// A Produce request is not made longer than this by putting several partitions into it: the driver
/// holds one more copy of the request that it is writing. (A broker closes the connection over a
/// request of more than `socket.request.max.bytes`, 100 MiB.)
const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What all open batches together may reserve before they hold anything.
const RESERVED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// So many batches of a partition may be in flight: brokers recognise a repeat of a producer's last five
/// batches, not of older ones (`ProducerStateEntry.NUM_BATCHES_TO_RETAIN`).
pub const IN_FLIGHT_MAX: usize = 5;

/// How the producer behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Largest delay between attempts.
    pub backoff_max: Duration,
    /// How old leaders and partition counts may become before they are asked for again.
    pub metadata_age_max: Duration,
    /// A batch of this many encoded bytes is closed, at most [`super::batch::BATCH_BYTES_MAX`].
    pub batch_bytes: usize,
    /// A batch of this many records is closed.
    pub batch_records: usize,
    /// How many batches of a partition may be in flight, from 1 to [`IN_FLIGHT_MAX`].
    pub in_flight: usize,
    /// What takes the batches keeps their order itself: see [`crate::relay::Settings::keeps_order`].
    pub keeps_order: bool,
    /// How batches are compressed.
    pub compression: Compression,
    /// What becomes of facts that cannot be published.
    pub policies: Policies,
    /// What a topic that is missing is created like, if it is at all. One that was there before never is:
    /// whoever deleted it knows why.
    pub create_topics: Option<NewTopic>,
    /// What a partition had of us before this process is read back, and not produced again. Not in transactions,
    /// which need it not.
    pub skip_stored: bool,
    /// Facts go in transactions.
    pub transactions: Option<TransactionSettings>,
}

/// What transactions need to know beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionSettings {
    /// The topic of whose partition 0 the position is kept as an offset. It is created if it is missing, and nothing
    /// is written to it.
    pub position_topic: Arc<str>,
    /// What it is created like.
    pub position_topic_like: NewTopic,
    /// How long a transaction may be open before its coordinator ends it.
    pub timeout: Duration,
}

/// Index of a topic in [`Producer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicId(usize);

/// What is known of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The topic is there and has this many partitions.
    Ready(TopicId, u32),
    /// Not now: it has been asked for, or is being emptied because its number of partitions has changed.
    /// An answer changes that.
    Wait,
    /// The cluster says that we cannot use it: Kafka's error code.
    Missing(i16),
}

/// A partition that does not take what it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition index.
    pub partition: i32,
    /// Position of the first fact that waits.
    pub position: Position,
    /// What the broker or the connection said.
    pub reason: String,
    /// Since when.
    pub since: Instant,
    /// True if no retry helps before somebody changes something.
    pub halted: bool,
}

impl Blocked {
    fn urgency(&self) -> (bool, Instant) {
        (!self.halted, self.since)
    }
}

/// A request of which one at a time is under way.
#[derive(Debug, Default)]
struct Single {
    /// When it is wanted, if it is.
    wanted: Option<Instant>,
    in_flight: bool,
    /// Not before this.
    not_before: Option<Instant>,
    /// Failures in a row.
    attempts: u32,
}

impl Single {
    fn want(&mut self, at: Instant) {
        self.wanted = Some(self.wanted.map_or(at, |wanted| wanted.min(at)));
    }

    fn take(&mut self, now: Instant) -> bool {
        let take = self.deadline().is_some_and(|at| at <= now);
        if take {
            self.wanted = None;
            self.in_flight = true;
        }
        take
    }

    fn succeeded(&mut self) {
        self.attempts = 0;
        self.not_before = None;
    }

    fn failed(&mut self, now: Instant, jitter: &mut Jitter, max: Duration) {
        self.attempts = self.attempts.saturating_add(1);
        self.not_before = Some(now + jitter.delay(self.attempts, max));
        self.want(now);
    }

    fn deadline(&self) -> Option<Instant> {
        self.wanted
            .filter(|_| !self.in_flight)
            .map(|at| self.not_before.map_or(at, |not| not.max(at)))
    }
}

/// The producer. Sends nothing itself: [`Producer::poll`] says what to send.
#[derive(Debug)]
pub struct Producer {
    settings: Settings,
    jitter: Jitter,
    topics: Vec<Topic>,
    names: HashMap<Arc<str>, usize>,
    /// The topic that was asked for last: often the next fact's, too, and then nothing is hashed.
    routed: usize,
    /// Topics that are being created.
    creating: Vec<usize>,
    partitions: Vec<Partition>,
    /// Partitions that have something to send, now or when it has grown.
    waiting: Vec<usize>,
    requests: VecDeque<Request>,
    latest: Option<ProducerId>,
    init: Single,
    metadata: Single,
    metadata_at: Option<Instant>,
    throttled: HashMap<BrokerId, Instant>,
    /// What is pushed now belongs to.
    lot: Lot,
    /// Facts go in transactions.
    transactional: Option<Box<Transactional>>,
    unsettled_bytes: usize,
    unsettled_facts: usize,
    /// No broker has answered anything yet.
    unreached: Option<String>,
    reached: bool,
    /// Id of the cluster.
    cluster: Option<String>,
    /// Id of another one that answered.
    other_cluster: Option<String>,
    tails: Tails,
    seeded: Seeded,
}

impl Producer {
    /// A producer that knows nothing of the cluster yet.
    pub fn new(settings: Settings, jitter: Jitter) -> Self {
        Self {
            jitter,
            topics: Vec::new(),
            names: HashMap::new(),
            routed: 0,
            creating: Vec::new(),
            partitions: Vec::new(),
            waiting: Vec::new(),
            requests: VecDeque::new(),
            latest: None,
            init: Single::default(),
            metadata: Single::default(),
            metadata_at: None,
            throttled: HashMap::new(),
            lot: Lot { generation: 0, group: 0 },
            transactional: settings.transactions.as_ref().map(Transactional::new).map(Box::new),
            settings,
            unsettled_bytes: 0,
            unsettled_facts: 0,
            unreached: None,
            reached: false,
            cluster: None,
            other_cluster: None,
            tails: Tails::default(),
            seeded: Seeded::default(),
        }
    }

    /// Breaks the producer deliberately, for a test that must go red.
    pub(super) fn seed_bug(&mut self, seeded: Seeded) {
        self.seeded = seeded;
        if let Some(transactional) = &mut self.transactional {
            transactional.seed_bug(seeded);
        }
    }

    /// The first requests: who is there, and who we are.
    pub fn begin(&mut self, now: Instant) {
        if let Some(topic) = self.settings.policies.dead_letter_topic.clone() {
            self.route(now, &topic);
        }
        self.metadata.want(now);
        match self.position_topic() {
            Some(topic) => {
                self.route(now, &topic);
            }
            None => self.init.want(now),
        }
    }

    /// The id of the cluster and that of another one that answered in its place, if that happened: then
    /// nothing may be sent any more.
    pub fn other_cluster(&self) -> Option<(&str, &str)> {
        Some((self.cluster.as_deref()?, self.other_cluster.as_deref()?))
    }

    /// Encoded bytes that are not settled: the measure of what is in flight.
    pub fn unsettled_bytes(&self) -> usize {
        self.unsettled_bytes
    }

    /// Facts that are not settled.
    pub fn unsettled_facts(&self) -> usize {
        self.unsettled_facts
    }

    /// True once any broker has answered.
    pub fn reached(&self) -> bool {
        self.reached
    }

    /// Why no broker could be reached so far.
    pub fn unreached(&self) -> Option<&str> {
        self.unreached.as_deref()
    }

    /// The partition that has been in trouble for longest, those that need somebody's hand first.
    pub fn blocked(&self) -> Option<Blocked> {
        self.all_blocked().min_by_key(Blocked::urgency)
    }

    /// How many partitions are in trouble, and the first `max` of them, in the order of [`Producer::blocked`].
    pub fn most_blocked(&self, max: usize) -> (usize, Vec<Blocked>) {
        let mut blocked: Vec<Blocked> = self.all_blocked().collect();
        let count = blocked.len();
        blocked.sort_by_key(Blocked::urgency);
        blocked.truncate(max);
        (count, blocked)
    }

    /// When the oldest fact that is not settled was committed, as far as it is known.
    pub fn oldest_commit(&self) -> Option<Timestamp> {
        self.partitions.iter().filter_map(Partition::oldest_commit).min()
    }

    fn all_blocked(&self) -> impl Iterator<Item = Blocked> {
        let troubled = |partition: &Partition| {
            let unled = || {
                let reason = match partition.leader {
                    None => "the partition has no leader",
                    Some(_) => "no broker gives this producer an id",
                };
                let since = partition.unled_since?;
                Some(Trouble { since, reason: reason.to_owned(), halted: false, position: None })
            };
            let trouble = partition.trouble.clone().or_else(unled)?;
            let topic = &self.topics.get(partition.topic)?.name;
            Some(Blocked {
                topic: Arc::clone(topic),
                partition: partition.index,
                position: trouble.position.or_else(|| partition.first())?,
                reason: trouble.reason,
                since: trouble.since,
                halted: trouble.halted,
            })
        };
        self.partitions.iter().filter_map(troubled)
    }

    /// What is known of topic `name`. One that is not known, or has been missing for a while, is
    /// asked for: the answer comes by metadata.
    pub fn route(&mut self, now: Instant, name: &str) -> Route {
        let Some(index) = self.known(name) else {
            let topic = Topic::new(Arc::from(name));
            let name = Arc::clone(&topic.name);
            let index = self.forgettable().unwrap_or(self.topics.len());
            match self.topics.get_mut(index) {
                Some(known) => {
                    self.names.remove(&known.name);
                    *known = topic;
                }
                None => self.topics.push(topic),
            }
            self.names.insert(name, index);
            self.metadata.want(now);
            return Route::Wait;
        };
        self.routed = index;
        self.resize(index);
        let Some(topic) = self.topics.get_mut(index) else { return Route::Wait };
        if let Some(said) = topic.said_missing() {
            // To halt at once is no loss, and whoever creates the topic then need not wait.
            let patient = self.settings.policies.of(Some(name)) != Policy::Halt;
            // If this halts, somebody will create it again, and what waits for it is sent then.
            let waits = matches!(topic.state, TopicState::Known { .. }) && !patient;
            if !waits {
                if now >= said.at + MISSING_AGE_MAX {
                    self.metadata.want(now);
                } else if let Some(error) = topic.missing(now, patient) {
                    return Route::Missing(error);
                } else {
                    self.metadata.want(said.at + MISSING_AGE_MAX);
                }
                return Route::Wait;
            }
            // It was idle when that was said, and now it is not.
            self.metadata.want(now.max(said.at + MISSING_AGE_MAX));
        }
        match &topic.state {
            TopicState::Known { used, resize_to: None, .. } => {
                Route::Ready(TopicId(index), u32::try_from(*used).unwrap_or(u32::MAX))
            }
            _ => Route::Wait,
        }
    }

    fn known(&self, name: &str) -> Option<usize> {
        let same = self.topics.get(self.routed).is_some_and(|topic| *topic.name == *name);
        if same { Some(self.routed) } else { self.names.get(name).copied() }
    }

    /// Facts of topic `name` will come: if it is not known, it is asked for, unless so many are not known that
    /// somebody's who waits would have to be forgotten; true if it is.
    pub fn foresee(&mut self, now: Instant, name: &str) -> bool {
        let is_unknown = |topic: &&Topic| !matches!(topic.state, TopicState::Known { .. });
        if self.names.contains_key(name)
            || self.topics.iter().filter(is_unknown).count() >= MISSING_TOPICS_MAX
        {
            return false;
        }
        let topic = Topic::new(Arc::from(name));
        self.names.insert(Arc::clone(&topic.name), self.topics.len());
        self.topics.push(topic);
        self.metadata.want(now);
        true
    }

    /// Of too many topics that are missing, the one of which that was said longest ago. Nothing but its name
    /// refers to it.
    fn forgettable(&self) -> Option<usize> {
        let missing = || {
            self.topics.iter().enumerate().filter_map(|(index, topic)| match topic.state {
                TopicState::Missing(Missing { at, .. }) => Some((at, index)),
                _ => None,
            })
        };
        let too_many = missing().nth(MISSING_TOPICS_MAX - 1).is_some();
        missing().filter(|_| too_many).min().map(|(_, index)| index)
    }

    /// Another number of partitions is used as soon as nothing of the topic is unsettled: a key's facts
    /// before the change are stored then, wherever it goes after it.
    fn resize(&mut self, index: usize) {
        let Some(Topic {
            name, state: TopicState::Known { partitions, used, resize_to, .. }, ..
        }) = self.topics.get_mut(index)
        else {
            return;
        };
        let at_once = self.seeded.is(SeededBug::RekeyOnGrowth);
        let idle = |at: &usize| at_once || self.partitions.get(*at).is_some_and(Partition::is_idle);
        let Some(found) = resize_to.take_if(|_| partitions.iter().all(idle)) else { return };
        let dead_letters = self.settings.policies.dead_letter_topic.as_deref() == Some(&**name);
        let skips = self.settings.skip_stored && self.transactional.is_none();
        let tail = || Tail::new(skips && !dead_letters);
        *used = found.len();
        for (PartitionMetadata { index: partition, leader }, at) in found.into_iter().zip(0..) {
            match partitions.get(at).and_then(|at| self.partitions.get_mut(*at)) {
                Some(known) => known.leader = leader,
                None => {
                    partitions.push(self.partitions.len());
                    let Settings { compression, keeps_order, .. } = self.settings;
                    let partition =
                        Partition::new(index, partition, leader, compression, keeps_order, tail());
                    self.partitions.push(partition);
                }
            }
        }
    }

    /// Enqueues one fact, committed at `committed`, to `partition` of `topic`, which [`Producer::route`] gave.
    pub fn push(
        &mut self,
        topic: TopicId,
        partition: u32,
        position: Position,
        committed: Timestamp,
        record: &Record<'_>,
        ledger: &mut Ledger,
    ) {
        let Some(&index) = self.partitions_of(topic).get(partition as usize) else { return };
        if self.is_stored(index, position, record) {
            return;
        }
        // Many partitions must not reserve for a full batch each.
        let room = RESERVED_BYTES_MAX / self.partitions.len().max(1);
        let Some(partition) = self.partitions.get_mut(index) else { return };
        let grown = partition.push(position, committed, record, room, self.lot, ledger);
        if partition.is_full(self.settings.batch_bytes, self.settings.batch_records) {
            partition.seal(self.lot);
        }
        ledger.enqueued(grown);
        self.unsettled_bytes += grown;
        self.unsettled_facts += 1;
        if self.seeded.is(SeededBug::SettleDeadLetterEarly) {
            self.settle_dead_letter(index, ledger);
        }
        self.wait(index);
    }

    /// Another timeline: batches of the old one go on, but they are nothing to the ledger any more
    /// and are never mixed with new facts.
    pub fn timeline_changed(&mut self) {
        for partition in &mut self.partitions {
            partition.seal(self.lot);
        }
        self.lot.generation += 1;
    }

    /// True if there is something that could be sent, now or when it has grown.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next request to send, until none. `produce` says whether facts may be sent; `flush`,
    /// whether batches that could still grow are.
    pub fn poll(&mut self, now: Instant, produce: bool, flush: bool) -> Option<Request> {
        self.give_up_tails(now);
        if self.requests.is_empty() {
            if self.metadata_at.is_some_and(|at| at + self.settings.metadata_age_max <= now) {
                self.metadata.want(now);
            }
            if self.metadata.take(now) {
                self.metadata_at = Some(now);
                let topics = self.topics.iter().map(|topic| Arc::clone(&topic.name)).collect();
                return Some(Request::Metadata { topics });
            }
            if self.init.take(now) {
                return Some(Request::InitProducerId);
            }
            if let Some(request) = self.create(now) {
                return Some(request);
            }
            if produce {
                self.produce(now, flush);
            }
            if self.requests.is_empty()
                && let Some(request) = self.poll_transactions(now, produce)
            {
                return Some(request);
            }
        }
        self.requests.pop_front()
    }

    /// When [`Producer::poll`], called with the same `produce`, may have something without another
    /// answer.
    pub fn deadline(&self, produce: bool) -> Option<Instant> {
        let waiting = self.waiting.iter().filter(|_| produce).filter_map(|index| {
            let partition = self.partitions.get(*index)?;
            // Without these it waits for an answer and not for a time.
            let leader = partition.leader.filter(|_| partition.producer.is_some())?;
            partition.retry_at.max(self.throttled.get(&leader).copied())
        });
        let asked = self.metadata.in_flight || self.metadata.wanted.is_some();
        let age = self.metadata_at.filter(|_| !asked);
        let age = age.map(|at| at + self.settings.metadata_age_max);
        let singles = [self.init.deadline(), self.metadata.deadline(), age];
        let others = singles.into_iter().flatten().chain(self.create_at());
        let others = others.chain(self.transactions_until(produce));
        waiting.chain(others).chain(self.tails_until()).min()
    }

    /// An answer has come.
    pub fn handle(
        &mut self,
        now: Instant,
        answer: Answer,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        match answer {
            Answer::Metadata(answer) => {
                self.metadata.in_flight = false;
                match answer {
                    Ok(metadata) => {
                        self.metadata.succeeded();
                        self.learn(now, metadata, ledger, events);
                    }
                    Err(cause) => {
                        self.metadata.failed(now, &mut self.jitter, self.settings.backoff_max);
                        let attempt = self.metadata.attempts;
                        if !self.reached {
                            self.unreached = Some(cause.to_string());
                        }
                        if attempt.is_power_of_two() {
                            events.push_back(Event::KafkaUnreachable { cause: cause.to_string() });
                        }
                    }
                }
            }
            Answer::ProducerId(answer) => {
                self.init.in_flight = false;
                let cause = match answer {
                    Ok(Ok(producer)) => {
                        self.init.succeeded();
                        self.latest = Some(producer);
                        events.push_back(Event::ProducerId { id: producer.id });
                        return;
                    }
                    Ok(Err(code)) if policy::init_producer_id(code) == InitVerdict::Refused => {
                        // Somebody must change something; asking fast would only fill the broker's log.
                        self.init.attempts = self.init.attempts.max(SLOW_FROM_ATTEMPT);
                        error_code::name(code).to_owned()
                    }
                    Ok(Err(code)) => error_code::name(code).to_owned(),
                    Err(cause) => cause.to_string(),
                };
                self.init.failed(now, &mut self.jitter, self.settings.backoff_max);
                // COORDINATOR_LOAD_IN_PROGRESS is what a broker says just after its start.
                if self.init.attempts.is_power_of_two() && self.init.attempts > 4 {
                    events.push_back(Event::NoProducerId { cause });
                }
            }
            Answer::TopicsCreated { topics, answer } => {
                let answers = match answer {
                    Ok(answers) => answers.into_iter().map(Ok).collect(),
                    Err(cause) => vec![Err(cause); topics.len()],
                };
                for (topic, answer) in topics.iter().zip(answers) {
                    if let Some(&index) = self.names.get(topic) {
                        self.created(now, index, answer, events);
                    }
                }
            }
            Answer::Produced { broker, partitions, throttle } => {
                self.reached = true;
                if throttle > Duration::ZERO {
                    self.throttled.insert(broker, now + throttle);
                    events.push_back(Event::Throttled { broker, throttle });
                }
                for answer in partitions {
                    let PartitionAnswer { topic, partition, base_sequence, error, base_offset } =
                        answer;
                    let Some(at) = self.find(&topic, partition) else { continue };
                    let mut verdict = match self.transactional {
                        None => policy::produce(error),
                        Some(_) => policy::produce_in_transaction(error),
                    };
                    if verdict == Verdict::Retry && self.seeded.is(SeededBug::DropOnError) {
                        verdict = Verdict::Stored;
                    }
                    if throttle > Duration::ZERO && self.seeded.is(SeededBug::ResendThrottled) {
                        verdict = Verdict::NewEpoch;
                    }
                    let answer = match verdict {
                        Verdict::Stored => Ok(base_offset),
                        verdict => {
                            let reason = error_code::name(error).to_owned();
                            Err(Failure { verdict, code: error, reason })
                        }
                    };
                    self.answered(now, at, base_sequence, answer, ledger, events);
                }
            }
            Answer::ProduceUnanswered { batches, cause, .. } => {
                // Who leads the partition now, and whether it is the same cluster, is to be seen first.
                let reason = cause.to_string();
                let failure = Failure { verdict: Verdict::Moved, code: NETWORK_EXCEPTION, reason };
                for batch in batches {
                    let Some(at) = self.find(&batch.topic, batch.partition) else { continue };
                    let failure = failure.clone();
                    self.answered(now, at, batch.base_sequence, Err(failure), ledger, events);
                }
            }
            Answer::Tail { topic, partition, from, answer } => {
                if let Some(at) = self.find(&topic, partition) {
                    self.tail_answered(now, at, from, answer, ledger);
                }
            }
            answer @ (Answer::Coordinator { .. }
            | Answer::TransactionsReady(_)
            | Answer::PartitionsAdded(_)
            | Answer::OffsetsAdded(_)
            | Answer::PositionCommitted(_)
            | Answer::TransactionEnded(_)
            | Answer::Position(_)) => self.coordinated(now, answer, ledger, events),
        }
        if self.transactional.is_some() {
            self.go_on(now, ledger, events);
        }
    }

    fn partitions_of(&self, topic: TopicId) -> &[usize] {
        match self.topics.get(topic.0).map(|topic| &topic.state) {
            Some(TopicState::Known { partitions, used, .. }) => {
                partitions.get(..*used).unwrap_or_default()
            }
            _ => &[],
        }
    }

    fn find(&self, topic: &str, index: i32) -> Option<usize> {
        let topic = self.topics.get(*self.names.get(topic)?)?;
        let TopicState::Known { partitions, .. } = &topic.state else { return None };
        partitions.get(usize::try_from(index).ok()?).copied()
    }

    fn wait(&mut self, index: usize) {
        if let Some(partition) = self.partitions.get_mut(index)
            && !partition.waiting
        {
            partition.waiting = true;
            self.waiting.push(index);
        }
    }

    /// Collects what can be sent now, one request for each broker, with one batch of each partition.
    fn produce(&mut self, now: Instant, flush: bool) {
        self.throttled.retain(|_, until| *until > now);
        self.look_at_halt(now);
        let mut by_broker: Vec<(BrokerId, usize, Vec<PartitionBatch>)> = Vec::new();
        let sending = self.sending(flush);
        let waiting = std::mem::take(&mut self.waiting);
        for index in waiting {
            let Some(partition) = self.partitions.get_mut(index) else { continue };
            // A time that has passed is no deadline any more.
            partition.retry_at = partition.retry_at.filter(|at| *at > now);
            match &mut self.transactional {
                None if partition.producer.is_none() => partition.producer = self.latest,
                None => {}
                Some(transactional) => {
                    let topic = self.topics.get(partition.topic).map(|topic| &topic.name);
                    if !transactional.admits(partition, topic, index, &sending) {
                        self.waiting.push(index);
                        continue;
                    }
                }
            }
            let is_throttled = |leader| self.throttled.contains_key(leader);
            let topic = self.topics.get(partition.topic);
            let topic_id = topic.and_then(|topic| topic.id);
            let next = match partition.leader.as_ref().is_some_and(is_throttled) {
                true => Next::Later,
                false => partition.next(now, topic_id, &sending),
            };
            let (batch, base_sequence) = match next {
                Next::Nothing => {
                    partition.waiting = false;
                    partition.unled_since = None;
                    continue;
                }
                Next::Later => {
                    if partition.leader.is_none() || partition.producer.is_none() {
                        partition.unled_since.get_or_insert(now);
                    }
                    self.waiting.push(index);
                    continue;
                }
                Next::Send(batch, base_sequence) => (batch, base_sequence),
            };
            partition.unled_since = None;
            // There may be more.
            self.waiting.push(index);
            let (Some(topic), Some(leader)) = (topic, partition.leader) else { continue };
            let len = batch.len();
            let batch = PartitionBatch {
                topic: Arc::clone(&topic.name),
                topic_id,
                partition: partition.index,
                base_sequence,
                batch,
            };
            let has_room = |(broker, bytes, _): &&mut (BrokerId, usize, _)| {
                *broker == leader && *bytes + len <= REQUEST_BYTES_MAX
            };
            match by_broker.iter_mut().find(has_room) {
                Some((_, bytes, batches)) => {
                    *bytes += len;
                    batches.push(batch);
                }
                None => by_broker.push((leader, len, vec![batch])),
            }
        }
        let transaction = match by_broker.is_empty() {
            true => None,
            false => self.open_transaction(now),
        };
        self.requests.extend(by_broker.into_iter().map(|(broker, _, batches)| {
            let transaction = transaction.clone();
            Request::Produce { broker, transaction, batches }
        }));
    }

    /// What became of a batch is known, or not to be known.
    fn answered(
        &mut self,
        now: Instant,
        at: usize,
        base_sequence: i32,
        answer: Result<i64, Failure>,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let offset = answer.as_ref().ok().copied();
        if !partition.answered(now, base_sequence, answer.map(|_| ())) {
            return;
        }
        if let Some(offset) = offset {
            self.probed(now, at, offset);
        }
        self.settle(now, at, ledger, events);
        let Some(partition) = self.partitions.get_mut(at) else { return };
        if let Some(failure) = partition.take_failure() {
            if self.seeded.is(SeededBug::NewSequenceOnRetry) {
                partition.forget_sequences();
            }
            self.resolve(now, at, &failure, ledger, events);
        }
        self.wait(at);
    }

    /// See [`SeededBug::SettleDeadLetterEarly`].
    fn settle_dead_letter(&mut self, at: usize, ledger: &mut Ledger) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let topic = self.topics.get(partition.topic).map(|topic| &*topic.name);
        if topic == self.settings.policies.dead_letter_topic.as_deref() {
            partition.seal(self.lot);
            if let Some(place) = partition.disown_last() {
                ledger.batch_settled(place);
            }
        }
    }

    /// Settles the oldest batches of the partition, as far as they are stored.
    fn settle(
        &mut self,
        now: Instant,
        at: usize,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        loop {
            let Some(partition) = self.partitions.get_mut(at) else { return };
            let attempts = partition.attempts;
            let Some(stored) = partition.take_stored() else { return };
            let is_over = |it: &mut Trouble| it.position <= Some(stored.batch.first());
            let over = partition.trouble.take_if(is_over);
            if partition.trouble.is_some() {
                partition.attempts = attempts;
            }
            if let Some(trouble) = over
                && let Some(topic) = self.topics.get(partition.topic)
            {
                events.push_back(Event::PartitionRecovered {
                    topic: Arc::clone(&topic.name),
                    partition: partition.index,
                    after: now.saturating_duration_since(trouble.since),
                });
            }
            match self.transactional {
                None => self.settled(at, &stored, ledger, events),
                // Not before its transaction is committed.
                Some(_) => partition.keep(stored),
            }
        }
    }

    /// The batch is in Kafka for good.
    fn settled(
        &mut self,
        at: usize,
        stored: &Queued,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let bytes = stored.batch.plain_len();
        let facts = usize::try_from(stored.batch.records()).unwrap_or(0);
        self.unsettled_bytes -= bytes;
        self.unsettled_facts -= facts;
        let topic = self.partitions.get(at).and_then(|partition| self.topics.get(partition.topic));
        if let Some(topic) = topic {
            let topic = Arc::clone(&topic.name);
            let committed = stored.batch.committed();
            events.push_back(Event::Settled { topic, facts, bytes, committed });
        }
        if stored.lot.generation == self.lot.generation {
            ledger.batch_settled(stored.place);
        }
    }

    /// What follows from a failure, now that nothing of the partition is in flight.
    fn resolve(
        &mut self,
        now: Instant,
        at: usize,
        failure: &Failure,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        if let Some(topic) = self.topics.get(partition.topic) {
            events.push_back(Event::NotStored {
                topic: Arc::clone(&topic.name),
                error: error_code::name(failure.code),
                facts: partition.head().map_or(0, Batch::records),
            });
        }
        let reason = &failure.reason;
        let mut halted = false;
        match failure.verdict {
            Verdict::Retry
                if failure.code == CONCURRENT_TRANSACTIONS && self.transactional.is_some() =>
            {
                // The markers of the transaction before are being written.
                partition.attempts = partition.attempts.saturating_add(1);
                partition.retry_at = Some(now + transaction::soon(partition.attempts));
                return;
            }
            Verdict::Recover => {
                return self.transaction_over(now, AbortReason::Refused, reason, events);
            }
            Verdict::Stored | Verdict::Retry => {}
            Verdict::Moved => {
                partition.leader = None;
                self.metadata.want(now);
            }
            Verdict::NewEpoch | Verdict::NewProducerId => {
                // Other partitions keep theirs: a broker checks producer and sequence by partition.
                let facts = self.start_over(now, at, failure.verdict == Verdict::NewProducerId);
                self.sequences_lost(at, reason, facts, events);
            }
            Verdict::TooLarge | Verdict::RecordRefused => {
                let too_large = failure.verdict == Verdict::TooLarge;
                if let Some(grown) = partition.divide(too_large, self.lot, ledger) {
                    self.unsettled_bytes = self.unsettled_bytes.saturating_add_signed(grown);
                    return;
                }
                let cause = if too_large { Cause::TooLarge } else { Cause::Rejected };
                return self.refused(now, at, cause, reason, ledger, events);
            }
            Verdict::TopicRefused => {
                let cause = match failure.code {
                    TOPIC_AUTHORIZATION_FAILED => Cause::NotAuthorized,
                    INVALID_TOPIC_EXCEPTION => Cause::InvalidTopic,
                    _ => Cause::Rejected,
                };
                return self.refused(now, at, cause, reason, ledger, events);
            }
            Verdict::ClientRefused => halted = true,
        }
        self.retry(now, at, reason, halted, events);
    }

    /// The partition goes on under the next epoch, or another producer id; how many facts may be repeated.
    fn start_over(&mut self, now: Instant, at: usize, new_id: bool) -> usize {
        let Some(partition) = self.partitions.get_mut(at) else { return 0 };
        let next = partition.producer.filter(|_| !new_id).and_then(|producer| {
            let epoch = producer.epoch.checked_add(1)?;
            Some(ProducerId { epoch, ..producer })
        });
        let id = partition.producer.map(|producer| producer.id);
        if next.is_none() && id.is_some() && id == self.latest.map(|latest| latest.id) {
            self.latest = None;
            self.init.want(now);
        }
        partition.start_over(next)
    }

    fn sequences_lost(&self, at: usize, cause: &str, facts: usize, events: &mut VecDeque<Event>) {
        let Some(partition) = self.partitions.get(at) else { return };
        if let Some(topic) = self.topics.get(partition.topic) {
            events.push_back(Event::SequencesLost {
                topic: Arc::clone(&topic.name),
                partition: partition.index,
                cause: cause.to_owned(),
                facts,
            });
        }
    }

    /// The same batch goes again, later.
    fn retry(
        &mut self,
        now: Instant,
        at: usize,
        reason: &str,
        halted: bool,
        events: &mut VecDeque<Event>,
    ) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        partition.attempts = partition.attempts.saturating_add(1);
        let delay = if halted {
            self.settings.backoff_max
        } else {
            self.jitter.delay(partition.attempts, self.settings.backoff_max)
        };
        partition.retry_at = Some(now + delay);
        self.trouble(now, at, reason, halted, events);
        if halted {
            self.halt(now, at, now + delay, reason, events);
        }
    }

    /// The partition does not take what it is given: remembers that, and says it now and then.
    fn trouble(
        &mut self,
        now: Instant,
        at: usize,
        reason: &str,
        halted: bool,
        events: &mut VecDeque<Event>,
    ) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let since = partition.trouble.as_ref().map_or(now, |trouble| trouble.since);
        let news = partition.trouble.as_ref().is_none_or(|trouble| trouble.reason != reason);
        let position = partition.first();
        partition.trouble = Some(Trouble { reason: reason.to_owned(), since, halted, position });
        if (news || partition.attempts.is_power_of_two())
            && let (Some(topic), Some(position)) =
                (self.topics.get(partition.topic), partition.first())
        {
            events.push_back(Event::PartitionBlocked {
                blocked: Blocked {
                    topic: Arc::clone(&topic.name),
                    partition: partition.index,
                    position,
                    reason: reason.to_owned(),
                    since,
                    halted,
                },
                attempt: partition.attempts,
            });
        }
    }

    fn learn(
        &mut self,
        now: Instant,
        metadata: Metadata,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        if let Some(found) = metadata.cluster_id {
            match &self.cluster {
                Some(cluster) if *cluster != found => {
                    self.other_cluster = Some(found);
                    return;
                }
                Some(_) => {}
                None => self.cluster = Some(found),
            }
        }
        if !self.reached {
            self.reached = true;
            self.unreached = None;
            events.push_back(Event::KafkaReached { brokers: metadata.brokers.len() });
        }
        for found in metadata.topics {
            let Some(&index) = self.names.get(found.name.as_str()) else { continue };
            let open = self.learn_topic(now, index, found, ledger, events);
            if let Some(topic) = self.topics.get_mut(index)
                && let Some(at) =
                    topic.answered(now, open, &mut self.jitter, self.settings.backoff_max)
            {
                self.metadata.want(at);
            }
        }
    }

    /// True if the topic must be asked for again soon.
    fn learn_topic(
        &mut self,
        now: Instant,
        index: usize,
        mut found: TopicMetadata,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) -> bool {
        let is_position_topic = self.position_topic().is_some_and(|name| *name == *found.name);
        let Some(topic) = self.topics.get_mut(index) else { return false };
        let verdict = policy::topic_metadata(found.error);
        let memory = MISSING_MEMORY + 2 * self.settings.backoff_max;
        if verdict == TopicVerdict::Missing {
            let created = match is_position_topic {
                true => true,
                false => self.settings.create_topics.is_some(),
            };
            return match &mut topic.state {
                // Facts wait for it; they are never routed anew. Where the position was there is none to wait.
                TopicState::Known { partitions, missing, .. } if !is_position_topic => {
                    *missing = Some(Missing::said(*missing, found.error, now, memory));
                    let partitions = partitions.clone();
                    let reason = format!(
                        "{}: the topic was there before; create it again, or let this client see it",
                        error_code::name(found.error)
                    );
                    self.lose(now, &partitions, &reason, ledger, events)
                }
                // A broker that has not heard of it yet.
                TopicState::Creating { .. } if found.error == UNKNOWN_TOPIC_OR_PARTITION => true,
                state if found.error == UNKNOWN_TOPIC_OR_PARTITION && created => {
                    *state = TopicState::Creating { at: Some(now), attempts: 0 };
                    self.creating.push(index);
                    false
                }
                state => {
                    let known = match state {
                        TopicState::Missing(known) => Some(*known),
                        _ => None,
                    };
                    *state = TopicState::Missing(Missing::said(known, found.error, now, memory));
                    false
                }
            };
        }
        // Being created, or without a leader for the moment.
        if verdict == TopicVerdict::Retry || found.partitions.is_empty() {
            return true;
        }
        // In the order of their indices, of which none is left out.
        found.partitions.sort_unstable_by_key(|partition| partition.index);
        let complete = found.partitions.iter().zip(0..).all(|(found, index)| found.index == index);
        if !complete {
            return true;
        }
        let mut made_anew = false;
        if topic.id != found.id {
            let before = std::mem::replace(&mut topic.id, found.id);
            if before.is_some() && found.id.is_some() {
                let name = Arc::clone(&topic.name);
                events.push_back(Event::TopicMadeAnew { topic: name });
                made_anew = true;
            }
            // What the one before had is not in this one.
            if let TopicState::Known { partitions, .. } = &topic.state {
                for at in partitions {
                    let Some(partition) = self.partitions.get_mut(*at) else { continue };
                    partition.forget_broker();
                    if !std::mem::replace(&mut partition.waiting, true) {
                        self.waiting.push(*at);
                    }
                }
            }
        }
        if made_anew {
            self.lost_with_topic(now, index, events);
        }
        let Some(topic) = self.topics.get_mut(index) else { return false };
        let count = found.partitions.len();
        let mut gone = Vec::new();
        // Whether there really are fewer than before is not sure yet.
        let mut again = false;
        match &mut topic.state {
            TopicState::Known { partitions, used, fewer, resize_to, missing } => {
                *missing = None;
                let from = *used;
                let said = fewer.filter(|said| now < said.at + memory);
                *fewer = (count < from)
                    .then(|| Fewer { at: now, since: said.map_or(now, |said| said.since) });
                again = fewer.is_some_and(|said| now < said.since + MISSING_GRACE);
                if !again {
                    let known = resize_to.as_ref().map_or(from, Vec::len);
                    *resize_to = Some(found.partitions.clone()).filter(|_| count != from);
                    if count != known && count != from {
                        let topic = Arc::clone(&topic.name);
                        events.push_back(Event::PartitionsChanged { topic, from, to: count });
                    }
                    gone.extend_from_slice(partitions.get(count..from).unwrap_or_default());
                }
            }
            state => {
                let resize_to = Some(found.partitions.clone());
                *state = TopicState::Known {
                    partitions: Vec::new(),
                    used: 0,
                    fewer: None,
                    resize_to,
                    missing: None,
                };
                self.resize(index);
            }
        }
        let reason = format!(
            "the topic was made anew with fewer partitions ({count}): add some, or restart the relay, which \
             then reads these facts again and gives them to the others"
        );
        again |= self.lose(now, &gone, &reason, ledger, events);
        for partition in &found.partitions {
            again |= partition.leader.is_none();
            if let Some(at) = self.find(&found.name, partition.index)
                && let Some(known) = self.partitions.get_mut(at)
            {
                known.leader = partition.leader;
            }
        }
        again
    }

    /// These partitions are not there any more; true if one of them has facts to store.
    fn lose(
        &mut self,
        now: Instant,
        partitions: &[usize],
        reason: &str,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) -> bool {
        let mut lost = false;
        for &at in partitions {
            let Some(partition) = self.partitions.get_mut(at) else { continue };
            partition.leader = None;
            partition.forget_broker();
            self.wait(at);
            let Some(partition) = self.partitions.get_mut(at) else { continue };
            if !partition.is_idle() {
                partition.attempts = partition.attempts.saturating_add(1);
                partition.seal(self.lot);
                self.trouble(now, at, reason, true, events);
                self.give_up_missing(now, at, reason, ledger, events);
                if self.partitions.get(at).and_then(Partition::halted).is_some() {
                    self.halt(now, at, now, reason, events);
                }
                lost |= self.partitions.get(at).is_some_and(|partition| !partition.is_idle());
            }
        }
        lost
    }
}
