//! What the engine's side and the handlers' side of a subscriber share.

use super::delivery::{Aggregate, Parcel};
use super::error::Error;
use super::schedule::{Rules, Schedule, Ticket};
use crate::relay::kafka::{Answer, BrokerId, PartitionAnswer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// What is in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Line {
    Aggregate(Arc<Aggregate>),
    /// Messages that are no facts.
    Unreadable,
}

impl Line {
    pub(super) fn aggregate(&self) -> Option<&Arc<Aggregate>> {
        match self {
            Self::Aggregate(aggregate) => Some(aggregate),
            Self::Unreadable => None,
        }
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Aggregate(aggregate) => aggregate.to_string(),
            Self::Unreadable => "messages that are no facts".to_owned(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Counter {
    pub(super) schedule: Schedule<Line, Parcel>,
    /// What is answered once all of a ticket is done with.
    tickets: HashMap<Ticket, (BrokerId, PartitionAnswer)>,
    next_ticket: Ticket,
    /// Until when handlers may be called; none while the slot is not ours.
    pub(super) lease: Option<Instant>,
    pub(super) passed_over: u64,
    pub(super) skipped: u64,
    /// Nothing is read past a message, for this reason: once what lies before it is done with, that is the end.
    pub(super) stuck: Option<Error>,
    /// Why no more is begun, if not because it was asked for.
    pub(super) halted: Option<Error>,
    /// People should see the standing at once.
    pub(super) due: bool,
}

impl Counter {
    /// A ticket for a batch: what it is answered with.
    pub(super) fn ticket(&mut self, broker: BrokerId, answer: PartitionAnswer) -> Ticket {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, (broker, answer));
        self.next_ticket
    }

    /// The answer to a batch that is done with.
    pub(super) fn settled(&mut self, ticket: Ticket) -> Option<Answer> {
        let (broker, answer) = self.tickets.remove(&ticket)?;
        Some(Answer::Produced { broker, partitions: vec![answer], throttle: Duration::ZERO })
    }

    /// Until when handlers may be called at `now`, if they may.
    pub(super) fn may_begin(&self, now: Instant) -> bool {
        self.lease.is_some_and(|until| now < until)
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    counter: Mutex<Counter>,
    /// The handlers' side has something to look at.
    pub(super) wake: Notify,
    /// No handler is under way, and none will be.
    pub(super) quiet: Notify,
    /// Somebody must stop the engine.
    pub(super) halt: Notify,
    pub(super) answers: mpsc::UnboundedSender<Answer>,
}

impl Shared {
    pub(super) fn new(rules: Rules, answers: mpsc::UnboundedSender<Answer>) -> Self {
        let counter = Counter {
            schedule: Schedule::new(rules),
            tickets: HashMap::new(),
            next_ticket: 0,
            lease: None,
            passed_over: 0,
            skipped: 0,
            stuck: None,
            halted: None,
            due: false,
        };
        Self {
            counter: Mutex::new(counter),
            wake: Notify::new(),
            quiet: Notify::new(),
            halt: Notify::new(),
            answers,
        }
    }

    /// Nobody who has it waits or calls anybody.
    pub(super) fn counter(&self) -> MutexGuard<'_, Counter> {
        self.counter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn answer(&self, answer: Answer) {
        // Nobody listens: the engine has ended.
        let _ = self.answers.send(answer);
    }

    /// Nothing more is begun, for this reason; the first one counts.
    pub(super) fn halt(&self, error: Error) {
        let mut counter = self.counter();
        counter.schedule.stop();
        counter.halted.get_or_insert(error);
        counter.due = true;
        drop(counter);
        self.halt.notify_one();
        self.wake.notify_one();
    }
}
