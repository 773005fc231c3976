//! How fast a backlog drains: `make bench-drain`.
//!
//! All slots are made at the same place, then the facts are emitted, then everybody drains the same write-ahead log in
//! turns: a raw reader (the ceiling), `pg_recvlogical` to `/dev/null`, owlpost to a broker that keeps nothing, owlpost
//! to a real Kafka, and whoever else was named. Each turn has a slot of its own, and the order of the turns changes from
//! round to round. Everybody talks to the servers over loopback TCP. The first round warms the machine up (the
//! broker's compiler most of all) and is not counted.
//!
//! With `--delivery both` owlpost drains to Kafka in both ways, in turns, beside the raw reader alone: the null broker knows
//! no transactions.
//!
//! The end is: for the raw reader the commit of the last fact; for `pg_recvlogical` its own end, at a given position;
//! for owlpost, that the last record has arrived, which the null broker says by itself, and Kafka is asked about every
//! 10 ms or so: with exactly-once delivery, whether consumers of committed records see the last fact, and so all before
//! it. Afterwards, unmeasured: what arrived is checked, the slot must be confirmed behind the last fact, and
//! owlpost must end with exit code 0 when told to.

mod peer;
mod syscalls;

use crate::null_broker::{Account, NullBroker};
use crate::proc::Usage;
use crate::raw_reader::{self, RawReader, Seen};
use crate::run::{self, Measured};
use crate::shape::{Shape, number_in};
use crate::stage::{Delivery, LIMIT, Outcome, PUBLICATION, Stage, Subject, create_topics};
use crate::verify::Verifier;
use peer::Peer;
use serde::{Deserialize, Serialize};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::{Kafka, Lsn, Owlpost, Reader, Record, owlpost, process};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// How many rounds to count, beside the one that warms up.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Facts of a case; one fact per transaction has a quarter of them, and large facts are fewer.
    #[arg(long, default_value_t = 200_000)]
    facts: usize,
    /// Only these cases, by their beginnings; comma separated.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Kafka's part: at least once, exactly once, or both in turns.
    #[arg(long, value_enum, default_value_t)]
    delivery: Delivery,
    /// Another relay, NAME=COMMAND: a command for the shell that finds SLOT, PUBLICATION, PREFIX, DATABASE_URL,
    /// KAFKA_BROKERS, TOPIC and CODEC in its environment, publishes the facts there, and is ended once they are. Any number
    /// of times.
    #[arg(long, value_name = "NAME=COMMAND")]
    peer: Vec<Peer>,
    #[command(flatten)]
    ceiling: Ceiling,
}

/// How the raw reader reads.
#[derive(Debug, Clone, clap::Args)]
struct Ceiling {
    /// Microseconds that the raw reader naps between two reads.
    #[arg(long, default_value_t = raw_reader::NAP_US)]
    nap_us: u64,
    /// Receive buffer that it asks for, in bytes; 0 leaves it to the kernel.
    #[arg(long, default_value_t = raw_reader::RECEIVE_BUFFER)]
    receive_buffer: usize,
}

/// Bytes of payload in one backlog at most.
const BACKLOG_BYTES_MAX: usize = 400 << 20;

/// Between two looks at the topic's end.
const LOOK: Duration = Duration::from_millis(10);

/// One backlog, drained by everybody in turns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub name: String,
    pub shape: Shape,
    pub codec: String,
    pub envelope_bytes: usize,
    pub contenders: Vec<Contender>,
    /// Of owlpost to the null broker, in the round that warms up: calls by their names.
    pub syscalls: Vec<(String, u64)>,
}

/// All rounds of one contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contender {
    pub name: String,
    pub rounds: Vec<Outcome>,
}

impl Case {
    pub fn contender(&self, name: &str) -> Option<&Contender> {
        self.contenders.iter().find(|contender| contender.name == name)
    }

    /// Whether other relays are in it.
    pub fn has_peers(&self) -> bool {
        let ours = [RAW_READER, PG_RECVLOGICAL, TO_NULL, TO_KAFKA, TO_KAFKA_ONCE];
        self.contenders.iter().any(|contender| !ours.contains(&contender.name.as_str()))
    }
}

pub const RAW_READER: &str = "raw reader";
pub const PG_RECVLOGICAL: &str = "pg_recvlogical";
pub const TO_NULL: &str = "owlpost to the null broker";
pub const TO_KAFKA: &str = "owlpost to Kafka";
pub const TO_KAFKA_ONCE: &str = "owlpost to Kafka, exactly once";

