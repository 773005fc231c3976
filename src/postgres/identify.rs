//! Everything that is asked before the stream, on the replication connection itself: no second
//! connection that could be on another server.

use super::connection::{Connection, Row};
use super::failure::Failure;
use super::setup::{self, Found, FoundPublication, FoundSlot, Names, Plan, set_up};
use crate::config::PostgresConfig;
use crate::relay::Identity;
use crate::relay::gone::{ExitKind, Gone, classify};
use crate::relay::pages::Pages;
use crate::relay::position::Timelines;
use crate::relay::seeded_bug::{Seeded, SeededBug};
use factlib_protocol::Lsn;
use factlib_protocol::handshake::HandshakeError;
use factlib_protocol::replication::{quote_literal, timeline_history, timeline_switches};
use std::future::Future;
use std::time::Duration;
use tokio::time::timeout;

/// How often a set-up is looked at anew when somebody else is at it too.
const RACES_MAX: u32 = 20;

/// A server that has let us in answers in milliseconds; one that is silent for this long is cut off.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What to ask, and what may be made.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The server.
    pub postgres: PostgresConfig,
    /// The slot.
    pub slot: String,
    /// The slot is made for this session, and ends with it.
    pub temporary: Option<Temporary>,
    /// Publication and slot may be made if neither is there, at the first contact.
    pub may_create: bool,
    /// Nothing is published, only looked at: for which prefixes the relay was set up does not matter.
    pub looks_on: bool,
    /// A slot that is made is one that standbys synchronise.
    pub failover: bool,
    /// The publication.
    pub publication: String,
    /// The prefixes of messages that are published.
    pub prefixes: Vec<String>,
    /// `wal_sender_timeout` of our session.
    pub wal_sender_timeout: Duration,
    /// `tcp_user_timeout` of our session, on the server's side.
    pub tcp_user_timeout: Duration,
    /// Which defect the relay has, if any.
    pub seeded: Seeded,
    /// The cluster that the relay has been connected to; none if it has not. Only then publication and
    /// slot may be made if neither is there: a slot that disappeared took facts with it.
    pub known_system: Option<u64>,
    /// Other prefixes than before may be recorded: what has none of them will be passed over.
    pub may_change_prefixes: bool,
}

/// A slot that ends with the session that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Temporary {
    /// One that begins now: at the first moment without a transaction that is older.
    Fresh,
    /// A copy of another.
    CopyOf {
        /// The other, which stays as it is.
        slot: String,
        /// Moved on to there.
        from: Option<Lsn>,
    },
}

/// A connection that is ready for START_REPLICATION.
#[derive(Debug)]
pub struct Identified {
    /// The connection.
    pub connection: Connection,
    /// Who the server is and where the slot stands.
    pub identity: Identity,
    /// The consistent point, if the slot was made just now.
    pub created: Option<Lsn>,
    /// How the server divides its log.
    pub pages: Option<Pages>,
}

