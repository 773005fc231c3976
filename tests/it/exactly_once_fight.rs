//! Two relays with one slot and one transactional id take it from each other, again and again: consumers of committed
//! records see each fact once, and nothing of a relay that was fenced.
//!
//! `FIGHT_SECONDS=600` has them fight for so long; 20 seconds unless said.

#![expect(clippy::print_stdout, reason = "what was measured")]

use crate::committed::Committed;
use crate::exactly_once::{command, judge};
use crate::support::{PATIENCE, SLOT, state, stop, truth, wait_confirmed, wait_state};
use crate::transactions::Cluster;
use std::time::{Duration, Instant, SystemTime};
use testkit::checker::Checker;
use testkit::process::Signal;
use testkit::proxy::Way;
use testkit::rng::Rng;
use testkit::workload::Workload;
use testkit::{Kafka, Owlpost, Postgres, Proxy, wait};

const PARTITIONS: usize = 4;

/// What a relay that is fenced says as a standby, and ends with otherwise.
const FENCED: (&str, i32) = ("another relay publishes in our place", 14);

fn duration() -> Duration {
    let asked = std::env::var("FIGHT_SECONDS");
    let seconds = asked.map_or(20, |seconds| seconds.parse().expect("FIGHT_SECONDS is a number"));
    Duration::from_secs(seconds)
}

/// How the one that has the slot loses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// Frozen, and when it wakes up it sees nothing of what PostgreSQL has done meanwhile: it goes on where it was.
    Deaf,
    /// Frozen; when it wakes up it sees that its connection is gone, and maybe first what Kafka answers.
    Frozen,
    Killed,
    /// Killed, and the other with it: both are started again.
    BothKilled,
}

const BLOWS: [Blow; 5] = [Blow::Deaf, Blow::Frozen, Blow::Killed, Blow::Deaf, Blow::BothKilled];

/// A relay, and the road to PostgreSQL that is its own.
struct Fighter {
    proxy: Proxy,
    relay: Owlpost,
}

struct Ring<'k> {
    postgres: Postgres,
    kafka: &'k Kafka,
    prefix: String,
    policy: &'static str,
    consumer: Committed,
    fights: [Fighter; 2],
    /// The one that has the slot.
    owner: usize,
    fences: usize,
    /// From the blow to the first fact that only the other can have published.
    takeovers: Vec<(Blow, Duration)>,
}

fn spawn(prefix: &str, policy: &str, proxy: &Proxy, postgres: &Postgres, kafka: &Kafka) -> Owlpost {
    command(prefix, postgres, kafka)
        .env("MASTER_DATABASE_URL", format!("postgres://postgres@{}/app", proxy.address()))
        .env("FENCED_POLICY", policy)
        .env("IN_FLIGHT_BYTES", "1MiB")
        .env("WAL_SENDER_TIMEOUT", "6s")
        .env("LEASE", "5s")
        .env("STALL_TIMEOUT", "2s")
        .env("STATUS_INTERVAL", "500ms")
        .spawn()
}

impl<'k> Ring<'k> {
    fn new(kafka: &'k Kafka, prefix: &str, policy: &'static str) -> Self {
        let postgres = Postgres::builder().own_identifier().start();
        let topic = format!("{prefix}.order");
        kafka.create_topic(&topic, PARTITIONS, &[]);
        let fighter = || {
            let proxy = Proxy::to(&format!("127.0.0.1:{}", postgres.port()));
            let relay = spawn(prefix, policy, &proxy, &postgres, kafka);
            Fighter { proxy, relay }
        };
        let first = fighter();
        first.relay.wait_ready();
        let fights = [first, fighter()];
        wait_state(&fights[1].relay, "waiting_for_slot");
        let consumer = Committed::of(kafka, &topic);
        let prefix = prefix.to_owned();
        let (takeovers, fences, owner) = (Vec::new(), 0, 0);
        Self { postgres, kafka, prefix, policy, consumer, fights, owner, fences, takeovers }
    }

    fn relay(&self, which: usize) -> &Owlpost {
        &self.fights[which].relay
    }

    fn start(&mut self, which: usize) {
        let proxy = &self.fights[which].proxy;
        let relay = spawn(&self.prefix, self.policy, proxy, &self.postgres, self.kafka);
        self.fights[which].relay = relay;
    }

    fn fenced_so_far(&self, which: usize) -> usize {
        self.relay(which).log_text().matches(FENCED.0).count()
    }

    /// Waits for a fact that is committed from now on: whoever had the slot before cannot have read it. How long that
    /// took.
    fn wait_for_the_next(&mut self) -> Duration {
        let begun = Instant::now();
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        let clock = i64::try_from(clock).unwrap() + 2;
        wait::until("a fact from the other relay", PATIENCE, || {
            self.consumer.look().iter().any(|record| record.timestamp_ms > clock)
        });
        begun.elapsed()
    }

    fn end_session(&self) {
        let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
            WHERE slot_name = $1 AND active_pid IS NOT NULL";
        self.postgres.client().execute(end, &[&SLOT]).unwrap();
    }

