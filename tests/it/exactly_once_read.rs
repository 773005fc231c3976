//! What owlpost's own commands see of topics with `DELIVERY=exactly-once`: what is committed, and nothing else.

use crate::commands::Shell;
use crate::committed::{all_committed, is_open};
use crate::exactly_once::{command, groups, id, judge, position, wait_free};
use crate::support::{PATIENCE, SLOT, confirmed, count, emit, stop, wait_confirmed};
use crate::transactions::Cluster;
use testkit::workload::Workload;
use testkit::{Kafka, Owlpost, Postgres, owlpost, port, wait};

/// Transactions that are open for long enough to be caught, and expire soon.
fn slow(prefix: &str, postgres: &Postgres, kafka: &Kafka) -> owlpost::Command {
    command(prefix, postgres, kafka)
        .env("TRANSACTION_INTERVAL", "9s")
        .env("TRANSACTION_TIMEOUT", "20s")
}

fn fact(id: &str) -> Vec<u8> {
    format!(r#"{{"id":"{id}","aggregate_type":"order","aggregate_id":"{id}"}}"#).into_bytes()
}

/// Has a fact produced in a transaction that nobody ends.
#[track_caller]
fn leave_open(
    slow: owlpost::Command,
    prefix: &str,
    content: &[u8],
    topic: &str,
    postgres: &Postgres,
    kafka: &Kafka,
) {
    let doomed = slow.spawn();
    doomed.wait_ready();
    let before = count(kafka, topic);
    emit(postgres, true, prefix, content);
    doomed.wait_until("it to be stored", PATIENCE, || count(kafka, topic) > before);
    doomed.kill9();
    wait_free(postgres);
    assert!(is_open(kafka, topic), "it was committed: {}", doomed.log_text());
}

fn audit(command: &owlpost::Command) -> (Option<i32>, String) {
    let audit = command.clone().arg("audit").spawn();
    let status = audit.wait_exit(2 * PATIENCE);
    (status.code(), audit.log_text())
}

#[test]
fn an_audit_does_not_count_what_was_aborted() {
    let (prefix, topic) = ("eo-audit", "eo-audit.order");
    let (postgres, kafka) = (Postgres::builder().start(), &Cluster::New.start());
    kafka.create_topic(topic, 1, &[]);
    let command = command(prefix, &postgres, kafka);
    let slow = slow(prefix, &postgres, kafka);
    let init = command.clone().arg("init").arg("--audit").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());

    // It is there twice: aborted, and in the next transaction.
    leave_open(slow.clone(), prefix, &fact("again"), topic, &postgres, kafka);
    let relay = command.clone().spawn();
    wait_confirmed(&relay, &postgres, PATIENCE);
    let (code, said) = audit(&command);
    assert!(said.contains(": 1 facts: 0 missing, 0 repeated, 0 out of order, 0 unknown"), "{said}");
    assert_eq!(code, Some(0), "{said}");
    stop(&relay);
    assert_eq!(kafka.read_topic_by_java(topic).len(), 2);
    judge_ids(kafka, topic, &["again"]);
    // What benchmarks read with sees the same.
    assert_eq!(kafka.read_topic(topic), kafka.read_topic_by_java(topic));
    assert_eq!(kafka.read_committed(topic), all_committed(kafka, topic));

    // It is there, but aborted, and somebody moves the slot past it.
    leave_open(slow.clone(), prefix, &fact("lost"), topic, &postgres, kafka);
    let advance = format!("SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())");
    postgres.client().batch_execute(&advance).unwrap();
    // While the transaction is open, nothing can be said of it: its end is waited for.
    let (code, said) = audit(&slow);
    assert_eq!(code, Some(10), "{said}");
    assert!(said.contains(": 1 facts: 1 missing, 0 repeated"), "{said}");
    assert!(said.contains(" in eo-audit.order"), "{said}");
}

/// The ids that a consumer of committed records sees.
#[track_caller]
fn judge_ids(kafka: &Kafka, topic: &str, ids: &[&str]) {
    let records = all_committed(kafka, topic);
    let seen: Vec<_> = records.iter().map(|it| it.header("event_id").unwrap()).collect();
    assert_eq!(seen, ids);
}

