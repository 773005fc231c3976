//! What the documents tell people to type, on real servers.

use crate::support::{PATIENCE, SLOT, emit, read, relay, stop, truth, wait_confirmed, wait_state};
use crate::typed::{Pieces, documents};
use std::path::Path;
use std::process::Command;
use testkit::envelope::OutboxEvent;
use testkit::workload::Workload;
use testkit::{Kafka, Lsn, Mode, Postgres, Stream, java_partitions, wait};

pub(crate) const OPERATING: &str = include_str!("../../docs/operating.md");
pub(crate) const MIGRATING: &str = include_str!("../../docs/migrating.md");

/// What no server is to take, and why.
const NOT_RUN: &[(&str, &str)] = &[(
    "REVOKE ALL ON FUNCTION pg_catalog.pg_logical_emit_message(boolean, text, bytea)",
    "a line of a dump, which is quoted because it fails",
)];

/// With these words SQL begins that is whole enough to be run, where it is more than the word.
const VERBS: [&str; 8] =
    ["ALTER ", "COMMENT ", "CREATE ", "DROP ", "GRANT ", "INSERT ", "REVOKE ", "SELECT "];

/// The SQL in a document, and the version that each needs, if it needs one.
fn statements(document: &str) -> Vec<(Option<u32>, String)> {
    let pieces = Pieces::of(document);
    let blocks = pieces.blocks.into_iter().filter_map(|(kind, lines)| {
        let version = kind.strip_prefix("sql")?;
        Some((version.trim().parse().ok(), lines.join("\n")))
    });
    let spans = pieces.spans.into_iter();
    let spans = spans.filter(|span| VERBS.iter().any(|verb| span.starts_with(verb)));
    blocks.chain(spans.map(|sql| (None, sql))).collect()
}

/// The one block of SQL that has this in it.
#[track_caller]
pub(crate) fn statement(document: &str, with: &str) -> String {
    let mut found = statements(document).into_iter().filter(|(_, sql)| sql.contains(with));
    let (_, sql) = found.next().unwrap_or_else(|| panic!("no statement has {with}"));
    assert!(found.next().is_none(), "several statements have {with}");
    sql
}

/// What factlib's relay makes at its start.
pub(crate) fn by_hand(postgres: &Postgres) {
    let mut client = postgres.client();
    client.batch_execute("CREATE PUBLICATION facts").unwrap();
    let slot = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    client.batch_execute(&slot).unwrap();
}

const OUTBOX: &str = "CREATE TABLE outboxevent (
    id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL,
    type varchar(255) NOT NULL, payload jsonb)";

#[test]
fn the_statements_of_the_documents_are_taken_by_a_real_server() {
    let (ordinary, newest) = (Postgres::builder().start(), Postgres::builder().major(18).start());
    let tables = format!("CREATE TABLE orders (id int PRIMARY KEY, paid bool); {OUTBOX}");
    ordinary.client().batch_execute(&tables).unwrap();
    // What the documents say that a database has by then.
    let there = "CREATE ROLE app; ALTER DATABASE app SET factlib.prefix = 'orders'";
    ordinary.client().batch_execute(there).unwrap();
    ordinary.client().batch_execute("INSERT INTO orders VALUES (42, false), (43, true)").unwrap();
    crate::emit_sql::install(&mut ordinary.client());
    let mut run = 0;
    let all: Vec<_> = documents().iter().flat_map(|(_, document)| statements(document)).collect();
    for (known, _) in NOT_RUN {
        assert!(all.iter().any(|(_, sql)| sql == known), "{known}: no document has it any more");
    }
    let all = all.into_iter().filter(|(_, sql)| !NOT_RUN.iter().any(|(known, _)| known == sql));
    for (version, sql) in all {
        let postgres = match version {
            Some(version) if version > ordinary.major() => &newest,
            _ => &ordinary,
        };
        let exist = "SELECT count(*) FROM pg_replication_slots, pg_publication";
        if postgres.ask(exist) == "0" {
            let what_is_left = "DROP PUBLICATION IF EXISTS facts;
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
            postgres.client().batch_execute(what_is_left).unwrap();
            by_hand(postgres);
        }
        if sql.starts_with("CREATE PUBLICATION") {
            postgres.client().batch_execute("DROP PUBLICATION IF EXISTS facts").unwrap();
        }
        // The example's place in the log is another cluster's.
        let sql = sql.replace("'0/21EB678'", "pg_current_wal_insert_lsn()");
        // The application's parameters are all texts.
        let sql = (1..=9).fold(sql, |sql, n| sql.replace(&format!("${n}"), "'1'"));
        let taken = postgres.client().batch_execute(&sql);
        taken.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
        run += 1;
    }
    assert!(run > 15, "only {run} statements were found");
}

