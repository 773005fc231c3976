//! Publication and slot: what must be there, and how it gets there.
//!
//! The publication comes first, and its comment says how far the set-up is, so that an interrupted
//! one resumes and anything else half there is refused: the slot is the only thing between a crash
//! and the loss of facts, and nothing is ever re-created silently. Before PostgreSQL 18 a slot that
//! is older than its publication cannot decode past the first row change.

use super::connection::Connection;
use super::failure::Failure;
use super::synchronous::names_us;
use crate::relay::gone::{ExitKind, another_cluster};
use crate::relay::pages::Pages;
use factlib_protocol::backend::SqlState;
use factlib_protocol::replication::{
    SlotKind, Snapshot, create_slot, quote_identifier, quote_literal,
};
use factlib_protocol::session::SessionError;
use factlib_protocol::{EncodeError, Lsn};

const COMMENT: &str = "owlpost: ";
const INITIALISING: &str = "initialising";
const SLOT: &str = "slot ";
const SYSTEM: &str = "system ";
/// Separated by spaces, which no prefix has.
const PREFIXES: &str = "prefixes ";
const CONSISTENT_POINT: &str = "consistent point ";
/// Where a gap begins that was accepted, until the new slot is there.
const GAP: &str = "gap from ";

/// The names that the configuration gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names<'a> {
    /// The replication slot.
    pub slot: &'a str,
    /// The publication.
    pub publication: &'a str,
    /// The prefixes of messages that are published.
    pub prefixes: &'a [String],
    /// A slot that is made is one that standbys synchronise.
    pub failover: bool,
}

/// What the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// IDENTIFY_SYSTEM: `systemid`.
    pub system: u64,
    /// The database we are connected to.
    pub database: String,
    /// `server_version_num`.
    pub version: u32,
    /// `wal_level`.
    pub wal_level: String,
    /// `pg_is_in_recovery()`: a standby.
    pub in_recovery: bool,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: String,
    /// `application_name` of our session.
    pub application_name: String,
    /// How it divides its log.
    pub pages: Option<Pages>,
    /// The publication of the configured name.
    pub publication: Option<FoundPublication>,
    /// The slot of the configured name.
    pub slot: Option<FoundSlot>,
}

/// The publication as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPublication {
    /// Its comment.
    pub comment: Option<String>,
    /// It publishes tables, whose rows we would be sent for nothing.
    pub has_tables: bool,
}

/// The slot as it is: a row of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSlot {
    /// `plugin`; none for a physical slot.
    pub plugin: Option<String>,
    /// `database`; none for a physical slot.
    pub database: Option<String>,
    /// `wal_status`: reserved, extended, unreserved, lost.
    pub wal_status: Option<String>,
    /// `two_phase`.
    pub two_phase: bool,
    /// `confirmed_flush_lsn`; none while the slot is being made, and for a physical one.
    pub confirmed_flush: Option<Lsn>,
    /// `synced` (17 and later): a standby's copy of its primary's slot.
    pub synced: bool,
}

/// What follows from what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Both are there and belong together.
    Ready {
        /// The publication was made by somebody else; its comment cannot vouch for it.
        adopted: bool,
    },
    /// Neither is there: make both.
    Create,
    /// Making them was interrupted before the slot was there.
    CreateSlot,
    /// Making them was interrupted after the slot was there.
    Finish,
    /// Both are there, and were made for other prefixes.
    OtherPrefixes {
        /// They were published, and would be passed over.
        dropped: Vec<String>,
        /// They are new.
        added: Vec<String>,
    },
    /// Nothing can be said yet: look again later.
    Wait(String),
    /// A person must decide.
    Refuse(ExitKind, String),
}

/// Refuses a cluster that is not the one with this system id. What it lacks was never there, so what
/// [`plan`] says of slots and publications that are gone is not true of it.
pub(super) fn refuse_other(found: &Found, known_system: Option<u64>) -> Option<Plan> {
    let known = known_system.filter(|known| *known != found.system)?;
    Some(Plan::Refuse(ExitKind::OtherCluster, another_cluster(found.system, known)))
}

/// The first minor version of each major in which `confirmed_flush_lsn` never goes back while a slot is in use.
const SOUND: [(u32, u32); 4] = [(14, 19), (15, 14), (16, 10), (17, 6)];

