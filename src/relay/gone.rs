//! Why a connection to PostgreSQL ended, and what that leads to.

use super::position::Timelines;
use factlib_protocol::Lsn;
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

/// What is said of a server whose history is not that of the facts so far: both are one up to `end`, on `timeline`.
pub fn another_history(known: &Timelines, found: &Timelines, timeline: u32, end: Lsn) -> String {
    let (known, found) = (known.current(), found.current());
    let promoted = match known <= found {
        true => "two standbys were promoted apart from each other",
        false => {
            "an old primary that is still up, or two standbys that were promoted apart from each other"
        }
    };
    format!(
        "it is on timeline {found}, the facts so far are of timeline {known}, and both are one only up to {end} of \
         timeline {timeline}: {promoted}. Its positions are taken for repeats by consumers; check the address"
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

/// For who does not try again.
impl From<Gone> for Exit {
    fn from(gone: Gone) -> Self {
        let (kind, reason) = match gone {
            Gone::Terminal(kind, reason) | Gone::Refused(kind, reason) => (kind, reason),
            Gone::Lost(reason) | Gone::SlotInUse(reason) => (ExitKind::Unreachable, reason),
        };
        Self { kind, reason }
    }
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
    /// Somebody else has our transactional id.
    Fenced,
}

/// What an ErrorResponse leads to, wherever it came: at log-in, in answer to a command, or in the
/// middle of the stream.
pub fn classify(error: &ServerError) -> Gone {
    let words = error.to_string();
    match error.code {
        SqlState::OBJECT_IN_USE => Gone::SlotInUse(format!(
            "{words}; this process waits until that one ends: stop that, if it is not meant"
        )),
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
        | SqlState::INVALID_CATALOG_NAME => {
            Gone::Refused(ExitKind::Unreachable, format!("{words}{}", log_in_advice(error)))
        }
        SqlState::INSUFFICIENT_PRIVILEGE => Gone::Refused(
            ExitKind::Unsuitable,
            format!(
                "{words}; the role needs LOGIN and REPLICATION, and CREATE on the database where the \
                 publication is not there yet: another role may run `owlpost init`"
            ),
        ),
        // No free slot. The server's own hint says what to do.
        SqlState::CONFIGURATION_LIMIT_EXCEEDED => Gone::Refused(ExitKind::Unsuitable, words),
        SqlState::TOO_MANY_CONNECTIONS => {
            let (what, setting) = match error.message.contains("max_wal_senders") {
                true => ("walsenders", "max_wal_senders"),
                false => ("sessions", "max_connections"),
            };
            Gone::Lost(format!(
                "{words}; end {what} that nobody needs, or raise {setting} and restart the server"
            ))
        }
        _ => Gone::Lost(words),
    }
}

/// What to do about a log-in that is refused, as far as the server's words tell; nothing where they are in
/// another language than English.
pub fn log_in_advice(error: &ServerError) -> &'static str {
    let says = |words| error.message.contains(words);
    match error.code {
        SqlState::INVALID_PASSWORD => "; look at the password, and at where it is read",
        SqlState::INVALID_AUTHORIZATION if says("requires a valid client certificate") => {
            "; name a certificate in sslcert and its key in sslkey"
        }
        SqlState::INVALID_AUTHORIZATION if says("certificate authentication failed") => {
            "; the common name of sslcert must be the role's name, or mapped to it in pg_ident.conf"
        }
        SqlState::INVALID_AUTHORIZATION if says("pg_hba.conf") && says("no encryption") => {
            "; use TLS (sslmode=verify-full), or let pg_hba.conf have a line for us without it"
        }
        SqlState::INVALID_AUTHORIZATION if says("pg_hba.conf") => {
            "; a line of pg_hba.conf must let this role in from this host to this database"
        }
        SqlState::INVALID_AUTHORIZATION => {
            "; the role must be there and have LOGIN, and a line of pg_hba.conf must let it in"
        }
        SqlState::INVALID_CATALOG_NAME => "; look at the database in MASTER_DATABASE_URL",
        _ => "",
    }
}

impl Gone {
    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Lost(reason) | Self::SlotInUse(reason) => reason,
            Self::Refused(_, reason) | Self::Terminal(_, reason) => reason,
        }
    }
}

