//! The release binary between a real PostgreSQL and three real brokers, under every fault at once.
//!
//! `make torture MINUTES=3 SEED=1` runs it. Rounds of storm and calm take turns: in a storm each lane of
//! the [`nemesis`] does damage of its own kind; in the calm everything is healed, and what was committed
//! must arrive. All the while the [`judge`] compares the two ends. It prints one table at the end, and
//! ends with 1 if anything was violated or was never looked at.
//!
//! With `--delivery exactly-once` the relays put facts into Kafka transactions, and there is no calm in which anything may be
//! repeated.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test tool stops where it stands: a panic with a location is the report"
)]
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod arguments;
mod board;
mod fleet;
mod invariant;
mod judge;
mod last_acts;
mod nemesis;
mod scenes;
mod stage;
mod table;
mod transactions;
mod view;

use crate::arguments::{Arguments, Delivery};
use crate::board::Board;
use crate::fleet::{Fleet, Setting};
use crate::judge::{Case, Judge, wait_for};
use crate::nemesis::{Nemesis, Scale, words};
use crate::stage::{Stage, lock};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use testkit::traffic::{self, Traffic};
use testkit::{Kafka, Postgres, Proxy};

/// The prefix of the facts.
pub(crate) const PREFIX: &str = "torture";

/// Partitions of each topic.
const PARTITIONS: usize = 6;

/// The type of the aggregates whose topic grows, and how many partitions it gets.
pub(crate) const GROWING: &str = "carton";
pub(crate) const GROWTH: [usize; 3] = [8, 11, 15];

/// A storm, which a calm follows.
const STORM: Duration = Duration::from_secs(25);

/// What is left for the calm behind a storm and for the last acts.
const RESERVE: Duration = Duration::from_secs(15);

/// And for what only Kafka transactions can meet.
const SCENES: Duration = Duration::from_secs(25);

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(sentence) => {
            eprintln!("{sentence}");
            return ExitCode::from(2);
        }
    };
    if arguments.delivery.is_exactly_once() && !arguments.python.is_file() {
        let python = arguments.python.display();
        eprintln!("{python} is not there; `scripts/clients python` makes one with confluent-kafka");
        return ExitCode::from(2);
    }
    // In a function, so that all servers are gone when the process ends.
    if run(&arguments) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether everything held.
fn run(arguments: &Arguments) -> bool {
    let delivery = arguments.delivery;
    let board = Board::new(delivery);
    let kafka = cluster(delivery);
    let postgres = server();
    let proxy = Proxy::to(&format!("127.0.0.1:{}", postgres.port()));
    let traffic = Traffic {
        aggregate_types: ["order", "parcel", GROWING].map(str::to_owned).to_vec(),
        ..Traffic::new(PREFIX, arguments.seed)
    };
    let kinds = traffic.aggregate_types.iter();
    let topics: Vec<String> = kinds.map(|kind| format!("{PREFIX}.{kind}")).collect();
    topics.iter().for_each(|topic| kafka.create_topic(topic, PARTITIONS, &[]));
    traffic.install(&postgres);
    let mut judge = Judge::new(&Case {
        postgres: &postgres,
        kafka: &kafka,
        traffic: &traffic,
        topics: &topics,
        partitions: PARTITIONS,
        growth: &GROWTH,
        delivery,
        python: &arguments.python,
    });
    judge.grows(&format!("{PREFIX}.{GROWING}"), PARTITIONS);
    let fleet = Fleet::new(&Setting {
        binary: &arguments.relay,
        prefix: PREFIX,
        postgres: &proxy,
        kafka: &kafka,
        bug: arguments.bug.as_deref(),
        delivery,
        log: arguments.log.clone(),
    });
    let server = postgres.ask("SHOW server_version");
    let (code, said) = fleet.run(&["init", "--audit"], Duration::from_secs(30));
    assert_eq!(code, Some(0), "{said}");
    let first = fleet.start();
    first.wait_ready();
    drop(first);
    board.say(&format!("PostgreSQL {server}, three brokers of Kafka and the relay run"));
    let running = traffic.start(&postgres);
    let stage = Stage::new((&postgres, &proxy), (&kafka, topics), fleet, (board, judge), running);
    thread::scope(|scope| {
        scope.spawn(|| guarded(&stage, || stage.watch()));
        guarded(&stage, || perform(&stage, arguments));
        stage.end();
    });
    table::print(&stage, arguments, &server)
}

