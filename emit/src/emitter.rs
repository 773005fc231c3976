use crate::envelope::Protobuf;
use crate::executor::{BlockingExecutor, Executor, Parameter, Statement};
use crate::invalid::{Field, TOPIC_MAX};
use crate::trace::trace_info;
use crate::{EmitError, Fact, InvalidFact, Lsn};
use std::error::Error;
use std::ops::Range;
use std::slice;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The largest record if nothing else is said: brokers take 1,048,588 bytes (`max.message.bytes`), of which a batch's
/// head and a record's own lengths take some.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// So many bytes of envelopes [`Emitter::emit_many`] sends with one statement. Client and server hold them a few times
/// over while it runs, and PostgreSQL takes no value of 1 GiB.
pub const STATEMENT_BYTES: usize = 16 * 1024 * 1024;

/// Counted for a record's own lengths, positions and the names of its headers.
const RECORD_OVERHEAD: usize = 1024;

/// What an application holds to emit with: its prefix, its limit, and the way into the server.
///
/// It has no connection and is cheap to clone; make one at the start and put it where the pool is.
#[derive(Debug, Clone)]
pub struct Emitter {
    prefix: Arc<str>,
    max_record_bytes: usize,
    via: Via,
}

/// By which function of the server.
#[derive(Debug, Clone, Copy)]
enum Via {
    LogicalMessage,
    EmitEnvelope,
}

/// A fact that was emitted; published once its transaction commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    /// The fact's id: its own, or the UUIDv7 that was made for it.
    pub id: String,
    /// Where its message lies in the write-ahead log: for tracing, and the record's header `LSN`. It is not what to
    /// wait for, see [`wait_lsn`](crate::wait_lsn).
    pub lsn: Lsn,
}

/// A logical decoding message: the arguments of `pg_logical_emit_message(true, prefix, content)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its prefix.
    pub prefix: String,
    /// The fact's id, which is in the envelope, too.
    pub id: String,
    /// The envelope: protobuf `OutboxEvent`.
    pub content: Vec<u8>,
}

impl Emitter {
    /// An emitter with this prefix, usually the service's name: the first half of its topics' names, and by which
    /// relays know what is theirs. An empty one is for facts that each have their own.
    pub fn new(prefix: impl Into<Arc<str>>) -> Self {
        Self { prefix: prefix.into(), max_record_bytes: MAX_RECORD_BYTES, via: Via::LogicalMessage }
    }

    /// Refuses facts that could be larger than this as a record, in bytes, instead of [`MAX_RECORD_BYTES`]. For topics
    /// with another `max.message.bytes`; a larger one goes through the server and halts the relay.
    #[must_use]
    pub fn max_record_bytes(mut self, bytes: usize) -> Self {
        self.max_record_bytes = bytes;
        self
    }

    /// Emits by the SQL function `factlib.emit_envelope` (`sql/factlib.sql`) instead of by `pg_logical_emit_message`:
    /// where that is revoked, and the prefixes of roles are guarded.
    #[must_use]
    pub fn through_function(mut self) -> Self {
        self.via = Via::EmitEnvelope;
        self
    }

    /// Emits one fact in the transaction, by one statement: it is published if and when that commits.
    ///
    /// Its id and time are made now, if it has none. Not cancel safe, like any statement in a transaction: if the future
    /// is dropped it may or may not have been emitted, and what is left to do is to roll back.
    ///
    /// # Errors
    ///
    /// [`EmitError::Invalid`] before anything was sent, or the driver's.
    pub async fn emit<E: Executor + ?Sized>(
        &self,
        transaction: &mut E,
        fact: &Fact,
    ) -> Result<Emitted, EmitError<E::Error>> {
        let message = self.encode_now(fact).map_err(EmitError::Invalid)?;
        let statement = self.one(&message);
        let answer = transaction.run(&statement).await?;
        let mut emitted = emitted(slice::from_ref(&message), statement.sql, &answer)?;
        emitted.pop().ok_or(EmitError::Answer(statement.sql))
    }

    /// Emits many facts in the transaction, in the order of the slice, by one statement for each
    /// [`STATEMENT_BYTES`]. All are checked before the first is sent; without any, nothing is sent.
    ///
    /// Not cancel safe, see [`emit`](Self::emit).
    ///
    /// # Errors
    ///
    /// [`EmitError::InvalidAmong`] before anything was sent, or the driver's.
    pub async fn emit_many<E: Executor + ?Sized>(
        &self,
        transaction: &mut E,
        facts: &[Fact],
    ) -> Result<Vec<Emitted>, EmitError<E::Error>> {
        let messages = self.encode_all(facts)?;
        let mut all = Vec::with_capacity(messages.len());
        for messages in statements(&messages) {
            let (prefixes, contents) = columns(messages);
            let statement = self.many(&prefixes, &contents);
            let answer = transaction.run(&statement).await?;
            all.extend(emitted(messages, statement.sql, &answer)?);
        }
        Ok(all)
    }

