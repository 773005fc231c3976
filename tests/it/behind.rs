//! A million facts that Kafka does not take: what that costs the relay, the server and the application.
//!
//! `cargo test --release --test it behind -- --nocapture` prints the figures.

#![expect(clippy::print_stdout, reason = "figures")]

use crate::support::{PATIENCE, confirmed, emit, number, relay, state, wait_confirmed, wait_state};
use std::thread;
use std::time::{Duration, Instant};
use testkit::process::Signal;
use testkit::{Kafka, Mode, Owlpost, Postgres};

const FACTS: u64 = 1_000_000;

/// What the relay may take, whatever waits: the window, what the allocator keeps, and the code of a build
/// without optimisation.
const RSS_MAX: u64 = 40 << 20;

const STOP_MAX: Duration = Duration::from_secs(10);

const CHECKPOINT_MAX: Duration = Duration::from_secs(5);

/// How often an application is watched, beside another one whose server has no relay, and for how long.
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);

#[test]
fn a_million_facts_behind_a_dead_kafka_cost_neither_memory_nor_the_database() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    let alone = Postgres::builder().start();
    for postgres in [&postgres, &alone] {
        postgres.client().batch_execute("CREATE TABLE orders (id bigserial, note text)").unwrap();
    }
    kafka.create_topic("behind.order", 4, &[]);
    let relay = relay("behind", &postgres, &kafka).spawn();
    relay.wait_ready();
    wait_confirmed(&relay, &postgres, PATIENCE);

    stop_beside_a_frozen(&relay, &postgres, "idle");
    wait_state(&relay, "streaming");

    kafka.kill9();
    let first =
        emit(&postgres, true, "behind", br#"{"aggregate_type":"order","aggregate_id":"1"}"#);
    write_facts(&postgres);
    wait_state(&relay, "stalled");
    assert!(confirmed(&postgres) < first, "confirmed without Kafka");

    for (what, signal) in [("Kafka is down", None), ("frozen", Some(Signal::SIGSTOP))] {
        if let Some(signal) = signal {
            relay.signal(signal);
        }
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            without.extend(commits(&alone));
            with.extend(commits(&postgres));
        }
        let (with, without) = (percentiles(with), percentiles(without));
        println!(
            "{what}: a commit takes {with:?}, without a relay {without:?} (median, p99, most)"
        );
        // Other tests run beside it; whoever waits for a relay waits for seconds.
        assert!(with.1 <= without.1 * 3 + Duration::from_millis(20), "{with:?}, {without:?}");

        let begun = Instant::now();
        postgres.client().batch_execute("CHECKPOINT").unwrap();
        let checkpoint = begun.elapsed();
        let stop = postgres.stop(Mode::Fast);
        println!("{what}: CHECKPOINT took {checkpoint:?}, a fast stop {stop:?}");
        assert!(checkpoint <= CHECKPOINT_MAX, "a checkpoint took {checkpoint:?}");
        assert!(stop <= STOP_MAX, "a fast stop took {stop:?}");
        postgres.start_again();
    }

    // Frozen with the connection just made, so that the server has no reason yet to give it up.
    relay.signal(Signal::SIGCONT);
    relay.wait_until("the relay to be sent facts", PATIENCE, || {
        let busy = "SELECT count(*) FROM pg_stat_replication WHERE sent_lsn > write_lsn";
        postgres.ask(busy) == "1"
    });
    stop_beside_a_frozen(&relay, &postgres, "in the middle of the backlog");

    let peak = relay.usage().unwrap().peak_rss;
    println!("peak RSS {:.1} MiB", peak as f64 / f64::from(1 << 20));
    assert!(peak <= RSS_MAX, "{peak} bytes");
    // It lives, and goes on.
    kafka.start_again();
    relay.wait_until("facts to be settled", PATIENCE, || confirmed(&postgres) > first);
    assert!(number(&relay, "in_flight_bytes") <= 8 << 20, "{}", state(&relay));
}

/// Stops the server while the relay answers nothing, and starts it again.
fn stop_beside_a_frozen(relay: &Owlpost, postgres: &Postgres, how: &str) {
    relay.signal(Signal::SIGSTOP);
    let stop = postgres.stop(Mode::Fast);
    println!("frozen {how}: a fast stop took {stop:?}");
    assert!(stop <= STOP_MAX, "a fast stop took {stop:?}");
    postgres.start_again();
    relay.signal(Signal::SIGCONT);
}

/// In transactions of a thousand, as fast as the server takes them.
fn write_facts(postgres: &Postgres) {
    let mut client = postgres.client();
    let statement = client
        .prepare(
            "SELECT count(pg_logical_emit_message(true, 'behind', convert_to(json_build_object(
                 'id', $1 || '-' || n, 'aggregate_type', 'order', 'aggregate_id', (n % 100)::text,
                 'payload', repeat('x', 100))::text, 'UTF8')))
             FROM generate_series(1, 1000) n",
        )
        .unwrap();
    for transaction in 0..FACTS / 1000 {
        client.execute(&statement, &[&transaction.to_string()]).unwrap();
    }
}

/// How long each commit of four applications took in one round.
fn commits(postgres: &Postgres) -> Vec<Duration> {
    let until = Instant::now() + ROUND;
    let application = || {
        let mut client = postgres.client();
        let statement = client
            .prepare(
                "WITH row AS (INSERT INTO orders (note) VALUES ('paid') RETURNING id)
                 SELECT pg_logical_emit_message(true, 'behind', convert_to(json_build_object(
                     'id', 'a-' || id, 'aggregate_type', 'order', 'aggregate_id', id::text,
                     'payload', 'paid')::text, 'UTF8'))
                 FROM row",
            )
            .unwrap();
        let mut took = Vec::new();
        while Instant::now() < until {
            let begun = Instant::now();
            client.execute(&statement, &[]).unwrap();
            took.push(begun.elapsed());
        }
        took
    };
    thread::scope(|scope| {
        let applications: Vec<_> = (0..4).map(|_| scope.spawn(application)).collect();
        applications.into_iter().flat_map(|one| one.join().unwrap()).collect()
    })
}

/// Median, 99th percentile, and the most.
fn percentiles(mut took: Vec<Duration>) -> (Duration, Duration, Duration) {
    took.sort_unstable();
    (took[took.len() / 2], took[took.len() * 99 / 100], took[took.len() - 1])
}
