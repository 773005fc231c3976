use crate::InvalidFact;
use std::error::Error;

/// Why nothing was emitted, or nothing could be asked. `E` is the driver's error.
///
/// An error of the server has aborted the transaction, as always in PostgreSQL. If it is [`Invalid`](Self::Invalid) or
/// [`InvalidAmong`](Self::InvalidAmong), nothing was sent: the transaction can go on. The driver's error becomes one of
/// these with `?`, so that a closure of a transaction can return it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError<E: Error + 'static> {
    /// The fact was not sent.
    #[error(transparent)]
    Invalid(InvalidFact),
    /// One of many is not valid, and none of them was sent.
    #[error("fact {index}: {invalid}")]
    InvalidAmong {
        /// Its place in the slice, counted from 0.
        index: usize,
        /// What is wrong with it.
        invalid: InvalidFact,
    },
    /// The driver or the server.
    #[error(transparent)]
    Database(#[from] E),
    /// [`published`](crate::published) cannot tell: the slot is of another database or server, or is not yet made.
    #[error("this database has no logical replication slot \"{0}\"")]
    NoSlot(String),
    /// What came back is not what the statement answers: something between here and the server rewrites queries, or an
    /// [`Executor`](crate::Executor) is not right. Roll back.
    #[error("the answer to \"{0}\" is not what PostgreSQL answers: roll back")]
    Answer(&'static str),
}
