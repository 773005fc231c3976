//! How long a fact takes while the relay is caught up, and what it costs then: `make bench-latency`.
//!
//! One connection commits facts at a steady pace, whatever becomes of them, and each fact's time begins when its COMMIT
//! has returned. It ends when a consumer has it: one that long-polls all partitions and looks at the clock once a
//! record is decoded. The same facts go three roads, in turns:
//!
//! - *floor*: the program that commits hands the fact to a plain producer itself (rskafka's client, acks of all, one
//!   request a partition at a time, no linger). So the database and the broker have the same to do, and there is no
//!   walsender and no relay. Its time from hand-over to acknowledgement is measured, too.
//! - *walsender*: a raw reader that blocks in `read` gets the fact; there is no Kafka.
//! - *relay*: owlpost.
//! - *exactly once*, where asked for: owlpost with `DELIVERY=exactly-once`, to a consumer of committed records.
//!
//! When Kafka has acknowledged a fact of the relay's is not seen from outside: consumers get it no earlier than the
//! acknowledgement is decided, so what they see bounds it, and the relay's own metric has the mean (by the server's
//! clock, from the commit record and not from COMMIT's return; its buckets, of a millisecond and more, are too coarse
//! for quantiles).
//!
//! Up to 1,000 facts a second each fact is a transaction; above that there are 1,000 transactions a second.

mod floor;

use crate::proc::{self, Usage};
use crate::raw_reader::RawReader;
use crate::run::{self, Measured};
use crate::shape::{Emitter, Shape, number_in, number_of};
use crate::spread::Quantiles;
use crate::stage::{Counted, Delivery, PUBLICATION, Stage, Subject, create_topics};
use crate::verify::Verifier;
use floor::Producer;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use testkit::envelope::OutboxEvent;
use testkit::{Kafka, Reader, Record, owlpost, wait};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Facts a second; comma separated.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    rates: Vec<usize>,
    /// How long each road is measured in each round.
    #[arg(long, default_value_t = 20)]
    seconds: usize,
    /// How long the relay is watched while there is nothing to do.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// The relay's road: at least once, exactly once, or both in turns.
    #[arg(long, value_enum, default_value_t)]
    delivery: Delivery,
}

/// Of each road so many seconds come first and do not count.
const WARM_UP_SECONDS: usize = 2;

/// More transactions a second than one connection commits at ease.
const TRANSACTIONS_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub rates: Vec<Rate>,
    pub idle: Idle,
    /// Milliseconds that facts gather in a Kafka transaction, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_interval_ms: Option<u64>,
}

/// All rounds at one pace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Facts a second.
    pub rate: usize,
    pub per_transaction: usize,
    pub rounds: Vec<Round>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub floor: Leg,
    pub walsender: Leg,
    pub relay: Option<Leg>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<Leg>,
}

/// When each fact was received, and the records in the order in which they were.
type Received = (Vec<Option<Instant>>, Vec<Record>);

/// One road in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leg {
    /// Facts a second that were committed.
    pub pace: f64,
    /// From COMMIT's return to receipt.
    pub receipt: Quantiles,
    /// From hand-over to the producer until it was acknowledged.
    pub acknowledged: Option<Quantiles>,
    pub relay: Option<CaughtUp>,
}

/// What the relay used, and what it counted itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaughtUp {
    pub facts: usize,
    pub usage: Usage,
    pub walsender: Usage,
    pub peak_rss: u64,
    /// Microseconds from commit to acknowledgement.
    pub commit_to_ack_mean_us: f64,
    pub batches: f64,
}

impl CaughtUp {
    /// Microseconds of processor time that a fact takes the relay.
    pub fn cpu_us_a_fact(&self) -> f64 {
        self.usage.cpu_us() / self.facts as f64
    }
}

/// With nothing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    pub seconds: f64,
    pub usage: Usage,
    pub rss: u64,
}

/// How long everything may take to arrive once it is committed.
const LIMIT: Duration = Duration::from_secs(120);

