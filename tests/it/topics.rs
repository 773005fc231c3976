//! What operators do to topics while facts flow.

use crate::support::{PATIENCE, count, emit, relay, stop, truth, wait_confirmed, wait_state};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;
use testkit::checker::Checker;
use testkit::proxy::Way;
use testkit::workload::{Truth, Workload};
use testkit::{Kafka, Owlpost, Postgres, Record, java_partitions};

fn load(prefix: &str) -> Workload {
    Workload { facts: 10_000_000, aggregates: 200, writers: 2, ..Workload::new(prefix, 1) }
}

#[track_caller]
fn wait_flowing(relay: &Owlpost, kafka: &Kafka, topic: &str) {
    let before = count(kafka, topic);
    relay.wait_until("facts to flow", PATIENCE, || count(kafka, topic) > before + 300);
}

fn position(record: &Record) -> &str {
    record.header("factlib_position").unwrap()
}

#[test]
fn when_a_topic_grows_no_key_moves_before_what_it_had_is_stored() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let workload = load("drained");
    // The broker says when it stored what.
    kafka.create_topic("drained.order", 2, &[("message.timestamp.type", "LogAppendTime")]);
    let relay = relay("drained", &postgres, kafka).env("METADATA_MAX_AGE", "200ms").spawn();
    relay.wait_ready();
    let load = workload.start(&postgres);
    wait_flowing(&relay, kafka, "drained.order");
    kafka.grow_topic("drained.order", 5);
    relay.wait_until("the new partitions to be used", PATIENCE, || {
        kafka.end_offsets("drained.order").values().filter(|end| **end > 100).count() == 5
    });
    load.stop();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);

    let keys = workload.keys();
    let homes = |partitions| -> HashMap<Vec<u8>, i32> {
        let homes = java_partitions(&keys, partitions);
        keys.iter().map(|key| key.clone().into_bytes()).zip(homes).collect()
    };
    let (before, after) = (homes(2), homes(5));
    let home = |homes: &HashMap<Vec<u8>, i32>, record: &Record| homes[record.key.as_ref().unwrap()];
    let mut records = kafka.read_topic("drained.order");
    for pair in records.windows(2) {
        let same = pair[0].partition == pair[1].partition;
        assert!(!same || position(&pair[0]) < position(&pair[1]), "{pair:?}");
    }
    records.sort_by(|a, b| position(a).cmp(position(b)));
    let moves = |record: &Record| home(&before, record) != home(&after, record);
    let moved = |record: &Record| record.partition != home(&before, record);
    let switch = records.iter().position(moved).expect("a key has moved");

    // On each side of it every fact is where Java puts it, once, in order.
    let (old, new) = records.split_at(switch);
    let ids: HashSet<&str> = old.iter().filter_map(|record| record.header("event_id")).collect();
    let (old_truth, new_truth): (Vec<Truth>, Vec<Truth>) =
        truth(&postgres).into_iter().partition(|fact| ids.contains(fact.fact_id.as_str()));
    for (truth, records, partitions) in [(old_truth, old, 2), (new_truth, new, 5)] {
        let homes = java_partitions(&keys, partitions);
        Checker::new(&truth).partitions(&keys, &homes).check(records).assert_clean();
    }
    // Those that lie between the switch and the first key that moved are not known from others.
    let last = old.iter().filter(|record| moves(record)).map(|record| record.timestamp_ms).max();
    let first = new.iter().filter(|record| moves(record)).map(|record| record.timestamp_ms).min();
    assert!(last.is_some() && last <= first, "{last:?} is behind {first:?}");
}

#[test]
fn a_topic_that_is_made_anew_at_once_gets_all_that_follows_once_and_in_order() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("anew.order", 2, &[]);
    let relay = relay("anew", &postgres, kafka).spawn();
    relay.wait_ready();
    let load = load("anew").start(&postgres);
    for _ in 0..3 {
        wait_flowing(&relay, kafka, "anew.order");
        kafka.delete_topic("anew.order");
        kafka.create_topic("anew.order", 2, &[]);
    }
    wait_flowing(&relay, kafka, "anew.order");
    load.stop();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);

    // What was stored before went with the topics. From its first fact here on, a key has them all.
    let truth = truth(&postgres);
    let records = kafka.read_topic("anew.order");
    let mut first: HashMap<&[u8], i64> = HashMap::new();
    let numbers: HashMap<&str, i64> =
        truth.iter().map(|fact| (fact.fact_id.as_str(), fact.key_seq)).collect();
    for record in &records {
        let number = numbers[record.header("event_id").unwrap()];
        let first = first.entry(record.key.as_deref().unwrap()).or_insert(number);
        *first = number.min(*first);
    }
    let follow = |fact: &Truth| {
        first.get(fact.aggregate_id.as_bytes()).is_some_and(|first| fact.key_seq >= *first)
    };
    let follow: Vec<Truth> = truth.into_iter().filter(follow).collect();
    Checker::new(&follow).check(&records).assert_clean();
    // Both partitions went on.
    let mut begin: BTreeMap<i32, &str> = BTreeMap::new();
    for record in &records {
        begin.entry(record.partition).or_insert_with(|| position(record));
    }
    assert_eq!(begin.len(), 2);
}

