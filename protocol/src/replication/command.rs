//! The commands of a replication session, as [`query`](crate::frontend::query) sends them.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>
//!
//! `server_major` is what stands before the dot in `server_version`: commands are worded for it, from 10
//! to 18 and later. What it does not have is refused here, because what the server says of an unknown
//! word is no more than "syntax error".

use alloc::{format, string::String, vec::Vec};

use crate::{error::EncodeError, lsn::Lsn};

/// Asks for the cluster's system identifier, its timeline, its position and the database's name: one row
/// for [`IdentifySystem::read`](super::IdentifySystem::read).
#[must_use]
pub const fn identify_system() -> &'static str {
    "IDENTIFY_SYSTEM"
}

/// Asks for the value of a setting: one row of one column.
///
/// # Errors
///
/// [`EncodeError::Quote`].
pub fn show(setting: &str) -> Result<String, EncodeError> {
    Ok(format!("SHOW {}", name(setting, "setting")?))
}

/// Asks for the file that tells how a timeline came to be: one row for
/// [`TimelineHistory::read`](super::TimelineHistory::read). Timeline 1 has none.
#[must_use]
pub fn timeline_history(timeline: u32) -> String {
    format!("TIMELINE_HISTORY {timeline}")
}

/// What becomes of the snapshot in which a new slot starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Another session can import it while this one does nothing else.
    Export,
    /// Nothing.
    Nothing,
    /// The transaction of this session goes on in it. It must be new, `REPEATABLE READ` and, since
    /// PostgreSQL 16, `READ ONLY`.
    Use,
}

/// What a new slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind<'a> {
    /// The log as it is.
    Physical {
        /// Keep the log from now on; else from the first time that somebody streams.
        reserve_wal: bool,
    },
    /// What an output plugin makes of the log.
    Logical {
        /// The plugin, such as `pgoutput`.
        plugin: &'a str,
        /// What becomes of the snapshot.
        snapshot: Snapshot,
        /// Decode transactions when they are prepared, not when they are committed. Since PostgreSQL 15.
        two_phase: bool,
        /// Standbys keep a copy of the slot, to go on with after a failover; not of a temporary one. Since
        /// PostgreSQL 17.
        failover: bool,
    },
}

/// Makes a slot, one that ends with the session, or with the first error in it, if it is `temporary`: one
/// row for [`CreatedSlot::read`](super::CreatedSlot::read).
///
/// # Errors
///
/// [`EncodeError::Quote`], or [`EncodeError::Version`] for `two_phase` and `failover`.
pub fn create_slot(
    slot: &str,
    temporary: bool,
    kind: SlotKind<'_>,
    server_major: u32,
) -> Result<String, EncodeError> {
    let slot = name(slot, "slot")?;
    let temporary = if temporary { " TEMPORARY" } else { "" };
    // Since 15 options stand in parentheses; the keywords of before are still read, but get no additions.
    let listed = server_major >= 15;
    let (kind, options) = match kind {
        SlotKind::Physical { reserve_wal } => {
            ("PHYSICAL".into(), if reserve_wal { "RESERVE_WAL".into() } else { String::new() })
        }
        SlotKind::Logical { plugin, snapshot, two_phase, failover } => {
            let mut options = String::from(match (snapshot, listed) {
                (Snapshot::Export, false) => "EXPORT_SNAPSHOT",
                (Snapshot::Nothing, false) => "NOEXPORT_SNAPSHOT",
                (Snapshot::Use, false) => "USE_SNAPSHOT",
                (Snapshot::Export, true) => "SNAPSHOT 'export'",
                (Snapshot::Nothing, true) => "SNAPSHOT 'nothing'",
                (Snapshot::Use, true) => "SNAPSHOT 'use'",
            });
            if two_phase {
                since(15, server_major, "two_phase of a slot")?;
                options.push_str(", TWO_PHASE");
            }
            if failover {
                since(17, server_major, "failover of a slot")?;
                options.push_str(", FAILOVER");
            }
            (format!("LOGICAL {}", name(plugin, "plugin")?), options)
        }
    };
    let options = match (options.is_empty(), listed) {
        (true, _) => options,
        (false, true) => format!(" ({options})"),
        (false, false) => format!(" {options}"),
    };
    Ok(format!("CREATE_REPLICATION_SLOT {slot}{temporary} {kind}{options}"))
}

