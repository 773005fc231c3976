//! What brokers and their operators do while facts flow: afterwards the log holds every fact once, in order.

use crate::support::{
    PATIENCE, confirmed, lsn, number, relay, state, stop, truth, wait_confirmed, wait_flowing,
    wait_state,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use testkit::checker::Checker;
use testkit::process::Signal;
use testkit::workload::{Truth, Workload};
use testkit::{Kafka, Owlpost, Postgres, Proxy};

/// How long all brokers are down, in seconds, where that is to be longer than in every run.
const OUTAGE: &str = "KAFKA_OUTAGE";

/// Three brokers that all run, for one test at a time: they are killed and lose their leaders.
fn three() -> MutexGuard<'static, Kafka> {
    static THREE: OnceLock<Mutex<Kafka>> = OnceLock::new();
    let kafka = THREE.get_or_init(|| {
        Mutex::new(Kafka::builder().brokers(3).setting("min.insync.replicas", "2").start())
    });
    let kafka = kafka.lock().unwrap_or_else(PoisonError::into_inner);
    // A test that failed may have left them otherwise.
    (1..=3).for_each(|id| kafka.signal_broker(id, Signal::SIGCONT));
    kafka.start_again();
    kafka
}

fn load(prefix: &str) -> Workload {
    // About what a small machine sustains beside three brokers.
    Workload { facts: 10_000_000, writers: 2, ..Workload::new(prefix, 1) }
}

/// Kafka's own consumer reads what ours does.
#[track_caller]
fn assert_java_agrees(kafka: &Kafka, topic: &str) {
    let (ours, theirs) = (kafka.read_topic(topic), kafka.read_topic_by_java(topic));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
}

/// Every fact is there, once.
#[track_caller]
fn assert_once(relay: &Owlpost, postgres: &Postgres, kafka: &Kafka, topic: &str) {
    wait_confirmed(relay, postgres, 2 * PATIENCE);
    stop(relay);
    let truth = truth(postgres);
    Checker::new(&truth).check(&kafka.read_topic(topic)).assert_clean();
}

#[test]
fn brokers_that_are_killed_and_come_back_cost_no_fact_and_no_repeat() {
    let kafka = three();
    let postgres = Postgres::builder().start();
    kafka.create_topic("killed.order", 4, &[]);
    let relay = relay("killed", &postgres, &kafka).spawn();
    relay.wait_ready();
    let load = load("killed").start(&postgres);
    for id in 1..=3 {
        wait_flowing(&relay, &kafka, "killed.order");
        kafka.kill9_broker(id);
        wait_flowing(&relay, &kafka, "killed.order");
        kafka.start_again();
    }
    wait_flowing(&relay, &kafka, "killed.order");
    load.stop();
    assert_once(&relay, &postgres, &kafka, "killed.order");
    assert_java_agrees(&kafka, "killed.order");
}

#[test]
fn a_broker_that_freezes_and_wakes_up_costs_no_fact_and_no_repeat() {
    // Not the first, which is the one that is asked how things are.
    const FROZEN: i32 = 3;
    let kafka = three();
    let postgres = Postgres::builder().start();
    kafka.create_topic("frozen.order", 3, &[]);
    let relay = relay("frozen", &postgres, &kafka).env("REQUEST_TIMEOUT", "4s").spawn();
    relay.wait_ready();
    let load = load("frozen").start(&postgres);
    wait_flowing(&relay, &kafka, "frozen.order");
    let led = kafka.leaders("frozen.order").iter().position(|leader| *leader == FROZEN).unwrap();
    let led = i32::try_from(led).unwrap();
    // What is on its way to it stays in its socket until it wakes up, when others lead.
    kafka.signal_broker(FROZEN.unsigned_abs() as usize, Signal::SIGSTOP);
    relay.wait_until("others to lead", PATIENCE, || {
        !kafka.leaders("frozen.order").contains(&FROZEN)
    });
    let end = |kafka: &Kafka| kafka.end_offsets("frozen.order")[&led];
    let before = end(&kafka);
    relay.wait_until("its partition to go on elsewhere", PATIENCE, || end(&kafka) > before + 100);
    kafka.signal_broker(FROZEN.unsigned_abs() as usize, Signal::SIGCONT);
    kafka.wait_in_sync("frozen.order");
    wait_flowing(&relay, &kafka, "frozen.order");
    load.stop();
    assert_once(&relay, &postgres, &kafka, "frozen.order");
}

