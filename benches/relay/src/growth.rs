//! How the cost of a fact grows with whatever there is more of: `make bench-growth`.
//!
//! Each series varies one thing of the base (256 bytes, 100 per transaction, 4 partitions of one topic). Backlogs drain
//! to the null broker, which checks what arrives; so no figure is the broker's. Row traffic is another matter: there the
//! relay is caught up with 1,000 facts a second while others write rows that are none of its business.

use crate::drain::wait_for;
use crate::null_broker::NullBroker;
use crate::proc::{self, Usage};
use crate::run::{self, Measured};
use crate::shape::{Emitter, Shape};
use crate::stage::{Counted, Outcome, Stage, Subject};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::{Lsn, Owlpost, Postgres};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Facts of a backlog where it is not the number that grows.
    #[arg(long, default_value_t = 200_000)]
    facts: usize,
    /// Ten million facts behind, too: about 4 GB of write-ahead log.
    #[arg(long)]
    ten_million: bool,
    /// Only these series, by their beginnings; comma separated.
    #[arg(long, value_delimiter = ',')]
    series: Vec<String>,
    /// How long row traffic lasts at each pace.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    pub series: Vec<Series>,
    pub rows: Vec<Rows>,
}

/// One thing grows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub name: String,
    pub points: Vec<Point>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub x: f64,
    pub label: String,
    pub shape: Shape,
    pub envelope_bytes: usize,
    pub rounds: Vec<Outcome>,
}

/// Row traffic of others at one pace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// Megabytes of write-ahead log a second that were aimed at.
    pub aim: f64,
    /// And that were written, those of the facts included.
    pub written: f64,
    pub facts: usize,
    pub seconds: f64,
    pub relay: Usage,
    pub walsender: Usage,
    pub peak_rss: u64,
    /// Microseconds from commit to acknowledgement, by the relay's metric.
    pub commit_to_ack_mean_us: f64,
    /// From the last commit until everything had arrived.
    pub behind_seconds: f64,
}

/// The largest payload whose record, with its headers, is within a broker's default `message.max.bytes` of 1,048,588
/// with room to spare.
pub const LARGEST: usize = 900 * 1024;

/// Bytes of payload in one backlog at most, but for the longest.
const BACKLOG_BYTES_MAX: usize = 256 << 20;

/// What is to be measured: points without a round.
fn plan(facts: usize, ten_million: bool) -> Vec<Series> {
    let base = Shape { facts, ..Shape::default() };
    let series = |name: &str, values: &[usize], shape: &dyn Fn(usize) -> Shape| {
        let point = |value: &usize| {
            let (x, label, shape) = (*value as f64, value.to_string(), shape(*value));
            Point { x, label, shape, envelope_bytes: shape.envelope_bytes(), rounds: Vec::new() }
        };
        Series { name: name.to_owned(), points: values.iter().map(point).collect() }
    };
    let mut behind = vec![1000, 10_000, 100_000, 1_000_000];
    if ten_million {
        behind.push(10_000_000);
    }
    vec![
        series("facts behind", &behind, &|facts| Shape { facts, ..base }),
        series("topics", &[1, 10, 100, 1000], &|topics| Shape { topics, ..base }),
        series("partitions", &[1, 4, 12, 50, 100], &|partitions| Shape { partitions, ..base }),
        series("bytes of payload", &[64, 256, 1024, 16 * 1024, 128 * 1024, LARGEST], &|payload| {
            Shape { payload, ..base }.at_most(BACKLOG_BYTES_MAX)
        }),
        series("per cent of other prefixes", &[0, 50, 90, 99], &|foreign_percent| {
            // As many messages each time.
            let facts = (facts * (100 - foreign_percent) / 100).max(1);
            Shape { foreign_percent, facts, ..base }
        }),
    ]
}

const ROWS: &str = "megabytes of rows a second";

pub fn run(arguments: &Arguments) {
    let wanted = |name: &str| {
        arguments.series.is_empty() || arguments.series.iter().any(|begin| name.starts_with(begin))
    };
    let begun = run::Run::begin();
    let stage = Stage::new(&arguments.subject, arguments.rounds + 2);
    let mut measured = Growth { series: Vec::new(), rows: Vec::new() };
    let plan = plan(arguments.facts, arguments.ten_million);
    for mut series in plan.into_iter().filter(|series| wanted(&series.name)) {
        for point in &mut series.points {
            point.rounds = rounds(&stage, point.shape, arguments.rounds);
            let seconds = point.rounds.iter().map(|outcome| outcome.seconds);
            let best = point.shape.facts as f64 / seconds.fold(f64::INFINITY, f64::min);
            println!("{} {}: up to {best:.0} facts/s", series.name, point.label);
        }
        measured.series.push(series);
    }
    if wanted(ROWS) {
        for aim in [0.0, 10.0, 30.0, 100.0] {
            let rows = rows(&stage, aim, Duration::from_secs(arguments.seconds));
            println!("{rows:?}");
            measured.rows.push(rows);
        }
    }
    begun.finish(&stage.postgres, Measured::Growth(measured)).save(&arguments.subject.out);
}

fn rounds(stage: &Stage, shape: Shape, rounds: usize) -> Vec<Outcome> {
    let slots: Vec<String> = (0..rounds).map(|round| format!("growth_{round}")).collect();
    slots.iter().for_each(|slot| stage.create_slot(slot));
    let end = shape.emit(&stage.postgres);
    let drain = |slot: &String| {
        let outcome = drain(stage, slot, shape, end);
        stage.drop_slot(slot);
        outcome
    };
    slots.iter().map(drain).collect()
}

