//! What is true: which facts were committed, what Kafka has of them, and what must hold between the two.

use crate::server::{Server, Unit};
use std::collections::{HashMap, HashSet};

/// What becomes of a fact by its nature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    Good,
    /// Its envelope cannot be read.
    Junk,
    /// No broker takes it.
    Large,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    RolledBack,
    Committed,
    /// It was committed and is not any more: the primary that had it is gone, or somebody moved the slot past it.
    Gone,
}

#[derive(Debug)]
pub(crate) struct Fact {
    pub(crate) topic: &'static str,
    pub(crate) key: String,
    pub(crate) content: Vec<u8>,
    pub(crate) nature: Nature,
    pub(crate) state: State,
    /// The fact of the same key and topic that was committed before it.
    earlier: Option<u32>,
    /// Its position, as the first record of it said.
    position: Option<String>,
    /// In logs, on all replicas or not.
    copies: u32,
    /// On all replicas.
    safe: u32,
    /// It was on all replicas of a topic that is deleted.
    buried: bool,
    skipped: bool,
    /// So often consumers of committed records see it.
    seen: u32,
}

/// A record, as far as promises are about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) fact: u32,
    pub(crate) position: String,
}

#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) trace: bool,
    pub(crate) facts: Vec<Fact>,
    /// Something happened after which facts may be stored twice: the first of it.
    pub(crate) excuse: Option<&'static str>,
    pub(crate) repeats: usize,
    /// A topic has grown. A relay that begins behind a crash cannot know which facts were on their way to where:
    /// in a partition they may come behind others.
    pub(crate) grown: bool,
    /// Facts go in transactions: what counts is what consumers of committed records see.
    pub(crate) exactly_once: bool,
    /// Units that go in several, by what their positions name.
    pub(crate) split: HashSet<(u64, bool)>,
    /// The position was gone, so that nobody can know what is there.
    pub(crate) position_lost: bool,
}

impl Truth {
    pub(crate) fn new_fact(&mut self, topic: &'static str, key: usize, nature: Nature) -> u32 {
        let id = u32::try_from(self.facts.len()).unwrap();
        let key = format!("k{key}");
        let kind = topic.split_once('.').unwrap().1;
        let content = match nature {
            Nature::Junk => format!("junk {id}"),
            Nature::Good | Nature::Large => {
                let payload = "p".repeat(if nature == Nature::Large { 3000 } else { 10 });
                format!(
                    r#"{{"id":"{id}","aggregate_type":"{kind}","aggregate_id":"{key}","payload":"{payload}"}}"#
                )
            }
        };
        self.facts.push(Fact {
            topic,
            key,
            content: content.into_bytes(),
            nature,
            state: State::Open,
            earlier: None,
            position: None,
            copies: 0,
            safe: 0,
            buried: false,
            skipped: false,
            seen: 0,
        });
        id
    }

    pub(crate) fn fact(&mut self, id: u32) -> &mut Fact {
        &mut self.facts[id as usize]
    }