/// Symptom: a slot that stands ahead of the log was taken over without a word, and a reconnect before the log had
/// passed it ended the relay as if the server's history had gone back.
#[test]
fn a_slot_that_another_relay_left_ahead_of_the_log_is_told_with_the_size_of_the_hole() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("hole.order", 4, &[]);
    by_hand(&postgres);
    // As factlib's relay does, which adds a message's length to a position that is behind it already.
    let options = [("proto_version", "1"), ("publication_names", "facts")];
    let mut old = Stream::start(&postgres, SLOT, &options).unwrap();
    let end: Lsn = postgres.ask("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let confirmed = Lsn(end.0 + (3 << 20));
    old.confirm(confirmed).unwrap();
    let ahead = statement(MIGRATING, "bytes_ahead");
    let bytes = format!("SELECT bytes_ahead::text FROM ({}) q", ahead.trim().trim_end_matches(';'));
    let bytes_ahead = || postgres.ask(&bytes).parse::<u64>().unwrap();
    wait::until("the server to know", PATIENCE, || bytes_ahead() > 0);
    drop(old);

    let relay = relay("hole", &postgres, kafka).spawn();
    wait_state(&relay, "stalled");
    let log = relay.log_text();
    let line = log.lines().find(|line| line.contains("has not reached yet")).unwrap();
    assert!(line.contains(&confirmed.to_string()), "{line}");
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let end: Lsn = line["wal_end"].as_str().unwrap().parse().unwrap();
    assert_eq!(line["bytes"], confirmed.0 - end.0, "{line}");

    // A reconnect while it is still so does not end it.
    let _ =
        postgres.ask("SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots");
    relay.wait_for_log("not connected", PATIENCE);
    wait_state(&relay, "stalled");

    let fill = statement(MIGRATING, "'filler'");
    for _ in 0..4 {
        postgres.client().batch_execute(&fill).unwrap();
    }
    assert_eq!(bytes_ahead(), 0);
    wait_state(&relay, "streaming");
    emit(&postgres, true, "hole", br#"{"id":"behind","aggregate_type":"order","event_type":"e"}"#);
    assert_eq!(read(&relay, kafka, "hole.order", 1)[0].header("event_id"), Some("behind"));
    stop(&relay);
}

#[test]
fn what_factlibs_relay_left_behind_is_adopted() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("handover.order", 4, &[]);
    by_hand(&postgres);
    let fact = OutboxEvent {
        id: "f-1".to_owned(),
        aggregate_type: "order".to_owned(),
        aggregate_id: "42".to_owned(),
        event_type: "paid".to_owned(),
        payload: vec![0, 159, 255],
        created_at: 1_764_000_000_000_000_000,
        ..OutboxEvent::default()
    };
    let lsn = emit(&postgres, true, "handover", &fact.to_bytes());
    let ahead = statement(MIGRATING, "bytes_ahead");
    let bytes = format!("SELECT bytes_ahead::text FROM ({}) q", ahead.trim().trim_end_matches(';'));
    assert_eq!(postgres.ask(&bytes), "0");

    let first = relay("handover", &postgres, kafka).spawn();
    let records = read(&first, kafka, "handover.order", 1);
    let record = &records[0];
    assert_eq!(record.partition, java_partitions(&["42"], 4)[0]);
    assert_eq!(record.key.as_deref(), Some(&b"42"[..]));
    assert_eq!(record.value, Some(fact.to_bytes()));
    let headers = ["event_id", "event_type", "LSN"].map(|name| record.header(name).unwrap());
    assert_eq!(headers, ["f-1", "paid", &lsn.to_string()]);
    first.wait_for_log("adopted", PATIENCE);
    wait_state(&first, "streaming");
    wait_confirmed(&first, &postgres, PATIENCE);
    stop(&first);

    // With the comment of the last step a prefix that is left out is noticed.
    let comment = statement(MIGRATING, "consistent point 0/0");
    let comment = comment.replace("prefixes orders", "prefixes handover");
    postgres.client().batch_execute(&comment).unwrap();
    let other = relay("other", &postgres, kafka).spawn();
    assert_eq!(other.wait_exit(PATIENCE).code(), Some(4), "{}", other.log_text());
    let same = relay("handover", &postgres, kafka).spawn();
    same.wait_ready();
    stop(&same);
    assert_eq!(kafka.read_topic("handover.order"), records);
}

