//! The engine's side: a topic of one partition that takes whatever is produced, and answers when it is done with.

use super::builder::in_words_of_the_builder;
use super::counter::{Counter, Line, Shared};
use super::delivery::{Aggregate, Parcel};
use super::error::Error;
use super::schedule::{self, Step, Ticket};
use super::standing::{BLOCKED_LISTED_MAX, Blocked, Standing, State};
use super::{FACTS, Handlers, UNREADABLE};
use crate::kafka::{Found, records};
use crate::relay;
use crate::relay::event::{End, Event};
use crate::relay::fact::Fact;
use crate::relay::gone::ExitKind;
use crate::relay::kafka::{
    Answer, Broker, BrokerId, Metadata, PartitionAnswer, PartitionBatch, PartitionMetadata,
    ProducerId, Request, TopicMetadata, Unanswered,
};
use crate::run::{Surroundings, now};
use factlib_protocol::{Lsn, Timestamp};
use std::collections::HashSet;
use std::future::Future;
use std::mem::{self, Discriminant};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

pub(super) struct Sink {
    pub(super) slot: String,
    pub(super) shared: Arc<Shared>,
    /// For which types there are handlers; none for all.
    pub(super) types: Option<HashSet<String>>,
    pub(super) standing: watch::Sender<Standing>,
    /// How far the relay has confirmed, and what it has left.
    pub(super) confirmed: Lsn,
    pub(super) unsettled: usize,
    /// Since when it is in this state.
    since: Option<(Discriminant<State>, Instant)>,
}

impl Sink {
    pub(super) fn new(
        slot: String,
        shared: Arc<Shared>,
        handlers: &Handlers,
        standing: watch::Sender<Standing>,
    ) -> Self {
        let types = handlers.by_type.keys().cloned().collect();
        let types = Some(types).filter(|_| handlers.general.is_none());
        Self { slot, shared, types, standing, confirmed: Lsn::INVALID, unsettled: 0, since: None }
    }

    fn take(&self, broker: BrokerId, batch: PartitionBatch) {
        let unreadable = &*batch.topic == UNREADABLE;
        let encoded = batch.batch;
        let mut counter = self.shared.counter();
        let ticket = counter.ticket(
            broker,
            PartitionAnswer {
                topic: batch.topic,
                partition: batch.partition,
                base_sequence: batch.base_sequence,
                error: 0,
                base_offset: -1,
            },
        );
        let (mut arrived, mut whole) = (0, true);
        let read = records(&encoded, |found| {
            let made = match unreadable {
                true => Parcel::of_unreadable(&found, &encoded).map(|parcel| {
                    counter.schedule.arrive(ticket, Line::Unreadable, Step::DeadLetter, parcel);
                    1
                }),
                false => self.arrive(&mut counter, ticket, &found, &encoded),
            };
            whole &= made.is_some();
            arrived += made.unwrap_or(0);
        });
        if read.is_err() || !whole {
            drop(counter);
            let reason = "what the engine has made of a fact cannot be read: a defect".to_owned();
            return self.shared.halt(Error::Server { kind: ExitKind::Unsuitable, reason });
        }
        let settled = if arrived == 0 { counter.settled(ticket) } else { None };
        drop(counter);
        match settled {
            Some(answer) => self.shared.answer(answer),
            None => self.shared.wake.notify_one(),
        }
    }

    /// How many facts are to be handled: one, or none if no handler is for it.
    fn arrive(
        &self,
        counter: &mut Counter,
        ticket: Ticket,
        found: &Found<'_>,
        encoded: &bytes::Bytes,
    ) -> Option<usize> {
        let fact = Fact::decode(found.value()?).ok()?;
        if self.types.as_ref().is_some_and(|types| !types.contains(&*fact.aggregate_type)) {
            counter.passed_over += 1;
            return Some(0);
        }
        let aggregate = Arc::new(Aggregate {
            // The key is the prefix, and nothing else.
            prefix: std::str::from_utf8(found.key()?).ok()?.to_owned(),
            aggregate_type: fact.aggregate_type.into_owned(),
            aggregate_id: fact.aggregate_id.into_owned(),
        });
        let parcel = Parcel::of(found, encoded, Arc::clone(&aggregate))?;
        counter.schedule.arrive(ticket, Line::Aggregate(aggregate), Step::Handle, parcel);
        Some(1)
    }
}

