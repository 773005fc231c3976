//! `owlpost check` on servers that are as they should be, or wrong in several ways at once; and its canary.

use crate::support::{PATIENCE, count, relay, stop, wait_confirmed};
use std::process::ExitStatus;
use testkit::{Kafka, Owlpost, Postgres, owlpost, port};

/// How it ended, and what it printed.
#[track_caller]
fn check(command: &owlpost::Command, arguments: &[&str]) -> (ExitStatus, String) {
    let command = command.clone().arg("check");
    let check = arguments.iter().fold(command, |command, argument| command.arg(argument)).spawn();
    let status = check.wait_exit(PATIENCE);
    assert_eq!(check.stderr(), "", "on standard error");
    (status, check.stdout())
}

/// The lines with this verdict, without it.
fn lines<'a>(said: &'a str, verdict: &str) -> Vec<&'a str> {
    let lines = said.lines().filter_map(|line| line.strip_prefix(verdict));
    lines.filter(|rest| rest.starts_with("  ")).map(str::trim).collect()
}

/// Everything there is that a relay could have made.
fn inventory(postgres: &Postgres) -> String {
    postgres.ask(
        "SELECT format('%s %s',
            (SELECT json_agg(s ORDER BY slot_name) FROM (SELECT slot_name, confirmed_flush_lsn
                FROM pg_replication_slots) s),
            (SELECT json_agg((pubname, obj_description(oid, 'pg_publication'))) FROM pg_publication))",
    )
}

#[test]
fn a_sound_set_up_passes_before_the_first_start_and_beside_a_relay_and_stays_as_it_is() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().brokers(3).start());
    let settings = [("min.insync.replicas", "2"), ("unclean.leader.election.enable", "false")];
    kafka.create_topic("sound.order", 4, &settings);
    kafka.wait_in_sync("sound.order");
    let command = relay("sound", &postgres, &kafka).env("WAL_HEALTH_PORT", port::free());

    let before = inventory(&postgres);
    let (status, said) = check(&command, &[]);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(lines(&said, "failure").is_empty(), "{said}");
    assert!(said.contains("neither slot factlib_slot nor publication facts is there"), "{said}");
    let lines_of = |name: &str| {
        let lines = lines(&said, "ok     ").into_iter();
        let of_it = lines.filter_map(|line| line.strip_prefix(name)).map(str::trim);
        of_it.collect::<Vec<_>>()
    };
    let topic = "4 partitions, 3 replicas, min.insync.replicas 2";
    assert_eq!(lines_of("topic sound.order"), [topic], "{said}");
    let timeouts = "wal_sender_timeout 9s in the relay's session, and no other";
    assert_eq!(lines_of("timeouts"), [timeouts], "{said}");
    assert!(!said.contains('\x1b'), "colours in a file: {said}");
    let summary = said.lines().last().unwrap();
    assert!(summary.ends_with(" ok, 0 warnings, 0 failures"), "{said}");
    assert_eq!(inventory(&postgres), before);
    assert_eq!(kafka.topics(), ["sound.order"]);

    let running = command.clone().spawn();
    running.wait_ready();
    wait_confirmed(&running, &postgres, PATIENCE);
    let (status, said) = check(&command, &["--json"]);
    assert_eq!(status.code(), Some(0), "{said}");
    let found: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(found.iter().all(|check| check["verdict"] == "ok"), "{said}");
    let seen = |name: &str| {
        let check = found.iter().find(|check| check["name"] == name);
        check.and_then(|check| check["seen"].as_str()).unwrap_or_default()
    };
    assert!(seen("health port").ends_with(": streaming"), "{said}");
    assert!(seen("reader of the slot").starts_with("the relay here reads slot"), "{said}");
    assert!(seen("slot and publication").contains("confirmed up to 0/"), "{said}");
    stop(&running);
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let postgres = Postgres::builder()
        .setting("wal_level", "replica")
        .setting("synchronous_standby_names", "*")
        .setting("synchronous_commit", "local")
        .start();
    let kafka = Kafka::shared();
    let command = relay("wrongs", &postgres, kafka)
        .env("POISON_POLICY", "dead-letter")
        .env("DEAD_LETTER_TOPIC", "wrongs.dead");
    let (status, said) = check(&command, &[]);
    assert_eq!(status.code(), Some(11), "{said}");
    let failures = lines(&said, "failure");
    for name in ["wal_level", "synchronous_standby_names", "topic wrongs.dead"] {
        assert!(failures.iter().any(|line| line.starts_with(name)), "{name} in {said}");
    }
    assert!(
        lines(&said, "warning").iter().any(|line| line.starts_with("topics wrongs.*")),
        "{said}"
    );
    let unreached = command.env("KAFKA_BROKERS", format!("127.0.0.1:{}", port::free()));
    let (status, said) = check(&unreached, &[]);
    assert_eq!(status.code(), Some(11), "{said}");
    assert_eq!(lines(&said, "failure").len(), 3, "{said}");
}

