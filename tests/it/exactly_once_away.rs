//! PostgreSQL is away while a Kafka transaction is open: whoever reads committed records does not wait for it.

#![expect(clippy::print_stdout, reason = "what was measured")]

use crate::committed::{Committed, is_open};
use crate::exactly_once::{command, judge};
use crate::support::{PATIENCE, count, stop, wait_confirmed};
use crate::transactions::Cluster;
use std::time::{Duration, Instant};
use testkit::process::Signal;
use testkit::proxy::Way;
use testkit::workload::Workload;
use testkit::{Kafka, Owlpost, Postgres, Proxy, wait};

/// Of `TRANSACTION_TIMEOUT`, for which consumers would wait otherwise, it is a small part.
const BOUND: Duration = Duration::from_secs(20);
const TIMEOUT: &str = "10m";

struct Rig {
    postgres: Postgres,
    proxy: Proxy,
    kafka: Kafka,
    topic: String,
    prefix: &'static str,
    relay: Owlpost,
    workload: Workload,
}

impl Rig {
    fn new(cluster: Cluster, prefix: &'static str) -> Self {
        let (postgres, kafka) = (Postgres::builder().start(), cluster.start());
        let topic = format!("{prefix}.order");
        kafka.create_topic(&topic, 1, &[]);
        let proxy = Proxy::to(&format!("127.0.0.1:{}", postgres.port()));
        let relay = command(prefix, &postgres, &kafka)
            .env("MASTER_DATABASE_URL", format!("postgres://postgres@{}/app", proxy.address()))
            .env("TRANSACTION_INTERVAL", "10s")
            .env("TRANSACTION_TIMEOUT", TIMEOUT)
            .spawn();
        relay.wait_ready();
        let workload = Workload::new(prefix, 1);
        let rig = Self { postgres, proxy, kafka, topic, prefix, relay, workload };
        rig.workload.write_transaction(&mut rig.postgres.client(), 10, 1);
        rig.relay.wait_until("facts in a transaction that is open", PATIENCE, || {
            count(&rig.kafka, &rig.topic) >= 10
        });
        assert!(is_open(&rig.kafka, &rig.topic));
        rig
    }

    /// Consumers get to the end of what is written, soon and with nothing of it; then PostgreSQL is there again.
    fn finish(self, heal: impl FnOnce(&Self)) {
        let begun = Instant::now();
        self.relay.wait_until("the transaction to be ended", BOUND, || {
            !is_open(&self.kafka, &self.topic)
        });
        println!("{}: consumers waited for {:.1?}", self.prefix, begun.elapsed());
        let mut consumer = Committed::of(&self.kafka, &self.topic);
        assert!(consumer.look().is_empty(), "without the slot nothing is committed");
        heal(&self);
        self.workload.write_transaction(&mut self.postgres.client(), 10, 2);
        wait_confirmed(&self.relay, &self.postgres, PATIENCE);
        stop(&self.relay);
        judge(self.prefix, &self.postgres, &self.kafka);
        assert_eq!(consumer.look_at_the_end(&self.kafka).len(), 20);
    }
}

#[test]
fn consumers_do_not_wait_for_a_postgresql_that_crashed() {
    let rig = Rig::new(Cluster::New, "eo-crashed");
    rig.postgres.kill9();
    rig.finish(|rig| rig.postgres.start_again());
}

#[test]
fn consumers_do_not_wait_for_a_postgresql_that_is_not_reached_in_the_older_protocol() {
    let rig = Rig::new(Cluster::Old, "eo-cut-off");
    rig.proxy.set_both(Way { held: true, ..Way::default() });
    rig.finish(|rig| rig.proxy.heal());
}

/// The walsender is there and says nothing, and the slot is its own.
#[test]
fn consumers_do_not_wait_for_a_walsender_that_is_silent() {
    let rig = Rig::new(Cluster::New, "eo-silent");
    let walsender = "SELECT active_pid FROM pg_replication_slots WHERE active";
    let walsender = rig.postgres.ask(walsender).parse().unwrap();
    testkit::process::signal_pid(walsender, Signal::SIGSTOP);
    rig.finish(|rig| {
        testkit::process::signal_pid(walsender, Signal::SIGCONT);
        wait::until("the relay to stream again", PATIENCE, || rig.relay.is_ready());
    });
}
