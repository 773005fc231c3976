//! The writers commit what the truth says, in the order it says, as PostgreSQL itself saw it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::time::Duration;
use testkit::oracle::{self, Commits};
use testkit::workload::{Truth, Workload, truth};
use testkit::{Lsn, Postgres};

#[test]
fn the_truth_is_what_the_server_committed() {
    let postgres = Postgres::builder().start();
    let mut client = postgres.client();
    let mut commits = Commits::watch(&mut client, "oracle");
    let workload = Workload { facts: 5000, aggregates: 100, ..Workload::new("orders", 7) };
    let written = workload.run(&postgres);
    workload.write_transaction(&mut client, 700, 1);
    let mut truth = truth(&mut client);
    assert_eq!((written.facts, truth.len()), (5000, 5700));

    // Numbers have no gaps, and follow the order of commits and of messages.
    commits.read(&mut client);
    assert!(commits.len() > written.transactions / 2);
    truth.sort_by(|a, b| (&a.aggregate_id, a.key_seq).cmp(&(&b.aggregate_id, b.key_seq)));
    let mut last: HashMap<&str, (i64, Lsn, Lsn)> = HashMap::new();
    for fact in &truth {
        let (number, end, lsn) = last.entry(&fact.aggregate_id).or_default();
        let this = commits.end(fact.xid).unwrap();
        assert_eq!(fact.key_seq, *number + 1);
        assert!(*end <= this && *lsn < fact.lsn && fact.lsn < this, "{fact:?}");
        (*number, *end, *lsn) = (fact.key_seq, this, fact.lsn);
    }

    // What a relay has promised follows from the position that it confirmed.
    let ends: Vec<Lsn> = truth.iter().map(|fact| commits.end(fact.xid).unwrap()).collect();
    let all = *ends.iter().max().unwrap();
    assert_eq!(commits.at_or_below(all, &truth).len(), truth.len());
    let before: Vec<&Truth> = commits.at_or_below(Lsn(all.0 - 1), &truth);
    assert_eq!(before.len(), 5000);
    assert!(commits.at_or_below(Lsn(0), &truth).is_empty());

    let slot = oracle::slot(&mut client, "oracle").unwrap();
    assert!(slot.confirmed >= all && slot.active_pid.is_none());
    assert_eq!(oracle::slot(&mut client, "none"), None);
}

#[test]
fn writers_go_on_when_the_server_was_killed() {
    let postgres = Postgres::builder().start();
    let running = Workload { facts: usize::MAX, ..Workload::new("orders", 8) }.start(&postgres);
    running.wait_for(500, Duration::from_secs(30));
    postgres.kill9();
    postgres.start_again();
    let before = running.facts();
    running.wait_for(before + 500, Duration::from_secs(30));
    let written = running.stop();
    // A commit whose answer was cut off counts in the truth only.
    assert!(truth(&mut postgres.client()).len() >= written.facts);
}
