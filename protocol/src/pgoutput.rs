//! What the output plugin `pgoutput` says about transactions, at protocol versions 1 to 4.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>
//!
//! ```text
//!  Begin  (Origin)  { Message | Relation | Type | Insert | Update | Delete | Truncate }  Commit
//! ```
//!
//! So it is at version 1: a transaction is sent once it has committed, and whole. A [`LogicalMessage`]
//! that is not transactional stands between transactions, or inside one that it has nothing to do with.
//! Version 2 adds transactions that are [told while they are open](StreamStart), version 3
//! [two-phase commit](Prepare), version 4 where and when a streamed transaction was
//! [rolled back](StreamAbort::abort).
//!
//! Names are bytes: in a `SQL_ASCII` database they can be in any encoding, or in none.

mod prepare;
mod relation;
mod relations;
mod row;
mod stream;
mod transaction;
mod tuple;

use bytes::{BufMut, BytesMut};

pub use self::{
    prepare::{CommitPrepared, Prepare, RollbackPrepared},
    relation::{Column, Columns, Relation, ReplicaIdentity, Type},
    relations::{ColumnSchema, RelationSchema, Relations, TooManyRelations},
    row::{Delete, Insert, OldTuple, RelationIds, Truncate, Update},
    stream::{Abort, StreamAbort, StreamCommit, StreamStart},
    transaction::{Begin, Commit, LogicalMessage, Origin},
    tuple::{Tuple, Value},
};
use crate::{
    Xid,
    error::{DecodeError, EncodeError, Fault},
    reader::Reader,
    writer,
};

/// The option `proto_version` that a stream was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ProtoVersion {
    /// 1: transactions that have committed, whole.
    #[default]
    V1,
    /// 2, from server 14: transactions that are streamed while open.
    V2,
    /// 3, from server 15: two-phase commit.
    V3,
    /// 4, from server 16: streamed transactions that are applied in parallel.
    V4,
}

impl ProtoVersion {
    /// The option's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "1",
            Self::V2 => "2",
            Self::V3 => "3",
            Self::V4 => "4",
        }
    }
}

/// The option `streaming` that a stream was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Streaming {
    /// A transaction is told once it has committed.
    #[default]
    Off,
    /// A large one is told while it is open; wants version 2.
    On,
    /// The same, and a [`StreamAbort`] says where and when; wants version 4.
    Parallel,
}

impl Streaming {
    /// The option's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Parallel => "parallel",
        }
    }
}

/// Reads one message after another.
///
/// From version 2 on it must see every message, in order: inside a streamed block the same bytes mean
/// something else. That is all it remembers.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    version: ProtoVersion,
    streaming: Streaming,
    in_block: bool,
}

