//! The driver against a scripted broker on a real socket.

mod described;
mod sasl;
mod tail;
mod transaction;

use super::*;
use crate::relay::error_code::{COORDINATOR_LOAD_IN_PROGRESS, INVALID_CONFIG, NOT_ENOUGH_REPLICAS};
use crate::relay::kafka::{
    Broker as BrokerInfo, CreateRefusal, NewTopic, PartitionAnswer, PartitionMetadata, ProducerId,
    TopicMetadata, TransactionVersion,
};
use bytes::{Buf, BufMut, Bytes};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const LIST_OFFSETS: i16 = 2;
const METADATA: i16 = 3;
const SASL_HANDSHAKE: i16 = 17;
const API_VERSIONS: i16 = 18;
const INIT_PRODUCER_ID: i16 = 22;
const CREATE_TOPICS: i16 = 19;
const SASL_AUTHENTICATE: i16 = 36;
const OFFSET_FETCH: i16 = 9;
const FIND_COORDINATOR: i16 = 10;
const ADD_PARTITIONS_TO_TXN: i16 = 24;
const ADD_OFFSETS_TO_TXN: i16 = 25;
const END_TXN: i16 = 26;
const TXN_OFFSET_COMMIT: i16 = 28;
const DESCRIBE_TRANSACTIONS: i16 = 65;

/// A lease that outlasts any test.
fn later() -> std::time::Instant {
    (Instant::now() + Duration::from_secs(3600)).into_std()
}

/// A request as the broker got it.
#[derive(Debug, Clone)]
struct Incoming {
    api: i16,
    version: i16,
    correlation: i32,
    /// Counts the broker's connections, from 0.
    connection: usize,
    body: Bytes,
}

enum Reaction {
    Answer(Vec<u8>),
    /// Frames with these correlation ids.
    Frames(Vec<(i32, Vec<u8>)>),
    /// Bytes as they are.
    Raw(Vec<u8>),
    /// A frame with this body, a byte at a time.
    Bytewise(Vec<u8>),
    /// The first half of a frame with this body, and no more.
    HalfThenClose(Vec<u8>),
    Silence,
    Close,
    StopReading,
    /// 64 KiB every 20 ms, to the end.
    ReadSlowly,
}

/// A broker that does what a function says.
#[derive(Clone)]
struct Broker {
    port: u16,
    log: Arc<Mutex<Vec<Incoming>>>,
    /// Accepted so far.
    connections: Arc<AtomicUsize>,
    /// Still open, as far as the broker has noticed.
    open: Arc<AtomicUsize>,
}

type Script = Arc<dyn Fn(&Incoming) -> Reaction + Send + Sync>;
type Stubborn = Box<dyn Fn() -> Reaction + Send + Sync>;

