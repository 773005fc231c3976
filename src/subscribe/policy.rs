//! What the application says beforehand: who handles facts, and what becomes of those that nobody takes.

use super::delivery::{DeadLetter, Unreadable};
use super::schedule::{Last, Rules};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// What a handler fails with: any error, by `?`.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// What calls come to.
pub(super) type Answer = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;

/// Something of the application's that is called with `T`.
pub(super) struct Callback<T>(Arc<dyn Fn(T) -> Answer + Send + Sync>);

impl<T> Callback<T> {
    pub(super) fn new<F, A>(callback: F) -> Self
    where
        F: Fn(T) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Self(Arc::new(move |argument| Box::pin(callback(argument))))
    }

    pub(super) fn call(&self, argument: T) -> Answer {
        (self.0)(argument)
    }
}

impl<T> Clone for Callback<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Callback<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
    }
}

/// What becomes of a fact whose handler returns an error, panics, or takes longer than it may.
///
/// Meanwhile the facts behind it of the same aggregate wait, and other aggregates go on until the window is full
/// ([`Builder::in_flight_bytes`](super::Builder::in_flight_bytes)).
#[derive(Debug, Clone)]
pub struct ErrorPolicy {
    attempts: Option<NonZeroU32>,
    first_delay: Duration,
    delay_max: Duration,
    dead_letter: Option<Callback<DeadLetter>>,
}

impl Default for ErrorPolicy {
    fn default() -> Self {
        Self::retry()
    }
}

impl ErrorPolicy {
    /// The handler is called again until it takes the fact.
    #[must_use]
    pub fn retry() -> Self {
        Self {
            attempts: None,
            first_delay: Duration::from_millis(100),
            delay_max: Duration::from_secs(30),
            dead_letter: None,
        }
    }

    /// After so many calls that failed, 1 or more, [`Subscriber::run`](super::Subscriber::run) ends with
    /// [`Error::Halted`](super::Error::Halted). The fact stays in the slot, and comes again at the next start.
    #[must_use]
    pub fn halt_after(attempts: NonZeroU32) -> Self {
        Self { attempts: Some(attempts), ..Self::retry() }
    }

    /// After so many calls that failed, 1 or more, `callback` has the fact. When that returns `Ok` the fact is done
    /// with; else it is called again, for ever. It should write the letter down where it is safe.
    #[must_use]
    pub fn dead_letter_after<F, A>(attempts: NonZeroU32, callback: F) -> Self
    where
        F: Fn(DeadLetter) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let dead_letter = Some(Callback::new(callback));
        Self { attempts: Some(attempts), dead_letter, ..Self::retry() }
    }

    /// The pause after the first failure, doubled after each, up to `max` (unless said, from 100 ms to 30 s). While
    /// a fact waits it takes no place of [`Builder::concurrency`](super::Builder::concurrency).
    #[must_use]
    pub fn pauses(self, first: Duration, max: Duration) -> Self {
        Self { first_delay: first, delay_max: max, ..self }
    }

    pub(super) fn rules(&self, concurrency: usize) -> Rules {
        Rules {
            concurrency,
            attempts: self.attempts,
            last: if self.dead_letter.is_some() { Last::DeadLetter } else { Last::Halt },
            first_delay: self.first_delay.min(self.delay_max),
            delay_max: self.delay_max,
        }
    }

    pub(super) fn dead_letter(&self) -> Option<&Callback<DeadLetter>> {
        self.dead_letter.as_ref()
    }
}

/// What becomes of a message with one of the prefixes that is no fact, or too large.
#[derive(Debug, Clone, Default)]
pub struct UnreadablePolicy(pub(super) Unread);

#[derive(Debug, Clone, Default)]
pub(super) enum Unread {
    #[default]
    Halt,
    Skip,
    DeadLetter(Callback<Unreadable>),
}

impl UnreadablePolicy {
    /// [`Subscriber::run`](super::Subscriber::run) ends with [`Error::Unreadable`](super::Error::Unreadable), and the
    /// message stays in the slot. What is used unless said otherwise.
    #[must_use]
    pub fn halt() -> Self {
        Self(Unread::Halt)
    }

    /// It is counted, logged, and passed over.
    #[must_use]
    pub fn skip() -> Self {
        Self(Unread::Skip)
    }

    /// `callback` has it, until that returns `Ok`; with the pauses of [`ErrorPolicy::pauses`].
    #[must_use]
    pub fn dead_letter<F, A>(callback: F) -> Self
    where
        F: Fn(Unreadable) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Self(Unread::DeadLetter(Callback::new(callback)))
    }
}
