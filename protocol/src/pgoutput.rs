//! What the output plugin `pgoutput` says about transactions, at protocol version 1.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>
//!
//! ```text
//!  Begin  (Origin)  { Message | Relation | Type | Insert | Update | Delete | Truncate }  Commit
//! ```
//!
//! A transaction is sent once it has committed, and whole. A [`LogicalMessage`] that is not
//! transactional stands between transactions, or inside one that it has nothing to do with.
//!
//! Names are bytes: in a `SQL_ASCII` database they can be in any encoding, or in none.

mod tuple;

use bytes::{BufMut, BytesMut};

pub use self::tuple::{Tuple, Value};
use crate::{
    Oid,
    error::{DecodeError, EncodeError, Fault},
    lsn::{Lsn, Timestamp},
    reader::Reader,
    writer,
};

/// Reads one message after another.
///
/// Version 1 needs no memory of the messages before. Later versions do: inside a streamed block the same
/// bytes mean something else.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Decoder;

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
}

/// `B`: a transaction that has committed is about to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Where its commit record starts: transactions come in this order.
    pub final_lsn: Lsn,
    /// When it committed.
    pub commit_timestamp: Timestamp,
    /// Its number.
    pub xid: u32,
}

/// `C`: a transaction has been told to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Where its commit record starts: the `final_lsn` of its [`Begin`].
    pub commit_lsn: Lsn,
    /// Where its commit record ends: what to confirm once the transaction is safe.
    pub end_lsn: Lsn,
    /// When it committed.
    pub commit_timestamp: Timestamp,
}

/// `M`: written by `pg_logical_emit_message(transactional, prefix, content)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Whether it belongs to the transaction around it, and was sent because that committed.
    pub transactional: bool,
    /// Where its record ends: what the function returned. Not in the order of commits.
    pub lsn: Lsn,
    /// Says whom it is for. Bytes, because the database may have no encoding.
    pub prefix: &'a [u8],
    /// What it says.
    pub content: &'a [u8],
}

/// `O`: the transaction came from another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Where it committed there.
    pub commit_lsn: Lsn,
    /// The origin's name.
    pub name: &'a [u8],
}

/// `R`: what a table looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The number that rows refer to.
    pub id: Oid,
    /// Its schema; empty for `pg_catalog`.
    pub namespace: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
    /// What the log tells about old rows.
    pub replica_identity: ReplicaIdentity,
    /// Its columns, without those that are not published.
    pub columns: Columns<'a>,
}

/// What the log tells about old rows: `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// `d`: the primary key, if there is one.
    Default,
    /// `n`: nothing.
    Nothing,
    /// `f`: all columns.
    Full,
    /// `i`: the columns of some unique index.
    Index,
}

/// The columns of a [`Relation`]: checked when it was decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns<'a> {
    count: u16,
    columns: &'a [u8],
}

/// One column of a [`Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    /// Whether it is part of the key.
    pub key: bool,
    /// Its name.
    pub name: &'a [u8],
    /// The type of its values.
    pub type_oid: Oid,
    /// The type's modifier, such as the precision of a number; -1 for none.
    pub type_modifier: i32,
}

/// `Y`: the name of a type that is not built in; for a domain, the name of the type beneath it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type<'a> {
    /// Its number.
    pub id: Oid,
    /// Its schema; empty for `pg_catalog`.
    pub namespace: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
}

/// `I`: a new row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    /// The [`Relation`] it is in.
    pub relation: Oid,
    /// The row.
    pub new: Tuple<'a>,
}

/// `U`: a changed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    /// The [`Relation`] it is in.
    pub relation: Oid,
    /// What it was, if its key has changed or the whole row is the identity.
    pub old: Option<OldTuple<'a>>,
    /// What it is now.
    pub new: Tuple<'a>,
}

/// `D`: a row that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    /// The [`Relation`] it was in.
    pub relation: Oid,
    /// What it was.
    pub old: OldTuple<'a>,
}

/// What a row was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// `K`: only the columns of its key; all others are NULL.
    Key(Tuple<'a>),
    /// `O`: all of it.
    Full(Tuple<'a>),
}

/// `T`: tables that were emptied, by one statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// `TRUNCATE … CASCADE`.
    pub cascade: bool,
    /// `TRUNCATE … RESTART IDENTITY`.
    pub restart_identity: bool,
    /// Which.
    pub relations: RelationIds<'a>,
}

