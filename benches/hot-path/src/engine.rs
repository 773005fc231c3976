//! The whole engine between a server whose bytes are at hand and brokers that answer at once.

use factlib::relay::compression::Compression;
use factlib::relay::kafka::{
    Answer, Broker, Metadata, PartitionAnswer, PartitionMetadata, ProducerId, Request,
    TopicMetadata,
};
use factlib::relay::poison::Policies;
use factlib::relay::template::Naming;
use factlib::relay::{Identity, Input, Now, Output, Relay, Settings};
use factlib_protocol::{Lsn, Timestamp};
use std::time::{Duration, Instant};

/// What is read at once, at most.
pub const GULP: usize = 256 * 1024;

/// Partitions of every topic.
const PARTITIONS: i32 = 4;

const SECOND: Duration = Duration::from_secs(1);

/// From gulp to gulp.
const GULP_TIME: Duration = Duration::from_millis(1);

/// As long as the engine lets a batch grow while it is behind.
const SWEEP: Duration = Duration::from_millis(10);

/// The engine, streaming.
pub struct Engine {
    relay: Relay,
    now: Now,
    /// Record batches so far.
    pub batches: usize,
}

impl Engine {
    /// An engine with the defaults that is streaming.
    pub fn streaming(prefix: &str, compression: Compression) -> Self {
        let now = Now { at: Instant::now(), clock: Timestamp(0) };
        let relay = Relay::new(settings(prefix, compression));
        let mut engine = Self { relay, now, batches: 0 };
        engine.handle(Input::Timeout);
        engine.handle(Input::Identified(Identity {
            system: 7_300_000_000_000_000_000,
            timeline: 1,
            wal_flushed: Lsn(1),
            history: Vec::new(),
            database: 5,
            confirmed_flush: Lsn(1),
        }));
        engine.handle(Input::Streaming { asked_at: now.at });
        // An answer to the first ping: without it there is no lease, and nothing is produced.
        let mut keepalive = bytes::BytesMut::new();
        let answer = factlib_protocol::replication::PrimaryKeepalive {
            wal_end: Lsn(1),
            server_clock: Timestamp(0),
            reply_requested: false,
        };
        answer.encode(&mut keepalive);
        engine.feed(&keepalive);
        engine
    }

    /// Hands it what a walsender sent, in gulps; returns when all of it is in Kafka.
    pub fn feed(&mut self, stream: &[u8]) {
        let mut waited = 0;
        let mut gulps = stream.chunks(GULP).peekable();
        while let Some(gulp) = gulps.next() {
            self.relay.receive_buffer().extend_from_slice(gulp);
            let drained = gulps.peek().is_none();
            self.now.at += GULP_TIME;
            self.handle(Input::Received { bytes: gulp.len(), drained });
        }
        // What could still grow goes when it has waited.
        while self.relay.standing(self.now.at).unsettled_facts > 0 {
            self.now.at += SWEEP;
            self.handle(Input::Timeout);
            waited += 1;
            assert!(waited < 10, "facts that are not in Kafka");
        }
    }

    fn handle(&mut self, input: Input) {
        self.relay.handle(self.now, input);
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Kafka(request) => {
                    let answer = self.answer(request);
                    self.relay.handle(self.now, Input::Kafka(answer));
                }
                Output::Send(_)
                | Output::Connect { .. }
                | Output::StartReplication { .. }
                | Output::Event(_) => {}
                Output::Hangup => panic!("the engine hung up"),
                Output::Exit(exit) => panic!("the engine left: {exit:?}"),
            }
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Metadata { topics } => {
                let partition = |index| PartitionMetadata { index, leader: Some(1) };
                let topics = topics.iter().map(|name| TopicMetadata {
                    name: name.to_string(),
                    id: None,
                    error: 0,
                    partitions: (0..PARTITIONS).map(partition).collect(),
                });
                Answer::Metadata(Ok(Metadata {
                    cluster_id: Some("cluster".to_owned()),
                    brokers: vec![Broker { id: 1, host: "kafka".to_owned(), port: 9092 }],
                    topics: topics.collect(),
                }))
            }
            Request::InitProducerId => Answer::ProducerId(Ok(Ok(ProducerId { id: 1, epoch: 0 }))),
            Request::Produce { broker, batches, .. } => {
                self.batches += batches.len();
                let partitions = batches.into_iter().map(|batch| PartitionAnswer {
                    topic: batch.topic,
                    partition: batch.partition,
                    base_sequence: batch.base_sequence,
                    error: 0,
                    base_offset: 0,
                });
                let partitions = partitions.collect();
                Answer::Produced { broker, partitions, throttle: Duration::ZERO }
            }
            other => panic!("not asked for here: {other:?}"),
        }
    }
}

fn settings(prefix: &str, compression: Compression) -> Settings {
    Settings {
        prefixes: vec![prefix.to_owned()],
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
        in_flight_per_partition: 5,
        keeps_order: false,
        startup_timeout: None,
        compression,
        policies: Policies::HALT,
        create_topics: None,
        skip_stored: false,
        delivery: factlib::relay::Delivery::AtLeastOnce,
        seed: 7,
    }
}