/// Asks where a physical slot stands: one row for [`ReadSlot::read`](super::ReadSlot::read).
///
/// # Errors
///
/// [`EncodeError::Quote`], or [`EncodeError::Version`] before PostgreSQL 15.
pub fn read_slot(slot: &str, server_major: u32) -> Result<String, EncodeError> {
    since(15, server_major, "READ_REPLICATION_SLOT")?;
    Ok(format!("READ_REPLICATION_SLOT {}", name(slot, "slot")?))
}

/// Changes a logical slot that nobody uses; `None` leaves an option as it is.
///
/// # Errors
///
/// [`EncodeError::Quote`]; [`EncodeError::Version`] before PostgreSQL 17, and for `two_phase` before 18;
/// [`EncodeError::Empty`] if nothing shall change.
pub fn alter_slot(
    slot: &str,
    failover: Option<bool>,
    two_phase: Option<bool>,
    server_major: u32,
) -> Result<String, EncodeError> {
    since(17, server_major, "ALTER_REPLICATION_SLOT")?;
    if two_phase.is_some() {
        since(18, server_major, "two_phase of ALTER_REPLICATION_SLOT")?;
    }
    let options: Vec<String> = [("FAILOVER", failover), ("TWO_PHASE", two_phase)]
        .into_iter()
        .filter_map(|(option, value)| value.map(|value| format!("{option} {value}")))
        .collect();
    if options.is_empty() {
        return Err(EncodeError::Empty { field: "ALTER_REPLICATION_SLOT.options" });
    }
    Ok(format!("ALTER_REPLICATION_SLOT {} ({})", name(slot, "slot")?, options.join(", ")))
}

/// Removes a slot; with `wait`, once nobody uses it.
///
/// # Errors
///
/// [`EncodeError::Quote`].
pub fn drop_slot(slot: &str, wait: bool) -> Result<String, EncodeError> {
    let wait = if wait { " WAIT" } else { "" };
    Ok(format!("DROP_REPLICATION_SLOT {}{wait}", name(slot, "slot")?))
}

/// Starts the stream of a logical slot. The server takes `start` only if it lies after what the slot has
/// confirmed; [`Lsn::INVALID`] leaves it to the slot.
///
/// `options` are the plugin's. pgoutput's `publication_names` is a list of identifiers: give each to
/// [`quote_identifier`], with commas between them.
///
/// # Errors
///
/// [`EncodeError::Quote`] for the slot or the name of an option; their values may hold anything.
///
/// ```
/// use factlib_protocol::{Lsn, replication::{quote_identifier, start_logical}};
///
/// let facts = quote_identifier("facts");
/// let options = [("proto_version", "1"), ("publication_names", &facts), ("messages", "true")];
/// assert_eq!(
///     start_logical("owl", Lsn::INVALID, &options)?,
///     r#"START_REPLICATION SLOT "owl" LOGICAL 0/0 ("proto_version" '1', "publication_names" '"facts"', "messages" 'true')"#,
/// );
/// # Ok::<(), factlib_protocol::EncodeError>(())
/// ```
pub fn start_logical(
    slot: &str,
    start: Lsn,
    options: &[(&str, &str)],
) -> Result<String, EncodeError> {
    let mut command = format!("START_REPLICATION SLOT {} LOGICAL {start}", name(slot, "slot")?);
    if !options.is_empty() {
        let options: Vec<String> = options
            .iter()
            .map(|(option, value)| {
                Ok(format!("{} {}", name(option, "option")?, quote_literal(value)))
            })
            .collect::<Result<_, EncodeError>>()?;
        command.push_str(" (");
        command.push_str(&options.join(", "));
        command.push(')');
    }
    Ok(command)
}

