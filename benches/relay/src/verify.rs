//! Is what arrived what was emitted? Every run that counts is checked: no rule of delivery is off for a figure.

use crate::shape::{Shape, number_in};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use testkit::Record;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub records: usize,
    /// Different facts among them.
    pub facts: usize,
    /// Records whose position is not above the one before in its partition.
    pub out_of_order: usize,
    /// Records that are no fact, or not the bytes that were emitted.
    pub not_as_emitted: usize,
    /// Batches that were unreadable, or of which the sequence does not follow the one before; only a broker of ours
    /// sees these, Kafka judges for itself.
    pub bad_batches: usize,
}

impl Verdict {
    /// Every fact once, in order, to the byte.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn judge(&self, facts: usize) -> Result<(), String> {
        let right = Self { records: facts, facts, ..Self::default() };
        if *self == right {
            return Ok(());
        }
        Err(format!("of {facts} facts, what arrived is wrong: {self:?}"))
    }

    /// The same, and says so.
    ///
    /// # Panics
    ///
    /// When something is wrong: such a run has no figures.
    pub fn check(&self, facts: usize) {
        self.judge(facts).unwrap_or_else(|wrong| panic!("{wrong}"));
        println!("    checked: {facts} facts, each once, in order, equal to the byte");
    }

    /// The same, where repeats are allowed: behind a fault.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn judge_with_repeats(&self, facts: usize) -> Result<(), String> {
        match self.facts == facts && self.not_as_emitted == 0 && self.bad_batches == 0 {
            true => Ok(()),
            false => Err(format!("of {facts} facts, what arrived is wrong: {self:?}")),
        }
    }
}

/// Takes records partition by partition in the order of their offsets.
#[derive(Debug)]
pub struct Verifier {
    shape: Shape,
    seen: Vec<bool>,
    last: HashMap<(String, i32), Vec<u8>>,
    pub verdict: Verdict,
}

impl Verifier {
    pub fn new(shape: Shape) -> Self {
        let (last, verdict) = (HashMap::new(), Verdict::default());
        Self { shape, seen: vec![false; shape.facts], last, verdict }
    }

    pub fn record(&mut self, record: &Record) {
        self.verdict.records += 1;
        let number = number_in(record).filter(|number| *number < self.seen.len());
        let same = number.is_some_and(|number| {
            if !std::mem::replace(&mut self.seen[number], true) {
                self.verdict.facts += 1;
            }
            record.value.as_deref() == Some(self.shape.envelope(number).as_slice())
        });
        self.verdict.not_as_emitted += usize::from(!same);
        let position = record.header("factlib_position").unwrap_or_default().as_bytes();
        let place = (record.topic.to_string(), record.partition);
        match self.last.get_mut(&place) {
            Some(last) if position <= last.as_slice() => self.verdict.out_of_order += 1,
            Some(last) => position.clone_into(last),
            None => {
                self.last.insert(place, position.to_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const SHAPE: Shape = Shape {
        facts: 3,
        per_transaction: 1,
        payload: 8,
        partitions: 1,
        topics: 1,
        foreign_percent: 0,
    };

    fn record(number: usize, position: &str) -> Record {
        Record {
            topic: Arc::from("bench.order0"),
            partition: 0,
            offset: 0,
            timestamp_ms: 0,
            key: None,
            value: Some(SHAPE.envelope(number)),
            headers: vec![
                (
                    "event_id".to_owned(),
                    format!("00000000-0000-4000-8000-{number:012x}").into_bytes(),
                ),
                ("factlib_position".to_owned(), position.as_bytes().to_vec()),
            ],
        }
    }

    fn verdict(records: &[Record]) -> Verdict {
        let mut verifier = Verifier::new(SHAPE);
        records.iter().for_each(|record| verifier.record(record));
        verifier.verdict
    }

    #[test]
    fn each_fact_once_in_order_is_right() {
        let right = verdict(&[record(0, "a"), record(1, "b"), record(2, "c")]);
        assert_eq!(right.judge(3), Ok(()));
    }

    #[test]
    fn a_loss_a_repeat_a_swap_and_other_bytes_are_noticed() {
        let lost = verdict(&[record(0, "a"), record(1, "b")]);
        assert!(lost.judge(3).is_err() && lost.judge_with_repeats(3).is_err());
        let repeated = verdict(&[record(0, "a"), record(0, "a"), record(1, "b"), record(2, "c")]);
        assert!(repeated.judge(3).is_err());
        assert_eq!(repeated.judge_with_repeats(3), Ok(()));
        let swapped = verdict(&[record(1, "b"), record(0, "a"), record(2, "c")]);
        assert_eq!((swapped.out_of_order, swapped.judge(3).is_err()), (1, true));
        let mut other = record(2, "c");
        other.value = Some(b"other".to_vec());
        assert!(verdict(&[record(0, "a"), record(1, "b"), other]).judge(3).is_err());
        let nobody = record(7, "d");
        assert_eq!(verdict(&[nobody]).not_as_emitted, 1);
    }
}
