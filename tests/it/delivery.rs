//! Every committed fact arrives, once, as it was emitted, and nothing else does.

use crate::commands::Shell;
use crate::support::{
    PATIENCE, READ, SLOT, confirmed, count, drop_slots, emit, lsn, read, relay, stop, truth,
    wait_confirmed,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::Stdio;
use testkit::checker::Checker;
use testkit::envelope::{OutboxEvent, TraceInfo};
use testkit::oracle::Commits;
use testkit::process::{Signal, signal_pid};
use testkit::workload::{Truth, Workload};
use testkit::{Kafka, Lsn, Postgres, Record, java_partitions, wait};

const PARTITIONS: usize = 4;

#[test]
fn every_committed_fact_of_a_hundred_thousand_arrives_exactly_once_also_across_a_restart() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let workload =
        Workload { facts: 100_000, aggregates: 1000, writers: 4, ..Workload::new("delivery", 1) };
    kafka.create_topic("delivery.order", PARTITIONS, &[]);
    let mut commits = Commits::watch(&mut postgres.client(), "oracle");
    let first = relay("delivery", &postgres, kafka).spawn();
    first.wait_ready();

    let written = workload.run(&postgres);
    wait_confirmed(&first, &postgres, 3 * PATIENCE);
    stop(&first);

    let truth = truth(&postgres);
    assert_eq!((written.facts, truth.len()), (100_000, 100_000));
    commits.read(&mut postgres.client());
    let records = kafka.read_topic("delivery.order");
    let keys = workload.keys();
    let checker = Checker::new(&truth)
        .prefix("delivery")
        .partitions(&keys, &java_partitions(&keys, PARTITIONS));
    checker.check(&records).assert_clean();
    check_positions(&records, &truth, &commits);
    check_source(&records, &postgres);

    // What the second run publishes is exactly what was committed after the first.
    Workload { seed: 2, facts: 100, ..workload }.run(&postgres);
    let second = relay("delivery", &postgres, kafka).spawn();
    second.wait_ready();
    wait_confirmed(&second, &postgres, PATIENCE);
    stop(&second);
    let truth = crate::support::truth(&postgres);
    Checker::new(&truth).check(&kafka.read_topic("delivery.order")).assert_clean();
}

/// `factlib_position` is `timeline.final_lsn.class.index`: the commit record begins behind the
/// transaction's last message and before its end, and the index numbers messages in their order.
fn check_positions(records: &[Record], truth: &[Truth], commits: &Commits) {
    let facts: HashMap<&str, &Truth> = truth.iter().map(|f| (f.fact_id.as_str(), f)).collect();
    let mut transactions: BTreeMap<u64, (Lsn, BTreeMap<Lsn, u64>)> = BTreeMap::new();
    for record in records {
        let fact = facts[record.header("event_id").unwrap()];
        let position = record.header("factlib_position").unwrap();
        let parts: Vec<u64> =
            position.split('.').map(|part| u64::from_str_radix(part, 16).unwrap()).collect();
        let [timeline, commit, class, index] = parts[..] else { panic!("{position}") };
        assert_eq!((timeline, class), (1, 1), "{position}");
        let end = commits.end(fact.xid).unwrap();
        assert!(fact.lsn.0 <= commit && commit < end.0, "{position}: {} to {end}", fact.lsn);
        let (same, indexes) =
            transactions.entry(fact.xid).or_insert((Lsn(commit), BTreeMap::new()));
        assert_eq!(*same, Lsn(commit), "one transaction, one position");
        indexes.insert(fact.lsn, index);
    }
    for (xid, (_, indexes)) in transactions {
        let indexes: Vec<u64> = indexes.into_values().collect();
        assert!(indexes.is_sorted_by(|a, b| a < b), "transaction {xid}: {indexes:?}");
    }
}

fn check_source(records: &[Record], postgres: &Postgres) {
    let query = "SELECT system_identifier || '/' || d.oid
        FROM pg_control_system(), pg_database d WHERE datname = current_database()";
    let source = postgres.ask(query);
    let found: HashSet<_> = records.iter().map(|record| record.header("factlib_source")).collect();
    assert_eq!(found, HashSet::from([Some(source.as_str())]));
}

