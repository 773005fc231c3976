//! What `owlpost check` wants to know of a server. Nothing is changed, unless a canary is emitted.

use super::Failure;
use super::connection::{Connection, Row};
use super::identify::{ANSWER_MAX, Ask, Cluster, gone, look, look_at, prepare};
use super::setup::Found;
use crate::config::{Host, PostgresConfig, TargetSessionAttrs};
use crate::relay::Identity;
use crate::relay::gone::Gone;
use factlib_protocol::Lsn;
use factlib_protocol::replication::quote_literal;
use futures_util::future::join_all;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// The settings that matter to a slot, or to who reads it.
const SETTINGS: &str = "'max_slot_wal_keep_size', 'idle_replication_slot_timeout', 'wal_sender_timeout', \
     'server_encoding', 'max_replication_slots', 'max_wal_senders', 'server_version'";

/// A server as it was found.
#[derive(Debug, Clone)]
pub struct Survey {
    /// What the connection goes through.
    pub transport: Transport,
    /// Why there was no replication connection, but only an ordinary one.
    pub not_replicating: Option<Gone>,
    /// Who it is and where the slot stands.
    pub identity: Identity,
    /// Slot, publication and what decides about them.
    pub found: Found,
    /// Its settings by name, where this version has them.
    pub settings: BTreeMap<String, Setting>,
    /// The version of the SQL functions, if they are there.
    pub functions: Option<String>,
    /// The role we are.
    pub role: Role,
    /// More about the slot, if it is there.
    pub slot: Option<SlotState>,
    /// How many slots there are.
    pub slots: u64,
    /// How many walsenders run; ours is one of them, if there is a replication connection.
    pub walsenders: u64,
    /// The oldest transaction that has written and is open, as far as our role may see.
    pub oldest_open: Option<OpenTransaction>,
    /// The oldest prepared transaction.
    pub oldest_prepared: Option<OpenTransaction>,
    /// The server's clock, in seconds since 1970.
    pub clock: f64,
}

/// A setting of the server, in our session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As `pg_settings.setting` has it: a number in the setting's own unit.
    pub value: String,
    /// As SHOW has it, with a unit.
    pub shown: String,
}

/// What the bytes of a connection go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A file of this machine.
    UnixSocket,
    /// TCP, as they are.
    Clear,
    /// TCP under TLS.
    Tls {
        /// Of the protocol, as its library calls it.
        version: Option<&'static str>,
        /// The log-in has shown that both ends see the same certificate.
        channel_bound: bool,
    },
}

/// A role and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// It may make a publication in this database.
    pub may_create: bool,
    /// It may change the publication, if that is there.
    pub owns_publication: bool,
    /// It sees the transactions of other roles.
    pub sees_all: bool,
}

/// A row of `pg_replication_slots`, and what is said of who has it.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotState {
    /// All columns that this version has.
    pub columns: Value,
    /// Bytes of write-ahead log that it holds back.
    pub retained: Option<i64>,
    /// Bytes from the end of the log to where it is confirmed; below 0 where that lies behind, as it ought to. None on
    /// a standby.
    pub ahead: Option<i64>,
    /// Who reads it: process, application, address.
    pub reader: Option<String>,
}

impl SlotState {
    /// A column as text; none if it is NULL or unknown to this version.
    pub fn column(&self, name: &str) -> Option<String> {
        match self.columns.get(name)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }
}

/// A transaction that is not over yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Since when.
    pub age: Duration,
    /// Whose.
    pub whose: String,
}

/// One of several hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// Host and port.
    pub host: String,
    /// It is a standby, and has the slot; or why it cannot be told.
    pub state: Result<(bool, bool), String>,
}

