//! The engine in Kafka transactions against a scripted server and a scripted broker: no sockets, no runtime, and a
//! clock that only moves when a test says so.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]
#![expect(clippy::disallowed_methods, reason = "the start of a clock that then stands still")]

use bytes::BytesMut;
use factlib::relay::compression::Compression;
use factlib::relay::error_code::*;
use factlib::relay::event::{AbortReason, End, Event};
use factlib::relay::gone::{Exit, ExitKind, Gone};
use factlib::relay::kafka::{
    Answer, Broker, Metadata, NewTopic, PartitionAnswer, PartitionBatch, PartitionMetadata,
    ProducerId, Request, StoredPosition, TopicMetadata, TransactionVersion, Unanswered,
};
use factlib::relay::poison::{Policies, Policy};
use factlib::relay::position::{Position, Timelines, Unit};
use factlib::relay::position_record::PositionRecord;
use factlib::relay::producer::TransactionState;
use factlib::relay::template::Naming;
use factlib::relay::{
    Delivery, ExactlyOnce, Identity, Input, LargeTransactions, Now, Output, Reading, Relay,
    Settings, transactional_id,
};
use factlib_protocol::replication::{PrimaryKeepalive, StandbyStatusUpdate, XLogData};
use factlib_protocol::{Frame, Lsn, Timestamp, pgoutput};
use rskafka::protocol::record::{ControlBatchOrRecords, RecordBatch};
use rskafka::protocol::traits::ReadType as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn exactly_once() -> ExactlyOnce {
    ExactlyOnce {
        slot: "factlib_slot".to_owned(),
        position_topic: "owlpost.position".into(),
        position_topic_like: NewTopic {
            partitions: Some(1),
            replication_factor: None,
            configs: Vec::new(),
        },
        timeout: 60 * SECOND,
        interval: 50 * MS,
        bytes_max: 4 * 1024 * 1024,
        facts_max: 100_000,
        large: LargeTransactions::Split,
        standby: false,
    }
}

fn settings_of(exactly_once: ExactlyOnce) -> Settings {
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
        delivery: Delivery::ExactlyOnce(exactly_once),
        in_flight_per_partition: 5,
        keeps_order: false,
        startup_timeout: Some(30 * SECOND),
        seed: 7,
    }
}

fn settings() -> Settings {
    settings_of(exactly_once())
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

/// A position as an earlier process left it, behind the transaction at `lsn` of one fact.
fn record(lsn: u64) -> PositionRecord {
    let fact = Position { timeline: 1, unit: Unit::transaction(Lsn(lsn)), index: 0 };
    let timelines = Timelines::new(1, Vec::new());
    PositionRecord { system: 7, timelines, lsn: Lsn(lsn + 8), fact: Some(fact), parts: 0 }
}

/// The engine, what it said, and a broker that does what it is asked.
struct Rig {
    relay: Relay,
    now: Now,
    /// When the server's clock showed zero.
    begun: Instant,
    starts: Vec<Lsn>,
    connects: usize,
    hangups: usize,
    statuses: Vec<StandbyStatusUpdate>,
    copy_dones: usize,
    requests: Vec<Request>,
    events: Vec<Event>,
    exit: Option<Exit>,
    identity: Identity,
    // The broker.
    version: TransactionVersion,
    epoch: i16,
    /// What is kept.
    position: Option<StoredPosition>,
    pending: Option<StoredPosition>,
    /// Keys that are produced, and not committed; by topic.
    open: Vec<(String, String)>,
    /// Those that are, transaction by transaction.
    committed: Vec<Vec<String>>,
    aborts: usize,
    /// The names of what coordinators were asked.
    asked: Vec<&'static str>,
    /// Error codes that are answered instead, once each.
    refusals: BTreeMap<&'static str, Vec<i16>>,
    /// These topics are not there.
    missing: Vec<&'static str>,
    /// Facts with these keys are too large for their topic.
    too_large: Vec<String>,
}

fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Metadata { .. } => "Metadata",
        Request::InitProducerId => "InitProducerId",
        Request::FindCoordinator { .. } => "FindCoordinator",
        Request::InitTransactions { producer: None, .. } => "begin",
        Request::InitTransactions { .. } => "next epoch",
        Request::AddPartitions { .. } => "AddPartitions",
        Request::AddOffsets { .. } => "AddOffsets",
        Request::CommitPosition { .. } => "CommitPosition",
        Request::EndTransaction { commit: true, .. } => "commit",
        Request::EndTransaction { .. } => "abort",
        Request::FetchPosition { .. } => "FetchPosition",
        Request::CreateTopics { .. } => "CreateTopics",
        Request::Produce { .. } => "Produce",
        Request::Tail { .. } => "Tail",
    }
}

impl Rig {
    fn new(settings: Settings, position: Option<PositionRecord>) -> Self {
        let now = Now { at: Instant::now(), clock: Timestamp(0) };
        Self {
            relay: Relay::new(settings),
            now,
            begun: now.at,
            starts: Vec::new(),
            connects: 0,
            hangups: 0,
            statuses: Vec::new(),
            copy_dones: 0,
            requests: Vec::new(),
            events: Vec::new(),
            exit: None,
            identity: identity(),
            version: TransactionVersion::Explicit,
            epoch: -1,
            position: position.map(|record| record.to_stored()),
            pending: None,
            open: Vec::new(),
            committed: Vec::new(),
            aborts: 0,
            asked: Vec::new(),
            refusals: BTreeMap::new(),
            missing: Vec::new(),
            too_large: Vec::new(),
        }
    }

    /// Streaming, and the position is read.
    fn ready_with(settings: Settings, position: Option<PositionRecord>) -> Self {
        let mut rig = Self::new(settings, position);
        rig.begin();
        rig
    }

    fn ready() -> Self {
        Self::ready_with(settings(), None)
    }

    fn begin(&mut self) {
        self.input(Input::Timeout);
        self.connect();
        self.serve();
        self.asked.clear();
    }

    fn connect(&mut self) {
        self.input(Input::Identified(self.identity.clone()));
        if self.exit.is_none() {
            self.input(Input::Streaming { asked_at: self.now.at });
        }
    }

