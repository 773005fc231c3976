//! How long the oldest fact that is not published has waited, and how that is known. Pure.
//!
//! Only the log has the times of commits, and a slot is read at the price of reading it. So what costs nothing comes
//! first:
//!
//! ```text
//!  the confirmed position is the log's end    nothing waits
//!  somebody has read the log                  the commit of the first fact in it
//!  the relay here says how long               the commit of the oldest that it has not settled
//!  the log was that long when we looked       whatever waits is younger than that look
//!  the last checkpoint began there            whatever waits is younger than the checkpoint
//! ```

use crate::relay::position::Class;
use factlib_protocol::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// So many looks are remembered; of more every second one.
const LOOKS_MAX: usize = 1024;

/// How long the oldest fact has waited that is not published.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Lag {
    pub(super) seconds: f64,
    pub(super) is: Is,
    pub(super) by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Is {
    Exact,
    /// Or less, or there is none.
    AtMost,
    AtLeast,
}

/// How it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum By {
    /// Everything is confirmed.
    Position,
    /// The log was read.
    Log,
    /// The relay says so.
    Relay,
    /// The log was looked at before.
    Samples,
    Checkpoint,
}

/// What is known of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// The server's clock, in seconds since 1970.
    pub(super) now: f64,
    /// Where the slot stands.
    pub(super) confirmed: Lsn,
    /// What would have to be confirmed for nothing to be behind.
    pub(super) wanted: Lsn,
    pub(super) first: Option<First>,
    /// Seconds.
    pub(super) relay: Option<f64>,
    /// The log ended at the confirmed position or before it at this time.
    pub(super) looked: Option<f64>,
    pub(super) checkpoint: Option<Checkpoint>,
}

impl Known {
    /// The best that follows.
    pub(super) fn lag(&self) -> Option<Lag> {
        let since = |at: f64, is, by| Lag { seconds: (self.now - at).max(0.0), is, by };
        if self.confirmed >= self.wanted {
            return Some(Lag { seconds: 0.0, is: Is::Exact, by: By::Position });
        }
        match self.first {
            Some(First::Nothing) => {
                return Some(Lag { seconds: 0.0, is: Is::Exact, by: By::Log });
            }
            Some(First::Fact { committed: Some(at), is_first: true }) => {
                return Some(since(at, Is::Exact, By::Log));
            }
            // What lies before it in the log was committed before it.
            Some(First::Fact { committed: Some(at), is_first: false }) => {
                return Some(since(at, Is::AtLeast, By::Log));
            }
            Some(First::Fact { committed: None, .. }) | None => {}
        }
        if let Some(seconds) = self.relay {
            return Some(Lag { seconds, is: Is::Exact, by: By::Relay });
        }
        let looked = self.looked.map(|at| since(at, Is::AtMost, By::Samples));
        let checkpoint = self.checkpoint.filter(|checkpoint| checkpoint.redo <= self.confirmed);
        let checkpoint = checkpoint.map(|known| since(known.seconds, Is::AtMost, By::Checkpoint));
        looked.into_iter().chain(checkpoint).min_by(|a, b| a.seconds.total_cmp(&b.seconds))
    }
}

/// The first fact in the log behind the confirmed position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum First {
    /// There is none.
    Nothing,
    Fact {
        /// When the first of which that is known was committed, in seconds since 1970.
        committed: Option<f64>,
        /// That one is the first of all.
        is_first: bool,
    },
}

impl First {
    /// With one more fact, in the log's order. The time of a message outside of a transaction is when it was sent.
    pub(super) fn with(self, class: Class, timestamp_ms: i64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "exact until the year 287396")]
        let at = Some(timestamp_ms as f64 / 1000.0).filter(|_| class == Class::Transaction);
        match self {
            Self::Nothing => Self::Fact { committed: at, is_first: at.is_some() },
            Self::Fact { committed: None, .. } => Self::Fact { committed: at, is_first: false },
            known => known,
        }
    }

    /// More of the log says nothing new.
    pub(super) fn is_known(self) -> bool {
        matches!(self, Self::Fact { committed: Some(_), .. })
    }
}

/// The server's last checkpoint: where the log ended when it began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Checkpoint {
    pub(super) redo: Lsn,
    /// Seconds since 1970.
    pub(super) seconds: f64,
}