/// The base, and cases that differ from it in one thing.
fn cases(facts: usize) -> Vec<(&'static str, Shape, &'static str)> {
    let base = Shape { facts, ..Shape::default() };
    let sized = |payload| Shape { payload, ..base }.at_most(BACKLOG_BYTES_MAX);
    vec![
        ("base", base, "none"),
        (
            "one fact per transaction",
            Shape { per_transaction: 1, facts: (facts / 4).max(1), ..base },
            "none",
        ),
        ("one partition", Shape { partitions: 1, ..base }, "none"),
        ("100 B", sized(100), "none"),
        ("1 KiB", sized(1024), "none"),
        ("16 KiB", sized(16 * 1024), "none"),
        ("lz4", base, "lz4"),
    ]
}

pub fn run(arguments: &Arguments) {
    let names: &[&str] = match arguments.delivery {
        Delivery::AtLeastOnce => &[RAW_READER, PG_RECVLOGICAL, TO_NULL, TO_KAFKA],
        Delivery::ExactlyOnce => &[RAW_READER, TO_KAFKA_ONCE],
        Delivery::Both => &[RAW_READER, TO_KAFKA, TO_KAFKA_ONCE],
    };
    let peers = arguments.peer.iter().map(|peer| peer.name.clone());
    let contenders: Vec<String> =
        names.iter().map(|name| (*name).to_owned()).chain(peers).collect();
    let slots = (arguments.rounds + 1) * contenders.len() + 1;
    let begun = run::Run::begin();
    let stage = Stage::new(&arguments.subject, slots);
    let kafka = Kafka::builder().start();
    let wanted = |name: &str| {
        arguments.cases.is_empty() || arguments.cases.iter().any(|begin| name.starts_with(begin))
    };
    let mut measured = Vec::new();
    for (nth, (name, shape, codec)) in cases(arguments.facts).into_iter().enumerate() {
        if wanted(name) {
            println!("{name}: {shape:?}, {codec}");
            let (stage, kafka, names) = (&stage, &kafka, &contenders);
            let drain = Drain { arguments, stage, kafka, shape, codec, names, nth };
            measured.push(drain.case(name));
        }
    }
    begun.finish(&stage.postgres, Measured::Drain(measured)).save(&arguments.subject.out);
}

/// One case while it is run.
struct Drain<'a> {
    arguments: &'a Arguments,
    stage: &'a Stage,
    kafka: &'a Kafka,
    shape: Shape,
    codec: &'a str,
    names: &'a [String],
    /// Which of the cases it is: a slot of before has left its position in Kafka.
    nth: usize,
}