#[test]
fn a_slot_made_beside_the_old_one_misses_nothing() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("beside.order", 4, &[]);
    by_hand(&postgres);
    let export = MIGRATING.split("export REPLICATION_SLOT_NAME=").nth(1).unwrap();
    let (slot, publication) = export.split_once(" PUBLICATION_NAME=").unwrap();
    let publication = publication.lines().next().unwrap();
    let command = relay("beside", &postgres, kafka)
        .env("REPLICATION_SLOT_NAME", slot)
        .env("PUBLICATION_NAME", publication);
    let init = command.arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
    Workload { facts: 200, ..Workload::new("beside", 1) }.run(&postgres);
    let relay = relay("beside", &postgres, kafka)
        .env("REPLICATION_SLOT_NAME", slot)
        .env("PUBLICATION_NAME", publication)
        .spawn();
    let records = read(&relay, kafka, "beside.order", 200);
    let truth = truth(&postgres);
    testkit::checker::Checker::new(&truth).check(&records).assert_clean();
    postgres.client().batch_execute(&statement(MIGRATING, "DROP PUBLICATION facts")).unwrap();
    stop(&relay);
}

#[test]
fn a_row_of_debeziums_outbox_becomes_a_fact() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("new.event.hoot", 3, &[]);
    let trigger = statement(MIGRATING, "CREATE TRIGGER").replace("'orders'", "'outbox'");
    let mut client = postgres.client();
    client.batch_execute(&format!("{OUTBOX}; {trigger}")).unwrap();
    let export = MIGRATING.split("export TOPIC_TEMPLATE=").nth(1).unwrap();
    let (template, value) = export.lines().next().unwrap().split_once(" KAFKA_VALUE=").unwrap();
    let relay = relay("outbox", &postgres, kafka)
        .env("TOPIC_TEMPLATE", template)
        .env("KAFKA_VALUE", value)
        .spawn();
    relay.wait_ready();
    let id = "4d47e190-0402-4048-bc2c-89dd54343cdc";
    let rows = format!(
        "INSERT INTO outboxevent VALUES ('{id}', 'hoot', '1', 'OrderCreated', '{{\"total\": 42}}');
         INSERT INTO outboxevent VALUES (gen_random_uuid(), 'hoot', '1', 'OrderDeleted', NULL)"
    );
    client.batch_execute(&rows).unwrap();
    // Bytes, as the document has them.
    let base64 = "'payload_base64', encode(NEW.payload, 'base64')";
    assert!(MIGRATING.contains(base64));
    let base64 = base64.replace("NEW.payload", "decode(repeat('00ff', 100), 'hex')");
    let bytes = format!(
        "SELECT pg_logical_emit_message(true, 'outbox', json_build_object(
           'aggregate_type', 'hoot', 'aggregate_id', '1', {base64})::text)"
    );
    client.batch_execute(&bytes).unwrap();
    let records = read(&relay, kafka, "new.event.hoot", 3);
    let values: Vec<_> = records.iter().map(|record| record.value.as_deref()).collect();
    let expected = [Some(&br#"{"total": 42}"#[..]), None, Some(&[0, 255].repeat(100))];
    assert_eq!(values, expected);
    let first = &records[0];
    assert_eq!(first.key.as_deref(), Some(&b"1"[..]));
    let headers = ["event_id", "event_type"].map(|name| first.header(name).unwrap());
    assert_eq!(headers, [id, "OrderCreated"]);
    stop(&relay);
}

#[test]
fn the_slot_is_moved_past_a_fact_that_halts_as_the_document_says() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("pastit.order", 1, &[]);
    let halting = relay("pastit", &postgres, kafka).spawn();
    halting.wait_ready();
    emit(&postgres, true, "pastit", b"junk");
    emit(&postgres, true, "pastit", br#"{"aggregate_type":"order","aggregate_id":"1"}"#);
    wait_state(&halting, "halted");
    let position = halting.health()["blocked"]["position"].as_str().unwrap().to_owned();
    halting.stop(PATIENCE);
    let hex = position.split('.').nth(1).unwrap();
    let begins = Lsn(u64::from_str_radix(hex, 16).unwrap());

    let end = statement(OPERATING, "behind_its_commit")
        .replace("0/21EB648", &begins.to_string())
        .replace("00000000021eb648", hex);
    let end: String = {
        let sql =
            format!("SELECT behind_its_commit::text FROM ({}) q", end.trim().trim_end_matches(';'));
        postgres.ask(&sql)
    };
    let advance = statement(OPERATING, "pg_replication_slot_advance").replace("0/21EB678", &end);
    postgres.client().batch_execute(&advance).unwrap();

    let relay = relay("pastit", &postgres, kafka).spawn();
    let records = read(&relay, kafka, "pastit.order", 1);
    assert_eq!(records[0].key.as_deref(), Some(&b"1"[..]));
    stop(&relay);
}

/// Puts the folder `from` in place of `to`, owners and all.
fn put(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success(), "{} to {}", from.display(), to.display());
}

