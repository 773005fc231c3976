//! `kill -9` at each step of a Kafka transaction: before it is asked for, on its way, and when its answer has come.
//!
//! The relay is started again and again with a fail-point at which it kills itself, under load, and once without.
//! `FAIL_POINT_KILLS=20` has it die so often at each; 3 times unless said.

#![expect(clippy::print_stdout, reason = "what was measured")]

use crate::committed::{Committed, all_committed, is_open};
use crate::exactly_once::{command, judge, wait_free};
use crate::support::{PATIENCE, count, stop, truth, wait_confirmed};
use crate::transactions::Cluster;
use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use testkit::checker::Checker;
use testkit::process::Signal;
use testkit::proxy::Way;
use testkit::workload::Workload;
use testkit::{Kafka, Postgres, Proxy, footprint, owlpost};

const PARTITIONS: usize = 4;

/// Each has a PostgreSQL and a topic of its own.
const LANES: usize = 3;

/// How often the relay dies at each point.
fn kills() -> u32 {
    let asked = std::env::var("FAIL_POINT_KILLS");
    asked.map_or(3, |kills| kills.parse().expect("FAIL_POINT_KILLS is a number"))
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Facts,
    /// No facts, but others write to the log: the position follows, in transactions of its own.
    Silence,
    /// Connections to PostgreSQL are lost in the middle of its transactions: those of Kafka are given up.
    Cuts,
}

/// Where the relay dies.
#[derive(Debug, Clone)]
struct Point {
    name: String,
    load: Load,
    /// How often it passes the place until then.
    passes: &'static [usize],
}

const MANY: &[usize] = &[1, 2, 3, 4, 5];
const FEW: &[usize] = &[1, 2];
const ONCE: &[usize] = &[1];
const AGAIN: &[usize] = &[2, 3];

const ALL: &[&str] = &["asking", "sent", "answered"];
const TAKEN: &[&str] = &["asking", "sent", "answered", "taken"];

/// The rarest first, so that no lane is left alone with them.
const STEPS: &[(&str, Load, &[usize], &[&str])] = &[
    ("aborting", Load::Cuts, FEW, ALL),
    ("next-epoch", Load::Cuts, FEW, ALL),
    ("reading", Load::Cuts, AGAIN, ALL),
    ("positioning", Load::Silence, FEW, ALL),
    ("ending", Load::Silence, FEW, TAKEN),
    ("initialising", Load::Facts, ONCE, ALL),
    ("reading", Load::Facts, ONCE, ALL),
    ("producing", Load::Facts, MANY, ALL),
    ("positioning", Load::Facts, MANY, ALL),
    ("ending", Load::Facts, MANY, TAKEN),
];

/// What the newer protocol has not: there what is written to is added.
const OLDER_STEPS: &[(&str, Load, &[usize], &[&str])] = &[
    ("adding-offsets", Load::Silence, FEW, ALL),
    ("adding-offsets", Load::Facts, MANY, ALL),
    ("adding-partitions", Load::Facts, MANY, ALL),
];

/// Every step of a transaction, at each of its moments.
fn points(cluster: Cluster) -> VecDeque<Point> {
    let older = if cluster == Cluster::New { &[] } else { OLDER_STEPS };
    let mut points = VecDeque::new();
    for (step, load, passes, moments) in STEPS.iter().chain(older) {
        for moment in *moments {
            let name = format!("{step}:{moment}");
            points.push_back(Point { name, load: *load, passes });
        }
    }
    points
}

/// One relay after the other between a PostgreSQL and a topic.
struct Lane<'k> {
    postgres: Postgres,
    /// Between the relays and PostgreSQL.
    proxy: Proxy,
    kafka: &'k Kafka,
    prefix: String,
    consumer: Committed,
    seed: u64,
}

impl<'k> Lane<'k> {
    fn new(kafka: &'k Kafka, prefix: String, number: u64) -> Self {
        let postgres = Postgres::builder().own_identifier().start();
        let topic = format!("{prefix}.order");
        kafka.create_topic(&topic, PARTITIONS, &[]);
        let consumer = Committed::of(kafka, &topic);
        let proxy = Proxy::to(&format!("127.0.0.1:{}", postgres.port()));
        let lane = Self { postgres, proxy, kafka, prefix, consumer, seed: number * 1000 };
        let first = lane.command().spawn();
        first.wait_ready();
        stop(&first);
        lane.workload().install(&mut lane.postgres.client());
        lane
    }

    fn command(&self) -> owlpost::Command {
        command(&self.prefix, &self.postgres, self.kafka)
            .env("TRANSACTION_INTERVAL", "10ms")
            .env("IN_FLIGHT_BYTES", "1MiB")
            .env("MASTER_DATABASE_URL", format!("postgres://postgres@{}/app", self.proxy.address()))
    }

    fn workload(&self) -> Workload {
        Workload {
            facts: 10_000_000,
            writers: 2,
            aggregates: 100,
            transaction: 0..=20,
            pause: Duration::from_millis(10),
            ..Workload::new(&self.prefix, self.seed)
        }
    }

