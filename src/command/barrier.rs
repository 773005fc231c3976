//! A position that somebody waits for.

use crate::postgres::{Queries, Row};
use crate::relay::gone::{ExitKind, Gone};
use crate::relay::pages::Pages;
use factlib_protocol::replication::quote_literal;
use factlib_protocol::{Lsn, ParseLsnError};
use std::str::FromStr;

/// A position as it is typed: `X/X`, or `now`, where the server is when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// `pg_current_wal_insert_lsn()` at the beginning.
    Now,
    /// This.
    At(Lsn),
}

impl FromStr for Barrier {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        match text {
            "now" => Ok(Self::Now),
            text => text.parse().map(Self::At),
        }
    }
}

/// The log as the server has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Log {
    /// Where the next record begins.
    pub(super) insert: Lsn,
    pages: Pages,
}

impl Log {
    /// Asks the server.
    pub(super) async fn ask(queries: &mut Queries) -> Result<Self, Gone> {
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                   ELSE pg_current_wal_insert_lsn() END, \
                   current_setting('wal_block_size'), pg_size_bytes(current_setting('wal_segment_size'))";
        let rows = queries.query(sql).await?;
        let read = |row: &Row| {
            let column = |at: usize| row.get(at)?.as_deref();
            Some(Self {
                insert: column(0)?.parse().ok()?,
                pages: Pages::new(column(1)?.parse().ok()?, column(2)?.parse().ok()?)?,
            })
        };
        rows.first()
            .and_then(read)
            .ok_or_else(|| Gone::Lost("PostgreSQL does not say where its log ends".to_owned()))
    }

    /// What must be confirmed so that everything before `barrier` is.
    pub(super) fn wanted(&self, barrier: Barrier) -> Lsn {
        self.pages.wanted(match barrier {
            Barrier::Now => self.insert,
            Barrier::At(lsn) => lsn,
        })
    }
}

/// Where a slot of ours stands: `confirmed_flush_lsn`.
///
/// # Errors
///
/// [`Gone`], if there is no such slot, it is lost, or the server cannot be asked.
pub(super) async fn confirmed(queries: &mut Queries, slot: &str) -> Result<Lsn, Gone> {
    let sql = format!(
        "SELECT confirmed_flush_lsn, wal_status = 'lost', \
         plugin = 'pgoutput' AND database = current_database() \
         FROM pg_replication_slots WHERE slot_name = {}",
        quote_literal(slot)
    );
    let rows = queries.query(&sql).await?;
    let terminal = |reason| Err(Gone::Terminal(ExitKind::Slot, reason));
    let Some(row) = rows.first() else {
        return terminal(format!(
            "slot {slot} is not there: check REPLICATION_SLOT_NAME; `owlpost init` makes it"
        ));
    };
    let is = |at: usize| row.get(at).and_then(Option::as_deref) == Some("t");
    if !is(2) {
        return terminal(format!(
            "slot {slot} is not one of ours: it is physical, another database's, or has another output plugin"
        ));
    }
    if is(1) {
        return terminal(format!(
            "slot {slot} is lost: the server removed log that it needed; `owlpost init --accept-gap` makes it anew"
        ));
    }
    let confirmed = row.first().and_then(|text| text.as_deref()?.parse().ok());
    confirmed.ok_or_else(|| Gone::Lost(format!("slot {slot} is being made")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_typed_as_the_server_writes_it() {
        assert_eq!("now".parse(), Ok(Barrier::Now));
        assert_eq!("0/16B3748".parse(), Ok(Barrier::At(Lsn(0x16B_3748))));
        assert!("16B3748".parse::<Barrier>().is_err());
    }
}
