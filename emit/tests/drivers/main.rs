//! Each driver against a real server: what the crate promises, through somebody else's code into PostgreSQL and out
//! of a slot.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]
#![expect(clippy::disallowed_methods, reason = "tests live in real time")]

mod database;
mod diesel;
mod diesel_async;
mod function;
mod postgres;
mod promises;
mod sqlx;
mod tokio_postgres;
mod turns;

use factlib_emit::{EmitError, Emitted, Emitter, Fact, Lsn};
use std::error::Error;

/// A driver, as an application would use it.
pub(crate) trait Driver {
    /// Takes the steps in one transaction, also after one has failed; what became of each.
    fn transaction(url: &str, emitter: &Emitter, steps: &[Step], end: End) -> Vec<Outcome>;

    /// Emits without a transaction around it.
    fn autocommit(emitter: &Emitter, fact: &Fact) -> Emitted;

    /// On a connection of its own.
    fn wait_lsn() -> Lsn;

    /// On a connection of its own.
    fn published(lsn: Lsn, slot: &str) -> Result<bool, String>;
}

pub(crate) enum Step {
    Emit(Fact),
    EmitMany(Vec<Fact>),
    /// Inserts a row.
    Insert(&'static str),
    /// Emits in a savepoint, and rolls back to it.
    Undone(Fact),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    Rollback,
}

/// What was emitted, or the sentence of why not.
pub(crate) type Outcome = Result<Vec<Emitted>, String>;

/// The sentence; if it is the server's, without what the driver says around it.
pub(crate) fn outcome<E: Error>(
    result: Result<Vec<Emitted>, EmitError<E>>,
    of_server: impl FnOnce(E) -> String,
) -> Outcome {
    result.map_err(|error| match error {
        EmitError::Database(error) => of_server(error),
        error => error.to_string(),
    })
}

pub(crate) fn insert(id: &str) -> String {
    format!("INSERT INTO orders VALUES ('{id}')")
}

/// An executor of one thread, as the drivers that are not for threads want it.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
