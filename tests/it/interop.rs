//! Beside what exists: the facts of factlib's emitters, and a consumer that shares no line with the relay.

use crate::documents::{MIGRATING, OPERATING, by_hand, statement};
use crate::recorded::{EMITTERS, PARTITIONS, PREFIX, Recording};
use crate::support::{
    PATIENCE, SLOT, confirmed, count, emit, read, relay, skipped, skipped_with, stop, truth,
    wait_confirmed,
};
use base64::Engine as _;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use testkit::envelope::OutboxEvent;
use testkit::workload::Workload;
use testkit::{Kafka, Lsn, Owlpost, Postgres, Record, Stream, provision, wait};

/// The Go consumer, built once; none where Go is not installed, which is said loudly, and fails where `CI` is set.
fn consumer() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if Command::new("go").arg("version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "go is not installed");
            skipped("go is not installed: no consumer in Go");
            return None;
        }
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("facts");
        go(&["build", "-o", program.to_str().unwrap(), "./consumer/cmd/facts"]);
        Some(program)
    });
    built.as_deref()
}

/// Go, in the module of our clients, as it is: it changes no file there.
#[track_caller]
fn go(arguments: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/go");
    let mut command = Command::new("go");
    let output =
        command.args(arguments).current_dir(folder).env("GOFLAGS", "-mod=readonly -buildvcs=false");
    succeeded(&output.output().unwrap());
}

#[track_caller]
fn succeeded(output: &Output) {
    let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{said}");
}

/// A line of the consumer.
#[derive(Debug, serde::Deserialize)]
struct Line {
    topic: String,
    partition: i32,
    position: String,
    source: String,
    key: String,
    id: String,
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    payload: Option<String>,
    created_at: i64,
    metadata: Option<BTreeMap<String, String>>,
    trace_id: String,
    span_id: String,
    trace_metadata: Option<BTreeMap<String, String>>,
}

/// What the consumer prints of so many records, and how many of them it takes for repeats.
#[track_caller]
fn consume(program: &Path, kafka: &Kafka, topics: &[&str], records: usize) -> (Vec<Line>, usize) {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(["-brokers", &kafka.bootstrap()]);
    let output = command.args(["-records", &records.to_string()]).args(topics).output().unwrap();
    succeeded(&output);
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = String::from_utf8(output.stderr).unwrap();
    let repeats = said.trim().strip_prefix(&format!("read {records} records, ")).unwrap();
    (lines, repeats.strip_suffix(" of them repeats").unwrap().parse().unwrap())
}

/// The line says what is in the envelope, whoever wrote it.
#[track_caller]
fn assert_line(line: &Line, content: &[u8]) {
    let event = OutboxEvent::from_bytes(content).unwrap();
    let names = [&line.aggregate_type, &line.aggregate_id, &line.event_type];
    assert_eq!(names, [&event.aggregate_type, &event.aggregate_id, &event.event_type]);
    let base64 = base64::engine::general_purpose::STANDARD;
    let payload = line.payload.as_deref().unwrap_or_default();
    assert!(base64.decode(payload).unwrap() == event.payload, "{}", line.id);
    assert_eq!(base64.decode(&line.key).unwrap(), event.aggregate_id.as_bytes());
    assert_eq!(line.created_at, event.created_at);
    assert_eq!(line.metadata.clone().unwrap_or_default(), event.metadata);
    let trace = event.trace_info.unwrap_or_default();
    assert_eq!((&line.trace_id, &line.span_id), (&trace.trace_id, &trace.span_id));
    assert_eq!(line.trace_metadata.clone().unwrap_or_default(), trace.metadata);
}

#[test]
fn facts_of_factlibs_emitters_become_the_records_that_its_relay_made_and_are_read_in_go() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let recordings = EMITTERS.map(Recording::of);
    let facts: Vec<_> = recordings.iter().flat_map(|recording| &recording.facts).collect();
    let topics: HashSet<_> =
        facts.iter().filter_map(|fact| Some(fact.record.as_ref()?.topic.as_str())).collect();
    // The topic of facts without an aggregate type: nothing comes there.
    assert!(topics.contains("interop."));
    for topic in &topics {
        kafka.create_topic(topic, usize::try_from(PARTITIONS).unwrap(), &[]);
    }
    let relay = relay(PREFIX, &postgres, kafka).env("POISON_POLICY", "skip").spawn();
    relay.wait_ready();
    let mut expected = HashMap::new();
    for fact in &facts {
        let lsn = emit(&postgres, true, &fact.prefix, &fact.content);
        if fact.is_published() {
            expected.insert(lsn.to_string(), *fact);
        }
    }
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);

    let records: Vec<Record> = topics.iter().flat_map(|topic| kafka.read_topic(topic)).collect();
    assert_eq!(records.len(), expected.len());
    for record in &records {
        let fact = expected[record.header("LSN").unwrap()];
        let place = (&*record.topic, record.partition);
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        fact.assert_record(place, key, value, &record.headers);
    }

    let Some(program) = consumer() else { return };
    let topics: Vec<&str> = topics.into_iter().collect();
    let (lines, repeats) = consume(program, kafka, &topics, records.len());
    assert_eq!((lines.len(), repeats), (records.len(), 0));
    let by_position: HashMap<_, _> =
        records.iter().map(|record| (record.header("factlib_position").unwrap(), record)).collect();
    for line in &lines {
        let record = by_position[&*line.position];
        assert_eq!((&*line.topic, line.partition), (&*record.topic, record.partition));
        assert_eq!(Some(&*line.id), record.header("event_id"));
        assert_eq!(Some(&*line.source), record.header("factlib_source"));
        assert_line(line, record.value.as_deref().unwrap());
    }
}