/// Why another minor version would be better, if one would: `version` is `server_version_num`.
pub(crate) fn outdated(version: u32) -> Option<String> {
    let (major, minor) = (version / 10_000, version % 10_000);
    let (_, sound) = SOUND.iter().find(|(known, sound)| *known == major && minor < *sound)?;
    Some(format!(
        "PostgreSQL {major}.{minor} has defects of logical slots that {major}.{sound} does not have: a slot's \
         position may go back, and facts may then come again; update the server"
    ))
}

/// Every record of the log ends at a multiple of this, and so does every position that a server names: MAXALIGN of all
/// platforms but i386, where it is half.
const ALIGNMENT: u64 = 8;

/// What is known of a slot that stands where no record ends. This stays visible when the log has passed the place.
pub(crate) fn computed(slot: &str, confirmed: Lsn) -> Option<String> {
    (!confirmed.0.is_multiple_of(ALIGNMENT)).then(|| {
        format!(
            "slot {slot} stands at {confirmed}, where no record of the log ends: whoever had it computed that place, \
             as factlib's relay does, which adds the length of the last fact that it published to where that ends; \
             what was committed within that length before {confirmed} may not have been delivered, and is not sent any more; \
             docs/migrating.md says how to find it"
        )
    })
}

/// Decides. Pure.
pub fn plan(found: &Found, names: Names<'_>) -> Plan {
    let unsuitable =
        [too_old(found), without_failover(found, names), not_logical(found), synchronous(found)];
    match unsuitable.into_iter().flatten().next() {
        Some(reason) => Plan::Refuse(ExitKind::Unsuitable, reason),
        None => plan_of_objects(found, names),
    }
}

/// Why the server's version will not do, if it will not.
pub(crate) fn too_old(found: &Found) -> Option<String> {
    let version = found.version / 10_000;
    (version < 14).then(|| {
        format!(
            "PostgreSQL {version} cannot stream logical messages through pgoutput; 14 or later can"
        )
    })
}

/// Why the slot cannot be made as it is to be, if it cannot.
pub(crate) fn without_failover(found: &Found, names: Names<'_>) -> Option<String> {
    let version = found.version / 10_000;
    (names.failover && version < 17 && found.slot.is_none()).then(|| {
        format!(
            "PostgreSQL {version} has no slots that standbys follow, 17 has; leave REPLICATION_SLOT_FAILOVER out"
        )
    })
}

/// Why nothing can be decoded, if so.
pub(crate) fn not_logical(found: &Found) -> Option<String> {
    let Found { wal_level, .. } = found;
    (wal_level != "logical").then(|| {
        format!(
            "wal_level is {wal_level}, and logical decoding needs logical; set wal_level = logical in \
             postgresql.conf and restart the server"
        )
    })
}

/// Why the relay would hold up every COMMIT, if it would. A standby has no standbys of its own that count.
pub(crate) fn synchronous(found: &Found) -> Option<String> {
    let Found { synchronous_standby_names, application_name, .. } = found;
    (!found.in_recovery && names_us(synchronous_standby_names, application_name)).then(|| {
        format!(
            "synchronous_standby_names is {synchronous_standby_names:?} and would make this session \
             (application_name {application_name}) a synchronous standby, for which every COMMIT waits; name \
             the standbys that are meant, or choose another APP_NAME"
        )
    })
}