/// A message of the plugin: the [data](crate::replication::XLogData::data) of one `XLogData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// `B`: a transaction that has committed is about to be told.
    Begin(Begin),
    /// `C`: it has been told.
    Commit(Commit),
    /// `M`: somebody called `pg_logical_emit_message`.
    Message(LogicalMessage<'a>),
    /// `O`: the transaction came from another server.
    Origin(Origin<'a>),
    /// `R`: what a table looks like; comes before its first row and after each change.
    Relation(Relation<'a>),
    /// `Y`: the name of a type that is not built in; comes before the [`Relation`] that uses it.
    Type(Type<'a>),
    /// `I`: a new row.
    Insert(Insert<'a>),
    /// `U`: a changed row.
    Update(Update<'a>),
    /// `D`: a row that is gone.
    Delete(Delete<'a>),
    /// `T`: tables that were emptied.
    Truncate(Truncate<'a>),
    /// `S`: a block of an open transaction begins. From version 2 on, like the three that follow.
    StreamStart(StreamStart),
    /// `E`: the block ends.
    StreamStop,
    /// `c`: a transaction that was streamed has committed.
    StreamCommit(StreamCommit),
    /// `A`: a transaction that was streamed, or a part of it, was rolled back.
    StreamAbort(StreamAbort),
    /// `b`: a transaction that was prepared is about to be told. From version 3 on, like all that follow.
    BeginPrepare(Prepare<'a>),
    /// `P`: it has been told.
    Prepare(Prepare<'a>),
    /// `K`: a prepared transaction has committed.
    CommitPrepared(CommitPrepared<'a>),
    /// `r`: a prepared transaction was rolled back.
    RollbackPrepared(RollbackPrepared<'a>),
    /// `p`: a transaction that was streamed was prepared.
    StreamPrepare(Prepare<'a>),
}

impl Decoder {
    /// For a stream that was started with these options.
    #[must_use]
    pub const fn new(version: ProtoVersion, streaming: Streaming) -> Self {
        Self { version, streaming, in_block: false }
    }

    /// Reads one message. It borrows from `data`, not from the decoder.
    ///
    /// # Errors
    ///
    /// If the message is not of this version, has no place inside or outside a streamed block, is too
    /// short or too long, or says what cannot be. The decoder is as it was; the stream must end, because
    /// what was lost cannot be known.
    #[inline]
    pub fn decode<'a>(&mut self, data: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut r = Reader::new(data);
        let tag = r.u8("pgoutput.tag")?;
        let body = r.rest();
        let streamed = self.in_block;
        match tag {
            // Where facts are, and nearly all there is where only facts are.
            b'M' => Reader::all(body, "Message", |r| LogicalMessage::read(r, streamed))
                .map(Message::Message),
            b'I' => Reader::all(body, "Insert", |r| Insert::read(r, streamed)).map(Message::Insert),
            b'U' => Reader::all(body, "Update", |r| Update::read(r, streamed)).map(Message::Update),
            b'D' => Reader::all(body, "Delete", |r| Delete::read(r, streamed)).map(Message::Delete),
            b'B' if !streamed => Reader::all(body, "Begin", Begin::read).map(Message::Begin),
            b'C' if !streamed => Reader::all(body, "Commit", Commit::read).map(Message::Commit),
            tag => self.decode_rare(tag, body),
        }
    }

    fn decode_rare<'a>(&mut self, tag: u8, body: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let Self { version, streaming, in_block } = *self;
        let streams = version >= ProtoVersion::V2 && streaming != Streaming::Off && !in_block;
        let prepares = version >= ProtoVersion::V3 && !in_block;
        let message =
            match tag {
                b'T' => placed(true, body, "Truncate", |r| Truncate::read(r, in_block))
                    .map(Message::Truncate),
                b'R' => placed(true, body, "Relation", |r| Relation::read(r, in_block))
                    .map(Message::Relation),
                b'Y' => placed(true, body, "Type", |r| Type::read(r, in_block)).map(Message::Type),
                // Of the whole transaction, and so without the number of a part of it.
                b'O' => placed(true, body, "Origin", Origin::read).map(Message::Origin),
                // Only those inside a block come here.
                b'B' => placed(false, body, "Begin", Begin::read).map(Message::Begin),
                b'C' => placed(false, body, "Commit", Commit::read).map(Message::Commit),
                b'S' => placed(streams, body, "StreamStart", StreamStart::read)
                    .map(Message::StreamStart),
                b'E' => placed(in_block, body, "StreamStop", |_| Ok(Message::StreamStop)),
                b'c' => placed(streams, body, "StreamCommit", StreamCommit::read)
                    .map(Message::StreamCommit),
                b'A' => placed(streams, body, "StreamAbort", |r| {
                    StreamAbort::read(r, streaming == Streaming::Parallel)
                })
                .map(Message::StreamAbort),
                b'p' => placed(streams && prepares, body, "StreamPrepare", Prepare::read)
                    .map(Message::StreamPrepare),
                b'b' => placed(prepares, body, "BeginPrepare", Prepare::read_begin)
                    .map(Message::BeginPrepare),
                b'P' => placed(prepares, body, "Prepare", Prepare::read).map(Message::Prepare),
                b'K' => placed(prepares, body, "CommitPrepared", CommitPrepared::read)
                    .map(Message::CommitPrepared),
                b'r' => placed(prepares, body, "RollbackPrepared", RollbackPrepared::read)
                    .map(Message::RollbackPrepared),
                other => Err(DecodeError::new("pgoutput.tag", Fault::Tag(other))),
            };
        match message {
            Ok(Message::StreamStart(_)) => self.in_block = true,
            Ok(Message::StreamStop) => self.in_block = false,
            _ => {}
        }
        message
    }
}

/// Reads the body of a message that may not have a place here.
fn placed<'a, T>(
    has_place: bool,
    body: &'a [u8],
    name: &'static str,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    if has_place {
        Reader::all(body, name, read)
    } else {
        Err(DecodeError::new(name, Fault::OutOfPlace))
    }
}

impl Message<'_> {
    /// Appends the message, without the `XLogData` around it, for a server made of this crate.
    ///
    /// # Errors
    ///
    /// If a name holds a zero byte or something is too long.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::all_or_nothing(out, |out| {
            match self {
                Self::Begin(message) => message.write(out),
                Self::Commit(message) => message.write(out),
                Self::Message(message) => message.write(out)?,
                Self::Origin(message) => message.write(out)?,
                Self::Relation(message) => message.write(out)?,
                Self::Type(message) => message.write(out)?,
                Self::Insert(message) => message.write(out),
                Self::Update(message) => message.write(out),
                Self::Delete(message) => message.write(out),
                Self::Truncate(message) => message.write(out)?,
                Self::StreamStart(message) => message.write(out),
                Self::StreamStop => out.put_u8(b'E'),
                Self::StreamCommit(message) => message.write(out),
                Self::StreamAbort(message) => message.write(out),
                Self::BeginPrepare(message) => message.write(b"b", out)?,
                Self::Prepare(message) => message.write(b"P\0", out)?,
                Self::CommitPrepared(message) => message.write(out)?,
                Self::RollbackPrepared(message) => message.write(out)?,
                Self::StreamPrepare(message) => message.write(b"p\0", out)?,
            }
            Ok(())
        })
    }
}

/// The number that stands first in most messages of a streamed block, and in none outside.
#[inline]
fn read_xid(
    r: &mut Reader<'_>,
    streamed: bool,
    field: &'static str,
) -> Result<Option<Xid>, DecodeError> {
    if streamed { r.u32(field).map(Some) } else { Ok(None) }
}

fn write_xid(xid: Option<Xid>, out: &mut BytesMut) {
    if let Some(xid) = xid {
        out.put_u32(xid);
    }
}

/// "Flags; currently unused." The server sends 0, and its own subscriber refuses anything else.
#[inline]
fn no_flags(r: &mut Reader<'_>, field: &'static str) -> Result<(), DecodeError> {
    match r.u8(field)? {
        0 => Ok(()),
        other => Err(DecodeError::new(field, Fault::Tag(other))),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use hex_literal::hex;

    use super::*;
    use crate::{Lsn, Timestamp};

    #[track_caller]
    fn check(data: &[u8], expected: Message<'_>) {
        assert_eq!(Decoder::default().decode(data), Ok(expected));
        let mut out = BytesMut::new();
        expected.encode(&mut out).unwrap();
        assert_eq!(out[..], *data);
    }

    #[test]
    fn messages_are_as_the_manual_draws_them() {
        check(
            &hex!("42 00000000016b3748 0002ab12cd34ef56 000002e2"),
            Message::Begin(Begin {
                final_lsn: Lsn(0x16B_3748),
                commit_timestamp: Timestamp(0x2_ab12_cd34_ef56),
                xid: 738,
            }),
        );
        check(
            &hex!("43 00 00000000016b3748 00000000016b3778 0002ab12cd34ef56"),
            Message::Commit(Commit {
                commit_lsn: Lsn(0x16B_3748),
                end_lsn: Lsn(0x16B_3778),
                commit_timestamp: Timestamp(0x2_ab12_cd34_ef56),
            }),
        );
        check(
            &hex!("4d 01 00000000016b3748 6f7264657273 00 00000003 00ff00"),
            Message::Message(LogicalMessage {
                xid: None,
                transactional: true,
                lsn: Lsn(0x16B_3748),
                prefix: b"orders",
                content: b"\x00\xff\x00",
            }),
        );
        check(
            &hex!("4f 000000ab0000cdef 656c7365 00"),
            Message::Origin(Origin { commit_lsn: Lsn(0xAB_0000_CDEF), name: b"else" }),
        );
        check(
            &hex!("59 00004002 7000 6d6f6f6400"),
            Message::Type(Type { xid: None, id: 0x4002, namespace: b"p", name: b"mood" }),
        );
        let relations = [[0, 0, 0x40, 1], [0, 0, 0x40, 2]];
        check(
            &hex!("54 00000002 03 00004001 00004002"),
            Message::Truncate(Truncate {
                xid: None,
                cascade: true,
                restart_identity: true,
                relations: RelationIds::new(&relations),
            }),
        );
        assert_eq!(RelationIds::new(&relations).iter().collect::<Vec<_>>(), [0x4001, 0x4002]);
    }

    #[test]
    fn rows_are_as_the_manual_draws_them() {
        let mut bytes = BytesMut::new();
        let values = [Value::Null, Value::UnchangedToast, Value::Text(b"hi"), Value::Binary(b"")];
        Tuple::encode(&values, &mut bytes).unwrap();
        assert_eq!(bytes[..], hex!("0004 6e 75 74 00000002 6869 62 00000000"));
        let row = Tuple::decode(&bytes).unwrap();
        assert_eq!(row.values().collect::<Vec<_>>(), values);

        let key = Tuple::decode(&hex!("0001 6e")).unwrap();
        let relation = 7;
        check(
            &hex!("49 00000007 4e 0004 6e 75 74 00000002 6869 62 00000000"),
            Message::Insert(Insert { xid: None, relation, new: row }),
        );
        check(
            &hex!("55 00000007 4e 0001 6e"),
            Message::Update(Update { xid: None, relation, old: None, new: key }),
        );
        check(
            &hex!("55 00000007 4b 0001 6e 4e 0001 6e"),
            Message::Update(Update {
                xid: None,
                relation,
                old: Some(OldTuple::Key(key)),
                new: key,
            }),
        );
        check(
            &hex!("55 00000007 4f 0001 6e 4e 0001 6e"),
            Message::Update(Update {
                xid: None,
                relation,
                old: Some(OldTuple::Full(key)),
                new: key,
            }),
        );
        check(
            &hex!("44 00000007 4b 0001 6e"),
            Message::Delete(Delete { xid: None, relation, old: OldTuple::Key(key) }),
        );
        check(
            &hex!("44 00000007 4f 0001 6e"),
            Message::Delete(Delete { xid: None, relation, old: OldTuple::Full(key) }),
        );
    }

    #[test]
    fn relations_are_as_the_manual_draws_them() {
        let mut bytes = BytesMut::new();
        let columns = [
            Column { key: true, name: b"id", type_oid: 23, type_modifier: -1 },
            Column { key: false, name: b"\xff", type_oid: 1043, type_modifier: 24 },
        ];
        Columns::encode(&columns, &mut bytes).unwrap();
        let columns_read = Columns::decode(&bytes).unwrap();
        assert_eq!(columns_read.iter().collect::<Vec<_>>(), columns);
        for (byte, replica_identity) in [
            (b'd', ReplicaIdentity::Default),
            (b'n', ReplicaIdentity::Nothing),
            (b'f', ReplicaIdentity::Full),
            (b'i', ReplicaIdentity::Index),
        ] {
            let mut data = hex!(
                "52 00004001 00 7400 64 0002 01 696400 00000017 ffffffff 00 ff00 00000413 00000018"
            );
            data[8] = byte;
            check(
                &data,
                Message::Relation(Relation {
                    xid: None,
                    id: 0x4001,
                    namespace: b"",
                    name: b"t",
                    replica_identity,
                    columns: columns_read,
                }),
            );
        }
    }

    /// One decoder for all of them: what comes before decides what the bytes mean.
    #[track_caller]
    fn check_all(decoder: &mut Decoder, messages: &[(&[u8], Message<'_>)]) {
        for (data, expected) in messages {
            assert_eq!(decoder.decode(data), Ok(*expected));
            let mut out = BytesMut::new();
            expected.encode(&mut out).unwrap();
            assert_eq!(out[..], **data);
        }
    }

    #[test]
    fn inside_a_streamed_block_messages_name_their_transaction() {
        let row = Tuple::decode(&hex!("0001 6e")).unwrap();
        let (xid, relation) = (Some(0x2E3), 7);
        let start = StreamStart { xid: 0x2E2, first_segment: true };
        let abort = StreamAbort { xid: 0x2E2, subxid: 0x2E3, abort: None };
        check_all(
            &mut Decoder::new(ProtoVersion::V2, Streaming::On),
            &[
                (
                    &hex!("49 00000007 4e 0001 6e"),
                    Message::Insert(Insert { xid: None, relation, new: row }),
                ),
                (&hex!("53 000002e2 01"), Message::StreamStart(start)),
                (
                    &hex!("49 000002e3 00000007 4e 0001 6e"),
                    Message::Insert(Insert { xid, relation, new: row }),
                ),
                (
                    &hex!("55 000002e3 00000007 4e 0001 6e"),
                    Message::Update(Update { xid, relation, old: None, new: row }),
                ),
                (
                    &hex!("44 000002e3 00000007 4f 0001 6e"),
                    Message::Delete(Delete { xid, relation, old: OldTuple::Full(row) }),
                ),
                (
                    &hex!("54 000002e3 00000001 00 00000007"),
                    Message::Truncate(Truncate {
                        xid,
                        cascade: false,
                        restart_identity: false,
                        relations: RelationIds::new(&[[0, 0, 0, 7]]),
                    }),
                ),
                (
                    &hex!("59 000002e3 00004002 00 6d00"),
                    Message::Type(Type { xid, id: 0x4002, namespace: b"", name: b"m" }),
                ),
                (
                    &hex!("52 000002e3 00000007 00 7400 64 0000"),
                    Message::Relation(Relation {
                        xid,
                        id: 7,
                        namespace: b"",
                        name: b"t",
                        replica_identity: ReplicaIdentity::Default,
                        columns: Columns::decode(b"\0\0").unwrap(),
                    }),
                ),
                (
                    &hex!("4d 000002e3 01 0000000000000009 7000 00000000"),
                    Message::Message(LogicalMessage {
                        xid,
                        transactional: true,
                        lsn: Lsn(9),
                        prefix: b"p",
                        content: b"",
                    }),
                ),
                // Of the whole transaction: no number.
                (
                    &hex!("4f 0000000000000005 6f00"),
                    Message::Origin(Origin { commit_lsn: Lsn(5), name: b"o" }),
                ),
                (b"E", Message::StreamStop),
                (&hex!("41 000002e2 000002e3"), Message::StreamAbort(abort)),
                (
                    &hex!("63 000002e2 00 0000000000000001 0000000000000002 0000000000000003"),
                    Message::StreamCommit(StreamCommit {
                        xid: 0x2E2,
                        commit_lsn: Lsn(1),
                        end_lsn: Lsn(2),
                        commit_timestamp: Timestamp(3),
                    }),
                ),
                (
                    &hex!("49 00000007 4e 0001 6e"),
                    Message::Insert(Insert { xid: None, relation, new: row }),
                ),
            ],
        );
    }

    #[test]
    fn an_abort_says_where_and_when_only_if_streaming_is_parallel() {
        let long = hex!("41 00000001 00000002 0000000000000003 0000000000000004");
        let abort = Abort { lsn: Lsn(3), timestamp: Timestamp(4) };
        let mut parallel = Decoder::new(ProtoVersion::V4, Streaming::Parallel);
        let message = StreamAbort { xid: 1, subxid: 2, abort: Some(abort) };
        check_all(&mut parallel, &[(&long, Message::StreamAbort(message))]);
        assert_eq!(
            parallel.decode(&long[..9]),
            Err(DecodeError::new("StreamAbort.abort_lsn", Fault::Truncated))
        );
        assert_eq!(
            Decoder::new(ProtoVersion::V4, Streaming::On).decode(&long),
            Err(DecodeError::new("StreamAbort", Fault::Trailing))
        );
    }

    #[test]
    fn prepared_transactions_are_as_the_manual_draws_them() {
        let prepare = Prepare {
            prepare_lsn: Lsn(1),
            end_lsn: Lsn(2),
            prepare_timestamp: Timestamp(3),
            xid: 4,
            gid: b"g",
        };
        let body = hex!("0000000000000001 0000000000000002 0000000000000003 00000004 6700");
        let with = |head: &[u8]| [head, &body].concat();
        check_all(
            &mut Decoder::new(ProtoVersion::V3, Streaming::On),
            &[
                (&with(b"b"), Message::BeginPrepare(prepare)),
                (&with(b"P\0"), Message::Prepare(prepare)),
                (&with(b"p\0"), Message::StreamPrepare(prepare)),
                (
                    &with(b"K\0"),
                    Message::CommitPrepared(CommitPrepared {
                        commit_lsn: Lsn(1),
                        end_lsn: Lsn(2),
                        commit_timestamp: Timestamp(3),
                        xid: 4,
                        gid: b"g",
                    }),
                ),
                (
                    &hex!(
                        "72 00 0000000000000001 0000000000000002 0000000000000003 0000000000000004 00000005 6700"
                    ),
                    Message::RollbackPrepared(RollbackPrepared {
                        prepare_end_lsn: Lsn(1),
                        rollback_end_lsn: Lsn(2),
                        prepare_timestamp: Timestamp(3),
                        rollback_timestamp: Timestamp(4),
                        xid: 5,
                        gid: b"g",
                    }),
                ),
            ],
        );
    }

    #[test]
    fn what_has_no_place_is_refused_and_changes_nothing() {
        let start = hex!("53 00000001 01");
        let refused = |decoder: &mut Decoder, data: &[u8]| decoder.decode(data).unwrap_err();
        let out_of_place = |name| DecodeError::new(name, Fault::OutOfPlace);

        let mut v1 = Decoder::new(ProtoVersion::V1, Streaming::On);
        assert_eq!(refused(&mut v1, &start), out_of_place("StreamStart"));
        let mut v2 = Decoder::new(ProtoVersion::V2, Streaming::Off);
        assert_eq!(refused(&mut v2, &start), out_of_place("StreamStart"));
        let mut v2 = Decoder::new(ProtoVersion::V2, Streaming::On);
        assert_eq!(refused(&mut v2, b"E"), out_of_place("StreamStop"));
        assert_eq!(refused(&mut v2, b"b"), out_of_place("BeginPrepare"));
        assert_eq!(refused(&mut v2, b"p"), out_of_place("StreamPrepare"));
        assert_eq!(refused(&mut v2, &start[..5]).fault, Fault::Truncated);
        // The start that was cut off did not begin a block.
        assert_eq!(refused(&mut v2, b"E"), out_of_place("StreamStop"));

        v2.decode(&start).unwrap();
        for (data, name) in [
            (&start[..], "StreamStart"),
            (b"B", "Begin"),
            (b"C", "Commit"),
            (b"c", "StreamCommit"),
            (b"A", "StreamAbort"),
            (b"K", "CommitPrepared"),
        ] {
            assert_eq!(refused(&mut v2, data), out_of_place(name));
        }
        assert_eq!(refused(&mut v2, b"E\0").fault, Fault::Trailing);
        assert_eq!(v2.decode(b"E"), Ok(Message::StreamStop));
        assert_eq!(refused(&mut v2, b"?").fault, Fault::Tag(b'?'));
    }

    #[test]
    fn what_cannot_be_said_is_refused_and_leaves_no_trace() {
        let mut out = BytesMut::new();
        let message = LogicalMessage {
            xid: None,
            transactional: true,
            lsn: Lsn(1),
            prefix: b"a\0b",
            content: b"",
        };
        assert_eq!(
            Message::Message(message).encode(&mut out),
            Err(EncodeError::Nul { field: "Message.prefix" })
        );
        let too_many = [Value::Null; 32_768];
        assert!(Tuple::encode(&too_many, &mut out).is_err());
        assert!(out.is_empty());
    }
}