#[test]
fn a_snapshot_that_is_recovered_uses_no_position_again() {
    // As the document has it, for where there is no archive.
    assert!(
        OPERATING.contains("`recovery.signal`")
            && OPERATING.contains("`restore_command = 'false'`")
    );
    let postgres = Postgres::builder().setting("restore_command", "false").start();
    let kafka = Kafka::shared();
    kafka.create_topic("rewound.order", 1, &[]);
    let run = |ids: [&str; 2]| {
        let relay = relay("rewound", &postgres, kafka).spawn();
        relay.wait_ready();
        for id in ids {
            let fact = format!(r#"{{"id":"{id}","aggregate_type":"order","aggregate_id":"1"}}"#);
            emit(&postgres, true, "rewound", fact.as_bytes());
        }
        wait_confirmed(&relay, &postgres, PATIENCE);
        stop(&relay);
    };
    run(["a", "b"]);
    postgres.stop(Mode::Fast);
    let (data, snapshot) = (postgres.data_dir(), postgres.data_dir().with_extension("snapshot"));
    put(&data, &snapshot);
    postgres.start_again();
    run(["gone", "gone, too"]);
    postgres.stop(Mode::Fast);
    put(&snapshot, &data);
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    postgres.start_again();
    wait::until("the end of the recovery", PATIENCE, || {
        postgres.ask("SELECT pg_is_in_recovery()") == "f"
    });
    run(["c", "d"]);

    let records = kafka.read_topic("rewound.order");
    let highest = |ids: [&str; 2]| {
        let of = records.iter().filter(|r| ids.contains(&r.header("event_id").unwrap()));
        of.map(|record| record.header("factlib_position").unwrap().to_owned()).max().unwrap()
    };
    let (old, new) = (highest(["gone", "gone, too"]), highest(["c", "d"]));
    assert!(old < new, "{old} is not below {new}");
    let (old, new) = (old.split_once('.').unwrap(), new.split_once('.').unwrap());
    assert_eq!((old.0, new.0), ("00000001", "00000002"));
}
