//! Killing the relay loses nothing.
//!
//! A campaign kills the relay again and again, each time in a situation that it has *measured*, and
//! judges what the server and Kafka hold before the next relay starts: whatever the server was told
//! to forget must be in Kafka. That is the sharpest form of "no loss", because a restart would hide
//! a violation by luck. What a transaction's end is comes from a `test_decoding` slot of its own.

use crate::support::{PATIENCE, SLOT, relay, wait_confirmed};
use std::collections::HashSet;
use std::process::Command;
use testkit::checker::{self, Checker};
use testkit::kafka::Record;
use testkit::oracle::{self, Commits};
use testkit::process::Signal;
use testkit::rng::Rng;
use testkit::workload::{self, Truth, Workload};
use testkit::{Kafka, Lsn, Owlpost, Postgres, Reader};

/// `IN_FLIGHT_BYTES` where the window is to be full, and where it is not.
const NARROW: u64 = 1024 * 1024;
const WIDE: u64 = 2 * 1024 * 1024;

/// How many facts must be read and not acknowledged at a kill that counts.
const UNSETTLED: usize = 1000;

/// The situation in which the relay is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    /// Kafka went silent under load, and what was committed since was read.
    Silent,
    /// As before, but Kafka had been silent once already and acknowledged a part in between.
    SilentAgain,
    /// Kafka is silent, the window is full, and the relay has hung up.
    Full,
    /// As before, in the middle of one transaction that is larger than the window.
    FullOfOneTransaction,
    /// Everything is acknowledged, and PostgreSQL has not heard of it.
    Untold,
    /// Nothing is held up: the relay is catching up as fast as it can.
    CatchingUp,
}

impl Kill {
    /// Whether it is known how many facts are unsettled: where Kafka is silent, none can settle.
    fn is_counted(self) -> bool {
        !matches!(self, Self::Untold | Self::CatchingUp)
    }

    fn window(self) -> u64 {
        match self {
            Self::Full | Self::FullOfOneTransaction | Self::CatchingUp => NARROW,
            Self::Silent | Self::SilentAgain | Self::Untold => WIDE,
        }
    }
}

/// Which facts were read and not acknowledged, as far as it is sure.
#[derive(Debug, Clone, Copy)]
enum Unsettled {
    /// Those that were committed after the first position, when Kafka was silent already, and at or
    /// below the second, which the relay had read.
    Between(Lsn, Lsn),
    /// So many encoded bytes.
    Bytes(u64),
    /// Nobody knows.
    Unknown,
}

/// What was found after a kill.
#[derive(Debug)]
struct Killed {
    kill: Kill,
    unsettled: Unsettled,
    /// The facts that the server was told to forget.
    promised: usize,
    /// Those of them that are not in Kafka.
    missing: Vec<String>,
    /// The facts in Kafka that the server was not told of.
    untold: usize,
    /// How many records were in Kafka.
    records: usize,
}

/// Everything that a campaign left behind.
struct Outcome {
    kills: Vec<Killed>,
    truth: Vec<Truth>,
    commits: Commits,
    /// In the order in which they were read: that of their offsets within each partition.
    records: Vec<Record>,
}

struct Campaign {
    prefix: &'static str,
    bug: Option<&'static str>,
    postgres: Postgres,
    kafka: Kafka,
    commits: Commits,
    reader: Reader,
    rng: Rng,
    seed: u64,
}

impl Campaign {
    fn new(prefix: &'static str, bug: Option<&'static str>, seed: u64) -> Self {
        let postgres = Postgres::builder().start();
        let kafka = Kafka::builder().start();
        let topic = format!("{prefix}.order");
        kafka.create_topic(&topic, 4, &[]);
        // Before the first fact, so that it knows every transaction.
        let commits = Commits::watch(&mut postgres.client(), "oracle");
        let reader = kafka.reader(&topic);
        let rng = Rng::new(seed);
        Self { prefix, bug, postgres, kafka, commits, reader, rng, seed: seed * 1000 }
    }

    fn run(mut self, kills: &[Kill]) -> Outcome {
        // The first run makes the slot.
        let first = self.relay(WIDE);
        first.wait_ready();
        first.stop(PATIENCE);
        let mut outcomes = Vec::new();
        for kill in kills {
            let (relay, unsettled) = match kill {
                Kill::Silent => self.silent(1),
                Kill::SilentAgain => self.silent(2),
                Kill::Full => self.full(false),
                Kill::FullOfOneTransaction => self.full(true),
                Kill::Untold => self.untold(),
                Kill::CatchingUp => self.catching_up(),
            };
            relay.kill9();
            self.thaw();
            outcomes.push(self.judge(*kill, unsettled));
        }
        let last = self.relay(WIDE);
        wait_confirmed(&last, &self.postgres, PATIENCE);
        assert_eq!(last.stop(PATIENCE).code(), Some(0), "{}", last.stderr());
        let mut client = self.postgres.client();
        let truth = workload::truth(&mut client);
        self.commits.read(&mut client);
        self.reader.read_to_end();
        let records = self.reader.into_records();
        Outcome { kills: outcomes, truth, commits: self.commits, records }
    }