#[test]
fn a_consumer_in_go_works_on_each_fact_once_whatever_was_repeated() {
    let Some(program) = consumer() else { return };
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("gopher.order", 4, &[]);
    let first = relay("gopher", &postgres, kafka);
    // A slot that begins where the relay's does: what is read through it is all repeated, with the same positions.
    let made = first.clone().spawn();
    made.wait_ready();
    stop(&made);
    let copy = format!("SELECT pg_copy_logical_replication_slot('{SLOT}', 'again')");
    postgres.client().batch_execute(&copy).unwrap();
    let again = first.clone().env("REPLICATION_SLOT_NAME", "again");

    // A relay that is killed while it drains repeats a part by itself.
    Workload { facts: 20_000, ..Workload::new("gopher", 1) }.run(&postgres);
    let killed = first.clone().spawn();
    killed.wait_until("facts to flow", PATIENCE, || count(kafka, "gopher.order") > 1000);
    killed.kill9();
    let drain = |relay: &Owlpost| {
        wait_confirmed(relay, &postgres, PATIENCE);
        stop(relay);
    };
    drain(&first.spawn());
    let once = count(kafka, "gopher.order");
    let relay = again.spawn();
    let truth = truth(&postgres);
    let records = read(&relay, kafka, "gopher.order", once + truth.len());
    stop(&relay);
    assert_eq!(records.len(), once + truth.len());

    let (lines, repeats) = consume(program, kafka, &["gopher.order"], records.len());
    assert_eq!((lines.len(), repeats), (truth.len(), records.len() - truth.len()));
    assert!(repeats >= truth.len());
    let by_id: HashMap<_, _> = truth.iter().map(|fact| (fact.fact_id.as_str(), fact)).collect();
    let mut seen = HashSet::new();
    let mut highest: HashMap<i32, String> = HashMap::new();
    let mut in_order: HashMap<&str, i64> = HashMap::new();
    for line in &lines {
        let fact = by_id[line.id.as_str()];
        assert!(seen.insert(&line.id), "{} comes twice", line.id);
        assert_line(line, &fact.content);
        let position = highest.insert(line.partition, line.position.clone());
        assert!(position.is_none_or(|before| before < line.position));
        let last = in_order.insert(&fact.aggregate_id, fact.key_seq).unwrap_or_default();
        assert_eq!(fact.key_seq, last + 1, "{}", fact.aggregate_id);
    }
}

#[test]
fn the_go_module_passes_its_own_tests() {
    if consumer().is_some() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/go");
        let unformatted = Command::new("gofmt").args(["-l", "."]).current_dir(folder).output();
        assert_eq!(String::from_utf8(unformatted.unwrap().stdout).unwrap(), "");
        go(&["vet", "./..."]);
        go(&["test", "./..."]);
    }
}

/// What `pg_waldump` prints of a message's content.
fn hex(content: &[u8]) -> String {
    content.iter().map(|byte| format!(" {byte:02X}")).collect()
}

