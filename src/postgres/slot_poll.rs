//! Asks what the slot keeps and what threatens it, on an ordinary connection: the stream's own has no room for
//! questions, and a second walsender could take the last.

use super::connection::{Connection, Row};
use super::failure::Failure;
use crate::config::PostgresConfig;
use crate::metrics::{OtherSlots, SlotFacts, WalRate};
use factlib_protocol::Lsn;
use factlib_protocol::replication::quote_literal;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The answer takes milliseconds; one that takes this long is not waited for.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The connection, kept between two questions.
#[derive(Debug)]
pub struct SlotPoll {
    postgres: PostgresConfig,
    slot: String,
    connection: Option<Connection>,
    rate: WalRate,
}

impl SlotPoll {
    /// Nothing is contacted yet.
    pub fn new(postgres: &PostgresConfig, slot: &str) -> Self {
        Self {
            postgres: postgres.clone(),
            slot: slot.to_owned(),
            connection: None,
            rate: WalRate::default(),
        }
    }

    /// Connects anew the next time: the stream is perhaps at another server now.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    /// What the server says; none if there is no slot.
    ///
    /// # Errors
    ///
    /// [`Failure`], after five seconds at the latest. A connection that has broken since the last question is
    /// made anew once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn ask(&mut self) -> Result<Option<SlotFacts>, Failure> {
        let kept = self.connection.take();
        timeout(ANSWER_MAX, self.ask_with(kept)).await.unwrap_or(Err(Failure::Silent))
    }

    async fn ask_with(&mut self, kept: Option<Connection>) -> Result<Option<SlotFacts>, Failure> {
        let query = query(&self.slot);
        if let Some(mut connection) = kept
            && let Ok(rows) = connection.query(&query).await
        {
            self.connection = Some(connection);
            return self.read(&rows);
        }
        let mut connection = Connection::connect_ordinary(&self.postgres).await?;
        // So that the server does not work on for nobody, and keeps the session until the next question.
        let limit = format!(
            "SET statement_timeout = {}; SET idle_session_timeout = 0",
            ANSWER_MAX.as_millis()
        );
        connection.query(&limit).await?;
        let rows = connection.query(&query).await?;
        self.connection = Some(connection);
        self.read(&rows)
    }

    fn read(&mut self, rows: &[Row]) -> Result<Option<SlotFacts>, Failure> {
        let at = now();
        let answer = Failure::Answer { command: "the query for the slot's statistics" };
        let row = rows.first().ok_or(answer)?;
        let wal_flushed = number(row, 0).unwrap_or(Lsn::INVALID);
        let wal_rate = self.rate.measure(at, wal_flushed);
        if text(row, 1).is_none() {
            return Ok(None);
        }
        let count = |column| number(row, column).unwrap_or(0);
        Ok(Some(SlotFacts {
            at,
            wal_flushed,
            active: text(row, 1) == Some("t"),
            wal_status: text(row, 2).unwrap_or_default().to_owned(),
            confirmed_flush: number(row, 3).unwrap_or(Lsn::INVALID),
            // Less than nothing is what a flush between two function calls makes of it.
            retained_bytes: number::<i64>(row, 4).map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            safe_wal_bytes: number(row, 5),
            invalidation_reason: text(row, 6).map(str::to_owned),
            unsent_bytes: number::<i64>(row, 7).map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            oldest_transaction: number(row, 8),
            others: OtherSlots {
                active: count(9),
                inactive: count(10),
                lost: count(11),
                retained_bytes: number::<i64>(row, 12)
                    .and_then(|b| u64::try_from(b).ok())
                    .unwrap_or(0),
            },
            wal_rate,
        }))
    }
}

/// One row, also without a slot. What servers before 17 do not have is read through JSON, and what a role
/// without pg_monitor may not see is NULL rather than wrong.
fn query(slot: &str) -> String {
    let slot = quote_literal(slot);
    format!(
        "WITH wal AS (\
           SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() \
                  ELSE pg_current_wal_flush_lsn() END AS flushed), \
         other AS (\
           SELECT count(*) FILTER (WHERE active) AS active, \
                  count(*) FILTER (WHERE NOT active AND wal_status IS DISTINCT FROM 'lost') AS inactive, \
                  count(*) FILTER (WHERE wal_status = 'lost') AS lost, \
                  max(pg_wal_lsn_diff(flushed, restart_lsn)) AS retained \
           FROM pg_replication_slots, wal WHERE slot_name <> {slot}) \
         SELECT flushed, s.active, s.wal_status, s.confirmed_flush_lsn, \
                pg_wal_lsn_diff(flushed, s.restart_lsn), s.safe_wal_size, \
                to_jsonb(s) ->> 'invalidation_reason', \
                (SELECT pg_wal_lsn_diff(flushed, r.sent_lsn) FROM pg_stat_replication r \
                  WHERE r.pid = s.active_pid), \
                CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') THEN (\
                  SELECT coalesce(max(extract(epoch FROM clock_timestamp() - begun)), 0) \
                  FROM (SELECT xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL \
                        UNION ALL SELECT prepared FROM pg_prepared_xacts) open (begun)) END, \
                other.active, other.inactive, other.lost, other.retained \
         FROM wal CROSS JOIN other \
         LEFT JOIN pg_replication_slots s ON s.slot_name = {slot}"
    )
}

fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

fn number<T: std::str::FromStr>(row: &Row, column: usize) -> Option<T> {
    text(row, column)?.parse().ok()
}

#[expect(clippy::disallowed_methods, reason = "a driver")]
fn now() -> Instant {
    Instant::now()
}
