//! What tables and types look like.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use bytes::{BufMut, BytesMut};

use super::{read_xid, write_xid};
use crate::{
    Oid, Xid,
    error::{DecodeError, EncodeError, Fault},
    reader::Reader,
    writer,
};

/// `R`: what a table looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Which transaction or subtransaction it belongs to: only inside a
    /// [streamed block](super::StreamStart).
    pub xid: Option<Xid>,
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
    /// Which transaction or subtransaction it belongs to: only inside a
    /// [streamed block](super::StreamStart).
    pub xid: Option<Xid>,
    /// Its number.
    pub id: Oid,
    /// Its schema; empty for `pg_catalog`.
    pub namespace: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
}

impl<'a> Relation<'a> {
    pub(super) fn read(r: &mut Reader<'a>, streamed: bool) -> Result<Self, DecodeError> {
        Ok(Self {
            xid: read_xid(r, streamed, "Relation.xid")?,
            id: r.u32("Relation.id")?,
            namespace: r.cstr("Relation.namespace")?,
            name: r.cstr("Relation.name")?,
            replica_identity: ReplicaIdentity::read(r)?,
            columns: Columns::read(r)?,
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(b'R');
        write_xid(self.xid, out);
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
    pub(super) fn read(r: &mut Reader<'a>, streamed: bool) -> Result<Self, DecodeError> {
        Ok(Self {
            xid: read_xid(r, streamed, "Type.xid")?,
            id: r.u32("Type.id")?,
            namespace: r.cstr("Type.namespace")?,
            name: r.cstr("Type.name")?,
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(b'Y');
        write_xid(self.xid, out);
        out.put_u32(self.id);
        writer::cstr(self.namespace, "Type.namespace", out)?;
        writer::cstr(self.name, "Type.name", out)
    }
}