#[test]
fn a_stop_in_the_middle_of_a_transaction_of_ten_thousand_facts_repeats_nothing() {
    const FACTS: usize = 10_000;
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let workload = Workload { payload: 3000..=4000, ..Workload::new("middle", 1) };
    kafka.create_topic("middle.order", PARTITIONS, &[]);
    // So little may be in flight that what was read is never far ahead of what is in the topic.
    let relay = relay("middle", &postgres, kafka)
        .env("IN_FLIGHT_BYTES", "1MiB")
        .env("SHUTDOWN_TIMEOUT", "1m");
    let first = relay.clone().spawn();
    first.wait_ready();

    workload.write_transaction(&mut postgres.client(), FACTS, 1);
    first.wait_until("the transaction to begin to arrive", PATIENCE, || {
        count(kafka, "middle.order") > 0
    });
    first.signal(Signal::SIGSTOP);
    let arrived = count(kafka, "middle.order");
    assert!(arrived < FACTS / 2, "{arrived} of {FACTS} had arrived: too late for the test");
    first.signal(Signal::SIGTERM);
    first.signal(Signal::SIGCONT);
    let status = first.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", first.log_text());

    let expected = truth(&postgres);
    assert_eq!(expected.len(), FACTS);
    Checker::new(&expected).check(&kafka.read_topic("middle.order")).assert_clean();

    workload.write_transaction(&mut postgres.client(), 10, 2);
    let second = relay.spawn();
    second.wait_ready();
    wait_confirmed(&second, &postgres, PATIENCE);
    stop(&second);
    let expected = truth(&postgres);
    assert_eq!(expected.len(), FACTS + 10);
    Checker::new(&expected).check(&kafka.read_topic("middle.order")).assert_clean();
}

#[test]
fn stopping_and_starting_under_load_repeats_nothing() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let workload = Workload { facts: 1_000_000, ..Workload::new("restarts", 1) };
    kafka.create_topic("restarts.order", PARTITIONS, &[]);
    let command = relay("restarts", &postgres, kafka).env("SHUTDOWN_TIMEOUT", "1m");
    let mut last = command.clone().spawn();
    last.wait_ready();
    let load = workload.start(&postgres);
    for _ in 0..5 {
        let before = count(kafka, "restarts.order");
        last.wait_until("facts to flow", PATIENCE, || {
            count(kafka, "restarts.order") > before + 500
        });
        stop(&last);
        last = command.clone().spawn();
        last.wait_ready();
    }
    load.stop();
    wait_confirmed(&last, &postgres, PATIENCE);
    stop(&last);
    let truth = truth(&postgres);
    Checker::new(&truth).check(&kafka.read_topic("restarts.order")).assert_clean();
}

#[test]
fn keys_of_every_kind_go_where_java_puts_them() {
    // No power of two: there, the hash's sign would make no difference.
    const PARTITIONS: usize = 7;
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("keys.order", PARTITIONS, &[]);
    let relay = relay("keys", &postgres, kafka).spawn();
    relay.wait_ready();
    let mut keys = vec![String::new(), " ".to_owned(), "äöü€😀".to_owned(), "k".repeat(1000)];
    keys.extend((0..100).map(|n| format!("order-{n}-{}", "x".repeat(n % 5))));
    let contents: Vec<Vec<u8>> = keys
        .iter()
        .map(|key| {
            let event = OutboxEvent {
                aggregate_type: "order".to_owned(),
                aggregate_id: key.clone(),
                ..OutboxEvent::default()
            };
            event.to_bytes()
        })
        .collect();
    let emit = "SELECT pg_logical_emit_message(true, 'keys', c) FROM unnest($1::bytea[]) c";
    postgres.client().execute(emit, &[&contents]).unwrap();

    let records = read(&relay, kafka, "keys.order", keys.len());
    let found: HashMap<&[u8], i32> =
        records.iter().map(|record| (record.key.as_deref().unwrap(), record.partition)).collect();
    for (key, partition) in keys.iter().zip(java_partitions(&keys, PARTITIONS)) {
        assert_eq!(found[key.as_bytes()], partition, "{key:?}");
    }
}

