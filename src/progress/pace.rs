//! How fast something goes, over the last seconds. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Over how long it is measured.
const WINDOW: Duration = Duration::from_secs(5);

/// A longer time to go is no estimate any more.
const LEFT_MAX: f64 = 100.0 * 3600.0;

/// What was done when, in the last seconds.
#[derive(Debug, Default)]
pub(super) struct Pace(VecDeque<(Instant, u64, u64)>);

impl Pace {
    /// So much was done by then, and so many facts.
    pub(super) fn add(&mut self, at: Instant, done: u64, facts: u64) {
        self.0.push_back((at, done, facts));
        // One that is as old as the window stays, to measure from.
        while self.0.get(1).is_some_and(|(second, ..)| at.duration_since(*second) >= WINDOW) {
            self.0.pop_front();
        }
    }

    /// Facts a second.
    pub(super) fn facts(&self) -> f64 {
        self.rate(|(_, _, facts)| facts)
    }

    /// How long so much more takes, at this pace; nothing where it does not move, or hardly.
    pub(super) fn left(&self, more: u64) -> Option<humantime::FormattedDuration> {
        let rate = self.rate(|(_, done, _)| done);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = more as f64 / rate;
        // Also of no rate at all there is none.
        let seconds = Some(seconds).filter(|seconds| *seconds <= LEFT_MAX)?;
        Some(humantime::format_duration(Duration::from_secs(
            Duration::from_secs_f64(seconds.ceil()).as_secs(),
        )))
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn rate(&self, of: impl Fn((Instant, u64, u64)) -> u64) -> f64 {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else { return 0.0 };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        match seconds > 0.0 {
            true => of(*last).saturating_sub(of(*first)) as f64 / seconds,
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn begun() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let (mut pace, begun) = (Pace::default(), begun());
        assert_eq!(pace.facts(), 0.0);
        assert!(pace.left(1).is_none());
        for second in 0..=20 {
            let slow = second.min(10);
            let fast = (second - slow) * 10;
            pace.add(begun + Duration::from_secs(second), slow + fast, 0);
        }
        assert_eq!(pace.left(1000).unwrap().to_string(), "1m 40s");
        assert!(pace.0.len() <= 7, "{}", pace.0.len());
    }

    #[test]
    fn what_does_not_move_has_no_time_to_go() {
        let (mut pace, begun) = (Pace::default(), begun());
        pace.add(begun, 5, 7);
        pace.add(begun + Duration::from_secs(1), 5, 7);
        assert!(pace.left(1).is_none() && pace.left(0).is_none());
        pace.add(begun + Duration::from_secs(2), 6, 7);
        assert!(pace.left(u64::MAX).is_none(), "ages");
        // Counted back, as after a restart of a server from a backup.
        pace.add(begun + Duration::from_secs(3), 1, 0);
        assert_eq!(pace.facts(), 0.0);
    }
}
