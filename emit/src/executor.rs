use std::error::Error;

/// One statement with its parameters; it answers rows of one column, `value`, of type `text`.
#[derive(Debug, Clone)]
pub struct Statement<'a> {
    /// The same text for every call, so that a driver's cache of prepared statements knows it.
    pub sql: &'static str,
    /// `$1`, `$2`, … in order.
    pub parameters: Vec<Parameter<'a>>,
}

/// A parameter of a [`Statement`], named by its type in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter<'a> {
    /// `text`
    Text(&'a str),
    /// `bytea`
    Bytea(&'a [u8]),
    /// `text[]`
    TextArray(&'a [&'a str]),
    /// `bytea[]`
    ByteaArray(&'a [&'a [u8]]),
}

/// What can run one statement in the caller's transaction.
///
/// The drivers' own transactions do; features of this crate say which. For another driver, implement it for a type
/// of your own that holds the transaction, not for a connection out of a pool: a fact that is not in the
/// transaction of its rows is published though they are rolled back.
pub trait Executor {
    /// The driver's error.
    type Error: Error + Send + Sync + 'static;

    /// Runs the statement, in one round trip where the driver can, and returns the column `value` of all rows in the
    /// order in which the server sent them. `None` is NULL.
    fn run(
        &mut self,
        statement: &Statement<'_>,
    ) -> impl Future<Output = Result<Vec<Option<String>>, Self::Error>> + Send;
}

/// [`Executor`] for drivers that block the thread.
pub trait BlockingExecutor {
    /// The driver's error.
    type Error: Error + Send + Sync + 'static;

    /// See [`Executor::run`].
    ///
    /// # Errors
    ///
    /// The driver's, also those of the server.
    fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Self::Error>;
}

/// A connection in whatever transaction it is in, for drivers whose connection and transaction are two types.
///
/// To ask ([`wait_lsn`](crate::wait_lsn), [`published`](crate::published)) it is what you want. To emit, take the
/// transaction itself where there is one: in autocommit each statement commits by itself, so that
/// [`emit`](crate::Emitter::emit) and one statement of [`emit_many`](crate::Emitter::emit_many) are still all or
/// none, but tied to no row of yours. It is there for facts that are about no row, and for transactions that were
/// begun by hand.
#[derive(Debug)]
pub struct Session<C>(pub C);