    /// [`emit`](Self::emit) for drivers that block.
    ///
    /// # Errors
    ///
    /// [`EmitError::Invalid`] before anything was sent, or the driver's.
    pub fn emit_blocking<E: BlockingExecutor + ?Sized>(
        &self,
        transaction: &mut E,
        fact: &Fact,
    ) -> Result<Emitted, EmitError<E::Error>> {
        let message = self.encode_now(fact).map_err(EmitError::Invalid)?;
        let statement = self.one(&message);
        let answer = transaction.run(&statement)?;
        let mut emitted = emitted(slice::from_ref(&message), statement.sql, &answer)?;
        emitted.pop().ok_or(EmitError::Answer(statement.sql))
    }

    /// [`emit_many`](Self::emit_many) for drivers that block.
    ///
    /// # Errors
    ///
    /// [`EmitError::InvalidAmong`] before anything was sent, or the driver's.
    pub fn emit_many_blocking<E: BlockingExecutor + ?Sized>(
        &self,
        transaction: &mut E,
        facts: &[Fact],
    ) -> Result<Vec<Emitted>, EmitError<E::Error>> {
        let messages = self.encode_all(facts)?;
        let mut all = Vec::with_capacity(messages.len());
        for messages in statements(&messages) {
            let (prefixes, contents) = columns(messages);
            let statement = self.many(&prefixes, &contents);
            let answer = transaction.run(&statement)?;
            all.extend(emitted(messages, statement.sql, &answer)?);
        }
        Ok(all)
    }

    /// Checks and encodes: what [`emit`](Self::emit) would send if it drew this id and this time, which count only where
    /// the fact has none of its own. Nothing but its arguments decides what comes out.
    ///
    /// # Errors
    ///
    /// [`InvalidFact`], the first that is found.
    pub fn encode(
        &self,
        fact: &Fact,
        id: &str,
        created_at: SystemTime,
    ) -> Result<Message, InvalidFact> {
        let prefix = fact.prefix.as_deref().unwrap_or(&self.prefix);
        let id = fact.id.as_deref().filter(|id| !id.is_empty()).unwrap_or(id);
        check(prefix, id, fact)?;
        let created_at =
            microseconds(fact.created_at.unwrap_or(created_at)).ok_or(InvalidFact::CreatedAt)?;

        let mut envelope = Protobuf::with_capacity(fact.payload.len() + 256);
        envelope.bytes(1, id.as_bytes());
        envelope.bytes(2, fact.aggregate_type.as_bytes());
        envelope.bytes(3, fact.aggregate_id.as_bytes());
        envelope.bytes(4, fact.event_type.as_bytes());
        envelope.bytes(5, &fact.payload);
        envelope.int64(6, created_at);
        for (key, value) in &fact.metadata {
            envelope.entry(7, key, value);
        }
        if let Some(trace) = trace_info(fact.traceparent.as_deref(), fact.tracestate.as_deref()) {
            envelope.message(8, &trace);
        }
        let content = envelope.into_bytes();

        let bytes = 2 * content.len() - fact.payload.len() + RECORD_OVERHEAD;
        if bytes > self.max_record_bytes {
            return Err(InvalidFact::TooLarge { bytes, max: self.max_record_bytes });
        }
        Ok(Message { prefix: prefix.to_owned(), id: id.to_owned(), content })
    }

    #[expect(clippy::disallowed_methods, reason = "a fact that has no time happens now")]
    fn encode_now(&self, fact: &Fact) -> Result<Message, InvalidFact> {
        // Of one process they rise, also within a millisecond.
        let id = Uuid::now_v7().hyphenated();
        let mut text = Uuid::encode_buffer();
        self.encode(fact, id.encode_lower(&mut text), SystemTime::now())
    }

    fn encode_all<E: Error>(&self, facts: &[Fact]) -> Result<Vec<Message>, EmitError<E>> {
        let encode = |(index, fact)| {
            self.encode_now(fact).map_err(|invalid| EmitError::InvalidAmong { index, invalid })
        };
        facts.iter().enumerate().map(encode).collect()
    }

