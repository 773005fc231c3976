//! `owlpost audit` beside a relay that keeps its promises, and after those of a log or a slot that do not.

use crate::support::{PATIENCE, SLOT, confirmed, count, emit, lsn, relay, stop, wait_confirmed};
use std::process::ExitStatus;
use std::time::Duration;
use testkit::workload::Workload;
use testkit::{Kafka, Postgres, owlpost};

/// What an audit said, and how it ended.
fn audit(command: &owlpost::Command, arguments: &[&str]) -> (ExitStatus, String) {
    let mut command = command.clone().arg("audit");
    for argument in arguments {
        command = command.arg(argument);
    }
    let audit = command.spawn();
    let status = audit.wait_exit(2 * PATIENCE);
    // Warnings come before what it found.
    (status, format!("{}{}", audit.stderr(), audit.stdout()))
}

fn init_audit(command: &owlpost::Command) -> String {
    let init = command.clone().arg("init").arg("--audit").spawn();
    let status = init.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", init.stderr());
    init.stdout()
}

fn audited(postgres: &Postgres) -> testkit::Lsn {
    let query = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'owlpost_audit_factlib_slot'";
    lsn(postgres, query)
}

#[test]
fn an_audit_of_a_relay_that_runs_finds_every_fact_and_moves_on() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    for topic in ["audited.order", "audited.carton", "audited.dead"] {
        kafka.create_topic(topic, 4, &[]);
    }
    let command = relay("audited", &postgres, kafka)
        .env("POISON_POLICY", "dead-letter")
        .env("DEAD_LETTER_TOPIC", "audited.dead")
        .env("POISON_POLICY_TOPICS", "audited.un*=skip")
        .env("COMPRESSION_TYPE", "lz4");
    let said = init_audit(&command);
    assert!(said.contains("slot owlpost_audit_factlib_slot is ready"), "{said}");
    let relay = command.clone().spawn();
    relay.wait_ready();
    let workload = Workload {
        facts: 3000,
        aggregate_types: vec!["order".to_owned(), "carton".to_owned()],
        ..Workload::new("audited", 1)
    };
    let written = workload.start(&postgres).wait().facts;
    emit(&postgres, true, "audited", b"{ no envelope");
    emit(&postgres, false, "audited", br#"{"aggregate_type":"order","aggregate_id":"alone"}"#);
    emit(&postgres, true, "audited", br#"{"aggregate_type":"un heard","aggregate_id":"1"}"#);
    wait_confirmed(&relay, &postgres, PATIENCE);

    let before = confirmed(&postgres);
    let (status, said) = audit(&command, &[]);
    assert_eq!(status.code(), Some(0), "{said}");
    let expected = format!(
        "{} facts: 0 missing, 0 repeated, 0 out of order, 0 unknown; 1 are dead letters, 1 were skipped",
        written + 3
    );
    assert!(said.trim_end().ends_with(&expected), "{said}");
    assert!(audited(&postgres) >= before, "the slot was not moved on");

    // Where there are only dead letters, nothing tells when they were committed.
    emit(&postgres, true, "audited", b"{ none either");
    wait_confirmed(&relay, &postgres, PATIENCE);
    let (status, said) = audit(&command, &[]);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains(": 1 facts: 0 missing") && said.contains("1 are dead letters"), "{said}");

    // From there on, while facts go on.
    let load = Workload { facts: 1_000_000, ..Workload::new("audited", 2) }.start(&postgres);
    load.wait_for(500, PATIENCE);
    let (status, said) = audit(&command, &["--json"]);
    assert_eq!(status.code(), Some(0), "{said}");
    let summary: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["findings"], &summary["dead_letters"]), (&0.into(), &0.into()), "{said}");
    load.stop();
    stop(&relay);
    assert!(
        !postgres
            .ask("SELECT string_agg(slot_name, ' ') FROM pg_replication_slots")
            .contains("owlpost_reading"),
        "a temporary slot is left"
    );
}