/// What follows from slot and publication on a server that will do.
pub(crate) fn plan_of_objects(found: &Found, names: Names<'_>) -> Plan {
    let Names { slot: slot_name, publication: publication_name, prefixes, .. } = names;
    let comment = found.publication.as_ref().and_then(|found| found.comment.as_deref());
    let ours = comment.and_then(|comment| comment.strip_prefix(COMMENT));
    if let Some(ours) = ours
        && field(ours, SYSTEM) != Some(&found.system.to_string())
    {
        let reason = format!(
            "publication {publication_name} was made for another cluster (its comment: {ours:?}; this \
             one is {SYSTEM}{}): a restored or copied database; make a new publication and slot with \
             `owlpost init` under other names, or drop these",
            found.system
        );
        return Plan::Refuse(ExitKind::OtherCluster, reason);
    }
    let initialising = ours.is_some_and(|ours| ours.starts_with(INITIALISING));
    let open_gap = ours.filter(|_| initialising).and_then(|ours| field(ours, GAP));
    if found.in_recovery && found.slot.as_ref().is_none_or(|slot| slot.synced) {
        // On its way to be the primary, or the wrong address: nothing is lost either way.
        let reason = format!(
            "this server is a standby, and slot {slot_name} is its primary's; name the primary in \
             MASTER_DATABASE_URL, or all hosts"
        );
        return Plan::Wait(reason);
    }
    if let Some(slot) = &found.slot
        && let Some(reason) = unusable(slot, found, slot_name)
    {
        return Plan::Refuse(ExitKind::Slot, reason);
    }
    if let Some(FoundSlot { confirmed_flush: None, .. }) = &found.slot {
        // The set-up that makes it will say where it begins; if it dies, the slot goes with it.
        let reason = format!(
            "slot {slot_name} is being made by another session, which waits for open transactions to end"
        );
        return Plan::Wait(reason);
    }
    let other_slot = ours.and_then(|ours| field(ours, SLOT));
    match (&found.publication, &found.slot) {
        (Some(_), None) if other_slot.is_some_and(|other| other != slot_name) => {
            let other = other_slot.unwrap_or_default();
            let reason = format!(
                "publication {publication_name} belongs to slot {other}, and slot {slot_name} is not \
                 there: check REPLICATION_SLOT_NAME, or choose another PUBLICATION_NAME for a new slot"
            );
            Plan::Refuse(ExitKind::Slot, reason)
        }
        (None, None) => Plan::Create,
        (Some(_), _) if open_gap.is_some() => {
            let from = open_gap.unwrap_or_default();
            let reason = format!(
                "facts committed after {from} may not be delivered: the gap was accepted, and making slot \
                 {slot_name} anew was interrupted; to go on, run `owlpost init --accept-gap` again"
            );
            Plan::Refuse(ExitKind::Slot, reason)
        }
        (Some(_), None) if initialising => Plan::CreateSlot,
        (Some(_), Some(_)) if initialising => Plan::Finish,
        (Some(_), Some(_)) => match ours.and_then(|ours| field(ours, PREFIXES)) {
            Some(recorded) => compare_prefixes(recorded, prefixes),
            None => Plan::Ready { adopted: ours.is_none() },
        },
        (Some(_), None) => {
            let reason = format!(
                "publication {publication_name} is there, but slot {slot_name} is not: it was dropped \
                 or never came along with a failover or a restore, and facts committed since are not \
                 delivered; to accept that gap, run `owlpost init --accept-gap`"
            );
            Plan::Refuse(ExitKind::Slot, reason)
        }
        (None, Some(_)) => {
            let reason = format!(
                "slot {slot_name} is there, but publication {publication_name} is not: before \
                 PostgreSQL 18 the slot cannot be read past the first row change; if the name is \
                 right, drop the slot (facts in it are lost) and run `owlpost init`"
            );
            Plan::Refuse(ExitKind::Publication, reason)
        }
    }
}

fn compare_prefixes(recorded: &str, prefixes: &[String]) -> Plan {
    let recorded: Vec<&str> = recorded.split(' ').collect();
    let dropped = recorded.iter().filter(|known| !prefixes.iter().any(|prefix| prefix == *known));
    let dropped: Vec<String> = dropped.map(|prefix| (*prefix).to_owned()).collect();
    let added = prefixes.iter().filter(|prefix| !recorded.contains(&prefix.as_str()));
    let added: Vec<String> = added.cloned().collect();
    if dropped.is_empty() && added.is_empty() {
        Plan::Ready { adopted: false }
    } else {
        Plan::OtherPrefixes { dropped, added }
    }
}

fn unusable(slot: &FoundSlot, found: &Found, name: &str) -> Option<String> {
    if slot.plugin.as_deref() != Some("pgoutput") {
        let is = match &slot.plugin {
            Some(plugin) => format!("uses the output plugin {plugin}"),
            None => "is a physical slot".to_owned(),
        };
        return Some(format!("slot {name} {is}; choose another REPLICATION_SLOT_NAME"));
    }
    if slot.database.as_deref() != Some(found.database.as_str()) {
        let database = slot.database.as_deref().unwrap_or("none");
        return Some(format!(
            "slot {name} belongs to database {database}, not to {}; slots are named per cluster: \
             choose another REPLICATION_SLOT_NAME",
            found.database
        ));
    }
    if slot.two_phase {
        return Some(format!(
            "slot {name} decodes two-phase transactions, whose facts would come before they are \
             committed; make one without two_phase"
        ));
    }
    if slot.wal_status.as_deref() == Some("lost") {
        return Some(format!(
            "slot {name} is lost: the server removed WAL it still needed (max_slot_wal_keep_size), and \
             the facts committed after {} are not delivered; to accept that gap, run `owlpost init \
             --accept-gap`",
            slot.confirmed_flush.unwrap_or_default()
        ));
    }
    None
}