    fn one<'a>(&self, message: &'a Message) -> Statement<'a> {
        let sql = match self.via {
            Via::LogicalMessage => {
                "SELECT pg_catalog.pg_logical_emit_message(true, $1::text, $2::bytea)::text AS value"
            }
            Via::EmitEnvelope => "SELECT factlib.emit_envelope($1::text, $2::bytea)::text AS value",
        };
        let parameters = vec![Parameter::Text(&message.prefix), Parameter::Bytea(&message.content)];
        Statement { sql, parameters }
    }

    fn many<'a>(&self, prefixes: &'a [&'a str], contents: &'a [&'a [u8]]) -> Statement<'a> {
        let sql = match self.via {
            Via::LogicalMessage => {
                "SELECT pg_catalog.pg_logical_emit_message(true, prefix, content)::text AS value \
                 FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::bytea[])) \
                 AS message (prefix, content)"
            }
            Via::EmitEnvelope => {
                "SELECT factlib.emit_envelope(prefix, content)::text AS value \
                 FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::bytea[])) \
                 AS message (prefix, content)"
            }
        };
        let parameters = vec![Parameter::TextArray(prefixes), Parameter::ByteaArray(contents)];
        Statement { sql, parameters }
    }
}

/// In the order of the SQL function.
fn check(prefix: &str, id: &str, fact: &Fact) -> Result<(), InvalidFact> {
    if prefix.is_empty() {
        return Err(InvalidFact::NoPrefix);
    }
    for (field, value) in
        [(Field::Prefix, prefix), (Field::AggregateType, fact.aggregate_type.as_str())]
    {
        let in_topic =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !value.bytes().all(in_topic) {
            return Err(InvalidFact::NotInTopic { field, value: value.to_owned() });
        }
    }
    for (field, value) in [
        (Field::AggregateType, &fact.aggregate_type),
        (Field::AggregateId, &fact.aggregate_id),
        (Field::EventType, &fact.event_type),
    ] {
        if value.is_empty() {
            return Err(InvalidFact::Empty(field));
        }
    }
    let topic = prefix.len() + 1 + fact.aggregate_type.len();
    if topic > TOPIC_MAX {
        return Err(InvalidFact::TopicTooLong(format!("{prefix}.{}", fact.aggregate_type)));
    }
    let texts = [
        (Field::Id, id),
        (Field::AggregateId, &*fact.aggregate_id),
        (Field::EventType, &*fact.event_type),
    ];
    let entries = fact.metadata.iter().flat_map(|(key, value)| [key, value]);
    let entries = entries.map(|text| (Field::Metadata, text.as_str()));
    let nul = texts.into_iter().chain(entries).find(|(_, text)| text.contains('\0'));
    nul.map_or(Ok(()), |(field, _)| Err(InvalidFact::NulByte(field)))
}

/// The times that the SQL function takes, in microseconds since 1970: PostgreSQL's first (24 November 4714 BC), and before
/// the year 294247, in which 64 bits end.
const TIMES: Range<i64> = -210_866_803_200_000_000..9_223_371_244_800_000_000;

/// Since 1970, rounded down; none outside of [`TIMES`].
fn microseconds(time: SystemTime) -> Option<i64> {
    let micros = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).ok(),
        Err(before) => {
            let before = before.duration().as_nanos().div_ceil(1000);
            i64::try_from(before).ok().map(i64::wrapping_neg)
        }
    };
    micros.filter(|micros| TIMES.contains(micros))
}

/// The messages of each statement: as many as fit, and at least one.
fn statements(mut rest: &[Message]) -> impl Iterator<Item = &[Message]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |message: &&Message| {
            bytes += message.content.len();
            bytes <= STATEMENT_BYTES
        };
        let (next, later) = rest.split_at_checked(rest.iter().take_while(fits).count().max(1))?;
        rest = later;
        Some(next)
    })
}

fn columns(messages: &[Message]) -> (Vec<&str>, Vec<&[u8]>) {
    messages.iter().map(|message| (&*message.prefix, &*message.content)).unzip()
}

/// One position for each.
fn emitted<E: Error>(
    messages: &[Message],
    sql: &'static str,
    answer: &[Option<String>],
) -> Result<Vec<Emitted>, EmitError<E>> {
    if answer.len() != messages.len() {
        return Err(EmitError::Answer(sql));
    }
    let emitted = messages.iter().zip(answer).map(|(message, lsn)| {
        let lsn = lsn.as_deref().and_then(|lsn| lsn.parse().ok());
        lsn.map(|lsn| Emitted { id: message.id.clone(), lsn }).ok_or(EmitError::Answer(sql))
    });
    emitted.collect()
}
