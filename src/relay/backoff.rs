//! Delays between attempts: doubling, capped, with jitter so that many relays do not come at once.

use std::time::Duration;

/// First delay of a series.
const FIRST: Duration = Duration::from_millis(50);

/// A source of jitter that needs no system: SplitMix64 over a seed.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// The same seed gives the same delays.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The delay before attempt `attempt` (the first retry is 1): between half of
    /// 50 ms x 2^(attempt - 1), at most `max`, and the whole of it.
    pub fn delay(&mut self, attempt: u32, max: Duration) -> Duration {
        let doublings = attempt.saturating_sub(1).min(16);
        let whole = FIRST.saturating_mul(1 << doublings).min(max);
        let share = (self.next() % 1024) as u32;
        whole / 2 + whole * share / 2048
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_are_spread() {
        let max = Duration::from_secs(5);
        let mut jitter = Jitter::new(7);
        let mut last = Duration::ZERO;
        for attempt in 1..1000 {
            let delay = jitter.delay(attempt, max);
            let whole = (FIRST * (1 << (attempt - 1).min(16))).min(max);
            assert!((whole / 2..=whole).contains(&delay), "{attempt}: {delay:?}");
            last = delay;
        }
        assert!(last >= max / 2);
        assert_ne!(Jitter::new(1).delay(9, max), Jitter::new(2).delay(9, max));
    }
}
