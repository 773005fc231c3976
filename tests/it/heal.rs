//! What is restarted, or down, heals without help and holds nobody up.

use crate::support::{
    PATIENCE, confirmed, count, lsn, number, relay, state, stop, truth, wait_confirmed, wait_state,
};
use std::time::{Duration, Instant};
use testkit::checker::Checker;
use testkit::workload::Workload;
use testkit::{Kafka, Mode, Owlpost, Postgres, owlpost};

/// How long a fast stop of the database may take, whatever Kafka does.
const STOP_MAX: Duration = Duration::from_secs(10);

/// How long a checkpoint may take then.
const CHECKPOINT_MAX: Duration = Duration::from_secs(5);

fn load(prefix: &str) -> Workload {
    Workload { facts: 10_000_000, ..Workload::new(prefix, 1) }
}

#[track_caller]
fn wait_flowing(relay: &Owlpost, kafka: &Kafka, topic: &str) {
    let before = count(kafka, topic);
    relay.wait_until("facts to flow", PATIENCE, || count(kafka, topic) > before + 500);
}

#[test]
fn a_restarted_postgresql_is_found_again_and_nothing_is_lost_or_repeated() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("reborn.order", 4, &[]);
    let relay = relay("reborn", &postgres, kafka).spawn();
    relay.wait_ready();
    let load = load("reborn").start(&postgres);
    let faults: [fn(&Postgres); 3] = [
        |postgres| postgres.restart(Mode::Fast),
        |postgres| postgres.restart(Mode::Immediate),
        |postgres| {
            postgres.kill9();
            postgres.start_again();
        },
    ];
    for fault in faults {
        wait_flowing(&relay, kafka, "reborn.order");
        fault(&postgres);
        wait_state(&relay, "streaming");
    }
    wait_flowing(&relay, kafka, "reborn.order");
    load.stop();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    // Kafka was there all the time, and so was the relay: it knows what it has published.
    let truth = truth(&postgres);
    Checker::new(&truth).check(&kafka.read_topic("reborn.order")).assert_clean();
}

#[test]
fn a_restarted_kafka_is_found_again_and_nothing_is_lost() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    kafka.create_topic("phoenix.order", 4, &[]);
    let relay = relay("phoenix", &postgres, &kafka).spawn();
    relay.wait_ready();
    let load = load("phoenix").start(&postgres);
    let faults: [fn(&Kafka); 2] = [Kafka::restart, |kafka| {
        kafka.kill9();
        kafka.start_again();
    }];
    for fault in faults {
        wait_flowing(&relay, &kafka, "phoenix.order");
        fault(&kafka);
    }
    wait_flowing(&relay, &kafka, "phoenix.order");
    load.stop();
    wait_confirmed(&relay, &postgres, 2 * PATIENCE);
    stop(&relay);
    let truth = truth(&postgres);
    let report = Checker::new(&truth).allow_repeats().check(&kafka.read_topic("phoenix.order"));
    report.assert_clean();
    // What was on its way when the broker went: one batch for each partition and fault.
    assert!(report.rewinds.len() <= 2 * 4, "{:?}", report.rewinds);
}

#[test]
fn postgresql_stops_and_checkpoints_in_time_while_kafka_is_down() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    let workload = load("down");
    kafka.create_topic("down.order", 4, &[]);
    let relay = relay("down", &postgres, &kafka).spawn();
    relay.wait_ready();
    workload.write_transaction(&mut postgres.client(), 100, 1);
    wait_confirmed(&relay, &postgres, PATIENCE);

    kafka.kill9();
    workload.write_transaction(&mut postgres.client(), 100, 2);
    let end = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    relay.wait_until("facts that Kafka does not have", PATIENCE, || {
        number(&relay, "in_flight_bytes") > 0
    });
    let before = confirmed(&postgres);
    assert!(before < end);
    checkpoint_in_time(&postgres);
    stop_in_time(&postgres);

    postgres.start_again();
    // It streams; what it says of itself is "stalled" by then, on a slow machine.
    relay.wait_until("the relay to have the slot again", PATIENCE, || {
        postgres.ask("SELECT active FROM pg_replication_slots") == "t"
    });
    assert!(confirmed(&postgres) < end, "the slot has moved past facts that are nowhere");
    kafka.start_again();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let truth = truth(&postgres);
    assert_eq!(truth.len(), 200);
    let records = kafka.read_topic("down.order");
    Checker::new(&truth).allow_repeats().check(&records).assert_clean();
}

#[test]
fn postgresql_stops_and_checkpoints_in_time_while_the_relay_is_stalled() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    let workload = Workload { payload: 3000..=4000, ..load("stalled") };
    kafka.create_topic("stalled.order", 4, &[]);
    let relay = stallable("stalled", &postgres, &kafka).spawn();
    relay.wait_ready();
    workload.write_transaction(&mut postgres.client(), 100, 1);
    wait_confirmed(&relay, &postgres, PATIENCE);

    kafka.kill9();
    // Far more than the buffers of the relay and of the kernel hold.
    workload.write_transaction(&mut postgres.client(), 5000, 2);
    let stall = || {
        relay.wait_until("the relay to stall", PATIENCE, || state(&relay) == "stalled");
    };
    stall();
    checkpoint_in_time(&postgres);
    stall();
    stop_in_time(&postgres);

    postgres.start_again();
    stall();
    kafka.start_again();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let truth = truth(&postgres);
    assert_eq!(truth.len(), 5100);
    let records = kafka.read_topic("stalled.order");
    Checker::new(&truth).allow_repeats().check(&records).assert_clean();
}

#[test]
fn a_checkpoint_that_gives_up_our_slot_returns_in_time_while_the_relay_is_stalled() {
    let postgres = Postgres::builder().setting("max_slot_wal_keep_size", "1MB").start();
    let kafka = Kafka::builder().start();
    let workload = Workload { payload: 3000..=4000, ..load("lost") };
    kafka.create_topic("lost.order", 4, &[]);
    let relay = stallable("lost", &postgres, &kafka).spawn();
    relay.wait_ready();
    workload.write_transaction(&mut postgres.client(), 100, 1);
    wait_confirmed(&relay, &postgres, PATIENCE);

    kafka.kill9();
    // Several files of log behind the slot.
    for seed in 2..6 {
        workload.write_transaction(&mut postgres.client(), 5000, seed);
    }
    relay.wait_until("the relay to stall", PATIENCE, || state(&relay) == "stalled");
    checkpoint_in_time(&postgres);
    relay.wait_until("the server to give the slot up", PATIENCE, || {
        postgres.ask("SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    // Facts are gone, so this is not for the relay to heal.
    let status = relay.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(4), "{}", relay.log_text());
}

/// A relay that is soon full, and whose connection nothing ends but the rule about stalls.
fn stallable(prefix: &str, postgres: &Postgres, kafka: &Kafka) -> owlpost::Command {
    relay(prefix, postgres, kafka)
        .env("IN_FLIGHT_BYTES", "1MiB")
        .env("LEASE", "60s")
        .env("WAL_SENDER_TIMEOUT", "90s")
        .env("TCP_USER_TIMEOUT", "60s")
}

#[track_caller]
fn stop_in_time(postgres: &Postgres) {
    let took = postgres.stop(Mode::Fast);
    assert!(took <= STOP_MAX, "a fast stop took {took:?}");
}

#[track_caller]
fn checkpoint_in_time(postgres: &Postgres) {
    let begun = Instant::now();
    postgres.client().batch_execute("CHECKPOINT").unwrap();
    let took = begun.elapsed();
    assert!(took <= CHECKPOINT_MAX, "a checkpoint took {took:?}");
}
