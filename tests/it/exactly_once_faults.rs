//! What brokers, time and operators do to a relay that delivers exactly once: consumers of committed records see each
//! fact once, in order.

use crate::committed::{all_committed, is_open};
use crate::exactly_once::{command, exactly_once, groups, id, judge, wait_free};
use crate::support::{
    PATIENCE, relay as at_least_once, stop, truth, wait_confirmed, wait_flowing, wait_state,
};
use crate::transactions::Cluster;
use testkit::checker::Checker;
use testkit::process::Signal;
use testkit::workload::Workload;
use testkit::{Kafka, Owlpost, Postgres, wait};

const PARTITIONS: usize = 4;

/// The topics of coordinators: whoever leads the one partition is it.
const TRANSACTIONS: &str = "__transaction_state";
const GROUPS: &str = "__consumer_offsets";

/// More than is written before it is stopped.
fn load(prefix: &str) -> Workload {
    Workload { facts: 10_000_000, writers: 1, ..Workload::new(prefix, 1) }
}

#[track_caller]
fn finish(relay: &Owlpost, prefix: &str, postgres: &Postgres, kafka: &Kafka) {
    wait_confirmed(relay, postgres, 2 * PATIENCE);
    stop(relay);
    judge(prefix, postgres, kafka);
}

/// Freezes the relay in the middle of a Kafka transaction.
#[track_caller]
fn freeze(relay: &Owlpost, kafka: &Kafka, topic: &str) {
    wait::until("a Kafka transaction to be open", PATIENCE, || {
        relay.signal(Signal::SIGSTOP);
        let open = is_open(kafka, topic);
        if !open {
            relay.signal(Signal::SIGCONT);
        }
        open
    });
}

fn a_broker_that_is_restarted(cluster: Cluster, prefix: &str) {
    let (postgres, kafka) = (Postgres::builder().start(), &cluster.start());
    let topic = format!("{prefix}.order");
    kafka.create_topic(&topic, PARTITIONS, &[]);
    let relay = exactly_once(prefix, &postgres, kafka);
    relay.wait_ready();
    let load = load(prefix).start(&postgres);
    wait_flowing(&relay, kafka, &topic);
    kafka.restart();
    wait_flowing(&relay, kafka, &topic);
    kafka.kill9();
    wait_state(&relay, "stalled");
    kafka.start_again();
    wait_flowing(&relay, kafka, &topic);
    load.stop();
    finish(&relay, prefix, &postgres, kafka);
}

#[test]
fn a_broker_that_is_restarted_costs_no_fact_and_no_repeat() {
    a_broker_that_is_restarted(Cluster::New, "eo-restart-new");
}

#[test]
fn a_broker_that_is_restarted_costs_no_fact_and_no_repeat_in_the_older_protocol() {
    a_broker_that_is_restarted(Cluster::Old, "eo-restart-old");
}

#[test]
fn coordinators_that_move_cost_no_fact_and_no_repeat() {
    let (prefix, topic) = ("eo-moved", "eo-moved.order");
    let two = "2";
    let kafka = &Kafka::builder()
        .brokers(3)
        .setting("min.insync.replicas", two)
        .setting("transaction.state.log.min.isr", two)
        .start();
    let postgres = Postgres::builder().start();
    kafka.create_topic(topic, PARTITIONS, &[]);
    let relay = exactly_once(prefix, &postgres, kafka);
    relay.wait_ready();
    let load = load(prefix).start(&postgres);
    let whole = |kafka: &Kafka| {
        for topic in [topic, TRANSACTIONS, GROUPS] {
            kafka.wait_in_sync(topic);
        }
    };
    for coordinated in [TRANSACTIONS, GROUPS] {
        // One that lives on, and is it no more.
        wait_flowing(&relay, kafka, topic);
        kafka.move_leaders(coordinated);
        wait_flowing(&relay, kafka, topic);
        whole(kafka);
        let coordinator = kafka.leaders(coordinated)[0];
        let id = usize::try_from(coordinator).unwrap();
        // One that is gone at once, and one that says that it goes.
        match coordinated {
            TRANSACTIONS => kafka.kill9_broker(id),
            _ => kafka.stop_broker(id),
        }
        relay.wait_until("another coordinator", 2 * PATIENCE, || {
            kafka.leaders(coordinated).first().is_some_and(|it| *it >= 0 && *it != coordinator)
        });
        wait_flowing(&relay, kafka, topic);
        kafka.start_again();
        whole(kafka);
    }
    wait_flowing(&relay, kafka, topic);
    load.stop();
    finish(&relay, prefix, &postgres, kafka);
}

