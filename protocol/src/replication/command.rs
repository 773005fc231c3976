//! The commands of a replication session, as [`query`](crate::frontend::query) sends them.

use alloc::{format, string::String, vec::Vec};

use crate::lsn::Lsn;

/// Asks for the cluster's system identifier, its timeline, its position and the database's name: one row
/// of four columns.
#[must_use]
pub const fn identify_system() -> &'static str {
    "IDENTIFY_SYSTEM"
}

/// Asks for the file that tells how a timeline came to be: one row of a file name and its content, for
/// [`timeline_switches`].
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
    /// The transaction of this session goes on in it.
    Use,
}

/// Makes a slot for an output plugin: one row of name, consistent point, snapshot and plugin.
///
/// In the words that all servers since 10 understand, so that the caller need not know which it is.
#[must_use]
pub fn create_logical_slot(
    slot: &str,
    plugin: &str,
    temporary: bool,
    snapshot: Snapshot,
) -> String {
    let (slot, plugin) = (quote_identifier(slot), quote_identifier(plugin));
    let temporary = if temporary { " TEMPORARY" } else { "" };
    let snapshot = match snapshot {
        Snapshot::Export => "EXPORT_SNAPSHOT",
        Snapshot::Nothing => "NOEXPORT_SNAPSHOT",
        Snapshot::Use => "USE_SNAPSHOT",
    };
    format!("CREATE_REPLICATION_SLOT {slot}{temporary} LOGICAL {plugin} {snapshot}")
}

/// Removes a slot; with `wait`, once nobody uses it.
#[must_use]
pub fn drop_slot(slot: &str, wait: bool) -> String {
    format!("DROP_REPLICATION_SLOT {}{}", quote_identifier(slot), if wait { " WAIT" } else { "" })
}

/// Starts the stream of a logical slot. The server takes `start` only if it lies after what the slot has
/// confirmed; [`Lsn::INVALID`] leaves it to the slot.
///
/// `options` are the plugin's. pgoutput's `publication_names` is a list of identifiers: give each to
/// [`quote_identifier`], with commas between them.
///
/// ```
/// use factlib_protocol::{Lsn, replication::{quote_identifier, start_logical}};
///
/// let facts = quote_identifier("facts");
/// let options = [("proto_version", "1"), ("publication_names", &facts), ("messages", "true")];
/// assert_eq!(
///     start_logical("owl", Lsn::INVALID, &options),
///     r#"START_REPLICATION SLOT "owl" LOGICAL 0/0 ("proto_version" '1', "publication_names" '"facts"', "messages" 'true')"#,
/// );
/// ```
#[must_use]
pub fn start_logical(slot: &str, start: Lsn, options: &[(&str, &str)]) -> String {
    let mut command = format!("START_REPLICATION SLOT {} LOGICAL {start}", quote_identifier(slot));
    if !options.is_empty() {
        let options: Vec<String> = options
            .iter()
            .map(|(name, value)| format!("{} {}", quote_identifier(name), quote_literal(value)))
            .collect();
        command.push_str(" (");
        command.push_str(&options.join(", "));
        command.push(')');
    }
    command
}

/// A name as SQL takes it, whatever is in it but a zero byte, which [`query`](crate::frontend::query)
/// refuses.
///
/// Replication commands take it too, but cannot say a `"` inside a name: what would be doubled in SQL is a
/// syntax error there. No slot can have such a name; a publication can, and is named inside a literal.
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
        assert_eq!(
            start_logical("s", Lsn(0x1_0000_00AB), &[]),
            "START_REPLICATION SLOT \"s\" LOGICAL 1/AB"
        );
        assert_eq!(
            create_logical_slot("s", "pgoutput", false, Snapshot::Nothing),
            "CREATE_REPLICATION_SLOT \"s\" LOGICAL \"pgoutput\" NOEXPORT_SNAPSHOT"
        );
        assert_eq!(
            create_logical_slot("s", "pgoutput", true, Snapshot::Use),
            "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL \"pgoutput\" USE_SNAPSHOT"
        );
        assert_eq!(drop_slot("s", true), "DROP_REPLICATION_SLOT \"s\" WAIT");
        assert_eq!(timeline_history(3), "TIMELINE_HISTORY 3");
    }
}
