//! Why the process ended, as a number that scripts may rely on.

use crate::relay::gone::ExitKind;
use std::fmt::Write;

/// Declares [`ExitCode`] with its number and its line in `--help` side by side.
macro_rules! exit_codes {
    ($( $name:ident = $number:literal, $meaning:literal; )*) => {
        /// Why the process ended. The numbers are stable: scripts and alerts depend on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ExitCode {
            $( #[doc = $meaning] $name = $number, )*
        }

        impl ExitCode {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it means, in one line.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $( Self::$name => $meaning, )*
                }
            }
        }
    };
}

exit_codes! {
    Stopped = 0, "done, or stopped as asked: everything that was read is in Kafka and confirmed";
    Internal = 1, "an error in owlpost itself, or one that has no number of its own";
    Configuration = 2, "wrong usage or configuration; nothing was contacted";
    Unreachable = 3, "PostgreSQL or Kafka could not be reached, or refused us, at the start";
    Slot = 4, "the replication slot is missing, lost, or not ours: facts may be missing";
    History = 5, "another cluster than before, or one whose history went back: restored or swapped";
    Publication = 6, "publication and slot do not belong together: one is missing or half made";
    Unconfirmed = 7, "stopped at the deadline: facts not confirmed in time will be delivered again";
    Server = 8, "PostgreSQL cannot serve us: wal_level, version, REPLICATION right or no slot free";
    KafkaCluster = 9, "another Kafka cluster answered than the one that facts were published to";
    Findings = 10, "audit: facts are missing in Kafka, repeated or out of order";
    Preflight = 11, "check: a failure was found; the relay would not start, or would stop at a fact";
    NotReached = 12, "wait, drain: the position was not reached in time";
    Left = 13, "redrive: dead letters are left that cannot go back as they are";
    Fenced = 14, "another relay has the transactional id and publishes in our place";
}

impl ExitCode {
    /// The number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The table for `--help`.
    pub fn table() -> String {
        let mut table = String::new();
        for code in Self::ALL {
            // Writing to a String cannot fail.
            let _ = writeln!(table, "  {}  {}", code.number(), code.meaning());
        }
        table
    }
}

impl From<ExitKind> for ExitCode {
    fn from(kind: ExitKind) -> Self {
        match kind {
            ExitKind::Stopped => Self::Stopped,
            ExitKind::Deadline => Self::Unconfirmed,
            ExitKind::Unreachable => Self::Unreachable,
            ExitKind::Slot => Self::Slot,
            ExitKind::OtherCluster => Self::History,
            ExitKind::OtherKafka => Self::KafkaCluster,
            ExitKind::Publication => Self::Publication,
            ExitKind::Unsuitable => Self::Server,
            ExitKind::Fenced => Self::Fenced,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_stable() {
        let table: Vec<_> = ExitCode::ALL.iter().map(|c| (c.number(), format!("{c:?}"))).collect();
        let expected = [
            (0, "Stopped"),
            (1, "Internal"),
            (2, "Configuration"),
            (3, "Unreachable"),
            (4, "Slot"),
            (5, "History"),
            (6, "Publication"),
            (7, "Unconfirmed"),
            (8, "Server"),
            (9, "KafkaCluster"),
            (10, "Findings"),
            (11, "Preflight"),
            (12, "NotReached"),
            (13, "Left"),
            (14, "Fenced"),
        ];
        assert_eq!(table, expected.map(|(number, name)| (number, name.to_owned())));
    }
}
