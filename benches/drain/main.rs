//! How fast a backlog drains: `make bench-drain`.
//!
//! All slots are made at the same place, then the facts are emitted, then everybody drains the same
//! write-ahead log in turns: a raw reader (the ceiling: no decoding, no Kafka), `pg_recvlogical` to
//! `/dev/null`, owlpost to a real Kafka. Each turn has a slot of its own, and the order of the turns
//! changes from round to round. Everybody talks to the server over loopback TCP.
//!
//! The first round warms the machine up (the broker's compiler most of all) and is not counted.
//!
//! The end is: for the raw reader and `pg_recvlogical`, that the process has ended, which it does at
//! a given position; for owlpost, that the last record is in Kafka, replicated as far as it will be.
//! That is asked about every 10 ms or so, which costs owlpost that much. Afterwards, unmeasured: each
//! fact must be in the topic exactly once, the slot must be confirmed behind the last fact, and
//! owlpost must end with exit code 0 when told to.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark: real time, a table on standard output, and it stops where it stands"
)]

mod proc;
mod raw_reader;
mod table;

use clap::Parser;
use raw_reader::RawReader;
use std::collections::HashSet;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use table::{Column, Outcome, table};
use testkit::envelope::OutboxEvent;
use testkit::process;
use testkit::{Kafka, Lsn, Owlpost, Postgres, wait};

const PREFIX: &str = "bench";
const TOPIC: &str = "bench.order";
const PUBLICATION: &str = "facts";
const PARTITIONS: usize = 4;
const PAYLOAD: usize = 256;
const AGGREGATES: usize = 1000;

/// How long one turn may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Between two looks at the topic's end.
const LOOK: Duration = Duration::from_millis(10);

const NAMES: [&str; 3] = ["raw reader", "pg_recvlogical", "owlpost"];

#[derive(Debug, Parser)]
struct Arguments {
    /// Cargo gives it to a benchmark that is to be run, and not to one that is only to be tested.
    #[arg(long, hide = true)]
    bench: bool,
    /// How many rounds to count, beside the one that warms up.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Facts in transactions of 100; 0 leaves that part out.
    #[arg(long, default_value_t = 200_000)]
    facts: usize,
    /// Facts in transactions of their own; 0 leaves that part out.
    #[arg(long, default_value_t = 50_000)]
    alone: usize,
    /// A setting of owlpost, NAME=VALUE; any number of times.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    child: Option<Role>,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// Be the raw reader.
    RawReader(RawReader),
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(Role::RawReader(reader)) = &arguments.child {
        let seen = reader.run().expect("reading the stream");
        println!("{} {} {}", seen.messages, seen.bytes, seen.reads);
        return;
    }
    if !arguments.bench {
        return;
    }
    println!("load average at the start: {}", proc::load());
    let slots = (arguments.rounds + 1) * NAMES.len() + 1;
    let postgres = Postgres::builder()
        .setting("max_replication_slots", &slots.to_string())
        .setting("max_wal_size", "4GB")
        .start();
    let kafka = Kafka::builder().start();
    postgres.client().batch_execute(&format!("CREATE PUBLICATION {PUBLICATION}")).unwrap();
    for (facts, transaction) in [(arguments.facts, 100), (arguments.alone, 1)] {
        if facts > 0 {
            let settings = &arguments.set;
            let part = Part { facts, transaction, settings, postgres: &postgres, kafka: &kafka };
            part.run(arguments.rounds);
        }
    }
    println!("load average at the end: {}", proc::load());
}

/// One size of transactions.
struct Part<'a> {
    facts: usize,
    transaction: usize,
    settings: &'a [String],
    postgres: &'a Postgres,
    kafka: &'a Kafka,
}

