//! The relay engine against a scripted server and a scripted broker: no sockets, no runtime, and a
//! clock that only moves when a test says so.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]
#![expect(clippy::disallowed_methods, reason = "the start of a clock that then stands still")]

mod recorded;
#[path = "recorded/replayed.rs"]
mod replayed;

use bytes::BytesMut;
use factlib::relay::compression::Compression;
use factlib::relay::error_code::{
    NONE, POLICY_VIOLATION, TOPIC_AUTHORIZATION_FAILED, UNKNOWN_TOPIC_OR_PARTITION,
};
use factlib::relay::event::{End, Event, GivenUp};
use factlib::relay::gone::{self, Exit, ExitKind, Gone};
use factlib::relay::kafka::{
    Answer, Broker, CreateRefusal, Metadata, NewTopic, PartitionAnswer, PartitionBatch,
    PartitionMetadata, ProducerId, Request, TopicMetadata, Unanswered,
};
use factlib::relay::poison::{Cause, Policies, Policy, TopicPattern};
use factlib::relay::position::Unit;
use factlib::relay::route::partition;
use factlib::relay::template::{Field, Naming, Template};
use factlib::relay::{Identity, Input, Now, Output, Reading, Relay, Settings, Standing, State};
use factlib_protocol::backend::{ServerError, SqlState};
use factlib_protocol::replication::{PrimaryKeepalive, StandbyStatusUpdate, XLogData};
use factlib_protocol::{Frame, Lsn, Timestamp, pgoutput};
use rskafka::protocol::record::{ControlBatchOrRecords, RecordBatch};
use rskafka::protocol::traits::ReadType as _;
use sha2::Digest as _;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::rng::Rng;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings {
        prefixes: vec!["orders".to_owned()],
        naming: Naming::default(),
        value_is_payload: false,
        timestamp_is_publish: false,
        metadata_headers: false,
        in_flight_bytes_max: 8 * 1024 * 1024,
        frame_bytes_max: 64 * 1024 * 1024,
        stall_timeout: 3 * SECOND,
        lease: 10 * SECOND,
        status_interval: 5 * SECOND,
        stop_timeout: 10 * SECOND,
        backoff_max: 5 * SECOND,
        metadata_age_max: 300 * SECOND,
        batch_bytes: 384 * 1024,
        batch_records: 10_000,
        compression: Compression::None,
        policies: Policies::HALT,
        create_topics: None,
        skip_stored: false,
        delivery: factlib::relay::Delivery::AtLeastOnce,
        in_flight_per_partition: 5,
        keeps_order: false,
        startup_timeout: Some(30 * SECOND),
        seed: 7,
    }
}

fn identity() -> Identity {
    Identity {
        system: 7,
        timeline: 1,
        wal_flushed: Lsn(1_000_000),
        history: Vec::new(),
        database: 5,
        confirmed_flush: Lsn(1),
    }
}

/// The engine, and everything it said.
struct Rig {
    relay: Relay,
    now: Now,
    /// When the server's clock showed zero.
    begun: Instant,
    connects: usize,
    starts: Vec<Lsn>,
    statuses: Vec<StandbyStatusUpdate>,
    /// How often the relay said CopyDone.
    copy_dones: usize,
    hangups: usize,
    requests: Vec<Request>,
    events: Vec<Event>,
    exit: Option<Exit>,
    // The cluster.
    cluster: String,
    leader: i32,
    partitions: i32,
    /// Topic `orders.order` is not there.
    deleted: bool,
    /// What is said of topics that are missing.
    missing_error: i16,
}

impl Rig {
    fn new(settings: Settings) -> Self {
        let now = Now { at: Instant::now(), clock: Timestamp(0) };
        let mut rig = Self {
            relay: Relay::new(settings),
            now,
            begun: now.at,
            connects: 0,
            starts: Vec::new(),
            statuses: Vec::new(),
            copy_dones: 0,
            hangups: 0,
            requests: Vec::new(),
            events: Vec::new(),
            exit: None,
            cluster: "cluster".to_owned(),
            leader: 1,
            partitions: 2,
            deleted: false,
            missing_error: UNKNOWN_TOPIC_OR_PARTITION,
        };
        rig.input(Input::Timeout);
        rig
    }

    /// Streaming, with a cluster that is known and the topic `orders.order` of two partitions.
    fn streaming_with(settings: Settings) -> Self {
        let mut rig = Self::new(settings);
        rig.answer_metadata();
        rig.answer_producer_id(4000);
        rig.connect(identity());
        rig
    }

    fn connect(&mut self, identity: Identity) {
        self.input(Input::Identified(identity));
        self.input(Input::Streaming { asked_at: self.now.at });
        // The server answers the first ping.
        self.keepalive(1, false);
    }

    fn input(&mut self, input: Input) {
        self.relay.handle(self.now, input);
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Connect { .. } => self.connects += 1,
                Output::StartReplication { start } => self.starts.push(start),
                Output::Send(bytes) => self.sent(&bytes),
                Output::Hangup => self.hangups += 1,
                Output::Kafka(request) => self.requests.push(request),
                Output::Event(event) => self.events.push(event),
                Output::Exit(exit) => self.exit = Some(exit),
            }
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(frame) = Frame::decode(rest, 100).unwrap() {
            match frame.tag {
                b'd' => self.statuses.push(StandbyStatusUpdate::decode(frame.body).unwrap()),
                b'c' => self.copy_dones += 1,
                _ => {}
            }
            rest = &rest[frame.encoded_len()..];
        }
    }

    /// Lets time pass, with every deadline on the way.
    fn pass(&mut self, time: Duration) {
        let until = self.now.at + time;
        while let Some(deadline) = self.relay.deadline().filter(|deadline| *deadline <= until) {
            self.now.at = self.now.at.max(deadline);
            self.input(Input::Timeout);
            assert!(
                self.relay.deadline().is_none_or(|next| next > self.now.at),
                "a deadline that has been served is still due"
            );
        }
        self.now.at = until;
    }

    fn standing(&self) -> Standing {
        self.relay.standing(self.now.at)
    }

    // ---- PostgreSQL ----

    fn receive(&mut self, bytes: &[u8]) {
        self.relay.receive_buffer().extend_from_slice(bytes);
        self.input(Input::Received { bytes: bytes.len(), drained: true });
    }

    fn keepalive(&mut self, wal_end: u64, reply_requested: bool) {
        self.keepalive_of(self.now.at, wal_end, reply_requested);
    }

    /// Sent at `sent`, and read now.
    fn keepalive_of(&mut self, sent: Instant, wal_end: u64, reply_requested: bool) {
        let mut out = BytesMut::new();
        let server_clock = Timestamp(i64::try_from((sent - self.begun).as_micros()).unwrap());
        PrimaryKeepalive { wal_end: Lsn(wal_end), server_clock, reply_requested }.encode(&mut out);
        self.receive(&out);
    }

    /// Everything that the relay said was read, up to its CopyDone.
    fn end_copy(&mut self) {
        assert_eq!(self.copy_dones, 1);
        self.receive(b"c\0\0\0\x04");
    }

    fn flush(&self) -> Lsn {
        self.statuses.last().unwrap().flush
    }

    // ---- Kafka ----

    fn take(&mut self, wanted: impl Fn(&Request) -> bool) -> Option<Request> {
        let at = self.requests.iter().position(wanted)?;
        Some(self.requests.remove(at))
    }

    fn answer_metadata(&mut self) {
        let request = self.take(|request| matches!(request, Request::Metadata { .. }));
        let Some(Request::Metadata { topics }) = request else { panic!("no metadata wanted") };
        let topics = topics.iter().map(|name| {
            let missing = name.ends_with("missing") || (self.deleted && name.ends_with("order"));
            let partition = |index| PartitionMetadata { index, leader: Some(self.leader) };
            TopicMetadata {
                name: name.to_string(),
                id: None,
                error: if missing { self.missing_error } else { NONE },
                partitions: (0..self.partitions).filter(|_| !missing).map(partition).collect(),
            }
        });
        let broker = |id| Broker { id, host: "kafka".to_owned(), port: 9092 };
        let metadata = Metadata {
            cluster_id: Some(self.cluster.clone()),
            brokers: [1, 2].map(broker).into(),
            topics: topics.collect(),
        };
        self.input(Input::Kafka(Answer::Metadata(Ok(metadata))));
    }

    fn answer_producer_id(&mut self, id: i64) {
        self.take(|request| *request == Request::InitProducerId).expect("no producer id wanted");
        self.input(Input::Kafka(Answer::ProducerId(Ok(Ok(ProducerId { id, epoch: 0 })))));
    }

    fn produce(&mut self) -> Option<Vec<PartitionBatch>> {
        match self.take(|request| matches!(request, Request::Produce { .. }))? {
            Request::Produce { batches, .. } => Some(batches),
            _ => None,
        }
    }

    fn answer(&mut self, batches: &[PartitionBatch], error: i16) {
        let partitions = batches
            .iter()
            .map(|batch| PartitionAnswer {
                topic: batch.topic.clone(),
                partition: batch.partition,
                base_sequence: batch.base_sequence,
                error,
                base_offset: 0,
            })
            .collect();
        let answer = Answer::Produced { broker: 1, partitions, throttle: Duration::ZERO };
        self.input(Input::Kafka(answer));
    }

    fn no_answer(&mut self, batches: &[PartitionBatch]) {
        let cause = Unanswered("connection reset".to_owned());
        self.input(Input::Kafka(Answer::ProduceUnanswered {
            broker: 1,
            batches: batches.to_vec(),
            sent: true,
            cause,
        }));
    }

    /// Sends everything that is to be sent and lets it be stored; the keys, in order.
    fn store_all(&mut self) -> Vec<String> {
        let mut keys = Vec::new();
        while let Some(batches) = self.produce() {
            batches.iter().for_each(|batch| keys.extend(keys_of(batch)));
            self.answer(&batches, 0);
        }
        keys
    }
}

fn batch_of(batch: &PartitionBatch) -> RecordBatch {
    RecordBatch::read(&mut std::io::Cursor::new(&batch.batch)).unwrap()
}

fn records_of(batch: &PartitionBatch) -> Vec<rskafka::protocol::record::Record> {
    match batch_of(batch).records {
        ControlBatchOrRecords::Records(records) => records,
        ControlBatchOrRecords::ControlBatch(_) => panic!("control batch"),
    }
}

fn keys_of(batch: &PartitionBatch) -> Vec<String> {
    let key = |record: rskafka::protocol::record::Record| record.key.unwrap_or_default();
    records_of(batch).into_iter().map(|record| String::from_utf8(key(record)).unwrap()).collect()
}

/// Producer id, epoch and base sequence.
fn base_sequence(batch: &PartitionBatch) -> (i64, i16, i32) {
    let bytes = &batch.batch;
    let producer = i64::from_be_bytes(bytes[43..51].try_into().unwrap());
    let epoch = i16::from_be_bytes(bytes[51..53].try_into().unwrap());
    let base_sequence = i32::from_be_bytes(bytes[53..57].try_into().unwrap());
    assert_eq!(base_sequence, batch.base_sequence);
    (producer, epoch, base_sequence)
}

/// The stamp of the batch behind one of `records` records.
fn after((producer, epoch, base_sequence): (i64, i16, i32), records: i32) -> (i64, i16, i32) {
    (producer, epoch, base_sequence + records)
}

/// What a walsender sends.
#[derive(Default)]
struct Stream(BytesMut);

impl Stream {
    fn put(mut self, message: &pgoutput::Message<'_>) -> Self {
        let mut data = BytesMut::new();
        message.encode(&mut data).unwrap();
        let (wal_start, wal_end) = (Lsn(0), Lsn(0));
        let data = XLogData { wal_start, wal_end, server_clock: Timestamp(0), data: &data };
        data.encode(&mut self.0).unwrap();
        self
    }

    fn begin(self, final_lsn: u64) -> Self {
        let begin =
            pgoutput::Begin { final_lsn: Lsn(final_lsn), commit_timestamp: Timestamp(0), xid: 1 };
        self.put(&pgoutput::Message::Begin(begin))
    }

    fn content(self, lsn: u64, transactional: bool, prefix: &str, content: &[u8]) -> Self {
        self.put(&pgoutput::Message::Message(pgoutput::LogicalMessage {
            xid: None,
            transactional,
            lsn: Lsn(lsn),
            prefix: prefix.as_bytes(),
            content,
        }))
    }

    fn fact(self, lsn: u64, key: &str) -> Self {
        self.fact_of("order", lsn, key)
    }

