//! The command line.

use std::path::PathBuf;

const USAGE: &str = "usage: torture --relay BINARY [OPTION...]

  --relay BINARY   the relay to torture
  --minutes N      how long (3)
  --seed N         which faults, and when (1)
  --table FILE     where the table is written, too
  --log FILE       where the relays' logs are gathered (torture-relay.log in the temporary folder)
  --bug NAME       a deliberate defect, for a relay that was built with the feature seeded-bugs

PG_MAJOR (14 to 18) chooses PostgreSQL's major, KAFKA_VERSION=3.9.1 an older Kafka.";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) relay: PathBuf,
    pub(crate) minutes: u64,
    pub(crate) seed: u64,
    pub(crate) table: Option<PathBuf>,
    pub(crate) log: PathBuf,
    pub(crate) bug: Option<String>,
}

impl Arguments {
    /// Reads them; the error is the usage.
    pub(crate) fn read(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut relay = None;
        let mut read = Self {
            relay: PathBuf::new(),
            minutes: 3,
            seed: 1,
            table: None,
            log: std::env::temp_dir().join("torture-relay.log"),
            bug: None,
        };
        let mut words = words;
        while let Some(option) = words.next() {
            let value = words.next().ok_or(USAGE)?;
            match option.as_str() {
                "--relay" => relay = Some(PathBuf::from(value)),
                "--minutes" => read.minutes = value.parse().map_err(|_| USAGE)?,
                "--seed" => read.seed = value.parse().map_err(|_| USAGE)?,
                "--table" => read.table = Some(PathBuf::from(value)),
                "--log" => read.log = PathBuf::from(value),
                "--bug" => read.bug = Some(value),
                _ => return Err(USAGE.to_owned()),
            }
        }
        read.relay = relay.ok_or(USAGE)?;
        Ok(read)
    }

    /// The command that does the same again, with a server of this version.
    pub(crate) fn command(&self, server: &str) -> String {
        let major = server.split('.').next().unwrap_or_default();
        format!("make torture MINUTES={} SEED={} PG_MAJOR={major}", self.minutes, self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::Arguments;

    fn read(line: &str) -> Result<Arguments, String> {
        Arguments::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_not_understood_is_answered_with_the_usage() {
        let good = read("--relay r --minutes 60 --seed 9").unwrap();
        assert_eq!((good.minutes, good.seed), (60, 9));
        assert_eq!(good.command("15.18 (D)"), "make torture MINUTES=60 SEED=9 PG_MAJOR=15");
        for bad in ["", "--relay", "--relay r --minutes x", "--relay r --else 1"] {
            assert!(read(bad).unwrap_err().starts_with("usage:"), "{bad}");
        }
    }
}
