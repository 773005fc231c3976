//! Several measurements of one thing in few numbers.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The median, the smallest and the largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self { median, min, max })
    }

    /// `median (min..max)`, or the one value there is.
    pub fn text(&self, digits: usize) -> String {
        let Self { median, min, max } = self;
        if min == max {
            return format!("{median:.digits$}");
        }
        format!("{median:.digits$} ({min:.digits$}..{max:.digits$})")
    }
}

/// A spread as a cell of a table.
pub fn cell(values: impl IntoIterator<Item = f64>, digits: usize) -> String {
    Spread::of(values).map_or_else(|| "-".to_owned(), |spread| spread.text(digits))
}

/// The parts of all, in thousandths, of which a [`Quantiles`] tells.
const QUANTILES: [usize; 6] = [500, 900, 950, 990, 999, 1000];

/// What so many of a thousand measurements stay below.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many there were.
    pub count: usize,
    /// Microseconds, by [`QUANTILES`].
    pub micros: Vec<f64>,
}

impl Quantiles {
    /// None of no values.
    pub fn of(mut values: Vec<Duration>) -> Option<Self> {
        values.sort_unstable();
        let last = values.len().checked_sub(1)?;
        // The nearest rank: a value that was measured, and never one in between.
        let at = |per_mille: usize| (values.len() * per_mille).div_ceil(1000).max(1) - 1;
        let micros = QUANTILES.iter().map(|q| values[at(*q).min(last)].as_nanos() as f64 / 1e3);
        Some(Self { count: values.len(), micros: micros.collect() })
    }

    /// Microseconds; `per_mille` is one of 500, 900, 950, 990, 999 and 1000.
    pub fn micros(&self, per_mille: usize) -> f64 {
        let at = QUANTILES.iter().position(|q| *q == per_mille);
        at.and_then(|at| self.micros.get(at)).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_cell_says_what_there_is() {
        assert_eq!(cell([1.0, 2.0, 6.0], 1), "2.0 (1.0..6.0)");
        assert_eq!(cell([2.0], 2), "2.00");
        assert_eq!(cell([], 2), "-");
    }

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let values = (1..=1000).rev().map(Duration::from_micros).collect();
        let quantiles = Quantiles::of(values).unwrap();
        assert_eq!(quantiles.micros(500), 500.0);
        assert_eq!(quantiles.micros(990), 990.0);
        assert_eq!(quantiles.micros(999), 999.0);
        assert_eq!(quantiles.micros(1000), 1000.0);
        assert_eq!(Quantiles::of(vec![Duration::from_micros(7)]).unwrap().micros, vec![7.0; 6]);
        assert_eq!(Quantiles::of(Vec::new()), None);
        assert!(quantiles.micros(123).is_nan());
    }
}
