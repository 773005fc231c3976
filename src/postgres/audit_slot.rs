//! The trailing slot of `owlpost audit`: made beside the relay's, moved on after each audit, and dropped
//! before it fills the disk.

use super::connection::{Connection, Row};
use super::failure::Failure;
use super::identify::{Ask, gone, look as identify};
use crate::config::NAME_LEN_MAX;
use crate::relay::gone::{ExitKind, Gone};
use crate::relay::route::Source;
use factlib_protocol::Lsn;
use factlib_protocol::replication::quote_literal;
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use tokio::time::timeout;

/// What is asked here takes milliseconds; but moving a slot on reads the log up to there.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// Where the facts come from, and how far the relay's slot and the trailing one are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// As the header `factlib_source` has it.
    pub source: String,
    /// `confirmed_flush_lsn` of the relay's.
    pub confirmed: Lsn,
    /// `confirmed_flush_lsn` of the trailing one.
    pub audited: Lsn,
}

/// What names of such slots begin with. No relay's slot does (the configuration refuses that), so that none is taken
/// for one that may be moved or dropped.
pub const AUDIT_SLOTS: &str = "owlpost_audit_";

/// Name of the slot that trails `slot`.
pub fn audit_slot(slot: &str) -> String {
    let name = format!("{AUDIT_SLOTS}{slot}");
    // PostgreSQL cuts longer names off silently, and one would then be another slot's.
    if name.len() <= NAME_LEN_MAX {
        return name;
    }
    let digest = Sha256::digest(slot.as_bytes());
    let (hash, _) = digest.split_at(8);
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{AUDIT_SLOTS}{}_{hash}", slot.get(..32).unwrap_or_default())
}

/// Where both slots are.
///
/// # Errors
///
/// [`Gone`]: one of them is not there, or cannot be used any more, or the server cannot be asked.
pub async fn marks(ask: &Ask) -> Result<Marks, Gone> {
    // A walsender, for IDENTIFY_SYSTEM; the log is read through one anyhow.
    let mut connection = Connection::connect(&ask.postgres).await.map_err(gone)?;
    let confirmed = confirmed(&mut connection, &ask.slot).await?.ok_or_else(|| {
        terminal(format!("slot {} is not there: nothing was published through it", ask.slot))
    })?;
    let trailing = audit_slot(&ask.slot);
    let audited = self::confirmed(&mut connection, &trailing).await?.ok_or_else(|| {
        terminal(format!(
            "slot {trailing} is not there, and only what was committed since it was made can be audited: \
             make it with `owlpost init --audit`"
        ))
    })?;
    let identified = timeout(ANSWER_MAX, identify(&mut connection, ask)).await;
    let (identity, _) = identified.unwrap_or(Err(Failure::Silent)).map_err(gone)?;
    let source = Source::new(identity.system, identity.database).as_str().to_owned();
    Ok(Marks { source, confirmed, audited })
}

/// Makes the trailing slot where the relay's is; where it begins. One that is there stays as it is.
///
/// # Errors
///
/// [`Gone`]: the relay's slot is not there, or what the server says.
pub async fn make(ask: &Ask) -> Result<Lsn, Gone> {
    let mut connection = connect(ask).await?;
    let trailing = audit_slot(&ask.slot);
    match look(&mut connection, &trailing).await? {
        Found::Absent => {}
        Found::At(there) => return Ok(there),
        // Nothing can be read from it any more.
        Found::Lost => {
            let drop = format!("SELECT pg_drop_replication_slot({})", quote_literal(&trailing));
            query(&mut connection, &drop).await?;
        }
    }
    let sql = format!(
        "SELECT pg_copy_logical_replication_slot({}, {}, false)",
        quote_literal(&ask.slot),
        quote_literal(&trailing)
    );
    query(&mut connection, &sql).await?;
    confirmed(&mut connection, &trailing)
        .await?
        .ok_or_else(|| terminal(format!("slot {trailing} was made and is not there")))
}

/// Moves the trailing slot on, unless another audit has moved it further.
///
/// # Errors
///
/// [`Gone`], if the server does not.
pub async fn advance(ask: &Ask, to: Lsn) -> Result<(), Gone> {
    let mut connection = connect(ask).await?;
    let trailing = quote_literal(&audit_slot(&ask.slot));
    let sql = format!(
        "SELECT pg_replication_slot_advance(slot_name, '{to}') FROM pg_replication_slots \
         WHERE slot_name = {trailing} AND confirmed_flush_lsn < '{to}'"
    );
    query(&mut connection, &sql).await?;
    Ok(())
}

