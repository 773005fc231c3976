//! Killing the relay loses nothing.
//!
//! A campaign kills the relay again and again, each time in a situation that it has *measured*, and
//! judges what the server and Kafka hold before the next relay starts: whatever the server was told
//! to forget must be in Kafka. That is the sharpest form of "no loss", because a restart can hide a
//! violation by luck. Where each transaction ends is known from a `test_decoding` slot of its own.

use crate::support::{
    PATIENCE, SLOT, confirmed, count, emit, lsn, relay, stop, truth, wait_confirmed,
};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::process::Command;
use testkit::checker::{self, Checker};
use testkit::oracle::{self, Commits};
use testkit::process::Signal;
use testkit::rng::Rng;
use testkit::workload::{Truth, Workload};
use testkit::{Kafka, Lsn, Owlpost, Postgres, Reader, Record, wait};

/// How many facts must be read and not acknowledged at a kill that counts.
const UNSETTLED: usize = 1000;

/// `IN_FLIGHT_BYTES` where the window is to be full: the smallest there can be.
const NARROW: u64 = 1024 * 1024;

/// `IN_FLIGHT_BYTES` where everything that is written is to be read.
const WIDE: u64 = 3 * 1024 * 1024;

/// The situation in which the relay is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    /// Kafka went silent under load, and what was committed since was read.
    Silent,
    /// The same for the second time; in between Kafka acknowledged some of it.
    SilentAgain,
    /// Kafka is silent, the window is full, and the relay has hung up.
    Full,
    /// The same in the middle of a transaction that is larger than the window.
    FullOfOneTransaction,
    /// Kafka has everything, and PostgreSQL has not heard of it.
    Untold,
    /// Nothing is held up: the relay catches up as fast as it can.
    CatchingUp,
}

impl Kill {
    /// Whether it is known that many facts are unsettled. While Kafka is silent none can settle.
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

/// A relay that is about to be killed.
struct Doomed {
    relay: Owlpost,
    unsettled: Unsettled,
    /// Encoded bytes that it can have handed to Kafka without having told the server.
    exposed: u64,
}

/// Which facts were read and not acknowledged, as far as it is sure.
#[derive(Debug, Clone, Copy)]
enum Unsettled {
    /// Those whose commit ends after the first position, where Kafka was silent already, and at or
    /// below the second, which the relay has read.
    Between(Lsn, Lsn),
    /// So many encoded bytes.
    Bytes(u64),
    /// Nobody knows.
    Unknown,
}

/// What was found after a kill and before the next start.
#[derive(Debug)]
struct Killed {
    kill: Kill,
    unsettled: Unsettled,
    exposed: u64,
    /// How many facts the server was told to forget.
    promised: usize,
    /// Those of them that are not in Kafka.
    missing: Vec<String>,
    /// How many facts are in Kafka and the server was not told of them.
    untold: usize,
    /// How many records were in Kafka.
    records: usize,
}

/// What a campaign left behind.
struct Outcome {
    kills: Vec<Killed>,
    truth: Vec<Truth>,
    commits: Commits,
    /// In the order of their offsets within each partition.
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

/// Kills a relay in each of these situations and judges each time; in the end one relay more gets
/// everything through.
fn campaign(prefix: &'static str, bug: Option<&'static str>, seed: u64, kills: &[Kill]) -> Outcome {
    let postgres = Postgres::builder().start();
    // Its own, because it goes silent.
    let kafka = Kafka::builder().start();
    let topic = format!("{prefix}.order");
    kafka.create_topic(&topic, 4, &[]);
    // Before the first fact, so that every transaction is known.
    let commits = Commits::watch(&mut postgres.client(), "oracle");
    let reader = kafka.reader(&topic);
    let rng = Rng::new(seed);
    let mut campaign = Campaign { prefix, bug, postgres, kafka, commits, reader, rng, seed };
    // The first run makes the slot.
    let first = campaign.relay(Kill::Silent);
    first.wait_ready();
    stop(&first);

    let kills = kills.iter().map(|kill| campaign.kill(*kill)).collect();
    let last = campaign.relay(Kill::Silent);
    last.wait_ready();
    wait_confirmed(&last, &campaign.postgres, PATIENCE);
    stop(&last);
    let Campaign { postgres, mut commits, mut reader, .. } = campaign;
    let truth = truth(&postgres);
    commits.read(&mut postgres.client());
    reader.read_to_end();
    Outcome { kills, truth, commits, records: reader.into_records() }
}

impl Campaign {
    fn kill(&mut self, kill: Kill) -> Killed {
        let doomed = match kill {
            Kill::Silent => self.silent(kill, 1),
            Kill::SilentAgain => self.silent(kill, 2),
            Kill::Full | Kill::FullOfOneTransaction => self.full(kill),
            Kill::Untold => self.untold(kill),
            Kill::CatchingUp => self.catching_up(kill),
        };
        doomed.relay.kill9();
        self.thaw();
        self.judge(kill, &doomed)
    }