/// Symptom: nothing said that the slot had been left where facts are passed over, once the log had passed that place.
#[test]
fn a_hole_that_factlibs_relay_left_is_told_and_what_was_lost_in_it_is_found() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("holed.order", 1, &[]);
    by_hand(&postgres);
    let fact = |id: &str, payload: &str| {
        let json = format!(
            r#"{{"id":"{id}","aggregate_type":"order","aggregate_id":"1","payload":"{payload}"}}"#
        );
        json.into_bytes()
    };
    let command = relay("holed", &postgres, kafka);
    // The last fact that factlib's relay published, and what it confirmed then.
    let last = fact("last", &"x".repeat(20_003));
    let ends = emit(&postgres, true, "holed", &last);
    let length = 15 + "holed".len() + last.len();
    let computed = Lsn(ends.0 + u64::try_from(length).unwrap());
    assert_ne!(computed.0 % 8, 0);
    let options = [("proto_version", "1"), ("publication_names", "facts")];
    let mut old = Stream::start(&postgres, SLOT, &options).unwrap();
    old.confirm(computed).unwrap();
    wait::until("the server to know", PATIENCE, || confirmed(&postgres) == computed);
    drop(old);
    wait::until("the slot to be free", PATIENCE, || {
        postgres.ask("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
    });
    let ahead = || {
        let end: Lsn = postgres.ask("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        computed.0.saturating_sub(end.0)
    };

    let check = |code| {
        let check = command.clone().arg("check").spawn();
        assert_eq!(check.wait_exit(PATIENCE).code(), Some(code), "{}", check.log_text());
        check.stdout()
    };
    let said = check(11);
    let bytes = ahead();
    assert!(said.contains(&format!("{computed}, {bytes} bytes past the end of the log")), "{said}");

    let lost = [fact("lost 1", ""), fact("lost 2", "")];
    for content in &lost {
        emit(&postgres, true, "holed", content);
    }
    while ahead() > 0 {
        emit(&postgres, false, "filler", &[b' '; 4096]);
    }
    let told = format!("{computed}, where no record of the log ends");
    let said = check(0);
    assert!(said.contains(&told) && said.contains("not made by owlpost"), "{said}");

    let relay = command.clone().spawn();
    relay.wait_for_log(&told, PATIENCE);
    relay.wait_for_log("adopted", PATIENCE);
    emit(&postgres, true, "holed", &fact("next", ""));
    let records = read(&relay, kafka, "holed.order", 1);
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let ids: Vec<_> = records.iter().map(|record| record.header("event_id")).collect();
    assert_eq!(ids, [Some("next")], "what was committed in the hole is published by nobody");
    assert_eq!(kafka.read_topic("holed.order").len(), 1);
    // Where the relay confirms, records end.
    let said = check(0);
    assert!(!said.contains("where no record of the log ends"), "{said}");

    // As the documents say.
    let begins = statement(MIGRATING, "hole_begins")
        .replace("0/1A44E8F", &computed.to_string())
        .replace("'orders'", "'holed'")
        .replace("300037", &last.len().to_string());
    let begins =
        format!("SELECT hole_begins::text FROM ({}) q", begins.trim().trim_end_matches(';'));
    assert_eq!(postgres.ask(&begins), ends.to_string());
    let line = OPERATING.lines().find(|line| line.starts_with("pg_waldump ")).unwrap();
    let program = provision::postgres(postgres.major()).unwrap().bin.join("pg_waldump");
    if !program.exists() {
        return skipped_with(&postgres, "this PostgreSQL comes without pg_waldump");
    }
    let folder = postgres.data_dir().join("pg_wal");
    let line = line
        .replace("/var/lib/postgresql/15/main/pg_wal", folder.to_str().unwrap())
        .replace("0/16B3748", &ends.to_string())
        .replace("0/16B9000", &computed.to_string());
    let arguments = line.split(' ').skip(1);
    let output = Command::new(program).args(arguments).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    for content in &lost {
        assert!(printed.contains(&hex(content)), "{printed}");
    }
    assert!(!printed.contains(&hex(&last)), "what was published is no part of the hole");
}

#[test]
fn variables_of_factlibs_relay_that_mean_nothing_are_named() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let command = relay("westeros", &postgres, kafka)
        .env("APP_NAME", "owlpost")
        .env("KAFKA_SSL", "F")
        .env("DGN", "local")
        .env("GOMEMLIMIT", "64MiB");
    let check = command.clone().arg("check").spawn();
    assert_eq!(check.wait_exit(PATIENCE).code(), Some(0), "{}", check.log_text());
    let relay = command.spawn();
    relay.wait_ready();
    for said in [check.stdout(), relay.log_text()] {
        assert!(said.contains("DGN") && said.contains("use LOG_FORMAT"), "{said}");
        assert!(said.contains("GOMEMLIMIT") && said.contains("use IN_FLIGHT_BYTES"), "{said}");
    }
    stop(&relay);
}

#[test]
fn a_file_of_variables_that_factlibs_relay_read_is_said_to_be_unread() {
    let folder = tempfile::tempdir().unwrap();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_owlpost"));
        let output = command.env_clear().current_dir(folder.path()).arg("check").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!run().contains(".env"));
    std::fs::write(folder.path().join(".env"), "SRC_SERVICE_NAME=orders\n").unwrap();
    let said = run();
    assert!(said.contains("SRC_SERVICE_NAME: not set"), "{said}");
    assert!(said.contains(".env: a file of that name is here, and is not read"), "{said}");
}
