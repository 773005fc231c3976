//! What the server says of our slot when it is asked, now and then.

use factlib_protocol::Lsn;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What the server says of the slot, and of what threatens it.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotFacts {
    /// When it was asked.
    pub at: Instant,
    /// The end of its flushed WAL; on a standby, of what it has received.
    pub wal_flushed: Lsn,
    /// `active`: a session has the slot.
    pub active: bool,
    /// `wal_status`: reserved, extended, unreserved or lost.
    pub wal_status: String,
    /// `confirmed_flush_lsn`.
    pub confirmed_flush: Lsn,
    /// How much WAL is kept because of the slot; none where it is lost.
    pub retained_bytes: Option<u64>,
    /// `safe_wal_size`: so much more WAL can be written before the slot may be lost; none where nothing limits
    /// it. Negative when it may be lost at the next checkpoint.
    pub safe_wal_bytes: Option<i64>,
    /// `invalidation_reason`, from PostgreSQL 17 on.
    pub invalidation_reason: Option<String>,
    /// How much of the flushed WAL our walsender has not read yet; none without one.
    pub unsent_bytes: Option<u64>,
    /// How long the oldest open transaction that has written has lasted, in seconds: nothing behind its begin is
    /// forgotten. None if we may not see others' (pg_monitor).
    pub oldest_transaction: Option<f64>,
    /// Other slots of the server.
    pub others: OtherSlots,
    /// How fast WAL is written, in bytes a second; none before it was asked twice.
    pub wal_rate: Option<f64>,
}

/// Other slots of the server, whoever's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OtherSlots {
    /// In use.
    pub active: u64,
    /// Not in use.
    pub inactive: u64,
    /// Lost: dead weight.
    pub lost: u64,
    /// The most WAL that one of them keeps.
    pub retained_bytes: u64,
}

impl SlotFacts {
    /// If the slot did not move and WAL went on as in the last minutes: when it may be lost.
    pub fn seconds_to_loss(&self) -> Option<f64> {
        let rate = self.wal_rate.filter(|rate| *rate > 0.0)?;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let safe = self.safe_wal_bytes?.max(0) as f64;
        Some(safe / rate)
    }
}

/// How long back WAL's rate is looked at.
const RATE_WINDOW: Duration = Duration::from_secs(300);

/// So many measurements are kept.
const MEASUREMENTS_MAX: usize = 300;

/// How fast WAL is written, over the last five minutes.
#[derive(Debug, Default)]
pub struct WalRate {
    measured: VecDeque<(Instant, Lsn)>,
}

impl WalRate {
    /// The rate in bytes a second, now that WAL ends at `end`.
    pub fn measure(&mut self, at: Instant, end: Lsn) -> Option<f64> {
        if self.measured.back().is_some_and(|(_, before)| *before > end) {
            // Another server.
            self.measured.clear();
        }
        let old = |(then, _): &(Instant, Lsn)| at.saturating_duration_since(*then) > RATE_WINDOW;
        while self.measured.front().is_some_and(old) && self.measured.len() > 1
            || self.measured.len() >= MEASUREMENTS_MAX
        {
            self.measured.pop_front();
        }
        let first = self.measured.front().copied();
        self.measured.push_back((at, end));
        let (then, before) = first?;
        let elapsed = at.saturating_duration_since(then).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let written = (end.0 - before.0) as f64;
        (elapsed > 0.0).then(|| written / elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minutes() {
        let mut rate = WalRate::default();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.measure(at(0), Lsn(1000)), None);
        assert_eq!(rate.measure(at(10), Lsn(2000)), Some(100.0));
        for seconds in (20..=1000).step_by(10) {
            rate.measure(at(seconds), Lsn(2000));
        }
        assert_eq!(rate.measure(at(1010), Lsn(2000)), Some(0.0));
        assert!(rate.measured.len() < 40, "{}", rate.measured.len());
        assert_eq!(rate.measure(at(1020), Lsn(7)), None, "another server");
    }
}