#[test]
fn facts_in_protobuf_and_in_json_arrive_as_they_were_emitted() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("formats.order", 1, &[]);
    let relay = relay("formats", &postgres, kafka).spawn();
    relay.wait_ready();

    let trace = TraceInfo {
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        span_id: "b7ad6b7169203331".to_owned(),
        metadata: BTreeMap::from([("traceparent".to_owned(), "00-0af7-b7ad-01".to_owned())]),
    };
    let protobuf = OutboxEvent {
        id: "11111111-1111-4111-8111-111111111111".to_owned(),
        aggregate_type: "order".to_owned(),
        aggregate_id: "42".to_owned(),
        event_type: "paid".to_owned(),
        payload: vec![0, 0xff, b'{'],
        created_at: -1,
        metadata: BTreeMap::from([("LSN".to_owned(), "not ours".to_owned())]),
        trace_info: Some(trace),
    };
    let json = r#"{"id": "22222222-2222-4222-8222-222222222222", "aggregate_type": "order",
        "aggregate_id": "42", "event_type": "paid", "payload": {"cents": 1999, "who": "Zoë"},
        "trace_info": {"trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331", "metadata": {"traceparent": "00-0af7-b7ad-01"}}}"#;
    let contents = [protobuf.to_bytes(), json.as_bytes().to_vec()];
    let lsns = contents.each_ref().map(|content| emit(&postgres, true, "formats", content));

    let records = read(&relay, kafka, "formats.order", 2);
    assert_eq!(records.len(), 2);
    for ((record, content), lsn) in records.iter().zip(&contents).zip(lsns) {
        assert_eq!(record.value.as_ref(), Some(content));
        assert_eq!(record.key.as_deref(), Some(b"42".as_slice()));
        assert_eq!(record.header("event_type"), Some("paid"));
        assert_eq!(record.header("LSN"), Some(lsn.to_string().as_str()));
        assert_eq!(record.header("trace_id"), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(record.header("span_id"), Some("b7ad6b7169203331"));
        assert_eq!(record.header("traceparent"), Some("00-0af7-b7ad-01"));
    }
    assert_eq!(records[0].header("event_id"), Some("11111111-1111-4111-8111-111111111111"));
    assert_eq!(records[1].header("event_id"), Some("22222222-2222-4222-8222-222222222222"));
}

#[test]
fn two_slots_give_a_fact_without_an_id_the_same_id_and_position() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("anonymous.order", 1, &[]);
    let relays = ["one", "two"].map(|name| {
        let relay = relay("anonymous", &postgres, kafka)
            .env("REPLICATION_SLOT_NAME", name)
            .env("PUBLICATION_NAME", name)
            .spawn();
        relay.wait_ready();
        relay
    });
    for content in [
        br#"{"aggregate_type": "order", "aggregate_id": "1", "event_type": "a"}"#.as_slice(),
        br#"{"aggregate_type": "order", "aggregate_id": "1", "event_type": "b", "id": ""}"#,
    ] {
        emit(&postgres, true, "anonymous", content);
    }

    let records = read(&relays[0], kafka, "anonymous.order", 4);
    let mut ids = HashMap::<_, Vec<_>>::new();
    for record in &records {
        let id = record.header("event_id").unwrap();
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'5'), "{id} is no UUID of version 5");
        let rest = (record.header("event_type"), record.header("factlib_position"), &record.value);
        ids.entry(id).or_default().push((rest, &record.headers, record.timestamp_ms));
    }
    assert_eq!(ids.len(), 2, "two facts, two ids: {:?}", ids.keys());
    for (id, twins) in ids {
        let [one, two] = &twins[..] else { panic!("{id}: {} records", twins.len()) };
        assert_eq!(one, two, "{id}");
    }
}