/// A part of the publication's comment.
fn field<'a>(comment: &'a str, name: &str) -> Option<&'a str> {
    comment.split(", ").find_map(|part| part.strip_prefix(name))
}

/// Carries out a plan that makes something, and returns the slot's consistent point: facts committed
/// after it are delivered, earlier ones are not.
///
/// # Errors
///
/// What the server said. Whatever was made is found, and resumed, by the next attempt.
pub async fn set_up(
    connection: &mut Connection,
    plan: &Plan,
    found: &Found,
    names: Names<'_>,
) -> Result<Option<Lsn>, Failure> {
    let publication = quote_identifier(names.publication);
    let system = found.system;
    if *plan == Plan::Create {
        let comment = quote_literal(&format!("{COMMENT}{INITIALISING}, {SYSTEM}{system}"));
        let sql = format!(
            "BEGIN; CREATE PUBLICATION {publication}; \
             COMMENT ON PUBLICATION {publication} IS {comment}; COMMIT"
        );
        connection.query(&sql).await?;
    }
    let point = match plan {
        Plan::Create | Plan::CreateSlot => create(connection, found, names).await?,
        Plan::Finish => match &found.slot {
            Some(FoundSlot { confirmed_flush: Some(point), .. }) => *point,
            _ => return Ok(None),
        },
        Plan::OtherPrefixes { .. } => {
            let comment = found.publication.as_ref().and_then(|found| found.comment.as_deref());
            let point = comment.and_then(|comment| field(comment, CONSISTENT_POINT)?.parse().ok());
            describe(connection, found, names, point.unwrap_or_default()).await?;
            return Ok(None);
        }
        Plan::Ready { .. } | Plan::Wait(_) | Plan::Refuse(..) => return Ok(None),
    };
    describe(connection, found, names, point).await?;
    Ok(Some(point))
}

/// Makes the slot; its consistent point.
async fn create(
    connection: &mut Connection,
    found: &Found,
    names: Names<'_>,
) -> Result<Lsn, Failure> {
    let kind = kind(names.failover);
    let command = create_slot(names.slot, false, kind, found.version / 10_000);
    made(connection, names.slot, command).await
}

/// Makes a slot that ends with the session.
pub(super) async fn create_temporary(
    connection: &mut Connection,
    slot: &str,
) -> Result<(), Failure> {
    // Every server still reads what the oldest one does.
    made(connection, slot, create_slot(slot, true, kind(false), 14)).await?;
    Ok(())
}

fn kind(failover: bool) -> SlotKind<'static> {
    let snapshot = Snapshot::Nothing;
    SlotKind::Logical { plugin: "pgoutput", snapshot, two_phase: false, failover }
}

async fn made(
    connection: &mut Connection,
    slot: &str,
    command: Result<String, EncodeError>,
) -> Result<Lsn, Failure> {
    let command = command.map_err(SessionError::from)?;
    for blocker in open_transactions(connection).await? {
        tracing::warn!(slot, "the slot waits for a transaction that is open: {blocker}");
    }
    let rows = connection.query(&command).await?;
    let point = rows.first().and_then(|row| row.get(1)?.as_deref()?.parse().ok());
    point.ok_or(Failure::Answer { command: "CREATE_REPLICATION_SLOT" })
}

/// Where a slot that is lost leaves a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The last position of which is known that it was confirmed: facts committed before it are in Kafka.
    pub from: Lsn,
    /// True if `from` is the slot's own position; else it is older, from the publication's comment, and what was
    /// confirmed between is not known.
    pub exact: bool,
    /// Something is left of the slot, to be dropped.
    pub drop: bool,
    /// An interrupted call has made the slot, which begins there.
    pub made: Option<Lsn>,
}