    fn relay(&self, window: u64) -> Owlpost {
        let command = relay(self.prefix, &self.postgres, &self.kafka)
            .env("IN_FLIGHT_BYTES", window)
            .env("STALL_TIMEOUT", "1s")
            .env("BACKOFF_MAX", "1s");
        match self.bug {
            Some(bug) => command.env("OWLPOST_SEEDED_BUG", bug).spawn(),
            None => command.spawn(),
        }
    }

    fn freeze(&self) {
        self.kafka.signal_broker(1, Signal::SIGSTOP);
    }

    fn thaw(&self) {
        self.kafka.signal_broker(1, Signal::SIGCONT);
    }

    fn workload(&mut self, facts: usize) -> Workload {
        self.seed += 1;
        Workload { facts, payload: 40..=120, ..Workload::new(self.prefix, self.seed) }
    }

    fn end(&self) -> Lsn {
        self.postgres.ask("SELECT pg_current_wal_insert_lsn()").parse().unwrap()
    }

    /// Records in Kafka.
    fn stored(&self) -> i64 {
        self.kafka.end_offsets(&format!("{}.order", self.prefix)).values().sum()
    }

    /// Waits until the relay has read past the newest fact.
    fn wait_read(&self, relay: &Owlpost) -> Lsn {
        let newest: Lsn = self.postgres.ask("SELECT max(lsn) FROM truth").parse().unwrap();
        let mut read = Lsn(0);
        relay.wait_until("the relay to read everything", PATIENCE, || {
            read = received(relay);
            read > newest
        });
        read
    }

    /// A relay that has caught up; then Kafka is silent under load, so many times.
    fn silent(&mut self, times: usize) -> (Owlpost, Unsettled) {
        let relay = self.relay(WIDE);
        wait_confirmed(&relay, &self.postgres, PATIENCE);
        let mut unsettled = Unsettled::Unknown;
        for time in 1..=times {
            let before = self.rng.between(50..=600);
            let writers = self.workload(before + 1500).start(&self.postgres);
            writers.wait_for(before, PATIENCE);
            self.freeze();
            let silent_from = self.end();
            writers.wait();
            unsettled = Unsettled::Between(silent_from, self.wait_read(&relay));
            if time < times {
                self.thaw();
                let stored = self.stored();
                relay.wait_until("Kafka to store some more", PATIENCE, || self.stored() > stored);
            }
        }
        (relay, unsettled)
    }

    /// A relay that reads until its window is full, stalls, and hangs up.
    fn full(&mut self, one_transaction: bool) -> (Owlpost, Unsettled) {
        let relay = self.relay(NARROW);
        relay.wait_ready();
        self.freeze();
        let workload = self.workload(4000);
        if one_transaction {
            // Far away from the seeds of the writers.
            let seed = u64::MAX - workload.seed;
            workload.write_transaction(&mut self.postgres.client(), workload.facts, seed);
        } else {
            workload.run(&self.postgres);
        }
        let mut bytes = 0;
        relay.wait_until("the relay to hang up", PATIENCE, || {
            let health = relay.health();
            bytes = health["in_flight_bytes"].as_u64().unwrap();
            health["state"] == "stalled"
        });
        (relay, Unsettled::Bytes(bytes))
    }

    /// A relay of whose confirmations the server has not heard, because its walsender is stopped.
    fn untold(&mut self) -> (Owlpost, Unsettled) {
        let relay = self.relay(WIDE);
        wait_confirmed(&relay, &self.postgres, PATIENCE);
        self.freeze();
        let facts = 1500;
        self.workload(facts).run(&self.postgres);
        self.wait_read(&relay);
        let slot = oracle::slot(&mut self.postgres.client(), SLOT).unwrap();
        let walsender = slot.active_pid.unwrap();
        signal(walsender, "STOP");
        self.thaw();
        let stored = self.reader.read_to_end().len();
        self.reader.read_until("Kafka to have everything", PATIENCE, |records| {
            records.len() >= stored.max(facts) && distinct(records) >= facts
        });
        relay.kill9();
        signal(walsender, "CONT");
        (relay, Unsettled::Unknown)
    }

    /// A relay that is behind and catches up.
    fn catching_up(&mut self) -> (Owlpost, Unsettled) {
        self.workload(6000).run(&self.postgres);
        let stored = self.stored();
        let more = self.rng.between(1..=3000);
        let relay = self.relay(NARROW);
        relay.wait_until("the relay to be catching up", PATIENCE, || {
            self.stored() >= stored + i64::try_from(more).unwrap()
        });
        (relay, Unsettled::Unknown)
    }

