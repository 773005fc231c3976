//! The SQL functions: what `owlpost init` does about them, and says.

use super::{print, refused, unwritten};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::postgres::functions::{self, Installation, VERSION, is_older};
use clap::Args;

/// What to do about the SQL functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct Functions {
    /// Install the SQL functions, too: factlib.emit for applications
    ///
    /// Before anything else, on an ordinary connection, in one transaction. Where they are there already, an older
    /// version is replaced; grants stay as they are.
    #[arg(long, conflicts_with = "accept_gap")]
    with_sql: bool,
    /// Install the SQL functions and nothing else
    ///
    /// The role needs CREATE on the database, or to own schema factlib, and no REPLICATION.
    #[arg(long, conflicts_with_all = ["audit", "accept_gap", "with_sql"])]
    sql_only: bool,
    /// Print the SQL that installs them, and contact nobody
    #[arg(long, conflicts_with_all = ["audit", "accept_gap", "with_sql", "sql_only", "json"])]
    print_sql: bool,
}

impl Functions {
    /// True if nothing is contacted.
    pub fn are_printed(self) -> bool {
        self.print_sql
    }

    /// True if that is all there is to do.
    pub fn are_all(self) -> bool {
        self.print_sql || self.sql_only
    }

    /// Does what is asked.
    ///
    /// # Errors
    ///
    /// How the process ends, after saying why.
    pub async fn see_to(self, config: &Config, json: bool) -> Result<(), ExitCode> {
        if self.print_sql {
            return print(functions::SQL.trim_end()).map_err(|error| unwritten(&error));
        }
        if !self.with_sql && !self.sql_only {
            return Ok(());
        }
        let installation = functions::install(&config.postgres).await.map_err(refused)?;
        let line = match json {
            true => object(&installation).to_string(),
            false => words(&installation),
        };
        print(&line).map_err(|error| unwritten(&error))
    }
}

fn object(installation: &Installation) -> serde_json::Value {
    let Installation { database, before, version } = installation;
    serde_json::json!({ "sql_functions": version, "before": before, "database": database })
}

fn words(installation: &Installation) -> String {
    let Installation { database, before, version } = installation;
    match before.as_deref() {
        None => {
            format!("factlib.emit and its company are in database {database}, version {version}")
        }
        Some(before) if is_older(VERSION, before) => format!(
            "the SQL functions in database {database} are of version {before}, newer than {VERSION} of this owlpost, and \
             stay"
        ),
        Some(before) if before == version => {
            format!(
                "the SQL functions in database {database} were there already, version {version}"
            )
        }
        Some(before) => {
            format!(
                "the SQL functions in database {database} are of version {version} now; they were of {before}"
            )
        }
    }
}