    fn input(&mut self, input: Input) {
        self.relay.handle(self.now, input);
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Connect { .. } => self.connects += 1,
                Output::StartReplication { start } => self.starts.push(start),
                Output::Send(bytes) => self.said(&bytes),
                Output::Hangup => self.hangups += 1,
                Output::Kafka(request) => self.requests.push(request),
                Output::Event(event) => self.events.push(event),
                Output::Exit(exit) => self.exit = Some(exit),
            }
        }
    }

    fn said(&mut self, bytes: &[u8]) {
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

    /// Lets time pass with every deadline on the way. PostgreSQL answers each status.
    fn pass(&mut self, time: Duration) {
        let until = self.now.at + time;
        while let Some(deadline) = self.relay.deadline().filter(|deadline| *deadline <= until) {
            let statuses = self.statuses.len();
            self.now.at = self.now.at.max(deadline);
            self.input(Input::Timeout);
            assert!(
                self.relay.deadline().is_none_or(|next| next > self.now.at),
                "a deadline that has been served is still due"
            );
            if self.statuses.len() > statuses && self.relay.reading() != Reading::Paused {
                self.keepalive(1);
            }
        }
        self.now.at = until;
    }

    /// Time passes, and Kafka answers.
    fn work(&mut self, time: Duration) {
        let until = self.now.at + time;
        self.serve();
        while self.now.at < until {
            self.pass(MS.min(until - self.now.at));
            self.serve();
        }
    }

    fn flush(&self) -> Lsn {
        self.statuses.last().unwrap().flush
    }

    fn state(&self) -> TransactionState {
        self.relay.standing(self.now.at).transaction.unwrap()
    }

    // ---- PostgreSQL ----

    fn receive(&mut self, bytes: &[u8]) {
        self.relay.receive_buffer().extend_from_slice(bytes);
        self.input(Input::Received { bytes: bytes.len(), drained: true });
    }

    fn keepalive(&mut self, wal_end: u64) {
        let mut out = BytesMut::new();
        let elapsed = i64::try_from((self.now.at - self.begun).as_micros()).unwrap();
        let (wal_end, server_clock) = (Lsn(wal_end), Timestamp(elapsed));
        PrimaryKeepalive { wal_end, server_clock, reply_requested: false }.encode(&mut out);
        self.receive(&out);
    }

    fn end_copy(&mut self) {
        assert_eq!(self.copy_dones, 1);
        self.receive(b"c\0\0\0\x04");
    }

    fn lose_connection(&mut self) {
        self.input(Input::PostgresGone(Gone::Lost("reset".to_owned())));
    }

    // ---- Kafka ----

    fn refuse(&mut self, what: &'static str, code: i16) {
        self.refusals.entry(what).or_default().push(code);
    }

    /// Answers everything that is asked, until nothing is.
    fn serve(&mut self) {
        while self.serve_but(&[]) {}
    }

    /// Answers the oldest request that is none of these; false if there is none.
    fn serve_but(&mut self, names: &[&str]) -> bool {
        let wanted = |request: &Request| !names.contains(&name_of(request));
        let Some(at) = self.requests.iter().position(wanted) else { return false };
        let request = self.requests.remove(at);
        let answer = self.answer(request);
        self.input(Input::Kafka(answer));
        true
    }

    /// Until that is asked.
    fn serve_until(&mut self, name: &'static str) -> Request {
        for _ in 0..1000 {
            if let Some(at) = self.requests.iter().position(|request| name_of(request) == name) {
                return self.requests.remove(at);
            }
            if !self.serve_but(&[name]) {
                self.pass(MS);
            }
        }
        panic!("{name} is never asked: {:?}, {:?}", self.asked, self.events)
    }

    fn lose(&mut self, request: Request) {
        let answer = request.unanswered(Unanswered("reset".to_owned()));
        self.input(Input::Kafka(answer));
    }

    fn producer(&self) -> ProducerId {
        ProducerId { id: 9, epoch: self.epoch }
    }

    fn ended(&mut self, commit: bool) -> Option<ProducerId> {
        let open = std::mem::take(&mut self.open);
        let pending = self.pending.take();
        match commit {
            true => {
                self.committed.push(open.into_iter().map(|(_, key)| key).collect());
                self.position = pending.or(self.position.take());
            }
            false => self.aborts += 1,
        }
        let bumps = self.version == TransactionVersion::EpochPerTransaction;
        bumps.then(|| {
            self.epoch += 1;
            self.producer()
        })
    }

    fn answer(&mut self, request: Request) -> Answer {
        let name = name_of(&request);
        let is_plain = matches!(name, "Metadata" | "Produce" | "FindCoordinator" | "CreateTopics");
        if !is_plain {
            self.asked.push(name);
        }
        let refusal = self.refusals.get_mut(name).filter(|codes| !codes.is_empty());
        let refusal = refusal.map(|codes| codes.remove(0));
        match request {
            Request::Metadata { topics } => self.metadata(&topics),
            Request::FindCoordinator { of, .. } => {
                Answer::Coordinator { of, answer: Ok(refusal.map_or(Ok(1), Err)) }
            }
            Request::InitTransactions { .. } => Answer::TransactionsReady(Ok(match refusal {
                Some(code) => Err(code),
                None => {
                    self.epoch += 1;
                    assert_eq!(self.open, [], "asked for the next epoch while one is open");
                    Ok((self.producer(), self.version))
                }
            })),
            Request::AddPartitions { partitions, .. } => {
                Answer::PartitionsAdded(Ok(vec![refusal.unwrap_or(NONE); partitions.len()]))
            }
            Request::AddOffsets { .. } => Answer::OffsetsAdded(Ok(refusal.map_or(Ok(()), Err))),
            Request::CommitPosition { position, producer, .. } => {
                assert_eq!(producer, self.producer());
                Answer::PositionCommitted(Ok(match refusal {
                    Some(code) => Err(code),
                    None => {
                        self.pending = Some(position);
                        Ok(())
                    }
                }))
            }
            Request::EndTransaction { commit, .. } => Answer::TransactionEnded(Ok(match refusal {
                Some(code) => Err(code),
                None => Ok(self.ended(commit)),
            })),
            Request::FetchPosition { .. } => {
                Answer::Position(Ok(refusal.map_or(Ok(self.position.clone()), Err)))
            }
            Request::CreateTopics { topics } => {
                self.missing.retain(|missing| topics.iter().all(|(name, _)| **name != **missing));
                let answer = Ok(topics.iter().map(|_| Ok(())).collect());
                let topics = topics.into_iter().map(|(name, _)| name).collect();
                Answer::TopicsCreated { topics, answer }
            }
            Request::Produce { broker, batches, transaction } => {
                let (id, version) = transaction.expect("outside of a transaction");
                assert_eq!(
                    (&*id, version),
                    (&*transactional_id(7, 5, "factlib_slot"), self.version)
                );
                let partitions = batches.iter().map(|batch| self.store(batch, refusal)).collect();
                Answer::Produced { broker, partitions, throttle: Duration::ZERO }
            }
            Request::InitProducerId | Request::Tail { .. } => panic!("{name} in transactions"),
        }
    }

    fn store(&mut self, batch: &PartitionBatch, refusal: Option<i16>) -> PartitionAnswer {
        let decoded = RecordBatch::read(&mut std::io::Cursor::new(&batch.batch)).unwrap();
        assert!(decoded.is_transactional);
        let producer = ProducerId { id: decoded.producer_id, epoch: decoded.producer_epoch };
        assert_eq!(producer, self.producer());
        let is_too_large = |record: &rskafka::protocol::record::Record| {
            let key = record.key.as_deref().unwrap_or_default();
            self.too_large.iter().any(|large| large.as_bytes() == key)
        };
        let refused = &*batch.topic != "dead" && records_of(batch).iter().any(is_too_large);
        let refusal = refusal.or(refused.then_some(MESSAGE_TOO_LARGE));
        if refusal.is_none() {
            for record in records_of(batch) {
                let key = String::from_utf8(record.key.unwrap()).unwrap();
                let part = record.headers.iter().find(|header| header.key == "factlib_part");
                let part = part.map(|part| String::from_utf8(part.value.clone()).unwrap());
                let dead = if &*batch.topic == "dead" { "dead:" } else { "" };
                let key = match part {
                    Some(part) => format!("{dead}{key}#{part}"),
                    None => format!("{dead}{key}"),
                };
                self.open.push((batch.topic.to_string(), key));
            }
        }
        PartitionAnswer {
            topic: batch.topic.clone(),
            partition: batch.partition,
            base_sequence: batch.base_sequence,
            error: refusal.unwrap_or(NONE),
            base_offset: 0,
        }
    }

    fn metadata(&self, topics: &[Arc<str>]) -> Answer {
        let topics = topics.iter().map(|name| {
            let missing = self.missing.contains(&&**name);
            let partition = |index| PartitionMetadata { index, leader: Some(1) };
            TopicMetadata {
                name: name.to_string(),
                id: None,
                error: if missing { UNKNOWN_TOPIC_OR_PARTITION } else { NONE },
                partitions: (0..1).filter(|_| !missing).map(partition).collect(),
            }
        });
        Answer::Metadata(Ok(Metadata {
            cluster_id: Some("cluster".to_owned()),
            brokers: vec![Broker { id: 1, host: "kafka".to_owned(), port: 9092 }],
            topics: topics.collect(),
        }))
    }

    fn kept(&self) -> PositionRecord {
        PositionRecord::from_stored(self.position.as_ref().unwrap()).unwrap()
    }

    fn saw(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }
}