#[test]
fn transactions_are_tried_and_each_right_that_is_missing_is_named() {
    const PASSWORD: &str = "secret";
    let postgres = Postgres::builder().start();
    let plain = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required user_guest=\"{PASSWORD}\";"
    );
    let kafka = Kafka::builder()
        .listener("LOGIN", "SASL_PLAINTEXT")
        .setting("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
        .setting("super.users", "User:ANONYMOUS")
        .setting("listener.name.login.sasl.enabled.mechanisms", "PLAIN")
        .setting("listener.name.login.plain.sasl.jaas.config", &plain)
        .start();
    let allow = |resource: &str, name: &str, operation: &str| {
        let brokers = kafka.bootstrap();
        let guest = ["--allow-principal", "User:guest", "--operation", operation];
        let of = [resource, name, "--resource-pattern-type", "prefixed"];
        let command = ["--bootstrap-server", &brokers, "--add"];
        let arguments = [&command[..], &guest, &of].concat();
        kafka.java("org.apache.kafka.tools.AclCommand", &arguments);
    };
    kafka.create_topic("rights.order", 1, &[]);
    let command = relay("rights", &postgres, &kafka).env("DELIVERY", "exactly-once");
    let about = |said: &str, verdict: &str, name: &str| {
        let lines = lines(said, verdict).into_iter();
        lines.filter_map(|line| line.strip_prefix(name)).map(str::trim).collect::<String>()
    };

    // Who may do everything: before the topic is there, and once it is.
    let (status, said) = check(&command, &[]);
    assert_eq!(status.code(), Some(0), "{said}");
    let topic = about(&said, "ok     ", "topic owlpost.position");
    assert_eq!(topic, "not there yet, and may be created", "{said}");
    assert!(said.contains(" keeps no position; one was begun and aborted in "), "{said}");
    kafka.create_topic("owlpost.position", 1, &[]);
    let (_, said) = check(&command, &[]);
    let topic = about(&said, "ok     ", "topic owlpost.position");
    assert_eq!(topic, "is there for the position, and stays empty", "{said}");
    assert!(said.contains(" keeps no position; one was begun and aborted in "), "{said}");
    let groups = kafka.java(
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        &["--bootstrap-server", &kafka.bootstrap(), "--list"],
    );
    let system = postgres.ask("SELECT system_identifier FROM pg_control_system()");
    let id = format!("owlpost-{system}-");
    let groups = String::from_utf8_lossy(&groups.stdout).into_owned();
    assert!(!groups.lines().any(|group| group.starts_with(&id) && !group.ends_with("-check")));

    let guest = command
        .env("KAFKA_BROKERS", kafka.bootstrap_of("LOGIN", "127.0.0.1"))
        .env("KAFKA_USERNAME", "guest")
        .env("KAFKA_PASSWORD", PASSWORD)
        .env("KAFKA_SASL_MECHANISM", "PLAIN");
    allow("--topic", "rights", "Write");
    allow("--topic", "owlpost.position", "Describe");
    let said = || check(&guest, &[]).1;
    let (now, transactions) = (said(), "transactions");
    let topic = about(&now, "failure", "topic owlpost.position");
    assert!(topic.ends_with("; allow it READ"), "{now}");
    let words = about(&now, "failure", transactions);
    assert!(words.contains("may not describe transactional ids with the prefix owlpost-"), "{now}");
    allow("--topic", "owlpost.position", "Read");
    allow("--transactional-id", &id, "Describe");
    let now = said();
    let words = about(&now, "failure", transactions);
    assert!(words.contains("may not describe groups with the prefix owlpost-"), "{now}");
    allow("--group", &id, "Describe");
    let now = said();
    let words = about(&now, "warning", transactions);
    assert!(words.starts_with("this client may not write with the transactional id"), "{now}");
    allow("--transactional-id", &id, "Write");
    let now = said();
    let words = about(&now, "warning", transactions);
    assert!(words.starts_with("this client may not read group"), "{now}");
    allow("--group", &id, "Read");
    let (status, now) = check(&guest, &[]);
    assert!(about(&now, "ok     ", transactions).contains("begun and aborted"), "{now}");
    assert_eq!(status.code(), Some(0), "{now}");
}