impl Broker {
    async fn start(script: impl Fn(&Incoming) -> Reaction + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = Self {
            port: listener.local_addr().unwrap().port(),
            log: Arc::default(),
            connections: Arc::default(),
            open: Arc::default(),
        };
        let script: Script = Arc::new(script);
        let this = broker.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let nth = this.connections.fetch_add(1, Ordering::SeqCst);
                this.open.fetch_add(1, Ordering::SeqCst);
                let (this, script) = (this.clone(), Arc::clone(&script));
                tokio::spawn(async move {
                    let _ = this.talk(stream, nth, script).await;
                    this.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        broker
    }

    async fn talk(
        &self,
        mut stream: TcpStream,
        connection: usize,
        script: Script,
    ) -> std::io::Result<()> {
        loop {
            let len = stream.read_i32().await?;
            let mut frame = vec![0; usize::try_from(len).unwrap()];
            stream.read_exact(&mut frame).await?;
            let mut frame = Bytes::from(frame);
            let (api, version, correlation) = (frame.get_i16(), frame.get_i16(), frame.get_i32());
            assert_eq!(string(&mut frame), "owlpost");
            let incoming = Incoming { api, version, correlation, connection, body: frame };
            let reaction = if api == API_VERSIONS {
                match script(&incoming) {
                    Reaction::Answer(_) => Reaction::Answer(versions(13)),
                    other => other,
                }
            } else {
                self.log.lock().unwrap().push(incoming.clone());
                script(&incoming)
            };
            let frames = match reaction {
                Reaction::Answer(body) => vec![(correlation, body)],
                Reaction::Bytewise(body) => {
                    stream.set_nodelay(true)?;
                    for byte in framed(correlation, &body) {
                        stream.write_all(&[byte]).await?;
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                Reaction::HalfThenClose(body) => {
                    let frame = framed(correlation, &body);
                    return stream.write_all(&frame[..frame.len() / 2]).await;
                }
                Reaction::Frames(frames) => frames,
                Reaction::Raw(bytes) => {
                    stream.write_all(&bytes).await?;
                    continue;
                }
                Reaction::Silence => continue,
                Reaction::Close => return Ok(()),
                Reaction::StopReading => std::future::pending().await,
                Reaction::ReadSlowly => {
                    let mut gulp = vec![0; 64 << 10];
                    while stream.read(&mut gulp).await? > 0 {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    return Ok(());
                }
            };
            for (correlation, body) in frames {
                stream.write_all(&framed(correlation, &body)).await?;
            }
        }
    }

    fn seen(&self, api: i16) -> Vec<Incoming> {
        self.log.lock().unwrap().iter().filter(|i| i.api == api).cloned().collect()
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    async fn has_open(&self, n: usize) {
        until(|| self.open.load(Ordering::SeqCst) == n).await;
    }
}

async fn until(condition: impl Fn() -> bool) {
    timeout(Duration::from_secs(5), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("in 5 s");
}

fn framed(correlation: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.put_i32(i32::try_from(body.len()).unwrap() + 4);
    frame.put_i32(correlation);
    frame.put_slice(body);
    frame
}

fn string(b: &mut Bytes) -> String {
    let len = usize::try_from(b.get_i16()).unwrap();
    String::from_utf8(b.split_to(len).to_vec()).unwrap()
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.put_i16(i16::try_from(s.len()).unwrap());
    out.put_slice(s.as_bytes());
}

/// ApiVersions, version 3, with Produce up to this version.
fn versions(produce_max: i16) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_i16(0);
    let apis = [
        (PRODUCE, produce_max),
        (FETCH, 17),
        (LIST_OFFSETS, 10),
        (METADATA, 13),
        (SASL_HANDSHAKE, 1),
        (API_VERSIONS, 4),
        (CREATE_TOPICS, 7),
        (INIT_PRODUCER_ID, 5),
        (SASL_AUTHENTICATE, 2),
        (OFFSET_FETCH, 10),
        (FIND_COORDINATOR, 6),
        (ADD_PARTITIONS_TO_TXN, 5),
        (ADD_OFFSETS_TO_TXN, 4),
        (END_TXN, 5),
        (TXN_OFFSET_COMMIT, 5),
        (DESCRIBE_TRANSACTIONS, 1),
    ];
    out.put_u8(u8::try_from(apis.len()).unwrap() + 1);
    for (api, max) in apis {
        out.put_i16(api);
        out.put_i16(0);
        out.put_i16(max);
        out.put_u8(0);
    }
    out.put_i32(0);
    out.put_u8(0);
    out
}

/// The id of topic `t`.
const TOPIC_ID: Uuid = Uuid::from_bytes([9; 16]);

/// A length of fewer than 127 in a flexible version.
fn compact(n: usize) -> u8 {
    u8::try_from(n + 1).unwrap()
}

fn put_compact_string(out: &mut Vec<u8>, s: &str) {
    out.put_u8(compact(s.len()));
    out.put_slice(s.as_bytes());
}

/// Metadata, version 12: topic `t` with two partitions led by the first broker, one without a
/// leader and one whose leader is not alive; any other topic is unknown.
fn metadata(incoming: &Incoming, brokers: &[(i32, u16)]) -> Reaction {
    let mut body = incoming.body.clone();
    assert_eq!((incoming.version, body.get_u8()), (12, 0), "the header has no tagged fields");
    let mut asked = Vec::new();
    for _ in 1..body.get_u8() {
        assert_eq!(body.split_to(16), [0; 16][..], "asked for by name");
        let len = usize::from(body.get_u8()) - 1;
        asked.push(String::from_utf8(body.split_to(len).to_vec()).unwrap());
        assert_eq!(body.get_u8(), 0);
    }
    assert_eq!(&*body, [0_u8; 3], "auto-creation is off");

    let mut out = vec![0];
    out.put_i32(0);
    out.put_u8(compact(brokers.len()));
    for (id, port) in brokers {
        out.put_i32(*id);
        put_compact_string(&mut out, "127.0.0.1");
        out.put_i32(i32::from(*port));
        out.put_slice(&[0, 0]);
    }
    put_compact_string(&mut out, "cluster");
    out.put_i32(1);
    out.put_u8(compact(asked.len()));
    for topic in asked {
        let known = topic == "t";
        out.put_i16(if known { 0 } else { 3 });
        put_compact_string(&mut out, &topic);
        out.put_slice(if known { TOPIC_ID.as_bytes() } else { &[0; 16] });
        out.put_u8(0);
        let leader = brokers.first().map_or(-1, |b| b.0);
        let leaders = if known { vec![leader, leader, -1, 99] } else { vec![] };
        out.put_u8(compact(leaders.len()));
        for (index, leader) in leaders.into_iter().enumerate() {
            out.put_i16(if leader == -1 { 5 } else { 0 });
            out.put_i32(i32::try_from(index).unwrap());
            out.put_i32(leader);
            out.put_i32(0);
            for _ in 0..2 {
                out.put_u8(compact(1));
                out.put_i32(leader);
            }
            out.put_slice(&[compact(0), 0]);
        }
        out.put_i32(i32::MIN);
        out.put_u8(0);
    }
    out.put_u8(0);
    Reaction::Answer(out)
}

fn init_producer_id(incoming: &Incoming, error: i16) -> Reaction {
    assert_eq!((incoming.version, &*incoming.body), (1, &[255, 255, 127, 255, 255, 255][..]));
    let mut out = Vec::new();
    out.put_i32(0);
    out.put_i16(error);
    out.put_i64(if error == 0 { 4000 } else { -1 });
    out.put_i16(if error == 0 { 7 } else { -1 });
    Reaction::Answer(out)
}

/// What a Produce request carries: topic, partition, batch.
fn batches_of(incoming: &Incoming) -> Vec<(String, i32, Bytes)> {
    let mut b = incoming.body.clone();
    assert_eq!((b.get_i16(), b.get_i16(), b.get_i32()), (-1, -1, 8000), "no transaction, all acks");
    let mut out = Vec::new();
    for _ in 0..b.get_i32() {
        let topic = string(&mut b);
        for _ in 0..b.get_i32() {
            let partition = b.get_i32();
            let len = usize::try_from(b.get_i32()).unwrap();
            out.push((topic.clone(), partition, b.split_to(len)));
        }
    }
    assert!(b.is_empty());
    out
}

/// Produce, version 7.
fn produced(partitions: &[(&str, i32, i16, i64)], throttle: i32) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_i32(i32::try_from(partitions.len()).unwrap());
    for (topic, partition, error, offset) in partitions {
        put_string(&mut out, topic);
        out.put_i32(1);
        out.put_i32(*partition);
        out.put_i16(*error);
        out.put_i64(*offset);
        out.put_i64(-1);
        out.put_i64(0);
    }
    out.put_i32(throttle);
    out
}

/// Offset 100 for everything.
fn stored(incoming: &Incoming) -> Reaction {
    assert_eq!(incoming.version, 7);
    let batches = batches_of(incoming);
    let ok: Vec<_> = batches.iter().map(|(t, p, _)| (t.as_str(), *p, 0, 100)).collect();
    Reaction::Answer(produced(&ok, 0))
}

/// A broker that knows only itself, as 1, and answers produces by `produce`.
async fn lone(produce: impl Fn(&Incoming) -> Reaction + Send + Sync + 'static) -> Broker {
    let port = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&port);
    let broker = Broker::start(move |i| match i.api {
        METADATA => metadata(i, &[(1, u16::try_from(own.load(Ordering::SeqCst)).unwrap())]),
        INIT_PRODUCER_ID => init_producer_id(i, 0),
        PRODUCE => produce(i),
        _ => Reaction::Answer(vec![]),
    })
    .await;
    port.store(usize::from(broker.port), Ordering::SeqCst);
    broker
}

/// A broker that only names others.
async fn naming(brokers: Vec<(i32, u16)>) -> Broker {
    Broker::start(move |i| match i.api {
        METADATA => metadata(i, &brokers),
        _ => Reaction::Answer(vec![]),
    })
    .await
}

struct Driver {
    kafka: Kafka,
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl Driver {
    fn new(bootstrap: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        let mut config = Config::new(bootstrap.iter().map(|s| (*s).to_owned()).collect());
        change(&mut config);
        let kafka = Kafka::new(config, sender);
        kafka.lease_until(later());
        Self { kafka, answers }
    }

    /// With the brokers' addresses known.
    async fn connected(broker: &Broker) -> Self {
        Self::connected_with(broker, Duration::from_secs(10)).await
    }

    async fn connected_with(broker: &Broker, request_timeout: Duration) -> Self {
        let mut driver = Self::new(&[&broker.address()], |c| c.request_timeout = request_timeout);
        assert!(driver.metadata(&[]).await.is_ok());
        // The bootstrap connection goes, the broker's own comes with the first produce.
        broker.has_open(0).await;
        driver
    }

    async fn next(&mut self) -> Answer {
        timeout(Duration::from_secs(10), self.answers.recv()).await.expect("in time").unwrap()
    }

    async fn metadata(&mut self, topics: &[&str]) -> Result<Metadata, Unanswered> {
        let topics = topics.iter().map(|t| Arc::from(*t)).collect();
        self.kafka.send(Request::Metadata { topics });
        match self.next().await {
            Answer::Metadata(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn send(&self, broker: BrokerId, partition: i32, batch: &'static [u8]) {
        let batches = vec![batch_for("t", partition, Bytes::from_static(batch))];
        self.kafka.send(Request::Produce { broker, transaction: None, batches });
    }

    async fn produced(&mut self) -> Vec<PartitionAnswer> {
        match self.next().await {
            Answer::Produced { partitions, .. } => partitions,
            other => panic!("{other:?}"),
        }
    }

    async fn unanswered(&mut self) -> (Vec<(Arc<str>, i32)>, bool, String) {
        match self.next().await {
            Answer::ProduceUnanswered { batches, sent, cause, .. } => {
                let which = batches.into_iter().map(|batch| (batch.topic, batch.partition));
                (which.collect(), sent, cause.0)
            }
            other => panic!("{other:?}"),
        }
    }

    fn silent(&mut self) {
        assert!(self.answers.try_recv().is_err(), "nothing is answered twice");
    }
}

const SHORT: Duration = Duration::from_millis(400);

fn batch_for(topic: &str, partition: i32, batch: Bytes) -> PartitionBatch {
    PartitionBatch { topic: Arc::from(topic), topic_id: None, partition, base_sequence: 0, batch }
}

async fn after_the_pause() {
    tokio::time::sleep(Duration::from_millis(60)).await;
}

#[tokio::test]
async fn metadata_names_brokers_topics_and_leaders() {
    let broker = lone(stored).await;
    let mut driver = Driver::new(&[&broker.address()], |_| {});
    let leader = |index, leader| PartitionMetadata { index, leader };
    assert_eq!(
        driver.metadata(&["t", "missing"]).await.unwrap(),
        Metadata {
            cluster_id: Some("cluster".to_owned()),
            brokers: vec![BrokerInfo { id: 1, host: "127.0.0.1".to_owned(), port: broker.port }],
            topics: vec![
                TopicMetadata {
                    name: "t".to_owned(),
                    id: Some(TOPIC_ID),
                    error: 0,
                    partitions: vec![
                        leader(0, Some(1)),
                        leader(1, Some(1)),
                        leader(2, None),
                        leader(3, None),
                    ],
                },
                TopicMetadata {
                    name: "missing".to_owned(),
                    id: None,
                    error: 3,
                    partitions: vec![],
                },
            ],
        }
    );
    assert_eq!(driver.metadata(&[]).await.unwrap().topics, []);
    let asked = broker.seen(METADATA);
    let none = [0, compact(0), 0, 0, 0];
    assert_eq!(&asked[1].body[..], none, "no topic is asked for, which is not null");
}

#[tokio::test]
async fn a_producer_id_or_the_reason_why_not() {
    let codes = Arc::new(AtomicUsize::new(0));
    let broker = Broker::start(move |i| match i.api {
        INIT_PRODUCER_ID if codes.fetch_add(1, Ordering::SeqCst) == 0 => {
            init_producer_id(i, COORDINATOR_LOAD_IN_PROGRESS)
        }
        INIT_PRODUCER_ID => init_producer_id(i, 0),
        _ => Reaction::Answer(vec![]),
    })
    .await;
    let mut driver = Driver::new(&[&broker.address()], |_| {});
    driver.kafka.send(Request::InitProducerId);
    assert_eq!(driver.next().await, Answer::ProducerId(Ok(Err(COORDINATOR_LOAD_IN_PROGRESS))));
    driver.kafka.send(Request::InitProducerId);
    assert_eq!(driver.next().await, Answer::ProducerId(Ok(Ok(ProducerId { id: 4000, epoch: 7 }))));
}

#[tokio::test]
async fn a_topic_is_created_or_the_broker_says_why_not() {
    let asked = Arc::new(AtomicUsize::new(0));
    let broker = Broker::start(move |i| {
        if i.api == API_VERSIONS {
            return Reaction::Answer(vec![]);
        }
        assert_eq!((i.api, i.version), (CREATE_TOPICS, 4));
        let mut out = Vec::new();
        out.put_i32(0);
        out.put_i32(2);
        put_string(&mut out, "t");
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 => {
                out.put_i16(INVALID_CONFIG);
                put_string(&mut out, "Unknown topic config name: a");
            }
            _ => {
                out.put_i16(0);
                out.put_i16(-1);
            }
        }
        put_string(&mut out, "u");
        out.put_i16(0);
        out.put_i16(-1);
        Reaction::Answer(out)
    })
    .await;
    let mut driver = Driver::new(&[&broker.address()], |_| {});
    let new = NewTopic {
        partitions: Some(3),
        replication_factor: None,
        configs: vec![("a".to_owned(), "b".to_owned())],
    };
    let (topic, other): (Arc<str>, Arc<str>) = (Arc::from("t"), Arc::from("u"));
    let mut create = async || {
        let topics = vec![(Arc::clone(&other), new.clone()), (Arc::clone(&topic), new.clone())];
        driver.kafka.send(Request::CreateTopics { topics });
        let Answer::TopicsCreated { topics, answer } = driver.next().await else { panic!() };
        assert_eq!(topics, [Arc::clone(&other), Arc::clone(&topic)]);
        let [first, second] = answer.unwrap().try_into().unwrap();
        assert_eq!(first, Ok(()), "in the order of the request");
        second
    };
    let message = Some("Unknown topic config name: a".to_owned());
    assert_eq!(create().await, Err(CreateRefusal { error: INVALID_CONFIG, message }));
    assert_eq!(create().await, Ok(()));
}

#[tokio::test]
async fn an_answer_for_another_topic_is_no_answer() {
    let broker = Broker::start(|_| {
        let mut out = Vec::new();
        out.put_i32(0);
        out.put_i32(1);
        put_string(&mut out, "other");
        out.put_i16(0);
        out.put_i16(-1);
        Reaction::Answer(out)
    })
    .await;
    let mut driver = Driver::new(&[&broker.address()], |_| {});
    let new = NewTopic { partitions: None, replication_factor: None, configs: Vec::new() };
    driver.kafka.send(Request::CreateTopics { topics: vec![(Arc::from("t"), new)] });
    let Answer::TopicsCreated { answer: Err(cause), .. } = driver.next().await else { panic!() };
    assert!(cause.0.contains("did not answer for topic t"), "{cause}");
}

#[tokio::test]
async fn a_produce_whose_lease_is_over_is_answered_and_not_sent() {
    let produces = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&produces);
    let broker = lone(move |incoming| {
        seen.fetch_add(usize::from(incoming.api == PRODUCE), Ordering::Relaxed);
        Reaction::Answer(produced(&[("t", 0, 0, 5)], 0))
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    let batches = vec![batch_for("t", 0, Bytes::from_static(b"t0"))];
    driver.kafka.lease_until(Instant::now().into_std());
    driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches: batches.clone() });
    let Answer::ProduceUnanswered { sent: false, cause, .. } = driver.next().await else {
        panic!()
    };
    assert!(cause.to_string().contains("lease"), "{cause}");
    driver.kafka.lease_until(later());
    driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches });
    assert!(matches!(driver.next().await, Answer::Produced { .. }));
    assert_eq!(
        produces.load(Ordering::Relaxed),
        1,
        "the connection goes on, the first was not sent"
    );
}

#[tokio::test]
async fn a_produce_that_is_half_written_when_the_lease_ends_is_not_written_to_its_end() {
    let broker = lone(|i| match i.connection {
        1 => Reaction::ReadSlowly,
        _ => stored(i),
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    driver.send(1, 0, b"read, then hardly any more");
    let large = vec![batch_for("t", 1, Bytes::from(vec![0; 64 << 20]))];
    driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches: large });
    until(|| !broker.seen(PRODUCE).is_empty()).await;
    // It goes on while the lease is renewed, and not longer.
    for _ in 0..4 {
        driver.kafka.lease_until((Instant::now() + SHORT).into_std());
        tokio::time::sleep(SHORT / 2).await;
    }
    driver.silent();
    for partition in [0, 1] {
        let (partitions, sent, cause) = driver.unanswered().await;
        assert_eq!((partitions[0].1, sent), (partition, true));
        assert!(
            cause.ends_with("the lease on the slot was over before all of it was sent"),
            "{cause}"
        );
    }
    broker.has_open(0).await;
}

/// Symptom: a relay that had ended and still showed why wrote on what it had begun to send.
#[tokio::test]
async fn half_a_produce_is_not_written_to_its_end_once_nobody_waits_for_it() {
    let broker = lone(|i| match i.connection {
        1 => Reaction::ReadSlowly,
        _ => stored(i),
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    driver.kafka.lease_until(later());
    driver.send(1, 0, b"read, then hardly any more");
    let large = vec![batch_for("t", 1, Bytes::from(vec![0; 256 << 20]))];
    driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches: large });
    until(|| !broker.seen(PRODUCE).is_empty()).await;
    driver.silent();
    drop(driver.answers);
    broker.has_open(0).await;
}

#[tokio::test]
async fn every_partition_of_a_produce_has_its_own_answer() {
    let broker = lone(|_| {
        let all =
            [("u", 0, 0, 7), ("t", 3, NOT_ENOUGH_REPLICAS, -1), ("t", 0, 0, 5), ("t", 12, 0, 9)];
        Reaction::Answer(produced(&all, 1500))
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    let batches = vec![
        batch_for("t", 12, Bytes::from_static(b"t12")),
        batch_for("u", 0, Bytes::from_static(b"u0")),
        batch_for("t", 0, Bytes::from_static(b"t0")),
        batch_for("t", 3, Bytes::from_static(b"t3")),
    ];
    driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches });

    let begun = Instant::now();
    let Answer::Produced { broker: 1, partitions, throttle } = driver.next().await else {
        panic!()
    };
    assert_eq!(throttle, Duration::from_millis(1500));
    assert!(begun.elapsed() < throttle, "the result does not wait for the throttling to end");
    let said: Vec<_> =
        partitions.iter().map(|p| (&*p.topic, p.partition, p.error, p.base_offset)).collect();
    let expected =
        [("t", 0, 0, 5), ("t", 3, NOT_ENOUGH_REPLICAS, -1), ("t", 12, 0, 9), ("u", 0, 0, 7)];
    assert_eq!(said, expected);

    let seen: Vec<_> = batches_of(&broker.seen(PRODUCE)[0])
        .into_iter()
        .map(|(t, p, b)| (t, p, String::from_utf8(b.to_vec()).unwrap()))
        .collect();
    let expected = [("t", 0, "t0"), ("t", 3, "t3"), ("t", 12, "t12"), ("u", 0, "u0")];
    assert_eq!(seen, expected.map(|(t, p, b)| (t.to_owned(), p, b.to_owned())));
    driver.silent();
}

#[tokio::test]
async fn requests_are_pipelined_in_the_order_of_the_calls() {
    const N: usize = 100;
    let held = Mutex::new(Vec::new());
    let broker = lone(move |i| {
        // Not one answer before all are there; then the last first.
        let mut held = held.lock().unwrap();
        let Reaction::Answer(body) = stored(i) else { panic!() };
        held.push((i.correlation, body));
        if held.len() < N {
            return Reaction::Silence;
        }
        held.reverse();
        Reaction::Frames(std::mem::take(&mut held))
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    let batch = Bytes::from(vec![7; 300_000]);
    for n in 0..N {
        // Large and small ones in turn, so that some do not fit into the socket's buffer.
        let batch = if n % 7 == 0 { batch.clone() } else { batch.slice(..n) };
        let partition = i32::try_from(n).unwrap();
        let batches = vec![batch_for("t", partition, batch)];
        driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches });
    }
    for n in (0..N).rev() {
        assert_eq!(driver.produced().await[0].partition, i32::try_from(n).unwrap());
    }
    let seen = broker.seen(PRODUCE).into_iter().map(|i| batches_of(&i)[0].1);
    assert!(seen.eq(0..i32::try_from(N).unwrap()));
    assert_eq!(broker.open.load(Ordering::SeqCst), 1, "all on one connection");
}

#[tokio::test]
async fn a_connection_closed_after_a_produce_leaves_it_unanswered_and_is_opened_again() {
    let cut = AtomicUsize::new(0);
    let broker = lone(move |i| match cut.fetch_add(1, Ordering::SeqCst) {
        0 => Reaction::Close,
        _ => stored(i),
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    driver.send(1, 0, b"lost");
    let (partitions, sent, cause) = driver.unanswered().await;
    assert_eq!((partitions, sent), (vec![(Arc::from("t"), 0)], true));
    assert_eq!(cause, format!("{}: closed the connection", broker.address()));

    // Sent without knowing of the loss: it must not go out first.
    driver.send(1, 0, b"newer");
    let (_, sent, same) = driver.unanswered().await;
    assert_eq!((sent, same), (false, cause));

    after_the_pause().await;
    driver.send(1, 0, b"lost");
    assert_eq!(driver.produced().await[0].base_offset, 100);
    let seen: Vec<_> = broker.seen(PRODUCE).iter().map(|i| batches_of(i)[0].2.clone()).collect();
    assert_eq!(seen, ["lost", "lost"]);
}

#[tokio::test]
async fn a_connection_closed_before_a_produce_is_read() {
    let port = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&port);
    let broker = Broker::start(move |i| match (i.api, i.connection) {
        (METADATA, _) => metadata(i, &[(1, u16::try_from(own.load(Ordering::SeqCst)).unwrap())]),
        // The answer to ApiVersions and the end in one go.
        (API_VERSIONS, 1) => Reaction::Close,
        (PRODUCE, _) => stored(i),
        _ => Reaction::Answer(vec![]),
    })
    .await;
    port.store(usize::from(broker.port), Ordering::SeqCst);
    let mut driver = Driver::connected(&broker).await;
    driver.send(1, 0, b"a");
    let (_, sent, cause) = driver.unanswered().await;
    assert!(!sent);
    assert!(cause.contains("asked for its versions: closed the connection"), "{cause}");
    after_the_pause().await;
    driver.send(1, 0, b"a");
    driver.produced().await;
    assert_eq!(broker.seen(PRODUCE).len(), 1);
}

#[tokio::test]
async fn no_answer_in_time_gives_up_the_connection_and_all_that_wait_on_it() {
    let broker = lone(|i| if i.connection == 1 { Reaction::Silence } else { stored(i) }).await;
    let mut driver = Driver::connected_with(&broker, SHORT).await;
    let begun = Instant::now();
    for partition in 0..3 {
        driver.send(1, partition, b"x");
    }
    for partition in 0..3 {
        let (partitions, sent, cause) = driver.unanswered().await;
        assert_eq!((partitions, sent), (vec![(Arc::from("t"), partition)], true));
        assert_eq!(cause, format!("{}: no answer within 400 ms", broker.address()));
    }
    assert!((SHORT..SHORT * 10).contains(&begun.elapsed()));
    broker.has_open(0).await;
    after_the_pause().await;
    driver.send(1, 0, b"x");
    driver.produced().await;
    driver.silent();
}

#[tokio::test]
async fn a_broker_that_hardly_reads_holds_nothing_for_longer_than_the_time_out() {
    let broker = lone(|i| match i.connection {
        1 => Reaction::ReadSlowly,
        _ => stored(i),
    })
    .await;
    let mut driver = Driver::connected_with(&broker, SHORT).await;
    driver.send(1, 0, b"read, then hardly any more");
    let large = vec![batch_for("t", 1, Bytes::from(vec![0; 64 << 20]))];
    driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches: large });
    driver.send(1, 2, b"waits behind the large one");
    let begun = Instant::now();
    for (partition, was_sent) in [(0, true), (1, true), (2, false)] {
        let (partitions, sent, _) = driver.unanswered().await;
        assert_eq!((partitions[0].1, sent), (partition, was_sent));
    }
    assert!(begun.elapsed() < SHORT * 10);
    // The messenger would go on writing in a task of its own, for 20 s at this speed.
    broker.has_open(0).await;
    after_the_pause().await;
    driver.send(1, 1, b"again");
    driver.produced().await;
}

#[tokio::test]
async fn a_broker_without_a_version_we_speak_is_sent_nothing() {
    // Produce up to version 2.
    let old = Broker::start(|i| Reaction::Frames(vec![(i.correlation, versions(2))])).await;
    let naming = naming(vec![(1, old.port)]).await;
    let mut driver = Driver::connected(&naming).await;
    driver.send(1, 0, b"x");
    let (_, sent, cause) = driver.unanswered().await;
    assert!(!sent && cause.contains("version") && cause.contains("Produce"), "{cause}");
    assert!(old.seen(PRODUCE).is_empty());
}

/// Produce, version 13: offset 100 for every partition of topic `t`.
fn stored_by_id(incoming: &Incoming) -> Reaction {
    let mut b = incoming.body.clone();
    assert_eq!((b.get_u8(), b.get_u8()), (0, 0), "no tagged fields, no transaction");
    assert_eq!((b.get_i16(), b.get_i32(), b.get_u8()), (-1, 8000, compact(1)));
    assert_eq!(b.split_to(16), TOPIC_ID.as_bytes()[..]);
    let mut out = vec![0, compact(1)];
    out.put_slice(TOPIC_ID.as_bytes());
    let count = b.get_u8();
    out.put_u8(count);
    for _ in 1..count {
        out.put_i32(b.get_i32());
        let len = usize::from(b.get_u8()) - 1;
        b.advance(len + 1);
        out.put_i16(0);
        out.put_i64(100);
        out.put_i64(-1);
        out.put_i64(0);
        out.put_slice(&[compact(0), 0, 0]);
    }
    assert_eq!(&*b, [0, 0], "no tagged fields");
    out.put_u8(0);
    out.put_i32(0);
    out.put_u8(0);
    Reaction::Answer(out)
}

#[tokio::test]
async fn topics_are_named_by_their_ids_to_a_broker_that_understands_it() {
    let broker = lone(|i| if i.version == 13 { stored_by_id(i) } else { stored(i) }).await;
    let mut driver = Driver::connected(&broker).await;
    let of_t = |partition, topic_id| {
        let batch = batch_for("t", partition, Bytes::from_static(b"x"));
        PartitionBatch { topic_id, ..batch }
    };
    for (ids, version) in [([Some(TOPIC_ID); 2], 13), ([None; 2], 7)] {
        let batches = vec![of_t(0, ids[0]), of_t(1, ids[1])];
        driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches });
        let answers = driver.produced().await;
        let said: Vec<_> = answers.iter().map(|a| (&*a.topic, a.partition, a.error)).collect();
        assert_eq!(said, [("t", 0, 0), ("t", 1, 0)]);
        assert_eq!(broker.seen(PRODUCE).last().unwrap().version, version);
    }
}

#[tokio::test]
async fn topics_are_named_by_their_names_to_an_older_broker() {
    let port = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&port);
    let broker = Broker::start(move |i| match i.api {
        API_VERSIONS => Reaction::Frames(vec![(i.correlation, versions(12))]),
        METADATA => metadata(i, &[(1, u16::try_from(own.load(Ordering::SeqCst)).unwrap())]),
        _ => stored(i),
    })
    .await;
    port.store(usize::from(broker.port), Ordering::SeqCst);
    let mut driver = Driver::connected(&broker).await;
    let batch = batch_for("t", 0, Bytes::from_static(b"x"));
    let batches = vec![PartitionBatch { topic_id: Some(TOPIC_ID), ..batch }];
    driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches });
    assert_eq!(driver.produced().await.len(), 1);
}