impl Surroundings for Sink {
    fn send(&mut self, request: Request) {
        let answer = match request {
            Request::Produce { broker, batches, .. } => {
                for batch in batches {
                    self.take(broker, batch);
                }
                return;
            }
            Request::Metadata { topics } => Answer::Metadata(Ok(Metadata {
                cluster_id: None,
                brokers: vec![Broker { id: 0, host: String::new(), port: 0 }],
                topics: topics.iter().map(there).collect(),
            })),
            Request::InitProducerId => Answer::ProducerId(Ok(Ok(ProducerId { id: 0, epoch: 0 }))),
            Request::CreateTopics { topics } => {
                let topics: Vec<_> = topics.into_iter().map(|(topic, _)| topic).collect();
                let answer = Ok(topics.iter().map(|_| Ok(())).collect());
                Answer::TopicsCreated { topics, answer }
            }
            // Tail, and what transactions need: they are not asked for.
            request => request.unanswered(Unanswered("handlers remember nothing here".to_owned())),
        };
        self.shared.answer(answer);
    }

    fn lease_until(&mut self, until: Instant) {
        let before = self.shared.counter().lease.replace(until);
        if before != Some(until) {
            self.shared.wake.notify_one();
        }
    }

    fn slot_gone(&mut self) {
        self.shared.counter().lease = None;
    }

    fn given_up(&mut self) -> impl Future<Output = ()> + Send {
        self.shared.quiet.notified()
    }

    fn event(&mut self, event: &Event) {
        let slot = self.slot.as_str();
        match event {
            Event::Settled { .. } | Event::NotStored { .. } => return,
            Event::Streaming { start, timeline } => {
                info!(slot, lsn = %start, timeline, "streaming");
            }
            Event::Away { end: End::Stalled, delay, .. } => {
                let handlers = stalled_words(&self.shared.counter(), now().at);
                warn!(
                    slot, retry_in = ?delay, handlers,
                    "hung up, so that PostgreSQL need not wait for handlers; the slot is taken again"
                );
            }
            Event::Away { cause, delay, .. } => {
                let cause = in_words_of_the_builder(cause);
                warn!(slot, retry_in = ?delay, error = cause, "not connected to PostgreSQL");
            }
            Event::SlotInUse { cause, delay } => {
                info!(slot, every = ?delay, error = cause, "waiting for the slot, which another has");
            }
            Event::SlotMoved { from, to } => warn!(
                slot, lsn = %to, confirmed = %from,
                "the slot is further than this process left it: another one had it, or somebody advanced it; in \
                 the second case the facts between were not handled"
            ),
            Event::SlotAhead { confirmed, wal_end } => error!(
                slot, lsn = %confirmed, %wal_end,
                "the slot is confirmed up to a place that the server's log has not reached yet; facts committed \
                 before that place are lost"
            ),
            Event::TimelineChanged { from, to } if to < from => error!(
                slot,
                from,
                to,
                "the server is on an older timeline than before: an old primary that is still up? Whoever keeps the \
                 highest position takes its facts for repeats"
            ),
            Event::TimelineChanged { from, to } => {
                warn!(slot, from, to, "the server is on another timeline: a failover");
            }
            Event::ServerStopping { unsettled } => {
                info!(slot, unsettled, "PostgreSQL is shutting down; letting it go");
            }
            Event::Foreign { prefix } => {
                info!(slot, prefix, "messages with this prefix are passed over");
            }
            Event::Halted(halted) => {
                let (position, lsn) = (halted.position, halted.lsn);
                let reason = in_words_of_the_builder(&halted.reason);
                error!(slot, %lsn, %position, error = reason, "halted: a message is no fact");
                self.shared.counter().stuck = Some(Error::Unreadable { position, lsn, reason });
            }
            Event::PassedOver { position } | Event::Resumed { position } => {
                warn!(slot, %position, "somebody has moved the slot past what halted the subscriber");
                self.shared.counter().stuck = None;
            }
            Event::GivenUp(given_up) => {
                let position = given_up.position;
                let reason = in_words_of_the_builder(&given_up.poison.reason);
                if given_up.policy == relay::poison::Policy::Skip {
                    self.shared.counter().skipped += 1;
                    error!(slot, %position, error = reason, "skipped: a message is no fact");
                } else {
                    error!(slot, %position, error = reason, "dead letter: a message is no fact");
                }
            }
            Event::Stopping { unsettled } => {
                info!(slot, unsettled, "stopping: waiting for handlers that are under way");
                self.shared.counter().schedule.stop();
                self.shared.wake.notify_one();
            }
            event => debug!(slot, ?event, "subscriber"),
        }
        self.shared.counter().due = true;
    }

    fn created(&mut self, point: Lsn) {
        info!(
            slot = self.slot, lsn = %point,
            "made publication and slot: facts committed from this point on are delivered, earlier ones are not"
        );
    }