#[test]
fn brokers_with_other_addresses_are_found_behind_the_same_names() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    kafka.create_topic("rehoused.order", 4, &[]);
    let name = Proxy::to(&kafka.bootstrap());
    let relay = relay("rehoused", &postgres, &kafka).env("KAFKA_BROKERS", name.address()).spawn();
    relay.wait_ready();
    let load = load("rehoused").start(&postgres);
    for _ in 0..2 {
        wait_flowing(&relay, &kafka, "rehoused.order");
        kafka.stop();
        kafka.change_port(1);
        kafka.start_again();
        name.lead_to(&kafka.bootstrap());
    }
    wait_flowing(&relay, &kafka, "rehoused.order");
    load.stop();
    assert_once(&relay, &postgres, &kafka, "rehoused.order");
}

#[test]
fn leaders_that_move_cost_no_fact_and_no_repeat() {
    let kafka = three();
    let postgres = Postgres::builder().start();
    kafka.create_topic("moved.order", 3, &[]);
    let relay = relay("moved", &postgres, &kafka).spawn();
    relay.wait_ready();
    let load = load("moved").start(&postgres);
    for _ in 0..2 {
        wait_flowing(&relay, &kafka, "moved.order");
        kafka.move_leaders("moved.order");
    }
    wait_flowing(&relay, &kafka, "moved.order");
    load.stop();
    assert_once(&relay, &postgres, &kafka, "moved.order");
}

#[test]
fn while_too_few_replicas_are_in_sync_facts_wait() {
    let kafka = three();
    let postgres = Postgres::builder().start();
    kafka.create_topic("thin.order", 2, &[("min.insync.replicas", "3")]);
    let relay = relay("thin", &postgres, &kafka).spawn();
    relay.wait_ready();
    let load = load("thin").start(&postgres);
    wait_flowing(&relay, &kafka, "thin.order");
    kafka.kill9_broker(3);
    relay.wait_until("the relay to say why it waits", 2 * PATIENCE, || {
        relay.log_text().contains("NOT_ENOUGH_REPLICAS")
    });
    load.stop();
    let written = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    assert!(confirmed(&postgres) < written, "confirmed, and in two places instead of three");
    kafka.start_again();
    assert_once(&relay, &postgres, &kafka, "thin.order");
}

#[test]
fn when_all_brokers_were_down_facts_go_on_where_they_were() {
    let kafka = three();
    let postgres = Postgres::builder().start();
    kafka.create_topic("dark.order", 4, &[]);
    let relay = relay("dark", &postgres, &kafka).spawn();
    relay.wait_ready();
    let load = load("dark").start(&postgres);
    wait_flowing(&relay, &kafka, "dark.order");
    kafka.kill9();
    let since = Instant::now();
    wait_state(&relay, "stalled");
    load.stop();
    let seconds = std::env::var(OUTAGE).ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(since.elapsed()));
    kafka.start_again();
    let load = Workload { seed: 2, ..self::load("dark") }.start(&postgres);
    wait_flowing(&relay, &kafka, "dark.order");
    load.stop();
    assert_once(&relay, &postgres, &kafka, "dark.order");
    assert_java_agrees(&kafka, "dark.order");
}

#[test]
fn a_topic_that_grows_is_used_with_all_its_partitions_and_keys_move_once() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("grown.order", 2, &[]);
    let relay = relay("grown", &postgres, kafka).env("METADATA_MAX_AGE", "200ms").spawn();
    relay.wait_ready();
    let load = load("grown").start(&postgres);
    wait_flowing(&relay, kafka, "grown.order");
    kafka.grow_topic("grown.order", 5);
    relay.wait_until("the new partitions to be used", PATIENCE, || {
        kafka.end_offsets("grown.order").values().filter(|end| **end > 100).count() == 5
    });
    load.stop();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);

    let facts = truth(&postgres);
    let truth: HashMap<&str, &Truth> = facts.iter().map(|fact| (&*fact.fact_id, fact)).collect();
    let records = kafka.read_topic("grown.order");
    assert_eq!(records.len(), facts.len(), "each once");
    let mut seen = HashSet::new();
    // Of each aggregate, by partition: the first and the last fact.
    let mut runs: HashMap<&str, BTreeMap<i32, (i64, i64)>> = HashMap::new();
    let mut highest: HashMap<i32, String> = HashMap::new();
    for record in &records {
        let fact = truth[record.header("event_id").unwrap()];
        assert!(seen.insert(&fact.fact_id), "{} twice", fact.fact_id);
        let position = record.header("factlib_position").unwrap().to_owned();
        let last = highest.entry(record.partition).or_default();
        assert!(position > *last, "{position} behind {last}");
        *last = position;
        let number = fact.key_seq;
        let runs = runs.entry(&fact.aggregate_id).or_default();
        let run = runs.entry(record.partition).or_insert((number, number));
        assert!(number >= run.1, "{fact:?} out of order");
        run.1 = number;
    }
    let mut moved = 0;
    for (aggregate, runs) in runs {
        let mut runs: Vec<_> = runs.into_values().collect();
        runs.sort_unstable();
        assert!(runs.len() <= 2, "{aggregate} has moved more than once");
        if let [(_, before), (after, _)] = runs[..] {
            moved += 1;
            assert_eq!(after, before + 1, "{aggregate} was in two partitions at once");
        }
    }
    assert!(moved > 0, "no key has moved");
}

