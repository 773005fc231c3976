//! What `factlib.emit` costs beside the bare `pg_logical_emit_message`: `make bench-sql`.
//!
//! In a batch: one statement that emits many facts, by `generate_series`; what remains of it per fact once the
//! series itself is taken off; the contenders take turns within each round, and the first round warms up. And as an
//! application does it: a prepared statement, one fact a transaction, over a Unix socket. Written are medians, and
//! between what three of five are.
//!
//! The server does not wait for its disk (`fsync = off`), because a disk would be all that one saw. Wall time, and
//! the time on a processor of the server's process, which other work on the machine changes less.
//!
//! It ends with 1 if one of the [bars](TIMES_MAX) is missed, for a fact without metadata, trace and guard.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark: real time, a table on standard output, and it stops where it stands"
)]

use clap::Parser;
use postgres::Client;
use std::process::ExitCode;
use std::time::Instant;
use testkit::Postgres;

#[derive(Debug, Parser)]
struct Arguments {
    /// Cargo gives it to a benchmark that is to be run, and not to one that is only to be tested.
    #[arg(long, hide = true)]
    bench: bool,
    /// How many rounds to count, beside the one that warms up.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// How many facts a batch has.
    #[arg(long, default_value_t = 50_000)]
    facts: u32,
    /// How many transactions of one fact each contender has.
    #[arg(long, default_value_t = 10_000)]
    transactions: u32,
}

const CONTENDERS: [(&str, &str); 7] = [
    ("pg_logical_emit_message", "pg_logical_emit_message(true, 'orders', envelope)"),
    ("factlib.emit_envelope", "factlib.emit_envelope('orders', envelope)"),
    ("factlib.emit", "factlib.emit('order', key, 'paid', '{\"by\": \"card\"}')"),
    ("factlib.emit, jsonb", "factlib.emit('order', key, 'paid', '{\"by\": \"card\"}'::jsonb)"),
    ("factlib.emit, trace context", "factlib.emit('order', key, 'paid', '{\"by\": \"card\"}')"),
    (
        "factlib.emit, metadata of two",
        "factlib.emit('order', key, 'paid', '{\"by\": \"card\"}', '{\"tenant\": \"acme\", \"attempt\": 2}')",
    ),
    ("factlib.emit, guard on", "factlib.emit('order', key, 'paid', '{\"by\": \"card\"}')"),
];

/// The contender that the bars are for.
const EMIT: &str = "factlib.emit";

/// A prepared transaction of one fact may take so many times as long as with the bare function, by the clock: both
/// are interrupted alike.
const TIMES_MAX: f64 = 2.0;

/// A call in a batch may take so many microseconds, on the processor of the server's process: by the clock it would be
/// what else the machine does.
const BATCH_MICROS_MAX: f64 = 20.0;

/// Transactions before the first that counts.
const WARM_UP: u32 = 200;

/// Microseconds a fact: on the clock and on the server's processor.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
}

impl std::ops::Sub for Cost {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { wall: self.wall - other.wall, cpu: self.cpu - other.cpu }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.bench {
        return ExitCode::SUCCESS;
    }
    let postgres = Postgres::builder()
        .setting("shared_buffers", "64MB")
        .setting("max_wal_size", "8GB")
        .start();
    let mut client = postgres.client();
    client.batch_execute(include_str!("../../sql/factlib.sql")).unwrap();
    client
        .batch_execute(
            "SET factlib.prefix = 'orders'; SET jit = off;
             INSERT INTO factlib.prefix_grant VALUES ('postgres', 'orders')",
        )
        .unwrap();
    let version = postgres.ask("SHOW server_version");
    println!(
        "PostgreSQL {version}, fsync = off; microseconds a fact; medians, and between what three of five are\n"
    );
    let batches = batches(&mut client, &arguments);
    client.batch_execute("SELECT factlib.guard(false)").unwrap();
    client.batch_execute("CREATE DATABASE guarded").unwrap();
    let mut guarded = connect(&postgres, "guarded");
    guarded.batch_execute(include_str!("../../sql/factlib.sql")).unwrap();
    let grant = "INSERT INTO factlib.prefix_grant VALUES ('postgres', 'orders'); SELECT factlib.guard(true)";
    guarded.batch_execute(grant).unwrap();
    drop(guarded);
    let transactions = transactions(&postgres, &arguments);
    let bars = [
        is_held(
            "a prepared transaction of one fact, times the bare function",
            transactions.times,
            TIMES_MAX,
        ),
        is_held("a call in a batch, microseconds on the processor", batches.cpu, BATCH_MICROS_MAX),
    ];
    ExitCode::from(u8::from(bars.contains(&false)))
}

/// What the bars are about: the medians of [`EMIT`].
#[derive(Debug, Clone, Copy)]
struct Medians {
    cpu: f64,
    times: f64,
}

fn is_held(what: &str, found: f64, max: f64) -> bool {
    // What is no number is not held.
    let held = found <= max;
    println!("{EMIT}, {what}: {found:.2}, at most {max}: {}", if held { "held" } else { "MISSED" });
    held
}