/// The tables of a [`Truncate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationIds<'a>(&'a [[u8; 4]]);

impl Decoder {
    /// Reads one message. It borrows from `data`, not from the decoder.
    ///
    /// # Errors
    ///
    /// If the message is not of version 1, is too short or too long, or says what cannot be.
    #[inline]
    pub fn decode<'a>(&mut self, data: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut r = Reader::new(data);
        let tag = r.u8("pgoutput.tag")?;
        let body = r.rest();
        match tag {
            // Where facts are, and nearly all there is where only facts are.
            b'M' => Reader::all(body, "Message", LogicalMessage::read).map(Message::Message),
            b'B' => Reader::all(body, "Begin", Begin::read).map(Message::Begin),
            b'C' => Reader::all(body, "Commit", Commit::read).map(Message::Commit),
            b'I' => Reader::all(body, "Insert", Insert::read).map(Message::Insert),
            b'U' => Reader::all(body, "Update", Update::read).map(Message::Update),
            b'D' => Reader::all(body, "Delete", Delete::read).map(Message::Delete),
            b'T' => Reader::all(body, "Truncate", Truncate::read).map(Message::Truncate),
            b'R' => Reader::all(body, "Relation", Relation::read).map(Message::Relation),
            b'Y' => Reader::all(body, "Type", Type::read).map(Message::Type),
            b'O' => Reader::all(body, "Origin", Origin::read).map(Message::Origin),
            other => Err(DecodeError::new("pgoutput.tag", Fault::Tag(other))),
        }
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
            }
            Ok(())
        })
    }
}

impl Begin {
    #[inline]
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            final_lsn: Lsn(r.u64("Begin.final_lsn")?),
            commit_timestamp: Timestamp(r.i64("Begin.commit_timestamp")?),
            xid: r.u32("Begin.xid")?,
        })
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'B');
        out.put_u64(self.final_lsn.0);
        out.put_i64(self.commit_timestamp.0);
        out.put_u32(self.xid);
    }
}

impl Commit {
    #[inline]
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        // "Flags; currently unused." The server sends 0, and its own subscriber refuses anything else.
        match r.u8("Commit.flags")? {
            0 => {}
            other => return Err(DecodeError::new("Commit.flags", Fault::Tag(other))),
        }
        Ok(Self {
            commit_lsn: Lsn(r.u64("Commit.commit_lsn")?),
            end_lsn: Lsn(r.u64("Commit.end_lsn")?),
            commit_timestamp: Timestamp(r.i64("Commit.commit_timestamp")?),
        })
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_slice(b"C\0");
        out.put_u64(self.commit_lsn.0);
        out.put_u64(self.end_lsn.0);
        out.put_i64(self.commit_timestamp.0);
    }
}

impl<'a> LogicalMessage<'a> {
    #[inline]
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let transactional = r.bool("Message.flags")?;
        let lsn = Lsn(r.u64("Message.lsn")?);
        let prefix = r.cstr("Message.prefix")?;
        let len = r.len32("Message.length")?;
        Ok(Self { transactional, lsn, prefix, content: r.take(len, "Message.content")? })
    }

    fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(b'M');
        out.put_u8(self.transactional.into());
        out.put_u64(self.lsn.0);
        writer::cstr(self.prefix, "Message.prefix", out)?;
        writer::bytes32(self.content, "Message.content", out)
    }
}

impl<'a> Origin<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self { commit_lsn: Lsn(r.u64("Origin.commit_lsn")?), name: r.cstr("Origin.name")? })
    }

    fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(b'O');
        out.put_u64(self.commit_lsn.0);
        writer::cstr(self.name, "Origin.name", out)
    }
}

impl<'a> Relation<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: r.u32("Relation.id")?,
            namespace: r.cstr("Relation.namespace")?,
            name: r.cstr("Relation.name")?,
            replica_identity: ReplicaIdentity::read(r)?,
            columns: Columns::read(r)?,
        })
    }

    fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(b'R');
        out.put_u32(self.id);
        writer::cstr(self.namespace, "Relation.namespace", out)?;
        writer::cstr(self.name, "Relation.name", out)?;
        out.put_u8(self.replica_identity.byte());
        out.put_u16(self.columns.count);
        out.put_slice(self.columns.columns);
        Ok(())
    }
}