    fn fact_of(self, aggregate_type: &str, lsn: u64, key: &str) -> Self {
        let content = format!(r#"{{"aggregate_type":"{aggregate_type}","aggregate_id":"{key}"}}"#);
        self.content(lsn, true, "orders", content.as_bytes())
    }

    fn commit(self, commit_lsn: u64) -> Self {
        self.put(&pgoutput::Message::Commit(pgoutput::Commit {
            commit_lsn: Lsn(commit_lsn),
            end_lsn: Lsn(commit_lsn + 8),
            commit_timestamp: Timestamp(0),
        }))
    }

    /// A transaction whose commit record starts at `lsn`, with these facts.
    fn transaction(self, lsn: u64, keys: &[&str]) -> Self {
        let facts = keys
            .iter()
            .zip(1..)
            .fold(self.begin(lsn), |stream, (key, index)| stream.fact(lsn - 50 + index, key));
        facts.commit(lsn)
    }
}

/// A rig that has published one fact, so that the topic is known and everything is confirmed.
fn warm() -> Rig {
    warm_with(settings())
}

fn warm_with(settings: Settings) -> Rig {
    let mut rig = Rig::streaming_with(settings);
    rig.receive(&Stream::default().transaction(100, &["first"]).0);
    rig.answer_metadata();
    assert_eq!(rig.store_all(), ["first"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(108));
    rig
}

#[test]
fn what_waits_is_as_old_as_its_commit_and_nothing_waits_when_all_is_stored() {
    let mut rig = warm();
    assert_eq!(rig.standing().oldest_commit, None);
    // The server's clock is at one second; the fact was committed at zero.
    rig.keepalive(108, false);
    let standing = rig.standing();
    assert_eq!(standing.server_ahead, 1_000_000, "ours has not moved");
    rig.receive(&Stream::default().begin(200).fact(150, "a").0);
    assert_eq!(rig.standing().oldest_commit, Some(Timestamp(0)));
    assert_eq!(rig.store_all(), ["a"]);
    assert_eq!(rig.standing().oldest_commit, Some(Timestamp(0)), "it is not read to its end");
    rig.receive(&Stream::default().commit(200).0);
    assert_eq!(rig.standing().oldest_commit, None);
    let settled = |event: &&Event| matches!(event, Event::Settled { .. });
    let Some(Event::Settled { topic, facts, committed, .. }) =
        rig.events.iter().rev().find(settled)
    else {
        panic!("nothing is settled")
    };
    assert_eq!((&**topic, *facts), ("orders.order", 1));
    assert_eq!(committed.unwrap().first, Timestamp(0));
}

#[test]
fn a_fact_that_halts_waits_although_it_is_in_no_batch() {
    let mut rig = warm();
    rig.receive(&Stream::default().begin(200).content(150, true, "orders", b"?").0);
    assert!(matches!(rig.standing().state, State::Halted(_)));
    assert_eq!(rig.standing().oldest_commit, Some(Timestamp(0)));
    assert!(!rig.standing().is_caught_up);
    // Also when the connection is given up for it.
    rig.pass(5 * SECOND);
    assert_eq!(rig.hangups, 1);
    assert_eq!(rig.standing().oldest_commit, Some(Timestamp(0)));
}

#[test]
fn a_relay_has_caught_up_once_it_has_read_what_there_was_and_all_of_it_is_stored() {
    let mut rig = Rig::streaming_with(settings());
    rig.keepalive(500, false);
    let standing = rig.standing();
    assert!(!standing.is_caught_up, "the server's log ends at 1,000,000");
    assert_eq!(standing.wal_end, Lsn(1_000_000));
    rig.keepalive(1_000_000, false);
    assert!(rig.standing().is_caught_up);
    rig.receive(&Stream::default().transaction(1_000_200, &["a"]).0);
    assert!(!rig.standing().is_caught_up);
    rig.answer_metadata();
    assert_eq!(rig.store_all(), ["a"]);
    assert!(rig.standing().is_caught_up);
    // Others' log.
    rig.keepalive(9_000_000, false);
    assert!(rig.standing().is_caught_up);
    rig.input(Input::PostgresGone(Gone::Lost("reset".to_owned())));
    assert!(!rig.standing().is_caught_up, "nobody knows");
}

#[test]
fn each_end_of_a_connection_says_what_it_was() {
    let ended = |rig: &Rig| match rig.events.last() {
        Some(Event::Away { end, .. }) => *end,
        other => panic!("{other:?}"),
    };
    let mut rig = warm();
    rig.input(Input::PostgresGone(Gone::Lost("reset".to_owned())));
    assert_eq!(ended(&rig), End::Lost);
    rig.input(Input::PostgresGone(Gone::Refused(ExitKind::Unreachable, "password".to_owned())));
    assert_eq!(ended(&rig), End::Refused);
    let mut rig = warm();
    rig.receive(b"d\0\0\0\x05?");
    rig.receive(&Stream::default().begin(300).begin(301).0);
    assert_eq!(ended(&rig), End::Unreadable);
    let mut rig = warm();
    rig.pass(11 * SECOND);
    let silent = |event: &Event| matches!(event, Event::Away { end: End::Silent, .. });
    assert!(rig.events.iter().any(silent), "{:?}", rig.events);
    let mut rig = warm();
    rig.receive(&Stream::default().begin(200).content(150, true, "orders", b"?").0);
    rig.pass(4 * SECOND);
    assert_eq!(ended(&rig), End::Stalled);
}

#[test]
fn what_kafka_does_not_store_is_told_each_time_with_its_error() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a", "a"]).0);
    for error in [19, 19, 7] {
        let batches = rig.produce().unwrap();
        rig.answer(&batches, error);
        rig.pass(5 * SECOND);
        rig.keepalive(208, false);
    }
    let told: Vec<_> = rig
        .events
        .iter()
        .filter_map(|event| match event {
            Event::NotStored { error, facts, .. } => Some((*error, *facts)),
            _ => None,
        })
        .collect();
    let full = "NOT_ENOUGH_REPLICAS";
    assert_eq!(told, [(full, 2), (full, 2), ("REQUEST_TIMED_OUT", 2)]);
    assert_eq!(rig.standing().blocked_count, 1);
    assert_eq!(rig.standing().most_blocked.len(), 1);
}

/// Without it, a crash repeated everything that Kafka had taken within the quarter of a second.
#[test]
fn what_kafka_takes_fast_is_confirmed_before_it_grows_to_a_window() {
    let mut rig = warm();
    // In the record as its key and within its value.
    let key = "x".repeat(5000);
    let before = rig.statuses.len();
    for number in 2..802 {
        rig.receive(&Stream::default().transaction(100 * number, &[&key]).0);
        let batches = rig.produce().unwrap();
        rig.answer(&batches, 0);
    }
    // 8 MB are settled and no time has passed.
    assert!(rig.flush() >= Lsn(100 * 580), "{}", rig.flush());
    let statuses = rig.statuses.len() - before;
    assert!(statuses <= 4, "{statuses} statuses for 8 MB");
}

#[test]
fn a_commit_is_confirmed_exactly_at_its_end_and_only_when_kafka_has_it() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a", "b"]).0);
    let batches = rig.produce().unwrap();
    rig.pass(2 * SECOND);
    assert_eq!(rig.flush(), Lsn(108), "nothing is promised before Kafka's answer");
    rig.answer(&batches, 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
}

#[test]
fn a_transaction_is_published_at_once_and_confirmed_at_its_commit() {
    let mut rig = warm();
    rig.receive(&Stream::default().begin(200).fact(150, "a").0);
    assert_eq!(rig.store_all(), ["a"]);
    rig.pass(2 * SECOND);
    assert_eq!(rig.flush(), Lsn(108));
    rig.receive(&Stream::default().commit(200).0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
}

#[test]
fn an_idle_slot_follows_keepalives_and_a_busy_one_does_not() {
    let mut rig = warm();
    rig.keepalive(5000, false);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(5000));
    rig.receive(&Stream::default().transaction(6000, &["a"]).0);
    rig.keepalive(9000, true);
    assert_eq!(rig.flush(), Lsn(5000));
    assert_eq!(rig.statuses.last().unwrap().write, Lsn(9000));
    rig.store_all();
    rig.keepalive(9000, true);
    rig.pass(20 * MS);
    assert_eq!(rig.flush(), Lsn(9000));
}

#[test]
fn a_keepalive_inside_a_transaction_confirms_nothing() {
    let mut rig = warm();
    rig.receive(&Stream::default().begin(200).fact(150, "a").0);
    rig.store_all();
    rig.keepalive(190, true);
    assert_eq!(rig.flush(), Lsn(108));
}

#[test]
fn foreign_prefixes_are_passed_over_and_counted_in_the_index() {
    let mut rig = warm();
    let stream = Stream::default().begin(200).content(140, true, "billing", b"\0junk");
    rig.receive(&stream.content(141, true, "", b"").fact(150, "a").commit(200).0);
    let batches = rig.produce().unwrap();
    assert_eq!(keys_of(&batches[0]), ["a"]);
    let text = String::from_utf8_lossy(&batches[0].batch).into_owned();
    assert!(text.contains("00000001.00000000000000c8.1.00000002"), "{text}");
    rig.answer(&batches, 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
}

#[test]
fn a_non_transactional_message_is_confirmed_at_its_own_lsn() {
    let mut rig = warm();
    let content = br#"{"aggregate_type":"order","aggregate_id":"a"}"#;
    rig.receive(&Stream::default().content(300, false, "orders", content).0);
    assert_eq!(rig.store_all(), ["a"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(300));
}

#[test]
fn after_a_reconnect_nothing_that_was_enqueued_is_produced_again() {
    let mut rig = warm();
    let first = Stream::default().transaction(200, &["a"]).begin(300).fact(250, "b");
    rig.receive(&first.0);
    let in_flight = rig.produce().unwrap();
    rig.input(Input::PostgresGone(Gone::Lost("connection reset".to_owned())));
    rig.pass(SECOND);
    assert_eq!(rig.connects, 2);
    rig.connect(identity());
    assert_eq!(rig.starts, [Lsn(0), Lsn(108)], "it asks for what is not confirmed");
    let again = Stream::default().transaction(200, &["a"]).begin(300).fact(250, "b");
    rig.receive(&again.fact(251, "c").commit(300).0);
    rig.answer(&in_flight, 0);
    let mut keys: Vec<_> = in_flight.iter().flat_map(keys_of).collect();
    keys.extend(rig.store_all());
    keys.sort();
    assert_eq!(keys, ["a", "b", "c"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(308));
}

#[test]
fn nothing_is_produced_without_the_slot() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let batches = rig.produce().unwrap();
    rig.no_answer(&batches);
    rig.answer_metadata();
    rig.input(Input::PostgresGone(Gone::Lost("connection reset".to_owned())));
    rig.pass(20 * SECOND);
    assert!(rig.produce().is_none());
    rig.connect(identity());
    rig.pass(6 * SECOND);
    assert_eq!(rig.produce().unwrap(), batches, "the ambiguous batch goes first, as it was");
}

#[test]
fn nothing_is_produced_when_the_lease_is_over() {
    let mut rig = warm();
    rig.pass(8 * SECOND);
    assert!(rig.statuses.len() > 5, "an unanswered ping is repeated");
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    rig.pass(2 * SECOND);
    assert_eq!(rig.hangups, 1);
    let before = rig.produce().is_some();
    assert!(before, "the lease was good when it was read");
    rig.receive(&Stream::default().transaction(300, &["b"]).0);
    assert!(rig.produce().is_none());
}

/// Symptom: keepalives that nobody had asked for, read after a busy while, were taken for answers to a ping
/// that was sent after the server had died, and batches were sent without the slot.
#[test]
fn keepalives_from_before_a_ping_do_not_extend_the_lease() {
    let mut rig = warm();
    rig.pass(Duration::from_secs(7));
    let old = rig.now.at - Duration::from_secs(6);
    for _ in 0..20 {
        rig.keepalive_of(old, 200, false);
    }
    assert_eq!(rig.hangups, 0);
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.hangups, 1, "the lease is over");
}

#[test]
fn an_answered_ping_extends_the_lease_from_when_it_was_sent() {
    let mut rig = warm();
    for _ in 0..20 {
        rig.pass(5 * SECOND);
        rig.keepalive(108, false);
        rig.keepalive(108, false);
    }
    assert_eq!(rig.hangups, 0);
}

#[test]
fn a_batch_without_an_answer_is_sent_again_before_anything_newer() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let first = rig.produce().unwrap();
    rig.receive(&Stream::default().transaction(300, &["a"]).0);
    rig.no_answer(&first);
    rig.pass(SECOND);
    assert!(rig.produce().is_none(), "who leads the partition now is not known");
    rig.answer_metadata();
    let again = rig.produce().unwrap();
    assert_eq!(again, first, "byte by byte");
    rig.answer(&again, 0);
    let next = rig.produce().unwrap();
    assert_eq!(base_sequence(&next[0]), after(base_sequence(&first[0]), 1));
}

#[test]
fn a_producer_that_the_broker_does_not_know_starts_over_in_order() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let first = rig.produce().unwrap();
    rig.receive(&Stream::default().transaction(300, &["a"]).0);
    rig.answer(&first, 59);
    rig.pass(SECOND);
    let again = rig.produce().unwrap();
    assert_eq!(base_sequence(&again[0]), (4000, 1, 0));
    assert_eq!(keys_of(&again[0]), keys_of(&first[0]));
    rig.answer(&again, 0);
    assert_eq!(base_sequence(&rig.produce().unwrap()[0]), (4000, 1, 1));
    let lost = |event: &&Event| matches!(event, Event::SequencesLost { facts: 0, .. });
    assert_eq!(rig.events.iter().filter(lost).count(), 1);
}