/// The relay sleeps for longer than its Kafka transaction may be open, and nobody else has come.
fn a_transaction_that_expires(cluster: Cluster, prefix: &str) {
    const ENDED: &str = "a Kafka transaction is ended";
    let (postgres, kafka) = (Postgres::builder().start(), &cluster.start());
    let topic = format!("{prefix}.order");
    kafka.create_topic(&topic, PARTITIONS, &[]);
    let relay = command(prefix, &postgres, kafka)
        .env("TRANSACTION_INTERVAL", "2s")
        .env("TRANSACTION_TIMEOUT", "6s")
        .env("REQUEST_TIMEOUT", "3s")
        .spawn();
    relay.wait_ready();
    let load = load(prefix).start(&postgres);
    // What was on its way when the relay was stopped may have committed it.
    for _ in 0..5 {
        wait_flowing(&relay, kafka, &topic);
        let before = relay.log_text().matches(ENDED).count();
        freeze(&relay, kafka, &topic);
        wait::until("the transaction to expire", PATIENCE, || !is_open(kafka, &topic));
        relay.signal(Signal::SIGCONT);
        wait_flowing(&relay, kafka, &topic);
        if relay.log_text().matches(ENDED).count() > before {
            break;
        }
    }
    load.stop();
    wait_confirmed(&relay, &postgres, 2 * PATIENCE);
    // What is counted is told once a second.
    relay.wait_until("its numbers", PATIENCE, || {
        let found = relay.scrape().unwrap();
        let given_up = found.sum("owlpost_transactions_aborted_total");
        let recovered =
            found.value("owlpost_transaction_phase_seconds_count", &[("phase", "recovering")]);
        let inits = found.value("owlpost_transactional_id_inits_total", &[]).unwrap_or(0.0);
        given_up >= 1.0 && recovered >= Some(1.0) && inits > 1.0
    });
    finish(&relay, prefix, &postgres, kafka);
    let said = relay.log_text();
    assert!(said.contains(ENDED) && said.contains("Kafka transactions go on"), "{said}");
    let (all, seen) = (kafka.read_topic_by_java(&topic).len(), all_committed(kafka, &topic).len());
    assert!(all > seen, "nothing was aborted: {said}");
}

#[test]
fn what_was_in_a_transaction_that_expired_goes_again_in_another_one() {
    a_transaction_that_expires(Cluster::New, "eo-expired-new");
}

#[test]
fn what_was_in_a_transaction_that_expired_goes_again_in_another_one_in_the_older_protocol() {
    a_transaction_that_expires(Cluster::Downgraded, "eo-expired-old");
}

#[test]
fn a_position_that_expired_is_said_to_be_lost_and_the_slot_says_where_to_begin() {
    let (prefix, topic) = ("eo-forgotten", "eo-forgotten.order");
    let postgres = Postgres::builder().start();
    let kafka = &Kafka::builder()
        .setting("offsets.retention.minutes", "1")
        .setting("offsets.retention.check.interval.ms", "500")
        .start();
    kafka.create_topic(topic, PARTITIONS, &[]);
    let workload = Workload::new(prefix, 1);
    let publish = |facts| {
        let relay = exactly_once(prefix, &postgres, kafka);
        relay.wait_ready();
        workload.write_transaction(&mut postgres.client(), 10, facts);
        wait_confirmed(&relay, &postgres, PATIENCE);
        stop(&relay);
        relay
    };
    publish(1);
    let keeps = || {
        let check = command(prefix, &postgres, kafka).arg("check").spawn();
        check.wait_exit(PATIENCE);
        let said = check.stdout();
        assert!(said.contains("begun and aborted"), "{said}");
        !said.contains("keeps no position")
    };
    assert!(keeps());
    // What is committed meanwhile is behind the slot.
    workload.write_transaction(&mut postgres.client(), 10, 2);
    wait::until("the position to expire", 4 * PATIENCE, || !keeps());
    let said = publish(3).log_text();
    assert!(
        said.contains("Kafka keeps no position: ")
            && said.contains("reading starts where the slot stands"),
        "{said}"
    );
    let said = publish(4).log_text();
    assert!(!said.contains("Kafka keeps no position"), "{said}");
    judge(prefix, &postgres, kafka);
}

/// Who goes back to at-least-once after a crash leaves a transaction open, which nobody ends but time.
#[test]
fn at_least_once_after_a_crash_and_back_loses_nothing() {
    let (prefix, topic) = ("eo-road", "eo-road.order");
    let (postgres, kafka) = (Postgres::builder().start(), &Cluster::New.start());
    kafka.create_topic(topic, PARTITIONS, &[]);
    let begin = || {
        let timeout = command(prefix, &postgres, kafka).env("TRANSACTION_TIMEOUT", "6s");
        timeout.env("TRANSACTION_INTERVAL", "2s").env("REQUEST_TIMEOUT", "3s").spawn()
    };
    let first = begin();
    first.wait_ready();
    let workload = Workload::new(prefix, 2);
    workload.write_transaction(&mut postgres.client(), 25, 2);
    // So there is a position.
    wait_confirmed(&first, &postgres, PATIENCE);
    let load = load(prefix).start(&postgres);
    wait_flowing(&first, kafka, topic);
    freeze(&first, kafka, topic);
    first.kill9();
    wait_free(&postgres);

    let other = at_least_once(prefix, &postgres, kafka).spawn();
    other.wait_ready();
    wait_flowing(&other, kafka, topic);
    load.stop();
    wait_confirmed(&other, &postgres, 2 * PATIENCE);
    stop(&other);
    let seen = || all_committed(kafka, topic);
    Checker::new(&truth(&postgres)).prefix(prefix).allow_repeats().check(&seen()).assert_clean();

    let refused = begin();
    assert_eq!(refused.wait_exit(PATIENCE).code(), Some(4), "{}", refused.log_text());
    groups(kafka, &["--delete", "--group", &id(&postgres)]);
    let before = seen().len();
    let last = begin();
    last.wait_ready();
    workload.write_transaction(&mut postgres.client(), 25, 3);
    wait_confirmed(&last, &postgres, PATIENCE);
    stop(&last);
    assert_eq!(seen().len(), before + 25, "each once again");
    Checker::new(&truth(&postgres)).prefix(prefix).allow_repeats().check(&seen()).assert_clean();
}