/// Logs in as the relay would, with the settings of its sessions, and looks at everything. Where the server has no
/// walsender for us, or our role no right to one, an ordinary session sees the rest.
///
/// # Errors
///
/// [`Gone`], with the words that the relay would have.
///
/// # Cancel safety
///
/// Dropping the future closes the connection; nothing was changed.
pub async fn survey(ask: &Ask) -> Result<Survey, Gone> {
    let (mut connection, not_replicating) = match Connection::connect(&ask.postgres).await {
        Ok(connection) => (connection, None),
        Err(failure) if failure.is_of_walsenders() => {
            match Connection::connect_ordinary(&ask.postgres).await {
                Ok(connection) => (connection, Some(gone(failure))),
                Err(_) => return Err(gone(failure)),
            }
        }
        Err(failure) => return Err(gone(failure)),
    };
    let asked = timeout(ANSWER_MAX, async {
        prepare(&mut connection, ask).await?;
        let looked = match not_replicating {
            None => look(&mut connection, ask).await?,
            Some(_) => {
                let cluster = cluster(&mut connection).await?;
                look_at(&mut connection, ask, cluster).await?
            }
        };
        examine(&mut connection, ask, looked, not_replicating).await
    });
    asked.await.unwrap_or(Err(Failure::Silent)).map_err(gone)
}

/// What IDENTIFY_SYSTEM would say, as far as it matters here.
async fn cluster(connection: &mut Connection) -> Result<Cluster, Failure> {
    let command = "the query for the control file";
    let sql = "SELECT system_identifier, timeline_id, checkpoint_lsn \
               FROM pg_control_system(), pg_control_checkpoint()";
    let row = one(connection.query(sql).await?, command)?;
    Ok(Cluster {
        system: number(&row, 0)?,
        timeline: number(&row, 1)?,
        wal_flushed: number(&row, 2)?,
        history: Vec::new(),
    })
}

async fn examine(
    connection: &mut Connection,
    ask: &Ask,
    (identity, found): (Identity, Found),
    not_replicating: Option<Gone>,
) -> Result<Survey, Failure> {
    let (slot, publication) = (quote_literal(&ask.slot), quote_literal(&ask.publication));
    let settings = format!(
        "SELECT name, setting, current_setting(name) FROM pg_catalog.pg_settings WHERE name IN ({SETTINGS})"
    );
    let settings = connection.query(&settings).await?.into_iter().filter_map(|mut row| {
        let (shown, value, name) = (row.pop()??, row.pop()??, row.pop()??);
        Some((name, Setting { value, shown }))
    });
    let settings = settings.collect();

    let functions = super::functions::installed(connection).await?;

    let role = format!(
        "SELECT current_user, has_database_privilege(current_database(), 'CREATE'), \
                coalesce((SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication \
                          WHERE pubname = {publication}), true), \
                pg_has_role('pg_read_all_stats', 'MEMBER'), \
                (SELECT count(*) FROM pg_replication_slots), \
                (SELECT count(*) FROM pg_stat_get_wal_senders()), \
                extract(epoch FROM clock_timestamp())"
    );
    let row = one(connection.query(&role).await?, "the query for the role")?;
    let is_true = |column: usize| text(&row, column) == Some("t");
    let role = Role {
        name: text(&row, 0).unwrap_or_default().to_owned(),
        may_create: is_true(1),
        owns_publication: is_true(2),
        sees_all: is_true(3),
    };
    let (slots, walsenders) = (number(&row, 4)?, number(&row, 5)?);
    let clock = number(&row, 6)?;

    let state = format!(
        "SELECT to_jsonb(s), \
                pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                                     ELSE pg_current_wal_lsn() END, restart_lsn)::bigint, \
                CASE WHEN NOT pg_is_in_recovery() \
                     THEN pg_wal_lsn_diff(confirmed_flush_lsn, pg_current_wal_insert_lsn()) END::bigint, \
                'process ' || s.active_pid || coalesce(' (' || a.application_name || ')', '') \
                    || coalesce(' at ' || host(a.client_addr), '') \
         FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid \
         WHERE s.slot_name = {slot}"
    );
    let slot = connection.query(&state).await?.into_iter().next().map(|row| SlotState {
        columns: text(&row, 0).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default(),
        retained: text(&row, 1).and_then(|bytes| bytes.parse().ok()),
        ahead: text(&row, 2).and_then(|bytes| bytes.parse().ok()),
        reader: text(&row, 3).map(str::to_owned),
    });

    let open = "SELECT DISTINCT ON (kind) kind, extract(epoch FROM clock_timestamp() - since), whose \
         FROM (SELECT 'open', xact_start, \
                      format('process %s of role %s (%s)', pid, usename, application_name) \
               FROM pg_catalog.pg_stat_activity \
               WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() \
               UNION ALL \
               SELECT 'prepared', prepared, format('%L of role %s in database %s', gid, owner, database) \
               FROM pg_catalog.pg_prepared_xacts) AS found (kind, since, whose) \
         WHERE since IS NOT NULL ORDER BY kind, since";
    let (mut oldest_open, mut oldest_prepared) = (None, None);
    for row in connection.query(open).await? {
        let age: f64 = number(&row, 1)?;
        let whose = text(&row, 2).unwrap_or_default().to_owned();
        let found = Some(OpenTransaction { age: Duration::from_secs_f64(age.max(0.0)), whose });
        match text(&row, 0) {
            Some("open") => oldest_open = found,
            _ => oldest_prepared = found,
        }
    }
    Ok(Survey {
        transport: connection.transport(),
        not_replicating,
        identity,
        found,
        settings,
        functions,
        role,
        slot,
        slots,
        walsenders,
        oldest_open,
        oldest_prepared,
        clock,
    })
}

