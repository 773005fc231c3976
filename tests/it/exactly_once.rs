//! With `DELIVERY=exactly-once` consumers of committed records see each fact once, whatever becomes of the relay.

use crate::committed::all_committed;
use crate::support::{
    PATIENCE, SLOT, confirmed, count, relay, stop, truth, wait_confirmed, wait_state,
};
use crate::transactions::Cluster;
use factlib::kafka::{Config, Kafka as Driver};
use factlib::relay::error_code::CONCURRENT_TRANSACTIONS;
use factlib::relay::kafka::{Answer, CoordinatorOf, Request};
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::checker::Checker;
use testkit::process::Signal;
use testkit::workload::Workload;
use testkit::{Kafka, Lsn, Owlpost, Postgres, oracle, owlpost, wait};

const PARTITIONS: usize = 4;

pub(crate) fn command(prefix: &str, postgres: &Postgres, kafka: &Kafka) -> owlpost::Command {
    relay(prefix, postgres, kafka).env("DELIVERY", "exactly-once")
}

pub(crate) fn exactly_once(prefix: &str, postgres: &Postgres, kafka: &Kafka) -> Owlpost {
    command(prefix, postgres, kafka).env("IN_FLIGHT_BYTES", "1MiB").spawn()
}

/// Each fact once, in order, to who reads committed records.
#[track_caller]
pub(crate) fn judge(prefix: &str, postgres: &Postgres, kafka: &Kafka) {
    let records = all_committed(kafka, &format!("{prefix}.order"));
    Checker::new(&truth(postgres)).prefix(prefix).check(&records).assert_clean();
}

/// The transactional id, and the group.
pub(crate) fn id(postgres: &Postgres) -> String {
    postgres.ask(
        "SELECT format('owlpost-%s-%s-factlib_slot', system_identifier, oid)
           FROM pg_control_system(), pg_database WHERE datname = current_database()",
    )
}

