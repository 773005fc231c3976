//! One producer, in a process of its own, so that what it costs is what the process costs.

use crate::Case;
use factlib::kafka::{Config, Kafka};
use factlib::relay::backoff::Jitter;
use factlib::relay::batch::Record;
use factlib::relay::compression::Compression;
use factlib::relay::fact::Fact;
use factlib::relay::ledger::Ledger;
use factlib::relay::poison::Policies;
use factlib::relay::position::{Position, Unit};
use factlib::relay::producer::{Producer, Route, Settings};
use factlib::relay::route::{Headers, Source};
use factlib_protocol::{Lsn, Timestamp};
use nix::sys::resource::{UsageWho, getrusage};
use rdkafka::config::ClientConfig;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression as RsCompression, UnknownTopicHandling};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What a run has cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// User and system time a record, in nanoseconds.
    pub cpu_ns: f64,
    /// Records a second.
    pub rate: f64,
    /// Largest resident set, in MiB.
    pub rss_mib: f64,
    /// Median time from a lone record to its acknowledgement, in microseconds.
    pub lone_us: f64,
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
    let (user, system) = (usage.user_time(), usage.system_time());
    let micros = (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec();
    Duration::from_micros(micros as u64)
}

fn rss_mib() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).expect("usage").max_rss() as f64 / 1024.0
}

/// Runs the contender and prints what it cost.
pub fn run(name: &str, case: &Case) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let cost = match name {
        "factlib" => runtime.block_on(ours(case)),
        "rskafka" => runtime.block_on(rskafka(case)),
        "librdkafka" => librdkafka(case),
        other => panic!("{other}"),
    };
    println!("{} {} {} {}", cost.cpu_ns, cost.rate, cost.rss_mib, cost.lone_us);
}

/// Values that are like JSON, and differ.
fn values(case: &Case) -> Vec<Vec<u8>> {
    let mut state = 7_u64;
    let mut values = Vec::new();
    for index in 0..256 {
        let mut value = format!(r#"{{"id":{index},"aggregate_type":"order","items":["#).into_bytes();
        while value.len() < case.bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            value.extend(format!("{{\"sku\":{},\"n\":1}},", state >> 44).bytes());
        }
        value.truncate(case.bytes);
        values.push(value);
    }
    values
}

const EVENT: (&str, &str) = ("0d5c6d3e-1f7a-4f0c-9f64-2f2f8d2b8a11", "order_created");
const SOURCE: &str = "7300000000000000000/16384";

fn measure(records: usize, begun: Instant, before: Duration, lone_us: f64) -> Cost {
    let elapsed = begun.elapsed();
    Cost {
        cpu_ns: (cpu() - before).as_nanos() as f64 / records as f64,
        rate: records as f64 / elapsed.as_secs_f64(),
        rss_mib: rss_mib(),
        lone_us,
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_nanos() as f64 / 1000.0)
}

struct Ours {
    producer: Producer,
    kafka: Kafka,
    inbox: mpsc::UnboundedReceiver<factlib::relay::kafka::Answer>,
    ledger: Ledger,
    events: VecDeque<factlib::relay::event::Event>,
    headers: Headers,
    number: u64,
}

impl Ours {
    fn push(
        &mut self,
        now: Instant,
        fact: &Fact<'_>,
        source: &Source,
        value: &[u8],
        partition: u32,
    ) -> bool {
        let Route::Ready(topic, _) = self.producer.route(now, "bench") else {
            return false;
        };
        self.number += 1;
        let unit = Unit::transaction(Lsn(self.number));
        let position = Position { timeline: 1, unit, index: 0 };
        self.headers.fill(fact, source, &position, unit.lsn, false);
        let key = self.number.to_be_bytes();
        let headers = &self.headers;
        let record = Record { timestamp_ms: 1_700_000_000_000, key: Some(&key), value: Some(value), headers };
        self.ledger.begin(unit);
        let committed = Timestamp(0);
        self.producer.push(topic, partition, position, committed, &record, &mut self.ledger);
        self.ledger.end(unit, Lsn(self.number + 1));
        true
    }

    fn send(&mut self, flush: bool) {
        let now = Instant::now();
        self.kafka.lease_until(now + Duration::from_secs(60));
        while let Some(request) = self.producer.poll(now, true, flush) {
            self.kafka.send(request);
        }
    }