fn records_of(batch: &PartitionBatch) -> Vec<rskafka::protocol::record::Record> {
    let decoded = RecordBatch::read(&mut std::io::Cursor::new(&batch.batch)).unwrap();
    match decoded.records {
        ControlBatchOrRecords::Records(records) => records,
        ControlBatchOrRecords::ControlBatch(_) => panic!("control batch"),
    }
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
        let (final_lsn, commit_timestamp) = (Lsn(final_lsn), Timestamp(0));
        self.put(&pgoutput::Message::Begin(pgoutput::Begin { final_lsn, commit_timestamp, xid: 1 }))
    }

    fn content(self, lsn: u64, content: &[u8]) -> Self {
        self.put(&pgoutput::Message::Message(pgoutput::LogicalMessage {
            xid: None,
            transactional: true,
            lsn: Lsn(lsn),
            prefix: b"orders",
            content,
        }))
    }

    fn fact(self, lsn: u64, key: &str) -> Self {
        let content = format!(r#"{{"aggregate_type":"order","aggregate_id":"{key}"}}"#);
        self.content(lsn, content.as_bytes())
    }

    fn large_fact(self, lsn: u64, key: &str, bytes: usize) -> Self {
        let payload = "x".repeat(bytes);
        let content =
            format!(r#"{{"aggregate_type":"order","aggregate_id":"{key}","payload":"{payload}"}}"#);
        self.content(lsn, content.as_bytes())
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
        let facts = keys.iter().zip(1..);
        let begun = self.begin(lsn);
        facts.fold(begun, |stream, (key, index)| stream.fact(lsn - 50 + index, key)).commit(lsn)
    }
}

fn transaction(lsn: u64, keys: &[&str]) -> BytesMut {
    Stream::default().transaction(lsn, keys).0
}

#[test]
fn the_id_is_taken_and_the_position_read_before_any_fact_is_produced() {
    let mut rig = Rig::new(settings(), Some(record(100)));
    rig.input(Input::Timeout);
    while rig.serve_but(&["begin"]) {}
    assert_eq!(rig.asked, [] as [&str; 0], "the slot is not ours yet");
    rig.connect();
    rig.receive(&Stream::default().transaction(100, &["old"]).transaction(200, &["new"]).0);
    assert_eq!(rig.relay.reading(), Reading::Paused);
    assert_eq!(rig.flush(), Lsn::INVALID);
    rig.work(100 * MS);
    assert_eq!(rig.asked[..2], ["begin", "FetchPosition"]);
    assert_eq!(rig.committed, [["new"]]);
    let read = Event::PositionRead { lsn: Lsn(108), fact: record(100).fact };
    assert!(rig.events.contains(&read));
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
}

#[test]
fn postgresql_is_told_what_a_committed_position_holds() {
    for version in [TransactionVersion::Explicit, TransactionVersion::EpochPerTransaction] {
        let mut rig = Rig::new(settings(), None);
        rig.version = version;
        rig.begin();
        assert!(rig.saw(|event| matches!(event, Event::PositionMissing { slot: Lsn(1) })));
        rig.receive(&Stream::default().transaction(100, &["a", "b"]).transaction(200, &["c"]).0);
        let end = rig.serve_until("commit");
        assert_eq!(rig.state(), TransactionState::Ending);
        rig.pass(2 * SECOND);
        assert_eq!(rig.flush(), Lsn(1), "all is stored, and nothing committed");
        let answer = rig.answer(end);
        rig.input(Input::Kafka(answer));
        assert_eq!(rig.committed, [["a", "b", "c"]]);
        rig.pass(SECOND);
        assert_eq!(rig.flush(), Lsn(208));
        let kept = rig.kept();
        assert_eq!((kept.lsn, kept.system, kept.parts), (Lsn(208), 7, 0));
        assert_eq!(kept.fact.unwrap().unit, Unit::transaction(Lsn(200)));
        let explicit = ["AddPartitions", "AddOffsets", "CommitPosition", "commit"];
        let implicit = ["CommitPosition", "commit"];
        match version {
            TransactionVersion::Explicit => assert_eq!(rig.asked, explicit),
            TransactionVersion::EpochPerTransaction => assert_eq!(rig.asked, implicit),
        }
    }
}

#[test]
fn a_transaction_is_closed_after_its_interval_and_at_the_end_of_a_unit() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    rig.work(49 * MS);
    assert_eq!((rig.committed.len(), rig.open.len()), (0, 1), "produced at once");
    rig.work(2 * MS);
    assert_eq!(rig.committed, [["a"]]);
    rig.receive(&Stream::default().begin(200).fact(150, "b").0);
    rig.work(SECOND);
    assert_eq!((rig.committed.len(), rig.open.len()), (1, 1), "it is not read to its end");
    rig.receive(&Stream::default().fact(151, "c").commit(200).0);
    rig.work(5 * MS);
    assert_eq!(rig.committed[1], ["b", "c"]);
}

