//! What cannot be published or started says so.

use crate::support::{
    PATIENCE, SLOT, binary, confirmed, count, emit, relay, stop, truth, wait_confirmed, wait_state,
};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use testkit::checker::Checker;
use testkit::oracle::{self, Commits};
use testkit::process::Signal;
use testkit::workload::Workload;
use testkit::{Kafka, Lsn, Mode, Owlpost, Postgres, Proxy, owlpost, port};

/// In every test that has one; it must never be seen.
const PASSWORD: &str = "s3cret-Pa55";

// ---- facts that cannot be published ----

/// A relay that has published some facts before one that it cannot publish.
struct Rig {
    prefix: &'static str,
    postgres: Postgres,
    kafka: &'static Kafka,
    commits: Commits,
    relay: Owlpost,
}

impl Rig {
    /// With the defaults.
    fn new(prefix: &'static str) -> Self {
        Self::with(prefix, &[])
    }

    /// Twenty transactions and more are published and confirmed.
    fn with(prefix: &'static str, settings: &[(&str, &str)]) -> Self {
        let postgres = Postgres::builder().start();
        let kafka = Kafka::shared();
        kafka.create_topic(&format!("{prefix}.order"), 4, &[("max.message.bytes", "1048588")]);
        let commits = Commits::watch(&mut postgres.client(), "oracle");
        let command = relay(prefix, &postgres, kafka);
        let set =
            |command: owlpost::Command, (name, value): &(&str, &str)| command.env(name, value);
        let relay = settings.iter().fold(command, set).spawn();
        relay.wait_ready();
        let rig = Self { prefix, postgres, kafka, commits, relay };
        rig.write(200, 1);
        wait_confirmed(&rig.relay, &rig.postgres, PATIENCE);
        assert_eq!(rig.published(), 200);
        rig
    }

    fn workload(&self, facts: usize, seed: u64) -> Workload {
        Workload { facts, transaction: 1..=10, ..Workload::new(self.prefix, seed) }
    }

    fn write(&self, facts: usize, seed: u64) {
        self.workload(facts, seed).run(&self.postgres);
    }

    fn published(&self) -> usize {
        count(self.kafka, &format!("{}.order", self.prefix))
    }

    /// Facts that come after the bad one; and more of somebody else's than fits into the sockets, so
    /// that a relay that does not read leaves the server stuck in the middle of a message.
    fn write_more(&self) {
        self.write(50, 2);
        let foreign = "SELECT pg_logical_emit_message(true, 'elsewhere', repeat('x', 100000))
            FROM generate_series(1, 200)";
        self.postgres.client().execute(foreign, &[]).unwrap();
    }

