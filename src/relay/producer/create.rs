//! Topics that are created, where that is wanted.
//!
//! ```text
//!  asked for ──not there──▶ creating ──created, or somebody was faster──▶ asked for until it is there
//!                            ▲   │
//!                            └───┘ no answer, busy            refused ──▶ missing, asked for again
//! ```

use super::topic::{Missing, TopicState};
use super::{Producer, SLOW_FROM_ATTEMPT};
use crate::relay::error_code::{self, INVALID_REPLICATION_FACTOR};
use crate::relay::event::Event;
use crate::relay::kafka::{CreateRefusal, NewTopic, Request, Unanswered};
use crate::relay::poison::Policy;
use crate::relay::policy::{self, CreateVerdict};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many topics are created by one request, and so many partitions: brokers refuse one with more than 10,000 of
/// these, and take their time for each.
const TOPICS_AT_ONCE: usize = 50;
const PARTITIONS_AT_ONCE: usize = 1000;

/// How many partitions a topic is taken to get where the broker decides.
const PARTITIONS_UNTOLD: i32 = 20;

impl Producer {
    /// Why some topic is not created, if that is why facts wait.
    pub fn not_created(&self) -> Option<String> {
        let mut creating = self.creating.iter().filter_map(|index| self.topics.get(*index));
        creating.find_map(|topic| {
            let why = topic.not_created.as_ref()?;
            Some(format!("topic {} is not created: {why}", topic.name))
        })
    }

    /// When a topic is to be created.
    pub(super) fn create_at(&self) -> Option<Instant> {
        let creating = self.creating.iter().filter_map(|index| self.topics.get(*index));
        creating.filter_map(|topic| topic.create_at()).min()
    }

    /// The next request for topics for which it is time.
    pub(super) fn create(&mut self, now: Instant) -> Option<Request> {
        let topics = &self.topics;
        self.creating.retain(|index| {
            let topic = topics.get(*index);
            topic.is_some_and(|topic| matches!(topic.state, TopicState::Creating { .. }))
        });
        let position_topic = self.settings.transactions.as_ref();
        let like = |name: &str| match position_topic.filter(|it| *it.position_topic == *name) {
            Some(it) => Some(&it.position_topic_like),
            None => self.settings.create_topics.as_ref(),
        };
        let partitions = self.settings.create_topics.as_ref().and_then(|new| new.partitions);
        let partitions = usize::try_from(partitions.unwrap_or(PARTITIONS_UNTOLD));
        let count = PARTITIONS_AT_ONCE / partitions.unwrap_or(1).max(1);
        let mut asked = Vec::new();
        for index in &self.creating {
            let Some(topic) = self.topics.get_mut(*index) else { continue };
            let Some(new) = like(&topic.name) else { continue };
            let TopicState::Creating { at, .. } = &mut topic.state else { continue };
            if at.take_if(|at| *at <= now).is_none() {
                continue;
            }
            let mut new = new.clone();
            if self.settings.policies.dead_letter_topic.as_deref() == Some(&*topic.name) {
                without_compaction(&mut new);
            }
            asked.push((Arc::clone(&topic.name), new));
            if asked.len() >= count.clamp(1, TOPICS_AT_ONCE) {
                break;
            }
        }
        (!asked.is_empty()).then_some(Request::CreateTopics { topics: asked })
    }

    pub(super) fn created(
        &mut self,
        now: Instant,
        index: usize,
        answer: Result<Result<(), CreateRefusal>, Unanswered>,
        events: &mut VecDeque<Event>,
    ) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        let (verdict, error, why) = match answer {
            Ok(Ok(())) => (CreateVerdict::Created, error_code::NONE, None),
            Ok(Err(CreateRefusal { error, message })) => {
                let name = error_code::name(error);
                let why = message.map_or(name.to_owned(), |message| format!("{name}: {message}"));
                (policy::create_topics(error), error, Some(why))
            }
            Err(cause) => (CreateVerdict::Retry, error_code::NONE, Some(cause.to_string())),
        };
        if verdict == CreateVerdict::Created {
            topic.not_created = None;
            if why.is_none() {
                events.push_back(Event::TopicCreated { topic: Arc::clone(&topic.name) });
            }
            self.metadata.want(now);
        } else if topic.not_created != why
            && let Some(cause) = why
        {
            topic.not_created = Some(cause.clone());
            events.push_back(Event::TopicNotCreated { topic: Arc::clone(&topic.name), cause });
        }
        let TopicState::Creating { at, attempts } = &mut topic.state else { return };
        *attempts = attempts.saturating_add(1);
        // Too few brokers are alive, for now or for ever: no reason to give a fact up.
        let waits = error == INVALID_REPLICATION_FACTOR
            && self.settings.policies.of(Some(&topic.name)) != Policy::Halt;
        if verdict == CreateVerdict::Refused && !waits {
            topic.state = TopicState::Missing(Missing::said(None, error, now, Duration::ZERO));
            return;
        }
        if verdict == CreateVerdict::Refused {
            *attempts = (*attempts).max(SLOW_FROM_ATTEMPT);
        }
        // Also once it is created: where nothing comes of it, it is asked for again.
        *at = Some(now + self.jitter.delay(*attempts, self.settings.backoff_max));
    }
}

/// Some dead letters have no key, and a compacted topic takes none without.
fn without_compaction(new: &mut NewTopic) {
    new.configs.retain(|(name, _)| name != "cleanup.policy");
}
