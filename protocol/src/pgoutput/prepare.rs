//! Two-phase commit: protocol version 3 and later, of a slot that was made with `TWO_PHASE`.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>
//!
//! ```text
//!  BeginPrepare  { … }  Prepare   …   CommitPrepared | RollbackPrepared
//! ```
//!
//! Without `TWO_PHASE` a prepared transaction is told like any other, once it has committed.

use bytes::{BufMut, BytesMut};

use super::no_flags;
use crate::{
    Xid,
    error::{DecodeError, EncodeError},
    lsn::{Lsn, Timestamp},
    reader::Reader,
    writer,
};

/// `b`, `P` and `p`: a transaction that was prepared is about to be told, has been told, or had been
/// streamed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// Where its prepare record starts.
    pub prepare_lsn: Lsn,
    /// Where its prepare record ends.
    pub end_lsn: Lsn,
    /// When it was prepared.
    pub prepare_timestamp: Timestamp,
    /// Its number.
    pub xid: Xid,
    /// The name that `PREPARE TRANSACTION` gave it.
    pub gid: &'a [u8],
}

/// `K`: a prepared transaction has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPrepared<'a> {
    /// Where the record of its commit starts.
    pub commit_lsn: Lsn,
    /// Where the record of its commit ends.
    pub end_lsn: Lsn,
    /// When it committed.
    pub commit_timestamp: Timestamp,
    /// Its number.
    pub xid: Xid,
    /// The name that `PREPARE TRANSACTION` gave it.
    pub gid: &'a [u8],
}

/// `r`: a prepared transaction was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollbackPrepared<'a> {
    /// Where its prepare record ends.
    pub prepare_end_lsn: Lsn,
    /// Where the record of its rollback ends.
    pub rollback_end_lsn: Lsn,
    /// When it was prepared.
    pub prepare_timestamp: Timestamp,
    /// When it was rolled back.
    pub rollback_timestamp: Timestamp,
    /// Its number.
    pub xid: Xid,
    /// The name that `PREPARE TRANSACTION` gave it.
    pub gid: &'a [u8],
}

impl<'a> Prepare<'a> {
    pub(super) fn read_begin(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            prepare_lsn: Lsn(r.u64("Prepare.prepare_lsn")?),
            end_lsn: Lsn(r.u64("Prepare.end_lsn")?),
            prepare_timestamp: Timestamp(r.i64("Prepare.prepare_timestamp")?),
            xid: r.u32("Prepare.xid")?,
            gid: r.cstr("Prepare.gid")?,
        })
    }

    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        no_flags(r, "Prepare.flags")?;
        Self::read_begin(r)
    }

    /// `head` is the tag and, behind all tags but `b`, the flags.
    pub(super) fn write(&self, head: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_slice(head);
        out.put_u64(self.prepare_lsn.0);
        out.put_u64(self.end_lsn.0);
        out.put_i64(self.prepare_timestamp.0);
        out.put_u32(self.xid);
        writer::cstr(self.gid, "Prepare.gid", out)
    }
}

impl<'a> CommitPrepared<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        no_flags(r, "CommitPrepared.flags")?;
        Ok(Self {
            commit_lsn: Lsn(r.u64("CommitPrepared.commit_lsn")?),
            end_lsn: Lsn(r.u64("CommitPrepared.end_lsn")?),
            commit_timestamp: Timestamp(r.i64("CommitPrepared.commit_timestamp")?),
            xid: r.u32("CommitPrepared.xid")?,
            gid: r.cstr("CommitPrepared.gid")?,
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_slice(b"K\0");
        out.put_u64(self.commit_lsn.0);
        out.put_u64(self.end_lsn.0);
        out.put_i64(self.commit_timestamp.0);
        out.put_u32(self.xid);
        writer::cstr(self.gid, "CommitPrepared.gid", out)
    }
}

impl<'a> RollbackPrepared<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        no_flags(r, "RollbackPrepared.flags")?;
        Ok(Self {
            prepare_end_lsn: Lsn(r.u64("RollbackPrepared.prepare_end_lsn")?),
            rollback_end_lsn: Lsn(r.u64("RollbackPrepared.rollback_end_lsn")?),
            prepare_timestamp: Timestamp(r.i64("RollbackPrepared.prepare_timestamp")?),
            rollback_timestamp: Timestamp(r.i64("RollbackPrepared.rollback_timestamp")?),
            xid: r.u32("RollbackPrepared.xid")?,
            gid: r.cstr("RollbackPrepared.gid")?,
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_slice(b"r\0");
        out.put_u64(self.prepare_end_lsn.0);
        out.put_u64(self.rollback_end_lsn.0);
        out.put_i64(self.prepare_timestamp.0);
        out.put_i64(self.rollback_timestamp.0);
        out.put_u32(self.xid);
        writer::cstr(self.gid, "RollbackPrepared.gid", out)
    }
}
