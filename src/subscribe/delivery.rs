//! What handlers are given.

use super::builder::in_words_of_the_builder;
use crate::kafka::Found;
use crate::relay::fact::{self, Fact, FactError};
use crate::relay::position::Position;
use bytes::Bytes;
use factlib_protocol::Lsn;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What the facts of one thing have in common: they are handled one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Aggregate {
    /// The prefix that the fact was emitted with.
    pub prefix: String,
    /// The aggregate's type.
    pub aggregate_type: String,
    /// The aggregate's id.
    pub aggregate_id: String,
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefix, aggregate_type, aggregate_id } = self;
        write!(f, "{prefix} {aggregate_type} {aggregate_id}")
    }
}

/// A fact on its way to a handler. Cheap to clone.
///
/// Two deliveries of the same fact have the same [`id`](Self::id) and the same [`position`](Self::position): those
/// are what an idempotent handler goes by.
#[derive(Debug, Clone)]
pub struct Delivery {
    contents: Arc<Contents>,
    attempt: u32,
}

#[derive(Debug)]
struct Contents {
    aggregate: Arc<Aggregate>,
    id: String,
    event_type: String,
    payload: Option<Vec<u8>>,
    metadata: Vec<(String, String)>,
    trace: Option<Trace>,
    created_at: Option<i64>,
    position: Position,
    lsn: Lsn,
    committed_at: SystemTime,
}

#[derive(Debug)]
struct Trace {
    trace_id: String,
    span_id: String,
    metadata: Vec<(String, String)>,
}

impl Delivery {
    /// The fact's id, as it was emitted. One that was emitted without has one that is made from the cluster, the
    /// database and the position: the same at each delivery, and in Kafka.
    pub fn id(&self) -> &str {
        &self.contents.id
    }

    /// Which facts this one is in order with.
    pub fn aggregate(&self) -> &Aggregate {
        &self.contents.aggregate
    }

    /// The prefix that it was emitted with.
    pub fn prefix(&self) -> &str {
        &self.contents.aggregate.prefix
    }

    /// The aggregate's type; never empty.
    pub fn aggregate_type(&self) -> &str {
        &self.contents.aggregate.aggregate_type
    }

    /// The aggregate's id.
    pub fn aggregate_id(&self) -> &str {
        &self.contents.aggregate.aggregate_id
    }

    /// What happened.
    pub fn event_type(&self) -> &str {
        &self.contents.event_type
    }

    /// The application's own bytes: those of a protobuf envelope, or the text of a JSON value. None if it is absent,
    /// null, or of no length.
    pub fn payload(&self) -> Option<&[u8]> {
        self.contents.payload.as_deref()
    }

    /// Keys and values of the metadata, in the order of the envelope.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(&self.contents.metadata)
    }

    /// The trace id, if it was emitted with one.
    pub fn trace_id(&self) -> Option<&str> {
        self.contents.trace.as_ref().map(|trace| trace.trace_id.as_str())
    }

    /// The span id, if it was emitted with one.
    pub fn span_id(&self) -> Option<&str> {
        self.contents.trace.as_ref().map(|trace| trace.span_id.as_str())
    }

    /// Keys and values of the trace's metadata, in the order of the envelope.
    pub fn trace_metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(self.contents.trace.as_ref().map_or(&[], |trace| &trace.metadata))
    }

    /// `traceparent` (W3C Trace Context) of the trace's metadata, or else of the fact's, as it was emitted: not
    /// checked here.
    pub fn traceparent(&self) -> Option<&str> {
        let mut pairs = self.trace_metadata().chain(self.metadata());
        pairs.find(|(key, _)| *key == "traceparent").map(|(_, value)| value)
    }

    /// `created_at` as it was emitted. FactLib's own emitters mean microseconds since 1970; others disagree.
    pub fn created_at(&self) -> Option<i64> {
        self.contents.created_at
    }

    /// Where the fact stands in delivery order. Within an aggregate it rises from fact to fact, and a repeat has the
    /// same. It can be kept as text: [`Position::text`] has the order of its bytes.
    pub fn position(&self) -> Position {
        self.contents.position
    }

    /// What `pg_logical_emit_message` returned to the application. For tracing: it says nothing about order.
    pub fn lsn(&self) -> Lsn {
        self.contents.lsn
    }

    /// When the transaction committed, by the server's clock, in whole milliseconds. Of a message that was emitted
    /// outside of a transaction, when the server sent it.
    pub fn committed_at(&self) -> SystemTime {
        self.contents.committed_at
    }

    /// The how-manieth call this is in this process, from 1. A process that starts anew counts anew.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    pub(super) fn read(parcel: &Parcel, attempt: u32) -> Result<Self, FactError> {
        let fact = Fact::decode(&parcel.value)?;
        let owned = |pairs: &mut Vec<(String, String)>, key: &str, value: &str| {
            pairs.push((key.to_owned(), value.to_owned()));
        };
        let mut metadata = Vec::new();
        fact.metadata(|key, value| owned(&mut metadata, key, value));
        let trace = fact.trace.as_ref().map(|trace| {
            let mut metadata = Vec::new();
            trace.metadata(|key, value| owned(&mut metadata, key, value));
            let (trace_id, span_id) = (trace.trace_id.to_string(), trace.span_id.to_string());
            Trace { trace_id, span_id, metadata }
        });
        let contents = Contents {
            aggregate: Arc::clone(&parcel.aggregate),
            id: String::from_utf8_lossy(&parcel.id).into_owned(),
            event_type: fact.event_type.to_string(),
            payload: fact.payload.bytes().map(<[u8]>::to_vec),
            metadata,
            trace,
            created_at: fact::created_at(&parcel.value),
            position: parcel.position,
            lsn: parcel.lsn,
            committed_at: parcel.committed_at(),
        };
        Ok(Self { contents: Arc::new(contents), attempt })
    }
}