impl Part<'_> {
    fn run(&self, rounds: usize) {
        for round in 0..=rounds {
            for name in NAMES {
                self.sql(&format!(
                    "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                    slot(name, round)
                ));
            }
        }
        let (last, end) = self.emit();
        println!(
            "\n{} facts, {} per transaction, payload {PAYLOAD} bytes, {PARTITIONS} partitions, {rounds} rounds; median (smallest..largest):\n",
            self.facts, self.transaction
        );
        let mut columns = NAMES.map(|name| Column { name, rounds: Vec::new() });
        for round in 0..=rounds {
            for turn in 0..NAMES.len() {
                let column = &mut columns[(turn + round) % NAMES.len()];
                let slot = slot(column.name, round);
                let outcome = match column.name {
                    "raw reader" => self.raw_reader(&slot, end),
                    "pg_recvlogical" => self.pg_recvlogical(&slot, end),
                    _ => self.owlpost(&slot, last),
                };
                self.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
                if round > 0 {
                    column.rounds.push(outcome);
                }
            }
        }
        println!("{}", table(self.facts, &columns));
    }

    fn sql(&self, sql: &str) {
        // A walsender may need a moment to notice that its client has gone.
        wait::until(sql, LIMIT, || self.postgres.client().batch_execute(sql).is_ok());
    }

    /// Emits the facts: the position behind the last one's commit, and that of a message behind it.
    fn emit(&self) -> (Lsn, Lsn) {
        let mut client = self.postgres.client();
        client.batch_execute("SET synchronous_commit = off").unwrap();
        let emit = format!(
            "SELECT count(pg_logical_emit_message(true, '{PREFIX}', c)) FROM unnest($1::bytea[]) AS c"
        );
        let emit = client.prepare(&emit).unwrap();
        let numbers: Vec<usize> = (0..self.facts).collect();
        for numbers in numbers.chunks(self.transaction) {
            let facts: Vec<Vec<u8>> = numbers.iter().map(|number| envelope(*number)).collect();
            client.execute(&emit, &[&facts]).unwrap();
        }
        let last = self.postgres.ask("SELECT pg_current_wal_insert_lsn()");
        let end = self.postgres.ask("SELECT pg_logical_emit_message(false, 'end', '')");
        // Decoding reads what is flushed.
        self.sql("SELECT pg_switch_wal()");
        (last.parse().unwrap(), end.parse().unwrap())
    }

    fn raw_reader(&self, slot: &str, end: Lsn) -> Outcome {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["raw-reader", "--slot", slot, "--publication", PUBLICATION]);
        command.args(["--database", testkit::postgres::DATABASE]);
        command.args(["--port", &self.postgres.port().to_string(), "--end", &end.0.to_string()]);
        let (outcome, said) = self.to_its_end(slot, command);
        let messages = said.split_whitespace().next();
        // One more: that at the end.
        assert_eq!(messages, Some((self.facts + 1).to_string().as_str()), "facts in the stream");
        outcome
    }

    fn pg_recvlogical(&self, slot: &str, end: Lsn) -> Outcome {
        let mut command = self.postgres.command("pg_recvlogical");
        command.args(["--start", "--no-loop", "--file", "/dev/null", "--slot", slot]);
        command.args(["--host", "127.0.0.1", "--port", &self.postgres.port().to_string()]);
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
        let mut cpu = Duration::ZERO;
        let (outcome, child) = self.measure(slot, spawn, Child::id, |child| {
            wait::until("the program to end", LIMIT, || !process::is_running(child.id()));
            let ended = Instant::now();
            cpu = proc::cpu(child.id()).expect("a program that nobody has waited for");
            ended
        });
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        (Outcome { cpu, ..outcome }, String::from_utf8(output.stdout).unwrap())
    }

    fn owlpost(&self, slot: &str, last: Lsn) -> Outcome {
        self.kafka.create_topic(TOPIC, PARTITIONS, &[]);
        let mut command = Owlpost::command(env!("CARGO_BIN_EXE_owlpost"))
            .servers(self.postgres, self.kafka)
            .env("WAL_PREFIX", PREFIX)
            .env("REPLICATION_SLOT_NAME", slot)
            .env("PUBLICATION_NAME", PUBLICATION);
        for setting in self.settings {
            let (name, value) = setting.split_once('=').expect("NAME=VALUE");
            command = command.env(name, value);
        }
        let broker = self.kafka.pid(1).unwrap();
        let broker_before = proc::cpu(broker).unwrap();
        let (mut cpu, mut broker_cpu) = (Duration::ZERO, Duration::ZERO);
        let (outcome, relay) = self.measure(
            slot,
            || command.spawn(),
            Owlpost::pid,
            |relay| {
                let limit = Instant::now() + LIMIT;
                while self.records() < self.facts {
                    assert!(relay.is_running() && Instant::now() < limit, "{}", relay.log_text());
                    std::thread::sleep(LOOK);
                }
                let ended = Instant::now();
                cpu = proc::cpu(relay.pid()).unwrap();
                broker_cpu = proc::cpu(broker).unwrap().saturating_sub(broker_before);
                ended
            },
        );
        let confirmed = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        wait::until("the slot to be confirmed", LIMIT, || {
            self.postgres.ask(&confirmed).parse::<Lsn>().unwrap() >= last
        });
        assert_eq!(relay.stop(LIMIT).code(), Some(0), "{}", relay.log_text());
        self.check();
        self.kafka.delete_topic(TOPIC);
        Outcome { cpu, broker: Some(broker_cpu), ..outcome }
    }

    fn records(&self) -> usize {
        let ends: i64 = self.kafka.end_offsets(TOPIC).values().sum();
        usize::try_from(ends).unwrap()
    }

    /// Every fact is in the topic exactly once.
    fn check(&self) {
        let records = self.kafka.read_topic(TOPIC);
        let ids: HashSet<&str> = records.iter().filter_map(|r| r.header("event_id")).collect();
        assert_eq!((records.len(), ids.len()), (self.facts, self.facts), "records, different ids");
        let whole = records.iter().all(|record| {
            let value = record.value.as_deref().unwrap_or_default();
            let event = OutboxEvent::from_bytes(value).unwrap();
            event.payload.len() == PAYLOAD && Some(event.id.as_str()) == record.header("event_id")
        });
        assert!(whole, "every value is an envelope as it was emitted");
    }

    /// Starts a reader and watches the walsender that serves it, until `end` says when it was done.
    fn measure<T: Sync>(
        &self,
        slot: &str,
        start: impl FnOnce() -> T,
        pid: impl Fn(&T) -> u32,
        end: impl FnOnce(&T) -> Instant,
    ) -> (Outcome, T) {
        let mut client = self.postgres.client();
        let active = format!(
            "SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        let active = client.prepare(&active).unwrap();
        let done = AtomicBool::new(false);
        let begun = Instant::now();
        let reader = start();
        let reader_pid = pid(&reader);
        let watch = || {
            let mut walsender = 0_i32;
            while walsender == 0 && !done.load(Ordering::Relaxed) {
                walsender = client.query_one(&active, &[]).unwrap().get(0);
                std::thread::sleep(Duration::from_millis(1));
            }
            let streaming = Instant::now();
            let (mut cpu, mut peak_rss) = (Duration::ZERO, 0);
            while !done.load(Ordering::Relaxed) {
                cpu = proc::cpu(walsender.cast_unsigned()).unwrap_or(cpu);
                peak_rss = proc::peak_rss(reader_pid).unwrap_or(peak_rss);
                std::thread::sleep(Duration::from_millis(2));
            }
            (streaming, cpu, peak_rss)
        };
        let (ended, (streaming, walsender, peak_rss)) = std::thread::scope(|scope| {
            let watch = scope.spawn(watch);
            let ended = end(&reader);
            done.store(true, Ordering::Relaxed);
            (ended, watch.join().unwrap())
        });
        let outcome = Outcome {
            streaming: ended.saturating_duration_since(streaming),
            whole: ended - begun,
            cpu: Duration::ZERO,
            walsender,
            broker: None,
            peak_rss,
        };
        (outcome, reader)
    }
}

fn slot(name: &str, round: usize) -> String {
    format!("{}_{round}", name.replace(' ', "_"))
}

fn envelope(number: usize) -> Vec<u8> {
    let event = OutboxEvent {
        id: format!("00000000-0000-4000-8000-{number:012x}"),
        aggregate_type: "order".to_owned(),
        aggregate_id: format!("order-{}", number % AGGREGATES),
        event_type: "created".to_owned(),
        // Not one byte over and over: nobody is to profit from that.
        payload: (0..PAYLOAD)
            .map(|at| number.wrapping_mul(31) ^ at.wrapping_mul(7))
            .map(|byte| byte.to_le_bytes()[0])
            .collect(),
        created_at: 1_700_000_000_000,
        ..OutboxEvent::default()
    };
    event.to_bytes()
}
