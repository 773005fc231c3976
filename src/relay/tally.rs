//! How many facts of each kind were read: counted as they go by, without an allocation or a lock.

use super::fact::Fact;
use std::collections::HashMap;
use std::sync::Arc;

/// So many kinds of facts are told apart; the others are counted together. A label is made of each, and whoever
/// emits facts can invent kinds without end.
pub const KINDS_MAX: usize = 100;

/// Longer names are nobody's idea of a kind, and are counted with the others.
const NAME_BYTES_MAX: usize = 200;

/// Facts with the same aggregate type and event type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Aggregate type.
    pub aggregate_type: Arc<str>,
    /// Event type.
    pub event_type: Arc<str>,
    /// Facts that were given to the producer.
    pub published: u64,
    /// Facts that could not be, and did not halt the relay.
    pub given_up: u64,
}

/// Facts by kind, since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tally {
    kinds: Vec<Kind>,
    /// By aggregate type and event type.
    places: HashMap<Arc<str>, HashMap<Arc<str>, usize>>,
    /// The kind that was counted last: facts come in runs.
    last: usize,
    others: (u64, u64),
}

impl Tally {
    /// The kinds, in the order in which they were first seen.
    pub(super) fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// Facts of all other kinds: published, given up.
    pub(super) fn others(&self) -> (u64, u64) {
        self.others
    }

    pub(super) fn published(&mut self, fact: &Fact<'_>) {
        match self.kind(fact) {
            Some(kind) => kind.published += 1,
            None => self.others.0 += 1,
        }
    }

    pub(super) fn gave_up(&mut self, fact: &Fact<'_>) {
        match self.kind(fact) {
            Some(kind) => kind.given_up += 1,
            None => self.others.1 += 1,
        }
    }

    fn kind(&mut self, fact: &Fact<'_>) -> Option<&mut Kind> {
        let (aggregate_type, event_type) = (&*fact.aggregate_type, &*fact.event_type);
        let is_it = |kind: &Kind| {
            *kind.event_type == *event_type && *kind.aggregate_type == *aggregate_type
        };
        if !self.kinds.get(self.last).is_some_and(is_it) {
            let known = self.places.get(aggregate_type).and_then(|kinds| kinds.get(event_type));
            self.last = match known {
                Some(at) => *at,
                None => self.add(aggregate_type, event_type)?,
            };
        }
        self.kinds.get_mut(self.last)
    }

    /// The place of a new kind, if there is one left.
    fn add(&mut self, aggregate_type: &str, event_type: &str) -> Option<usize> {
        let at = self.kinds.len();
        if at >= KINDS_MAX || aggregate_type.len().max(event_type.len()) > NAME_BYTES_MAX {
            return None;
        }
        let (aggregate_type, event_type) = (Arc::from(aggregate_type), Arc::from(event_type));
        let kinds = self.places.entry(Arc::clone(&aggregate_type)).or_default();
        kinds.insert(Arc::clone(&event_type), at);
        self.kinds.push(Kind { aggregate_type, event_type, published: 0, given_up: 0 });
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(tally: &mut Tally, aggregate_type: &str, event_type: &str) {
        let json =
            format!(r#"{{"aggregate_type":"{aggregate_type}","event_type":"{event_type}"}}"#);
        tally.published(&Fact::decode(json.as_bytes()).unwrap());
    }

    #[test]
    fn facts_are_counted_by_both_types() {
        let mut tally = Tally::default();
        for (aggregate_type, event_type) in [
            ("order", "paid"),
            ("order", "sent"),
            ("order", "paid"),
            ("cart", "paid"),
            ("order", "paid"),
        ] {
            count(&mut tally, aggregate_type, event_type);
        }
        let kinds = tally.kinds().iter();
        let found: Vec<_> =
            kinds.map(|k| (&*k.aggregate_type, &*k.event_type, k.published)).collect();
        assert_eq!(found, [("order", "paid", 3), ("order", "sent", 1), ("cart", "paid", 1)]);
        assert_eq!(tally.others(), (0, 0));
    }

    #[test]
    fn ten_thousand_kinds_take_the_room_of_a_hundred() {
        let mut tally = Tally::default();
        for _ in 0..2 {
            for kind in 0..10_000 {
                count(&mut tally, &format!("type{kind}"), "made");
            }
        }
        count(&mut tally, &"x".repeat(10_000), "made");
        assert_eq!(tally.kinds().len(), KINDS_MAX);
        assert!(tally.kinds().iter().all(|kind| kind.published == 2));
        assert_eq!(tally.others(), (2 * (10_000 - KINDS_MAX as u64) + 1, 0));
        let places: usize = tally.places.values().map(HashMap::len).sum();
        assert_eq!((tally.places.len(), places), (KINDS_MAX, KINDS_MAX));
    }
}
