//! SQL for the commands that ask or emit and stream nothing.

use super::connection::Connection;
use super::failure::Failure;
use super::identify::gone;
use crate::config::PostgresConfig;
use crate::relay::gone::Gone;
use std::time::Duration;
use tokio::time::timeout;

pub use super::connection::Row;

/// A connection for SQL. It is an ordinary one, which needs no REPLICATION and no walsender; where the server has no
/// room for it, a replication connection.
#[derive(Debug)]
pub struct Queries {
    connection: Connection,
    limit: Duration,
}

impl Queries {
    /// Connects; each query may take as long as `limit`.
    ///
    /// # Errors
    ///
    /// [`Gone`], classified.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn connect(config: &PostgresConfig, limit: Duration) -> Result<Self, Gone> {
        let connection = Connection::connect_to_ask(config).await.map_err(gone)?;
        Ok(Self { connection, limit })
    }

    /// The same through a walsender, for whoever will need one to stream: better now than after a while.
    ///
    /// # Errors
    ///
    /// [`Gone`], classified.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn connect_to_walsender(
        config: &PostgresConfig,
        limit: Duration,
    ) -> Result<Self, Gone> {
        let connection = Connection::connect(config).await.map_err(gone)?;
        Ok(Self { connection, limit })
    }

    /// The rows of all statements in `sql`, one behind the other.
    ///
    /// # Errors
    ///
    /// [`Gone`]: what the server says, or that it says nothing.
    ///
    /// # Cancel safety
    ///
    /// A query that is dropped leaves a connection that is good for nothing.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Gone> {
        let answer = timeout(self.limit, self.connection.query(sql)).await;
        answer.unwrap_or(Err(Failure::Silent)).map_err(gone)
    }
}
