//! How a subscriber ends.

use super::delivery::Aggregate;
use crate::relay::gone::ExitKind;
use crate::relay::position::Position;
use factlib_protocol::Lsn;
use std::fmt;
use std::sync::Arc;

/// A subscriber that stopped as it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stopped {
    /// Everything before this is done with, and the server knows it.
    pub confirmed: Lsn,
    /// Facts that were read and whose handlers were not called, or not to their end. They come again, and with them
    /// those that lie behind one of them and were handled already. If there are none, nothing that was handled comes
    /// again, unless the end of its transaction had not come by the deadline.
    pub left: usize,
    /// Handlers that were cut off, because they had not ended at the deadline.
    pub cut_off: usize,
}

/// Why a subscriber cannot go on. Its slot is kept, and with it every fact that is not done with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A handler failed as often as [`ErrorPolicy::halt_after`](super::ErrorPolicy::halt_after) says.
    #[error("halted: {0}")]
    Halted(Box<Halted>),
    /// A message is no fact, or too large, and [`UnreadablePolicy::halt`](super::UnreadablePolicy::halt) applies.
    #[error(
        "halted at position {position} (LSN {lsn}): {reason}; Builder::on_unreadable has other policies than to halt"
    )]
    Unreadable {
        /// Where it stands.
        position: Position,
        /// What `pg_logical_emit_message` returned.
        lsn: Lsn,
        /// What is wrong with it.
        reason: String,
    },
    /// PostgreSQL could not be reached or refused us at the start, or cannot serve us, or what must be there is not.
    #[error("{reason}")]
    Server {
        /// Which end it is.
        kind: ExitKind,
        /// What happened, and what to do.
        reason: String,
    },
}

/// A fact that its handler did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halted {
    /// Its aggregate.
    pub aggregate: Arc<Aggregate>,
    /// Where it stands.
    pub position: Position,
    /// What `pg_logical_emit_message` returned.
    pub lsn: Lsn,
    /// What the handler said last.
    pub error: String,
    /// How often it was called.
    pub attempts: u32,
}

impl fmt::Display for Halted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { aggregate, position, lsn, error, attempts } = self;
        write!(
            f,
            "the handler failed {attempts} times with the fact at position {position} (LSN {lsn}) of {aggregate}: \
             {error}; the fact stays in the slot, and comes again at the next start"
        )
    }
}

/// What is wrong with how a subscriber is built: every mistake, one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError(pub(super) Vec<String>);

impl BuildError {
    /// The mistakes, a sentence each; never a secret.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for BuildError {}
