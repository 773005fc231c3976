//! Without facts, the server keeps no log for us, however busy it is with other things.

use crate::support::{PATIENCE, SLOT, confirmed, emit, lsn, relay, wait_confirmed};
use std::time::Duration;
use testkit::{Kafka, Lsn, Owlpost, Postgres, oracle};

/// How long after the end of the traffic everything is confirmed.
const PROMPTLY: Duration = Duration::from_secs(10);

const MIB: u64 = 1024 * 1024;

/// Three rounds of 20 to 30 MiB, and what may be kept after each.
const ROUNDS: usize = 3;
const ROUND: u64 = 20 * MIB;
const RETAINED_MAX: u64 = 4 * MIB;

const FACT: &[u8] = br#"{"aggregate_type": "order", "aggregate_id": "1", "event_type": "a"}"#;

const TABLE: &str = "CREATE TABLE busy (filling text)";

/// Writes about 25 MiB of log, in transactions of a thousand rows.
const TRAFFIC: &str = "DO $$ BEGIN
        FOR round IN 1..20 LOOP
            INSERT INTO busy SELECT repeat(md5(n::text), 32) FROM generate_series(1, 1000) n;
            COMMIT;
        END LOOP;
    END $$";

/// A server that keeps no log of its own accord.
fn frugal() -> Postgres {
    Postgres::builder().setting("min_wal_size", "32MB").setting("max_wal_size", "64MB").start()
}

#[test]
fn traffic_of_another_table_is_confirmed_and_its_log_goes() {
    let (postgres, kafka) = (frugal(), Kafka::shared());
    kafka.create_topic("idle.order", 1, &[]);
    let relay = relay("idle", &postgres, kafka).spawn();
    relay.wait_ready();
    // One fact, so that there is something that could hold all the rest.
    emit(&postgres, true, "idle", FACT);
    wait_confirmed(&relay, &postgres, PATIENCE);

    let mut client = postgres.client();
    client.batch_execute(TABLE).unwrap();
    for _ in 0..ROUNDS {
        follow(&relay, &postgres, || client.batch_execute(TRAFFIC).unwrap());
    }
}

#[test]
fn traffic_of_another_database_is_confirmed_and_its_log_goes() {
    let (postgres, kafka) = (frugal(), Kafka::shared());
    postgres.client().batch_execute("CREATE DATABASE neighbour").unwrap();
    let relay = relay("neighbour", &postgres, kafka).spawn();
    relay.wait_ready();

    let mut neighbour = postgres::Config::new()
        .host_path(postgres.socket_dir())
        .port(postgres.port())
        .user("postgres")
        .dbname("neighbour")
        .connect(postgres::NoTls)
        .unwrap();
    neighbour.batch_execute(TABLE).unwrap();
    for _ in 0..ROUNDS {
        follow(&relay, &postgres, || neighbour.batch_execute(TRAFFIC).unwrap());
    }
}

#[test]
fn facts_of_other_services_are_confirmed_and_their_log_goes() {
    let (postgres, kafka) = (frugal(), Kafka::shared());
    let relay = relay("quiet", &postgres, kafka).spawn();
    relay.wait_ready();
    let mut client = postgres.client();
    let foreign = "DO $$ BEGIN
        FOR round IN 1..250 LOOP
            PERFORM pg_logical_emit_message(n % 2 = 0, 'loud', repeat('x', 1000))
                FROM generate_series(1, 100) n;
            COMMIT;
        END LOOP;
    END $$";
    for _ in 0..ROUNDS {
        follow(&relay, &postgres, || client.batch_execute(foreign).unwrap());
    }
}

/// Makes traffic, and expects that the slot follows it to its end and lets the server forget it.
#[track_caller]
fn follow(relay: &Owlpost, postgres: &Postgres, traffic: impl FnOnce()) {
    let current = "SELECT pg_current_wal_flush_lsn()";
    let before = lsn(postgres, current);
    traffic();
    let written = lsn(postgres, current);
    assert!(written.0 - before.0 > ROUND, "too little traffic: {before} to {written}");
    relay.wait_until("the confirmed position to follow", PROMPTLY, || {
        confirmed(postgres) >= written
    });

    // A checkpoint tells the slot from where on it could be asked to decode again; the next one
    // throws away what is before that.
    postgres.client().batch_execute("CHECKPOINT").unwrap();
    let slot = || oracle::slot(&mut postgres.client(), SLOT).unwrap();
    relay.wait_until("the retained log to be little", PROMPTLY, || slot().retained < RETAINED_MAX);
    postgres.client().batch_execute("CHECKPOINT").unwrap();
    assert_eq!(kept(postgres, before), 0, "files with nothing but what was confirmed");
}

/// How many whole files of log before that place there still are.
fn kept(postgres: &Postgres, place: Lsn) -> usize {
    let query = format!(
        "SELECT count(*) FROM pg_ls_waldir()
         WHERE name ~ '^[0-9A-F]{{24}}$' AND name < pg_walfile_name('{place}')"
    );
    postgres.ask(&query).parse().unwrap()
}
