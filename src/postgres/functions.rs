//! The SQL functions by which applications emit facts: `sql/factlib.sql`.

use super::connection::Connection;
use super::failure::Failure;
use super::identify::{ANSWER_MAX, gone};
use crate::config::PostgresConfig;
use crate::relay::gone::{ExitKind, Gone};
use factlib_protocol::backend::SqlState;
use tokio::time::timeout;

/// What installs them, or replaces an older version.
pub const SQL: &str = include_str!("../../sql/factlib.sql");

/// The version of [`SQL`].
pub const VERSION: &str = "1.0.0";

/// The installed version. It is read from the schema's comment: a function would run as us, whoever made it.
pub(super) const INSTALLED: &str = "SELECT substring(obj_description(oid, 'pg_namespace') FROM '^factlib ([0-9.]+):') \
     FROM pg_catalog.pg_namespace WHERE nspname = 'factlib'";

/// What an installation found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The database.
    pub database: String,
    /// The version that was there.
    pub before: Option<String>,
    /// The version that is there now.
    pub version: String,
}

/// True if `version` is below `other`: numbers with dots between them.
pub fn is_older(version: &str, other: &str) -> bool {
    let numbers = |text: &str| -> Vec<u64> {
        text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    numbers(version) < numbers(other)
}

/// Installs the functions, in one transaction. A newer version stays.
///
/// # Errors
///
/// [`Gone`]: what the server says, with what to do about a right that is missing; nothing was changed then.
///
/// # Cancel safety
///
/// Dropping the future closes the connection; all was installed or nothing.
pub async fn install(config: &PostgresConfig) -> Result<Installation, Gone> {
    let mut connection = Connection::connect_ordinary(config).await.map_err(gone)?;
    let installed = timeout(ANSWER_MAX, install_on(&mut connection)).await;
    installed.unwrap_or_else(|_| Err(gone(Failure::Silent)))
}

async fn install_on(connection: &mut Connection) -> Result<Installation, Gone> {
    let who = "SELECT current_database(), current_user";
    let mut row = connection.query(who).await.map_err(gone)?.into_iter().flatten();
    let mut next = || row.next().flatten().unwrap_or_default();
    let (database, role) = (next(), next());
    let before = installed(connection).await.map_err(gone)?;
    if let Some(newer) = before.clone().filter(|before| is_older(VERSION, before)) {
        return Ok(Installation { database, before, version: newer });
    }
    connection.query(SQL).await.map_err(|failure| refused(failure, &database, &role))?;
    Ok(Installation { database, before, version: VERSION.to_owned() })
}

/// The installed version, if there is one.
pub(super) async fn installed(connection: &mut Connection) -> Result<Option<String>, Failure> {
    let rows = connection.query(INSTALLED).await?;
    Ok(rows.into_iter().flatten().next().flatten())
}

fn refused(failure: Failure, database: &str, role: &str) -> Gone {
    let Failure::Server(error) = &failure else { return gone(failure) };
    if error.code != SqlState::INSUFFICIENT_PRIVILEGE {
        return gone(failure);
    }
    let remedy = if error.message.starts_with("schema factlib") {
        "run `owlpost init --sql-only` as that role".to_owned()
    } else {
        format!(
            "GRANT CREATE ON DATABASE {database} TO {role}, or let a role that has it run `owlpost init --sql-only`"
        )
    };
    Gone::Refused(
        ExitKind::Unsuitable,
        format!("{error}; the SQL functions were not installed; {remedy}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_its_version_twice_and_both_are_ours() {
        assert!(SQL.contains(&format!("RETURN '{VERSION}';")));
        assert!(SQL.contains(&format!("COMMENT ON SCHEMA factlib IS 'factlib {VERSION}:")));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (older, newer) in [("0.9.0", "1.0.0"), ("1.9", "1.10"), ("1.0", "1.0.1")] {
            assert!(is_older(older, newer) && !is_older(newer, older), "{older} {newer}");
        }
        assert!(!is_older(VERSION, VERSION));
    }

    /// It may be sent through a connection of any encoding, and into a database of any.
    #[test]
    fn the_file_is_ascii() {
        assert!(SQL.is_ascii());
    }
}