#[test]
fn a_topic_made_anew_while_batches_are_on_their_way_to_it_gets_them_in_order() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().proxied().start());
    let relay = relay("swift", &postgres, &kafka)
        .env("KAFKA_BROKERS", kafka.proxied_bootstrap())
        .env("BATCH_RECORDS", "50");
    // Older brokers are not told which topic is meant.
    let relay = match testkit::provision::kafka_version() {
        Ok(version) if version == testkit::versions::KAFKA => relay,
        _ => relay.env("MAX_IN_FLIGHT", "1"),
    };
    kafka.create_topic("swift.order", 2, &[]);
    let relay = relay.spawn();
    relay.wait_ready();
    // Answers that take their time: several batches are on their way at any moment.
    let latency = Duration::from_millis(150);
    kafka.proxy(1).set_both(Way { latency, ..Way::default() });
    let load = load("swift").start(&postgres);
    for round in 0..8 {
        wait_flowing(&relay, &kafka, "swift.order");
        kafka.delete_topic("swift.order");
        kafka.create_topic("swift.order", 2, &[]);
        wait_flowing(&relay, &kafka, "swift.order");
        let mut highest: HashMap<i32, String> = HashMap::new();
        for record in kafka.read_topic("swift.order") {
            let before = highest.entry(record.partition).or_default();
            assert!(
                before.as_str() < position(&record),
                "round {round}: {record:?} is behind {before}"
            );
            position(&record).clone_into(before);
        }
    }
    load.stop();
    kafka.proxy(1).heal();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
}

#[test]
fn batches_are_divided_down_to_the_one_record_that_is_too_large_and_only_that_one_waits() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("tight.order", 4, &[("max.message.bytes", "3000")]);
    let relay = relay("tight", &postgres, kafka).spawn();
    relay.wait_ready();
    Workload { facts: 3000, ..load("tight") }.run(&postgres);
    let payload = "p".repeat(5000);
    let large = format!(
        r#"{{"id":"large","aggregate_type":"order","aggregate_id":"k","event_type":"e","payload":"{payload}"}}"#
    );
    emit(&postgres, true, "tight", large.as_bytes());
    // Less than the window, so that one partition that waits holds none of them up.
    Workload { facts: 3000, seed: 2, ..load("tight") }.run(&postgres);
    wait_state(&relay, "halted");
    let health = relay.health();
    let reason = health["blocked"]["reason"].as_str().unwrap();
    assert!(reason.contains("MESSAGE_TOO_LARGE: one record of 5"), "{reason}");
    let held = i32::try_from(health["blocked"]["partition"].as_i64().unwrap()).unwrap();
    assert_eq!(vec![held], java_partitions(&["k"], 4));
    let facts = truth(&postgres);
    let homes =
        java_partitions(&facts.iter().map(|fact| &fact.aggregate_id).collect::<Vec<_>>(), 4);
    let others = homes.iter().filter(|home| **home != held).count();
    relay.wait_until("the other partitions to have all of theirs", PATIENCE, || {
        let ends = kafka.end_offsets("tight.order");
        let stored: i64 = ends.iter().filter(|(at, _)| **at != held).map(|(_, end)| *end).sum();
        usize::try_from(stored).unwrap() == others
    });
    assert!(count(kafka, "tight.order") < facts.len());

    kafka.set_topic_config("tight.order", "max.message.bytes", "100000");
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let mut records = kafka.read_topic("tight.order");
    let all = records.len();
    records.retain(|record| record.header("event_id") != Some("large"));
    assert_eq!(records.len(), all - 1);
    Checker::new(&facts).check(&records).assert_clean();
}

#[test]
fn a_compacted_topic_takes_facts_without_an_id_of_an_aggregate_and_tombstones() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("packed.order", 2, &[("cleanup.policy", "compact")]);
    let relay = relay("packed", &postgres, kafka).env("KAFKA_VALUE", "payload").spawn();
    relay.wait_ready();
    for (key, payload) in [("", "1"), ("k", "2"), ("k", "null")] {
        let fact =
            format!(r#"{{"aggregate_type":"order","aggregate_id":"{key}","payload":{payload}}}"#);
        emit(&postgres, true, "packed", fact.as_bytes());
    }
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let records = kafka.read_topic("packed.order");
    let mut found: Vec<_> = records
        .iter()
        .map(|record| (record.key.as_deref().unwrap(), record.value.as_deref()))
        .collect();
    found.sort_unstable_by_key(|(key, _)| *key);
    let (none, k): (&[u8], &[u8]) = (b"", b"k");
    assert_eq!(found, [(none, Some(&b"1"[..])), (k, Some(b"2")), (k, None)]);
}