impl Drain<'_> {
    fn case(&self, name: &str) -> Case {
        let rounds = self.arguments.rounds;
        let case = self.nth;
        let slot = |contender: usize, round: usize| format!("turn_{case}_{contender}_{round}");
        for round in 0..=rounds {
            (0..self.names.len()).for_each(|nth| self.stage.create_slot(&slot(nth, round)));
        }
        let end = self.shape.emit(&self.stage.postgres);
        let mut syscalls = Vec::new();
        let mut contenders: Vec<Contender> = self
            .names
            .iter()
            .map(|name| Contender { name: name.clone(), rounds: Vec::new() })
            .collect();
        for round in 0..=rounds {
            for turn in 0..self.names.len() {
                let nth = (turn + round) % self.names.len();
                let slot = slot(nth, round);
                let outcome = match contenders[nth].name.as_str() {
                    RAW_READER => self.raw_reader(&slot),
                    PG_RECVLOGICAL => self.pg_recvlogical(&slot, end),
                    TO_NULL if round == 0 => {
                        let (outcome, counted) = self.to_null(&slot, end, true);
                        syscalls = counted;
                        outcome
                    }
                    TO_NULL => self.to_null(&slot, end, false).0,
                    TO_KAFKA => self.to_kafka(&slot, end),
                    TO_KAFKA_ONCE => self.to_kafka_once(&slot, end),
                    name => {
                        let peer = self.arguments.peer.iter().find(|peer| peer.name == name);
                        self.peer(&slot, peer.expect("a peer that was named"))
                    }
                };
                self.stage.drop_slot(&slot);
                let contender = &mut contenders[nth];
                println!(
                    "  round {round}: {:28} {:>8.0} facts/s, {:.2} us of CPU a fact, walsender {:.2}",
                    contender.name,
                    self.shape.facts as f64 / outcome.seconds,
                    outcome.reader.cpu_us() / self.shape.facts as f64,
                    outcome.walsender.cpu_us() / self.shape.facts as f64,
                );
                if round > 0 {
                    contender.rounds.push(outcome);
                }
            }
        }
        Case {
            name: name.to_owned(),
            shape: self.shape,
            codec: self.codec.to_owned(),
            envelope_bytes: self.shape.envelope_bytes(),
            contenders,
            syscalls,
        }
    }

    fn raw_reader(&self, slot: &str) -> Outcome {
        let Ceiling { nap_us, receive_buffer } = self.arguments.ceiling;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["raw-reader", "--slot", slot, "--publication", PUBLICATION]);
        command.args(["--database", testkit::postgres::DATABASE]);
        for (name, value) in [
            ("--port", usize::from(self.stage.postgres.port())),
            ("--messages", self.shape.facts),
            ("--nap-us", nap_us as usize),
            ("--receive-buffer", receive_buffer),
        ] {
            command.args([name, &value.to_string()]);
        }
        let (outcome, said) = self.to_its_end(slot, command);
        let seen: Seen = serde_json::from_str(&said).expect("what the raw reader has seen");
        assert_eq!(seen.messages, self.shape.facts, "facts in the stream");
        Outcome { reader: seen.usage, reads: Some(seen.reads), ..outcome }
    }

    fn pg_recvlogical(&self, slot: &str, end: Lsn) -> Outcome {
        let postgres = &self.stage.postgres;
        let mut command = postgres.command("pg_recvlogical");
        command.args(["--start", "--no-loop", "--file", "/dev/null", "--slot", slot]);
        command.args(["--host", "127.0.0.1", "--port", &postgres.port().to_string()]);
        command.args(["--username", "postgres", "--dbname", testkit::postgres::DATABASE]);
        command.args(["--option", "proto_version=1", "--option", "messages=true"]);
        command.args(["--option", &format!("publication_names={PUBLICATION}")]);
        command.args(["--endpos", &end.to_string()]);
        self.to_its_end(slot, command).0
    }

    /// Measures a program that ends by itself; what it said.
    fn to_its_end(&self, slot: &str, mut command: Command) -> (Outcome, String) {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let spawn = || command.spawn().expect("a program that is there");
        let mut usage = Usage::default();
        let (watched, child) = self.stage.watch(slot, spawn, Child::id, |child| {
            let limit = Instant::now() + LIMIT;
            while process::is_running(child.id()) {
                assert!(Instant::now() < limit, "the program has not ended within {LIMIT:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
            let ended = Instant::now();
            usage = Usage::of(child.id()).expect("a program that nobody has waited for");
            ended
        });
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        (Outcome::new(watched, usage), String::from_utf8(output.stdout).unwrap())
    }

    fn to_null(&self, slot: &str, end: Lsn, trace: bool) -> (Outcome, Vec<(String, u64)>) {
        let broker = NullBroker::start(self.shape);
        let command = self.stage.relay(slot, &broker.bootstrap());
        let command = command.env("COMPRESSION_TYPE", self.codec);
        let mut traced = None;
        let spawn = || {
            let relay = command.spawn();
            traced = trace.then(|| syscalls::Tracer::attach(&relay)).flatten();
            relay
        };
        let (mut usage, mut broker_usage) = (Usage::default(), Usage::default());
        let (watched, relay) = self.stage.watch(slot, spawn, Owlpost::pid, |relay| {
            let ended = wait_for(relay, || broker.done());
            usage = Usage::of(relay.pid()).unwrap();
            broker_usage = Usage::of(broker.pid()).unwrap();
            ended
        });
        let syscalls = traced.map_or_else(Vec::new, syscalls::Tracer::counts);
        let counted = self.stage.finish(relay, slot, end, self.shape.facts);
        let Account { verdict, .. } = broker.account();
        verdict.check(self.shape.facts);
        let outcome = Outcome {
            broker: Some(broker_usage),
            counted: Some(counted),
            checked: Some(verdict.records),
            ..Outcome::new(watched, usage)
        };
        (outcome, syscalls)
    }

    fn to_kafka(&self, slot: &str, end: Lsn) -> Outcome {
        let command = self.stage.relay(slot, &self.kafka.bootstrap());
        let mut reader = self.kafka.reader(&self.topic());
        self.by(command, slot, end, || self.holds_all(&mut reader), Kafka::read_topic)
    }

    fn to_kafka_once(&self, slot: &str, end: Lsn) -> Outcome {
        let command = self.stage.relay_once(slot, &self.kafka.bootstrap());
        let mut reader = self.kafka.committed_reader(&self.topic());
        self.by(command, slot, end, || self.shows_last(&mut reader), Kafka::read_committed)
    }

    /// Drains by this command until `done`, and checks what is read then.
    fn by(
        &self,
        command: owlpost::Command,
        slot: &str,
        end: Lsn,
        done: impl FnMut() -> Option<Instant>,
        read: impl FnOnce(&Kafka, &str) -> Vec<Record>,
    ) -> Outcome {
        create_topics(self.kafka, &self.shape);
        let topic = self.topic();
        let command = command.env("COMPRESSION_TYPE", self.codec);
        let broker = self.kafka.pid(1).unwrap();
        // Its threads come and go.
        let before = Usage::in_ticks(broker).unwrap();
        let (mut usage, mut broker_usage) = (Usage::default(), Usage::default());
        let (watched, relay) = self.stage.watch(
            slot,
            || command.spawn(),
            Owlpost::pid,
            |relay| {
                let ended = wait_for(relay, done);
                usage = Usage::of(relay.pid()).unwrap();
                broker_usage = Usage::in_ticks(broker).unwrap() - before;
                ended
            },
        );
        let counted = self.stage.finish(relay, slot, end, self.shape.facts);
        let mut verifier = Verifier::new(self.shape);
        read(self.kafka, &topic).iter().for_each(|record| verifier.record(record));
        verifier.verdict.check(self.shape.facts);
        self.kafka.delete_topic(&topic);
        Outcome {
            broker: Some(broker_usage),
            counted: Some(counted),
            checked: Some(verifier.verdict.records),
            ..Outcome::new(watched, usage)
        }
    }

    /// Others may repeat facts or encode them anew: of theirs only the number is looked at.
    fn peer(&self, slot: &str, peer: &Peer) -> Outcome {
        create_topics(self.kafka, &self.shape);
        let topic = self.topic();
        let broker = self.kafka.pid(1).unwrap();
        let before = Usage::in_ticks(broker).unwrap();
        let (mut usage, mut broker_usage, mut peak_rss) = (Usage::default(), Usage::default(), 0);
        let mut reader = self.kafka.reader(&topic);
        let (watched, running) = self.stage.watch(
            slot,
            || peer.start(slot, self.codec, &self.stage.postgres, self.kafka, &topic),
            peer::Running::pid,
            |running| {
                let limit = Instant::now() + LIMIT;
                let ended = loop {
                    if let Some(ended) = self.holds_all(&mut reader) {
                        break ended;
                    }
                    assert!(running.is_running(), "{} has ended", peer.name);
                    assert!(Instant::now() < limit, "{}: not within {LIMIT:?}", peer.name);
                };
                usage = running.usage();
                peak_rss = running.peak_rss();
                broker_usage = Usage::in_ticks(broker).unwrap() - before;
                ended
            },
        );
        drop(running);
        self.kafka.delete_topic(&topic);
        Outcome { broker: Some(broker_usage), peak_rss, ..Outcome::new(watched, usage) }
    }

    fn topic(&self) -> String {
        self.shape.topic_names().next().expect("a topic")
    }

    /// Now, if the topic holds all facts; otherwise after a while.
    fn holds_all(&self, reader: &mut Reader) -> Option<Instant> {
        let records: i64 = reader.end_offsets().values().sum();
        if usize::try_from(records).unwrap() >= self.shape.facts {
            return Some(Instant::now());
        }
        std::thread::sleep(LOOK);
        None
    }

    /// Now, if consumers of committed records see the last fact; otherwise after a while. Transactions follow one another,
    /// and hold facts in the order of their commits: who sees the last one sees them all.
    fn shows_last(&self, reader: &mut Reader) -> Option<Instant> {
        // With markers, which have offsets, too: it is near.
        let offsets: i64 = reader.end_offsets().values().sum();
        if usize::try_from(offsets).unwrap() >= self.shape.facts {
            let at = Instant::now();
            // Behind the last record of each partition is the marker of its transaction.
            reader.stand_before_ends(2);
            reader.poll(Duration::ZERO).expect("a broker that answers");
            let last = Some(self.shape.facts - 1);
            if reader.take_records().iter().any(|record| number_in(record) == last) {
                return Some(at);
            }
        }
        std::thread::sleep(LOOK);
        None
    }
}

/// Until it is done, as long as the relay runs.
pub fn wait_for(relay: &Owlpost, mut done: impl FnMut() -> Option<Instant>) -> Instant {
    let limit = Instant::now() + LIMIT;
    loop {
        if let Some(ended) = done() {
            return ended;
        }
        assert!(relay.is_running() && Instant::now() < limit, "{}", relay.log_text());
    }
}

/// The raw reader as a process.
pub fn read_raw(reader: &RawReader) {
    let seen = reader.run(|_| ()).expect("reading the stream");
    println!("{}", serde_json::to_string(&seen).expect("numbers"));
}
