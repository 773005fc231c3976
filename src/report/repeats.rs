//! Which of many like log lines are written, and how many are not: a thousand partitions that change their leader at
//! once, or facts that are skipped one by one, must not bury what else there is to read.

use crate::relay::event::Event;
use crate::relay::poison::Policy;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many lines of one kind about one topic are written in each [`WINDOW`].
const LINES_MAX: u32 = 10;

const WINDOW: Duration = Duration::from_secs(10);

/// So many topics are told apart; the lines of all others count together.
const TOPICS_MAX: usize = 100;

/// What makes lines alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    what: &'static str,
    topic: Option<Arc<str>>,
}

#[derive(Debug)]
struct Window {
    begun: Instant,
    written: u32,
    withheld: u64,
}

/// What was written of late.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    windows: HashMap<Kind, Window>,
}

impl Repeats {
    /// Whether the line of this event is written.
    pub(super) fn admit(&mut self, event: &Event, now: Instant) -> bool {
        let Some(mut kind) = kind(event) else { return true };
        if self.windows.len() >= TOPICS_MAX && !self.windows.contains_key(&kind) {
            kind.topic = None;
        }
        let window =
            self.windows.entry(kind).or_insert(Window { begun: now, written: 0, withheld: 0 });
        let admitted = window.written < LINES_MAX;
        match admitted {
            true => window.written += 1,
            false => window.withheld += 1,
        }
        admitted
    }

    /// Of windows that are over: what was withheld, about which topic, and how often. Wanted every second or so.
    pub(super) fn withheld(&mut self, now: Instant) -> Vec<(&'static str, Option<Arc<str>>, u64)> {
        let over = self.windows.extract_if(|_, window| now >= window.begun + WINDOW);
        let withheld = over.filter(|(_, window)| window.withheld > 0);
        withheld.map(|(kind, window)| (kind.what, kind.topic, window.withheld)).collect()
    }
}

/// None for what cannot come often.
fn kind(event: &Event) -> Option<Kind> {
    let (what, topic) = match event {
        Event::Away { .. } => ("not connected to PostgreSQL", None),
        Event::SlotInUse { .. } => ("waiting for the slot", None),
        Event::Throttled { .. } => ("throttled by quota", None),
        Event::PartitionBlocked { blocked, .. } => ("produce is repeated", Some(&blocked.topic)),
        Event::PartitionRecovered { topic, .. } => ("produce goes on", Some(topic)),
        Event::SequencesLost { topic, .. } => ("sequences begin anew", Some(topic)),
        Event::TopicMadeAnew { topic } => ("topic made anew", Some(topic)),
        Event::TopicCreated { .. } => ("topic created", None),
        Event::TopicNotCreated { .. } => ("topic not created", None),
        // Of what is skipped the log is the only trace.
        Event::GivenUp(given_up) if given_up.policy == Policy::DeadLetter => {
            let topic = given_up.poison.topic.as_deref().map(Arc::from);
            return Some(Kind { what: "dead letter", topic });
        }
        _ => return None,
    };
    Some(Kind { what, topic: topic.cloned() })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the start of a clock that only jumps")]
mod tests {
    use super::*;

    fn throttled() -> Event {
        Event::Throttled { broker: 1, throttle: Duration::from_millis(100) }
    }

    fn anew(topic: &str) -> Event {
        Event::TopicMadeAnew { topic: topic.into() }
    }

    #[test]
    fn of_many_like_lines_the_first_are_written_and_the_rest_are_counted() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let written = (0..500).filter(|_| repeats.admit(&throttled(), now)).count();
        assert_eq!(written, 10);
        assert!(repeats.admit(&anew("a"), now), "lines about something else are written");
        assert_eq!(repeats.withheld(now + WINDOW / 2), []);
        let later = now + WINDOW;
        assert_eq!(repeats.withheld(later), [("throttled by quota", None, 490)]);
        assert!(repeats.admit(&throttled(), later), "and then it begins again");
        assert_eq!(repeats.withheld(later + WINDOW), [], "one that was written is not counted");
    }

    #[test]
    fn lines_about_each_topic_count_by_themselves_up_to_a_limit() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let lines = |repeats: &mut Repeats, topic: &str| {
            (0..20).filter(|_| repeats.admit(&anew(topic), now)).count()
        };
        assert_eq!(lines(&mut repeats, "a"), 10);
        assert_eq!(lines(&mut repeats, "b"), 10);
        let all: usize = (0..1000).map(|nth| lines(&mut repeats, &format!("t{nth}"))).sum();
        assert_eq!(all, (TOPICS_MAX - 2 + 1) * 10);
        assert_eq!(repeats.windows.len(), TOPICS_MAX + 1);
    }

    #[test]
    fn what_changes_the_state_is_always_written() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let event = Event::ServerStopping { unsettled: 1 };
        assert!((0..100).all(|_| repeats.admit(&event, now)));
    }
}
