//! Every message of pgoutput, at every version, inside a streamed block and outside: what is said is read as
//! the same and said again byte for byte, or has no place.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bytes::BytesMut;
use factlib_protocol::{
    Fault, Lsn, Timestamp,
    pgoutput::{
        Abort, Begin, Column, Columns, Commit, CommitPrepared, Decoder, Delete, Insert,
        LogicalMessage, Message, OldTuple, Origin, Prepare, ProtoVersion, Relation, RelationIds,
        ReplicaIdentity, RollbackPrepared, StreamAbort, StreamCommit, StreamStart, Streaming,
        Truncate, Tuple, Type, Update, Value,
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

fn there_and_back(message: Message<'_>, decoder: &Decoder) {
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    let read = decoder.clone().decode(&out).unwrap();
    assert_eq!(read, message);
    let mut again = BytesMut::new();
    read.encode(&mut again).unwrap();
    assert_eq!(again, out);
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=u8::MAX, 0..20)
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

/// One value of a row, with what is in it.
#[derive(Debug, Clone)]
enum Owned {
    Null,
    UnchangedToast,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Owned {
    fn borrowed(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::UnchangedToast => Value::UnchangedToast,
            Self::Text(text) => Value::Text(text),
            Self::Binary(bytes) => Value::Binary(bytes),
        }
    }
}

fn row() -> impl Strategy<Value = Vec<Owned>> {
    let value = prop_oneof![
        Just(Owned::Null),
        Just(Owned::UnchangedToast),
        data().prop_map(Owned::Text),
        data().prop_map(Owned::Binary),
    ];
    vec(value, 0..6)
}

fn tuple<'a>(values: &[Owned], out: &'a mut BytesMut) -> Tuple<'a> {
    let values: Vec<_> = values.iter().map(Owned::borrowed).collect();
    Tuple::encode(&values, out).unwrap();
    let tuple = Tuple::decode(out).unwrap();
    assert_eq!(tuple.values().collect::<Vec<_>>(), values);
    tuple
}

/// From which version on, and on which side of a block's borders, a message has its place.
#[derive(Clone, Copy)]
struct Place {
    since: ProtoVersion,
    /// Only where transactions are streamed.
    streams: bool,
    inside: bool,
    outside: bool,
}

