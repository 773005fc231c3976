use crate::executor::{BlockingExecutor, Executor, Parameter, Statement};
use crate::{EmitError, Lsn};
use std::error::Error;

/// Where the record before the position `$lsn` ends. The next record begins behind its page's header, of which nothing
/// is confirmed while the server is idle: what is confirmed ends with the last record, at the end of the page before.
macro_rules! end_before {
    ($lsn:literal) => {
        concat!(
            $lsn,
            " - CASE (",
            $lsn,
            " - '0/0') % page WHEN CASE WHEN (",
            $lsn,
            " - '0/0') % segment < page THEN 40 ELSE 24 END THEN (",
            $lsn,
            " - '0/0') % page ELSE 0 END"
        )
    };
}

/// How the server's log is divided.
macro_rules! log {
    () => {
        "(SELECT pg_catalog.current_setting('wal_block_size')::numeric AS page, \
                 pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')) AS segment) AS log"
    };
}

const WAIT_LSN: &str = concat!(
    "SELECT (",
    end_before!("lsn"),
    ")::text AS value FROM pg_catalog.pg_current_wal_insert_lsn() AS lsn, ",
    log!()
);

const PUBLISHED: &str = concat!(
    "SELECT (confirmed_flush_lsn >= ",
    end_before!("lsn"),
    ")::text AS value FROM pg_catalog.pg_replication_slots, (SELECT $1::text::pg_lsn AS lsn) AS given, ",
    log!(),
    " WHERE slot_name = $2::text AND database = pg_catalog.current_database()"
);

/// The position to wait for, read **after COMMIT**: everything that is committed by now lies before it.
///
/// It is `pg_current_wal_insert_lsn()`, or the end of the page before if that lies behind a page's header.
/// `owlpost wait --lsn`, `/wait?lsn=` of a relay's health port and [`published`] take it. The position that
/// [`emit`](crate::Emitter::emit) returned is none: a transaction's commit lies behind its messages, and the commit of
/// another one in between can take the relay past the message before yours is even committed.
///
/// Any session of the same server may ask, and must not be a standby's. Cancel safe.
///
/// # Errors
///
/// The driver's.
pub async fn wait_lsn<E: Executor + ?Sized>(session: &mut E) -> Result<Lsn, EmitError<E::Error>> {
    position(&session.run(&Statement { sql: WAIT_LSN, parameters: Vec::new() }).await?)
}

/// Whether everything before `lsn` is in Kafka, as the replication slot of the relay says; a relay's own name for it is
/// `factlib_slot`. It moves when the relay confirms, a few hundred milliseconds behind Kafka.
///
/// Asks once. To wait, ask the relay (`GET /wait?lsn=…` at its health port), which answers when it is so. Cancel safe.
///
/// # Errors
///
/// [`EmitError::NoSlot`], or the driver's.
pub async fn published<E: Executor + ?Sized>(
    session: &mut E,
    lsn: Lsn,
    slot: &str,
) -> Result<bool, EmitError<E::Error>> {
    let text = lsn.to_string();
    confirmed(slot, &session.run(&question(&text, slot)).await?)
}

/// [`wait_lsn`] for drivers that block.
///
/// # Errors
///
/// The driver's.
pub fn wait_lsn_blocking<E: BlockingExecutor + ?Sized>(
    session: &mut E,
) -> Result<Lsn, EmitError<E::Error>> {
    position(&session.run(&Statement { sql: WAIT_LSN, parameters: Vec::new() })?)
}

/// [`published`] for drivers that block.
///
/// # Errors
///
/// [`EmitError::NoSlot`], or the driver's.
pub fn published_blocking<E: BlockingExecutor + ?Sized>(
    session: &mut E,
    lsn: Lsn,
    slot: &str,
) -> Result<bool, EmitError<E::Error>> {
    let text = lsn.to_string();
    confirmed(slot, &session.run(&question(&text, slot))?)
}

fn question<'a>(lsn: &'a str, slot: &'a str) -> Statement<'a> {
    Statement { sql: PUBLISHED, parameters: vec![Parameter::Text(lsn), Parameter::Text(slot)] }
}

fn position<E: Error>(answer: &[Option<String>]) -> Result<Lsn, EmitError<E>> {
    let lsn = match answer {
        [Some(lsn)] => lsn.parse().ok(),
        _ => None,
    };
    lsn.ok_or(EmitError::Answer(WAIT_LSN))
}

fn confirmed<E: Error>(slot: &str, answer: &[Option<String>]) -> Result<bool, EmitError<E>> {
    match answer {
        // A physical slot confirms nothing.
        [] | [None] => Err(EmitError::NoSlot(slot.to_owned())),
        [Some(answer)] if answer == "true" => Ok(true),
        [Some(answer)] if answer == "false" => Ok(false),
        _ => Err(EmitError::Answer(PUBLISHED)),
    }
}
