//! Two relays and one slot; one relay and a connection that breaks.

use crate::support::{
    PATIENCE, SLOT, count, relay, state, stop, truth, wait_confirmed, wait_state,
};
use std::time::{Duration, Instant};
use testkit::checker::Checker;
use testkit::process::Signal;
use testkit::workload::Workload;
use testkit::{Kafka, Postgres, oracle};

/// The default of LEASE.
const LEASE: Duration = Duration::from_secs(10);

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
    const FACTS: usize = 10_000;
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let workload = Workload { payload: 3000..=4000, ..Workload::new("frozen", 1) };
    kafka.create_topic("frozen.order", 4, &[]);
    let command = relay("frozen", &postgres, kafka)
        .env("WAL_SENDER_TIMEOUT", "3s")
        .env("LEASE", "2s")
        .env("STALL_TIMEOUT", "1s")
        .env("STATUS_INTERVAL", "500ms");
    let first = command.clone().spawn();
    first.wait_ready();
    let second = command.spawn();
    wait_state(&second, "waiting_for_slot");

    // In the middle of a transaction, it has facts to send.
    workload.write_transaction(&mut postgres.client(), FACTS, 1);
    first.wait_until("the transaction to begin to arrive", PATIENCE, || {
        count(kafka, "frozen.order") > 0
    });
    first.signal(Signal::SIGSTOP);
    let arrived = count(kafka, "frozen.order");
    assert!(arrived < FACTS, "everything had arrived: too late for the test");
    wait_state(&second, "streaming");
    wait_confirmed(&second, &postgres, PATIENCE);
    let before = count(kafka, "frozen.order");
    assert!(before >= FACTS);

    first.signal(Signal::SIGCONT);
    wait_state(&first, "waiting_for_slot");
    workload.write_transaction(&mut postgres.client(), 10, 2);
    wait_confirmed(&second, &postgres, PATIENCE);
    stop(&second);
    assert_eq!(count(kafka, "frozen.order"), before + 10, "published without the slot");

    // And it is not broken: once the slot is free it goes on.
    wait_state(&first, "streaming");
    workload.write_transaction(&mut postgres.client(), 10, 3);
    wait_confirmed(&first, &postgres, PATIENCE);
    let truth = truth(&postgres);
    assert_eq!(truth.len(), FACTS + 20);
    let report = Checker::new(&truth).allow_repeats().check(&kafka.read_topic("frozen.order"));
    report.assert_clean();
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
