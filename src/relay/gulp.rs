//! How long data gathers in the socket before it is read, while we are behind.
//!
//! A walsender sends each message by itself. As long as there is room in the receive buffer each becomes a segment,
//! which on one machine is paid by the walsender (measured: 5 to 6 us a fact of 256 bytes); once there is none they are
//! joined while they wait for it (2.6 to 3 us), and neither side waits for the other. So a gulp should take about
//! what the buffer holds. How much that is nobody says: the kernel counts what a segment takes in memory, too, so that
//! it holds the fewer bytes the smaller they are, and of large ones now half of what it can and now all. So it is tried:
//! a gulp of half of the largest of late found the buffer full, and the next one comes sooner; one that was smaller did not,
//! and the next one comes later, by more. Where gulps only follow the time that they were given this leads to longer times,
//! until the buffer is full.
//!
//! Each gulp decides, because a time that is too short, kept for a dozen gulps, leads to small segments that twice the time
//! does not make large again. (Tried and slower: to look for the time at which most bytes come in a second.)

use std::time::Duration;

/// A gulp of at least this many bytes means that we are behind.
const BEHIND_BYTES: usize = 32 * 1024;

/// The receive buffer holds so many at least, so that a smaller gulp never found it full.
const FULL_BYTES_MIN: usize = 112 * 1024;

/// Per cent of the largest gulp of late that full ones bring: the least was seen to bring 50, for ever, with facts of 1 KiB.
const FULL_PERCENT: usize = 48;

/// Of late: so many gulps, and as many before.
const LATE: u8 = 32;

/// Data gathers for no longer, from one gulp to the next.
const GATHER_MAX: Duration = Duration::from_millis(8);

/// What is begun with, and the most that small gulps lead to.
const GATHER_FIRST: Duration = Duration::from_millis(4);

/// Less is not waited for: timers count milliseconds, and whatever fills the buffer sooner (large facts do, at half a
/// GB/s) is there when the last gulp has been worked on.
const GATHER_MIN: Duration = Duration::from_millis(1);

/// So little makes it worthwhile to wait again after one gulp that found the buffer not full.
const GATHER_LEAST: Duration = Duration::from_micros(500);

/// What the last gulps say of the next one.
#[derive(Debug)]
pub(super) struct Gulp {
    gather: Duration,
    /// Of the gulp that has begun, if it took more than one read.
    bytes: usize,
    behind: bool,
    /// So many large ones since the last time that `most` was forgotten,
    gulps: u8,
    /// the most that one read of them brought,
    most: usize,
    /// and one of those before.
    most_before: usize,
}

impl Default for Gulp {
    fn default() -> Self {
        let (most, most_before) = (0, 0);
        Self { gather: GATHER_FIRST, bytes: 0, behind: false, gulps: 0, most, most_before }
    }
}

impl Gulp {
    /// A read brought so many bytes, and all there was if `drained`. What came before was committed a while ago if
    /// `lagging`.
    pub(super) fn received(&mut self, bytes: usize, drained: bool, lagging: bool) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.behind = self.bytes >= BEHIND_BYTES;
        // A read may find more than the buffer holds, because the sender goes on while it is emptied.
        self.most = self.most.max(bytes);
        if !drained {
            return;
        }
        let gulp = std::mem::take(&mut self.bytes);
        if self.behind {
            let full = self.most.max(self.most_before) / 100 * FULL_PERCENT;
            let was_full = gulp >= full.max(FULL_BYTES_MIN);
            let gather = if was_full { self.gather * 9 / 10 } else { self.gather * 11 / 5 };
            self.gather = gather.clamp(GATHER_LEAST, GATHER_MAX);
            self.gulps += 1;
            if self.gulps == LATE {
                (self.gulps, self.most, self.most_before) = (0, 0, self.most);
            }
        } else if lagging && self.gather < GATHER_FIRST {
            // Each message would be a segment and a read.
            self.gather = (self.gather * 11 / 5).min(GATHER_FIRST);
        }
    }

    /// True if the last one says that there is more to come.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// How long after this one the next should be.
    pub(super) fn gather(&self) -> Duration {
        if self.gather < GATHER_MIN { Duration::ZERO } else { self.gather }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gathering times in ms of a thousand gulps, but for the first hundred, from a buffer that holds so many bytes and
    /// gets so many in a millisecond.
    fn gather(holds: impl Fn(usize) -> usize, per_ms: usize) -> Vec<f64> {
        let mut gulp = Gulp::default();
        let mut times = Vec::new();
        for number in 0..1000 {
            let time = gulp.gather();
            times.push(time.as_secs_f64() * 1000.0);
            let came = per_ms * usize::try_from(time.as_micros()).unwrap_or(0) / 1000;
            gulp.received(came.min(holds(number)), true, true);
        }
        times.split_off(100)
    }

    fn mean(times: &[f64]) -> f64 {
        times.iter().sum::<f64>() / times.len() as f64
    }

    #[test]
    fn data_gathers_until_the_buffer_is_about_full() {
        for (holds, per_ms) in [(512, 128), (512, 256), (1024, 256), (256, 128), (2048, 1024)] {
            let times = gather(|_| holds * 1024, per_ms * 1024);
            let full = holds as f64 / per_ms as f64;
            assert!(
                (0.6..1.0).contains(&(mean(&times) / full)),
                "{holds} KiB at {per_ms} a ms: {times:?}"
            );
        }
    }

    #[test]
    fn a_buffer_that_is_never_full_waits_for_milliseconds() {
        let times = gather(|_| usize::MAX, 64 * 1024);
        assert!(mean(&times) > 4.0, "{times:?}");
    }

    #[test]
    fn full_buffers_that_bring_now_less_and_now_more_for_ever_are_full() {
        // As seen, with facts of 1 KiB, at 8 ms from one to the next.
        for seen in [
            &[519_874, 433_152, 433_152, 381_863, 392_898, 392_898][..],
            &[509, 317, 471, 255, 255, 255, 508, 317, 317, 317, 317, 461].map(|kib| kib * 1024),
        ] {
            let times = gather(|number| seen[number % seen.len()], 256 * 1024);
            assert!((0.9..2.2).contains(&mean(&times)), "{times:?}");
        }
    }

    #[test]
    fn a_read_of_more_than_the_buffer_is_forgotten() {
        let times = gather(|number| if number == 0 { 2048 } else { 512 } * 1024, 256 * 1024);
        assert!((1.0..2.0).contains(&mean(&times)), "{times:?}");
    }

    #[test]
    fn a_buffer_that_is_full_at_once_is_read_at_once() {
        let mut gulp = Gulp::default();
        for _ in 0..100 {
            gulp.received(512 * 1024, true, true);
        }
        assert_eq!(gulp.gather(), Duration::ZERO);
        gulp.received(1024, true, true);
        assert!(gulp.gather() >= GATHER_MIN, "it waits again once little comes");
    }

    #[test]
    fn small_reads_are_no_gulps() {
        let mut gulp = Gulp::default();
        gulp.received(BEHIND_BYTES, true, false);
        assert!(gulp.is_behind());
        gulp.received(BEHIND_BYTES - 1, true, false);
        assert!(!gulp.is_behind());
        let gather = gulp.gather();
        gulp.received(100, true, false);
        assert_eq!(gulp.gather(), gather);
    }

    #[test]
    fn a_gulp_of_several_reads_is_one() {
        let mut gulp = Gulp::default();
        gulp.received(BEHIND_BYTES, false, false);
        gulp.received(100, true, false);
        assert!(gulp.is_behind(), "the rest of a large gulp is small");
    }
}