/// Starts the stream of the log as it is, from `start`, which must lie on `timeline` (the server's own
/// if there is none). With a slot the server keeps what the client has not confirmed.
///
/// On an old timeline the stream ends where the server left it: after `CopyDone` from both sides comes one
/// row for [`NextTimeline::read`](super::NextTimeline::read).
///
/// # Errors
///
/// [`EncodeError::Quote`].
pub fn start_physical(
    slot: Option<&str>,
    start: Lsn,
    timeline: Option<u32>,
) -> Result<String, EncodeError> {
    let slot = match slot {
        Some(slot) => format!("SLOT {} ", name(slot, "slot")?),
        None => String::new(),
    };
    let timeline = timeline.map(|timeline| format!(" TIMELINE {timeline}")).unwrap_or_default();
    Ok(format!("START_REPLICATION {slot}PHYSICAL {start}{timeline}"))
}

/// A name as the replication commands take it: their scanner does not know a doubled `"`.
fn name(name: &str, field: &'static str) -> Result<String, EncodeError> {
    if name.contains('"') { Err(EncodeError::Quote { field }) } else { Ok(format!("\"{name}\"")) }
}

fn since(since: u32, server_major: u32, what: &'static str) -> Result<(), EncodeError> {
    if server_major < since { Err(EncodeError::Version { what, since }) } else { Ok(()) }
}