#[test]
fn an_audit_names_what_is_missing_repeated_and_nobodys_and_stays() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    kafka.create_topic("wrong.order", 1, &[]);
    let command = relay("wrong", &postgres, &kafka);
    init_audit(&command);
    let first = command.clone().spawn();
    first.wait_ready();
    let begin = confirmed(&postgres);
    let fact = |id: &str| {
        let content = format!(r#"{{"aggregate_type":"order","aggregate_id":"{id}"}}"#);
        emit(&postgres, true, "wrong", content.as_bytes())
    };
    fact("kept");
    wait_confirmed(&first, &postgres, PATIENCE);
    stop(&first);
    assert_eq!(count(&kafka, "wrong.order"), 1);

    // Somebody moves the slot past a fact.
    let lost = fact("lost");
    let advance = format!("SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())");
    postgres.client().batch_execute(&advance).unwrap();
    let (status, said) = audit(&command, &[]);
    assert_eq!(status.code(), Some(10), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with("missing ") && lines[0].ends_with(" in wrong.order"), "{said}");
    assert!(lines[1].contains("2 facts: 1 missing, 0 repeated"), "{said}");
    let (status, said) = audit(&command, &["--json"]);
    assert_eq!(status.code(), Some(10), "{said}");
    let lines: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert_eq!(lines[1]["findings"], 1, "{said}");
    assert!(audited(&postgres) <= begin, "the slot was moved past a fact that is missing");
    assert!(audited(&postgres) < lost);

    // A relay of another slot publishes the same once more.
    let again = command.clone().env("REPLICATION_SLOT_NAME", "again");
    postgres
        .client()
        .batch_execute(
            "SELECT pg_copy_logical_replication_slot('owlpost_audit_factlib_slot', 'again')",
        )
        .unwrap();
    let publication = postgres.ask("SELECT pubname FROM pg_publication");
    let second = again.env("PUBLICATION_NAME", publication).spawn();
    second.wait_ready();
    second.wait_until("both facts once more", PATIENCE, || count(&kafka, "wrong.order") == 3);
    stop(&second);
    let (status, said) = audit(&command, &[]);
    assert_eq!(status.code(), Some(10), "{said}");
    assert!(said.contains("repeated ") && said.contains(" at wrong.order/0@1"), "{said}");
    assert!(said.contains("2 facts: 0 missing, 1 repeated"), "{said}");
    let (status, said) = audit(&command, &["--accept-repeats"]);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(audited(&postgres) > lost);
}

#[test]
fn a_lost_audit_slot_is_made_anew_and_a_foreign_one_left_alone() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let command = relay("leftover", &postgres, kafka);
    init_audit(&command);
    for statement in ["ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()"]
    {
        postgres.client().batch_execute(statement).unwrap();
    }
    // Several files of log, and none of them is to be kept.
    for _ in 0..4 {
        postgres
            .client()
            .batch_execute("SELECT pg_switch_wal(); CREATE TABLE t (); DROP TABLE t")
            .unwrap();
    }
    postgres.client().batch_execute("CHECKPOINT").unwrap();
    let status = "SELECT string_agg(wal_status, ' ') FROM pg_replication_slots";
    assert_eq!(postgres.ask(status), "lost lost");
    let (code, said) = audit(&command, &[]);
    assert_eq!(code.code(), Some(4), "{said}");
    assert!(said.contains("is lost") && said.contains("owlpost init"), "{said}");
    postgres
        .client()
        .batch_execute(
            "SELECT pg_drop_replication_slot('factlib_slot');
             SELECT pg_create_logical_replication_slot('factlib_slot', 'pgoutput')",
        )
        .unwrap();
    init_audit(&command);
    assert_eq!(postgres.ask(status), "reserved reserved");

    postgres
        .client()
        .batch_execute(
            "SELECT pg_drop_replication_slot('owlpost_audit_factlib_slot');
             SELECT pg_create_logical_replication_slot('owlpost_audit_factlib_slot', 'test_decoding')",
        )
        .unwrap();
    let init = command.clone().arg("init").arg("--audit").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(4), "{}", init.stderr());
    assert!(init.stderr().contains("is not one of ours"), "{}", init.stderr());
    let plugin = "SELECT plugin FROM pg_replication_slots WHERE slot_name LIKE 'owlpost%'";
    assert_eq!(postgres.ask(plugin), "test_decoding");
}

#[test]
fn an_audit_without_its_slot_says_how_to_make_it() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let command = relay("unaudited", &postgres, kafka);
    let init = command.clone().arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0));
    let (status, said) = audit(&command, &[]);
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains("`owlpost init --audit`"), "{said}");
}

#[test]
fn a_slot_that_nobody_audits_is_dropped_before_it_fills_the_disk() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let command = relay("unread", &postgres, kafka).env("AUDIT_WAL_BYTES", "16MiB");
    init_audit(&command);
    postgres
        .client()
        .batch_execute(
            "CREATE TABLE filler (x text);
             INSERT INTO filler SELECT repeat(md5(n::text), 30) FROM generate_series(1, 30000) n;",
        )
        .unwrap();
    let relay = command.spawn();
    relay.wait_ready();
    relay.wait_for_log("dropped the slot of `owlpost audit`", Duration::from_secs(90));
    let slots = postgres.ask("SELECT string_agg(slot_name, ' ') FROM pg_replication_slots");
    assert_eq!(slots, SLOT);
    stop(&relay);
}
