//! How much memory the relay has resident at most, in the situations that could make it grow: `make bench-memory`.
//!
//! Each has a bound, and the benchmark fails when one is broken.

use crate::drain::wait_for;
use crate::growth::{LARGEST, drain};
use crate::null_broker::NullBroker;
use crate::proc;
use crate::run::{self, Measured};
use crate::shape::{Emitter, Shape};
use crate::stage::{LIMIT, Stage, Subject, create_topics};
use crate::verify::Verifier;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use testkit::{Kafka, Lsn, Owlpost, wait};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Facts behind while Kafka is down.
    #[arg(long, default_value_t = 1_000_000)]
    facts: usize,
    /// How often the relay loses its connection to PostgreSQL.
    #[arg(long, default_value_t = 1000)]
    reconnects: usize,
    #[arg(long, default_value_t = 1000)]
    topics: usize,
    /// How long Kafka stays down once the facts are committed.
    #[arg(long, default_value_t = 20)]
    down_seconds: u64,
    /// Only these situations, by their beginnings; comma separated.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub situations: Vec<Situation>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Situation {
    pub name: String,
    /// What was found, in bytes.
    pub found: u64,
    /// What is compared.
    pub what: String,
    pub bound: u64,
    /// Resident bytes at an end of a step, where there are steps.
    pub series: Vec<(f64, u64)>,
}

impl Situation {
    pub fn met(&self) -> bool {
        self.found < self.bound
    }
}

const MIB: u64 = 1 << 20;

/// While there is much to do.
const BUSY_MAX: u64 = 24 * MIB;

/// While there is nothing to do.
const IDLE_MAX: u64 = 10 * MIB;

/// How much more the last quarter of reconnects may have than the second one: what an allocator keeps differs by so
/// much between two looks.
const DRIFT_MAX: u64 = MIB;

/// The largest payload that a topic with its defaults takes: `message.max.bytes` of 1,048,588 less the head of a batch,
/// the record's own, and what the envelope and the headers add.
const AT_TOPICS_LIMIT: usize = 1_048_588 - 1024;

/// Nearly the largest message that is taken from PostgreSQL, `FRAME_MAX_BYTES`.
const AT_FRAMES_LIMIT: usize = 63 << 20;

/// Such a fact is in the receive buffer, in its batch and in its request at once.
const COPIES: u64 = 3;