impl ReplicaIdentity {
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8("Relation.replica_identity")? {
            b'd' => Ok(Self::Default),
            b'n' => Ok(Self::Nothing),
            b'f' => Ok(Self::Full),
            b'i' => Ok(Self::Index),
            other => Err(DecodeError::new("Relation.replica_identity", Fault::Tag(other))),
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Default => b'd',
            Self::Nothing => b'n',
            Self::Full => b'f',
            Self::Index => b'i',
        }
    }
}

impl<'a> Columns<'a> {
    /// Reads columns that stand alone, such as those made by [`Columns::encode`].
    ///
    /// # Errors
    ///
    /// If they are too short or too long, or a flag is not known.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Reader::all(bytes, "Relation.columns", Self::read)
    }

    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = r.count16("Relation.columns")?;
        let columns = r.scan(|r| (0..count).try_for_each(|_| Column::read(r).map(drop)))?;
        Ok(Self { count, columns })
    }

    /// How many columns there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no column.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The columns, from left to right.
    pub fn iter(&self) -> impl Iterator<Item = Column<'a>> + Clone + use<'a> {
        let mut r = Reader::new(self.columns);
        (0..self.count).map_while(move |_| {
            let column = Column::read(&mut r);
            debug_assert!(column.is_ok(), "the columns were scanned when they were decoded");
            column.ok()
        })
    }

    /// Appends these columns, as a [`Relation`] holds them.
    ///
    /// # Errors
    ///
    /// If there are more than 32,767, or a name holds a zero byte.
    pub fn encode(columns: &[Column<'_>], out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::all_or_nothing(out, |out| {
            out.put_i16(writer::len16(columns.len(), "Relation.columns")?);
            columns.iter().try_for_each(|column| {
                out.put_u8(column.key.into());
                writer::cstr(column.name, "Relation.column.name", out)?;
                out.put_u32(column.type_oid);
                out.put_i32(column.type_modifier);
                Ok(())
            })
        })
    }
}

impl<'a> Column<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            key: r.bool("Relation.column.flags")?,
            name: r.cstr("Relation.column.name")?,
            type_oid: r.u32("Relation.column.type_oid")?,
            type_modifier: r.i32("Relation.column.type_modifier")?,
        })
    }
}

impl<'a> Type<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: r.u32("Type.id")?,
            namespace: r.cstr("Type.namespace")?,
            name: r.cstr("Type.name")?,
        })
    }

    fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(b'Y');
        out.put_u32(self.id);
        writer::cstr(self.namespace, "Type.namespace", out)?;
        writer::cstr(self.name, "Type.name", out)
    }
}

impl<'a> Insert<'a> {
    #[inline]
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let relation = r.u32("Insert.relation")?;
        match r.u8("Insert.marker")? {
            b'N' => Ok(Self { relation, new: Tuple::read(r)? }),
            other => Err(DecodeError::new("Insert.marker", Fault::Tag(other))),
        }
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'I');
        out.put_u32(self.relation);
        out.put_u8(b'N');
        self.new.write(out);
    }
}

impl<'a> Update<'a> {
    #[inline]
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let relation = r.u32("Update.relation")?;
        let mut marker = r.u8("Update.marker")?;
        let old = OldTuple::read(marker, r)?;
        if old.is_some() {
            marker = r.u8("Update.marker")?;
        }
        match marker {
            b'N' => Ok(Self { relation, old, new: Tuple::read(r)? }),
            other => Err(DecodeError::new("Update.marker", Fault::Tag(other))),
        }
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'U');
        out.put_u32(self.relation);
        if let Some(old) = &self.old {
            old.write(out);
        }
        out.put_u8(b'N');
        self.new.write(out);
    }
}

impl<'a> Delete<'a> {
    #[inline]
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let relation = r.u32("Delete.relation")?;
        let marker = r.u8("Delete.marker")?;
        match OldTuple::read(marker, r)? {
            Some(old) => Ok(Self { relation, old }),
            None => Err(DecodeError::new("Delete.marker", Fault::Tag(marker))),
        }
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'D');
        out.put_u32(self.relation);
        self.old.write(out);
    }
}