#[test]
fn a_missing_topic_is_created_as_it_was_asked_for_and_not_again_once_it_is_deleted() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let relay = relay("made", &postgres, kafka)
        .env("KAFKA_CREATE_TOPICS", "partitions=3,max.message.bytes=70000")
        .spawn();
    relay.wait_ready();
    let fact = br#"{"aggregate_type":"order","aggregate_id":"k","payload":1}"#;
    emit(&postgres, true, "made", fact);
    wait_confirmed(&relay, &postgres, PATIENCE);
    assert_eq!(count(kafka, "made.order"), 1);
    assert_eq!(kafka.leaders("made.order").len(), 3);
    let bootstrap = kafka.bootstrap();
    let describe = ["--bootstrap-server", &bootstrap, "--describe", "--topic", "made.order"];
    let described = kafka.java("org.apache.kafka.tools.TopicCommand", &describe);
    let described = String::from_utf8(described.stdout).unwrap();
    assert!(described.contains("max.message.bytes=70000"), "{described}");

    kafka.delete_topic("made.order");
    emit(&postgres, true, "made", fact);
    wait_state(&relay, "halted");
    assert!(!kafka.topics().contains(&"made.order".to_owned()));
    kafka.create_topic("made.order", 3, &[]);
    wait_confirmed(&relay, &postgres, PATIENCE);
    assert_eq!(count(kafka, "made.order"), 1);
    stop(&relay);
}

#[test]
fn a_topic_that_cannot_be_created_halts_with_the_brokers_reason() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let relay = relay("unmade", &postgres, kafka)
        .env("KAFKA_CREATE_TOPICS", "replication-factor=9")
        .env("METADATA_MAX_AGE", "200ms")
        .spawn();
    relay.wait_ready();
    emit(&postgres, true, "unmade", br#"{"aggregate_type":"order","aggregate_id":"k"}"#);
    wait_state(&relay, "halted");
    let health = relay.health();
    let reason = health["blocked"]["reason"].as_str().unwrap();
    assert!(reason.contains("unmade.order"), "{reason}");
    assert!(reason.contains("INVALID_REPLICATION_FACTOR"), "{reason}");
    // The broker's own words, which say how many there are.
    relay.wait_for_log("INVALID_REPLICATION_FACTOR: ", PATIENCE);
    // Somebody makes it by hand, and the fact goes on.
    kafka.create_topic("unmade.order", 1, &[]);
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    assert_eq!(count(kafka, "unmade.order"), 1);
}

#[test]
fn a_missing_dead_letter_topic_is_created_and_never_compacted() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let relay = relay("letters", &postgres, kafka)
        .env("KAFKA_CREATE_TOPICS", "partitions=2,cleanup.policy=compact")
        .env("POISON_POLICY", "dead-letter")
        .env("DEAD_LETTER_TOPIC", "letters.dead")
        .spawn();
    relay.wait_ready();
    emit(&postgres, true, "letters", b"no envelope");
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let records = kafka.read_topic("letters.dead");
    assert_eq!(records.len(), 1);
    assert_eq!(
        (records[0].key.as_ref(), records[0].value.as_deref()),
        (None, Some(&b"no envelope"[..]))
    );
}

/// One fact of each of so many topics, in transactions of ten.
fn emit_to_topics(postgres: &Postgres, prefix: &str, topics: u32) {
    let mut client = postgres.client();
    for first in (0..topics).step_by(10) {
        let sql = format!(
            "SELECT pg_logical_emit_message(true, '{prefix}', format('{{\"aggregate_type\":\"t%s\",\
             \"aggregate_id\":\"1\"}}', n)) FROM generate_series({first}, {first} + 9) n",
        );
        client.simple_query(&sql).unwrap();
    }
}

#[test]
fn many_topics_that_are_missing_do_not_take_their_time_one_after_the_other() {
    const TOPICS: u32 = 500;
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    for (name, policy, topics) in [("created", "true", TOPICS), ("skipped", "false", 20)] {
        let command = relay(name, &postgres, &kafka)
            .env("REPLICATION_SLOT_NAME", name)
            .env("PUBLICATION_NAME", name)
            .env("KAFKA_CREATE_TOPICS", policy)
            .env("POISON_POLICY", "skip");
        let init = command.clone().arg("init").spawn();
        assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
        emit_to_topics(&postgres, name, topics);
        let begun = std::time::Instant::now();
        let drain = command.arg("drain").arg("--until").arg("now").spawn();
        let status = drain.wait_exit(Duration::from_secs(300));
        assert_eq!(status.code(), Some(0), "{}", drain.log_text());
        let took = begun.elapsed();
        match policy {
            "true" => {
                for topic in ["created.t0", "created.t250", "created.t499"] {
                    assert_eq!(count(&kafka, topic), 1, "{topic}");
                }
            }
            // Each of them is missing for two seconds before that is believed.
            _ => assert!(took < Duration::from_secs(u64::from(topics)), "{took:?}"),
        }
    }
}
