//! What goes into the engine and what comes out: plain data, the whole contract with a driver.

use super::compression::Compression;
use super::event::Event;
use super::gone::{Exit, Gone};
use super::kafka::{Answer, NewTopic, Request};
use super::poison::Policies;
use super::template::Naming;
use bytes::BytesMut;
use factlib_protocol::{Lsn, Timestamp};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For deadlines.
    pub at: Instant,
    /// For what others read: the status' clock, record timestamps where asked for.
    pub clock: Timestamp,
}

/// What the engine needs to know beforehand.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The prefixes whose messages are facts of ours.
    pub prefixes: Vec<String>,
    /// How facts are named in Kafka.
    pub naming: Naming,
    /// Publish the payload alone instead of the envelope.
    pub value_is_payload: bool,
    /// Stamp records with the time of publishing instead of the commit's.
    pub timestamp_is_publish: bool,
    /// Make headers of the event's metadata.
    pub metadata_headers: bool,
    /// Encoded bytes that may be unsettled before reading pauses.
    pub in_flight_bytes_max: usize,
    /// The largest message accepted from PostgreSQL, in bytes of body.
    pub frame_bytes_max: usize,
    /// How long the socket may stay unread before we hang up.
    pub stall_timeout: Duration,
    /// How long after a ping was sent its answer lets us produce.
    pub lease: Duration,
    /// Longest time between two pings.
    pub status_interval: Duration,
    /// How long a stop may take.
    pub stop_timeout: Duration,
    /// Largest delay between attempts.
    pub backoff_max: Duration,
    /// How old what is known of topics may become before it is asked for again.
    pub metadata_age_max: Duration,
    /// A batch of this many encoded bytes is closed, at most [`super::batch::BATCH_BYTES_MAX`].
    pub batch_bytes: usize,
    /// A batch of this many records is closed.
    pub batch_records: usize,
    /// How many batches of a partition may be in flight, from 1 to
    /// [`super::producer::IN_FLIGHT_MAX`].
    pub in_flight_per_partition: usize,
    /// What takes the batches is no Kafka: it never refuses one, answers each exactly once, when all of it is done
    /// with, and keeps the order itself. Then any number of a partition is in flight, also ones that could still
    /// grow, and one that takes long holds up no other.
    pub keeps_order: bool,
    /// How long the first contact with PostgreSQL and Kafka may take; none is for ever.
    pub startup_timeout: Option<Duration>,
    /// How batches are compressed.
    pub compression: Compression,
    /// What becomes of facts that cannot be published.
    pub policies: Policies,
    /// What a topic that is missing is created like, if it is at all.
    pub create_topics: Option<NewTopic>,
    /// What Kafka had of us before this process is read back, and not produced again.
    pub skip_stored: bool,
    /// How often consumers see a fact.
    pub delivery: Delivery,
    /// Seed of the jitter.
    pub seed: u64,
}

/// How often consumers see a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// Once, and after a fault again: repeats are recognised by their position.
    AtLeastOnce,
    /// Once, if they read committed records only: facts and position go in Kafka transactions.
    ExactlyOnce(ExactlyOnce),
}

/// What Kafka transactions are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactlyOnce {
    /// The slot's name, of which the transactional id is made.
    pub slot: String,
    /// The topic of whose partition 0 the position is kept as an offset; nothing is written to it. It must not be one
    /// of the facts' topics: whoever deletes a topic deletes its offsets.
    pub position_topic: Arc<str>,
    /// What that is created like, if it is missing.
    pub position_topic_like: NewTopic,
    /// How long a transaction may be open before Kafka ends it, up to `transaction.max.timeout.ms`. A transaction of
    /// PostgreSQL that is read for longer than half of it is too large.
    pub timeout: Duration,
    /// So long after its first fact a transaction is closed, at the end of a transaction of PostgreSQL.
    pub interval: Duration,
    /// So many encoded bytes close it, at the end of a transaction of PostgreSQL, and make one that is larger too large.
    /// At most half of [`Settings::in_flight_bytes_max`] is used, so that the next one gathers while this one ends.
    pub bytes_max: usize,
    /// So many facts close it.
    pub facts_max: usize,
    /// What becomes of transactions of PostgreSQL that are too large.
    pub large: LargeTransactions,
    /// Who is fenced waits for the slot instead of ending.
    pub standby: bool,
}

