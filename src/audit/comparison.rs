//! What should be in Kafka, beside what is there. Pure.

use crate::relay::position::Position;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// A fact of the write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Its position.
    pub position: Position,
    /// Where it belongs.
    pub belongs: Belongs,
}

/// Where a fact belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Belongs {
    /// In a topic.
    To(Arc<str>),
    /// It cannot be published, for this reason; in the dead-letter topic, if there is one.
    Nowhere(String),
    /// It cannot be published, and the policy is to skip it.
    Skipped,
}

/// A record that says of itself which fact it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.partition, self.offset)
    }
}

/// Something that should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A fact that is confirmed and not in Kafka.
    Missing(Fact),
    /// A record whose fact was in the topic before it.
    Repeated(Position, Place),
    /// The first record of a fact, behind one of a fact with a higher position.
    OutOfOrder(Position, Place),
    /// A record of this source, between the facts that were looked at, of none of them: another relay's, which
    /// publishes other prefixes, or nobody's.
    Unknown(Position, Place),
}

impl Finding {
    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        let (finding, position, place) = match self {
            Self::Missing(fact) => {
                let (topic, reason) = match &fact.belongs {
                    Belongs::To(topic) => (Some(&**topic), None),
                    Belongs::Nowhere(reason) => (None, Some(reason.as_str())),
                    Belongs::Skipped => (None, None),
                };
                return serde_json::json!({
                    "finding": "missing",
                    "position": fact.position.to_string(),
                    "lsn": fact.position.unit.lsn.to_string(),
                    "topic": topic,
                    "reason": reason,
                });
            }
            Self::Repeated(position, place) => ("repeated", position, place),
            Self::OutOfOrder(position, place) => ("out_of_order", position, place),
            Self::Unknown(position, place) => ("unknown", position, place),
        };
        serde_json::json!({
            "finding": finding,
            "position": position.to_string(),
            "topic": &*place.topic,
            "partition": place.partition,
            "offset": place.offset,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(Fact { position, belongs }) => {
                let lsn = position.unit.lsn;
                match belongs {
                    Belongs::To(topic) => write!(f, "missing {position} lsn {lsn} in {topic}"),
                    Belongs::Nowhere(why) => write!(f, "missing {position} lsn {lsn}: {why}"),
                    Belongs::Skipped => write!(f, "skipped {position} lsn {lsn}"),
                }
            }
            Self::Repeated(position, place) => write!(f, "repeated {position} at {place}"),
            Self::OutOfOrder(position, place) => write!(f, "out of order {position} at {place}"),
            Self::Unknown(position, place) => write!(f, "unknown {position} at {place}"),
        }
    }
}

/// The outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Facts that were looked for.
    pub facts: usize,
    /// Of these, those that are in the dead-letter topic.
    pub dead_letters: usize,
    /// Of these, those that were to be skipped.
    pub skipped: usize,
    /// What should not be.
    pub findings: Vec<Finding>,
}

/// The comparison of some facts with the records of their topics.
#[derive(Debug)]
pub struct Comparison {
    /// By position; whether it was seen.
    facts: BTreeMap<Position, (Belongs, bool)>,
    dead_letter_topic: Option<Arc<str>>,
    /// The highest position so far in each partition.
    highest: HashMap<(Arc<str>, i32), Position>,
    outcome: Outcome,
}

impl Comparison {
    /// Of these facts, each of which should be in Kafka.
    pub fn new(facts: impl IntoIterator<Item = Fact>, dead_letter_topic: Option<Arc<str>>) -> Self {
        let facts: BTreeMap<_, _> =
            facts.into_iter().map(|fact| (fact.position, (fact.belongs, false))).collect();
        let outcome = Outcome { facts: facts.len(), ..Outcome::default() };
        Self { facts, dead_letter_topic, highest: HashMap::new(), outcome }
    }

    /// The topics to be read.
    pub fn topics(&self) -> Vec<Arc<str>> {
        let mut topics: Vec<Arc<str>> = self
            .facts
            .values()
            .filter_map(|(belongs, _)| match belongs {
                Belongs::To(topic) => Some(Arc::clone(topic)),
                _ => None,
            })
            .chain(self.dead_letter_topic.clone().filter(|_| !self.facts.is_empty()))
            .collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// A record of our source, in the order of its partition.
    pub fn found(&mut self, position: Position, place: Place) {
        let dead = self.dead_letter_topic.as_ref() == Some(&place.topic);
        let Some((belongs, seen)) = self.facts.get_mut(&position) else {
            let range = self.facts.first_key_value().zip(self.facts.last_key_value());
            let within =
                range.is_some_and(|((first, _), (last, _))| (*first..=*last).contains(&position));
            if within {
                self.outcome.findings.push(Finding::Unknown(position, place));
            }
            return;
        };
        if std::mem::replace(seen, true) {
            self.outcome.findings.push(Finding::Repeated(position, place));
            return;
        }
        if dead {
            self.outcome.dead_letters += usize::from(!matches!(belongs, Belongs::Skipped));
            return;
        }
        let highest = self.highest.entry((Arc::clone(&place.topic), place.partition));
        let highest = highest.or_insert(position);
        if *highest > position {
            self.outcome.findings.push(Finding::OutOfOrder(position, place));
        }
        *highest = position.max(*highest);
    }

    /// True if no fact is missing that is to be there.
    pub fn has_all(&self) -> bool {
        self.facts.values().all(|(belongs, seen)| *seen || matches!(belongs, Belongs::Skipped))
    }

    /// All records were found.
    pub fn outcome(self) -> Outcome {
        let Self { facts, mut outcome, .. } = self;
        for (position, (belongs, seen)) in facts {
            match belongs {
                _ if seen => {}
                Belongs::Skipped => outcome.skipped += 1,
                belongs => outcome.findings.push(Finding::Missing(Fact { position, belongs })),
            }
        }
        outcome
    }
}

impl Outcome {
    /// True if nothing is wrong.
    pub fn is_well(&self, accept_repeats: bool) -> bool {
        let accepted = |finding: &Finding| match finding {
            Finding::Missing(_) | Finding::OutOfOrder(..) => false,
            Finding::Repeated(..) => accept_repeats,
            // Of another relay, which publishes other prefixes of this database to the same topic.
            Finding::Unknown(..) => true,
        };
        self.findings.iter().all(accepted)
    }