#[test]
fn a_canary_is_seen_once_it_is_committed() {
    let prefix = "eo-canary";
    let (postgres, kafka) = (Postgres::builder().start(), &Cluster::New.start());
    kafka.create_topic("eo-canary.owlpost_canary", 3, &[]);
    let interval = "1s";
    let command = command(prefix, &postgres, kafka)
        .env("TRANSACTION_INTERVAL", interval)
        .env("WAL_HEALTH_PORT", port::free());
    let running: Owlpost = command.clone().spawn();
    running.wait_ready();
    let check = command.arg("check").arg("--canary").arg("--json").spawn();
    let code = check.wait_exit(2 * PATIENCE).code();
    let said = check.stdout();
    assert_eq!(code, Some(0), "{said}");
    let canary = said.lines().find(|line| line.contains(r#""canary""#)).unwrap();
    let canary: serde_json::Value = serde_json::from_str(canary).unwrap();
    let seen = canary["seen"].as_str().unwrap();
    let (_, after) = seen.split_once(" is in Kafka after ").unwrap_or_else(|| panic!("{said}"));
    let (ms, _) = after.split_once(" ms").unwrap();
    assert!(ms.parse::<u64>().unwrap() >= 900, "seen before it was committed: {said}");
    stop(&running);
}

#[test]
fn a_dead_letter_goes_back_once_though_it_was_aborted_before() {
    let (prefix, dead) = ("eo-dead", "eo-dead.dead");
    let (postgres, kafka) = (Postgres::builder().start(), &Cluster::New.start());
    for topic in ["eo-dead.order", dead] {
        kafka.create_topic(topic, 1, &[]);
    }
    let policies = |command: owlpost::Command| {
        command.env("POISON_POLICY", "dead-letter").env("DEAD_LETTER_TOPIC", dead)
    };
    let letter = |id: &str| {
        format!(r#"{{"id":"{id}","aggregate_type":"missing","aggregate_id":"k"}}"#).into_bytes()
    };
    let slow = policies(slow(prefix, &postgres, kafka));
    leave_open(slow, prefix, &letter("1"), dead, &postgres, kafka);
    let relay = policies(command(prefix, &postgres, kafka)).spawn();
    wait_confirmed(&relay, &postgres, PATIENCE);
    // Each in a transaction of its own, with a marker behind it.
    for id in ["2", "3"] {
        emit(&postgres, true, prefix, &letter(id));
        wait_confirmed(&relay, &postgres, PATIENCE);
    }
    stop(&relay);
    assert_eq!(kafka.read_topic_by_java(dead).len(), 4);
    kafka.create_topic("eo-dead.missing", 1, &[]);
    let shell = Shell::empty()
        .env("KAFKA_BROKERS", &kafka.bootstrap())
        .env("DEAD_LETTER_TOPIC", dead)
        .env("DELIVERY", "exactly-once");
    let said = shell.run("owlpost redrive --yes").ended(0);
    assert!(said.out.contains("3 dead letters were redriven, 0 are left"), "{said:?}");
    judge_ids(kafka, "eo-dead.missing", &["1", "2", "3"]);
    // All is seen to, also what is no letter: nothing is left to be remembered, or to be looked at again.
    let groups = groups(kafka, &["--describe", "--group", "owlpost-redrive"]);
    let row: Vec<_> = groups.lines().last().unwrap().split_whitespace().collect();
    assert_eq!((row[1], row[3], row[5]), (dead, row[4], "0"), "{groups}");
    let said = shell.run("owlpost redrive --yes").ended(0);
    assert!(said.out.contains("0 dead letters were redriven, 0 are left"), "{said:?}");
}

const STATUS: &str = "owlpost status --sample 10ms";

/// What `status` says of transactions and position as JSON.
#[track_caller]
fn stated(shell: &Shell) -> serde_json::Value {
    shell.run(&format!("{STATUS} --json")).ended(0).json()["exactly_once"].clone()
}

fn a_status_beside_a_relay_that_runs_and_dies(cluster: Cluster, prefix: &str) {
    let (postgres, kafka) = (Postgres::builder().start(), &cluster.start());
    let topic = format!("{prefix}.order");
    kafka.create_topic(&topic, 2, &[]);
    let shell = Shell::new(prefix, &postgres, kafka).env("DELIVERY", "exactly-once");
    let said = shell.run(STATUS).ended(4);
    assert!(said.out.contains("factlib_slot IS MISSING"), "{said:?}");
    assert!(said.out.contains("unknown to Kafka, so no relay has begun with it"), "{said:?}");
    assert!(
        said.out.contains("Kafka keeps none: a relay begins where the slot stands"),
        "{said:?}"
    );

    let doomed = slow(prefix, &postgres, kafka).spawn();
    doomed.wait_ready();
    // A first position, of nothing but what was read.
    wait_confirmed(&doomed, &postgres, PATIENCE);
    let before = count(kafka, &topic);
    emit(&postgres, true, prefix, &fact("one"));
    doomed.wait_until("it to be stored", PATIENCE, || count(kafka, &topic) > before);
    let said = stated(&shell);
    let (transaction, kept) = (&said["transaction"], &said["position"]);
    assert_eq!(said["transactional_id"], id(&postgres), "{said}");
    assert_eq!(
        (&transaction["state"], &transaction["timeout_seconds"]),
        (&"Ongoing".into(), &20.0.into())
    );
    let open = transaction["open_seconds"].as_f64().unwrap();
    assert!((0.0..PATIENCE.as_secs_f64()).contains(&open), "{said}");
    assert!(transaction["producer_id"].as_i64().is_some_and(|id| id >= 0), "{said}");
    let partitions = transaction["partitions"].as_array().unwrap();
    assert!(partitions.iter().any(|it| it["topic"] == *topic), "{said}");
    assert_eq!((&kept["gap_bytes"], &kept["is_settled"]), (&().into(), &true.into()), "{said}");
    assert!(kept["bytes_ahead"].as_i64().is_some_and(|bytes| bytes >= 0), "{said}");
    let said = shell.run(STATUS).ended(0);
    for words in
        [format!("{}: Ongoing for ", id(&postgres)), ", time-out 20s, producer ".to_owned()]
    {
        assert!(said.out.contains(&words), "{words}: {said:?}");
    }
    assert!(!said.out.contains("WAITING") && !said.out.contains("GAP"), "{said:?}");

    // Whoever looks knows whom consumers wait for.
    doomed.kill9();
    wait_free(&postgres);
    let said = shell.run(STATUS).ended(0);
    assert!(said.out.contains("WAITING       no relay has the slot"), "{said:?}");

    let relay = command(prefix, &postgres, kafka).spawn();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let said = stated(&shell);
    assert_eq!(said["transaction"]["open_seconds"], serde_json::Value::Null, "{said}");
    assert_eq!(said["position"]["lsn"], position(&postgres, kafka).to_string());
    assert_eq!(said["position"]["bytes_ahead"], 0, "{said}");
    let last = said["position"]["fact"].as_str().unwrap();
    assert_eq!(all_committed(kafka, &topic)[0].header("factlib_position"), Some(last));
    let said = shell.run(STATUS).ended(0);
    assert!(said.out.contains(", where the slot stands"), "{said:?}");
    judge_ids(kafka, &topic, &["one"]);
}

#[test]
fn a_status_says_how_transactions_stand_and_the_position_beside_the_slot() {
    a_status_beside_a_relay_that_runs_and_dies(Cluster::New, "eo-stated-new");
}

#[test]
fn a_status_says_how_transactions_stand_in_the_older_protocol() {
    a_status_beside_a_relay_that_runs_and_dies(Cluster::Old, "eo-stated-old");
}

#[test]
fn a_status_says_where_the_slot_is_ahead_of_the_position_and_what_kafka_does_not_say() {
    let prefix = "eo-ahead";
    let (postgres, kafka) = (Postgres::builder().start(), &Cluster::New.start());
    kafka.create_topic("eo-ahead.order", 1, &[]);
    let relay = command(prefix, &postgres, kafka).spawn();
    relay.wait_ready();
    emit(&postgres, true, prefix, &fact("one"));
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);

    let shell = Shell::new(prefix, &postgres, kafka).env("DELIVERY", "exactly-once");
    let said = shell.clone().without("KAFKA_BROKERS").run(STATUS).ended(0);
    assert_eq!(said.out.matches("not told (KAFKA_BROKERS is not set)").count(), 2, "{said:?}");
    let nobody = format!("127.0.0.1:{}", port::free());
    let nobody = shell.clone().env("KAFKA_BROKERS", &nobody);
    let said = nobody.run(STATUS).ended(3);
    assert!(said.out.contains("not told (127.0.0.1:"), "{said:?}");
    assert!(said.out.contains("factlib_slot, not in use"), "{said:?}");
    let said = nobody.run(&format!("{STATUS} --json")).ended(3).json();
    assert!(said["exactly_once"]["position_not_told"].is_string(), "{said}");
    // Who delivers at least once is told what he was before.
    let other = shell.clone().without("DELIVERY");
    let said = other.run(&format!("{STATUS} --json")).ended(0).json();
    assert!(said.get("exactly_once").is_none(), "{said}");
    assert!(!other.run(STATUS).ended(0).out.contains("transactions"));
    let watch = format!("timeout --preserve-status --signal=INT 2 {STATUS} --watch 100ms --json");
    let said = shell.run(&watch).ended(0);
    assert!(said.out.lines().count() > 2, "{said:?}");
    for line in said.out.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["exactly_once"]["position"]["bytes_ahead"], 0, "{line}");
    }

    emit(&postgres, true, prefix, &fact("lost"));
    let advance = format!("SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())");
    postgres.client().batch_execute(&advance).unwrap();
    let gap = confirmed(&postgres).0 - position(&postgres, kafka).0;
    let said = shell.run(&format!("{STATUS} --json")).ended(4).json();
    assert_eq!(said["exactly_once"]["position"]["gap_bytes"], gap, "{said}");
    let said = shell.run(STATUS).ended(4);
    let size = bytesize::ByteSize(gap);
    let words = format!("GAP           the slot is {size} beyond the position");
    assert!(said.out.contains(&words), "{words}: {said:?}");
    assert!(said.out.contains(&format!("--delete --group {}", id(&postgres))), "{said:?}");
    // As the relay has it.
    let refused = command(prefix, &postgres, kafka).spawn();
    assert_eq!(refused.wait_exit(PATIENCE).code(), Some(4), "{}", refused.log_text());
}

