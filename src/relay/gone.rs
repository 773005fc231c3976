//! Why a connection to PostgreSQL ended, and what that leads to.

use factlib_protocol::backend::{ServerError, SqlState};

/// How a connection, or the attempt to have one, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// It may work again: tried for ever, with back-off.
    Lost(String),
    /// The server does not let us in as we are: wrong password, no such database, no right. At the
    /// start that ends the relay, in this way; later it is tried again, slowly, because somebody may
    /// be rotating a password.
    Refused(ExitKind, String),
    /// Another session has the slot.
    SlotInUse(String),
    /// Nothing can be repaired without a person.
    Terminal(ExitKind, String),
}

/// The sentence for a cluster whose system id is `found`, where `known` was before.
pub fn another_cluster(found: u64, known: u64) -> String {
    format!(
        "this is another cluster: its system id is {found}, that of the facts so far {known}; check the \
         address, and if it is right, a restored or upgraded cluster needs a new slot and `owlpost init`"
    )
}

/// The end of the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Which end.
    pub kind: ExitKind,
    /// What happened, and what to do.
    pub reason: String,
}

/// The ways to end, each with an exit code of its own at the rim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// Stopped as asked; everything that was read is confirmed.
    Stopped,
    /// Stopped as asked, but at the deadline: what was not confirmed will be delivered again.
    Deadline,
    /// PostgreSQL or Kafka could not be reached, or refused us, at the start.
    Unreachable,
    /// The slot is missing, lost, or not one of ours.
    Slot,
    /// Another cluster, or the same with its history gone back.
    OtherCluster,
    /// Another Kafka cluster than the one that facts were published to.
    OtherKafka,
    /// Slot and publication do not belong together.
    Publication,
    /// The server cannot do what we need.
    Unsuitable,
}

/// What an ErrorResponse leads to, wherever it came: at log-in, in answer to a command, or in the
/// middle of the stream.
pub fn classify(error: &ServerError) -> Gone {
    let words = error.to_string();
    match error.code {
        SqlState::OBJECT_IN_USE => Gone::SlotInUse(words),
        SqlState::UNDEFINED_OBJECT if error.message.contains("publication") => Gone::Terminal(
            ExitKind::Publication,
            format!(
                "{words}; the publication was dropped, or is younger than the slot, and the server \
                 cannot decode past this point: create the publication, then a new slot with \
                 `owlpost init`; facts in between are lost"
            ),
        ),
        SqlState::UNDEFINED_OBJECT => Gone::Terminal(
            ExitKind::Slot,
            format!("{words}; the slot was dropped, and what was not yet published with it"),
        ),
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => Gone::Terminal(
            ExitKind::Slot,
            format!(
                "{words}; the slot cannot be used: facts in it are lost (see wal_status in \
                     pg_replication_slots and max_slot_wal_keep_size)"
            ),
        ),
        SqlState::INVALID_PASSWORD
        | SqlState::INVALID_AUTHORIZATION
        | SqlState::INVALID_CATALOG_NAME => Gone::Refused(ExitKind::Unreachable, words),
        SqlState::INSUFFICIENT_PRIVILEGE => Gone::Refused(
            ExitKind::Unsuitable,
            format!(
                "{words}; the role needs LOGIN and REPLICATION, and CREATE on the database where the \
                 publication is not there yet: another role may run `owlpost init`"
            ),
        ),
        // No free slot. The server's own hint says what to do.
        SqlState::CONFIGURATION_LIMIT_EXCEEDED => Gone::Refused(ExitKind::Unsuitable, words),
        _ => Gone::Lost(words),
    }
}
