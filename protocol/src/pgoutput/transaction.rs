//! Transactions that are told whole, once they have committed, and messages in them.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use bytes::{BufMut, BytesMut};

use super::{no_flags, read_xid, write_xid};
use crate::{
    Xid,
    error::{DecodeError, EncodeError},
    lsn::{Lsn, Timestamp},
    reader::Reader,
    writer,
};

/// `B`: a transaction that has committed is about to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Where its commit record starts: transactions come in this order.
    pub final_lsn: Lsn,
    /// When it committed.
    pub commit_timestamp: Timestamp,
    /// Its number.
    pub xid: Xid,
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

/// `O`: the transaction came from another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Where it committed there; 0 inside a [streamed block](super::StreamStart), when nobody knows yet.
    pub commit_lsn: Lsn,
    /// The origin's name.
    pub name: &'a [u8],
}

/// `M`: written by `pg_logical_emit_message(transactional, prefix, content)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// The transaction, also where a subtransaction said it: only inside a
    /// [streamed block](super::StreamStart).
    pub xid: Option<Xid>,
    /// Whether it belongs to the transaction around it, and counts only if that commits.
    pub transactional: bool,
    /// Where its record ends: what the function returned. Not in the order of commits.
    pub lsn: Lsn,
    /// Says whom it is for. Bytes, because the database may have no encoding.
    pub prefix: &'a [u8],
    /// What it says.
    pub content: &'a [u8],
}

impl Begin {
    #[inline]
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            final_lsn: Lsn(r.u64("Begin.final_lsn")?),
            commit_timestamp: Timestamp(r.i64("Begin.commit_timestamp")?),
            xid: r.u32("Begin.xid")?,
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'B');
        out.put_u64(self.final_lsn.0);
        out.put_i64(self.commit_timestamp.0);
        out.put_u32(self.xid);
    }
}

impl Commit {
    #[inline]
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        no_flags(r, "Commit.flags")?;
        Ok(Self {
            commit_lsn: Lsn(r.u64("Commit.commit_lsn")?),
            end_lsn: Lsn(r.u64("Commit.end_lsn")?),
            commit_timestamp: Timestamp(r.i64("Commit.commit_timestamp")?),
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_slice(b"C\0");
        out.put_u64(self.commit_lsn.0);
        out.put_u64(self.end_lsn.0);
        out.put_i64(self.commit_timestamp.0);
    }
}

impl<'a> Origin<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self { commit_lsn: Lsn(r.u64("Origin.commit_lsn")?), name: r.cstr("Origin.name")? })
    }

    pub(super) fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(b'O');
        out.put_u64(self.commit_lsn.0);
        writer::cstr(self.name, "Origin.name", out)
    }
}

impl<'a> LogicalMessage<'a> {
    #[inline]
    pub(super) fn read(r: &mut Reader<'a>, streamed: bool) -> Result<Self, DecodeError> {
        let xid = read_xid(r, streamed, "Message.xid")?;
        let transactional = r.bool("Message.flags")?;
        let lsn = Lsn(r.u64("Message.lsn")?);
        let prefix = r.cstr("Message.prefix")?;
        let len = r.len32("Message.length")?;
        Ok(Self { xid, transactional, lsn, prefix, content: r.take(len, "Message.content")? })
    }

    pub(super) fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(b'M');
        write_xid(self.xid, out);
        out.put_u8(self.transactional.into());
        out.put_u64(self.lsn.0);
        writer::cstr(self.prefix, "Message.prefix", out)?;
        writer::bytes32(self.content, "Message.content", out)
    }
}