#[test]
fn a_role_that_may_not_know_the_cluster_is_told_what_it_lacks() {
    let (postgres, kafka) = (Postgres::builder().start(), &Cluster::New.start());
    let init = command("eo-role", &postgres, kafka).arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
    postgres
        .client()
        .batch_execute(
            "CREATE ROLE looker LOGIN; CREATE ROLE reader LOGIN REPLICATION;
             REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
        )
        .unwrap();
    let url = |role: &str| postgres.url().replace("postgres@", &format!("{role}@"));
    let shell = Shell::new("eo-role", &postgres, kafka).env("DELIVERY", "exactly-once");
    let said = shell.clone().env("MASTER_DATABASE_URL", &url("looker")).run(STATUS).ended(0);
    assert!(said.out.contains("grant it EXECUTE on pg_control_system()"), "{said:?}");
    assert!(said.out.contains("factlib_slot, not in use"), "{said:?}");
    let reader = shell.env("MASTER_DATABASE_URL", &url("reader"));
    wait::until("a walsender to be free", PATIENCE, || {
        stated(&reader)["transactional_id"] == id(&postgres)
    });
}

#[test]
fn init_makes_the_topic_of_the_position_as_run_does() {
    let (postgres, kafka) = (Postgres::builder().start(), &Kafka::builder().start());
    let shell = Shell::new("eo-init", &postgres, kafka).env("DELIVERY", "exactly-once");
    // Who makes the slot need not reach Kafka.
    let said = shell.clone().without("KAFKA_BROKERS").run("owlpost init").ended(0);
    assert!(said.err.contains("topic owlpost.position was not looked for"), "{said:?}");
    let nobody = format!("127.0.0.1:{}", port::free());
    let said = shell.clone().env("KAFKA_BROKERS", &nobody).run("owlpost init").ended(3);
    assert!(said.out.contains("slot factlib_slot and publication"), "{said:?}");
    assert!(said.err.contains("topic owlpost.position, for the position of the relay"), "{said:?}");
    assert!(kafka.topics().is_empty());

    let said = shell.run("owlpost init").ended(0);
    let created = "topic owlpost.position was created, for the position of the relay";
    assert!(said.out.contains(created), "{said:?}");
    assert_eq!(kafka.leaders("owlpost.position").len(), 1);
    let said = shell.run("owlpost init --json").ended(0);
    let line: serde_json::Value = serde_json::from_str(said.out.lines().last().unwrap()).unwrap();
    assert_eq!(line, serde_json::json!({ "position_topic": "owlpost.position", "created": false }));
    let named = shell.clone().env("POSITION_TOPIC", "elsewhere");
    named.run("owlpost init").ended(0);
    assert_eq!(kafka.topics(), ["elsewhere", "owlpost.position"]);

    kafka.create_topic("eo-init.order", 1, &[]);
    let relay = command("eo-init", &postgres, kafka).spawn();
    relay.wait_ready();
    Workload::new("eo-init", 1).write_transaction(&mut postgres.client(), 10, 1);
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    judge("eo-init", &postgres, kafka);
}
