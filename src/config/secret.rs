//! Values that are never shown.

use std::fmt;

/// A password: it can be used, compared and cloned, but not shown.
///
/// There is no `Display` and no `Serialize`, and `Debug` prints stars, so that a secret cannot
/// reach a log, an error or a status page by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that sends it or derives a proof from it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