#[test]
fn a_producer_whose_epoch_is_over_gets_another_id() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let first = rig.produce().unwrap();
    rig.answer(&first, 47);
    rig.pass(SECOND);
    assert!(rig.produce().is_none());
    rig.answer_producer_id(4001);
    let again = rig.produce().unwrap();
    assert_eq!(base_sequence(&again[0]), (4001, 0, 0));
}

/// A rig in which a fact of this length fills a batch by itself.
fn full(stream: Stream, lsn: u64) -> Stream {
    let payload = "x".repeat(400_000);
    let content = format!(
        r#"{{"aggregate_type":"order","aggregate_id":"a","event_type":"{lsn}","payload":"{payload}"}}"#
    );
    stream.begin(lsn).content(lsn - 10, true, "orders", content.as_bytes()).commit(lsn)
}

/// Five full batches of one partition, of which so many could be sent.
fn five_full(in_flight: usize) -> (Rig, Vec<Vec<PartitionBatch>>) {
    let settings = Settings { in_flight_per_partition: in_flight, ..settings() };
    let mut rig = warm_with(settings);
    // A broker that knows the producer.
    rig.receive(&Stream::default().transaction(150, &["a"]).0);
    assert_eq!(rig.store_all(), ["a"]);
    let stream = [200, 300, 400, 500, 600].into_iter().fold(Stream::default(), full);
    rig.receive(&stream.0);
    let sent = std::iter::from_fn(|| rig.produce()).collect();
    (rig, sent)
}

#[test]
fn full_batches_of_a_partition_follow_each_other_without_an_answer() {
    for in_flight in 1..=5 {
        let (mut rig, sent) = five_full(in_flight);
        assert_eq!(sent.len(), in_flight);
        let mut stamp = base_sequence(&sent[0][0]);
        for batches in &sent {
            assert_eq!(base_sequence(&batches[0]), stamp);
            stamp = after(stamp, 1);
            rig.answer(batches, 0);
        }
        rig.store_all();
        rig.pass(SECOND);
        assert_eq!(rig.flush(), Lsn(608));
    }
}

#[test]
fn a_batch_that_can_still_grow_waits_for_the_answer_to_the_one_before() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let first = rig.produce().unwrap();
    rig.receive(&Stream::default().transaction(300, &["a"]).0);
    rig.receive(&Stream::default().transaction(400, &["a"]).0);
    assert!(rig.produce().is_none());
    rig.answer(&first, 0);
    assert_eq!(keys_of(&rig.produce().unwrap()[0]), ["a", "a"]);
}

#[test]
fn after_a_failure_the_oldest_batch_goes_alone_once_all_are_answered() {
    let (mut rig, sent) = five_full(3);
    rig.answer(&sent[0], 19);
    rig.pass(SECOND);
    assert!(rig.produce().is_none(), "the others are not answered");
    // What the broker says of what is behind a gap.
    rig.answer(&sent[1], 45);
    rig.answer(&sent[2], 45);
    rig.pass(SECOND);
    assert_eq!(rig.produce().unwrap(), sent[0]);
    assert!(rig.produce().is_none());
    rig.answer(&sent[0], 0);
    assert_eq!(rig.produce().unwrap(), sent[1], "the same bytes: the gap was not its own fault");
    assert_eq!(rig.produce().unwrap(), sent[2]);
    assert!(!rig.events.iter().any(|event| matches!(event, Event::SequencesLost { .. })));
}

#[test]
fn what_is_stored_behind_a_batch_without_an_answer_is_not_sent_again() {
    let (mut rig, sent) = five_full(3);
    // Appended, and its replicas too slow; they catch up for the next two.
    rig.answer(&sent[0], 20);
    rig.answer(&sent[1], 0);
    rig.answer(&sent[2], 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(158), "the oldest is not settled");
    assert_eq!(rig.produce().unwrap(), sent[0]);
    rig.answer(&sent[0], 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(408));
    let next = rig.produce().unwrap();
    assert_eq!(base_sequence(&next[0]), after(base_sequence(&sent[2][0]), 1));
}

#[test]
fn a_new_leader_is_sent_one_batch_until_it_has_taken_it() {
    let (mut rig, sent) = five_full(2);
    rig.answer(&sent[0], 0);
    let third = rig.produce().unwrap();
    rig.answer(&sent[1], 6);
    rig.answer(&third, 6);
    rig.pass(SECOND);
    assert!(rig.produce().is_none(), "who leads now is not known");
    rig.leader = 2;
    rig.answer_metadata();
    rig.pass(SECOND);
    let Some(Request::Produce { broker: 2, batches, .. }) =
        rig.take(|request| matches!(request, Request::Produce { .. }))
    else {
        panic!("not sent to the new leader")
    };
    assert_eq!(batches, sent[1]);
    assert!(rig.produce().is_none());
    rig.answer(&sent[1], 0);
    assert_eq!(rig.produce().unwrap(), third);
    assert!(rig.produce().is_some());
}

#[test]
fn a_topic_that_has_grown_is_emptied_before_new_facts_are_given_to_more_partitions() {
    let mut rig = warm_with(Settings { metadata_age_max: 2 * SECOND, ..settings() });
    let key = (0..100).map(|n| format!("k{n}")).find(|key| {
        let key = key.as_bytes();
        partition(key, 2) == 0 && partition(key, 3) == 2
    });
    let key = key.unwrap();
    rig.receive(&Stream::default().transaction(200, &[&key]).0);
    let before = rig.produce().unwrap();
    assert_eq!(before[0].partition, 0);
    rig.partitions = 3;
    rig.pass(2 * SECOND);
    rig.answer_metadata();
    rig.keepalive(208, false);
    rig.receive(&Stream::default().transaction(300, &[&key]).0);
    assert!(rig.produce().is_none(), "the fact before it is not settled");
    assert_eq!(rig.relay.reading(), Reading::Paused);
    rig.answer(&before, 0);
    let behind = rig.produce().unwrap();
    assert_eq!((behind[0].partition, keys_of(&behind[0])), (2, vec![key]));
    assert!(rig.events.iter().any(|event| matches!(event, Event::PartitionsChanged { .. })));
}

/// Symptom: a topic that was deleted delayed the question for a new one by up to the longest back-off.
#[test]
fn a_topic_that_was_deleted_does_not_delay_another() {
    let mut rig = warm_with(Settings { backoff_max: 2 * SECOND, ..settings() });
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let lost = rig.produce().unwrap();
    rig.deleted = true;
    rig.answer(&lost, 3);
    for _ in 0..10 {
        rig.answer_metadata();
        rig.keepalive(208, false);
        rig.pass(2 * SECOND);
    }
    rig.answer_metadata();
    let State::Halted(halted) = rig.standing().state else { panic!("{:?}", rig.standing()) };
    assert!(halted.reason.contains("create it again"), "{halted:?}");
    let stream = Stream::default().begin(300).fact_of("parcel", 290, "p").commit(300);
    rig.receive(&stream.0);
    rig.answer_metadata();
    assert_eq!(keys_of(&rig.produce().unwrap()[0]), ["p"]);

    // Made again, it takes what waited.
    rig.deleted = false;
    rig.pass(2 * SECOND);
    rig.answer_metadata();
    rig.pass(2 * SECOND);
    rig.keepalive(208, false);
    assert_eq!(rig.produce().unwrap(), lost);
}

#[test]
fn another_kafka_cluster_ends_the_relay_before_anything_is_sent_to_it() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let lost = rig.produce().unwrap();
    rig.no_answer(&lost);
    rig.cluster = "other".to_owned();
    rig.pass(SECOND);
    assert!(rig.produce().is_none());
    rig.answer_metadata();
    assert_eq!(rig.exit.as_ref().unwrap().kind, ExitKind::OtherKafka);
    assert!(rig.produce().is_none());
    let reason = &rig.exit.unwrap().reason;
    assert!(reason.contains("other") && reason.contains("KAFKA_BROKERS"), "{reason}");
}

#[test]
fn a_batch_over_the_topics_limit_is_divided_and_a_single_record_halts() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a", "a", "a"]).0);
    let whole = rig.produce().unwrap();
    rig.answer(&whole, 10);
    let part = rig.produce().unwrap();
    assert_eq!(keys_of(&part[0]), ["a"]);
    rig.answer(&part, 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(108), "half of it is not there yet");
    let part = rig.produce().unwrap();
    assert_eq!(keys_of(&part[0]), ["a", "a"]);
    rig.answer(&part, 10);
    let one = rig.produce().unwrap();
    rig.answer(&one, 10);
    assert!(matches!(rig.standing().state, State::Halted(_)));
    rig.pass(5 * SECOND);
    rig.keepalive(108, false);
    let again = rig.produce().unwrap();
    assert_eq!(again, one);
    rig.answer(&again, 0);
    rig.store_all();
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
    assert_eq!(rig.standing().state, State::Streaming);
}

#[test]
fn an_unreadable_envelope_halts_with_its_position_and_is_never_confirmed_past() {
    let mut rig = warm();
    let stream =
        Stream::default().begin(200).fact(150, "a").content(151, true, "orders", b"\xffjunk");
    rig.receive(&stream.fact(152, "b").commit(200).0);
    assert_eq!(rig.store_all(), ["a"]);
    let State::Halted(halted) = rig.standing().state else { panic!("not halted") };
    assert_eq!(halted.position.to_string(), "00000001.00000000000000c8.1.00000001");
    assert_eq!(halted.lsn, Lsn(151));
    assert!(halted.reason.contains("unreadable envelope"), "{}", halted.reason);
    rig.pass(4 * SECOND);
    assert_eq!(rig.hangups, 1, "the socket is not left unread");
    assert!(matches!(rig.standing().state, State::Halted(_)), "also while away");
    assert_eq!(rig.statuses.iter().map(|status| status.flush).max(), Some(Lsn(108)));
}

#[test]
fn a_missing_topic_halts_and_its_creation_lets_the_fact_through() {
    let mut rig = warm();
    let transaction = || Stream::default().begin(200).fact_of("missing", 150, "a").commit(200).0;
    rig.receive(&transaction());
    rig.answer_metadata();
    let State::Halted(halted) = rig.standing().state else { panic!("not halted") };
    assert_eq!(halted.topic.as_deref(), Some("orders.missing"));
    rig.pass(9 * SECOND);
    assert_eq!(rig.hangups, 1);
    rig.connect(identity());
    rig.receive(&transaction());
    let Some(Request::Metadata { topics }) = rig.take(|r| matches!(r, Request::Metadata { .. }))
    else {
        panic!("the topic is not asked for again")
    };
    let partitions = vec![PartitionMetadata { index: 0, leader: Some(1) }];
    let topics = topics
        .iter()
        .map(|name| TopicMetadata {
            name: name.to_string(),
            id: None,
            error: 0,
            partitions: partitions.clone(),
        })
        .collect();
    let metadata = Metadata { cluster_id: None, brokers: Vec::new(), topics };
    rig.input(Input::Kafka(Answer::Metadata(Ok(metadata))));
    assert_eq!(rig.store_all(), ["a"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
    assert_eq!(rig.standing().state, State::Streaming);
}

#[test]
fn a_full_buffer_pauses_reading_hangs_up_and_takes_the_slot_again() {
    let mut rig = Rig::streaming_with(Settings { in_flight_bytes_max: 2000, ..settings() });
    rig.receive(&Stream::default().transaction(100, &["first"]).0);
    rig.answer_metadata();
    rig.store_all();
    let stream = (2..40).fold(Stream::default(), |stream, n| stream.transaction(n * 100, &["a"]));
    rig.receive(&stream.0);
    assert_eq!(rig.relay.reading(), Reading::Paused);
    assert!(rig.standing().unsettled_bytes < 2500);
    let batches = rig.produce().unwrap();
    rig.pass(3 * SECOND);
    assert_eq!(rig.hangups, 1);
    rig.answer(&batches, 0);
    rig.pass(6 * SECOND);
    assert_eq!(rig.connects, 2);
}

/// Symptom: while one partition was blocked the others went on without bound, and a crash repeated all of it.
#[test]
fn while_one_partition_is_blocked_the_others_go_on_within_the_window() {
    let mut rig = Rig::streaming_with(Settings { in_flight_bytes_max: 8000, ..settings() });
    rig.receive(&Stream::default().transaction(100, &["first"]).0);
    rig.answer_metadata();
    rig.store_all();
    // To the two partitions of the topic.
    let (blocked, free) = ("a", "d");
    assert_ne!(partition(blocked.as_bytes(), 2), partition(free.as_bytes(), 2));
    let stream = Stream::default().transaction(200, &[blocked]);
    rig.receive(&(3..400).fold(stream, |stream, n| stream.transaction(n * 100, &[free])).0);
    let mut stored = 0;
    let mut partitions = HashSet::new();
    while let Some(batches) = rig.produce() {
        for batch in batches {
            partitions.insert(batch.partition);
            let one = std::slice::from_ref(&batch);
            if keys_of(&batch)[0] == free {
                stored += batch.batch.len();
                rig.answer(one, 0);
            } else {
                rig.answer(one, 19);
            }
        }
    }
    assert_eq!(partitions.len(), 2);
    let unsettled = rig.standing().unsettled_bytes;
    assert!(unsettled < 500 && stored > 4000, "{unsettled} unsettled, {stored} stored");
    assert!(stored + unsettled < 8000, "{unsettled} unsettled, {stored} stored");
    assert_eq!(rig.relay.reading(), Reading::Paused);
    rig.pass(3 * SECOND);
    assert_eq!(rig.hangups, 1, "the database is not held up");
    assert!(matches!(rig.standing().state, State::Stalled(_)));
}

#[test]
fn a_transaction_larger_than_the_window_goes_through() {
    let mut rig = Rig::streaming_with(Settings { in_flight_bytes_max: 4000, ..settings() });
    rig.receive(&Stream::default().transaction(100, &["first"]).0);
    rig.answer_metadata();
    rig.store_all();
    let keys: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let stream = Stream::default().transaction(200, &keys).transaction(5000, &["next"]);
    rig.receive(&stream.0);
    let mut stored = 0;
    while stored < 501 {
        let Some(batches) = rig.produce() else {
            // Behind, small batches wait for company.
            rig.pass(10 * MS);
            continue;
        };
        stored += batches.iter().map(|batch| keys_of(batch).len()).sum::<usize>();
        assert!(rig.standing().unsettled_bytes < 4000);
        rig.answer(&batches, 0);
    }
    // Told at once: it is more than the window.
    assert!(rig.flush() > Lsn(200), "{}", rig.flush());
    rig.pass(SECOND);
    assert_eq!((rig.flush(), rig.hangups), (Lsn(5008), 0));
}

#[test]
fn room_in_the_buffer_resumes_what_was_received() {
    let mut rig = Rig::streaming_with(Settings { in_flight_bytes_max: 2000, ..settings() });
    rig.receive(&Stream::default().transaction(100, &["first"]).0);
    rig.answer_metadata();
    rig.store_all();
    let stream = (2..40).fold(Stream::default(), |stream, n| stream.transaction(n * 100, &["a"]));
    rig.receive(&stream.0);
    assert_eq!(rig.store_all().len(), 38);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(3908));
    assert_eq!(rig.hangups, 0);
}

#[test]
fn a_server_that_wants_to_stop_is_let_go_without_a_confirmation() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let batches = rig.produce().unwrap();
    rig.keepalive(300, true);
    rig.keepalive(300, true);
    assert!(rig.events.iter().any(|event| matches!(event, Event::ServerStopping { unsettled: 1 })));
    assert_eq!(rig.flush(), Lsn(108));
    let before = rig.statuses.len();
    for _ in 0..100 {
        rig.pass(20 * MS);
        rig.keepalive(300, true);
    }
    let last = rig.statuses.last().unwrap();
    assert_eq!((last.write, last.flush), (Lsn(300), Lsn::INVALID));
    assert!(rig.statuses.len() - before <= 105, "{}", rig.statuses.len() - before);
    rig.answer(&batches, 0);
    rig.keepalive(300, true);
    rig.pass(20 * MS);
    assert_eq!(rig.flush(), Lsn(300), "once it is settled it is confirmed after all");
}