/// What happened, and what to do about it: a sentence of ours has the second behind its last semicolon. Some say
/// it in other ways.
pub fn remedy(sentence: &str) -> (&str, Option<&str>) {
    match sentence.rsplit_once("; ") {
        Some((happened, remedy)) => (happened, Some(remedy)),
        None => (sentence, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_server_leads_to_what_can_be_done_about_it() {
        let terminal = |kind| move |gone: &Gone| matches!(gone, Gone::Terminal(k, _) if *k == kind);
        let refused = |kind| move |gone: &Gone| matches!(gone, Gone::Refused(k, _) if *k == kind);
        type Leads = Box<dyn Fn(&Gone) -> bool>;
        // As PostgreSQL 15 and 18 say it.
        let table: [(&str, &str, Leads); 12] = [
            (
                "55006",
                "replication slot \"s\" is active for PID 7",
                Box::new(|gone| matches!(gone, Gone::SlotInUse(_))),
            ),
            (
                "42704",
                "publication \"p\" does not exist",
                Box::new(terminal(ExitKind::Publication)),
            ),
            ("42704", "replication slot \"s\" does not exist", Box::new(terminal(ExitKind::Slot))),
            (
                "55000",
                "cannot read from logical replication slot \"s\"",
                Box::new(terminal(ExitKind::Slot)),
            ),
            ("28P01", "password authentication failed", Box::new(refused(ExitKind::Unreachable))),
            ("28000", "no pg_hba.conf entry for host", Box::new(refused(ExitKind::Unreachable))),
            ("3D000", "database \"d\" does not exist", Box::new(refused(ExitKind::Unreachable))),
            (
                "42501",
                "must be superuser or replication role",
                Box::new(refused(ExitKind::Unsuitable)),
            ),
            ("53400", "all replication slots are in use", Box::new(refused(ExitKind::Unsuitable))),
            // These pass, or somebody makes them pass, and nothing is lost meanwhile.
            (
                "53300",
                "sorry, too many clients already",
                Box::new(|gone| matches!(gone, Gone::Lost(_))),
            ),
            (
                "57P03",
                "the database system is starting up",
                Box::new(|gone| matches!(gone, Gone::Lost(_))),
            ),
            (
                "XX000",
                "invalid memory alloc request size",
                Box::new(|gone| matches!(gone, Gone::Lost(_))),
            ),
        ];
        for (code, message, leads) in table {
            let error = ServerError {
                severity: "ERROR".to_owned(),
                code: SqlState(code.as_bytes().try_into().unwrap()),
                message: message.to_owned(),
                detail: None,
                hint: None,
            };
            let gone = classify(&error);
            assert!(leads(&gone), "{code} {message}: {gone:?}");
            let (Gone::Lost(words)
            | Gone::Refused(_, words)
            | Gone::SlotInUse(words)
            | Gone::Terminal(_, words)) = &gone;
            assert!(words.contains(code) && words.contains(message), "{words}");
        }
    }

    #[test]
    fn a_refused_log_in_says_what_to_do() {
        for (code, message, advice) in [
            ("28P01", "password authentication failed for user \"owl\"", "look at the password"),
            ("28000", "connection requires a valid client certificate", "sslcert"),
            ("28000", "certificate authentication failed for user \"owl\"", "common name"),
            (
                "28000",
                "no pg_hba.conf entry for host \"::1\", user \"owl\", database \"app\", no encryption",
                "use TLS",
            ),
            (
                "28000",
                "pg_hba.conf rejects connection for host \"::1\", user \"owl\", database \"app\", SSL encryption",
                "must let this role in",
            ),
            ("28000", "role \"owl\" is not permitted to log in", "LOGIN"),
            ("3D000", "database \"app\" does not exist", "database in MASTER_DATABASE_URL"),
            ("57P03", "the database system is starting up", ""),
        ] {
            let error = ServerError {
                severity: "FATAL".to_owned(),
                code: SqlState(code.as_bytes().try_into().unwrap()),
                message: message.to_owned(),
                detail: None,
                hint: None,
            };
            let found = log_in_advice(&error);
            assert!(
                found.contains(advice) && found.is_empty() == advice.is_empty(),
                "{message}: {found}"
            );
        }
    }
}