fn pairs(pairs: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

/// A fact that its handler did not take.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The fact. Its [`attempt`](Delivery::attempt) counts the calls with this letter.
    pub delivery: Delivery,
    /// What the handler, or this callback, said last.
    pub error: String,
    /// How often the handler was called.
    pub attempts: u32,
}

/// A message with one of the prefixes that is no fact, or too large for one.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// Its bytes, or the first of them.
    pub content: Bytes,
    /// How many it has, if these are not all.
    pub whole_length: Option<u64>,
    /// Why it is here.
    pub reason: String,
    /// Made from the cluster, the database and the position: the same at each delivery.
    pub id: String,
    /// Where it stands in delivery order.
    pub position: Position,
    /// What `pg_logical_emit_message` returned to the application.
    pub lsn: Lsn,
    /// The how-manieth call this is in this process, from 1.
    pub attempt: u32,
}

/// What a delivery is made of, as small as it waits.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    pub(super) aggregate: Arc<Aggregate>,
    pub(super) value: Bytes,
    id: Bytes,
    pub(super) position: Position,
    lsn: Lsn,
    committed_ms: i64,
    /// Only of what cannot be read.
    unreadable: Option<Arc<Words>>,
}

#[derive(Debug)]
struct Words {
    reason: String,
    whole_length: Option<u64>,
}

impl Parcel {
    /// Of a record that the engine has made in `batch`; none if it is not as the engine makes them.
    pub(super) fn of(found: &Found<'_>, batch: &Bytes, aggregate: Arc<Aggregate>) -> Option<Self> {
        let position = found.position.and_then(Position::from_text)?;
        let (mut id, mut lsn) = (None, None);
        for (name, value) in found.headers() {
            match name {
                // Ours come first.
                b"event_id" => id = id.or(Some(value)),
                b"LSN" => lsn = lsn.or(std::str::from_utf8(value).ok()),
                _ => {}
            }
        }
        Some(Self {
            aggregate,
            value: batch.slice_ref(found.value()?),
            id: batch.slice_ref(id?),
            position,
            lsn: lsn?.parse().ok()?,
            committed_ms: found.timestamp_ms,
            unreadable: None,
        })
    }

    /// Of a record in the topic of dead letters.
    pub(super) fn of_unreadable(found: &Found<'_>, batch: &Bytes) -> Option<Self> {
        let [prefix, aggregate_type, aggregate_id] = [(); 3].map(|()| String::new());
        let aggregate = Arc::new(Aggregate { prefix, aggregate_type, aggregate_id });
        let text = |name: &str| {
            let mut headers = found.headers();
            let (_, value) = headers.find(|(known, _)| *known == name.as_bytes())?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let words = Words {
            reason: in_words_of_the_builder(&text("factlib_reason").unwrap_or_default()),
            whole_length: text("factlib_length").and_then(|length| length.parse().ok()),
        };
        let parcel = Self::of(found, batch, aggregate)?;
        Some(Self { unreadable: Some(Arc::new(words)), ..parcel })
    }

    pub(super) fn unreadable(&self, attempt: u32) -> Option<Unreadable> {
        let words = self.unreadable.as_ref()?;
        Some(Unreadable {
            content: self.value.clone(),
            whole_length: words.whole_length,
            reason: words.reason.clone(),
            id: String::from_utf8_lossy(&self.id).into_owned(),
            position: self.position,
            lsn: self.lsn,
            attempt,
        })
    }

    fn committed_at(&self) -> SystemTime {
        let distance = Duration::from_millis(self.committed_ms.unsigned_abs());
        let at = match self.committed_ms < 0 {
            true => SystemTime::UNIX_EPOCH.checked_sub(distance),
            false => SystemTime::UNIX_EPOCH.checked_add(distance),
        };
        at.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(super) fn lsn(&self) -> Lsn {
        self.lsn
    }
}