#[test]
fn what_is_read_while_a_transaction_ends_goes_in_the_next() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    let end = rig.serve_until("commit");
    rig.receive(&transaction(200, &["b"]));
    rig.pass(SECOND);
    assert!(!rig.requests.iter().any(|request| name_of(request) == "Produce"));
    let answer = rig.answer(end);
    rig.input(Input::Kafka(answer));
    rig.work(10 * MS);
    assert_eq!(rig.committed, [["a"], ["b"]]);
}

#[test]
fn bytes_and_facts_close_a_transaction_before_its_interval() {
    for of_facts in [false, true] {
        let mut exactly_once = exactly_once();
        (exactly_once.interval, exactly_once.facts_max) =
            (60 * SECOND, if of_facts { 3 } else { 9 });
        exactly_once.bytes_max = if of_facts { 4 * 1024 * 1024 } else { 600 };
        let mut rig = Rig::ready_with(settings_of(exactly_once), None);
        let keys = ["a", "b", "c", "d", "e"];
        let stream = keys
            .iter()
            .zip(1..)
            .fold(Stream::default(), |stream, (key, nth)| stream.transaction(100 * nth, &[key]));
        rig.receive(&stream.0);
        rig.work(100 * MS);
        assert_eq!(rig.committed, [["a", "b", "c"]], "of facts: {of_facts}");
    }
}

#[test]
fn a_slot_ahead_of_the_position_is_a_gap_and_refused_with_its_size() {
    let mut rig = Rig::new(settings(), Some(record(100)));
    rig.identity.confirmed_flush = Lsn(108 + 3 * 1024);
    rig.begin();
    let Exit { kind, reason } = rig.exit.unwrap();
    assert_eq!(kind, ExitKind::Slot);
    assert!(reason.contains("3.0 KiB beyond 0/6C"), "{reason}");
    assert!(reason.contains("--delete --group owlpost-7-5-factlib_slot"), "{reason}");
}

/// Symptom: a relay whose slot had stood beyond the end of the log, as factlib's relay leaves it, ended with "its history
/// went back" once it had committed that position.
#[test]
fn a_position_where_the_slot_stands_ahead_of_the_log_is_no_history_that_went_back() {
    let ahead = PositionRecord { lsn: Lsn(2_000_000), fact: None, ..record(100) };
    let confirmed = ahead.lsn;
    let mut rig = Rig::new(settings(), Some(ahead));
    rig.identity.confirmed_flush = confirmed;
    rig.begin();
    assert_eq!((&rig.exit, rig.hangups), (&None, 0));
    assert!(rig.saw(|event| matches!(event, Event::PositionRead { .. })));
}

/// Symptom: a relay that was frozen while another one, which knew no transactions, had the slot, published that one's
/// facts again.
#[test]
fn what_is_held_when_the_slot_was_moved_is_not_published_and_the_gap_is_told() {
    let held = || {
        let mut rig = Rig::ready_with(settings(), Some(record(50)));
        rig.receive(&transaction(100, &["a"]));
        rig.serve();
        assert_eq!(rig.open.len(), 1);
        rig
    };
    let back = |rig: &mut Rig| {
        rig.lose_connection();
        rig.pass(100 * MS);
        rig.identity.confirmed_flush = Lsn(108);
        rig.connect();
        rig.work(500 * MS);
        assert_eq!((rig.committed.len(), rig.open.len()), (0, 0));
    };
    let mut rig = held();
    back(&mut rig);
    let Exit { kind, reason } = rig.exit.unwrap();
    assert_eq!(kind, ExitKind::Slot, "{reason}");
    assert!(reason.contains("50 B beyond 0/3A"), "{reason}");

    // Who stops has no time to ask.
    let mut rig = held();
    rig.input(Input::Stop);
    back(&mut rig);
    let Exit { kind, reason } = rig.exit.unwrap();
    assert_eq!(kind, ExitKind::Deadline, "{reason}");
    assert!(reason.contains("another had the slot"), "{reason}");
}

#[test]
fn positions_of_other_clusters_and_of_nobody_are_refused() {
    let of = |position: StoredPosition| {
        let mut rig = Rig::new(settings(), None);
        rig.position = Some(position);
        rig.begin();
        if rig.exit.is_none() {
            // It asks again where the log ends.
            rig.connect();
        }
        rig.exit.unwrap()
    };
    let other = PositionRecord { system: 8, ..record(100) };
    assert_eq!(of(other.to_stored()).kind, ExitKind::OtherCluster);
    let ahead = PositionRecord { lsn: Lsn(2_000_000), ..record(100) };
    let exit = of(ahead.to_stored());
    assert_eq!(exit.kind, ExitKind::OtherCluster);
    assert!(exit.reason.contains("history went back"), "{}", exit.reason);
    let exit = of(StoredPosition { offset: 5, metadata: "by hand".to_owned() });
    assert_eq!(exit.kind, ExitKind::Slot);
    assert!(exit.reason.contains("by hand"), "{}", exit.reason);
}

/// Symptom: a relay that took the slot from another at the wrong moment ended with "its history went back", though
/// nothing had happened to the server.
#[test]
fn a_position_that_another_relay_committed_after_the_server_was_asked_is_no_history_that_went_back()
{
    let mut rig = Rig::new(settings(), None);
    rig.identity.wal_flushed = Lsn(50);
    rig.input(Input::Timeout);
    rig.connect();
    // The one that had the slot until now was further.
    rig.position = Some(record(100).to_stored());
    rig.serve();
    assert_eq!((rig.hangups, rig.connects, &rig.exit), (1, 2, &None));
    rig.identity.wal_flushed = Lsn(1000);
    rig.connect();
    rig.receive(&Stream::default().transaction(100, &["old"]).transaction(200, &["new"]).0);
    rig.work(100 * MS);
    assert_eq!((&rig.committed, rig.hangups), (&vec![vec!["new".to_owned()]], 1));

    // Nor where it was read while there was no connection.
    let mut rig = Rig::new(settings(), None);
    rig.identity.wal_flushed = Lsn(50);
    rig.input(Input::Timeout);
    rig.connect();
    let fetch = rig.serve_until("FetchPosition");
    rig.lose_connection();
    rig.pass(100 * MS);
    assert_eq!(rig.connects, 2);
    rig.position = Some(record(100).to_stored());
    let answer = rig.answer(fetch);
    rig.input(Input::Kafka(answer));
    assert_eq!((rig.hangups, rig.connects), (0, 2), "the server is being asked");
    rig.connect();
    assert_eq!((rig.hangups, rig.connects, &rig.exit), (1, 3, &None), "or it was, before that");
    rig.connect();
    assert!(rig.exit.unwrap().reason.contains("history went back"));
}

