//! Transactions that are told while they are still open: protocol version 2 and later, with the option
//! `streaming`.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>
//!
//! ```text
//!  StreamStart  { … }  StreamStop  …  StreamStart  { … }  StreamStop  …  StreamCommit | StreamAbort
//! ```
//!
//! What a block tells may never commit. Rows carry the number of their subtransaction, and a
//! [`StreamAbort`] takes back one of these; but a [`LogicalMessage`](super::LogicalMessage) carries the
//! number of the whole transaction, so that one of a savepoint that was rolled back cannot be told from
//! a good one (so on 14 to 18). Whoever needs messages leaves `streaming` off.

use bytes::{BufMut, BytesMut};

use super::no_flags;
use crate::{
    Xid,
    error::DecodeError,
    lsn::{Lsn, Timestamp},
    reader::Reader,
};

/// `S`: a block of an open transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStart {
    /// The transaction.
    pub xid: Xid,
    /// Whether this is its first block.
    pub first_segment: bool,
}

/// `c`: a transaction that was streamed has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamCommit {
    /// The transaction.
    pub xid: Xid,
    /// Where its commit record starts.
    pub commit_lsn: Lsn,
    /// Where its commit record ends: what to confirm once the transaction is safe.
    pub end_lsn: Lsn,
    /// When it committed.
    pub commit_timestamp: Timestamp,
}

/// `A`: a transaction that was streamed, or a part of it, was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAbort {
    /// The transaction.
    pub xid: Xid,
    /// The part of it that was rolled back; the same as `xid` if all of it was.
    pub subxid: Xid,
    /// Where and when: only with `streaming 'parallel'`, from 16 on.
    pub abort: Option<Abort>,
}

/// Where and when a streamed transaction was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// Where the record of it ends; 0 if the server lost the transaction in a crash and has no record.
    pub lsn: Lsn,
    /// When it was rolled back.
    pub timestamp: Timestamp,
}

impl StreamStart {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            xid: r.u32("StreamStart.xid")?,
            first_segment: r.bool("StreamStart.first_segment")?,
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'S');
        out.put_u32(self.xid);
        out.put_u8(self.first_segment.into());
    }
}

impl StreamCommit {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let xid = r.u32("StreamCommit.xid")?;
        no_flags(r, "StreamCommit.flags")?;
        Ok(Self {
            xid,
            commit_lsn: Lsn(r.u64("StreamCommit.commit_lsn")?),
            end_lsn: Lsn(r.u64("StreamCommit.end_lsn")?),
            commit_timestamp: Timestamp(r.i64("StreamCommit.commit_timestamp")?),
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'c');
        out.put_u32(self.xid);
        out.put_u8(0);
        out.put_u64(self.commit_lsn.0);
        out.put_u64(self.end_lsn.0);
        out.put_i64(self.commit_timestamp.0);
    }
}

impl StreamAbort {
    /// `parallel`: the message says where and when, too. Nothing in it says whether it does.
    pub(super) fn read(r: &mut Reader<'_>, parallel: bool) -> Result<Self, DecodeError> {
        let xid = r.u32("StreamAbort.xid")?;
        let subxid = r.u32("StreamAbort.subxid")?;
        let abort = match parallel {
            false => None,
            true => Some(Abort {
                lsn: Lsn(r.u64("StreamAbort.abort_lsn")?),
                timestamp: Timestamp(r.i64("StreamAbort.abort_timestamp")?),
            }),
        };
        Ok(Self { xid, subxid, abort })
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'A');
        out.put_u32(self.xid);
        out.put_u32(self.subxid);
        if let Some(abort) = &self.abort {
            out.put_u64(abort.lsn.0);
            out.put_i64(abort.timestamp.0);
        }
    }
}