/// What Kafka's own tool is asked about consumer groups.
#[track_caller]
pub(crate) fn groups(kafka: &Kafka, arguments: &[&str]) -> String {
    let servers = kafka.bootstrap();
    let arguments = [&["--bootstrap-server", &servers], arguments].concat();
    let said = kafka.java("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &arguments);
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// The columns that it shows of the position, from TOPIC on.
#[track_caller]
fn described(postgres: &Postgres, kafka: &Kafka) -> Vec<String> {
    let id = id(postgres);
    let said = groups(kafka, &["--describe", "--group", &id]);
    let heading = said.lines().find(|line| line.starts_with("GROUP")).unwrap_or_default();
    let heading: Vec<_> = heading.split_whitespace().take(6).collect();
    let names = ["GROUP", "TOPIC", "PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET", "LAG"];
    assert_eq!(heading, names, "{said}");
    let row = said.lines().find_map(|line| line.strip_prefix(&id));
    let row = row.unwrap_or_else(|| panic!("no group {id}: {said}"));
    row.split_whitespace().map(str::to_owned).collect()
}

/// Of it, the position.
#[track_caller]
pub(crate) fn position(postgres: &Postgres, kafka: &Kafka) -> Lsn {
    Lsn(described(postgres, kafka)[2].parse().unwrap())
}

/// Takes the relay's transactional id, as whoever has a copy of its database would.
pub(crate) fn fence(postgres: &Postgres, kafka: &Kafka) {
    let id: Arc<str> = Arc::from(id(postgres));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (answers, mut inbox) = tokio::sync::mpsc::unbounded_channel();
        let client = Driver::new(Config::new(kafka.addresses()), answers);
        client.lease_until(Instant::now() + PATIENCE);
        let of = CoordinatorOf::Transactions;
        client.send(Request::FindCoordinator { of, key: Arc::clone(&id) });
        let Some(Answer::Coordinator { answer: Ok(Ok(coordinator)), .. }) = inbox.recv().await
        else {
            panic!("no coordinator")
        };
        let timeout = Duration::from_secs(60);
        loop {
            let id = Arc::clone(&id);
            client.send(Request::InitTransactions { coordinator, id, timeout, producer: None });
            match inbox.recv().await {
                Some(Answer::TransactionsReady(Ok(Ok(_)))) => break,
                // Something is open, and is ended first.
                Some(Answer::TransactionsReady(Ok(Err(CONCURRENT_TRANSACTIONS)))) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

pub(crate) fn wait_free(postgres: &Postgres) {
    let mut client = postgres.client();
    wait::until("the slot to be free", PATIENCE, || {
        oracle::slot(&mut client, SLOT).unwrap().active_pid.is_none()
    });
}

fn a_relay_that_is_killed_again_and_again(cluster: Cluster, prefix: &str) {
    // Of its own: all clusters of PostgreSQL here are copies of one, and so are their transactional ids.
    let (postgres, kafka) = (Postgres::builder().start(), &cluster.start());
    let topic = format!("{prefix}.order");
    kafka.create_topic(&topic, PARTITIONS, &[]);
    let first = exactly_once(prefix, &postgres, kafka);
    first.wait_ready();
    let workload = Workload { facts: 8000, payload: 40..=400, ..Workload::new(prefix, 1) };
    let running = workload.start(&postgres);
    let mut doomed = first;
    for kill in 1..=5 {
        let before = count(kafka, &topic);
        doomed.wait_until("some facts to be stored", PATIENCE, || {
            count(kafka, &topic) >= before + 300
        });
        doomed.kill9();
        wait_free(&postgres);
        let said = doomed.log_text();
        assert!(!said.contains("panicked"), "{said}");
        if kill == 5 {
            running.wait_for(8000, PATIENCE);
        }
        doomed = exactly_once(prefix, &postgres, kafka);
    }
    running.wait();
    wait_confirmed(&doomed, &postgres, PATIENCE);
    stop(&doomed);
    judge(prefix, &postgres, kafka);
    assert!(position(&postgres, kafka) >= confirmed(&postgres));
    assert!(count(kafka, &topic) > 8000, "markers have offsets, too");
}

#[test]
fn each_fact_is_seen_once_though_the_relay_is_killed() {
    a_relay_that_is_killed_again_and_again(Cluster::New, "eo-kill-new");
}

#[test]
fn each_fact_is_seen_once_though_the_relay_is_killed_in_the_older_protocol() {
    a_relay_that_is_killed_again_and_again(Cluster::Old, "eo-kill-old");
}

fn a_relay_that_was_frozen(cluster: Cluster, prefix: &str) {
    // Of its own: all clusters of PostgreSQL here are copies of one, and so are their transactional ids.
    let (postgres, kafka) = (Postgres::builder().start(), &cluster.start());
    let topic = format!("{prefix}.order");
    kafka.create_topic(&topic, PARTITIONS, &[]);
    let command = command(prefix, &postgres, kafka)
        .env("FENCED_POLICY", "standby")
        .env("TRANSACTION_INTERVAL", "2s")
        .env("WAL_SENDER_TIMEOUT", "4s")
        .env("LEASE", "3s")
        .env("STALL_TIMEOUT", "2s")
        .env("STATUS_INTERVAL", "500ms");
    let first = command.clone().spawn();
    first.wait_ready();
    let second = command.spawn();
    wait_state(&second, "waiting_for_slot");
    let workload = Workload { facts: 3000, payload: 40..=400, ..Workload::new(prefix, 1) };
    let running = workload.start(&postgres);
    running.wait_for(500, PATIENCE);
    // In the middle of a Kafka transaction.
    first.wait_until("facts to be stored", PATIENCE, || count(kafka, &topic) >= 100);
    first.signal(Signal::SIGSTOP);
    wait_state(&second, "streaming");
    running.wait();
    wait_confirmed(&second, &postgres, PATIENCE);
    first.signal(Signal::SIGCONT);
    wait_state(&first, "waiting_for_slot");
    workload.write_transaction(&mut postgres.client(), 10, 3);
    wait_confirmed(&second, &postgres, PATIENCE);
    stop(&second);
    // Its turn comes.
    wait_state(&first, "streaming");
    workload.write_transaction(&mut postgres.client(), 10, 4);
    wait_confirmed(&first, &postgres, PATIENCE);
    stop(&first);
    judge(prefix, &postgres, kafka);
}

#[test]
fn of_a_relay_that_was_frozen_nothing_is_seen_twice() {
    a_relay_that_was_frozen(Cluster::New, "eo-frozen-new");
}

#[test]
fn of_a_relay_that_was_frozen_nothing_is_seen_twice_in_the_older_protocol() {
    a_relay_that_was_frozen(Cluster::Downgraded, "eo-frozen-old");
}

/// What is published by the other road is not in the position: that is noticed, and nothing is skipped silently.
#[test]
fn who_comes_back_from_at_least_once_says_that_the_position_is_to_be_forgotten() {
    let (postgres, kafka) = (Postgres::builder().start(), &Cluster::New.start());
    kafka.create_topic("eo-back.order", PARTITIONS, &[]);
    let workload = Workload::new("eo-back", 1);
    let mut client = postgres.client();
    workload.install(&mut client);
    let mut facts = 0;
    let mut publish = |relay: Owlpost| {
        relay.wait_ready();
        facts += 10;
        workload.write_transaction(&mut client, 10, facts);
        wait_confirmed(&relay, &postgres, PATIENCE);
        stop(&relay);
    };
    publish(exactly_once("eo-back", &postgres, kafka));
    publish(relay("eo-back", &postgres, kafka).spawn());
    let (position, slot) = (position(&postgres, kafka), confirmed(&postgres));
    let refused = exactly_once("eo-back", &postgres, kafka);
    assert_eq!(refused.wait_exit(PATIENCE).code(), Some(4), "{}", refused.log_text());
    let said = refused.log_text();
    let size = bytesize::ByteSize(slot.0 - position.0);
    let gap = format!("the slot stands at {slot}, {size} beyond {position}");
    assert!(said.contains(&gap), "{gap}: {said}");
    let id = id(&postgres);
    let remedy = format!("kafka-consumer-groups --delete --group {id}");
    assert!(said.contains(&remedy), "{said}");
    groups(kafka, &["--delete", "--group", &id]);
    publish(exactly_once("eo-back", &postgres, kafka));
    judge("eo-back", &postgres, kafka);
}

#[test]
fn kafkas_own_tool_shows_the_position_as_the_documents_say() {
    let (postgres, kafka) = (Postgres::builder().start(), &Cluster::New.start());
    kafka.create_topic("eo-told.order", PARTITIONS, &[]);
    let relay = exactly_once("eo-told", &postgres, kafka);
    relay.wait_ready();
    let workload = Workload::new("eo-told", 1);
    for facts in 1..=3 {
        workload.write_transaction(&mut postgres.client(), 10, facts);
        wait_confirmed(&relay, &postgres, PATIENCE);
    }
    stop(&relay);
    let columns = described(&postgres, kafka);
    let offset = &columns[2];
    let lag = format!("-{offset}");
    assert_eq!(columns[..5], ["owlpost.position", "0", offset, "0", &lag]);
    let again = postgres.ask(&format!("SELECT '0/0'::pg_lsn + {offset}"));
    assert_eq!(again, confirmed(&postgres).to_string(), "where the slot stands");
    assert_eq!(again, position(&postgres, kafka).to_string());
    judge("eo-told", &postgres, kafka);
}