    /// Dies there so often, and lives once. Every fact is then seen once, and none was seen too early.
    fn die_at(&mut self, point: &Point) {
        self.seed += 1;
        let topic = format!("{}.order", self.prefix);
        let running = match point.load {
            Load::Facts => Some(self.workload().start(&self.postgres)),
            Load::Silence => None,
            Load::Cuts => {
                // It takes two seconds to read a transaction of those that are written meanwhile, so that there is
                // always one that is read in part.
                self.proxy.set_both(Way { bytes_per_second: Some(50_000), ..Way::default() });
                let large = Workload {
                    writers: 1,
                    transaction: 300..=300,
                    rolled_back_transactions: 0,
                    pause: Duration::from_millis(700),
                    ..self.workload()
                };
                Some(large.start(&self.postgres))
            }
        };
        for kill in 0..kills() as usize {
            let passes = point.passes[kill % point.passes.len()];
            let fail_point = format!("{}:{passes}", point.name);
            let doomed = self.command().env("OWLPOST_FAIL_POINT", &fail_point).spawn();
            let ended = AtomicBool::new(false);
            let Self { postgres, proxy, kafka, .. } = &*self;
            let status = thread::scope(|scope| {
                scope.spawn(|| trouble((postgres, proxy, kafka, &topic), point.load, &ended));
                let _end = End(&ended);
                doomed.wait_exit(PATIENCE)
            });
            let said = doomed.log_text();
            assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{fail_point}: {said}");
            assert!(said.contains("killed at "), "killed elsewhere than {fail_point}: {said}");
            assert!(!said.contains("panicked"), "{said}");
            wait_free(&self.postgres);
            self.consumer.look();
        }
        self.proxy.heal();
        let last = self.command().spawn();
        if let Some(running) = running {
            let written = running.stop();
            assert!(written.facts > 0, "no load at {point:?}");
        }
        wait_confirmed(&last, &self.postgres, PATIENCE);
        stop(&last);
        self.consumer.look_at_the_end(self.kafka);
        let truth = truth(&self.postgres);
        if !truth.is_empty() {
            let report = Checker::new(&truth).prefix(&self.prefix).check(self.consumer.records());
            assert!(report.violations.is_empty(), "{point:?}: {report}");
            self.consumer.assert_whole(&truth);
        }
    }
}

/// What happens while a relay runs.
fn trouble(lane: (&Postgres, &Proxy, &Kafka, &str), load: Load, ended: &AtomicBool) {
    let (postgres, proxy, kafka, topic) = lane;
    let goes_on = || !ended.load(Ordering::Relaxed);
    match load {
        Load::Facts => {}
        Load::Silence => {
            let mut client = postgres.client();
            while goes_on() {
                let foreign = "SELECT pg_logical_emit_message(false, 'elsewhere', '')";
                client.batch_execute(foreign).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        }
        Load::Cuts => {
            let mut before = count(kafka, topic);
            while goes_on() {
                let now = count(kafka, topic);
                // It may be a marker that was written, and the next transaction not begun yet.
                if now > before && is_open(kafka, topic) {
                    proxy.reset();
                    before = now;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Sets it when it is dropped, also by a panic.
struct End<'e>(&'e AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn a_relay_that_dies_at_each_step(cluster: Cluster, prefix: &str) {
    let kafka = &cluster.start();
    let points = points(cluster);
    let (begun, count) = (Instant::now(), points.len());
    let points = Mutex::new(points);
    thread::scope(|scope| {
        for number in 1..=LANES {
            let points = &points;
            scope.spawn(move || {
                let prefix = format!("{prefix}-{number}");
                let mut lane = Lane::new(kafka, prefix, number as u64);
                loop {
                    let Some(point) = points.lock().unwrap().pop_front() else { break };
                    let begun = Instant::now();
                    lane.die_at(&point);
                    let Point { name, load, .. } = &point;
                    println!("{name} with {load:?}: {} kills in {:.1?}", kills(), begun.elapsed());
                }
                judge(&lane.prefix, &lane.postgres, kafka);
                let seen = all_committed(kafka, &format!("{}.order", lane.prefix)).len();
                assert_eq!(seen, lane.consumer.records().len(), "Kafka's consumer beside ours");
                println!("lane {number}: {seen} facts, each once");
            });
        }
    });
    let kills = kills() as usize * count;
    println!("{kills} kills at {count} points in {:.0?}", begun.elapsed());
}

#[test]
fn each_fact_is_seen_once_though_the_relay_is_killed_at_each_step_of_a_transaction() {
    a_relay_that_dies_at_each_step(Cluster::New, "eo-step-new");
}

#[test]
fn each_fact_is_seen_once_though_the_relay_is_killed_at_each_step_in_the_older_protocol() {
    a_relay_that_dies_at_each_step(Cluster::Old, "eo-step-old");
}

#[test]
fn only_a_build_for_tests_can_be_told_to_kill_itself() {
    let binary = env!("CARGO_BIN_EXE_owlpost").as_ref();
    assert_eq!(footprint::is_for_tests(binary).unwrap(), cfg!(feature = "seeded-bugs"));
}