/// Nanoseconds that this session's process was on a processor.
fn on_processor(client: &mut Client) -> f64 {
    let query = "SELECT split_part(pg_read_file('/proc/self/schedstat', 0, 100), ' ', 1)::float8";
    client.query_one(query, &[]).unwrap().get(0)
}

fn measure(client: &mut Client, facts: u32, act: impl FnOnce(&mut Client)) -> Cost {
    let (begun, before) = (Instant::now(), on_processor(client));
    act(client);
    let (after, wall) = (on_processor(client), begun.elapsed());
    let facts = f64::from(facts);
    Cost { wall: wall.as_secs_f64() * 1e6 / facts, cpu: (after - before) / 1e3 / facts }
}

fn set_up(client: &mut Client, name: &str) {
    let trace = match name.contains("trace") {
        true => "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        false => "",
    };
    let guard = name.contains("guard");
    let sql = format!(
        "SET factlib.traceparent = '{trace}'; SELECT factlib.guard({guard}) WHERE factlib.guard() <> {guard}"
    );
    client.batch_execute(&sql).unwrap();
}

fn batches(client: &mut Client, arguments: &Arguments) -> Medians {
    let facts = arguments.facts;
    let query = |call: &str| {
        format!(
            "SELECT count({call}) FROM (SELECT g::text AS key, decode(repeat('00', 96), 'hex') AS envelope
             FROM generate_series(1, {facts}) g OFFSET 0) AS fact"
        )
    };
    let mut run = |name: &str, call: &str| {
        let query = query(call);
        set_up(client, name);
        measure(client, facts, |client| client.batch_execute(&query).unwrap())
    };
    let mut costs = vec![Vec::new(); CONTENDERS.len()];
    for round in 0..=arguments.rounds {
        let nothing = run("", "key");
        for (costs, (name, call)) in costs.iter_mut().zip(CONTENDERS) {
            let cost = run(name, call) - nothing;
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    table(&format!("in a batch of {facts}, {} rounds", arguments.rounds), &costs)
}

/// Each contender has a connection, and all take turns, transaction by transaction: of so many short ones few are
/// interrupted by what else runs on the machine, and the median is of those that were not.
fn transactions(postgres: &Postgres, arguments: &Arguments) -> Medians {
    let envelope = vec![0_u8; 96];
    let mut contenders: Vec<_> = CONTENDERS
        .iter()
        .map(|(name, call)| {
            let mut client =
                connect(postgres, if name.contains("guard") { "guarded" } else { "app" });
            set_up(&mut client, name);
            let sql = format!(
                "SELECT {call} FROM (SELECT $1::text AS key, $2::bytea AS envelope) AS fact"
            );
            let statement = client.prepare(&sql).unwrap();
            (client, statement, Vec::new(), 0.0)
        })
        .collect();
    for turn in 0..=arguments.transactions + WARM_UP {
        for (client, statement, walls, processor) in &mut contenders {
            if turn == WARM_UP {
                *processor = on_processor(client);
            }
            let begun = Instant::now();
            client.execute(&*statement, &[&"42", &envelope]).unwrap();
            if turn > WARM_UP {
                walls.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    let costs: Vec<Vec<Cost>> = contenders
        .into_iter()
        .map(|(mut client, _, walls, before)| {
            let cpu =
                (on_processor(&mut client) - before) / 1e3 / f64::from(arguments.transactions);
            walls.into_iter().map(|wall| Cost { wall, cpu }).collect()
        })
        .collect();
    table(&format!("prepared, one fact a transaction, {} of them", arguments.transactions), &costs)
}

fn connect(postgres: &Postgres, database: &str) -> Client {
    let mut config = postgres::Config::new();
    config.host_path(postgres.socket_dir()).port(postgres.port()).user("postgres").dbname(database);
    let mut client = config.connect(postgres::NoTls).unwrap();
    client.batch_execute("SET factlib.prefix = 'orders'; SET jit = off").unwrap();
    client
}

fn table(title: &str, costs: &[Vec<Cost>]) -> Medians {
    println!(
        "| {title} | wall (from, to) | times bare | on the server's processor |\n|---|---|---|---|"
    );
    let bare = median(costs.first().expect("the bare function"), |cost| cost.wall).1;
    let mut medians = Medians { cpu: f64::NAN, times: f64::NAN };
    for ((name, _), costs) in CONTENDERS.iter().zip(costs) {
        let (low, wall, high) = median(costs, |cost| cost.wall);
        let (_, cpu, _) = median(costs, |cost| cost.cpu);
        let times = wall / bare;
        println!("| {name} | {wall:.1} ({low:.1}, {high:.1}) | {times:.2} | {cpu:.1} |");
        if *name == EMIT {
            medians = Medians { cpu, times };
        }
    }
    println!();
    medians
}

/// The median, and between what three of five are.
fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> (f64, f64, f64) {
    let mut sorted: Vec<f64> = costs.iter().map(of).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |fifths: usize| sorted.get(sorted.len() * fifths / 10).copied().unwrap_or(f64::NAN);
    (at(2), at(5), at(8))
}
