//! Two relays and one slot; one relay and a connection that breaks.

use crate::support::{
    PATIENCE, READ, SLOT, count, lsn, relay, state, stop, truth, wait_confirmed, wait_state,
};
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::checker::Checker;
use testkit::process::Signal;
use testkit::workload::Workload;
use testkit::{Kafka, Postgres, oracle};

/// The default of LEASE.
const LEASE: Duration = Duration::from_secs(7);

#[test]
fn a_second_relay_waits_and_takes_over_within_the_lease_when_the_first_is_killed() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("heir.order", 4, &[]);
    let command = relay("heir", &postgres, kafka);
    let first = command.clone().spawn();
    first.wait_ready();
    let second = command.spawn();
    wait_state(&second, "waiting_for_slot");
    assert!(!second.is_ready());
    assert_eq!(state(&first), "streaming");

    let load = Workload { facts: 1_000_000, ..Workload::new("heir", 1) }.start(&postgres);
    first.wait_until("facts to flow", PATIENCE, || count(kafka, "heir.order") > 1000);
    assert_eq!(state(&second), "waiting_for_slot");
    first.kill9();
    let killed = Instant::now();
    wait_state(&second, "streaming");
    let took = killed.elapsed();
    assert!(took < LEASE, "the second relay took over after {took:?}");

    let before = count(kafka, "heir.order");
    second
        .wait_until("facts to flow again", PATIENCE, || count(kafka, "heir.order") > before + 1000);
    load.stop();
    wait_confirmed(&second, &postgres, PATIENCE);
    stop(&second);
    let truth = truth(&postgres);
    let report = Checker::new(&truth).allow_repeats().check(&kafka.read_topic("heir.order"));
    report.assert_clean();
    assert!(report.rewinds.len() <= 4, "one step back for each partition: {:?}", report.rewinds);
}

#[test]
fn a_relay_that_was_frozen_publishes_nothing_once_another_has_taken_over() {
    const FACTS: usize = 2000;
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    let workload = Workload { payload: 3000..=4000, ..Workload::new("frozen", 1) };
    kafka.create_topic("frozen.order", 4, &[]);
    // Everything fits into the buffer, so that the relay has no reason to hang up.
    let command = relay("frozen", &postgres, &kafka)
        .env("IN_FLIGHT_BYTES", "64MiB")
        .env("WAL_SENDER_TIMEOUT", "4s")
        .env("LEASE", "3s")
        .env("STALL_TIMEOUT", "2s")
        .env("STATUS_INTERVAL", "500ms");
    let first = command.clone().spawn();
    first.wait_ready();
    workload.write_transaction(&mut postgres.client(), 10, 1);
    wait_confirmed(&first, &postgres, PATIENCE);
    let second = command.spawn();
    wait_state(&second, "waiting_for_slot");

    // The broker is silent until the relay has all facts in its hands: then that is frozen, too, with
    // one batch for each partition on its way and the rest waiting for the answer.
    kafka.signal_broker(1, Signal::SIGSTOP);
    workload.write_transaction(&mut postgres.client(), FACTS, 2);
    let end = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    first.wait_until("the relay to have read everything", PATIENCE, || lsn(&postgres, READ) >= end);
    first.signal(Signal::SIGSTOP);
    kafka.signal_broker(1, Signal::SIGCONT);
    wait_state(&second, "streaming");
    wait_confirmed(&second, &postgres, PATIENCE);
    let before = count(&kafka, "frozen.order");

    first.signal(Signal::SIGCONT);
    wait_state(&first, "waiting_for_slot");
    workload.write_transaction(&mut postgres.client(), 10, 3);
    wait_confirmed(&second, &postgres, PATIENCE);
    stop(&second);
    assert_eq!(count(&kafka, "frozen.order"), before + 10, "published without the slot");

    // It is not broken: with the slot it goes on.
    wait_state(&first, "streaming");
    workload.write_transaction(&mut postgres.client(), 10, 4);
    wait_confirmed(&first, &postgres, PATIENCE);
    stop(&first);
    let truth = truth(&postgres);
    assert_eq!(truth.len(), FACTS + 30);
    let records = kafka.read_topic("frozen.order");
    Checker::new(&truth).allow_repeats().check(&records).assert_clean();
}

#[test]
fn a_relay_without_an_answer_from_postgresql_publishes_nothing_beyond_its_lease() {
    const FACTS: usize = 2000;
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    let workload = Workload { payload: 3000..=4000, ..Workload::new("silent", 1) };
    kafka.create_topic("silent.order", 4, &[]);
    let relay = relay("silent", &postgres, &kafka)
        .env("IN_FLIGHT_BYTES", "64MiB")
        .env("LEASE", "2s")
        .env("STALL_TIMEOUT", "1s")
        .env("STATUS_INTERVAL", "500ms")
        .spawn();
    relay.wait_ready();
    workload.write_transaction(&mut postgres.client(), 10, 1);
    wait_confirmed(&relay, &postgres, PATIENCE);

    // With all facts in the relay's hands, PostgreSQL falls silent, but keeps the connection.
    kafka.signal_broker(1, Signal::SIGSTOP);
    workload.write_transaction(&mut postgres.client(), FACTS, 2);
    let end = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    relay.wait_until("the relay to have read everything", PATIENCE, || lsn(&postgres, READ) >= end);
    let sender = oracle::slot(&mut postgres.client(), SLOT).unwrap().active_pid.unwrap();
    kill("STOP", sender);
    wait_state(&relay, "waiting_for_slot");

    kafka.signal_broker(1, Signal::SIGCONT);
    relay.wait_until("what was on its way to arrive", PATIENCE, || {
        count(&kafka, "silent.order") > 10
    });
    let refused = |times: usize| {
        let before = refusals(&postgres);
        relay.wait_until("the slot to be refused", PATIENCE, || {
            refusals(&postgres) >= before + times
        });
    };
    refused(1);
    let before = count(&kafka, "silent.order");
    refused(3);
    assert_eq!(count(&kafka, "silent.order"), before, "published without a lease");
    assert!(before < FACTS, "nothing was left to be published");

    kill("CONT", sender);
    wait_state(&relay, "streaming");
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let truth = truth(&postgres);
    assert_eq!(truth.len(), FACTS + 10);
    Checker::new(&truth).check(&kafka.read_topic("silent.order")).assert_clean();
}

/// How often somebody was told that the slot is another's.
fn refusals(postgres: &Postgres) -> usize {
    postgres.log_text().matches("is active for PID").count()
}

fn kill(signal: &str, pid: i32) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn fifty_terminated_walsenders_under_load_repeat_nothing() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("blips.order", 4, &[]);
    let relay = relay("blips", &postgres, kafka).spawn();
    relay.wait_ready();
    let load = Workload { facts: 10_000_000, ..Workload::new("blips", 1) }.start(&postgres);
    let mut client = postgres.client();
    for _ in 0..50 {
        let before = count(kafka, "blips.order");
        relay.wait_until("facts to flow", PATIENCE, || count(kafka, "blips.order") > before);
        let mut sender = None;
        relay.wait_until("a walsender", PATIENCE, || {
            sender = oracle::slot(&mut client, SLOT).unwrap().active_pid;
            sender.is_some()
        });
        client.execute("SELECT pg_terminate_backend($1)", &[&sender]).unwrap();
        relay.wait_until("another walsender", PATIENCE, || {
            let active = oracle::slot(&mut client, SLOT).unwrap().active_pid;
            active.is_some() && active != sender
        });
    }
    load.stop();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let truth = truth(&postgres);
    Checker::new(&truth).check(&kafka.read_topic("blips.order")).assert_clean();
}
