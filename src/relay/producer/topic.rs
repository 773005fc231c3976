//! What is known of a topic, and when it is asked for again.

use crate::relay::backoff::Jitter;
use crate::relay::kafka::PartitionMetadata;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a topic that is missing is taken to be missing before it is asked for again.
pub(super) const MISSING_AGE_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) state: TopicState,
    /// Answers in a row that left something open.
    attempts: u32,
}

#[derive(Debug)]
pub(super) enum TopicState {
    /// Nothing is known yet.
    Asked,
    /// The cluster says that we cannot use it: Kafka's error code.
    Missing { error: i16, since: Instant },
    /// Facts of it are enqueued, or were.
    Known {
        /// Where its partitions are in [`super::Producer::partitions`], by index.
        partitions: Vec<usize>,
        /// The cluster has these, which are more or fewer: they are used as soon as nothing of the topic
        /// is unsettled.
        resize_to: Option<Vec<PartitionMetadata>>,
    },
}

impl Topic {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name, state: TopicState::Asked, attempts: 0 }
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