#[test]
fn after_a_failover_the_common_part_is_not_produced_again() {
    // Up to 0/12C on timeline 1, of which only what is before 0/C8 is left.
    let mut rig = Rig::new(settings(), Some(record(292)));
    rig.identity.timeline = 2;
    rig.identity.history = vec![(1, Lsn(200))];
    rig.identity.confirmed_flush = Lsn(50);
    rig.begin();
    assert!(rig.saw(|event| matches!(event, Event::PositionPassed { timeline: 1, .. })));
    rig.receive(&Stream::default().transaction(100, &["common"]).transaction(250, &["new"]).0);
    rig.work(100 * MS);
    assert_eq!(rig.committed, [["new"]]);
    let kept = rig.kept();
    assert_eq!((kept.timelines.current(), kept.lsn), (2, Lsn(258)));
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(258));
}

/// Symptom: after two failovers from one parent, facts that both servers had were published again, because the first
/// server's timeline is not in the second one's history.
#[test]
fn after_a_second_failover_from_the_same_parent_the_common_part_is_not_produced_again() {
    let timelines = Timelines::new(2, vec![(1, Lsn(200))]);
    let unit = Unit::transaction(Lsn(292));
    let fact = Some(Position { timeline: 2, unit, index: 0 });
    let mut rig = Rig::new(settings(), Some(PositionRecord { timelines, fact, ..record(292) }));
    rig.identity.timeline = 3;
    rig.identity.history = vec![(1, Lsn(220))];
    rig.identity.confirmed_flush = Lsn(50);
    rig.begin();
    assert!(rig.saw(|event| matches!(event, Event::PositionPassed { timeline: 2, .. })));
    rig.receive(&Stream::default().transaction(100, &["common"]).transaction(210, &["new"]).0);
    rig.work(100 * MS);
    assert_eq!(rig.committed, [["new"]]);
}

/// Symptom: of two servers that were promoted apart from each other to the same number, the second one's facts were
/// taken for facts that are in Kafka, and lost.
#[test]
fn a_server_promoted_apart_to_the_same_number_is_refused_once_there_are_facts_of_the_other() {
    let begun = |end, current| {
        let timelines = Timelines::new(2, vec![(1, Lsn(200))]);
        let mut rig = Rig::new(settings(), Some(PositionRecord { timelines, ..record(292) }));
        rig.identity.timeline = current;
        rig.identity.history = vec![(1, Lsn(end))];
        rig.identity.history.truncate(current as usize - 1);
        rig.begin();
        rig.exit
    };
    assert_eq!(begun(200, 2), None);
    for (end, current, words) in [(180, 2, "promoted apart"), (200, 1, "old primary")] {
        let Exit { kind, reason } = begun(end, current).unwrap();
        assert_eq!(kind, ExitKind::OtherCluster, "{reason}");
        assert!(reason.contains(words) && reason.contains("--group owlpost-7-5"), "{reason}");
    }
}

#[test]
fn a_failover_drops_what_only_the_old_primary_had() {
    let mut rig = Rig::ready();
    rig.receive(&Stream::default().transaction(100, &["kept"]).transaction(200, &["lost"]).0);
    while rig.serve_but(&["Produce"]) {}
    rig.lose_connection();
    rig.pass(SECOND);
    rig.identity.timeline = 2;
    rig.identity.history = vec![(1, Lsn(150))];
    rig.connect();
    rig.work(100 * MS);
    rig.receive(&Stream::default().transaction(100, &["kept"]).transaction(160, &["new"]).0);
    rig.work(100 * MS);
    assert_eq!(rig.committed, [["kept", "new"]]);
    assert_eq!(rig.open, []);
}

#[test]
fn a_unit_that_was_read_in_part_comes_again_as_a_whole() {
    let mut rig = Rig::ready();
    rig.receive(&Stream::default().transaction(100, &["a"]).begin(200).fact(150, "b").0);
    rig.work(10 * MS);
    assert_eq!(rig.open.len(), 2);
    rig.lose_connection();
    assert!(rig.saw(|event| {
        matches!(event, Event::TransactionAborted { reason: AbortReason::ReadInPart, .. })
    }));
    rig.work(10 * MS);
    assert_eq!((rig.aborts, rig.open.len()), (1, 0), "without the slot it can be aborted");
    assert_eq!(rig.asked.last(), Some(&"abort"), "and nothing else");
    rig.pass(SECOND);
    rig.connect();
    assert_eq!(rig.starts.last(), Some(&Lsn(1)));
    rig.work(60 * MS);
    assert_eq!(rig.committed, [["a"]]);
    rig.receive(&Stream::default().transaction(100, &["a"]).transaction(200, &["b", "c"]).0);
    rig.work(60 * MS);
    assert_eq!(rig.committed, [vec!["a"], vec!["b", "c"]]);
}

#[test]
fn what_is_before_a_transaction_that_halts_the_relay_is_committed() {
    let mut rig = Rig::ready();
    let stream = Stream::default().transaction(100, &["a"]).begin(200).fact(150, "b");
    rig.receive(&stream.content(151, b"{junk").commit(200).0);
    rig.serve();
    assert!(rig.saw(|event| matches!(event, Event::Halted(_))));
    rig.work(4 * SECOND);
    assert_eq!(rig.hangups, 1);
    rig.pass(5 * SECOND);
    rig.connect();
    rig.work(100 * MS);
    assert_eq!(rig.committed, [["a"]]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(108));
    let stream = Stream::default().begin(200).fact(150, "b").content(151, b"{junk").commit(200);
    rig.receive(&stream.0);
    rig.work(100 * MS);
    let halts = rig.events.iter().filter(|event| matches!(event, Event::Halted(_))).count();
    assert_eq!((halts, rig.committed.len()), (1, 1));
    assert!(!rig.saw(|event| matches!(event, Event::Resumed { .. })));
}

fn small() -> ExactlyOnce {
    ExactlyOnce { bytes_max: 1000, ..exactly_once() }
}