#[test]
fn a_stop_reads_on_to_the_commit_settles_confirms_and_leaves() {
    let mut rig = warm();
    rig.receive(&Stream::default().begin(200).fact(150, "a").0);
    rig.input(Input::Stop);
    assert!(rig.exit.is_none());
    let rest = Stream::default().fact(151, "b").commit(200);
    rig.receive(&rest.transaction(300, &["not taken"]).0);
    rig.keepalive(400, true);
    let mut keys = rig.store_all();
    keys.sort();
    assert_eq!(keys, ["a", "b"]);
    assert_eq!(rig.flush(), Lsn(208), "walEnd covers what was not taken");
    for _ in 0..5 {
        rig.keepalive(400, false);
    }
    assert!(rig.exit.is_none(), "a keepalive may be no answer");
    rig.end_copy();
    assert_eq!(rig.exit.unwrap().kind, ExitKind::Stopped);
    assert_eq!((rig.hangups, rig.starts.len()), (1, 1));
    assert_eq!(rig.statuses.last().unwrap().flush, Lsn(208));
}

#[test]
fn a_stop_that_kafka_does_not_let_finish_ends_at_the_deadline_and_says_so() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a", "b"]).0);
    rig.input(Input::Stop);
    for _ in 0..3 {
        rig.pass(4 * SECOND);
        rig.keepalive(208, false);
    }
    let exit = rig.exit.unwrap();
    assert_eq!(exit.kind, ExitKind::Deadline);
    assert!(exit.reason.contains("2 facts"), "{}", exit.reason);
}

#[test]
fn a_slot_ahead_of_the_servers_log_is_told_and_is_no_history_that_went_back() {
    let mut rig = Rig::new(settings());
    let ahead = Identity { wal_flushed: Lsn(100), confirmed_flush: Lsn(150), ..identity() };
    rig.connect(ahead.clone());
    let told = Event::SlotAhead { confirmed: Lsn(150), wal_end: Lsn(100) };
    assert!(rig.events.contains(&told));
    rig.events.clear();
    // The server takes the slot's place for what it has sent.
    rig.keepalive(150, false);
    let standing = rig.standing();
    assert!(matches!(&standing.state, State::Stalled(reason) if reason.contains("0/96")));
    assert_eq!((standing.confirmed, standing.is_caught_up), (Lsn(100), false));
    rig.input(Input::PostgresGone(Gone::Lost("restart".to_owned())));
    rig.pass(SECOND);
    rig.input(Input::Identified(ahead));
    assert!(rig.exit.is_none() && !rig.events.contains(&told), "{:?}", rig.events);
    // Once the log has passed it, all is well.
    let asked_at = rig.now.at;
    rig.input(Input::Streaming { asked_at });
    rig.keepalive(160, false);
    let standing = rig.standing();
    assert_eq!((standing.state, standing.confirmed), (State::Streaming, Lsn(160)));
}

#[test]
fn another_cluster_and_a_history_that_went_back_end_the_relay() {
    for identity in
        [Identity { system: 8, ..identity() }, Identity { wal_flushed: Lsn(50), ..identity() }]
    {
        let mut rig = warm();
        rig.receive(&Stream::default().transaction(900, &["held up"]).0);
        rig.input(Input::PostgresGone(Gone::Lost("restart".to_owned())));
        rig.pass(SECOND);
        rig.input(Input::Identified(identity));
        assert_eq!(rig.exit.unwrap().kind, ExitKind::OtherCluster);
        assert_eq!(rig.starts.len(), 1, "the stream is not started");
    }
}

#[test]
fn another_timeline_starts_at_the_slots_own_position_and_publishes_reused_lsns() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(400, &["phantom"]).0);
    let phantom = rig.produce().unwrap();
    rig.input(Input::PostgresGone(Gone::Lost("failover".to_owned())));
    rig.pass(SECOND);
    rig.connect(Identity { timeline: 2, history: vec![(1, Lsn(300))], ..identity() });
    assert_eq!(rig.starts.last(), Some(&Lsn::INVALID));
    rig.receive(&Stream::default().transaction(200, &["old"]).transaction(390, &["new"]).0);
    rig.answer(&phantom, 0);
    let mut text = String::new();
    while let Some(batches) = rig.produce() {
        batches.iter().for_each(|batch| text.push_str(&String::from_utf8_lossy(&batch.batch)));
        rig.answer(&batches, 0);
    }
    assert!(text.contains("00000001.00000000000000c8.1.00000000"), "written by timeline 1");
    assert!(text.contains("00000002.0000000000000186.1.00000000"), "written by timeline 2");
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(398));
}

/// Symptom: of two servers that were promoted apart from each other to the same number, the second one's facts were
/// not read up to where the first one had been confirmed.
#[test]
fn a_server_with_another_history_of_the_same_timeline_ends_the_relay() {
    for (history, ends) in [(vec![(1, Lsn(300))], false), (vec![(1, Lsn(280))], true)] {
        let mut rig = warm();
        rig.input(Input::PostgresGone(Gone::Lost("failover".to_owned())));
        rig.pass(SECOND);
        rig.connect(Identity { timeline: 2, history: vec![(1, Lsn(300))], ..identity() });
        rig.receive(&Stream::default().transaction(390, &["new"]).0);
        let batches = rig.produce().unwrap();
        rig.answer(&batches, 0);
        rig.input(Input::PostgresGone(Gone::Lost("failover".to_owned())));
        rig.pass(SECOND);
        rig.input(Input::Identified(Identity { timeline: 2, history, ..identity() }));
        let exit =
            rig.exit.as_ref().map(|exit| (exit.kind, exit.reason.contains("promoted apart")));
        assert_eq!(exit, ends.then_some((ExitKind::OtherCluster, true)));
    }
}

#[test]
fn a_stream_that_is_out_of_order_is_given_up_without_a_confirmation() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(300, &["a"]).transaction(200, &["b"]).0);
    assert_eq!(rig.hangups, 1);
    rig.pass(SECOND);
    assert!(rig.statuses.iter().all(|status| status.flush <= Lsn(108)));
}

#[test]
fn a_commit_of_another_transaction_confirms_nothing() {
    let mut rig = warm();
    rig.receive(&Stream::default().begin(200).commit(300).0);
    assert_eq!(rig.hangups, 1);
    let mut rig = warm();
    rig.receive(&Stream::default().begin(200).begin(300).commit(300).0);
    assert_eq!(rig.hangups, 1);
}

#[test]
fn a_held_slot_is_waited_for_and_a_refused_password_ends_only_the_start() {
    let mut rig = Rig::new(settings());
    rig.answer_metadata();
    rig.input(Input::Identified(identity()));
    for _ in 0..100 {
        rig.input(Input::PostgresGone(Gone::SlotInUse("active for PID 7".to_owned())));
        let connects = rig.connects;
        rig.pass(SECOND);
        assert_eq!(rig.connects, connects + 1);
        rig.input(Input::Identified(identity()));
    }
    assert!(rig.exit.is_none());
    let told = rig.events.iter().filter(|event| matches!(event, Event::SlotInUse { .. }));
    assert_eq!(told.count(), 1);
    let refused = |kind| Gone::Refused(kind, "password authentication failed".to_owned());
    rig.input(Input::PostgresGone(refused(ExitKind::Unreachable)));
    assert!(rig.exit.is_none());

    for kind in [ExitKind::Unreachable, ExitKind::Unsuitable] {
        let mut rig = Rig::new(settings());
        rig.input(Input::PostgresGone(refused(kind)));
        assert_eq!(rig.exit.unwrap().kind, kind);
    }
}

/// A missing right and a missing free slot had the exit code of a server that does not answer.
#[test]
fn what_the_server_lacks_for_us_is_refused_with_its_own_exit_code() {
    for (code, kind) in [
        (b"28P01", ExitKind::Unreachable),
        (b"3D000", ExitKind::Unreachable),
        (b"42501", ExitKind::Unsuitable),
        (b"53400", ExitKind::Unsuitable),
    ] {
        let error = ServerError {
            severity: "FATAL".to_owned(),
            code: SqlState(*code),
            message: "no".to_owned(),
            detail: None,
            hint: None,
        };
        let gone = gone::classify(&error);
        assert!(matches!(gone, Gone::Refused(found, _) if found == kind), "{gone:?}");
    }
}

#[test]
fn a_start_that_reaches_nobody_ends_with_the_last_reason() {
    let mut rig = Rig::new(settings());
    rig.answer_metadata();
    for _ in 0..40 {
        rig.input(Input::PostgresGone(Gone::Lost("connection refused".to_owned())));
        rig.pass(5 * SECOND);
    }
    let exit = rig.exit.unwrap();
    assert_eq!((exit.kind, exit.reason.as_str()), (ExitKind::Unreachable, "connection refused"));

    let mut rig = Rig::new(settings());
    rig.connect(identity());
    for _ in 0..20 {
        if rig.take(|request| matches!(request, Request::Metadata { .. })).is_some() {
            let cause = Unanswered("name not known".to_owned());
            rig.input(Input::Kafka(Answer::Metadata(Err(cause))));
        }
        rig.pass(3 * SECOND);
        (0..4).for_each(|_| rig.keepalive(1, false));
    }
    let exit = rig.exit.unwrap();
    assert_eq!(exit.reason, "no Kafka broker answers: name not known");
}

