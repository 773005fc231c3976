//! What PostgreSQL itself says about commits and slots, asked without our protocol code.

use crate::lsn::Lsn;
use crate::workload::Truth;
use postgres::Client;
use std::collections::HashMap;

/// Where each transaction's commit record ends, by a slot of its own with PostgreSQL's
/// `test_decoding` plugin.
#[derive(Debug)]
pub struct Commits {
    slot: String,
    ends: HashMap<u64, Lsn>,
}

impl Commits {
    /// Makes the slot: transactions that begin from now on will be known.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    #[must_use]
    #[track_caller]
    pub fn watch(client: &mut Client, slot: &str) -> Self {
        client
            .execute("SELECT pg_create_logical_replication_slot($1, 'test_decoding')", &[&slot])
            .unwrap_or_else(|e| panic!("making slot {slot}: {e}"));
        Self { slot: slot.to_owned(), ends: HashMap::new() }
    }

    /// Takes in what was committed since: the transactions, and where each one's commit record ends.
    ///
    /// # Panics
    ///
    /// When the slot cannot be read.
    #[track_caller]
    pub fn read(&mut self, client: &mut Client) -> Vec<(u64, Lsn)> {
        // Binary: a message's content need not be text. A commit's row has the LSN where it ends.
        let query = "SELECT xid::text, lsn::text
            FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
                'include-xids', '1', 'force-binary', '1')
            WHERE substring(data FROM 1 FOR 6) = 'COMMIT'::bytea";
        let rows = client
            .query(query, &[&self.slot])
            .unwrap_or_else(|e| panic!("reading slot {}: {e}", self.slot));
        let mut commits = Vec::new();
        for row in rows {
            let xid = row.get::<_, &str>(0).parse().expect("a transaction number");
            let end = row.get::<_, &str>(1).parse().expect("a log position");
            commits.push((xid, end));
        }
        self.ends.extend(commits.iter().copied());
        commits
    }

    /// Where that transaction's commit record ends; `None` if it was not committed.
    #[must_use]
    pub fn end(&self, xid: u64) -> Option<Lsn> {
        self.ends.get(&xid).copied()
    }

    /// How many commits are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The facts that a relay which confirmed `confirmed` has promised to have in Kafka.
    ///
    /// # Panics
    ///
    /// When a fact's transaction is unknown: then the slot is younger, or was not read since.
    #[must_use]
    #[track_caller]
    pub fn at_or_below<'t>(&self, confirmed: Lsn, truth: &'t [Truth]) -> Vec<&'t Truth> {
        truth
            .iter()
            .filter(|fact| {
                let end = self.end(fact.xid);
                end.unwrap_or_else(|| panic!("transaction {} is unknown", fact.xid)) <= confirmed
            })
            .collect()
    }
}

/// Those of the transactions that a query would see by now. A commit is in the log, and decoded, a moment
/// before: on a busy machine its backend may not run for a while between the two.
///
/// # Panics
///
/// When the server does not tell.
#[must_use]
#[track_caller]
pub fn visible(client: &mut Client, xids: &[u64]) -> Vec<u64> {
    let query = "SELECT xid FROM unnest($1::bigint[]) AS xid
        WHERE pg_visible_in_snapshot(xid::text::xid8, pg_current_snapshot())";
    let xids: Vec<i64> = xids.iter().map(|xid| xid.cast_signed()).collect();
    let rows = client.query(query, &[&xids]).unwrap_or_else(|e| panic!("which are visible: {e}"));
    rows.iter().map(|row| row.get::<_, i64>(0).cast_unsigned()).collect()
}

/// A logical replication slot, as the server shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Everything before it is confirmed.
    pub confirmed: Lsn,
    /// Everything from it on is kept.
    pub restart: Lsn,
    /// How many bytes of log are kept because of it.
    pub retained: u64,
    /// The walsender that streams from it.
    pub active_pid: Option<i32>,
}

/// The slot, or `None` if there is none of that name.
///
/// # Panics
///
/// When the server does not tell.
#[must_use]
#[track_caller]
pub fn slot(client: &mut Client, name: &str) -> Option<Slot> {
    let query = "SELECT confirmed_flush_lsn::text, restart_lsn::text,
            (pg_current_wal_lsn() - restart_lsn)::bigint, active_pid
        FROM pg_replication_slots WHERE slot_name = $1";
    let row = client.query_opt(query, &[&name]).unwrap_or_else(|e| panic!("slot {name}: {e}"))?;
    let lsn =
        |text: Option<&str>| text.map_or(Lsn(0), |text| text.parse().expect("a log position"));
    Some(Slot {
        confirmed: lsn(row.get(0)),
        restart: lsn(row.get(1)),
        retained: row.get::<_, Option<i64>>(2).unwrap_or(0).max(0).cast_unsigned(),
        active_pid: row.get(3),
    })
}
