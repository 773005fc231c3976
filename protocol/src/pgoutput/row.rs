//! What happened to rows and tables.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use bytes::{BufMut, BytesMut};

use super::{Tuple, read_xid, write_xid};
use crate::{
    Oid, Xid,
    error::{DecodeError, EncodeError, Fault},
    reader::Reader,
    writer,
};

/// `I`: a new row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    /// Which transaction or subtransaction it belongs to: only inside a
    /// [streamed block](super::StreamStart).
    pub xid: Option<Xid>,
    /// The [`Relation`](super::Relation) it is in.
    pub relation: Oid,
    /// The row.
    pub new: Tuple<'a>,
}

/// `U`: a changed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    /// Which transaction or subtransaction it belongs to: only inside a
    /// [streamed block](super::StreamStart).
    pub xid: Option<Xid>,
    /// The [`Relation`](super::Relation) it is in.
    pub relation: Oid,
    /// What it was, if its key has changed or the whole row is the identity.
    pub old: Option<OldTuple<'a>>,
    /// What it is now.
    pub new: Tuple<'a>,
}

/// `D`: a row that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    /// Which transaction or subtransaction it belongs to: only inside a
    /// [streamed block](super::StreamStart).
    pub xid: Option<Xid>,
    /// The [`Relation`](super::Relation) it was in.
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
    /// Which transaction or subtransaction it belongs to: only inside a
    /// [streamed block](super::StreamStart).
    pub xid: Option<Xid>,
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

impl<'a> Insert<'a> {
    #[inline]
    pub(super) fn read(r: &mut Reader<'a>, streamed: bool) -> Result<Self, DecodeError> {
        let xid = read_xid(r, streamed, "Insert.xid")?;
        let relation = r.u32("Insert.relation")?;
        match r.u8("Insert.marker")? {
            b'N' => Ok(Self { xid, relation, new: Tuple::read(r)? }),
            other => Err(DecodeError::new("Insert.marker", Fault::Tag(other))),
        }
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'I');
        write_xid(self.xid, out);
        out.put_u32(self.relation);
        out.put_u8(b'N');
        self.new.write(out);
    }
}

impl<'a> Update<'a> {
    #[inline]
    pub(super) fn read(r: &mut Reader<'a>, streamed: bool) -> Result<Self, DecodeError> {
        let xid = read_xid(r, streamed, "Update.xid")?;
        let relation = r.u32("Update.relation")?;
        let mut marker = r.u8("Update.marker")?;
        let old = OldTuple::read(marker, r)?;
        if old.is_some() {
            marker = r.u8("Update.marker")?;
        }
        match marker {
            b'N' => Ok(Self { xid, relation, old, new: Tuple::read(r)? }),
            other => Err(DecodeError::new("Update.marker", Fault::Tag(other))),
        }
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'U');
        write_xid(self.xid, out);
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
    pub(super) fn read(r: &mut Reader<'a>, streamed: bool) -> Result<Self, DecodeError> {
        let xid = read_xid(r, streamed, "Delete.xid")?;
        let relation = r.u32("Delete.relation")?;
        let marker = r.u8("Delete.marker")?;
        match OldTuple::read(marker, r)? {
            Some(old) => Ok(Self { xid, relation, old }),
            None => Err(DecodeError::new("Delete.marker", Fault::Tag(marker))),
        }
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'D');
        write_xid(self.xid, out);
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

    pub(super) fn write(&self, out: &mut BytesMut) {
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

    pub(super) fn read(r: &mut Reader<'a>, streamed: bool) -> Result<Self, DecodeError> {
        let xid = read_xid(r, streamed, "Truncate.xid")?;
        let count = r.len32("Truncate.relations")?;
        let options = r.u8("Truncate.options")?;
        if options & !(Self::CASCADE | Self::RESTART_IDENTITY) != 0 {
            return Err(DecodeError::new("Truncate.options", Fault::Tag(options)));
        }
        let bytes = r.take(count.saturating_mul(4), "Truncate.relation")?;
        Ok(Self {
            xid,
            cascade: options & Self::CASCADE != 0,
            restart_identity: options & Self::RESTART_IDENTITY != 0,
            relations: RelationIds(bytes.as_chunks().0),
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let cascade = if self.cascade { Self::CASCADE } else { 0 };
        let restart_identity = if self.restart_identity { Self::RESTART_IDENTITY } else { 0 };
        out.put_u8(b'T');
        write_xid(self.xid, out);
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