    /// Before any restart: is what the server may forget in Kafka?
    fn judge(&mut self, kill: Kill, unsettled: Unsettled) -> Killed {
        let mut client = self.postgres.client();
        let mut confirmed = Lsn(0);
        // What the relay said last may still be in the walsender's socket.
        testkit::wait::until("the walsender to notice", PATIENCE, || {
            let slot = oracle::slot(&mut client, SLOT).unwrap();
            confirmed = slot.confirmed;
            slot.active_pid.is_none()
        });
        // In this order, so that the end of each transaction is known.
        let truth = workload::truth(&mut client);
        self.commits.read(&mut client);
        let promised = self.commits.at_or_below(confirmed, &truth);
        let records = self.reader.read_to_end();
        let missing = checker::absent(&promised, records);
        Killed {
            kill,
            unsettled,
            promised: promised.len(),
            missing: missing.iter().map(|fact| fact.fact_id.clone()).collect(),
            untold: distinct(records).saturating_sub(promised.len()),
            records: records.len(),
        }
    }
}

impl Outcome {
    /// Kills after which something that the server may forget was not in Kafka.
    fn broken_promises(&self) -> Vec<String> {
        let broken = self.kills.iter().enumerate().filter(|(_, killed)| !killed.missing.is_empty());
        broken
            .map(|(number, killed)| {
                format!(
                    "kill {number} ({:?}): {} of {} confirmed facts are not in Kafka, such as {}",
                    killed.kill,
                    killed.missing.len(),
                    killed.promised,
                    killed.missing[0]
                )
            })
            .collect()
    }

    /// How many facts were surely unsettled at a kill.
    fn unsettled(&self, killed: &Killed) -> usize {
        match killed.unsettled {
            Unsettled::Between(silent_from, read) => {
                let ends = self.truth.iter().map(|fact| self.commits.end(fact.xid).unwrap());
                ends.filter(|end| silent_from < *end && *end <= read).count()
            }
            Unsettled::Bytes(bytes) => usize::try_from(bytes).unwrap() / self.largest(),
            Unsettled::Unknown => 0,
        }
    }

    /// More than the largest record takes in a batch.
    fn largest(&self) -> usize {
        // The batch's own header, and the lengths: at most 5 bytes for each part of a record.
        let framing = |record: &Record| 61 + 5 * (6 + 2 * record.headers.len());
        self.records.iter().map(|record| size(record) + framing(record)).max().unwrap()
    }

    /// Bytes of the records that were repeated after each kill.
    fn repeated(&self) -> Vec<usize> {
        let mut seen = HashSet::new();
        let begins = self.kills.iter().map(|killed| killed.records);
        let mut bytes = vec![0; self.kills.len() + 1];
        let mut after = 0;
        for (place, record) in self.records.iter().enumerate() {
            after += begins.clone().skip(after).take_while(|begin| *begin <= place).count();
            if !seen.insert(record.header("event_id")) {
                bytes[after] += size(record);
            }
        }
        assert_eq!(bytes.remove(0), 0, "repeats before the first kill");
        bytes
    }
}

/// Bytes of key, value and headers: less than the record takes in a batch.
fn size(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    headers + record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len)
}

fn distinct(records: &[Record]) -> usize {
    records.iter().map(|record| record.header("event_id")).collect::<HashSet<_>>().len()
}

fn received(relay: &Owlpost) -> Lsn {
    let health = relay.health();
    health["received_lsn"].as_str().map_or(Lsn(0), |lsn| lsn.parse().unwrap())
}

fn signal(pid: i32, name: &str) {
    let kill = format!("kill -{name} {pid}");
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
}

#[test]
fn after_a_kill_everything_confirmed_is_in_kafka_and_at_the_end_nothing_is_lost() {
    let kills: Vec<Kill> = [
        [Kill::Silent, Kill::Full, Kill::CatchingUp, Kill::SilentAgain, Kill::FullOfOneTransaction],
        [Kill::Silent, Kill::Full, Kill::Untold, Kill::SilentAgain, Kill::FullOfOneTransaction],
    ]
    .concat()
    .into_iter()
    .cycle()
    .take(25)
    .collect();
    let campaign = Campaign::new("crash", None, 7);
    let begun = std::time::Instant::now();
    let outcome = campaign.run(&kills);
    println!("{:?}", begun.elapsed());

    assert_eq!(outcome.broken_promises(), Vec::<String>::new());
    let topic = Checker::new(&outcome.truth).prefix("crash").allow_repeats();
    let report = topic.check(&outcome.records);
    report.assert_clean();

    let repeated = outcome.repeated();
    for (killed, repeated) in outcome.kills.iter().zip(&repeated) {
        println!("{:?} {} {repeated} {killed:?}", killed.kill, outcome.unsettled(killed));
    }
}
