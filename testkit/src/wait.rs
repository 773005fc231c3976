//! Waiting for a condition, never for a time.

use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// Between two looks at the condition.
const NAP: Duration = Duration::from_millis(5);

/// What is waited for at most where the caller names no limit. A busy machine with two cores needs
/// seconds for what takes milliseconds otherwise, so this is generous: only a failure waits so long.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Looks until `condition` gives a value, at most for `limit`.
///
/// # Errors
///
/// When the limit is passed.
pub fn poll<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if begun.elapsed() >= limit {
            return Err(Error(format!("{what}: not within {limit:?}")));
        }
        std::thread::sleep(NAP);
    }
}

/// Looks until `condition` holds.
///
/// # Panics
///
/// When it does not hold within `limit`.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    if let Err(e) = poll(what, limit, || condition().then_some(())) {
        panic!("{e}");
    }
}