#[test]
fn each_of_several_hosts_is_looked_at() {
    let primary = Postgres::builder().start();
    let standby = primary.standby();
    let nobody = port::free();
    let hosts =
        format!("127.0.0.1:{},127.0.0.1:{},127.0.0.1:{nobody}", standby.port(), primary.port());
    let command = relay("hosts", &primary, Kafka::shared())
        .env("MASTER_DATABASE_URL", format!("postgres://postgres@{hosts}/app"));
    let (status, said) = check(&command, &[]);
    assert_eq!(status.code(), Some(0), "{said}");
    let has = |verdict: &str, port: u16, words: &str| {
        let name = format!("host 127.0.0.1:{port}");
        let found = lines(&said, verdict)
            .iter()
            .any(|line| line.starts_with(&name) && line.contains(words));
        assert!(found, "{name} {words} in {said}");
    };
    has("ok     ", primary.port(), "a primary");
    has("warning", standby.port(), "a standby without the slot");
    has("warning", nobody, "cannot connect to PostgreSQL");
}

#[test]
fn a_canary_goes_through_the_log_the_relay_and_kafka() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("mine.owlpost_canary", 3, &[]);
    kafka.create_topic("mine.bird", 1, &[]);
    let command = relay("mine", &postgres, kafka).env("WAL_HEALTH_PORT", port::free());
    let arrived = |said: &str| {
        let line = lines(said, "ok     ").into_iter().find(|line| line.starts_with("canary"));
        line.is_some_and(|line| line.contains(" is in Kafka after "))
    };

    let (status, said) = check(&command, &["--canary"]);
    assert_eq!(status.code(), Some(11), "{said}");
    assert!(said.contains("no relay reads slot factlib_slot; start one"), "{said}");

    let running: Owlpost = command.clone().spawn();
    running.wait_ready();
    for seen in 1..=2 {
        let (status, said) = check(&command, &["--canary"]);
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(arrived(&said), "{said}");
        assert_eq!(count(kafka, "mine.owlpost_canary"), seen);
    }
    let (status, said) = check(&command, &["--canary=bird"]);
    assert_eq!((status.code(), arrived(&said)), (Some(0), true), "{said}");
    assert_eq!(count(kafka, "mine.bird"), 1);

    // It would halt the relay.
    let (status, said) = check(&command, &["--canary=fish"]);
    assert_eq!(status.code(), Some(11), "{said}");
    assert!(said.contains("not emitted, because topic mine.fish does not take it"), "{said}");
    wait_confirmed(&running, &postgres, PATIENCE);
    assert!(running.is_ready());
    stop(&running);
}
