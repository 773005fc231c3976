//! What the tests have in common.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;
use testkit::workload::Truth;
use testkit::{Kafka, Lsn, Owlpost, Postgres, Record, oracle, owlpost, workload};

/// For what takes milliseconds on an idle machine: only a failure waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The slot where nothing else is said.
pub(crate) const SLOT: &str = "factlib_slot";

/// How far relays say that they have read. One that waits for the slot says nothing.
pub(crate) const READ: &str = "SELECT coalesce(max(write_lsn), '0/0') FROM pg_stat_replication";

/// The binary of this build, or the one that `OWLPOST` names.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("OWLPOST").map_or_else(|| env!("CARGO_BIN_EXE_owlpost").into(), PathBuf::from)
}

/// The relay of this build, not yet started, for one prefix.
pub(crate) fn relay(prefix: &str, postgres: &Postgres, kafka: &Kafka) -> owlpost::Command {
    Owlpost::command(binary())
        .servers(postgres, kafka)
        .env("SRC_SERVICE_NAME", prefix)
        .env("WAL_PREFIX", prefix)
}

/// Everything before this is in Kafka for good, says the server.
pub(crate) fn confirmed(postgres: &Postgres) -> Lsn {
    let query =
        format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    lsn(postgres, &query)
}

/// A place in the log, by a query.
#[track_caller]
pub(crate) fn lsn(postgres: &Postgres, query: &str) -> Lsn {
    postgres.ask(query).parse().unwrap()
}

/// Waits until the relay has confirmed everything that is committed by now.
#[track_caller]
pub(crate) fn wait_confirmed(relay: &Owlpost, postgres: &Postgres, limit: Duration) {
    let written = lsn(postgres, "SELECT pg_current_wal_flush_lsn()");
    // One connection for all looks: each would cost the server a process.
    let mut client = postgres.client();
    relay.wait_until("the relay to confirm everything", limit, || {
        oracle::slot(&mut client, SLOT).unwrap().confirmed >= written
    });
}

/// What the relay says it is doing; nothing while its health port does not answer.
pub(crate) fn state(relay: &Owlpost) -> String {
    health(relay)["state"].as_str().unwrap_or_default().to_owned()
}

/// A number on the relay's health page.
pub(crate) fn number(relay: &Owlpost, name: &str) -> u64 {
    health(relay)[name].as_u64().unwrap_or_default()
}

fn health(relay: &Owlpost) -> serde_json::Value {
    let (_, body) = relay.get("/health").unwrap_or_default();
    serde_json::from_str(&body).unwrap_or_default()
}

/// Waits until the relay says that it is doing that.
#[track_caller]
pub(crate) fn wait_state(relay: &Owlpost, wanted: &str) {
    relay.wait_until(&format!("the relay to be {wanted}"), PATIENCE, || state(relay) == wanted);
}

/// Asks the relay to stop, as an operator would, and expects that nothing is left undone.
#[track_caller]
pub(crate) fn stop(relay: &Owlpost) {
    let status = relay.stop(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", relay.log_text());
}

/// What was committed.
#[track_caller]
pub(crate) fn truth(postgres: &Postgres) -> Vec<Truth> {
    workload::truth(&mut postgres.client())
}

/// How many records are in the topic.
#[track_caller]
pub(crate) fn count(kafka: &Kafka, topic: &str) -> usize {
    usize::try_from(kafka.end_offsets(topic).values().sum::<i64>()).unwrap()
}

/// Waits until some hundred facts more are in Kafka, of a cluster in which leaders may have to be found first.
#[track_caller]
pub(crate) fn wait_flowing(relay: &Owlpost, kafka: &Kafka, topic: &str) {
    let before = count(kafka, topic);
    relay.wait_until("facts to flow", 2 * PATIENCE, || count(kafka, topic) > before + 300);
}

/// Waits until the topic has so many records, and reads them.
#[track_caller]
pub(crate) fn read(relay: &Owlpost, kafka: &Kafka, topic: &str, records: usize) -> Vec<Record> {
    relay.wait_until(&format!("{records} records in {topic}"), PATIENCE, || {
        count(kafka, topic) >= records
    });
    kafka.read_topic(topic)
}

/// Emits one message with these arguments of `pg_logical_emit_message`, in a transaction of its own;
/// what the function returned.
#[track_caller]
pub(crate) fn emit(postgres: &Postgres, transactional: bool, prefix: &str, content: &[u8]) -> Lsn {
    let query = "SELECT pg_logical_emit_message($1, $2, $3::bytea)::text";
    let row = postgres.client().query_one(query, &[&transactional, &prefix, &content]).unwrap();
    row.get::<_, String>(0).parse().unwrap()
}

/// The body of the answer to a GET on this port, with these header lines.
#[track_caller]
pub(crate) fn ask(port: u16, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\n{header}connection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Says that a test does nothing here, past the harness, which keeps what tests print; with `CI=true` it fails.
#[track_caller]
pub(crate) fn skipped(why: &str) {
    assert!(!testkit::provision::is_ci(), "CI=true, and {why}");
    // Nobody reads it: that is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// The same for what this server's build lacks: with `CI=true` it fails only on the major that is tested by default, of
/// which Debian's build is complete.
#[track_caller]
pub(crate) fn skipped_with(postgres: &Postgres, why: &str) {
    if postgres.major() == testkit::versions::POSTGRES_MAJOR {
        return skipped(why);
    }
    // Nobody reads it: that is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Drops every slot, also one that a relay has and takes again.
pub(crate) fn drop_slots(postgres: &Postgres) {
    postgres
        .client()
        .batch_execute(
            "DO $$ BEGIN
                 WHILE EXISTS (SELECT FROM pg_replication_slots) LOOP
                     PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active;
                     PERFORM pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active;
                 END LOOP;
             END $$",
        )
        .unwrap();
}