/// A name as SQL takes it, whatever is in it but a zero byte, which [`query`](crate::frontend::query)
/// refuses.
///
/// Not for replication commands, which quote what they are given and refuse a `"` in it: what would be
/// doubled in SQL is a syntax error there. No slot can have such a name; a publication can, and is named
/// inside a literal.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as the replication commands take it, and SQL too unless `standard_conforming_strings` is
/// `off`: then a backslash in it would mean something else.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_cannot_leave_their_quotes() {
        assert_eq!(quote_identifier("owl"), "\"owl\"");
        assert_eq!(quote_identifier("o\"w'l"), "\"o\"\"w'l\"");
        assert_eq!(quote_literal("o\"w'l\\"), "'o\"w''l\\'");
        let quote = |field| Err(EncodeError::Quote { field });
        let physical = SlotKind::Physical { reserve_wal: false };
        assert_eq!(show("a\"b"), quote("setting"));
        assert_eq!(create_slot("a\"b", false, physical, 15), quote("slot"));
        assert_eq!(create_slot("a", false, logical("a\"b", false, false), 15), quote("plugin"));
        assert_eq!(read_slot("a\"b", 15), quote("slot"));
        assert_eq!(alter_slot("a\"b", Some(true), None, 17), quote("slot"));
        assert_eq!(drop_slot("a\"b", true), quote("slot"));
        assert_eq!(start_logical("a\"b", Lsn(1), &[]), quote("slot"));
        assert_eq!(start_logical("a", Lsn(1), &[("a\"b", "")]), quote("option"));
        assert_eq!(start_physical(Some("a\"b"), Lsn(1), None), quote("slot"));
    }

    fn logical(plugin: &str, two_phase: bool, failover: bool) -> SlotKind<'_> {
        SlotKind::Logical { plugin, snapshot: Snapshot::Nothing, two_phase, failover }
    }

    #[test]
    fn a_slot_is_made_in_the_words_of_the_servers_version() {
        let plain = logical("pgoutput", false, false);
        for (temporary, kind, server_major, expected) in [
            (false, plain, 14, r#""s" LOGICAL "pgoutput" NOEXPORT_SNAPSHOT"#),
            (false, plain, 15, r#""s" LOGICAL "pgoutput" (SNAPSHOT 'nothing')"#),
            (true, plain, 18, r#""s" TEMPORARY LOGICAL "pgoutput" (SNAPSHOT 'nothing')"#),
            (
                false,
                logical("pgoutput", true, true),
                17,
                r#""s" LOGICAL "pgoutput" (SNAPSHOT 'nothing', TWO_PHASE, FAILOVER)"#,
            ),
            (false, SlotKind::Physical { reserve_wal: false }, 14, r#""s" PHYSICAL"#),
            (
                true,
                SlotKind::Physical { reserve_wal: true },
                14,
                r#""s" TEMPORARY PHYSICAL RESERVE_WAL"#,
            ),
            (false, SlotKind::Physical { reserve_wal: false }, 15, r#""s" PHYSICAL"#),
            (false, SlotKind::Physical { reserve_wal: true }, 15, r#""s" PHYSICAL (RESERVE_WAL)"#),
        ] {
            let command = create_slot("s", temporary, kind, server_major).unwrap();
            assert_eq!(command, format!("CREATE_REPLICATION_SLOT {expected}"));
        }
        for (snapshot, old, new) in [
            (Snapshot::Export, "EXPORT_SNAPSHOT", "(SNAPSHOT 'export')"),
            (Snapshot::Use, "USE_SNAPSHOT", "(SNAPSHOT 'use')"),
        ] {
            let kind =
                SlotKind::Logical { plugin: "p", snapshot, two_phase: false, failover: false };
            assert!(create_slot("s", false, kind, 10).unwrap().ends_with(&format!(" \"p\" {old}")));
            assert!(create_slot("s", false, kind, 15).unwrap().ends_with(&format!(" \"p\" {new}")));
        }
    }

    #[test]
    fn what_the_servers_version_does_not_have_is_refused() {
        let version = |what, since| Err(EncodeError::Version { what, since });
        let create = |two_phase, failover, server_major| {
            create_slot("s", false, logical("p", two_phase, failover), server_major)
        };
        assert_eq!(create(true, false, 14), version("two_phase of a slot", 15));
        assert_eq!(create(false, true, 16), version("failover of a slot", 17));
        assert_eq!(read_slot("s", 14), version("READ_REPLICATION_SLOT", 15));
        let alter = |failover, two_phase, major| alter_slot("s", failover, two_phase, major);
        assert_eq!(alter(Some(true), None, 16), version("ALTER_REPLICATION_SLOT", 17));
        let two_phase = "two_phase of ALTER_REPLICATION_SLOT";
        assert_eq!(alter(None, Some(true), 17), version(two_phase, 18));
        assert!(matches!(alter(None, None, 18), Err(EncodeError::Empty { .. })));
    }

    #[test]
    fn commands_are_as_the_manual_writes_them() {
        let said = |command: Result<String, EncodeError>| command.unwrap();
        assert_eq!(said(show("wal_level")), r#"SHOW "wal_level""#);
        assert_eq!(timeline_history(3), "TIMELINE_HISTORY 3");
        assert_eq!(said(read_slot("s", 15)), r#"READ_REPLICATION_SLOT "s""#);
        let altered = r#"ALTER_REPLICATION_SLOT "s" (FAILOVER true, TWO_PHASE false)"#;
        assert_eq!(said(alter_slot("s", Some(true), Some(false), 18)), altered);
        let altered = r#"ALTER_REPLICATION_SLOT "s" (FAILOVER false)"#;
        assert_eq!(said(alter_slot("s", Some(false), None, 17)), altered);
        assert_eq!(said(drop_slot("s", false)), r#"DROP_REPLICATION_SLOT "s""#);
        assert_eq!(said(drop_slot("s", true)), r#"DROP_REPLICATION_SLOT "s" WAIT"#);
        let start = Lsn(0x1_0000_00AB);
        let logical = r#"START_REPLICATION SLOT "s" LOGICAL 1/AB"#;
        assert_eq!(said(start_logical("s", start, &[])), logical);
        let physical = r#"START_REPLICATION SLOT "s" PHYSICAL 1/AB TIMELINE 2"#;
        assert_eq!(said(start_physical(Some("s"), start, Some(2))), physical);
        assert_eq!(said(start_physical(None, start, None)), "START_REPLICATION PHYSICAL 1/AB");
    }
}