#[tokio::test]
async fn an_answer_to_something_else_is_none() {
    let broker = lone(|i| {
        let Reaction::Answer(body) = stored(i) else { panic!() };
        let id = if i.connection == 1 { i.correlation + 1000 } else { i.correlation };
        Reaction::Frames(vec![(id, body)])
    })
    .await;
    let mut driver = Driver::connected_with(&broker, SHORT).await;
    driver.send(1, 0, b"x");
    let (_, sent, cause) = driver.unanswered().await;
    assert!(sent && cause.ends_with("no answer within 400 ms"), "{cause}");
    after_the_pause().await;
    driver.send(1, 0, b"x");
    driver.produced().await;
}

#[tokio::test]
async fn an_answer_that_does_not_fit_the_request_is_none() {
    let mut absurd = produced(&[], 0);
    absurd[..4].copy_from_slice(&i32::MAX.to_be_bytes());
    let mut negative = produced(&[], 0);
    negative[..4].copy_from_slice(&(-2_i32).to_be_bytes());
    let mut long = produced(&[("t", 0, 0, 1), ("t", 1, 0, 1)], 0);
    long.push(0);
    let both = [("t", 0, 0, 1), ("t", 1, 0, 1)];
    let frame = |len: i32| Reaction::Raw(len.to_be_bytes().to_vec());
    let cases: Vec<(Stubborn, &str)> = vec![
        (Box::new(move || Reaction::Answer(produced(&both[..1], 0))), "did not answer for t[1]"),
        (Box::new(|| Reaction::Answer(produced(&[], 0))), "did not answer for t[0]"),
        (
            Box::new(move || Reaction::Answer(produced(&[both[0], both[1], ("t", 2, 0, 1)], 0))),
            "answered for t[2], not asked for",
        ),
        (
            Box::new(move || Reaction::Answer(produced(&[both[0], both[1], ("T", 1, 0, 1)], 0))),
            "answered for T[1], not asked for",
        ),
        (
            Box::new(move || Reaction::Answer(produced(&[both[0], both[1], both[0]], 0))),
            "answered for t[0] twice",
        ),
        (Box::new(move || Reaction::Answer(absurd.clone())), "ended early"),
        (Box::new(move || Reaction::Answer(negative.clone())), "an array of length -2"),
        (Box::new(move || Reaction::Answer(long.clone())), "Data left at the end"),
        (Box::new(move || frame(-5)), "Negative message size"),
        (Box::new(move || frame(i32::MAX)), "no answer within"),
    ];
    for (answer, expected) in cases {
        let broker = lone(move |_| answer()).await;
        let mut driver = Driver::connected_with(&broker, SHORT).await;
        let two = vec![
            batch_for("t", 0, Bytes::from_static(b"0")),
            batch_for("t", 1, Bytes::from_static(b"1")),
        ];
        driver.kafka.send(Request::Produce { broker: 1, transaction: None, batches: two });
        let (partitions, sent, cause) = driver.unanswered().await;
        assert!(partitions.len() == 2 && sent);
        assert!(cause.contains(expected), "{cause:?} instead of {expected:?}");
        broker.has_open(0).await;
        driver.silent();
    }
}