#[test]
fn a_transaction_that_is_too_large_goes_in_parts_that_say_so() {
    let mut rig = Rig::ready_with(settings_of(small()), None);
    rig.receive(&Stream::default().transaction(100, &["a"]).begin(200).large_fact(150, "b", 900).0);
    rig.work(10 * MS);
    assert_eq!(rig.committed, [["a", "b"]]);
    assert!(rig.saw(|event| matches!(event, Event::TransactionSplit { part: 1, .. })));
    let kept = rig.kept();
    assert_eq!((kept.lsn, kept.parts), (Lsn(108), 1));
    assert_eq!(kept.fact.unwrap().unit, Unit::transaction(Lsn(200)));
    rig.receive(&Stream::default().large_fact(151, "c", 1200).0);
    rig.work(10 * MS);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(108), "it is not read to its end");
    assert_eq!(rig.kept().parts, 2);

    // Another process goes on where this one is.
    let kept = rig.kept();
    let mut rig = Rig::ready_with(settings_of(small()), Some(kept));
    let again = Stream::default().begin(200).large_fact(150, "b", 900).large_fact(151, "c", 1200);
    rig.receive(&again.fact(152, "d").commit(200).transaction(300, &["e"]).0);
    rig.work(100 * MS);
    assert_eq!(rig.committed, [["d#3", "e"]]);
    assert_eq!((rig.kept().parts, rig.kept().lsn), (0, Lsn(308)));
}

#[test]
fn a_transaction_that_is_too_large_halts_where_that_is_wanted() {
    let large = LargeTransactions::Halt;
    let mut rig = Rig::ready_with(settings_of(ExactlyOnce { large, ..small() }), None);
    let stream =
        || Stream::default().transaction(100, &["a"]).begin(200).large_fact(150, "b", 1200);
    rig.receive(&stream().0);
    rig.work(4 * SECOND);
    let Some(Event::Halted(halted)) =
        rig.events.iter().find(|event| matches!(event, Event::Halted(_)))
    else {
        panic!("not halted")
    };
    assert!(halted.reason.contains("LARGE_TRANSACTIONS=split"), "{}", halted.reason);
    assert_eq!(rig.hangups, 1);
    rig.pass(5 * SECOND);
    rig.connect();
    rig.receive(&stream().0);
    rig.work(100 * MS);
    assert_eq!(rig.committed, [["a"]], "what is before it, and nothing of it");
}

#[test]
fn a_transaction_that_is_read_for_too_long_is_too_large() {
    let mut rig = Rig::ready();
    rig.receive(&Stream::default().begin(200).fact(150, "a").0);
    rig.work(29 * SECOND);
    assert_eq!(rig.committed.len(), 0);
    rig.work(2 * SECOND);
    assert_eq!(rig.committed, [["a"]]);
    let is_it = |event: &Event| match event {
        Event::TransactionSplit { cause, .. } => cause.contains("TRANSACTION_TIMEOUT"),
        _ => false,
    };
    assert!(rig.saw(is_it));
}

#[test]
fn a_stop_closes_commits_confirms_and_leaves() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    while rig.serve_but(&["AddPartitions"]) {}
    rig.input(Input::Stop);
    rig.serve();
    assert_eq!((rig.committed.len(), rig.flush()), (1, Lsn(108)));
    rig.end_copy();
    assert_eq!(rig.exit.unwrap().kind, ExitKind::Stopped);
}

#[test]
fn a_stop_at_its_deadline_aborts_what_is_open() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    while rig.serve_but(&["Produce"]) {}
    rig.input(Input::Stop);
    rig.pass(11 * SECOND);
    assert_eq!(rig.exit.as_ref().unwrap().kind, ExitKind::Deadline);
    assert_eq!(rig.requests.last().map(name_of), Some("abort"));
}

#[test]
fn an_end_that_was_not_answered_and_came_is_settled_without_a_repeat() {
    for (came, epoch) in [(true, 1), (false, 1)] {
        let mut rig = Rig::ready();
        rig.receive(&transaction(100, &["a"]));
        let end = rig.serve_until("commit");
        if came {
            rig.ended(true);
            rig.refuse("abort", INVALID_TXN_STATE);
        }
        rig.asked.clear();
        rig.lose(end);
        rig.work(500 * MS);
        assert_eq!(rig.asked[..3], ["abort", "next epoch", "FetchPosition"]);
        assert_eq!(rig.committed, [["a"]], "came: {came}");
        assert_eq!(rig.epoch, epoch);
        rig.pass(SECOND);
        assert_eq!(rig.flush(), Lsn(108));
        assert_eq!(rig.relay.standing(rig.now.at).unsettled_facts, 0);
    }
}

#[test]
fn a_batch_that_costs_the_transaction_goes_again_in_the_next() {
    for code in [INVALID_PRODUCER_EPOCH, INVALID_TXN_STATE, OUT_OF_ORDER_SEQUENCE_NUMBER, 120, 59] {
        let mut rig = Rig::ready();
        rig.refuse("Produce", code);
        rig.receive(&transaction(100, &["a", "b"]));
        rig.work(500 * MS);
        assert_eq!(
            (rig.aborts, &rig.committed[..]),
            (1, &[vec!["a".to_owned(), "b".to_owned()]][..])
        );
    }
}

#[test]
fn a_batch_that_is_not_stored_just_now_goes_again_in_the_same_transaction() {
    for code in [NOT_ENOUGH_REPLICAS, CONCURRENT_TRANSACTIONS, REQUEST_TIMED_OUT] {
        let mut rig = Rig::ready();
        rig.refuse("Produce", code);
        rig.receive(&transaction(100, &["a"]));
        rig.work(500 * MS);
        assert_eq!((rig.aborts, &rig.committed[..]), (0, &[["a".to_owned()].to_vec()][..]));
        let blocked = rig.saw(|event| matches!(event, Event::PartitionBlocked { .. }));
        assert_eq!(blocked, code != CONCURRENT_TRANSACTIONS, "that is as usual");
    }
}

fn dead_letters() -> Settings {
    let dead_letter_topic = Some("dead".into());
    let policies =
        Policies { general: Policy::DeadLetter, by_topic: Vec::new(), dead_letter_topic };
    Settings { policies, ..settings() }
}