    /// The relay says where and why it stands still; returns the position.
    #[track_caller]
    fn assert_halted(&self, reason: &str) -> String {
        wait_state(&self.relay, "halted");
        let (status, _) = self.relay.get("/readyz").unwrap();
        assert_eq!(status, 503);
        let (status, _) = self.relay.get("/livez").unwrap();
        assert_eq!(status, 200, "a restart would not help");
        let health = self.relay.health();
        assert_eq!(health["ready"], false, "{health}");
        assert!(health["reason"].as_str().unwrap().contains(reason), "{health}");
        let blocked = &health["blocked"];
        assert!(blocked["reason"].as_str().unwrap().contains(reason), "{health}");
        let position = blocked["position"].as_str().unwrap();
        let told = |line: &str| {
            line.contains(r#""level":"ERROR""#)
                && line.contains("halted")
                && line.contains(position)
                && line.contains(reason)
        };
        // The log is written by a thread of its own.
        self.relay.wait_until(&format!("the log to name {position}"), PATIENCE, || {
            self.relay.stderr().lines().any(told)
        });
        position.to_owned()
    }

    /// The server still keeps this transaction for us. A position may lie behind the transaction's
    /// facts and before its end: another's commit, or a keepalive, came in between.
    #[track_caller]
    fn assert_kept(&mut self, xid: u64) {
        self.commits.read(&mut self.postgres.client());
        let end = self.commits.end(xid).expect("it was committed");
        let confirmed = confirmed(&self.postgres);
        assert!(confirmed < end, "{confirmed} is not before {end}");
    }

    /// The only transaction that has such facts.
    fn xid(&self, condition: &str) -> u64 {
        let query = format!("SELECT min(xid) FROM truth WHERE {condition}");
        self.postgres.ask(&query).parse().unwrap()
    }

    /// The database is none the worse for it, and the relay is halted again afterwards.
    #[track_caller]
    fn assert_good_citizen(&self) {
        self.wait_streaming();
        let begun = Instant::now();
        self.postgres.client().execute("CHECKPOINT", &[]).unwrap();
        assert!(begun.elapsed() <= Duration::from_secs(5), "CHECKPOINT: {:?}", begun.elapsed());
        self.wait_streaming();
        let stopping = self.postgres.stop(Mode::Fast);
        assert!(stopping <= Duration::from_secs(10), "stop: {stopping:?}");
        self.postgres.start_again();
        self.wait_streaming();
    }

    fn wait_streaming(&self) {
        let mut client = self.postgres.client();
        self.relay.wait_until("the relay to have the slot", PATIENCE, || {
            oracle::slot(&mut client, SLOT).expect("the slot stays").active_pid.is_some()
        });
    }

    /// Everything has arrived, in order and once.
    #[track_caller]
    fn assert_through(&self, topics: &[&str], facts: usize) {
        wait_confirmed(&self.relay, &self.postgres, PATIENCE);
        self.relay.wait_ready();
        let truth = truth(&self.postgres);
        assert_eq!(truth.len(), facts);
        let topics = topics.iter().map(|topic| format!("{}.{topic}", self.prefix));
        let records: Vec<_> = topics.flat_map(|topic| self.kafka.read_topic(&topic)).collect();
        Checker::new(&truth).prefix(self.prefix).check(&records).assert_clean();
    }
}

#[test]
fn an_unreadable_fact_halts_the_relay_and_nothing_is_confirmed_past_it() {
    let mut rig = Rig::new("unreadable");
    let emit = "SELECT pg_current_xact_id()::text::bigint,
        pg_logical_emit_message(true, 'unreadable', $1::bytea)::text";
    let bad = b"\xff\xffno envelope".as_slice();
    let row = rig.postgres.client().query_one(emit, &[&bad]).unwrap();
    let (xid, lsn) = (row.get::<_, i64>(0).cast_unsigned(), row.get::<_, String>(1));
    rig.write_more();
    let position = rig.assert_halted("unreadable envelope");
    assert!(rig.relay.stderr().contains(&format!(r#""lsn":"{lsn}""#)), "{}", rig.relay.stderr());
    rig.assert_kept(xid);

    rig.assert_good_citizen();
    assert_eq!(rig.assert_halted("unreadable envelope"), position);
    rig.assert_kept(xid);
    assert_eq!(rig.published(), 200, "nothing after it");

    // Neither a stop nor a restart gets past it.
    stop(&rig.relay);
    let mut rig = Rig { relay: relay(rig.prefix, &rig.postgres, rig.kafka).spawn(), ..rig };
    assert_eq!(rig.assert_halted("unreadable envelope"), position);
    rig.assert_kept(xid);
    assert_eq!(rig.published(), 200, "nothing after it, and nothing again");
}

#[test]
fn a_fact_for_an_unknown_topic_halts_the_relay_until_the_topic_is_made() {
    // Longer than a server may take to stop: only hanging up in time lets it go.
    let settings = [
        ("LEASE", "40s"),
        ("WAL_SENDER_TIMEOUT", "60s"),
        ("TCP_USER_TIMEOUT", "60s"),
        ("STATUS_INTERVAL", "1s"),
    ];
    let mut rig = Rig::with("unknown-topic", &settings);
    let missing = vec!["missing".to_owned()];
    Workload { aggregate_types: missing, ..rig.workload(20, 3) }.run(&rig.postgres);
    let first = rig.xid("lsn = (SELECT min(lsn) FROM truth WHERE aggregate_type = 'missing')");
    rig.write_more();
    rig.assert_halted("topic unknown-topic.missing cannot be used (UNKNOWN_TOPIC_OR_PARTITION)");
    assert_eq!(rig.relay.health()["blocked"]["topic"], "unknown-topic.missing");

    rig.assert_good_citizen();
    rig.assert_halted("UNKNOWN_TOPIC_OR_PARTITION");
    rig.assert_kept(first);
    assert_eq!(rig.published(), 200, "nothing after it");

    rig.kafka.create_topic("unknown-topic.missing", 2, &[]);
    rig.assert_through(&["order", "missing"], 270);
    rig.relay.wait_for_log("the fact that halted the relay is published", PATIENCE);
    stop(&rig.relay);
}

#[test]
fn a_fact_that_is_too_large_halts_its_partition_until_the_limit_is_raised() {
    let mut rig = Rig::new("too-large");
    let large = Workload {
        payload: 2_000_000..=2_000_000,
        transaction: 1..=1,
        rolled_back_transactions: 0,
        rolled_back_savepoints: 0,
        ..rig.workload(1, 3)
    };
    large.run(&rig.postgres);
    let xid = rig.xid("length(content) > 2000000");
    rig.write_more();
    rig.assert_halted("MESSAGE_TOO_LARGE: one record of 200");
    let health = rig.relay.health();
    assert_eq!(health["blocked"]["topic"], "too-large.order");
    assert!(health["blocked"]["partition"].is_u64(), "{health}");

    rig.assert_good_citizen();
    rig.assert_halted("MESSAGE_TOO_LARGE: one record of 200");
    rig.assert_kept(xid);
    let large = |records: &[testkit::Record]| {
        let values = records.iter().filter_map(|record| record.value.as_ref());
        values.filter(|value| value.len() > 2_000_000).count()
    };
    assert_eq!(large(&rig.kafka.read_topic("too-large.order")), 0);

    rig.kafka.set_topic_config("too-large.order", "max.message.bytes", "3000000");
    rig.assert_through(&["order"], 251);
    assert_eq!(large(&rig.kafka.read_topic("too-large.order")), 1);
    stop(&rig.relay);
}

// ---- relays that cannot start ----

/// Runs it to its end; what it wrote last, which is one clear sentence.
#[track_caller]
fn refusal(command: owlpost::Command, code: i32) -> String {
    let relay = command.spawn();
    let status = relay.wait_exit(Duration::from_secs(45));
    let said = relay.log_text();
    assert_eq!(status.code(), Some(code), "{said}");
    assert!(!said.contains(PASSWORD), "a secret: {said}");
    for word in ["panicked", "backtrace", "RUST_BACKTRACE"] {
        assert!(!said.contains(word), "{word}: {said}");
    }
    let stderr = relay.stderr();
    let sentence = stderr.lines().last().unwrap_or_default();
    let sentence = sentence.strip_prefix("owlpost: ").unwrap_or_else(|| panic!("{said}"));
    assert!(sentence.len() < 600, "{sentence}");
    sentence.to_owned()
}

/// As [`refusal`], and the sentence has all of these words.
#[track_caller]
fn refused(command: owlpost::Command, code: i32, words: &[&str]) {
    let sentence = refusal(command, code);
    for word in words {
        assert!(sentence.contains(word), "no {word:?} in: {sentence}");
    }
}

/// A relay that is complete except for a server.
fn homeless() -> owlpost::Command {
    Owlpost::command(binary())
        .env("SRC_SERVICE_NAME", "orders")
        .env("MASTER_DATABASE_URL", format!("postgres://relay:{PASSWORD}@127.0.0.1:1/app"))
        .env("KAFKA_BROKERS", "127.0.0.1:1")
        .env("STARTUP_TIMEOUT", "2s")
        .env("LOG_LEVEL", "trace")
}

/// A relay for this server, which is refused before Kafka matters.
fn at(postgres: &Postgres) -> owlpost::Command {
    homeless().env("MASTER_DATABASE_URL", postgres.url())
}

fn execute(postgres: &Postgres, sql: &str) {
    postgres.client().batch_execute(sql).unwrap();
}

/// What the server has: slots, and publications with their comments.
fn inventory(postgres: &Postgres) -> String {
    postgres.ask(
        "SELECT coalesce((SELECT string_agg(slot_name || ' ' || coalesce(plugin, '-'), ', ')
                          FROM pg_replication_slots), 'no slot') || '; ' ||
                coalesce((SELECT string_agg(pubname || ' ' ||
                              coalesce(obj_description(oid, 'pg_publication'), '-'), ', ')
                          FROM pg_publication), 'no publication')",
    )
}

fn system(postgres: &Postgres) -> String {
    postgres.ask("SELECT system_identifier FROM pg_control_system()")
}

#[test]
fn a_wrong_password_is_refused_without_being_shown() {
    let postgres = Postgres::builder().hba(&["host all relay 127.0.0.1/32 scram-sha-256"]).start();
    let role = "SET password_encryption = 'scram-sha-256';
        CREATE ROLE relay LOGIN REPLICATION PASSWORD 'the right one'";
    execute(&postgres, role);
    let url = postgres.url_as("relay", PASSWORD);
    let wrong = at(&postgres).env("MASTER_DATABASE_URL", url);
    let words = ["password authentication failed", "\"relay\"", "28P01"];
    refused(wrong.clone(), 3, &words);
    refused(wrong.arg("init"), 3, &words);
    assert_eq!(inventory(&postgres), "no slot; no publication");
}

#[test]
fn an_unknown_database_is_refused() {
    let postgres = Postgres::builder().start();
    let url = postgres.url().replace("/app", "/nowhere");
    refused(at(&postgres).env("MASTER_DATABASE_URL", url), 3, &["\"nowhere\" does not exist"]);
}

#[test]
fn an_unknown_host_is_refused() {
    let url = format!("postgres://relay:{PASSWORD}@no-such-host.invalid/app");
    let command = homeless().env("MASTER_DATABASE_URL", url);
    refused(command.env("STARTUP_TIMEOUT", "20s"), 3, &["no-such-host.invalid"]);
}

#[test]
fn a_port_where_nobody_listens_is_given_up_after_the_startup_timeout() {
    let nobody = port::free();
    let url = format!("postgres://relay:{PASSWORD}@127.0.0.1:{nobody}/app");
    let begun = Instant::now();
    let address = format!("127.0.0.1:{nobody}");
    let words = ["cannot connect to PostgreSQL", &address, "refused"];
    refused(homeless().env("MASTER_DATABASE_URL", url), 3, &words);
    assert!(begun.elapsed() >= Duration::from_secs(2), "it was not tried again");
}

#[test]
fn a_bad_url_is_refused_without_being_shown() {
    for (url, word) in [
        (format!("postgres://relay:{PASSWORD}@127.0.0.1:five/app"), "port"),
        (format!("mysql://relay:{PASSWORD}@127.0.0.1/app"), "postgres"),
        (format!("postgres://relay:{PASSWORD}@127.0.0.1/app?sslmod=disable"), "sslmod"),
    ] {
        let relay = homeless().env("MASTER_DATABASE_URL", &url).spawn();
        assert_eq!(relay.wait_exit(PATIENCE).code(), Some(2));
        let said = relay.log_text();
        assert!(!said.contains(PASSWORD), "{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "owlpost: the configuration has problems");
        assert_eq!(lines.len(), 2, "{said}");
        assert!(lines[1].starts_with("MASTER_DATABASE_URL: ") && lines[1].contains(word), "{said}");
    }
}

#[test]
fn a_bad_prefix_is_refused() {
    let relay = homeless().env("WAL_PREFIX", "orders,füße").spawn();
    assert_eq!(relay.wait_exit(PATIENCE).code(), Some(2));
    let said = relay.log_text();
    assert!(said.contains("WAL_PREFIX: \"füße\" contains 'ü'"), "{said}");
}

#[test]
fn all_problems_of_the_configuration_are_told_at_once() {
    let relay = Owlpost::command(binary())
        .env("WAL_PREFIX", "a b")
        .env("MASTER_DATABASE_URL", format!("postgres://relay:{PASSWORD}@127.0.0.1:five/app"))
        .env("REPLICATION_SLOT_NAME", "Not-A-Slot")
        .env("IN_FLIGHT_BYTES", "plenty")
        .env("LEASE", "20s")
        .spawn();
    assert_eq!(relay.wait_exit(PATIENCE).code(), Some(2));
    let said = relay.log_text();
    assert!(!said.contains(PASSWORD), "{said}");
    let settings = [
        "WAL_PREFIX",
        "MASTER_DATABASE_URL",
        "KAFKA_BROKERS",
        "REPLICATION_SLOT_NAME",
        "IN_FLIGHT_BYTES",
    ];
    for setting in settings {
        let told = said.lines().filter(|line| line.starts_with(&format!("{setting}: ")));
        assert_eq!(told.count(), 1, "{setting} in {said}");
    }
    assert_eq!(said.lines().count(), 1 + settings.len(), "{said}");
}

#[test]
fn a_kafka_that_is_not_there_at_the_start_is_given_up_after_the_startup_timeout() {
    let postgres = Postgres::builder().start();
    let nobody = format!("127.0.0.1:{}", port::free());
    refused(at(&postgres).env("KAFKA_BROKERS", &nobody), 3, &["no Kafka broker answers", &nobody]);
}

#[test]
fn a_health_port_that_is_taken_is_refused_before_anything_is_contacted() {
    let postgres = Postgres::builder().start();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap();
    let other = TcpListener::bind(taken).unwrap();
    let port = other.local_addr().unwrap().port();
    let words = ["in use", &port.to_string()];
    refused(at(&postgres).env("WAL_HEALTH_PORT", port), 2, &words);
    assert_eq!(inventory(&postgres), "no slot; no publication");
}

#[test]
fn a_server_without_logical_decoding_is_refused_with_the_remedy() {
    let postgres = Postgres::builder().setting("wal_level", "replica").start();
    let words = ["wal_level is replica", "set wal_level = logical", "restart the server"];
    refused(at(&postgres), 8, &words);
    refused(at(&postgres).arg("init"), 8, &words);
    assert_eq!(inventory(&postgres), "no slot; no publication");
}

#[test]
fn a_relay_that_would_be_a_synchronous_standby_is_refused_with_the_remedy() {
    let postgres = Postgres::builder().setting("synchronous_standby_names", "ANY 1 (*)").start();
    let words = ["synchronous_standby_names is \"ANY 1 (*)\"", "every COMMIT waits", "APP_NAME"];
    refused(at(&postgres), 8, &words);
    refused(at(&postgres).arg("init"), 8, &words);
    assert_eq!(inventory(&postgres), "no slot; no publication");
}

#[test]
fn a_role_without_the_replication_right_is_refused_with_the_remedy() {
    let postgres = Postgres::builder().start();
    execute(&postgres, "CREATE ROLE relay LOGIN");
    let command = at(&postgres).env("MASTER_DATABASE_URL", postgres.url_as("relay", PASSWORD));
    refused(command.clone(), 8, &["42501", "REPLICATION"]);
    refused(command.arg("init"), 8, &["42501", "REPLICATION"]);
}

#[test]
fn a_role_that_may_not_make_the_publication_is_refused_with_the_remedy() {
    let postgres = Postgres::builder().start();
    execute(&postgres, "CREATE ROLE relay LOGIN REPLICATION");
    let command = at(&postgres).env("MASTER_DATABASE_URL", postgres.url_as("relay", PASSWORD));
    refused(command.clone(), 8, &["permission denied for database app", "CREATE"]);
    assert_eq!(inventory(&postgres), "no slot; no publication");
    // With a publication that another role has made it runs; here, until Kafka is missed.
    init(&postgres);
    refused(command, 3, &["no Kafka broker answers"]);
}

#[test]
fn a_server_without_a_free_slot_is_refused_with_the_remedy() {
    let postgres = Postgres::builder().setting("max_replication_slots", "1").start();
    execute(&postgres, "SELECT pg_create_physical_replication_slot('other')");
    let words = ["all replication slots are in use", "max_replication_slots"];
    refused(at(&postgres), 8, &words);
    // In this order: before PostgreSQL 18 a slot that is older than its publication cannot be read.
    let found = inventory(&postgres);
    assert!(found.contains("; facts owlpost: initialising"), "{found}");
    // The next attempt goes on from it.
    refused(at(&postgres).arg("init"), 8, &words);
    execute(&postgres, "SELECT pg_drop_replication_slot('other')");
    init(&postgres);
}

#[test]
fn a_slot_of_another_plugin_is_refused_and_left_alone() {
    let postgres = Postgres::builder().start();
    let slot = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
    execute(&postgres, &slot);
    refused(at(&postgres), 4, &[SLOT, "test_decoding", "REPLICATION_SLOT_NAME"]);
    assert_eq!(inventory(&postgres), format!("{SLOT} test_decoding; no publication"));
}

#[test]
fn a_publication_without_its_slot_is_refused_because_facts_are_missing() {
    let postgres = Postgres::builder().start();
    init(&postgres);
    execute(&postgres, &format!("SELECT pg_drop_replication_slot('{SLOT}')"));
    let before = inventory(&postgres);
    let words = ["publication facts is there, but slot factlib_slot is not", "owlpost init"];
    refused(at(&postgres), 4, &words);
    refused(at(&postgres).arg("init"), 4, &words);
    assert_eq!(inventory(&postgres), before, "nothing is made anew silently");
}

#[test]
fn a_running_relay_whose_slot_and_publication_disappear_makes_neither_anew() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let relay = relay("vanished", &postgres, kafka).spawn();
    relay.wait_ready();
    // So that it does not take the slot back before that is dropped.
    relay.signal(Signal::SIGSTOP);
    execute(
        &postgres,
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active",
    );
    relay.wait_until("the slot to be free", PATIENCE, || {
        postgres.ask("SELECT bool_or(active) FROM pg_replication_slots") == "f"
    });
    execute(&postgres, &format!("SELECT pg_drop_replication_slot('{SLOT}')"));
    execute(&postgres, "DROP PUBLICATION facts");
    relay.signal(Signal::SIGCONT);
    let status = relay.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(4), "{}", relay.log_text());
    assert!(relay.stderr().contains("have disappeared"), "{}", relay.stderr());
    assert_eq!(inventory(&postgres), "no slot; no publication");
}

#[test]
fn a_slot_without_its_publication_is_refused() {
    let postgres = Postgres::builder().start();
    init(&postgres);
    execute(&postgres, "DROP PUBLICATION facts");
    let words = ["slot factlib_slot is there, but publication facts is not", "owlpost init"];
    refused(at(&postgres), 6, &words);
    refused(at(&postgres).arg("init"), 6, &words);
    assert_eq!(inventory(&postgres), format!("{SLOT} pgoutput; no publication"));
}

#[test]
fn another_clusters_publication_is_refused() {
    let postgres = Postgres::builder().start();
    init(&postgres);
    let comment = "owlpost: slot factlib_slot, system 7, consistent point 0/1";
    execute(&postgres, &format!("COMMENT ON PUBLICATION facts IS '{comment}'"));
    let system = system(&postgres);
    let words = ["made for another cluster", "system 7", &system];
    refused(at(&postgres), 5, &words);
    refused(at(&postgres).arg("init"), 5, &words);
}

// ---- init ----

/// Symptom: it was told that slot and publication had disappeared, and to run `owlpost init`.
#[test]
fn an_empty_cluster_at_the_address_ends_a_running_relay_as_another_one_and_stays_empty() {
    let (postgres, other) = (Postgres::builder().start(), Postgres::builder().own_identifier());
    let other = other.start();
    let proxy = Proxy::to(&format!("127.0.0.1:{}", postgres.port()));
    let url = format!("postgres://postgres@{}/app", proxy.address());
    let relay = relay("swapped", &postgres, Kafka::shared()).env("MASTER_DATABASE_URL", url);
    let relay = relay.spawn();
    relay.wait_ready();
    proxy.lead_to(&format!("127.0.0.1:{}", other.port()));
    proxy.reset();
    let status = relay.wait_exit(PATIENCE);
    let (log, system) = (relay.log_text(), system(&other));
    assert_eq!(status.code(), Some(5), "{log}");
    assert!(log.contains(&format!("another cluster: its system id is {system}")), "{log}");
    assert_eq!(inventory(&other), inventory(&Postgres::builder().start()));
}

/// Runs `owlpost init`, which must succeed; what it prints.
#[track_caller]
fn init(postgres: &Postgres) -> String {
    let command = at(postgres).arg("init").env("LOG_LEVEL", "info").spawn();
    let status = command.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", command.log_text());
    let printed = command.stdout();
    assert_eq!(printed.lines().count(), 1, "{printed}");
    printed
}

/// The consistent point in what `init` printed.
#[track_caller]
fn consistent_point(printed: &str) -> Lsn {
    let (_, rest) = printed.split_once("consistent point ").unwrap_or_else(|| panic!("{printed}"));
    rest.split(':').next().unwrap().parse().unwrap()
}

fn finished(postgres: &Postgres, point: Lsn) -> String {
    let system = system(postgres);
    format!(
        "{SLOT} pgoutput; facts owlpost: slot {SLOT}, system {system}, prefixes orders, consistent point {point}"
    )
}

#[test]
fn init_prints_the_consistent_point_from_which_facts_are_published() {
    let postgres = Postgres::builder().start();
    let kafka = Kafka::shared();
    kafka.create_topic("orders.init", 1, &[]);
    let fact = |id: &str| {
        let json = format!(r#"{{"id":"{id}","aggregate_type":"init","aggregate_id":"1"}}"#);
        emit(&postgres, true, "orders", json.as_bytes())
    };
    let before = fact("before");
    let point = consistent_point(&init(&postgres));
    let after = fact("after");
    assert!(before < point && point < after, "{before} {point} {after}");
    assert_eq!(confirmed(&postgres), point);
    assert_eq!(inventory(&postgres), finished(&postgres, point));

    let relay = relay("orders", &postgres, kafka).spawn();
    wait_confirmed(&relay, &postgres, PATIENCE);
    let records = kafka.read_topic("orders.init");
    let ids: Vec<_> = records.iter().map(|record| record.header("event_id").unwrap()).collect();
    assert_eq!(ids, ["after"]);
}

#[test]
fn init_changes_nothing_the_second_time() {
    let postgres = Postgres::builder().start();
    let point = consistent_point(&init(&postgres));
    let again = init(&postgres);
    assert!(again.contains(&format!("were there already, confirmed up to {point}")), "{again}");
    assert_eq!(inventory(&postgres), finished(&postgres, point));
}

/// Symptom: a mistyped WAL_PREFIX confirmed everybody's facts past, and health said that all is well.
#[test]
fn a_prefix_that_is_left_out_is_refused_until_init_accepts_it() {
    let postgres = Postgres::builder().start();
    let point = consistent_point(&init(&postgres));
    let other = at(&postgres).env("WAL_PREFIX", "oders,billing");
    let words = ["set up for the prefix orders too", "WAL_PREFIX (oders,billing)", "owlpost init"];
    refused(other.clone(), 4, &words);
    assert_eq!(inventory(&postgres), finished(&postgres, point));
    assert_eq!(confirmed(&postgres), point, "nothing was read");

    // More than before is no loss, here until Kafka is missed.
    let more = at(&postgres).env("WAL_PREFIX", "orders,billing").env("LOG_LEVEL", "info").spawn();
    assert_eq!(more.wait_exit(PATIENCE).code(), Some(3), "{}", more.log_text());
    assert!(more.log_text().contains("new prefixes"), "{}", more.log_text());

    let accepted = other.arg("init").spawn();
    assert_eq!(accepted.wait_exit(PATIENCE).code(), Some(0), "{}", accepted.log_text());
    assert!(accepted.stdout().contains("for the prefixes oders, billing"), "{}", accepted.stdout());
    let now = finished(&postgres, point).replace("prefixes orders", "prefixes oders billing");
    assert_eq!(inventory(&postgres), now);
    refused(at(&postgres), 4, &["set up for the prefix oders, billing too"]);
}

#[test]
fn an_init_that_was_interrupted_before_the_slot_resumes() {
    let postgres = Postgres::builder().start();
    interrupted(&postgres);
    let point = consistent_point(&init(&postgres));
    assert_eq!(confirmed(&postgres), point);
    assert_eq!(inventory(&postgres), finished(&postgres, point));
}

#[test]
fn an_init_that_was_interrupted_after_the_slot_resumes() {
    let postgres = Postgres::builder().start();
    interrupted(&postgres);
    execute(&postgres, &format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"));
    let slot = confirmed(&postgres);
    let point = consistent_point(&init(&postgres));
    assert_eq!(point, slot, "the slot is not made anew");
    assert_eq!(inventory(&postgres), finished(&postgres, point));
}

#[test]
fn an_init_beside_another_that_still_waits_does_not_claim_to_be_ready() {
    let postgres = Postgres::builder().start();
    let mut open = postgres.client();
    let mut transaction = open.transaction().unwrap();
    transaction.execute("SELECT pg_current_xact_id()", &[]).unwrap();
    let waiting = at(&postgres).arg("init").spawn();
    waiting.wait_until("the slot to be begun", PATIENCE, || {
        postgres.ask("SELECT count(*) FROM pg_replication_slots") == "1"
    });
    refused(at(&postgres).arg("init"), 3, &[SLOT, "is being made by another session"]);
    transaction.commit().unwrap();
    assert_eq!(waiting.wait_exit(PATIENCE).code(), Some(0), "{}", waiting.log_text());
    let point = consistent_point(&waiting.stdout());
    assert_eq!(inventory(&postgres), finished(&postgres, point));
}

#[test]
fn a_misspelt_slot_is_not_answered_with_dropping_the_publication_of_another() {
    let postgres = Postgres::builder().start();
    init(&postgres);
    let misspelt = at(&postgres).env("REPLICATION_SLOT_NAME", "other");
    let sentence = refusal(misspelt, 4);
    assert!(sentence.contains("belongs to slot factlib_slot"), "{sentence}");
    assert!(!sentence.contains("drop"), "{sentence}");
}

/// A server that takes one connection after another and does this with each.
fn impostor(each: impl Fn(std::net::TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().flatten().for_each(each));
    port
}

#[test]
fn a_host_that_is_still_starting_does_not_hide_the_next_one() {
    use std::io::{Read as _, Write as _};
    let starting = impostor(|mut stream| {
        let mut startup = [0; 1024];
        let _ = stream.read(&mut startup);
        let mut body = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0".to_vec();
        let mut frame = vec![b'E'];
        frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        frame.append(&mut body);
        let _ = stream.write_all(&frame);
    });
    let postgres = Postgres::builder().start();
    let hosts = format!("127.0.0.1:{starting},127.0.0.1:{}", postgres.port());
    let url = format!("postgres://postgres@{hosts}/app?sslmode=disable");
    let command = at(&postgres).arg("init").env("MASTER_DATABASE_URL", url).spawn();
    assert_eq!(command.wait_exit(PATIENCE).code(), Some(0), "{}", command.log_text());
}

#[test]
fn a_server_that_lets_us_in_and_falls_silent_is_given_up() {
    use std::io::{Read as _, Write as _};
    let silent = impostor(|mut stream| {
        let mut bytes = [0; 1024];
        let _ = stream.read(&mut bytes);
        // AuthenticationOk and ReadyForQuery; then it reads and says nothing.
        let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
        while stream.read(&mut bytes).is_ok_and(|read| read > 0) {}
    });
    let url = format!("postgres://postgres@127.0.0.1:{silent}/app?sslmode=disable");
    refused(homeless().env("MASTER_DATABASE_URL", url).arg("init"), 3, &["has not answered since"]);
}

/// As far as an `init` gets before it makes the slot.
fn interrupted(postgres: &Postgres) {
    let comment = format!("owlpost: initialising, system {}", system(postgres));
    execute(postgres, "CREATE PUBLICATION facts");
    execute(postgres, &format!("COMMENT ON PUBLICATION facts IS '{comment}'"));
}

#[test]
fn help_tells_a_person_what_to_set_what_to_type_and_what_the_exit_codes_mean() {
    let relay = Owlpost::command(binary()).arg("--help").spawn();
    assert_eq!(relay.wait_exit(PATIENCE).code(), Some(0));
    assert_eq!(relay.stderr(), "");
    let help = relay.stdout();
    for part in ["Usage: owlpost", "Examples:", "Exit codes:", "MASTER_DATABASE_URL", "init"] {
        assert!(help.contains(part), "{part} in {help}");
    }
    for code in factlib::exit::ExitCode::ALL {
        let line = format!("  {}  {}", code.number(), code.meaning());
        assert!(help.lines().any(|l| l == line), "{line} in {help}");
    }
    let short = Owlpost::command(binary()).arg("-h").spawn();
    assert_eq!(short.wait_exit(PATIENCE).code(), Some(0));
    assert!(short.stdout().lines().all(|line| line.len() <= 120), "{}", short.stdout());
}