/// Whether a gap can be accepted: the slot is lost or gone, and the publication says that it was ours. Pure.
///
/// # Errors
///
/// The reason to leave everything as it is.
pub(super) fn gap(found: &Found, names: Names<'_>) -> Result<Gap, (ExitKind, String)> {
    let (slot_name, publication_name) = (names.slot, names.publication);
    let refuse = |kind, reason: String| Err((kind, reason));
    let comment = found.publication.as_ref().and_then(|found| found.comment.as_deref());
    let Some(ours) = comment.and_then(|comment| comment.strip_prefix(COMMENT)) else {
        let reason = match (&found.publication, &found.slot) {
            (None, None) => format!(
                "neither slot {slot_name} nor publication {publication_name} is there, so that no gap is \
                 known: `owlpost init` makes both"
            ),
            (None, Some(_)) => format!("publication {publication_name} is not there"),
            (Some(_), _) => format!(
                "publication {publication_name} was not made by owlpost: drop slot and publication by hand, \
                 and run `owlpost init`"
            ),
        };
        return refuse(ExitKind::Publication, reason);
    };
    if let Plan::Refuse(kind @ (ExitKind::OtherCluster | ExitKind::Unsuitable), reason) =
        plan(found, names)
    {
        return refuse(kind, reason);
    }
    if found.in_recovery {
        let reason = format!("this server is a standby, and slot {slot_name} is its primary's");
        return refuse(ExitKind::Slot, reason);
    }
    if let Some(other) = field(ours, SLOT).filter(|other| *other != slot_name) {
        let reason = format!(
            "publication {publication_name} belongs to slot {other}, not to {slot_name}: check \
             REPLICATION_SLOT_NAME"
        );
        return refuse(ExitKind::Slot, reason);
    }
    let known = |name| field(ours, name).and_then(|point| point.parse().ok());
    let remembered: Option<Lsn> = known(GAP).or_else(|| known(CONSISTENT_POINT));
    match &found.slot {
        None => match remembered {
            Some(from) => Ok(Gap { from, exact: false, drop: false, made: None }),
            None => refuse(
                ExitKind::Publication,
                format!(
                    "the set-up of slot {slot_name} was interrupted before it was there, which leaves no gap: \
                     `owlpost init` resumes it"
                ),
            ),
        },
        Some(FoundSlot { wal_status, confirmed_flush: made @ Some(_), .. })
            if wal_status.as_deref() != Some("lost") && known(GAP).is_some() =>
        {
            Ok(Gap { from: known(GAP).unwrap_or_default(), exact: false, drop: false, made: *made })
        }
        Some(slot) if slot.wal_status.as_deref() != Some("lost") => {
            let confirmed = slot.confirmed_flush.unwrap_or_default();
            let reason = format!(
                "slot {slot_name} is there and not lost (confirmed up to {confirmed}): there is no gap to accept"
            );
            refuse(ExitKind::Slot, reason)
        }
        Some(slot) => {
            let is_ours = slot.plugin.as_deref() == Some("pgoutput")
                && slot.database.as_deref() == Some(found.database.as_str());
            if !is_ours {
                let reason = format!(
                    "slot {slot_name} is not one of ours: it is physical, another database's, or has another \
                     output plugin"
                );
                return refuse(ExitKind::Slot, reason);
            }
            let from = slot.confirmed_flush.or(remembered).unwrap_or_default();
            Ok(Gap { from, exact: slot.confirmed_flush.is_some(), drop: true, made: None })
        }
    }
}

/// Makes the slot anew and gives its consistent point. Interrupted, the same call goes on, and still knows where
/// the gap begins.
///
/// # Errors
///
/// What the server said.
pub(super) async fn leave_gap(
    connection: &mut Connection,
    gap: &Gap,
    found: &Found,
    names: Names<'_>,
) -> Result<Lsn, Failure> {
    let publication = quote_identifier(names.publication);
    let comment = format!(
        "{COMMENT}{INITIALISING}, {SLOT}{}, {SYSTEM}{}, {GAP}{}",
        names.slot, found.system, gap.from
    );
    let comment = quote_literal(&comment);
    connection.query(&format!("COMMENT ON PUBLICATION {publication} IS {comment}")).await?;
    if gap.drop {
        let slot = quote_literal(names.slot);
        // Somebody else may have made it anew meanwhile.
        let drop = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = {slot} AND wal_status = 'lost'"
        );
        connection.query(&drop).await?;
    }
    let point = match gap.made {
        Some(point) => point,
        None => create(connection, found, names).await?,
    };
    describe(connection, found, names, point).await?;
    Ok(point)
}