#[test]
fn a_message_over_the_frame_limit_halts_and_what_came_before_is_published() {
    let mut rig = Rig::streaming_with(Settings { frame_bytes_max: 1000, ..settings() });
    rig.receive(&Stream::default().transaction(100, &["first"]).0);
    rig.answer_metadata();
    rig.store_all();
    rig.receive(&Stream::default().transaction(200, &["a"]).begin(300).fact(250, "b").0);
    rig.receive(&Stream::default().content(251, true, "orders", &[b'x'; 2000]).0);
    let mut keys = rig.store_all();
    keys.sort();
    assert_eq!(keys, ["a", "b"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
    let State::Halted(halted) = rig.standing().state else { panic!("not halted") };
    assert!(halted.reason.contains("FRAME_MAX_BYTES (1000)"), "{}", halted.reason);
    assert_eq!(halted.position.index, 1);
    rig.pass(4 * SECOND);
    assert_eq!(rig.hangups, 1);
}

/// Symptom: it connected again for ever, without a position and without saying that it was halted.
#[test]
fn a_message_over_the_frame_limit_outside_a_transaction_halts_at_its_position() {
    let mut rig = Rig::streaming_with(Settings { frame_bytes_max: 1000, ..settings() });
    let Stream(out) = Stream::default().content(250, false, "orders", &[b'x'; 2000]);
    // Its first bytes come one by one, and say whose it is.
    for byte in &out[..out.len() - 2000] {
        assert!(rig.relay.standing(rig.now.at).state == State::Streaming);
        rig.receive(&[*byte]);
    }
    let State::Halted(halted) = rig.standing().state else { panic!("not halted") };
    assert!(halted.reason.contains("FRAME_MAX_BYTES (1000)"), "{}", halted.reason);
    assert_eq!((halted.lsn, halted.position.unit), (Lsn(250), Unit::message(Lsn(250))));
    assert_eq!(rig.hangups, 0);
}

#[test]
fn topics_and_keys_are_made_as_the_templates_say() {
    let naming = Naming {
        topic: Template::parse("eu.{prefix}-{event_type}", Field::OF_TOPICS).unwrap(),
        key: Some(Template::parse("{aggregate_type}/{aggregate_id}", Field::OF_KEYS).unwrap()),
        prefixes: vec![("orders".to_owned(), "sales".to_owned())],
    };
    for (naming, key) in [(naming.clone(), Some("order/7")), (Naming { key: None, ..naming }, None)]
    {
        let mut rig = Rig::streaming_with(Settings { naming, ..settings() });
        let content = br#"{"aggregate_type":"order","aggregate_id":"7","event_type":"paid"}"#;
        rig.receive(
            &Stream::default().begin(200).content(150, true, "orders", content).commit(200).0,
        );
        rig.answer_metadata();
        let batches = rig.produce().unwrap();
        assert_eq!(&*batches[0].topic, "eu.sales-paid");
        assert_eq!(records_of(&batches[0])[0].key.as_deref(), key.map(str::as_bytes));
        let expected = partition(key.unwrap_or_default().as_bytes(), 2);
        assert_eq!(batches[0].partition, i32::try_from(expected).unwrap());
    }
}

// ---- what cannot be published, and what the policy makes of it ----

fn policies(general: Policy) -> Settings {
    let dead_letter_topic = Some("orders.dead".into());
    Settings {
        policies: Policies { general, by_topic: Vec::new(), dead_letter_topic },
        ..settings()
    }
}

/// The events about facts that were given up.
fn given_up(rig: &Rig) -> Vec<&GivenUp> {
    let mut found = Vec::new();
    for event in &rig.events {
        if let Event::GivenUp(given_up) = event {
            found.push(given_up);
        }
    }
    found
}

fn header(record: &rskafka::protocol::record::Record, key: &str) -> Option<String> {
    let header = record.headers.iter().find(|header| header.key == key)?;
    Some(String::from_utf8(header.value.clone()).unwrap())
}

fn junk() -> BytesMut {
    Stream::default().begin(200).content(151, true, "orders", b"junk").fact(152, "b").commit(200).0
}

#[test]
fn a_fact_that_cannot_be_read_is_skipped_and_said_so() {
    let mut rig = warm_with(policies(Policy::Skip));
    rig.receive(&junk());
    assert_eq!(rig.store_all(), ["b"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
    let [skipped] = given_up(&rig)[..] else { panic!("{:?}", rig.events) };
    assert_eq!((skipped.policy, skipped.facts, skipped.position.index), (Policy::Skip, 1, 0));
    assert_eq!(skipped.poison.cause, Cause::UnreadableEnvelope);
    assert_eq!(rig.standing().state, State::Streaming);
}

#[test]
fn a_dead_letter_is_settled_when_it_is_stored() {
    let mut rig = warm_with(policies(Policy::DeadLetter));
    rig.receive(&junk());
    let produced: Vec<_> = std::iter::from_fn(|| rig.produce()).flatten().collect();
    let (dead, others): (Vec<_>, Vec<_>) =
        produced.into_iter().partition(|batch| &*batch.topic == "orders.dead");
    rig.answer(&others, 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(108));
    let [letter] = &records_of(&dead[0])[..] else { panic!("{dead:?}") };
    assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (None, Some(&b"junk"[..])));
    assert_eq!(header(letter, "factlib_cause").unwrap(), "unreadable-envelope");
    assert!(header(letter, "factlib_reason").unwrap().contains("envelope"));
    assert!(header(letter, "factlib_position").unwrap().ends_with("00000000"));
    assert_eq!(header(letter, "LSN").unwrap(), "0/97");
    rig.answer(&dead, 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
}

#[test]
fn without_its_topic_a_dead_letter_halts() {
    let mut settings = policies(Policy::DeadLetter);
    settings.policies.dead_letter_topic = Some("dead.missing".into());
    let mut rig = warm_with(settings);
    rig.receive(&junk());
    for _ in 0..3 {
        rig.pass(SECOND);
        rig.keepalive(1, false);
        if rig.requests.iter().any(|request| matches!(request, Request::Metadata { .. })) {
            rig.answer_metadata();
        }
    }
    let State::Halted(halted) = rig.standing().state else { panic!("{:?}", rig.standing()) };
    assert!(
        halted.reason.contains("envelope") && halted.reason.contains("dead.missing"),
        "{halted:?}"
    );
    assert_eq!(rig.flush(), Lsn(108));
}

#[test]
fn of_a_batch_only_the_record_that_is_refused_becomes_a_dead_letter() {
    let mut rig = warm_with(policies(Policy::DeadLetter));
    let key = same_partition();
    let keys: Vec<&str> = key.iter().map(String::as_str).collect();
    rig.receive(&Stream::default().transaction(200, &keys).0);
    let (mut stored, mut dead) = (Vec::new(), Vec::new());
    while let Some(batches) = rig.produce() {
        for batch in batches {
            let found = keys_of(&batch);
            if &*batch.topic == "orders.dead" {
                dead.extend(records_of(&batch));
                rig.answer(&[batch], 0);
            } else if found.contains(&key[2]) {
                rig.answer(&[batch], 87);
            } else {
                stored.extend(found);
                rig.answer(&[batch], 0);
            }
        }
    }
    rig.pass(SECOND);
    assert_eq!(stored, [&*key[0], &*key[1], &*key[3], &*key[4]]);
    let [letter] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!(letter.key.as_deref(), Some(key[2].as_bytes()));
    assert_eq!(header(letter, "factlib_cause").unwrap(), "rejected");
    assert_eq!(header(letter, "factlib_topic").unwrap(), "orders.order");
    assert_eq!(header(letter, "factlib_attempts").unwrap(), "1");
    assert!(header(letter, "event_id").is_some());
    assert_eq!(rig.flush(), Lsn(208));
    assert_eq!(rig.standing().unsettled_bytes, 0);
}

/// Keys that all go to the partition of the first fact of [`warm`].
fn same_partition() -> Vec<String> {
    let there = partition(b"first", 2);
    let keys = (0..).map(|n| format!("k{n}")).filter(|key| partition(key.as_bytes(), 2) == there);
    keys.take(5).collect()
}

#[test]
fn what_we_may_not_write_is_given_up_and_what_is_behind_it_starts_a_new_epoch() {
    for policy in [Policy::Skip, Policy::DeadLetter] {
        let mut rig = warm_with(policies(policy));
        rig.receive(&Stream::default().transaction(200, &["first"]).0);
        let refused = rig.produce().unwrap();
        rig.answer(&refused, 29);
        if policy == Policy::DeadLetter {
            let dead = rig.produce().unwrap();
            assert_eq!(&*dead[0].topic, "orders.dead");
            assert_eq!(keys_of(&dead[0]), ["first"]);
            rig.answer(&dead, 0);
        }
        rig.receive(&Stream::default().transaction(300, &["first"]).0);
        let next = rig.produce().unwrap();
        // A copy of the refused batch that comes late must not be taken for the one that is missing.
        assert_eq!(base_sequence(&next[0]), (4000, 1, 0));
        rig.answer(&next, 0);
        rig.pass(SECOND);
        assert_eq!(rig.flush(), Lsn(308));
        assert_eq!(given_up(&rig)[0].poison.cause, Cause::NotAuthorized);
        assert_eq!(rig.standing().unsettled_facts, 0);
    }
}

#[test]
fn a_dead_letter_that_is_too_large_is_cut_until_it_fits() {
    let mut rig = warm_with(policies(Policy::DeadLetter));
    let payload = "y".repeat(10_000);
    let content = format!(
        r#"{{"aggregate_type":"order","aggregate_id":"a","event_type":"e","payload":"{payload}"}}"#
    );
    let content = content.as_bytes();
    rig.receive(&Stream::default().begin(200).content(150, true, "orders", content).commit(200).0);
    let mut sizes = Vec::new();
    let letter = loop {
        let batches = rig.produce().unwrap();
        sizes.push(batches[0].batch.len());
        if batches[0].batch.len() < 4000 {
            rig.answer(&batches, 0);
            break records_of(&batches[0]).remove(0);
        }
        rig.answer(&batches, 10);
    };
    assert_eq!(sizes.len(), 4, "refused, whole, a half, a quarter: {sizes:?}");
    let value = letter.value.as_ref().unwrap();
    assert_eq!(value[..], content[..content.len() / 4]);
    assert_eq!(header(&letter, "factlib_cause").unwrap(), "too-large");
    assert_eq!(header(&letter, "factlib_length").unwrap(), content.len().to_string());
    let digest = sha2::Sha256::digest(content);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(header(&letter, "factlib_sha256").unwrap(), hex);
    let lengths = letter.headers.iter().filter(|header| header.key == "factlib_length");
    assert_eq!(lengths.count(), 1);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
    assert_eq!(rig.standing().unsettled_bytes, 0);
}

/// Symptom: a dead letter that was too large by its key or its headers halted everything for ever.
#[test]
fn a_dead_letter_with_a_long_key_and_long_headers_is_cut_until_it_fits() {
    let long = "z".repeat(50_000);
    for content in [
        format!(r#"{{"aggregate_type":"order","aggregate_id":"{long}"}}"#),
        format!(r#"{{"aggregate_type":"order","aggregate_id":"a","event_type":"{long}"}}"#),
        format!(r#"{{"aggregate_type":"{long}","aggregate_id":"a"}}"#),
    ] {
        let mut rig = warm_with(policies(Policy::DeadLetter));
        let stream = Stream::default().begin(200).content(150, true, "orders", content.as_bytes());
        rig.receive(&stream.commit(200).0);
        let letter = (0..30).find_map(|_| {
            rig.pass(20 * MS);
            let batches = rig.produce()?;
            let fits = batches[0].batch.len() < 2500;
            rig.answer(&batches, if fits { 0 } else { 10 });
            fits.then(|| records_of(&batches[0]).remove(0))
        });
        let letter = letter.expect("one that fits");
        assert_eq!(header(&letter, "factlib_length").unwrap(), content.len().to_string());
        assert!(header(&letter, "factlib_position").is_some());
        assert!(header(&letter, "factlib_cause").is_some());
        rig.pass(SECOND);
        assert_eq!(rig.flush(), Lsn(208));
        assert_eq!(rig.standing().unsettled_bytes, 0);
    }
}

#[test]
fn a_message_over_the_frame_limit_is_read_past_in_constant_memory() {
    for (policy, transactional) in
        [(Policy::Skip, true), (Policy::DeadLetter, true), (Policy::DeadLetter, false)]
    {
        let settings = Settings { frame_bytes_max: 1000, ..policies(policy) };
        let mut rig = warm_with(settings);
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let stream = Stream::default();
        let stream = match transactional {
            true => stream.begin(200).content(150, true, "orders", &content).fact(160, "b"),
            false => stream.content(208, false, "orders", &content).begin(300).fact(260, "b"),
        };
        let (last, flush) = if transactional { (200, 208) } else { (300, 308) };
        let Stream(bytes) = stream.commit(last);
        let mut largest = 0;
        for part in bytes.chunks(700) {
            rig.receive(part);
            largest = largest.max(rig.relay.receive_buffer().capacity());
        }
        assert!(largest < 16 * 1024, "{largest} bytes");
        let mut letters = Vec::new();
        let mut others = Vec::new();
        while let Some(batches) = rig.produce() {
            for batch in &batches {
                let dead = &*batch.topic == "orders.dead";
                if dead { &mut letters } else { &mut others }.extend(records_of(batch));
            }
            rig.answer(&batches, 0);
        }
        assert_eq!(others.len(), 1);
        assert!(header(&others[0], "factlib_position").unwrap().ends_with(match transactional {
            true => "00000001",
            false => "00000000",
        }));
        assert_eq!(letters.len(), usize::from(policy == Policy::DeadLetter));
        if let [letter] = &letters[..] {
            assert_eq!(letter.value.as_ref().unwrap()[..], content[..64 * 1024]);
            assert_eq!(header(letter, "factlib_length").unwrap(), "3000000");
            let digest = sha2::Sha256::digest(&content);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(header(letter, "factlib_sha256").unwrap(), hex);
        }
        rig.pass(SECOND);
        assert_eq!(rig.flush(), Lsn(flush));
        assert_eq!(given_up(&rig).len(), 1);
    }
}

/// Symptom: another service's message over the limit halted the relay.
#[test]
fn anothers_message_over_the_frame_limit_passes() {
    let mut rig = warm_with(Settings { frame_bytes_max: 1000, ..settings() });
    let large = vec![0; 5000];
    let stream = Stream::default().begin(200).content(150, true, "billing", &large).fact(160, "b");
    rig.receive(&stream.commit(200).content(250, false, "billing", &large).0);
    assert_eq!(rig.store_all(), ["b"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(250));
    assert!(rig.events.contains(&Event::Foreign { prefix: "billing".to_owned() }));
}

#[test]
fn a_topic_that_is_missing_is_asked_for_again_before_its_facts_are_given_up() {
    let mut rig = warm_with(policies(Policy::Skip));
    let stream = Stream::default().begin(200).fact_of("missing", 150, "m").fact(160, "b");
    rig.receive(&stream.commit(200).0);
    rig.answer_metadata();
    assert!(given_up(&rig).is_empty(), "it may have been created a moment ago");
    assert_eq!(rig.relay.reading(), Reading::Paused);
    for _ in 0..2 {
        rig.pass(SECOND);
        rig.answer_metadata();
    }
    assert_eq!(given_up(&rig)[0].poison.cause, Cause::TopicMissing);
    assert_eq!(given_up(&rig)[0].poison.topic.as_deref(), Some("orders.missing"));
    assert_eq!(rig.store_all(), ["b"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
    assert_eq!(rig.hangups, 0);
}

/// The topics that the engine wants to know of now.
#[track_caller]
fn asked_for(rig: &Rig) -> Vec<String> {
    let wanted = |request: &&Request| matches!(request, Request::Metadata { .. });
    let Some(Request::Metadata { topics }) = rig.requests.iter().find(wanted) else {
        panic!("no metadata wanted: {:?}", rig.requests)
    };
    topics.iter().map(ToString::to_string).collect()
}

/// Symptom: with skip, each topic that was missing held everything up for two seconds of its own.
#[test]
fn while_a_fact_waits_for_its_topic_those_of_the_facts_behind_it_are_asked_for() {
    let mut rig = warm_with(policies(Policy::Skip));
    let stream = Stream::default()
        .begin(200)
        .fact_of("1missing", 110, "m")
        .fact_of("2missing", 120, "m")
        .fact_of("no topic!", 130, "m")
        .fact(140, "b")
        .commit(200)
        .begin(300)
        .fact_of("3missing", 250, "m")
        .fact_of("3missing", 260, "m")
        .fact_of("new", 270, "c");
    rig.receive(&stream.commit(300).0);
    let asked = asked_for(&rig);
    let new = |topic: &&String| !["orders.order", "orders.dead"].contains(&topic.as_str());
    let new: Vec<_> = asked.iter().filter(new).collect();
    assert_eq!(new, ["orders.1missing", "orders.2missing", "orders.3missing", "orders.new"]);
    assert!(rig.produce().is_none(), "nothing is read past the fact that waits");
    for _ in 0..2 {
        rig.answer_metadata();
        assert!(given_up(&rig).is_empty());
        rig.pass(SECOND);
    }
    // The time of all of them is over at once.
    rig.answer_metadata();
    assert_eq!(given_up(&rig).len(), 5);
    assert_eq!(rig.store_all(), ["b", "c"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(308));
    assert_eq!(rig.hangups, 0);
}

#[test]
fn topics_that_are_missing_are_created_many_at_once_and_not_before_it_is_known_that_they_are() {
    let new = NewTopic { partitions: Some(30), replication_factor: None, configs: Vec::new() };
    let mut rig = warm_with(Settings { create_topics: Some(new), ..settings() });
    let mut stream = Stream::default().begin(900);
    for nth in 0..80 {
        stream = stream.fact_of(&format!("{nth}missing"), 100 + nth, "m");
    }
    rig.receive(&stream.commit(900).0);
    let creating = |rig: &mut Rig| {
        let request = rig.take(|request| matches!(request, Request::CreateTopics { .. }));
        let Some(Request::CreateTopics { topics }) = request else { return Vec::new() };
        topics.into_iter().map(|(topic, _)| topic).collect()
    };
    assert!(creating(&mut rig).is_empty());
    rig.answer_metadata();
    // A thousand partitions at once, and no more.
    let topics: Vec<Vec<Arc<str>>> = (0..4).map(|_| creating(&mut rig)).collect();
    assert_eq!(topics.iter().map(Vec::len).collect::<Vec<_>>(), [33, 33, 14, 0]);
    let names: HashSet<_> = topics.iter().flatten().collect();
    assert_eq!(names.len(), 80, "each once");
    // One of them is refused, the others are there.
    for topics in topics.into_iter().filter(|topics| !topics.is_empty()) {
        let refused = |topic: &Arc<str>| match &**topic {
            "orders.7missing" => Err(CreateRefusal { error: POLICY_VIOLATION, message: None }),
            _ => Ok(()),
        };
        let answer = Ok(topics.iter().map(refused).collect());
        rig.input(Input::Kafka(Answer::TopicsCreated { topics, answer }));
    }
    let created = |event: &&Event| matches!(event, Event::TopicCreated { .. });
    assert_eq!(rig.events.iter().filter(created).count(), 79);
    let refused = |event: &&Event| matches!(event, Event::TopicNotCreated { .. });
    assert_eq!(rig.events.iter().filter(refused).count(), 1);
}

/// Symptom: every aggregate type that somebody had ever made up was asked for again and again, for ever.
#[test]
fn of_topics_that_are_missing_only_so_many_are_remembered() {
    let mut rig = warm_with(policies(Policy::Skip));
    rig.missing_error = TOPIC_AUTHORIZATION_FAILED;
    let mut asked = 0;
    for nth in 1..=1200 {
        let lsn = 200 * nth;
        let kind = format!("{nth}missing");
        let stream = Stream::default().begin(lsn).fact_of(&kind, lsn - 50, "m");
        rig.receive(&stream.commit(lsn).0);
        let wanted = |request: &&Request| matches!(request, Request::Metadata { .. });
        let Some(Request::Metadata { topics }) = rig.requests.iter().find(wanted) else {
            panic!("{kind} is not asked for")
        };
        asked = topics.len();
        rig.answer_metadata();
    }
    assert_eq!(given_up(&rig).len(), 1200);
    assert!((500..=510).contains(&asked), "{asked} topics are asked for");
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(200 * 1200 + 8));
}

#[test]
fn what_waits_for_a_topic_that_was_deleted_is_given_up_after_a_while() {
    for policy in [Policy::Skip, Policy::DeadLetter] {
        let mut rig = warm_with(Settings { backoff_max: SECOND, ..policies(policy) });
        rig.receive(&Stream::default().transaction(200, &["first"]).0);
        let lost = rig.produce().unwrap();
        rig.deleted = true;
        rig.answer(&lost, 3);
        rig.answer_metadata();
        assert!(given_up(&rig).is_empty());
        for _ in 0..3 {
            rig.keepalive(1, false);
            rig.pass(SECOND);
            if rig.requests.iter().any(|request| matches!(request, Request::Metadata { .. })) {
                rig.answer_metadata();
            }
        }
        assert_eq!(given_up(&rig)[0].poison.cause, Cause::TopicMissing);
        assert_eq!(rig.store_all().len(), usize::from(policy == Policy::DeadLetter));
        rig.keepalive(1, false);
        rig.pass(SECOND);
        assert_eq!(rig.flush(), Lsn(208));

        // It is there again, and is used again.
        rig.deleted = false;
        rig.keepalive(1, false);
        rig.pass(2 * SECOND);
        rig.receive(&Stream::default().transaction(300, &["first"]).0);
        rig.answer_metadata();
        let again = rig.produce().unwrap();
        assert_eq!(&*again[0].topic, "orders.order");
    }
}

#[test]
fn a_topics_own_policy_comes_before_the_general_one() {
    let mut settings = policies(Policy::Halt);
    settings.policies.by_topic = vec![(TopicPattern::new("*.order"), Policy::Skip)];
    let mut rig = warm_with(settings);
    rig.receive(&Stream::default().transaction(200, &["first"]).0);
    let refused = rig.produce().unwrap();
    rig.answer(&refused, 29);
    assert_eq!(given_up(&rig).len(), 1);
    rig.receive(&Stream::default().begin(300).content(250, true, "orders", b"junk").commit(300).0);
    assert!(matches!(rig.standing().state, State::Halted(_)), "no topic is known");
}

/// Symptom: health said "halted" until another fact was published.
#[test]
fn a_halted_relay_whose_slot_was_moved_on_is_halted_no_more() {
    let mut rig = warm();
    rig.receive(&Stream::default().begin(300).content(251, true, "orders", b"junk").commit(300).0);
    assert!(matches!(rig.standing().state, State::Halted(_)));
    rig.pass(4 * SECOND);
    rig.pass(5 * SECOND);
    // Somebody has called pg_replication_slot_advance.
    rig.connect(Identity { confirmed_flush: Lsn(308), ..identity() });
    rig.keepalive(400, false);
    assert_eq!(rig.standing().state, State::Streaming);
    let passed = rig.events.iter().filter(|event| matches!(event, Event::PassedOver { .. }));
    assert_eq!(passed.count(), 1);
}

#[test]
fn a_prefix_that_is_passed_over_is_named_once_and_not_without_end() {
    let mut rig = warm();
    for n in 0..40_u64 {
        for at in [2, 3] {
            let lsn = 1000 * n + 100 * at;
            let prefix = format!("other{n}");
            let stream = Stream::default().begin(lsn).content(lsn - 1, true, &prefix, b"x");
            rig.receive(&stream.commit(lsn).0);
        }
    }
    let named: Vec<&str> = rig
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Foreign { prefix } => Some(prefix.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(named.len(), 16);
    assert_eq!(named[..2], ["other0", "other1"]);
}

/// Symptom: the fact that was named was the first of a batch, and in Kafka already.
#[test]
fn a_fact_that_is_too_large_is_named_wherever_in_a_batch_it_was() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a", "a"]).transaction(300, &["a", "a"]).0);
    let mut stored = 0;
    while let Some(batches) = rig.produce() {
        let [batch] = &batches[..] else { panic!("one partition") };
        let records = keys_of(batch).len();
        // The last of the four.
        let fits = stored + records < 4;
        stored += if fits { records } else { 0 };
        rig.answer(&batches, if fits { 0 } else { 10 });
        if rig.standing().blocked.is_some_and(|blocked| blocked.halted) {
            break;
        }
    }
    assert_eq!(stored, 3);
    let State::Halted(halted) = rig.standing().state else { panic!("not halted") };
    assert_eq!(halted.position.unit, Unit::transaction(Lsn(300)));
    assert_eq!(halted.position.index, 1);
    rig.pass(SECOND);
    assert!(rig.flush() <= Lsn(208), "not past it");
}

#[test]
fn value_and_timestamp_are_what_the_settings_say() {
    let committed = 757_382_400_000_000;
    let envelope = br#"{"aggregate_type":"order","aggregate_id":"k","payload":{"a":1}}"#;
    for (value_is_payload, timestamp_is_publish) in [(false, false), (true, false), (false, true)] {
        let with = Settings { value_is_payload, timestamp_is_publish, ..settings() };
        let mut rig = Rig::streaming_with(with);
        rig.now.clock = Timestamp(committed + 7_000_000);
        let begin = pgoutput::Message::Begin(pgoutput::Begin {
            final_lsn: Lsn(200),
            commit_timestamp: Timestamp(committed),
            xid: 1,
        });
        let stream = Stream::default().put(&begin).content(150, true, "orders", envelope);
        rig.receive(&stream.commit(200).0);
        rig.answer_metadata();
        let batch = batch_of(&rig.produce().unwrap()[0]);
        let ControlBatchOrRecords::Records(records) = batch.records else { panic!("control") };
        let value = if value_is_payload { &br#"{"a":1}"#[..] } else { envelope };
        assert_eq!(records[0].value.as_deref(), Some(value));
        // 2024-01-01, or seven seconds later.
        let moment = if timestamp_is_publish { 1_704_067_207_000 } else { 1_704_067_200_000 };
        assert_eq!(batch.first_timestamp + records[0].timestamp_delta, moment);
    }
}

#[test]
fn while_behind_batches_grow_for_a_moment_and_are_sent_without_more_data() {
    let mut rig = warm();
    let stream = (2..300).fold(Stream::default(), |stream, n| stream.transaction(n * 100, &["a"]));
    assert!(stream.0.len() > 32 * 1024);
    rig.receive(&stream.0);
    assert!(matches!(rig.relay.reading(), Reading::Gather(_)));
    assert!(rig.produce().is_none(), "more is likely to come");
    rig.pass(10 * MS);
    assert_eq!(rig.store_all().len(), 298);
    rig.receive(&Stream::default().transaction(90_000, &["b"]).0);
    assert_eq!(rig.relay.reading(), Reading::Now);
    assert_eq!(rig.store_all(), ["b"], "caught up, a fact leaves at once");
}

#[test]
fn a_stop_inside_a_transaction_reads_on_to_its_commit_across_a_reconnect() {
    let mut rig = warm();
    rig.receive(&Stream::default().begin(200).fact(150, "a").0);
    assert_eq!(rig.store_all(), ["a"]);
    rig.input(Input::Stop);
    rig.input(Input::PostgresGone(Gone::Lost("blip".to_owned())));
    assert!(rig.exit.is_none(), "a would come again");
    rig.pass(SECOND);
    rig.connect(identity());
    let stream = Stream::default().begin(200).fact(150, "a").fact(151, "b").commit(200);
    rig.receive(&stream.transaction(300, &["not taken"]).0);
    assert_eq!(rig.store_all(), ["b"]);
    rig.end_copy();
    assert_eq!(rig.exit.as_ref().unwrap().kind, ExitKind::Stopped);
    assert_eq!(rig.flush(), Lsn(208));
}

#[test]
fn a_stop_with_a_transaction_half_read_for_good_says_that_it_will_come_again() {
    let mut rig = warm();
    let stream = Stream::default().begin(200).fact(150, "a").content(151, true, "orders", b"{");
    rig.receive(&stream.0);
    assert_eq!(rig.store_all(), ["a"]);
    rig.input(Input::Stop);
    rig.end_copy();
    let exit = rig.exit.as_ref().unwrap();
    assert_eq!(exit.kind, ExitKind::Deadline);
    assert!(exit.reason.contains("delivered again"), "{}", exit.reason);
    assert_eq!(rig.flush(), Lsn(108));
}

#[test]
fn a_message_on_the_wrong_side_of_a_begin_confirms_nothing() {
    let mut rig = warm();
    rig.receive(&Stream::default().fact(500, "a").0);
    assert_eq!(rig.hangups, 1);
    let mut rig = warm();
    let content = br#"{"aggregate_type":"order","aggregate_id":"n"}"#;
    rig.receive(
        &Stream::default().begin(500).fact(300, "a").content(501, false, "orders", content).0,
    );
    assert_eq!(rig.hangups, 1);
    assert_eq!(rig.flush(), Lsn(108));
}

#[test]
fn a_read_that_filled_the_buffer_exactly_waits_for_milliseconds() {
    let mut rig = warm();
    let bytes = Stream::default().transaction(200, &["a"]).0;
    rig.relay.receive_buffer().extend_from_slice(&bytes);
    rig.input(Input::Received { bytes: bytes.len(), drained: false });
    assert!(rig.produce().is_none());
    rig.pass(10 * MS);
    assert_eq!(rig.store_all(), ["a"]);
}

#[test]
fn bytes_may_come_cut_anywhere() {
    let mut rig = warm();
    let stream = Stream::default().transaction(200, &["a", "b"]).transaction(300, &["c"]);
    for byte in &stream.0 {
        rig.receive(&[*byte]);
    }
    let mut keys = rig.store_all();
    keys.sort();
    assert_eq!(keys, ["a", "b", "c"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(308));
}

#[test]
fn garbage_from_the_server_ends_the_session_and_not_the_relay() {
    let mut rig = warm();
    rig.receive(b"d\0\0\0\x08wtf!");
    assert_eq!(rig.hangups, 1);
    rig.pass(6 * SECOND);
    assert_eq!(rig.connects, 2);
}

#[test]
fn a_halted_relay_can_be_stopped_and_keeps_the_fact_in_the_slot() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let stream = Stream::default().begin(300).content(251, true, "orders", b"\xffjunk").commit(300);
    rig.receive(&stream.transaction(400, &["b"]).0);
    rig.keepalive(500, true);
    rig.input(Input::Stop);
    assert_eq!(rig.store_all(), ["a"]);
    rig.end_copy();
    assert_eq!(rig.exit.unwrap().kind, ExitKind::Stopped);
    assert_eq!(rig.statuses.last().unwrap().flush, Lsn(208));
}

#[test]
fn a_partition_that_stays_in_trouble_is_told_even_if_little_waits() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    for _ in 0..4 {
        if let Some(batches) = rig.produce() {
            rig.answer(&batches, 19);
        }
        rig.pass(SECOND);
        rig.keepalive(208, false);
    }
    let State::Stalled(reason) = rig.standing().state else { panic!("{:?}", rig.standing()) };
    assert!(reason.contains("NOT_ENOUGH_REPLICAS"), "{reason}");
    rig.pass(5 * SECOND);
    rig.keepalive(208, false);
    rig.store_all();
    assert_eq!(rig.standing().state, State::Streaming);
}

#[test]
fn a_stall_is_told_until_something_moves() {
    let mut rig = Rig::streaming_with(Settings { in_flight_bytes_max: 2000, ..settings() });
    rig.receive(&Stream::default().transaction(100, &["first"]).0);
    rig.answer_metadata();
    rig.store_all();
    let stream = (2..40).fold(Stream::default(), |stream, n| stream.transaction(n * 100, &["a"]));
    rig.receive(&stream.0);
    let batches = rig.produce().unwrap();
    rig.pass(4 * SECOND);
    assert!(matches!(rig.standing().state, State::Stalled(_)), "while away");
    rig.pass(5 * SECOND);
    rig.connect(identity());
    assert!(matches!(rig.standing().state, State::Stalled(_)), "and back again");
    rig.answer(&batches, 0);
    assert_eq!(rig.standing().state, State::Streaming);
}

#[test]
fn a_stop_while_the_server_is_away_ends_at_once_if_nothing_is_left_to_confirm() {
    let mut rig = warm();
    rig.pass(5 * SECOND);
    rig.keepalive(108, false);
    rig.input(Input::PostgresGone(Gone::Lost("restart".to_owned())));
    rig.input(Input::Stop);
    assert_eq!(rig.exit.unwrap().kind, ExitKind::Stopped);
}

/// Symptom: a relay that was stopped behind a black hole said that all was confirmed, and repeated it.
#[test]
fn a_stop_after_what_nobody_answered_waits_for_a_server_that_knows() {
    let mut rig = warm();
    rig.input(Input::PostgresGone(Gone::Lost("reset".to_owned())));
    rig.input(Input::Stop);
    assert_eq!(rig.exit, None);
    rig.pass(SECOND);
    rig.input(Input::PostgresGone(Gone::SlotInUse("PID 7".to_owned())));
    assert_eq!(rig.exit, None, "the other session may be our own, not yet given up");
    rig.pass(SECOND);
    rig.input(Input::Identified(Identity { confirmed_flush: Lsn(200), ..identity() }));
    assert_eq!(rig.exit.unwrap().kind, ExitKind::Stopped);
}

/// Symptom: a relay that was stopped while nothing it said was read took keepalives that nobody had asked
/// for as answers, ended with success, and what it had called confirmed came again.
#[test]
fn a_stop_that_the_server_does_not_hear_asks_where_the_slot_stands() {
    let mut rig = warm();
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    rig.store_all();
    rig.input(Input::Stop);
    rig.keepalive(300, false);
    rig.pass(SECOND);
    assert_eq!((rig.exit.as_ref(), rig.hangups, rig.connects), (None, 1, 2));
    // It had not heard of it, so it is told anew.
    rig.connect(identity());
    rig.keepalive(300, false);
    assert_eq!((rig.exit.as_ref(), rig.flush()), (None, Lsn(208)));
    rig.pass(SECOND);
    rig.input(Input::Identified(Identity { confirmed_flush: Lsn(208), ..identity() }));
    let exit = rig.exit.unwrap();
    assert_eq!(exit.kind, ExitKind::Stopped);
    assert!(exit.reason.ends_with("is in Kafka and confirmed (0/D0)"), "{}", exit.reason);
}

/// Symptom: a slot that cannot be decoded any further was connected to forty times a second, for ever.
#[test]
fn streams_that_break_at_once_are_begun_ever_more_slowly_until_one_moves() {
    let mut rig = warm();
    let mut delays = Vec::new();
    let break_at_once = |rig: &mut Rig| {
        rig.input(Input::PostgresGone(Gone::Lost("invalid memory alloc request size".to_owned())));
        let Some(Event::Away { delay, .. }) = rig.events.last() else { panic!("not away") };
        let delay = *delay;
        rig.pass(delay);
        rig.connect(identity());
        delay
    };
    for _ in 0..12 {
        delays.push(break_at_once(&mut rig));
    }
    assert!(delays[0] < 100 * MS && delays[11] >= settings().backoff_max / 2, "{delays:?}");
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    rig.store_all();
    assert!(break_at_once(&mut rig) < 100 * MS);
}

/// Symptom: while Kafka said nothing for longer than METADATA_MAX_AGE, the relay took a whole processor.
#[test]
fn metadata_that_is_old_and_asked_for_is_no_reason_to_be_called_again() {
    let mut rig = warm();
    rig.pass(2 * settings().metadata_age_max);
    let asked = |request: &&Request| matches!(request, Request::Metadata { .. });
    assert_eq!(rig.requests.iter().filter(asked).count(), 1);
    assert!(rig.relay.deadline().is_none_or(|next| next > rig.now.at));
}

/// Symptom: a server that crashed soon after the relay's start sent again what an earlier relay had confirmed.
#[test]
fn what_an_earlier_relay_confirmed_does_not_come_again_after_a_crash_of_the_server() {
    let mut rig = Rig::new(settings());
    rig.connect(Identity { confirmed_flush: Lsn(150), ..identity() });
    rig.input(Input::PostgresGone(Gone::Lost("crash".to_owned())));
    rig.pass(SECOND);
    rig.input(Input::Identified(Identity { confirmed_flush: Lsn(90), ..identity() }));
    assert_eq!(rig.starts, [Lsn::INVALID, Lsn(150)]);
}

#[test]
fn empty_copy_data_and_notices_are_tolerated_in_the_stream() {
    let mut rig = warm();
    rig.receive(b"d\0\0\0\x04");
    rig.receive(b"N\0\0\0\x15SWARNING\0Mhello\0\0");
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    assert_eq!(rig.store_all(), ["a"]);
    assert_eq!(rig.hangups, 0);
}

/// A key that goes to partition `at` of `count`.
fn key_of(at: u32, count: u32) -> String {
    (0..1000).map(|n| format!("k{n}")).find(|key| partition(key.as_bytes(), count) == at).unwrap()
}

/// Symptom: a broker that had not heard of all partitions stopped the topic until METADATA_MAX_AGE.
#[test]
fn fewer_partitions_are_not_believed_at_once() {
    let mut rig = warm();
    let key = key_of(1, 2);
    rig.receive(&Stream::default().transaction(200, &[&key]).0);
    let sent = rig.produce().unwrap();
    // The leader of a partition that was made a moment ago has not heard of it yet, nor has who is asked.
    rig.answer(&sent, 3);
    rig.partitions = 1;
    rig.answer_metadata();
    rig.partitions = 2;
    rig.pass(SECOND);
    rig.answer_metadata();
    rig.pass(SECOND);
    assert_eq!(rig.store_all(), [key]);
    assert!(!rig.events.iter().any(|event| matches!(event, Event::PartitionsChanged { .. })));
}

/// Symptom: a partition that was out of sight for a while began its sequences anew under the same identity, and a
/// broker took the next fact for a repeat of the first.
#[test]
fn a_partition_that_was_out_of_sight_goes_on_with_its_sequences() {
    let mut rig = warm_with(Settings { metadata_age_max: 2 * SECOND, ..settings() });
    let key = key_of(1, 2);
    rig.receive(&Stream::default().transaction(200, &[&key]).0);
    let sent = rig.produce().unwrap();
    let before = base_sequence(&sent[0]);
    rig.answer(&sent, 0);
    let say_partitions = |rig: &mut Rig, partitions: i32| {
        rig.partitions = partitions;
        for _ in 0..4 {
            rig.pass(2 * SECOND);
            rig.keepalive(208, false);
            if rig.requests.iter().any(|request| matches!(request, Request::Metadata { .. })) {
                rig.answer_metadata();
            }
        }
    };
    say_partitions(&mut rig, 1);
    rig.receive(&Stream::default().transaction(300, &[&key]).0);
    let sent = rig.produce().unwrap();
    assert_eq!(sent[0].partition, 0, "there is only one");
    rig.answer(&sent, 0);
    say_partitions(&mut rig, 2);
    rig.receive(&Stream::default().transaction(400, &[&key]).0);
    let sent = rig.produce().unwrap();
    assert_eq!((sent[0].partition, base_sequence(&sent[0])), (1, after(before, 1)));
}

/// Symptom: facts of a topic that had been reported missing while it was idle waited for METADATA_MAX_AGE.
#[test]
fn a_topic_that_was_missing_while_it_was_idle_is_asked_for_when_a_fact_comes() {
    let mut rig = warm();
    rig.deleted = true;
    rig.receive(&Stream::default().begin(200).fact_of("parcel", 190, "p").commit(200).0);
    rig.answer_metadata();
    assert_eq!(rig.store_all(), ["p"]);
    rig.deleted = false;
    rig.pass(2 * SECOND);
    rig.receive(&Stream::default().transaction(300, &["a"]).0);
    rig.answer_metadata();
    assert_eq!(rig.store_all(), ["a"]);
}

/// Symptom: behind a topic that had been deleted and made again several batches were in flight at once, and the
/// new log would have taken the second without the first.
#[test]
fn what_a_broker_knew_is_forgotten_with_the_topic() {
    let mut rig = warm_with(Settings { batch_records: 1, ..settings() });
    rig.deleted = true;
    rig.receive(&Stream::default().begin(200).fact_of("parcel", 190, "p").commit(200).0);
    rig.answer_metadata();
    rig.store_all();
    rig.deleted = false;
    rig.receive(&Stream::default().begin(300).fact_of("letter", 290, "p").commit(300).0);
    rig.answer_metadata();
    rig.store_all();
    rig.receive(&Stream::default().transaction(400, &["first", "first", "first"]).0);
    assert!(rig.produce().is_some());
    assert!(rig.produce().is_none(), "it has taken none of this producer yet");
}

/// Symptom: each batch that was divided left bytes behind that nothing settled, and the window became smaller.
#[test]
fn the_bytes_of_a_batch_that_was_divided_are_counted_down_to_zero() {
    let mut rig = warm();
    let keys = vec!["first"; 1000];
    rig.receive(&Stream::default().transaction(2000, &keys).0);
    rig.pass(50 * MS);
    let sent = rig.produce().unwrap();
    rig.answer(&sent, 10);
    rig.store_all();
    assert_eq!((rig.standing().unsettled_facts, rig.standing().unsettled_bytes), (0, 0));
}

/// Symptom: a topic that had been missing an hour ago and was created a moment ago was given up at the first
/// answer of a broker that had not heard of it yet.
#[test]
fn the_grace_for_a_missing_topic_counts_anew_after_a_while() {
    let policies =
        Policies { general: Policy::Skip, by_topic: Vec::new(), dead_letter_topic: None };
    let mut rig = warm_with(Settings { policies, ..settings() });
    let skipped =
        |rig: &Rig| rig.events.iter().filter(|event| matches!(event, Event::GivenUp(_))).count();
    let answer = |rig: &mut Rig| {
        if rig.requests.iter().any(|request| matches!(request, Request::Metadata { .. })) {
            rig.answer_metadata();
        }
    };
    rig.receive(&Stream::default().begin(200).fact_of("missing", 190, "p").commit(200).0);
    while skipped(&rig) == 0 {
        answer(&mut rig);
        rig.pass(250 * MS);
    }
    for _ in 0..50 {
        rig.pass(2 * SECOND);
        (0..5).for_each(|_| rig.keepalive(208, false));
    }
    rig.receive(&Stream::default().begin(300).fact_of("missing", 290, "p").commit(300).0);
    answer(&mut rig);
    assert_eq!(
        (skipped(&rig), rig.standing().state, rig.hangups),
        (1, State::Streaming, 0),
        "it waits"
    );
}

/// Symptom: a fact whose id alone was half of what a broker reads was sent again and again, and the broker closed
/// the connection each time.
#[test]
fn a_key_counts_for_the_size_of_a_record() {
    let policies =
        Policies { general: Policy::Skip, by_topic: Vec::new(), dead_letter_topic: None };
    let mut rig = warm_with(Settings { policies, ..settings() });
    let key = "k".repeat(55 << 20);
    rig.receive(&Stream::default().transaction(200, &[&key]).0);
    assert!(rig.produce().is_none());
    let Some(Event::GivenUp(given_up)) = rig.events.last() else { panic!("{:?}", rig.events) };
    assert_eq!(given_up.poison.cause, Cause::TooLarge);
    assert_eq!(rig.standing().unsettled_facts, 0);
}

/// Symptom: facts that waited for an identity that no broker gave were shown to nobody, and readiness said that all
/// was well.
#[test]
fn facts_that_wait_for_a_producer_id_or_a_leader_are_told() {
    let mut rig = Rig::new(settings());
    rig.answer_metadata();
    rig.connect(identity());
    rig.receive(&Stream::default().transaction(100, &["a"]).0);
    rig.answer_metadata();
    assert!(rig.produce().is_none());
    rig.pass(4 * SECOND);
    (0..5).for_each(|_| rig.keepalive(108, false));
    let State::Stalled(reason) = rig.standing().state else { panic!("{:?}", rig.standing()) };
    assert!(reason.contains("no broker gives this producer an id"), "{reason}");
    rig.answer_producer_id(4000);
    assert_eq!(rig.store_all(), ["a"]);
    assert_eq!(rig.standing().state, State::Streaming);
}

/// Symptom: with long pauses between attempts the grace for a missing topic began anew after each, and the policy
/// to skip its facts never applied.
#[test]
fn a_missing_topic_is_given_up_also_where_attempts_are_far_between() {
    let policies =
        Policies { general: Policy::Skip, by_topic: Vec::new(), dead_letter_topic: None };
    let minute = 60 * SECOND;
    let stall_timeout = SECOND;
    let settings = Settings { policies, stall_timeout, backoff_max: 5 * minute, ..settings() };
    let mut rig = warm_with(settings);
    let stream = || Stream::default().begin(200).fact_of("missing", 190, "p").commit(200);
    for _ in 0..4 {
        rig.receive(&stream().0);
        for _ in 0..4 {
            if rig.requests.iter().any(|request| matches!(request, Request::Metadata { .. })) {
                rig.answer_metadata();
            }
            rig.pass(SECOND);
        }
        if rig.events.iter().any(|event| matches!(event, Event::GivenUp(_))) {
            return;
        }
        rig.pass(5 * minute);
        rig.connect(identity());
    }
    panic!("never given up");
}

/// What takes the facts keeps their order itself, and takes them one by one.
fn keeps_order() -> Settings {
    Settings { keeps_order: true, batch_records: 1, ..settings() }
}

#[test]
fn what_keeps_order_has_all_of_a_partition_at_once_and_answers_in_any_order() {
    let mut rig = warm_with(Settings { in_flight_bytes_max: 1 << 20, ..keeps_order() });
    let stream = (2..500).fold(Stream::default(), |stream, n| stream.transaction(n * 100, &["a"]));
    rig.receive(&stream.0);
    let sent: Vec<_> = std::iter::from_fn(|| rig.produce()).collect();
    assert_eq!(sent.len(), 498, "none waits for an answer to another");
    let (oldest, others) = sent.split_first().unwrap();
    for batches in others.iter().rev() {
        rig.answer(batches, 0);
    }
    // Long enough for a broker to have forgotten us.
    for _ in 0..20 {
        rig.pass(5 * SECOND);
        rig.keepalive(50_000, false);
        rig.keepalive(50_000, false);
    }
    assert_eq!(rig.flush(), Lsn(108), "the oldest holds back what the server may forget");
    rig.receive(&Stream::default().transaction(60_000, &["late"]).0);
    let late = rig.produce().expect("what is in flight for long holds up no other");
    assert_eq!(keys_of(&late[0]), ["late"]);
    rig.answer(&late, 0);
    rig.answer(oldest, 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(60_008));
    assert_eq!(rig.hangups, 0);
}

#[test]
fn what_keeps_order_is_not_waited_for_before_a_small_batch_goes() {
    let mut rig = warm_with(Settings { batch_records: 100, ..keeps_order() });
    rig.receive(&Stream::default().transaction(200, &["a"]).0);
    let first = rig.produce().unwrap();
    rig.receive(&Stream::default().transaction(300, &["b"]).0);
    let second = rig.produce().expect("b does not wait for a");
    assert_eq!(keys_of(&second[0]), ["b"]);
    rig.answer(&second, 0);
    rig.answer(&first, 0);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(308));
}

#[test]
fn a_stop_that_is_given_up_confirms_what_is_settled_and_does_not_wait_for_the_rest() {
    let mut rig = warm_with(keeps_order());
    rig.receive(&Stream::default().transaction(200, &["a"]).transaction(300, &["b"]).0);
    let (first, _never) = (rig.produce().unwrap(), rig.produce().unwrap());
    rig.input(Input::GiveUp);
    assert!(rig.exit.is_none(), "nothing is given up before it is to stop");
    rig.input(Input::Stop);
    rig.answer(&first, 0);
    assert!(rig.exit.is_none());
    rig.input(Input::GiveUp);
    // Also what comes now, which nobody has.
    rig.receive(&Stream::default().transaction(400, &["not taken"]).0);
    rig.keepalive(500, false);
    assert_eq!((rig.flush(), rig.copy_dones), (Lsn(208), 1));
    rig.end_copy();
    let exit = rig.exit.unwrap();
    assert_eq!(exit.kind, ExitKind::Deadline);
    assert!(exit.reason.contains("1 facts that were read are not settled"), "{}", exit.reason);
}

#[test]
fn a_stop_that_leaves_nothing_reads_to_the_end_of_the_transaction_so_that_none_of_it_comes_again() {
    let half = || {
        let mut rig = warm_with(keeps_order());
        rig.receive(&Stream::default().begin(200).fact(150, "a").0);
        let only = rig.produce().unwrap();
        rig.answer(&only, 0);
        rig.input(Input::Stop);
        rig.input(Input::GiveUp);
        assert!(rig.exit.is_none(), "its end may be all that is missing");
        rig
    };
    let mut rig = half();
    rig.receive(&Stream::default().commit(200).0);
    rig.end_copy();
    let exit = rig.exit.take().unwrap();
    assert_eq!((rig.flush(), exit.kind), (Lsn(208), ExitKind::Stopped));

    let mut rig = half();
    rig.receive(&Stream::default().fact(151, "b").fact(152, "c").0);
    rig.end_copy();
    let exit = rig.exit.take().unwrap();
    assert_eq!((rig.flush(), exit.kind), (Lsn(108), ExitKind::Deadline));
    assert!(exit.reason.contains("facts that were read are not settled"), "{}", exit.reason);
}

#[test]
fn what_keeps_order_is_given_each_fact_once_in_order_and_confirmed_only_behind_its_answer() {
    for seed in 0..50 {
        let mut dice = Rng::new(seed);
        let mut rig = warm_with(keeps_order());
        // Commit record and facts of each transaction.
        let transactions: Vec<(u64, Vec<String>)> = (0..60)
            .map(|n| {
                let keys = (0..1 + dice.below(4)).map(|i| format!("{n:02}.{i}")).collect();
                (1000 + n * 100, keys)
            })
            .collect();
        let (mut next, mut steps) = (0, 0);
        let mut outstanding: Vec<Vec<PartitionBatch>> = Vec::new();
        let (mut produced, mut answered) = (Vec::new(), HashSet::new());
        while next < transactions.len() || !outstanding.is_empty() {
            steps += 1;
            match dice.below(20) {
                0 if steps < 400 => {
                    rig.input(Input::PostgresGone(Gone::Lost("connection reset".to_owned())));
                    rig.pass(6 * SECOND);
                    rig.connect(identity());
                    let start = rig.starts.last().unwrap().0;
                    next = transactions.iter().take_while(|(lsn, _)| lsn + 8 <= start).count();
                }
                1..=9 if next < transactions.len() => {
                    let (lsn, keys) = &transactions[next];
                    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                    rig.receive(&Stream::default().transaction(*lsn, &keys).0);
                    next += 1;
                }
                10..=18 if !outstanding.is_empty() => {
                    let batches = outstanding.swap_remove(dice.below(outstanding.len()));
                    rig.answer(&batches, 0);
                    answered.extend(batches.iter().flat_map(keys_of));
                }
                _ => rig.pass(10 * MS),
            }
            while let Some(batches) = rig.produce() {
                produced.extend(batches.iter().flat_map(keys_of));
                outstanding.push(batches);
            }
            let flush = rig.flush().0;
            let confirmed = transactions.iter().take_while(|(lsn, _)| lsn + 8 <= flush);
            let mut facts = confirmed.flat_map(|(_, keys)| keys);
            assert!(facts.all(|key| answered.contains(key)), "seed {seed}: {flush}");
        }
        let all: Vec<String> = transactions.iter().flat_map(|(_, keys)| keys.clone()).collect();
        let order = |wanted: u32| {
            let of = |keys: &[String]| -> Vec<String> {
                let is_of = |key: &&String| partition(key.as_bytes(), 2) == wanted;
                keys.iter().filter(is_of).cloned().collect()
            };
            (of(&produced), of(&all))
        };
        for index in 0..2 {
            let (produced, all) = order(index);
            assert_eq!(produced, all, "seed {seed}");
        }
        rig.pass(SECOND);
        assert_eq!(rig.flush(), Lsn(transactions.last().unwrap().0 + 8), "seed {seed}");
        assert_eq!(rig.standing().unsettled_facts, 0);
    }
}
