//! Model handlers in the place of Kafka: whatever is produced is taken, begun in order within an aggregate and while the
//! slot is the process's own, and answered once, whenever its handler has ended.

use crate::cluster::{DEAD, read};
use crate::model::Dice;
use crate::truth::{Stored, Truth};
use factlib::relay::error_code::NONE;
use factlib::relay::kafka::{Answer, PartitionAnswer, PartitionBatch};
use rskafka::protocol::record::{ControlBatchOrRecords, RecordBatch};
use rskafka::protocol::traits::ReadType;
use std::collections::HashMap;
use std::io::Cursor;
use std::time::Duration;

/// What is in order: the facts of an aggregate, or what is no fact.
type Line = Option<(&'static str, String)>;

/// So many handlers are under way at once.
const CONCURRENCY: usize = 4;

#[derive(Debug)]
struct Delivery {
    line: Line,
    stored: Stored,
    value: Vec<u8>,
    broker: i32,
    answer: PartitionAnswer,
    begun: bool,
}

/// What a process has taken and not answered, in the order in which it came.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    taken: Vec<Delivery>,
    /// The last position that came, of facts and of what is none.
    last: [Option<String>; 2],
    /// It is to stop: no handler is called any more.
    stopping: bool,
    pub(crate) gave_up: bool,
}

/// The highest position that was handled of each aggregate, by whatever process.
#[derive(Debug, Default)]
pub(crate) struct Handled(HashMap<(&'static str, String), String>);

impl Handled {
    fn record(&mut self, delivery: &Delivery, truth: &mut Truth) {
        let Delivery { line, stored, value, .. } = delivery;
        let highest = line.clone().map(|line| self.0.entry(line).or_default());
        truth.appended(stored, value, highest.as_ref().map(|highest| highest.as_str()));
        truth.replicated(stored);
        if let Some(highest) = highest
            && *highest < stored.position
        {
            highest.clone_from(&stored.position);
        }
    }
}

impl Desk {
    /// A batch of the engine's. It must be one fact, and come behind what came before.
    pub(crate) fn take(&mut self, broker: i32, batch: &PartitionBatch, truth: &mut Truth) {
        let decoded = RecordBatch::read(&mut Cursor::new(&batch.batch)).unwrap();
        let ControlBatchOrRecords::Records(records) = decoded.records else { panic!("control") };
        let [record] = records.as_slice() else { panic!("{} facts in one batch", records.len()) };
        let (stored, value) = read(record);
        let dead = &*batch.topic == DEAD;
        let last = self.last[usize::from(dead)].replace(stored.position.clone());
        assert!(
            last.as_ref().is_none_or(|last| *last < stored.position),
            "fact {} at {} comes to handlers behind {last:?}",
            stored.fact,
            stored.position
        );
        let fact = truth.fact(stored.fact);
        let line = (!dead).then(|| (fact.topic, fact.key.clone()));
        let answer = PartitionAnswer {
            topic: batch.topic.clone(),
            partition: batch.partition,
            base_sequence: batch.base_sequence,
            error: NONE,
            base_offset: -1,
        };
        let value = value.to_vec();
        self.taken.push(Delivery { line, stored, value, broker, answer, begun: false });
    }

    /// Calls the handler of a fact before which none of its aggregate waits; true if it did.
    pub(crate) fn begin(&mut self, dice: &mut Dice) -> bool {
        if self.stopping || self.running() >= CONCURRENCY || self.taken.is_empty() {
            return false;
        }
        let at = dice.below(self.taken.len());
        let line = &self.taken[at].line;
        let first = self.taken.iter().position(|delivery| delivery.line == *line).unwrap();
        !std::mem::replace(&mut self.taken[first].begun, true)
    }

    /// A handler ends, which one is up to the dice: with an error it is called again some time.
    pub(crate) fn end(
        &mut self,
        dice: &mut Dice,
        fails: bool,
        handled: &mut Handled,
        truth: &mut Truth,
    ) -> Option<Answer> {
        let under_way = self.taken.iter_mut().filter(|delivery| delivery.begun);
        let mut under_way: Vec<_> = under_way.collect();
        if under_way.is_empty() {
            return None;
        }
        let nth = dice.below(under_way.len());
        if fails {
            under_way[nth].begun = false;
            return None;
        }
        let begun = |(_, delivery): &(usize, &Delivery)| delivery.begun;
        let (at, _) = self.taken.iter().enumerate().filter(begun).nth(nth).unwrap();
        let delivery = self.taken.remove(at);
        handled.record(&delivery, truth);
        let Delivery { broker, answer, .. } = delivery;
        Some(Answer::Produced { broker, partitions: vec![answer], throttle: Duration::ZERO })
    }

    /// The process dies. What its handlers had done by then is done.
    pub(crate) fn die(&mut self, dice: &mut Dice, handled: &mut Handled, truth: &mut Truth) {
        for delivery in self.taken.drain(..).filter(|delivery| delivery.begun) {
            if dice.percent(50) {
                handled.record(&delivery, truth);
            }
        }
    }

    /// Behind a failover all that the new primary's slot does not know of comes again.
    pub(crate) fn begin_anew(&mut self) {
        self.last = [None, None];
    }

    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// It is to stop, and no handler is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.stopping && self.running() == 0
    }

    fn running(&self) -> usize {
        self.taken.iter().filter(|delivery| delivery.begun).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}
