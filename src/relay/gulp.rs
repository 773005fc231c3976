//! How long data gathers in the socket before it is read, while we are behind.
//!
//! A walsender sends each message by itself. As long as there is room in the receive buffer each becomes a segment,
//! which on one machine is paid by the walsender (measured: 5 to 6 us a fact of 256 bytes); once there is none they are
//! joined while they wait for it (2.6 to 3 us), and neither side waits for the other. So a gulp should take about
//! what the buffer holds. How much that is nobody says: the kernel counts what a segment takes in memory, too, so that
//! it holds the fewer bytes the smaller they are. So it is tried: a gulp about as large as the largest of late found the
//! buffer full, and the next one comes sooner; one that did not comes later, and by more. Where gulps only follow the
//! time that they were given this leads to longer times, until the buffer is full.

use std::time::Duration;

/// A gulp of at least this many bytes means that we are behind.
const BEHIND_BYTES: usize = 32 * 1024;

/// The receive buffer holds so many at least, so that a smaller gulp never found it full.
const FULL_BYTES_MIN: usize = 112 * 1024;

/// Data gathers for no longer, from one gulp to the next.
const GATHER_MAX: Duration = Duration::from_millis(8);

/// Less is not waited for: timers count milliseconds, and whatever fills the buffer sooner (large facts do, at half a
/// GB/s) is there when the last gulp has been worked on.
const GATHER_MIN: Duration = Duration::from_millis(1);

/// So many gulps that found the buffer not full make it worthwhile to wait again: three.
const GATHER_LEAST: Duration = Duration::from_micros(500);

/// What the last gulps say of the next one.
#[derive(Debug)]
pub(super) struct Gulp {
    gather: Duration,
    /// Of the gulp that has begun, if it took more than one read.
    bytes: usize,
    /// The most that one read brought of late.
    most: usize,
    behind: bool,
}

impl Default for Gulp {
    fn default() -> Self {
        Self { gather: GATHER_MAX / 2, bytes: 0, most: 0, behind: false }
    }
}

impl Gulp {
    /// A read brought so many bytes, and all there was if `drained`.
    pub(super) fn received(&mut self, bytes: usize, drained: bool) {
        self.bytes = self.bytes.saturating_add(bytes);
        // A read may find more than the buffer holds, because the sender goes on while it is emptied.
        self.most = bytes.max(self.most - self.most / 64);
        self.behind = self.bytes >= BEHIND_BYTES;
        if !drained {
            return;
        }
        let gulp = std::mem::take(&mut self.bytes);
        if self.behind {
            let was_full = gulp >= FULL_BYTES_MIN.max(self.most - self.most / 8);
            let gather = if was_full { self.gather * 9 / 10 } else { self.gather * 13 / 10 };
            self.gather = gather.clamp(GATHER_LEAST, GATHER_MAX);
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

    /// The gathering times in ms of a thousand gulps, but for the first two hundred, from a buffer that holds `holds` bytes and
    /// gets so many in a millisecond.
    fn gather(holds: usize, per_ms: usize) -> Vec<f64> {
        let mut gulp = Gulp::default();
        let mut times = Vec::new();
        for _ in 0..1000 {
            let time = gulp.gather();
            times.push(time.as_secs_f64() * 1000.0);
            let came = per_ms * usize::try_from(time.as_micros()).unwrap_or(0) / 1000;
            gulp.received(came.min(holds), true);
        }
        times.split_off(200)
    }

    #[test]
    fn data_gathers_until_the_buffer_is_about_full() {
        for (holds, per_ms) in [(512, 128), (512, 256), (1024, 256), (256, 128), (2048, 1024)] {
            let times = gather(holds * 1024, per_ms * 1024);
            let full = holds as f64 / per_ms as f64;
            assert!(
                times.iter().all(|ms| (0.7..1.4).contains(&(ms / full))),
                "{holds} KiB at {per_ms} a ms: {times:?}"
            );
        }
    }

    #[test]
    fn a_buffer_that_is_never_full_waits_as_long_as_data_may() {
        let times = gather(usize::MAX, 16 * 1024);
        assert!(times.iter().all(|ms| (5.0..=8.0).contains(ms)), "{times:?}");
    }

    #[test]
    fn a_read_of_more_than_the_buffer_is_forgotten() {
        let mut gulp = Gulp::default();
        gulp.received(1024 * 1024, true);
        for _ in 0..200 {
            gulp.received(512 * 1024, true);
        }
        assert_eq!(gulp.gather(), Duration::ZERO);
        for _ in 0..3 {
            gulp.received(256 * 1024, true);
        }
        assert!(gulp.gather() >= GATHER_MIN, "it waits again once the buffer is not full");
    }

    #[test]
    fn small_reads_are_no_gulps() {
        let mut gulp = Gulp::default();
        gulp.received(BEHIND_BYTES, true);
        assert!(gulp.is_behind());
        gulp.received(BEHIND_BYTES - 1, true);
        assert!(!gulp.is_behind());
        let gather = gulp.gather();
        gulp.received(100, true);
        assert_eq!(gulp.gather(), gather);
    }

    #[test]
    fn a_gulp_of_several_reads_is_one() {
        let mut gulp = Gulp::default();
        gulp.received(BEHIND_BYTES, false);
        gulp.received(100, true);
        assert!(gulp.is_behind(), "the rest of a large gulp is small");
    }
}
