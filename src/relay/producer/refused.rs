//! Batches that Kafka refuses for good: the policy of their topic decides what becomes of them.

use super::{Producer, Route};
use crate::relay::batch::{Batch, OpenBatch};
use crate::relay::error_code;
use crate::relay::event::{AbortReason, Event, GivenUp};
use crate::relay::ledger::Ledger;
use crate::relay::poison::{self, Cause, Poison, Policy};
use crate::relay::position::Position;
use crate::relay::route;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

impl Producer {
    /// The oldest batch of the partition is refused: not appended, and no retry helps by itself.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        at: usize,
        cause: Cause,
        error: &str,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let Some(topic) = self.topics.get(partition.topic).map(|topic| Arc::clone(&topic.name))
        else {
            return;
        };
        let len = partition.first_len();
        let is_dead_letter_topic =
            self.settings.policies.dead_letter_topic.as_deref() == Some(&*topic);
        if is_dead_letter_topic
            && cause == Cause::TooLarge
            && let Some(cut) = partition.head().and_then(poison::cut_in_half)
        {
            let grown = cut.plain_len();
            partition.replace_head(cut);
            self.unsettled_bytes = self.unsettled_bytes + grown - len;
            return;
        }
        let reason = match cause {
            Cause::TooLarge => {
                format!(
                    "{error}: one record of {len} bytes is over the topic's limit; raise max.message.bytes of \
                     topic {topic}"
                )
            }
            Cause::NotAuthorized => {
                format!("{error}: this client may not write to the topic; give it the right")
            }
            Cause::Rejected if error == error_code::name(error_code::INVALID_TIMESTAMP) => format!(
                "{error}: the record's time is further from the broker's clock than \
                 message.timestamp.before.max.ms or message.timestamp.after.max.ms of topic {topic} allows; \
                 raise them, or set KAFKA_TIMESTAMP=publish"
            ),
            Cause::Rejected => format!(
                "{error}: the broker takes the topic's other records, and not this one (without a key, to a \
                 compacted topic? with a timestamp that it does not allow?); its log says more"
            ),
            _ => error.to_owned(),
        };
        if let Err(hindrance) = self.give_up(now, at, cause, &reason, ledger, events) {
            let reason = match hindrance {
                Hindrance::Halt => reason,
                Hindrance::Wait => return self.retry(now, at, &reason, false, events),
                Hindrance::NoTopic(why) => format!("{reason}; {why}"),
            };
            self.retry(now, at, &reason, true, events);
        }
    }

    /// The partition's topic is not there any more.
    pub(super) fn give_up_missing(
        &mut self,
        now: Instant,
        at: usize,
        reason: &str,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) {
        let missing = |producer: &Self| {
            let partition = producer.partitions.get(at)?;
            partition.head()?;
            producer.topics.get(partition.topic)?.missing(now, true)
        };
        while missing(self).is_some() {
            if self.give_up(now, at, Cause::TopicMissing, reason, ledger, events).is_err() {
                break;
            }
        }
    }

    /// Takes the oldest batch, of which nothing is in flight, off the partition as its policy says.
    fn give_up(
        &mut self,
        now: Instant,
        at: usize,
        cause: Cause,
        reason: &str,
        ledger: &mut Ledger,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Hindrance> {
        let Some(partition) = self.partitions.get(at) else { return Ok(()) };
        let Some(topic) = self.topics.get(partition.topic).map(|topic| topic.name.to_string())
        else {
            return Ok(());
        };
        let (index, attempts) = (partition.index, partition.attempts.saturating_add(1));
        let policy = self.settings.policies.of(Some(&topic));
        let dead_letters = match policy {
            Policy::Halt => return Err(Hindrance::Halt),
            Policy::Skip => None,
            Policy::DeadLetter => Some(self.dead_letters(now)?),
        };
        let poison = Poison::new(cause, reason.to_owned(), Some(topic), attempts);
        let Some(partition) = self.partitions.get_mut(at) else { return Ok(()) };
        let letters = match (&dead_letters, partition.head()) {
            (Some(partitions), Some(batch)) => {
                let letters = letters(batch, partitions.len(), &poison);
                letters
                    .ok_or_else(|| Hindrance::NoTopic("its records cannot be read".to_owned()))?
            }
            _ => BTreeMap::new(),
        };
        let Some(given_up) = partition.give_up() else { return Ok(()) };
        partition.trouble = None;
        let position = given_up.batch.first();
        let facts = usize::try_from(given_up.batch.records()).unwrap_or(0);
        match dead_letters {
            None => self.unsettled_facts -= facts,
            Some(partitions) => {
                for (to, (first, batch)) in letters {
                    let Some(&to) = partitions.get(to as usize) else { continue };
                    let Some(partition) = self.partitions.get_mut(to) else { continue };
                    let place = match given_up.lot.generation == self.lot.generation {
                        true => ledger.batch_divided(given_up.place, first.unit),
                        false => given_up.place,
                    };
                    let batch = batch.seal();
                    self.unsettled_bytes += batch.plain_len();
                    partition.enqueue(batch, place, given_up.lot, self.lot);
                    self.wait(to);
                }
            }
        }
        self.unsettled_bytes -= given_up.batch.plain_len();
        if given_up.lot.generation == self.lot.generation {
            ledger.batch_settled(given_up.place);
        }
        let cause = "a batch before them was given up";
        if self.transactional.is_none() {
            let repeated = self.start_over(now, at, false);
            if repeated > 0 {
                self.sequences_lost(at, cause, repeated, events);
            }
        } else if given_up.batch.stamp().is_some() {
            // In the sequences there is a hole, and their next epoch is the coordinator's to give.
            let cause = "a batch of it was given up";
            self.transaction_over(now, AbortReason::GivenUp, cause, events);
        }
        // What is behind it may have been stored while it was ambiguous.
        self.settle(now, at, ledger, events);
        self.wait(at);
        events.push_back(Event::GivenUp(GivenUp {
            policy,
            poison,
            partition: Some(index),
            position,
            facts,
            bytes: given_up.batch.plain_len(),
        }));
        Ok(())
    }

    /// Where the dead-letter topic's partitions are.
    fn dead_letters(&mut self, now: Instant) -> Result<Vec<usize>, Hindrance> {
        let Some(name) = self.settings.policies.dead_letter_topic.clone() else {
            return Err(Hindrance::NoTopic("no dead-letter topic is configured".to_owned()));
        };
        match self.route(now, &name) {
            Route::Ready(topic, _) => Ok(self.partitions_of(topic).to_vec()),
            Route::Wait => Err(Hindrance::Wait),
            Route::Missing(code) => Err(Hindrance::NoTopic(format!(
                "the dead-letter topic {name} cannot be used ({}); create it, or allow this client to \
                 write to it",
                error_code::name(code)
            ))),
        }
    }
}

/// A batch's records as dead letters, by partition, each with the position of its first. None if they cannot
/// all be read.
fn letters(
    batch: &Batch,
    partitions: usize,
    poison: &Poison,
) -> Option<BTreeMap<u32, (Position, OpenBatch)>> {
    let count = u32::try_from(partitions).unwrap_or(u32::MAX);
    let plain = batch.plain()?;
    let mut letters = BTreeMap::new();
    let mut records = 0;
    for record in plain.iter() {
        let to = route::partition(record.key.unwrap_or_default(), count);
        let first = record.position().unwrap_or_else(|| batch.first());
        let (_, open) = letters.entry(to).or_insert_with(|| {
            let open = OpenBatch::new(first, batch.compression());
            (first, open.committed_as(batch.committed()))
        });
        poison::dead_letter(&record, poison, open);
        records += 1;
    }
    (records == batch.records()).then_some(letters)
}

/// Why a batch is not given up.
enum Hindrance {
    /// The policy says so.
    Halt,
    /// The dead-letter topic is being asked for.
    Wait,
    /// There is nowhere to put it: why.
    NoTopic(String),
}