/// Where the log ended, and when, both as the server says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Look {
    pub(super) end: Lsn,
    /// Seconds since 1970.
    pub(super) seconds: f64,
}

/// What was seen of the log's end before.
#[derive(Debug)]
pub(super) struct Looks {
    /// With their numbers.
    kept: VecDeque<(u64, Look)>,
    next: u64,
    /// Of so many looks one is kept, beside the last.
    every: u64,
}

impl Looks {
    pub(super) fn new() -> Self {
        Self { kept: VecDeque::new(), next: 0, every: 1 }
    }

    pub(super) fn add(&mut self, look: Look) {
        if let Some((number, last)) = self.kept.back() {
            // Another server, or one that was restored.
            if last.end > look.end || last.seconds > look.seconds {
                *self = Self::new();
            } else if number % self.every != 0 {
                self.kept.pop_back();
            }
        }
        self.kept.push_back((self.next, look));
        self.next += 1;
        if self.kept.len() > LOOKS_MAX {
            self.every *= 2;
            self.kept.retain(|(number, _)| number % self.every == 0);
        }
    }

    /// When the log last ended at `confirmed` or before. What was looked at before that is of no more use, because
    /// what is confirmed stays so.
    pub(super) fn passed(&mut self, confirmed: Lsn) -> Option<f64> {
        let passed = self.kept.iter().rposition(|(_, look)| look.end <= confirmed)?;
        self.kept.drain(..passed);
        self.kept.front().map(|(_, look)| look.seconds)
    }
}

/// What `/status.json` of a relay says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Told {
    health: Stands,
    lag_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Stands {
    slot: String,
    state: String,
    confirmed_lsn: Option<String>,
}