impl<'a> OldTuple<'a> {
    /// The columns that are known of it.
    #[inline]
    #[must_use]
    pub const fn tuple(&self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => *tuple,
        }
    }

    #[inline]
    fn read(marker: u8, r: &mut Reader<'a>) -> Result<Option<Self>, DecodeError> {
        match marker {
            b'K' => Tuple::read(r).map(|tuple| Some(Self::Key(tuple))),
            b'O' => Tuple::read(r).map(|tuple| Some(Self::Full(tuple))),
            _ => Ok(None),
        }
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(match self {
            Self::Key(_) => b'K',
            Self::Full(_) => b'O',
        });
        self.tuple().write(out);
    }
}

impl<'a> Truncate<'a> {
    const CASCADE: u8 = 1;
    const RESTART_IDENTITY: u8 = 2;

    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = r.len32("Truncate.relations")?;
        let options = r.u8("Truncate.options")?;
        if options & !(Self::CASCADE | Self::RESTART_IDENTITY) != 0 {
            return Err(DecodeError::new("Truncate.options", Fault::Tag(options)));
        }
        let bytes = r.take(count.saturating_mul(4), "Truncate.relation")?;
        Ok(Self {
            cascade: options & Self::CASCADE != 0,
            restart_identity: options & Self::RESTART_IDENTITY != 0,
            relations: RelationIds(bytes.as_chunks().0),
        })
    }

    fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let cascade = if self.cascade { Self::CASCADE } else { 0 };
        let restart_identity = if self.restart_identity { Self::RESTART_IDENTITY } else { 0 };
        out.put_u8(b'T');
        out.put_i32(writer::len32(self.relations.0.len(), "Truncate.relations")?);
        out.put_u8(cascade | restart_identity);
        out.put_slice(self.relations.0.as_flattened());
        Ok(())
    }
}

impl<'a> RelationIds<'a> {
    /// Takes numbers as they are on the wire, for an encoder: `&[relation.to_be_bytes()]`.
    #[must_use]
    pub const fn new(big_endian: &'a [[u8; 4]]) -> Self {
        Self(big_endian)
    }

    /// How many tables there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tables, in the order the server names them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Oid> + Clone + use<'a> {
        self.0.iter().map(|id| Oid::from_be_bytes(*id))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use hex_literal::hex;

    use super::*;

    #[track_caller]
    fn check(data: &[u8], expected: Message<'_>) {
        assert_eq!(Decoder.decode(data), Ok(expected));
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
            Message::Type(Type { id: 0x4002, namespace: b"p", name: b"mood" }),
        );
        let relations = [[0, 0, 0x40, 1], [0, 0, 0x40, 2]];
        check(
            &hex!("54 00000002 03 00004001 00004002"),
            Message::Truncate(Truncate {
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
            Message::Insert(Insert { relation, new: row }),
        );
        check(
            &hex!("55 00000007 4e 0001 6e"),
            Message::Update(Update { relation, old: None, new: key }),
        );
        check(
            &hex!("55 00000007 4b 0001 6e 4e 0001 6e"),
            Message::Update(Update { relation, old: Some(OldTuple::Key(key)), new: key }),
        );
        check(
            &hex!("55 00000007 4f 0001 6e 4e 0001 6e"),
            Message::Update(Update { relation, old: Some(OldTuple::Full(key)), new: key }),
        );
        check(
            &hex!("44 00000007 4b 0001 6e"),
            Message::Delete(Delete { relation, old: OldTuple::Key(key) }),
        );
        check(
            &hex!("44 00000007 4f 0001 6e"),
            Message::Delete(Delete { relation, old: OldTuple::Full(key) }),
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
                    id: 0x4001,
                    namespace: b"",
                    name: b"t",
                    replica_identity,
                    columns: columns_read,
                }),
            );
        }
    }

    #[test]
    fn what_cannot_be_said_is_refused_and_leaves_no_trace() {
        let mut out = BytesMut::new();
        let message =
            LogicalMessage { transactional: true, lsn: Lsn(1), prefix: b"a\0b", content: b"" };
        assert_eq!(
            Message::Message(message).encode(&mut out),
            Err(EncodeError::Nul { field: "Message.prefix" })
        );
        let too_many = [Value::Null; 32_768];
        assert!(Tuple::encode(&too_many, &mut out).is_err());
        assert!(out.is_empty());
    }
}
