//! What is counted by topic, with a bound on how many topics are told apart.

use super::histogram::{FACTLIB_SECONDS, Histogram};
use std::collections::HashMap;
use std::sync::Arc;

/// So many topics have label values of their own, in the order in which they come; all others share
/// [`OTHER`]. Topics are made of what services emit, and a service can invent aggregate types without end.
pub const TOPICS_LABELLED_MAX: usize = 100;

/// The label value of topics beyond [`TOPICS_LABELLED_MAX`]. No topic can have such a name.
pub const OTHER: &str = "(other)";

/// The label value where a fact's topic is not known, or none that a topic could have.
pub const NONE: &str = "(none)";

/// What is counted of one topic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Topic {
    /// Its name, as a label value.
    pub(crate) name: Arc<str>,
    /// Facts that Kafka has.
    pub(crate) published: Amount,
    /// Facts that went to the dead-letter topic instead.
    pub(crate) dead_lettered: Amount,
    /// Facts that are nowhere.
    pub(crate) skipped: Amount,
    /// Facts in batches that were not stored when they were sent, each time.
    pub(crate) not_stored: u64,
    /// How long Produce requests took, weighted by facts.
    pub(crate) produce: Histogram,
}

/// Facts and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    pub(crate) facts: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, facts: usize, bytes: usize) {
        self.facts += facts as u64;
        self.bytes += bytes as u64;
    }
}

impl Topic {
    fn new(name: &str) -> Self {
        Self {
            name: Arc::from(name),
            published: Amount::default(),
            dead_lettered: Amount::default(),
            skipped: Amount::default(),
            not_stored: 0,
            produce: Histogram::new(FACTLIB_SECONDS),
        }
    }
}

/// Topics by name, at most [`TOPICS_LABELLED_MAX`] and the two that stand for others.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Topics {
    topics: Vec<Topic>,
    places: HashMap<Arc<str>, usize>,
}

impl Topics {
    /// The topic of this name, or the one that stands for it: there always is one.
    pub(crate) fn of(&mut self, name: &str) -> Option<&mut Topic> {
        let mut at = self.places.get(name).copied();
        if at.is_none() {
            let stand_ins = [OTHER, NONE].iter().filter(|name| self.places.contains_key(**name));
            let full = self.places.len() - stand_ins.count() >= TOPICS_LABELLED_MAX;
            let name = if full && name != NONE { OTHER } else { name };
            at = self.places.get(name).copied().or_else(|| {
                let topic = Topic::new(name);
                self.places.insert(Arc::clone(&topic.name), self.topics.len());
                self.topics.push(topic);
                Some(self.topics.len() - 1)
            });
        }
        self.topics.get_mut(at?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Topic> {
        self.topics.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::route::is_topic;

    #[test]
    fn ten_thousand_topics_have_a_hundred_labels_and_all_are_counted() {
        let mut topics = Topics::default();
        for _ in 0..2 {
            for topic in 0..10_000 {
                let topic = topics.of(&format!("orders.type{topic}")).unwrap();
                topic.published.add(3, 100);
            }
        }
        topics.of(NONE).unwrap().skipped.add(1, 1);
        assert_eq!(topics.iter().count(), TOPICS_LABELLED_MAX + 2);
        let facts: u64 = topics.iter().map(|topic| topic.published.facts).sum();
        assert_eq!(facts, 60_000);
        assert_eq!(topics.of(OTHER).unwrap().published.facts, 6 * (10_000 - 100));
    }

    #[test]
    fn no_topic_can_be_called_like_those_that_stand_for_others() {
        assert!(!is_topic(OTHER) && !is_topic(NONE));
    }
}
