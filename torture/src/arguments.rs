//! The command line.

use std::path::PathBuf;

const USAGE: &str = "usage: torture --relay BINARY [OPTION...]

  --relay BINARY   the relay to torture
  --minutes N      how long (3)
  --seed N         which faults, and when (1)
  --table FILE     where the table is written, too
  --log FILE       where the relays' logs are gathered (torture-relay.log in the temporary folder)
  --bug NAME       a deliberate defect, for a relay that was built with the feature seeded-bugs
  --delivery HOW   at-least-once, or exactly-once (at-least-once)
  --python BINARY  for exactly-once, a Python that has confluent-kafka, as scripts/clients makes one
                   (target/clients/python/bin/python)

PG_MAJOR (14 to 18) chooses PostgreSQL's major, KAFKA_VERSION=3.9.1 an older Kafka.";

/// What the relays are to deliver by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    AtLeastOnce,
    /// In Kafka transactions: judged is what consumers of committed records see.
    ExactlyOnce,
}

impl Delivery {
    /// As the relay's setting has it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "at-least-once",
            Self::ExactlyOnce => "exactly-once",
        }
    }

    pub(crate) fn is_exactly_once(self) -> bool {
        self == Self::ExactlyOnce
    }
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) relay: PathBuf,
    pub(crate) minutes: u64,
    pub(crate) seed: u64,
    pub(crate) table: Option<PathBuf>,
    pub(crate) log: PathBuf,
    pub(crate) bug: Option<String>,
    pub(crate) delivery: Delivery,
    pub(crate) python: PathBuf,
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
            delivery: Delivery::AtLeastOnce,
            python: PathBuf::from("target/clients/python/bin/python"),
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
                "--delivery" => {
                    let all = [Delivery::AtLeastOnce, Delivery::ExactlyOnce];
                    let known = all.into_iter().find(|delivery| delivery.word() == value);
                    read.delivery = known.ok_or(USAGE)?;
                }
                "--python" => read.python = PathBuf::from(value),
                _ => return Err(USAGE.to_owned()),
            }
        }
        read.relay = relay.ok_or(USAGE)?;
        Ok(read)
    }

    /// The command that does the same again, with a server of this version.
    pub(crate) fn command(&self, server: &str) -> String {
        let major = server.split('.').next().unwrap_or_default();
        let delivery = match self.delivery {
            Delivery::AtLeastOnce => "",
            Delivery::ExactlyOnce => " DELIVERY=exactly-once",
        };
        format!(
            "make torture MINUTES={} SEED={} PG_MAJOR={major}{delivery}",
            self.minutes, self.seed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Arguments, Delivery};

    fn read(line: &str) -> Result<Arguments, String> {
        Arguments::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_not_understood_is_answered_with_the_usage() {
        let good = read("--relay r --minutes 60 --seed 9").unwrap();
        assert_eq!((good.minutes, good.seed), (60, 9));
        assert_eq!(good.command("15.18 (D)"), "make torture MINUTES=60 SEED=9 PG_MAJOR=15");
        assert_eq!(good.delivery, Delivery::AtLeastOnce);
        let once = read("--relay r --delivery exactly-once").unwrap();
        let command = "make torture MINUTES=3 SEED=1 PG_MAJOR=18 DELIVERY=exactly-once";
        assert_eq!(once.command("18.4"), command);
        for bad in [
            "",
            "--relay",
            "--relay r --minutes x",
            "--relay r --else 1",
            "--relay r --delivery twice",
        ] {
            assert!(read(bad).unwrap_err().starts_with("usage:"), "{bad}");
        }
    }
}