    /// One line.
    pub fn summary(&self) -> String {
        let count =
            |wanted: fn(&Finding) -> bool| self.findings.iter().filter(|f| wanted(f)).count();
        format!(
            "{} facts: {} missing, {} repeated, {} out of order, {} unknown; {} are dead letters, {} were \
             skipped",
            self.facts,
            count(|f| matches!(f, Finding::Missing(_))),
            count(|f| matches!(f, Finding::Repeated(..))),
            count(|f| matches!(f, Finding::OutOfOrder(..))),
            count(|f| matches!(f, Finding::Unknown(..))),
            self.dead_letters,
            self.skipped,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::position::Unit;
    use factlib_protocol::Lsn;

    fn position(lsn: u64) -> Position {
        Position { timeline: 1, unit: Unit::transaction(Lsn(lsn)), index: 0 }
    }

    fn fact(lsn: u64, belongs: Belongs) -> Fact {
        Fact { position: position(lsn), belongs }
    }

    fn to(topic: &str) -> Belongs {
        Belongs::To(Arc::from(topic))
    }

    fn place(topic: &str, partition: i32, offset: i64) -> Place {
        Place { topic: Arc::from(topic), partition, offset }
    }

    /// Compares facts 10, 20 and 30 of topic t with records there: position, partition, offset.
    fn compared(records: &[(u64, i32, i64)]) -> Vec<String> {
        let facts = [10, 20, 30].map(|lsn| fact(lsn, to("t")));
        let mut comparison = Comparison::new(facts, None);
        assert_eq!(comparison.topics(), [Arc::from("t")]);
        for (lsn, partition, offset) in records {
            comparison.found(position(*lsn), place("t", *partition, *offset));
        }
        let has_all = comparison.has_all();
        let outcome = comparison.outcome();
        assert_eq!(has_all, !outcome.findings.iter().any(|it| matches!(it, Finding::Missing(_))));
        outcome.findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_there_once_and_in_order_is_well() {
        assert_eq!(compared(&[(10, 0, 5), (30, 0, 6), (20, 1, 9)]), <[&str; 0]>::default());
        let outside = [(5, 0, 1), (10, 0, 5), (20, 0, 6), (30, 0, 7), (40, 0, 8)];
        assert_eq!(compared(&outside), <[&str; 0]>::default(), "others than those looked at");
    }

    #[test]
    fn each_thing_that_is_wrong_has_its_name_and_place() {
        assert_eq!(
            compared(&[(10, 0, 5), (30, 0, 6)]),
            ["missing 00000001.0000000000000014.1.00000000 lsn 0/14 in t"]
        );
        assert_eq!(
            compared(&[(10, 0, 5), (20, 0, 6), (10, 0, 7), (30, 0, 8)]),
            ["repeated 00000001.000000000000000a.1.00000000 at t/0@7"]
        );
        assert_eq!(
            compared(&[(20, 0, 5), (10, 0, 6), (30, 0, 7)]),
            ["out of order 00000001.000000000000000a.1.00000000 at t/0@6"]
        );
        assert_eq!(
            compared(&[(10, 0, 5), (15, 0, 6), (20, 0, 7), (30, 0, 8)]),
            ["unknown 00000001.000000000000000f.1.00000000 at t/0@6"]
        );
    }

    #[test]
    fn what_cannot_be_published_is_looked_for_among_the_dead_letters() {
        let unreadable = || Belongs::Nowhere("its envelope cannot be read".to_owned());
        let facts = [
            fact(10, unreadable()),
            fact(20, Belongs::Skipped),
            fact(30, unreadable()),
            fact(40, to("t")),
        ];
        let mut comparison = Comparison::new(facts, Some(Arc::from("dead")));
        assert_eq!(comparison.topics(), [Arc::from("dead"), Arc::from("t")]);
        comparison.found(position(10), place("dead", 0, 0));
        // Too large for its topic, which only a broker can tell.
        comparison.found(position(40), place("dead", 0, 1));
        let outcome = comparison.outcome();
        assert_eq!((outcome.facts, outcome.dead_letters, outcome.skipped), (4, 2, 1));
        assert_eq!(
            outcome.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["missing 00000001.000000000000001e.1.00000000 lsn 0/1E: its envelope cannot be read"]
        );
        assert_eq!(
            outcome.summary(),
            "4 facts: 1 missing, 0 repeated, 0 out of order, 0 unknown; 2 are dead letters, 1 were skipped"
        );
    }
}