#[tokio::test]
async fn the_bootstrap_list_is_tried_in_turn() {
    let broker = lone(stored).await;
    let dead = unused_port().await;
    let mut driver = Driver::new(&["nonsense", &dead, &broker.address()], |_| {});
    driver.metadata(&["t"]).await.unwrap();
    driver.send(1, 0, b"x");
    driver.produced().await;
}

#[tokio::test]
async fn a_silent_address_does_not_use_up_the_time_of_the_next() {
    let silent = Broker::start(|_| Reaction::Silence).await;
    let broker = lone(stored).await;
    let mut driver = Driver::new(&[&silent.address(), &broker.address()], |_| {});
    let begun = Instant::now();
    driver.metadata(&["t"]).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn when_nobody_answers_each_says_why() {
    let (a, b) = (unused_port().await, unused_port().await);
    let mut driver = Driver::new(&[&a, "localhost", &b], |_| {});
    let Unanswered(cause) = driver.metadata(&[]).await.unwrap_err();
    for part in [
        "\"localhost\" is not host:port (an IPv6 address goes in brackets)".to_owned(),
        format!("{a}: cannot connect: Connection refused (os error 111) (does a broker run there"),
        format!("{b}: cannot connect: Connection refused (os error 111) (does a broker run there"),
    ] {
        assert!(cause.contains(&part), "{cause}");
    }
    driver.kafka.send(Request::InitProducerId);
    assert!(matches!(driver.next().await, Answer::ProducerId(Err(_))));

    let mut nowhere = Driver::new(&[], |_| {});
    assert_eq!(nowhere.metadata(&[]).await, Err(Unanswered("no bootstrap address".to_owned())));
}

#[tokio::test]
async fn a_broker_that_does_not_speak_kafka_is_given_up_in_time() {
    for (reaction, expected) in [
        (Box::new(|| Reaction::Silence) as Stubborn, "does not answer like"),
        (
            Box::new(|| Reaction::Raw(b"HTTP/1.1 400 Bad Request\r\n".to_vec())),
            "does not answer like",
        ),
        (Box::new(|| Reaction::Raw(vec![255; 4])), "Negative message size"),
        (Box::new(|| Reaction::Close), "closed the connection"),
    ] {
        let broker = Broker::start(move |_| reaction()).await;
        let mut driver =
            Driver::new(&[&broker.address()], |c| c.connect_timeout = Duration::from_millis(150));
        let begun = Instant::now();
        let Unanswered(cause) = driver.metadata(&[]).await.unwrap_err();
        assert!(cause.contains(expected), "{cause}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        broker.has_open(0).await;
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_made_is_refused_unsent() {
    let broker = lone(stored).await;
    let mut driver = Driver::connected(&broker).await;
    let one = batch_for("t", 0, Bytes::from_static(b"x"));
    let long = batch_for(&"t".repeat(40_000), 0, Bytes::from_static(b"x"));
    for (to, batches, expected) in [
        (2, vec![one.clone()], "broker 2 is not among the live brokers"),
        (1, vec![one.clone(), one.clone()], "t[0] twice in one produce request"),
        (1, vec![], "a produce request without a batch"),
        (1, vec![long], "a topic name of 40000 bytes"),
    ] {
        driver.kafka.send(Request::Produce { broker: to, transaction: None, batches });
        let (_, sent, cause) = driver.unanswered().await;
        assert_eq!((sent, cause.as_str()), (false, expected));
    }
    assert_eq!(broker.open.load(Ordering::SeqCst), 0, "nobody was bothered");
}

#[tokio::test]
async fn a_dead_broker_is_not_dialled_in_a_loop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let broker = naming(vec![(1, port)]).await;
    let mut driver = Driver::connected(&broker).await;
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        driver.send(1, 0, b"x");
        let (_, sent, _) = driver.unanswered().await;
        assert!(!sent);
    }
    let dials = dials.load(Ordering::SeqCst);
    assert!((1..=7).contains(&dials), "{dials} dials in 300 ms");
}

#[tokio::test]
async fn the_bootstrap_list_is_asked_again_when_all_known_brokers_are_gone() {
    let broker = lone(stored).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ports = [listener.local_addr().unwrap().port(), broker.port];
    drop(listener);
    let asked = AtomicUsize::new(0);
    let guide = Broker::start(move |i| {
        let port = ports[asked.fetch_add(usize::from(i.api == METADATA), Ordering::SeqCst).min(1)];
        if i.api == METADATA { metadata(i, &[(1, port)]) } else { Reaction::Answer(vec![]) }
    })
    .await;
    let mut driver = Driver::connected(&guide).await;
    driver.send(1, 0, b"x");
    assert!(!driver.unanswered().await.1);
    assert_eq!(driver.metadata(&[]).await.unwrap().brokers[0].port, broker.port);
    driver.send(1, 0, b"x");
    driver.produced().await;
}

#[tokio::test]
async fn a_broker_that_is_not_named_any_more_is_dropped() {
    let broker = lone(stored).await;
    let port = broker.port;
    let guide = naming(vec![(1, port), (2, port)]).await;
    let mut driver = Driver::connected(&guide).await;
    driver.send(2, 0, b"x");
    driver.produced().await;
    // This time a known broker is asked, and names only itself.
    assert_eq!(driver.metadata(&[]).await.unwrap().brokers.len(), 1);
    driver.send(2, 0, b"x");
    assert_eq!(driver.unanswered().await.2, "broker 2 is not among the live brokers");
}

#[tokio::test]
async fn a_changed_address_gets_a_new_connection_and_the_old_one_finishes() {
    let new = lone(stored).await;
    let new_port = new.port;
    let own = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&own);
    let held = Mutex::new(Vec::new());
    let asked = AtomicUsize::new(0);
    let old = Broker::start(move |i| match i.api {
        METADATA if asked.fetch_add(1, Ordering::SeqCst) == 0 => {
            metadata(i, &[(1, u16::try_from(told.load(Ordering::SeqCst)).unwrap())])
        }
        METADATA => {
            // Answers the produce that is under way after the news of its own removal.
            let mut frames = vec![];
            let Reaction::Answer(body) = metadata(i, &[(1, new_port)]) else { panic!() };
            frames.push((i.correlation, body));
            frames.append(&mut held.lock().unwrap());
            Reaction::Frames(frames)
        }
        PRODUCE => {
            let Reaction::Answer(body) = stored(i) else { panic!() };
            held.lock().unwrap().push((i.correlation, body));
            Reaction::Silence
        }
        _ => Reaction::Answer(vec![]),
    })
    .await;
    own.store(usize::from(old.port), Ordering::SeqCst);
    let mut driver = Driver::connected(&old).await;
    driver.send(1, 0, b"under way");
    driver.kafka.send(Request::Metadata { topics: vec![] });
    let (mut moved, mut done) = (false, false);
    for _ in 0..2 {
        match driver.next().await {
            Answer::Metadata(m) => moved = m.unwrap().brokers[0].port == new_port,
            Answer::Produced { .. } => done = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(moved && done);
    old.has_open(0).await;
    driver.send(1, 0, b"to the new address");
    driver.produced().await;
    assert_eq!((old.seen(PRODUCE).len(), new.seen(PRODUCE).len()), (1, 1));
}

#[tokio::test]
async fn one_silent_broker_does_not_hold_up_another() {
    let silent = Broker::start(|i| match i.api {
        PRODUCE => Reaction::Silence,
        _ => Reaction::Answer(vec![]),
    })
    .await;
    let silent_port = silent.port;
    let own = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&own);
    let broker = Broker::start(move |i| match i.api {
        METADATA => {
            let own = u16::try_from(told.load(Ordering::SeqCst)).unwrap();
            metadata(i, &[(1, silent_port), (2, own)])
        }
        PRODUCE => stored(i),
        _ => Reaction::Answer(vec![]),
    })
    .await;
    own.store(usize::from(broker.port), Ordering::SeqCst);
    let mut driver = Driver::connected_with(&broker, SHORT).await;
    driver.send(1, 0, b"x");
    for _ in 0..20 {
        driver.send(2, 1, b"y");
        assert_eq!(driver.produced().await[0].partition, 1);
    }
    assert_eq!(driver.unanswered().await.0, [(Arc::from("t"), 0)]);
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_nothing() {
    let broker = lone(stored).await;
    // A proxy that goes away is the simplest broker that closes an idle connection.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = broker.address();
    let (close, mut closed) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let mut to = TcpStream::connect(&target).await.unwrap();
            let mut closed = closed.clone();
            closed.mark_unchanged();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                    _ = closed.changed() => {}
                }
            });
        }
    });
    closed = close.subscribe();
    let guide = naming(vec![(1, port)]).await;
    let mut driver = Driver::connected(&guide).await;
    for _ in 0..3 {
        driver.send(1, 0, b"x");
        driver.produced().await;
        close.send_modify(|n| *n += 1);
        closed.changed().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn dropping_the_driver_lets_what_was_sent_finish() {
    let broker = lone(stored).await;
    let Driver { kafka, mut answers } = {
        let driver = Driver::connected(&broker).await;
        driver.send(1, 0, b"x");
        driver.kafka.send(Request::Metadata { topics: vec![] });
        driver
    };
    drop(kafka);
    let mut kinds = Vec::new();
    while let Some(answer) = answers.recv().await {
        kinds.push(matches!(answer, Answer::Produced { .. } | Answer::Metadata(Ok(_))));
    }
    assert_eq!(kinds, [true, true]);
    broker.has_open(0).await;
}

#[tokio::test]
async fn dropping_the_receiver_closes_everything() {
    let broker = lone(|_| Reaction::Silence).await;
    let driver = Driver::connected(&broker).await;
    driver.send(1, 0, b"x");
    broker.has_open(1).await;
    drop(driver.answers);
    broker.has_open(0).await;
}

#[test]
fn a_stopped_runtime_answers_what_was_open() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut answers = runtime.block_on(async {
        let broker = lone(|_| Reaction::Silence).await;
        let driver = Driver::connected(&broker).await;
        driver.send(1, 0, b"x");
        driver.kafka.send(Request::InitProducerId);
        until(|| !broker.seen(PRODUCE).is_empty()).await;
        driver.answers
    });
    drop(runtime);
    let mut n = 0;
    while answers.try_recv().is_ok() {
        n += 1;
    }
    assert_eq!(n, 2);
}