    fn wants_standing(&self) -> bool {
        let counter = self.shared.counter();
        counter.due || counter.stuck.is_some()
    }

    fn standing(&mut self, standing: &relay::Standing, at: Instant) {
        self.confirmed = standing.confirmed;
        self.unsettled = standing.unsettled_facts;
        let mut counter = self.shared.counter();
        counter.due = false;
        let mut shown = shown(&counter, standing, at);
        let end = match standing.unsettled_facts {
            0 => counter.stuck.take(),
            _ => None,
        };
        drop(counter);
        let state = mem::discriminant(&shown.state);
        let (_, since) = *match &mut self.since {
            Some(since) if since.0 == state => since,
            since => since.insert((state, at)),
        };
        shown.state_for = at.saturating_duration_since(since);
        self.standing.send_replace(shown);
        if let Some(error) = end {
            self.shared.halt(error);
        }
    }
}

/// A topic with one partition: whatever waits for its turn holds up nothing else.
fn there(topic: &Arc<str>) -> TopicMetadata {
    debug_assert!([FACTS, UNREADABLE].contains(&&**topic));
    TopicMetadata {
        name: topic.to_string(),
        id: None,
        error: 0,
        partitions: vec![PartitionMetadata { index: 0, leader: Some(0) }],
    }
}

fn shown(counter: &Counter, standing: &relay::Standing, at: Instant) -> Standing {
    let schedule = &counter.schedule;
    let state = match (&counter.halted, &standing.state) {
        (Some(error), _) => State::Halted(error.to_string()),
        (None, relay::State::Connecting(cause)) => {
            State::Connecting(cause.as_deref().map(in_words_of_the_builder))
        }
        (None, relay::State::WaitingForSlot(cause)) => {
            State::WaitingForSlot(in_words_of_the_builder(cause))
        }
        (None, relay::State::Streaming) => State::Streaming,
        (None, relay::State::Halted(halted)) => {
            State::Halted(in_words_of_the_builder(&halted.reason))
        }
        (None, relay::State::Stalled(_)) => State::Stalled(stalled_words(counter, at)),
        (None, relay::State::Stopping) => State::Stopping,
    };
    let (blocked_count, blocked) = schedule.blocked(BLOCKED_LISTED_MAX);
    let blocked = blocked.into_iter().map(|blocked| Blocked {
        aggregate: blocked.line.aggregate().cloned(),
        error: blocked.error,
        since: at.saturating_duration_since(blocked.since),
        attempts: blocked.attempts,
        facts: blocked.facts,
    });
    let slowest = schedule.slowest().and_then(|(line, since)| {
        Some((Arc::clone(line.aggregate()?), at.saturating_duration_since(since)))
    });
    let counts = schedule.counts();
    let oldest = standing.oldest_commit;
    let server_clock = now().clock.0.saturating_add(standing.server_ahead);
    let lag = oldest.map(|oldest| server_clock.saturating_sub(oldest.0));
    Standing {
        state,
        state_for: Duration::ZERO,
        received: standing.received,
        confirmed: standing.confirmed,
        wal_end: standing.wal_end,
        is_caught_up: standing.is_caught_up,
        oldest_commit: oldest.and_then(time),
        lag: lag.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))),
        waiting: schedule.waiting(),
        running: schedule.running(),
        slowest,
        handled: counts.handled,
        passed_over: counter.passed_over,
        dead_letters: counts.dead_letters,
        skipped: counter.skipped,
        failures: counts.failures,
        blocked_count,
        blocked: blocked.collect(),
        window_bytes: standing.window_bytes,
        window_limit: standing.window_limit,
    }
}

fn time(at: Timestamp) -> Option<SystemTime> {
    let micros = u64::try_from(at.unix_micros()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))
}

/// Why the window stays full.
fn stalled_words(counter: &Counter, at: Instant) -> String {
    let schedule = &counter.schedule;
    let waiting = schedule.waiting();
    let (count, blocked) = schedule.blocked(1);
    if let Some(schedule::Blocked { line, error, attempts, .. }) = blocked.first() {
        return format!(
            "{waiting} facts wait; {count} aggregates are blocked, the first is {}, which failed {attempts} times: \
             {error}",
            line.words()
        );
    }
    match schedule.slowest() {
        Some((line, since)) => format!(
            "{waiting} facts wait for handlers; the one of {} has been under way for {:.1?}",
            line.words(),
            at.saturating_duration_since(since)
        ),
        None => match &counter.stuck {
            Some(error) if waiting == 0 => error.to_string(),
            _ => format!("{waiting} facts wait for handlers"),
        },
    }
}