/// From a slot to the null broker.
pub fn drain(stage: &Stage, slot: &str, shape: Shape, end: Lsn) -> Outcome {
    let broker = NullBroker::start(shape);
    let command = stage.relay(slot, &broker.bootstrap());
    let (mut usage, mut broker_usage) = (Usage::default(), Usage::default());
    let (watched, relay) = stage.watch(
        slot,
        || command.spawn(),
        Owlpost::pid,
        |relay| {
            let ended = wait_for(relay, || broker.done());
            usage = Usage::of(relay.pid()).unwrap();
            broker_usage = Usage::of(broker.pid()).unwrap();
            ended
        },
    );
    let counted = stage.finish(relay, slot, end, shape.facts);
    let verdict = broker.account().verdict;
    verdict.check(shape.facts);
    Outcome {
        broker: Some(broker_usage),
        counted: Some(counted),
        checked: Some(verdict.records),
        ..Outcome::new(watched, usage)
    }
}

/// Facts a second beside the rows.
const PACE: usize = 1000;

/// About what one row takes of the log, with its payload of 1,000 bytes.
const ROW_BYTES: f64 = 1100.0;

/// Rows of one statement.
const ROWS_AT_ONCE: f64 = 1000.0;

fn rows(stage: &Stage, aim: f64, lasting: Duration) -> Rows {
    const SLOT: &str = "growth_rows";
    let postgres = &stage.postgres;
    let facts = PACE * lasting.as_secs() as usize;
    let shape = Shape { facts, per_transaction: 1, ..Shape::default() };
    postgres
        .client()
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS unrelated (id bigint, filling text); TRUNCATE unrelated",
        )
        .unwrap();
    stage.create_slot(SLOT);
    let broker = NullBroker::start(shape);
    let command = stage.relay(SLOT, &broker.bootstrap());
    let place = || postgres.ask("SELECT pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap().0;
    let (mut usage, mut seconds, mut written, mut behind_seconds) =
        (Usage::default(), 0.0, 0.0, 0.0);
    let (watched, relay) = stage.watch(
        SLOT,
        || {
            let relay = command.spawn();
            relay.wait_ready();
            relay
        },
        Owlpost::pid,
        |relay| {
            let stop = AtomicBool::new(false);
            let (begun, from) = (Instant::now(), place());
            let last = std::thread::scope(|scope| {
                scope.spawn(|| write_rows(postgres, aim, &stop));
                let last = emit_at_pace(postgres, shape);
                stop.store(true, Ordering::Relaxed);
                last
            });
            seconds = (last - begun).as_secs_f64();
            written = (place() - from) as f64 / seconds / 1e6;
            let ended = wait_for(relay, || broker.done());
            behind_seconds = ended.saturating_duration_since(last).as_secs_f64();
            usage = Usage::of(relay.pid()).unwrap();
            ended
        },
    );
    let peak_rss = proc::peak_rss(relay.pid()).unwrap();
    let end = postgres.ask("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
    let Counted { commit_to_ack, .. } = stage.finish(relay, SLOT, end, facts);
    let verdict = broker.account().verdict;
    verdict.check(facts);
    stage.drop_slot(SLOT);
    Rows {
        aim,
        written,
        facts,
        seconds,
        relay: usage,
        walsender: watched.walsender,
        peak_rss,
        commit_to_ack_mean_us: commit_to_ack * 1e6 / facts as f64,
        behind_seconds,
    }
}

/// When the last COMMIT had returned.
fn emit_at_pace(postgres: &Postgres, shape: Shape) -> Instant {
    let mut client = postgres.client();
    let mut emitter = Emitter::new(&mut client);
    let begun = Instant::now();
    for number in 0..shape.facts {
        let due = begun + Duration::from_secs_f64(number as f64 / PACE as f64);
        let messages = vec![(true, shape.envelope(number))];
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        emitter.emit(messages);
    }
    Instant::now()
}

/// Writes rows at a pace, or as fast as it can where that is slower.
fn write_rows(postgres: &Postgres, megabytes: f64, stop: &AtomicBool) {
    if megabytes <= 0.0 {
        return;
    }
    let mut client = postgres.client();
    client.batch_execute("SET synchronous_commit = off").unwrap();
    let sql = format!(
        "INSERT INTO unrelated SELECT n, repeat('r', 1000) FROM generate_series(1, {ROWS_AT_ONCE}) AS n"
    );
    let sql = client.prepare(&sql).unwrap();
    let pause = Duration::from_secs_f64(ROWS_AT_ONCE * ROW_BYTES / (megabytes * 1e6));
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        client.execute(&sql, &[]).unwrap();
        due += pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_series_has_the_base_and_rises() {
        let base = Shape { facts: 200_000, ..Shape::default() };
        for Series { name, points } in plan(base.facts, true) {
            assert!(points.is_sorted_by(|a, b| a.x < b.x), "{name}");
            let is_base = |shape: &Shape| Shape { facts: base.facts, ..*shape } == base;
            assert!(points.iter().any(|point| is_base(&point.shape)), "{name}");
            assert!(points.iter().all(|point| point.shape.facts > 0), "{name}");
        }
    }

    #[test]
    fn ten_million_facts_are_drained_when_asked_for() {
        let most = |ten_million| {
            let all = plan(1000, ten_million).into_iter().flat_map(|series| series.points);
            all.map(|point| point.shape.facts).max()
        };
        assert_eq!((most(false), most(true)), (Some(1_000_000), Some(10_000_000)));
    }
}