/// Connects, identifies the system, and checks that slot and publication are there, or makes them.
///
/// # Errors
///
/// [`Gone`], classified: to try again, refused, or final.
///
/// # Cancel safety
///
/// Dropping the future closes the connection. A set-up that it interrupts is resumed by the next.
pub async fn identify(ask: &Ask) -> Result<Identified, Gone> {
    let mut connection = Connection::connect(&ask.postgres).await.map_err(gone)?;
    answered(prepare(&mut connection, ask)).await.map_err(gone)?;
    make_temporary(&mut connection, ask).await.map_err(gone)?;
    let first = ask.known_system.is_none();
    let mut may_create = first && ask.may_create && ask.temporary.is_none();
    let mut created = None;
    for _ in 0..RACES_MAX {
        let (identity, found) = answered(look(&mut connection, ask)).await.map_err(gone)?;
        let names = Names {
            slot: &ask.slot,
            publication: &ask.publication,
            prefixes: &ask.prefixes,
            failover: ask.failover,
        };
        let other = setup::refuse_other(&found, ask.known_system);
        let mut plan = other.unwrap_or_else(|| setup::plan(&found, names));
        let dropped = found.publication.is_some() && found.slot.is_none();
        let pages = found.pages;
        if ask.seeded.is(SeededBug::RecreateSlot) && dropped {
            (plan, may_create) = (Plan::CreateSlot, true);
        }
        match &plan {
            Plan::OtherPrefixes { .. } if ask.may_change_prefixes => {
                set_up(&mut connection, &plan, &found, names).await.map_err(gone)?;
            }
            Plan::OtherPrefixes { dropped, .. } if !dropped.is_empty() && !ask.looks_on => {
                return Err(Gone::Terminal(ExitKind::Slot, dropped_words(ask, dropped)));
            }
            Plan::OtherPrefixes { .. } | Plan::Finish if ask.looks_on => {
                return Ok(Identified { connection, identity, created, pages });
            }
            Plan::Ready { .. } | Plan::OtherPrefixes { .. } => {
                if first {
                    remark(ask, &plan);
                    if let Some(words) = setup::computed(&ask.slot, identity.confirmed_flush) {
                        tracing::warn!(slot = ask.slot, lsn = %identity.confirmed_flush, "{words}");
                    }
                    if let Some(words) = setup::outdated(found.version) {
                        tracing::warn!(slot = ask.slot, "{words}");
                    }
                }
                if first && found.publication.is_some_and(|found| found.has_tables) {
                    tracing::warn!(
                        publication = ask.publication,
                        "the publication has tables: their rows are sent to us and thrown away"
                    );
                }
                return Ok(Identified { connection, identity, created, pages });
            }
            Plan::Wait(reason) => return Err(Gone::Lost(reason.clone())),
            Plan::Refuse(kind, reason) => return Err(Gone::Terminal(*kind, reason.clone())),
            Plan::Create | Plan::CreateSlot | Plan::Finish if !may_create => {
                let Ask { slot, publication, .. } = ask;
                let reason = match first {
                    true => format!(
                        "slot {slot} and publication {publication} are not there, or not whole: `owlpost \
                         init` makes them"
                    ),
                    false => format!(
                        "slot {slot} and publication {publication} have disappeared: facts committed since \
                         are not delivered; to accept that gap, run `owlpost init`"
                    ),
                };
                return Err(Gone::Terminal(ExitKind::Slot, reason));
            }
            Plan::Create | Plan::CreateSlot | Plan::Finish => {
                match set_up(&mut connection, &plan, &found, names).await {
                    Ok(point) => {
                        created = created.or(point);
                        // Look once more: what is reported is what the server has.
                        may_create = false;
                    }
                    // The failed transaction is rolled back; the other's work is found next time.
                    Err(failure) if setup::is_race(&failure) => {
                        connection.query("ROLLBACK").await.map_err(gone)?;
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    Err(failure) => return Err(gone(failure)),
                }
            }
        }
    }
    let reason = format!("slot {} and publication {} keep changing", ask.slot, ask.publication);
    Err(Gone::Lost(reason))
}

/// Says what is not as `owlpost init` leaves it, and no reason to stop.
fn remark(ask: &Ask, plan: &Plan) {
    match plan {
        Plan::Ready { adopted: true } => tracing::info!(
            publication = ask.publication,
            slot = ask.slot,
            "adopted: the publication was not made by owlpost, so a change of cluster cannot be \
             noticed by its comment, nor a change of prefixes"
        ),
        Plan::OtherPrefixes { added, .. } => tracing::warn!(
            slot = ask.slot,
            prefixes = added.join(", "),
            "new prefixes: facts with them that were committed before now may have been passed over; \
             `owlpost init` records them"
        ),
        _ => {}
    }
}

/// Why prefixes that were published may not be left out by a slip.
pub(crate) fn dropped_words(ask: &Ask, dropped: &[String]) -> String {
    format!(
        "slot {} was set up for the prefix {} too, and WAL_PREFIX ({}) leaves it out: its facts would be \
         passed over for good; correct WAL_PREFIX, or run `owlpost init` with it to accept that",
        ask.slot,
        dropped.join(", "),
        ask.prefixes.join(",")
    )
}

/// Settings of our session that keep the server well: a relay that hangs is dropped within seconds,
/// whatever the server's own settings are. Both may be set by anybody, and last as long as the
/// session; Unix sockets ignore the second.
///
/// And none that is meant for applications: to the server, sending a large transaction is one that lasts as long, which
/// `transaction_timeout` would end in the middle again and again; and a slot that is made waits for a lock of each
/// transaction that is open. That we wait in vain is for our own clock to say.
pub(super) async fn prepare(connection: &mut Connection, ask: &Ask) -> Result<(), Failure> {
    let (sender, user) = (ask.wal_sender_timeout.as_millis(), ask.tcp_user_timeout.as_millis());
    // Not all of these are known to every version.
    let sql = format!(
        "SET wal_sender_timeout = {sender}; SET tcp_user_timeout = {user}; \
         SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
         WHERE name IN ({OF_APPLICATIONS}) AND setting <> '0'"
    );
    connection.query(&sql).await?;
    Ok(())
}

/// Time-outs that end what an application does for too long.
const OF_APPLICATIONS: &str = "'statement_timeout', 'lock_timeout', 'transaction_timeout', \
     'idle_in_transaction_session_timeout', 'idle_session_timeout'";

/// Makes the slot of this session, which may take as long as a transaction that is open stays so, or reading the
/// log up to where it is moved.
async fn make_temporary(connection: &mut Connection, ask: &Ask) -> Result<(), Failure> {
    let slot = quote_literal(&ask.slot);
    match &ask.temporary {
        None => {}
        Some(Temporary::CopyOf { slot: original, from }) => {
            let original = quote_literal(original);
            let sql = format!("SELECT pg_copy_logical_replication_slot({original}, {slot}, true)");
            answered(connection.query(&sql)).await?;
            if let Some(from) = from {
                // It may not be moved to where it is already.
                let sql = format!(
                    "SELECT pg_replication_slot_advance(slot_name, '{from}') FROM pg_replication_slots \
                     WHERE slot_name = {slot} AND confirmed_flush_lsn < '{from}'"
                );
                connection.query(&sql).await?;
            }
        }
        Some(Temporary::Fresh) => setup::create_temporary(connection, &ask.slot).await?,
    }
    Ok(())
}

/// Gives up on a question that has had no answer for [`ANSWER_MAX`]. Only making a slot may take longer.
pub(super) async fn answered<T>(
    question: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(ANSWER_MAX, question).await.unwrap_or(Err(Failure::Silent))
}

pub(super) async fn look(
    connection: &mut Connection,
    ask: &Ask,
) -> Result<(Identity, Found), Failure> {
    let cluster = identify_system(connection).await?;
    look_at(connection, ask, cluster).await
}

/// Which cluster it is, and how far its log goes.
pub(super) struct Cluster {
    pub(super) system: u64,
    pub(super) timeline: u32,
    pub(super) wal_flushed: Lsn,
    /// Timelines before, and where each ended.
    pub(super) history: Vec<(u32, Lsn)>,
}

/// Which cluster a server is of, and its timelines: IDENTIFY_SYSTEM and TIMELINE_HISTORY, for which a walsender is taken
/// for a moment.
///
/// # Errors
///
/// [`Gone`], classified.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
pub async fn identify_cluster(config: &PostgresConfig) -> Result<(u64, Timelines), Gone> {
    let mut connection = Connection::connect(config).await.map_err(gone)?;
    let cluster = answered(identify_system(&mut connection)).await.map_err(gone)?;
    Ok((cluster.system, Timelines::new(cluster.timeline, cluster.history)))
}

async fn identify_system(connection: &mut Connection) -> Result<Cluster, Failure> {
    let command = "IDENTIFY_SYSTEM";
    let answer = Failure::Answer { command };
    let rows = connection.query(command).await?;
    let row = rows.first().ok_or(answer)?;
    let system = number(row, 0, command)?;
    let timeline = number(row, 1, command)?;
    let wal_flushed = number(row, 2, command)?;
    let history = if timeline > 1 {
        let rows = connection.query(&timeline_history(timeline)).await?;
        let content = rows.first().and_then(|row| row.get(1)?.as_deref()).unwrap_or_default();
        timeline_switches(content.as_bytes())
            .map_err(|_| Failure::Answer { command: "TIMELINE_HISTORY" })?
            .into_iter()
            .map(|entry| (entry.timeline, entry.switch))
            .collect()
    } else {
        Vec::new()
    };
    Ok(Cluster { system, timeline, wal_flushed, history })
}

/// Slot, publication and settings, of which ordinary sessions may ask, too.
pub(super) async fn look_at(
    connection: &mut Connection,
    ask: &Ask,
    cluster: Cluster,
) -> Result<(Identity, Found), Failure> {
    let Cluster { system, timeline, wal_flushed, history } = cluster;
    let command = "the query for slot and publication";
    let slot = quote_literal(&ask.slot);
    let publication = quote_literal(&ask.publication);
    let sql = format!(
        "SELECT d.oid, d.datname, current_setting('server_version_num'), \
                current_setting('wal_level'), \
                p.oid, obj_description(p.oid, 'pg_publication'), \
                p.puballtables OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid), \
                s.slot_name, s.plugin, s.database, to_jsonb(s) ->> 'wal_status', \
                (to_jsonb(s) ->> 'two_phase')::boolean, s.confirmed_flush_lsn, \
                to_jsonb(s) ->> 'synced', pg_is_in_recovery(), \
                current_setting('synchronous_standby_names'), \
                current_setting('application_name'), current_setting('wal_block_size'), \
                pg_size_bytes(current_setting('wal_segment_size')) \
         FROM pg_database d \
         LEFT JOIN pg_publication p ON p.pubname = {publication} \
         LEFT JOIN pg_replication_slots s ON s.slot_name = {slot} \
         WHERE d.datname = current_database()"
    );
    let rows = connection.query(&sql).await?;
    let row = rows.first().ok_or(Failure::Answer { command })?;
    let publication = text(row, 4).map(|_| FoundPublication {
        comment: text(row, 5),
        has_tables: text(row, 6).as_deref() == Some("t"),
    });
    let slot = match text(row, 7) {
        None => None,
        Some(_) => Some(FoundSlot {
            plugin: text(row, 8),
            database: text(row, 9),
            wal_status: text(row, 10),
            two_phase: text(row, 11).as_deref() == Some("t"),
            confirmed_flush: match text(row, 12) {
                None => None,
                Some(_) => Some(number(row, 12, command)?),
            },
            synced: text(row, 13).as_deref() == Some("true"),
        }),
    };
    let identity = Identity {
        system,
        timeline,
        wal_flushed,
        history,
        database: number(row, 0, command)?,
        confirmed_flush: slot.as_ref().and_then(|slot| slot.confirmed_flush).unwrap_or_default(),
    };
    let found = Found {
        system,
        database: text(row, 1).unwrap_or_default(),
        version: number(row, 2, command)?,
        wal_level: text(row, 3).unwrap_or_default(),
        in_recovery: text(row, 14).as_deref() == Some("t"),
        synchronous_standby_names: text(row, 15).unwrap_or_default(),
        application_name: text(row, 16).unwrap_or_default(),
        pages: Pages::new(number(row, 17, command)?, number(row, 18, command)?),
        publication,
        slot,
    };
    Ok((identity, found))
}

fn text(row: &Row, column: usize) -> Option<String> {
    row.get(column).cloned().flatten()
}

fn number<T: std::str::FromStr>(
    row: &Row,
    column: usize,
    command: &'static str,
) -> Result<T, Failure> {
    text(row, column).and_then(|text| text.parse().ok()).ok_or(Failure::Answer { command })
}

/// What a failure before the stream leads to.
pub(super) fn gone(failure: Failure) -> Gone {
    let words = failure.to_string();
    match failure {
        Failure::Server(error) | Failure::Login(HandshakeError::Server(error)) => classify(&error),
        Failure::Tls { ref failure, .. } if failure.may_pass() => Gone::Lost(words),
        // Waiting does not change any of these; a name may be new, but then the start can be too.
        Failure::UnknownHost(_)
        | Failure::Login(_)
        | Failure::Random(_)
        | Failure::Tls { .. }
        | Failure::Alert(_) => Gone::Refused(ExitKind::Unreachable, words),
        // One of the two is what was meant to work; if that may pass, so may both.
        Failure::Neither { tls, clear } => match (gone(*tls), gone(*clear)) {
            (Gone::Refused(kind, _), Gone::Refused(..)) => Gone::Refused(kind, words),
            _ => Gone::Lost(words),
        },
        _ => Gone::Lost(words),
    }
}

impl From<Failure> for Gone {
    fn from(failure: Failure) -> Self {
        gone(failure)
    }
}