    fn relay(&self, kill: Kill) -> Owlpost {
        let command = relay(self.prefix, &self.postgres, &self.kafka)
            .env("IN_FLIGHT_BYTES", kill.window())
            .env("STALL_TIMEOUT", "1s")
            .env("BACKOFF_MAX", "1s");
        match self.bug {
            Some(bug) => command.env("OWLPOST_SEEDED_BUG", bug).spawn(),
            None => command.spawn(),
        }
    }

    /// A relay that has published before and has nothing more to do.
    fn idle_relay(&mut self, kill: Kill) -> Owlpost {
        let relay = self.relay(kill);
        self.workload(100).run(&self.postgres);
        wait_confirmed(&relay, &self.postgres, PATIENCE);
        self.reader.read_to_end();
        relay
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

    fn stored(&self) -> usize {
        count(&self.kafka, &format!("{}.order", self.prefix))
    }

    /// Waits until the relay has read past the newest fact and the server has heard of whatever is
    /// confirmed: the position read, and the bytes in flight.
    fn wait_read(&self, relay: &Owlpost) -> (Lsn, u64) {
        let newest = lsn(&self.postgres, "SELECT max(lsn) FROM truth");
        let mut standing = (Lsn(0), 0);
        relay.wait_until("the relay to read everything", PATIENCE, || {
            let health = relay.health();
            let lsn = |name| health[name].as_str().map_or(Lsn(0), |lsn: &str| lsn.parse().unwrap());
            standing = (lsn("received_lsn"), health["in_flight_bytes"].as_u64().unwrap());
            standing.0 > newest && lsn("confirmed_lsn") == confirmed(&self.postgres)
        });
        standing
    }

    /// Kafka goes silent under load, so many times.
    fn silent(&mut self, kill: Kill, times: usize) -> Doomed {
        let relay = self.idle_relay(kill);
        let mut unsettled = Unsettled::Unknown;
        let mut exposed = 0;
        for left in (0..times).rev() {
            let before = self.rng.between(50..=600);
            let writers = self.workload(before + 700).start(&self.postgres);
            writers.wait_for(before, PATIENCE);
            self.freeze();
            let silent_from = lsn(&self.postgres, "SELECT pg_current_wal_insert_lsn()");
            // What Kafka can have by now: a transaction of each writer may not be counted yet.
            let read_before = self.reader.records().len();
            let stored = read_before + writers.facts() + 4 * 50;
            // On a busy machine the writers may have come so far before it went silent that there is no more than that.
            let stored = stored.min(read_before + before + 700 - 1);
            writers.wait();
            if left == 0 {
                // However far the writers had come: these are committed in the silence.
                self.workload(1500).run(&self.postgres);
            }
            let (read, bytes) = self.wait_read(&relay);
            unsettled = Unsettled::Between(silent_from, read);
            exposed = bytes;
            if left > 0 {
                self.thaw();
                relay.wait_until("Kafka to store some", PATIENCE, || self.stored() > stored);
            }
        }
        Doomed { relay, unsettled, exposed }
    }

    /// The relay reads until its window is full, stalls, and hangs up.
    fn full(&mut self, kill: Kill) -> Doomed {
        let relay = self.idle_relay(kill);
        self.freeze();
        let workload = self.workload(4000);
        if kill == Kill::FullOfOneTransaction {
            // Far away from the seeds of writers.
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
        Doomed { relay, unsettled: Unsettled::Bytes(bytes), exposed: bytes }
    }

    /// Kafka has everything, and the walsender is stopped, so that it hears of nothing.
    fn untold(&mut self, kill: Kill) -> Doomed {
        let relay = self.idle_relay(kill);
        let facts = distinct(self.reader.records()) + 1500;
        self.freeze();
        self.workload(1500).run(&self.postgres);
        let (_, exposed) = self.wait_read(&relay);
        let slot = oracle::slot(&mut self.postgres.client(), SLOT).unwrap();
        let walsender = slot.active_pid.unwrap();
        signal(walsender, "STOP");
        self.thaw();
        self.reader.read_until("Kafka to have everything", PATIENCE, |records| {
            records.len() >= facts && distinct(records) >= facts
        });
        relay.kill9();
        // The relay's last words are in its socket: it must end before it reads them.
        signal(walsender, "TERM");
        signal(walsender, "CONT");
        Doomed { relay, unsettled: Unsettled::Unknown, exposed }
    }

    /// The relay is behind and catches up.
    fn catching_up(&mut self, kill: Kill) -> Doomed {
        self.workload(12_000).run(&self.postgres);
        let stored = self.stored();
        let more = self.rng.between(2000..=8000);
        let relay = self.relay(kill);
        relay.wait_until("the relay to catch up", PATIENCE, || self.stored() >= stored + more);
        // A quarter of the window is left for what the server was told in the end and did not hear.
        Doomed { relay, unsettled: Unsettled::Unknown, exposed: NARROW }
    }

    /// Before any restart: is what the server may forget in Kafka?
    fn judge(&mut self, kill: Kill, doomed: &Doomed) -> Killed {
        let mut client = self.postgres.client();
        let mut confirmed = Lsn(0);
        // What the relay said last may still be on its way to the walsender.
        wait::until("the walsender to leave", PATIENCE, || {
            let slot = oracle::slot(&mut client, SLOT).unwrap();
            confirmed = slot.confirmed;
            slot.active_pid.is_none()
        });
        let truth = truth(&self.postgres);
        self.commits.read(&mut client);
        let promised = self.commits.at_or_below(confirmed, &truth);
        let records = self.reader.read_to_end();
        let missing = checker::absent(&promised, records);
        Killed {
            kill,
            unsettled: doomed.unsettled,
            exposed: doomed.exposed,
            promised: promised.len(),
            missing: missing.iter().map(|fact| fact.fact_id.clone()).collect(),
            untold: distinct(records).saturating_sub(promised.len() - missing.len()),
            records: records.len(),
        }
    }
}

impl Outcome {
    /// The kills after which something that the server may forget was not in Kafka.
    fn broken_promises(&self) -> Vec<&Killed> {
        self.kills.iter().filter(|killed| !killed.missing.is_empty()).collect()
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

    /// More than any record takes in a batch.
    fn largest(&self) -> usize {
        // The batch's header; and a length of at most 5 bytes with each part of a record.
        let framing = |record: &Record| 61 + 5 * (6 + 2 * record.headers.len());
        self.records.iter().map(|record| size(record) + framing(record)).max().unwrap()
    }

    /// Bytes that were repeated after each kill and before the next one.
    fn repeated(&self) -> Vec<usize> {
        let mut seen = HashSet::new();
        let mut bytes = vec![0; self.kills.len()];
        for (place, record) in self.records.iter().enumerate() {
            if !seen.insert(record.header("event_id")) {
                let before = self.kills.iter().filter(|killed| killed.records <= place).count();
                let kill = before.checked_sub(1).expect("a repeat before the first kill");
                bytes[kill] += size(record);
            }
        }
        bytes
    }

    /// One line for each kill, for whoever reads a failure.
    fn table(&self) -> String {
        let mut table = String::new();
        for (killed, repeated) in self.kills.iter().zip(self.repeated()) {
            let Killed { kill, exposed, promised, untold, missing, .. } = killed;
            let (unsettled, missing) = (self.unsettled(killed), missing.len());
            let _ = writeln!(
                table,
                "{kill:?}: at least {unsettled} facts unsettled, {promised} confirmed and {missing} of \
                 them not in Kafka, {untold} not confirmed but in Kafka; then {repeated} bytes \
                 repeated of {exposed}"
            );
        }
        table
    }
}

/// Bytes of key, value and headers: less than the record takes in a batch.
fn size(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    headers + record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len)
}

/// The records that are not the first of their fact.
fn repeats(records: &[Record]) -> impl Iterator<Item = &Record> {
    let mut seen = HashSet::new();
    records.iter().filter(move |record| !seen.insert(record.header("event_id")))
}

fn distinct(records: &[Record]) -> usize {
    records.iter().map(|record| record.header("event_id")).collect::<HashSet<_>>().len()
}

/// Sends a signal to a process of the server's user.
fn signal(pid: i32, name: &str) {
    let kill = format!("kill -{name} {pid}");
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
}

#[test]
fn after_a_kill_all_that_is_confirmed_is_in_kafka_and_in_the_end_nothing_is_lost() {
    let situations = [
        Kill::Silent,
        Kill::Full,
        Kill::CatchingUp,
        Kill::SilentAgain,
        Kill::FullOfOneTransaction,
        Kill::Silent,
        Kill::FullOfOneTransaction,
        Kill::Untold,
        Kill::SilentAgain,
        Kill::Full,
    ];
    let kills: Vec<Kill> = situations.into_iter().cycle().take(25).collect();
    let outcome = campaign("crash", None, 7, &kills);
    let table = outcome.table();

    // It was what it was meant to be.
    let counted = outcome.kills.iter().filter(|killed| killed.kill.is_counted());
    assert!(counted.clone().count() >= 20, "{table}");
    for killed in counted {
        assert!(outcome.unsettled(killed) >= UNSETTLED, "{killed:?}\n{table}");
    }
    for killed in outcome.kills.iter().filter(|killed| killed.kill == Kill::Untold) {
        assert!(killed.untold >= UNSETTLED, "{killed:?}\n{table}");
    }

    let broken = outcome.broken_promises();
    assert!(broken.is_empty(), "{broken:?}\n{table}");
    let checker = Checker::new(&outcome.truth).prefix("crash").allow_repeats();
    checker.check(&outcome.records).assert_clean();

    // What is repeated was in flight: one window. One record may be over, because a window that is not
    // full takes the next one, whatever its size.
    let repeated = outcome.repeated();
    println!("{table}");
    assert!(repeated.iter().any(|bytes| *bytes > 0), "no kill had any consequence:\n{table}");
    for (killed, repeated) in outcome.kills.iter().zip(&repeated) {
        let over = outcome.largest() as u64;
        assert!(*repeated as u64 <= killed.exposed + over, "{killed:?}\n{table}");
        assert!(killed.exposed <= killed.kill.window() + over, "{killed:?}\n{table}");
    }
}

/// Symptom: while one partition was blocked the others went on without bound, and after a kill all of it came
/// again.
#[test]
fn a_partition_that_takes_nothing_lets_the_others_go_on_within_the_window() {
    let postgres = Postgres::builder().start();
    let kafka = Kafka::shared();
    kafka.create_topic("runaway.order", 4, &[]);
    kafka.create_topic("runaway.small", 1, &[("max.message.bytes", "1000")]);
    let command = || {
        relay("runaway", &postgres, kafka)
            .env("IN_FLIGHT_BYTES", NARROW)
            .env("STALL_TIMEOUT", "1s")
            .env("BACKOFF_MAX", "1s")
    };
    let doomed = command().spawn();
    doomed.wait_ready();
    let padding = "x".repeat(2000);
    let large = format!(r#"{{"aggregate_type":"small","event_type":"e","payload":"{padding}"}}"#);
    emit(&postgres, true, "runaway", large.as_bytes());
    let workload = Workload { facts: 15_000, payload: 40..=120, ..Workload::new("runaway", 3) };
    workload.run(&postgres);
    doomed.wait_until("the relay to hang up", PATIENCE, || {
        oracle::slot(&mut postgres.client(), SLOT).unwrap().active_pid.is_none()
    });
    let mut reader = kafka.reader("runaway.order");
    let before = reader.read_to_end().len();
    doomed.kill9();
    assert!(before > 100, "the others went on: {before}");
    assert!(before < 10_000, "and were held up in the end: {before}");

    kafka.set_topic_config("runaway.small", "max.message.bytes", "100000");
    let last = command().spawn();
    wait_confirmed(&last, &postgres, PATIENCE);
    stop(&last);
    let records = reader.read_to_end();
    let repeated: usize = repeats(records).map(size).sum();
    assert!(repeated > 0 && repeated as u64 <= NARROW, "{repeated} bytes were repeated");
    let truth = truth(&postgres);
    Checker::new(&truth).prefix("runaway").allow_repeats().check(records).assert_clean();
    assert_eq!(count(kafka, "runaway.small"), 1);
}

/// The same campaign against a relay that confirms what it has merely read.
#[cfg(feature = "seeded-bugs")]
#[test]
fn a_relay_that_confirms_what_it_has_merely_read_is_caught_in_the_act() {
    // Not each of them hits a moment in which something was confirmed too early.
    let kills = [Kill::Silent, Kill::Full].repeat(5);
    let outcome = campaign("crash-bug", Some("confirm-on-read"), 8, &kills);
    let table = outcome.table();
    println!("{table}");
    assert!(!outcome.broken_promises().is_empty(), "{table}");
    // And what was confirmed too early is lost for good.
    let checker = Checker::new(&outcome.truth).prefix("crash-bug").allow_repeats();
    let report = checker.check(&outcome.records);
    let lost = |violation: &checker::Violation| matches!(violation, checker::Violation::Lost(_));
    assert!(report.violations.iter().any(lost), "{report}{table}");
    assert!(report.violations.iter().all(lost), "{report}{table}");
}
