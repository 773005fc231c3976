//! Beside what exists: the facts of factlib's emitters, and a consumer that shares no line with the relay.

use crate::recorded::{EMITTERS, PARTITIONS, PREFIX, Recording};
use crate::support::{
    PATIENCE, SLOT, count, emit, read, relay, skipped, stop, truth, wait_confirmed,
};
use base64::Engine as _;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use testkit::envelope::OutboxEvent;
use testkit::workload::Workload;
use testkit::{Kafka, Owlpost, Postgres, Record};

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
        go(&["vet", "./..."]);
        go(&["test", "./..."]);
    }
}