/// Writes the publication's comment: both are there, and belong together.
async fn describe(
    connection: &mut Connection,
    found: &Found,
    names: Names<'_>,
    point: Lsn,
) -> Result<(), Failure> {
    let publication = quote_identifier(names.publication);
    let comment = format!(
        "{COMMENT}{SLOT}{}, {SYSTEM}{}, {PREFIXES}{}, {CONSISTENT_POINT}{point}",
        names.slot,
        found.system,
        names.prefixes.join(" ")
    );
    let comment = quote_literal(&comment);
    connection.query(&format!("COMMENT ON PUBLICATION {publication} IS {comment}")).await?;
    Ok(())
}

/// Slot creation waits for all transactions that are running; whoever waits wants to know for which.
async fn open_transactions(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    let sql = "SELECT format('pid %s of %s (%s), since %s', pid, usename, application_name, xact_start) \
               FROM pg_catalog.pg_stat_activity \
               WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() \
               UNION ALL \
               SELECT format('prepared transaction %L of %s, since %s', gid, owner, prepared) \
               FROM pg_catalog.pg_prepared_xacts";
    let rows = connection.query(sql).await?;
    Ok(rows.into_iter().filter_map(|mut row| row.pop().flatten()).collect())
}

/// True if the failure means that somebody else is setting up at the same moment.
pub(super) fn is_race(failure: &Failure) -> bool {
    matches!(failure, Failure::Server(error) if error.code == SqlState::DUPLICATE_OBJECT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names<'static> =
        Names { slot: "factlib_slot", publication: "facts", prefixes: &[], failover: false };

    fn found() -> Found {
        Found {
            system: 7,
            database: "app".to_owned(),
            version: 150_018,
            wal_level: "logical".to_owned(),
            in_recovery: false,
            synchronous_standby_names: "standby1".to_owned(),
            application_name: "owlpost".to_owned(),
            pages: None,
            publication: Some(FoundPublication {
                comment: Some(
                    "owlpost: slot factlib_slot, system 7, consistent point 0/1".to_owned(),
                ),
                has_tables: false,
            }),
            slot: Some(FoundSlot {
                plugin: Some("pgoutput".to_owned()),
                database: Some("app".to_owned()),
                wal_status: Some("reserved".to_owned()),
                two_phase: false,
                confirmed_flush: Some(Lsn(1)),
                synced: false,
            }),
        }
    }

    fn commented(comment: Option<&str>) -> Option<FoundPublication> {
        Some(FoundPublication { comment: comment.map(str::to_owned), has_tables: false })
    }

    fn refusal(found: &Found) -> (ExitKind, String) {
        match plan(found, NAMES) {
            Plan::Refuse(kind, reason) => (kind, reason),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn an_empty_database_is_set_up_and_a_ready_one_left_alone() {
        assert_eq!(plan(&Found { publication: None, slot: None, ..found() }, NAMES), Plan::Create);
        assert_eq!(plan(&found(), NAMES), Plan::Ready { adopted: false });
        let adopted = Found { publication: commented(None), ..found() };
        assert_eq!(plan(&adopted, NAMES), Plan::Ready { adopted: true });
    }

    #[test]
    fn what_was_set_up_for_other_prefixes_says_which() {
        let comment =
            "owlpost: slot factlib_slot, system 7, prefixes orders billing, consistent point 0/1";
        let found = Found { publication: commented(Some(comment)), ..found() };
        let planned = |prefixes: &[&str]| {
            let prefixes: Vec<String> =
                prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
            plan(&found, Names { prefixes: &prefixes, ..NAMES })
        };
        let other = |dropped: &[&str], added: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|prefix| (*prefix).to_owned()).collect();
            Plan::OtherPrefixes { dropped: owned(dropped), added: owned(added) }
        };
        assert_eq!(planned(&["billing", "orders"]), Plan::Ready { adopted: false });
        assert_eq!(planned(&["orders", "biling"]), other(&["billing"], &["biling"]));
        assert_eq!(planned(&["orders"]), other(&["billing"], &[]));
        assert_eq!(planned(&["orders", "billing", "order"]), other(&[], &["order"]));
    }

    #[test]
    fn a_relay_that_would_be_a_synchronous_standby_is_refused() {
        let all = Found { synchronous_standby_names: "ANY 1 (*)".to_owned(), ..found() };
        let (kind, reason) = refusal(&all);
        assert_eq!(kind, ExitKind::Unsuitable);
        assert!(reason.contains("ANY 1 (*)") && reason.contains("APP_NAME"), "{reason}");
        // A standby has none of its own.
        assert_eq!(
            plan(&Found { in_recovery: true, ..all }, NAMES),
            Plan::Ready { adopted: false }
        );
    }

    #[test]
    fn a_slot_for_standbys_is_refused_where_there_is_none() {
        let names = Names { failover: true, ..NAMES };
        let empty = Found { publication: None, slot: None, ..found() };
        let Plan::Refuse(ExitKind::Unsuitable, reason) = plan(&empty, names) else { panic!() };
        assert!(reason.contains("15") && reason.contains("REPLICATION_SLOT_FAILOVER"), "{reason}");
        assert_eq!(plan(&Found { version: 170_006, ..empty }, names), Plan::Create);
        assert_eq!(plan(&found(), names), Plan::Ready { adopted: false }, "it is there");
    }

    #[test]
    fn minor_versions_with_known_defects_of_slots_are_named() {
        let words = outdated(150_013).unwrap();
        assert!(words.contains("15.13 ") && words.contains("15.14 "), "{words}");
        for sound in [140_019, 150_014, 160_010, 170_006, 180_000, 190_000] {
            assert_eq!(outdated(sound), None, "{sound}");
        }
        for old in [140_018, 160_009, 170_000] {
            assert!(outdated(old).is_some(), "{old}");
        }
    }

    #[test]
    fn an_interrupted_set_up_resumes() {
        let publication = commented(Some("owlpost: initialising, system 7"));
        let interrupted = Found { publication, ..found() };
        assert_eq!(plan(&interrupted, NAMES), Plan::Finish);
        assert_eq!(plan(&Found { slot: None, ..interrupted }, NAMES), Plan::CreateSlot);
    }

    #[test]
    fn anything_else_that_is_half_there_is_refused() {
        let (kind, reason) = refusal(&Found { slot: None, ..found() });
        assert_eq!(kind, ExitKind::Slot);
        assert!(reason.contains("slot factlib_slot is not"), "{reason}");
        let (kind, reason) = refusal(&Found { publication: None, ..found() });
        assert_eq!(kind, ExitKind::Publication);
        assert!(reason.contains("publication facts is not"), "{reason}");
    }

    #[test]
    fn a_gap_is_accepted_only_where_a_slot_of_ours_is_lost_or_gone() {
        let lost = FoundSlot { wal_status: Some("lost".to_owned()), ..found().slot.unwrap() };
        let made = None;
        let accepted = |from, exact, drop| Ok(Gap { from: Lsn(from), exact, drop, made });
        let with_lost = Found { slot: Some(lost.clone()), ..found() };
        assert_eq!(gap(&with_lost, NAMES), accepted(1, true, true));
        let gone = Found { slot: None, ..found() };
        assert_eq!(gap(&gone, NAMES), accepted(1, false, false), "the publication's comment knows");
        let interrupted =
            "owlpost: initialising, slot factlib_slot, system 7, gap from 0/2A".to_owned();
        let interrupted = Found { publication: commented(Some(&interrupted)), ..gone.clone() };
        assert_eq!(gap(&interrupted, NAMES), accepted(0x2a, false, false));
        // A relay that is started meanwhile must not take it for a set-up of its own, and forget the gap.
        let slot = found().slot;
        let made = slot.as_ref().unwrap().confirmed_flush;
        let finished = Found { slot, ..interrupted.clone() };
        assert_eq!(
            gap(&finished, NAMES),
            Ok(Gap { from: Lsn(0x2a), exact: false, drop: false, made })
        );
        for found in [&interrupted, &finished] {
            let Plan::Refuse(ExitKind::Slot, reason) = plan(found, NAMES) else {
                panic!("{found:?}")
            };
            assert!(reason.contains("after 0/2A") && reason.contains("--accept-gap"), "{reason}");
        }

        let refused = |found: &Found, names: Names<'_>| gap(found, names).unwrap_err();
        let foreign = FoundSlot { plugin: Some("test_decoding".to_owned()), ..lost };
        let unmade = commented(Some("owlpost: initialising, system 7"));
        let cases = [
            (found(), ExitKind::Slot, "no gap to accept"),
            (Found { slot: Some(foreign), ..found() }, ExitKind::Slot, "not one of ours"),
            (Found { publication: None, ..gone.clone() }, ExitKind::Publication, "makes both"),
            (
                Found { publication: commented(None), ..gone.clone() },
                ExitKind::Publication,
                "by hand",
            ),
            (Found { publication: unmade, ..gone.clone() }, ExitKind::Publication, "resumes it"),
            (Found { system: 8, ..gone.clone() }, ExitKind::OtherCluster, "another cluster"),
            (Found { in_recovery: true, ..gone.clone() }, ExitKind::Slot, "standby"),
        ];
        for (found, kind, words) in cases {
            let (is, reason) = refused(&found, NAMES);
            assert_eq!(is, kind, "{reason}");
            assert!(reason.contains(words), "{reason}");
        }
        let (_, reason) = refused(&gone, Names { slot: "other", ..NAMES });
        assert!(reason.contains("belongs to slot factlib_slot"), "{reason}");
    }

    #[test]
    fn a_slot_that_another_session_is_making_is_waited_for() {
        let slot = FoundSlot { confirmed_flush: None, ..found().slot.unwrap() };
        let publication = commented(Some("owlpost: initialising, system 7"));
        let found = Found { publication, slot: Some(slot), ..found() };
        assert!(matches!(plan(&found, NAMES), Plan::Wait(_)));
    }

    #[test]
    fn a_standby_without_the_slot_is_no_reason_to_give_up() {
        let standby = Found { in_recovery: true, ..found() };
        assert_eq!(plan(&standby, NAMES), Plan::Ready { adopted: false });
        assert!(matches!(plan(&Found { slot: None, ..standby.clone() }, NAMES), Plan::Wait(_)));
        let synced = FoundSlot { synced: true, ..found().slot.unwrap() };
        assert!(matches!(plan(&Found { slot: Some(synced), ..standby }, NAMES), Plan::Wait(_)));
    }

    #[test]
    fn a_misspelt_slot_is_not_answered_with_dropping_the_publication_of_another() {
        let names = Names { slot: "other", ..NAMES };
        let Plan::Refuse(ExitKind::Slot, reason) = plan(&Found { slot: None, ..found() }, names)
        else {
            panic!("not refused")
        };
        assert!(reason.contains("belongs to slot factlib_slot"), "{reason}");
        assert!(!reason.contains("drop"), "{reason}");
    }

    #[test]
    fn a_cluster_with_nothing_in_it_is_another_one_and_not_one_that_lost_its_slot() {
        let empty = Found { publication: None, slot: None, ..found() };
        let Some(Plan::Refuse(kind, reason)) = refuse_other(&empty, Some(8)) else {
            panic!("not refused")
        };
        assert_eq!(kind, ExitKind::OtherCluster);
        assert!(reason.contains("its system id is 7, that of the facts so far 8"), "{reason}");
        assert_eq!(refuse_other(&empty, Some(7)), None);
        assert_eq!(refuse_other(&empty, None), None);
    }

    #[test]
    fn another_clusters_publication_is_refused() {
        for comment in
            ["owlpost: slot s, system 77, consistent point 0/1", "owlpost: initialising, system 8"]
        {
            let (kind, _) = refusal(&Found { publication: commented(Some(comment)), ..found() });
            assert_eq!(kind, ExitKind::OtherCluster);
        }
    }

    #[test]
    fn a_slot_that_is_not_ours_or_is_lost_is_refused_with_the_reason() {
        let slot = found().slot.unwrap();
        let plugin = FoundSlot { plugin: Some("test_decoding".to_owned()), ..slot.clone() };
        let physical = FoundSlot { plugin: None, database: None, ..slot.clone() };
        let database = FoundSlot { database: Some("other".to_owned()), ..slot.clone() };
        let lost = FoundSlot { wal_status: Some("lost".to_owned()), ..slot.clone() };
        let two_phase = FoundSlot { two_phase: true, ..slot };
        let cases = [
            (plugin, "test_decoding"),
            (physical, "physical"),
            (database, "database other"),
            (lost, "is lost"),
            (two_phase, "two-phase"),
        ];
        for (slot, word) in cases {
            let (kind, reason) = refusal(&Found { slot: Some(slot), ..found() });
            assert_eq!(kind, ExitKind::Slot);
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn a_server_that_cannot_is_refused_with_the_remedy() {
        let (kind, reason) = refusal(&Found { wal_level: "replica".to_owned(), ..found() });
        assert_eq!(kind, ExitKind::Unsuitable);
        assert!(reason.contains("wal_level = logical"), "{reason}");
        assert_eq!(refusal(&Found { version: 130_010, ..found() }).0, ExitKind::Unsuitable);
    }
}
