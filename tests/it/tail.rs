//! With `SKIP_STORED` what Kafka has already does not come again: neither after the relay was killed, nor after
//! PostgreSQL was, and had forgotten what it was told.

use crate::support::{PATIENCE, SLOT, count, number, relay, stop, truth, wait_confirmed};
use std::collections::HashSet;
use testkit::checker::Checker;
use testkit::workload::Workload;
use testkit::{Kafka, Owlpost, Postgres, oracle, wait};

const PARTITIONS: usize = 4;

fn skipping(prefix: &str, postgres: &Postgres, kafka: &Kafka) -> Owlpost {
    relay(prefix, postgres, kafka).env("SKIP_STORED", true).spawn()
}

/// Nothing is lost, and of what Kafka had no more comes again than the one fact of each partition by which
/// the relay sees how far that can be relied on.
#[track_caller]
fn judge(prefix: &str, postgres: &Postgres, kafka: &Kafka, last: &Owlpost) {
    wait_confirmed(last, postgres, PATIENCE);
    let already_stored = number(last, "already_stored");
    stop(last);
    let records = kafka.read_topic(&format!("{prefix}.order"));
    let truth = truth(postgres);
    Checker::new(&truth).prefix(prefix).allow_repeats().check(&records).assert_clean();
    let mut seen = HashSet::new();
    let again: Vec<_> =
        records.iter().filter(|record| !seen.insert(record.header("event_id"))).collect();
    assert!(again.len() <= PARTITIONS, "{} facts came again\n{}", again.len(), last.log_text());
    let partitions: HashSet<_> = again.iter().map(|record| record.partition).collect();
    assert_eq!(partitions.len(), again.len(), "two came again in one partition");
    assert!(already_stored > 500, "{already_stored} were there already\n{}", last.log_text());
}

fn wait_free(postgres: &Postgres) {
    wait::until("the slot to be free", PATIENCE, || {
        oracle::slot(&mut postgres.client(), SLOT).unwrap().active_pid.is_none()
    });
}

#[test]
fn what_a_killed_relay_had_published_is_not_published_again() {
    let postgres = Postgres::builder().start();
    let kafka = Kafka::shared();
    kafka.create_topic("tail-kill.order", PARTITIONS, &[]);
    let first = skipping("tail-kill", &postgres, kafka);
    first.wait_ready();
    stop(&first);
    let workload = Workload { facts: 12_000, payload: 40..=120, ..Workload::new("tail-kill", 1) };
    workload.run(&postgres);

    let doomed = skipping("tail-kill", &postgres, kafka);
    doomed.wait_until("a part of it to be stored", PATIENCE, || {
        count(kafka, "tail-kill.order") >= 3000
    });
    doomed.kill9();
    wait_free(&postgres);
    let last = skipping("tail-kill", &postgres, kafka);
    judge("tail-kill", &postgres, kafka, &last);
}

#[test]
fn what_a_server_forgot_that_it_was_told_is_not_published_again() {
    let postgres = Postgres::builder().start();
    let kafka = Kafka::shared();
    kafka.create_topic("tail-crash.order", PARTITIONS, &[]);
    let doomed = skipping("tail-crash", &postgres, kafka);
    doomed.wait_ready();
    let workload = Workload { facts: 3000, payload: 40..=120, ..Workload::new("tail-crash", 2) };
    workload.run(&postgres);
    wait_confirmed(&doomed, &postgres, PATIENCE);
    // In a relay that lives on, its own memory would help.
    doomed.kill9();
    postgres.kill9();
    postgres.start_again();
    let last = skipping("tail-crash", &postgres, kafka);
    judge("tail-crash", &postgres, kafka, &last);
}
