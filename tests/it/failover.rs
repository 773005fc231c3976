//! A primary that is gone for good, and a standby in its place.

use crate::support::{PATIENCE, SLOT, count, lsn, relay, stop, truth, wait_confirmed, wait_state};
use std::collections::HashSet;
use testkit::checker::Checker;
use testkit::process::Signal;
use testkit::workload::Workload;
use testkit::{Kafka, Postgres, owlpost};

/// A primary and a standby that has its slots, whatever major is under test: before 17 none has.
fn pair() -> (Postgres, Postgres) {
    let primary = Postgres::builder().major(18).start();
    let standby = primary.standby();
    (primary, standby)
}

/// The relay's settings, with both servers in its URL.
fn command(
    prefix: &str,
    primary: &Postgres,
    standby: &Postgres,
    kafka: &Kafka,
) -> owlpost::Command {
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/app",
        primary.port(),
        standby.port()
    );
    relay(prefix, primary, kafka).env("MASTER_DATABASE_URL", url)
}

/// Waits until the standby's copy of the slot can be used, and is as far as its primary's.
fn wait_synced(primary: &Postgres, standby: &Postgres) {
    let slot = format!(
        "SELECT coalesce(max(confirmed_flush_lsn), '0/0') FROM pg_replication_slots
         WHERE slot_name = '{SLOT}' AND NOT temporary"
    );
    testkit::wait::until("the slot on the standby", PATIENCE, || {
        lsn(standby, &slot) >= lsn(primary, &slot)
    });
}

#[test]
fn a_failover_to_a_complete_standby_loses_nothing_and_goes_on_by_itself() {
    let (primary, standby) = pair();
    let kafka = Kafka::shared();
    kafka.create_topic("heritage.order", 4, &[]);
    let command =
        command("heritage", &primary, &standby, kafka).env("REPLICATION_SLOT_FAILOVER", "true");
    let relay = command.spawn();
    relay.wait_ready();
    Workload { facts: 1000, ..Workload::new("heritage", 1) }.start(&primary).wait();
    wait_confirmed(&relay, &primary, PATIENCE);
    wait_synced(&primary, &standby);
    // More, of which the slot on the standby may know nothing yet.
    Workload { facts: 200, ..Workload::new("heritage", 2) }.start(&primary).wait();
    wait_confirmed(&relay, &primary, PATIENCE);
    standby.wait_replayed(lsn(&primary, "SELECT pg_current_wal_flush_lsn()"));
    primary.kill9();
    standby.promote();

    Workload { facts: 500, ..Workload::new("heritage", 3) }.start(&standby).wait();
    wait_confirmed(&relay, &standby, PATIENCE);
    relay.wait_for_log("another timeline", PATIENCE);
    stop(&relay);
    let truth = truth(&standby);
    assert!(truth.len() >= 1700);
    let records = kafka.read_topic("heritage.order");
    Checker::new(&truth).allow_repeats().check(&records).assert_clean();
    let timelines: HashSet<&str> =
        records.iter().filter_map(|record| record.header("factlib_position")?.get(..8)).collect();
    assert_eq!(timelines, HashSet::from(["00000001", "00000002"]));
}

#[test]
fn after_a_failover_to_a_standby_that_lags_all_that_is_new_arrives() {
    let (primary, standby) = pair();
    let kafka = Kafka::shared();
    kafka.create_topic("orphan.order", 4, &[]);
    let command =
        command("orphan", &primary, &standby, kafka).env("REPLICATION_SLOT_FAILOVER", "true");
    let relay = command.spawn();
    relay.wait_ready();
    Workload { facts: 500, ..Workload::new("orphan", 1) }.start(&primary).wait();
    wait_confirmed(&relay, &primary, PATIENCE);
    wait_synced(&primary, &standby);
    standby.wait_replayed(lsn(&primary, "SELECT pg_current_wal_flush_lsn()"));

    // The standby hears nothing of these, and they are published.
    let receiver = primary.ask(
        "SELECT pid FROM pg_stat_replication WHERE application_name = 'standby' AND state = 'streaming'",
    );
    let receiver: u32 = receiver.parse().unwrap();
    testkit::process::signal_pid(receiver, Signal::SIGSTOP);
    let before = count(kafka, "orphan.order");
    Workload { facts: 300, ..Workload::new("orphan", 2) }.start(&primary).wait();
    wait_confirmed(&relay, &primary, PATIENCE);
    assert!(count(kafka, "orphan.order") >= before + 300);
    primary.kill9();
    standby.promote();

    // They use the positions in the log again.
    Workload { facts: 300, ..Workload::new("orphan", 3) }.start(&standby).wait();
    wait_confirmed(&relay, &standby, PATIENCE);
    wait_state(&relay, "streaming");
    stop(&relay);
    let truth = truth(&standby);
    let records = kafka.read_topic("orphan.order");
    let published: HashSet<&str> = records.iter().filter_map(|r| r.header("event_id")).collect();
    let missing = truth.iter().filter(|fact| !published.contains(fact.fact_id.as_str())).count();
    assert_eq!(missing, 0, "of {}", truth.len());
    let there: HashSet<&str> = truth.iter().map(|fact| fact.fact_id.as_str()).collect();
    let gone = records.iter().filter(|r| !there.contains(r.header("event_id").unwrap_or_default()));
    let gone: Vec<_> = gone.collect();
    assert!(gone.len() >= 300, "{}", gone.len());
    for record in gone {
        let position = record.header("factlib_position").unwrap();
        assert!(position.starts_with("00000001."), "what is gone has the old timeline: {position}");
    }
}

#[test]
fn a_promoted_standby_without_the_slot_ends_the_relay() {
    let (primary, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("bereft.order", 4, &[]);
    let standby = primary.standby();
    let relay = command("bereft", &primary, &standby, kafka).spawn();
    relay.wait_ready();
    Workload { facts: 100, ..Workload::new("bereft", 1) }.start(&primary).wait();
    wait_confirmed(&relay, &primary, PATIENCE);
    standby.wait_replayed(lsn(&primary, "SELECT pg_current_wal_flush_lsn()"));
    primary.kill9();
    standby.promote();
    let status = relay.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(4), "{}", relay.log_text());
    assert!(relay.stderr().contains("slot factlib_slot is not"), "{}", relay.stderr());
}