#[test]
fn a_topic_that_is_deleted_and_created_again_takes_what_waited() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("phantom.order", 2, &[]);
    let relay = relay("phantom", &postgres, kafka).spawn();
    relay.wait_ready();
    let load = load("phantom").start(&postgres);
    wait_flowing(&relay, kafka, "phantom.order");
    kafka.delete_topic("phantom.order");
    wait_state(&relay, "halted");
    let reason = relay.health()["blocked"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("create it again"), "{reason}");
    kafka.create_topic("phantom.order", 2, &[]);
    wait_flowing(&relay, kafka, "phantom.order");
    load.stop();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);

    // What was there went with it. From the first fact of an aggregate on, all are there, once.
    let facts = truth(&postgres);
    let truth: HashMap<&str, &Truth> = facts.iter().map(|fact| (&*fact.fact_id, fact)).collect();
    let mut next: HashMap<&str, i64> = HashMap::new();
    for record in &kafka.read_topic("phantom.order") {
        let fact = truth[record.header("event_id").unwrap()];
        let next = next.entry(&fact.aggregate_id).or_insert(fact.key_seq);
        assert_eq!(fact.key_seq, *next, "{fact:?}");
        *next += 1;
    }
    let mut last: HashMap<&str, i64> = HashMap::new();
    for fact in &facts {
        let last = last.entry(&fact.aggregate_id).or_default();
        *last = fact.key_seq.max(*last);
    }
    for (aggregate, next) in next {
        assert_eq!(next, last[aggregate] + 1, "{aggregate}");
    }
}

#[test]
fn a_throttled_producer_waits_and_stores_each_fact_once() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("slow.order", 2, &[]);
    // Averaged over the last eleven seconds.
    kafka.set_producer_quota("slow-owlpost", Some(40_000));
    let relay = relay("slow", &postgres, kafka).env("APP_NAME", "slow-owlpost").spawn();
    relay.wait_ready();
    let workload = Workload { payload: 900..=1100, facts: 600, ..load("slow") };
    workload.run(&postgres);
    relay.wait_for_log("throttled by quota", PATIENCE);
    assert_once(&relay, &postgres, kafka, "slow.order");
    kafka.set_producer_quota("slow-owlpost", None);
}

#[test]
fn a_topic_of_small_batches_and_one_that_is_compacted_take_every_fact_once() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("narrow.small", 2, &[("max.message.bytes", "3000")]);
    kafka.create_topic("narrow.compact", 2, &[("cleanup.policy", "compact")]);
    let types = ["small", "compact"].map(str::to_owned).to_vec();
    let workload =
        Workload { aggregate_types: types, facts: 20_000, payload: 100..=300, ..load("narrow") };
    let relay = relay("narrow", &postgres, kafka).spawn();
    relay.wait_ready();
    workload.run(&postgres);
    wait_confirmed(&relay, &postgres, 2 * PATIENCE);
    assert_eq!(state(&relay), "streaming");
    relay.wait_until("all to be counted", PATIENCE, || number(&relay, "published") == 20_000);
    stop(&relay);
    let truth = truth(&postgres);
    let mut records = kafka.read_topic("narrow.small");
    records.extend(kafka.read_topic("narrow.compact"));
    Checker::new(&truth).check(&records).assert_clean();
}

#[test]
fn an_older_kafka_takes_every_fact_once_too() {
    let postgres = Postgres::builder().start();
    let kafka = Kafka::builder().version("3.9.1").start();
    kafka.create_topic("older.order", 4, &[]);
    let relay = relay("older", &postgres, &kafka).spawn();
    relay.wait_ready();
    let load = load("older").start(&postgres);
    for _ in 0..2 {
        wait_flowing(&relay, &kafka, "older.order");
        kafka.kill9();
        kafka.start_again();
    }
    wait_flowing(&relay, &kafka, "older.order");
    load.stop();
    assert_once(&relay, &postgres, &kafka, "older.order");
}

#[test]
fn another_cluster_at_the_same_address_gets_nothing_and_ends_the_relay() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    kafka.create_topic("swapped.order", 2, &[]);
    let relay = relay("swapped", &postgres, &kafka).spawn();
    relay.wait_ready();
    let load = load("swapped").start(&postgres);
    wait_flowing(&relay, &kafka, "swapped.order");
    kafka.replace_by_another_cluster();
    let status = relay.wait_exit(2 * PATIENCE);
    load.stop();
    assert_eq!(status.code(), Some(9), "{}", relay.log_text());
    assert!(relay.log_text().contains("another Kafka cluster"), "{}", relay.log_text());
    assert_eq!(kafka.topics(), [""; 0]);
}