#[test]
fn a_dead_letter_goes_in_the_same_transaction_as_the_facts_around_it() {
    let mut rig = Rig::ready_with(dead_letters(), None);
    rig.receive(&transaction(100, &["a"]));
    rig.refuse("Produce", MESSAGE_TOO_LARGE);
    rig.serve();
    rig.receive(&transaction(200, &["b"]));
    rig.work(500 * MS);
    assert_eq!(rig.aborts, 1, "its sequence is a hole");
    assert_eq!(rig.committed, [["dead:a", "b"]]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
}

/// Symptom: each fact that a broker refused cost a transaction, and each of those took seconds longer to be begun anew.
#[test]
fn many_facts_that_a_broker_refuses_are_dead_letters_within_a_second() {
    let mut rig = Rig::ready_with(dead_letters(), None);
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    rig.too_large.clone_from(&keys);
    rig.receive(&transaction(100, &keys.iter().map(String::as_str).collect::<Vec<_>>()));
    rig.work(SECOND);
    assert_eq!(rig.committed.iter().flatten().count(), 20, "{} aborts", rig.aborts);
    assert!(rig.committed.iter().flatten().all(|key| key.starts_with("dead:")));
}

/// Symptom: a fact that a broker refused, with the policy `halt`, kept its transaction open until it expired, again and
/// again, and consumers waited in all of its partitions.
#[test]
fn a_fact_that_a_broker_refuses_holds_no_transaction_open_while_it_halts() {
    let mut rig = Rig::ready();
    rig.too_large = vec!["large".to_owned()];
    rig.receive(&Stream::default().transaction(100, &["a", "large"]).transaction(200, &["b"]).0);
    for tries in 1..4 {
        rig.work(500 * MS);
        assert_eq!((rig.aborts, &rig.open[..], rig.committed.len()), (tries, &[][..], 0));
        rig.work(4 * SECOND);
        assert_eq!(rig.aborts, tries, "not before BACKOFF_MAX");
        rig.work(400 * MS);
    }
    assert!(rig.saw(|event| {
        matches!(event, Event::TransactionAborted { reason: AbortReason::Halted, .. })
    }));
    let blocked = rig.relay.standing(rig.now.at).blocked.unwrap();
    assert_eq!((blocked.position.unit.lsn, blocked.position.index), (Lsn(100), 1), "the large one");
    assert!(!rig.saw(|event| matches!(event, Event::PartitionRecovered { .. })));
    rig.too_large.clear();
    rig.work(5 * SECOND);
    assert_eq!(rig.committed.concat(), ["a", "large", "b"]);
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(208));
}

fn fence(rig: &mut Rig) {
    rig.receive(&transaction(100, &["a"]));
    rig.refuse("AddPartitions", PRODUCER_FENCED);
    rig.refuse("next epoch", PRODUCER_FENCED);
    rig.work(200 * MS);
}

#[test]
fn who_is_fenced_produces_nothing_more_and_ends() {
    let mut rig = Rig::ready();
    fence(&mut rig);
    let exit = rig.exit.clone().unwrap();
    assert_eq!(exit.kind, ExitKind::Fenced);
    assert!(exit.reason.contains("owlpost-7-5-factlib_slot"), "{}", exit.reason);
    assert!(rig.requests.is_empty() && rig.committed.is_empty());
}

/// Symptom: a relay that had been frozen asked for the next epoch, which fenced the one that had taken over.
#[test]
fn who_is_fenced_asks_for_no_epoch_while_another_has_one() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    rig.refuse("Produce", INVALID_PRODUCER_EPOCH);
    rig.refuse("abort", PRODUCER_FENCED);
    rig.work(200 * MS);
    assert_eq!(rig.exit.as_ref().unwrap().kind, ExitKind::Fenced);
    assert_eq!(rig.asked.last(), Some(&"abort"), "and then nothing");
}

#[test]
fn who_is_fenced_while_another_has_the_slot_waits_for_it() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    rig.serve();
    rig.lose_connection();
    rig.pass(100 * MS);
    rig.input(Input::PostgresGone(Gone::SlotInUse("PID 7".to_owned())));
    // It has aborted what was open, and published that.
    rig.open.clear();
    rig.position = Some(record(100).to_stored());
    rig.refuse("abort", PRODUCER_FENCED);
    rig.work(5 * SECOND);
    assert_eq!((rig.asked.last(), &rig.exit), (Some(&"abort"), &None));
    assert_eq!(rig.relay.standing(rig.now.at).unsettled_facts, 0, "they are the other one's");
    rig.asked.clear();
    rig.connect();
    rig.receive(&Stream::default().transaction(100, &["a"]).transaction(200, &["b"]).0);
    rig.work(200 * MS);
    assert_eq!(rig.asked[..2], ["begin", "FetchPosition"]);
    assert_eq!(rig.committed, [["b"]]);
}

#[test]
fn a_standby_that_is_fenced_waits_for_the_slot_and_begins_anew() {
    let mut rig =
        Rig::ready_with(settings_of(ExactlyOnce { standby: true, ..exactly_once() }), None);
    fence(&mut rig);
    assert!(rig.saw(|event| matches!(event, Event::Fenced { waits: true, .. })));
    assert!(rig.saw(|event| matches!(event, Event::Away { end: End::Fenced, .. })));
    rig.pass(SECOND);
    rig.input(Input::PostgresGone(Gone::SlotInUse("PID 7".to_owned())));
    rig.work(5 * SECOND);
    assert_eq!(rig.asked.last(), Some(&"next epoch"), "nothing is asked without the slot");
    // The other one has published that, and is gone.
    rig.position = Some(record(100).to_stored());
    rig.asked.clear();
    rig.connect();
    rig.receive(&Stream::default().transaction(100, &["a"]).transaction(200, &["b"]).0);
    rig.work(200 * MS);
    assert_eq!(rig.asked[..2], ["begin", "FetchPosition"]);
    assert_eq!(rig.committed, [["b"]]);
}

#[test]
fn who_gets_the_slot_back_from_another_takes_the_id_and_what_that_one_published_for_what_it_is() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    rig.serve();
    rig.lose_connection();
    rig.pass(SECOND);
    rig.input(Input::PostgresGone(Gone::SlotInUse("PID 7".to_owned())));
    // Its transaction is aborted; who came has published that.
    rig.work(SECOND);
    assert_eq!((rig.aborts, rig.open.len()), (1, 0));
    rig.position = Some(record(100).to_stored());
    rig.asked.clear();
    rig.connect();
    rig.receive(&Stream::default().transaction(100, &["a"]).transaction(200, &["b"]).0);
    rig.work(200 * MS);
    assert_eq!(rig.asked[..2], ["begin", "FetchPosition"]);
    assert_eq!(rig.committed, [["b"]]);
    assert_eq!(rig.exit, None);
}

/// Symptom: a relay that waited for the slot, and was told to stop, waited for its deadline and ended with 7, because of
/// facts that the other one had published long since.
#[test]
fn what_was_held_when_another_took_the_slot_is_that_ones_and_no_stop_waits_for_it() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    rig.serve();
    assert_eq!(rig.open.len(), 1);
    rig.lose_connection();
    rig.pass(100 * MS);
    rig.input(Input::PostgresGone(Gone::SlotInUse("PID 7".to_owned())));
    rig.work(100 * MS);
    assert_eq!((rig.aborts, rig.open.len()), (1, 0), "at once");
    assert_eq!(rig.relay.standing(rig.now.at).unsettled_facts, 0);
    rig.input(Input::Stop);
    let Exit { kind, reason } = rig.exit.unwrap();
    assert_eq!(kind, ExitKind::Stopped, "{reason}");
    assert!(reason.contains("the slot is another session's"), "{reason}");
}