/// Three brokers, each behind a proxy. What transactions need is as safe as the facts, and those that are over their time
/// are ended without delay.
fn cluster(delivery: Delivery) -> Kafka {
    let (in_sync, cleanup) = (
        "transaction.state.log.min.isr",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms",
    );
    let builder = Kafka::builder().brokers(3).proxied().setting("min.insync.replicas", "2");
    match delivery {
        Delivery::AtLeastOnce => builder,
        Delivery::ExactlyOnce => builder.setting(in_sync, "2").setting(cleanup, "1000"),
    }
    .start()
}

/// With so little memory for decoding that transactions are spilled to disk, as they are where they are really
/// large. Not on 18, where the judge's own plugin, test_decoding, dies of that with a segmentation fault (seen
/// on 18.4).
fn server() -> Postgres {
    let builder = Postgres::builder();
    let major = testkit::provision::major().unwrap_or_else(|e| panic!("{e}"));
    let spills = major < 18;
    if spills { builder.setting("logical_decoding_work_mem", "64kB") } else { builder }.start()
}

/// A panic of the harness is a failure that ends the run in order.
fn guarded(stage: &Stage<'_>, job: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
        stage.board.fail(&words(&*panic));
    }
}

fn perform(stage: &Stage<'_>, arguments: &Arguments) {
    let end = Duration::from_secs(60 * arguments.minutes);
    stage.board.say("first, nothing is done");
    stage.board.begin_round();
    pass(stage, end / 12);
    stage.calm();
    // What a defect does after it was noticed tells nothing.
    let noticed = || arguments.bug.is_some() && stage.board.violations() > 0;
    let delivery = arguments.delivery;
    let mut nemesis = Nemesis::new(arguments.seed, Scale::of(arguments.minutes), delivery);
    let reserve = if delivery.is_exactly_once() { RESERVE + SCENES } else { RESERVE };
    let mut round = 0;
    while !stage.board.has_failed() && stage.board.elapsed() + STORM + reserve < end || round < 2 {
        if noticed() {
            return;
        }
        round += 1;
        let spared = round % 2 == 0 && !delivery.is_exactly_once();
        stage.board.begin_round();
        let whom = if spared { "of all but the relay's process" } else { "of everything" };
        stage.board.say(&format!("storm {round}, {whom}"));
        stage.board.storms();
        nemesis.storm(stage, STORM, round, spared);
        if stage.board.has_failed() {
            return;
        }
        stage.board.say("everything is healed");
        stage.calm();
    }
    if noticed() {
        return;
    }
    if delivery.is_exactly_once() {
        scenes::perform(stage);
    }
    if stage.board.has_failed() {
        return;
    }
    finish(stage);
    scenes::look_for_what_was_never_done(stage);
    // The slot that tells where transactions end does not survive them.
    stage.end();
    last_acts::perform(stage);
}

/// Lets time go by, unless the harness has failed.
fn pass(stage: &Stage<'_>, length: Duration) {
    wait_for("time to go by", length, || stage.board.has_failed());
}

/// Nobody writes any more: what is in the table is in Kafka, to the last fact.
fn finish(stage: &Stage<'_>) {
    stage.board.begin_round();
    lock(&stage.traffic).stop();
    stage.calm();
    let written = traffic::count(&mut stage.postgres.client())
        .unwrap_or_else(|e| panic!("counting what was committed: {e}"));
    let judged = stage.judge().facts;
    assert_eq!(written, judged, "facts in the table, and facts that were looked for");
}
