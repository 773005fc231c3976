//! The idempotent producer: batches per partition, sequences, what is in flight, retries.
//!
//! ```text
//!  push ─▶ open ──full / nothing more to read──▶ queue ──head──▶ in flight ──stored──▶ settled
//!                                                  ▲                │
//!                                                  └─ same bytes ◀──┘ anything else
//! ```
//!
//! One batch per partition is in flight, and whatever happens to it, the same batch goes again
//! before anything newer to that partition. So the first occurrences of facts in a partition are
//! always in order, and every disorder is a repeated older run.

use super::backoff::Jitter;
use super::batch::{Batch, OpenBatch, Record, sequence_after};
use super::error_code;
use super::event::Event;
use super::kafka::{
    Answer, BrokerId, Metadata, PartitionAnswer, PartitionBatch, ProducerId, Request, TopicMetadata,
};
use super::ledger::{Ledger, Place};
use super::policy::{self, Verdict};
use super::position::Position;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How old leaders and partition counts may become before they are asked for again
/// (`metadata.max.age.ms` of the Java client).
const METADATA_AGE_MAX: Duration = Duration::from_secs(300);

/// How long a topic that is missing is taken to be missing before it is asked for again.
const MISSING_AGE_MAX: Duration = Duration::from_secs(1);

/// A Produce request is not made longer than this by putting several partitions into it: the driver
/// holds one more copy of the request that it is writing. (A broker closes the connection over a
/// request of more than `socket.request.max.bytes`, 100 MiB.)
const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What all open batches together may reserve before they hold anything.
const RESERVED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Index of a topic in [`Producer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicId(usize);

/// What is known of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The topic is there and has this many partitions.
    Ready(TopicId, u32),
    /// It has been asked for.
    Asked,
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

#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    state: TopicState,
}

#[derive(Debug)]
enum TopicState {
    Asked,
    Missing { error: i16, since: Instant },
    Known { first: usize, partitions: u32, grown: bool },
}

/// A batch that still grows.
#[derive(Debug)]
struct Open {
    batch: OpenBatch,
    place: Place,
}

#[derive(Debug)]
struct Queued {
    batch: Batch,
    place: Place,
    /// See [`Producer::timeline_changed`].
    generation: u32,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    since: Instant,
    halted: bool,
}

#[derive(Debug)]
struct Partition {
    topic: usize,
    index: i32,
    leader: Option<BrokerId>,
    open: Option<Open>,
    queue: VecDeque<Queued>,
    in_flight: bool,
    producer: Option<ProducerId>,
    next_sequence: i32,
    retry_at: Option<Instant>,
    attempts: u32,
    trouble: Option<Trouble>,
    /// Length of the batch that was settled last: about what the next one will need.
    last_len: usize,
    /// It is in [`Producer::waiting`].
    waiting: bool,
}

impl Partition {
    /// Closes the open batch, if there is one.
    fn seal(&mut self, generation: u32) {
        if let Some(Open { batch, place }) = self.open.take() {
            self.queue.push_back(Queued { batch: batch.seal(), place, generation });
        }
    }
}

/// A request of which one at a time is under way.
#[derive(Debug, Default)]
struct Single {
    wanted: bool,
    in_flight: bool,
    retry_at: Option<Instant>,
    attempts: u32,
}

impl Single {
    fn take(&mut self, now: Instant) -> bool {
        let due = self.retry_at.is_none_or(|at| at <= now);
        let take = self.wanted && !self.in_flight && due;
        if take {
            *self = Self { in_flight: true, attempts: self.attempts, ..Self::default() };
        }
        take
    }

    fn again(&mut self, now: Instant, jitter: &mut Jitter, max: Duration) {
        self.wanted = true;
        self.attempts = self.attempts.saturating_add(1);
        self.retry_at = Some(now + jitter.delay(self.attempts, max));
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.wanted && !self.in_flight)
    }
}

/// The producer. Sends nothing itself: [`Producer::poll`] says what to send.
#[derive(Debug)]
pub struct Producer {
    backoff_max: Duration,
    jitter: Jitter,
    topics: Vec<Topic>,
    names: HashMap<Arc<str>, usize>,
    partitions: Vec<Partition>,
    /// Partitions that have something to send and nothing in flight.
    waiting: Vec<usize>,
    requests: VecDeque<Request>,
    latest: Option<ProducerId>,
    init: Single,
    metadata: Single,
    metadata_at: Option<Instant>,
    throttled: HashMap<BrokerId, Instant>,
    generation: u32,
    unsettled_bytes: usize,
    unsettled_facts: usize,
    /// No broker has answered anything yet.
    unreached: Option<String>,
    reached: bool,
}

impl Producer {
    /// A producer that knows nothing of the cluster yet.
    pub fn new(backoff_max: Duration, jitter: Jitter) -> Self {
        Self {
            backoff_max,
            jitter,
            topics: Vec::new(),
            names: HashMap::new(),
            partitions: Vec::new(),
            waiting: Vec::new(),
            requests: VecDeque::new(),
            latest: None,
            init: Single { wanted: true, ..Single::default() },
            metadata: Single { wanted: true, ..Single::default() },
            metadata_at: None,
            throttled: HashMap::new(),
            generation: 0,
            unsettled_bytes: 0,
            unsettled_facts: 0,
            unreached: None,
            reached: false,
        }
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
        let troubled = |partition: &Partition| {
            let trouble = partition.trouble.as_ref()?;
            let first = partition.queue.front().map(|queued| queued.batch.first());
            let topic = &self.topics.get(partition.topic)?.name;
            Some(Blocked {
                topic: Arc::clone(topic),
                partition: partition.index,
                position: first?,
                reason: trouble.reason.clone(),
                since: trouble.since,
                halted: trouble.halted,
            })
        };
        let blocked = self.partitions.iter().filter_map(troubled);
        blocked.min_by_key(|blocked| (!blocked.halted, blocked.since))
    }

    /// What is known of topic `name`. One that is not known, or has been missing for a while, is
    /// asked for: the answer comes by metadata.
    pub fn route(&mut self, now: Instant, name: &str) -> Route {
        let Some(&index) = self.names.get(name) else {
            let name: Arc<str> = Arc::from(name);
            self.names.insert(Arc::clone(&name), self.topics.len());
            self.topics.push(Topic { name, state: TopicState::Asked });
            self.metadata.wanted = true;
            return Route::Asked;
        };
        let Some(topic) = self.topics.get_mut(index) else { return Route::Asked };
        match topic.state {
            TopicState::Known { partitions, .. } => Route::Ready(TopicId(index), partitions),
            TopicState::Missing { error, since } if now < since + MISSING_AGE_MAX => {
                Route::Missing(error)
            }
            TopicState::Asked | TopicState::Missing { .. } => {
                topic.state = TopicState::Asked;
                self.metadata.wanted = true;
                Route::Asked
            }
        }
    }

    /// Enqueues one fact to `partition` of `topic`.
    pub fn push(
        &mut self,
        topic: TopicId,
        partition: u32,
        position: Position,
        record: &Record<'_>,
        ledger: &mut Ledger,
    ) {
        let first = match self.topics.get(topic.0).map(|topic| &topic.state) {
            Some(TopicState::Known { first, .. }) => *first,
            _ => return,
        };
        let index = first + partition as usize;
        let partitions = self.partitions.len().max(1);
        let Some(partition) = self.partitions.get_mut(index) else { return };
        if partition.open.as_ref().is_some_and(|open| !open.batch.has_room_for(record)) {
            partition.seal(self.generation);
        }
        let (open, before) = match &mut partition.open {
            Some(open) => {
                let len = open.batch.encoded_len();
                (open, len)
            }
            none => {
                let place = ledger.batch_opened(position.unit);
                // Many partitions must not reserve for a full batch each.
                let room = partition.last_len.min(RESERVED_BYTES_MAX / partitions);
                let batch = OpenBatch::with_capacity(position, room);
                (none.insert(Open { batch, place }), 0)
            }
        };
        open.batch.push(record);
        let grown = open.batch.encoded_len() - before;
        ledger.enqueued(grown);
        self.unsettled_bytes += grown;
        self.unsettled_facts += 1;
        if open.batch.is_full() {
            partition.seal(self.generation);
        }
        self.wait(index);
    }

    /// Another timeline: batches of the old one go on, but they are nothing to the ledger any more
    /// and are never mixed with new facts.
    pub fn timeline_changed(&mut self) {
        for partition in &mut self.partitions {
            partition.seal(self.generation);
        }
        self.generation += 1;
    }

    /// True if there is something that could be sent, now or when it has grown.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next request to send, until none. `lease` says until when facts may be sent, if at all;
    /// `flush`, whether batches that could still grow are.
    pub fn poll(&mut self, now: Instant, lease: Option<Instant>, flush: bool) -> Option<Request> {
        if self.requests.is_empty() {
            if self.metadata_at.is_some_and(|at| at + METADATA_AGE_MAX <= now) {
                self.metadata.wanted = true;
            }
            if self.metadata.take(now) {
                self.metadata_at = Some(now);
                let topics = self.topics.iter().map(|topic| Arc::clone(&topic.name)).collect();
                return Some(Request::Metadata { topics });
            }
            if self.init.take(now) {
                return Some(Request::InitProducerId);
            }
            if let Some(until) = lease.filter(|until| now < *until) {
                self.produce(now, until, flush);
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
        let age = self.metadata_at.map(|at| at + METADATA_AGE_MAX);
        let singles = [self.init.deadline(), self.metadata.deadline(), age];
        waiting.chain(singles.into_iter().flatten()).min()
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
                    Ok(metadata) => self.learn(now, metadata, events),
                    Err(cause) => {
                        self.metadata.again(now, &mut self.jitter, self.backoff_max);
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
                match answer {
                    Ok(Ok(producer)) => {
                        self.init.attempts = 0;
                        self.latest = Some(producer);
                        events.push_back(Event::ProducerId { id: producer.id });
                    }
                    // COORDINATOR_LOAD_IN_PROGRESS (14) is what a broker says just after its start.
                    Ok(Err(_)) | Err(_) => {
                        self.init.again(now, &mut self.jitter, self.backoff_max);
                        if self.init.attempts.is_power_of_two() && self.init.attempts > 4 {
                            let cause = match answer {
                                Ok(Err(code)) => error_code::name(code).to_owned(),
                                Err(cause) => cause.to_string(),
                                Ok(Ok(_)) => String::new(),
                            };
                            events.push_back(Event::NoProducerId { cause });
                        }
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
                    self.produced(now, &answer, ledger, events);
                }
            }
            Answer::ProduceUnanswered { partitions, cause, .. } => {
                self.metadata.wanted = true;
                for (topic, index) in partitions {
                    let Some(at) = self.find(&topic, index) else { continue };
                    if let Some(partition) = self.partitions.get_mut(at) {
                        partition.in_flight = false;
                    }
                    self.retry(now, at, &cause.to_string(), false, events);
                }
            }
        }
    }

    fn find(&self, topic: &str, index: i32) -> Option<usize> {
        let topic = self.topics.get(*self.names.get(topic)?)?;
        let TopicState::Known { first, partitions, .. } = topic.state else { return None };
        let index = u32::try_from(index).ok().filter(|index| *index < partitions)?;
        Some(first + index as usize)
    }

    fn wait(&mut self, index: usize) {
        if let Some(partition) = self.partitions.get_mut(index)
            && !partition.waiting
            && !partition.in_flight
        {
            partition.waiting = true;
            self.waiting.push(index);
        }
    }

    /// Collects what can be sent now, one request for each broker.
    fn produce(&mut self, now: Instant, until: Instant, flush: bool) {
        self.throttled.retain(|_, until| *until > now);
        let mut by_broker: Vec<(BrokerId, usize, Vec<PartitionBatch>)> = Vec::new();
        let waiting = std::mem::take(&mut self.waiting);
        for index in waiting {
            let Some(partition) = self.partitions.get_mut(index) else { continue };
            if flush && partition.queue.is_empty() {
                partition.seal(self.generation);
            }
            let throttled = partition.leader.and_then(|leader| self.throttled.get(&leader));
            let wait_until = partition.retry_at.max(throttled.copied());
            // A time that has passed is no deadline any more.
            partition.retry_at = partition.retry_at.filter(|at| *at > now);
            if partition.producer.is_none() {
                partition.producer = self.latest;
            }
            let (Some(head), Some(leader), Some(producer), true) = (
                partition.queue.front_mut(),
                partition.leader,
                partition.producer,
                wait_until.is_none_or(|until| until <= now),
            ) else {
                self.waiting.push(index);
                continue;
            };
            if head.batch.stamp() != Some((producer, partition.next_sequence)) {
                head.batch.set_stamp(producer, partition.next_sequence);
            }
            let Some(topic) = self.topics.get(partition.topic) else { continue };
            let batch = PartitionBatch {
                topic: Arc::clone(&topic.name),
                partition: partition.index,
                batch: head.batch.encoded(),
            };
            partition.in_flight = true;
            partition.waiting = false;
            partition.retry_at = None;
            let len = batch.batch.len();
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
        let produces = by_broker.into_iter();
        self.requests.extend(produces.map(|(broker, _, batches)| Request::Produce {
            broker,
            batches,
            until,
        }));
    }

    fn produced(
        &mut self,
        now: Instant,
        answer: &PartitionAnswer,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let Some(at) = self.find(&answer.topic, answer.partition) else { return };
        let Some(partition) = self.partitions.get_mut(at) else { return };
        partition.in_flight = false;
        let reason = error_code::name(answer.error);
        match policy::produce(answer.error) {
            Verdict::Stored => {
                let Some(head) = partition.queue.pop_front() else { return };
                partition.next_sequence =
                    sequence_after(partition.next_sequence, head.batch.records());
                partition.attempts = 0;
                partition.last_len = head.batch.encoded_len();
                if let Some(trouble) = partition.trouble.take() {
                    events.push_back(Event::PartitionRecovered {
                        topic: Arc::clone(&answer.topic),
                        partition: answer.partition,
                        after: now.saturating_duration_since(trouble.since),
                    });
                }
                let more = !partition.queue.is_empty() || partition.open.is_some();
                self.unsettled_bytes -= head.batch.encoded_len();
                let records = usize::try_from(head.batch.records()).unwrap_or(0);
                self.unsettled_facts -= records;
                events
                    .push_back(Event::Settled { facts: records, bytes: head.batch.encoded_len() });
                if head.generation == self.generation {
                    ledger.batch_settled(head.place);
                }
                if more {
                    self.wait(at);
                }
            }
            Verdict::Moved => {
                self.metadata.wanted = true;
                self.retry(now, at, reason, false, events);
            }
            Verdict::Retry => self.retry(now, at, reason, false, events),
            Verdict::NewProducer => {
                // Other partitions keep theirs: the broker checks sequences by partition.
                if partition.producer == self.latest {
                    self.latest = None;
                    self.init.wanted = true;
                }
                partition.producer = None;
                partition.next_sequence = 0;
                self.retry(now, at, reason, false, events);
            }
            Verdict::TooLarge => self.divide(now, at, reason, ledger, events),
            Verdict::Refused => self.retry(now, at, reason, true, events),
        }
    }

    /// Divides the head of a queue, or leaves it there if it is one record.
    fn divide(
        &mut self,
        now: Instant,
        at: usize,
        reason: &str,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let Some(Queued { batch, place, generation }) = partition.queue.pop_front() else { return };
        let len = batch.encoded_len();
        match batch.split() {
            Ok([first, second]) => {
                let behind = match generation == self.generation {
                    true => ledger.batch_divided(place, second.first().unit),
                    false => place,
                };
                self.unsettled_bytes -= len;
                for (batch, place) in [(second, behind), (first, place)] {
                    self.unsettled_bytes += batch.encoded_len();
                    partition.queue.push_front(Queued { batch, place, generation });
                }
                self.wait(at);
            }
            Err(batch) => {
                partition.queue.push_front(Queued { batch, place, generation });
                let reason =
                    format!("{reason}: one record of {len} bytes is over the topic's limit");
                self.retry(now, at, &reason, true, events);
            }
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
            self.backoff_max
        } else {
            self.jitter.delay(partition.attempts, self.backoff_max)
        };
        partition.retry_at = Some(now + delay);
        let since = partition.trouble.as_ref().map_or(now, |trouble| trouble.since);
        let news = partition.trouble.as_ref().is_none_or(|trouble| trouble.reason != reason);
        partition.trouble = Some(Trouble { reason: reason.to_owned(), since, halted });
        let first = partition.queue.front().map(|queued| queued.batch.first());
        if (news || partition.attempts.is_power_of_two())
            && let (Some(topic), Some(position)) = (self.topics.get(partition.topic), first)
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
        self.wait(at);
    }

    fn learn(&mut self, now: Instant, metadata: Metadata, events: &mut VecDeque<Event>) {
        if !self.reached {
            self.reached = true;
            self.unreached = None;
            events.push_back(Event::KafkaReached { brokers: metadata.brokers.len() });
        }
        let mut again = false;
        for topic in metadata.topics {
            again |= self.learn_topic(now, topic, events);
        }
        if again {
            self.metadata.again(now, &mut self.jitter, self.backoff_max);
        } else {
            self.metadata.attempts = 0;
        }
    }

    /// True if the topic must be asked for again soon.
    fn learn_topic(
        &mut self,
        now: Instant,
        found: TopicMetadata,
        events: &mut VecDeque<Event>,
    ) -> bool {
        let Some(&index) = self.names.get(found.name.as_str()) else { return false };
        let Some(topic) = self.topics.get_mut(index) else { return false };
        // LEADER_NOT_AVAILABLE: being created, or without a leader for the moment.
        const BEING_CREATED: i16 = 5;
        if found.error != 0 && found.error != BEING_CREATED {
            if let TopicState::Known { .. } = topic.state {
                // Facts wait for it; they are never routed anew.
                return true;
            }
            topic.state = TopicState::Missing { error: found.error, since: now };
            return false;
        }
        if found.error == BEING_CREATED || found.partitions.is_empty() {
            return true;
        }
        let count = u32::try_from(found.partitions.len()).unwrap_or(u32::MAX);
        match &mut topic.state {
            TopicState::Known { partitions, grown, .. } => {
                if *partitions != count && !*grown {
                    *grown = true;
                    events.push_back(Event::PartitionsChanged {
                        topic: Arc::clone(&topic.name),
                        from: *partitions,
                        to: count,
                    });
                }
            }
            state => {
                let first = self.partitions.len();
                *state = TopicState::Known { first, partitions: count, grown: false };
                self.partitions.extend((0..count).map(|partition| Partition {
                    topic: index,
                    index: i32::try_from(partition).unwrap_or(i32::MAX),
                    leader: None,
                    open: None,
                    queue: VecDeque::new(),
                    in_flight: false,
                    producer: None,
                    next_sequence: 0,
                    retry_at: None,
                    attempts: 0,
                    trouble: None,
                    last_len: 0,
                    waiting: false,
                }));
            }
        }
        let name = Arc::clone(&topic.name);
        let mut again = false;
        for found in found.partitions {
            again |= found.leader.is_none();
            if let Some(at) = self.find(&name, found.index)
                && let Some(partition) = self.partitions.get_mut(at)
            {
                partition.leader = found.leader;
            }
        }
        again
    }
}