#[test]
fn nothing_is_committed_without_the_slot() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    rig.serve();
    rig.lose_connection();
    rig.work(10 * SECOND);
    assert_eq!(rig.committed.len(), 0);
    rig.connect();
    rig.work(100 * MS);
    assert_eq!(rig.committed, [["a"]]);
}

/// Symptom: while PostgreSQL was down, consumers of committed records waited for TRANSACTION_TIMEOUT.
#[test]
fn while_postgresql_is_away_consumers_of_committed_records_are_not_held_up() {
    for version in [TransactionVersion::Explicit, TransactionVersion::EpochPerTransaction] {
        for held_back in ["Produce", "CommitPosition", "commit"] {
            let mut rig = Rig::new(settings(), None);
            rig.version = version;
            rig.begin();
            rig.receive(&transaction(100, &["a"]));
            let request = rig.serve_until(held_back);
            rig.lose_connection();
            // Its end is on its way, and comes late; all else comes at once.
            let (late, soon) = match held_back {
                "commit" => (Some(request), None),
                _ => (None, Some(request)),
            };
            if let Some(request) = soon {
                let answer = rig.answer(request);
                rig.input(Input::Kafka(answer));
            }
            rig.work(2900 * MS);
            assert_eq!((rig.aborts, rig.committed.len()), (0, 0), "it may be back at once");
            rig.pass(200 * MS);
            if let Some(request) = late {
                let answer = rig.answer(request);
                rig.refuse("abort", INVALID_TXN_STATE);
                rig.input(Input::Kafka(answer));
            }
            rig.serve();
            assert_eq!(rig.open, [], "{held_back}");
            assert_eq!(rig.asked.last(), Some(&"abort"), "and nothing else without the slot");
            rig.work(90 * SECOND);
            assert_eq!(rig.asked.last(), Some(&"abort"));
            rig.connect();
            rig.work(200 * MS);
            assert_eq!(rig.committed.concat(), ["a"], "{held_back}");
            rig.pass(SECOND);
            assert_eq!(rig.flush(), Lsn(108));
            assert_eq!((rig.exit, rig.relay.standing(rig.now.at).unsettled_facts), (None, 0));
        }
    }
}

#[test]
fn what_is_open_outlives_a_connection_that_is_given_up_because_kafka_is_slow() {
    let mut settings = settings_of(ExactlyOnce { interval: 60 * SECOND, ..exactly_once() });
    settings.in_flight_bytes_max = 2000;
    let mut rig = Rig::ready_with(settings, None);
    for (nth, key) in (1..).zip(["a", "b", "c", "d"]) {
        let lsn = 100 * nth;
        rig.receive(&Stream::default().begin(lsn).large_fact(lsn - 50, key, 600).commit(lsn).0);
    }
    let produce = rig.serve_until("Produce");
    rig.pass(3500 * MS);
    let is_it = |event: &Event| matches!(event, Event::Away { end: End::Stalled, .. });
    assert!(rig.saw(is_it), "{:?}", rig.events);
    rig.pass(4 * SECOND);
    let answer = rig.answer(produce);
    rig.input(Input::Kafka(answer));
    rig.serve();
    assert_eq!((rig.aborts, rig.open.is_empty()), (0, false), "it would never come to an end");
    rig.lose_connection();
    rig.work(4 * SECOND);
    assert_eq!(rig.aborts, 1, "it was our own choice until PostgreSQL was gone");
}

#[test]
fn where_no_facts_come_the_position_follows_and_is_renewed() {
    let mut rig = Rig::ready();
    rig.work(2 * SECOND);
    assert_eq!(rig.committed.len(), 0, "there is nothing to say");
    rig.keepalive(500);
    rig.work(10 * MS);
    rig.keepalive(600);
    rig.work(900 * MS);
    assert_eq!((rig.committed.len(), rig.kept().lsn), (1, Lsn(500)));
    rig.work(200 * MS);
    assert_eq!((rig.committed.len(), rig.kept().lsn), (2, Lsn(600)));
    rig.keepalive(600 + 16 * 1024 * 1024);
    rig.serve();
    assert_eq!(rig.committed.len(), 3, "a segment of the log is much");
    rig.pass(SECOND);
    assert_eq!(rig.flush(), Lsn(600 + 16 * 1024 * 1024));
    assert_eq!(rig.asked.iter().filter(|name| **name == "AddPartitions").count(), 0);
    let renewed = rig.kept();
    for _ in 0..3600 {
        rig.pass(SECOND);
        rig.serve();
    }
    assert_eq!((rig.committed.len(), rig.kept()), (4, renewed));
}

#[test]
fn the_topic_of_the_position_is_made_if_it_is_missing() {
    let mut rig = Rig::new(settings(), None);
    rig.missing = vec!["owlpost.position"];
    rig.begin();
    rig.work(SECOND);
    assert!(rig.missing.is_empty());
    rig.receive(&transaction(100, &["a"]));
    rig.refuse("CommitPosition", UNKNOWN_TOPIC_OR_PARTITION);
    rig.work(SECOND);
    assert_eq!(rig.committed, [["a"]]);
}

#[test]
fn a_position_that_somebody_else_wrote_is_taken_for_what_it_is() {
    let mut rig = Rig::ready();
    rig.receive(&transaction(100, &["a"]));
    let end = rig.serve_until("commit");
    rig.ended(false);
    rig.position = Some(record(100).to_stored());
    let other = PositionRecord { lsn: Lsn(208), ..record(200) };
    rig.position = Some(other.to_stored());
    rig.lose(end);
    rig.work(200 * MS);
    assert_eq!(rig.hangups, 1);
    rig.pass(2 * SECOND);
    rig.connect();
    rig.receive(&Stream::default().transaction(100, &["a"]).transaction(300, &["c"]).0);
    rig.work(200 * MS);
    assert_eq!(rig.committed, [["c"]]);
}

#[test]
fn a_right_that_is_missing_is_told_with_what_helps() {
    let mut rig = Rig::new(settings(), None);
    rig.refuse("begin", TRANSACTIONAL_ID_AUTHORIZATION_FAILED);
    rig.begin();
    let is_it = |event: &Event| match event {
        Event::TransactionsRefused { remedy, .. } => remedy.contains("Write and Describe"),
        _ => false,
    };
    assert!(rig.saw(is_it));
    rig.receive(&transaction(100, &["a"]));
    rig.pass(4 * SECOND);
    let words = |event: &Event| match event {
        Event::Away { cause, .. } => cause.contains("Write and Describe"),
        _ => false,
    };
    assert!(rig.saw(words), "{:?}", rig.events);
}
