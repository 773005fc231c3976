//! A histogram with weights, owned by one thread.

/// Upper bounds of buckets, rising; a bucket without bound is added.
pub(crate) type Bounds = &'static [f64];

/// Times, in seconds: from a quiet network to a stop of an hour.
pub(crate) const SECONDS: Bounds = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 3600.0,
];

/// The buckets of client_golang's `DefBuckets`, which dashboards of factlib's names expect.
pub(crate) const FACTLIB_SECONDS: Bounds =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Records in a batch.
pub(crate) const RECORDS: Bounds =
    &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0];

/// Facts in a Kafka transaction; 0 in one of nothing but a position.
pub(crate) const TRANSACTION_FACTS: Bounds =
    &[0.0, 1.0, 10.0, 100.0, 1000.0, 2500.0, 5000.0, 10_000.0, 25_000.0, 50_000.0, 100_000.0];

/// Bytes of a batch.
pub(crate) const BYTES: Bounds = &[
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

/// What was observed so far.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Histogram {
    bounds: Bounds,
    /// One more than there are bounds. Not cumulative.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// `value` was observed `times` times. What is not a number is nothing.
    pub(crate) fn observe(&mut self, value: f64, times: u64) {
        if value.is_nan() {
            return;
        }
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += times;
            // Off by a rounding error from 2^53 on, like every sum of a histogram.
            #[expect(clippy::cast_precision_loss, reason = "as said")]
            let times = times as f64;
            self.sum += value * times;
        }
    }

    /// Adds what another one of the same bounds has observed.
    pub(super) fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bucket's upper bound and its own count.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied()).collect()
    }

    /// The least bound below which a share `q` of what was observed lies; none before anything was.
    pub(super) fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        let mut seen = 0;
        #[expect(clippy::cast_precision_loss, reason = "a share of it is meant")]
        self.buckets().into_iter().find_map(|(bound, count_here)| {
            seen += count_here;
            (count > 0 && seen as f64 >= q * count as f64).then_some(bound)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_first_bucket_that_holds_it_and_the_last_has_no_bound() {
        let mut histogram = Histogram::new(&[1.0, 10.0]);
        for (value, times) in [(0.0, 1), (1.0, 2), (1.5, 4), (10.0, 8), (11.0, 16), (f64::NAN, 32)]
        {
            histogram.observe(value, times);
        }
        assert_eq!(histogram.buckets(), [(1.0, 3), (10.0, 12), (f64::INFINITY, 16)]);
        assert_eq!(histogram.count(), 31);
        assert!((histogram.sum() - 264.0).abs() < 1e-9);
        assert_eq!(histogram.quantile(0.5), Some(f64::INFINITY));
        assert_eq!(histogram.quantile(0.4), Some(10.0));
    }

    #[test]
    fn the_bounds_rise() {
        for bounds in [SECONDS, FACTLIB_SECONDS, RECORDS, TRANSACTION_FACTS, BYTES] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