#[test]
fn a_prepared_transaction_arrives_once_it_is_committed_also_when_a_restart_lies_between() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("prepared.order", 1, &[]);
    let first = relay("prepared", &postgres, kafka).spawn();
    first.wait_ready();
    let mut client = postgres.client();
    for name in ["kept", "dropped"] {
        let sql = format!(
            "BEGIN; SELECT pg_logical_emit_message(true, 'prepared', '{}');
             PREPARE TRANSACTION '{name}'",
            fact(name)
        );
        client.batch_execute(&sql).unwrap();
    }
    emit(&postgres, true, "prepared", fact("before").as_bytes());
    wait_confirmed(&first, &postgres, PATIENCE);
    stop(&first);

    client.batch_execute("COMMIT PREPARED 'kept'").unwrap();
    client.batch_execute("ROLLBACK PREPARED 'dropped'").unwrap();
    emit(&postgres, true, "prepared", fact("after").as_bytes());
    let second = relay("prepared", &postgres, kafka).spawn();
    second.wait_ready();
    wait_confirmed(&second, &postgres, PATIENCE);
    stop(&second);
    assert_eq!(kinds(&kafka.read_topic("prepared.order")), ["before", "kept", "after"]);
}

#[test]
fn facts_of_a_rolled_back_savepoint_stay_away_even_if_they_were_spilled_to_disk() {
    let postgres = Postgres::builder().setting("logical_decoding_work_mem", "64kB").start();
    let kafka = Kafka::shared();
    kafka.create_topic("savepoints.order", 1, &[]);
    let relay = relay("savepoints", &postgres, kafka).spawn();
    relay.wait_ready();
    let emit = |kind: &str, count: u32| {
        format!(
            "SELECT count(pg_logical_emit_message(true, 'savepoints', '{}'))
             FROM generate_series(1, {count});",
            fact(kind)
        )
    };
    let sql = [
        "BEGIN;",
        &emit("one", 1),
        "SAVEPOINT a;",
        &emit("never", 3000),
        "SAVEPOINT b;",
        &emit("never", 3000),
        "ROLLBACK TO SAVEPOINT b; RELEASE SAVEPOINT b;",
        &emit("never", 1),
        "ROLLBACK TO SAVEPOINT a;",
        &emit("two", 3000),
        "RELEASE SAVEPOINT a; SAVEPOINT c;",
        &emit("three", 1),
        "COMMIT;",
    ];
    postgres.client().batch_execute(&sql.concat()).unwrap();
    wait_confirmed(&relay, &postgres, PATIENCE);

    let records = kafka.read_topic("savepoints.order");
    let mut kinds = kinds(&records);
    assert_eq!(kinds.len(), 3002);
    kinds.dedup();
    assert_eq!(kinds, ["one", "two", "three"]);
    relay.wait_until("the server to tell that it spilled", PATIENCE, || {
        let query = format!(
            "SELECT coalesce(sum(spill_txns), 0) FROM pg_stat_replication_slots
             WHERE slot_name = '{SLOT}'"
        );
        postgres.ask(&query) != "0"
    });
}

#[test]
fn a_fact_outside_its_transaction_arrives_even_if_that_rolls_back() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("outside.order", 1, &[]);
    let relay = relay("outside", &postgres, kafka).spawn();
    relay.wait_ready();
    let sql = format!(
        "BEGIN; SELECT pg_logical_emit_message(false, 'outside', '{}');
         SELECT pg_logical_emit_message(true, 'outside', '{}'); ROLLBACK",
        fact("outside"),
        fact("inside")
    );
    postgres.client().batch_execute(&sql).unwrap();
    emit(&postgres, true, "outside", fact("later").as_bytes());
    wait_confirmed(&relay, &postgres, PATIENCE);
    assert_eq!(kinds(&kafka.read_topic("outside.order")), ["outside", "later"]);
}