    fn round(&mut self, blow: Blow, rng: &mut Rng) {
        let (owner, other) = (self.owner, 1 - self.owner);
        match blow {
            Blow::Killed => {
                self.relay(owner).kill9();
                let took = self.wait_for_the_next();
                self.takeovers.push((blow, took));
                self.owner = other;
                self.start(owner);
                wait_state(self.relay(owner), "waiting_for_slot");
            }
            Blow::BothKilled => {
                self.relay(other).kill9();
                self.relay(owner).kill9();
                self.start(other);
                self.start(owner);
                wait::until("one of both to have the slot", PATIENCE, || {
                    let has_it = [0, 1].map(|which| state(self.relay(which)) == "streaming");
                    self.owner = usize::from(has_it[1]);
                    has_it[0] != has_it[1]
                });
                wait_state(self.relay(1 - self.owner), "waiting_for_slot");
                // One that has not got so far does not know of the other, and fences who has taken the slot from it.
                self.wait_for_the_next();
            }
            Blow::Deaf | Blow::Frozen => {
                let before = self.fenced_so_far(owner);
                let deaf = blow == Blow::Deaf;
                if deaf {
                    self.fights[owner].proxy.set_both(Way { held: true, ..Way::default() });
                }
                self.relay(owner).signal(Signal::SIGSTOP);
                self.end_session();
                let took = self.wait_for_the_next();
                self.takeovers.push((blow, took));
                let sleeps = rng.between(if deaf { 0..=500 } else { 0..=3000 });
                std::thread::sleep(Duration::from_millis(sleeps as u64));
                self.relay(owner).signal(Signal::SIGCONT);
                self.owner = other;
                self.awake(owner, before);
            }
        }
    }

    /// The one that woke up gives up, in one way or the other, and is there again.
    fn awake(&mut self, which: usize, before: usize) {
        wait::until("the one that woke up to see that it is not alone", PATIENCE, || {
            let relay = self.relay(which);
            !relay.is_running() || self.fenced_so_far(which) > before || state(relay) != "streaming"
        });
        self.fights[which].proxy.heal();
        let relay = self.relay(which);
        let settles = wait::poll("it to end, or to wait", PATIENCE, || {
            (!relay.is_running() || state(relay) == "waiting_for_slot").then_some(())
        });
        if let Err(e) = settles {
            let [one, other] = [0, 1].map(|which| self.relay(which).log_text());
            panic!("{e}: relay {which} is {}\n\n{one}\n\n{other}", state(relay));
        }
        let said = relay.log_text();
        assert!(!said.contains("panicked"), "{said}");
        let fenced = self.fenced_so_far(which) - before;
        if relay.is_running() {
            assert!(fenced == 0 || self.policy == "standby", "{said}");
            self.fences += fenced;
        } else {
            assert_eq!(self.policy, "exit", "{said}");
            assert_eq!(relay.wait_exit(PATIENCE).code(), Some(FENCED.1), "{said}");
            self.fences += 1;
            self.start(which);
            wait_state(self.relay(which), "waiting_for_slot");
        }
    }
}

fn two_relays_that_fight(cluster: Cluster, prefix: &str, policy: &'static str) {
    let kafka = &cluster.start();
    let mut ring = Ring::new(kafka, prefix, policy);
    let workload = Workload {
        facts: 10_000_000,
        writers: 2,
        aggregates: 100,
        transaction: 0..=20,
        pause: Duration::from_millis(30),
        ..Workload::new(prefix, 1)
    };
    let load = workload.start(&ring.postgres);
    ring.wait_for_the_next();
    let mut rng = Rng::new(7);
    let begun = Instant::now();
    let mut rounds = 0;
    for blow in BLOWS.iter().cycle() {
        ring.round(*blow, &mut rng);
        rounds += 1;
        if begun.elapsed() >= duration() && rounds >= BLOWS.len() {
            break;
        }
    }
    let fought = begun.elapsed();
    load.stop();
    let (owner, other) = (ring.owner, 1 - ring.owner);
    wait_confirmed(ring.relay(owner), &ring.postgres, 2 * PATIENCE);
    stop(ring.relay(other));
    stop(ring.relay(owner));

    let topic = format!("{prefix}.order");
    ring.consumer.look_at_the_end(kafka);
    let truth = truth(&ring.postgres);
    Checker::new(&truth).prefix(prefix).check(ring.consumer.records()).assert_clean();
    ring.consumer.assert_whole(&truth);
    judge(prefix, &ring.postgres, kafka);
    let all = kafka.read_topic_by_java(&topic).len();
    let hidden = all - truth.len();
    let Ring { fences, takeovers, .. } = &ring;
    for (how, killed) in [("frozen", false), ("killed", true)] {
        let took = takeovers.iter().filter(|(blow, _)| killed == (*blow == Blow::Killed));
        let mut took: Vec<Duration> = took.map(|(_, took)| *took).collect();
        took.sort();
        assert!(!took.is_empty(), "no relay was {how}");
        let [first, median, last] = [0, took.len() / 2, took.len() - 1].map(|at| took[at]);
        println!(
            "{}: {} times {how}; the other took over within {median:.2?} (median), {first:.2?} to {last:.2?}",
            ring.prefix,
            took.len()
        );
    }
    println!(
        "{}: {rounds} rounds in {:.0?}, {fences} fences; {} facts, each seen once, and {hidden} records that nobody sees",
        ring.prefix,
        fought,
        truth.len()
    );
    assert!(*fences > 0 && hidden > 0, "nobody fought");
}

#[test]
fn of_two_relays_that_fight_one_is_fenced_ends_and_nothing_of_it_is_seen() {
    two_relays_that_fight(Cluster::New, "eo-fight-exit", "exit");
}

#[test]
fn of_two_relays_that_fight_one_is_fenced_waits_and_nothing_of_it_is_seen() {
    two_relays_that_fight(Cluster::Old, "eo-fight-standby", "standby");
}