pub fn run(arguments: &Arguments) {
    let begun = run::Run::begin();
    let stage = Stage::new(&arguments.subject, 4);
    let kafka = Kafka::builder().start();
    // The broker's compiler, most of all.
    let facts = 1000 * (WARM_UP_SECONDS + arguments.seconds.min(5));
    let shape = Shape { facts, per_transaction: 1, ..Shape::default() };
    let warm_up = Road { stage: &stage, kafka: &kafka, shape, rate: 1000 };
    let _ = (warm_up.floor(), warm_up.by_owlpost(arguments.delivery, false));
    let mut rates = Vec::new();
    for rate in arguments.rates.iter().copied() {
        let per_transaction = rate.div_ceil(TRANSACTIONS_MAX);
        let facts = rate * (arguments.seconds + WARM_UP_SECONDS);
        let shape = Shape { facts, per_transaction, ..Shape::default() };
        let road = Road { stage: &stage, kafka: &kafka, shape, rate };
        let mut rounds = Vec::new();
        for round in 0..arguments.rounds {
            let walsender = road.walsender();
            // What comes second finds a broker that has just done the same.
            let legs = match round % 2 {
                0 => {
                    let floor = road.floor();
                    let (relay, once) = road.by_owlpost(arguments.delivery, false);
                    Round { floor, walsender, relay, once }
                }
                _ => {
                    let (relay, once) = road.by_owlpost(arguments.delivery, true);
                    Round { relay, once, walsender, floor: road.floor() }
                }
            };
            let owlposts = [("relay", &legs.relay), ("once", &legs.once)];
            let owlposts =
                owlposts.into_iter().filter_map(|(name, leg)| Some((name, leg.as_ref()?)));
            let others = [("floor", &legs.floor), ("walsender", &legs.walsender)];
            for (name, leg) in others.into_iter().chain(owlposts) {
                println!(
                    "{rate} facts/s, round {}: {name:9} p50 {:.0} us, p99 {:.0} us, at {:.0} facts/s",
                    round + 1,
                    leg.receipt.micros(500),
                    leg.receipt.micros(990),
                    leg.pace,
                );
            }
            rounds.push(legs);
        }
        rates.push(Rate { rate, per_transaction, rounds });
    }
    let delivery = arguments.delivery;
    let idle = idle(&stage, &kafka, delivery, Duration::from_secs(arguments.idle_seconds));
    let interval = arguments.subject.transaction_interval_ms();
    let transaction_interval_ms = delivery.has_exactly_once().then_some(interval);
    let measured = Measured::Latency(Latency { rates, idle, transaction_interval_ms });
    begun.finish(&stage.postgres, measured).save(&arguments.subject.out);
}

const SLOT: &str = "caught_up";

struct Road<'a> {
    stage: &'a Stage,
    kafka: &'a Kafka,
    shape: Shape,
    rate: usize,
}