#[test]
fn a_role_with_no_right_but_replication_publishes_beside_rows_of_tables() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("humble.order", 4, &[]);
    let command = relay("humble", &postgres, kafka);
    let init = command.clone().arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.stderr());
    // What a publication that somebody else has made may have: rows are sent for nothing, and passed over.
    postgres
        .client()
        .batch_execute(
            "ALTER PUBLICATION facts SET (publish = 'insert, update, delete, truncate');
             CREATE TABLE note (id int PRIMARY KEY, text text);
             ALTER PUBLICATION facts ADD TABLE note;
             CREATE ROLE humble LOGIN REPLICATION",
        )
        .unwrap();
    let relay = command.env("MASTER_DATABASE_URL", postgres.url_as("humble", "")).spawn();
    relay.wait_ready();
    let workload = Workload { facts: 500, ..Workload::new("humble", 1) }.start(&postgres);
    for id in 0..100 {
        postgres
            .client()
            .batch_execute(&format!(
                "BEGIN; INSERT INTO note VALUES ({id}, 'new');
                 SELECT pg_logical_emit_message(true, 'elsewhere', 'x');
                 UPDATE note SET text = 'old' WHERE id = {id}; COMMIT"
            ))
            .unwrap();
    }
    postgres.client().batch_execute("DELETE FROM note; TRUNCATE note").unwrap();
    workload.wait();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let truth = truth(&postgres);
    Checker::new(&truth).check(&kafka.read_topic("humble.order")).assert_clean();
}

#[test]
fn a_transaction_is_confirmed_only_once_its_facts_are_in_kafka() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    kafka.create_topic("promise.order", 1, &[]);
    let relay = relay("promise", &postgres, &kafka).env("STATUS_INTERVAL", "200ms").spawn();
    relay.wait_ready();
    emit(&postgres, true, "promise", fact("one").as_bytes());
    wait_confirmed(&relay, &postgres, PATIENCE);

    kafka.signal_broker(1, Signal::SIGSTOP);
    emit(&postgres, true, "promise", fact("two").as_bytes());
    let end = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    relay.wait_until("the relay to say that it has read the fact", PATIENCE, || {
        lsn(&postgres, READ) >= end
    });
    assert!(confirmed(&postgres) < end, "confirmed, and nowhere");
    kafka.signal_broker(1, Signal::SIGCONT);
    relay.wait_until("the fact to be confirmed", PATIENCE, || confirmed(&postgres) >= end);
    assert_eq!(kinds(&kafka.read_topic("promise.order")), ["one", "two"]);
}

/// A small envelope that says which one it is.
fn fact(kind: &str) -> String {
    format!(r#"{{"aggregate_type": "order", "aggregate_id": "1", "event_type": "{kind}"}}"#)
}

fn kinds(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.header("event_type").unwrap()).collect()
}

/// Whoever reads standard error has stopped doing so, and the pipe to it is full before the first line.
#[test]
fn a_log_that_nobody_reads_holds_up_neither_facts_nor_the_end() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("unread.order", 1, &[]);
    let shell = Shell::new("unread", &postgres, kafka).env("FAILURE_LINGER", "0s");
    let fill = "dd if=/dev/zero of=/dev/fd/3 bs=4096 oflag=nonblock 3>&2 2>/dev/null";
    let start = || {
        let mut command = shell.command(&format!("{fill}; exec owlpost run"));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ended = |relay: &mut std::process::Child| {
        let mut code = None;
        wait::until("the relay to end", PATIENCE, || {
            code = relay.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    };
    let slot = "SELECT count(*) FROM pg_replication_slots WHERE active";
    let reads = || postgres.ask(slot) == "1";
    let published = |wanted: usize| {
        emit(&postgres, true, "unread", br#"{"aggregate_type":"order","aggregate_id":"1"}"#);
        let end = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
        wait::until("the fact to be confirmed", PATIENCE, || confirmed(&postgres) >= end);
        assert_eq!(count(kafka, "unread.order"), wanted);
    };

    let mut relay = start();
    wait::until("the relay to read", PATIENCE, reads);
    published(1);
    signal_pid(relay.id(), Signal::SIGTERM);
    assert_eq!(ended(&mut relay), Some(0));

    let mut relay = start();
    wait::until("the relay to read", PATIENCE, reads);
    published(2);
    drop_slots(&postgres);
    assert_eq!(ended(&mut relay), Some(4), "it has failed, and its last sentence finds no room");
}