pub fn run(arguments: &Arguments) -> ExitCode {
    let begun = run::Run::begin();
    let stage = Stage::new(&arguments.subject, 8);
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|begin| name.starts_with(begin))
    };
    type Measure<'a> = Box<dyn FnOnce() -> Situation + 'a>;
    let large = |name, payload, bound| -> (&str, Measure<'_>) {
        (name, Box::new(move || one_large(&stage_of(&arguments.subject), name, payload, bound)))
    };
    let situations: Vec<(&str, Measure<'_>)> = vec![
        ("idle", Box::new(|| idle(&stage))),
        ("Kafka down, then drained", Box::new(|| kafka_down(&stage, arguments))),
        large("one fact of 900 KiB", LARGEST, BUSY_MAX),
        large("one fact as large as a topic takes", AT_TOPICS_LIMIT, BUSY_MAX),
        large(
            "one fact as large as a frame may be",
            AT_FRAMES_LIMIT,
            BUSY_MAX + COPIES * AT_FRAMES_LIMIT as u64,
        ),
        ("facts of 16 KiB", Box::new(|| large_facts(&stage, "facts of 16 KiB", 16 << 10))),
        ("facts of 128 KiB", Box::new(|| large_facts(&stage, "facts of 128 KiB", 128 << 10))),
        ("many topics of 12 partitions", Box::new(|| many_topics(&stage, arguments.topics))),
        ("reconnects", Box::new(|| reconnects(&stage, arguments.reconnects))),
    ];
    let mut measured = Vec::new();
    for (name, measure) in situations {
        if wanted(name) {
            let situation = measure();
            let Situation { what, found, bound, .. } = &situation;
            let verdict = if situation.met() { "met" } else { "BROKEN" };
            println!("{name}: {what} {:.1} MiB of {:.1}: {verdict}", mib(*found), mib(*bound));
            measured.push(situation);
        }
    }
    let broken = measured.iter().filter(|situation| !situation.met()).count();
    let measured = Measured::Memory(Memory { situations: measured });
    begun.finish(&stage.postgres, measured).save(&arguments.subject.out);
    if broken > 0 {
        eprintln!("{broken} bounds are broken");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

/// A server whose decoding has not met larger facts before, and no slot that holds back their log.
fn stage_of(subject: &Subject) -> Stage {
    Stage::new(subject, 2)
}

const SLOT: &str = "memory";

fn peak(name: &str, found: u64, bound: u64, series: Vec<(f64, u64)>) -> Situation {
    let what = "peak resident memory".to_owned();
    Situation { name: name.to_owned(), found, what, bound, series }
}

fn idle(stage: &Stage) -> Situation {
    let shape = Shape { facts: 1000, ..Shape::default() };
    stage.create_slot(SLOT);
    let broker = NullBroker::start(shape);
    let relay = stage.relay(SLOT, &broker.bootstrap()).spawn();
    relay.wait_ready();
    let end = shape.emit(&stage.postgres);
    wait_for(&relay, || broker.done());
    std::thread::sleep(Duration::from_secs(10));
    let found = proc::rss(relay.pid()).unwrap();
    stage.finish(relay, SLOT, end, shape.facts);
    broker.account().verdict.check(shape.facts);
    stage.drop_slot(SLOT);
    let what = "resident memory after 1,000 facts and 10 s".to_owned();
    Situation { what, ..peak("idle", found, IDLE_MAX, Vec::new()) }
}

/// A real Kafka is killed, the facts are committed, it comes back, and everything drains.
fn kafka_down(stage: &Stage, arguments: &Arguments) -> Situation {
    let shape = Shape { facts: arguments.facts, ..Shape::default() };
    let topic = shape.topic_names().next().expect("a topic");
    stage.create_slot(SLOT);
    let kafka = Kafka::builder().start();
    create_topics(&kafka, &shape);
    let relay = stage.relay(SLOT, &kafka.bootstrap()).spawn();
    relay.wait_ready();
    // So that it knows the topic and has a producer's identity.
    let before = (shape.facts / 10).clamp(1, 1000);
    shape.emit_some(&stage.postgres, 0..before);
    relay.wait_until("the first facts to be in Kafka", LIMIT, || {
        kafka.end_offsets(&topic).values().sum::<i64>() == before as i64
    });
    kafka.kill9();
    let begun = Instant::now();
    let mut series = Vec::new();
    let mut look = |relay: &Owlpost| {
        series.push((begun.elapsed().as_secs_f64(), proc::rss(relay.pid()).unwrap()));
    };
    let end = shape.emit_some(&stage.postgres, before..shape.facts);
    for _ in 0..arguments.down_seconds {
        look(&relay);
        std::thread::sleep(Duration::from_secs(1));
    }
    kafka.start_again();
    let mut last_look = Instant::now();
    relay.wait_until("everything to be confirmed", LIMIT, || {
        if last_look.elapsed() > Duration::from_millis(200) {
            last_look = Instant::now();
            look(&relay);
        }
        stage.is_confirmed(SLOT, end)
    });
    let found = proc::peak_rss(relay.pid()).unwrap();
    stage.finish(relay, SLOT, end, shape.facts);
    let mut verifier = Verifier::new(shape);
    kafka.read_topic(&topic).iter().for_each(|record| verifier.record(record));
    // What was on its way when Kafka was killed may come twice.
    verifier.verdict.judge_with_repeats(shape.facts).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("    checked: {} facts, each there, equal to the byte", shape.facts);
    stage.drop_slot(SLOT);
    peak("Kafka down, then drained", found, BUSY_MAX, series)
}

fn one_large(stage: &Stage, name: &str, payload: usize, bound: u64) -> Situation {
    let shape = Shape { facts: 1, per_transaction: 1, payload, ..Shape::default() };
    stage.create_slot(SLOT);
    let end = shape.emit(&stage.postgres);
    let outcome = drain(stage, SLOT, shape, end);
    peak(name, outcome.peak_rss, bound, Vec::new())
}

/// A backlog of them.
fn large_facts(stage: &Stage, name: &str, payload: usize) -> Situation {
    const BACKLOG_BYTES: usize = 256 << 20;
    let shape = Shape { facts: BACKLOG_BYTES / payload, payload, ..Shape::default() };
    stage.create_slot(SLOT);
    let end = shape.emit(&stage.postgres);
    let outcome = drain(stage, SLOT, shape, end);
    stage.drop_slot(SLOT);
    peak(name, outcome.peak_rss, BUSY_MAX, Vec::new())
}

fn many_topics(stage: &Stage, topics: usize) -> Situation {
    const PARTITIONS: usize = 12;
    // Each key of each topic a number of times.
    let facts = topics * PARTITIONS * 20;
    let shape = Shape { facts, topics, partitions: PARTITIONS, ..Shape::default() };
    stage.create_slot(SLOT);
    let end = shape.emit(&stage.postgres);
    let outcome = drain(stage, SLOT, shape, end);
    stage.drop_slot(SLOT);
    peak("many topics of 12 partitions", outcome.peak_rss, BUSY_MAX, Vec::new())
}

/// PostgreSQL ends the connection, the relay comes back, and facts flow, over and over.
fn reconnects(stage: &Stage, times: usize) -> Situation {
    const FACTS_EACH: usize = 10;
    let shape =
        Shape { facts: times * FACTS_EACH, per_transaction: FACTS_EACH, ..Shape::default() };
    stage.create_slot(SLOT);
    let broker = NullBroker::start(shape);
    let relay = stage.relay(SLOT, &broker.bootstrap()).spawn();
    relay.wait_ready();
    let mut client = stage.postgres.client();
    let active = format!(
        "SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
    );
    let active = client.prepare(&active).unwrap();
    let mut emitting = stage.postgres.client();
    let mut emitter = Emitter::new(&mut emitting);
    let mut walsender = 0_i32;
    let mut series = Vec::new();
    for nth in 0..times {
        let before = walsender;
        wait::until("another walsender", LIMIT, || {
            walsender = client.query_one(&active, &[]).unwrap().get(0);
            walsender != 0 && walsender != before
        });
        let numbers = nth * FACTS_EACH..(nth + 1) * FACTS_EACH;
        emitter.emit(numbers.map(|number| (true, shape.envelope(number))).collect());
        if nth % (times / 100).max(1) == 0 {
            series.push((nth as f64, proc::rss(relay.pid()).unwrap()));
        }
        if nth + 1 < times {
            client.execute("SELECT pg_terminate_backend($1)", &[&walsender]).unwrap();
        }
    }
    wait_for(&relay, || broker.done());
    let end: Lsn = stage.postgres.ask("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
    stage.finish(relay, SLOT, end, shape.facts);
    broker.account().verdict.check(shape.facts);
    stage.drop_slot(SLOT);
    Situation {
        what: format!("rise from the second to the last quarter of {times}"),
        ..peak("reconnects", rise(&series), DRIFT_MAX, series)
    }
}

/// By how much the last quarter is above the second one, in the mean; the first warms up.
fn rise(series: &[(f64, u64)]) -> u64 {
    let quarter = (series.len() / 4).max(1);
    let mean = |part: &[(f64, u64)]| {
        part.iter().map(|(_, bytes)| bytes).sum::<u64>() / part.len().max(1) as u64
    };
    let second = series.get(quarter..2 * quarter).unwrap_or(series);
    mean(&series[series.len() - quarter..]).saturating_sub(mean(second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_flat_behind_its_beginning_does_not_rise() {
        let at = |values: &[u64]| -> Vec<(f64, u64)> {
            values.iter().enumerate().map(|(x, bytes)| (x as f64, *bytes)).collect()
        };
        assert_eq!(rise(&at(&[1, 2, 9, 9, 9, 8, 9, 9])), 0);
        assert_eq!(rise(&at(&[1, 1, 4, 6, 7, 8, 9, 11])), 5);
        assert_eq!(rise(&at(&[3])), 0);
    }

    #[test]
    fn a_bound_is_met_below_it() {
        assert!(peak("x", 1, 2, Vec::new()).met() && !peak("x", 2, 2, Vec::new()).met());
    }
}