proptest! {
    #[test]
    fn what_pgoutput_says_is_read_as_it_was_said(
        (x, y, clock, then) in any::<(u64, u64, i64, i64)>(),
        (xid, relation, flag, other_flag) in any::<(u32, u32, bool, bool)>(),
        (a, b, content) in (text(), text(), data()),
        (old, new) in (row(), row()),
        columns in vec((any::<(bool, u32, i32)>(), text()), 0..5),
        relations in vec(any::<[u8; 4]>(), 0..5),
        replica_identity in select(vec![
            ReplicaIdentity::Default,
            ReplicaIdentity::Nothing,
            ReplicaIdentity::Full,
            ReplicaIdentity::Index,
        ]),
    ) {
        let (x, y, clock, then) = (Lsn(x), Lsn(y), Timestamp(clock), Timestamp(then));
        let (mut old_bytes, mut new_bytes) = (BytesMut::new(), BytesMut::new());
        let (old, new) = (tuple(&old, &mut old_bytes), tuple(&new, &mut new_bytes));
        let columns: Vec<_> = columns
            .iter()
            .map(|((key, type_oid, type_modifier), name)| Column {
                key: *key,
                name,
                type_oid: *type_oid,
                type_modifier: *type_modifier,
            })
            .collect();
        let mut column_bytes = BytesMut::new();
        Columns::encode(&columns, &mut column_bytes).unwrap();
        let read = Columns::decode(&column_bytes).unwrap();
        prop_assert_eq!(read.iter().collect::<Vec<_>>(), columns);
        let (columns, relations) = (read, RelationIds::new(&relations));

        let prepare = Prepare {
            prepare_lsn: x,
            end_lsn: y,
            prepare_timestamp: clock,
            xid,
            gid: &a,
        };
        // At each version, with each way of streaming, inside a block and outside.
        for version in [ProtoVersion::V1, ProtoVersion::V2, ProtoVersion::V3, ProtoVersion::V4] {
            for streaming in [Streaming::Off, Streaming::On, Streaming::Parallel] {
                for in_block in [false, true] {
                    let mut decoder = Decoder::new(version, streaming);
                    let streams = version >= ProtoVersion::V2 && streaming != Streaming::Off;
                    if in_block && !streams {
                        continue;
                    }
                    if in_block {
                        decoder.decode(b"S\0\0\0\x01\x01").unwrap();
                    }
                    let number = in_block.then_some(xid);
                    let abort = (streaming == Streaming::Parallel)
                        .then_some(Abort { lsn: x, timestamp: clock });
                    let (update, delete) = (
                        |old| Message::Update(Update { xid: number, relation, old, new }),
                        |old| Message::Delete(Delete { xid: number, relation, old }),
                    );
                    let anywhere = Place {
                        since: ProtoVersion::V1,
                        streams: false,
                        inside: true,
                        outside: true,
                    };
                    let outside = Place { inside: false, ..anywhere };
                    let streamed = Place { streams: true, ..outside };
                    let prepared = Place { since: ProtoVersion::V3, ..outside };
                    let last = Place { inside: true, outside: false, streams: true, ..anywhere };
                    for (message, place) in [
                        (
                            Message::Message(LogicalMessage {
                                xid: number,
                                transactional: flag,
                                lsn: x,
                                prefix: &a,
                                content: &content,
                            }),
                            anywhere,
                        ),
                        (Message::Origin(Origin { commit_lsn: x, name: &a }), anywhere),
                        (
                            Message::Relation(Relation {
                                xid: number,
                                id: relation,
                                namespace: &a,
                                name: &b,
                                replica_identity,
                                columns,
                            }),
                            anywhere,
                        ),
                        (
                            Message::Type(Type {
                                xid: number,
                                id: relation,
                                namespace: &a,
                                name: &b,
                            }),
                            anywhere,
                        ),
                        (Message::Insert(Insert { xid: number, relation, new }), anywhere),
                        (update(None), anywhere),
                        (update(Some(OldTuple::Key(old))), anywhere),
                        (update(Some(OldTuple::Full(old))), anywhere),
                        (delete(OldTuple::Key(old)), anywhere),
                        (delete(OldTuple::Full(old)), anywhere),
                        (
                            Message::Truncate(Truncate {
                                xid: number,
                                cascade: flag,
                                restart_identity: other_flag,
                                relations,
                            }),
                            anywhere,
                        ),
                        (
                            Message::Begin(Begin { final_lsn: x, commit_timestamp: clock, xid }),
                            outside,
                        ),
                        (
                            Message::Commit(Commit {
                                commit_lsn: x,
                                end_lsn: y,
                                commit_timestamp: clock,
                            }),
                            outside,
                        ),
                        (
                            Message::StreamStart(StreamStart { xid, first_segment: flag }),
                            streamed,
                        ),
                        (Message::StreamStop, last),
                        (
                            Message::StreamCommit(StreamCommit {
                                xid,
                                commit_lsn: x,
                                end_lsn: y,
                                commit_timestamp: clock,
                            }),
                            streamed,
                        ),
                        (
                            Message::StreamAbort(StreamAbort { xid, subxid: relation, abort }),
                            streamed,
                        ),
                        (Message::BeginPrepare(prepare), prepared),
                        (Message::Prepare(prepare), prepared),
                        (
                            Message::CommitPrepared(CommitPrepared {
                                commit_lsn: x,
                                end_lsn: y,
                                commit_timestamp: clock,
                                xid,
                                gid: &a,
                            }),
                            prepared,
                        ),
                        (
                            Message::RollbackPrepared(RollbackPrepared {
                                prepare_end_lsn: x,
                                rollback_end_lsn: y,
                                prepare_timestamp: clock,
                                rollback_timestamp: then,
                                xid,
                                gid: &a,
                            }),
                            prepared,
                        ),
                        (Message::StreamPrepare(prepare), Place { streams: true, ..prepared }),
                    ] {
                        let has_place = version >= place.since
                            && (streams || !place.streams)
                            && if in_block { place.inside } else { place.outside };
                        if has_place {
                            there_and_back(message, &decoder);
                        } else {
                            let mut out = BytesMut::new();
                            message.encode(&mut out).unwrap();
                            let error = decoder.clone().decode(&out).unwrap_err();
                            prop_assert_eq!(error.fault, Fault::OutOfPlace);
                        }
                    }
                }
            }
        }
    }
}