/// What became of the trailing slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// There is none.
    Absent,
    /// It holds back less than it may.
    Within,
    /// It was dropped; so much it held back.
    Dropped(String),
}

/// Drops the trailing slot if it holds back more than `max` bytes of write-ahead log.
///
/// # Errors
///
/// [`Gone`], if the server cannot be asked.
pub async fn bound(ask: &Ask, max: u64) -> Result<Bound, Gone> {
    let mut connection = connect(ask).await?;
    let slot = format!(
        "SELECT slot_name, NOT active \
            AND pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) > {max} AS over, \
            pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS held \
         FROM pg_replication_slots \
         WHERE NOT pg_is_in_recovery() AND slot_name = {} \
            AND plugin = 'pgoutput' AND database = current_database()",
        quote_literal(&audit_slot(&ask.slot))
    );
    let rows = query(&mut connection, &slot).await?;
    let Some(row) = rows.first() else { return Ok(Bound::Absent) };
    if row.get(1).and_then(Option::as_deref) != Some("t") {
        return Ok(Bound::Within);
    }
    let drop =
        format!("SELECT held, pg_drop_replication_slot(slot_name) FROM ({slot}) slot WHERE over");
    let rows = query(&mut connection, &drop).await?;
    let held = rows.first().and_then(|row| row.first().cloned().flatten());
    Ok(held.map_or(Bound::Within, Bound::Dropped))
}

async fn connect(ask: &Ask) -> Result<Connection, Gone> {
    Connection::connect_to_ask(&ask.postgres).await.map_err(gone)
}

async fn query(connection: &mut Connection, sql: &str) -> Result<Vec<Row>, Gone> {
    timeout(ANSWER_MAX, connection.query(sql)).await.unwrap_or(Err(Failure::Silent)).map_err(gone)
}

/// A slot of ours.
enum Found {
    Absent,
    /// Its `confirmed_flush_lsn`.
    At(Lsn),
    /// The server has removed log that it needed.
    Lost,
}

/// `confirmed_flush_lsn` of a slot, if it is there.
async fn confirmed(connection: &mut Connection, slot: &str) -> Result<Option<Lsn>, Gone> {
    match look(connection, slot).await? {
        Found::Absent => Ok(None),
        Found::At(lsn) => Ok(Some(lsn)),
        Found::Lost => Err(terminal(format!(
            "slot {slot} is lost: the server has removed log that it needed (max_slot_wal_keep_size); \
             `owlpost init --audit` makes the slot of an audit anew"
        ))),
    }
}

async fn look(connection: &mut Connection, slot: &str) -> Result<Found, Gone> {
    let sql = format!(
        "SELECT confirmed_flush_lsn, wal_status, plugin = 'pgoutput' AND database = current_database() \
         FROM pg_replication_slots WHERE slot_name = {}",
        quote_literal(slot)
    );
    let rows = query(connection, &sql).await?;
    let Some(row) = rows.first() else { return Ok(Found::Absent) };
    let column = |at: usize| row.get(at).and_then(Option::as_deref);
    if column(2) != Some("t") {
        return Err(terminal(format!(
            "slot {slot} is not one of ours: it is physical, another database's, or has another output plugin"
        )));
    }
    if column(1) == Some("lost") {
        return Ok(Found::Lost);
    }
    let confirmed = column(0).and_then(|text| text.parse().ok());
    confirmed.map(Found::At).ok_or_else(|| terminal(format!("slot {slot} is being made")))
}

fn terminal(reason: String) -> Gone {
    Gone::Terminal(ExitKind::Slot, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_audit_slot_is_never_cut_off_and_never_a_relays() {
        assert_eq!(audit_slot("factlib_slot"), "owlpost_audit_factlib_slot");
        let names: Vec<String> =
            ["a", "b"].map(|end| audit_slot(&format!("{}{end}", "x".repeat(62)))).into();
        assert_ne!(names[0], names[1]);
        for name in names {
            assert_eq!(name.len(), NAME_LEN_MAX);
            assert!(name.starts_with(AUDIT_SLOTS));
        }
    }
}