    /// These units are the ones that are committed, in the order of their delivery.
    pub(crate) fn committed<'a>(&mut self, wal: impl Iterator<Item = &'a Unit>) {
        let mut last: HashMap<(&'static str, String), u32> = HashMap::new();
        for id in wal.flat_map(Unit::facts) {
            let fact = self.fact(id);
            if fact.state == State::Gone || fact.nature != Nature::Good {
                continue;
            }
            fact.earlier = last.insert((fact.topic, fact.key.clone()), id);
        }
    }

    /// A record comes into a log whose highest position is `highest`; if it is one of dead letters, there is
    /// none.
    pub(crate) fn appended(&mut self, record: &Stored, value: &[u8], highest: Option<&str>) {
        let Stored { fact: id, position } = record;
        if self.trace {
            eprintln!("  stored: fact {id} at {position}, in a log up to {highest:?}");
        }
        let (excuse, mixed) = (self.excuse, self.grown && self.excuse.is_some());
        let fact = self.fact(*id);
        assert!(
            matches!(fact.state, State::Committed | State::Gone),
            "fact {id} is stored and was never committed: {fact:?}"
        );
        let whole =
            if highest.is_some() { &fact.content[..] } else { &fact.content[..value.len()] };
        assert!(value == whole, "fact {id} is stored with another value");
        match &fact.position {
            Some(known) => assert_eq!(known, position, "a repeat of fact {id} is not the same"),
            None => fact.position = Some(position.clone()),
        }
        // What went with a deleted topic comes again in its place, or is a repeat of what nobody can see any more.
        let is_first = fact.copies == 0 && !(fact.buried && excuse.is_some());
        let (gone, earlier) = (fact.state == State::Gone, fact.earlier);
        if highest.is_none() {
            assert_ne!(fact.nature, Nature::Good, "fact {id} is good, and is a dead letter");
        }
        fact.copies += 1;
        if !is_first {
            self.repeats += 1;
            assert!(excuse.is_some(), "fact {id} is stored twice, and nothing happened");
        } else if let Some(highest) = highest
            && !gone
        {
            let in_order = &**position > highest || mixed;
            assert!(in_order, "fact {id} at {position} comes after {highest}");
            if let Some(earlier) = earlier {
                let Fact { copies, buried, .. } = self.facts[earlier as usize];
                assert!(copies > 0 || buried, "fact {id} comes before {earlier}");
            }
        }
    }

    /// A record of a transaction that is not ended comes into a log.
    pub(crate) fn pending(&mut self, record: &Stored, value: &[u8], is_dead_letter: bool) {
        let Stored { fact: id, position } = record;
        if self.trace {
            eprintln!("  pending: fact {id} at {position}");
        }
        let fact = self.fact(*id);
        assert!(
            matches!(fact.state, State::Committed | State::Gone),
            "fact {id} is produced and was never committed: {fact:?}"
        );
        let whole = if is_dead_letter { &fact.content[..value.len()] } else { &fact.content[..] };
        assert!(value == whole, "fact {id} is produced with another value");
        match &fact.position {
            Some(known) => assert_eq!(known, position, "a repeat of fact {id} is not the same"),
            None => fact.position = Some(position.clone()),
        }
        if is_dead_letter {
            assert_ne!(fact.nature, Nature::Good, "fact {id} is good, and is a dead letter");
        }
        fact.copies += 1;
    }

    /// Consumers of committed records will see it, in a log of which they saw up to `highest`.
    pub(crate) fn seen(&mut self, record: &Stored, highest: Option<&mut String>) {
        let Stored { fact: id, position } = record;
        let excused = self.position_lost;
        let fact = self.fact(*id);
        fact.seen += 1;
        assert!(fact.seen == 1 || excused, "fact {id} is seen twice");
        if let Some(highest) = highest {
            assert!(*position > *highest || excused, "fact {id} is seen behind {highest}");
            highest.clone_from(position);
        }
    }

    /// What consumers see of a unit is all or nothing.
    pub(crate) fn check_whole(&self, server: &Server) {
        for unit in &server.wal {
            if self.split.contains(&unit.name()) {
                continue;
            }
            let here = unit.facts().filter(|id| self.facts[*id as usize].state != State::Gone);
            let (mut seen, mut not) = (0, 0);
            for id in here {
                let fact = &self.facts[id as usize];
                seen += usize::from(fact.seen > 0);
                not += usize::from(fact.seen == 0 && !fact.skipped && !fact.buried);
            }
            assert!(seen == 0 || not == 0, "{unit:?} is seen in part");
        }
    }

    /// Of what is before a position all is seen, or will be.
    pub(crate) fn check_position(&self, server: &Server, offset: u64) {
        for unit in server.wal.iter().take_while(|unit| unit.end <= offset) {
            for id in unit.facts() {
                assert!(
                    self.is_done(id),
                    "fact {id} of {unit:?} is before the position, and not stored"
                );
            }
        }
    }

    /// A record is lost with the leader that had it, and nobody was told that it was stored.
    pub(crate) fn cut(&mut self, record: &Stored) {
        let fact = self.fact(record.fact);
        fact.copies -= 1;
    }

    /// A record goes with the topic that it is in.
    pub(crate) fn buried(&mut self, record: &Stored, safe: bool) {
        let fact = self.fact(record.fact);
        fact.copies -= 1;
        fact.buried |= safe;
    }

    pub(crate) fn replicated(&mut self, record: &Stored) {
        self.fact(record.fact).safe += 1;
    }

    pub(crate) fn skipped(&mut self, id: u32) {
        let fact = self.fact(id);
        assert_ne!(fact.nature, Nature::Good, "fact {id} is good, and is skipped");
        fact.skipped = true;
    }

    /// Nobody needs to do anything about it any more.
    pub(crate) fn is_done(&self, id: u32) -> bool {
        let fact = &self.facts[id as usize];
        let stored = if self.exactly_once { fact.seen > 0 || fact.buried } else { fact.safe > 0 };
        stored || fact.skipped || fact.state == State::Gone
    }

    /// Every unit that ends at or below `confirmed` is in Kafka for good.
    pub(crate) fn check_promise(&self, server: &Server, confirmed: u64) {
        for unit in server.wal.iter().take_while(|unit| unit.end <= confirmed) {
            for id in unit.facts() {
                assert!(self.is_done(id), "fact {id} of {unit:?} is confirmed and not stored");
            }
        }
    }

    /// Every fact that is committed is in Kafka.
    pub(crate) fn check_all(&self, server: &Server) {
        for id in server.wal.iter().flat_map(Unit::facts) {
            assert!(self.is_done(id), "fact {id} is lost");
        }
    }
}