/// What becomes of transactions of PostgreSQL that are too large for one Kafka transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LargeTransactions {
    /// They go in several, from the second on with the header `factlib_part`; each fact is still seen once.
    Split,
    /// They halt the relay.
    Halt,
}

/// The transactional id, and the consumer group that keeps the position, of a relay that reads this slot of this
/// database.
pub fn transactional_id(system: u64, database: u32, slot: &str) -> String {
    format!("owlpost-{system}-{database}-{slot}")
}

/// Who the server is and where the slot stands: asked before every START_REPLICATION.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// IDENTIFY_SYSTEM: `systemid`.
    pub system: u64,
    /// IDENTIFY_SYSTEM: `timeline`.
    pub timeline: u32,
    /// IDENTIFY_SYSTEM: `xlogpos`, the end of the flushed WAL.
    pub wal_flushed: Lsn,
    /// TIMELINE_HISTORY of `timeline`: ended timelines, oldest first, and where each ended.
    pub history: Vec<(u32, Lsn)>,
    /// OID of the database.
    pub database: u32,
    /// The slot's `confirmed_flush_lsn`.
    pub confirmed_flush: Lsn,
}

/// Everything that can happen to the relay.
#[derive(Debug)]
pub enum Input {
    /// Logged in; IDENTIFY_SYSTEM answered; slot and publication are there and belong together.
    Identified(Identity),
    /// START_REPLICATION, sent at this moment, was answered with CopyBothResponse.
    Streaming {
        /// When it was sent: the lease counts from there.
        asked_at: Instant,
    },
    /// So many bytes were appended to [`super::Relay::receive_buffer`].
    Received {
        /// Number of bytes.
        bytes: usize,
        /// True if the socket has nothing more at this moment.
        drained: bool,
    },
    /// The connection to PostgreSQL is closed, or there was none to be had.
    PostgresGone(Gone),
    /// A Kafka request is answered.
    Kafka(Answer),
    /// [`super::Relay::deadline`] has come.
    Timeout,
    /// Finish: read on to the current Commit, settle, confirm, leave.
    Stop,
    /// After [`Input::Stop`]: what is not settled never will be. Confirm what is, and leave; if there is nothing else,
    /// behind the end of the transaction that is being read.
    GiveUp,
}

/// What the driver must do.
#[derive(Debug)]
pub enum Output {
    /// Connect to PostgreSQL, log in, identify; answer with [`Input::Identified`] or
    /// [`Input::PostgresGone`].
    Connect {
        /// The cluster that the relay has been connected to; none if it has not.
        known_system: Option<u64>,
    },
    /// Send START_REPLICATION; answer with [`Input::Streaming`] or [`Input::PostgresGone`].
    StartReplication {
        /// Where to start; 0/0 is the slot's own position.
        start: Lsn,
    },
    /// Send these bytes to PostgreSQL, in order.
    Send(BytesMut),
    /// Close the connection to PostgreSQL, after what was to be sent as far as that does not block.
    /// Not answered.
    Hangup,
    /// Send this to Kafka; answer with [`Input::Kafka`].
    Kafka(Request),
    /// Tell.
    Event(Event),
    /// The end. Nothing comes after it.
    Exit(Exit),
}

/// How to read from PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As soon as there is something.
    Now,
    /// Let data gather until it is so long since the last read, then read as much as there is.
    Gather(Duration),
    /// Not at all.
    Paused,
}