#[tokio::test]
async fn every_request_is_answered_once_whatever_the_broker_does() {
    const N: usize = 400;
    let seed = Arc::new(AtomicUsize::new(12345));
    let random = move || {
        let next = |s: usize| s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
        seed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |s| Some(next(s))).unwrap() >> 33
    };
    let broker = lone({
        let random = random.clone();
        move |i| match random() % 40 {
            0 => Reaction::Close,
            1 => Reaction::Silence,
            2 => Reaction::Frames(vec![(i.correlation + 1, vec![])]),
            3 => Reaction::Raw(vec![255; 9]),
            4 => Reaction::StopReading,
            5 => Reaction::Answer(produced(&[], 0)),
            _ => stored(i),
        }
    })
    .await;
    let mut driver = Driver::connected_with(&broker, Duration::from_millis(100)).await;
    // The partition tells the requests apart.
    let (mut stored, mut lost, mut unsent) = (vec![], vec![], vec![]);
    let mut open = 0;
    for n in 0..=N {
        let mut keep = 0;
        if n < N {
            driver.send(1, i32::try_from(n).unwrap(), b"x");
            open += 1;
            keep = random() % 8;
        }
        while open > keep {
            open -= 1;
            match driver.next().await {
                Answer::Produced { partitions, .. } => stored.push(partitions[0].partition),
                Answer::ProduceUnanswered { batches, sent: true, .. } => {
                    lost.push(batches[0].partition);
                }
                Answer::ProduceUnanswered { batches, sent: false, .. } => {
                    unsent.push(batches[0].partition);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    driver.silent();
    assert!(stored.len() > 50 && lost.len() > 10 && unsent.len() > 10);
    let seen: BTreeSet<_> = broker.seen(PRODUCE).iter().map(|i| batches_of(i)[0].1).collect();
    assert!(stored.iter().all(|n| seen.contains(n)));
    assert!(unsent.iter().all(|n| !seen.contains(n)), "what was not sent did not arrive");
    let mut all: Vec<_> = stored.into_iter().chain(lost).chain(unsent).collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..i32::try_from(N).unwrap()));
}

async fn unused_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}
