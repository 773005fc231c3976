//! Dice, and what a broker's partition does with the sequences of idempotent producers, as read in Apache Kafka
//! 4.3.1 (`ProducerAppendInfo.checkSequence`, `ProducerStateEntry`). The tests of the engine and of the
//! producer stand on it; a test against a real broker checks that it tells the truth.

use std::collections::{HashMap, VecDeque};

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub(crate) fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }
}

/// So many batches of a producer are remembered (`ProducerStateEntry.NUM_BATCHES_TO_RETAIN`).
const BATCHES_RETAINED: usize = 5;

const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
const INVALID_PRODUCER_EPOCH: i16 = 47;

/// What becomes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Appended,
    /// It is there already.
    Repeated,
    Refused(i16),
}

/// What a partition knows of its producers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Producers(HashMap<i64, Producer>);

#[derive(Debug, Clone)]
struct Producer {
    epoch: i16,
    /// First and last sequence of its last batches.
    batches: VecDeque<(i32, i32)>,
}

impl Producers {
    /// The marker of a transaction arrives: nothing of an earlier epoch is taken any more.
    #[allow(dead_code, reason = "the producer alone has no transactions")]
    pub(crate) fn marked(&mut self, id: i64, epoch: i16) {
        let new = Producer { epoch, batches: VecDeque::new() };
        let known = self.0.entry(id).or_insert_with(|| new.clone());
        if known.epoch < epoch {
            *known = new;
        }
    }

    /// A batch of `count` records arrives. No sequence comes near to starting over in a test.
    pub(crate) fn arrive(&mut self, id: i64, epoch: i16, base: i32, count: i32) -> Fate {
        let batch = (base, base + count - 1);
        let Some(known) = self.0.get_mut(&id) else {
            // Any sequence will do from a producer that is not known.
            self.0.insert(id, Producer { epoch, batches: VecDeque::from([batch]) });
            return Fate::Appended;
        };
        if epoch < known.epoch {
            return Fate::Refused(INVALID_PRODUCER_EPOCH);
        }
        if epoch > known.epoch {
            if base != 0 {
                return Fate::Refused(OUT_OF_ORDER_SEQUENCE_NUMBER);
            }
            *known = Producer { epoch, batches: VecDeque::from([batch]) };
            return Fate::Appended;
        }
        if known.batches.contains(&batch) {
            return Fate::Repeated;
        }
        if known.batches.back().is_some_and(|(_, last)| base != last + 1) {
            return Fate::Refused(OUT_OF_ORDER_SEQUENCE_NUMBER);
        }
        known.batches.push_back(batch);
        if known.batches.len() > BATCHES_RETAINED {
            known.batches.pop_front();
        }
        Fate::Appended
    }
}