impl Told {
    /// How long the oldest fact has waited, if this is the relay of `slot` and knows. The slot was confirmed up to
    /// `confirmed` before it was asked, and the log ended at `end` after that: another cluster's relay would say
    /// something else, and so would one that has not noticed that another has the slot.
    pub(super) fn lag(&self, slot: &str, confirmed: Lsn, end: Lsn) -> Option<f64> {
        let Stands { slot: theirs, state, confirmed_lsn } = &self.health;
        let at: Lsn = confirmed_lsn.as_deref()?.parse().ok()?;
        let reads = matches!(
            state.as_str(),
            "streaming" | "stalled" | "halted" | "connecting" | "stopping"
        );
        let is_ours = theirs == slot && reads && confirmed <= at && at <= end;
        // If it holds nothing, all that waits is what it has not read, of which it knows nothing.
        (is_ours && self.lag_seconds > 0.0).then_some(self.lag_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known { now: 1000.0, confirmed: Lsn(50), wanted: Lsn(100), ..Known::default() }
    }

    fn lag(known: &Known) -> Option<(f64, Is, By)> {
        known.lag().map(|lag| (lag.seconds, lag.is, lag.by))
    }

    fn fact(committed: Option<f64>, is_first: bool) -> Option<First> {
        Some(First::Fact { committed, is_first })
    }

    #[test]
    fn what_is_exact_comes_before_what_is_not() {
        assert_eq!(lag(&known()), None);
        let bounded = Known {
            looked: Some(990.0),
            checkpoint: Some(Checkpoint { redo: Lsn(50), seconds: 900.0 }),
            ..known()
        };
        assert_eq!(lag(&bounded), Some((10.0, Is::AtMost, By::Samples)));
        let by_relay = Known { relay: Some(0.25), ..bounded };
        assert_eq!(lag(&by_relay), Some((0.25, Is::Exact, By::Relay)));
        let by_log = Known { first: fact(Some(400.0), true), ..by_relay };
        assert_eq!(lag(&by_log), Some((600.0, Is::Exact, By::Log)));
        let nothing = Known { first: Some(First::Nothing), ..by_log.clone() };
        assert_eq!(lag(&nothing), Some((0.0, Is::Exact, By::Log)));
        let all = Known { confirmed: Lsn(100), ..by_log };
        assert_eq!(lag(&all), Some((0.0, Is::Exact, By::Position)));
    }

    #[test]
    fn a_checkpoint_says_nothing_of_what_was_written_before_it() {
        let at = |redo| Known {
            checkpoint: Some(Checkpoint { redo: Lsn(redo), seconds: 900.0 }),
            ..known()
        };
        assert_eq!(lag(&at(51)), None);
        assert_eq!(lag(&at(50)), Some((100.0, Is::AtMost, By::Checkpoint)));
        let both = Known { looked: Some(100.0), ..at(50) };
        assert_eq!(lag(&both), Some((100.0, Is::AtMost, By::Checkpoint)), "the closer one");
    }

    #[test]
    fn a_message_outside_of_a_transaction_has_no_time_and_is_older_than_the_next_that_has() {
        let message = First::Nothing.with(Class::Message, 999_000);
        assert!(!message.is_known());
        let known = Known { first: Some(message), looked: Some(990.0), ..known() };
        assert_eq!(lag(&known), Some((10.0, Is::AtMost, By::Samples)));
        let later = message.with(Class::Transaction, 400_500).with(Class::Transaction, 1);
        let known = Known { first: Some(later), ..known };
        assert_eq!(lag(&known), Some((599.5, Is::AtLeast, By::Log)));
        let first = First::Nothing.with(Class::Transaction, 400_500).with(Class::Message, 7);
        assert_eq!(Some(first), fact(Some(400.5), true));
    }

    #[test]
    fn a_clock_that_went_back_makes_no_age_below_nothing() {
        let known = Known { first: fact(Some(1000.5), true), ..known() };
        assert_eq!(lag(&known), Some((0.0, Is::Exact, By::Log)));
    }

    #[test]
    fn what_was_looked_at_bounds_what_waits() {
        let mut looks = Looks::new();
        assert_eq!(looks.passed(Lsn(10)), None);
        for (end, seconds) in [(10, 1.0), (20, 2.0), (20, 3.0), (30, 4.0)] {
            looks.add(Look { end: Lsn(end), seconds });
        }
        assert_eq!(looks.passed(Lsn(9)), None);
        assert_eq!(looks.passed(Lsn(25)), Some(3.0));
        assert_eq!(looks.passed(Lsn(25)), Some(3.0));
        assert_eq!(looks.kept.len(), 2, "what is of no more use is forgotten");
        // The log went back: another server.
        looks.add(Look { end: Lsn(5), seconds: 5.0 });
        assert_eq!((looks.passed(Lsn(25)), looks.kept.len()), (Some(5.0), 1));
    }

    #[test]
    fn many_looks_take_no_more_memory_and_stay_true() {
        let mut looks = Looks::new();
        for n in 0..10_000_u32 {
            looks.add(Look { end: Lsn(u64::from(n)), seconds: f64::from(n) });
        }
        assert!(looks.kept.len() <= LOOKS_MAX);
        let passed = looks.passed(Lsn(5000)).unwrap();
        assert!(passed <= 5000.0 && passed > 4980.0, "{passed}");
        assert_eq!(looks.passed(Lsn(9_999)), Some(9_999.0), "the last is always kept");
    }

    #[test]
    fn a_relay_is_believed_if_it_is_this_slots_and_knows() {
        let told = |json: serde_json::Value| serde_json::from_value::<Told>(json).unwrap();
        let says = |slot: &str, state: &str, at: &str, seconds: f64| {
            told(serde_json::json!({
                "health": { "slot": slot, "state": state, "confirmed_lsn": at, "more": 1 },
                "lag_seconds": seconds, "lag_bytes": 7,
            }))
            .lag("ours", Lsn(0x10), Lsn(0x30))
        };
        assert_eq!(says("ours", "streaming", "0/20", 1.5), Some(1.5));
        assert_eq!(says("ours", "stalled", "0/10", 1.5), Some(1.5));
        assert_eq!(says("ours", "streaming", "0/30", 0.0), None, "what it has not read may wait");
        assert_eq!(says("theirs", "streaming", "0/20", 1.5), None);
        for state in ["waiting_for_slot", "starting", "failed"] {
            assert_eq!(says("ours", state, "0/20", 1.5), None, "{state}");
        }
        for at in ["0/F", "0/31"] {
            assert_eq!(says("ours", "streaming", at, 1.5), None, "{at}: another cluster's");
        }
        let silent = serde_json::json!({
            "health": { "slot": "ours", "state": "connecting", "confirmed_lsn": null },
            "lag_seconds": 1.0,
        });
        assert_eq!(told(silent).lag("ours", Lsn(0), Lsn(1)), None);
    }
}
