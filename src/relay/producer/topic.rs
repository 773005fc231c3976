//! What is known of a topic, and when it is asked for again.

use crate::relay::backoff::Jitter;
use crate::relay::error_code::UNKNOWN_TOPIC_OR_PARTITION;
use crate::relay::kafka::PartitionMetadata;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A topic that the cluster does not know for so long is not one that was created a moment ago, of which not
/// every broker has heard.
pub(super) const MISSING_GRACE: Duration = Duration::from_secs(2);

/// What was said so long ago, and not again, is forgotten; two of the longest pauses between attempts come on top,
/// because somebody may wait for an answer all that time.
pub(super) const MISSING_MEMORY: Duration = Duration::from_secs(60);

/// How long a topic that is missing is taken to be missing before it is asked for again.
pub(super) const MISSING_AGE_MAX: Duration = Duration::from_secs(1);

/// So many topics that are missing are remembered: their names come from whoever emits facts, and under a policy that
/// passes such facts over there is no end to them.
pub(super) const MISSING_TOPICS_MAX: usize = 500;

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    /// Which topic of that name it is, where brokers tell.
    pub(super) id: Option<Uuid>,
    pub(super) state: TopicState,
    /// Answers in a row that left something open.
    attempts: u32,
    /// Why it was not created, when that was tried last.
    pub(super) not_created: Option<String>,
}

#[derive(Debug)]
pub(super) enum TopicState {
    /// Nothing is known yet.
    Asked,
    /// The cluster says that we cannot use it.
    Missing(Missing),
    /// The cluster does not have it, and we are creating it.
    Creating {
        /// When to ask for that; none while an answer is awaited.
        at: Option<Instant>,
        /// How often that was asked for.
        attempts: u32,
    },
    /// Facts of it are enqueued, or were.
    Known {
        /// Where its partitions are in [`super::Producer::partitions`], by index. Those that the cluster does not
        /// have any more stay: if it has them again, their sequences go on, because a broker that has merely
        /// not heard of them would take sequences that begin anew for repeats of what it stored first.
        partitions: Vec<usize>,
        /// So many of them are in use.
        used: usize,
        /// Since when the cluster has said that there are fewer. A broker that has just started may not have
        /// heard of all (KAFKA-6648), and no topic loses partitions unless it is made anew.
        fewer: Option<Fewer>,
        /// The cluster has these, which are more or fewer: they are used as soon as nothing of the topic
        /// is unsettled.
        resize_to: Option<Vec<PartitionMetadata>>,
        /// The cluster says that it is not there any more.
        missing: Option<Missing>,
    },
}

/// The cluster says that there are fewer partitions than there were.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fewer {
    /// When it said so last.
    pub(super) at: Instant,
    /// When it said so first.
    pub(super) since: Instant,
}

/// What the cluster says of a topic that we cannot use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missing {
    /// Kafka's error code.
    pub(super) error: i16,
    /// When it said so last.
    pub(super) at: Instant,
    /// When it said so first.
    pub(super) since: Instant,
}

impl Missing {
    /// Said again, or for the first time.
    pub(super) fn said(known: Option<Self>, error: i16, now: Instant, memory: Duration) -> Self {
        // What was said long ago says nothing of a topic that was created since.
        let known = known.filter(|known| now < known.at + memory);
        let since = known.map_or(now, |known| known.since);
        Self { error, at: now, since }
    }
}

impl Topic {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name, id: None, state: TopicState::Asked, attempts: 0, not_created: None }
    }

    /// Why it is taken to be missing, if it is. To those who are `patient` it is not before some time.
    pub(super) fn missing(&self, now: Instant, patient: bool) -> Option<i16> {
        let Missing { error, since, .. } = self.said_missing()?;
        let sure = error != UNKNOWN_TOPIC_OR_PARTITION || now >= since + MISSING_GRACE;
        (sure || !patient).then_some(error)
    }

    /// When creating it is to be asked for, if it is.
    pub(super) fn create_at(&self) -> Option<Instant> {
        match self.state {
            TopicState::Creating { at, .. } => at,
            _ => None,
        }
    }

    /// What the cluster said last, if that is that we cannot use it.
    pub(super) fn said_missing(&self) -> Option<Missing> {
        match &self.state {
            TopicState::Missing(missing) => Some(*missing),
            TopicState::Known { missing, .. } => *missing,
            TopicState::Asked | TopicState::Creating { .. } => None,
        }
    }

    /// The cluster has answered; when to ask again if that left something `open`.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        open: bool,
        jitter: &mut Jitter,
        max: Duration,
    ) -> Option<Instant> {
        if !open {
            self.attempts = 0;
            return None;
        }
        self.attempts = self.attempts.saturating_add(1);
        Some(now + jitter.delay(self.attempts, max))
    }
}