    async fn answer(&mut self) {
        let deadline = self.producer.deadline(true).map(|at| at.max(Instant::now()));
        let answer = match deadline {
            None => self.inbox.recv().await,
            Some(at) => match tokio::time::timeout_at(at.into(), self.inbox.recv()).await {
                Ok(answer) => answer,
                // Something is to be sent again.
                Err(_) => return,
            },
        };
        let Some(answer) = answer else { panic!("no answers any more") };
        self.producer.handle(Instant::now(), answer, &mut self.ledger, &mut self.events);
        while let Ok(answer) = self.inbox.try_recv() {
            self.producer.handle(Instant::now(), answer, &mut self.ledger, &mut self.events);
        }
        self.events.clear();
    }
}

async fn ours(case: &Case) -> Cost {
    let (answers, inbox) = mpsc::unbounded_channel();
    let settings = Settings {
        backoff_max: Duration::from_secs(5),
        metadata_age_max: Duration::from_secs(300),
        compression: if case.lz4 { Compression::Lz4 } else { Compression::None },
        batch_bytes: 900_000,
        batch_records: case.batch,
        in_flight: case.in_flight,
        keeps_order: false,
        policies: Policies::HALT,
        create_topics: None,
        skip_stored: false,
        transactions: None,
    };
    let mut ours = Ours {
        producer: Producer::new(settings, Jitter::new(7)),
        kafka: Kafka::new(Config::new(vec![case.brokers.clone()]), answers),
        inbox,
        ledger: Ledger::default(),
        events: VecDeque::new(),
        headers: Headers::default(),
        number: 0,
    };
    let values = values(case);
    let envelope = format!(r#"{{"id":"{}","aggregate_type":"order","event_type":"{}"}}"#, EVENT.0, EVENT.1);
    let fact = Fact::decode(envelope.as_bytes()).expect("an envelope");
    let source = Source::new(7_300_000_000_000_000_000, 16384);
    ours.producer.begin(Instant::now());
    while !ours.push(Instant::now(), &fact, &source, b"warm", 0) {
        ours.send(true);
        ours.answer().await;
    }
    while ours.producer.unsettled_facts() > 0 {
        ours.send(true);
        ours.answer().await;
    }
    let mut lone = Vec::new();
    for _ in 0..case.lone {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let begun = Instant::now();
        ours.push(begun, &fact, &source, &values[0], 0);
        while ours.producer.unsettled_facts() > 0 {
            ours.send(true);
            ours.answer().await;
        }
        lone.push(begun.elapsed());
    }
    let (begun, before) = (Instant::now(), cpu());
    let mut pushed = 0;
    while pushed < case.records || ours.producer.unsettled_facts() > 0 {
        while pushed < case.records && ours.producer.unsettled_bytes() < 6 << 20 {
            // What a read of the relay's brings.
            let now = Instant::now();
            for _ in 0..100.min(case.records - pushed) {
                // A batch after the other, as keys that come together.
                let partition = (pushed / case.batch % case.partitions) as u32;
                ours.push(now, &fact, &source, &values[pushed % values.len()], partition);
                pushed += 1;
            }
            ours.send(false);
        }
        ours.send(pushed == case.records);
        if ours.producer.unsettled_facts() > 0 {
            ours.answer().await;
        }
    }
    measure(case.records, begun, before, median(lone))
}

async fn rskafka(case: &Case) -> Cost {
    let client = ClientBuilder::new(vec![case.brokers.clone()]).build().await.expect("a client");
    let mut partitions = Vec::new();
    for index in 0..case.partitions {
        let partition = client.partition_client("bench", index as i32, UnknownTopicHandling::Retry);
        partitions.push(Arc::new(partition.await.expect("a partition")));
    }
    let compression = if case.lz4 { RsCompression::Lz4 } else { RsCompression::NoCompression };
    let values = Arc::new(values(case));
    let record = |number: usize, values: &[Vec<u8>]| rskafka::record::Record {
        key: Some((number as u64).to_be_bytes().to_vec()),
        value: Some(values[number % values.len()].clone()),
        headers: BTreeMap::from([
            ("event_id".to_owned(), EVENT.0.as_bytes().to_vec()),
            ("event_type".to_owned(), EVENT.1.as_bytes().to_vec()),
            ("LSN".to_owned(), format!("0/{number:X}").into_bytes()),
            ("factlib_position".to_owned(), format!("00000001.{number:016x}.1.00000000").into_bytes()),
            ("factlib_source".to_owned(), SOURCE.as_bytes().to_vec()),
        ]),
        timestamp: chrono::DateTime::from_timestamp(1_700_000_000, 0).expect("a time"),
    };
    let mut lone = Vec::new();
    for number in 0..case.lone {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let begun = Instant::now();
        partitions[0].produce(vec![record(number, &values)], compression).await.expect("stored");
        lone.push(begun.elapsed());
    }
    let (begun, before) = (Instant::now(), cpu());
    // One batch of each partition on its way, which is all that keeps the order.
    let local = tokio::task::LocalSet::new();
    let next = std::rc::Rc::new(std::cell::Cell::new(0_usize));
    local
        .run_until(async {
            let mut tasks = Vec::new();
            for partition in &partitions {
                let (partition, values) = (Arc::clone(partition), Arc::clone(&values));
                let (next, batch, records) = (std::rc::Rc::clone(&next), case.batch, case.records);
                tasks.push(tokio::task::spawn_local(async move {
                    while next.get() < records {
                        let first = next.get();
                        let count = batch.min(records - first);
                        next.set(first + count);
                        let batch = (first..first + count).map(|n| record(n, &values)).collect();
                        partition.produce(batch, compression).await.expect("stored");
                    }
                }));
            }
            for task in tasks {
                task.await.expect("a task");
            }
        })
        .await;
    measure(case.records, begun, before, median(lone))
}

struct Delivered(AtomicUsize);

impl rdkafka::ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "{:?}", result.as_ref().err());
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn librdkafka(case: &Case) -> Cost {
    let producer = |linger: &str| -> ThreadedProducer<Delivered> {
        ClientConfig::new()
            .set("bootstrap.servers", &case.brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("max.in.flight.requests.per.connection", "5")
            .set("linger.ms", linger)
            .set("batch.num.messages", case.batch.to_string())
            .set("batch.size", "1000000")
            .set("queue.buffering.max.kbytes", "8192")
            .set("queue.buffering.max.messages", "1000000")
            .set("compression.codec", if case.lz4 { "lz4" } else { "none" })
            .create_with_context(Delivered(AtomicUsize::new(0)))
            .expect("a producer")
    };
    let values = values(case);
    let send = |producer: &ThreadedProducer<Delivered>, number: usize, partition: usize| {
        let key = (number as u64).to_be_bytes();
        let (lsn, position) = (format!("0/{number:X}"), format!("00000001.{number:016x}.1.00000000"));
        let mut headers = OwnedHeaders::new_with_capacity(5);
        for (key, value) in [
            ("event_id", EVENT.0),
            ("event_type", EVENT.1),
            ("LSN", &lsn),
            ("factlib_position", &position),
            ("factlib_source", SOURCE),
        ] {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut record = BaseRecord::to("bench")
            .partition(partition as i32)
            .key(&key[..])
            .payload(&values[number % values.len()])
            .timestamp(1_700_000_000_000)
            .headers(headers);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((_, again)) => {
                    record = again;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    };
    let mut lone = Vec::new();
    let direct = producer("0");
    for number in 0..case.lone.max(1) {
        std::thread::sleep(Duration::from_millis(1));
        let begun = Instant::now();
        send(&direct, number, 0);
        while direct.context().0.load(Ordering::Relaxed) <= number {
            std::hint::spin_loop();
        }
        if number > 0 {
            lone.push(begun.elapsed());
        }
    }
    drop(direct);
    let producer = producer("5");
    send(&producer, 0, 0);
    producer.flush(Duration::from_secs(60)).expect("stored");
    let (begun, before) = (Instant::now(), cpu());
    for number in 0..case.records {
        send(&producer, number, number / case.batch % case.partitions);
    }
    producer.flush(Duration::from_secs(60)).expect("stored");
    assert_eq!(producer.context().0.load(Ordering::Relaxed), case.records + 1);
    measure(case.records, begun, before, median(lone))
}