/// Looks at each host by itself, whatever kind of server is wanted.
///
/// # Cancel safety
///
/// As [`survey`].
pub async fn hosts(config: &PostgresConfig, slot: &str) -> Vec<HostState> {
    let states = config.hosts.iter().map(|host| async move {
        let state = timeout(2 * ANSWER_MAX, host_state(host, config, slot)).await;
        let state = state.unwrap_or(Err(Failure::Silent));
        let state = state.map_err(|failure| gone(failure).reason().to_owned());
        HostState { host: host.to_string(), state }
    });
    join_all(states).await
}

async fn host_state(
    host: &Host,
    config: &PostgresConfig,
    slot: &str,
) -> Result<(bool, bool), Failure> {
    let alone = PostgresConfig {
        hosts: vec![host.clone()],
        target_session_attrs: TargetSessionAttrs::Any,
        ..config.clone()
    };
    let mut connection = Connection::connect_to_ask(&alone).await?;
    let sql = format!(
        "SELECT pg_is_in_recovery(), EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {})",
        quote_literal(slot)
    );
    let row = one(connection.query(&sql).await?, "the query for a host")?;
    Ok((text(&row, 0) == Some("t"), text(&row, 1) == Some("t")))
}

/// Emits one fact in a transaction of its own: the message's LSN.
///
/// # Errors
///
/// [`Gone`], in which case it may have been emitted or not.
pub async fn emit(config: &PostgresConfig, prefix: &str, content: &str) -> Result<Lsn, Gone> {
    let command = "pg_logical_emit_message";
    let (prefix, content) = (quote_literal(prefix), quote_literal(content));
    let sql = format!("SELECT {command}(true, {prefix}, {content})");
    let mut connection = Connection::connect_to_ask(config).await.map_err(gone)?;
    let rows = timeout(ANSWER_MAX, connection.query(&sql)).await;
    let row = rows.unwrap_or(Err(Failure::Silent)).and_then(|rows| one(rows, command));
    row.and_then(|row| number(&row, 0)).map_err(gone)
}

fn one(rows: Vec<Row>, command: &'static str) -> Result<Row, Failure> {
    rows.into_iter().next().ok_or(Failure::Answer { command })
}

fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

fn number<T: std::str::FromStr>(row: &Row, column: usize) -> Result<T, Failure> {
    let number = text(row, column).and_then(|text| text.parse().ok());
    number.ok_or(Failure::Answer { command: "a query of the preflight" })
}