impl Road<'_> {
    /// Commits at the pace; when each COMMIT had returned, by fact. `committed` is told of each.
    fn commit(&self, mut committed: impl FnMut(usize, Instant)) -> (Vec<Instant>, f64) {
        let mut client = self.stage.postgres.client();
        let mut emitter = Emitter::new(&mut client);
        let Shape { facts, per_transaction, .. } = self.shape;
        let mut times = Vec::with_capacity(facts);
        let begun = Instant::now();
        for first in (0..facts).step_by(per_transaction) {
            let numbers = first..facts.min(first + per_transaction);
            let due = begun + Duration::from_secs_f64(first as f64 / self.rate as f64);
            let messages = numbers.clone().map(|n| (true, self.shape.envelope(n))).collect();
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            emitter.emit(messages);
            let at = Instant::now();
            for number in numbers {
                times.push(at);
                committed(number, at);
            }
        }
        (times, facts as f64 / begun.elapsed().as_secs_f64())
    }

    /// What is between two times of a fact, without those of the first seconds.
    fn delays(&self, from: &[Instant], to: &[Option<Instant>]) -> Quantiles {
        let skipped = self.rate * WARM_UP_SECONDS;
        let pairs = from.iter().zip(to).skip(skipped);
        let delays = pairs.map(|(from, to)| {
            // A fact can be received before its COMMIT has returned.
            to.expect("a fact that has arrived").saturating_duration_since(*from)
        });
        Quantiles::of(delays.collect()).expect("facts behind the first seconds")
    }

    /// Consumes the topic while `act` is under way, until every fact is there: when each was, and the records.
    fn consume<T>(&self, mut reader: Reader, act: impl FnOnce() -> T) -> (T, Received) {
        // The controller names leaders before they know it.
        wait::until("the topic to be readable", wait::LIMIT, || {
            reader.poll(Duration::ZERO).is_ok()
        });
        let facts = self.shape.facts;
        std::thread::scope(|scope| {
            let consumer = scope.spawn(move || {
                let mut received = vec![None; facts];
                let mut records = Vec::with_capacity(facts);
                let mut missing = facts;
                let mut last = Instant::now();
                while missing > 0 {
                    reader.poll(Duration::from_millis(500)).expect("a broker that answers");
                    let now = Instant::now();
                    for record in reader.take_records() {
                        let number = number_in(&record).expect("a fact");
                        missing -= usize::from(received[number].replace(now).is_none());
                        last = now;
                        records.push(record);
                    }
                    assert!(last.elapsed() < LIMIT, "{missing} facts have not arrived");
                }
                (received, records)
            });
            let done = act();
            (done, consumer.join().expect("the consumer"))
        })
    }

    fn floor(&self) -> Leg {
        create_topics(self.kafka, &self.shape);
        let topic = self.shape.topic_names().next().expect("a topic");
        let producer = Producer::start(&self.kafka.bootstrap(), &topic, self.shape);
        let reader = self.kafka.reader(&topic);
        let (((times, pace), acknowledged), (received, _)) = self.consume(reader, || {
            let committed = self.commit(|number, _| producer.send(number));
            (committed, producer.finish())
        });
        self.kafka.delete_topic(&topic);
        Leg {
            pace,
            receipt: self.delays(&times, &received),
            acknowledged: Some(self.delays(&times, &acknowledged)),
            relay: None,
        }
    }

    fn walsender(&self) -> Leg {
        self.stage.create_slot(SLOT);
        let reader = RawReader {
            port: self.stage.postgres.port(),
            database: testkit::postgres::DATABASE.to_owned(),
            slot: SLOT.to_owned(),
            publication: PUBLICATION.to_owned(),
            messages: self.shape.facts,
            nap_us: 0,
            receive_buffer: 0,
        };
        let mut received = vec![None; self.shape.facts];
        let (times, pace) = std::thread::scope(|scope| {
            let received = &mut received;
            let reading = scope.spawn(move || {
                let show = |message: &[u8]| {
                    let now = Instant::now();
                    received[fact_in(message).expect("a fact")] = Some(now);
                };
                reader.run(show).expect("reading the stream")
            });
            self.wait_active();
            let committed = self.commit(|_, _| ());
            reading.join().expect("the raw reader");
            committed
        });
        self.stage.drop_slot(SLOT);
        Leg { pace, receipt: self.delays(&times, &received), acknowledged: None, relay: None }
    }

    /// At least once, and exactly once, as far as they are asked for.
    fn by_owlpost(&self, delivery: Delivery, once_first: bool) -> (Option<Leg>, Option<Leg>) {
        let relay = || delivery.has_at_least_once().then(|| self.relay());
        let once = || delivery.has_exactly_once().then(|| self.once());
        match once_first {
            true => {
                let once = once();
                (relay(), once)
            }
            false => (relay(), once()),
        }
    }

    fn relay(&self) -> Leg {
        let relay = self.stage.relay(SLOT, &self.kafka.bootstrap());
        self.caught_up(relay, |topic| self.kafka.reader(topic))
    }

    fn once(&self) -> Leg {
        let relay = self.stage.relay_once(SLOT, &self.kafka.bootstrap());
        let leg = self.caught_up(relay, |topic| self.kafka.committed_reader(topic));
        self.forget_position();
        leg
    }

    /// The next slot of this name begins elsewhere.
    fn forget_position(&self) {
        let slot = format!(
            "SELECT format('owlpost-%s-%s-{SLOT}', system_identifier, oid) \
             FROM pg_control_system(), pg_database WHERE datname = current_database()"
        );
        let group = self.stage.postgres.ask(&slot);
        let servers = self.kafka.bootstrap();
        let arguments = ["--bootstrap-server", &servers, "--delete", "--group", &group];
        self.kafka.java("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &arguments);
    }

    fn caught_up(&self, relay: owlpost::Command, reader: impl Fn(&str) -> Reader) -> Leg {
        self.stage.create_slot(SLOT);
        create_topics(self.kafka, &self.shape);
        let topic = self.shape.topic_names().next().expect("a topic");
        let relay = relay.spawn();
        relay.wait_ready();
        let walsender = self.wait_active();
        let before = (Usage::of(relay.pid()).unwrap(), Usage::of(walsender).unwrap());
        let reader = reader(&topic);
        let ((times, pace), (received, records)) = self.consume(reader, || self.commit(|_, _| ()));
        let usage = Usage::of(relay.pid()).unwrap() - before.0;
        let walsender = Usage::of(walsender).unwrap() - before.1;
        let peak_rss = proc::peak_rss(relay.pid()).unwrap();
        let end = self.stage.postgres.ask("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        let Counted { commit_to_ack, batches, .. } =
            self.stage.finish(relay, SLOT, end, self.shape.facts);
        let mut verifier = Verifier::new(self.shape);
        records.iter().for_each(|record| verifier.record(record));
        verifier.verdict.check(self.shape.facts);
        self.kafka.delete_topic(&topic);
        self.stage.drop_slot(SLOT);
        let facts = self.shape.facts;
        let commit_to_ack_mean_us = commit_to_ack * 1e6 / facts as f64;
        Leg {
            pace,
            receipt: self.delays(&times, &received),
            acknowledged: None,
            relay: Some(CaughtUp {
                facts,
                usage,
                walsender,
                peak_rss,
                commit_to_ack_mean_us,
                batches,
            }),
        }
    }

    /// The walsender that serves the slot, once there is one.
    fn wait_active(&self) -> u32 {
        let pid = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        let mut client = self.stage.postgres.client();
        let pid = wait::poll("a walsender", wait::LIMIT, || {
            client.query_one(&pid, &[]).unwrap().get::<_, Option<i32>>(0)
        });
        pid.unwrap_or_else(|e| panic!("{e}")).cast_unsigned()
    }
}

/// The number of the fact in a pgoutput `Message`: flags, position, prefix, length, content.
fn fact_in(message: &[u8]) -> Option<usize> {
    let prefix = message.get(1 + 1 + 8..)?;
    let content = prefix.splitn(2, |byte| *byte == 0).nth(1)?.get(4..)?;
    number_of(&OutboxEvent::from_bytes(content).ok()?.id)
}

/// After some facts, as a relay is that has been used.
fn idle(stage: &Stage, kafka: &Kafka, delivery: Delivery, watched: Duration) -> Idle {
    let shape = Shape { facts: 1000, ..Shape::default() };
    stage.create_slot(SLOT);
    create_topics(kafka, &shape);
    let topic = shape.topic_names().next().expect("a topic");
    let relay = match delivery.has_at_least_once() {
        true => stage.relay(SLOT, &kafka.bootstrap()).spawn(),
        false => stage.relay_once(SLOT, &kafka.bootstrap()).spawn(),
    };
    relay.wait_ready();
    let end = shape.emit(&stage.postgres);
    relay.wait_until("the facts to be in Kafka", LIMIT, || {
        // With markers, where there are some.
        kafka.end_offsets(&topic).values().sum::<i64>() >= 1000
    });
    let (begun, before) = (Instant::now(), Usage::of(relay.pid()).unwrap());
    std::thread::sleep(watched);
    let usage = Usage::of(relay.pid()).unwrap() - before;
    let seconds = begun.elapsed().as_secs_f64();
    let rss = proc::rss(relay.pid()).unwrap();
    stage.finish(relay, SLOT, end, shape.facts);
    kafka.delete_topic(&topic);
    stage.drop_slot(SLOT);
    println!(
        "idle: {:.3} % of a processor, {:.1} MiB",
        usage.cpu_us() / seconds / 1e4,
        rss as f64 / 1_048_576.0
    );
    Idle { seconds, usage, rss }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_found_in_what_pgoutput_says() {
        let shape = Shape { facts: 10, ..Shape::default() };
        let content = shape.envelope(7);
        let head: &[&[u8]] =
            &[b"M", &[1], &[0; 8], b"bench\0", &(content.len() as u32).to_be_bytes()];
        let message = [head.concat(), content].concat();
        assert_eq!(fact_in(&message), Some(7));
        assert_eq!(fact_in(&message[..12]), None);
    }
}
