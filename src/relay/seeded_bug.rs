//! Deliberate defects. A test that stays green with one of them is no evidence.

/// A defect that a test must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeededBug {
    /// Confirms a transaction when its Commit is read, settled or not.
    ConfirmOnRead,
}

impl SeededBug {
    /// By its name, as `OWLPOST_SEEDED_BUG` gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "confirm-on-read" => Some(Self::ConfirmOnRead),
            _ => None,
        }
    }
}
